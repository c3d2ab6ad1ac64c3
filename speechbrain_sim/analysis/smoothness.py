"""How smoothly a decoder follows the latents: numbers for figure 2.

The paper shows waveforms along a straight walk between two clips. Measured
here: whether the decoded walk is straight and even, and how far a small step
in the latents carries. Distances are Euclidean, over the waveform, or over the
log-mel of a decoded spectrogram. Which clips, how many pairs, and whether the
latents are means or samples is to be stated beside each number.

Reference: Denoodt, de Boer, Oramas: Smooth InfoMax (2025), section 4.3.1,
https://arxiv.org/abs/2408.12936
"""

from typing import NamedTuple

import numpy as np
import torch

from speechbrain_sim.analysis import delta, intervals
from speechbrain_sim.analysis.study import COMPARED, LOWER, RECORDED, Tool
from speechbrain_sim.console import Bar
from speechbrain_sim.decoders import WAVEFORM
from speechbrain_sim.randomness import keyed_generator
from speechbrain_sim.report import style
from speechbrain_sim.report.page import Figure, Table
from speechbrain_sim.report.tables import with_interval
from speechbrain_sim.traversals import interpolate

#: length of a move, in deviations
MOVE = 0.1


class Walks(NamedTuple):
    """Decoded walks between two clips.

    Length of each of the `steps`, (pairs, steps), and `distances` from end to
    end, (pairs,); 0 where both decode to the same waveform.
    """

    steps: np.ndarray
    distances: np.ndarray


class Moves(NamedTuple):
    """Decoded small moves of single frames.

    `slopes`: distance that the waveform moves, per deviation that the frame
    moves, (clips, directions). `frame_energy`: mean energy of the samples that
    one frame stands for, (clips,).
    """

    slopes: np.ndarray
    frame_energy: np.ndarray


@torch.no_grad()
def measure_walks(decode, latents, pairs, steps=10, batch_size=8):
    """Walks from clip to clip in equal steps, and decodes every stop.

    See `speechbrain_sim.analysis.delta.measure_distances`; returns `Walks`.
    """
    decoded = delta.decode_clips(decode, latents, batch_size)
    lengths, distances = [], []
    batches = pairs.split(batch_size)
    for batch in Bar(batches, desc="walks", unit="batch", disable=None):
        stops = interpolate(*latents[batch.T], steps + 1)[1:-1]
        between = [delta.decode_finite(decode, z) for z in stops]
        start, target = decoded[batch.T]
        walk = torch.stack([start, *between, target]).double()
        lengths.append(walk.diff(dim=0).norm(dim=-1).T.cpu())
        distance = (walk[-1] - walk[0]).norm(dim=-1)
        same = delta.same_waveform(walk[0], walk[-1])
        distances.append(distance.masked_fill(same, 0).cpu())
    return Walks(torch.cat(lengths).numpy(), torch.cat(distances).numpy())


def summarise_walks(walks, pairs):
    """Computes how straight and how even decoded walks are.

    Means over pairs, with intervals bootstrapped over clips. Pairs that decode
    to the same waveform are left out; an Unmeasurable if all do.

    Returns
    -------
    dict
        `path_ratio`, path length / distance from end to end: 1 is straight;
        `step_ratio`, largest step / mean step: 1 is even, and the number of
        steps is a single jump; each with `value` and `interval`. The number of
        `steps`, of `pairs` that count, of pairs `left_out`, and of `clips` in
        those that count, which may be fewer than were wanted.
    """
    differ = walks.distances > 0
    if not differ.any():
        raise intervals.Unmeasurable(
            "All clips decode to the same waveform: no walk."
        )
    steps, distances = walks.steps[differ], walks.distances[differ]
    pairs = np.asarray(pairs)[differ]
    ratios = [steps.sum(1) / distances, steps.max(1) / steps.mean(1)]
    value, low, high = intervals.bootstrap_pairs(
        np.stack(ratios, axis=1), 1, pairs
    )
    return _named(["path_ratio", "step_ratio"], value, low, high) | {
        "steps": steps.shape[1],
        "pairs": len(pairs),
        "left_out": int((~differ).sum()),
        "clips": len(np.unique(pairs)),
    }


