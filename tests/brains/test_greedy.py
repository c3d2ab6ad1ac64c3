"""Greedy training: isolation, equality with one backward, what it logs."""

import itertools
import math
import re
from collections import Counter
from functools import partial

import pytest
import speechbrain as sb
import torch
from speechbrain.dataio.batch import PaddedBatch
from speechbrain.utils.train_logger import TensorboardLogger

from speechbrain_sim.brains.greedy import GreedyBrain
from speechbrain_sim.brains.schedules import LinearWarmup
from speechbrain_sim.data.batches import KeyedCrop
from speechbrain_sim.data.labels import NO_LABEL
from speechbrain_sim.encoders.base import Latent
from speechbrain_sim.family import build_model
from speechbrain_sim.files import read_json
from speechbrain_sim.models.load import load_encoder
from speechbrain_sim.objectives import greedy as objectives
from tests.conftest import TINY, make_brain, make_loader, same, weights

TRAIN = sb.Stage.TRAIN
LAYERS = ["module1", "module2", "module3", "context"]
FAMILY = (
    "sim gim sim_beta0 sim_kl_only cpc sim_end_to_end supervised random".split()
)


def batch_of(loader):
    return next(iter(loader))


def fit(brain, loader=None, valid=None):
    epoch_counter = brain.hparams.epoch_counter
    brain.fit(epoch_counter, make_loader() if loader is None else loader, valid)
    return brain


def logged(folder):
    """Reads train_log.txt: for each epoch a dict of (split, stat) -> float."""
    lines = (folder / "train_log.txt").read_text().splitlines()
    entry = re.compile(r"(train|valid) (\w+): ([^, ]+)")
    return [
        {(split, name): float(x) for split, name, x in entry.findall(line)}
        for line in lines
    ]


# isolation ------------------------------------------------------------------


def crossings(brain):
    """Lists (loss of, reaches) for all pairs of different modules."""
    brain.modules.train()
    crossed = []
    for name, output in list(
        brain.forward_modules(batch_of(make_loader()), TRAIN)
    ):
        brain.modules.zero_grad(set_to_none=True)
        output.loss.backward(retain_graph=True)
        reached = [
            other
            for other, module in brain.modules.items()
            if any(p.grad is not None for p in module.parameters())
        ]
        assert name in reached
        crossed += [(name, other) for other in reached if other != name]
    return crossed


@pytest.mark.parametrize("model", ["sim", "gim"])
def test_no_gradient_crosses_modules(tmp_path, model):
    assert crossings(make_brain(tmp_path, model)) == []


def test_isolation_is_owed_to_detach(tmp_path, monkeypatch):
    brain = make_brain(tmp_path)
    monkeypatch.setattr(torch.Tensor, "detach", lambda x: x)
    downwards = {(b, a) for a, b in itertools.combinations(LAYERS, 2)}
    assert set(crossings(brain)) == downwards


def test_a_module_detaches_its_own_input(tmp_path):
    module = make_brain(tmp_path).modules["module2"]
    x = torch.randn(2, 60, TINY["channels"], requires_grad=True)
    module(x, torch.tensor([60, 60])).loss.backward()
    assert x.grad is None


# one backward per module ----------------------------------------------------


class OneBackward(GreedyBrain):
    """Sums all losses and calls one backward, as the authors' release does."""

    def fit_batch(self, batch):
        should_step = self.step % self.grad_accumulation_factor == 0
        self.on_fit_batch_start(batch, should_step)
        outputs = dict(self.forward_modules(batch, TRAIN))
        loss = sum(output.loss for output in outputs.values())
        self.scaler.scale(loss / self.grad_accumulation_factor).backward()
        if should_step:
            self.optimizers_step()
        return loss.detach()


@pytest.mark.parametrize("factor", [1, 2])
def test_immediate_backward_equals_one_of_the_sum(
    tmp_path, monkeypatch, factor
):
    options = {"grad_accumulation_factor": factor}
    immediate = make_brain(tmp_path / "immediate", run_opts=options)
    before = weights(immediate)
    fit(immediate, make_loader(4))
    monkeypatch.setattr("tests.conftest.GreedyBrain", OneBackward)
    summed = make_brain(tmp_path / "summed", run_opts=options)
    assert isinstance(summed, OneBackward) and same(weights(summed), before)
    fit(summed, make_loader(4))
    assert same(weights(immediate), weights(summed))
    assert not any(same(weights(summed)[n], before[n]) for n in LAYERS)


