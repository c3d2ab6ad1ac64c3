"""Weights of probes against loops, and planted cases."""

import json

import numpy as np
import pytest

from speechbrain_sim.analysis.intervals import bootstrap_interval
from speechbrain_sim.analysis.weights import (
    concentration,
    contribution,
    gini,
    participation_ratio,
    top_n_accuracy,
)


def slow_gini(share):
    gaps = sum(abs(a - b) for a in share for b in share)
    return gaps / (2 * len(share) * sum(share))


def slow_contribution(matrix, std):
    centred = [[w - sum(row) / len(row) for w in row] for row in matrix]
    return [
        std[d] * sum(w**2 for w in row) ** 0.5 for d, row in enumerate(centred)
    ]


def slow_correct(matrix, mean, std, x, label, count):
    share = slow_contribution(matrix, std)
    keep = sorted(range(len(std)), key=lambda d: -share[d])[:count]
    logits = [
        sum(
            (x[d] if d in keep else mean[d]) * matrix[d, c]
            for d in range(len(std))
        )
        for c in range(matrix.shape[1])
    ]
    return logits.index(max(logits)) == label


def test_against_loops():
    rng = np.random.default_rng(0)
    weight, std = rng.normal(size=(2, 5, 3)), rng.random(5)
    share = contribution(weight, std)
    for probe in range(2):
        slow = slow_contribution(weight[probe], std)
        np.testing.assert_allclose(share[probe], slow)
        assert gini(share)[probe] == pytest.approx(slow_gini(slow))
        slow = sum(slow) ** 2 / sum(s**2 for s in slow)
        assert participation_ratio(share)[probe] == pytest.approx(slow)
    found = concentration(weight, std)
    size = abs(weight) / abs(weight).max()
    assert found["near_zero"]["below_10_percent"] == (size < 0.1).sum() / 30
    assert found["contribution"]["gini"] == pytest.approx(gini(share).mean())
    counted, edges = np.histogram(weight / abs(weight).max(), 100, (-1, 1))
    np.testing.assert_allclose(found["histogram"]["edges"], edges)
    np.testing.assert_allclose(
        found["histogram"]["density"], counted / 30 / 0.02
    )
    json.dumps(found, allow_nan=False)


def test_one_dimension_has_everything():
    weight = np.zeros((2, 8, 3))
    weight[:, 5] = [1, 0, -1]
    found = concentration(weight, np.ones(8))
    for kind in ("raw", "contribution"):
        assert found[kind]["gini"] == pytest.approx(1 - 1 / 8)
        assert found[kind]["participation_ratio"] == pytest.approx(1)
        assert found[kind]["share"] == pytest.approx(1 / 8)
    assert found["near_zero"]["below_1_percent"] == pytest.approx(22 / 24)


def test_what_moves_all_classes_alike_contributes_nothing():
    weight = np.zeros((1, 4, 3))
    weight[:, 0], weight[:, 1] = 5, [0.3, 0, -0.3]
    found = concentration(weight, np.ones(4))
    assert found["raw"]["gini"] < 0.75
    assert found["contribution"]["gini"] == pytest.approx(0.75)
    y = np.arange(30) % 3
    x = np.random.default_rng(0).normal(size=(30, 4))
    x[:, 1] = 1 - y
    top = top_n_accuracy(weight, x.mean(0), x.std(0), x, y, y, [1])
    assert top.accuracy[0] > 0.6


def test_all_dimensions_are_equal():
    weight = np.tile([-0.2, 0.0, 0.2], (1, 8, 1))
    found = concentration(weight, np.full(8, 4.0))
    for kind in ("raw", "contribution"):
        assert found[kind]["gini"] == pytest.approx(0)
        assert found[kind]["participation_ratio"] == pytest.approx(8)
    assert found["near_zero"]["below_10_percent"] == pytest.approx(1 / 3)


def test_only_the_contribution_is_free_of_scale():
    rng = np.random.default_rng(0)
    weight, std, scale = rng.normal(size=(2, 6, 3)), np.ones(6), rng.random(6)
    one = concentration(weight, std)
    two = concentration(weight / scale[:, None], std * scale)
    assert one["contribution"] == pytest.approx(two["contribution"])
    assert one["raw"]["gini"] != pytest.approx(two["raw"]["gini"], abs=1e-3)


def test_top_n_equals_loops():
    rng = np.random.default_rng(0)
    weight, std = rng.normal(size=(2, 5, 3)), rng.random(5)
    x, y = rng.normal(size=(12, 5)), rng.integers(3, size=12)
    mean, utterance = rng.normal(size=5), np.arange(12) // 4
    top = top_n_accuracy(weight, mean, std, x, y, utterance, [0, 1, 3, 5])
    for i, count in enumerate([0, 1, 3, 5]):
        slow = [
            np.mean(
                [slow_correct(w, mean, std, x[e], y[e], count) for w in weight]
            )
            for e in range(12)
        ]
        assert top.accuracy[i] == pytest.approx(np.mean(slow))
        hits = [sum(slow[4 * u : 4 * u + 4]) for u in range(3)]
        np.testing.assert_allclose(top.hits[i], hits)
    assert top.total.tolist() == [4, 4, 4]


def test_a_probe_that_reads_three_dimensions():
    rng = np.random.default_rng(0)
    y = np.arange(90) % 3
    x, weight = rng.normal(size=(90, 16)), np.zeros((2, 16, 3))
    x[:, [2, 7, 11]] += 8 * np.eye(3)[y]
    weight[:, [2, 7, 11]] = np.eye(3)
    top = top_n_accuracy(
        weight, x.mean(0), x.std(0), x, y, np.arange(90), [0, 1, 3, 16]
    )
    assert top.accuracy[0] == pytest.approx(1 / 3)
    assert 1 / 3 < top.accuracy[1] < 1
    assert top.accuracy[2] == top.accuracy[3] == 1
    low, high = bootstrap_interval(top.hits[1], top.total)
    assert low < top.accuracy[1] < high


def test_what_is_impossible():
    weight, one = np.ones((1, 4, 2)), np.ones(4)
    with pytest.raises(ValueError, match="No dimension has any importance"):
        concentration(weight, 0 * one)
    with pytest.raises(ValueError, match="NaN or infinite"):
        concentration(weight * np.nan, one)
    y = np.array([0])
    for counts in ([5], [2, 1]):
        with pytest.raises(ValueError, match="the number of dimensions"):
            top_n_accuracy(weight, one, one, one[None], y, y, counts)
