"""What codes of frames keep, how often they fire, how long, and how surely.

Codes are sparse arrays, (rows, units): units that are not 0 fire. Every ratio of
sums over rows has a 95 % interval over recordings, `unit`.
"""

import numpy as np
import torch
from scipy import sparse

from speechbrain_sim.analysis.intervals import (
    Unmeasurable,
    draw_counts,
    middle,
    resample_ratio,
)
from speechbrain_sim.bottlenecks.coded import code_blocks, draw_codes
from speechbrain_sim.randomness import keyed_generator

#: rows whose posteriors are drawn from at once
BLOCK = 512
#: draws of an interval
DRAWS = 1000
#: shares of rows in which frequent units fire, and ends of the histogram's bins
FREQUENT, DECADES = (0.01, 0.1), np.arange(-6, 0.25, 0.5)


@torch.no_grad()
def encode_rows(bottleneck, x):
    """Codes frames, block by block.

    Arguments
    ---------
    bottleneck : Bottleneck
        See `speechbrain_sim.bottlenecks.base`.
    x : numpy.ndarray
        (rows, channels), float32.

    Returns
    -------
    codes, decoded : (scipy.sparse.csr_array, numpy.ndarray)
        (rows, units) and (rows, channels).
    """
    codes, decoded = [], []
    for z in code_blocks(bottleneck, torch.from_numpy(x)):
        decoded.append(bottleneck.decode(z).cpu())
        codes.append(sparse.csr_array(z.cpu().numpy()))
    return sparse.vstack(codes, "csr"), torch.cat(decoded).numpy()


def sum_by(x, group):
    """Adds up the rows of each group: (rows, values) -> (groups, values).

    Example
    -------
    >>> sum_by(np.array([[1.0], [2.0], [4.0]]), np.array([0, 1, 0]))
    array([[5.],
           [2.]])
    """
    rows = np.arange(len(group))
    ones = np.ones(len(group), np.float64)
    shape = 1 + group.max(), len(group)
    return sparse.csr_array((ones, (group, rows)), shape=shape) @ x


def over_recordings(numerator, denominator, unit, seed=0):
    """Computes a ratio of sums over rows, or the mean of several.

    Arguments
    ---------
    numerator, denominator : numpy.ndarray
        (rows,), or (rows, values): values without any denominator are left out.
    unit : numpy.ndarray
        The recording of each row, (rows,).
    seed : int
        Of the draws of recordings.

    Returns
    -------
    dict
        `value`, and its 95 % `interval`.

    Raises
    ------
    Unmeasurable
        If there are fewer than two recordings, or no denominators.

    Example
    -------
    >>> rows = np.array([1.0, 0.0, 1.0, 1.0])
    >>> over_recordings(rows, np.ones(4), np.array([0, 0, 1, 1]))
    {'value': 0.75, 'interval': [0.5, 1.0]}
    """
    _, unit = np.unique(unit, return_inverse=True)
    above, below = (
        sum_by(np.asarray(x, float).reshape(len(unit), -1), unit)
        for x in (numerator, denominator)
    )
    counted = below.sum(0) > 0
    if not counted.any():
        raise Unmeasurable("Nothing fires, or nothing is to be predicted.")
    parts = above[:, counted], below[:, counted], np.arange(len(above))
    value, draws = resample_ratio(*parts, DRAWS, seed)
    number = np.isfinite(draws).sum(1)
    mean = np.nansum(draws, 1) / np.where(number > 0, number, np.nan)
    ends = middle(mean).tolist()
    return {"value": float(value.mean()), "interval": ends}


def reconstruction(x, decoded, mean, unit):
    """Compares frames with what their codes decode to.

    Arguments
    ---------
    x, decoded : numpy.ndarray
        (rows, channels).
    mean : numpy.ndarray
        Of the layer, (channels,): what explains nothing.
    unit :
        See `over_recordings`.

    Returns
    -------
    dict
        `explained_variance`, 1 - sum |x - x̂|² / sum |x - mean|²; `mse`, the
        mean of (x - x̂)² in units of the layer; and mean `cosine` of x and x̂.
    """
    error = np.square(x - decoded).sum(1, float)
    total = np.square(x - mean).sum(1, float)
    sizes = np.linalg.norm(x, axis=1) * np.linalg.norm(decoded, axis=1)
    cosine = (x * decoded).sum(1) / np.where(sizes > 0, sizes, 1)
    rows = np.ones(len(x))
    return {
        "explained_variance": over_recordings(total - error, total, unit),
        "mse": over_recordings(error, x.shape[1] * rows, unit),
        "cosine": over_recordings(cosine, rows, unit),
    }


