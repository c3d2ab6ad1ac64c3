"""Rows of a layer that codes are scored on, and what stands above the layer."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from scipy import sparse
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from speechbrain_sim.analysis.abx import abx
from speechbrain_sim.analysis.intervals import Unmeasurable
from speechbrain_sim.analysis.tokens import ANY, read_tokens
from speechbrain_sim.data.labels import (
    NO_LABEL,
    SEQUENCE,
    frames_of_labels,
    labels_of_frames,
)
from speechbrain_sim.data.tables import read_manifest
from speechbrain_sim.encoders.greedy import GreedyEncoder
from speechbrain_sim.objectives.info_nce import draw_negatives
from speechbrain_sim.randomness import keyed_generator

#: utterances that run together
TOGETHER = 16
#: negatives of each frame, frames that are scored at once
NEGATIVES, WINDOW = 10, 128
#: matrices of InfoNCE in a module's checkpoint
PREDICTOR = "smooth_info_nce.predictor.weight"
#: of ABX: tokens of each phone and speaker, other speakers of each
TOKENS, OTHERS = 2, 1


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
        self.predicts_input = encoder.predicts_input(self.name)

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


def read_predictors(run, encoder):
    """Reads the matrices W_k by which layers were trained, each greedily.

    Arguments
    ---------
    run : str or Path
        Folder of a training; of anything else, there are none.
    encoder : Encoder
        Matrices of other layers than its own are left out.

    Returns
    -------
    dict of str to torch.Tensor
        Layer -> matrices below each other, (steps * z channels, channels).
    """
    found = {}
    greedy = isinstance(encoder, GreedyEncoder)
    for name in encoder.layer_names if greedy else ():
        own = encoder.layers[name].state_dict()
        for path in Path(run).glob(f"save/CKPT+*/{name}.ckpt"):
            state = torch.load(path, "cpu", weights_only=True)
            there = {n: state.get(f"layers.{name}.{n}") for n in own}
            if PREDICTOR in state and all(
                x is not None and torch.equal(x, own[n].cpu())
                for n, x in there.items()
            ):
                found[name] = state[PREDICTOR]
    return found


@torch.no_grad()
def nce_losses(c, z, utterance, weight, seed=0):
    """Computes the InfoNCE of rows, the paper's equation 3.

    Arguments
    ---------
    c, z, utterance : numpy.ndarray
        What predicts and what is predicted, (rows, channels); the utterance of
        each row, (rows,), ascending.
    weight, seed : torch.Tensor, int
        See `read_predictors`; of negatives, from utterances side by side.

    Returns
    -------
    numpy.ndarray
        Sums over steps that end in the utterance, in nats, (rows,).
    """
    counts, found = np.unique(utterance, return_counts=True)[1], []
    c, z = (torch.from_numpy(x).split(counts.tolist()) for x in (c, z))
    weight = weight.unflatten(0, (-1, z[0].shape[1]))  # (steps, z, c)
    ahead = torch.arange(1, len(weight) + 1)
    for first in range(0, len(counts), TOGETHER):
        at = slice(first, first + TOGETHER)
        lengths = torch.from_numpy(counts[at])
        context, of = (pad_sequence(x[at], batch_first=True) for x in (c, z))
        batch, time = of.shape[:2]
        noise = keyed_generator(seed, "negatives", first)
        shape = lengths, time, time, NEGATIVES, 0, noise
        negatives, pieces, of = draw_negatives(*shape), [], of.flatten(0, 1)
        row = time * torch.arange(batch)[:, None, None]
        for frames in torch.arange(time).split(WINDOW):
            predicted = torch.einsum(
                "btc,kzc->btkz", context[:, frames], weight
            )
            to = frames[:, None] + ahead  # (frames, steps)
            near = of[row + to.clamp(max=time - 1)]
            positive = (predicted * near).sum(-1)
            far = predicted @ of[negatives[:, frames]].mT
            losses = F.softplus(far.logsumexp(-1) - positive)
            losses = losses.masked_fill(to >= lengths[:, None, None], 0)
            pieces.append(losses.sum(-1))
        pieces = torch.cat(pieces, 1)
        found += [x[:n] for x, n in zip(pieces, lengths, strict=True)]
    return torch.cat(found).numpy()


class Phones:
    """Phones of a few recordings, which ABX compares by codes of a layer.

    Arguments
    ---------
    store, layer, label : ActivationStore, str, str
        All frames of a layer; a label of frames.
    names : dict of str to str
        Class -> phone.
    count, seed : int
        See `read_tokens`, which raises an Unmeasurable.
    """

    def __init__(self, store, layer, label, names, count, seed):
        manifest, rows = store.folder / "manifest.csv", store[layer]
        how = manifest, label, ANY, count, seed, names
        self.tokens, self.seed, stops = read_tokens(*how), seed, {}
        for token in self.tokens:
            stops[token.utterance] = token.stop
        ends = np.searchsorted(rows.utterance, np.arange(1 + len(store.ids)))
        frames = []
        for name, stop in stops.items():
            first, last = ends[store.ids.index(name) :][:2].tolist()
            place = *store.layers[layer], last - first
            frames.append(first + frames_of_labels(stop, *place))
        self.x, self.stops = rows[torch.cat(frames)].numpy(), stops

    def abx(self, codes):
        """Measures the error of codes of `x`: see `abx`."""
        if sparse.issparse(codes):
            codes = codes.toarray()
        pieces = torch.from_numpy(codes).split([*self.stops.values()])
        features = dict(zip(self.stops, pieces, strict=True))
        return abx(features, self.tokens, TOKENS, OTHERS, self.seed)
