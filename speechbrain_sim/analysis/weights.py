"""Where the information that a linear probe reads sits: the paper's figure 3.

The probes have no bias, so their weights say all. Weights are divided by the
largest magnitude of their layer, so that layers compare.

Reference: Denoodt, de Boer, Oramas: Smooth InfoMax (2025), section 4.3.2,
https://arxiv.org/abs/2408.12936
"""

from typing import NamedTuple

import numpy as np

from speechbrain_sim.analysis.intervals import Unmeasurable, per_utterance


class TopN(NamedTuple):
    """What a probe still knows from its n most important dimensions.

    Arguments
    ---------
    counts : list of int
        The n.
    accuracy : list of float
        Of each n, mean over probes.
    hits : numpy.ndarray
        Correct examples of each utterance, mean over probes, (counts,
        utterances), for `speechbrain_sim.analysis.intervals.bootstrap_interval`.
    total : numpy.ndarray
        Examples of each utterance, (utterances,).
    """

    counts: list
    accuracy: list
    hits: np.ndarray
    total: np.ndarray


def importance(weight):
    """How much each dimension matters to a probe by its weights: their norm.

    As in the paper. It depends on the dimension's scale: one that is ten times
    larger needs a tenth of the weight.

    Arguments
    ---------
    weight : numpy.ndarray
        (probes, channels, classes).

    Returns
    -------
    numpy.ndarray
        (probes, channels).

    Example
    -------
    >>> importance(np.array([[[3.0, 4.0], [0.0, 1.0]]]))
    array([[5., 1.]])
    """
    return np.linalg.norm(weight, axis=-1)


def contribution(weight, std):
    """How much each dimension moves a probe's answers.

    The norm of its weights, less their mean over classes, which moves all
    logits alike, times the deviation of the feature.

    Arguments
    ---------
    weight : numpy.ndarray
        (probes, channels, classes).
    std : numpy.ndarray or float
        Deviation of each feature, (channels,).

    Returns
    -------
    numpy.ndarray
        (probes, channels).

    Example
    -------
    >>> weight = np.array([[[3.0, -3.0], [7.0, 7.0]]])
    >>> contribution(weight, np.array([2.0, 9.0])).round(2)
    array([[8.49, 0.  ]])
    """
    return importance(weight - weight.mean(-1, keepdims=True)) * std


def gini(share):
    """Gini coefficient: 0 if all are equal, 1 - 1/D if one has everything.

    Arguments
    ---------
    share : numpy.ndarray
        Not negative, (..., D).

    Returns
    -------
    numpy.ndarray
        (...,)

    Raises
    ------
    ValueError
        If there is nothing to share, or not a number.

    Example
    -------
    >>> float(gini(np.array([0.0, 0.0, 0.0, 1.0])))
    0.75
    """
    share = np.sort(_checked(share), axis=-1)
    size = share.shape[-1]
    rank = 2 * np.arange(1, size + 1) - size - 1
    return share @ rank / (size * share.sum(-1))


def participation_ratio(share):
    """Participation ratio, (sum s)^2 / sum s^2: between 1 and D.

    Arguments
    ---------
    share : numpy.ndarray
        Not negative, (..., D).

    Returns
    -------
    numpy.ndarray
        (...,)

    Raises
    ------
    ValueError
        If there is nothing to share, or not a number.

    Example
    -------
    >>> float(participation_ratio(np.array([0.0, 2.0, 0.0, 2.0])))
    2.0
    """
    share = _checked(share)
    return share.sum(-1) ** 2 / np.square(share).sum(-1)


def _checked(share):
    share = np.asarray(share, float)
    if not np.isfinite(share).all():
        raise Unmeasurable("An importance is NaN or infinite.")
    if not (share.sum(-1) > 0).all():
        raise Unmeasurable("No dimension has any importance.")
    return share


