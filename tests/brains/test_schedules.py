"""Schedules: their values, and that the optimizers get them."""

import pytest
import torch

from speechbrain_sim.brains.schedules import WarmupAndDecay, check_decay
from tests.conftest import make_brain, make_loader


def test_rate_is_that_of_torch():
    """The product of two schedulers of torch, stepped."""
    steps, warmup = 40, 8
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    schedulers = torch.optim.lr_scheduler
    rise = schedulers.LinearLR(optimizer, 1e-9, 1.0, warmup)
    fall = schedulers.CosineAnnealingLR(optimizer, steps)
    both = schedulers.ChainedScheduler([rise, fall])
    ours = WarmupAndDecay(warmup / 10, steps / 10)  # in epochs of ten steps
    for step in range(steps):
        rate = optimizer.param_groups[0]["lr"]
        assert ours(step / 10) == pytest.approx(rate, abs=1e-6)
        optimizer.step()
        both.step()
    assert ours(steps / 10) == ours(2 * steps) == pytest.approx(0)


def test_without_epochs_the_rate_is_constant():
    assert {WarmupAndDecay()(t) for t in (0.01, 1, 1000)} == {1.0}


def test_each_step_of_each_module_has_its_rate(tmp_path, monkeypatch):
    brain = make_brain(
        tmp_path, epochs=2, opt_class=lambda p: torch.optim.SGD(p, lr=1e-3)
    )
    brain.hparams.lr_schedule = WarmupAndDecay(warmup=1, decay=3)
    rates = []

    def step_module(name):
        optimizer = brain.optimizers_dict[name]
        type(brain).set_rate(brain, optimizer)
        rates.append((name, optimizer.param_groups[0]["lr"]))

    monkeypatch.setattr(brain, "step_module", step_module)
    brain.fit(brain.hparams.epoch_counter, make_loader(batches=4))
    share = WarmupAndDecay(warmup=1, decay=3)
    expected = [1e-3 * share(step / 4) for step in range(1, 9)]
    for name in brain.modules:
        assert [r for n, r in rates if n == name] == pytest.approx(expected)


def test_weights_follow_the_rate(tmp_path):
    """With SGD, half the rate moves the weights half as far."""
    moved = []
    for share in (1.0, 0.5):
        brain = make_brain(
            tmp_path / str(share),
            opt_class=lambda p: torch.optim.SGD(p, lr=1e-3),
        )
        brain.hparams.lr_schedule = lambda epochs, share=share: share
        before = brain.modules["module1"].state_dict()
        before = {k: v.clone() for k, v in before.items()}
        brain.fit(brain.hparams.epoch_counter, make_loader(batches=1))
        after = brain.modules["module1"].state_dict()
        moved.append(
            torch.cat([(after[k] - before[k]).flatten() for k in after])
        )
    torch.testing.assert_close(moved[0], 2 * moved[1], rtol=1e-3, atol=1e-7)


def test_epochs_without_a_rate_are_refused():
    check_decay({"lr_decay_epochs": 0, "number_of_epochs": 9})
    check_decay({"lr_decay_epochs": 9, "number_of_epochs": 9})
    with pytest.raises(ValueError, match="number_of_epochs is 9: give both"):
        check_decay({"lr_decay_epochs": 8, "number_of_epochs": 9})
