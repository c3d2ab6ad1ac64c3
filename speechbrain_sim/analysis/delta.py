"""How few dimensions carry the sound: the paper's table 2.

The N dimensions that differ most between two clips are copied from the target
into the start; delta(N) is how far the decoded mixture still is from the
decoded target, relative to the start: 1 without effect, 0 if the target is
reached. (Equation 12 prints another denominator; its text and the authors'
release mean this one.) Which clips, how many pairs, which distance, and whether
the latents are means or samples is to be stated beside each number.

Reference: Denoodt, de Boer, Oramas: Smooth InfoMax (2025), section 4.3.3,
https://arxiv.org/abs/2408.12936
"""

from fractions import Fraction
from typing import NamedTuple

import numpy as np
import torch
from speechbrain.utils.logger import get_logger

from speechbrain_sim.analysis.intervals import Unmeasurable, bootstrap_pairs
from speechbrain_sim.analysis.study import (
    COMPARED,
    LOWER,
    RECORDED,
    Results,
    Tool,
    powers_of_two,
)
from speechbrain_sim.console import Bar
from speechbrain_sim.decoders import SPECTROGRAM, WAVEFORM
from speechbrain_sim.randomness import keyed_generator
from speechbrain_sim.report import style
from speechbrain_sim.report.page import Figure, Table
from speechbrain_sim.report.tables import number, with_interval
from speechbrain_sim.traversals import most_different, swap

logger = get_logger(__name__)

#: of the dimensions, at which delta is compared: the paper's 64 of 512
SHARE = Fraction(1, 8)
#: of the two tools, by kind of decoder: their keys; delta in short
KEYS = {WAVEFORM: "delta", SPECTROGRAM: "delta-mel"}
SYMBOLS = {WAVEFORM: "δ", SPECTROGRAM: "δ (log-mel)"}
#: least share of the recordings' energy that a decoder gives back, if anything
#: is to be concluded from what it decodes
DECODED = 0.25
#: waveforms that differ by less, relative to their size, are the same: the rest
#: is rounding
ROUNDING = 1e-6


class Distances(NamedTuple):
    """Distances to the decoded targets, at each N in `counts`.

    Of the decoded `mixtures`, (pairs, counts), and `starts`, (pairs,).
    """

    counts: list
    mixtures: np.ndarray
    starts: np.ndarray


def draw_pairs(clips, pairs, seed=0):
    """Draws ordered pairs of different clips, without repetition.

    Returns int64 (pairs, 2), start and target: as many as there are, if fewer
    than wanted. Raises a ValueError for fewer than two clips.

    Example
    -------
    >>> draw_pairs(3, 100).tolist()
    [[0, 1], [0, 2], [1, 0], [1, 2], [2, 0], [2, 1]]
    """
    if clips < 2:
        raise ValueError(f"{clips} clips make no pair; two or more are needed.")
    total = clips * (clips - 1)
    if total < pairs:
        few = (
            "There are only %d pairs of %d clips, fewer than the %d asked for."
        )
        logger.warning(few, total, clips, pairs)
    generator = keyed_generator(seed, "pairs")
    chosen = torch.randperm(total, generator=generator)[:pairs].sort().values
    start = chosen // (clips - 1)
    target = chosen % (clips - 1)
    return torch.stack([start, target + (target >= start)], dim=1)


def decode_finite(decode, z):
    """Decodes a batch; an Unmeasurable if a waveform holds NaN or infinity."""
    wavs = decode(z)
    if not wavs.isfinite().all():
        raise Unmeasurable("A decoded waveform holds NaN or infinity.")
    return wavs


def decode_clips(decode, latents, batch_size):
    """Decodes each clip once; see `decode_finite`."""
    parts = latents.split(batch_size)
    return torch.cat([decode_finite(decode, part) for part in parts])


