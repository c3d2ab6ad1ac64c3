"""delta(N) against loops, and its brackets."""

import json

import numpy as np
import pytest
import torch

from speechbrain_sim.analysis.delta import (
    Distances,
    delta,
    draw_pairs,
    measure_distances,
)
from speechbrain_sim.analysis.intervals import Unmeasurable, bootstrap_pairs
from speechbrain_sim.analysis.smoothness import measure_walks, summarise_walks


def flat(z):
    """A decoder whose waveform is the latents themselves."""
    return z.flatten(1)


def curved(z):
    return torch.tanh(z).sum(-1)


def slow_delta(decode, latents, pairs, count, distance):
    over, under = 0.0, 0.0
    for a, b in pairs.tolist():
        start, target = latents[a], latents[b]
        gaps = [
            abs(float(start[:, d].mean() - target[:, d].mean()))
            for d in range(latents.shape[2])
        ]
        mixture = start.clone()
        for d in sorted(range(len(gaps)), key=lambda d: -gaps[d])[:count]:
            mixture[:, d] = target[:, d]
        waves = [decode(z[None])[0] for z in (mixture, start, target)]
        for total, wave in zip("ou", waves[:2], strict=True):
            gap = (wave - waves[2]).double()
            value = (gap.abs() if distance == "mae" else gap**2).mean().item()
            if total == "o":
                over += value
            else:
                under += value
    return over / under


@pytest.mark.parametrize("distance", ["mae", "mse"])
@pytest.mark.parametrize("decode", [flat, curved])
def test_delta_equals_loops(decode, distance):
    torch.manual_seed(0)
    latents, counts = torch.randn(5, 7, 6), [0, 1, 2, 4, 6]
    pairs = draw_pairs(5, 13, seed=3)
    assert len({tuple(p) for p in pairs.tolist()}) == 13
    got = measure_distances(decode, latents, pairs, counts, batch_size=4)
    result = delta(got[distance], pairs)
    value, (low, high) = result["delta"], np.transpose(result["interval"])
    for i, count in enumerate(counts):
        slow = slow_delta(decode, latents, pairs, count, distance)
        assert value[i] == pytest.approx(slow, abs=1e-6)
    assert value[0] == pytest.approx(1) and value[-1] == pytest.approx(0)
    assert (low <= np.array(value) + 1e-6).all()
    assert (value <= high + 1e-6).all()
    assert high[2] > low[2]
    assert result["counts"] == counts
    assert (result["pairs"], result["clips"]) == (13, 5)
    json.dumps(result, allow_nan=False)


def test_identity_leaves_the_share_of_the_other_dimensions():
    # every dimension is a constant, so both distances are sums over dimensions
    latents = torch.tensor([[0.0, 0, 0, 0], [4, -3, 2, -1]])[:, None]
    pairs = draw_pairs(2, 2)
    got = measure_distances(flat, latents, pairs, [0, 1, 2, 3, 4])
    mae, mse = (d.mixtures.sum(0) / d.starts.sum() for d in got.values())
    np.testing.assert_allclose(mae, [1, 6 / 10, 3 / 10, 1 / 10, 0])
    np.testing.assert_allclose(mse, [1, 14 / 30, 5 / 30, 1 / 30, 0])


def test_rounding_is_no_distance():
    latents = torch.ones(4, 3, 5) + 1e-8 * torch.randn(4, 3, 5)
    pairs = draw_pairs(4, 12)
    got = measure_distances(lambda z: z.flatten(1) * 3, latents, pairs, [1])
    with pytest.raises(Unmeasurable, match="same waveform"):
        delta(got["mae"], pairs)
    walks = measure_walks(lambda z: z.flatten(1) * 3, latents, pairs, 2)
    with pytest.raises(Unmeasurable, match="same waveform"):
        summarise_walks(walks, pairs)


def test_order_of_the_dimensions_does_not_matter():
    torch.manual_seed(0)
    latents, order = torch.randn(4, 7, 6), torch.randperm(6)
    pairs = draw_pairs(4, 12)
    one = measure_distances(curved, latents, pairs, [1, 3])
    two = measure_distances(curved, latents[..., order], pairs, [1, 3])
    for name in ("mae", "mse"):
        np.testing.assert_allclose(
            one[name].mixtures, two[name].mixtures, rtol=1e-5
        )


def test_start_and_target_are_decoded_once():
    decoded = []

    def counting(z):
        decoded.append(len(z))
        return flat(z)

    latents, pairs = torch.randn(4, 3, 5), draw_pairs(4, 12)
    measure_distances(counting, latents, pairs, [1, 2, 5])
    assert sum(decoded) == 4 + 12 * 2  # all five dimensions are the target


def test_the_interval_shrinks_with_more_clips():
    widths = []
    for clips in (10, 80):
        generator = torch.Generator().manual_seed(0)
        latents = torch.randn(clips, 3, 6, generator=generator)
        pairs = draw_pairs(clips, 500)
        got = measure_distances(flat, latents, pairs, [2], batch_size=100)
        result = delta(got["mae"], pairs)
        low, high = result["interval"][0]
        assert low < result["delta"][0] < high
        widths.append(high - low)
    assert widths[1] < widths[0] / 2


def test_pairs_are_bootstrapped_as_in_a_loop():
    rng = np.random.default_rng(0)
    pairs = np.asarray(draw_pairs(5, 11)) + 3  # clips need not count from 0
    numerator, denominator = rng.random((11, 2)), rng.random(11)
    value, *ends = bootstrap_pairs(numerator, denominator, pairs)
    ratios = []
    for often in np.random.default_rng(0).multinomial(5, [0.2] * 5, 2000):
        over, under = np.zeros(2), 0.0
        for (a, b), n, d in zip(pairs, numerator, denominator, strict=True):
            over += often[a - 3] * often[b - 3] * n
            under += often[a - 3] * often[b - 3] * d
        if under > 0:
            ratios.append(over / under)
    np.testing.assert_allclose(value, numerator.sum(0) / denominator.sum())
    np.testing.assert_allclose(ends, np.percentile(ratios, [2.5, 97.5], axis=0))
    mean, _, _ = bootstrap_pairs(numerator, 1, pairs)
    np.testing.assert_allclose(mean, numerator.mean(0))


def test_what_is_impossible():
    latents, pairs = torch.randn(3, 4, 5), draw_pairs(3, 6)
    with pytest.raises(ValueError, match="there are 5 dimensions"):
        measure_distances(flat, latents, pairs, [8])
    with pytest.raises(ValueError, match="1 clips make no pair"):
        draw_pairs(1, 5)
    with pytest.raises(ValueError, match="NaN or infinity"):
        measure_distances(lambda z: flat(z) * np.nan, latents, pairs, [1])
    same = measure_distances(flat, latents[:1].expand(3, 4, 5), pairs, [1])
    with pytest.raises(ValueError, match="same waveform"):
        delta(same["mae"], pairs)
    unknown = Distances([1], np.full((6, 1), np.nan), np.ones(6))
    with pytest.raises(ValueError, match="NaN or infinite"):
        delta(unknown, pairs)
