"""From two tiny encoders to a report: recipes/analyse.py and recipes/sweep.py."""

import json
import math

import numpy as np
import pytest

from speechbrain_sim.analysis.latents import read_clips
from speechbrain_sim.analysis.listening import WALK_STOPS
from speechbrain_sim.analysis.story import delta_at_eighth
from tests.browser.conftest import opened
from tests.browser.test_page import stops, visible
from tests.conftest import HPARAMS, options_for
from tests.encoders.test_huggingface import save_model

SILENT = "All clips decode to the same waveform"
TOOLS = "probes delta weights shape smoothness factors attribution".split()
SYSTEMS = ["SIM", "GIM"]
LABELS = {
    "Synthetic": "speaker",
    "ArtificialSpeech": "vowel",
    "LibriSpeech": "speaker",
}
SMALL = ["--channels", "8", "--context_channels", "8", "--device", "cpu"]
SMALL += [
    "--batch_norm",
    "True",
    "--number_of_epochs",
    "1",
    "--num_workers",
    "0",
    "--noprogressbar",
]


def analyse_argv(corpus, data_folder, folder, names=SYSTEMS):
    """Options that make an analysis of a tiny corpus take seconds."""
    yaml = HPARAMS / corpus / "analyse.yaml"
    systems = {name: str(folder / name) for name in names}
    argv = [str(yaml), "--output_folder", str(folder / "analysis")]
    argv += ["--report_folder", str(folder / "report"), "--device", "cpu"]
    argv += ["--data_folder", str(data_folder), "--systems", str(systems)]
    probes = {name: [str(folder / name / "probe")] for name in names}
    argv += [
        "--probes",
        str(probes),
        "--labels",
        f"[{LABELS[corpus]}]",
        "--clips",
        "4",
    ]
    argv += ["--pairs", "6", "--smooth_pairs", "4", "--smooth_steps", "3"]
    argv += ["--directions", "2", "--decoder_epochs", "{}", "--noprogressbar"]
    argv += ["--decode_options", "{number_of_epochs: 1, num_workers: 0}"]
    argv += ["--probe_options", "{number_of_epochs: 1}"]
    if corpus == "Synthetic":
        small = "{speakers: 3, sentences: 9, test_sentences: 3}"
        argv += ["--corpus_options", small, "--speakers", "3"]
        argv += ["--sentences", "9", "--test_sentences", "3"]
    else:
        argv += ["--walk", "null"]
    return argv


@pytest.fixture(scope="session")
def analysed(recipes, corpora, tmp_path_factory):
    """The folder of an analysis, of both corpora."""
    folders = {}
    for corpus in ("Synthetic", "ArtificialSpeech"):
        folder = folders[corpus] = tmp_path_factory.mktemp(corpus)
        yaml = HPARAMS / corpus / "pretrain.yaml"
        for name in SYSTEMS:
            recipes["pretrain"].main(
                [str(yaml), "--model", name.lower()]
                + ["--output_folder", str(folder / name), *SMALL]
                + options_for(yaml, corpora)
            )
        yaml = yaml.with_name("probe.yaml")
        recipes["probe"].main(  # of SIM only
            [str(yaml), "--encoder", str(folder / "SIM")]
            + ["--output_folder", str(folder / "SIM/probe")]
            + ["--label", LABELS[corpus], "--number_of_epochs", "1"]
            + options_for(yaml, corpora)
        )
        argv = analyse_argv(corpus, corpora / corpus, folder)
        recipes["analyse"].main(argv)
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


