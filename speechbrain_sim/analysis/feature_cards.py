"""The features of a bottleneck, as cards: where they fire, what they change."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy import sparse

from speechbrain_sim.analysis.moments import (
    DENSE,
    RARE,
    best_of_each,
    histogram,
    most_interesting,
    profile,
    top_moments,
)
from speechbrain_sim.bottlenecks.coded import BLOCK, code_blocks, move
from speechbrain_sim.console import Bar
from speechbrain_sim.data.audio import SAMPLE_RATE
from speechbrain_sim.data.labels import NO_LABEL
from speechbrain_sim.decoders import SpectrogramDecoder, shortest
from speechbrain_sim.report.features import Card, Catalogue, Clip
from speechbrain_sim.report.page import Gap, template
from speechbrain_sim.spectrograms import log_mel, log_power, mel_filters

#: activations above 0 that are kept in memory
MOST_ACTIVATIONS = 20_000_000
#: seconds of a clip, of one of a recording without moments, and of a whole file
CLIP_SECONDS, POOLED_SECONDS, FILE_SECONDS = 0.6, 2.0, 10.0
#: features whose effect is measured for each one that is shown
TRIED = 3
#: what a feature's activations are multiplied by in the steered clips
FACTORS = {"unchanged": 1.0, "silenced": 0.0, "half as strong": 0.5}
FACTORS |= {"twice as strong": 2.0, "three times as strong": 3.0}
#: decibels of a factor e of power
DB = 10 / np.log(10)
#: scores of the names of features
F1, GAIN = "F1", "gain of F1"


class Source(NamedTuple):
    """Frames of a layer, and the recordings that they are of.

    Arguments
    ---------
    rows : Rows or torch.Tensor
        (rows, channels), utterance after utterance.
    utterance : numpy.ndarray
        Of each row, (rows,), ascending.
    geometry : (int, float) or None
        `Encoder.frame_geometry`; None for one row per utterance, its mean.
    names : list of str
        Of the utterances.
    read : callable
        (utterance, start, stop) -> samples at 16 kHz, (samples,).
    labels : dict of str to (list of str, numpy.ndarray)
        Label -> its classes, and the class of each row or `NO_LABEL`.
    """

    rows: Any
    utterance: np.ndarray
    geometry: tuple | None
    names: list
    read: Callable
    labels: dict


@torch.no_grad()
def read_codes(bottleneck, source, most=MOST_ACTIVATIONS):
    """Encodes frames: the codes of all, or of every n-th utterance.

    Returns
    -------
    codes, kept : (scipy.sparse.csc_array, numpy.ndarray)
        (kept rows, units), none below 0; which rows these are. So many are kept
        that about `most` activations are above 0, by the first frames.
    """
    first = next(code_blocks(bottleneck, source.rows))
    fires = max(1.0, float((first > 0).sum()) / len(first))
    step = int(np.ceil(len(source.rows) * fires / most))
    kept = np.flatnonzero(source.utterance % step == 0)
    blocks = code_blocks(bottleneck, source.rows, torch.from_numpy(kept))
    few, total = len(kept) < 8 * BLOCK, -(-len(kept) // BLOCK)
    bar = Bar(blocks, "features", total, disable=few, unit="block")
    codes = [sparse.csr_array(z.clamp(min=0).cpu().numpy()) for z in bar]
    return sparse.vstack(codes, "csc"), kept


@torch.no_grad()
def steered(bottleneck, decoder, h, unit, span, factors):
    """Decodes frames with a feature multiplied, h + decode(z') - decode(z).

    Arguments
    ---------
    bottleneck, decoder : Bottleneck, Decoder
        Of the same layer.
    h, unit, span : torch.Tensor, int, slice
        (frames, channels); which feature is changed, in which frames.
    factors : list of float
        What it is multiplied by.

    Returns
    -------
    predicted, mels, samples : (torch.Tensor, numpy.ndarray, int)
        What `Decoder.predict` returns, (factors, ...); log-mels, (factors,
        frames, bands); the length of the sounds.
    """
    h = h.to(bottleneck.mean.device)
    z = bottleneck.encode(h)
    changes = [({unit: factor}, span, "scale") for factor in factors]
    h = torch.stack([move(bottleneck, h, z, *how)[0] for how in changes])
    samples = shortest(decoder.shapes, h.shape[1])
    predicted = decoder(h, samples, as_sound=False)
    spectrogram = predicted
    if not isinstance(decoder, SpectrogramDecoder):
        lengths = torch.full((len(h),), samples)
        spectrogram = log_power(predicted, lengths)
    mels = log_mel(spectrogram, mel_filters().to(spectrogram))
    return predicted, mels.cpu().numpy(), samples


class Features:
    """Codes of a bottleneck, and what is shown of them.

    Arguments
    ---------
    bottleneck, source : Bottleneck, Source
        What is shown, of which frames.
    decoder : Decoder or None
        Of the layer below the bottleneck; without it, nothing is steered.
    names : dict of int to str, optional
        What features are called.
    """

    def __init__(self, bottleneck, source, decoder=None, names=None):
        self.bottleneck, self.source, self.decoder = bottleneck, source, decoder
        self.codes, kept = read_codes(bottleneck, source)
        self.utterance = source.utterance[kept]
        labels = source.labels.items()
        self.labels = {n: (classes, y[kept]) for n, (classes, y) in labels}
        self.names = dict(names or {})
        self.rows, units = self.codes.shape
        self.firing = np.diff(self.codes.indptr) / self.rows
        self.effects = np.full(units, np.nan)
        self.pooled = source.geometry is None
        self.audible = not (decoder is None or self.pooled)

    def activations(self, unit):
        """Returns the activations of a unit in the kept rows."""
        return self.codes[:, [unit]].toarray()[:, 0]

    def moments(self, unit, count):
        """Finds the strongest moments of a unit, of several recordings."""
        each = 2 if len(self.source.names) > 1 else None
        return top_moments(self.activations(unit), self.utterance, count, each)

    def choose(self, scores, count):
        """Chooses features by scores, and by their effect.

        By `GAIN`, the best of each name come first; not by `F1`. The effect is
        that of silencing: the mean change of the mel spectrogram in the
        strongest moment, in dB.
        """
        called = [self.names.get(unit, "") for unit in range(len(self.firing))]
        ranked = [
            best_of_each(x, called) if name == GAIN else x
            for name, x in scores.items()
            if name != F1
        ]
        options = self.firing, self.rows
        tried = most_interesting(ranked, *options, TRIED * count)
        if not self.audible:
            return tried[:count]
        for unit in tried:
            _, (before, after), _, ends = self.steer(unit, [1.0, 0.0])
            first, last = (int(100 * end) for end in ends)
            first = min(max(0, first), len(before) - 1)
            change = np.abs(after - before)[first : max(first, last) + 1]
            self.effects[unit] = DB * change.mean()
        return most_interesting([*ranked, self.effects], *options, count)

    def window(self, moment):
        """Returns the frames of a clip around a moment.

        As (frames, channels), the slice that the moment is of them, the place
        of the first one in the utterance, and the ends of the moment in seconds.
        """
        hop, center = self.source.geometry
        owners = [moment.utterance, moment.utterance + 1]
        first, last = np.searchsorted(self.source.utterance, owners).tolist()
        size = min(round(CLIP_SECONDS * SAMPLE_RATE / hop), last - first)
        begin = (moment.start + moment.stop - size) // 2
        begin = max(0, min(begin, last - first - size))
        span = slice(max(0, moment.start - begin), moment.stop - begin)
        rows = (span.start - 0.5, span.stop - 0.5)
        ends = tuple((center + hop * row) / SAMPLE_RATE for row in rows)
        first += begin
        return self.source.rows[first : first + size], span, begin, ends

    def clip(self, moment, z):
        """Cuts the clip of a moment out of its recording."""
        owner, name = moment.utterance, self.source.names[moment.utterance]
        first = np.searchsorted(self.utterance, owner)
        rows, words = slice(first + moment.start, first + moment.stop), []
        for classes, y in self.labels.values():
            if len(known := y[rows][y[rows] != NO_LABEL]):
                words.append(classes[np.bincount(known).argmax()])
        if self.pooled:
            wav = self.source.read(
                owner, 0, round(POOLED_SECONDS * SAMPLE_RATE)
            )
            words.append(f"first {len(wav) / SAMPLE_RATE:.3g} s of {name}")
            return Clip(", ".join(words), wav)
        h, _, begin, ends = self.window(moment)
        place = ends[0] + begin * self.source.geometry[0] / SAMPLE_RATE
        words.append(f"{name} at {max(0, place):.2f} s")
        z = z[first:] / z.max()
        return self.cut(", ".join(words), owner, begin, len(h), z, ends)

    def cut(self, label, owner, begin, frames, z, span=None):
        """Cuts frames out of a recording; `z` are those of the recording."""
        hop, center = self.source.geometry
        ends = (round(hop * at) for at in (begin, begin + frames))
        wav = self.source.read(owner, *ends)
        times = (center + hop * np.arange(frames)) / SAMPLE_RATE
        curve = np.stack([times, z[begin : begin + frames]])
        return Clip(label, wav, span, curve)

    def whole(self, unit):
        """Returns the beginning of the first recording, with a curve."""
        z, hop = self.activations(unit), self.source.geometry[0]
        frames = min(len(z), round(FILE_SECONDS * SAMPLE_RATE / hop))
        return self.cut("From the beginning", 0, 0, frames, z / z.max())

    def steer(self, unit, factors):
        """Changes a feature in its strongest moment: see `steered`.

        Returns also the ends of the moment in seconds.
        """
        h, span, _, ends = self.window(self.moments(unit, 1)[0])
        parts = self.bottleneck, self.decoder
        return *steered(*parts, h, unit, span, factors), ends

    def steered_clips(self, unit):
        """Decodes the strongest moment with the feature changed."""
        predicted, mels, samples, ends = self.steer(unit, [*FACTORS.values()])
        lengths = torch.full((len(mels),), samples)
        wavs = self.decoder.sound(predicted, samples, lengths).cpu().numpy()
        changes = [None, *(mels[1:] - mels[0])]
        kinds = zip(FACTORS, wavs, changes, strict=True)
        return [Clip(name, wav, ends, None, x) for name, wav, x in kinds]

    def card(self, unit, scores, count):
        """Makes the card of a unit."""
        z, labels = self.activations(unit), self.labels.items()
        numbers = {name: float(values[unit]) for name, values in scores.items()}
        profiles = {
            name: profile(z, y, classes) for name, (classes, y) in labels
        }
        return Card(
            unit,
            self.names.get(unit, ""),
            [rows[0][0] for rows in profiles.values() if rows],
            {n: x if np.isfinite(x) else None for n, x in numbers.items()},
            histogram(z),
            profiles,
            [self.clip(moment, z) for moment in self.moments(unit, count)],
            self.steered_clips(unit) if self.audible else [],
        )

    def catalogue(self, title, scores, count, moments):
        """Makes the cards of the most interesting units, or a gap."""
        scores = {n: np.array(x, float) for n, x in scores.items()}
        if GAIN not in scores:
            scores["mean activation"] = self.codes.mean(0)
        chosen = self.choose(scores, count)
        of = "recordings" if self.pooled else "frames"
        band = f"{100 * RARE:g} to {100 * DENSE:g} % of {self.rows:,} {of}"
        if not chosen:
            return Gap(title, f"No feature fires in {band}: see the scores.")
        shown = {"fires (%)": 100 * self.firing, **scores}
        shown |= {"effect (dB)": self.effects}
        shown = {n: x for n, x in shown.items() if np.isfinite(x[chosen]).any()}
        cards = [self.card(unit, shown, moments) for unit in chosen]
        numbers = {"scores": [n for n in scores if n != F1], "of": of}
        numbers |= {"chosen": chosen, "firing": self.firing.tolist()}
        numbers |= {
            "audible": self.audible,
            "pooled": self.pooled,
            "band": band,
        }
        numbers |= {"labels": self.labels, "names": self.names}
        text = template("features.md").render(numbers)
        caption, steering = (" ".join(x.split()) for x in text.split("---"))
        return Catalogue(title, caption, cards, steering)
