"""What single units, a few, or all of them together state about labels.

Whatever is chosen is chosen on training rows, and measured on test rows, with
intervals over recordings. Codes are sparse or dense, (rows, units).
"""

from typing import NamedTuple

import numpy as np
import torch
from scipy import sparse

from speechbrain_sim.analysis.code_scores import over_recordings, sum_by
from speechbrain_sim.analysis.intervals import Unmeasurable, chance_level
from speechbrain_sim.logistic import solve_logistic
from speechbrain_sim.rows import moments

#: numbers of units that probes of few may read
FEW = (1, 2, 5, 10)
#: see `solve_logistic`: accuracies of the demo differ by 0.1 points at most from
#: those of a tenth of it
LOOSE = 3e-4


class Reader(NamedTuple):
    """A linear probe in the units of its input: scores = codes W + b.

    `weight` is (channels, classes), `bias` (classes,).
    """

    weight: np.ndarray
    bias: np.ndarray

    def scores(self, codes):
        """Scores rows, sparse or dense: (rows, classes)."""
        return codes @ self.weight + self.bias

    def losses(self, x, y):
        """Computes the cross-entropy of each row in nats, (rows,)."""
        scores = torch.from_numpy(self.scores(x))
        y = torch.from_numpy(y)
        return torch.nn.functional.cross_entropy(
            scores, y, reduction="none"
        ).numpy()


def fit_reader(known, y, valid, valid_y, classes, strengths):
    """Solves probes of several strengths; keeps the best on validation rows.

    Arguments
    ---------
    known, valid : array or sparse array
        Codes, (rows, units).
    y, valid_y : numpy.ndarray
        Their classes, (rows,).
    classes, strengths : int, list of float
        See `speechbrain_sim.logistic.solve_logistic`.

    Returns
    -------
    Reader
    """
    x = known.toarray() if sparse.issparse(known) else known
    x = torch.from_numpy(x.astype(np.float32))
    mean, std = moments([x])
    used, weight = x.amax(0) > x.amin(0), torch.zeros(x.shape[1], classes)
    mean, std, x = mean[used], std[used], (x[:, used] - mean[used]) / std[used]
    solved = solve_logistic(
        x, torch.from_numpy(y), classes, strengths, tolerance=LOOSE
    )
    readers = []
    for part, bias in zip(*solved.weights, strict=True):
        weight[used] = part / std[:, None]
        bias = bias[0] - mean @ weight[used]
        readers.append(Reader(weight.numpy().copy(), bias.numpy()))

    def right(reader):
        return np.mean(reader.scores(valid).argmax(1) == valid_y)

    return max(readers, key=right)


def accuracy(reader, codes, y, unit, known_y):
    """Measures a Reader: `value`, `interval`, and `chance`."""
    correct = reader.scores(codes).argmax(1) == y
    score = over_recordings(correct, np.ones(len(y)), unit)
    return {**score, "chance": chance_level(known_y, y)}


def recovered(losses, unit):
    """Measures how much of a layer's use, for a probe or a module, a code keeps.

    (L_0 - L_x̂) / (L_0 - L_x), L being the mean of losses, (rows,), of the
    layer's mean, of the reconstruction and of the frames: 1 is all, 0 nothing.
    Unmeasurable is raised unless L_0 - L_x is above 0 by its interval.

    Example
    -------
    >>> of_mean, decoded, frames = np.full(4, 3.0), np.full(4, 2.0), np.ones(4)
    >>> recovered((of_mean, decoded, frames), np.arange(4))["value"]
    0.5
    """
    of_mean, decoded, frames = losses
    gain = over_recordings(of_mean - frames, np.ones(len(unit)), unit)
    if gain["interval"][0] <= 0:
        raise Unmeasurable(
            "The loss of the frames is hardly below that of their mean: there is "
            "no loss to recover."
        )
    return over_recordings(of_mean - decoded, of_mean - frames, unit)


