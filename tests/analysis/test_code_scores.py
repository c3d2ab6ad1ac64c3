"""Scores of codes against loops, closed forms, and codes that must win or lose."""

from itertools import groupby

import numpy as np
import pytest
import torch
from scipy import sparse, stats

from speechbrain_sim.analysis import code_controls
from speechbrain_sim.analysis.code_scores import (
    DECADES,
    durations,
    encode_rows,
    firing,
    over_recordings,
    reconstruction,
    sureness,
)
from speechbrain_sim.analysis.intervals import Unmeasurable
from speechbrain_sim.bottlenecks.sae import SparseAutoencoder

UNIT = np.repeat(np.arange(6), 40)


@pytest.fixture(scope="module")
def rows():
    """Frames, (240, 8), whose channels differ in mean and scale."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(240, 8)) * np.arange(1, 9) + 3
    return x.astype(np.float32)


@pytest.fixture(scope="module")
def codes():
    """Sparse codes, (240, 5), of one unit that always fires and a dead one."""
    rng = np.random.default_rng(1)
    z = rng.exponential(size=(240, 5)) * (rng.random((240, 5)) < 0.3)
    z[:, 0], z[:, 4] = 1.0, 0.0
    return z


def make_sae(x, units=24, k=3):
    sae = SparseAutoencoder(x.shape[1], units, k=k).eval()
    sae.set_units(x.mean(0), x.std(0))
    return sae.requires_grad_(False)


def test_blocks_do_not_change_codes(rows, monkeypatch):
    sae = make_sae(rows)
    monkeypatch.setattr("speechbrain_sim.bottlenecks.coded.BLOCK", 50)
    codes, decoded = encode_rows(sae, rows)
    whole = sae(torch.from_numpy(rows))
    assert codes.nnz <= 3 * len(rows)
    np.testing.assert_allclose(codes.toarray(), whole.codes, rtol=1e-5)
    np.testing.assert_allclose(decoded, whole.reconstruction, rtol=1e-4)


def test_a_ratio_over_recordings_is_that_of_sums():
    rng = np.random.default_rng(0)
    above, below = rng.random((2, 240, 3))
    below[:, 2] = 0  # is never there: left out
    score = over_recordings(above, below, UNIT)
    ratios = above.sum(0)[:2] / below.sum(0)[:2]
    assert score["value"] == pytest.approx(ratios.mean())
    low, high = score["interval"]
    assert low < score["value"] < high
    # drawn recordings: their spread, not that of rows
    alike = over_recordings(np.tile(above[:40, 0], 6), np.ones(240), UNIT)
    assert np.ptp(alike["interval"]) == pytest.approx(0, abs=1e-12)
    with pytest.raises(Unmeasurable, match="Nothing fires"):
        over_recordings(above, 0 * below, UNIT)
    with pytest.raises(Unmeasurable, match="too few for an interval"):
        over_recordings(above, below, 0 * UNIT)


def test_reconstruction(rows):
    rng = np.random.default_rng(2)
    decoded = rows + rng.normal(size=rows.shape).astype(np.float32)
    mean = rows.mean(0)
    found = reconstruction(rows, decoded, mean, UNIT)
    error = sum(
        (a - b) ** 2 for a, b in zip(rows.flat, decoded.flat, strict=False)
    )
    total = sum(((x - mean) ** 2).sum() for x in rows)
    cosines = [
        a @ b / np.linalg.norm(a) / np.linalg.norm(b)
        for a, b in zip(rows, decoded, strict=False)
    ]
    wanted = 1 - error / total, error / rows.size, np.mean(cosines)
    values = [score["value"] for score in found.values()]
    np.testing.assert_allclose(values, wanted, rtol=1e-4)
    best = reconstruction(rows, rows, mean, UNIT)
    values = [score["value"] for score in best.values()]
    np.testing.assert_allclose(values, [1, 0, 1], atol=1e-6)
    worst = reconstruction(rows, 0 * rows + mean, mean, UNIT)
    assert worst["explained_variance"]["value"] == pytest.approx(0)


def test_firing(codes):
    found = firing(sparse.csr_array(codes), UNIT)
    assert found["l0"]["value"] == np.mean([(z > 0).sum() for z in codes])
    assert found["alive"] == 4 / 5
    density = [np.mean(column > 0) for column in codes.T]
    np.testing.assert_allclose(found["density"], density)
    for key, least in (("above_1", 0.01), ("above_10", 0.1)):
        assert found[key]["value"] == np.mean([d > least for d in density])
    counts = dict.fromkeys(range(len(DECADES) - 1), 0)
    for d in filter(None, density):
        inside = (DECADES[:-1] < np.log10(d)) & (np.log10(d) <= DECADES[1:])
        counts[int(np.flatnonzero(inside)[0]) if d < 1 else 11] += 1
    assert found["histogram"] == [*counts.values()]


def test_durations_end_with_utterances(codes):
    utterance = np.repeat(np.arange(24), 10)
    found = durations(sparse.csr_array(codes), utterance, UNIT, 10.0)
    runs, units = [], []
    for column in codes.T:
        mine = []
        for i in range(24):
            fires = column[utterance == i] > 0
            mine += [len([*run]) for on, run in groupby(fires) if on]
        runs += mine
        units.append(10 * np.mean(mine) if mine else 0)
    assert found["value"] == pytest.approx(10 * np.mean(runs))
    np.testing.assert_allclose(found["units"], units)
    assert units[0] == 100  # fires always: an utterance has ten frames


class Rectifier(torch.nn.Module):
    """A bottleneck whose codes are the positive parts of the channels."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.zeros(3))

    def encode(self, x):
        """See `Bottleneck`."""
        return x.relu()


