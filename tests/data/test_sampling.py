"""Batches of P classes by K samples."""

import numpy as np
import pytest
import torch

from speechbrain_sim.data.sampling import ClassBatches

#: rows of classes 0 to 3 and of none, mixed
COUNTS = {0: 50, 1: 20, 2: 7, 3: 9, -1: 14}
CLASSES = np.random.default_rng(0).permutation(
    np.repeat([*COUNTS], [*COUNTS.values()])
)


def drawn(batches, seed=1):
    return batches.draw(torch.Generator().manual_seed(seed))


def test_batches_have_different_classes_and_rows():
    batches = ClassBatches(CLASSES, 4, 3)
    epoch = drawn(batches)
    assert len(epoch) == batches.steps == -(-86 // 12)
    for rows in epoch:
        assert len(set(rows.tolist())) == 12
        found, counts = np.unique(CLASSES[rows], return_counts=True)
        assert len(found) == 3 and set(counts) == {4} and -1 not in found
    again, other = drawn(batches), drawn(batches, 2)
    assert all(map(torch.equal, epoch, again))
    assert not all(map(torch.equal, epoch, other))


def test_all_classes_come_equally_often_and_rows_in_turn():
    epochs = [drawn(ClassBatches(CLASSES, 4, 2), s) for s in range(60)]
    rows = torch.cat([rows for epoch in epochs for rows in epoch])
    _, counts = np.unique(CLASSES[rows], return_counts=True)
    assert counts.min() > 0.85 * counts.max()
    whole = torch.cat(drawn(ClassBatches(CLASSES[CLASSES > 1], 3)))
    for c, count in ((2, 6), (3, 9)):  # of 7 and 9 rows, in chunks of 3
        own = [r for r in whole.tolist() if CLASSES[CLASSES > 1][r] == c]
        assert len(set(own[:count])) == min(count, len(own))


def test_by_default_all_classes_or_32():
    assert ClassBatches(CLASSES, 4).several == 4
    assert ClassBatches(np.arange(100).repeat(2), 2).several == 32


@pytest.mark.parametrize(
    "classes, options, message",
    [
        (CLASSES, (1,), "--samples_per_class is 1: two samples"),
        (CLASSES, (8,), r"{'g': 7}.*up to 7, or --held_out"),
        (CLASSES, (4, 5), "There are 4 classes .*fewer than the 5 of a batch"),
        (np.arange(2), (2,), "'b': 1.*: use other --classes"),
        (np.zeros(9, int), (4,), r"There are 1 classes \(\['b'\]\), fewer"),
        (np.r_[CLASSES, 4], (2,), r"{'x': 1}.*use --held_out.*\[x\]"),
    ],
)
def test_what_cannot_be_drawn(classes, options, message):
    with pytest.raises(ValueError, match=message):
        ClassBatches(classes, *options, *[None] * (2 - len(options)), "bdgax")