@torch.no_grad()
def share_explained(compared, z, batch_size, kind=WAVEFORM):
    """Returns the share of the clips' energy that a decoder gives back.

    1 - |decoded - recorded|^2 / |recorded|^2 over all clips, by what
    `System.compared` returns: of a spectrogram decoder, the share of the
    variance of log-mel. Raises an Unmeasurable if what is decoded is not
    finite, or if the share is less than `DECODED`: such sounds show the
    decoder's failure, not the latents.
    """
    decode, recorded = compared
    decoded = decode_clips(decode, z, batch_size)
    if not recorded.any():
        raise Unmeasurable("All clips are silent.")
    lost = (decoded - recorded).square().sum() / recorded.square().sum()
    explained = float(1 - lost)
    if not explained >= DECODED:
        option = "decoder_epochs" if kind == WAVEFORM else f"{kind}_options"
        raise Unmeasurable(
            f"The decoder gives back {100 * explained:.0f} % of "
            f"{RECORDED[kind]}; a number takes {100 * DECODED:.0f} % or more: "
            f"train it longer (--{option})."
        )
    return explained


def same_waveform(one, other):
    """Finds the waveforms that differ by no more than rounding.

    Example
    -------
    >>> same_waveform(torch.ones(1, 9), torch.ones(1, 9) + 1e-7)
    tensor([True])
    """
    return (one - other).norm(dim=-1) <= ROUNDING * (one + other).norm(dim=-1)


@torch.no_grad()
def measure_distances(decode, latents, pairs, counts, batch_size=8):
    """Measures how far mixtures of two clips are from their target.

    Every start and target is decoded once, every mixture once for both
    distances; all dimensions make no mixture, but the target. Pairs that decode
    to the `same_waveform` have the distance 0.

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
    """
    channels = latents.shape[-1]
    if not all(0 <= count <= channels for count in counts):
        raise ValueError(f"N is {counts}; there are {channels} dimensions.")
    decoded = decode_clips(decode, latents, batch_size)
    mixtures, starts = [], []
    batches = pairs.split(batch_size)
    for batch in Bar(batches, desc="delta", unit="batch", disable=None):
        (start, target), (whole, goal) = latents[batch.T], decoded[batch.T]
        ranked, gaps = most_different(start, target), []
        for count in counts:
            wavs = goal  # of all dimensions; else of a mixture
            if count < channels:
                mixed = swap(start, target, ranked[:, :count])
                wavs = decode_finite(decode, mixed)
            gaps.append(_distances(wavs, goal))
        gaps = torch.stack(gaps, dim=-1)  # (distances, batch, counts)
        same = same_waveform(whole, goal).cpu()
        mixtures.append(gaps.masked_fill(same[:, None], 0))
        starts.append(_distances(whole, goal).masked_fill(same, 0))
    both = torch.cat(mixtures, 1).numpy(), torch.cat(starts, 1).numpy()
    parts = zip(("mae", "mse"), *both, strict=True)
    return {name: Distances(list(counts), *each) for name, *each in parts}


def _distances(wavs, wanted):
    """Mean absolute and mean squared error, (2, batch)."""
    gap = (wavs - wanted).double()
    return torch.stack([gap.abs().mean(-1), gap.square().mean(-1)]).cpu()


def delta(distances, pairs):
    """Relative error of each N, with intervals bootstrapped over clips.

    A ratio of means over pairs, as in the release.

    Arguments
    ---------
    distances : Distances
        From `measure_distances`, of one distance.
    pairs : torch.Tensor
        The pairs they are of.

    Returns
    -------
    dict
        `counts`, and for each of them `delta` and its `interval`; the number of
        `pairs`, and of `clips` in them, which may be fewer than were wanted.

    Raises
    ------
    Unmeasurable
        If all clips decode to the same waveform, or a distance is not a number.
    """
    pairs, (counts, mixtures, starts) = np.asarray(pairs), distances
    if not np.any(starts):
        raise Unmeasurable("All clips decode to the same waveform: no delta.")
    value, low, high = bootstrap_pairs(mixtures, starts, pairs)
    return {
        "counts": counts,
        "delta": value.tolist(),
        "interval": np.stack([low, high], axis=-1).tolist(),
        "pairs": len(pairs),
        "clips": len(np.unique(pairs)),
    }


def dimensions_at_share(channels):
    """Returns the N that is `SHARE` of all dimensions, rounded; at least 1.

    Example
    -------
    >>> [dimensions_at_share(channels) for channels in (512, 100, 4)]
    [64, 12, 1]
    """
    return max(1, round(SHARE * channels))


