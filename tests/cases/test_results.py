"""Results that look finished and could not be trusted: C3, E5-E9, E13, F."""

import csv
import json
import math
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import numpy as np
import pytest
import torch

from speechbrain_sim.analysis import delta, intervals, probes, smoothness
from speechbrain_sim.analysis.probing import Probing, plot_probes, read_probed
from speechbrain_sim.analysis.study import Results, Study, System
from speechbrain_sim.brains.probe import (
    ProbeBatches,
    ProbeBrain,
    Watch,
    make_probes,
)
from speechbrain_sim.decoders import SPECTROGRAM, WAVEFORM
from speechbrain_sim.encoders.base import Latent
from speechbrain_sim.family import build_model
from speechbrain_sim.files import read_json
from speechbrain_sim.probes import Choice
from speechbrain_sim.report.style import error_bars
from speechbrain_sim.report.tables import percent
from speechbrain_sim.rows import Examples
from speechbrain_sim.spectrograms import log_mel, log_power, mel_filters
from speechbrain_sim.traversals import most_different, swap
from tests.conftest import HPARAMS, ROOT, make_brain
from tests.recipes.test_study import study_argv

# controls -------------------------------------------------------------------


def answers_that_know(classes, controls, share, seed=0, examples=600):
    """Answers at random, but right in a share of the examples."""
    rng = np.random.default_rng([seed, classes])
    labels = rng.integers(0, classes, examples)
    answers = rng.integers(0, classes, (controls, examples))
    known = rng.random((controls, examples)) < share
    return np.where(known, labels, answers), labels


@pytest.mark.parametrize("share", [0.97, 0.3])
@pytest.mark.parametrize("classes", [2, 3, 9, 41, 251])
def test_f1_a_leak_in_the_answers_fails(classes, share):
    controls = 10 if classes == 2 else 5
    for seed in range(3):
        known = answers_that_know(classes, controls, share, seed)
        assert not intervals.control_interval(*known)["passed"]


@pytest.mark.parametrize("imbalanced", [False, True])
@pytest.mark.parametrize("classes", [2, 3])
def test_f1_a_leak_in_training_fails(classes, imbalanced):
    """Planted in the labels that controls are trained on."""
    torch.manual_seed(classes)
    y = torch.arange(360) % classes
    y = y * (torch.rand(360) < 0.5) if imbalanced else y
    x = torch.randn(360, 8) + 3 * torch.eye(8)[y]
    (x, test), (y, true) = x.split(240), y.split(240)
    batches = ProbeBatches({"low": x}, y, [1], 30, 32)
    batches.y[11:21] = y  # not shuffled
    batches.y[21:, :160] = y[:160]  # shuffled on one side
    made = make_probes({"low": 8}, classes, batches.names, True)
    brain = ProbeBrain(
        made,
        lambda parameters: torch.optim.Adam(parameters, lr=0.03),
        {"max_grad_norm": float("inf")},
        {"device": "cpu"},
    )
    brain.train_probes(batches, range(1, 6))
    answers = brain.predict({"low": test})["low"].numpy()
    real, *controls = np.split(answers, [1, 11, 21])
    found = [intervals.control_interval(c, true.numpy()) for c in controls]
    assert [control["passed"] for control in found] == [True, False, False]
    assert (real == true.numpy()).mean() > found[0]["chance"][1]


@pytest.mark.parametrize("classes, trials", [(2, 300), (3, 200), (9, 50)])
def test_f1_controls_at_chance_pass_as_often_as_stated(classes, trials):
    """Also where the answers for all examples of a class are alike."""
    rng = np.random.default_rng(classes)
    labels = np.minimum(rng.geometric(0.3, 300), classes) - 1
    named = np.stack([rng.permutation(classes) for _ in range(10 * trials)])
    failed = sum(
        not intervals.control_interval(answers[:, labels], labels)["passed"]
        for answers in np.split(named, trials)
    )
    assert failed <= 3  # 0.6 of 300 are expected


