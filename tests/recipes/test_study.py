"""From two tiny encoders to a report: recipes/study.py, with every study yaml."""

import json
import math
import os
from pathlib import Path

import numpy as np
import pytest

from speechbrain_sim.analysis import delta
from speechbrain_sim.analysis.delta import delta_at_share
from speechbrain_sim.analysis.latents import read_clips
from speechbrain_sim.analysis.listening import WALK_STOPS
from speechbrain_sim.analysis.tools import TOOLS, choose_tools
from speechbrain_sim.config import load_experiment
from tests.browser.conftest import opened
from tests.browser.test_page import stops, visible
from tests.conftest import HPARAMS
from tests.encoders.test_huggingface import save_model

SILENT = "All clips decode to the same waveform"
MEASURED = "delta weights shape smoothness factors attribution".split()
MEASURED += ["delta-mel", "smoothness-mel"]
SYSTEMS = ["SIM", "GIM"]
GIM = "{yaml: pretrain.yaml, options: {model: gim}}"
LABELS = {"Synthetic": "speaker", "ArtificialSpeech": "vowel"}
EPOCH = "number_of_epochs: 1"
#: of probes, which choose among more in test_recipes.py
QUICK = {"strengths": [0.01], "standardize": [True]}
TINY = f"{EPOCH}, channels: 8, context_channels: 8, num_workers: 0"


def study_argv(yaml, corpora, folder):
    """Options that make a study of a tiny corpus take seconds."""
    argv = [str(yaml), "--output_folder", str(folder), "--device", "cpu"]
    argv += ["--data_folder", str(corpora / yaml.parent.name)]
    argv += ["--noprogressbar", "--clips", "4", "--pairs", "6"]
    argv += ["--smooth_pairs", "4", "--smooth_steps", "3", "--directions", "2"]
    argv += ["--pretrain_options", f"{{{TINY}}}", "--decoder_epochs", "{}"]
    argv += ["--decode_options", f"{{{EPOCH}, num_workers: 0}}"]
    argv += ["--spectrogram_options", f"{{{EPOCH}}}", "--abx_recordings", "9"]
    argv += ["--abx_group", "3"]
    if yaml.parent.name == "Synthetic":
        argv += ["--speakers", "3", "--sentences", "9"]
        argv += ["--test_sentences", "3"]
    if yaml.stem == "study_factors":  # its own variant of the corpus
        argv += ["--data_folder", str(corpora / "Factors")]
    if yaml.parent.name == "ArtificialSpeech":
        argv += ["--walk", "null"]
    if yaml.parent.name == "FSDD":  # the other systems run elsewhere
        argv += ["--systems", f"{{GIM: {GIM}, log-mel: {{encoder: logmel}}}}"]
    if yaml.stem == "study_held_out":
        folds = "{option: held_out, values: [george, theo]}"
        argv += ["--folds", folds]
    return argv


def two_systems(corpus, corpora, folder):
    """A study of SIM and GIM, and of one label; batch norm keeps them alive."""
    label = LABELS[corpus]
    argv = study_argv(HPARAMS / corpus / "study.yaml", corpora, folder)
    argv[argv.index("--pretrain_options") + 1] = f"{{{TINY}, batch_norm: True}}"
    systems = {
        n: {"yaml": "pretrain.yaml", "options": {"model": n.lower()}}
        for n in SYSTEMS
    }
    argv += ["--systems", str(systems), "--baseline", "GIM"]
    argv += ["--probe_options", str(QUICK)]
    return [*argv, "--labels", f"{{{label}: {{}}}}"]


