"""The features of a bottleneck, as cards: where they fire, what they change."""

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy import sparse
from tqdm import tqdm

from speechbrain_sim.activations import MEAN
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
from speechbrain_sim.data.audio import SAMPLE_RATE, audio_info, read_audio
from speechbrain_sim.data.labels import NO_LABEL
from speechbrain_sim.data.tables import read_manifest
from speechbrain_sim.decoders import SpectrogramDecoder, shortest
from speechbrain_sim.files import read_json, write_json
from speechbrain_sim.report.features import Card, Catalogue, Clip
from speechbrain_sim.report.page import Gap, Section, write_html, write_page
from speechbrain_sim.report.style import file_name
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
STEERING += "marks, in its strongest moment: h + decode(z′) − decode(z). Below, "
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
    changed = z.repeat(len(factors), 1, 1)
    changed[:, span, unit] *= torch.tensor(factors).to(z)[:, None]
    h = h + bottleneck.decode(changed) - bottleneck.decode(z)
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
    """

    def __init__(self, bottleneck, source, decoder=None):
        self.bottleneck, self.source, self.decoder = bottleneck, source, decoder
        self.codes, self.kept = read_codes(bottleneck, source)
        self.utterance = source.utterance[self.kept]
        self.labels = {
            label: (classes, y[self.kept])
            for label, (classes, y) in source.labels.items()
        }
        rows, units = self.codes.shape
        self.firing = np.diff(self.codes.indptr) / rows
        self.names, self.f1, self.gain, self.words = best_labels(
            self.codes, self.labels
        )
        self.effects = np.full(units, np.nan)

    def activations(self, unit):
        """Returns the activations of a unit in the kept rows."""
        return self.codes[:, [unit]].toarray()[:, 0]

    def choose(self, scores, count):
        """Chooses features by gain of F1, by scores, and by their effect."""
        ranked = [best_of_each(self.gain, self.names), *scores.values()]
        options = self.firing, TRIED * count, len(self.kept)
        tried = most_interesting(ranked, *options)
        if self.decoder is None or self.source.geometry is None:
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
        rows = slice(int(first) + begin, min(int(first) + begin + size, int(last)))
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
        hop, center = self.source.geometry
        h, _, begin = self.window(moment)
        wav = self.source.read(owner, hop * begin, hop * (begin + len(h)))
        start, stop, place = self.seconds(moment)
        times = (center + hop * np.arange(len(h))) / SAMPLE_RATE
        curve = z[first + begin : first + begin + len(h)] / z.max()
        label = ", ".join([*said, f"{name} at {place:.2f} s"])
        return Clip(label, wav, (start, stop), np.stack([times, curve]))

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
        z, known = self.activations(unit), np.isfinite(self.f1[unit])
        found = top_moments(z, self.utterance, moments)
        numbers = {"F1": self.f1, "F1 gain": self.gain}
        numbers |= {"fires (%)": 100 * self.firing, **scores}
        numbers["effect (dB)"] = self.effects
        numbers = {name: float(x[unit]) for name, x in numbers.items()}
        numbers = {n: x if np.isfinite(x) else None for n, x in numbers.items()}
        can = self.decoder is not None and self.source.geometry is not None
        return Card(
            unit,
            f"{self.names[unit]} {self.f1[unit]:.2f}" if known else "",
            self.words[unit],
            numbers,
            histogram(z),
            {n: profile(z, y, c) for n, (c, y) in self.labels.items()},
            [self.clip(moment, z) for moment in found],
            self.steer(found[0], unit) if can else [],
        )

    def catalogue(self, title, scores, count, moments):
        """Makes the cards of the most interesting units, or a gap."""
        chosen = self.choose(scores, count)
        rows, units = self.codes.shape
        of = "recordings" if self.source.geometry is None else "frames"
        band = f"{100 * RARE:g} to {100 * DENSE:g} % of {rows:,} {of}"
        if not chosen:
            return Gap(title, f"No feature fires in {band}: see the scores.")
        cards = [self.card(unit, scores, moments) for unit in chosen]
        by = ["gain of F1 over firing always (one per class)", *scores, "effect on the mel"]
        caption = (
            f"{len(chosen)} of {units:,} features, of which "
            f"{np.count_nonzero(self.firing):,} fire: the first by "
            f"{', by '.join(by)}, in turn, of those that fire in {band}. A name "
            f"is the class that firing detects best, with its F1. Profiles list "
            f"the share of a class's {of} where it fires, and its mean there. "
            f"In pictures, the white line is the activation."
        )
        steering = STEERING
        if self.source.geometry is None:
            steering = "Means of recordings are not decoded: nothing to hear."
        elif self.decoder is None:
            steering = "The model has no decoder of this layer: nothing to hear."
        return Catalogue(title, caption, cards, steering)


def store_source(store, layer, labels, manifest, data_folder):
    """Returns the frames of a store, and their recordings, as a `Source`.

    Arguments
    ---------
    store, layer : ActivationStore, str
        Of the rows "all" or "mean"; the layer below the bottleneck.
    labels : dict
        See `Source`.
    manifest, data_folder : str or Path
        What the store was made of.
    """
    rows, data = store[layer], read_manifest(manifest, data_folder)

    def read(owner, start, stop):
        row = data[store.ids[owner]]
        stop = min(stop, row["num_samples"])
        return read_audio(
            row["wav"], row["start"] + start, row["start"] + stop
        ).numpy()

    pooled = store.made_of["rows"] == MEAN
    geometry = None if pooled else tuple(store.layers[layer])
    return Source(rows, rows.utterance, geometry, store.ids, read, labels)


def feature_section(catalogues):
    """Returns the section of catalogues, or gaps, of one or several layers."""
    sentence = "Search for a label, open a feature and listen to its moments."
    return Section("features", "Features", sentence, catalogues)


def write_pages(
    folder,
    bottleneck,
    decoder,
    title,
    source,
    scores=None,
    sections=(),
    note="",
    count=32,
    moments=8,
):
    """Writes a report with the features of one bottleneck.

    And `features_<title>.json`, the names of all features, which `file_page`
    reads.

    Arguments
    ---------
    folder, title : str or Path, str
        Of the report; name of the code layer, such as "module3.sae".
    bottleneck, decoder, source :
        See `Features`.
    scores : dict of str to numpy.ndarray, optional
        Further scores to choose by, such as stability, (units,); NaN for none.
    sections, note : list of Section, str
        What stands before the features; see `write_page`.
    count, moments : int
        Features; moments of each one.

    Returns
    -------
    Catalogue or Gap
    """
    features = Features(bottleneck, source, decoder)
    catalogue = features.catalogue(title, scores or {}, count, moments)
    sections = [*sections, feature_section([catalogue])]
    write_page(folder, f"Features of {title}", note, sections, [])
    write_json(names_file(folder, title), features.all_names())
    return catalogue