@pytest.mark.parametrize("classes, controls", [(2, 9), (3, 4), (41, 2)])
def test_f1_too_few_controls_are_refused(classes, controls):
    known = answers_that_know(classes, controls, 1)
    with pytest.raises(ValueError, match="at least (10|5)"):
        intervals.control_interval(*known)
    with pytest.raises(ValueError, match=f"--controls {controls}"):
        intervals.check_controls(controls, classes)
    with pytest.raises(ValueError, match="of frames, at least 10"):
        intervals.check_controls(5, 41, frames=True)
    intervals.check_controls(5, 41)


def test_e8_three_points_are_visible_among_frames():
    """Of 41 unequal classes; and the least that is visible is stated."""
    rng = np.random.default_rng(0)
    labels = np.minimum(rng.geometric(0.15, 3000), 41) - 1
    answers = rng.integers(0, 41, (10, 3000))
    found = intervals.control_interval(answers, labels)
    assert found["passed"] and 0 < found["visible"] < 0.03
    answers[rng.random(answers.shape) < 0.03] = -1
    leak = np.where(answers < 0, labels, answers)
    found = intervals.control_interval(leak, labels)
    assert not found["passed"] and found["excess"] > found["visible"]


# intervals over encoders ----------------------------------------------------


@pytest.mark.parametrize("encoders", [3, 5])
@pytest.mark.parametrize(
    "recordings, deviation, examples",
    [(200, 0.06, 1), (200, 0.02, 20), (120, 0.03, 3)],
)
@pytest.mark.parametrize("systems", [1, 2])
def test_f6_intervals_cover_other_encoders_and_recordings(
    encoders, recordings, deviation, examples, systems
):
    covered, trials = 0, 600
    for trial in range(trials):
        rng = np.random.default_rng([trial, encoders, recordings])
        total = rng.integers(1, 2 * examples + 1, recordings)
        of_recordings, hits = rng.normal(0, 0.1, recordings), []
        for mean in (0.6, 0.5)[:systems]:
            of_encoders = rng.normal(0, deviation, (encoders, 1))
            chances = (mean + of_encoders + of_recordings).clip(0, 1)
            hits.append(rng.binomial(total, chances).astype(float))
        low, high = intervals.encoders_interval(total, *hits)
        covered += low <= (0.6, 0.1)[systems - 1] <= high
    assert 0.92 <= covered / trials <= 0.98


def test_f6_one_encoder_has_the_interval_of_recordings():
    total, rng = np.full(40, 5), np.random.default_rng(0)
    ours, theirs = rng.binomial(5, 0.6, (2, 40)).astype(float)
    alone = intervals.encoders_interval(total, ours[None])
    assert alone == intervals.bootstrap_interval(ours, total)
    paired = intervals.encoders_interval(total, ours[None], theirs[None])
    assert paired == intervals.bootstrap_interval(ours - theirs, total)
    three = np.stack([ours, theirs, ours * 0.8])
    low, high = intervals.encoders_interval(total, three)
    assert low < alone[0] and alone[1] < high or high - low > 0.2


# planted answers ------------------------------------------------------------


def planted(seed=0):
    """Two layers, two seeds and ten controls, of 30 utterances of 8 frames."""
    rng = np.random.default_rng(seed)
    utterance = np.repeat(np.arange(30), 8)
    y, ids = np.arange(240) % 3, [f"u{i}" for i in range(30)]
    test = {n: Examples(None, y, utterance, ids) for n in ("low", "high")}
    valid = {n: Examples(None, y[:90], utterance[:90], ids) for n in test}
    predictions, chosen = {}, {}
    for layer, wrong in (("low", 6), ("high", 12)):
        real = np.stack([y, y])
        # whole utterances are wrong: frames of one are not independent
        real[:, utterance < wrong] = (y[utterance < wrong] + 1) % 3
        real[1, -8:] = (y[-8:] + 1) % 3
        shuffled = rng.integers(0, 3, (10, 240))
        predictions[layer] = torch.from_numpy(np.concatenate([real, shuffled]))
        on_valid = np.stack([y[:90], y[:90]])
        on_valid[:, :30] = (y[:30] + (layer == "low")) % 3
        chosen[layer] = torch.from_numpy(on_valid)
    return chosen, valid, predictions, test, y, 2