def concentration(weight, std, bins=100):
    """Describes how few dimensions a layer's probes read.

    Arguments
    ---------
    weight : numpy.ndarray
        Of bias-free probes, (probes, channels, classes).
    std : numpy.ndarray
        Deviation of each feature the probes were trained on, (channels,).
    bins : int
        Of the histogram, between -1 and 1.

    Returns
    -------
    dict
        `dimensions`, D; `histogram`, the `edges` and the `density` of the
        weights of all probes, divided by the largest magnitude among them;
        `near_zero`, the share of weights `below_1_percent` and
        `below_10_percent` of that; and, of the `raw` importance (the paper's)
        and of the `contribution`, the means over probes of `gini`, `participation_ratio` and their `share` of D.

    Raises
    ------
    ValueError
        If no dimension has any importance, or a weight is not a number.

    Example
    -------
    >>> found = concentration(np.eye(4)[None], np.array([1.0, 1, 1, 0]))
    >>> found["raw"]["participation_ratio"]
    4.0
    >>> round(found["contribution"]["participation_ratio"], 6)
    3.0
    >>> found["near_zero"]["below_1_percent"]
    0.75
    """
    weight = np.asarray(weight, float)
    found = {"dimensions": weight.shape[1]}
    kinds = {
        "raw": importance(weight),
        "contribution": contribution(weight, std),
    }
    for kind, share in kinds.items():
        effective = participation_ratio(share).mean()
        found[kind] = {
            "gini": float(gini(share).mean()),
            "participation_ratio": float(effective),
            "share": float(effective / weight.shape[1]),
        }
    scaled = weight / np.abs(weight).max()
    density, edges = np.histogram(scaled, bins, (-1, 1), density=True)
    found["histogram"] = {
        "edges": edges.tolist(),
        "density": density.tolist(),
    }
    found["near_zero"] = {
        "below_1_percent": float(np.mean(np.abs(scaled) < 0.01)),
        "below_10_percent": float(np.mean(np.abs(scaled) < 0.1)),
    }
    return found


def top_n_accuracy(weight, mean, std, x, y, utterance, counts):
    """Accuracy that remains when only the n top dimensions vary.

    The others are held at their mean: zeroing them would also take away what
    they add to every answer, which is all the bias that such a probe has.
    Dimensions are ranked by their contribution, for each probe on its own.

    Arguments
    ---------
    weight : numpy.ndarray
        Of bias-free probes, (probes, channels, classes).
    mean, std : numpy.ndarray
        Of the features that the probes were trained on, (channels,).
    x : numpy.ndarray
        Test features, (examples, channels).
    y : numpy.ndarray
        Their classes, (examples,), int.
    utterance : numpy.ndarray
        Index of each example's utterance, 0, 1, ..., (examples,).
    counts : list of int
        The n, from few to many.

    Returns
    -------
    TopN

    Raises
    ------
    ValueError
        If the counts do not rise, or are more than there are channels.

    Example
    -------
    >>> y, half = np.array([0, 1, 1]), np.array([0.5, 0.5])
    >>> x = np.eye(2)[y]
    >>> top_n_accuracy(np.eye(2)[None], half, half, x, y, y, [2]).accuracy
    [1.0]
    """
    steps = [0, *counts]
    if sorted(steps) != steps or steps[-1] > weight.shape[1]:
        raise ValueError(
            f"n is {counts}; it must rise from 0 or more to at most "
            f"{weight.shape[1]}, the number of dimensions."
        )
    correct = np.zeros((len(counts), len(weight), len(y)))
    order = np.argsort(-contribution(weight, std), axis=-1, kind="stable")
    for probe, (matrix, ranked) in enumerate(zip(weight, order, strict=True)):
        logits = np.tile(mean @ matrix, (len(y), 1))
        for i in range(len(counts)):
            more = ranked[steps[i] : steps[i + 1]]
            logits += (x[:, more] - mean[more]) @ matrix[more]
            correct[i, probe] = logits.argmax(-1) == y
    counted = [per_utterance(rows, utterance) for rows in correct]
    return TopN(
        list(counts),
        correct.mean((1, 2)).tolist(),
        np.stack([hits for hits, _ in counted]),
        counted[0][1],
    )
