"""How a code lays out known factors: DCI, MIG and SAP, beside controls.

Factors should be independent: no code separates vowel and syllable;
`dependence` states whether they are.

References: Eastwood, Williams: A framework for the quantitative evaluation of
disentangled representations (2018); Chen et al.: Isolating sources of
disentanglement (2018), section 4.1, https://arxiv.org/abs/1802.04942; Kumar et
al.: Variational inference of disentangled latent concepts (2018), section 3,
https://arxiv.org/abs/1711.00848
"""

import numpy as np

from speechbrain_sim.analysis import lasso
from speechbrain_sim.analysis.intervals import middle, resample_ratio

#: equally filled bins of a dimension, and of a continuous factor, for MIG; what
#: has no more values than that has a bin for each
BINS = 20
#: counts up whenever these scores of the same code change: older ones are stale
VERSION = 2
#: shuffled factors, for the mutual information that chance gives
SHUFFLES = 5


def disentanglement(importances):
    """Whether each dimension serves one factor, D of DCI.

    D = sum_i rho_i (1 - H(R_i / sum_j R_ij) / log F), with rho_i the share of
    dimension i in all importances R, (dimensions, factors); 0 if all are dead.

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
    """Whether each factor is served by one dimension, C of DCI, (factors,).

    C_j = 1 - H(R_.j / sum_i R_ij) / log D, 0 for a factor that nothing serves.
    It grows with the number of dead dimensions: compare codes of one width, or
    `effective_dimensions`.

    Example
    -------
    >>> completeness(np.array([[0, 1, 0], [2, 1, 0]]))
    array([1., 0., 0.])
    """
    spread = entropy(importances, 0) / np.log(len(importances))
    return np.where(importances.sum(0) > 0, 1 - spread, 0.0)


def effective_dimensions(importances):
    """Counts the dimensions that serve each factor: exp(H(R_.j / sum)).

    Example
    -------
    >>> effective_dimensions(np.array([[0, 1, 0], [2, 1, 0]]))
    array([1., 2., 0.])
    """
    number = np.exp(entropy(importances, 0))
    return np.where(importances.sum(0) > 0, number, 0.0)


def entropy(weights, axis):
    """Entropy in nats of weights along an axis, scaled to a sum of one.

    0 where all weights are 0.

    Example
    -------
    >>> np.exp(entropy(np.array([[1, 1, 0], [0, 5, 0]]), axis=1))
    array([2., 1.])
    """
    total = weights.sum(axis, keepdims=True)
    share = weights / np.where(total > 0, total, 1)
    return -np.sum(share * np.log(np.where(share > 0, share, 1)), axis)


def dci(train, test, seed=0, tolerance=lasso.TOLERANCE):
    """Disentanglement, completeness, informativeness of a code.

    Informativeness is the R^2 of the linear models of `importances` on the
    test part, against the training part's mean: 1 for perfect predictions, 0
    for none, negative for worse.

    Arguments
    ---------
    train, test : Part
        With two factors or more; the interval resamples the groups of `test`.
    seed, tolerance : int, float
        See `importances`; `tol` of scikit-learn's `lasso_path`.

    Returns
    -------
    dict
        `disentanglement`, mean `completeness` and `informativeness` with its
        `interval`; `factors`: of each, `completeness`, `dimensions` (effective
        number), `informativeness`, `interval`, `penalty`.
    """
    factors = lasso.read_factors(train, test)
    code, held_out = lasso.standardise(train.code, test.code)
    known, wanted = zip(*(f.targets() for f in factors.values()), strict=True)
    how = train.group_indices(), seed, tolerance
    fit = lasso.fit_targets(code, known, *how)
    pairs = zip(wanted, fit.coefficients, strict=True)
    missed = [target - held_out @ each for target, each in pairs]
    errors = np.stack([np.square(x).sum(1) for x in missed], 1)
    totals = np.stack([np.square(x).sum(1) for x in wanted], 1)
    groups = test.group_indices()
    draws = resample_ratio(errors, totals, groups, 1000, seed)
    explained = 1 - np.vstack(draws)
    explained = np.c_[explained, explained.mean(1)]  # the last: of all
    value = explained[0].tolist()
    interval = middle(explained[1:]).T.tolist()
    rows = {
        "completeness": completeness(fit.importances).tolist(),
        "dimensions": effective_dimensions(fit.importances).tolist(),
        "informativeness": value,
        "interval": interval,
        "penalty": fit.penalties,
    }
    return {
        "disentanglement": disentanglement(fit.importances),
        "completeness": float(np.mean(rows["completeness"])),
        "informativeness": value[-1],
        "interval": interval[-1],
        "factors": {
            name: {key: row[i] for key, row in rows.items()}
            for i, name in enumerate(factors)
        },
    }


def mutual_information(code, labels):
    """Mutual information of each dimension with a factor, in nats.

    I = H(dimension) + H(factor) - H(both), from counts: few examples feign a
    positive value where there is none. All dimensions at once. `code`, of
    (examples, dimensions), and `labels` are classes 0, 1, ...
    """
    shape = code.shape[1], 1 + code.max(), 1 + labels.max()
    cell = (np.arange(shape[0]) * shape[1] + code) * shape[2] + labels[:, None]
    counts = np.bincount(cell.ravel(), minlength=np.prod(shape)).reshape(shape)
    both = entropy(counts.reshape(shape[0], -1), 1)
    return entropy(counts.sum(2), 1) + entropy(counts.sum(1), 1) - both


def mig(part, seed=0):
    """Mutual information gap: how alone one dimension informs about a factor.

    I_1 - I_2, the two largest of the dimensions' (I - C) / (H - C): I is the
    mutual information with the factor, H the factor's entropy, and C what I is
    by chance, its mean over `SHUFFLES` shuffled factors; a factor of groups, the
    same in all examples of one, is shuffled among them. Dimensions and
    continuous factors are cut into `BINS` bins. Nothing is learned, so of one
    part.

    Returns
    -------
    dict
        Mean `mig`; `factors`: of each, `mig`, `mig_maximum` (log `BINS` / H,
        where there are more classes than bins; else 1) and `dimension`, the
        most informative one.
    """
    factors, code = lasso.read_factors(part), _bins(part.code)
    rng, scores = np.random.default_rng(seed), {}
    for name, labels in _class_indices(factors).items():
        gain = _share_known(code, labels, part.group_indices(), rng)
        total = entropy(np.bincount(labels), 0)
        scores[name] = {
            "mig": _lead(gain),
            "mig_maximum": float(min(1.0, np.log(BINS) / total)),
            "dimension": int(gain.argmax()),
        }
    return {"mig": _mean(scores, "mig"), "factors": scores}


def dependence(factors, seed=0):
    """How much of each factor every other one determines.

    (I - C) / (H - C) as for `mig`, with the other factors as the code: 0 for
    independent factors, 1 for one that the other determines, which need not
    hold the other way round. Scores of a code can be at their best only where
    factors are independent.

    Arguments
    ---------
    factors : dict of str to array
        See `Part`; of examples that are independent of each other.
    seed : int
        Of the shuffled factors.

    Returns
    -------
    dict
        Factor -> other factor -> share of the former's entropy.

    Example
    -------
    >>> syllable = np.array(["ba", "bi", "da", "di"] * 99)
    >>> known = {"syllable": syllable, "vowel": np.array(["a", "i"] * 198)}
    >>> shares = dependence(known)
    >>> [round(shares[n]["vowel"], 2) for n in known]
    [0.5, 1.0]
    """
    part = lasso.Part(np.zeros((len(next(iter(factors.values()))), 2)), factors)
    labels = _class_indices(lasso.read_factors(part))
    code, groups = np.stack([*labels.values()], 1), part.group_indices()
    known, rng = {}, np.random.default_rng(seed)
    for name, each in labels.items():
        shares = _share_known(code, each, groups, rng).tolist()
        known[name] = dict(zip(labels, shares, strict=True))
    return known


def _class_indices(factors):
    """Classes, or bins, of the test part of each `Factor`."""
    return {
        name: labels if classes else _bins(labels[:, None])[:, 0]
        for name, (_, labels, classes) in factors.items()
    }


def _share_known(code, labels, groups, rng):
    """(I - C) / (H - C) of each dimension, see `mig`."""
    values = labels[np.unique(groups, return_index=True)[1]]
    if not np.array_equal(values[groups], labels):
        values, groups = labels, np.arange(len(labels))
    shuffled = [rng.permutation(values)[groups] for _ in range(SHUFFLES)]
    chance = np.mean([mutual_information(code, x) for x in shuffled], 0)
    most = np.maximum(entropy(np.bincount(labels), 0) - chance, 1e-9)
    return (mutual_information(code, labels) - chance) / most


def sap(train, test):
    """Separated attribute predictability: the best dimension's lead.

    Difference of the two best scores on the test part of predicting a factor
    from one dimension. Classes: balanced accuracy of the nearest class mean,
    which also finds a class between two others; quantities: R^2 of a line, 0
    where the mean predicts better.

    Returns
    -------
    dict
        Mean `sap` and `sap_share`; `factors`: of each, `sap`, `sap_maximum`
        (1 - 1 / classes, or 1) and `sap_share`, their quotient.
    """
    factors, scores = lasso.read_factors(train, test), {}
    code, held_out = lasso.standardise(train.code, test.code)
    for name, factor in factors.items():
        if factor.classes is None:
            known, wanted = factor.targets()
            missed = wanted - held_out * (code * known).mean(0)
            each = 1 - np.square(missed).sum(0) / np.square(wanted).sum()
            each = np.maximum(each, 0)
            maximum = 1.0
        else:
            each = _balanced_accuracy(code, held_out, factor.train, factor.test)
            maximum = 1 - 1 / len(np.unique(factor.test))
        lead = _lead(each)
        scores[name] = {"sap": lead, "sap_maximum": maximum}
        scores[name]["sap_share"] = lead / maximum
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
    dict
        Train and test code of `pca` (the principal components, zeros where
        there are fewer than dimensions) and of a random `rotation`.
    """
    codes = lasso.standardise(train_code, test_code)
    size, axes = np.linalg.eigh(codes[0].T @ codes[0])  # centred; ascending
    axes = (axes * (size > lasso.CONSTANT**2 * size[-1]))[:, ::-1]
    normal = np.random.default_rng(seed).normal(size=axes.shape)
    rotation, r = np.linalg.qr(normal)
    rotation *= np.sign(np.diag(r))  # else not uniform
    matrices = {"pca": axes, "rotation": rotation}
    return {n: [x @ axes for x in codes] for n, axes in matrices.items()}