def check_scores(results, tmp_path):
    """What `score_probes` and `write_probe_results` make of them."""
    layers, outcomes = results.score_probes(*planted())
    low, high = layers["low"], layers["high"]
    assert low["per_seed"] == pytest.approx([24 / 30, 23 / 30])
    assert low["accuracy"] == pytest.approx(23.5 / 30)
    assert low["deviation"] == pytest.approx(np.std([24, 23], ddof=1) / 30)
    assert high["accuracy"] == pytest.approx(17.5 / 30)
    assert outcomes["low"].tolist() == [0] * 6 + [8] * 23 + [4]
    # as 30 coins: frames, were they independent, would give 0.10
    assert 0.25 < low["interval"][1] - low["interval"][0] < 0.35
    assert low["valid_accuracy"] == pytest.approx(60 / 90)
    assert high["valid_accuracy"] == 1
    assert low["chance"] == pytest.approx(1 / 3)
    assert low["control"]["passed"] and low["control"]["accuracy"] < 0.4
    about = {"label": "vowel", "encoder": {"sha256": "0"}, "classes": 3}
    results.write_probe_results(tmp_path, (layers, outcomes), **about)
    text = (tmp_path / "probe_vowel.md").read_text()
    assert "high (best on valid) | 58.3 ± 2.4 [" in text
    assert read_json(tmp_path / "probe_vowel.json")["best_layer"] == "high"


def check_compare(results, tmp_path):
    """A paired interval: far narrower than those of either system."""
    total, rng = np.full(60, 10), np.random.default_rng(0)
    hits = rng.integers(0, 10, 60).astype(float)
    pair = [
        {
            "layers": {"low": {"accuracy": x.mean() / 10, "interval": [0, 1]}},
            "best_layer": "low",
            "outcomes": {"hits": {"low": x[None]}, "total": total, "ids": []},
        }
        for x in (hits + 1, hits)
    ]
    found = results.compare(*pair)
    assert found["difference"] == pytest.approx(0.1)
    assert found["interval"] == pytest.approx([0.1, 0.1])
    assert not found["apart"]


class Planted(NamedTuple):
    """Probes that answer right on the validation part of as many examples."""

    classes: int
    bias: bool
    hidden: int
    limit: int
    device: str
    folder: Path

    def answers(self, x):
        """Right answers for 4 examples, else "high" for each."""
        y = torch.tensor([1, 0] * 2) if len(x) == 4 else torch.zeros(len(x))
        return {"logmel": y.long().expand(13, -1)}

    def choose(self, known, valid, units, strengths):
        """Notes what is chosen by."""
        Planted.calls.append((known["logmel"].x, units["logmel"]))
        self.folder.mkdir(parents=True)
        choice = Choice(0.1, True, 1.0, [])
        return {"logmel": choice}, self.answers(valid["logmel"].x)

    def test(self, known, test, units, choices, controls):
        """Notes what is tested."""
        Planted.calls.append((known["logmel"].x, controls))
        answers = self.answers(test["logmel"].x)
        return None, answers, {"logmel": True}


