"""Integrated gradients against a loop, and their axioms."""

import sys

import numpy as np
import pytest
import torch

from speechbrain_sim.analysis.attribution import (
    class_function,
    dimension_function,
    envelope,
    integrated_gradients,
    plot_attribution,
)
from speechbrain_sim.encoders.logmel import LogMel
from speechbrain_sim.models.format import example_folder
from speechbrain_sim.models.load import load_encoder


@pytest.fixture
def encoder(tmp_path):
    """As it is analysed: loaded from a file, and frozen."""
    torch.manual_seed(0)
    folder = example_folder(tmp_path, channels=6, context_channels=4)
    return load_encoder(folder)[0].double().requires_grad_(False)


def noise(batch=2, samples=1600):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(batch, samples, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("layer", ["module1", "module2", "module3", "context"])
def test_attributions_sum_to_the_difference(encoder, layer):
    wavs = 25 * noise(samples=800)
    means = [encoder(x)[layer].mean.mean(1) for x in (wavs, 0 * wavs)]
    difference = means[0] - means[1]
    dimension = difference.abs().amin(0).argmax().item()
    function = dimension_function(encoder, layer, dimension)
    found = integrated_gradients(function, wavs, steps=1024, batch_size=256)
    assert torch.allclose(found.difference, difference[:, dimension])
    assert torch.allclose(found.values.sum(1), found.difference, rtol=1e-3)
    assert found.gap.max() < 1e-3


def slow_integrated_gradients(function, wavs, start, steps):
    """Gauss and Legendre's rule, one point at a time."""
    values = torch.zeros_like(wavs)
    for place, weight in zip(
        *np.polynomial.legendre.leggauss(steps), strict=True
    ):
        point = start + (place + 1) / 2 * (wavs - start)
        point = point.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(function(point).sum(), point)
        values += weight / 2 * gradient
    return values * (wavs - start)


@pytest.mark.parametrize("batch_size", [3, 64])
def test_equals_a_loop(encoder, batch_size):
    function = class_function(encoder, "context", torch.randn(4, 3), 2)
    wavs, start = noise(), 0.1 * noise().flip(1)
    fast = integrated_gradients(function, wavs, start, 20, batch_size)
    slow = slow_integrated_gradients(function, wavs, start, 20)
    # captum's weights of the rule are float32
    assert torch.allclose(fast.values, slow, rtol=1e-6, atol=1e-12)


def test_exact_for_a_linear_function():
    weight, wavs = noise(1)[0], noise(3)
    start = torch.ones_like(wavs)
    found = integrated_gradients(lambda x: x @ weight + 3, wavs, start, 5)
    assert torch.allclose(found.values, weight * (wavs - 1), rtol=1e-6)
    assert found.gap.max() < 1e-6


def test_exact_for_a_polynomial():
    wavs = noise(3, 20)
    found = integrated_gradients(lambda x: (x**3).sum(1), wavs, steps=2)
    assert torch.allclose(found.values, wavs**3, rtol=1e-6)


def test_silence_is_due_to_nothing(encoder):
    function = dimension_function(encoder, "module2", 0)
    found = integrated_gradients(function, torch.zeros(2, 800).double())
    assert not found.values.any() and not found.gap.any()


def test_a_dimension_that_ignores_the_input_gets_nothing(encoder):
    encoder.layers["module2"].mean.weight[3] = 0
    function = dimension_function(encoder, "module2", 3)
    found = integrated_gradients(function, noise())
    assert not found.values.any() and not found.gap.any()


def test_only_what_the_frames_see_is_attributed(encoder):
    function = dimension_function(encoder, "module1", 2, frames=[30, 31])
    values = integrated_gradients(function, noise(), steps=8).values
    hop, center = encoder.frame_geometry("module1")
    reach = round(center + hop * 30) - 30, round(center + hop * 31) + 30
    assert values[:, slice(*reach)].any()
    assert not values[:, : reach[0]].any() and not values[:, reach[1] :].any()


def test_each_waveform_is_explained_alone(encoder):
    function = dimension_function(encoder, "context", 0)
    wavs = noise(3)
    together = integrated_gradients(function, wavs, steps=9, batch_size=64)
    alone = integrated_gradients(function, wavs[1:2], steps=9, batch_size=2)
    assert torch.allclose(together.values[1:2], alone.values, atol=1e-12)


def test_under_no_grad_and_without_touching_the_input(encoder):
    function = dimension_function(encoder, "module1", 0)
    wavs = noise()
    with torch.no_grad():
        found = integrated_gradients(function, wavs, steps=8)
    assert found.values.any()
    assert not wavs.requires_grad and not found.values.requires_grad


def test_a_class_is_the_weighted_sum_of_its_dimensions(encoder):
    weight, wavs = torch.randn(6, 3).double(), noise()
    function = class_function(encoder, "module3", weight, 1)
    found = integrated_gradients(function, wavs, steps=8)
    total = sum(
        weight[d, 1]
        * integrated_gradients(
            dimension_function(encoder, "module3", d), wavs, steps=8
        ).values
        for d in range(6)
    )
    assert torch.allclose(found.values, total, atol=1e-12)


def test_any_front_end():
    function = dimension_function(LogMel().eval(), "logmel", 20)
    found = integrated_gradients(function, torch.randn(1, 1600))
    assert torch.isfinite(found.values).all()


def test_errors(encoder):
    wavs = noise()
    with pytest.raises(ValueError, match="one number each"):
        integrated_gradients(lambda x: x, wavs)
    with pytest.raises(ValueError, match="no gradient"):
        integrated_gradients(lambda x: x.detach().sum(1), wavs)
    with pytest.raises(ValueError, match="eval"):
        dimension_function(encoder.train(), "module1", 0)
    with pytest.raises(ValueError, match="no layer 'module9'"):
        dimension_function(encoder.eval(), "module9", 0)(wavs)


def test_without_captum_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "captum.attr", None)
    with pytest.raises(ImportError, match=r"speechbrain-sim\[analysis\]"):
        integrated_gradients(lambda x: x.sum(1), noise())


def test_envelope_keeps_the_total():
    values = noise(2, 1000)
    found = envelope(values)
    assert found.shape == (2, 7)
    assert torch.allclose(found.sum(1), values.abs().sum(1))
    assert found[1, 6] == pytest.approx(values[1, 960:].abs().sum().item())


def test_plot_attribution(encoder, tmp_path):
    wavs = noise(1)
    rows = {}
    for dimension in (0, 1):
        function = dimension_function(encoder, "module1", dimension)
        found = integrated_gradients(function, wavs, steps=4)
        rows[f"SIM, dimension {dimension}"] = (
            wavs[0].tolist(),
            envelope(found.values)[0].tolist(),
        )
    plot_attribution(rows, "where it lies", tmp_path / "attribution")
    assert (tmp_path / "attribution.svg").exists()
    assert (tmp_path / "attribution.png").exists()