def factor_scores(train, test, seed=0):
    """Scores a code by `dci`, `mig` (of the test part) and `sap`.

    Returns
    -------
    dict
        What the three return, `factors` joined; also `width`, `dead`
        (dimensions that are constant in the training part) and `examples` of
        both parts. Numbers of Python, for json.
    """
    found = [dci(train, test, seed), mig(test, seed), sap(train, test)]
    parts = [part["factors"] for part in found]
    factors = {n: parts[0][n] | parts[1][n] | parts[2][n] for n in parts[0]}
    return {
        **found[0] | found[1] | found[2],
        "factors": factors,
        "width": train.code.shape[1],
        "dead": int(np.sum(lasso.deviation_of(train.code) == 0)),
        "examples": {"train": len(train.code), "test": len(test.code)},
    }


def _bins(code):
    """Cuts each column into its values, or by the mean ranks of these.

    So equal values share a bin, and a column and its negative have equal ones.
    """
    bins = np.empty(code.shape, int)
    for column, cut in zip(code.T, bins.T, strict=True):
        _, index, counts = np.unique(
            column, return_inverse=True, return_counts=True
        )
        ranks = BINS * (np.cumsum(counts) - counts / 2) / len(column)
        cut[:] = index if len(counts) <= BINS else ranks.astype(int)[index]
    return bins


def _balanced_accuracy(code, held_out, labels, wanted):
    """Nearest class mean in each dimension alone, (dimensions,)."""
    means = np.stack([code[labels == k].mean(0) for k in np.unique(labels)])
    columns = zip(held_out.T, means.T, strict=True)
    nearest = [abs(x[:, None] - m).argmin(1) for x, m in columns]
    right = np.stack(nearest, 1) == wanted[:, None]
    return np.mean([right[wanted == k].mean(0) for k in np.unique(wanted)], 0)


def _lead(scores):
    """Difference of the two largest scores."""
    second, first = np.sort(scores)[-2:]
    return float(first - second)


def _mean(scores, key):
    return float(np.mean([score[key] for score in scores.values()]))