def check_recipe(recipe, tmp_path):
    """What recipes/probe.py solves on, scales by, and chooses on."""
    saved, Planted.calls = [], []
    recipe.ProbeSolver = Planted
    recipe.save = lambda hparams, encoder, probes, scores, *_: saved.append(
        scores
    )
    recipe.main(recipe.argv)
    (chosen_on, units), (tested_on, ten) = Planted.calls
    assert ten == 10
    assert len(chosen_on) == 12 and len(tested_on) == 16
    scaled = chosen_on.scaled(*units[True])[:]
    assert scaled.mean(0).abs().max() < 1e-4
    assert (scaled.std(0) - 1).abs().max() < 1e-3
    scaled = chosen_on.scaled(*units[False])[:]
    assert scaled.mean(0).abs().max() < 1e-4
    torch.testing.assert_close(scaled.std(0), chosen_on[:].std(0))
    ((layers, _),) = saved
    assert layers["logmel"]["valid_accuracy"] == 1
    assert layers["logmel"]["accuracy"] == 0.5
    assert layers["logmel"]["strength"] == 0.1


MUTANTS = {
    "standardized on the test part": (
        "recipe",
        "stores[0].statistics",
        "stores[2].statistics",
    ),
    "chosen on train + valid": (
        "recipe",
        "choose(known, valid,",
        "choose(known, both,",
    ),
    "chooser solved on train + valid": (
        "recipe",
        "choose(known, valid,",
        "choose(both, valid,",
    ),
    "tested without the validation part": (
        "recipe",
        "testing = both,",
        "testing = known,",
    ),
    "no controls": ("recipe", 'choices, hparams["controls"]', "choices, 0"),
    "controls are the real probes": (
        "scores",
        "predicted[seeds:], y,",
        "np.repeat(predicted[:seeds], 5, 0), y,",
    ),
    "bootstrap over examples": (
        "scores",
        "intervals.per_utterance(correct, utterance)",
        "intervals.per_utterance(correct, np.arange(len(y)))",
    ),
    "layer chosen on the test part": (
        "scores",
        '[layer]["valid_accuracy"])',
        '[layer]["accuracy"])',
    ),
    "paired interval of one system": (
        "compare",
        "encoders_interval(total, *hits)",
        "encoders_interval(total, hits[0])",
    ),
    "intervals not paired": (
        "compare",
        "encoders_interval(total, *hits)",
        "encoders_interval(total, hits[0], hits[1][:, ::-1])",
    ),
}
FILES = dict.fromkeys(
    ["scores", "compare"], ROOT / "speechbrain_sim/analysis/probes.py"
)
FILES["recipe"] = ROOT / "recipes/probe.py"
CHECKS = {
    "scores": check_scores,
    "compare": check_compare,
    "recipe": check_recipe,
}


@pytest.fixture(scope="module")
def parts(corpus, tmp_path_factory):
    """Folder of manifests: 12 utterances to train on, 4 and 8 to choose, test."""
    folder = tmp_path_factory.mktemp("parts")
    with open(corpus.train, newline="") as file:
        rows = list(csv.DictReader(file))
    sides = {"train": rows[:12], "test": rows[12:]}
    with open(corpus.valid, newline="") as file:
        sides["valid"] = list(csv.DictReader(file))
    for side, of in sides.items():
        write_rows(folder / f"{side}.csv", of)
    return folder


def write_rows(path, rows):
    """Writes a manifest."""
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


def probe_argv(corpus, parts, folder, **options):
    """A command line of recipes/probe.py."""
    yaml = folder / "probe.yaml"
    keys = {f"{part}_csv": parts / f"{part}.csv" for part in sides()}
    keys |= {"data_folder": corpus.folder, "label": "pitch", "corpus": "Tiny"}
    lines = [f"{key}: {value}\n" for key, value in keys.items()]
    yaml.write_text(
        f"base: {ROOT}/hparams/probe.yaml\nprepare: !name:builtins.dict\n"
        + "".join(lines)
    )
    argv = [str(yaml), "--output_folder", str(folder / "out")]
    argv += ["--encoder", "logmel", "--device", "cpu"]
    return argv + [w for k, v in options.items() for w in (f"--{k}", str(v))]


def sides():
    """Names of the parts."""
    return ("train", "valid", "test")


