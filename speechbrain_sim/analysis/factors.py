"""How a code lays out known factors: DCI, MIG and SAP, beside controls.

A code is an array (examples, dimensions). A factor is one value per example:
strings or integers name classes, floats are quantities. Factors should be
independent of each other: no code tells vowel and syllable apart.

References: Eastwood, Williams: A framework for the quantitative evaluation of
disentangled representations (2018); Chen et al.: Isolating sources of
disentanglement (2018), section 4.1, https://arxiv.org/abs/1802.04942; Kumar et
al.: Variational inference of disentangled latent concepts (2018), section 3,
https://arxiv.org/abs/1711.00848
"""

from typing import NamedTuple

import numpy as np

from speechbrain_sim.analysis.intervals import Unmeasurable

#: strengths of the Lasso, strongest first, in units of a correlation; that of
#: noise is about 1 / sqrt(examples), 0.014 for 5000
PENALTIES = (0.3, 0.1, 0.03, 0.01)
#: training examples that the Lasso reads at most
EXAMPLES = 5000
#: parts of the training examples in the choice of the strength
FOLDS = 3
#: equally filled bins of a dimension, and of a continuous factor, for MIG
BINS = 20
#: shuffled factors, for the mutual information that chance gives
SHUFFLES = 5
#: smaller deviations, relative to the largest value, are float32's rounding
CONSTANT = 1e-6


class Fit(NamedTuple):
    """Linear predictions of each factor from a code.

    Arguments
    ---------
    importances : numpy.ndarray
        (dimensions, factors), not negative.
    coefficients : list of numpy.ndarray
        (dimensions, targets) of each factor.
    penalties : list of (float or None)
        Strength chosen for each factor; None where nothing could be learned.
    """

    importances: np.ndarray
    coefficients: list
    penalties: list


def importances(code, factors, groups=None, seed=0):
    """Fits each factor by an L1-penalised linear model of the code.

    Both are centred and scaled to a variance of one; a factor of several
    classes is their indicators, scaled to one in sum. The importance of a
    dimension is the length of its vector of coefficients, which is what the
    (multi-task) Lasso penalises. The strength is the largest whose
    cross-validated error is within two standard errors of the smallest; if
    ignoring the code is, too, all importances of the factor are zero.

    Arguments
    ---------
    code : numpy.ndarray
        (examples, dimensions), of the training part.
    factors : dict of str to array
        Values of each factor, (examples,).
    seed : int
        Of the drawing of at most `EXAMPLES` examples, which are dealt into folds.

    Returns
    -------
    Fit

    Raises
    ------
    ImportError
        If scikit-learn is missing.
    ValueError
        If code or factors cannot be scored; the message says why.

    Example
    -------
    >>> rng = np.random.default_rng(0)
    >>> code = rng.normal(size=(500, 3))
    >>> factors = {"pitch": code[:, 1], "voiced": code[:, 2] > 0}
    >>> (importances(code, factors).importances > 0.2).astype(int)
    array([[0, 0],
           [1, 0],
           [0, 1]])
    """
    _check_code(code, factors)
    factors = {name: _read(name, values) for name, values in factors.items()}
    targets = [_target(factor) for factor in factors.values()]
    return _fit(_standardise(code)[0], targets, groups, seed)


def disentanglement(importances):
    """Whether each dimension serves one factor, D of DCI.

    D = sum_i rho_i (1 - H(R_i / sum_j R_ij) / log F), with rho_i the share of
    dimension i in all importances. Dead dimensions count for nothing; if all
    are dead, D is 0.

    Arguments
    ---------
    importances : numpy.ndarray
        R, (dimensions, factors), not negative.

    Returns
    -------
    float
        From 0 to 1.

    Example
    -------
    >>> disentanglement(np.array([[0, 2], [1, 0], [0, 0]]))
    1.0
    """
    total = importances.sum()
    if total == 0:
        return 0.0
    weight = importances.sum(1) / total
    spread = entropy(importances, 1) / np.log(importances.shape[1])
    return float(np.sum(weight * (1 - spread)))


