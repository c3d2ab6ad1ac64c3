"""How sure a number is: intervals over utterances, and controls.

Frames of one utterance are not independent, so every interval resamples whole
utterances (or clips); all are 95 % percentile intervals.
"""

import numpy as np
from scipy import stats

#: draws of a bootstrap over clips
RESAMPLES = 2000


class Unmeasurable(ValueError):
    """Raised where the data do not hold what is asked; the message explains."""


def per_utterance(correct, utterance):
    """Counts the correct examples of each utterance.

    Arguments
    ---------
    correct : numpy.ndarray
        (seeds, examples), bool.
    utterance : numpy.ndarray
        (examples,), index of each example's utterance, 0, 1, ...

    Returns
    -------
    hits, total : (numpy.ndarray, numpy.ndarray)
        Correct examples, mean over seeds, and examples of each utterance.
    """
    hits = np.bincount(utterance, weights=np.mean(correct, axis=0))
    return hits, np.bincount(utterance)


def bootstrap(statistic, *samples, unit, resamples=RESAMPLES, seed=0):
    """Bootstraps a statistic of rows that are drawn together.

    Arguments
    ---------
    statistic : callable
        (*samples, axis) -> values, reduces the axis of the rows.
    *samples : numpy.ndarray
        (rows,) each.
    unit : str
        What a row is of, for the message: an Unmeasurable if there are fewer
        than two.
    resamples, seed : int
        Number of draws, and their seed.

    Returns
    -------
    low, high : (numpy.ndarray, numpy.ndarray)
    """
    _check_units(f"{len(samples[0])} {unit} is", len(samples[0]), 2)
    how = {"paired": True, "vectorized": True, "method": "percentile"}
    how |= {"n_resamples": resamples, "rng": np.random.default_rng(seed)}
    result = stats.bootstrap(samples, statistic, batch=500, **how)
    return result.confidence_interval


def bootstrap_interval(hits, total):
    """Bootstraps an accuracy over utterances; returns its ends.

    Arguments
    ---------
    hits, total : numpy.ndarray
        From `per_utterance`. For the difference of two systems on the same
        utterances, `hits` is the difference of theirs (a paired interval).
    """

    def accuracy(hits, total, axis=-1):
        return hits.sum(axis) / total.sum(axis)

    samples = np.asarray(hits, float), np.asarray(total, float)
    low, high = bootstrap(accuracy, *samples, unit="utterance", resamples=5000)
    return float(low), float(high)


