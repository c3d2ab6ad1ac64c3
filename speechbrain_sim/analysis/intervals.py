"""How sure a number is: intervals over utterances, and controls.

Frames of one utterance are not independent, so every interval resamples whole
utterances (or clips); all are 95 % percentile intervals.
"""

from itertools import permutations

import numpy as np
from scipy import stats

#: draws of a bootstrap
RESAMPLES = 2000
#: level of the test of controls, on either side, and bins of an accuracy in it
LEVEL, BINS = 0.001, 2000


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
    draws, often = [], draw_counts(n, resamples, seed)
    for part in np.array_split(often, -(-resamples // 100)):
        weights = part[:, at].prod(-1)  # (draws, rows)
        below = weights @ denominator
        draws.append(weights @ numerator / np.where(below > 0, below, np.nan))
    return numerator.sum(0) / denominator.sum(0), np.concatenate(draws)


def draw_counts(units, resamples=RESAMPLES, seed=0):
    """Draws units with replacement: how often each, (resamples, units)."""
    rng, shares = np.random.default_rng(seed), np.full(units, 1 / units)
    return rng.multinomial(units, shares, resamples).astype(float)


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


def encoders_interval(total, *hits):
    """Computes the interval of an accuracy, or of a difference of two.

    Where encoders of several seeds were scored, their number is small: the
    variances over encoders and over recordings add up, and the interval is
    Student's, its degrees of freedom by Satterthwaite. In simulations, 93 to
    98 % of the intervals of three and five encoders cover the truth, 99 % where
    encoders hardly differ, and 90 % of those of two, at worst. Where
    one encoder of each was, it is `bootstrap_interval`, for this encoder.

    Arguments
    ---------
    total : numpy.ndarray
        Examples of each recording, (recordings,).
    *hits : numpy.ndarray
        Correct ones of each encoder, (encoders, recordings): of one system, or
        of two, whose difference is meant.

    Returns
    -------
    low, high : (float, float)
    """
    pairs = zip((1, -1), hits, strict=False)
    mean = sum(sign * rows.mean(0) for sign, rows in pairs)
    if all(len(rows) == 1 for rows in hits):
        return bootstrap_interval(mean, total)
    n, value = len(total), mean.sum() / total.sum()
    scale = n * total.mean() ** 2
    variance = (mean - value * total).var(ddof=1) / scale
    parts = [variance**2 / (n - 1)]
    for rows in hits:
        if freedom := len(rows) - 1:
            of_encoders = rows.mean(1).var() * n / scale / freedom
            variance += of_encoders
            parts.append(of_encoders**2 / freedom)
    freedom = variance**2 / sum(parts) if variance else np.inf
    half = stats.t.ppf(0.975, freedom) * variance**0.5
    least = 1.0 - len(hits)  # a difference may be negative
    return float(max(least, value - half)), float(min(1.0, value + half))


def student(values, most=1.0):
    """Computes Student's interval of the mean of independent values.

    Returns `value` and `interval`, which is cut at -`most` and `most`.

    Example
    -------
    >>> student([0.1, 0.2, 0.3])["interval"]
    [-0.048..., 0.448...]
    """
    _check_units(f"{len(values)} value is", len(values), 2)
    value, n = float(np.mean(values)), len(values)
    half = stats.t.ppf(0.975, n - 1) * np.std(values, ddof=1) / n**0.5
    ends = max(-most, value - half), min(most, value + half)
    return {"value": value, "interval": list(map(float, ends))}


def holm(p):
    """Corrects p of several tests: none of all is wrong, at the level of one.

    Holm 1979, https://www.jstor.org/stable/4615733.

    Example
    -------
    >>> holm([0.01, 0.04, 0.02]).round(3).tolist()
    [0.03, 0.04, 0.04]
    """
    p = np.asarray(p, float)
    steps = {q: q * (p >= q).sum() for q in p}
    least = (max(s for q, s in steps.items() if q <= x) for x in p)
    return np.minimum([*least], 1)


def chance_level(train_labels, test_labels):
    """Computes what is reached without the input.

    The larger of two: the share, in the test labels, of the most frequent
    training label; and 1 / classes, a class drawn at random.

    Example
    -------
    >>> chance_level(np.array([0, 0, 0, 1]), np.array([0, 0, 0, 1]))
    0.75
    >>> chance_level(np.array([0, 0, 1]), np.array([1, 1, 1, 1]))
    0.5
    """
    classes, counts = np.unique(train_labels, return_counts=True)
    frequent = np.mean(test_labels == classes[counts.argmax()])
    return float(max(frequent, 1 / len(classes)))


def check_controls(controls, classes, frames=False):
    """Raises an Unmeasurable if a `control_interval` has too few controls.

    It would pass whatever happens: by luck, ten controls of 2 classes are all
    right in 1 of 1,024 cases, five of 3 classes in 1 of 7,776. Labels of
    `frames` need ten, too.
    """
    needed = 10 if frames or classes == 2 else 5
    if controls < needed:
        of = f"{classes} classes" + ", of frames" * frames
        raise Unmeasurable(
            f"--controls {controls}: with {of}, at least {needed} probes on "
            f"shuffled labels are needed, or they would pass whatever happens."
        )


def control_interval(predictions, labels, classes=None):
    """Tests whether probes trained on shuffled labels are at chance.

    The shuffled labels are as many of each class, so that each class may as
    well have any other one's name. Hence a permutation test: the names in each
    control's predictions are permuted, and the `excess` counts: the accuracy
    less what these predictions reach in random order. It is exact, however
    alike the predictions for examples of one class or recording are. Its level,
    `LEVEL`, is low, as every cell of a table is tested.

    Arguments
    ---------
    predictions, labels : numpy.ndarray
        Predicted classes, (controls, examples), and true ones, (examples,).
    classes : int, optional
        All there are; by default those up to the largest that occurs.

    Returns
    -------
    dict
        Means over controls: `accuracy`, and its `excess`; `visible`, the least
        excess that would fail; the range of `chance`; and `passed`, whether
        the accuracy is not above it. Labels that reach the features raise it:
        one below is an unlucky draw of labels.

    Raises
    ------
    Unmeasurable
        If there are too few, see `check_controls`.

    Example
    -------
    >>> labels = np.arange(300) % 3
    >>> predictions = np.random.default_rng(0).permuted([labels] * 5, axis=1)
    >>> control_interval(predictions, labels)["passed"]
    True
    >>> control_interval(np.array([labels] * 5), labels)["passed"]
    False
    """
    classes = classes or 1 + max(predictions.max(), labels.max())
    controls, rng = len(predictions), np.random.default_rng(0)
    check_controls(controls, classes)
    found = [_excesses(row, labels, classes, rng) for row in predictions]
    excess, accuracy = np.mean(found, 0)[0], (predictions == labels).mean()
    bins = np.rint((np.array(found) + 1) * BINS).astype(int)
    shares = [np.bincount(row, minlength=2 * BINS + 1) for row in bins]
    # the distribution of a sum: the product of the spectra
    size = 1 << (controls * len(shares[0])).bit_length()
    spectra = np.fft.rfft(shares, size) / bins.shape[1]
    null, at = np.fft.irfft(spectra.prod(0)), bins[:, 0].sum()
    below, above = null.cumsum(), null[::-1].cumsum()[::-1]
    ends = np.argmax(below > LEVEL), np.argmax(above <= LEVEL)
    low, high = (float(end / controls / BINS - 1) for end in ends)
    return {
        "accuracy": float(accuracy),
        "excess": float(excess),
        "visible": high,
        "chance": [float(accuracy - excess + end) for end in (low, high)],
        "passed": bool(above[at] > LEVEL),
    }


def _excesses(predictions, labels, classes, rng):
    """Returns the excess under renamings, all or many, first under none."""
    table = np.zeros((classes, classes))
    np.add.at(table, (labels, predictions), 1 / len(labels))
    table -= table.sum(1, keepdims=True) * table.sum(0)
    order = np.arange(classes)
    if classes <= 6:
        names = np.array(list(permutations(order)))
    else:
        names = np.tile(order, (RESAMPLES, 1))
        names[1:] = rng.permuted(names[1:], axis=1)
    return table[order, names].sum(1)