@torch.no_grad()
def measure_moves(decode, latents, directions=8, batch_size=8, seed=0):
    """Moves single frames by `MOVE`, in random directions, and decodes them.

    A direction has unit length in units of each dimension's deviation over all
    frames of all clips, so that systems compare whatever their scale.

    Arguments
    ---------
    decode, latents, batch_size :
        See `speechbrain_sim.analysis.delta.measure_distances`.
    directions : int
        Moves of each clip, each of a random frame.
    seed : int
        Of frames and directions.

    Returns
    -------
    Moves
    """
    clips, time, channels = latents.shape
    generator = keyed_generator(seed, "moves")
    count = clips * directions
    frames = torch.randint(time, (count,), generator=generator)
    units = torch.randn(count, channels, generator=generator).to(latents)
    std = latents.flatten(0, 1).std(0, correction=0)
    units *= std > 0  # a code may have features that are never active
    moves = MOVE * torch.nn.functional.normalize(units, dim=-1) * std
    decoded = delta.decode_clips(decode, latents, batch_size).double()
    slopes, rows = [], torch.arange(count).split(batch_size)
    for row in Bar(rows, desc="moves", unit="batch", disable=None):
        clip = row // directions
        z = latents[clip]  # a copy
        z[torch.arange(len(row)), frames[row]] += moves[row]
        gap = delta.decode_finite(decode, z).double() - decoded[clip]
        slopes.append(gap.norm(dim=-1).cpu() / MOVE)
    energy = decoded.square().sum(-1).cpu() / time
    slopes = torch.cat(slopes).view(clips, directions)
    return Moves(slopes.numpy(), energy.numpy())


def summarise_moves(moves):
    """Estimates a local Lipschitz constant, with intervals over clips.

    The slopes have the unit of the waveform. The relative ones are divided by
    the root mean square of what one frame stands for (the RMS of the decoded
    waveforms times the root of their samples per frame): 1 if a frame that
    moves by one deviation changes the waveform as much as a whole frame is
    loud. A linear decoder of D independent dimensions has about 1 / sqrt(D), so
    compare systems of one width.

    Returns
    -------
    dict
        `mean` and `p95`, the mean and 95th percentile of the slopes, and
        `relative_mean` and `relative_p95`; each with `value` and `interval`.
        The number of `clips`, and of `directions` of each.

    Raises
    ------
    Unmeasurable
        If there are fewer than two clips, or a decoded waveform is silent.
    """
    slopes, energy = moves
    if not (energy > 0).all():
        raise intervals.Unmeasurable(
            "A decoded waveform is silent: no scale of slopes."
        )

    def measure(chosen, axis=-1):
        """Numbers of some clips, (..., clips) -> (4, ...)."""
        drawn = slopes[chosen].reshape(*chosen.shape[:-1], -1)
        kinds = [drawn.mean(-1), np.quantile(drawn, 0.95, axis=-1)]
        loudness = np.sqrt(energy[chosen].mean(-1))
        return np.stack([*kinds, *(kind / loudness for kind in kinds)])

    every = np.arange(len(slopes))
    low, high = intervals.bootstrap(measure, every, unit="clip")
    names = ["mean", "p95", "relative_mean", "relative_p95"]
    counts = {"clips": len(slopes), "directions": slopes.shape[1]}
    return _named(names, measure(every), low, high) | counts


def _named(names, *numbers):
    rows = zip(names, np.transpose(numbers).tolist(), strict=True)
    return {n: {"value": v, "interval": ends} for n, (v, *ends) in rows}


def plot_smoothness(systems, path):
    """Plots how straight, even and gentle decoded paths are: `Results`."""
    quantities = {
        "path length / distance\n(1: straight)": ("walks", "path_ratio"),
        "largest / mean step\n(1: even)": ("walks", "step_ratio"),
        "relative change\nper deviation": ("moves", "relative_mean"),
    }
    layers, look = systems.layers(), {"markersize": 4, "elinewidth": 1}
    with style.drawing(path, 1, 3, (8.4, 2.6)) as (figure, axes):
        drawn = zip(axes[0], quantities.items(), strict=True)
        for panel, (label, (kind, quantity)) in drawn:
            for i, (name, found) in enumerate(systems.items()):
                shift = 0.5 * ((i + 0.5) / len(systems) - 0.5)
                x = [layers.index(layer) + shift for layer in found]
                points = [found[layer][kind][quantity] for layer in found]
                y, ends = style.error_bars(points)
                line = systems.look(name) | look
                panel.errorbar(x, y, ends, fmt="o", **line)
            panel.set_xticks(range(len(layers)), layers)
            panel.set_xlim(-0.5, len(layers) - 0.5)
            panel.set_ylabel(label)
        for panel in axes[0, :2]:
            panel.axhline(1, color="black", linestyle=":", linewidth=1)
        axes[0, 2].set_ylim(bottom=0)
        style.legend_below(figure)


