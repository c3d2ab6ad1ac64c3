"""Stored utterances: each part has its own, also of one name."""

from types import SimpleNamespace

import numpy as np

from speechbrain_sim.brains.vib import HalvesBrain
from speechbrain_sim.rows import Rows, StoredArray

#: of the artificial set, test clips are named as training clips
NAMES = {"train": ["a", "b"], "valid": ["c"], "test": ["a", "d"]}


class Store(dict):
    """A layer x whose n-th utterance has n frames of the value `number` + n."""

    def __init__(self, names, number):
        sizes = np.arange(1, 1 + len(names))
        rows = np.repeat(number + sizes, sizes).astype(np.float32)[:, None]
        first = np.array([0, *sizes.cumsum()])
        super().__init__(x=Rows([StoredArray(rows, first)]))
        self.ids = names


def test_one_name_in_two_parts_is_two_recordings():
    brain = object.__new__(HalvesBrain)
    brain.hparams = SimpleNamespace(layer="x")
    numbers = {"train": 10, "valid": 20, "test": 30}
    brain.stores = {p: Store(NAMES[p], numbers[p]) for p in NAMES}
    for part, names in NAMES.items():
        stored = brain.stored(part)
        for n, name in enumerate(names, start=1):
            assert stored[name].tolist() == [[numbers[part] + n]] * n
            assert stored.length(name) == n
    # what was divided anew lies in another part's store
    assert brain.stored("train")["d"].tolist() == [[32]] * 2
