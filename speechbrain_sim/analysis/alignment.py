"""Whether classes share dimensions: scores of gates, pure functions of arrays.

A gate γ is the probability that a dimension is used, (rows, units) in [0, 1].
Classes are integers, (rows,); `unit` is the recording of each row. What is
tested here: the claim of class-aligned sparse codes that rows of a class use
the same dimensions, some of them shared by all classes.
"""

from itertools import permutations

import numpy as np
import torch
from scipy.cluster.hierarchy import leaves_list, linkage
from scipy.spatial.distance import squareform
from scipy.special import entr
from scipy.stats import rankdata

from speechbrain_sim.analysis.code_scores import sum_by
from speechbrain_sim.analysis.intervals import (
    Unmeasurable,
    draw_counts,
    middle,
)
from speechbrain_sim.objectives.alignment import bernoulli_entropy

#: permutations, and draws of recordings
DRAWS, RESAMPLES = 999, 200
#: a Mantel test permutes so many classes at random, fewer in all ways; and the
#: largest p that a test must be able to fall to
MANY, LEVEL = 8, 0.05
#: a gate is open above this; shares of a class's rows with open gates above and
#: below which a dimension is open and closed in it
GATE = 0.5
OPEN, CLOSED = 0.5, 0.1
#: what dimensions are, see `kinds_of`, and of how many draws to be sure
KINDS = GLOBAL, SPECIFIC, UNUSED, MIXED = (
    "global",
    "specific",
    "unused",
    "mixed",
)
UNSURE, SURE = "unsure", 0.95
#: training rows of a class, and neighbours, that tell how rare a row is
KNOWN, NEIGHBOURS = 2000, 10


def class_means(gates, y, classes):
    """Averages the gates of each class: (classes, units); NaN without rows.

    Example
    -------
    >>> class_means(np.array([[1.0], [0.0], [0.5]]), np.array([0, 0, 1]), 2)
    array([[0.5],
           [0.5]])
    """
    sums = np.zeros((classes, gates.shape[1]))
    found = sum_by(gates, y)
    sums[: len(found)] = found
    counts = np.bincount(y, minlength=classes)[:, None]
    return sums / np.where(counts > 0, counts, np.nan)


def correlate(means):
    """Computes Pearson's correlations of class means, (classes, classes).

    Raises an Unmeasurable if the gates of a class are all the same.
    """
    if (means.std(1) < 1e-6).any():
        raise Unmeasurable(
            "All gates of a class are the same: they have collapsed, train with "
            "a smaller alignment, or with another alpha."
        )
    return np.corrcoef(means).clip(-1, 1)


def order_classes(correlations):
    """Orders classes so that alike ones are neighbours: list of int.

    Leaves of hierarchical clustering (average linkage of 1 - r).

    Example
    -------
    >>> r = np.array([[1, 0.1, 0.9], [0.1, 1, 0.2], [0.9, 0.2, 1]])
    >>> order_classes(r)
    [1, 2, 0]
    """
    if len(correlations) < 3:
        return list(range(len(correlations)))
    apart = squareform(1 - correlations, checks=False)
    tree = linkage(apart.clip(0), "average", optimal_ordering=True)
    return leaves_list(tree).tolist()