def opened(which, corpus, parts, tmp_path, old="", new=""):
    """A module of our sources, with one text replaced."""
    source = FILES[which].read_text(encoding="utf-8")
    assert old in source
    module = ModuleType("mutant")
    code = compile(source.replace(old, new), FILES[which], "exec")
    exec(code, module.__dict__)
    module.argv = probe_argv(corpus, parts, tmp_path)
    return module


@pytest.mark.parametrize("which", CHECKS)
def test_f7_planted_answers_give_planted_results(
    which, corpus, parts, tmp_path
):
    CHECKS[which](opened(which, corpus, parts, tmp_path), tmp_path)


@pytest.mark.parametrize("mutant", MUTANTS)
def test_f7_every_mutant_is_caught(mutant, corpus, parts, tmp_path):
    which, old, new = MUTANTS[mutant]
    module = opened(which, corpus, parts, tmp_path, old, new)
    with pytest.raises((AssertionError, RuntimeError, ValueError)):
        CHECKS[which](module, tmp_path)


# a run of the recipe --------------------------------------------------------


@pytest.mark.parametrize("protocol", ["converged", "paper"])
def test_f1_a_leak_makes_the_recipe_fail(
    protocol, corpus, parts, tmp_path, recipes, monkeypatch
):
    """And what it wrote is not taken for done."""

    def leaking(y, controls):
        return y.int().expand(controls, -1)

    options = {"protocol": protocol, "controls": 10}
    if protocol == "paper":
        options |= {"lr": 0.01, "number_of_epochs": 20}
    argv = probe_argv(corpus, parts, tmp_path, **options)
    module = "brains.probe" if protocol == "paper" else "probes"
    with monkeypatch.context() as patch:
        patch.setattr(f"speechbrain_sim.{module}.shuffled_labels", leaking)
        with pytest.raises(RuntimeError, match="above chance for logmel"):
            recipes["probe"].main(argv)
    folder = tmp_path / "out"
    assert not probes.is_written(folder, "pitch")
    recipes["probe"].main(argv)
    score = read_json(folder / "probe_pitch.json")["layers"]["logmel"]
    assert score["control"]["passed"] and score["control"]["below"]
    if protocol == "paper":
        assert not score["still_falling"] or score["accuracy"] == 1


PASSES = {"max_passes": 2}
EPOCH = {"protocol": "paper", "number_of_epochs": 1, "seeds": "[1]"}


@pytest.mark.parametrize(
    "options, remark",
    [
        (EPOCH, "The training loss still falls,"),
        (
            PASSES,
            "Not converged, as --max_passes or float32 ended the search: logmel.",
        ),
    ],
)
def test_e5_what_has_not_converged_is_stated(
    options, remark, corpus, parts, tmp_path, recipes, capsys
):
    recipes["probe"].main(probe_argv(corpus, parts, tmp_path, **options))
    printed = capsys.readouterr().out
    folder = tmp_path / "out"
    result = read_json(folder / "probe_pitch.json")
    score = result["layers"]["logmel"]
    assert score.get("still_falling") or not score["converged"]
    text = (folder / "probe_pitch.md").read_text()
    for line in (remark, "Intervals of fewer than 20"):
        assert any(found.startswith(line) for found in result["remarks"])
        assert line in text and line in printed
    # and in the report, where one encoder is called one
    assert score["deviation"] is None
    probed = read_probed({"pitch": {"log-mel": [folder]}}, None)
    study = Study(tmp_path, probed=probed)
    table, _ = Probing().items(Results(), study)
    assert f"log-mel: {remark}" in table.caption
    assert ("Strength of L2" in table.caption) == (options is PASSES)
    assert "(bootstrap), for this encoder" in table.caption
    assert "points more would have been seen" in table.caption
    assert "±" not in table.rows[0][1]


