"""How much of what is heard a few dimensions carry: the paper's table 2.

The N dimensions that differ most between two clips are copied from the target
into the start; delta(N) is how far the decoded mixture still is from the
decoded target, relative to the start: 1 without effect, 0 if the target is
reached. (Equation 12 prints another denominator; its text and the authors'
release mean this one.) Which clips, how many pairs, which distance, and whether
the latents are means or samples is the caller's choice, to be stated beside
each number.

Reference: Denoodt, de Boer, Oramas: Smooth InfoMax (2025), section 4.3.3,
https://arxiv.org/abs/2408.12936
"""

from typing import NamedTuple

import numpy as np
import torch
from tqdm import tqdm

from speechbrain_sim.analysis.intervals import Unmeasurable, bootstrap_pairs
from speechbrain_sim.randomness import keyed_generator
from speechbrain_sim.traversals import most_different, swap

#: waveforms that differ by less, relative to their size, are the same: the rest
#: is rounding
ROUNDING = 1e-6


class Distances(NamedTuple):
    """Distances to the decoded targets.

    Arguments
    ---------
    counts : list of int
        The N.
    mixtures : numpy.ndarray
        Of the decoded mixtures, (pairs, counts).
    starts : numpy.ndarray
        Of the decoded starts, (pairs,).
    """

    counts: list
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


def decode_finite(decode, z):
    """Decodes a batch, and refuses what is not a number.

    Arguments
    ---------
    decode : callable
        Latents (batch, time, channel) -> waveforms (batch, samples).
    z : torch.Tensor
        (batch, time, channel).

    Returns
    -------
    torch.Tensor
        (batch, samples).

    Raises
    ------
    ValueError
        If a waveform holds NaN or infinity.

    Example
    -------
    >>> decode_finite(lambda z: z.sum(-1), torch.ones(1, 2, 3))
    tensor([[3., 3.]])
    """
    wavs = decode(z)
    if not wavs.isfinite().all():
        raise Unmeasurable("A decoded waveform holds NaN or infinity.")
    return wavs


def decode_clips(decode, latents, batch_size):
    """Decodes each clip once, and refuses what is not a number.

    Arguments
    ---------
    decode : callable
        Latents (batch, time, channel) -> waveforms (batch, samples).
    latents : torch.Tensor
        (clips, time, channel).
    batch_size : int
        Latents decoded at once.

    Returns
    -------
    torch.Tensor
        (clips, samples).

    Raises
    ------
    ValueError
        See `decode_finite`.

    Example
    -------
    >>> decode_clips(lambda z: z.sum(-1), torch.ones(3, 1, 2), 2).shape
    torch.Size([3, 1])
    """
    parts = latents.split(batch_size)
    return torch.cat([decode_finite(decode, part) for part in parts])


def same_sound(one, other):
    """Tells which waveforms differ by no more than rounding.

    Arguments
    ---------
    one, other : torch.Tensor
        (batch, samples).

    Returns
    -------
    torch.Tensor
        (batch,), bool.

    Example
    -------
    >>> same_sound(torch.ones(1, 9), torch.ones(1, 9) + 1e-7)
    tensor([True])
    """
    return (one - other).norm(dim=-1) <= ROUNDING * (one + other).norm(dim=-1)


@torch.no_grad()
def measure_distances(decode, latents, pairs, counts, batch_size=8):
    """Measures how far mixtures of two clips are from their target.

    Every start and target is decoded once, every mixture once for both
    distances; all dimensions make no mixture, but the target. Pairs that decode to the `same_sound` have the distance 0.

    Arguments
    ---------
    decode : callable
        Latents (batch, time, channel) -> waveforms (batch, samples).
    latents : torch.Tensor
        (clips, time, channel), all of one length; means or samples.
    pairs : torch.Tensor
        From `draw_pairs`.
    counts : list of int
        The N, between 0 and the number of channels.
    batch_size : int
        Mixtures decoded at once.

    Returns
    -------
    dict of str to Distances
        "mae", the paper's distance, and "mse", the release's.

    Raises
    ------
    ValueError
        If an N is impossible, or a decoded waveform not a number.

    Example
    -------
    >>> latents, pairs = torch.eye(3)[:, None], draw_pairs(3, 6)
    >>> decode = lambda z: z.flatten(1)
    >>> found = measure_distances(decode, latents, pairs, [0, 1])
    >>> found["mse"].mixtures[0] / found["mse"].starts[0]
    array([1. , 0.5])
    """
    channels = latents.shape[-1]
    if not all(0 <= count <= channels for count in counts):
        raise ValueError(f"N is {counts}; there are {channels} dimensions.")
    decoded = decode_clips(decode, latents, batch_size)

    def between(got, wanted):
        gap = (got - wanted).double()
        return torch.stack([gap.abs().mean(-1), gap.square().mean(-1)]).cpu()

    mixtures, starts = [], []
    batches = tqdm(
        pairs.split(batch_size), desc="delta", unit="batch", disable=None
    )
    for start, target in (batch.T for batch in batches):
        ranked = most_different(latents[start], latents[target])
        gaps = []
        for count in counts:
            got = decoded[target]  # of all dimensions; else of a mixture
            if count < channels:
                mixed = swap(latents[start], latents[target], ranked[:, :count])
                got = decode_finite(decode, mixed)
            gaps.append(between(got, decoded[target]))
        gaps = torch.stack(gaps, dim=-1)
        whole = between(decoded[start], decoded[target])
        same = same_sound(decoded[start], decoded[target]).cpu()
        mixtures.append(gaps.masked_fill(same[:, None], 0))
        starts.append(whole.masked_fill(same, 0))
    mixtures = torch.cat(mixtures, dim=1).numpy()
    starts = torch.cat(starts, dim=1).numpy()
    return {
        name: Distances(list(counts), mixtures[i], starts[i])
        for i, name in enumerate(["mae", "mse"])
    }


def delta(distances, pairs, confidence=0.95, resamples=2000, seed=0):
    """Relative error of each N, with intervals bootstrapped over clips.

    A ratio of means over pairs, as in the release.

    Arguments
    ---------
    distances : Distances
        From `measure_distances`, of one distance.
    pairs : torch.Tensor
        The pairs they are of.
    confidence : float
        Share of the distribution inside the interval.
    resamples, seed : int
        Of the bootstrap.

    Returns
    -------
    dict
        `counts`, and for each of them `delta` and its `interval`; the number of
        `pairs`, and of `clips` in them, which may be fewer than were wanted.

    Raises
    ------
    ValueError
        If all clips decode to the same waveform, or a distance is not a
        number.

    Example
    -------
    >>> pairs = draw_pairs(4, 12)
    >>> near, far = np.full((12, 1), 0.25), np.ones(12)
    >>> delta(Distances([8], near, far), pairs)
    {'counts': [8], 'delta': [0.25], 'interval': [[0.25, 0.25]],
    'pairs': 12, 'clips': 4}
    """
    pairs = np.asarray(pairs)
    counts, mixtures, starts = distances
    if not np.any(starts):
        raise Unmeasurable("All clips decode to the same waveform: no delta.")
    value, low, high = bootstrap_pairs(
        mixtures, starts, pairs, confidence, resamples, seed
    )
    return {
        "counts": counts,
        "delta": value.tolist(),
        "interval": np.stack([low, high], axis=-1).tolist(),
        "pairs": len(pairs),
        "clips": len(np.unique(pairs)),
    }
