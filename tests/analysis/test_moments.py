"""Moments, profiles and the choice of features, against slow references."""

import numpy as np
import pytest

from speechbrain_sim.analysis.moments import (
    DENSE,
    best_of_each,
    histogram,
    most_interesting,
    profile,
    top_moments,
)
from speechbrain_sim.data.labels import NO_LABEL


def draw(rng, rows=400, units=7, classes=4, utterances=9):
    """Smooth codes, their utterances, and labels of which some are missing."""
    z = np.maximum(0, rng.normal(size=(rows, units)).cumsum(0) % 5 - 3)
    owner = np.sort(rng.integers(0, utterances, rows))
    y = rng.integers(0, classes, rows)
    y[rng.random(rows) < 0.1] = NO_LABEL
    return z, owner, y


def slow_moments(z, owner, count, per_utterance, apart):
    """Walks left and right from each strongest frame that is left."""
    banned, found = set(), []
    while len(found) < count:
        free = [i for i in range(len(z)) if i not in banned and z[i] > 0]
        if not free:
            return found
        peak = max(free, key=lambda i: z[i])
        mine = [i for i in range(len(z)) if owner[i] == owner[peak]]
        start, stop = peak, peak + 1
        while start - 1 in mine and z[start - 1] >= z[peak] / 2:
            start -= 1
        while stop in mine and z[stop] >= z[peak] / 2:
            stop += 1
        if any(
            m[0] == owner[peak]
            and m[1] + mine[0] < stop
            and start < m[2] + mine[0]
            for m in found
        ):
            banned |= set(range(start, stop))
            continue
        place = owner[peak], start - mine[0], stop - mine[0], z[peak]
        found.append(place)
        if sum(m[0] == owner[peak] for m in found) == per_utterance:
            banned |= set(mine)
        banned |= set(range(start - apart, stop + apart)) & set(mine)
    return found


@pytest.mark.parametrize("per_utterance, apart", [(1, 0), (2, 1), (None, 5)])
def test_moments_are_those_of_a_slow_search(per_utterance, apart):
    rng = np.random.default_rng(per_utterance or 0)
    for _ in range(5):
        z, owner, _ = draw(rng, rows=80)
        found = top_moments(z[:, 0], owner, 6, per_utterance, apart)
        expected = slow_moments(z[:, 0], owner, 6, per_utterance, apart)
        assert [tuple(moment) for moment in found] == expected


def test_the_tail_of_a_moment_is_no_other():
    z = np.array([0.5, 1, 2, 5, 2, 1, 0.5, 0, 1])
    found = top_moments(z, np.zeros(9, int), 9)
    assert [tuple(moment[1:]) for moment in found] == [(3, 4, 5), (8, 9, 1)]


def test_moments_of_nothing():
    assert top_moments(np.zeros(5), np.zeros(5, int), 3) == []


def test_a_profile_is_that_of_loops():
    z, _, y = draw(np.random.default_rng(3))
    expected = []
    for label, name in enumerate("abcd"):
        here = z[y == label, 0]
        fires = here[here > 0]
        expected.append((name, len(fires) / len(here), fires.mean()))
    expected.sort(key=lambda row: -row[1])
    found = profile(z[:, 0], y, list("abcd"), most=3)
    assert [row[0] for row in found] == [row[0] for row in expected[:3]]
    numbers = [row[1:] for row in found]
    assert numbers == [pytest.approx(row[1:]) for row in expected[:3]]
    assert profile(0 * z[:, 0], y, list("abcd")) == []


def test_a_histogram_holds_every_activation():
    z = np.array([0.0, 0.1, 0.9, 1.0, 1.0])
    counts, high = histogram(z, 4)
    assert (counts, high) == ([1, 0, 0, 3], 1.0)
    assert histogram(np.zeros(3), 2) == ([0, 0], 0.0)


def test_what_is_dead_dense_or_unknown_is_not_chosen():
    firing = np.array([0.1, 0, DENSE + 0.1, 0.1, 0.1, 1e-5])
    first = np.array([0.1, 9, 9, 0.3, np.nan, 9])
    second = np.array([1.0, 9, 9, 2.0, 3.0, 9])
    assert most_interesting([first, second], firing, 1000, 9) == [3, 4, 0]
    assert most_interesting([first, second], firing, 1000, 1) == [3]
    assert most_interesting([], firing, 1000, 9) == []


def test_the_best_of_each_name_come_first():
    ranks = best_of_each(np.array([0.1, 0.9, 0.8, 0.3]), list("abba"))
    assert ranks.argsort()[::-1].tolist() == [1, 3, 2, 0]
