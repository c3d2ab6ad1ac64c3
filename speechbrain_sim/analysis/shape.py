"""What each dimension of a layer looks like over a data set: figure 4.

Noise makes any latent look Gaussian, so means and samples are described
separately. What a layer does not have, such as the divergences where there is
no posterior, is None.

Reference: Denoodt, de Boer, Oramas: Smooth InfoMax (2025), section 4.3.4,
https://arxiv.org/abs/2408.12936
"""

import numpy as np
import torch
from scipy.special import ndtr, xlogy

from speechbrain_sim.analysis.intervals import Unmeasurable
from speechbrain_sim.objectives.kl import active_units, kl_per_channel
from speechbrain_sim.randomness import key_seed


def _blocks(x, width=64):
    """Some dimensions at a time: (dimensions, frames), float64."""
    for first in range(0, x.shape[1], width):
        yield np.ascontiguousarray(x[:, first : first + width].T, float)


def common_range(*parts):
    """Range that shows the bulk of every dimension.

    From the least 1 % quantile of a dimension to the greatest 99 % quantile:
    outlying frames do not widen it, but a dimension away from the others does.

    Arguments
    ---------
    *parts : numpy.ndarray
        (frames, D) each.

    Returns
    -------
    low, high : (float, float)

    Example
    -------
    >>> x = np.linspace(0, 1, 101)[:, None]
    >>> low, high = common_range(x, x + 5)
    >>> round(low, 2), round(high, 2)
    (0.01, 5.99)
    """
    ends = np.concatenate(
        [
            np.quantile(block, [0.01, 0.99], axis=1)
            for x in parts
            for block in _blocks(x)
        ],
        axis=1,
    )
    low, high = float(ends[0].min()), float(ends[1].max())
    return (low, high) if low < high else (low - 0.5, high + 0.5)


def ks_normal(x):
    """Kolmogorov-Smirnov distance of each dimension to N(0, 1).

    Arguments
    ---------
    x : numpy.ndarray
        (frames, D).

    Returns
    -------
    numpy.ndarray
        (D,), between 0 and 1.

    Example
    -------
    >>> ks_normal(np.zeros((9, 2)))
    array([0.5, 0.5])
    """
    steps = np.arange(len(x) + 1) / len(x)
    distances = []
    for block in _blocks(x):
        cdf = ndtr(np.sort(block, axis=1))
        above, below = steps[1:] - cdf, cdf - steps[:-1]
        distances.append(np.maximum(above.max(1), below.max(1)))
    return np.concatenate(distances)


def describe(x, edges):
    """Describes the values of each dimension.

    Arguments
    ---------
    x : numpy.ndarray
        (frames, D): valid frames of all utterances.
    edges : numpy.ndarray
        Of the histogram's bins, equally wide.

    Returns
    -------
    dict
        Lists over dimensions: `density` (a list over bins each; the mass inside
        the edges), `outside` (the share of frames beyond the edges, which is in
        no bin), `mean`, `std`, `skew`, excess `kurtosis` (both None where a
        dimension is constant) and `ks`, the distance to N(0, 1).

    Example
    -------
    >>> x = np.array([[0.0, 7.0], [1.0, 7.0]])
    >>> found = describe(x, np.array([-1.0, 0.5, 2.0]))
    >>> found["mean"], found["skew"], found["outside"]
    ([0.5, 7.0], [0.0, None], [0.0, 1.0])
    """
    frames, bins = len(x), len(edges) - 1
    low, high, width = edges[0], edges[-1], (edges[-1] - edges[0]) / bins
    table = {"density": [], "outside": []}
    table |= {"mean": [], "std": [], "skew": [], "kurtosis": []}
    for block in _blocks(x):
        inside = (block >= low) & (block <= high)
        at = np.clip((block - low) / width, 0, bins - 1).astype(int)
        at += bins * np.arange(len(block))[:, None]
        count = np.bincount(at[inside], minlength=bins * len(block))
        density = count.reshape(-1, bins) / (frames * width)
        mean = block.mean(1)
        std = block.std(1)
        constant = block.min(1) == block.max(1)
        std[constant] = 0
        z = (block - mean[:, None]) / np.where(constant, 1, std)[:, None]
        moments = {"skew": (z**3).mean(1), "kurtosis": (z**4).mean(1) - 3}
        table["density"] += density.tolist()
        table["outside"] += (1 - inside.mean(1)).tolist()
        table["mean"] += mean.tolist()
        table["std"] += std.tolist()
        for name, values in moments.items():
            table[name] += [
                None if fixed else value
                for fixed, value in zip(constant, values.tolist(), strict=True)
            ]
    return table | {"ks": ks_normal(x).tolist()}


