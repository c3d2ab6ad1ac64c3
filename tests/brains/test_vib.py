"""Batches of whole utterances, and what each half starts from."""

import numpy as np
import torch

from speechbrain_sim.analysis.halves import read_divisions
from speechbrain_sim.bottlenecks.vib import UtteranceHalf
from speechbrain_sim.brains.utterances import (
    StoredUtterances,
    UtteranceBatches,
)
from speechbrain_sim.brains.vib import Task, make_halves, read_label
from speechbrain_sim.rows import Rows, StoredArray
from tests.data.test_splits import corpus, speakers, values

SIZES = {"a": 5, "b": 2, "c": 9, "d": 3, "e": 4, "f": 7, "g": 2}


class Store:
    """Utterances whose frames hold a number of theirs plus the frame's."""

    def __init__(self, names):
        self.ids, places = list(names), list(SIZES)
        rows = [
            [10 * places.index(name) + i]
            for name in names
            for i in range(SIZES[name])
        ]
        first = np.cumsum([0, *(SIZES[name] for name in names)])
        self.rows = Rows([StoredArray(np.array(rows, np.float32), first)])

    def __getitem__(self, layer):
        return self.rows


def batches(seed=None, **targets):
    stored = StoredUtterances([Store("abc"), Store("defg")], "x")
    targets = targets or {n: torch.tensor(i) for i, n in enumerate("gfeca")}
    return UtteranceBatches(stored, targets, 2, seed)


def test_every_utterance_comes_once_whole_and_padded():
    found = [x for b in batches(seed=1) for x in zip(*b, strict=True)]
    assert sorted(x[-1] for x in found) == list("acefg")
    for x, length, y, _, name in found:
        assert length == SIZES[name] and y == "gfeca".index(name)
        wanted = 10 * list(SIZES).index(name) + torch.arange(SIZES[name])
        assert torch.equal(x[:length, 0], wanted.float())
        assert not x[length:].any()


def test_order_is_that_of_seed_and_epoch():
    one, other = batches(seed=1), batches(seed=1)
    orders = []
    for other.epoch in one.epoch, 2, 3, 4, 5, 6:
        one.epoch = other.epoch
        orders.append([b.ids for b in one])
        assert orders[-1] == [b.ids for b in other]
        one.done = 1
        assert [b.ids for b in one] == orders[-1][1:]
        one.done = 0
    assert len({str(order) for order in orders}) > 1
    assert [b.ids for b in batches()] == [["g", "e"], ["a", "f"], ["c"]]


def test_sequences_are_padded():
    texts = {"a": torch.tensor([3, 1, 2]), "b": torch.tensor([4])}
    (batch,) = batches(**texts)
    assert batch.ids == ["b", "a"] and batch.sizes.tolist() == [1, 3]
    assert batch.y.tolist() == [[4, 0, 0], [3, 1, 2]]


def test_a_named_text_keeps_the_texts_of_speakers_apart(tmp_path):
    rows = speakers(4, "abcdefghij")
    rows = [row | {"verse": row.pop("text")} for row in rows]
    manifests, audio = corpus(tmp_path, rows)  # of whom parts share all verses
    options = "apart", "speaker", "verse"
    task = read_label(manifests, audio, tmp_path / "speaker", *options)
    assert task.division.startswith("Divided by text")
    made = values(task.manifests, "verse")
    assert not made["test"] & made["train"]
    asked = ["speaker"], "apart", "verse"
    found = read_divisions(manifests, audio, tmp_path / "read", *asked)
    for part, of in task.targets.items():
        assert found["speaker"][part] == [*of]


def test_weights_depend_on_seed_and_task_alone():
    task = Task("mood", {}, "", {}, ["a", "b"])
    made = []
    for seed, history in (1, 0), (1, 5), (2, 0):
        torch.manual_seed(history)
        layer = {"input_channels": 6, "layers": 1}
        made.append(make_halves(task, UtteranceHalf, seed, 3, 4, **layer))
    assert list(made[0]) == ["mood", "mood_baseline"]
    assert (
        made[0]["mood"].text_units == 4 and not made[0]["mood_baseline"].coded
    )
    for name in made[0]:
        first, again, other = (of[name].classifier.weight for of in made)
        assert torch.equal(first, again) and not torch.equal(first, other)
    assert made[0]["mood_baseline"].num_units == 6