def completeness(importances):
    """Whether each factor is served by one dimension, C of DCI.

    C_j = 1 - H(R_.j / sum_i R_ij) / log D. It grows with the number of dead
    dimensions: compare codes of one width, or `effective_dimensions`.

    Arguments
    ---------
    importances : numpy.ndarray
        R, (dimensions, factors), not negative.

    Returns
    -------
    numpy.ndarray
        (factors,), from 0 to 1; 0 for a factor that nothing serves.

    Example
    -------
    >>> completeness(np.array([[0, 1, 0], [2, 1, 0]]))
    array([1., 0., 0.])
    """
    spread = entropy(importances, 0) / np.log(len(importances))
    return np.where(importances.sum(0) > 0, 1 - spread, 0.0)


def effective_dimensions(importances):
    """Counts the dimensions that serve each factor: exp(H(R_.j / sum)).

    Arguments
    ---------
    importances : numpy.ndarray
        R, (dimensions, factors), not negative.

    Returns
    -------
    numpy.ndarray
        (factors,); 0 for a factor that nothing serves.

    Example
    -------
    >>> effective_dimensions(np.array([[0, 1, 0], [2, 1, 0]]))
    array([1., 2., 0.])
    """
    return np.where(
        importances.sum(0) > 0, np.exp(entropy(importances, 0)), 0.0
    )


def entropy(weights, axis):
    """Entropy of weights along an axis, scaled to a sum of one; in nats.

    Arguments
    ---------
    weights : numpy.ndarray
        Not negative.
    axis : int
        What is summed over.

    Returns
    -------
    numpy.ndarray
        0 where all weights are 0.

    Example
    -------
    >>> np.exp(entropy(np.array([[1, 1, 0], [0, 5, 0]]), axis=1))
    array([2., 1.])
    """
    total = weights.sum(axis, keepdims=True)
    share = weights / np.where(total > 0, total, 1)
    return -np.sum(share * np.log(np.where(share > 0, share, 1)), axis)


def dci(
    train_code,
    test_code,
    train_factors,
    test_factors,
    train_groups=None,
    test_groups=None,
    seed=0,
):
    """Disentanglement, completeness, informativeness of a code.

    Informativeness is the R^2 of the linear models of `importances` on the
    test part, against the training part's mean: 1 for perfect predictions, 0
    for none, negative for worse.

    Arguments
    ---------
    train_code, test_code : numpy.ndarray
        (examples, dimensions).
    train_factors, test_factors : dict of str to array
        Two factors or more.
    train_groups : array, optional
        See `importances`.
    test_groups : array, optional
        Utterance of each test example, which the interval resamples; every
        example is its own by default.
    seed : int
        See `importances`; also of the bootstrap.

    Returns
    -------
    dict
        `disentanglement`, mean `completeness` and `informativeness` with its
        `interval`; `factors`: of each, `completeness`, `dimensions` (effective
        number), `informativeness`, `interval`, `penalty`.

    Raises
    ------
    ImportError, ValueError
        See `importances`.

    Example
    -------
    >>> code = np.random.default_rng(0).normal(size=(800, 3))
    >>> factors = {"pitch": code[:, 1], "energy": code[:, 2]}
    >>> scores = dci(code, code, factors, factors)
    >>> round(scores["disentanglement"], 3), scores["completeness"]
    (1.0, 1.0)
    """
    train, test = _read_parts(
        train_code, test_code, train_factors, test_factors
    )
    code, held_out = _standardise(train_code, test_code)
    known = [_target(factor) for factor in train.values()]
    fit = _fit(code, known, train_groups, seed)
    targets = [_target(train[name], test[name]) for name in train]
    errors = [
        np.square(target - held_out @ coefficients).sum(1)
        for target, coefficients in zip(targets, fit.coefficients, strict=True)
    ]
    totals = [np.square(target).sum(1) for target in targets]
    value, low, high = _explained(
        np.stack(errors, 1), np.stack(totals, 1), test_groups, seed
    )
    complete = completeness(fit.importances)
    dimensions = effective_dimensions(fit.importances)
    return {
        "disentanglement": disentanglement(fit.importances),
        "completeness": float(complete.mean()),
        "informativeness": float(value[-1]),
        "interval": [float(low[-1]), float(high[-1])],
        "factors": {
            name: {
                "completeness": float(complete[i]),
                "dimensions": float(dimensions[i]),
                "informativeness": float(value[i]),
                "interval": [float(low[i]), float(high[i])],
                "penalty": fit.penalties[i],
            }
            for i, name in enumerate(train)
        },
    }


