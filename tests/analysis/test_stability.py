"""Dictionaries that are the same, partly the same, and random."""

import numpy as np
import pytest
import torch

from speechbrain_sim.analysis.intervals import Unmeasurable
from speechbrain_sim.analysis.stability import (
    dictionary,
    match,
    stability,
    subspace_overlap,
    unit_rows,
)
from speechbrain_sim.bottlenecks.sae import SparseAutoencoder

UNITS, CHANNELS = 48, 32


def draw(seed):
    rng = np.random.default_rng(seed)
    return unit_rows(rng.normal(size=(UNITS, CHANNELS)))


def test_identical_seeds_are_stable_and_random_ones_are_not():
    one = draw(0)
    order = np.random.default_rng(1).permutation(UNITS)
    alive = [np.ones(UNITS, bool)] * 3
    found = stability([one, one[order], one], alive)
    assert found["shared"] == 1.0
    assert found["cosine"] == pytest.approx(1)
    assert found["overlap"] == pytest.approx(1)
    np.testing.assert_allclose(found["units"], 1)
    assert len(found["pairs"]) == 3
    # the control is of other directions, as other dictionaries are
    other = stability([one, draw(2), draw(3)], alive)
    for score in (other, other["random"], found["random"]):
        assert score["shared"] < 0.05
        assert score["overlap"] < 0.6
    assert abs(other["cosine"] - other["random"]["cosine"]) < 0.05


def test_half_of_the_units_are_shared():
    one, other = draw(0), draw(1)
    other[: UNITS // 2] = one[UNITS // 2 :]
    alive = np.ones(UNITS, bool)
    found = stability([one, other], [alive, alive])
    assert found["shared"] == pytest.approx(0.5, abs=0.05)
    assert min(found["units"][0][UNITS // 2 :]) == pytest.approx(1)
    some = alive.copy()
    some[: UNITS // 2] = False  # only what is shared lives in the first
    found = stability([one, other], [some, alive])
    assert found["shared"] == pytest.approx(2 / 3)  # 2 * 24 of 24 + 48
    assert found["units"][0][: UNITS // 2] == [None] * (UNITS // 2)
    turned = stability([other, one], [alive, some])
    for score in "shared", "cosine", "overlap":
        assert turned[score] == pytest.approx(found[score])


def test_matching_is_one_to_one():
    one = np.array([[1.0, 0.0], [0.9, np.sqrt(0.19)]])
    other = np.array([[1.0, 0.0], [0.0, 1.0]])
    # the second prefers the first's partner, which is taken
    for found in match(one, other):
        np.testing.assert_allclose(found, [1.0, np.sqrt(0.19)])


def test_overlap_counts_angles():
    one, other = np.eye(8)[[0, 1]], np.eye(8)[[1, 2]]
    assert subspace_overlap(one, other) == pytest.approx(0.5)
    assert subspace_overlap(one, np.eye(8)[[4, 5]]) == pytest.approx(0)
    for pair in ((one, one[:1]), (one[:1], one)):  # fewer units than r
        assert subspace_overlap(*pair) <= 1
    assert subspace_overlap(np.eye(8)[[0]], np.eye(8)) == subspace_overlap(
        np.eye(8), np.eye(8)[[0]]
    )


def test_directions_do_not_depend_on_units():
    sae = SparseAutoencoder(CHANNELS, UNITS).eval().requires_grad_(False)
    sae.set_units(torch.randn(CHANNELS), 1 + torch.rand(CHANNELS))
    wanted = sae.decoder.weight.T.numpy()
    np.testing.assert_allclose(dictionary(sae), wanted, atol=1e-5)


def test_one_seed_is_not_compared():
    alive = np.ones(UNITS, bool)
    with pytest.raises(Unmeasurable, match="two seeds"):
        stability([draw(0)], [alive])
    with pytest.raises(Unmeasurable, match="two seeds with units that fire"):
        stability([draw(0), draw(1)], [alive, ~alive])
