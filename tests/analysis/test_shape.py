"""Shapes of dimensions against scipy and loops, and their brackets."""

import json
import math

import numpy as np
import pytest
from scipy import integrate, stats

from speechbrain_sim.analysis.shape import (
    aggregate_kl,
    common_range,
    describe,
    farthest,
    ks_normal,
    shape,
)


def slow_aggregate_kl(mean, log_var):
    """One dimension, by adaptive quadrature."""
    spread = [math.exp(0.5 * v) for v in log_var]

    def integrand(z):
        q = np.mean(
            [stats.norm.pdf(z, m, s) for m, s in zip(mean, spread, strict=True)]
        )
        return q * (math.log(q) - stats.norm.logpdf(z)) if q > 0 else 0.0

    return integrate.quad(integrand, -12, 12, limit=400)[0]


def test_against_scipy():
    rng = np.random.default_rng(0)
    x = rng.gamma(2.0, size=(300, 70)) - rng.random(70)
    edges = np.linspace(-0.5, 4, 11)
    table = describe(x, edges)
    for d in (0, 63, 64, 69):
        column = x[:, d]
        ks = stats.ks_1samp(column, stats.norm.cdf).statistic
        assert table["ks"][d] == pytest.approx(ks)
        assert table["mean"][d] == pytest.approx(column.mean())
        assert table["std"][d] == pytest.approx(column.std())
        assert table["skew"][d] == pytest.approx(stats.skew(column))
        assert table["kurtosis"][d] == pytest.approx(stats.kurtosis(column))
        count, _ = np.histogram(column, edges)
        np.testing.assert_allclose(table["density"][d], count / 300 / 0.45)
        outside = 1 - count.sum() / 300
        assert table["outside"][d] == pytest.approx(outside) and outside > 0


def test_aggregate_equals_quadrature():
    rng = np.random.default_rng(0)
    mean, log_var = rng.normal(1, 2, (6, 3)), rng.normal(-1, 1, (6, 3))
    fast = aggregate_kl(mean, log_var)
    for d in range(3):
        slow = slow_aggregate_kl(mean[:, d], log_var[:, d])
        assert fast[d] == pytest.approx(slow, abs=1e-6)


def test_the_prior_is_perfect():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(20000, 2))
    found = shape(x, np.full_like(x, -1000.0), rng.normal(size=x.shape))
    for table in (found["means"], found["samples"]):
        assert max(table["ks"]) < 0.02
        assert np.abs(table["skew"] + table["kurtosis"]).max() < 0.1
    assert max(found["aggregate_kl"]) < 0.03
    assert min(found["rate"]) > 100  # each frame on its own is far away
    # half of the variance between the frames, half within
    halves = aggregate_kl(0.5**0.5 * x, np.full_like(x, math.log(0.5)))
    assert halves.max() < 0.01
    zeros = np.zeros((10, 1))
    assert aggregate_kl(zeros, zeros)[0] == pytest.approx(0, abs=1e-6)
    assert shape(zeros, zeros)["rate"] == [0]


@pytest.mark.parametrize("log_var", [-1000.0, -8.0])
def test_a_shift_by_one_is_half_a_nat(log_var):
    x = np.random.default_rng(0).normal(1, 1, (5000, 1))
    kl = aggregate_kl(x, np.full_like(x, log_var), frames=5000)
    assert kl[0] == pytest.approx(0.5, abs=0.05)


def test_no_frame_variance_and_far_away_stays_finite():
    one = np.full((50, 1), 3.0)
    kl = aggregate_kl(one, one - 100)
    point = 0.5 * (-math.log(0.01) - 1 + 0.01 + 9)  # N(3, 0.1^2)
    assert kl[0] == pytest.approx(point, abs=1e-4)
    far = aggregate_kl(np.array([[0.0], [1e4]]), np.zeros((2, 1)))
    assert far[0] == pytest.approx(1e8 / 4, rel=0.01)


def test_the_draw_of_frames_is_seeded():
    x = np.random.default_rng(0).normal(size=(300, 1))
    one, same, other = (
        aggregate_kl(x, 0 * x, frames=100, seed=seed)[0] for seed in (1, 1, 2)
    )
    assert one == same != other


def test_gaps_are_none_and_never_nan():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(100, 3)).astype(np.float32)
    x[:, 1] = 0.1
    found = shape(x)
    json.dumps(found, allow_nan=False)
    assert found["samples"] is found["rate"] is found["aggregate_kl"] is None
    means = found["means"]
    assert means["skew"][1] is means["kurtosis"][1] is None
    assert means["std"][1] == 0 and means["skew"][0] is not None
    assert found["active_units"] == 2
    assert farthest(means)[0] == 1
    assert len(found["edges"]) == 101 and len(means["density"][0]) == 100
    json.dumps(shape(0 * x, 0 * x, 0 * x), allow_nan=False)
    with pytest.raises(ValueError, match="NaN or infinite"):
        shape(x * np.nan)


def test_the_range_ignores_outliers_but_not_dimensions():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(1000, 50))
    x[:, 7] += 9
    x[3] = 1e6
    low, high = common_range(x)
    assert -4 < low < -2 and 10 < high < 13
    assert ks_normal(x).argmax() == 7
