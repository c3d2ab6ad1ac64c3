"""Decoded walks and moves against loops, and their brackets."""

import json

import numpy as np
import pytest
import torch

from speechbrain_sim.analysis.delta import draw_pairs
from speechbrain_sim.analysis.smoothness import (
    Moves,
    measure_moves,
    measure_walks,
    summarise_moves,
    summarise_walks,
)


def flat(z):
    return z.flatten(1)


def curved(z):
    return torch.sin(z).sum(-1)


def noise(z):
    """Nothing that the latents say can be heard."""
    return torch.sin(1e5 * z.sum(-1))


def jump(z):
    return (z > 0).double().flatten(1)


@pytest.fixture
def latents():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(5, 7, 6, generator=generator, dtype=torch.float64)


def walk(decode, latents, count=20, **settings):
    pairs = draw_pairs(len(latents), count)
    return summarise_walks(
        measure_walks(decode, latents, pairs, **settings), pairs
    )


def move(decode, latents, **settings):
    return summarise_moves(measure_moves(decode, latents, **settings))


def test_walks_equal_loops(latents):
    pairs = draw_pairs(5, 13)
    walks = measure_walks(curved, latents, pairs, steps=4, batch_size=3)
    paths, evens = [], []
    for row, (a, b) in enumerate(pairs.tolist()):
        waves = [
            curved(((1 - i / 4) * latents[a] + i / 4 * latents[b])[None])[0]
            for i in range(5)
        ]
        steps = [float((waves[i + 1] - waves[i]).norm()) for i in range(4)]
        np.testing.assert_allclose(walks.steps[row], steps)
        distance = float((waves[4] - waves[0]).norm())
        assert walks.distances[row] == pytest.approx(distance)
        paths.append(sum(steps) / distance)
        evens.append(max(steps) / np.mean(steps))
    found = summarise_walks(walks, pairs)
    assert found["path_ratio"]["value"] == pytest.approx(np.mean(paths))
    assert found["step_ratio"]["value"] == pytest.approx(np.mean(evens))
    for name in ("path_ratio", "step_ratio"):
        low, high = found[name]["interval"]
        assert low < found[name]["value"] < high
    assert (found["pairs"], found["left_out"], found["clips"]) == (13, 0, 5)
    json.dumps(found, allow_nan=False)


def test_moves_equal_loops(latents):
    moves = measure_moves(curved, latents, directions=3, batch_size=4)
    again = measure_moves(curved, latents, directions=3, batch_size=15)
    np.testing.assert_allclose(moves.slopes, again.slopes)
    recorded = []

    def record(z):
        recorded.append(z)
        return curved(z)

    measure_moves(record, latents, directions=3, batch_size=1)
    std = latents.reshape(-1, 6).numpy().std(0)
    for row, z in enumerate(recorded[5:]):  # after the clips themselves
        clip = latents[row // 3]
        step = ((z[0] - clip) / torch.from_numpy(std)).norm(dim=-1)
        assert (step > 0).sum() == 1
        assert step.sum().item() == pytest.approx(0.1)
        slope = float((curved(z)[0] - curved(clip[None])[0]).norm()) / 0.1
        assert moves.slopes[row // 3, row % 3] == pytest.approx(slope)
    found = summarise_moves(moves)
    slopes, rms = moves.slopes, float(curved(latents).square().mean().sqrt())
    assert found["mean"]["value"] == pytest.approx(slopes.mean())
    assert found["p95"]["value"] == pytest.approx(np.percentile(slopes, 95))
    # here a frame is one sample
    assert found["relative_mean"]["value"] == pytest.approx(slopes.mean() / rms)
    assert (found["clips"], found["directions"]) == (5, 3)
    json.dumps(found, allow_nan=False)


def test_a_linear_decoder_is_straight_and_even(latents):
    found = walk(lambda z: flat(z) @ torch.ones(42, 9).to(z), latents)
    assert found["path_ratio"]["value"] == pytest.approx(1)
    assert found["step_ratio"]["value"] == pytest.approx(1)
    assert found["steps"] == 10


def test_one_jump_takes_all_of_the_walk():
    ends = torch.tensor([-1.0, 1.2, -1.0]).double()[:, None, None]
    found = walk(jump, ends)
    assert found["path_ratio"]["value"] == pytest.approx(1)
    assert found["step_ratio"]["value"] == pytest.approx(10)


def test_the_slope_of_a_linear_map_is_known(latents):
    white = latents / latents.flatten(0, 1).std(0, correction=0)
    one, three = move(flat, white), move(lambda z: 3 * flat(z), white)
    for name in ("mean", "p95"):
        assert one[name]["value"] == pytest.approx(1)
        assert three[name]["value"] == pytest.approx(3)
    loud = float(white.square().sum(-1).mean().sqrt())
    for found in (one, three):  # the scale of the waveform is divided out
        assert found["relative_mean"]["value"] == pytest.approx(1 / loud)
    # and so is the scale of the latents
    scaled = move(lambda z: flat(z / 7), 7 * white)
    assert scaled["mean"]["value"] == pytest.approx(1)


def test_noise_is_worst(latents):
    crooked = walk(noise, latents)["path_ratio"]["value"]
    assert crooked > 2 * walk(curved, latents)["path_ratio"]["value"]
    rough = move(noise, latents)["relative_mean"]["value"]
    assert rough > 2 * move(curved, latents)["relative_mean"]["value"]


def test_ends_that_sound_alike_are_left_out_and_counted(latents):
    latents = torch.cat([latents, latents[:1]])
    found = walk(curved, latents, count=30)
    assert (found["pairs"], found["left_out"], found["clips"]) == (28, 2, 6)
    with pytest.raises(ValueError, match="same waveform"):
        walk(curved, latents[[0, 5]])


def test_dimensions_without_variance_do_not_move(latents):
    latents[..., 2:] = 5
    recorded = []
    measure_moves(lambda z: recorded.append(z) or flat(z), latents)
    assert all((z[..., 2:] == 5).all() for z in recorded)


def test_what_is_impossible(latents):
    for measure in (walk, move):
        with pytest.raises(ValueError, match="NaN or infinity"):
            measure(lambda z: flat(z) * torch.nan, latents)
    with pytest.raises(ValueError, match="silent"):
        move(lambda z: 0 * flat(z), latents)
    with pytest.raises(ValueError, match="1 clip is too few"):
        summarise_moves(Moves(np.ones((1, 2)), np.ones(1)))