def best_thresholds(values, truth, positives):
    """Finds the threshold of the largest F1 for each class.

    Arguments
    ---------
    values : numpy.ndarray
        (rows,), of the rows that may be predicted.
    truth, positives : numpy.ndarray
        Whether these are of each class, (rows, classes); rows of each class in
        all, (classes,).

    Returns
    -------
    f1, threshold : (numpy.ndarray, numpy.ndarray)
        (classes,) each; predicted is what is not below the threshold.

    Example
    -------
    >>> values, truth = np.array([3.0, 1.0, 2.0]), np.array([[1], [0], [1]])
    >>> best_thresholds(values, truth, np.array([2]))
    (array([1.]), array([2.]))
    """
    order = np.argsort(-values, kind="stable")
    values, hits = values[order], truth[order].cumsum(0, dtype=float)
    f1 = 2 * hits / (np.arange(1, len(values) + 1)[:, None] + positives)
    f1[:-1][values[:-1] == values[1:]] = -1  # equal values are not parted
    best = f1.argmax(0)
    return f1[best, np.arange(f1.shape[1])], values[best]


def unit_f1(codes, truth):
    """Finds the best F1 of each unit for each class, and its threshold.

    Only rows where a unit fires are predicted. Codes (rows, units), `truth`
    (rows, classes); returns both as (units, classes).
    """
    columns, positives = sparse.csc_array(codes), truth.sum(0)
    f1, threshold = np.zeros((2, columns.shape[1], truth.shape[1]))
    ends = columns.indptr
    for j in np.flatnonzero(np.diff(ends)):
        part = slice(ends[j], ends[j + 1])
        of = columns.data[part], truth[columns.indices[part]], positives
        f1[j], threshold[j] = best_thresholds(*of)
    return f1, threshold


def f1_score(predicted, truth, unit):
    """Measures the mean F1 of classes, each (rows, classes), bool.

    Returns `value`, `interval`, and `classes`, the F1 of each, None of one that
    is neither predicted nor there.
    """
    hits = 2.0 * (predicted & truth)
    either = predicted.astype(float) + truth
    below = either.sum(0)
    each = hits.sum(0) / np.where(below > 0, below, 1)
    score = over_recordings(hits, either, unit)
    each = [float(x) if b else None for x, b in zip(each, below, strict=True)]
    return {**score, "classes": each}


def best_units(known, y, codes, test_y, unit, classes):
    """Names each class by the single unit that fits best in training rows.

    Arguments
    ---------
    known, codes : array or sparse array
        Training and test codes, (rows, units).
    y, test_y : numpy.ndarray
        Their classes, (rows,).
    unit, classes :
        See `over_recordings`; how many.

    Returns
    -------
    score, labels : (dict, dict)
        See `f1_score`, with the `units`; of each unit its best `class` (None
        if it never fires in training), that one's `f1` in the test rows, and
        the `gain` of it over predicting the class for all of them.
    """
    truth, there = _one_hot(y, classes), _one_hot(test_y, classes)
    f1, threshold = unit_f1(known, truth)
    codes = sparse.csc_array(codes)
    every, of = np.arange(classes), f1.argmax(0)
    values = codes[:, of].toarray()
    predicted = (values > 0) & (values >= threshold[of, every])
    predicted &= truth.any(0)
    score = {**f1_score(predicted, there, unit), "units": of.tolist()}
    own = f1.argmax(1)
    least = threshold[np.arange(len(own)), own]
    columns = np.repeat(np.arange(len(own)), np.diff(codes.indptr))
    fires = codes.data >= least[columns]
    hits = fires & (test_y[codes.indices] == own[columns])
    count = np.bincount(columns, fires, len(own)) + there.sum(0)[own]
    hits = 2 * np.bincount(columns, hits, len(own)) / np.maximum(count, 1)
    named, sizes = f1.max(1) > 0, there.sum(0)[own]
    always = 2 * sizes / np.maximum(len(test_y) + sizes, 1)
    labels = {
        "class": [
            int(c) if n else None for c, n in zip(own, named, strict=True)
        ],
        "f1": np.where(named, hits, 0.0).tolist(),
        "gain": np.where(named, hits - always, 0.0).tolist(),
    }
    return score, labels


