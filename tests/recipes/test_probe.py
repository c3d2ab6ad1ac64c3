"""The probe recipe on a tiny corpus."""

import pytest
from hyperpyyaml import load_hyperpyyaml

from speechbrain_sim import config
from speechbrain_sim.analysis.probes import read_examples
from speechbrain_sim.encoders.logmel import LogMel
from speechbrain_sim.files import read_json
from speechbrain_sim.models.format import load_parts, save_parts
from tests.brains.test_distributed import torchrun
from tests.conftest import ROOT


@pytest.fixture
def options(corpus, tmp_path):
    """What the recipe is started with."""
    yaml = tmp_path / "probe.yaml"
    yaml.write_text(
        f"base: {ROOT}/hparams/probe.yaml\n"
        "corpus: Tiny\nlabel: pitch\nprepare: !name:builtins.dict\n"
        f"data_folder: {corpus.folder}\ntrain_csv: {corpus.train}\n"
        f"valid_csv: {corpus.valid}\ntest_csv: {corpus.valid}\n"
        "number_of_epochs: 1\n"
    )
    folder = tmp_path / "out"
    options = [yaml, "--output_folder", folder, "--encoder", "logmel"]
    return [*map(str, options), "--device", "cpu"], folder


def test_all_seeds_of_all_labels_are_kept(options, recipes, monkeypatch):
    """Beside their encoder; and the second label encodes nothing again."""
    options, folder = options
    recipes["probe"].main([*options, "--controls", "10"])
    recipes["probe"].main([*options, "--label", "phones", "--controls", "10"])
    stores = [path.stat() for path in folder.glob("activations/*/*/store.json")]
    paper = ["--protocol", "paper", "--lr", "0.1", "--seeds", "[4, 5]"]
    recipes["probe"].main([*options, *paper])
    assert stores == [
        path.stat() for path in folder.glob("activations/*/*/store.json")
    ]
    parts, model = load_parts(folder)
    assert set(parts) == {"encoder", "probe_pitch", "probe_phones"}
    assert parts["probe_pitch"].probes["logmel"].weight.shape == (2, 80, 2)
    assert parts["probe_phones"].probes["logmel"].weight.shape == (1, 80, 5)
    assert model["parts"]["probe_phones"]["kind"] == "frames"
    assert model["parts"]["probe_pitch"]["classes"] == ["high", "low"]
    for label, kind in ("pitch", "utterance"), ("phones", "frames"):
        found = read_json(folder / f"probe_{label}.json")
        assert found["kind"] == kind
        test = read_examples(folder, label, "test")["logmel"]
        x = test.x[:][None]
        correct = parts[f"probe_{label}"](x, "logmel")[0].argmax(-1).numpy()
        accuracy = found["layers"]["logmel"]["per_seed"][0]
        assert (correct == test.y).mean() == pytest.approx(accuracy)


def test_each_label_s_settings_are_kept(options, recipes):
    options, folder = options
    for label in ("pitch", "phones"):
        argv = [*options, "--label", label, "--controls", "10"]
        config.load_experiment(argv)
    for label in ("pitch", "phones"):
        written = (folder / f"hyperparams_{label}.yaml").read_text()
        assert load_hyperpyyaml(written)["label"] == label
    assert not (folder / "hyperparams.yaml").exists()


def test_a_folder_has_the_probes_of_one_encoder(options, recipes, tmp_path):
    """Those of another encoder do not replace them."""
    options, folder = options
    save_parts(tmp_path / "other", {"encoder": LogMel(n_mels=4)})
    argv = [*options, "--controls", "10"]
    recipes["probe"].main(argv)
    before = (folder / "config.json").read_text()
    other = ["--encoder", str(tmp_path / "other"), "--label", "phones"]
    with pytest.raises(ValueError, match="a model of another encoder"):
        recipes["probe"].main([*argv, *other])
    assert (folder / "config.json").read_text() == before


@pytest.mark.parametrize("encoder", ["../../../sim_1", "/tmp/sim_1", "logmel"])
def test_an_encoder_does_not_move_the_results(
    encoder, options, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    argv = [options[0][0], "--encoder", encoder, "--device", "cpu"]
    hparams, _ = config.load_experiment(argv)
    assert hparams["output_folder"] == "results/Tiny/probe"


def test_what_cannot_be_probed_is_refused_at_the_start(options, recipes):
    options, folder = options
    for option, value, message in (
        ("controls", "1", "at least 5"),
        ("controls", "9", "2 classes, at least 10"),
        ("layers", "logmel", "a list"),
        ("lr", "0.1", "no use with --protocol converged: leave it out"),
        ("label_kinds", "{pitch: sequence}", "No linear probe reads"),
        (
            "label_kinds",
            "{pitch: frame}",
            "--label_kinds is .*must be frames or",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            recipes["probe"].main([*options, f"--{option}", value])
    assert not (folder / "activations").exists()


def test_torchrun_is_refused_at_the_start(options):
    options, folder = options
    backend = ["--distributed_backend", "gloo"]
    process = torchrun(ROOT / "recipes/probe.py", *options, *backend)
    output, _ = process.communicate(timeout=300)
    assert process.returncode and "start it without torchrun" in output
    assert not (folder / "activations").exists()
