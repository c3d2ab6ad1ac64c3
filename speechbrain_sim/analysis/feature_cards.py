"""The features of a bottleneck, as cards: where they fire, what they change."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy import sparse
from tqdm import tqdm

from speechbrain_sim.analysis.moments import (
    DENSE,
    RARE,
    best_labels,
    best_of_each,
    histogram,
    most_interesting,
    profile,
    top_moments,
)
from speechbrain_sim.bottlenecks.coded import change_codes, steer
from speechbrain_sim.data.audio import SAMPLE_RATE
from speechbrain_sim.data.labels import NO_LABEL
from speechbrain_sim.decoders import SpectrogramDecoder, shortest
from speechbrain_sim.report.features import Card, Catalogue, Clip
from speechbrain_sim.report.page import Gap
from speechbrain_sim.spectrograms import log_mel, log_power, mel_filters

#: activations above 0 that are kept in memory, and frames encoded at a time
MOST_ACTIVATIONS, PIECE = 30_000_000, 4096
#: seconds of a clip, of one of a recording without moments, and of a whole file
CLIP_SECONDS, POOLED_SECONDS, FILE_SECONDS = 0.6, 2.0, 10.0
#: features whose effect is measured for each one that is shown
TRIED = 3
#: what a feature's activations are multiplied by in the steered clips
FACTORS = {"unchanged": 1.0, "silenced": 0.0, "three times as strong": 3.0}
#: decibels of a factor e of power
DB = 10 / np.log(10)
STEERING = "Decoded with the feature's activations multiplied, between the "
STEERING += (
    "marks, in its strongest moment: h + decode(z′) − decode(z). Below, "
)
STEERING += "by how much the mel spectrogram differs, from −20 dB (blue) to 20."


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
    first = bottleneck.encode(source.rows[:PIECE])
    fires = max(1.0, float((first > 0).sum()) / len(first))
    step = int(np.ceil(len(source.rows) * fires / most))
    kept = np.flatnonzero(source.utterance % step == 0)
    pieces = torch.from_numpy(kept).split(PIECE)
    bar = tqdm(pieces, "features", disable=len(pieces) < 9, unit="piece")
    codes = (bottleneck.encode(source.rows[at]).clamp(min=0) for at in bar)
    codes = [sparse.csr_array(z.cpu().numpy()) for z in codes]
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
    z = bottleneck.encode(h)
    changes = [change_codes(z, {unit: x}, span, "scale") for x in factors]
    h = torch.stack([steer(bottleneck, h, z, changed) for changed in changes])
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
        What features are called, if there are no labels to call them by.
    """

    def __init__(self, bottleneck, source, decoder=None, names=None):
        self.bottleneck, self.source, self.decoder = bottleneck, source, decoder
        self.codes, self.kept = read_codes(bottleneck, source)
        self.utterance = source.utterance[self.kept]
        self.labels = {
            label: (classes, y[self.kept])
            for label, (classes, y) in source.labels.items()
        }
        rows, units = self.codes.shape
        self.firing = np.diff(self.codes.indptr) / rows
        self.called, self.f1, self.gain, self.words = best_labels(
            self.codes, self.labels
        )
        self.names = [
            f"{called} {f1:.2f}" if called else (names or {}).get(unit, "")
            for unit, (called, f1) in enumerate(
                zip(self.called, self.f1, strict=False)
            )
        ]
        self.effects = np.full(units, np.nan)
        # of the recordings of a corpus, as many as possible
        self.per_utterance = 2 if len(source.names) > 1 else None
        self.audible = decoder is not None and source.geometry is not None

    def activations(self, unit):
        """Returns the activations of a unit in the kept rows."""
        return self.codes[:, [unit]].toarray()[:, 0]

    def choose(self, scores, count):
        """Chooses features by gain of F1, by scores, and by their effect."""
        ranked = [best_of_each(self.gain, self.called), *scores.values()]
        options = self.firing, TRIED * count, len(self.kept)
        tried = most_interesting(ranked, *options)
        if not self.audible:
            return tried[:count]
        for unit in tried:
            (moment,) = top_moments(self.activations(unit), self.utterance, 1)
            h, span, _ = self.window(moment)
            mels = steered(
                self.bottleneck, self.decoder, h, unit, span, [1.0, 0.0]
            )[1]
            start, stop, _ = (100 * np.array(self.seconds(moment))).astype(int)
            change = np.abs(mels[1] - mels[0])[start : stop + 1]
            self.effects[unit] = DB * change.mean()
        ranked.append(self.effects)
        return most_interesting(ranked, self.firing, count, len(self.kept))

    def window(self, moment):
        """Returns the frames of a clip around a moment.

        As (frames, channels), the slice that the moment is of them, and the
        place of the first one in the utterance.
        """
        first, last = np.searchsorted(
            self.source.utterance, [moment.utterance, moment.utterance + 1]
        )
        size = round(CLIP_SECONDS * SAMPLE_RATE / self.source.geometry[0])
        begin = (moment.start + moment.stop - size) // 2
        begin = max(0, min(begin, int(last - first) - size))
        rows = slice(
            int(first) + begin, min(int(first) + begin + size, int(last))
        )
        span = slice(max(0, moment.start - begin), moment.stop - begin)
        return self.source.rows[rows], span, begin

    def seconds(self, moment):
        """Returns start and stop of a moment in its clip, and its own place."""
        hop, center = self.source.geometry
        begin = self.window(moment)[2]
        ends = [
            max(0.0, center + hop * (row - begin - 0.5)) / SAMPLE_RATE
            for row in (moment.start, moment.stop)
        ]
        return *ends, max(0.0, center + hop * moment.start) / SAMPLE_RATE

    def clip(self, moment, z):
        """Cuts the clip of a moment out of its recording."""
        owner, name = moment.utterance, self.source.names[moment.utterance]
        first = np.searchsorted(self.utterance, owner)
        rows = slice(first + moment.start, first + moment.stop)
        said = [
            classes[np.bincount(known).argmax()]
            for classes, y in self.labels.values()
            if len(known := y[rows][y[rows] != NO_LABEL])
        ]
        if self.source.geometry is None:
            stop = round(POOLED_SECONDS * SAMPLE_RATE)
            wav = self.source.read(owner, 0, stop)
            return Clip(", ".join([*said, name]), wav)
        h, _, begin = self.window(moment)
        start, stop, place = self.seconds(moment)
        label = ", ".join([*said, f"{name} at {place:.2f} s"])
        z = z[first:] / z.max()
        return self.cut(label, owner, begin, len(h), z, (start, stop))

    def cut(self, label, owner, begin, frames, z, span=None):
        """Cuts frames out of a recording; `z` are those of the recording."""
        hop, center = self.source.geometry
        wav = self.source.read(owner, hop * begin, hop * (begin + frames))
        times = (center + hop * np.arange(frames)) / SAMPLE_RATE
        curve = np.stack([times, z[begin : begin + frames]])
        return Clip(label, wav, span, curve)

    def whole(self, unit):
        """Returns the beginning of the first recording, with a curve."""
        z, hop = self.activations(unit), self.source.geometry[0]
        frames = min(len(z), round(FILE_SECONDS * SAMPLE_RATE / hop))
        return self.cut("From the beginning", 0, 0, frames, z / z.max())

    def steer(self, moment, unit):
        """Decodes the clip of a moment with its feature changed."""
        h, span, _ = self.window(moment)
        factors = list(FACTORS.values())
        predicted, mels, samples = steered(
            self.bottleneck, self.decoder, h, unit, span, factors
        )
        lengths = torch.full((len(factors),), samples)
        wavs = self.decoder.sound(predicted, samples, lengths).cpu().numpy()
        where = self.seconds(moment)[:2]
        clips = [Clip(n, w, where) for n, w in zip(FACTORS, wavs, strict=True)]
        changes = mels[1:] - mels[0]
        others = zip(clips[1:], changes, strict=True)
        return clips[:1] + [c._replace(change=x) for c, x in others]

    def card(self, unit, scores, moments):
        """Makes the card of a unit."""
        z = self.activations(unit)
        found = top_moments(z, self.utterance, moments, self.per_utterance)
        return Card(
            unit,
            self.names[unit],
            self.words[unit],
            {name: float(values[unit]) for name, values in scores.items()},
            histogram(z),
            {n: profile(z, y, c) for n, (c, y) in self.labels.items()},
            [self.clip(moment, z) for moment in found],
            self.steer(found[0], unit) if self.audible else [],
        )

    def catalogue(self, title, scores, count, moments):
        """Makes the cards of the most interesting units, or a gap."""
        if not self.labels:
            scores = {**scores, "mean activation": self.codes.mean(0)}
        chosen = self.choose(scores, count)
        rows, units = self.codes.shape
        of = "recordings" if self.source.geometry is None else "frames"
        band = f"{100 * RARE:g} to {100 * DENSE:g} % of {rows:,} {of}"
        if not chosen:
            return Gap(title, f"No feature fires in {band}: see the scores.")
        shown = {"F1": self.f1, "F1 gain": self.gain}
        shown |= {"fires (%)": 100 * self.firing, **scores}
        shown |= {"effect (dB)": self.effects}
        shown = {n: x for n, x in shown.items() if np.isfinite(x[chosen]).any()}
        cards = [self.card(unit, shown, moments) for unit in chosen]
        by = ["gain of F1 over firing always (one per class)"]
        by = [*by * bool(self.labels), *scores]
        by += ["effect on the mel spectrogram"] * self.audible
        caption = (
            f"{len(chosen)} of {units:,} features, of which "
            f"{np.count_nonzero(self.firing):,} fire: the first by "
            f"{', by '.join(by)}, in turn, of those that fire in {band}. "
            f"The white line is the activation. A name is the class that firing "
            f"detects best, with its F1"
        )
        if self.labels:
            caption += f". Profiles list the share of a class's {of} where it "
            caption += "fires, and its mean there."
        else:
            caption += " in the test data of the training."
        steering = STEERING
        if self.source.geometry is None:
            steering = "Means of recordings are not decoded: nothing to hear."
        elif self.decoder is None:
            steering = (
                "The model has no decoder of this layer: nothing to hear."
            )
        return Catalogue(title, caption, cards, steering)
