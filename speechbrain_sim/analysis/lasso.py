"""Factors, codes in units of their variance, and the Lasso between them."""

from typing import NamedTuple

import numpy as np

from speechbrain_sim.analysis.intervals import Unmeasurable
from speechbrain_sim.extras import import_extra

#: strengths of the Lasso, strongest first, in units of a correlation; that of
#: noise is about 1 / sqrt(examples), 0.014 for 5000
PENALTIES = (0.3, 0.1, 0.03, 0.01)
#: training examples that the Lasso reads at most
EXAMPLES = 5000
#: parts of the training examples in the choice of the strength
FOLDS = 3
#: smaller deviations, relative to the largest value, are float32's rounding
CONSTANT = 1e-6
#: duality gap of the Lasso, relative to the targets' squares
TOLERANCE = 1e-3


class Part(NamedTuple):
    """Examples of the training or of the test part.

    Arguments
    ---------
    code : numpy.ndarray
        (examples, dimensions).
    factors : dict of str to array
        Values of each factor, (examples,): strings or integers name classes,
        floats are quantities.
    groups : array, optional
        Utterance of each example; by default every example is its own.
    """

    code: np.ndarray
    factors: dict
    groups: np.ndarray | None = None

    def group_indices(self):
        """Returns the index of each example's group, (examples,)."""
        if self.groups is None:
            return np.arange(len(self.code))
        return np.unique(self.groups, return_inverse=True)[1]


class Factor(NamedTuple):
    """Values in both parts; of classes, their indices, and their number."""

    train: np.ndarray
    test: np.ndarray
    classes: int | None

    def targets(self):
        """Returns what is regressed on in both parts, (examples, targets).

        Quantities, or the classes' indicators, of variance 1 in training.
        """
        parts = self.train[:, None], self.test[:, None]
        if self.classes is not None:
            parts = [x == np.arange(self.classes) for x in parts]
        mean, variance = parts[0].mean(0), parts[0].var(0).sum()
        return [(x - mean) / np.sqrt(variance) for x in parts]


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


def importances(part, seed=0):
    """Fits each factor by an L1-penalised linear model of the code.

    Both are centred and scaled to a variance of one; a factor of several
    classes is their indicators, scaled to one in sum. The importance of a
    dimension is the length of its vector of coefficients, which is what the
    (multi-task) Lasso penalises. The strength is the largest whose
    cross-validated error is within two standard errors of the smallest; if
    ignoring the code is, too, all importances of the factor are zero.

    Arguments
    ---------
    part : Part
        The training part; a group stays in one fold.
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
    >>> part = Part(code, {"pitch": code[:, 1], "voiced": code[:, 2] > 0})
    >>> (importances(part).importances > 0.2).astype(int)
    array([[0, 0],
           [1, 0],
           [0, 1]])
    """
    targets = [f.targets()[0] for f in read_factors(part).values()]
    (code,) = standardise(part.code)
    return fit_targets(code, targets, part.group_indices(), seed)


def read_factors(train, test=None):
    """Checks that all of a code can be scored; returns factor -> `Factor`.

    Without a test part, that of the factors is the training part.
    """
    parts = train, train if test is None else test
    for code, factors, _ in parts:
        shape = f"A code of shape {code.shape} has less than two dimensions."
        _require(code.ndim == 2 and code.shape[1] > 1, shape)
        _require(np.isfinite(code).all(), "A code holds NaN or infinity.")
        for name, values in factors.items():
            lengths = f"{len(values)} values for {len(code)} examples."
            _require(len(values) == len(code), f"Factor '{name}' has {lengths}")
    widths = [f"{part.code.shape[1]} dimensions" for part in parts]
    names = [sorted(part.factors) for part in parts]
    for what, of in {"code has": widths, "factors are": names}.items():
        if of[0] != of[1]:
            where = f"{of[0]} in the training part, {of[1]} in the test part"
            raise ValueError(f"The {what} {where}.")
    return {
        name: _read_factor(name, *(np.asarray(p.factors[name]) for p in parts))
        for name in train.factors
    }