def resample_ratio(numerator, denominator, units, resamples=RESAMPLES, seed=0):
    """Resamples a ratio of sums over rows, drawing the units they are of.

    A row of two units (a pair of clips) counts as often as both were drawn
    together. A draw without a denominator is NaN.

    Arguments
    ---------
    numerator, denominator : numpy.ndarray
        (rows, values); (rows, 1) if all values have the same denominator.
    units : numpy.ndarray
        The unit, or units, of each row, (rows,) or (rows, 2).
    resamples, seed : int
        Number of draws, and their seed.

    Returns
    -------
    value, draws : (numpy.ndarray, numpy.ndarray)
        (values,) and (resamples, values).

    Raises
    ------
    Unmeasurable
        If there are fewer than two units, or three where rows are pairs: two
        are always drawn together.
    """
    found, at = np.unique(units, return_inverse=True)
    at = at.reshape(len(numerator), -1)  # (rows, units of a row)
    n, in_row = len(found), at.shape[1]
    names = {1: f"{n} utterance is", 2: f"Pairs of {n} clips are"}
    _check_units(names[in_row], n, 1 + in_row)
    rng = np.random.default_rng(seed)
    often = rng.multinomial(n, np.full(n, 1 / n), resamples).astype(float)
    draws = []
    for part in np.array_split(often, -(-resamples // 100)):
        weights = part[:, at].prod(-1)  # (draws, rows)
        below = weights @ denominator
        draws.append(weights @ numerator / np.where(below > 0, below, np.nan))
    return numerator.sum(0) / denominator.sum(0), np.concatenate(draws)


def middle(draws):
    """Returns the ends of the 95 % interval of draws, ignoring NaN."""
    return np.nanquantile(draws, [0.025, 0.975], axis=0)


def bootstrap_pairs(numerator, denominator, pairs):
    """Bootstraps a ratio of sums over pairs, resampling the clips.

    Arguments
    ---------
    numerator : numpy.ndarray
        Of each pair, (pairs, values).
    denominator : numpy.ndarray or float
        Of each pair, (pairs,); 1 for the means of the numerators.
    pairs : numpy.ndarray
        The two clips of each pair, (pairs, 2), int.

    Returns
    -------
    value, low, high : numpy.ndarray
        (values,) each.

    Raises
    ------
    Unmeasurable
        If an input is not a number, the denominators sum to 0, or there are
        fewer than three clips.
    """
    value, draws = _resample_pairs(numerator, denominator, pairs)
    return value, *middle(draws)


def bootstrap_pairs_difference(one, other, pairs):
    """Bootstraps the difference of two such ratios, on the same draws of clips.

    `one` and `other` are each (numerator, denominator). Returns value, low and
    high of one - other, (values,); see `bootstrap_pairs`.
    """
    value, draws = _resample_pairs(*one, pairs)
    other_value, other_draws = _resample_pairs(*other, pairs)
    return value - other_value, *middle(draws - other_draws)


def _resample_pairs(numerator, denominator, pairs):
    """Checks the numbers of pairs, and resamples their ratio."""
    numerator = np.asarray(numerator, float)
    denominator = np.broadcast_to(np.float64(denominator), len(pairs))
    if not (np.isfinite(numerator).all() and np.isfinite(denominator).all()):
        raise Unmeasurable("A value of a pair is NaN or infinite.")
    if not denominator.sum() > 0:
        raise Unmeasurable("The denominators of the pairs add up to nothing.")
    return resample_ratio(numerator, denominator[:, None], pairs)


def _check_units(these, units, needed):
    if units < needed:
        raise Unmeasurable(
            f"{these} too few for an interval; it needs {needed}."
        )


def chance_level(train_labels, test_labels):
    """Computes the accuracy of the best prediction that ignores the input.

    The share, in the test labels, of the most frequent training label.

    Example
    -------
    >>> chance_level(np.array([0, 0, 1]), np.array([0, 1, 1, 1]))
    0.25
    """
    return float(np.mean(test_labels == np.bincount(train_labels).argmax()))


def control_interval(answers, labels):
    """Tests whether probes trained on shuffled labels are at chance.

    Predictions that are independent of the true class are right as often as
    some mixture of classes occurs: between the share of the rarest class and
    that of the most frequent. Examples of one class get the same prediction, so
    the accuracy scatters more than that: as much as it does when the names of
    the predictions are permuted. The interval of the mean is Student's over the
    controls. Both are 99.9 % intervals, as every cell of a table is tested.

    Arguments
    ---------
    answers, labels : numpy.ndarray
        Predicted classes, (controls, examples), and true ones, (examples,).

    Returns
    -------
    dict
        `accuracy` (mean over controls), its `interval`, the `chance` range,
        and `passed`: whether the two overlap.

    Example
    -------
    >>> answers = np.array([[0, 1, 1, 0], [1, 1, 0, 0]])
    >>> control_interval(answers, np.array([0, 0, 1, 1]))["passed"]
    True
    """
    controls, examples = answers.shape
    if controls < 2:
        few = f"{controls} shuffled-label control is too few for an interval"
        raise ValueError(f"{few}; it needs 2 (10 are usual).")
    classes = 1 + max(answers.max(), labels.max())
    confusion = np.zeros((controls, classes, classes))
    for matrix, row in zip(confusion, answers, strict=True):
        np.add.at(matrix, (labels, row), 1)
    rng, identity = np.random.default_rng(0), np.arange(classes)
    names = np.broadcast_to(identity, (RESAMPLES, controls, classes))
    renamed = rng.permuted(names, axis=-1)
    which = np.arange(controls)[:, None]
    null = confusion[which, identity, renamed].sum(-1).mean(-1) / examples
    tail, share = 0.0005, np.bincount(labels) / examples
    low = min(share.min(), np.quantile(null, tail))
    high = max(share.max(), np.quantile(null, 1 - tail))

    accuracy = (answers == labels).mean(1)
    half = stats.t.ppf(1 - tail, controls - 1) * stats.sem(accuracy)
    mean = accuracy.mean()
    return {
        "accuracy": float(mean),
        "interval": [float(mean - half), float(mean + half)],
        "chance": [float(low), float(high)],
        "passed": bool(mean - half <= high and mean + half >= low),
    }