def mutual_information(code, labels):
    """Mutual information of each dimension with a factor, in nats.

    I = H(dimension) + H(factor) - H(both), from counts: few examples feign a
    positive value where there is none.

    Arguments
    ---------
    code : numpy.ndarray
        (examples, dimensions), classes 0, 1, ...
    labels : numpy.ndarray
        (examples,), classes 0, 1, ...

    Returns
    -------
    numpy.ndarray
        (dimensions,).

    Example
    -------
    >>> code = np.array([[0, 0], [0, 1], [1, 0], [1, 1]])
    >>> np.exp(mutual_information(code, code[:, 0]))
    array([2., 1.])
    """
    dimensions = code.shape[1]
    bins, classes = 1 + code.max(), 1 + labels.max()
    cell = (np.arange(dimensions) * bins + code) * classes + labels[:, None]
    counts = np.bincount(cell.ravel(), minlength=dimensions * bins * classes)
    counts = counts.reshape(dimensions, bins, classes)
    both = entropy(counts.reshape(dimensions, -1), 1)
    return entropy(counts.sum(2), 1) + entropy(counts.sum(1), 1) - both


def mig(code, factors, seed=0):
    """Mutual information gap: how alone one dimension tells of a factor.

    I_1 - I_2, the two largest of the dimensions' (I - C) / (H - C): I is the
    mutual information with the factor, H the factor's entropy, and C what I is
    by chance, its mean over `SHUFFLES` shuffled factors. Noise gets about 0,
    with few examples too. Dimensions and continuous factors are cut into
    `BINS` equally filled bins.

    Arguments
    ---------
    code : numpy.ndarray
        (examples, dimensions); nothing is learned, so of one part.
    factors : dict of str to array
        Values of each factor, (examples,).
    seed : int
        Of the shuffling.

    Returns
    -------
    dict
        Mean `mig`; `factors`: of each, `mig`, `mig_maximum` (log `BINS` / H,
        where there are more classes than bins; else 1) and `dimension`, the
        one that tells most.

    Raises
    ------
    ValueError
        See `importances`.

    Example
    -------
    >>> code = np.random.default_rng(0).normal(size=(1000, 3))
    >>> factors = {"pitch": code[:, 1], "energy": code[:, 2]}
    >>> round(mig(code, factors)["mig"], 2)
    1.0
    """
    _check_code(code, factors)
    code, scores = _quantile_bins(code), {}
    rng = np.random.default_rng(seed)
    for name, values in factors.items():
        factor = _read(name, values)
        labels = factor.numbers
        if factor.classes is None:
            labels = _quantile_bins(labels[:, None])[:, 0]
        total = entropy(np.bincount(labels), 0)
        told = mutual_information(code, labels)
        chance = np.mean(
            [
                mutual_information(code, rng.permutation(labels))
                for _ in range(SHUFFLES)
            ],
            axis=0,
        )
        told = (told - chance) / np.maximum(total - chance, 1e-9)
        second, first = np.sort(told)[-2:]
        scores[name] = {
            "mig": float(first - second),
            "mig_maximum": float(min(1.0, np.log(BINS) / total)),
            "dimension": int(told.argmax()),
        }
    return {"mig": _mean(scores, "mig"), "factors": scores}


def sap(train_code, test_code, train_factors, test_factors):
    """Separated attribute predictability: the best dimension's lead.

    Difference of the two best scores on the test part of predicting a factor
    from one dimension. Classes: balanced accuracy of the nearest class mean,
    which also finds a class between two others; quantities: R^2 of a line.

    Arguments
    ---------
    train_code, test_code : numpy.ndarray
        (examples, dimensions).
    train_factors, test_factors : dict of str to array
        Values of each factor, (examples,).

    Returns
    -------
    dict
        Mean `sap` and `sap_share`; `factors`: of each, `sap`, `sap_maximum`
        (1 - 1 / classes, or 1) and `sap_share`, their quotient.

    Raises
    ------
    ValueError
        See `importances`.

    Example
    -------
    >>> code = np.random.default_rng(0).normal(size=(800, 3))
    >>> factors = {"pitch": code[:, 1], "energy": code[:, 2]}
    >>> round(sap(code, code, factors, factors)["sap"], 2)
    1.0
    """
    train, test = _read_parts(
        train_code, test_code, train_factors, test_factors
    )
    code, held_out = _standardise(train_code, test_code)
    scores = {}
    for name, factor in train.items():
        labels = test[name].numbers
        if factor.classes is None:
            target, goal = _target(factor), _target(factor, test[name])
            found = _explained_by_each(code, held_out, target, goal)
            maximum = 1.0
        else:
            found = _balanced_accuracy(code, held_out, factor.numbers, labels)
            maximum = 1 - 1 / len(np.unique(labels))
        second, first = np.sort(found)[-2:]
        scores[name] = {
            "sap": float(first - second),
            "sap_maximum": maximum,
            "sap_share": float((first - second) / maximum),
        }
    means = {key: _mean(scores, key) for key in ("sap", "sap_share")}
    return {**means, "factors": scores}


