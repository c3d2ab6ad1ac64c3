"""How much of what is heard a few dimensions carry: the paper's table 2.

The N dimensions that differ most between two clips are copied from the target
into the start; delta(N) is how far the decoded mixture still is from the
decoded target, relative to the start: 1 without effect, 0 if the target is
reached. (Equation 12 prints another denominator; its text and the authors'
release mean this one.)

Reference: Denoodt, de Boer, Oramas: Smooth InfoMax (2025), section 4.3.3,
https://arxiv.org/abs/2408.12936
"""

from typing import NamedTuple

import numpy as np
import torch
from tqdm import tqdm

from speechbrain_sim.randomness import keyed_generator
from speechbrain_sim.traversals import most_different, swap

DISTANCES = {
    "mae": lambda x, y: (x - y).abs().mean(-1),
    "mse": lambda x, y: (x - y).square().mean(-1),
}


class Distances(NamedTuple):
    """Distances to the decoded targets.

    Arguments
    ---------
    mixtures : numpy.ndarray
        Of the decoded mixtures, (pairs, counts).
    starts : numpy.ndarray
        Of the decoded starts, (pairs,).
    """

    mixtures: np.ndarray
    starts: np.ndarray


def draw_pairs(clips, pairs, seed=0):
    """Draws ordered pairs of different clips, without repetition.

    Arguments
    ---------
    clips : int
        Number of clips.
    pairs : int
        How many are wanted; all there are, if these are fewer.
    seed : int
        Of the draw.

    Returns
    -------
    torch.Tensor
        (pairs, 2), int64: start and target.

    Raises
    ------
    ValueError
        If there are fewer than two clips.

    Example
    -------
    >>> draw_pairs(3, 100).tolist()
    [[0, 1], [0, 2], [1, 0], [1, 2], [2, 0], [2, 1]]
    """
    if clips < 2:
        raise ValueError(f"{clips} clips make no pair; two or more are needed.")
    total = clips * (clips - 1)
    generator = keyed_generator(seed, "pairs")
    chosen = torch.randperm(total, generator=generator)[:pairs].sort().values
    start = chosen // (clips - 1)
    target = chosen % (clips - 1)
    return torch.stack([start, target + (target >= start)], dim=1)


@torch.no_grad()
def measure_distances(
    decode, latents, pairs, counts, distance="mae", batch_size=8
):
    """Measures how far mixtures of two clips are from their target.

    Every start and target is decoded once.

    Arguments
    ---------
    decode : callable
        Latents (batch, time, channel) -> waveforms (batch, samples).
    latents : torch.Tensor
        (clips, time, channel), all of one length.
    pairs : torch.Tensor
        From `draw_pairs`.
    counts : list of int
        The N, between 0 and the number of channels.
    distance : str
        "mae", the paper's, or "mse", the release's.
    batch_size : int
        Mixtures decoded at once.

    Returns
    -------
    Distances

    Raises
    ------
    ValueError
        If the distance is unknown or an N is impossible.
    """
    if distance not in DISTANCES:
        raise ValueError(
            f"distance is '{distance}'; it must be 'mae' or 'mse'."
        )
    channels = latents.shape[-1]
    if not all(0 <= count <= channels for count in counts):
        raise ValueError(f"N is {counts}; there are {channels} dimensions.")
    between = DISTANCES[distance]
    decoded = torch.cat([decode(part) for part in latents.split(batch_size)])
    mixtures = [
        (pair, column)
        for pair in range(len(pairs))
        for column in range(len(counts))
    ]
    result = torch.empty(len(pairs), len(counts))
    for first in tqdm(
        range(0, len(mixtures), batch_size), desc="delta", unit="batch"
    ):
        chosen = mixtures[first : first + batch_size]
        mixed = []
        for pair, column in chosen:
            start, target = latents[pairs[pair]]
            ranked = most_different(start, target)
            mixed.append(swap(start, target, ranked[: counts[column]]))
        targets = decoded[[int(pairs[pair, 1]) for pair, _ in chosen]]
        got = between(decode(torch.stack(mixed)), targets).cpu()
        for (pair, column), value in zip(chosen, got, strict=True):
            result[pair, column] = value
    starts = between(decoded[pairs[:, 0]], decoded[pairs[:, 1]])
    return Distances(result.double().numpy(), starts.double().cpu().numpy())


def delta(distances, pairs, confidence=0.95, resamples=2000, seed=0):
    """Relative error of each N, with intervals bootstrapped over clips.

    A ratio of means over pairs, as in the release.

    Arguments
    ---------
    distances : Distances
        From `measure_distances`.
    pairs : torch.Tensor
        The pairs they are of.
    confidence : float
        Share of the distribution inside the interval.
    resamples, seed : int
        Of the bootstrap.

    Returns
    -------
    value, low, high : numpy.ndarray
        (counts,) each.

    Raises
    ------
    ValueError
        If all clips decode to the same waveform.

    Example
    -------
    >>> pairs = draw_pairs(4, 12)
    >>> far, near = np.ones(12), np.full((12, 1), 0.25)
    >>> [float(x[0]) for x in delta(Distances(near, far), pairs)]
    [0.25, 0.25, 0.25]
    """
    mixtures, starts = distances
    if not starts.sum() > 0:
        raise ValueError("All clips decode to the same waveform: no delta.")
    pairs = pairs.numpy()
    clips = pairs.max() + 1
    generator = np.random.default_rng(seed)
    often = generator.multinomial(clips, np.full(clips, 1 / clips), resamples)
    weights = often[:, pairs[:, 0]] * often[:, pairs[:, 1]]
    weights = weights[weights @ starts > 0].astype(float)
    resampled = (weights @ mixtures) / (weights @ starts)[:, None]
    tail = 100 * (1 - confidence) / 2
    low, high = np.percentile(resampled, [tail, 100 - tail], axis=0)
    return mixtures.sum(0) / starts.sum(), low, high