@pytest.mark.parametrize(
    "losses, falls",
    [([1.0, 0.9], True), ([0.9, 0.899], False), ([0.02, 0.015], False)],
)
def test_e5_falling_is_relative_to_the_loss(losses, falls):
    watch = Watch(["low"], 10)
    assert watch.names == {8: "earlier", 10: "last"}
    watch.earlier[:], watch.last[:] = losses
    assert watch.still_falling() == ["low"] * falls


def test_e5_the_loss_is_that_of_the_real_probes(tmp_path):
    """By hand: mean cross-entropy of an epoch, without the controls'."""
    x, y = torch.randn(12, 4), torch.arange(12) % 2
    batches = ProbeBatches({"low": x}, y, [1, 2], 3, 5)
    made = make_probes({"low": 4}, 2, batches.names, True)
    frozen = {"max_grad_norm": float("inf")}, {"device": "cpu"}
    still = ProbeBrain(made, lambda p: torch.optim.SGD(p, lr=0.0), *frozen)
    still.watch = Watch(["low"], 2)
    still.train_probes(batches, [1, 2])
    logits = made["low"](x.expand(5, -1, -1))[:2].flatten(0, 1)
    loss = torch.nn.functional.cross_entropy(logits, y.repeat(2))
    for name in ("earlier", "last"):
        assert float(getattr(still.watch, name)) == pytest.approx(loss.item())
    assert still.watch.still_falling() == []


@pytest.mark.parametrize(
    "train, test, chance",
    [
        ([0, 1, 2, 3], [1, 2, 3, 3], 0.25),  # was 0
        ([0, 0, 1], [1, 1, 1], 0.5),
        ([2, 2, 2, 0, 1], [2, 0, 2, 2], 0.75),
        ([0, 3], [3, 3, 3, 0], 0.5),
    ],
)
def test_e6_chance_is_no_less_than_a_guess(train, test, chance):
    found = intervals.chance_level(np.array(train), np.array(test))
    assert found == pytest.approx(chance)