def _read_factor(name, train, test):
    """Reads a factor; its classes are those that the training part has."""
    factor, floats = (
        f"Factor '{name}'",
        [x.dtype.kind == "f" for x in (train, test)],
    )
    for values, quantity in zip((train, test), floats, strict=True):
        finite = not quantity or np.isfinite(values).all()
        _require(finite, f"{factor} holds NaN or infinity.")
        distinct = np.unique(values)
        single = f"a single value, {distinct[0].item()!r}: leave it out."
        _require(len(distinct) > 1, f"{factor} has {single}")
        classes = f"{len(distinct)} classes in {len(values)} examples"
        several = quantity or len(values) >= 2 * len(distinct)
        few = f"{factor} has {classes}, fewer than two for each: leave it out."
        _require(several, few)
    if floats[0] != floats[1]:
        raise ValueError(f"{factor} holds floats in one part only.")
    if floats[0]:
        return Factor(train.astype(float), test.astype(float), None)
    for unseen in test[~np.isin(test, train)].tolist():
        only = f"has the value {unseen!r} in the test part only."
        raise Unmeasurable(f"{factor} {only}")
    classes = np.unique(train)
    indices = (np.searchsorted(classes, values) for values in (train, test))
    return Factor(*indices, len(classes))


def _require(condition, message):
    if not condition:
        raise Unmeasurable(message)


def deviation_of(code):
    """Standard deviation of each dimension; 0 where it is but rounding."""
    code = np.asarray(code, float)
    deviation = code.std(0)
    return np.where(deviation > CONSTANT * abs(code).max(0), deviation, 0.0)


def standardise(train_code, *others):
    """Codes in the training part's units; zeros for what is constant there."""
    mean, deviation = np.mean(train_code, 0, float), deviation_of(train_code)
    scale = (deviation > 0) / np.where(deviation > 0, deviation, 1)
    return [(code - mean) * scale for code in (train_code, *others)]


def fit_targets(code, targets, groups, seed, tolerance=TOLERANCE):
    """Fits standardised targets; see `importances`, `lasso_path` for the last."""
    _require(len(targets) > 1, f"{len(targets)} factor is too few; give 2.")
    random = np.random.default_rng(seed)
    chosen = random.permutation(len(code))[:EXAMPLES]
    code, targets = code[chosen], [target[chosen] for target in targets]
    found, group = np.unique(groups[chosen], return_inverse=True)
    fold = (random.permutation(len(found)) % FOLDS)[group]
    # (factors, none and penalties, examples)
    errors = np.empty((len(targets), 1 + len(PENALTIES), len(code)))
    every = [len(PENALTIES)] * len(targets)
    for out in (fold == k for k in range(FOLDS)):
        known = [target[~out] for target in targets]
        paths = _paths(code[~out], known, every, tolerance)
        for error, target, path in zip(errors, targets, paths, strict=True):
            error[:, out] = np.square(target[out] - code[out] @ path).sum(2)
    counts = [_strongest(error, group) for error in errors]
    paths = _paths(code, targets, counts, tolerance)
    coefficients = [x[count] for x, count in zip(paths, counts, strict=True)]
    sizes = np.stack([np.linalg.norm(c, axis=1) for c in coefficients], 1)
    return Fit(sizes, coefficients, [(None, *PENALTIES)[n] for n in counts])


def _strongest(errors, group):
    """First row of (penalties, examples) within two errors of the best.

    The error is that of the sum over independent groups.
    """
    worse = errors - errors[errors.mean(1).argmin()]
    centred = worse - worse.mean(1, keepdims=True)
    sums = np.stack([np.bincount(group, weights=row) for row in centred])
    error = np.sqrt(np.square(sums).sum(1)) / errors.shape[1]
    return int((worse.mean(1) <= 2 * error).argmax())


def _paths(code, targets, counts, tolerance):
    """Coefficients without, and with the first `count` penalties, of targets.

    (1 + penalties, dimensions, targets) each. An orthogonal transform shortens
    the data to as many rows as dimensions, and changes no squared error but by
    a constant.
    """
    lasso_path = import_extra("sklearn.linear_model", "analysis").lasso_path
    width = code.shape[1]
    short = np.linalg.qr(np.hstack([code, *targets]), mode="r")[:width]
    short *= np.sqrt(len(short) / len(code))
    ends = np.cumsum([width, *(target.shape[1] for target in targets)])[:-1]
    code, *targets = np.split(short, ends, axis=1)
    code, paths = np.asfortranarray(code), []
    for target, count in zip(targets, counts, strict=True):
        alphas = PENALTIES[: max(count, 1)]
        _, path, _ = lasso_path(code, target, alphas=alphas, tol=tolerance)
        path = np.concatenate([0 * path[..., :1], path], -1)
        paths.append(path.transpose(2, 1, 0))
    return paths
