"""Planted factors in halves: what probes, maps and attribution must find."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from speechbrain_sim.analysis import halves
from speechbrain_sim.analysis.frame_attribution import (
    acoustic_cues,
    agreement,
    attribute,
    frame_gradients,
    measure_attribution,
    turning_points,
)
from speechbrain_sim.analysis.half_probes import (
    Side,
    by_chance,
    compare_halves,
    survives,
)
from speechbrain_sim.analysis.half_settings import (
    HIDDEN,
    LINEAR,
    PAPER,
    Settings,
)
from speechbrain_sim.analysis.halves import (
    Data,
    halves_of,
    map_means,
    measure,
    measure_model,
    read_data,
    read_side,
)
from speechbrain_sim.analysis.halves_report import (
    curve_items,
    headline,
    map_figure,
    section,
)
from speechbrain_sim.analysis.intervals import Unmeasurable
from speechbrain_sim.analysis.sequence_probes import (
    AttentionProbes,
    FrameProbes,
    Sequences,
    sequence_loss,
)
from speechbrain_sim.bottlenecks.coded import CodedEncoder
from speechbrain_sim.bottlenecks.vib import TextHalf, UtteranceHalf
from speechbrain_sim.data.audio import read_audio
from speechbrain_sim.data.tables import read_manifest
from speechbrain_sim.data.targets import Labels
from speechbrain_sim.encoders.logmel import LogMel
from speechbrain_sim.extraction import encode_manifest
from speechbrain_sim.report.page import write_page
from speechbrain_sim.rows import Examples, Rows, StoredArray

STYLES, WORDS = list("abcd"), list("ABCD")
SETTINGS = Settings(
    probes=(LINEAR, HIDDEN, PAPER),
    frame_rows=1000,
    test_rows=1000,
    strengths=(1e-2,),
    passes=40,
    hidden=6,
    hidden_passes=40,
    controls=5,
    epochs=12,
    lr=0.03,
)


def plant(count, seed=0):
    """Frames with a text and a style, each absent from the other's half."""
    rng = np.random.default_rng(seed)
    style, x, words = rng.permutation(count) % 4, {}, []
    texts = [rng.integers(1, 5, 4) for _ in range(count)]
    for text, one in zip(texts, style, strict=True):
        at = np.repeat(text, rng.integers(3, 5, 4))
        parts = {"z_text": np.eye(5)[at]}
        parts["z_style"] = np.eye(4)[np.full(len(at), one)]
        noise = rng.normal(0, 0.25, (len(at), 9))
        parts = {"h": np.concatenate([*parts.values()], 1) + noise, **parts}
        parts["z_text"] = parts["h"][:, :5]
        parts["z_style"] = parts["h"][:, 5:]
        parts["z_none"] = np.ones((len(at), 2))
        for name, frames in parts.items():
            x.setdefault(name, []).append(frames.astype(np.float32))
        words.append(at - 1)
    y = {"style": [*style], "word": words, "luck": [*rng.integers(0, 3, count)]}
    return x, y, texts


def side_of(x, y, ids=None):
    """A Side of arrays: name -> the frames of each utterance, a recording."""
    first = np.cumsum([0, *map(len, next(iter(x.values())))])
    rows = {
        name: Rows([StoredArray(np.concatenate(frames), first)])
        for name, frames in x.items()
    }
    ids = ids or [*map(str, range(len(first) - 1))]
    spans = np.stack([first[:-1], first[1:]], 1)
    return Side(rows, spans, ids, ids, ["train"] * len(ids), y, {})


@pytest.fixture(scope="module")
def planted():
    made = plant(184, seed=1)
    ids = [f"u{i}" for i in range(184)]
    texts = dict(zip(ids, map(torch.tensor, made[2]), strict=True))
    ends = {"train": ids[:100], "valid": ids[100:124], "test": ids[124:]}
    of = {p: {n: texts[n] for n in names} for p, names in ends.items()}
    targets = Labels("words", WORDS), of
    return side_of(*made[:2], ids), {"text": ends}, targets


@pytest.fixture(scope="module")
def test_side(planted):
    side, divisions, _ = planted
    return side.select(divisions["text"]["test"], "test").pool()