def live_tensors_at_each_forward(brain):
    """Counts the tensors that graphs hold when each module's forward starts."""
    live, seen = set(), []

    class Held:
        def __init__(self, tensor):
            self.tensor = tensor.detach()  # else a cycle with its graph
            live.add(id(self))

        def __del__(self):
            live.discard(id(self))

    for module in brain.modules.values():
        module.register_forward_pre_hook(lambda *_: seen.append(len(live)))
    with torch.autograd.graph.saved_tensors_hooks(
        Held, lambda held: held.tensor
    ):
        fit(brain, make_loader(2))
    return seen


def test_a_graph_is_freed_before_the_next_forward(tmp_path, monkeypatch):
    brain = make_brain(tmp_path / "immediate")
    assert live_tensors_at_each_forward(brain) == [0] * 8
    monkeypatch.setattr("tests.conftest.GreedyBrain", OneBackward)
    counts = live_tensors_at_each_forward(make_brain(tmp_path / "summed"))
    assert counts[1] > 0 and counts[3] > counts[2] > counts[1]


def test_gradients_are_dropped_before_the_next_forward(tmp_path):
    brain = make_brain(tmp_path)
    seen = []

    def count(*_):
        alive = [p for p in brain.modules.parameters() if p.grad is not None]
        seen.append(len(alive))

    for module in brain.modules.values():
        module.register_forward_pre_hook(count)
    fit(brain, make_loader(2))
    assert seen == [0] * 8 and brain.optimizer_step == 2


@pytest.mark.parametrize("batch_norm", [False, True])
def test_activation_checkpointing_changes_no_number(tmp_path, batch_norm):
    brains = [
        make_brain(
            tmp_path / str(len(names)),
            batch_norm=batch_norm,
            activation_checkpointing=names,
        )
        for names in ([], ["module1", "module2"])
    ]
    calls = []
    for brain in brains:
        for name, module in brain.modules.items():
            layer = module.layers[name]
            if name != "context":
                layer._convolve = partial(
                    lambda again, brain, name, *args: (
                        calls.append((brain, name)) or again(*args)
                    ),
                    layer._convolve,
                    brain,
                    name,
                )
        fit(brain, make_loader(2))
    times = Counter((brains.index(brain), name) for brain, name in calls)
    twice = {(1, "module1"), (1, "module2")}
    assert all(n == (4 if at in twice else 2) for at, n in times.items())
    plain, checkpointed = map(weights, brains)  # batch norm's counts, too
    assert same(plain, checkpointed)


@pytest.mark.recipe  # twelve seconds
def test_compiled_modules_give_the_same_numbers(tmp_path, monkeypatch):
    # traced and differentiated as always, but run without a C++ compiler
    monkeypatch.setattr(
        torch, "compile", partial(torch.compile, backend="aot_eager")
    )
    plain, compiled = (
        make_brain(tmp_path / str(chosen), run_opts={"compile": chosen})
        for chosen in (False, True)
    )
    for brain in (plain, compiled):
        fit(brain, make_loader(2))
    assert "OptimizedModule" in type(compiled.modules["module1"]).__name__
    for name, state in weights(plain).items():
        for key, value in weights(compiled)[name].items():
            torch.testing.assert_close(value, state[key], atol=1e-5, rtol=1e-4)


def test_a_bad_gradient_costs_no_other_module_its_own(tmp_path):
    options = {"grad_accumulation_factor": 2, "skip_nonfinite_grads": True}
    brain = make_brain(tmp_path, run_opts=options)
    brain.on_fit_start()
    brain.hparams.epoch_counter.current = 1
    brain.step = 1  # of 2: gradients, but no step yet
    brain.fit_batch(next(iter(make_loader(1))))
    before = weights(brain)
    for weight in brain.modules["module2"].parameters():
        weight.grad.fill_(torch.nan)
    brain.step_module("module1")
    assert all(
        weight.grad.isnan().all()
        for weight in brain.modules["module2"].parameters()
    )
    brain.step_module("module2")
    after = weights(brain)
    assert not same(after["module1"], before["module1"])
    assert same(after["module2"], before["module2"])


