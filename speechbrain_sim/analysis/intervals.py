"""How sure a number is: intervals over utterances, and controls.

Frames of one utterance are not independent, so every interval resamples whole
utterances.
"""

import numpy as np
from scipy import stats


class Unmeasurable(ValueError):
    """What is asked of the data is not in them; the message says why."""


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
        Mean over seeds of the number of correct examples, and the number of
        examples, of each utterance.

    Example
    -------
    >>> per_utterance(np.array([[1, 0, 1], [1, 0, 0]]), np.array([0, 0, 1]))
    (array([1. , 0.5]), array([2, 1]))
    """
    hits = np.bincount(utterance, weights=np.mean(correct, axis=0))
    return hits, np.bincount(utterance)


def bootstrap_interval(hits, total, confidence=0.95, resamples=5000, seed=0):
    """Bootstraps an accuracy over utterances (percentile interval).

    Arguments
    ---------
    hits, total : numpy.ndarray
        From `per_utterance`. For the difference of two systems on the same
        utterances, `hits` is the difference of theirs (a paired interval).
    confidence : float
        Share of the distribution inside the interval.
    resamples : int
        Number of bootstrap samples.
    seed : int
        Of the resampling.

    Returns
    -------
    low, high : (float, float)

    Raises
    ------
    ValueError
        If there are fewer than two utterances.

    Example
    -------
    >>> bootstrap_interval(np.ones(20), np.ones(20))
    (1.0, 1.0)
    """
    if len(total) < 2:
        raise Unmeasurable(
            f"{len(total)} utterance is too few for an interval; it needs 2."
        )

    def accuracy(hits, total, axis=-1):
        return hits.sum(axis) / total.sum(axis)

    result = stats.bootstrap(
        (np.asarray(hits, float), np.asarray(total, float)),
        accuracy,
        paired=True,
        vectorized=True,
        confidence_level=confidence,
        n_resamples=resamples,
        batch=500,
        method="percentile",
        rng=np.random.default_rng(seed),
    )
    low, high = result.confidence_interval
    return float(low), float(high)


def bootstrap_pairs(
    numerator, denominator, pairs, confidence=0.95, resamples=2000, seed=0
):
    """Bootstraps a ratio of sums over pairs, resampling the clips.

    Pairs that share a clip are not independent, so it is clips that are drawn;
    a pair then counts as often as both of its clips were drawn together. A draw
    that leaves no denominator counts for nothing.

    Arguments
    ---------
    numerator : numpy.ndarray
        Of each pair, (pairs, values).
    denominator : numpy.ndarray or float
        Of each pair, (pairs,); 1 for the means of the numerators.
    pairs : numpy.ndarray
        The two clips of each pair, (pairs, 2), int.
    confidence : float
        Share of the distribution inside the interval.
    resamples, seed : int
        Of the bootstrap.

    Returns
    -------
    value, low, high : numpy.ndarray
        (values,) each.

    Raises
    ------
    Unmeasurable
        If an input is not a number, the denominators add up to nothing, or
        there are fewer than three clips: two are always drawn together.

    Example
    -------
    >>> pairs = np.array([[0, 1], [1, 2], [2, 0]])
    >>> value, low, high = bootstrap_pairs(np.array([[2.0]] * 3), 1, pairs)
    >>> value.tolist(), low.tolist(), high.tolist()
    ([2.0], [2.0], [2.0])
    """
    value, resampled = _resample_pairs(
        numerator, denominator, pairs, resamples, seed
    )
    return value, *_middle(resampled, confidence)


def bootstrap_pairs_difference(
    one, other, pairs, confidence=0.95, resamples=2000, seed=0
):
    """Bootstraps the difference of two such ratios, on the same draws of clips.

    Arguments
    ---------
    one, other : (numpy.ndarray, numpy.ndarray or float)
        Numerator and denominator of each, see `bootstrap_pairs`.
    pairs, confidence, resamples, seed :
        See `bootstrap_pairs`.

    Returns
    -------
    value, low, high : numpy.ndarray
        (values,) each: one - other.

    Raises
    ------
    Unmeasurable
        See `bootstrap_pairs`.

    Example
    -------
    >>> pairs, far = np.array([[0, 1], [1, 2], [2, 0]]), np.ones(3)
    >>> one, other = np.array([[0.25]] * 3), np.array([[0.75]] * 3)
    >>> found = bootstrap_pairs_difference((one, far), (other, far), pairs)
    >>> [float(x[0]) for x in found]
    [-0.5, -0.5, -0.5]
    """
    (value, draws), (value_2, draws_2) = (
        _resample_pairs(*ratio, pairs, resamples, seed)
        for ratio in (one, other)
    )
    return value - value_2, *_middle(draws - draws_2, confidence)


def _resample_pairs(numerator, denominator, pairs, resamples, seed):
    """The ratio, and it resampled; NaN for a draw without a denominator."""
    numerator = np.asarray(numerator, float)
    denominator = np.broadcast_to(np.float64(denominator), len(pairs))
    if not (np.isfinite(numerator).all() and np.isfinite(denominator).all()):
        raise Unmeasurable("A value of a pair is NaN or infinite.")
    if not denominator.sum() > 0:
        raise Unmeasurable("The denominators of the pairs add up to nothing.")
    clips, pairs = np.unique(pairs, return_inverse=True)
    pairs, size = pairs.reshape(-1, 2), len(clips)
    if size < 3:
        raise Unmeasurable(
            f"Pairs of {size} clips are too few for an interval; it needs 3."
        )
    rng = np.random.default_rng(seed)
    often = rng.multinomial(size, np.full(size, 1 / size), resamples)
    ratios = []
    for part in np.array_split(often.astype(float), -(-resamples // 100)):
        weights = part[:, pairs[:, 0]] * part[:, pairs[:, 1]]
        below = (weights @ denominator)[:, None]
        ratios.append(weights @ numerator / np.where(below > 0, below, np.nan))
    return numerator.sum(0) / denominator.sum(), np.concatenate(ratios)


def _middle(resampled, confidence):
    tail = (1 - confidence) / 2
    return np.nanquantile(resampled, [tail, 1 - tail], axis=0)


def chance_level(train_labels, test_labels):
    """Computes the accuracy of the best answer that ignores the input.

    Arguments
    ---------
    train_labels, test_labels : numpy.ndarray
        Classes, int.

    Returns
    -------
    float
        Share of the training set's most frequent class in the test set.

    Example
    -------
    >>> chance_level(np.array([0, 0, 1]), np.array([0, 1, 1, 1]))
    0.25
    """
    return float(np.mean(test_labels == np.bincount(train_labels).argmax()))


def control_interval(answers, labels, confidence=0.999, resamples=2000, seed=0):
    """Tests that probes trained on shuffled labels know nothing.

    Answers that are independent of the true class are right as often as some
    mixture of classes occurs: between the share of the rarest class and that
    of the most frequent. But examples of one class resemble each other and get
    the same answer, so the accuracy of a few controls scatters more than that:
    as much as it does when the names of the answers are permuted. The interval
    of their mean is Student's over the controls.

    Arguments
    ---------
    answers : numpy.ndarray
        Classes that the controls answer, (controls, examples).
    labels : numpy.ndarray
        True classes, (examples,).
    confidence : float
        Of both intervals; high, as every cell of a table is tested.
    resamples : int
        Number of permutations of the classes' names.
    seed : int
        Of the permutations.

    Returns
    -------
    dict
        `accuracy` (mean over controls), its `interval`, the `chance` range,
        and `passed`: whether the two overlap.

    Raises
    ------
    ValueError
        If there are fewer than two controls.

    Example
    -------
    >>> answers = np.array([[0, 1, 1, 0], [1, 1, 0, 0]])
    >>> control_interval(answers, np.array([0, 0, 1, 1]))["passed"]
    True
    """
    controls, examples = answers.shape
    if controls < 2:
        raise ValueError(
            f"{controls} shuffled-label control is too few for an interval; "
            f"it needs 2 (10 are usual)."
        )
    classes = 1 + max(answers.max(), labels.max())
    confusion = np.zeros((controls, classes, classes))
    for matrix, row in zip(confusion, answers, strict=True):
        np.add.at(matrix, (labels, row), 1)
    rng, identity = np.random.default_rng(seed), np.arange(classes)
    renamed = rng.permuted(
        np.broadcast_to(identity, (resamples, controls, classes)), axis=-1
    )
    which = np.arange(controls)[:, None]
    null = confusion[which, identity, renamed].sum(-1).mean(-1) / examples
    tail = (1 - confidence) / 2
    share = np.bincount(labels) / examples
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
