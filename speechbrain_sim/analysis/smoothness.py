"""How smoothly a decoder answers to the latents: numbers for figure 2.

The paper shows waveforms along a straight walk between two clips. Measured
here: whether the decoded walk is straight and even, and how far a small step
in the latents carries. Distances are Euclidean, over the waveform. Which clips,
how many pairs, and whether the latents are means or samples is the caller's
choice, to be stated beside each number.

Reference: Denoodt, de Boer, Oramas: Smooth InfoMax (2025), section 4.3.1,
https://arxiv.org/abs/2408.12936
"""

from typing import NamedTuple

import numpy as np
import torch
from tqdm import tqdm

from speechbrain_sim.analysis.delta import (
    decode_clips,
    decode_finite,
    same_sound,
)
from speechbrain_sim.analysis.intervals import Unmeasurable, bootstrap_pairs
from speechbrain_sim.randomness import keyed_generator
from speechbrain_sim.traversals import interpolate


class Walks(NamedTuple):
    """Decoded walks between two clips.

    Arguments
    ---------
    steps : numpy.ndarray
        Length of each step, (pairs, steps).
    distances : numpy.ndarray
        From end to end, (pairs,); 0 where both decode to the same waveform.
    """

    steps: np.ndarray
    distances: np.ndarray


class Moves(NamedTuple):
    """Decoded small moves of single frames.

    Arguments
    ---------
    slopes : numpy.ndarray
        Distance that the waveform moves, per deviation that the frame moves,
        (clips, directions).
    frame_energy : numpy.ndarray
        Mean energy of the samples that one frame stands for, (clips,).
    """

    slopes: np.ndarray
    frame_energy: np.ndarray


@torch.no_grad()
def measure_walks(decode, latents, pairs, steps=10, batch_size=8):
    """Walks from clip to clip in equal steps, and decodes every stop.

    Arguments
    ---------
    decode : callable
        Latents (batch, time, channel) -> waveforms (batch, samples).
    latents : torch.Tensor
        (clips, time, channel), all of one length; means or samples.
    pairs : torch.Tensor
        From `speechbrain_sim.analysis.delta.draw_pairs`.
    steps : int
        Steps of each walk.
    batch_size : int
        Latents decoded at once.

    Returns
    -------
    Walks

    Raises
    ------
    ValueError
        If a decoded waveform is not a number.

    Example
    -------
    >>> latents = torch.tensor([[[0.0]], [[4.0]]])
    >>> decode = lambda z: z.flatten(1)
    >>> measure_walks(decode, latents, torch.tensor([[0, 1]]), steps=2)
    Walks(steps=array([[2., 2.]]), distances=array([4.]))
    """
    decoded = decode_clips(decode, latents, batch_size)
    lengths, distances = [], []
    batches = tqdm(
        pairs.split(batch_size), desc="walks", unit="batch", disable=None
    )
    for start, target in (batch.T for batch in batches):
        stops = interpolate(latents[start], latents[target], steps + 1)[1:-1]
        between = [decode_finite(decode, z) for z in stops]
        walk = torch.stack([decoded[start], *between, decoded[target]]).double()
        lengths.append(walk.diff(dim=0).norm(dim=-1).T.cpu())
        distance = (walk[-1] - walk[0]).norm(dim=-1)
        same = same_sound(walk[0], walk[-1])
        distances.append(distance.masked_fill(same, 0).cpu())
    return Walks(torch.cat(lengths).numpy(), torch.cat(distances).numpy())


def summarise_walks(walks, pairs, confidence=0.95, resamples=2000, seed=0):
    """Tells how straight and how even decoded walks are.

    Means over pairs, with intervals bootstrapped over clips. Pairs that decode
    to the same waveform are left out.

    Arguments
    ---------
    walks : Walks
        From `measure_walks`.
    pairs : torch.Tensor
        The pairs they are of.
    confidence : float
        Share of the distribution inside the intervals.
    resamples, seed : int
        Of the bootstrap.

    Returns
    -------
    dict
        `path_ratio`, path length / distance from end to end: 1 is straight;
        `step_ratio`, largest step / mean step: 1 is even, and the number of
        steps is a single jump; each with `value` and `interval`. The number of
        `steps`, of `pairs` that count, of pairs `left_out`, and of `clips` in
        those that count, which may be fewer than were wanted.

    Raises
    ------
    ValueError
        If all pairs decode to the same waveform.

    Example
    -------
    >>> walks = Walks(np.array([[1.0, 3.0]] * 3), np.array([2.0] * 3))
    >>> found = summarise_walks(walks, torch.tensor([[0, 1], [1, 2], [2, 0]]))
    >>> found["path_ratio"], found["step_ratio"]
    ({'value': 2.0, 'interval': [2.0, 2.0]},
    {'value': 1.5, 'interval': [1.5, 1.5]})
    """
    differ = walks.distances > 0
    if not differ.any():
        raise Unmeasurable("All clips decode to the same waveform: no walk.")
    steps, distances = walks.steps[differ], walks.distances[differ]
    pairs = np.asarray(pairs)[differ]
    ratios = [steps.sum(1) / distances, steps.max(1) / steps.mean(1)]
    value, low, high = bootstrap_pairs(
        np.stack(ratios, axis=1), 1, pairs, confidence, resamples, seed
    )
    names = ["path_ratio", "step_ratio"]
    return _named(names, value, low, high) | {
        "steps": steps.shape[1],
        "pairs": len(pairs),
        "left_out": int((~differ).sum()),
        "clips": len(np.unique(pairs)),
    }


