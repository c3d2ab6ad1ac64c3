"""What modules cost, counted and measured."""

import copy
import gc
import itertools
import weakref
from types import SimpleNamespace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.floor import step_flops
from speechbrain_sim.brains import costs as costs_of
from speechbrain_sim.brains.costs import (
    IN_PLACE,
    balance,
    latent_bytes,
    measure,
    meshes,
)
from speechbrain_sim.encoders.greedy import GreedyEncoder
from speechbrain_sim.family import build_model
from tests.conftest import TINY

BATCH, SAMPLES = 3, 6000


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return build_model(**TINY)


@pytest.fixture(scope="module")
def costs(model):
    before = {n: m.state_dict() for n, m in model.modules.items()}
    before = {
        n: {k: x.clone() for k, x in s.items()} for n, s in before.items()
    }
    found = measure(model.modules, torch.optim.Adam, BATCH, SAMPLES)
    for name, module in model.modules.items():
        assert all(
            torch.equal(x, before[name][k])
            for k, x in module.state_dict().items()
        )
        assert all(p.grad is None for p in module.parameters())
    return found


def test_one_module_is_copied_at_a_time(model, monkeypatch):
    copies = []

    def copied(module):
        assert not [copy for copy in copies if copy()]
        made = copy.deepcopy(module)
        copies.append(weakref.ref(made))
        return made

    monkeypatch.setattr(costs_of, "copy", SimpleNamespace(deepcopy=copied))
    gc.collect()
    measure(model.modules, torch.optim.Adam, BATCH, SAMPLES)
    assert len(copies) == 4


def steps(model):
    """Whole steps of all modules, one after another."""
    x, lengths = torch.randn(BATCH, SAMPLES, 1), torch.tensor([SAMPLES] * BATCH)
    for module in model.modules.values():
        output = module(x, lengths, ("a", "key"))
        output.loss.backward()
        module.zero_grad()
        x, lengths = output.x.detach(), output.lengths


def test_bytes_are_exact(model, costs):
    for name, module in model.modules.items():
        parameters = list(module.parameters())
        size = sum(4 * p.numel() for p in parameters)
        assert costs[name].weights == costs[name].gradients == size
        # two moments of each weight, and a count of steps
        assert costs[name].optimizer == 2 * size + 4 * len(parameters)
        frames = model.encoder.output_lengths(SAMPLES, name)
        channels = model.encoder.channels_of(name)
        assert costs[name].sent == 4 * BATCH * frames * channels
        assert costs[name].activations > costs[name].sent


def test_operations_are_those_of_a_step(model, costs):
    with FlopCounterMode(display=False, custom_mapping=IN_PLACE) as counter:
        steps(model)
    total = sum(cost.flops for cost in costs.values())
    assert total == counter.get_total_flops()
    floor = step_flops(model.encoder, model.modules, BATCH, SAMPLES)
    assert floor * 0.9 < total < floor * 1.3


def test_seconds_are_means_of_steps(model, monkeypatch):
    """A clock that every module's forward moves by its own seconds."""
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(costs_of, "_now", lambda device: clock.now)
    seconds = dict(zip(model.modules, (3.0, 4.0, 5.0, 6.0), strict=True))
    run, kind = costs_of.run_layers, type(model.modules["module1"])
    whole = kind.forward

    def encode(*args):
        clock.now += 0.5
        return run(*args)

    monkeypatch.setattr(costs_of, "run_layers", encode)

    def step(self, *args, **given):
        clock.now += seconds[self.name]
        return whole(self, *args, **given)

    monkeypatch.setattr(kind, "forward", step)
    found = measure(model.modules, torch.optim.Adam, BATCH, SAMPLES)
    assert {name: cost.step for name, cost in found.items()} == seconds
    assert {cost.forward for cost in found.values()} == {0.5}


@pytest.mark.parametrize("stages", [1, 2, 3, 6])
def test_stages_are_balanced_as_by_trying_all(stages):
    seconds = [5, 3, 9, 1, 1, 4]

    def slowest(sizes):
        parts = iter(seconds)
        return max(sum(itertools.islice(parts, n)) for n in sizes)

    possible = itertools.product(range(1, 7), repeat=stages)
    possible = [sizes for sizes in possible if sum(sizes) == 6]
    chosen = balance(seconds, stages)
    assert chosen in possible
    assert slowest(chosen) == min(map(slowest, possible))


def test_meshes_are_rectangular(costs):
    seconds = [
        c._replace(step=s)
        for c, s in zip(costs.values(), (6, 3, 2, 1), strict=False)
    ]
    costs = dict(zip(costs, seconds, strict=False))
    found = meshes(costs, 4)
    assert [mesh.replicas for mesh in found] == [4, 2, 1]  # 3 do not divide 4
    assert [mesh.ceiling for mesh in found] == [4, 4, 2]
    assert found[1].modules == [["module1"], ["module2", "module3", "context"]]
    assert found[0].sent == [] and len(found[2].sent) == 3
    one = costs["module1"]
    assert found[1].memory[0] == sum(one[:4])
    assert sum(found[2].memory) > found[0].memory[0] > found[1].memory[0]


def test_disk_of_an_hour():
    encoder = GreedyEncoder()
    gigabytes = [
        latent_bytes(encoder, name) / 1e9 for name in encoder.layer_names
    ]
    # half precision; mean and log-variance, but none of the context's 256
    expected = [5.898, 1.475, 0.737, 0.184]
    assert gigabytes == pytest.approx(expected, abs=1e-3)
    assert latent_bytes(encoder, "module1", half=False) / 1e9 > 11