def firing(codes, unit, seed=0):
    """Counts how many units fire in a row, and how often each does.

    Returns
    -------
    dict
        `l0`, mean number of units that fire; `alive`, the share of units that
        ever do; `above_1` and `above_10`, shares of units that fire in more
        than 1 and 10 % of the rows; `histogram`, numbers of living units by
        log10 of that share, between `DECADES`; `density` of each unit.
    """
    active = codes.astype(bool).astype(float)
    rows = np.ones(len(unit))
    _, unit = np.unique(unit, return_inverse=True)
    density = active.sum(0) / len(unit)
    often = draw_counts(1 + unit.max(), DRAWS // 2, seed)
    drawn = often @ sum_by(active, unit) / (often @ np.bincount(unit))[:, None]
    found = {
        "l0": over_recordings(active.sum(1), rows, unit),
        "alive": float(np.mean(density > 0)),
        "histogram": np.histogram(
            np.log10(density[density > 0]), [-np.inf, *DECADES[1:]]
        )[0].tolist(),
        "density": density.tolist(),
    }
    for least in FREQUENT:
        ends = middle((drawn > least).mean(1)).tolist()
        score = {"value": float(np.mean(density > least)), "interval": ends}
        found[f"above_{round(100 * least)}"] = score
    return found


def durations(codes, utterance, unit, milliseconds):
    """Measures how long units fire without a break.

    Arguments
    ---------
    codes, utterance : sparse array, numpy.ndarray
        Rows in their order in time, and the utterance of each, (rows,).
    unit, milliseconds : numpy.ndarray, float
        See `over_recordings`; from a row to the next.

    Returns
    -------
    dict
        Mean duration over activations in ms, `value` and `interval`; `units`,
        that of each unit, 0 of those that never fire.
    """
    active = codes.astype(bool).astype(float)
    same = sparse.diags_array((utterance[1:] == utterance[:-1]).astype(float))
    again = same @ active[1:].multiply(active[:-1])
    counts = active.sum(1)
    starts = counts - np.concatenate([[0.0], again.sum(1)])
    score = over_recordings(milliseconds * counts, starts, unit)
    begun = np.maximum(active.sum(0) - again.sum(0), 1)
    return {**score, "units": (milliseconds * active.sum(0) / begun).tolist()}


@torch.no_grad()
def sureness(bottleneck, mean, log_var, unit, draws=32, seed=0):
    """Measures how sure codes are of what fires, given posteriors of frames.

    Units count in the rows where they fire for the posterior's mean.

    Arguments
    ---------
    bottleneck : Bottleneck
        Trained on means.
    mean, log_var : numpy.ndarray
        Of the posteriors, (rows, channels).
    unit :
        See `over_recordings`.
    draws, seed : int
        From each posterior, and of the noise.

    Returns
    -------
    dict
        `kept`, the probability that such a unit fires for a draw, and `sure`,
        mean activation over deviation (ratio of sums), both with intervals;
        `units`: the same of each unit, None where it never fires, or never
        varies.
    """
    device, per_row, per_unit = next(bottleneck.buffers()).device, [], 0
    for first in range(0, len(mean), BLOCK):
        at = slice(first, first + BLOCK)
        x, log_variance = (
            torch.from_numpy(part[at]).to(device) for part in (mean, log_var)
        )
        active = bottleneck.encode(x) != 0
        noise = keyed_generator(seed, "posterior", first, device=device)
        drawn = draw_codes(bottleneck, x, log_variance, draws, noise)
        numbers = drawn.fires, torch.ones_like(drawn.fires), *drawn[1:]
        numbers = torch.stack([active * part for part in numbers]).cpu()
        per_row.append(numbers.sum(2).T.numpy())
        per_unit = per_unit + numbers.double().sum(1).numpy()
    fires, count, level, deviation = np.concatenate(per_row).T
    pairs = {"kept": per_unit[:2], "sure": per_unit[2:]}
    units = {
        name: [float(a / b) if b > 0 else None for a, b in both.T]
        for name, both in pairs.items()
    }
    return {
        "kept": over_recordings(fires, count, unit),
        "sure": over_recordings(level, deviation, unit),
        "units": units,
    }