@pytest.mark.parametrize("corpus", ["Synthetic", "ArtificialSpeech"])
def test_report_has_every_tool_for_every_system(analysed, corpus):
    folder = analysed[corpus] / "report"
    report = json.loads((folder / "report.json").read_text())
    for tool in TOOLS[1:]:
        assert list(report[tool]) == SYSTEMS, tool
        for layers in report[tool].values():
            assert list(layers) == ["module1", "module2", "module3"], tool
            gaps = [f["gap"] for f in layers.values() if "gap" in f]
            # two seconds of training leave some posteriors silent
            assert all(gap.startswith((SILENT, "Pairs of")) for gap in gaps), (
                tool
            )
            assert not gaps or layers is not report[tool]["GIM"], tool
    assert all(map(math.isfinite, numbers(report)))
    assert report["machine"]["cores"] and report["settings"]["pairs"] == 6
    html = (folder / "report.html").read_text()
    text = (folder / "report.md").read_text()
    for page in (html, text):
        assert "SIM module2" in page and "nan" not in page.lower().split()
    assert "GIM: no KL" in text and "SIM: no KL" not in text
    assert ("as published" in text) == (corpus == "ArtificialSpeech")
    assert ("| 92.58 |" in text) == (corpus == "ArtificialSpeech")
    (probed,) = report["probes"]["SIM"].values()
    assert list(probed) == ["module1", "module2", "module3", "context"]
    assert all(0 <= score["control"] <= 1 for score in probed.values())
    assert report["probes"]["GIM"] == {}
    assert "GIM: no probes" in text and "SIM: no probes" not in text
    differences = report["differences"]["delta"]["SIM"]
    for layer, found in differences.items():
        ours, theirs = (
            delta_at_eighth(report["delta"][name][layer])["value"]
            for name in SYSTEMS
        )
        assert found["value"] == pytest.approx(ours - theirs, abs=1e-6)
    assert "per_pair" not in str(report) and "density" not in str(report)
    drawn = {path.stem for path in (folder / "figures").glob("*.svg")}
    assert drawn == {path.stem for path in (folder / "figures").glob("*.png")}
    assert {"delta", "weights", "top_n", "smoothness"} < drawn


@pytest.mark.parametrize("system", SYSTEMS)
def test_brackets_hold_in_the_report(analysed, system):
    folder = analysed["Synthetic"] / "report"
    report = json.loads((folder / "report.json").read_text())
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
        "phone",
    }
    for found in report["attribution"][system].values():
        for target in found["targets"]:
            assert len(target["envelope"]) == 64 and target["gap"] >= 0


@pytest.mark.parametrize("width", [360, 1280])
def test_sliders_of_the_report_move_sounds(analysed, browser, width):
    path = analysed["Synthetic"] / "report/report.html"
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


def test_analysis_is_found_done(recipes, corpora, analysed):
    folder = analysed["Synthetic"]
    results = sorted((folder / "analysis").glob("*/*.json"))
    written = {path: path.stat().st_mtime_ns for path in results}
    assert len(written) >= 12
    page = (folder / "report/report.html").read_bytes()
    argv = analyse_argv("Synthetic", corpora / "Synthetic", folder)
    recipes["analyse"].main(argv)
    assert written == {p: p.stat().st_mtime_ns for p in written}
    assert page == (folder / "report/report.html").read_bytes()


def test_a_decoder_of_another_encoder_is_refused(
    recipes, corpora, analysed, tmp_path
):
    folder = analysed["Synthetic"]
    argv = analyse_argv("Synthetic", corpora / "Synthetic", folder)
    swapped = {name: str(folder / "GIM") for name in SYSTEMS}
    argv[argv.index("--systems") + 1] = str(swapped)
    with pytest.raises(ValueError, match="holds a decoder of another encoder"):
        recipes["analyse"].main(argv)


def test_other_clips_are_measured_anew(recipes, corpora, analysed):
    folder = analysed["ArtificialSpeech"]
    delta = folder / "analysis/GIM/delta.json"
    before = json.loads(delta.read_text())
    argv = analyse_argv(
        "ArtificialSpeech", corpora / "ArtificialSpeech", folder
    )
    recipes["analyse"].main([*argv, "--clip_samples", "9600"])
    after = json.loads(delta.read_text())
    assert before["made_of"]["clips"] != after["made_of"]["clips"]
    assert before["result"] != after["result"]