class Smoothness(Tool):
    """Section of smoothness as a number."""

    sentence = "Smoother: nearer to 1 (left, middle). Gentler: lower (right)."

    def __init__(self, kind=WAVEFORM):
        self.kind, self.needs = kind, (kind,)
        self.key, self.title = "smoothness", "Smoothness as a number"
        self.columns = {
            f"path / distance\n{LOWER}": "Path / distance: length of the decoded "
            "way from one recording to another, over their distance (1: straight)."
        }
        if kind != WAVEFORM:
            self.key, self.title = "smoothness-mel", f"{self.title}, by log-mel"
            self.columns = {}  # the summary is wide enough

    def cells(self, numbers):
        """Returns the cells of `columns`."""
        cells = [with_interval(numbers["walks"]["path_ratio"])]
        return cells[: len(self.columns)]

    def settings(self, study):
        """Returns pairs, steps, directions, and what a decoder has to reach."""
        steps = [study.steps, study.directions]
        settings = {"pairs": len(study.walk_pairs), "steps": steps}
        return settings | {"decoded": delta.DECODED}

    def measure(self, system, study):
        """Returns `walks` and `moves` of each layer whose decoder works.

        Also `per_pair`: path length and distance of the ends; both 0 where a
        pair is left out.
        """
        pairs, size = study.walk_pairs, study.batch_size

        def measure(layer, latent):
            z, how = latent.mean, system.compared(layer, self.kind)
            delta.share_explained(how, z, size, self.kind)
            decode, _ = how
            walks = measure_walks(decode, z, pairs, study.steps, size)
            moves = measure_moves(decode, z, study.directions, size, study.seed)
            paths = walks.steps.sum(1) * (walks.distances > 0)
            return {
                "walks": summarise_walks(walks, pairs),
                "moves": summarise_moves(moves),
                "per_pair": [paths.tolist(), walks.distances.tolist()],
            }

        return system.each_layer(measure)

    def compare(self, results, study):
        """Returns the differences of mean path length to mean distance."""
        return study.compare(results, study.walk_pairs)

    def items(self, found, study):
        """Returns the figure and the table of walks and moves."""
        figure = f"figures/{self.key}"
        plot_smoothness(found, study.folder / figure)
        differences, rows = self.compare(found, study), []
        for name, system, layer, numbers in found.rows():
            walks, moves = numbers["walks"], numbers["moves"]
            scores = {
                "path / distance": walks["path_ratio"],
                "difference": differences.get(system, {}).get(layer),
                "largest / mean step": walks["step_ratio"],
                "Lipschitz, mean": moves["relative_mean"],
                "Lipschitz, 95th percentile": moves["relative_p95"],
            }
            row = {key: with_interval(score) for key, score in scores.items()}
            rows.append({"": name, **row, "left out": f"{walks['left_out']}"})
        return [
            Figure(
                "Decoded walks and moves",
                f"Of {COMPARED[self.kind]}. Left: length of the path over the "
                "distance of its ends. Middle: largest over mean step. "
                "Right: change for each deviation that one frame moves in a "
                f"random direction (by {MOVE}), over what a frame carries: its "
                "loudness, or deviation in log-mel (Lipschitz).",
                figure,
                "Three panels of points with intervals, by layer and system.",
            ),
            Table.of(
                "Along interpolations, and around latents",
                f"{len(study.walk_pairs)} pairs of clips, {study.steps} steps; "
                "means over pairs. Difference to the last system: of mean "
                "length / mean distance, on the same pairs. Left out: pairs "
                "that decode to the same sound, in no number. Decoders give "
                f"back {100 * delta.DECODED:.0f} % of {RECORDED[self.kind]} or "
                "more. 95 % intervals over clips.",
                rows,
            ),
        ]
