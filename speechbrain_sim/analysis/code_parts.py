"""Rows of a layer that codes are scored on, and what stands above the layer."""

from typing import NamedTuple

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence

from speechbrain_sim.analysis.intervals import Unmeasurable
from speechbrain_sim.data.labels import (
    NO_LABEL,
    SEQUENCE,
    labels_of_frames,
)
from speechbrain_sim.data.tables import read_manifest
from speechbrain_sim.encoders.greedy import GreedyEncoder
from speechbrain_sim.randomness import keyed_generator

#: utterances that run together
TOGETHER = 16


class Part(NamedTuple):
    """Rows of a layer in a store: whole recordings.

    Arguments
    ---------
    x : numpy.ndarray
        (rows, channels), float32.
    rows, utterance, unit : numpy.ndarray
        Index in the store, utterance and recording of each, (rows,).
    y : dict of str to numpy.ndarray
        Classes of each label, (rows,), NO_LABEL where there is none.
    factors : dict of str to numpy.ndarray
        Further factors, (rows,).
    """

    x: np.ndarray
    rows: np.ndarray
    utterance: np.ndarray
    unit: np.ndarray
    y: dict
    factors: dict


def read_part(store, layer, labels, most, seed, factors_of=None):
    """Reads whole recordings of a store, drawn until there are `most` rows.

    `labels` are those of `measure_codes`; returns a Part.
    """
    rows, known = store[layer], {}
    unit = np.unique(store.recordings, return_inverse=True)[1]
    utterance = rows.utterance
    count = np.bincount(unit[utterance], minlength=1 + unit.max())
    noise = keyed_generator(seed, "recordings", store.folder.name)
    order = torch.randperm(len(count), generator=noise).numpy()
    order = order[: max(2, 1 + np.searchsorted(count[order].cumsum(), most))]
    at = np.flatnonzero(np.isin(unit[utterance], order))
    owner, factors = utterance[at], {}
    if factors_of is not None:
        cells = read_manifest(store.folder / "manifest.csv")
        for i in np.unique(owner).tolist():
            known[i] = factors_of({"ID": store.ids[i], **cells[store.ids[i]]})
        names = known[i].keys() - labels.keys()
        factors = {n: np.array([known[i][n] for i in owner]) for n in names}
    y = {n: store.labels(n, *how, layer)[at] for n, how in labels.items()}
    x = rows[torch.from_numpy(at)].numpy()
    return Part(x, at, owner, unit[owner], y, dict(sorted(factors.items())))


class LayerAbove:
    """The layer that an encoder runs on the means of a layer.

    Arguments
    ---------
    encoder, layer : Encoder, str
        An Unmeasurable is raised if no layer above it can run alone.
    """

    def __init__(self, encoder, layer):
        names = list(encoder.layer_names)
        above = names[names.index(layer) + 1 :]
        if not (isinstance(encoder, GreedyEncoder) and above):
            raise Unmeasurable("No layer that can run alone stands above.")
        self.name, self.module = above[0], encoder.layers[above[0]]
        self.geometry = encoder.frame_geometry(self.name)

    @torch.no_grad()
    def run(self, x, utterance):
        """Runs utterance by utterance: (rows, channels) and their utterances.

        `x` are all frames of each `utterance`, (rows, channels) and (rows,).
        """
        owners, counts = np.unique(utterance, return_counts=True)
        pieces = torch.from_numpy(np.ascontiguousarray(x)).split(
            counts.tolist()
        )
        device, found = next(self.module.parameters()).device, []
        for first in range(0, len(owners), TOGETHER):
            now = slice(first, first + TOGETHER)
            lengths = torch.from_numpy(counts[now])
            wavs = pad_sequence(pieces[now], batch_first=True).to(device)
            mean, *_, lengths, _ = self.module(wavs, lengths, sample=False)
            found += [m[:n].cpu() for m, n in zip(mean, lengths, strict=True)]
        owners = np.repeat(owners, [*map(len, found)])
        return torch.cat(found).numpy(), owners

    def labels(self, store, label, classes, utterance):
        """Reads a label of frames for rows of `run`, from the layer's store."""
        known = store.labels(label, classes, SEQUENCE)
        y = np.full(len(utterance), NO_LABEL)
        for i in np.unique(utterance):
            here = utterance == i
            at = labels_of_frames(here.sum(), *self.geometry).numpy()
            of = np.append(known[i], NO_LABEL)  # -1 and beyond: none
            y[here] = of[at.clip(-1, len(of) - 1)]
        return y
