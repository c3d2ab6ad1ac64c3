"""Alignment of gates: by hand, against loops, on planted and on null data."""

import itertools

import numpy as np
import pytest
from scipy import stats

from speechbrain_sim.analysis import alignment
from speechbrain_sim.analysis.alignment import (
    agreement,
    class_means,
    correlate,
    kinds_of,
    mantel,
    order_classes,
    pair_divergences,
    rarest,
    shared_information,
    sort_dimensions,
)
from speechbrain_sim.analysis.intervals import Unmeasurable

CLASSES, EACH = 6, 20
Y = np.repeat(np.arange(CLASSES), EACH)
UNIT = np.arange(len(Y))
#: of the planted gates: open in all classes, in one, in none
PLANTED = ["global"] * 4 + ["specific"] * CLASSES + ["unused"] * 3


def planted(seed, noise=0.03):
    """Gates, (rows, units), with known global and specific dimensions."""
    rng = np.random.default_rng(seed)
    means = np.full((CLASSES, len(PLANTED)), 0.02)
    means[:, :4] = 0.95
    means[np.arange(CLASSES), 4 + np.arange(CLASSES)] = 0.95
    return (means[Y] + noise * rng.normal(size=(len(Y), 13))).clip(0, 1)


def null(seed):
    return np.random.default_rng(seed).random((len(Y), 8))


def divergence(one, other):
    """Of two rows of gates, dimension by dimension."""

    def h(p):
        return stats.entropy([p, 1 - p])

    pairs = zip(one, other, strict=True)
    return sum(h((p + q) / 2) - (h(p) + h(q)) / 2 for p, q in pairs)


def test_divergences_against_a_loop_and_their_limits():
    gates = np.random.default_rng(0).random((7, 5))
    gates[0], gates[1] = 1, 0
    apart = pair_divergences(gates)
    for i, j in itertools.product(range(7), repeat=2):
        expected = divergence(gates[i], gates[j])
        assert apart[i, j] == pytest.approx(expected, abs=1e-12)
    assert apart[0, 1] == apart.max() == pytest.approx(5 * np.log(2))


def test_means_and_correlations_of_two_classes_by_hand():
    gates = np.array([[1.0, 0.0, 0.5], [0.0, 0.0, 0.5], [0.0, 1.0, 1.0]])
    means = class_means(gates, np.array([0, 0, 1]), 3)
    np.testing.assert_allclose(means[:2], [[0.5, 0, 0.5], [0, 1, 1]])
    assert np.isnan(means[2]).all()
    # (1, -2, 1) / 6 and (-2, 1, 1) / 3 of three: r = -3 / 6
    assert correlate(means[:2])[0, 1] == pytest.approx(-0.5)
    with pytest.raises(Unmeasurable, match="collapsed"):
        correlate(np.ones((2, 3)))


def test_clusters_are_neighbours():
    groups = np.array([0, 1, 0, 1, 2, 2])
    r = np.where(groups[:, None] == groups, 0.9, 0.1)
    ordered = groups[order_classes(r)]
    assert len(list(itertools.groupby(ordered))) == 3
    assert order_classes(r[:2, :2]) == [0, 1]


def distances(rng, n):
    apart = rng.random((n, n))
    return np.triu(apart, 1) + np.triu(apart, 1).T


def test_mantel_against_a_loop():
    rng = np.random.default_rng(0)
    one, other = distances(rng, 5), distances(rng, 5)
    at = np.triu_indices(5, 1)
    reference = [
        stats.spearmanr(one[np.ix_(p, p)][at], other[at]).statistic
        for p in map(list, itertools.permutations(range(5)))
    ]
    found = mantel(one, other)
    assert found["value"] == pytest.approx(reference[0])
    p = np.mean(np.array(reference) >= reference[0] - 1e-9)
    assert found["p"] == pytest.approx(p)
    assert found["least"] == pytest.approx(1 / 120)


def test_mantel_of_three_classes_is_a_gap_and_of_nothing_too():
    rng = np.random.default_rng(1)
    with pytest.raises(Unmeasurable, match=r"3 classes .* p >= 0.17"):
        mantel(distances(rng, 3), distances(rng, 3))
    # four in two pairs: a third of the orders are the same
    pairs = 1.0 - np.kron(np.eye(2), np.ones((2, 2)))
    with pytest.raises(Unmeasurable, match="p >= 0.33"):
        mantel(pairs, pairs)
    with pytest.raises(Unmeasurable, match="do not vary"):
        mantel(distances(rng, 8), 1 - np.eye(8))


