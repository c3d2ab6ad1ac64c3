"""Scores of codes in which classes share dimensions by construction."""

import json
import re

import numpy as np
import pytest
import torch

from speechbrain_sim.activations import ActivationStore
from speechbrain_sim.analysis import alignment_scores
from speechbrain_sim.analysis.alignment_baselines import (
    CLASSIFYING,
    LINEAR,
    open_beside,
)
from speechbrain_sim.analysis.alignment_report import section
from speechbrain_sim.analysis.alignment_scores import (
    class_features,
    code_rows,
    measure_alignment,
)
from speechbrain_sim.analysis.alignment_sounds import traversals
from speechbrain_sim.bottlenecks.coded import CodedEncoder
from speechbrain_sim.bottlenecks.vsc import VariationalSparseCoder
from speechbrain_sim.decoders import make_decoder
from speechbrain_sim.encoders.greedy import GreedyEncoder
from speechbrain_sim.extraction import encode_manifest
from speechbrain_sim.inference import SmoothInfoMax
from speechbrain_sim.models.format import save_parts, sha256_of
from speechbrain_sim.report.page import Explorer, Figure, Gap, Table, write_page

LAYER, CHANNELS, UNITS = "module3", 24, 12
CLASSES = [c + v for c in "bdg" for v in "aiu"]
#: dimensions of the plant: two of all classes, one per consonant and vowel
ON = np.zeros((9, 8))
ON[:, :2] = 1
ON[np.arange(9), 2 + np.arange(9) // 3] = 1
ON[np.arange(9), 5 + np.arange(9) % 3] = 1
DIRECTIONS = np.linalg.qr(np.random.default_rng(7).normal(size=(24, 24)))[0]


def make_store(folder, seed, speakers):
    """Means of 180 recordings: planted factors of 1 to 2, and noise."""
    rng, ids = np.random.default_rng(seed), [f"u{i:03}" for i in range(180)]
    y = np.arange(180) % 9
    factors = ON[y] * rng.uniform(1, 2, (180, 8))
    x = 0.05 * rng.normal(size=(180, CHANNELS)) + factors @ DIRECTIONS[:8]
    rows = {
        name: {
            "wav": f"{name}.wav",
            "num_samples": "16000",
            "duration": "1",
            "syllable": CLASSES[y[i]],
            "speaker": f"s{speakers[i % len(speakers)]}",
            "sex": "FM"[speakers[i % len(speakers)] % 2],
        }
        for i, name in enumerate(ids)
    }
    values = [{LAYER: row[None].astype("float32")} for row in x]
    store = ActivationStore.create(
        folder,
        {"rows": "mean"},
        rows,
        dict(zip(ids, ids, strict=True)),
        {LAYER: ((160, 20.0), [1] * 180)},
        [(0, values[0])],
    )
    for position, value in enumerate(values[1:], 1):
        store.write(position, value)
    store.flush()
    store.finish()
    return ActivationStore.open(folder)


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    folder = tmp_path_factory.mktemp("planted")
    return {
        "train": make_store(folder / "train", 0, [1, 2, 3, 4, 5]),
        "test": make_store(folder / "test", 1, [1, 2, 3, 4, 5, 6]),
    }


def make_code(directions, weight, sharp=40.0):
    """A code whose gates open where x goes along directions, (units, 24)."""
    code = VariationalSparseCoder(CHANNELS, UNITS, alignment=weight)
    d = torch.from_numpy(directions).float()
    code.encoder[0].weight.data = torch.cat([sharp * d, d, 0 * d])
    code.encoder[0].bias.data[:UNITS] = -sharp / 2
    code.decoder[0].weight.data = d.T.contiguous()
    return code.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def results(stores, small):
    rng = np.random.default_rng(1)
    codes = {
        f"{LAYER}.vsc": make_code(DIRECTIONS[:UNITS], 1.0),
        f"{LAYER}.vsc_s2": make_code(DIRECTIONS[:UNITS][::-1].copy(), 1.0),
        f"{LAYER}.vsc_lambda0": make_code(rng.normal(size=(UNITS, 24)), 0.0),
        f"{LAYER}.vsc_lambda0_s2": make_code(rng.normal(size=(UNITS, 24)), 0.0),
    }
    how = "syllable", CLASSES, "utterance", CLASSES, ["gu"]
    return measure_alignment(codes, stores, *how)


@pytest.fixture(scope="module")
def small():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("speechbrain_sim.analysis.alignment_baselines.STEPS", 150)
        yield


def test_planted_codes_are_what_they_are(results):
    found = results["codes"][f"{LAYER}.vsc"]
    kinds = found["dimensions"]["kinds"]
    assert kinds == ["global"] * 2 + ["specific"] * 6 + ["unused"] * 4
    assert found["dimensions"]["open"][2] == [0, 1, 2]
    assert found["dimensions"]["open"][5] == [0, 3, 6]
    assert found["weight"] == 1.0
    # two of all, one of the consonant and one of the vowel
    assert found["active"]["value"] == pytest.approx(4)
    assert found["agreement"]["ratio"]["value"] < 0.05
    assert found["agreement"]["p"] == 0.001
    assert found["reconstruction"]["value"] > 0.9
    for probe in found["probes"].values():
        assert probe["value"] > 0.95
        assert probe["shuffled"] < 0.3


def test_correlations_follow_how_syllables_are_made(results):
    found = results["codes"][f"{LAYER}.vsc"]["phonetics"]
    names = [CLASSES[found["classes"][i]] for i in found["order"]]
    assert sorted(names) == sorted(CLASSES)
    # neighbours share the consonant or the vowel
    shared = [bool({*a} & {*b}) for a, b in zip(names, names[1:], strict=False)]
    assert sum(shared) >= 6
    tests = found["tests"]
    assert set(tests) == {"place", "height", "backness", "all"}
    assert tests["all"]["p"] < 0.01 and tests["all"]["value"] > 0.5
    assert tests["all"]["classes"] == 9
    p = sorted(test["p"] for test in tests.values())
    least = min(test["corrected"] for test in tests.values())
    assert least == pytest.approx(len(p) * p[0])  # of four tests
    assert all(test["corrected"] >= test["p"] for test in tests.values())


def test_codes_without_classes_and_baselines_stand_beside(results):
    codes, name = results["codes"], f"{LAYER}.vsc"
    for other in (f"{LAYER}.vsc_lambda0", f"{LAYER}, {LINEAR}"):
        ratio = codes[other]["agreement"]["ratio"]["value"]
        assert ratio > codes[name]["agreement"]["ratio"]["value"]
    for baseline in (LINEAR, CLASSIFYING):
        found = codes[f"{LAYER}, {baseline}"]
        assert found["weight"] is None
        assert found["probes"]["code"]["value"] > 0.8
    assert codes[f"{LAYER}, {CLASSIFYING}"]["reconstruction"]["value"] > 0.3


def test_rows_that_were_not_trained_on(results):
    held = results["codes"][f"{LAYER}.vsc"]["held"]
    of_speakers = held[alignment_scores.NEW_SPEAKERS]
    assert of_speakers["reconstruction"]["value"] > 0.9
    of_classes = held[alignment_scores.NEW_CLASSES]
    assert of_classes["reconstruction"]["value"] > 0.9
    assert "two classes" in of_classes["agreement"]["gap"]


def test_classes_of_k_means_are_those_of_the_plant(results):
    assert results["layers"][LAYER]["pseudo"] > 0.8
    found = results["codes"][f"{LAYER}.vsc"]["pseudo"]
    assert found["ratio"]["value"] < 0.4 and found["p"] < 0.01


def test_classes_are_described_by_columns_that_go_with_them(stores):
    store, names = stores["test"], [f"s{i}" for i in range(1, 7)]
    found = class_features(store, "speaker", names, "utterance", names)
    assert found == [{"sex": "FM"[i % 2]} for i in range(1, 7)]
    found = class_features(store, "syllable", CLASSES, "utterance", CLASSES)
    assert set(found[0]) == {"voice", "place", "manner", "height", "backness"}


def test_a_wrong_held_out_class_is_refused(stores):
    code = {f"{LAYER}.vsc": make_code(DIRECTIONS[:UNITS], 1.0)}
    how = "syllable", CLASSES, "utterance", CLASSES
    with pytest.raises(ValueError, match="syllable has no class pa"):
        measure_alignment(code, stores, *how, ["pa"])


def test_the_section_shows_all_of_it(results, tmp_path):
    json.dumps(results, allow_nan=False)
    shown = section(results, tmp_path)
    titles = [item.title for item in shown.items]
    figures = [i for i in shown.items if isinstance(i, Figure)]
    assert len(figures) == 3 and len({*titles}) == len(titles)
    tables = {i.title: i for i in shown.items if isinstance(i, Table)}
    scores = tables["Alignment, reconstruction and probes"]
    # seeds are one row
    assert [row[:2] for row in scores.rows] == [
        ["module3.vsc", "1"],
        ["module3.vsc_lambda0", "0"],
        ["module3, SAE with classifier", ""],
        ["module3, linear probe", ""],
    ]
    assert "Probes of layers: module3 100.0 [" in scores.caption
    rule = tables["Global, class-specific and unused dimensions"]
    assert rule.rows[0][2:5] == [
        "2 [2, 2]",
        "6 [6, 6]",
        "4 [4, 4]",
    ]
    gains = tables["Alignment less its controls"]
    (row,) = gains.rows
    ratio = row[gains.header.index("within / between")]
    ratio, low, high = map(float, re.findall(r"[-+][\d.]+", ratio))
    assert row[0] == "module3.vsc" and low < ratio < high and ratio < -0.1
    # of the two classes that were held out there is one: no ratio
    new = tables["Classes and speakers that were not trained on"]
    assert "within / between, held-out classes" not in new.header
    assert "EV, held-out classes (%)" in new.header
    assert any(isinstance(item, Gap) for item in shown.items)
    write_page(tmp_path, "Alignment", "", [shown], [])
    assert "within / between" in (tmp_path / "report.md").read_text()


def test_collapsed_gates_are_gaps_that_name_a_remedy(stores, tmp_path, small):
    code = make_code(0 * DIRECTIONS[:UNITS], 10.0)
    how = "syllable", CLASSES, "utterance", CLASSES
    found = measure_alignment({f"{LAYER}.vsc": code}, stores, *how)
    scores = found["codes"][f"{LAYER}.vsc"]
    for part in ("agreement", "phonetics"):
        assert "collapsed" in scores[part]["gap"]
    gaps = [i for i in section(found, tmp_path).items if isinstance(i, Gap)]
    assert any("smaller alignment" in gap.reason for gap in gaps)


def test_dimensions_are_heard(corpus, tmp_path):
    torch.manual_seed(0)
    encoder = GreedyEncoder(channels=6, context_channels=4).eval()
    code = VariationalSparseCoder(6, 8).eval().requires_grad_(False)
    name, paths = f"{LAYER}.vsc", (corpus.valid, corpus.folder)
    store = encode_manifest(
        encoder.requires_grad_(False),
        {"sha256": "a"},
        *paths,
        tmp_path,
        [LAYER],
        "mean",
    )
    parts = {"encoder": CodedEncoder(encoder, {name: code}).eval()}
    bare = SmoothInfoMax(dict(parts), {"sample_rate": 16000}, {})
    parts[f"decoder_{LAYER}"] = make_decoder(encoder, LAYER).eval()
    model = SmoothInfoMax(parts, {"sample_rate": 16000}, {})
    dimensions = {"kinds": ["global", "specific", "specific"] + ["mixed"] * 5}
    dimensions |= {"open": [[0, 1], [0], [1]] + [[]] * 5, "means": [[0.5]] * 2}
    results = {"label": "pitch", "names": ["high", "low"]}
    results["codes"] = {name: {"dimensions": dimensions}}
    how = name, results, store, "utterance", ["high", "low"], *paths
    sounds = traversals(model, *how)
    assert [type(sound) for sound in sounds] == [Explorer] * 3
    for sound in sounds:
        first, *stops = (stop.wav for stop in sound.stops)
        assert len(stops) == 7 and np.isfinite(first).all()
        assert np.abs(stops[0] - stops[-1]).max() > 0
    # unchanged: what the layer itself decodes to
    bottleneck = parts["encoder"].bottleneck_of(name)
    d = int(sounds[0].caption.split()[1])
    assert d == 0 and code_rows(bottleneck, store[LAYER][:].numpy()).gate.size
    (gap,) = traversals(bare, *how)
    assert "recipes/decode.py" in gap.reason
    dimensions["kinds"] = ["mixed"] * 8
    gaps = traversals(model, *how)
    assert [gap.title.split()[3] for gap in gaps] == ["global", "specific"]


def save_run(folder, encoder, **training):
    """A model folder with codes of an encoder."""
    code = VariationalSparseCoder(6, 8)
    name = f"bottleneck_{LAYER}.vsc_s2"
    entry = {"layer": LAYER, "training": training}
    parts = {"encoder": encoder, name: code}
    save_parts(folder, parts, {"encoder": {}, name: entry})


def test_codes_of_other_runs_stand_beside(tmp_path):
    encoder, other = (GreedyEncoder(6, context_channels=4) for _ in "ab")
    save_run(tmp_path / "one", encoder, shuffled=True)
    save_run(tmp_path / "two", encoder)
    save_run(tmp_path / "three", other)
    own, runs = sha256_of(encoder), [str(tmp_path / n) for n in ("one", "two")]
    found, identities = open_beside(runs, own, [LAYER])
    names = [f"{LAYER}.vsc, shuffled classes_s2", f"{LAYER}.vsc, two_s2"]
    assert [*found] == names and len({*identities}) == 2
    for folder, layer in (("three", LAYER), ("one", "module1")):
        with pytest.raises(ValueError, match="holds no codes of"):
            open_beside([str(tmp_path / folder)], own, [layer])
