"""Rows of stored layers in batches, for what learns from all of them."""

from typing import NamedTuple

import numpy as np
import torch
from speechbrain.utils.logger import get_logger
from torch.utils.data import IterableDataset

from speechbrain_sim.activations import ALL, MEAN
from speechbrain_sim.data.tables import read_manifest
from speechbrain_sim.randomness import keyed_generator

logger = get_logger(__name__)

#: rows of a store for each pooling
ROWS = {"frame": ALL, "mean": MEAN}
#: rows, evenly spread, that stand for a layer
SAMPLE = 2**14


class Batch(NamedTuple):
    """Rows of a layer, (rows, channels); those that follow them, or None.

    `share` is how much of the layer's epoch is done with them. `classes`, if
    there are any, are (rows,), below 0 where a row has none.
    """

    x: torch.Tensor
    following: torch.Tensor | None
    share: float
    classes: torch.Tensor | None = None


class FrameBatches(IterableDataset):
    """Batches of the rows of several layers, for one epoch after another.

    In an epoch every row of every layer comes once. The order depends on seed,
    epoch and number of rows alone: layers of one frame rate have the same
    frames, and what a bottleneck gets does not depend on the other layers. A
    layer with fewer rows has no part in some of the steps, evenly spread. A
    step is a dict of layer to `Batch`.

    Arguments
    ---------
    store : ActivationStore
        Complete.
    layers : list of str
        Its layers.
    batch_size : int
        Most rows of a batch; those of an epoch differ by one row at most.
    following : int
        Each row comes with that so many frames on; the last of an utterance
        have none and are left out. 0: rows come alone.
    seed : int, optional
        Of the order; without, rows come as they are stored.
    classes : dict of str to numpy.ndarray, optional
        The class of each row of a layer, which comes with it.
    draws : dict of str to ClassBatches, optional
        What is drawn of each layer, in place of every row once.
    """

    def __init__(
        self,
        store,
        layers,
        batch_size,
        following=0,
        seed=None,
        classes=None,
        draws=None,
    ):
        self.rows = {layer: store[layer] for layer in layers}
        self.following, self.seed = following, seed
        self.classes, self.draws = classes or {}, draws or {}
        #: of the batches to come: their epoch, and how many steps it has had
        self.epoch, self.done = 1, 0
        self.chosen, self.batches = {}, {}
        for layer, rows in self.rows.items():
            count = len(rows)
            if following:
                owner = rows.utterance
                same = owner[following:] == owner[:-following]
                self.chosen[layer] = np.flatnonzero(same)
                count = len(self.chosen[layer])
            self.batches[layer] = count, -(-count // batch_size)
            if layer in self.draws:
                self.batches[layer] = count, self.draws[layer].steps

    def __len__(self):
        return max(batches for _, batches in self.batches.values())

    def _orders(self):
        """Returns the rows of each batch of this epoch, by layer."""
        orders, known = {}, {}
        for layer, (count, batches) in self.batches.items():
            key = self.seed, "rows", count, self.epoch
            if layer in self.draws:
                generator = keyed_generator(*key, "classes")
                orders[layer] = self.draws[layer].draw(generator)
                continue
            if count not in known:
                known[count] = torch.arange(count)
                if self.seed is not None:
                    generator = keyed_generator(*key)
                    known[count] = torch.randperm(count, generator=generator)
            orders[layer] = known[count].tensor_split(batches)
        return orders

    def __iter__(self):
        """Yields the steps of `epoch` that are left."""
        orders = self._orders()
        for step in range(self.done, len(self)):
            yield {
                layer: self._read(layer, orders[layer][at], (at + 1) / count)
                for layer, (_, count) in self.batches.items()
                if (at := _turn(step, count, len(self))) is not None
            }

    def _read(self, layer, at, share):
        """Reads a batch of a layer."""
        if not self.following:
            classes = self.classes.get(layer)
            if classes is not None:
                classes = torch.from_numpy(classes[at.numpy()])
            return Batch(self.rows[layer][at], None, share, classes)
        at = torch.from_numpy(self.chosen[layer])[at]
        x = self.rows[layer][torch.stack([at, at + self.following])]
        return Batch(x[0], x[1], share)


def _turn(step, batches, steps):
    """Returns which of some batches, spread over more steps, a step has.

    >>> [_turn(step, 2, 5) for step in range(5)]
    [None, None, 0, None, 1]
    """
    before, after = step * batches // steps, (step + 1) * batches // steps
    return before if after > before else None


def measure(store, layer):
    """Returns mean and deviation of a layer's channels, and some of its rows.

    The deviation is 0 where those rows do not vary.
    """
    rows = store[layer]
    sample = rows[:: 1 + (len(rows) - 1) // SAMPLE]
    mean, std = store.statistics(layer)
    return mean, std.where(sample.amax(0) > sample.amin(0), 0.0), sample


def check_store(store, layers, encoder_sha256, pooling):
    """Raises a ValueError if bottlenecks cannot learn from a store.

    That of another encoder, of other rows, without a layer, or with NaN.
    """
    there, rows = store.made_of, ROWS[pooling]
    problem = None
    if there["encoder"] != encoder_sha256:
        problem = f"is of another encoder ({there['encoder']}, not "
        problem += f"{encoder_sha256})"
    elif there["rows"] != rows:
        problem = (
            f"keeps {there['rows']} rows; --pooling {pooling} needs {rows}"
        )
    elif missing := [n for n in layers if n not in store.arrays]:
        problem = f"has no {missing[0]}, only {', '.join(store.arrays)}"
    if problem:
        raise ValueError(f"{store.folder} {problem}: encode the corpus again.")
    for layer in layers:
        if not store.statistics(layer).isfinite().all():
            bad = first_bad_row(store, layer)
            raise ValueError(
                f"{store.folder} holds NaN or infinity for {layer}, first in "
                f"{bad}: delete this folder, and encode the corpus again."
            )


def first_bad_row(store, layer):
    """Returns the id of the first utterance that is not finite."""
    rows, done = store[layer], 0
    for piece in rows.split(SAMPLE):
        bad = (~piece.isfinite().all(1)).nonzero()
        if len(bad):
            return store.ids[rows.utterance[done + int(bad[0])]]
        done += len(piece)
    return "its statistics"


def count_rows(encoder, layers, manifest, data_folder, pooling):
    """Counts the rows that a store of a manifest will have.

    Returns a dict of layer to rows.
    """
    rows = read_manifest(manifest, data_folder).values()
    samples = torch.tensor([row["num_samples"] for row in rows])
    if pooling == "mean":
        return dict.fromkeys(layers, len(samples))
    return {n: int(encoder.output_lengths(samples, n).sum()) for n in layers}


def check_counts(rows, units, pooling):
    """Raises a ValueError if a layer has fewer frames than units.

    Of means over recordings, only a warning: they are few. `rows` and `units`
    are dicts of layer to their number.
    """
    for layer, count in rows.items():
        few = (
            f"{layer} has {count} rows in the training part, fewer than its "
            f"{units[layer]} units: use a smaller --num_units or --expansion, "
            f"or more data."
        )
        if count < units[layer] and pooling == "mean":
            logger.warning(few)
        elif count < units[layer]:
            raise ValueError(few)
