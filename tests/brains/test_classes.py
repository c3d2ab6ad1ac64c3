"""The classes of rows: of labels, of clusters, shuffled; and what is refused."""

import functools
import json

import numpy as np
import pytest
import torch
from speechbrain.utils.epoch_loop import EpochCounter

from speechbrain_sim.activations import ALL, ActivationStore
from speechbrain_sim.bottlenecks.vsc import VariationalSparseCoder
from speechbrain_sim.brains.bottleneck import (
    BottleneckBrain,
    make_bottlenecks,
    plan_alignments,
)
from speechbrain_sim.brains.checkpointer import (
    AtomicCheckpointer,
    RewindingTrainLogger,
)
from speechbrain_sim.brains.classes import (
    align,
    read_classes,
    shuffled,
    want_classes,
)
from speechbrain_sim.brains.frames import FrameBatches
from speechbrain_sim.brains.schedules import Ramp
from speechbrain_sim.data.labels import FRAMES, SEQUENCE, UTTERANCE
from speechbrain_sim.data.tables import write_csv
from speechbrain_sim.encoders.greedy import GreedyEncoder
from speechbrain_sim.models.format import save_parts, sha256_of
from tests.brains.test_bottleneck import stop_at
from tests.conftest import same, weights

#: frames of utterances, at one each 10 ms, and their speakers
COUNTS = [30, 20, 25, 40, 15, 30]
SPEAKERS = "aabbcc"
CHANNELS, UNITS = 4, 8


@pytest.fixture(scope="module")
def encoder():
    torch.manual_seed(0)
    return GreedyEncoder(channels=CHANNELS, context_channels=0).eval()


