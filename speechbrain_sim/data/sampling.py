"""Batches of P classes by K samples of each."""

import numpy as np
import torch


class ClassBatches:
    """Draws batches of some classes, and so many samples of each.

    An epoch has about as many rows as are labelled, but all classes come
    equally often: a rare one several times, of a frequent one some rows. Within
    a batch, classes are different, and so are the rows of each; a class's rows
    come once before any comes again, but for less than K that may be left over.

    Arguments
    ---------
    classes : numpy.ndarray
        The class of each row, (rows,), int64; below 0: never drawn.
    samples_per_class : int
        K.
    classes_per_batch : int, optional
        P; by default all classes, or 32.
    names : list of str, optional
        Of the classes, for messages.

    Raises
    ------
    ValueError
        If K is below two, there are fewer than two classes, or than P, or a
        class has fewer rows than K.

    Example
    -------
    >>> batches = ClassBatches(np.array([0, 0, 0, 1, 1, -1]), 2)
    >>> [rows.tolist() for rows in batches.draw(torch.Generator().manual_seed(0))]
    [[2, 1, 4, 3], [4, 3, 1, 2]]
    """

    def __init__(
        self, classes, samples_per_class, classes_per_batch=None, names=None
    ):
        self.rows = {
            int(c): torch.from_numpy(np.flatnonzero(classes == c))
            for c in np.unique(classes[classes >= 0])
        }
        self.samples = samples_per_class
        self.several = classes_per_batch or min(32, len(self.rows))
        self._check(names)
        labelled = sum(map(len, self.rows.values()))
        self.steps = -(-labelled // (self.samples * self.several))

    def _check(self, names):
        """Raises a ValueError if such batches cannot be drawn."""
        if self.samples < 2:
            raise ValueError(
                f"--samples_per_class is {self.samples}: two samples of a class, "
                f"or more, are needed to compare them."
            )
        if len(self.rows) < max(2, self.several):
            found = [names[c] if names else c for c in self.rows]
            raise ValueError(
                f"There are {len(found)} classes ({found}), fewer than the "
                f"{max(2, self.several)} of a batch: use a smaller "
                f"--classes_per_batch, at least 2, or other --classes."
            )
        few = {
            str(names[c] if names else c): len(rows)
            for c, rows in self.rows.items()
            if len(rows) < self.samples
        }
        if few:
            most = min(few.values())
            remedies = [f"--samples_per_class up to {most}"] * (most > 1)
            if len(self.rows) - len(few) >= 2:
                left = ", ".join(few)
                remedies.append(f'--held_out_classes "[{left}]"')
            remedy = ", or ".join(remedies) or "other --classes"
            raise ValueError(
                f"--samples_per_class is {self.samples}, but there are fewer "
                f"training rows of some classes ({few}): use {remedy}."
            )

    def draw(self, generator):
        """Draws the batches of an epoch: list of (P K,) tensors of rows."""
        ids = torch.tensor(list(self.rows))
        chosen = [
            ids[torch.randperm(len(ids), generator=generator)[: self.several]]
            for _ in range(self.steps)
        ]
        draws = {c: self._chunks(c, generator) for c in self.rows}
        return [
            torch.cat([next(draws[c]) for c in classes.tolist()])
            for classes in chosen
        ]

    def _chunks(self, c, generator):
        """Yields K rows of a class at a time, in ever new orders."""
        while True:
            order = torch.randperm(len(self.rows[c]), generator=generator)
            for at in order.split(self.samples):
                if len(at) == self.samples:
                    yield self.rows[c][at]