REFUSED = {
    "one class to train on": ("train", "pitch", ["low"] * 12, "has one pitch"),
    "one class in the test": ("test", "pitch", ["low"] * 8, "has one pitch"),
    "two utterances": (
        "test",
        "pitch",
        ["low", "high"] + [""] * 6,
        "has 2 lab",
    ),
    "one utterance": ("test", "pitch", ["low"] + [""] * 7, "has one pitch"),
    "no label": ("valid", "pitch", [""] * 4, "No utterance of"),
    "two recordings": (
        "test",
        "recording",
        ["a", "b"] * 4,
        "has 2 labelled recordings",
    ),
    "a class absent from train": (
        "valid",
        "pitch",
        ["low", "mid"] * 2,
        "mid, which no training utterance has",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_c3_e9_what_gives_no_result_is_refused_before_features(
    case, corpus, parts, tmp_path, recipes
):
    part, column, values, message = REFUSED[case]
    for name in sides():
        with open(parts / f"{name}.csv", newline="") as file:
            rows = list(csv.DictReader(file))
        for row, value in zip(rows, values, strict=name == part):
            row |= {column: value} if name == part else {}
        write_rows(tmp_path / f"{name}.csv", rows)
    with pytest.raises(ValueError, match=message) as refusal:
        recipes["probe"].main(probe_argv(corpus, tmp_path, tmp_path))
    assert f"{part}.csv" in str(refusal.value)
    assert not (tmp_path / "out/activations").exists()


def test_e9_a_study_checks_its_labels_before_it_trains(
    recipes, corpora, tmp_path, monkeypatch
):
    argv = study_argv(HPARAMS / "Folder/study.yaml", corpora, tmp_path)
    labels = "{speaker: {probe: {controls: 4}}}"
    monkeypatch.setattr(recipes["study"].pretrain, "pretrain", None)
    with pytest.raises(ValueError, match="--controls 4: .* at least"):
        recipes["study"].main([*argv, "--labels", labels])


# decoders -------------------------------------------------------------------


def linear_system(gain, clips=6):
    """A system whose decoder gives back waveforms, times a gain."""
    generator = torch.Generator().manual_seed(0)
    wavs = torch.randn(clips, 40, generator=generator)
    z = wavs.clone().unflatten(1, (10, 4))
    latent = Latent(z, None, z, torch.full((clips,), 10))
    decoders = {WAVEFORM: {"low": lambda z, samples: gain * z.flatten(1)}}
    return System("SIM", None, wavs, {"low": latent}, decoders, None, {})


@pytest.mark.parametrize("tool", [delta.Delta(), smoothness.Smoothness()])
@pytest.mark.parametrize("gain, works", [(1.0, True), (-0.1, False)])
def test_e7_no_number_without_a_decoder_that_works(tool, gain, works, tmp_path):
    pairs = delta.draw_pairs(6, 20)
    study = Study(tmp_path, pairs=pairs, walk_pairs=pairs, steps=3)
    system = linear_system(gain)
    study = study._replace(systems=[system])
    found = Results(SIM=tool.measure(system, study))
    numbers = json.loads(json.dumps(found, allow_nan=False))["SIM"]["low"]
    if works:
        shown = str(tool.section(found, study))
        assert "gap" not in numbers and "25 %" in shown
        return
    assert list(numbers) == ["gap"]
    assert "gives back -21 % of" in numbers["gap"]
    (gap,) = tool.section(found, study).items
    assert gap.title == "SIM low" and "--decoder_epochs" in gap.reason
    assert delta.DECODED in tool.settings(study).values()  # measured anew


def test_delta_and_smoothness_by_log_mel_equal_those_of_its_values(tmp_path):
    """A decoder that predicts the recordings' own spectrograms, times a gain."""
    torch.manual_seed(0)
    wavs = torch.randn(4, 3200) * torch.rand(4, 1) / 9
    lengths = torch.full((4,), 3200)
    z = log_power(wavs, lengths)
    latent = Latent(z, None, z, torch.full((4,), 21))
    pairs = delta.draw_pairs(4, 12)
    study = Study(tmp_path, pairs=pairs, walk_pairs=pairs, steps=2)

    def measured(tool, gain):
        decoders = {"low": lambda z, samples, as_sound: gain * z}
        every = {SPECTROGRAM: decoders}
        system = System("SIM", None, wavs, {"low": latent}, every, None, {})
        whole = study._replace(systems=[system])
        found = tool.measure(system, whole)
        return found["low"], tool.section(Results(SIM=found), whole)

    found, section = measured(delta.Delta(SPECTROGRAM), 1.0)
    assert found["explained"] == pytest.approx(1, abs=1e-4)
    mels = log_mel(z, mel_filters()).double()
    at, n = found["mae"]["counts"].index(64), 64
    start, target = z[pairs.T]
    mixed = swap(start, target, most_different(start, target)[:, :n])
    mixed = log_mel(mixed, mel_filters()).double()
    start, target = mels[pairs.T]
    expected = (mixed - target).abs().mean() / (start - target).abs().mean()
    assert found["mae"]["delta"][at] == pytest.approx(float(expected), rel=1e-4)
    assert "variance of the recordings' log-mel" in str(section)
    found, _ = measured(smoothness.Smoothness(SPECTROGRAM), 1.0)
    assert found["walks"]["path_ratio"]["value"] >= 1
    found, section = measured(delta.Delta(SPECTROGRAM), 0.0)
    assert "--spectrogram_options" in found["gap"] and section.key[-3:] == "mel"


def test_f8_left_out_pairs_are_in_no_comparison(tmp_path):
    """Two clips sound alike, but the way between them does not."""
    system = linear_system(1.0, clips=4)
    z = system.latents["low"].mean
    z[1] = -z[0]

    def decode(z, samples):
        """As loud as z, and the same for -z."""
        return (z * z[:, :1, :1].sign()).flatten(1)

    system.wavs[:] = decode(z, 40)
    system = system._replace(decoders={WAVEFORM: {"low": decode}})
    pairs = torch.tensor([[0, 1], [0, 2], [2, 3], [0, 3]])
    study = Study(tmp_path, walk_pairs=pairs, steps=4)
    found = smoothness.Smoothness().measure(system, study)["low"]
    paths, distances = found["per_pair"]
    assert found["walks"]["left_out"] == 1
    assert distances[0] == 0 and paths[0] == 0
    assert min(paths[1:]) > 0


@pytest.mark.parametrize(
    "model, changes",
    [
        ("sim_end_to_end", {}),
        ("gim", {}),
        ("cpc", {}),
        ("sim_kl_only", {}),
        ("sim", {"noise": False}),
    ],
)
def test_f8_samples_that_nothing_draws_are_refused(model, changes):
    small = {"channels": 4, "context_channels": 4, **changes}
    with pytest.raises(ValueError, match="num_samples is 3, but"):
        build_model(model, num_samples=3, **small)
    build_model("sim", num_samples=3, channels=4, context_channels=4)
    build_model(model, num_samples=1, **small)


def test_f8_a_split_reaches_the_inner_runs(recipes):
    yamls = HPARAMS / "ArtificialSpeech"
    study = {"on_bad_audio": "fail", "split": "unheard", "min_samples": 8800}
    study |= {"label_kinds": {}, "manifest_folder": "manifests"}
    options = recipes["study"].open_runs(yamls, study, {}).options
    assert options["split"] == "unheard" and "min_samples" not in options


def test_f8_fewer_pairs_than_asked_for_are_stated(tmp_path, caplog):
    with caplog.at_level("WARNING"):
        pairs = delta.draw_pairs(4, 2000)
    assert "only 12 pairs of 4 clips, fewer than the 2000" in caplog.text
    system = linear_system(1.0, clips=4)
    study = Study(tmp_path, pairs=pairs, systems=[system])
    found = Results(SIM=delta.Delta().measure(system, study))
    assert "12 ordered pairs (there are no more) of 4" in str(
        delta.Delta().items(found, study)
    )


# figures, advice ------------------------------------------------------------


def test_f9_a_value_that_rounding_puts_outside_its_interval(tmp_path):
    score = {"accuracy": 1.0, "interval": [1.0, 1.0 - 1e-12], "chance": 0.5}
    for other in ([1.0 + 1e-12, 1.0 + 1e-12], [0.9, 1.0]):
        scores = [score, {**score, "interval": other}]
        _, ends = error_bars(scores, "accuracy", 100)
        assert (ends >= 0).all() and ends[0, 0] == 0
        layers = {"low": scores[0], "high": scores[1]}
        systems = {"SIM": {"layers": layers}}
        plot_probes(systems, "vowel", tmp_path / "figure")
    assert (tmp_path / "figure.svg").exists()
    assert percent({**score, "deviation": None}).startswith("100.0 [")


@pytest.mark.parametrize("batch_norm", [True, False])
def test_e13_advice_on_collapse_fits_the_run(tmp_path, caplog, batch_norm):
    brain = make_brain(tmp_path, batch_norm=batch_norm)
    chance = math.log(4)
    stats = {"module1_nce": chance, "module1_kl": 0.01}
    with caplog.at_level("WARNING"):
        brain.warn_of_collapse("module1", stats)
    assert ("--batch_norm True" in caplog.text) == (not batch_norm)
    assert "--kl_warmup_epochs" in caplog.text
    brain.hparams.kl_warmup_epochs, brain.hparams.initial_log_var = 5, -5
    brain.unwrapped["module1"].smooth_info_nce.kl_reduction = "channel"
    caplog.clear()
    with caplog.at_level("WARNING"):
        brain.warn_of_collapse("module1", stats)
    assert "a lower --kl_weight" in caplog.text
    for option in ("kl_warmup_epochs", "initial_log_var", "kl_reduction"):
        assert option not in caplog.text