def phones_of(i):
    """Four phones, each twice as long as the one before."""
    return [str(n // 2 % 3) for n in range(COUNTS[i] - 2)]


def make_store(folder, encoder, rows=ALL, seed=0):
    """A store, whose frames have a large value in the channel of their phone."""
    rng, values = np.random.default_rng(seed), []
    for i, count in enumerate(COUNTS):
        x = rng.normal(size=(count, CHANNELS)).astype("float32")
        of = np.array(phones_of(i), int)
        x[np.arange(1, 1 + len(of)), of] += 20
        values.append({"low": x if rows == ALL else x.mean(0, keepdims=True)})
    ids = [f"u{i}" for i in range(len(COUNTS))]
    manifest = {
        name: {
            "duration": 160 * (COUNTS[i] - 2) / 16000,
            "wav": f"{name}.wav",
            "sample_rate": 16000,
            "num_samples": 160 * (COUNTS[i] - 3) + 400,
            "speaker": SPEAKERS[i],
            "phones": " ".join(phones_of(i)),
        }
        for i, name in enumerate(ids)
    }
    kept = COUNTS if rows == ALL else [1] * len(COUNTS)
    store = ActivationStore.create(
        folder,
        {"rows": rows, "encoder": sha256_of(encoder), "exact": True},
        manifest,
        dict(zip(ids, ids, strict=True)),
        {"low": ((160, 40.0), kept)},
        [(0, values[0])],
    )
    for position, utterance in enumerate(values[1:], 1):
        store.write(position, utterance)
    store.flush()
    store.finish()
    columns = list(manifest["u0"])
    cells = [[n, *(row[c] for c in columns)] for n, row in manifest.items()]
    write_csv(folder / "train.csv", ["ID", *columns], cells)
    return ActivationStore.open(folder)


@pytest.fixture(scope="module")
def stores(encoder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("stores")
    return {
        part: make_store(folder / part, encoder, seed=seed)
        for seed, part in enumerate(("train", "valid"))
    }


def want(stores, label, kind=UTTERANCE, pooling="frame", **options):
    manifest = stores["train"].folder / "train.csv"
    return want_classes(label, kind, manifest, None, pooling, **options)


def read(stores, wanted, tmp_path, **options):
    found = read_classes(wanted, stores, ["low"], tmp_path, 1, **options)
    return found["train"]["low"]


# which classes --------------------------------------------------------------


def test_classes_of_labels(stores, tmp_path):
    found = read(stores, want(stores, "speaker"), tmp_path)
    expected = np.repeat([0, 0, 1, 1, 2, 2], COUNTS)
    assert found.tolist() == expected.tolist()
    found = read(stores, want(stores, "phones", FRAMES), tmp_path)
    known = found >= 0
    assert 0.9 < known.mean() < 1  # the ends have none
    largest = stores["train"]["low"][:].argmax(1).numpy()
    assert (largest[known] == found[known]).all()


def test_held_out_classes_are_left_out(stores, tmp_path):
    wanted = want(
        stores, "speaker", held_out=["b"], names_of=lambda _: ["x", "b", "c"]
    )
    assert wanted.held_out == [1] and wanted.names == ["x", "b", "c"]
    found = read(stores, wanted, tmp_path)
    expected = np.repeat([0, 0, -1, -1, 2, 2], COUNTS)
    assert found.tolist() == expected.tolist()


def test_silence_is_left_out_of_frames_alone(stores):
    names = {"names_of": lambda classes: ["SIL", *classes[1:]]}
    assert want(stores, "phones", FRAMES, **names).held_out == [0]
    assert want(stores, "speaker", **names).held_out == []
    assert want(stores, "kmeans:5").held_out == []


def test_clusters_find_what_lies_apart(stores, tmp_path):
    wanted = want(stores, "kmeans:3")
    found = read(stores, wanted, tmp_path)
    phones = read(stores, want(stores, "phones", FRAMES), tmp_path)
    pairs = {(a, b) for a, b in zip(found, phones, strict=True) if b >= 0}
    assert len(pairs) == 3 == len({a for a, _ in pairs})
    kept = json.loads((tmp_path / "kmeans_low.json").read_text())
    assert len(kept["result"]) == 3
    again = read(stores, wanted, tmp_path)
    assert (again == found).all()


def test_shuffled_classes_keep_their_number(stores, tmp_path):
    for label, kind in (("speaker", UTTERANCE), ("phones", FRAMES)):
        wanted = want(stores, label, kind)
        found = read(stores, wanted, tmp_path)
        moved = read(stores, wanted, tmp_path, shuffle=True)
        assert ((moved < 0) == (found < 0)).all() and (moved != found).any()
        if kind == FRAMES:
            assert (np.bincount(moved + 1) == np.bincount(found + 1)).all()
        else:
            parts = np.split(moved, np.cumsum(COUNTS)[:-1])
            assert sorted(p[0] for p in parts) == [0, 0, 1, 1, 2, 2]
            assert all((p == p[0]).all() for p in parts)
    again = shuffled(found, None, (1, "train"))
    assert (again == moved).all()


def test_clusters_of_few_rows_are_left_out(stores, tmp_path):
    wanted = want(stores, "kmeans:3")
    many = int(np.bincount(read(stores, wanted, tmp_path)).max())
    aligned = align(wanted, stores, ["low"], tmp_path, 1, many // 2)
    assert aligned.about["classes"] == "kmeans:3"
    few = align(want(stores, "kmeans:40"), stores, ["low"], tmp_path, 1, 4)
    counts = [len(rows) for rows in few.draws["low"].rows.values()]
    assert min(counts) >= 4 and len(counts) < 40


@pytest.mark.parametrize(
    "label, options, message",
    [
        ("phones", {"kind": FRAMES, "pooling": "mean"}, "use --pooling frame"),
        ("phones", {"kind": SEQUENCE}, "phones is a sequence of tokens"),
        (
            "speaker",
            {"held_out": ["z"]},
            "has 'z', no class of speaker: .*a, b",
        ),
        ("speaker", {"held_out": ["a", "b"]}, "leaves 1 of 3 classes"),
        ("sample_rate", {}, "no column 'sample_rate'|leaves 1 of 1"),
        ("accent", {}, "no column 'accent'; it has .*speaker"),
        ("kmeans:1", {}, "kmeans:1 leaves 1 of 1 classes"),
    ],
)
def test_what_cannot_be_aligned_by(stores, label, options, message):
    with pytest.raises(ValueError, match=message):
        want(stores, label, **options)


def test_a_set_that_such_batches_cannot_be_drawn_from(stores, tmp_path):
    wanted, given = want(stores, "speaker"), (stores, ["low"], tmp_path, 1)
    with pytest.raises(
        ValueError, match="low, speaker: .*{'c': 45, 'a': 50}|45"
    ):
        align(wanted, *given, 51)
    with pytest.raises(ValueError, match="more clusters than the 160"):
        align(want(stores, "kmeans:161"), *given, 2)


# training -------------------------------------------------------------------


def test_batches_come_with_their_classes(stores, tmp_path):
    given = stores, ["low"], tmp_path, 1
    aligned = align(want(stores, "phones", FRAMES), *given, 5, 2)
    y = aligned.classes["train"]["low"]
    x = stores["train"]["low"][:]
    for batches in (
        FrameBatches(
            *(stores["train"], ["low"], 8, 0, 1),
            aligned.classes["train"],
            aligned.draws,
        ),
        FrameBatches(
            stores["train"], ["low"], 8, classes=aligned.classes["train"]
        ),
    ):
        steps = [step["low"] for step in batches]
        assert len(steps) == len(batches)
        for step in steps:
            at = [(x == row).all(1).nonzero().item() for row in step.x]
            assert step.classes.tolist() == y[at].tolist()
        drawn = batches.seed is not None
        counts = [
            sorted(np.unique(s.classes, return_counts=True)[1]) for s in steps
        ]
        assert (counts == [[5, 5]] * len(steps)) == drawn
        assert [s.share for s in steps] == [
            (i + 1) / len(steps) for i in range(len(steps))
        ]


def make_brain(folder, alignments, steps=0, seeds=(1,), **options):
    """A brain of coders; with checkpoints after so many steps."""
    folder.mkdir(parents=True, exist_ok=True)
    planned = plan_alignments({"low": UNITS}, list(alignments), list(seeds))
    hparams = {
        "seed": 1,
        "planned": planned,
        "lr": 0.01,
        "batch_size": 16,
        "variant": "vsc",
        "pooling": "frame",
        "normalisation": "standardise",
        "schedules": {"spike": Ramp([0.5, 1]), "sharpness": Ramp([0, 2])},
        "max_grad_norm": 10.0,
        "epoch_counter": EpochCounter(2),
        "train_logger": RewindingTrainLogger(folder / "train_log.txt", 8),
        "output_folder": folder,
    }
    hparams["schedules"]["sharpness"] = Ramp([0, 2], [20, 100])
    make = functools.partial(VariationalSparseCoder, hidden=8, **options)
    sizes = {"low": CHANNELS}, {"low": 1000}
    modules = make_bottlenecks(planned, make, *sizes)
    counter = {"epoch_counter": hparams["epoch_counter"]}
    kept = AtomicCheckpointer(folder / "save", counter) if steps else None
    run = {"device": "cpu", "noprogressbar": True, "ckpt_interval_steps": steps}
    return BottleneckBrain(modules, torch.optim.Adam, hparams, run, kept)


def train(brain, stores, encoder):
    folder = brain.hparams.output_folder
    save_parts(folder, {"encoder": encoder})
    wanted = want(stores, "phones", FRAMES)
    aligned = align(wanted, stores, ["low"], folder, 1, 5)
    brain.fit_stores(stores, sha256_of(encoder), aligned)
    return brain


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"gate": "threshold", "alignment_form": "centroid"},
        {"prior": "pseudo_inputs", "gate": "straight_through"},
    ],
)
def test_killed_it_ends_the_same(encoder, stores, tmp_path, options):
    whole = make_brain(tmp_path / "whole", [2, 0], **options)
    before = weights(whole)
    whole = weights(train(whole, stores, encoder))
    assert not same(before, whole)
    for stop in ((1, 6), (2, 4)):
        brain = make_brain(tmp_path / "killed", [2, 0], steps=2, **options)
        stop_at(brain, stop, [])
        with pytest.raises(KeyboardInterrupt):
            train(brain, stores, encoder)
    again = make_brain(tmp_path / "killed", [2, 0], steps=2, **options)
    stop_at(again, None, steps := [])
    assert same(weights(train(again, stores, encoder)), whole)
    assert steps[0] == (2, 3)
    logs = [
        (tmp_path / n / "train_log.txt").read_text()
        for n in ("whole", "killed")
    ]
    assert logs[0] == logs[1] and "valid low_vsc_lambda0_between" in logs[0]


def test_trained_together_equals_trained_alone(encoder, stores, tmp_path):
    brain = make_brain(tmp_path / "all", [2, 0, 0.5], seeds=(1, 2))
    names = [one.name for one in brain.planned.values()]
    assert names == [
        *("low.vsc", "low.vsc_s2", "low.vsc_lambda0", "low.vsc_lambda0_s2"),
        *("low.vsc_lambda0p5", "low.vsc_lambda0p5_s2"),
    ]
    together = weights(train(brain, stores, encoder))
    alone = make_brain(tmp_path / "alone", [0.5], seeds=(2,))
    alone = weights(train(alone, stores, encoder))["low_vsc"]
    assert same(alone, together["low_vsc_lambda0p5_s2"])
    config = json.loads((tmp_path / "all/config.json").read_text())
    about = config["parts"]["bottleneck_low.vsc_lambda0"]["training"]
    assert about["alignment"] == 0 and about["classes"] == "phones"
    assert about["valid"]["between"] > 0


def test_gates_that_collapse_are_warned_of_and_refused(
    encoder, stores, tmp_path, caplog
):
    brain = make_brain(tmp_path, [1], observation_std=0.5)
    with torch.no_grad():
        last = brain.unwrapped["low_vsc"].encoder[-1]
        last.bias[:UNITS] = 1e4
    train(brain, stores, encoder)
    assert "low.vsc: none of its gates tells frames apart" in caplog.text
    with pytest.raises(ValueError, match="low.vsc: none .*: lower --alignment"):
        brain.check_alive()