def delta_of(scores, n):
    """Returns `n`, `value` and `interval` of delta(N); None without this N."""
    if n not in scores["counts"]:
        return None
    at = scores["counts"].index(n)
    interval = scores["interval"][at]
    return {"n": n, "value": scores["delta"][at], "interval": interval}


def delta_at_share(numbers, distance="mae"):
    """Returns the same where `SHARE` of a layer's dimensions are swapped."""
    n = dimensions_at_share(numbers["dimensions"])
    return delta_of(numbers[distance], n)


def best_delta(study):
    """Returns which deltas of a study are shown first, and these, `Results`.

    The kind is `WAVEFORM`, as in the paper, unless more layers have a delta of
    `SPECTROGRAM`.
    """
    found = {
        kind: Results(study.results.get(key, {})).split()[0]
        for kind, key in KEYS.items()
    }
    best = max(found, key=lambda kind: len([*found[kind].rows()]))
    return best, found[best]


def plot_delta(systems, path, published):
    """Plots delta in each layer over N / D; `published` results dashed."""
    with style.layer_drawing(path, systems.layers()) as panels:
        style.draw_counts(panels, systems, "delta", share=True)
        for _, name, layer, scores in published.rows():
            share = np.array(scores["counts"]) / scores["dimensions"]
            line = systems.look(name)
            line["label"] += ", paper"
            if layer in panels:
                value = 100 * np.array(scores["delta"])
                panels[layer].plot(share, value, "--", linewidth=1, **line)
        for panel in panels.values():
            low = panel.get_xlim()[0]
            ticks = [Fraction(1, 4**k) for k in range(6) if 4.0**-k > low]
            panel.set_xticks(list(map(float, ticks)), map(str, ticks), size=7)
            panel.minorticks_off()
            panel.set_xlabel("share of dimensions, N / D")
        panels[systems.layers()[0]].set_ylabel("relative error δ (%)")