def test_every_module_has_its_own_optimizer(tmp_path):
    brain = fit(make_brain(tmp_path))
    assert list(brain.optimizers_dict) == list(brain.modules) == LAYERS
    for name, optimizer in brain.optimizers_dict.items():
        (group,) = optimizer.param_groups
        expected = list(brain.unwrapped[name].parameters())
        assert list(map(id, group["params"])) == list(map(id, expected))
        assert brain.checkpointer.recoverables[f"{name}_optimizer"] is optimizer
        assert all(optimizer.state[p]["step"] == 3 for p in expected)


# frozen modules -------------------------------------------------------------


def test_a_frozen_module_stays_and_the_lower_ones_do_not_notice(tmp_path):
    free = make_brain(tmp_path / "free")
    before = weights(free)
    free = weights(fit(free))
    frozen = weights(fit(make_brain(tmp_path / "frozen", frozen=["module2"])))
    assert same(frozen["module2"], before["module2"])
    assert same(frozen["module1"], free["module1"])
    for name in ("module1", "module3", "context"):
        assert not same(frozen[name], before[name])
    assert not same(frozen["module3"], free["module3"])


def test_freezing_shifts_nobodys_draws(tmp_path, monkeypatch):
    def draws(folder, **changes):
        drawn = []

        def recording(function):
            def record(*args, **kwargs):
                result = function(*args, **kwargs)
                drawn.append(torch.as_tensor(result).clone())
                return result

            return record

        with monkeypatch.context() as patch:
            patch.setattr(
                torch.Tensor, "normal_", recording(torch.Tensor.normal_)
            )
            for name in ("draw_negatives", "draw_window"):
                original = getattr(objectives, name)
                patch.setattr(objectives, name, recording(original))
            fit(make_brain(folder, window_frames=16, **changes), make_loader(2))
        return drawn

    free = draws(tmp_path / "free")
    # 2 steps of: 2 draws of noise in 3 modules, window and negatives in 4
    assert len(free) == 2 * (2 * 3 + 2 * 4)
    assert same(free, draws(tmp_path / "frozen", frozen=["module1"]))
    noise = [x for x in free if x.is_floating_point()]
    assert not any(
        a.shape == b.shape and torch.equal(a, b)
        for a, b in itertools.combinations(noise, 2)
    )


def test_frozen_batch_norm_keeps_its_statistics(tmp_path):
    brain = make_brain(tmp_path, batch_norm=True, frozen=["module1"])
    before = weights(brain)
    after = weights(fit(brain, valid=make_loader(1)))
    assert same(after["module1"], before["module1"])
    running = "layers.module2.norms.0.running_mean"
    assert not torch.equal(
        after["module2"][running], before["module2"][running]
    )


@pytest.mark.parametrize("frozen", ["all", LAYERS])
def test_all_frozen(tmp_path, frozen):
    brain = make_brain(tmp_path, frozen=frozen)
    before = weights(brain)
    assert same(weights(fit(brain)), before)
    assert brain.frozen == LAYERS


def test_frozen_names(tmp_path):
    brain = make_brain(tmp_path, frozen="module2")
    assert brain.frozen == ["module2"]
    live = brain.freeze_optimizers(dict.fromkeys(LAYERS))
    assert list(live) == ["module1", "module3", "context"]
    with pytest.raises(ValueError, match=r"\['module4'\].*module1, module2"):
        make_brain(tmp_path, frozen=["module4", "module1"])


# SpeechBrain's options ------------------------------------------------------


def test_bf16_trains_and_leaves_no_autocast_behind(tmp_path):
    options = {"precision": "bf16", "eval_precision": "bf16"}
    brain = make_brain(tmp_path, run_opts=options, epochs=2)
    before, dtypes = weights(brain), set()
    hook = brain.modules["module2"].layers["module2"].convs[0]
    hook.register_forward_hook(lambda m, i, output: dtypes.add(output.dtype))
    fit(brain, valid=make_loader(1))
    assert dtypes == {torch.bfloat16}
    assert not torch.is_autocast_enabled("cpu")
    after = weights(brain)
    for name in LAYERS:
        assert not same(after[name], before[name])
        assert all(value.isfinite().all() for value in after[name].values())
        assert all(v.dtype == torch.float32 for v in after[name].values())