@pytest.fixture(scope="module")
def found(planted, tmp_path_factory):
    side, divisions, targets = planted
    classes = {"style": STYLES, "word": WORDS, "luck": list("xyz"), "flat": []}
    folder = tmp_path_factory.mktemp("halves") / "solved"
    how = SETTINGS, folder, "style", targets
    result = measure(side, divisions, classes, *how)
    assert [*result["map"]["classes"]] == ["style", "luck"]
    assert len(result["map"]["places"]["z_text"]) == 60
    assert not folder.exists()  # solved probes are kept no longer
    return json.loads(json.dumps(result))


@pytest.mark.parametrize("kind", [LINEAR, HIDDEN, PAPER])
def test_a_factor_that_is_absent_leaks_nothing(found, kind):
    probes = found["probes"][kind]
    keeps = {"style": "z_style", "word": "z_text"}
    if kind == PAPER:  # utterances only
        assert "frames" in probes["word"]["gap"]
        del keeps["word"]
    for label, holder in keeps.items():
        scores = probes[label]
        assert scores["h"]["accuracy"] > 0.9 and not scores["h"]["at_chance"]
        for half in "z_text", "z_style", "z_none":
            score, here = scores[half], half == holder
            left = score["leakage"]
            assert abs(left["value"] - here) < (0.05 if here else 0.2)
            low, high = left["interval"]
            assert low - 0.05 <= here <= high + 0.05
            assert score["at_chance"] != here
            assert score["control"]["passed"]


def test_what_h_does_not_hold_cannot_leak(found):
    for kind in LINEAR, HIDDEN, PAPER:
        scores = found["probes"][kind]["luck"]
        assert scores["h"]["at_chance"]
        assert "h itself is at chance" in scores["z_text"]["leakage"]["gap"]


def test_a_constant_half_reads_chance(found):
    for label in "style", "word", "luck":
        score = found["probes"][LINEAR][label]["z_none"]
        assert score["at_chance"], label
        # all alike: the most frequent class, or any at random
        assert score["accuracy"] <= score["chance"] + 1e-9


def test_the_text_is_transcribed_from_its_half_alone(found):
    scores = found["text"]["WER"]
    assert scores["h"]["value"] < 0.3 and scores["z_text"]["value"] < 0.3
    assert scores["z_text"]["leakage"]["value"] == pytest.approx(1, abs=0.15)
    for half in "z_style", "z_none":
        assert scores[half]["value"] > 0.7
        assert -0.6 < scores[half]["leakage"]["value"] < 0.25
        assert scores[half]["at_chance"]
    assert min(score["control"]["value"] for score in scores.values()) > 0.6


def test_a_factor_that_no_line_separates_is_read_by_a_hidden_layer(tmp_path):
    signs = np.random.default_rng(0).choice([-1.0, 1.0], (380, 2))
    x = [frame[None].astype(np.float32) for frame in signs]
    y = [*(signs.prod(1) > 0).astype(int)]
    side = side_of({"h": x, "z_text": x}, {"parity": y})
    ids = side.ids
    ends = {"train": ids[:200], "valid": ids[200:260], "test": ids[260:]}
    how = {"probes": (LINEAR, HIDDEN), "controls": 10, "epochs": 0}
    given = SETTINGS._replace(**how), tmp_path / "solved", None  # no stage 2
    classes = {"parity": ["-", "+"]}
    made = measure(side, {"text": ends}, classes, *given)
    assert type(map_figure(made, None, tmp_path)).__name__ == "Figure"
    scores = made["probes"]
    linear, hidden = (scores[n]["parity"]["h"] for n in how["probes"])
    assert linear["at_chance"] and linear["accuracy"] < 0.65
    assert hidden["accuracy"] == 1


def test_what_cannot_be_probed_is_a_gap(planted, found, tmp_path):
    assert "too few values of flat" in found["probes"][LINEAR]["flat"]["gap"]
    side, divisions, _ = planted
    y = [np.array(c + 4 * (i > 123)) for i, c in enumerate(side.y["style"])]
    classes = {"style": list("abcdefgh"), "luck": list("xyz")}
    divisions = {**divisions, "luck": {"gap": "one speaker only"}}
    given = SETTINGS._replace(probes=(LINEAR, PAPER)), tmp_path, "style"
    side = side._replace(y={**side.y, "style": y})
    probes = measure(side, divisions, classes, *given)["probes"]
    for kind in LINEAR, PAPER:
        assert "4 classes of style that the" in probes[kind]["style"]["gap"]
        assert probes[kind]["luck"]["gap"] == "one speaker only"


