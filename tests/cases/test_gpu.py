"""Case G9: on a GPU, nothing waits, and the numbers are the CPU's."""

from unittest import mock

import pytest
import torch

from benchmarks.gpu_right import (
    EXACT,
    STEPS,
    TOLERANCE,
    differences,
    losses_and_gradients,
)
from benchmarks.systems import Decoding, Ours, make_batch
from speechbrain_sim.brains import decoder as decoder_brain
from speechbrain_sim.brains.base import ResumableBrain
from speechbrain_sim.encoders.base import Latent
from speechbrain_sim.encoders.block_conv import BlockConv1d
from speechbrain_sim.objectives import greedy
from speechbrain_sim.objectives.info_nce import _Scores, scores_in_one_product
from speechbrain_sim.randomness import keyed_generator

SMALL = {"channels": 8, "context_channels": 4}
#: tensors without values: whoever reads one on the host raises an error, as
#: a GPU would have to be waited for
NOWHERE = {"device": "meta"}


def draw_nothing(latent, generator=None):
    """As `Latent.draw`, without the noise, which needs a generator."""
    if latent.log_var is None:
        return latent.mean
    sigma = torch.exp(0.5 * latent.log_var)
    return torch.addcmul(latent.mean, sigma, torch.ones_like(latent.mean))


def on_cpu(*key, device="cpu"):
    return keyed_generator(*key)


@pytest.fixture
def without_noise(monkeypatch):
    monkeypatch.setattr(Latent, "draw", draw_nothing)
    monkeypatch.setattr(greedy, "keyed_generator", on_cpu)
    monkeypatch.setattr(decoder_brain, "keyed_generator", on_cpu)


def steps_without_values(system):
    with mock.patch.object(system.brain, "step_module") as applied:
        for _ in range(2):
            system()
    return applied


@pytest.mark.parametrize("title", STEPS)
def test_g9_a_training_step_reads_nothing_on_the_host(title, without_noise):
    name, shape, changes = STEPS[title]
    ours = Ours(
        name, make_batch(2, 10240, **shape), NOWHERE, **SMALL, **changes
    )
    applied = steps_without_values(ours)
    assert applied.call_count == 2 * len(ours.brain.modules)
    assert len(ours.brain._unread) == 2


@pytest.mark.parametrize("shorter", [0, 1000])
@pytest.mark.parametrize("layer", ["module1", "module3"])
def test_g9_a_decoders_step_reads_nothing_on_the_host(
    layer, shorter, without_noise
):
    batch = make_batch(2, 10240, shorter=shorter)
    steps_without_values(Decoding(layer, batch, NOWHERE, **SMALL))


def test_g9_a_host_read_would_fail_here():
    with pytest.raises((RuntimeError, NotImplementedError)):
        float(torch.zeros((), device="meta"))


@pytest.mark.parametrize("steps, negatives", [(10, 10), (2, 3), (1, 2), (4, 4)])
def test_g9_scores_and_gradients_are_the_cpus(steps, negatives):
    torch.manual_seed(0)
    batch, frames, channels, start = 2, 12, 6, 1
    time = frames + 4
    shape = batch, frames, steps, channels
    predicted = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    z = torch.randn(batch, time, channels, dtype=torch.float64)
    z.requires_grad_()
    drawn = torch.randint(batch * time, (batch, frames, negatives))
    at = start + torch.arange(frames)[:, None] + torch.arange(1, steps + 1)
    row = torch.arange(batch)[:, None, None] * time
    inside = row + at.clamp(max=time - 1)
    cpu = _Scores.apply(predicted, z, start, drawn)
    gpu = scores_in_one_product(predicted, z, inside, drawn)
    counts = torch.ones_like(cpu)
    counts[..., 0] = at < start + frames  # beyond the window, nothing counts
    assert torch.allclose(cpu * counts, gpu * counts, rtol=0, atol=1e-12)
    weights = counts * torch.randn_like(cpu)
    found = [
        torch.autograd.grad((scores * weights).sum(), (predicted, z))
        for scores in (cpu, gpu)
    ]
    for one, other in zip(*found, strict=True):
        assert torch.allclose(one, other, rtol=0, atol=1e-12)


def of_both_convolutions(title, dtype, monkeypatch):
    """Losses and gradients of a step with the CPU's convolutions, and torch's."""
    name, shape, changes = STEPS[title]
    batch = make_batch(3, 10240, **shape, dtype=dtype)
    step = name, batch, {**SMALL, **changes}, "cpu", dtype
    found = []
    for plain in (False, True):
        monkeypatch.setattr(BlockConv1d, "plain", plain)
        found.append(losses_and_gradients(*step))
    return found


@pytest.mark.parametrize("title", STEPS)
def test_g9_gradients_agree_in_float64(title, monkeypatch):
    """With no exception: a kink of ReLU is no mistake of either."""
    one, two = of_both_convolutions(title, torch.float64, monkeypatch)
    assert one[0] == pytest.approx(two[0], rel=EXACT)
    assert one[1].keys() == two[1].keys()
    assert max(differences(one[1], two[1]).values()) < EXACT


def test_g9_a_wrong_gradient_is_not_taken_for_a_kink(monkeypatch):
    title = "GIM, batch norm, padding"
    one, _ = of_both_convolutions(title, torch.float64, monkeypatch)
    wrong = {key: g * (1 + 2 * TOLERANCE) for key, g in one[1].items()}
    apart = sorted(differences(one[1], wrong).values())
    assert apart[-1] > EXACT and apart[len(apart) // 2] > TOLERANCE


@pytest.mark.parametrize("kernel, stride, padding", [(10, 5, 2), (8, 4, 2)])
def test_g9_the_first_convolution_stays_channels_last(kernel, stride, padding):
    conv = BlockConv1d(1, 8, kernel, stride, padding)
    expected = conv(torch.randn(2, 100, 1)).shape
    there = conv.to("meta")(torch.empty(2, 100, 1, device="meta"))
    assert there.shape == expected and there.is_contiguous()


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_g9_loaders_are_made_for_the_device(device, monkeypatch):
    monkeypatch.setattr("os.cpu_count", lambda: 16)
    brain = mock.Mock(device_type=device)
    loader = ResumableBrain.for_device(brain, {"num_workers": None})
    workers = {"cpu": 1, "cuda": 8}[device]
    assert loader == {
        "num_workers": workers,
        "persistent_workers": True,
        "pin_memory": device == "cuda",
    }
    assert ResumableBrain.for_device(brain, {"num_workers": 3}) == {
        "num_workers": 3,
        "pin_memory": device == "cuda",
    }