def aggregate_kl(mean, log_var, resolution=0.1, frames=1000, seed=0):
    """KL divergence from each dimension's aggregate posterior to N(0, 1).

    The aggregate is the mixture over frames of N(mean, exp(log_var)): what the
    dimension is over a data set. The integral is a sum over a grid with two
    steps per `resolution`, coarser only where a dimension reaches over more
    than 2000 steps. A posterior narrower than two steps is widened to them:
    finitely many frames without variance would be infinitely far from N(0, 1).

    Arguments
    ---------
    mean, log_var : numpy.ndarray
        (frames, D).
    resolution : float
        Least deviation of a posterior.
    frames : int
        At most so many are drawn; their scarcity adds about 0.01 nats.
    seed : int
        Of the draw.

    Returns
    -------
    numpy.ndarray
        (D,), nats.

    Example
    -------
    >>> zeros = np.zeros((5, 1))
    >>> bool(abs(aggregate_kl(zeros + 1, zeros) - 0.5) < 1e-6)
    True
    """
    chosen = slice(None)
    if len(mean) > frames:
        rng = np.random.default_rng(key_seed(seed, "aggregate"))
        chosen = rng.choice(len(mean), frames, replace=False)
    mean = mean[chosen].T.astype(float)
    std = np.exp(0.5 * log_var[chosen].T.astype(float))
    divergences = []
    for mu, sigma in zip(mean, np.maximum(std, resolution), strict=True):
        low, high = (mu - 6 * sigma).min(), (mu + 6 * sigma).max()
        step = max(resolution / 2, (high - low) / 2000)
        sigma = np.maximum(sigma, 2 * step)
        grid = np.arange(low, high + step, step)[:, None]
        peak = step / (np.sqrt(2 * np.pi) * sigma)
        mass = (peak * np.exp(-0.5 * ((grid - mu) / sigma) ** 2)).mean(1)
        mass /= mass.sum()
        log_prior = np.log(step / np.sqrt(2 * np.pi)) - 0.5 * grid[:, 0] ** 2
        divergences.append((xlogy(mass, mass) - mass * log_prior).sum())
    return np.array(divergences)


def shape(mean, log_var=None, sample=None, bins=100, seed=0):
    """Describes the shape of a layer's latent space.

    Arguments
    ---------
    mean : numpy.ndarray
        Means of the posteriors, or outputs of a deterministic layer, (frames,
        D): valid frames of all utterances.
    log_var, sample : numpy.ndarray, optional
        Log-variances and draws of the same posteriors.
    bins : int
        Of the histograms, which share one `common_range`.
    seed : int
        Of the frames that stand for all in the aggregate posterior.

    Returns
    -------
    dict
        `frames`, `dimensions`, the histograms' `edges`; `means` and `samples`,
        each from `describe`; `active_units`, the number of dimensions whose
        means have a variance above 0.01; and lists over dimensions, in nats:
        `rate`, KL(q(z|x) || N(0, 1)) averaged over frames, and `aggregate_kl`.
        `samples`, `rate` and `aggregate_kl` are None without a posterior.

    Raises
    ------
    ValueError
        If an input is not a number.

    Example
    -------
    >>> x = np.random.default_rng(0).normal(size=(500, 3))
    >>> found = shape(x)
    >>> found["active_units"], found["rate"], max(found["means"]["ks"]) < 0.1
    (3, None, True)
    """
    parts = [x for x in (mean, log_var, sample) if x is not None]
    if not all(np.isfinite(x).all() for x in parts):
        raise Unmeasurable("A latent is NaN or infinite.")
    shown = [x for x in (mean, sample) if x is not None]
    edges = np.linspace(*common_range(*shown), bins + 1)
    tables = [describe(x, edges) for x in shown]
    lengths = torch.tensor([len(mean)])
    means = torch.as_tensor(mean)[None]
    rate = total = None
    if log_var is not None:
        rate = kl_per_channel(means, torch.as_tensor(log_var)[None], lengths)
        rate = rate.tolist()
        total = aggregate_kl(mean, log_var, seed=seed).tolist()
    return {
        "frames": len(mean),
        "dimensions": mean.shape[1],
        "edges": edges.tolist(),
        "means": tables[0],
        "samples": tables[1] if sample is not None else None,
        "active_units": int(active_units(means, lengths)),
        "rate": rate,
        "aggregate_kl": total,
    }


def worst(table, n):
    """Names the dimensions that are farthest from N(0, 1).

    Arguments
    ---------
    table : dict
        From `describe`.
    n : int
        How many.

    Returns
    -------
    list of int
        Dimensions, the largest KS distance first.

    Example
    -------
    >>> worst({"ks": [0.1, 0.5, 0.3]}, 2)
    [1, 2]
    """
    order = np.argsort(-np.array(table["ks"]), kind="stable")
    return order[:n].tolist()