def test_unknown_clips_are_named(recipes, corpora, analysed):
    folder = analysed["Synthetic"]
    argv = analyse_argv("Synthetic", corpora / "Synthetic", folder)
    with pytest.raises(ValueError, match="begins with 'xyz'"):
        recipes["analyse"].main([*argv, "--walk", "[xyz, xyz]"])
    with pytest.raises(ValueError, match="--walk names 1 clips"):
        recipes["analyse"].main([*argv, "--walk", "[1001]"])


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
    with pytest.raises(ValueError, match="has 0 recordings of 99999"):
        read_clips(corpus.train, corpus.folder, 99999)


def test_hidden_states_from_elsewhere_without_labels(
    recipes, corpora, tmp_path
):
    model = save_model(tmp_path / "hubert", "hubert", "base")
    yaml = HPARAMS / "Folder/analyse.yaml"
    argv = [str(yaml), "--output_folder", str(tmp_path / "analysis")]
    argv += ["--data_folder", str(corpora / "Folder"), "--device", "cpu"]
    argv += ["--systems", f"{{HuBERT: {model}}}", "--layers", "[hidden0]"]
    argv += ["--weights_label", "null", "--clips", "3", "--pairs", "4"]
    argv += ["--smooth_pairs", "2", "--smooth_steps", "2", "--noprogressbar"]
    argv += ["--decode_options", "{number_of_epochs: 1, num_workers: 0}"]
    recipes["analyse"].main(argv)
    report = json.loads((tmp_path / "analysis/report.json").read_text())
    assert report["delta"]["HuBERT"]["hidden0"]["dimensions"] == 8
    assert report["shape"]["HuBERT"]["hidden0"]["rate"] is None
    assert "No label" in report["weights"]["HuBERT"]["hidden0"]["gap"]
    targets = report["attribution"]["HuBERT"]["hidden0"]["targets"]
    assert [t["target"].split()[0] for t in targets] == ["dimension"]
    text = (tmp_path / "analysis/report.md").read_text()
    assert "No label to probe for" in text
    assert "This corpus names none" in text
    assert "nan" not in text.lower().replace("|", " ").split()


def test_librispeech(recipes, corpora, tmp_path):
    yaml = HPARAMS / "LibriSpeech/pretrain.yaml"
    recipes["pretrain"].main(
        [str(yaml), "--output_folder", str(tmp_path / "SIM"), *SMALL]
        + options_for(yaml, corpora)
    )
    corpus = corpora / "LibriSpeech"
    argv = analyse_argv("LibriSpeech", corpus, tmp_path, ["SIM"])
    argv += ["--layers", "[module3]"]
    recipes["analyse"].main(argv)
    report = json.loads((tmp_path / "report/report.json").read_text())
    assert list(report["delta"]["SIM"]) == ["module3"]
    assert report["weights"]["SIM"]["module3"]["dimensions"] == 8
    text = (tmp_path / "report/report.md").read_text()
    assert "| 94.32 |" in text  # as published


def test_sweep(recipes, corpora, tmp_path):
    argv = [str(HPARAMS / "ArtificialSpeech/sweep.yaml"), "--device", "cpu"]
    argv += ["--output_folder", str(tmp_path), "--noprogressbar"]
    argv += ["--data_folder", str(corpora / "ArtificialSpeech")]
    argv += ["--clips", "4", "--pairs", "6", "--decoder_epochs", "{}"]
    argv += ["--decode_options", "{number_of_epochs: 1, num_workers: 0}"]
    argv += ["--probe_options", "{number_of_epochs: 1}"]
    argv += ["--variants", "{GIM: {model: gim}, strong: {kl_weight: 1.0}}"]
    sizes = "channels: 8, context_channels: 8, num_workers: 0"
    argv += ["--pretrain_options", f"{{number_of_epochs: 1, {sizes}}}"]
    recipes["sweep"].main(argv)
    found = json.loads((tmp_path / "sweep.json").read_text())
    for name in ("GIM", "strong"):
        assert list(found[name]["delta"]) == ["module1", "module2", "module3"]
        assert "context" in found[name]["probe"]
    text = (tmp_path / "sweep.md").read_text()
    assert text.count("| strong |") == 3 and "N/D = 1/8" in text
    assert (tmp_path / "sweep.svg").stat().st_size > 1000