def mantel(one, other, draws=9999, seed=0):
    """Tests whether two matrices of distances between classes go together.

    Mantel's test of Spearman's correlation, one-sided, by permuting classes:
    of fewer than `MANY` in all ways, which is exact.

    Arguments
    ---------
    one, other : numpy.ndarray
        Symmetric, (classes, classes).
    draws, seed : int
        Permutations of many classes, and their seed.

    Returns
    -------
    dict
        `value`, r; `p`, the `least` p that these distances allow, and `classes`.

    Raises
    ------
    Unmeasurable
        If a matrix does not vary, or no p below `LEVEL` is possible: of three
        classes, a permutation test has p >= 1/6.

    Example
    -------
    >>> place = np.abs(np.subtract.outer(np.arange(5.0), np.arange(5.0)))
    >>> found = mantel(place**2, place)
    >>> round(found["value"], 6), found["p"] == 2 / 120
    (1.0, True)
    """
    n = len(one)
    at = np.triu_indices(n, 1)
    ranks = [rankdata(m[at].round(12)) for m in (one, other)]
    ranks = [r - r.mean() for r in ranks]
    size = np.prod([np.linalg.norm(r) for r in ranks])
    if not size > 0:
        raise Unmeasurable("Distances between classes do not vary.")
    if n < MANY:
        orders = np.array(list(permutations(range(n))))
    else:
        rng = np.random.default_rng(seed)
        orders = rng.permuted(np.tile(np.arange(n), (draws, 1)), axis=1)
        orders[0] = np.arange(n)
    found = _permuted(ranks[0], orders, at) @ ranks[1] / size
    least = 1 / len(orders)
    if n < MANY:  # some orders may be the same
        least = float(np.mean(found >= found.max() - 1e-9))
    if least > LEVEL:
        raise Unmeasurable(
            f"{n} classes with these distances allow p >= {least:.2g} only "
            f"(r = {found[0]:.2f}): a test needs more classes."
        )
    p = float(np.mean(found >= found[0] - 1e-9))
    return {"value": float(found[0]), "p": p, "least": least, "classes": n}


def _permuted(values, orders, at):
    """Values of pairs of classes when these are permuted, (orders, pairs)."""
    whole = np.zeros((orders.shape[1],) * 2)
    whole[at] = values
    whole += whole.T
    return whole[orders[:, at[0]], orders[:, at[1]]]


def pair_divergences(gates):
    """Computes Jensen-Shannon divergences of all pairs of rows, (rows, rows).

    Of dimensions they are added up: at most ln 2 each, in nats.

    Example
    -------
    >>> apart = pair_divergences(np.array([[0.0, 1.0], [1.0, 1.0]]))
    >>> bool(np.isclose(apart[0, 1], np.log(2)))
    True
    """
    g = torch.as_tensor(np.asarray(gates, float))
    own, found = bernoulli_entropy(g).sum(1), g.new_zeros(len(g), len(g))
    for i in range(1, len(g)):
        half = bernoulli_entropy((g[i] + g[:i]) / 2).sum(1)
        found[i, :i] = half - (own[i] + own[:i]) / 2
    return (found + found.T).clamp(min=0).numpy()


