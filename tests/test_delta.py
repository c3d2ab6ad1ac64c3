"""delta(N) against loops, and its brackets."""

import numpy as np
import pytest
import torch

from speechbrain_sim.delta import delta, draw_pairs, measure_distances


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
    got = measure_distances(decode, latents, pairs, counts, distance, 4)
    value, low, high = delta(got, pairs)
    for i, count in enumerate(counts):
        slow = slow_delta(decode, latents, pairs, count, distance)
        assert value[i] == pytest.approx(slow, abs=1e-6)
    assert value[0] == pytest.approx(1) and value[-1] == pytest.approx(0)
    assert (low <= value + 1e-6).all() and (value <= high + 1e-6).all()
    assert high[2] > low[2]


def test_order_of_the_dimensions_does_not_matter():
    torch.manual_seed(0)
    latents, order = torch.randn(4, 7, 6), torch.randperm(6)
    pairs = draw_pairs(4, 12)
    one = measure_distances(curved, latents, pairs, [1, 3])
    two = measure_distances(curved, latents[..., order], pairs, [1, 3])
    np.testing.assert_allclose(one.mixtures, two.mixtures, rtol=1e-5)


def test_start_and_target_are_decoded_once():
    decoded = []

    def counting(z):
        decoded.append(len(z))
        return flat(z)

    latents, pairs = torch.randn(4, 3, 5), draw_pairs(4, 12)
    measure_distances(counting, latents, pairs, [1, 2])
    assert sum(decoded) == 4 + 12 * 2


def test_what_is_impossible():
    latents, pairs = torch.randn(3, 4, 5), draw_pairs(3, 6)
    with pytest.raises(ValueError, match="there are 5 dimensions"):
        measure_distances(flat, latents, pairs, [8])
    with pytest.raises(ValueError, match="'mae' or 'mse'"):
        measure_distances(flat, latents, pairs, [1], "rmse")
    with pytest.raises(ValueError, match="1 clips make no pair"):
        draw_pairs(1, 5)
    same = measure_distances(flat, latents[:1].expand(3, 4, 5), pairs, [1])
    with pytest.raises(ValueError, match="same waveform"):
        delta(same, pairs)