def test_accumulation_averages_the_gradients(tmp_path):
    options = {"grad_accumulation_factor": 2}
    brain = make_brain(tmp_path / "two", run_opts=options)
    fit(brain, make_loader(5))
    assert brain.optimizer_step == 3  # the fifth batch is alone

    expected = make_brain(tmp_path / "by_hand")
    expected.modules.train()
    expected.hparams.epoch_counter.current = 1
    expected.init_optimizers()
    for batch in make_loader(5):
        expected.step += 1
        for _, output in expected.forward_modules(batch, TRAIN):
            (output.loss / (1 if expected.step == 5 else 2)).backward()
        if expected.step in (2, 4, 5):
            for optimizer in expected.optimizers_dict.values():
                optimizer.step()
                optimizer.zero_grad()
    assert same(weights(brain), weights(expected))


@pytest.mark.parametrize(
    "interval", [{"ckpt_interval_minutes": 1e-9}, {"ckpt_interval_steps": 3}]
)
def test_no_checkpoint_holds_half_a_gradient(tmp_path, monkeypatch, interval):
    steps = []
    monkeypatch.setattr(
        GreedyBrain, "_save_intra_epoch_ckpt", lambda b: steps.append(b.step)
    )
    options = {"grad_accumulation_factor": 2, **interval}
    fit(make_brain(tmp_path, run_opts=options), make_loader(9))
    steps_only = "ckpt_interval_steps" in interval
    assert steps == [4, 8] if steps_only else [2, 4, 6, 8, 9]


@pytest.mark.parametrize("norm", [0, -1, -5.0])
def test_a_clip_that_reverses_the_gradient_is_refused(tmp_path, norm):
    with pytest.raises(ValueError, match=f"max_grad_norm is {norm}"):
        make_brain(tmp_path, run_opts={"max_grad_norm": norm})


def test_every_module_is_clipped_alone(tmp_path):
    brain = make_brain(
        tmp_path,
        opt_class=lambda p: torch.optim.SGD(p, lr=1.0),
        run_opts={"max_grad_norm": 1e-2},
    )
    before = weights(brain)
    after = weights(fit(brain, make_loader(1)))
    for name in LAYERS:
        moved = [
            (after[name][k] - before[name][k]).norm() for k in before[name]
        ]
        norm = torch.stack(moved).norm().item()
        assert norm == pytest.approx(1e-2, rel=1e-2)


def with_nan(loader, *places):
    for place in places:
        loader.dataset[2 * place]["sig"][100] = math.nan
    return loader


def test_a_bad_batch_is_skipped_if_asked(tmp_path):
    def finite(folder, **options):
        brain = make_brain(folder, run_opts=options)
        fit(brain, with_nan(make_loader(), 1))
        return all(
            value.isfinite().all()
            for module in weights(brain).values()
            for value in module.values()
        )

    with pytest.raises(ValueError, match="module1 has NaN or infinity"):
        finite(tmp_path / "hit")
    assert finite(tmp_path / "skipped", skip_nonfinite_grads=True)
    (stats,) = logged(tmp_path / "skipped")
    assert stats and all(map(math.isfinite, stats.values()))


def test_a_stat_that_is_not_finite_is_left_out(tmp_path):
    """One NaN in a log must not end a run at its next checkpoint."""
    brain, extra = make_brain(tmp_path), [math.nan, 2.0, math.inf, 4.0]
    record, lost = brain.record, math.nan

    def with_extra(stats, stage):
        odd = {"odd": torch.tensor(extra.pop(0)), "lost": torch.tensor(lost)}
        record({**stats, **odd}, stage)

    brain.record = with_extra
    fit(brain, make_loader(4))
    (stats,) = logged(tmp_path)
    assert stats["train", "odd"] == 3.0 and ("train", "lost") not in stats
    (checkpoint,) = (tmp_path / "save").glob("CKPT*")
    saved = read_json(checkpoint / "averages.ckpt")
    assert saved["counts"]["odd"] == 2 and saved["counts"]["module1_nce"] == 4
    assert math.isfinite(load_encoder(tmp_path)[1]["train"]["odd"])


@pytest.mark.parametrize("patience", [0, 2])
def test_patience_counts_steps(tmp_path, patience):
    options = {"nonfinite_patience": patience, "skip_nonfinite_grads": True}
    brain = make_brain(tmp_path, run_opts=options)
    with pytest.raises(ValueError, match="patience is exhausted"):
        fit(brain, with_nan(make_loader(6), 1, 2, 3, 4, 5))
    assert brain.step == 1 + patience + 1  # the first batch is good