def test_a_class_that_is_frequent_in_the_test_part_is_no_evidence():
    y, unit = np.repeat(range(4), [45, 5, 5, 5]), np.arange(60)
    rng = np.random.default_rng(0)
    some = np.where(rng.random(60) < 0.6, y, rng.integers(0, 4, 60))
    predicted = {"h": y, "z_text": some, "z_none": np.zeros(60, int)}
    test = Examples(None, y, unit, [*map(str, unit)])
    outcomes = {n: (p == y).astype(float) for n, p in predicted.items()}
    chance = {n: by_chance(p, test) for n, p in predicted.items()}
    # the mean over all orders of the predictions
    slow = [(rng.permutation(some) == y).mean() for _ in range(2000)]
    assert chance["z_text"].mean() == pytest.approx(np.mean(slow), abs=5e-3)
    outcomes["total"] = np.ones(60)
    scores = compare_halves({n: {} for n in predicted}, outcomes, chance)
    # of 75 % in one class, 75 % are right by it alone; fewer may prove more
    assert outcomes["z_none"].mean() >= outcomes["z_text"].mean() - 0.05
    assert scores["z_none"]["at_chance"] and not scores["z_text"]["at_chance"]
    assert scores["z_none"]["leakage"]["value"] == 0
    assert 0.3 < scores["z_text"]["leakage"]["value"] < 0.9


def test_a_half_as_good_as_h_keeps_all():
    whole, total = np.array([3.0, 1.0, 2.0]), np.full(3, 4)
    assert survives(whole, whole, total) == {
        "value": 1.0,
        "interval": [1.0, 1.0],
    }
    assert survives(0 * whole, whole, total)["interval"] == [0, 0]
    assert "gap" in survives(whole, np.array([3.0, -3.0, 0.0]), total)


def test_padding_changes_no_probe(test_side):
    side = test_side
    units = side.units("h")
    torch.manual_seed(0)
    for make in AttentionProbes, FrameProbes:
        probes = make(9, 3, probes=2)
        for parameter in probes.parameters():
            torch.nn.init.normal_(parameter)
        whole = Sequences(side, "h", units, range(9))
        ((batch, lengths),) = whole.outputs(probes)
        for i, size in enumerate(lengths.tolist()):
            alone = Sequences(side, "h", units, [i])
            ((one, _),) = alone.outputs(probes)
            padded = batch[:, i : i + 1]
            if make is FrameProbes:
                padded = padded[:, :, :size]
            assert torch.allclose(padded, one, atol=1e-5)
    # against the pooling that stage 2 has, with its padding
    probes = AttentionProbes(9, 3)
    z, lengths = whole.batch(range(9))
    half = UtteranceHalf(9, 9, classes=3, coded=False).eval()
    torch.nn.init.normal_(half.pool.query)
    half.classifier.weight.data = probes.linear.weight.data[0].T
    half.classifier.bias.data = probes.linear.bias.data[0, 0]
    probes.query.data[0] = half.pool.query.data
    expected = half(z, lengths)[0]
    assert torch.allclose(probes(z, lengths)[0], expected, atol=1e-5)


def test_losses_of_texts_are_those_of_each_alone():
    torch.manual_seed(0)
    logits, lengths = torch.randn(2, 3, 8, 5), torch.tensor([8, 5, 2])
    texts = [[torch.tensor([1, 2]), torch.tensor([3]), torch.tensor([1, 1])]]
    texts += [[torch.tensor([4]), torch.tensor([2, 2, 1]), torch.tensor([3])]]
    slow = 0
    for probe, known in zip(logits, texts, strict=True):
        for z, size, text in zip(probe, lengths, known, strict=True):
            p = z[:size].log_softmax(-1)[:, None]
            value = torch.nn.functional.ctc_loss(
                p, text[None], size[None], torch.tensor([len(text)])
            )
            slow += 0 if torch.isinf(value) else value
    # two equal symbols have no path through two frames
    assert torch.allclose(sequence_loss(logits, texts, lengths), slow)