def controls(train_code, test_code, seed=0):
    """Codes of equal width and the same content, without a learned layout.

    Arguments
    ---------
    train_code, test_code : numpy.ndarray
        (examples, dimensions); standardised first.
    seed : int
        Of the rotation.

    Returns
    -------
    dict of str to (numpy.ndarray, numpy.ndarray)
        Train and test code of `pca` (the principal components, zeros where
        there are fewer than dimensions) and of a random `rotation`.

    Raises
    ------
    ImportError
        If scikit-learn is missing.

    Example
    -------
    >>> code = np.random.default_rng(0).normal(size=(50, 4))
    >>> {name: z.shape for name, (z, _) in controls(code, code).items()}
    {'pca': (50, 4), 'rotation': (50, 4)}
    """
    code, held_out = _standardise(train_code, test_code)
    width = code.shape[1]
    pca = _sklearn("decomposition").PCA(svd_solver="full").fit(code)
    variance = pca.explained_variance_
    rank = np.sum(variance > CONSTANT**2 * variance.max())
    normal = np.random.default_rng(seed).normal(size=(width, width))
    rotation, r = np.linalg.qr(normal)
    rotation *= np.sign(np.diag(r))  # else not uniform

    def components(z):
        z = pca.transform(z)[:, :rank]
        return np.pad(z, ((0, 0), (0, width - rank)))

    return {
        "pca": (components(code), components(held_out)),
        "rotation": (code @ rotation, held_out @ rotation),
    }


def factor_scores(
    train_code,
    test_code,
    train_factors,
    test_factors,
    train_groups=None,
    test_groups=None,
    seed=0,
):
    """Scores a code by `dci`, `mig` (of the test part) and `sap`.

    Arguments
    ---------
    train_code, test_code, train_factors, test_factors :
        See `dci`.
    train_groups, test_groups, seed :
        See `dci`.

    Returns
    -------
    dict
        What the three return, `factors` joined; also `width`, `dead`
        (dimensions that are constant in the training part) and `examples` of
        both parts. Numbers of Python, for json.

    Raises
    ------
    ImportError, ValueError
        See `importances`.

    Example
    -------
    >>> code = np.random.default_rng(0).normal(size=(800, 3))
    >>> factors = {"pitch": code[:, 1], "voiced": code[:, 2] > 0}
    >>> scores = factor_scores(code, code, factors, factors)
    >>> scores["factors"]["voiced"]["dimension"]
    2
    """
    parts = train_code, test_code, train_factors, test_factors
    scores = [
        dci(*parts, train_groups, test_groups, seed),
        mig(test_code, test_factors, seed),
        sap(*parts),
    ]
    joined = {key: value for part in scores for key, value in part.items()}
    joined["factors"] = {
        name: {
            k: v for part in scores for k, v in part["factors"][name].items()
        }
        for name in train_factors
    }
    return {
        **joined,
        "width": train_code.shape[1],
        "dead": int(np.sum(_deviation(train_code) == 0)),
        "examples": {"train": len(train_code), "test": len(test_code)},
    }


class _Factor(NamedTuple):
    """Values as numbers; of classes, their index into `classes`."""

    numbers: np.ndarray
    classes: np.ndarray | None


def _sklearn(module):
    try:
        import sklearn.decomposition
        import sklearn.linear_model
    except ImportError as error:
        raise ImportError(
            "Scores of factors need scikit-learn: "
            "pip install speechbrain-sim[analysis]"
        ) from error
    return getattr(sklearn, module)