def test_debug_mode_is_short_and_touches_no_log(tmp_path, monkeypatch):
    log = tmp_path / "train_log.txt"
    log.write_text("a line of a real run\n")
    steps, fit_batch = [], GreedyBrain.fit_batch

    def counting(brain, batch):
        steps.append((brain.hparams.epoch_counter.current, brain.step))
        return fit_batch(brain, batch)

    monkeypatch.setattr(GreedyBrain, "fit_batch", counting)
    fit(
        make_brain(tmp_path, epochs=9, run_opts={"debug": True}), make_loader(5)
    )
    assert steps == [(1, 1), (1, 2), (2, 1), (2, 2)]
    assert log.read_text().startswith("a line of a real run\nepoch: 1")
    assert not list((tmp_path / "save").iterdir())


# the family -----------------------------------------------------------------

ONE_FOR_ALL = {"cpc", "sim_end_to_end", "supervised"}
POSTERIORS = {"sim", "sim_beta0", "sim_kl_only", "sim_end_to_end", "random"}


@pytest.mark.parametrize("model", FAMILY)
def test_family_differs_where_it_should(tmp_path, model):
    brain = make_brain(tmp_path, model, classes=2)
    together = model in ONE_FOR_ALL
    assert list(brain.modules) == (["encoder"] if together else LAYERS)
    encoder = brain.hparams.encoder
    assert encoder.layer_names == LAYERS
    for name in LAYERS[:3]:
        has_posterior = encoder.layers[name].log_var is not None
        assert has_posterior == (model in POSTERIORS)
    assert brain.frozen == (LAYERS if model == "random" else [])

    batch = PaddedBatch(
        [
            {"sig": torch.randn(2400), "target": torch.tensor([label])}
            for label in (0, 1)
        ]
    )
    brain.modules.train()
    outputs = list(brain.forward_modules(batch, TRAIN))
    assert [name for name, _ in outputs] == list(brain.modules)
    if model == "random":
        assert not any(output.loss.requires_grad for _, output in outputs)
        return
    name, top = outputs[-1]
    top.loss.backward()
    reached = {
        layer
        for layer in LAYERS
        if any(
            p.grad is not None and p.grad.any()
            for p in encoder.layers[layer].parameters()
        )
    }
    assert reached == (set(LAYERS) if together else {"context"})
    kls = {key for key in top.stats if key.endswith("_kl")}
    expected = {f"encoder_{layer}_kl" for layer in LAYERS[:3]}
    assert kls == (expected if model == "sim_end_to_end" else set())
    for name, output in outputs[:-1]:
        assert (f"{name}_kl" in output.stats) == (model in POSTERIORS)


def test_end_to_end_sums_a_kl_of_every_depth(tmp_path):
    brain = make_brain(
        tmp_path,
        "sim_end_to_end",
        kl_weight=[0.1, 0.2, 0.4],
        kl_reduction="channel",
    )
    ((_, output),) = brain.forward_modules(batch_of(make_loader()), TRAIN)
    expected = output.stats["encoder_nce"] + sum(
        weight * output.stats[f"encoder_{name}_kl"]
        for name, weight in zip(LAYERS, [0.1, 0.2, 0.4], strict=False)
    )
    assert output.loss.item() == pytest.approx(expected.item(), rel=1e-6)


def test_sim_without_kl_is_sim_beta0(tmp_path):
    sim = weights(fit(make_brain(tmp_path / "0", "sim", kl_weight=0.0)))
    beta0 = weights(fit(make_brain(tmp_path / "1", "sim_beta0")))
    assert same(sim, beta0)
    assert not same(sim, weights(fit(make_brain(tmp_path / "2", "sim"))))


def test_kl_only_has_a_kl_and_no_noise(tmp_path):
    brain = make_brain(tmp_path, "sim_kl_only")
    batch = batch_of(make_loader())
    brain.modules.train()
    module = brain.modules["module1"]
    x, lengths = batch.sig[0][..., None], torch.tensor([2400, 2100])
    one, two = (module(x, lengths, (seed,)) for seed in (1, 2))
    assert torch.equal(one.x, two.x)  # the seeds choose negatives only
    assert one.stats["module1_kl"] == two.stats["module1_kl"] > 0
    latent = brain.hparams.encoder.layers["module1"](x, lengths, sample=False)
    assert torch.equal(one.x, latent.mean)
    assert not latent.sampled


