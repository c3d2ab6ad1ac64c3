"""Factors, codes in units of their variance, and the Lasso between them."""

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
    groups : array, optional
        Utterance of each example, which stays in one fold; every example is its
        own by default.
    seed : int
        Of the draw of at most `EXAMPLES` examples, and of the folds.

    Returns
    -------
    Fit

    Raises
    ------
    ImportError
        If scikit-learn is missing.
    Unmeasurable
        If code or factors cannot be scored; the message says why.

    Example
    -------
    >>> code = np.random.default_rng(0).normal(size=(500, 3))
    >>> factors = {"pitch": code[:, 1], "voiced": code[:, 2] > 0}
    >>> (importances(code, factors).importances > 0.2).astype(int)
    array([[0, 0],
           [1, 0],
           [0, 1]])
    """
    check_code(code, factors)
    targets = [
        regression_target(read_factor(*factor)) for factor in factors.items()
    ]
    return fit_targets(standardise(code)[0], targets, groups, seed)


class Factor(NamedTuple):
    """Values as numbers; of classes, their index into `classes`."""

    numbers: np.ndarray
    classes: np.ndarray | None


def scikit_learn():
    """Returns scikit-learn's PCA and lasso_path; names the extra without it."""
    try:
        from sklearn.decomposition import PCA
        from sklearn.linear_model import lasso_path
    except ImportError as error:
        raise ImportError(
            "Scores of factors need scikit-learn: "
            "pip install speechbrain-sim[analysis]"
        ) from error
    return PCA, lasso_path


def _require(condition, message):
    if not condition:
        raise Unmeasurable(message)


def check_code(code, factors):
    """Raises an Unmeasurable if the code does not fit its factors."""
    shape = f"A code of shape {code.shape} has less than two dimensions."
    _require(code.ndim == 2 and code.shape[1] > 1, shape)
    _require(np.isfinite(code).all(), "A code holds NaN or infinity.")
    for name, values in factors.items():
        lengths = f"{len(values)} values for {len(code)} examples of the code"
        _require(len(values) == len(code), f"Factor '{name}' has {lengths}.")


def read_factor(name, values, classes=None):
    """Reads a factor; `classes` are those that the training part has."""
    values, factor = np.asarray(values), f"Factor '{name}'"
    if values.dtype.kind == "f":
        finite = np.isfinite(values).all()
        _require(finite, f"{factor} holds NaN or infinity.")
    distinct = np.unique(values)
    single = (
        f"{factor} has a single value, {distinct[0].item()!r}: leave it out."
    )
    _require(len(distinct) > 1, single)
    if values.dtype.kind == "f":
        return Factor(values.astype(float), None)
    classes = distinct if classes is None else classes
    for unseen in sorted(set(distinct.tolist()) - set(classes.tolist())):
        _require(
            False, f"{factor} has the value {unseen!r} in the test part only."
        )
    _require(
        len(values) >= 2 * len(distinct),
        f"{factor} has {len(distinct)} classes in {len(values)} examples, fewer "
        f"than two for each: leave it out, or add examples.",
    )
    return Factor(np.searchsorted(classes, values), classes)


def read_parts(train_code, test_code, train_factors, test_factors):
    """Reads the factors of both parts, and checks that all fits."""
    check_code(train_code, train_factors)
    check_code(test_code, test_factors)
    shared = {
        "code has": [
            f"{x.shape[1]} dimensions" for x in (train_code, test_code)
        ],
        "factors are": [sorted(x) for x in (train_factors, test_factors)],
    }
    for what, (one, other) in shared.items():
        if one != other:
            raise ValueError(
                f"The {what} {one} in the training part and {other} in the "
                f"test part."
            )
    train, test = {}, {}
    for name, values in train_factors.items():
        train[name] = read_factor(name, values)
        test[name] = read_factor(name, test_factors[name], train[name].classes)
        if (train[name].classes is None) != (test[name].classes is None):
            raise ValueError(f"Factor '{name}' holds floats in one part only.")
    return train, test


def deviation_of(code):
    """Standard deviation of each dimension; 0 where it is but rounding."""
    code = np.asarray(code, float)
    deviation = code.std(0)
    return np.where(deviation > CONSTANT * abs(code).max(0), deviation, 0.0)


def standardise(train_code, *others):
    """Codes in the training part's units; zeros for what is constant there."""
    mean, deviation = (
        np.mean(train_code, 0, dtype=float),
        deviation_of(train_code),
    )
    scale = (deviation > 0) / np.where(deviation > 0, deviation, 1)
    return [(code - mean) * scale for code in (train_code, *others)]


def regression_target(factor, part=None):
    """What is regressed on, (examples, targets) of variance 1 in train."""
    known = _columns(factor)
    wanted = known if part is None else _columns(part)
    return (wanted - known.mean(0)) / np.sqrt(known.var(0).sum())


def _columns(factor):
    if factor.classes is None:
        return factor.numbers[:, None].astype(float)
    return np.eye(len(factor.classes))[factor.numbers]


def fit_targets(code, targets, groups, seed):
    """Fits standardised targets; see `importances`."""
    _require(len(targets) > 1, f"{len(targets)} factor is too few; give 2.")
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
        paths = _paths(code[~out], rest, counts)
        for e, target, path in zip(errors, targets, paths, strict=True):
            for row, coefficients in enumerate(path, 1):
                missed = target[out] - code[out] @ coefficients
                e[row, out] = np.square(missed).sum(1)
    counts = [_strongest(e, group) for e in errors]
    coefficients = [
        path[-1] if path else np.zeros((code.shape[1], target.shape[1]))
        for path, target in zip(
            _paths(code, targets, counts), targets, strict=True
        )
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
    width, (_, lasso_path) = code.shape[1], scikit_learn()
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