def test_means_and_maps_are_of_unpadded_frames(test_side):
    side = test_side
    means = side.means["h"]
    for i in 0, 7:
        frames = side.frames("h", i).numpy()
        assert np.allclose(means[i], frames.mean(0), atol=1e-6)
    halves_ = {name: side.means[name] for name in ("z_text", "z_style")}
    places = map_means(halves_, seed=3)
    assert places == map_means(halves_, seed=3)
    # clusters of style in its half alone: nearest neighbours are of one style
    style, share = np.array(side.y["style"]), {}
    for name, xy in places.items():
        far = np.linalg.norm(
            np.subtract.outer(xy, xy)[:, [0, 1], :, [0, 1]], axis=0
        )
        nearest = (far + np.diag(np.full(len(far), np.inf))).argmin(1)
        share[name] = np.mean(style[nearest] == style)
    assert share["z_style"] > 0.95 and share["z_text"] < 0.6
    flat = {"z_none": side.means["z_none"]}  # t-SNE would crash
    assert map_means({**halves_, **flat}, seed=3) == places
    with pytest.raises(Unmeasurable, match="do not vary"):
        map_means(flat)
    with pytest.raises(Unmeasurable, match="3 test recordings are no map"):
        map_means({"z": means[:3]})


def test_codes_of_stored_frames_are_those_of_a_coded_encoder(corpus, tmp_path):
    torch.manual_seed(0)
    encoder, parts = LogMel().eval(), {}
    parts["logmel.vib.text"] = TextHalf(80, 6, labels=3)
    parts["logmel.vib.pitch"] = UtteranceHalf(80, 4, classes=2, text_units=6)
    coded = CodedEncoder(encoder, parts).eval()
    found = halves_of(coded, "logmel")
    assert list(found) == ["z_text", "z_pitch"]
    about = {"sha256": "0", "arguments": {}}
    stores = [
        encode_manifest(
            encoder,
            about,
            path,
            corpus.folder,
            tmp_path / Path(path).stem,
            layers=["logmel"],
            rows="all",
        )
        for path in (corpus.train, corpus.valid)
    ]
    names = [name for store in stores for name in store.ids]
    values = {"level": {}, "flat": {}}
    for part, store in zip(("train", "valid"), stores, strict=True):
        at = {name: float(names.index(name)) for name in store.ids}
        values["level"][part] = at
        values["flat"][part] = dict.fromkeys(at, 1.0)
    manifests = {"train": corpus.train, "valid": corpus.valid}
    manifests["test"] = corpus.valid
    kinds = {"phones": "frames"}
    asked = "logmel", "pitch", ["pitch", "phones"], kinds
    data = read_data(manifests, corpus.folder, *asked)
    assert data.values == {} and data.labels["pitch"] == (
        ["high", "low"],
        "utterance",
    )
    divisions = {"text": {"train": names[:20]}}
    data = data._replace(values=values)
    side, classes = read_side(stores, data, found, divisions, SETTINGS)
    assert classes["level"] == ["1 of 4", "2 of 4", "3 of 4", "4 of 4"]
    assert classes["flat"] == [] and side.ids == names
    assert np.bincount(side.y["level"]).tolist() == [5, 5, 5, 9]
    for i, (first, last) in enumerate(side.spans):
        assert len(side.y["phones"][i]) == last - first
        assert side.y["pitch"][i] == 1 - i % 2
    row = read_manifest(corpus.train, corpus.folder)[side.ids[3]]
    latents = coded(read_audio(row["wav"])[None])
    for name, layer in (("z_text", "logmel.vib.text"), ("h", "logmel")):
        mean = latents[layer].mean[0]
        assert torch.allclose(side.frames(name, 3), mean, atol=2e-2)
    mean, var = found["z_text"].posterior(side.frames("h", 3))
    drawn = side.frames("z_text, drawn", 3)
    assert torch.equal(drawn, side.frames("z_text, drawn", 3))
    noise = (drawn - mean) / var.sqrt()
    assert abs(noise.mean()) < 0.15 and abs(noise.std() - 1) < 0.15
    with pytest.raises(ValueError, match="no column 'sex', and it is not"):
        read_data(manifests, corpus.folder, "logmel", "sex", ["sex"], {})