def test_random_is_sim_at_birth(tmp_path):
    sim, random = (make_brain(tmp_path, name) for name in ("sim", "random"))
    assert same(weights(sim), weights(random))


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"kl_weight": [0.1, 0.2]}, "lists 2 values for the 3 layers"),
        (
            {"window_frames": [16, 16]},
            "window_frames lists 2 values for the 4 layers",
        ),
        ({"objective": "generative"}, "objective is 'generative'"),
        ({"objective": "supervised"}, "classes is 0"),
    ],
)
def test_impossible_models(changes, message):
    with pytest.raises(ValueError, match=message):
        build_model("sim", **{**TINY, **changes})


def test_a_list_gives_each_layer_its_own():
    model = build_model("sim", **{**TINY, "num_negatives": [1, 2, 3, 4]})
    objectives = [module.smooth_info_nce for module in model.modules.values()]
    assert [objective.num_negatives for objective in objectives] == [1, 2, 3, 4]
    assert [objective.prediction_steps for objective in objectives] == [2] * 4


# what is logged -------------------------------------------------------------


def test_stats_and_the_sum_of_their_terms(tmp_path):
    betas = [0.1, 0.2, 0.4]
    brain = make_brain(
        tmp_path, epochs=3, kl_weight=betas, kl_reduction="channel"
    )
    brain.hparams.kl_schedule = LinearWarmup(2)
    fit(brain, valid=make_loader(1))
    epochs = logged(tmp_path)
    assert len(epochs) == 3
    for epoch, stats in enumerate(epochs, 1):
        for split in ("train", "valid"):
            for name in LAYERS:
                nce = stats[split, f"{name}_nce"]
                assert 0 < nce < 50
                assert 0 <= stats[split, f"{name}_accuracy"] <= 1
                units = stats[split, f"{name}_active_units"]
                assert 0 <= units <= TINY["channels"]
                penalty = 0
                if name != "context":
                    beta = betas[LAYERS.index(name)] * min(1, epoch / 2)
                    penalty = beta * stats[split, f"{name}_kl"]
                    assert penalty > 1e-4
                loss = stats[split, f"{name}_loss"]
                assert loss == pytest.approx(nce + penalty, rel=1e-5)
        assert ("train", "context_kl") not in stats


def test_saved_encoder_is_the_trained_one(tmp_path):
    brain = fit(make_brain(tmp_path, epochs=2), valid=make_loader(1))
    encoder, description = load_encoder(tmp_path)
    assert same(encoder.state_dict(), brain.hparams.encoder.state_dict())
    assert description["epochs"] == 2 and description["seed"] == 1
    assert description["valid"].keys() == description["train"].keys()


def test_a_kill_at_the_end_leaves_no_older_encoder(tmp_path, monkeypatch):
    """Once an epoch's checkpoint exists, its encoder does."""

    def kill(*args, **kwargs):
        raise KeyboardInterrupt

    brain = make_brain(tmp_path)
    monkeypatch.setattr(brain.checkpointer, "save_checkpoint", kill)
    with pytest.raises(KeyboardInterrupt):
        fit(brain)
    assert load_encoder(tmp_path)[1]["epochs"] == 1


def test_tensorboard(tmp_path):
    from tensorboard.backend.event_processing import event_accumulator

    board = TensorboardLogger(str(tmp_path / "board"))
    fit(make_brain(tmp_path, epochs=2, tensorboard_logger=board))
    board.writer.close()
    events = event_accumulator.EventAccumulator(str(tmp_path / "board"))
    events.Reload()
    points = events.Scalars("module1_nce/train")
    assert [point.step for point in points] == [1, 2]
    written = [stats["train", "module1_nce"] for stats in logged(tmp_path)]
    assert [p.value for p in points] == pytest.approx(written, rel=1e-5)


def test_crops_are_told_the_epoch(tmp_path):
    crop, heard = KeyedCrop(4000, random=True), []
    brain = make_brain(tmp_path, epochs=3, crop=crop)
    brain.on_fit_batch_end = lambda *_: heard.append(int(crop.epoch))
    fit(brain, make_loader(2))
    assert heard == [1, 1, 2, 2, 3, 3]