class Delta(Tool):
    """Section of the relative error delta, by decoders of one kind.

    The paper's is of waveforms; of spectrograms, it is of their log-mel.
    """

    sentence = "Lower is better: where δ falls early, few dimensions suffice."

    def __init__(self, kind=WAVEFORM):
        self.kind, self.needs, self.key = kind, (kind,), KEYS[kind]
        self.title = "How few dimensions carry the sound"
        meaning = (
            f"δ: {SHARE} of the dimensions, those in which two recordings "
            "differ most, are copied from one to the other; δ is how far the "
            "sound still is from the other's, from 0 % (these few carry all of "
            "it) to 100 % (they change nothing)."
        )
        if kind != WAVEFORM:
            self.title += ", by log-mel"
            meaning = f"{SYMBOLS[kind]}: δ of log-mel spectrograms."
        title = f"{SYMBOLS[kind]} at N/D = {SHARE} (%)\n{LOWER}"
        self.columns = {title: meaning}

    def cells(self, numbers):
        """Returns the cells of `columns`."""
        return [with_interval(delta_at_share(numbers), 100, 1)]

    def settings(self, study):
        """Returns the number of pairs, and what a decoder has to reach."""
        return {"pairs": len(study.pairs), "decoded": DECODED}

    def measure(self, system, study):
        """Returns `mae` and `mse` of each layer whose decoder works.

        See `delta` and `share_explained`.

        Also `dimensions`; `explained`, the share that decoded means give back;
        `per_pair`, the mean absolute errors at `SHARE`.
        """
        pairs, size = study.pairs, study.batch_size

        def measure(layer, latent):
            z, how = latent.mean, system.compared(layer, self.kind)
            explained = share_explained(how, z, size, self.kind)
            decode, _ = how
            n = dimensions_at_share(z.shape[-1])
            counts = sorted({*powers_of_two(z.shape[-1]), n})
            distances = measure_distances(decode, z, pairs, counts, size)
            _, mixtures, starts = distances["mae"]
            at_share = mixtures[:, counts.index(n)].tolist()
            return {
                "dimensions": z.shape[-1],
                "explained": explained,
                **{name: delta(d, pairs) for name, d in distances.items()},
                "per_pair": [at_share, starts.tolist()],
            }

        with torch.no_grad():
            return system.each_layer(measure)

    def compare(self, results, study):
        """Returns the differences of delta at `SHARE`, by `mae`."""
        return study.compare(results, study.pairs)

    def items(self, found, study):
        """Returns tables of delta and its curves, ours and published."""
        note, published = study.published.get("note"), Results()
        if self.kind == WAVEFORM:  # the paper's decoders
            published = _published(found, study)
        curves = found.map(lambda numbers: {**numbers, **numbers["mae"]})
        figure = f"figures/{self.key}"
        plot_delta(curves, study.folder / figure, published)
        caption = f"Mean absolute error of {COMPARED[self.kind]}; bands: 95 % "
        caption += "intervals over clips."
        caption += f" Dashed: the paper's. {note}" if published else ""
        items = [
            self.share_table(found, published, self.compare(found, study)),
            Figure(
                "Relative error δ over the share of swapped dimensions",
                caption,
                figure,
                "Lines of δ over the share of dimensions, a panel per layer.",
            ),
            self.table(found, "mae", "absolute"),
            self.table(found, "mse", "squared"),
        ]
        rows = []
        for name, _, _, of in published.rows():
            pairs = zip(of["counts"], of["delta"], strict=True)
            cells = {f"N = {n}": number(100 * x) for n, x in pairs}
            rows.append({"": name, **cells})
        table = Table.of("δ(N) in percent, as published", note, rows)
        return [*items, table] if rows else items

    def share_table(self, found, published, differences):
        """Delta at `SHARE`, beside the paper's."""
        rows, paper = [], ""
        for name, system, layer, numbers in found.rows():
            mae, mse = delta_at_share(numbers), delta_at_share(numbers, "mse")
            scores = {"δ, absolute": mae, "δ, squared": mse}
            scores["difference"] = differences.get(system, {}).get(layer)
            row = {"": name, "N": f"{mae['n']} of {numbers['dimensions']}"}
            row |= {key: with_interval(x, 100, 1) for key, x in scores.items()}
            theirs = published.get(system, {}).get(layer)
            if theirs:
                n = dimensions_at_share(theirs["dimensions"])
                at = theirs["counts"].index(n)
                row["paper"] = number(100 * theirs["delta"][at])
                paper = f" Paper: N = {n} of {theirs['dimensions']}."
            rows.append(row)
        return Table.of(
            f"δ in percent where {SHARE} of the dimensions are swapped",
            f"By mean absolute and mean squared error of {COMPARED[self.kind]}; "
            "difference to the last system by the first, on the same pairs. "
            f"95 % intervals over clips.{paper}",
            rows,
        )

    def table(self, found, distance, name):
        """Delta of every N; blank where a layer has not so many dimensions."""
        every = found.map(lambda numbers: numbers[distance])
        counts = {n for *_, scores in every.rows() for n in scores["counts"]}
        rows = []
        for row, system, layer, scores in every.rows():
            explained = found[system][layer]["explained"]
            cells = {"": row, "decoded (%)": number(100 * explained, 0)}
            for n in sorted(counts):
                cells[f"N = {n}"] = with_interval(delta_of(scores, n), 100, 1)
            rows.append(cells)
        of = every.first()
        all_pairs = of["pairs"] == of["clips"] * (of["clips"] - 1)
        every_pair = " (there are no more)" * all_pairs
        return Table.of(
            f"δ(N) in percent, mean {name} error",
            f"Of {COMPARED[self.kind]}. "
            f"{of['pairs']} ordered pairs{every_pair} of {of['clips']} clips, "
            "means of posteriors; a ratio of means over pairs. Decoded: share "
            f"of {RECORDED[self.kind]} that the decoder gives back, of which "
            f"{100 * DECODED:.0f} % are needed.",
            rows,
        )


def _published(found, study):
    """Published deltas of the systems that are shown, as fractions."""
    counts, every = study.published.get("counts"), study.published.get("delta")
    shown = {s: x for s, x in (every or {}).items() if s in found}

    def scores(percents):
        values = [value / 100 for value in percents]
        return {"counts": counts, "dimensions": counts[-1], "delta": values}

    return Results(shown).map(scores)
