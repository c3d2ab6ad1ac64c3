"""Whole utterances of stored layers in padded batches."""

from typing import NamedTuple

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import IterableDataset

from speechbrain_sim.randomness import keyed_generator
from speechbrain_sim.rows import Rows

#: batches within which utterances of like lengths are put together
POOL = 16


class StoredUtterances:
    """All frames of a layer, by utterance, in one or several stores.

    Arguments
    ---------
    stores : list of ActivationStore
        With all frames. Of utterances of one name (the artificial set has them
        in training and test), that of the first counts.
    layer : str
        Which frames.
    """

    def __init__(self, stores, layer):
        stores = stores[::-1]
        parts = [store[layer].parts[0] for store in stores]
        self.rows = Rows(parts)
        names = [name for store in stores for name in store.ids]
        sizes = np.concatenate([np.diff(part.first) for part in parts])
        ends = np.cumsum(sizes)
        self._places = dict(
            zip(names, zip(ends - sizes, ends, strict=False), strict=True)
        )

    def __getitem__(self, name):
        """Returns the frames of an utterance, (time, channels)."""
        start, stop = self._places[name]
        return self.rows[int(start) : int(stop)]

    def length(self, name):
        """Returns the number of frames of an utterance."""
        start, stop = self._places[name]
        return int(stop - start)


class Utterances(NamedTuple):
    """A padded batch of whole utterances.

    Arguments
    ---------
    x, lengths : torch.Tensor
        Frames, (batch, time, channels); valid ones, (batch,).
    y, sizes : torch.Tensor
        Classes, (batch,), int64; or labels of sequences, (batch, most labels),
        and how many there are, (batch,).
    ids : list of str
        The utterances.
    """

    x: torch.Tensor
    lengths: torch.Tensor
    y: torch.Tensor
    sizes: torch.Tensor
    ids: list


class UtteranceBatches(IterableDataset):
    """Batches of utterances with a target, for one epoch after another.

    In an epoch every utterance comes once, in an order that depends on seed,
    epoch and lengths alone; those of a batch have similar lengths.

    Arguments
    ---------
    stored : StoredUtterances
        The frames.
    targets : dict of str to torch.Tensor
        Utterance to its class, (), or sequence of labels, (labels,), int64.
    batch_size : int
        Utterances of a batch.
    seed : int, optional
        Of the order; without, they come by their lengths.
    """

    def __init__(self, stored, targets, batch_size, seed=None):
        self.stored, self.targets = stored, targets
        self.batch_size, self.seed = batch_size, seed
        self.ids = list(targets)
        self.lengths = torch.tensor([stored.length(name) for name in self.ids])
        #: of the batches to come: their epoch, and how many it has had
        self.epoch, self.done = 1, 0

    def __len__(self):
        return -(-len(self.ids) // self.batch_size)

    def _by_length(self, places):
        """Returns places of utterances, the shortest first."""
        return places[self.lengths[places].argsort(stable=True)]

    def _batches(self):
        """Lists the places of the utterances of each batch of this epoch."""
        if self.seed is None:
            order = self._by_length(torch.arange(len(self.ids)))
            return order.split(self.batch_size)
        generator = keyed_generator(self.seed, "utterances", self.epoch)
        order = torch.randperm(len(self.ids), generator=generator)
        pools = map(self._by_length, order.split(POOL * self.batch_size))
        batches = torch.cat(list(pools)).split(self.batch_size)
        order = torch.randperm(len(batches), generator=generator)
        return [batches[i] for i in order.tolist()]

    def __iter__(self):
        """Yields the batches of `epoch` that are left."""
        for places in self._batches()[self.done :]:
            ids = [self.ids[i] for i in places.tolist()]
            x = [self.stored[name] for name in ids]
            y = [self.targets[name] for name in ids]
            sizes = torch.tensor([target.numel() for target in y])
            x = pad_sequence(x, batch_first=True)
            if y[0].ndim:
                y = pad_sequence(y, batch_first=True)
            else:
                y = torch.stack(y)
            yield Utterances(x, self.lengths[places], y, sizes, ids)