def test_more_draws(tmp_path, monkeypatch):
    calls, draw = [], Latent.draw
    monkeypatch.setattr(
        Latent, "draw", lambda z, g=None: calls.append(z) or draw(z, g)
    )
    brain = make_brain(tmp_path, num_samples=3)
    before = weights(brain)
    after = weights(fit(brain, make_loader(1)))
    assert len(calls) == 3 * 2 * 3  # modules, c and z, L
    assert not any(same(before[name], after[name]) for name in LAYERS)


@pytest.mark.parametrize("informative", [False, True])
def test_collapse_is_told(tmp_path, caplog, informative):
    brain = make_brain(tmp_path, opt_class=lambda p: torch.optim.SGD(p, lr=0.0))
    for name in LAYERS[:3]:
        layer = brain.hparams.encoder.layers[name]
        torch.nn.init.zeros_(layer.log_var.weight)
        torch.nn.init.zeros_(layer.log_var.bias)
        torch.nn.init.zeros_(layer.mean.weight)
        torch.nn.init.constant_(layer.mean.bias, 5.0 * informative)
    with caplog.at_level("WARNING"):
        fit(brain)
    told = [
        name for name in LAYERS if f"{name} may have collapsed" in caplog.text
    ]
    assert told == ([] if informative else LAYERS[:3])


# supervised -----------------------------------------------------------------


def pitches(*labels, samples=160):
    """A tone per label, one after the other, with a little noise."""
    time = torch.arange(samples) / 16000
    tones = [torch.sin(2 * math.pi * (300 + 1500 * k) * time) for k in labels]
    sig = torch.cat(tones)
    return sig + 0.05 * torch.randn(len(sig))


def test_supervised_learns_utterances(tmp_path):
    torch.manual_seed(1)
    labels = [i % 2 for i in range(16)]
    rows = [
        {
            "sig": pitches(k, samples=800 + 80 * (i % 4)),
            "target": torch.tensor([k]),
        }
        for i, k in enumerate(labels)
    ]
    loader = torch.utils.data.DataLoader(rows, 4, collate_fn=PaddedBatch)
    brain = make_brain(
        tmp_path,
        "supervised",
        epochs=10,
        classes=2,
        opt_class=lambda p: torch.optim.Adam(p, lr=1e-2),
    )
    fit(brain, loader, loader)
    epochs = logged(tmp_path)
    assert epochs[0]["train", "encoder_accuracy"] < 0.9
    assert epochs[-1]["valid", "encoder_accuracy"] == 1


def frame_rows(count):
    """Utterances of phones of 80 ms, labelled every 10 ms."""
    rows = []
    for i in range(count):
        phones = torch.randint(0, 2, (3 + i % 3,)).tolist()
        sig = pitches(*phones, samples=1280)
        labels = torch.arange(1 + (len(sig) - 400) // 160) * 160 + 200
        target = torch.tensor(phones)[labels // 1280]
        rows.append({"sig": sig, "target": target})
    return rows


def test_supervised_learns_frames(tmp_path):
    torch.manual_seed(2)
    loader = torch.utils.data.DataLoader(
        frame_rows(12), 4, collate_fn=PaddedBatch
    )
    brain = make_brain(
        tmp_path,
        "supervised",
        epochs=15,
        classes=2,
        per_frame=True,
        context_channels=0,
        opt_class=lambda p: torch.optim.Adam(p, lr=1e-2),
    )
    fit(brain, loader, loader)
    assert logged(tmp_path)[-1]["valid", "encoder_accuracy"] > 0.93


def test_padding_of_labels_does_not_count(tmp_path):
    torch.manual_seed(3)
    rows = frame_rows(2)  # 3 and 4 phones
    brain = make_brain(tmp_path, "supervised", classes=2, per_frame=True)
    assert (brain.targets(PaddedBatch(rows))[0] == NO_LABEL).sum() == 8

    def loss(rows):
        stage = sb.Stage.VALID
        ((_, output),) = brain.forward_modules(PaddedBatch(rows), stage)
        return output.loss.item()

    counts = [len(row["target"]) for row in rows]
    alone = [n * loss([row]) for n, row in zip(counts, rows, strict=True)]
    assert loss(rows) == pytest.approx(sum(alone) / sum(counts), rel=1e-5)