def test_one_name_in_two_parts_is_two_recordings(planted):
    side = planted[0]
    here = ["u0", "u1", "u0", *side.ids[3:]]  # of the artificial set
    parts = ["train", "train", "test", *side.parts[3:]]
    side = side._replace(ids=here, parts=parts)
    for part, at in {"train": 0, "test": 2}.items():
        own = side.select(["u0", "u1"], part)  # u1: divided anew
        assert own.spans.tolist() == side.spans[[at, 1]].tolist()
        assert own.y["style"][0] == side.y["style"][at]
        assert own.parts == [part, "train"]


def test_what_is_read(corpus, tmp_path, monkeypatch):
    lines = Path(corpus.valid).read_text().splitlines()
    names = [line.split(",")[0] for line in lines[1:4]]
    for part, first in {"train": 0.5, "valid": 1, "test": 2}.items():
        rows = [lines[0] + ",octave,digit,intensity"]
        rows += [
            f"{line},{first + i},{i},loud" for i, line in enumerate(lines[1:4])
        ]
        (tmp_path / f"{part}.csv").write_text("\n".join(rows) + "\n")
    paths = {p: tmp_path / f"{p}.csv" for p in ("train", "valid", "test")}

    def by_part(path, folder):
        return {name: {"harmonicity": len(path.stem)} for name in names}

    monkeypatch.setattr(halves, "acoustic_labels", by_part)
    asked = ["octave", "digit", "intensity", "harmonicity"]
    data = read_data(paths, corpus.folder, "h", None, asked, {})
    # fractions are numbers, whole numbers and words are classes
    assert data.labels["digit"] == (["0", "1", "2"], "utterance")
    assert data.labels["intensity"][0] == ["loud"]
    # each part has its own, though all names repeat
    read = {p: list(of.values()) for p, of in data.values["octave"].items()}
    assert read["train"] == [0.5, 1.5, 2.5] and read["test"] == [2, 3, 4]
    read = data.values["harmonicity"]
    assert read["train"][names[0]] == 5 and read["test"][names[0]] == 4


def test_peaks_and_valleys():
    time = np.linspace(0, 4 * np.pi, 200, endpoint=False)
    marks = turning_points(np.sin(time))
    assert marks.sum() == 4
    assert np.allclose(np.abs(np.sin(time[marks > 0])), 1, atol=1e-2)
    small = np.sin(time) + 1e-3 * np.sin(40 * time)
    assert turning_points(small).sum() == 4
    unvoiced = np.sin(time)
    unvoiced[20:40] = np.nan  # the first peak is in there
    assert turning_points(unvoiced).sum() == 3
    assert not turning_points(np.full(9, np.nan)).any()
    assert not turning_points(np.ones(9)).any()


def test_cues_are_marked_at_the_frames():
    seconds = torch.arange(32000) / 16000
    bursts = (2 * torch.pi * 2 * seconds).sin() ** 2  # loudest at odd eighths
    wav = bursts * (2 * torch.pi * 150 * seconds).sin() / 2
    for hop, center in (160, 200.0), (320, 300.0):
        frames = 1 + (32000 - 400) // hop
        at = (center + hop * np.arange(frames)) / 16000
        marks = at[acoustic_cues(wav, frames, (hop, center))["intensity"] > 0]
        for peak in 0.125, 0.375, 0.625, 0.875:
            assert np.abs(marks - peak).min() < 0.03


def test_agreement_is_one_of_what_looks_anywhere():
    rng = np.random.default_rng(0)
    cues = [(rng.random(30) < 0.2).astype(float) for _ in range(6)]
    unit = np.arange(6)
    even = agreement([np.full(30, 1 / 30)] * 6, cues, unit)
    assert even["ratio"]["value"] == pytest.approx(1)
    assert np.ptp(even["ratio"]["interval"]) < 1e-9
    scores = [rng.dirichlet(np.ones(30)) for _ in cues]
    shifts = [
        agreement([np.roll(s, by) for s in scores], cues, unit)
        for by in range(30)
    ]
    assert np.mean([s["value"] for s in shifts]) == pytest.approx(even["value"])
    best = agreement([c / c.sum() for c in cues], cues, unit)
    none = agreement([(1 - c) / (1 - c).sum() for c in cues], cues, unit)
    assert best["value"] == pytest.approx(1) and none["value"] == 0
    with pytest.raises(Unmeasurable):
        agreement(scores, [0 * c for c in cues], unit)


