"""Rows of arrays on disk, read as they are asked for."""

from typing import NamedTuple

import numpy as np
import torch


class StoredArray(NamedTuple):
    """An array on disk; in half precision, row i is `offset + scale * stored[i]`.

    Without its offset, a channel that varies little around a large mean, as
    those of an untrained encoder do, would be rounded away.

    Arguments
    ---------
    stored : numpy.ndarray
        (stored rows, channels), float32, or float16 with units.
    first : numpy.ndarray
        First row of each utterance, and last the number of rows.
    offset, scale : numpy.ndarray, optional
        (channels,), float32: units of half precision.
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
    offset: np.ndarray | None = None
    scale: np.ndarray | None = None
    index: np.ndarray | None = None

    @property
    def size(self):
        """Number of rows."""
        return len(self.stored if self.index is None else self.index)

    def read(self, rows):
        """Returns rows as float32, (len(rows), channels)."""
        rows = rows if self.index is None else self.index[rows]
        x = np.asarray(self.stored[rows], np.float32)
        return x if self.offset is None else self.offset + self.scale * x

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
        self.bounds = np.cumsum([0, *(part.size for part in parts)])
        self.shape = (int(self.bounds[-1]), parts[0].stored.shape[1])

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
        ends = np.searchsorted(rows[order], self.bounds)
        x = np.empty((len(rows), self.shape[1]), np.float32)
        for number, part in enumerate(self.parts):
            here = order[ends[number] : ends[number + 1]]
            x[here] = part.read(rows[here] - self.bounds[number])
        x = torch.from_numpy(x).unflatten(0, chosen.shape)
        return x if self.mean is None else (x - self.mean) / self.std

    @property
    def utterance(self):
        """Utterance of each row, counted through the parts, (rows,), int64."""
        utterances = [len(part.first) - 1 for part in self.parts]
        shifts = np.cumsum([0, *utterances])
        owners = (part.utterance() for part in self.parts)
        return np.concatenate(
            [o + s for o, s in zip(owners, shifts, strict=False)]
        )

    def standardized(self, mean, std):
        """Returns the same rows in units of a mean and standard deviation."""
        return Rows(self.parts, mean, std)

    def join(self, other):
        """Returns these rows and then another's, in the units of these."""
        return Rows(self.parts + other.parts, self.mean, self.std)

    def split(self, size):
        """Yields all rows in order, so many at a time."""
        for first in range(0, len(self), size):
            yield self[first : first + size]

    def random_batches(self, batch_size, generator=None):
        """Yields every row once, in random order, so many at a time."""
        order = torch.randperm(len(self), generator=generator)
        for rows in order.split(batch_size):
            yield self[rows]


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
        return Examples(
            self.x.join(other.x),
            np.concatenate([self.y, other.y]),
            np.concatenate([self.utterance, other.utterance + len(self.ids)]),
            self.ids + other.ids,
        )


def moments(pieces):
    """Returns the mean and standard deviation of channels, in one pass.

    Arguments
    ---------
    pieces : iterable of torch.Tensor
        (rows, channels), as from `Rows.split`.

    Returns
    -------
    mean, std : (torch.Tensor, torch.Tensor)
        (channels,), float32; the deviation of a constant channel is 1.

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