def _check_code(code, factors):
    """Raises a ValueError if the code does not fit its factors."""
    if code.ndim != 2 or code.shape[1] < 2:
        raise Unmeasurable(
            f"A code has shape {code.shape}; expected (examples, dimensions) "
            f"with two dimensions or more."
        )
    if not np.isfinite(code).all():
        raise Unmeasurable(
            "A code holds NaN or infinity; leave these rows out."
        )
    for name, values in factors.items():
        if len(values) != len(code):
            raise Unmeasurable(
                f"Factor '{name}' has {len(values)} values for {len(code)} "
                f"examples of the code; it needs one for each."
            )


def _read(name, values, classes=None):
    """Reads a factor; `classes` are those that the training part has."""
    values = np.asarray(values)
    if values.dtype.kind == "f":
        numbers = values.astype(float)
        if not np.isfinite(numbers).all():
            raise Unmeasurable(
                f"Factor '{name}' holds NaN or infinity; leave these examples "
                f"out."
            )
        distinct, classes = np.unique(numbers), None
    else:
        distinct = np.unique(values)
        classes = distinct if classes is None else classes
        unseen = sorted(set(distinct.tolist()) - set(classes.tolist()))
        if unseen:
            raise Unmeasurable(
                f"Factor '{name}' has the value {unseen[0]!r} in the test part "
                f"only; drop its examples there, or add some to train."
            )
        if len(values) < 2 * len(distinct):
            raise Unmeasurable(
                f"Factor '{name}' has {len(distinct)} classes in "
                f"{len(values)} examples, fewer than two for each; leave the "
                f"factor out, or add examples."
            )
        numbers = np.searchsorted(classes, values)
    if len(distinct) == 1:
        raise Unmeasurable(
            f"Factor '{name}' has a single value, {distinct[0].item()!r}; "
            f"leave the factor out, or add examples of another value."
        )
    return _Factor(numbers, classes)


def _read_parts(train_code, test_code, train_factors, test_factors):
    """Reads the factors of both parts, and checks that all fits."""
    _check_code(train_code, train_factors)
    _check_code(test_code, test_factors)
    if train_code.shape[1] != test_code.shape[1]:
        raise ValueError(
            f"The code has {train_code.shape[1]} dimensions in the training "
            f"part and {test_code.shape[1]} in the test part."
        )
    if set(train_factors) != set(test_factors):
        raise ValueError(
            f"The factors are {sorted(train_factors)} in the training part and "
            f"{sorted(test_factors)} in the test part."
        )
    train, test = {}, {}
    for name, values in train_factors.items():
        train[name] = _read(name, values)
        test[name] = _read(name, test_factors[name], train[name].classes)
        if (train[name].classes is None) != (test[name].classes is None):
            raise ValueError(
                f"Factor '{name}' holds floats in one part only; make it "
                f"floats, or classes, in both."
            )
    return train, test


def _deviation(code):
    """Standard deviation of each dimension; 0 where it is but rounding."""
    code = np.asarray(code, float)
    deviation = code.std(0)
    return np.where(deviation > CONSTANT * abs(code).max(0), deviation, 0.0)


def _standardise(train_code, *others):
    """Codes in the training part's units; zeros for what is constant there."""
    mean, deviation = (
        np.mean(train_code, 0, dtype=float),
        _deviation(train_code),
    )
    scale = np.where(
        deviation > 0, 1 / np.where(deviation > 0, deviation, 1), 0
    )
    return [(code - mean) * scale for code in (train_code, *others)]


def _target(factor, part=None):
    """What is regressed on, (examples, targets) of variance 1 in train."""
    known = _columns(factor)
    wanted = known if part is None else _columns(part)
    return (wanted - known.mean(0)) / np.sqrt(known.var(0).sum())


def _columns(factor):
    if factor.classes is None:
        return factor.numbers[:, None]
    return np.eye(len(factor.classes))[factor.numbers]


