"""Whether other seeds find the same units: matched dictionaries."""

from itertools import combinations

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment

from speechbrain_sim.analysis.intervals import Unmeasurable

#: units of two seeds are the same above this cosine
SAME = 0.7


@torch.no_grad()
def dictionary(bottleneck):
    """Returns the direction of each unit in its layer, (units, channels).

    Of unit norm, in units of the bottleneck's normalisation.
    """
    eye = torch.eye(bottleneck.num_units, device=bottleneck.mean.device)
    moved = bottleneck.decode(eye) - bottleneck.decode(torch.zeros_like(eye))
    return unit_rows((moved / bottleneck.std).double().cpu().numpy())


def unit_rows(rows):
    """Divides rows by their norms; zeros stay."""
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / np.where(norms > 0, norms, 1)


def match(one, other):
    """Matches the rows of two dictionaries, one to one, by their cosines.

    The Hungarian method maximises the sum of cosines. Paulo, Belrose: Sparse
    autoencoders trained on the same data learn different features (2025),
    https://arxiv.org/abs/2501.16615

    Returns
    -------
    tuple of numpy.ndarray
        The cosine of each row of `one`, and of `other`, with its partner,
        (units,) each; 0 without.

    Example
    -------
    >>> match(np.eye(3), np.eye(3)[[2, 0]])
    (array([1., 0., 1.]), array([1., 1.]))
    """
    cosines = one @ other.T
    pairs = linear_sum_assignment(cosines, maximize=True)
    found = np.zeros(len(one)), np.zeros(len(other))
    for each, at in zip(found, pairs, strict=True):
        each[at] = cosines[pairs]
    return found


def subspace_overlap(one, other):
    """Measures how alike the main directions of two dictionaries are.

    |U'V|² / r, U and V being the r leading right singular vectors, r a quarter
    of the channels, or the units of the smaller dictionary if these are fewer:
    1 for the same subspace, r / channels for random ones.

    Example
    -------
    >>> subspace_overlap(np.eye(8)[:2], np.eye(8)[[1, 0]])
    1.0
    """
    rank = min(max(1, one.shape[1] // 4), len(one), len(other))
    bases = [
        np.linalg.svd(x, full_matrices=False)[2][:rank] for x in (one, other)
    ]
    return float(np.square(bases[0] @ bases[1].T).sum() / rank)


def stability(dictionaries, alive, seed=0):
    """Compares the dictionaries of several seeds, two by two.

    Arguments
    ---------
    dictionaries : list of numpy.ndarray
        From `dictionary`, (units, channels).
    alive : list of numpy.ndarray
        Which of each one's units count, (units,), bool.
    seed : int
        Of the random dictionaries.

    Returns
    -------
    dict
        Means over pairs: `shared`, the share of both's living units with a
        partner whose cosine is above `SAME`, mean `cosine` with partners, and
        `overlap` of the subspaces; `random`, the same of random dictionaries with the
        covariance of these; `pairs`, the `shared` of each pair; and `units`,
        for each dictionary the mean cosine of each unit with its partners
        (None for a dead one).

    Raises
    ------
    Unmeasurable
        If there are fewer than two dictionaries, or one has no living unit.
    """
    if len(dictionaries) < 2 or not all(map(np.any, alive)):
        raise Unmeasurable("Stability needs two seeds with units that fire.")
    rng, scores, controls = np.random.default_rng(seed), [], []
    cosines = [np.zeros((len(x), 0)) for x in dictionaries]
    for a, b in combinations(range(len(dictionaries)), 2):
        pair = [dictionaries[i][alive[i]] for i in (a, b)]
        found = match(*pair)
        for i, each in zip((a, b), found, strict=True):
            column = np.full((len(alive[i]), 1), np.nan)
            column[alive[i], 0] = each
            cosines[i] = np.c_[cosines[i], column]
        scores.append(_score(*pair, found))
        drawn = [_random_like(x, rng) for x in pair]
        controls.append(_score(*drawn, match(*drawn)))
    units = [
        [
            None if dead else float(x)
            for x, dead in zip(each, ~live, strict=True)
        ]
        for each, live in zip(
            (np.mean(c, 1) for c in cosines), alive, strict=True
        )
    ]
    return {
        **dict(zip(SCORES, np.mean(scores, 0).tolist(), strict=True)),
        "random": dict(zip(SCORES, np.mean(controls, 0).tolist(), strict=True)),
        "pairs": [score[0] for score in scores],
        "units": units,
    }


#: what `_score` returns
SCORES = ("shared", "cosine", "overlap")


def _score(one, other, cosines):
    """Share of shared units, mean cosine, overlap of a pair."""
    cosines = np.concatenate(cosines)
    shared = float(np.mean(cosines > SAME))
    return shared, float(cosines.mean()), subspace_overlap(one, other)


def _random_like(rows, rng):
    """Draws as many unit rows with the second moments of these."""
    _, size, axes = np.linalg.svd(rows, full_matrices=False)
    return unit_rows(rng.normal(size=(len(rows), len(size))) * size @ axes)