def test_how_sure_posteriors_are():
    mean = np.tile(np.float32([0.5, 2.0, -1.0]), (240, 1))
    how = Rectifier(), mean
    found = sureness(*how, np.zeros_like(mean), UNIT, draws=200)
    wanted = stats.norm.cdf([0.5, 2.0])  # P(N(m, 1) > 0)
    np.testing.assert_allclose(found["units"]["kept"][:2], wanted, atol=0.01)
    assert found["kept"]["value"] == pytest.approx(wanted.mean(), abs=0.01)
    # of a rectified normal: E z and its deviation in closed form
    level = 0.5 * wanted[0] + stats.norm.pdf(0.5)
    square = (1 + 0.25) * wanted[0] + 0.5 * stats.norm.pdf(0.5)
    sure = level / np.sqrt(square - level**2)
    assert found["units"]["sure"][0] == pytest.approx(sure, rel=0.02)
    assert found["units"]["kept"][2] is found["units"]["sure"][2] is None
    again = sureness(*how, np.zeros_like(mean), UNIT, draws=200)
    assert again == found
    certain = sureness(*how, np.full_like(mean, -30), UNIT)
    assert certain["kept"]["value"] == 1.0
    assert certain["sure"]["value"] > 1000


def test_principal_components_keep_the_largest(rows):
    sae, x = make_sae(rows, units=20, k=3), torch.from_numpy(rows)
    code = code_controls.principal_components(sae, x, 3)
    _, decoded = encode_rows(code, rows)
    u = (rows - sae.mean.numpy()) / sae.std.numpy()
    _, axes = np.linalg.eigh(np.cov(u.T))
    p = (u - u.mean(0)) @ axes
    smallest = np.argsort(abs(p), axis=1)[:, :-3]
    np.put_along_axis(p, smallest, 0, axis=1)
    wanted = (p @ axes.T + u.mean(0)) * sae.std.numpy() + sae.mean.numpy()
    np.testing.assert_allclose(decoded, wanted, atol=1e-3)
    code = code_controls.principal_components(sae, x, 8)
    np.testing.assert_allclose(encode_rows(code, rows)[1], rows, atol=1e-3)


def test_controls_are_as_wide_and_fire_as_often(rows):
    sae, x = make_sae(rows, units=40, k=3), torch.from_numpy(rows)
    made = {
        name: code_controls.make_control(name, sae, x, 5)
        for name in code_controls.CONTROLS
    }
    for code in made.values():
        codes, _ = encode_rows(code, rows)
        assert codes.shape == (240, 40)
        assert codes.astype(bool).sum(1).max() == 5
        torch.testing.assert_close(code.mean, sae.mean)
    # the decoder is that of least squares: it explains, and beats another one
    code = made["random"]
    _, decoded = encode_rows(code, rows)
    score = reconstruction(rows, decoded, rows.mean(0), UNIT)
    assert 0.5 < score["explained_variance"]["value"] < 1
    code.decoder.weight.mul_(0.9)
    other = reconstruction(rows, encode_rows(code, rows)[1], rows.mean(0), UNIT)
    assert other["mse"]["value"] > score["mse"]["value"]
    assert not torch.equal(made["untrained"].encoder.weight, sae.encoder.weight)
