"""Rows of arrays on disk, read as they are asked for."""

from typing import NamedTuple

import numpy as np
import torch


class StoredArray(NamedTuple):
    """An array on disk, whose row i is `offset + scale * stored[i]`.

    Without an offset, half precision would round a channel away that varies
    little around a large mean, as those of an untrained encoder do.

    Arguments
    ---------
    stored : numpy.ndarray
        (stored rows, channels), float32, or float16 with units.
    first : numpy.ndarray
        First row of each utterance, and last the number of rows.
    offset, scale : numpy.ndarray or float
        Units, (channels,).
    index : numpy.ndarray, optional
        The stored rows that count, (rows,); all by default.

    Example
    -------
    >>> stored = np.ones((3, 2), np.float16)
    >>> array = StoredArray(stored, [0, 3], np.float32([5, 6]), 0.25)
    >>> array.read(np.array([1, 2])).tolist()
    [[5.25, 6.25], [5.25, 6.25]]
    """

    stored: np.ndarray
    first: np.ndarray
    offset: np.ndarray | float = 0.0
    scale: np.ndarray | float = 1.0
    index: np.ndarray | None = None

    @property
    def size(self):
        """Number of rows."""
        return len(self.stored if self.index is None else self.index)

    def read(self, rows):
        """Returns rows as float32, (len(rows), channels)."""
        rows = rows if self.index is None else self.index[rows]
        return self.offset + self.scale * self.stored[rows].astype(np.float32)

    def utterance(self):
        """Returns the utterance of each row, (rows,), int64."""
        owner = np.repeat(np.arange(len(self.first) - 1), np.diff(self.first))
        return owner if self.index is None else owner[self.index]


class Rows:
    """Rows of one or several stored arrays, read as float32.

    Arguments
    ---------
    parts : list of StoredArray
        Counted through.
    mean, std : torch.Tensor, optional
        (channels,). Rows are returned as (row - mean) / std.

    Example
    -------
    >>> parts = [StoredArray(np.full((n, 3), n), [0, 1, n]) for n in (2, 4)]
    >>> x = Rows(parts)
    >>> x.shape, x[torch.tensor([[1, 2]])].tolist(), x.utterance.tolist()
    ((6, 3), [[[2.0, 2.0, 2.0], [4.0, 4.0, 4.0]]], [0, 1, 2, 3, 3, 3])
    """

    def __init__(self, parts, mean=None, std=None):
        self.parts, self.mean, self.std = parts, mean, std
        sizes = [part.size for part in parts]
        *self.starts, count = np.cumsum([0, *sizes]).tolist()
        self.shape = (count, parts[0].stored.shape[1])

    def __len__(self):
        return self.shape[0]

    def __array__(self, dtype=None, copy=None):
        return np.asarray(self[:].numpy(), dtype)

    def __getitem__(self, chosen):
        """Returns rows (a tensor of any shape, or a slice), (..., channels)."""
        if isinstance(chosen, slice):
            chosen = torch.arange(*chosen.indices(len(self)))
        rows = chosen.flatten().numpy()
        order = rows.argsort()  # a disk likes them sorted
        shares = np.split(order, np.searchsorted(rows[order], self.starts[1:]))
        x = np.empty((len(rows), self.shape[1]), np.float32)
        places = zip(self.parts, self.starts, shares, strict=True)
        for part, start, here in places:
            x[here] = part.read(rows[here] - start)
        x = torch.from_numpy(x).unflatten(0, chosen.shape)
        return x if self.mean is None else (x - self.mean) / self.std

    @property
    def utterance(self):
        """Utterance of each row, counted through the parts, (rows,), int64."""
        owners, count = [], 0
        for part in self.parts:
            owners.append(count + part.utterance())
            count += len(part.first) - 1
        return np.concatenate(owners)

    def join(self, other):
        """Returns these rows and then another's, in the units of these."""
        return Rows(self.parts + other.parts, self.mean, self.std)

    def scaled(self, mean, std):
        """Returns these rows in other units, see `Rows`."""
        return Rows(self.parts, mean, std)

    def split(self, size):
        """Yields all rows in order, so many at a time."""
        for first in range(0, len(self), size):
            yield self[first : first + size]

    def random_batches(self, batch_size, generator=None):
        """Yields every row once, in random order, so many at a time."""
        order = torch.randperm(len(self), generator=generator)
        yield from map(self.__getitem__, order.split(batch_size))


class Examples(NamedTuple):
    """Labelled rows, for a probe.

    Arguments
    ---------
    x : Rows
        (examples, channels).
    y : numpy.ndarray
        Class of each example, int64.
    utterance : numpy.ndarray
        Index into `ids` of each example, int64.
    ids : list of str
        What is resampled for an interval: utterances, or, where the manifest
        has a column `recording`, the recordings they were cut from.
    """

    x: Rows
    y: np.ndarray
    utterance: np.ndarray
    ids: list

    def join(self, other):
        """Returns these examples and then another's."""
        moved = other.utterance + len(self.ids)
        return Examples(
            self.x.join(other.x),
            np.concatenate([self.y, other.y]),
            np.concatenate([self.utterance, moved]),
            self.ids + other.ids,
        )


def moments(pieces):
    """Returns the mean and standard deviation of channels, in one pass.

    Pieces are (rows, channels), as from `Rows.split`; what is returned is
    (channels,), float32, and the deviation of a constant channel 1.

    Example
    -------
    >>> moments([torch.tensor([[1.0, 5.0]]), torch.tensor([[3.0, 5.0]])])
    (tensor([2., 5.]), tensor([1.4142, 1.0000]))
    """
    count, mean, squares = 0, 0.0, 0.0
    for piece in pieces:
        piece = piece.double()
        shift = piece.mean(0) - mean
        total = count + len(piece)
        squares = squares + (piece - piece.mean(0)).square().sum(0)
        squares = squares + shift.square() * (count * len(piece) / total)
        mean = mean + shift * (len(piece) / total)
        count = total
    std = (squares / max(1, count - 1)).sqrt().float()
    return mean.float(), std.where(std > 0, 1)