def test_gradients_keep_time_and_are_complete():
    pytest.importorskip("captum")
    torch.manual_seed(0)
    weight, h = torch.randn(12, 4).double(), torch.randn(12, 4).double()
    scores, gap = frame_gradients(lambda x: (x * weight).sum((1, 2)), h)
    slow = [float((weight[t] * h[t]).norm()) for t in range(12)]
    assert np.allclose(scores, np.array(slow) / sum(slow)) and gap < 1e-6
    start = h.clone()
    start[3:] += 1  # frames that equal the baseline have no part
    scores, _ = frame_gradients(lambda x: (x**2).sum((1, 2)), h, start)
    assert scores[:3].max() == 0 and scores.sum() == pytest.approx(1)
    scores, _ = frame_gradients(lambda x: 0 * x.sum((1, 2)), h)
    assert np.allclose(scores, 1 / 12)


@pytest.fixture(scope="module")
def parts():
    torch.manual_seed(0)
    text = TextHalf(9, 4, labels=5)
    half = UtteranceHalf(9, 3, classes=4, text_units=4)
    base = UtteranceHalf(9, 9, classes=4, coded=False)
    for part in (text, half, base):
        for parameter in part.parameters():
            torch.nn.init.normal_(parameter, std=0.5)
        part.eval().requires_grad_(False)
    return text, half, base


def test_attention_is_that_of_stage_two_in_a_batch(test_side, parts):
    pytest.importorskip("captum")
    side, (text, half, _) = test_side, parts
    rows = [side.frames("h", i) for i in range(4)]
    x = torch.nn.utils.rnn.pad_sequence(rows, True)
    lengths = torch.tensor([*map(len, rows)])
    _, both = half(half.encode(x), lengths, text.encode(x))
    for i, h in enumerate(rows):
        scores, gap = attribute(*parts, h)
        assert gap < 1e-3
        for name, weights in (("textual", both.text), ("acoustic", both.own)):
            found = scores[f"{name} attention"]
            assert np.allclose(found, weights[i, : len(h)], atol=1e-6)
        for found in scores.values():
            assert found.shape == (len(h),) and found.min() >= 0
            assert found.sum() == pytest.approx(1, abs=1e-5)


def test_the_section(found, test_side, parts, tmp_path):
    pytest.importorskip("captum")
    side = test_side

    def cues_of(name, frames):
        h = side.frames("h", side.ids.index(name))[:, 0].numpy()
        return {"pitch": turning_points(h), "words": np.zeros(frames)}

    drives = measure_attribution(side, parts, cues_of, most=5)
    assert len(drives["strips"]) == 3 and len(drives["gaps"]) == 5
    assert "gap" in drives["cues"]["textual attention"]["words"]
    weights = {"text": {"m1": 0.2, "m2": 0.8}, "style": {"m1": 0.7, "m2": 0.3}}
    wav = np.sin(np.arange(4000) / 9)
    made = section(found, tmp_path, "style", drives, weights, lambda name: wav)
    write_page(tmp_path, "Halves", "", [made], [])
    start = "Of what is read of h, means of z_text keep"
    assert made.sentence.startswith(start) and "the text (WER)" in made.sentence
    assert made.sentence.endswith("None is above chance.")
    assert kept_divided(made) == ["text, and all others", "", "0 of 60 tested"]
    tables = [t for t in made.items if type(t).__name__ == "Table"]
    kept = {row[0]: row[1:] for row in tables[2].rows}
    assert kept["luck, linear"] == ["not measured"] * 3 + ["h"]
    assert kept["style, linear"][-1] == "z_text and z_none"
    data = (tmp_path / "report.html").read_text()
    assert "acoustic attention" in data and "strips" in data
    stems = {i.stem for i in made.items if type(i).__name__ == "Figure"}
    assert {"figures/halves_map", "figures/halves_cues"} <= stems
    assert all((tmp_path / f"{stem}.png").exists() for stem in stems)