def few_units(known, y, codes, test_y, unit, classes, few=FEW):
    """Reads each class from the k units that go along with it most.

    Least squares on the k units whose correlation with the class is largest (a
    difference of means in units of deviations), against a threshold. Arguments
    as of `best_units`; returns k -> `f1_score`. Gurnee et al.: Finding neurons
    in a haystack (2023), https://arxiv.org/abs/2305.01610
    """
    truth, there = _one_hot(y, classes), _one_hot(test_y, classes)
    known, codes = sparse.csc_array(known), sparse.csc_array(codes)
    mean, square = known.mean(0), known.multiply(known).mean(0)
    deviation = np.sqrt(np.maximum(square - mean**2, 1e-12))
    means = sum_by(known.tocsr(), y).toarray()
    means /= np.maximum(np.bincount(y), 1)[:, None]
    share = np.bincount(y) / len(y)
    apart = abs(means - mean) / deviation
    apart *= np.sqrt(share / np.maximum(1 - share, 1e-9))[:, None]
    predicted = {k: np.zeros(there.shape, bool) for k in few}
    for c in np.flatnonzero(truth.any(0)):
        chosen = np.argsort(-apart[c], kind="stable")[: max(few)]
        x, z = (part[:, chosen].toarray() for part in (known, codes))
        for k in few:
            some = np.c_[x[:, :k], np.ones(len(x))]
            weight = np.linalg.lstsq(some, truth[:, c].astype(float))[0]
            fits = truth[:, [c]], truth[:, c].sum(keepdims=True)
            _, threshold = best_thresholds(some @ weight, *fits)
            score = z[:, :k] @ weight[:-1] + weight[-1]
            predicted[k][:, c] = score >= threshold
    return {str(k): f1_score(x, there, unit) for k, x in predicted.items()}


def reader_f1(reader, known, y, codes, test_y, unit):
    """Measures the F1 of a Reader's probabilities above a threshold of each class."""
    classes = len(reader.bias)
    truth, there = _one_hot(y, classes), _one_hot(test_y, classes)
    scores = (torch.from_numpy(reader.scores(x)) for x in (known, codes))
    parts = [x.double().log_softmax(1).numpy() for x in scores]
    predicted = np.zeros(there.shape, bool)
    for c in np.flatnonzero(truth.any(0)):
        fits = truth[:, [c]], truth[:, c].sum(keepdims=True)
        _, threshold = best_thresholds(parts[0][:, c], *fits)
        predicted[:, c] = parts[1][:, c] >= threshold
    return f1_score(predicted, there, unit)


def always_f1(test_y, unit, classes):
    """Measures the F1 of predicting each class everywhere."""
    there = _one_hot(test_y, classes)
    return f1_score(np.broadcast_to(there.any(0), there.shape), there, unit)


def variance_across(known, y, codes, test_y, unit):
    """Measures the share of codes' variance that lies between classes.

    1 - sum |z - m_c|² / sum |z - m|² over test rows, with the means m_c of
    classes and m of all training rows: 1 if nothing varies within a class,
    about 0 (or less) if classes do not matter.
    """
    known, codes = sparse.csr_array(known), sparse.csr_array(codes)
    kept = np.isin(test_y, y)
    codes, test_y, unit = codes[np.flatnonzero(kept)], test_y[kept], unit[kept]
    means = sum_by(known, y).toarray()
    means /= np.maximum(np.bincount(y), 1)[:, None]
    mean = known.mean(0)
    square = codes.multiply(codes).sum(1)
    product = (codes @ means.T)[np.arange(len(test_y)), test_y]
    within = square - 2 * product + np.square(means).sum(1)[test_y]
    total = square - 2 * (codes @ mean) + np.square(mean).sum()
    return over_recordings(total - within, total, unit)


def _one_hot(y, classes):
    """(rows,) -> (rows, classes), bool."""
    return y[:, None] == np.arange(classes)
