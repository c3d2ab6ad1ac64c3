"""Weights of probes against loops, and planted cases."""

import json

import numpy as np
import pytest

from speechbrain_sim.analysis.weights import (
    concentration,
    effective_dimensions,
    gini,
    importance,
    top_n_accuracy,
)
from speechbrain_sim.metrics import bootstrap_interval


def slow_gini(share):
    gaps = sum(abs(a - b) for a in share for b in share)
    return gaps / (2 * len(share) * sum(share))


def slow_correct(matrix, std, x, label, count):
    contribution = [
        std[d] * sum(w**2 for w in row) ** 0.5 for d, row in enumerate(matrix)
    ]
    keep = sorted(range(len(std)), key=lambda d: -contribution[d])[:count]
    logits = [
        sum(x[d] * matrix[d, c] for d in keep) for c in range(matrix.shape[1])
    ]
    best = [c for c, logit in enumerate(logits) if logit == max(logits)]
    return (label in best) / len(best)


def test_against_loops():
    rng = np.random.default_rng(0)
    weight, std = rng.normal(size=(2, 5, 3)), rng.random(5)
    share = importance(weight, std)
    for probe in range(2):
        slow = [
            std[d] * sum(w**2 for w in weight[probe, d]) ** 0.5
            for d in range(5)
        ]
        np.testing.assert_allclose(share[probe], slow)
        assert gini(share)[probe] == pytest.approx(slow_gini(slow))
        slow = sum(slow) ** 2 / sum(s**2 for s in slow)
        assert effective_dimensions(share)[probe] == pytest.approx(slow)
    found = concentration(weight, std, bins=10)
    size = abs(weight) / abs(weight).max()
    assert found["near_zero"]["below_10_percent"] == (size < 0.1).sum() / 30
    assert found["contribution"]["gini"] == pytest.approx(gini(share).mean())
    counted, edges = np.histogram(weight / abs(weight).max(), 10, (-1, 1))
    np.testing.assert_allclose(found["histogram"]["edges"], edges)
    np.testing.assert_allclose(
        found["histogram"]["density"], counted / 30 / 0.2
    )
    json.dumps(found, allow_nan=False)


def test_one_dimension_has_everything():
    weight = np.zeros((2, 8, 3))
    weight[:, 5] = 1
    found = concentration(weight, np.ones(8))
    for kind in ("raw", "contribution"):
        assert found[kind]["gini"] == pytest.approx(1 - 1 / 8)
        assert found[kind]["effective_dimensions"] == pytest.approx(1)
        assert found[kind]["share"] == pytest.approx(1 / 8)
    assert found["near_zero"]["below_1_percent"] == pytest.approx(7 / 8)


def test_all_dimensions_are_equal():
    found = concentration(np.full((1, 8, 3), -0.2), np.full(8, 4.0))
    for kind in ("raw", "contribution"):
        assert found[kind]["gini"] == pytest.approx(0)
        assert found[kind]["effective_dimensions"] == pytest.approx(8)
    assert found["near_zero"]["below_10_percent"] == 0


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
    utterance = np.arange(12) // 4
    top = top_n_accuracy(weight, std, x, y, utterance, [0, 1, 3, 5])
    for i, count in enumerate([0, 1, 3, 5]):
        slow = [
            np.mean([slow_correct(w, std, x[e], y[e], count) for w in weight])
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
    top = top_n_accuracy(weight, x.std(0), x, y, np.arange(90), [0, 1, 3, 16])
    assert top.accuracy[0] == pytest.approx(1 / 3)
    assert 1 / 3 < top.accuracy[1] < 1
    assert top.accuracy[2] == top.accuracy[3] == 1
    low, high = bootstrap_interval(top.hits[1], top.total, resamples=200)
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
            top_n_accuracy(weight, one, one[None], y, y, counts)