def test_mantel_is_calibrated_and_sees_structure():
    p, rng = [], np.random.default_rng(2)
    for seed in range(60):
        pair = distances(rng, 9), distances(rng, 9)
        p.append(mantel(*pair, draws=199, seed=seed)["p"])
    # uniform: not significantly otherwise, at 1 in 1,000
    assert stats.kstest(p, "uniform").pvalue > 1e-3
    place = np.abs(np.subtract.outer(np.arange(9.0), np.arange(9.0)))
    noisy = place + distances(rng, 9)
    assert mantel(noisy, place, draws=999)["p"] < 0.01


def test_agreement_against_a_loop():
    gates, y = planted(0)[::4], Y[::4]
    found = agreement(gates, y, UNIT[::4], draws=9)
    pairs = {True: {}, False: {}}
    for i, j in itertools.combinations(range(len(y)), 2):
        key = tuple(sorted((y[i], y[j])))
        of = pairs[y[i] == y[j]].setdefault(key, [])
        of.append(divergence(gates[i], gates[j]))
    within, between = (
        np.mean([np.mean(v) for v in pairs[same].values()])
        for same in (True, False)
    )
    assert found["within"]["value"] == pytest.approx(within)
    assert found["between"]["value"] == pytest.approx(between)
    assert found["ratio"]["value"] == pytest.approx(within / between)
    low, high = found["ratio"]["interval"]
    assert low <= found["ratio"]["value"] <= high


def test_agreement_is_calibrated_and_sees_classes():
    p = [
        agreement(null(i), Y, UNIT, 60, draws=99, seed=i)["p"]
        for i in range(40)
    ]
    assert stats.kstest(p, "uniform").pvalue > 1e-3
    found = agreement(planted(1), Y, UNIT, draws=199)
    assert found["p"] == 1 / 200
    assert found["ratio"]["value"] < 0.3
    assert agreement(null(1), Y, UNIT)["ratio"]["value"] > 0.9


def test_frames_of_one_recording_make_no_class():
    # each recording has gates of its own, and all its frames one class
    rng = np.random.default_rng(3)
    unit = np.repeat(np.arange(24), 30)
    gates = rng.random((24, 8))[unit] + 0.001 * rng.random((720, 8))
    y = unit % 2
    p = agreement((gates / 2), y, unit, draws=199)["p"]
    assert p > 0.02
    with pytest.raises(Unmeasurable, match="two recordings"):
        agreement(gates / 2, unit, unit)
    with pytest.raises(Unmeasurable, match="collapsed"):
        agreement(np.ones_like(gates), y, unit)


def test_the_rule_finds_planted_dimensions():
    for seed in range(3):
        found = sort_dimensions(planted(seed), Y, UNIT, CLASSES, 50)
        assert found["kinds"] == PLANTED
        assert found["open"][0] == list(range(CLASSES))
        assert found["open"][4 : 4 + CLASSES] == [[c] for c in range(CLASSES)]
        assert found["counts"]["global"]["value"] == 4
        assert found["counts"]["mixed"]["interval"] == [0, 0]
    # without classes, none is specific
    shuffled = np.random.default_rng(0).permutation(Y)
    found = sort_dimensions(planted(0), shuffled, UNIT, CLASSES, 50)
    assert "specific" not in found["kinds"]
    assert found["kinds"][:4] == ["global"] * 4


def test_the_rule_is_unsure_near_its_thresholds():
    gates = planted(0)
    # open in half of the rows of a class, closed elsewhere
    gates[Y == 0, 4] = np.arange(EACH) % 2
    kinds = sort_dimensions(gates, Y, UNIT, CLASSES)["kinds"]
    assert kinds[4] == alignment.UNSURE
    with pytest.raises(Unmeasurable, match="One recording"):
        sort_dimensions(gates, Y, 0 * UNIT, CLASSES)
    # of a class without rows there is nothing
    assert sort_dimensions(gates, Y, UNIT, 8, 9)["means"][6:] == [None, None]
    assert kinds_of(np.full((3, 2, 1), 0.7)).shape == (3, 1)


def test_the_rarest_are_far_from_their_class():
    rng = np.random.default_rng(0)
    x, known = rng.normal(size=(120, 4)), rng.normal(size=(300, 4))
    known_y = np.arange(300) % CLASSES
    x[::20] += 20
    found = rarest(x, Y, known, known_y)
    assert found[::20].all() and found.sum() == 2 * CLASSES
    assert not rarest(x, Y + 100, known, known_y).any()


def test_shared_information_of_equal_and_of_independent_labels():
    rng = np.random.default_rng(0)
    renamed = rng.permutation(CLASSES)[Y]
    assert shared_information(Y, renamed) == pytest.approx(1)
    assert shared_information(Y, 0 * Y) == 0
    a, b = rng.integers(0, 3, (2, 20000))
    assert shared_information(a, b) < 1e-3
