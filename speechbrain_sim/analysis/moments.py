"""Codes of frames -> which features are interesting, and when they are strong.

All pure, on arrays.
"""

from itertools import zip_longest
from typing import NamedTuple

import numpy as np

from speechbrain_sim.data.labels import NO_LABEL

#: bins of a histogram, classes of a profile
BINS, CLASSES = 24, 8
#: shares of the rows between which a feature has to fire, and least rows
RARE, DENSE, FEWEST = 1e-4, 0.5, 5


class Moment(NamedTuple):
    """Rows `start : stop` of an utterance, around one strongest activation."""

    utterance: int
    start: int
    stop: int
    value: float


def best_of_each(values, names):
    """Ranks the best unit of each name first, then the second of each, ...

    Arguments
    ---------
    values, names : numpy.ndarray, list of str
        (units,), within 0 and 1; classes of the units.

    Returns
    -------
    numpy.ndarray
        (units,): values, less how many of the name are better.

    Example
    -------
    >>> best_of_each(np.array([0.5, 0.75, 0.25]), ["AY", "AY", "T"]).tolist()
    [-0.5, 0.75, 0.25]
    """
    ranked, seen = np.array(values, float), {}
    for unit in np.argsort(-ranked, kind="stable"):
        seen[names[unit]] = seen.get(names[unit], -1) + 1
        ranked[unit] -= seen[names[unit]]
    return ranked


def most_interesting(scores, firing, rows, count):
    """Chooses features: those that are first by each score, in turn.

    Arguments
    ---------
    scores : list of numpy.ndarray
        (units,), the larger the more interesting; NaN is never chosen.
    firing, rows, count : numpy.ndarray, int, int
        Share of the rows where each unit fires, (units,): it has to be between
        `RARE` and `DENSE`, and in `FEWEST` rows; of how many rows; how many.

    Returns
    -------
    list of int

    Example
    -------
    >>> f1, effect = np.array([0.9, 0.8, 0.1]), np.array([1.0, np.nan, 7.0])
    >>> most_interesting([f1, effect], np.full(3, 0.1), 1000, 2)
    [0, 2]
    """
    usable = (firing >= max(RARE, FEWEST / rows)) & (firing <= DENSE)
    orders = []
    for values in scores:
        known = np.flatnonzero(usable & np.isfinite(values))
        orders.append(known[np.argsort(-values[known], kind="stable")])
    turns = [u for turn in zip_longest(*orders) for u in turn if u is not None]
    return [int(unit) for unit in dict.fromkeys(turns)][:count]


def top_moments(z, utterance, count, per_utterance=2, apart=1):
    """Finds the moments of the strongest activations.

    A moment is what lies around its strongest frame without a gap, in the same
    utterance, at half of that activation or more; what would reach into a
    stronger moment is its tail, and left out.

    Arguments
    ---------
    z, utterance : numpy.ndarray
        Activations, and the utterance of each row, (rows,).
    count, per_utterance, apart : int, int or None, int
        At most so many, and of each utterance; frames between two.

    Returns
    -------
    list of Moment
        Strongest first; rows are counted from the first of the utterance.

    Example
    -------
    >>> z = np.array([0.0, 2.0, 4.0, 3.0, 1.0, 2.0])
    >>> top_moments(z, np.array([0, 0, 0, 0, 1, 1]), 9)[0]
    Moment(utterance=0, start=1, stop=4, value=4.0)
    """
    left, moments, used = np.where(z > 0, z, 0), [], {}
    taken = np.zeros(len(z), bool)
    while len(moments) < count and left.max(initial=0) > 0:
        peak = int(left.argmax())
        owner, value = int(utterance[peak]), float(z[peak])
        first, last = np.searchsorted(utterance, [owner, owner + 1])
        below = np.flatnonzero(z[first:last] < value / 2) + first
        at = np.searchsorted(below, peak)
        start = int(below[at - 1]) + 1 if at else int(first)
        stop = int(below[at]) if at < len(below) else int(last)
        if taken[start:stop].any():
            left[start:stop] = 0
            continue
        taken[start:stop] = True
        used[owner] = used.get(owner, 0) + 1
        full = used[owner] == per_utterance
        ends = (first, last) if full else (start - apart, stop + apart)
        left[max(first, ends[0]) : min(last, ends[1])] = 0
        rows = start - int(first), stop - int(first)
        moments.append(Moment(owner, *rows, value))
    return moments


def profile(z, y, classes, most=CLASSES):
    """Lists in which classes a feature fires.

    Arguments
    ---------
    z, y : numpy.ndarray
        Activations, and class of each row or `NO_LABEL`, (rows,).
    classes, most : list of str, int
        Names; how many are listed.

    Returns
    -------
    list of (str, float, float)
        Class, share of its rows with z > 0, mean of z in those; the largest
        share first.

    Example
    -------
    >>> profile(np.array([2.0, 0.0, 0.0]), np.array([0, 0, 1]), ["a", "b"])
    [('a', 0.5, 2.0)]
    """
    known, fires = y != NO_LABEL, (z > 0) & (y != NO_LABEL)
    sizes = np.bincount(y[known], minlength=len(classes))
    hits = np.bincount(y[fires], minlength=len(classes))
    sums = np.bincount(y[fires], z[fires], len(classes))
    share = hits / np.maximum(1, sizes)
    order = [i for i in np.argsort(-share, kind="stable") if hits[i]][:most]
    return [
        (classes[i], float(share[i]), float(sums[i] / hits[i])) for i in order
    ]


def histogram(z, bins=BINS):
    """Counts activations above 0 in equal bins: counts, and the largest.

    Example
    -------
    >>> histogram(np.array([0.0, 1.0, 4.0]), 2)
    ([1, 1], 4.0)
    """
    high = float(z.max(initial=0))
    counts, _ = np.histogram(z[z > 0], bins, (0, high or 1))
    return counts.tolist(), high