def _fit(code, targets, groups, seed):
    """Fits standardised targets; see `importances`."""
    if len(targets) < 2:
        raise Unmeasurable(
            f"{len(targets)} factor is too few to tell factors apart; give 2."
        )
    random = np.random.default_rng(seed)
    groups = np.arange(len(code)) if groups is None else np.asarray(groups)
    chosen = random.permutation(len(code))[:EXAMPLES]
    code, targets = code[chosen], [target[chosen] for target in targets]
    found, group = np.unique(groups[chosen], return_inverse=True)
    fold = (random.permutation(len(found)) % FOLDS)[group]
    errors = [np.square(target).sum(1) for target in targets]
    errors = [np.tile(e, (1 + len(PENALTIES), 1)) for e in errors]
    counts = [len(PENALTIES)] * len(targets)
    for out in (fold == k for k in range(FOLDS)):
        rest = [target[~out] for target in targets]
        for e, target, path in zip(
            errors, targets, _paths(code[~out], rest, counts), strict=True
        ):
            for row, coefficients in enumerate(path, 1):
                missed = target[out] - code[out] @ coefficients
                e[row, out] = np.square(missed).sum(1)
    counts = [_strongest(e, group) for e in errors]
    paths = _paths(code, targets, counts)
    coefficients = [
        path[-1] if path else np.zeros((code.shape[1], target.shape[1]))
        for path, target in zip(paths, targets, strict=True)
    ]
    return Fit(
        np.stack([np.linalg.norm(c, axis=1) for c in coefficients], 1),
        coefficients,
        [PENALTIES[count - 1] if count else None for count in counts],
    )


def _strongest(errors, group):
    """First row of (penalties, examples) within two errors of the best.

    The error is that of the sum over independent groups.
    """
    worse = errors - errors[errors.mean(1).argmin()]
    centred = worse - worse.mean(1, keepdims=True)
    sums = np.stack([np.bincount(group, weights=row) for row in centred])
    error = np.sqrt(np.square(sums).sum(1)) / errors.shape[1]
    return int((worse.mean(1) <= 2 * error).argmax())


def _paths(code, targets, counts):
    """Lasso coefficients of each target, for its `count` first penalties.

    An orthogonal transform shortens the data to as many rows as dimensions,
    and changes no squared error but by a constant.
    """
    lasso_path = _sklearn("linear_model").lasso_path
    width = code.shape[1]
    short = np.linalg.qr(np.hstack([code, *targets]), mode="r")[:width]
    short *= np.sqrt(len(short) / len(code))
    ends = width + np.cumsum([target.shape[1] for target in targets])[:-1]
    code, *targets = np.split(short, [width, *ends], axis=1)
    code, paths = np.asfortranarray(code), []
    for target, count in zip(targets, counts, strict=True):
        alphas, path = PENALTIES[:count], np.empty((0, 0, 0))
        if count:
            _, path, _ = lasso_path(code, target, alphas=alphas, tol=1e-3)
        paths.append(list(path.transpose(2, 1, 0)))
    return paths


def _explained(errors, totals, groups, seed, resamples=1000):
    """R^2 of each factor and their mean, with intervals over groups."""
    groups = np.arange(len(errors)) if groups is None else np.asarray(groups)
    found, group = np.unique(groups, return_inverse=True)
    if len(found) < 2:
        raise Unmeasurable(
            f"{len(found)} utterance is too few for an interval; it needs 2."
        )

    def explained(weights):
        each = 1 - (weights @ errors) / (weights @ totals)
        return np.concatenate([each, each.mean(-1, keepdims=True)], -1)

    often = np.random.default_rng(seed).multinomial(
        len(found), np.full(len(found), 1 / len(found)), resamples
    )
    resampled = explained(often[:, group].astype(float))
    low, high = np.percentile(resampled, [2.5, 97.5], axis=0)
    return explained(np.ones(len(errors))), low, high


def _quantile_bins(code):
    """Cuts each column into bins of equally many examples."""
    edges = np.quantile(code, np.arange(1, BINS) / BINS, axis=0)
    return np.sum([code >= edge for edge in edges], axis=0)


def _balanced_accuracy(code, held_out, labels, held_out_labels):
    """Nearest class mean in each dimension alone, (dimensions,)."""
    means = np.stack([code[labels == k].mean(0) for k in np.unique(labels)])
    order = means.argsort(0)
    means = np.take_along_axis(means, order, 0)
    middles = (means[1:] + means[:-1]) / 2
    right = np.stack(
        [
            order[np.searchsorted(middles[:, d], held_out[:, d]), d]
            == held_out_labels
            for d in range(code.shape[1])
        ],
        axis=1,
    )
    classes = np.unique(held_out_labels)
    return np.mean([right[held_out_labels == k].mean(0) for k in classes], 0)


def _explained_by_each(code, held_out, target, goal):
    """R^2 of a line in each dimension alone, (dimensions,)."""
    slope = (code * target).mean(0)
    missed = np.square(goal - held_out * slope).sum(0)
    return 1 - missed / np.square(goal).sum()


def _mean(scores, key):
    return float(np.mean([score[key] for score in scores.values()]))