def kept_divided(made):
    """The row of the table of divisions."""
    tables = {item.title: item for item in made.items if hasattr(item, "rows")}
    (row,) = tables["How the corpus is divided"].rows
    return row


def test_absence_is_claimed_of_draws():
    def score(value):
        left = {"value": value, "interval": [value - 0.1, value + 0.1]}
        return {"leakage": left, "at_chance": value == 0}

    def sentence(text_drawn, hidden=0):
        styles = {"z_text": 0.3, "z_text, drawn": 0, "z_style, drawn": 0.9}
        texts = {"z_style": 0.2, "z_style, drawn": 0}
        texts["z_text, drawn"] = text_drawn
        styles, texts = (
            {n: score(x) for n, x in of.items()} for of in (styles, texts)
        )
        probes = {"linear": {"style": styles}}
        deeper = {**styles, "z_text, drawn": score(hidden)}
        probes["hidden layer"] = {"style": deeper}
        return headline({"probes": probes, "text": {"PER": texts}}, "style")

    made = sentence(0.8)
    assert "draws of z_text keep 0 [-10, 10] % of style (linear)" in made
    assert made.endswith("None is above chance.")
    # a hidden layer reads it
    apart = "So the halves are not disentangled: {} is above chance."
    assert sentence(0.8, hidden=0.2).endswith(apart.format("z_text"))
    # CTC fails on draws of z_text itself: it shows nothing of other draws
    made = sentence(0.0)
    assert "means of z_style keep 20 [10, 30] % of the text (PER)" in made
    assert made.endswith(apart.format("z_style"))


def test_what_z_text_has_learned_is_counted(planted):
    side, divisions, _ = planted
    of = {"test": [*side.ids[90:110]], "how": "By text."}
    found = halves._overlaps(side, {**divisions, "style": of, "x": {"gap": ""}})
    assert found["text"]["learned"] == 0 and "x" not in found
    assert found["style"] == {"how": "By text.", "test": 20, "learned": 10}


def test_measured_once(tmp_path, monkeypatch):
    calls = []

    def count(*given):
        calls.append(given)
        return {"probes": {}}

    monkeypatch.setattr(halves, "read_side", lambda *given: (None, {}))
    monkeypatch.setattr(halves, "measure", count)
    coded = CodedEncoder(
        LogMel(), {"logmel.vib.text": TextHalf(80, 4, labels=3)}
    )
    texts = Labels("words", ["A"]), {"test": {"u": torch.tensor([1])}}
    data = Data("logmel", "sex", {"sex": (["F", "M"], "utterance")}, {}, texts)
    for sha256, settings, known in (
        ("1", SETTINGS, data),
        ("1", SETTINGS, data),
        ("2", SETTINGS, data),
        ("2", SETTINGS._replace(seed=2), data),
        ("2", SETTINGS._replace(seed=2), data._replace(targets=None)),
    ):
        model = coded, {"sha256": sha256}
        path = tmp_path / "halves.json"
        measure_model(path, model, [], {}, known, settings)
    assert len(calls) == 4


def test_layer_curves(found, tmp_path):
    def trained(value):
        score = {"value": value, "interval": [value - 0.1, value + 0.1]}
        error, right = {"PER": score}, {"accuracy": score, "chance": 0.25}
        return {
            "text": error,
            "text_baseline": error,
            "style": right,
            "style_baseline": right,
        }

    runs = [
        (layer, trained(i / 10 + 0.2), found)
        for i, layer in enumerate(["m0", "m1", "m0"])  # of m0, two seeds
    ]
    figure, *tables = curve_items(runs, "style", tmp_path)
    assert (tmp_path / f"{figure.stem}.png").exists()
    tables = {item.title: item for item in tables}
    errors = tables["text, PER, stage 1 (%)"]
    assert errors.header == ["", "m0", "m1"]
    assert errors.rows[0] == [
        "z_text",
        "30.0 [20.0, 40.0]",
        "30.0 [20.0, 40.0]",
    ]
    assert "style, accuracy, stage 2 (%)" in tables
    rows = [row[0] for row in tables["style, by each half (%)"].rows]
    assert rows == ["h", "z_text", "z_style", "z_none"]