def choose_rows(y, unit, most, rng):
    """Draws rows that may be permuted: one of a recording and class at most.

    As many of each class, up to `most` in all; classes with one row have none.

    Example
    -------
    >>> y, unit = np.array([0, 0, 0, 1, 1, 2]), np.array([0, 0, 1, 0, 2, 3])
    >>> rows = choose_rows(y, unit, 6, np.random.default_rng(0))
    >>> y[rows].tolist(), unit[rows].tolist()
    ([0, 0, 1, 1], [0, 1, 0, 2])
    """
    order = rng.permutation(len(y))
    pairs = np.stack([y[order], unit[order]])
    first = np.unique(pairs, axis=1, return_index=True)[1]
    order = order[np.sort(first)]
    each = max(2, most // len(np.unique(y)))
    chosen = [order[y[order] == c][:each] for c in np.unique(y)]
    chosen = [rows for rows in chosen if len(rows) > 1]
    return np.sort(np.concatenate(chosen)) if chosen else np.empty(0, int)


def agreement(gates, y, unit, most=400, draws=DRAWS, seed=0):
    """Compares divergences of gates within classes with those between them.

    Within: mean over classes of the mean over their pairs of rows; between:
    mean over pairs of classes. p permutes the classes of rows, of which a
    recording has one of each class: frames of a recording are alike.

    Arguments
    ---------
    gates, y, unit : numpy.ndarray
        (rows, units), (rows,), (rows,).
    most, draws, seed : int
        Rows that are compared, permutations, and the seed of both.

    Returns
    -------
    dict
        `within` and `between` in nats, their `ratio` (0: classes share all, 1:
        classes do not matter), each with `value` and 95 % `interval` over
        recordings; `p` of a ratio as small.

    Raises
    ------
    Unmeasurable
        If less than two classes have rows of two recordings, or no gates
        differ.
    """
    rng = np.random.default_rng(seed)
    rows = choose_rows(y, unit, most, rng)
    names, known = np.unique(y[rows], return_inverse=True)
    if len(names) < 2:
        raise Unmeasurable(
            "Less than two classes have rows of two recordings: gates cannot be "
            "compared within and between classes."
        )
    apart, member = pair_divergences(gates[rows]), np.eye(len(names))[known]
    if not apart.max() > 1e-9:
        raise Unmeasurable(
            "All rows have the same gates, they have collapsed: a smaller "
            "alignment, or another alpha, may keep them apart."
        )

    found = _compare(apart, member)
    orders = (rng.permutation(len(rows)) for _ in range(draws))
    permuted = [_compare(apart, member[order])[2] for order in orders]
    _, owner = np.unique(unit[rows], return_inverse=True)
    often = draw_counts(1 + owner.max(), RESAMPLES, seed)
    drawn = [_compare(apart, member * w[owner][:, None]) for w in often]
    names = "within", "between", "ratio"
    scores = {
        name: {"value": float(value), "interval": ends.tolist()}
        for name, value, ends in zip(names, found, middle(drawn).T, strict=True)
    }
    alike = sum(ratio <= found[2] + 1e-12 for ratio in permuted)
    return {**scores, "p": float((1 + alike) / (1 + draws)), "rows": len(rows)}


def _compare(apart, weights):
    """Mean divergence within and between classes, and their ratio.

    Of rows that count so often for each class, (rows, classes).
    """
    sums, counts = weights.T @ apart @ weights, weights.sum(0)
    pairs = np.outer(counts, counts)
    # a row is no pair with itself, however often it is drawn
    pairs[np.diag_indices(len(counts))] -= np.square(weights).sum(0)
    means = sums / np.where(pairs > 0, pairs, np.nan)
    within = np.nanmean(np.diag(means))
    between = np.nanmean(means[~np.eye(len(means), dtype=bool)])
    return within, between, within / between


def kinds_of(shares):
    """Says what each dimension is, by the shares of open gates in classes.

    The rule: *global* is open, in more than the share `OPEN` of the rows, of
    every class; *specific* is open in some classes and closed, in less than the
    share `CLOSED`, in others; *unused* is closed in every class; *mixed* is
    anything else.

    Arguments
    ---------
    shares : numpy.ndarray
        (..., classes, units).

    Returns
    -------
    numpy.ndarray
        Index in `KINDS`, (..., units).

    Example
    -------
    >>> shares = np.array([[0.9, 0.9, 0.0, 0.3], [0.8, 0.05, 0.05, 0.9]])
    >>> [KINDS[kind] for kind in kinds_of(shares)]
    ['global', 'specific', 'unused', 'mixed']
    """
    is_open, closed = shares > OPEN, shares < CLOSED
    kinds = np.full(is_open.shape[:-2] + is_open.shape[-1:], KINDS.index(MIXED))
    both = is_open.any(-2) & closed.any(-2)
    for kind, found in (
        (SPECIFIC, both),
        (UNUSED, closed.all(-2)),
        (GLOBAL, is_open.all(-2)),
    ):
        kinds[found] = KINDS.index(kind)
    return kinds


def sort_dimensions(gates, y, unit, classes, resamples=RESAMPLES, seed=0):
    """Applies the rule of `kinds_of`, with intervals over recordings.

    Arguments
    ---------
    gates, y, unit : numpy.ndarray
        (rows, units), (rows,), (rows,).
    classes, resamples, seed : int
        Number of classes; draws of recordings, and their seed.

    Returns
    -------
    dict
        `means` of gates, (classes, units), as lists, None of classes without rows;
        `kinds` of dimensions, `UNSURE` if less than `SURE` of the draws agree;
        `open`: the classes in which each is; `counts` of each kind, by the
        rule alone, with 95 % intervals, and of `UNSURE` ones.
    """
    there, known = np.unique(y, return_inverse=True)
    means = class_means(gates, known, len(there))
    used = (gates > GATE).astype(np.float32)
    shares = class_means(used, known, len(there))
    _, owner = np.unique(unit, return_inverse=True)
    if owner.max() < 1:
        raise Unmeasurable("One recording is too few for intervals.")
    member, drawn = np.eye(len(there), dtype=np.float32)[known], []
    for often in draw_counts(1 + owner.max(), resamples, seed):
        weights = member * often[owner].astype(np.float32)[:, None]
        counts = weights.sum(0)[:, None]
        found = weights.T @ used / np.where(counts > 0, counts, 1)
        drawn.append(kinds_of(np.where(counts > 0, found, shares)))
    kinds, drawn = kinds_of(shares), np.array(drawn)
    sure = (drawn == kinds).mean(0) >= SURE
    names = [
        KINDS[k] if s else UNSURE for k, s in zip(kinds, sure, strict=True)
    ]
    counts = {}
    for k, name in enumerate(KINDS):
        count = int((kinds == k).sum())
        low, high = middle((drawn == k).sum(1)).tolist()
        # classes that vary draw by draw are extremes more often than not
        ends = [min(low, count), max(high, count)]
        counts[name] = {"value": count, "interval": ends}
    counts[UNSURE] = {"value": int((~sure).sum())}
    whole = [None] * classes
    for c, row in zip(there, means, strict=True):
        whole[c] = row.round(4).tolist()
    is_open = [there[column].tolist() for column in (shares > OPEN).T]
    return {"means": whole, "kinds": names, "open": is_open, "counts": counts}


def rarest(x, y, known, known_y, share=0.1, neighbours=NEIGHBOURS):
    """Finds the rarest rows of each class: those without near neighbours.

    A row is the rarer, the farther the nearest `neighbours` training rows of
    its class are.

    Arguments
    ---------
    x, known : numpy.ndarray
        (rows, channels), in comparable units; and training rows.
    y, known_y : numpy.ndarray
        Their classes, (rows,).
    share, neighbours : float, int
        Of each class, rounded up.

    Returns
    -------
    numpy.ndarray
        Whether each row is one of them, (rows,): none of a class that no
        training row has.

    Example
    -------
    >>> x = np.array([[0.0], [0.1], [9.0], [0.2]])
    >>> y = np.zeros(4, int)
    >>> rarest(x, y, x[:2], y[:2], neighbours=1).tolist()
    [False, False, True, False]
    """
    found, rng = np.zeros(len(y), bool), np.random.default_rng(0)
    for c in np.intersect1d(y, known_y):
        at, there = np.flatnonzero(y == c), np.flatnonzero(known_y == c)
        there = rng.permutation(there)[:KNOWN]
        pair = (torch.from_numpy(v).float() for v in (x[at], known[there]))
        apart = torch.cdist(*pair)
        k = min(neighbours, apart.shape[1])
        order = apart.kthvalue(k, 1).values.numpy().argsort(kind="stable")
        found[at[order[-int(np.ceil(share * len(at))) :]]] = True
    return found


def shared_information(one, other):
    """Mutual information of two labels over their mean entropy: 0 to 1.

    Example
    -------
    >>> float(shared_information(np.array([0, 0, 1, 1]), np.array([5, 5, 2, 2])))
    1.0
    """
    (_, one), (_, other) = (
        np.unique(v, return_inverse=True) for v in (one, other)
    )
    joint = np.zeros((1 + one.max(), 1 + other.max()))
    np.add.at(joint, (one, other), 1 / len(one))
    rows, columns, both = (
        entr(p).sum() for p in (joint.sum(1), joint.sum(0), joint)
    )
    mean = (rows + columns) / 2
    return (rows + columns - both) / mean if mean > 0 else 0.0