@torch.no_grad()
def measure_moves(
    decode, latents, directions=8, epsilon=0.1, batch_size=8, seed=0
):
    """Moves single frames a little, in random directions, and decodes them.

    A direction has unit length in units of each dimension's deviation over all
    frames of all clips, so that systems compare whatever their scale.

    Arguments
    ---------
    decode : callable
        Latents (batch, time, channel) -> waveforms (batch, samples).
    latents : torch.Tensor
        (clips, time, channel), all of one length; means or samples.
    directions : int
        Moves of each clip, each of a random frame.
    epsilon : float
        Length of the move, in deviations.
    batch_size : int
        Latents decoded at once.
    seed : int
        Of frames and directions.

    Returns
    -------
    Moves

    Raises
    ------
    ValueError
        If a decoded waveform is not a number.

    Example
    -------
    >>> latents = torch.tensor([[[1.0]], [[-1.0]]])
    >>> moves = measure_moves(lambda z: 3 * z.flatten(1), latents, 1)
    >>> moves.slopes.round(3).tolist(), moves.frame_energy.tolist()
    ([[3.0], [3.0]], [9.0, 9.0])
    """
    clips, time, channels = latents.shape
    generator = keyed_generator(seed, "moves")
    shape = (clips * directions,)
    frames = torch.randint(time, shape, generator=generator)
    units = torch.randn(*shape, channels, generator=generator)
    units = torch.nn.functional.normalize(units, dim=-1).to(latents)
    moves = epsilon * units * latents.flatten(0, 1).std(0, correction=0)
    decoded = decode_clips(decode, latents, batch_size).double()
    slopes = []
    rows = torch.arange(len(frames)).split(batch_size)
    for row in tqdm(rows, desc="moves", unit="batch", disable=None):
        clip = row // directions
        z = latents[clip]  # a copy
        z[torch.arange(len(row)), frames[row]] += moves[row]
        gap = decode_finite(decode, z).double() - decoded[clip]
        slopes.append(gap.norm(dim=-1).cpu() / epsilon)
    energy = decoded.square().sum(-1).cpu() / time
    return Moves(
        torch.cat(slopes).view(clips, directions).numpy(), energy.numpy()
    )


def summarise_moves(moves, confidence=0.95, resamples=2000, seed=0):
    """Estimates a local Lipschitz constant, with intervals over clips.

    The slopes have the unit of the waveform. The relative ones are divided by
    the root mean square of what one frame stands for (the RMS of the decoded
    waveforms times the root of their samples per frame): 1 if a frame that
    moves by one deviation changes the waveform as much as a whole frame is
    loud. A linear decoder of D independent dimensions has about 1 / sqrt(D), so
    compare systems of one width.

    Arguments
    ---------
    moves : Moves
        From `measure_moves`.
    confidence : float
        Share of the distribution inside the intervals.
    resamples, seed : int
        Of the bootstrap.

    Returns
    -------
    dict
        `mean` and `p95`, the mean and 95th percentile of the slopes, and
        `relative_mean` and `relative_p95`; each with `value` and `interval`.
        The number of `clips`, and of `directions` of each.

    Raises
    ------
    ValueError
        If there are fewer than two clips, or a decoded waveform is silent.

    Example
    -------
    >>> found = summarise_moves(Moves(np.full((3, 4), 6.0), np.full(3, 9.0)))
    >>> found["p95"]
    {'value': 6.0, 'interval': [6.0, 6.0]}
    >>> found["relative_mean"]["value"]
    2.0
    """
    slopes, energy = moves
    clips = len(slopes)
    if clips < 2:
        raise Unmeasurable(
            f"{clips} clip is too few for an interval; it needs 2."
        )
    if not (energy > 0).all():
        raise Unmeasurable(
            "A decoded waveform is silent: slopes have no scale."
        )

    def measure(chosen):
        """Numbers of some clips, (..., clips) -> (..., 4)."""
        drawn = slopes[chosen].reshape(*chosen.shape[:-1], -1)
        kinds = [drawn.mean(-1), np.quantile(drawn, 0.95, axis=-1)]
        loudness = np.sqrt(energy[chosen].mean(-1))
        return np.stack([*kinds, *(kind / loudness for kind in kinds)], axis=-1)

    rng = np.random.default_rng(seed)
    tail = (1 - confidence) / 2
    drawn = measure(rng.integers(clips, size=(resamples, clips)))
    low, high = np.quantile(drawn, [tail, 1 - tail], axis=0)
    value = measure(np.arange(clips))
    names = ["mean", "p95", "relative_mean", "relative_p95"]
    return _named(names, value, low, high) | {
        "clips": clips,
        "directions": slopes.shape[1],
    }


def _named(names, *numbers):
    return {
        name: {"value": value, "interval": [low, high]}
        for name, value, low, high in zip(
            names, *(row.tolist() for row in numbers), strict=True
        )
    }