@pytest.fixture(scope="module", autouse=True)
def decoders_work():
    """Decoders of one epoch give nothing back; their numbers are shown."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(delta, "DECODED", -1e9)
        yield


@pytest.fixture(scope="module")
def studied(recipes, corpora, tmp_path_factory):
    """The folder of a study, of both corpora."""
    folders = {}
    for corpus in LABELS:
        folder = folders[corpus] = tmp_path_factory.mktemp(corpus)
        recipes["study"].main(two_systems(corpus, corpora, folder))
    return folders


def numbers(tree):
    """All numbers in nested dicts and lists."""
    if isinstance(tree, dict):
        tree = list(tree.values())
    if isinstance(tree, list):
        for branch in tree:
            yield from numbers(branch)
    elif isinstance(tree, float):
        yield tree


def check_abx(found, corpus, text):
    """Means of every layer, samples of posteriors; or the reason of a gap."""
    if corpus == "ArtificialSpeech":
        gap = "test.csv has no column 'phones'."
        assert found == {"ABX": {"of phones": {"gap": gap}}} and gap in text
        return
    assert list(found) == SYSTEMS
    for system, layers in found.items():
        assert list(layers) == ["module1", "module2", "module3", "context"]
        for layer, codes in layers.items():
            posterior = system == "SIM" and layer != "context"
            assert list(codes) == ["means", "samples"][: 1 + posterior]
            for numbers in codes.values():
                for kind in ("within", "across"):
                    low, high = numbers[kind]["interval"]
                    assert 0 <= low <= high <= 1
    assert "| SIM context |" in text and "| across speakers, samples |" in text


@pytest.mark.parametrize("corpus", LABELS)
def test_report_has_every_tool_for_every_system(studied, corpus):
    folder = studied[corpus]
    report = json.loads((folder / "report.json").read_text())
    for tool in MEASURED:
        assert list(report[tool]) == SYSTEMS, tool
        for layers in report[tool].values():
            assert list(layers) == ["module1", "module2", "module3"], tool
            gaps = [f["gap"] for f in layers.values() if "gap" in f]
            # two seconds of training leave some posteriors silent, and nothing
            # for probes of features as they are
            known = SILENT, "Pairs of", "No dimension has any importance"
            assert all(gap.startswith(known) for gap in gaps), tool
            silent = [gap for gap in gaps if not gap.startswith(known[2])]
            assert not silent or layers is not report[tool]["GIM"], tool
    assert all(map(math.isfinite, numbers(report)))
    assert report["machine"]["cores"] and report["settings"]["pairs"] == 6
    html = (folder / "report.html").read_text()
    assert len(html) < 4e6  # 12.5 MB with uncompressed sounds
    text = (folder / "report.md").read_text()
    for tool in TOOLS:
        there = tool.key != "halves"  # of studies that train some: test_vib.py
        assert (f"## {tool.title}\n" in text) == there
        assert (tool.title in html) == there
    for page in (html, text):
        assert "SIM module2" in page and "nan" not in page.lower().split()
    assert "GIM: no KL" in text and "SIM: no KL" not in text
    assert "% (SIM) against " in text and "% (GIM) for " in text
    spoken = {"Synthetic": " (speaker 1001, ", "ArtificialSpeech": "“"}
    assert f"{spoken[corpus]}" in text
    assert ("as published" in text) == (corpus == "ArtificialSpeech")
    assert ("| 92.58 |" in text) == (corpus == "ArtificialSpeech")
    (probed,) = report["probes"].values()
    assert list(probed) == SYSTEMS
    layers = probed["SIM"]["layers"]
    assert list(layers) == ["module1", "module2", "module3", "context"]
    assert all(0 <= x["control"]["accuracy"] <= 1 for x in layers.values())
    assert "above_GIM" in probed["SIM"] and "above_GIM" not in probed["GIM"]
    check_abx(report["abx"], corpus, text)
    differences = report["differences"]["delta"]["SIM"]
    for layer, found in differences.items():
        ours, theirs = (
            delta_at_share(report["delta"][name][layer])["value"]
            for name in SYSTEMS
        )
        assert found["value"] == pytest.approx(ours - theirs, abs=1e-6)
    assert "per_pair" not in str(report) and "density" not in str(report)
    drawn = {path.stem for path in (folder / "figures").glob("*.svg")}
    assert drawn == {path.stem for path in (folder / "figures").glob("*.png")}
    expected = {"delta", "trade_off", "weights", "top_n", "smoothness"}
    expected |= {"delta-mel", "smoothness-mel"}
    assert ", decoded, spectrogram" in html and ", decoded, waveform" in html
    assert "Sounds of the spectrogram decoder." in text
    assert {*expected, "training", f"probe_{LABELS[corpus]}"} < drawn


@pytest.mark.parametrize("system", SYSTEMS)
def test_brackets_hold_in_the_report(studied, system):
    report = json.loads((studied["Synthetic"] / "report.json").read_text())
    for found in report["delta"][system].values():
        for distance in ("mae", "mse") if "gap" not in found else ():
            scores = found[distance]
            assert scores["counts"] == [1, 2, 4, 8]
            assert scores["delta"][-1] == pytest.approx(0, abs=1e-5)
            low, high = np.transpose(scores["interval"])
            assert (low <= np.array(scores["delta"]) + 1e-9).all()
            assert (np.array(scores["delta"]) <= high + 1e-9).all()
    for found in report["smoothness"][system].values():
        if "gap" not in found:
            assert found["walks"]["path_ratio"]["value"] >= 1 - 1e-6
    assert (
        system == "SIM" or "gap" not in report["smoothness"][system]["module1"]
    )
    for found in report["shape"][system].values():
        assert (found["rate"] is None) == (system == "GIM")
    codes = report["factors"][system]["module1"]
    assert list(codes) == ["encoder", "untrained", "pca", "rotation"]
    assert set(codes["encoder"]["factors"]) == {
        "speaker",
        "pitch",
        "rate",
        "phones",
    }
    for found in report["attribution"][system].values():
        for target in found["targets"]:
            assert len(target["envelope"]) == 64 and target["gap"] >= 0


@pytest.mark.parametrize("width", [360, 1280])
def test_sliders_of_the_report_move_sounds(studied, browser, width):
    path = studied["Synthetic"] / "report.html"
    with opened(browser, path, width) as page:
        titles = {
            heading.text.split("\n")[0].strip(): heading
            for heading in visible(page, ".explorer h3")
        }
        walk = next(t for name, t in titles.items() if "Interpol" in name)
        explorer = walk.find_element(
            "xpath", "ancestor::*[contains(@class, 'explorer')]"
        )
        sounds = {stop.audio: stop.label for stop in stops(explorer)}
        assert len(sounds) == WALK_STOPS
        assert "α = 0.500" in sounds.values()
        for figure in visible(page, "figure img"):
            assert figure.get_property("naturalWidth") > 0


def test_a_study_is_found_done_from_anywhere(
    recipes, corpora, studied, tmp_path, monkeypatch
):
    folder = studied["Synthetic"]
    results = {*folder.glob("*/*.json"), *folder.glob("*/*/*.json")}
    configs = {path for path in results if path.name == "config.json"}
    parts = {path: path.read_bytes() for path in configs}
    written = {path: path.stat().st_mtime_ns for path in results - configs}
    assert len(written) >= 12 and len(parts) >= 8
    page = (folder / "report.html").read_bytes()
    argv = two_systems("Synthetic", corpora, folder)
    argv[0] = os.path.relpath(argv[0], tmp_path)
    monkeypatch.chdir(tmp_path)
    recipes["study"].main(argv)
    assert written == {p: p.stat().st_mtime_ns for p in written}
    assert parts == {p: p.read_bytes() for p in parts}
    assert page == (folder / "report.html").read_bytes()


def test_a_decoder_of_another_encoder_is_refused(recipes, corpora, studied):
    folder = studied["Synthetic"]
    argv = two_systems("Synthetic", corpora, folder)
    swapped = {name: {"encoder": str(folder / "GIM_1")} for name in SYSTEMS}
    argv[argv.index("--systems") + 1] = str(swapped)
    argv[argv.index("--labels") + 1] = "{}"
    with pytest.raises(ValueError, match="holds a model of another encoder"):
        recipes["study"].main(argv)


def test_other_clips_are_measured_anew(recipes, corpora, studied):
    folder = studied["ArtificialSpeech"]
    measured = folder / "GIM_1/delta.json"
    before = json.loads(measured.read_text())
    argv = two_systems("ArtificialSpeech", corpora, folder)
    argv += ["--clip_samples", "9600", "--tools", "[delta]"]
    recipes["study"].main(argv)
    after = json.loads(measured.read_text())
    assert before["made_of"]["clips"] != after["made_of"]["clips"]
    assert before["result"] != after["result"]


def test_unknown_clips_and_tools_are_named(recipes, corpora, studied):
    argv = two_systems("Synthetic", corpora, studied["Synthetic"])
    with pytest.raises(ValueError, match="begins with 'xyz'"):
        recipes["study"].main([*argv, "--walk", "[xyz, xyz]"])
    with pytest.raises(ValueError, match="--walk names 1 clips"):
        recipes["study"].main([*argv, "--walk", "[1001]"])
    with pytest.raises(ValueError, match="no tool deltas .--tools.* delta,"):
        recipes["study"].main([*argv, "--tools", "[deltas]"])


def test_systems_that_are_missing_are_named(recipes, corpora, tmp_path):
    argv = study_argv(HPARAMS / "Synthetic/study.yaml", corpora, tmp_path)
    alone = [*argv, "--systems", "{log-mel: {encoder: logmel}}"]
    with pytest.raises(ValueError, match="--baseline one of log-mel"):
        recipes["study"].main(alone)
    for name in ("CPC", "supervised"):
        with pytest.raises(ValueError, match=f"encoder of {name} to look"):
            recipes["study"].main([*argv, "--inside", f"[{name}]"])
    for option in ("--factor_label", "--abx_label"):
        with pytest.raises(ValueError, match="speaker is no label of frames"):
            recipes["study"].main([*argv, option, "speaker"])


def test_folds_that_are_none_are_refused(recipes, corpora, tmp_path):
    """Before anything is trained."""
    yaml = HPARAMS / "FSDD/study_held_out.yaml"
    argv = study_argv(yaml, corpora, tmp_path)
    for option, value, message in (
        ("folds", "{option: speaker, values: [a, b]}", "no key speaker"),
        ("folds", "{option: held_out, values: [a, theo]}", "held_out is a,"),
        ("folds", "{options: held_out}", "no key options"),
        ("inside", "[GIM]", "--inside .., no system"),
        ("probe_options", "{held_out: theo}", "the study gives it"),
        # which leaves all tests as they are
        ("folds", "{option: min_samples, values: [400, 800]}", "both test"),
    ):
        with pytest.raises((KeyError, ValueError), match=message):
            recipes["study"].main([*argv, f"--{option}", value])
    assert not list(tmp_path.glob("*/GIM_1/save"))


def test_too_few_and_too_short_clips(corpus, caplog):
    clips = read_clips(corpus.train, corpus.folder, 10000, 200)
    assert len(clips.ids) == 20 and clips.walk == (0, 1)
    assert "fewer than the 200 asked for" in caplog.text
    walk = ["utterance19", "utterance1"]
    longer = read_clips(corpus.train, corpus.folder, 11570, 5, walk)
    assert "10 are shorter" not in caplog.text
    assert longer.wavs.shape == (5, 11570)
    assert [longer.ids[at] for at in longer.walk] == [
        "utterance19",
        "utterance10",
    ]
    shorter = read_clips(corpus.train, corpus.folder, 99999)
    assert shorter.wavs.shape == (10, 11570)  # half of them have so many
    assert "clips have 11570 samples instead" in caplog.text


def test_hidden_states_from_elsewhere_without_labels(
    recipes, corpora, tmp_path
):
    model = save_model(tmp_path / "hubert", "hubert", "base")
    argv = study_argv(HPARAMS / "Folder/study.yaml", corpora, tmp_path)
    argv += ["--systems", f"{{HuBERT: {{encoder: {model}}}}}", "--labels", "{}"]
    argv += ["--inside", "[HuBERT]", "--layers", "[hidden0]"]
    recipes["study"].main([*argv, "--weights_label", "null"])
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["delta"]["HuBERT"]["hidden0"]["dimensions"] == 8
    assert report["shape"]["HuBERT"]["hidden0"]["rate"] is None
    assert "No label" in report["weights"]["HuBERT"]["hidden0"]["gap"]
    targets = report["attribution"]["HuBERT"]["hidden0"]["targets"]
    assert [t["target"].split()[0] for t in targets] == ["dimension"]
    text = (tmp_path / "report.md").read_text()
    assert "No label to probe for" in text
    assert "This corpus names none" in text
    assert "There are no --labels to probe" in text
    assert "nan" not in text.lower().replace("|", " ").split()


STUDIES = sorted(HPARAMS.glob("*/study*.yaml"))
STUDIES = [path for path in STUDIES if "vib" not in path.stem]  # test_vib.py's


def one_of_each(systems, wanted):
    """Leaves out systems that differ from others in values and seeds alone.

    All that are `wanted` stay, and what a system is `of`.
    """

    def kind(system):
        known = "yaml", "encoder", "per_label"
        keys = [sorted(system.get(k, {})) for k in ("options", "probe")]
        keys.append(system.get("options", {}).get("model") == "random")
        return [[system.get(key) for key in known], keys, "of" in system]

    wanted, kinds = {*wanted}, [kind(systems[name]) for name in wanted]
    for name, system in reversed(systems.items()):
        if name in wanted or kind(system) not in kinds:
            wanted |= {name, system.get("of", name)}
            kinds.append(kind(system))
    return {n: system for n, system in systems.items() if n in wanted}


def check_all(study, argv):
    """Checks the runs of all systems of a study, as it does before it begins."""
    hparams, run_opts = load_experiment(argv, None, study.check)
    inside, kinds = bool(hparams["inside"]), hparams["decoders"]
    chosen = choose_tools(hparams["tools"], inside, kinds)
    runs = study.open_runs(Path(argv[0]).parent, hparams, run_opts)
    for fold in study.folds_of(hparams, runs).values():
        study.check_runs(*fold, chosen)


@pytest.mark.parametrize("yaml", STUDIES, ids=str)
def test_every_study(recipes, corpora, tmp_path, yaml, capsys):
    """The probes of every study, with the delta of one layer if it has any."""
    argv = study_argv(yaml, corpora, tmp_path)
    asked, _ = load_experiment(argv)
    inside = asked["inside"][-1:]  # GIM, which is never silent
    argv += ["--inside", str(inside), "--layers", "[module3]"]
    check_all(recipes["study"], argv)
    systems = one_of_each(asked["systems"], {asked["baseline"], *inside})
    # of 880 channels, slow to probe
    systems.pop("log-mel-stacked", None)
    asked["systems"] = systems
    for system in systems.values():
        system["seeds"] = [1]
        probe = system.setdefault("probe", {})
        probe |= {"number_of_epochs": 1} if "protocol" in probe else QUICK
    argv += ["--systems", json.dumps(systems)]
    known = ", factors" * (yaml.stem == "study_factors")
    recipes["study"].main([*argv, "--tools", f"[delta, trade-off{known}]"])
    report = json.loads((tmp_path / "report.json").read_text())
    assert sorted(report["probes"]) == sorted(asked["labels"])
    assert list(report.get("delta", {})) == inside
    if known:
        codes = report["factors"]["GIM"]["module3"]
        names = "speaker pitch pitch_range rate loudness".split()
        assert list(codes["encoder"]["factors"]) == names
        assert "How independent" in (tmp_path / "report.md").read_text()
    baseline = asked["baseline"]
    for task, systems in report["probes"].items():
        assert sorted(systems) == sorted(asked["systems"])
        for name, system in asked["systems"].items():
            found = systems[name]
            encoders = max(1, len(asked["folds"].get("values", "")))
            encoders *= len(system.get("seeds", [1]))
            assert len(found["encoders"]) == encoders
            if "of" in system:
                assert found["encoders"] == systems[system["of"]]["encoders"]
                assert found["settings"]["protocol"] == "paper"
            if "yaml" in system:
                layers = asked["labels"][task].get("probe", {}).get("layers")
                chosen = bool(asked["folds"])  # a row of their best layers
                assert len(found["layers"]) == len(layers or "1234") + chosen
            score = found["layers"][found["best_layer"]]
            assert 0 <= score["interval"][0] <= score["interval"][1] <= 1
            assert (f"above_{baseline}" in found) == (name != baseline)
    text = (tmp_path / "report.md").read_text()
    drawn = ["training", *(f"probe_{task}" for task in report["probes"])]
    for name in drawn + ["delta"] * bool(inside):
        picture = f"figures/{name}.svg"
        assert picture in text and (tmp_path / picture).stat().st_size > 1000
    assert f"| best − {baseline} |" in capsys.readouterr().out
    if inside and asked["published"]:
        published = asked["published"]["delta"]["GIM"]["module3"]
        assert f"| {published[5]:.2f} |" in text
