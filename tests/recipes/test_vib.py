"""Both stages by a command line: refusals, kills, what a run leaves."""

import json

import pytest
import torch
from safetensors.torch import load_file

from speechbrain_sim.brains.vib import read_text_half
from speechbrain_sim.config import load_experiment
from speechbrain_sim.hub.publish import export_model
from speechbrain_sim.inference import SmoothInfoMax
from speechbrain_sim.integrations.speechbrain import LatentFeatures
from speechbrain_sim.models.format import load_parts
from speechbrain_sim.models.load import load_encoder
from tests.brains.test_resume import killed_once
from tests.conftest import HPARAMS, finish, options_for, same, start_recipe
from tests.encoders.test_huggingface import save_model
from tests.recipes.test_recipes import yamls

YAML = HPARAMS / "Synthetic/vib.yaml"
STUDIES = [
    str(path.relative_to(HPARAMS).with_suffix(""))
    for path in sorted(HPARAMS.glob("*/study_vib*.yaml"))
]
#: a run of seconds
TINY = ["--latent_dim", "4", "--number_of_epochs", "2", "--batch_size", "4"]
TINY += ["--encoder", "logmel", "--layers", "[logmel]", "--noprogressbar"]
TINY += ["--reading", "{probes: [linear], epochs: 1, passes: 20}"]


def command(yaml, corpora, folder, *options):
    argv = [str(yaml), "--output_folder", str(folder), "--device", "cpu"]
    if yaml.parent.name == "Folder":
        texts = folder.parent / "texts.csv"
        rows = "".join(
            f"{path.relative_to(corpora / 'Folder')},{path.parent.name},"
            f"{'ABC'[number % 3]} BC\n"
            for number, path in enumerate(sorted(corpora.glob("Folder/*/*")))
        )
        texts.write_text("path,speaker,text\n" + rows)
        argv += ["--speakers", str(texts)]
    return [*argv, *options_for(yaml, corpora), *TINY, *options]


@pytest.mark.parametrize("yaml", yamls("vib"), ids=str)
def test_every_corpus_trains_both_stages(recipes, corpora, tmp_path, yaml):
    folder = tmp_path / "run"
    own = ["--number_of_epochs", "1"]
    recipes["vib"].main(command(yaml, corpora, folder, *own))
    encoder, _ = load_encoder(folder)
    *_, label = names = encoder.layer_names
    assert names[:2] == ["logmel", "logmel.vib.text"] and ".vib." in label
    found = json.loads((folder / "vib.json").read_text())
    label = label.removeprefix("logmel.vib.")
    scores = found["halves"]
    assert list(scores) == ["text", "text_baseline", label, f"{label}_baseline"]
    assert 0 <= scores[label]["accuracy"]["value"] <= 1
    assert scores["text"]["kl_per_second"] == 100 * scores["text"]["kl"]
    assert "utterances" in found["split"]["text"]
    read = json.loads((folder / "halves.json").read_text())["result"]
    assert {label, "pitch"} <= read["probes"]["linear"].keys()
    page = (folder / "report.md").read_text()
    assert "What is left in each half" in page and "Where it looks" in page
    timed = yaml.parent.name == "Synthetic"
    assert ("Nothing states when words are spoken" in page) != timed


def test_layers_of_a_transformer_are_mixed(recipes, corpora, tmp_path):
    pytest.importorskip("transformers")
    model = save_model(tmp_path / "model", "wav2vec2", "base")
    own = ["--encoder", str(model), "--layers", "[hidden1, hidden2]"]
    own += ["--number_of_epochs", "1", "--labels", "[]"]  # stage 1 alone
    yaml = HPARAMS / "FSDD/vib.yaml"
    recipes["vib"].main(command(yaml, corpora, tmp_path / "run", *own))
    encoder, _ = load_encoder(tmp_path / "run")
    codes = encoder(torch.randn(1, 8000))["mix.vib.text"].mean
    assert codes.shape[2] == 4
    assert "Weights of layers" in (tmp_path / "run/report.md").read_text()


@pytest.mark.parametrize(
    "options, message",
    [
        (["--latent_dim", "81"], "81 is more than the 80 channels of logmel"),
        (["--layers", "[module9]"], "no layer 'module9'"),
        (["--labels", "[phones]"], "--labels has 'phones': a label is a col"),
        (["--labels", "[text]"], "not named text"),
        (["--labels", "[]", "--text_from", "x"], "There is nothing to train"),
        (["--labels", "[mood]"], "no column 'mood'"),
        (["--text_from", "{trained}"], "holds no bottleneck_logmel.vib.text"),
        (["--number_of_epochs", "0"], "must be >= 1"),
        (
            ["--reading", "{{probes: [cubic]}}"],
            "'cubic'., but must be linear or",
        ),
        (["--reading", "{{rows: 3}}"], "no setting 'rows': seed, recordings"),
        (["--reading", "{{bins: two}}"], "bins is 'two', but takes a whole"),
        (
            ["--reading", "{{strengths: []}}"],
            "strengths is .*, but must be not",
        ),
        (["--reading", "{{probes: [paper], epochs: 0}}"], "trains nothing"),
        (["--polarity", "p.csv", "--words", "w.csv"], "w.csv"),
        (["--read", "[mood]"], "no column 'mood', and it is not measured"),
        (["--pieces", "9"], "--pieces has no use with --target phones"),
        (["--labels", "[]", "--words", "w.csv"], "--words is of the report on"),
        (
            ["--use_information_loss", "False", "--final_beta", "0.5"],
            "--final_beta has no use with --use_information_loss False",
        ),
    ],
)
def test_what_cannot_be_trained_is_refused(
    recipes, corpora, trained, tmp_path, options, message
):
    options = [text.format(trained=trained.run) for text in options]
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        recipes["vib"].main(command(YAML, corpora, tmp_path, *options))
    assert not list(tmp_path.glob("activations"))


def test_one_speaker_is_refused(recipes, corpora, tmp_path):
    yaml = HPARAMS / "Folder/vib.yaml"
    (tmp_path / "Folder").symlink_to(corpora / "Folder/ann")
    argv = command(yaml, corpora, tmp_path / "run")
    argv += [
        "--data_folder",
        str(corpora / "Folder/ann"),
        "--split",
        "published",
    ]
    texts = tmp_path / "texts.csv"
    rows = [f"{p.name},ann,A\n" for p in sorted(corpora.glob("Folder/ann/*"))]
    texts.write_text("path,speaker,text\n" + "".join(rows))
    with pytest.raises(ValueError, match="one speaker, ann"):
        recipes["vib"].main(argv)


def test_killed_in_each_stage_it_ends_the_same(corpora, tmp_path):
    own = ["--ckpt_interval_steps", "2", "--number_of_epochs", "3"]
    folder, whole = tmp_path / "killed", tmp_path / "whole"
    argv, other = (
        ["vib.py", *command(YAML, corpora, f, *own)] for f in (folder, whole)
    )
    uninterrupted = start_recipe(*other)
    for reached in (
        lambda: list(folder.glob("save/CKPT*")),
        lambda: list(folder.glob("save/speaker/CKPT*")),
    ):
        killed_once(argv, reached)
    assert not (folder / "vib.json").exists()
    log = finish(start_recipe(*argv))
    finish(uninterrupted)
    assert "Loading a checkpoint" in log
    for file in whole.glob("*.safetensors"):
        assert same(load_file(file), load_file(folder / file.name)), file.name
    for name in "train_log.txt", "train_log_speaker.txt", "vib.json":
        assert (whole / name).read_text() == (folder / name).read_text()


@pytest.fixture(scope="module")
def run(recipes, corpora, trained, tmp_path_factory):
    """Halves of a mixture of layers of a model."""
    folder = tmp_path_factory.mktemp("vib") / "run"
    own = ["--encoder", str(trained.model), "--layers", "[module2, module3]"]
    own += ["--target", "chars"]
    recipes["vib"].main(command(YAML, corpora, folder, *own))
    return folder


def test_a_run_is_a_model_that_is_exported_and_used(run, trained, tmp_path):
    names = ["mix", "mix.vib.text", "mix.vib.speaker"]
    coded, about = load_encoder(run)
    assert coded.layer_names[-3:] == names
    assert about["encoder"] == load_encoder(trained.model)[1]["sha256"]
    export_model(run, tmp_path / "model", data="noise")
    wavs = torch.randn(2, 8000)
    model = SmoothInfoMax.from_pretrained(tmp_path / "model")
    latents = model.encode_batch(wavs)
    with torch.no_grad():
        wanted = coded(wavs)
    for name in names:
        assert torch.equal(latents[name].mean, wanted[name].mean)
    features = LatentFeatures(tmp_path / "model", names[1:])
    found = features(wavs, torch.tensor([1.0, 0.7]))
    assert found.shape[-1] == features.out_channels == 4
    weights = (run / "figures/halves_weights.svg").read_text()
    for name in "module2", "module3", "text", "h":
        assert f">{name}<" in weights or f"<!-- {name} -->" in weights
    half = coded.bottlenecks["mix.vib.speaker"]
    own, text = (wanted[n] for n in reversed(names[1:]))
    logits, attention = half(own.mean, own.lengths, text.mean)
    assert logits.shape == (2, 3) and attention.text.shape == own.mean.shape[:2]
    parts, config = load_parts(run, ["baseline_mix_speaker"])
    baseline = parts["baseline_mix_speaker"]
    h = baseline.encode(wanted["mix"].mean)
    assert baseline(h, own.lengths)[0].shape == (2, 3)
    card = (tmp_path / "model/README.md").read_text()
    assert "`mix.vib.text`" in card


def test_a_textual_half_is_taken_from_another_run(
    recipes, corpora, run, trained, tmp_path
):
    own = ["--layers", "[module2, module3]", "--text_from", str(run)]
    model = ["--encoder", str(trained.model)]
    argv = command(YAML, corpora, tmp_path / "run", *own)
    recipes["vib"].main([*argv, *model])
    part = "bottleneck_mix.vib.text.safetensors"
    assert (run / part).read_bytes() == (tmp_path / "run" / part).read_bytes()
    assert not (tmp_path / "run/baseline_mix_text.safetensors").exists()
    _, config = load_parts(tmp_path / "run", [])
    parts = config["parts"]
    page = (tmp_path / "run/report.md").read_text()
    assert "What transcribes h and its halves" in page
    text = parts["bottleneck_mix.vib.text"]["sha256"]
    assert parts["bottleneck_mix.vib.speaker"]["arguments"]["text_units"] == 4
    there = load_parts(run, [])[1]["parts"]["bottleneck_mix.vib.text"]
    assert text == there["sha256"]
    other = [*argv, *model, "--output_folder", str(tmp_path / "other")]
    with pytest.raises(ValueError, match="is of another mixed"):
        recipes["vib"].main([*other, "--layers", "[module1, module3]"])
    with pytest.raises(ValueError, match="is of another encoder .* --encoder"):
        read_text_half(run, "another", "mix", ["module2", "module3"])


@pytest.mark.parametrize("stem", STUDIES)
def test_a_study_trains_halves_of_its_systems(recipes, corpora, tmp_path, stem):
    """Two of its systems, one with two seeds; layers are checked first."""
    yaml = HPARAMS / f"{stem}.yaml"
    argv = [str(yaml), "--output_folder", str(tmp_path), "--device", "cpu"]
    argv += [*options_for(yaml, corpora), "--noprogressbar"]
    asked, _ = load_experiment(argv)
    systems = asked["systems"]
    (name, small), *_ = (
        x for x in systems.items() if "vib.yaml" in x[1].values()
    )
    above = systems[small["of"]]
    if "yaml" in above:
        above["options"] |= {"channels": 8, "context_channels": 8}
        above["options"] |= {"number_of_epochs": 1, "num_workers": 0}
        above["seeds"] = [1, 2]
    else:
        above["encoder"] = "sim-small"
    small["options"] |= {"number_of_epochs": 1, "latent_dim": 4}
    small["options"] |= {"hold_epochs": 0}
    reading = {"probes": ["linear"], "epochs": 1, "passes": 20}
    small["options"] |= {"reading": reading, "labels": ["speaker"]}
    small["seeds"] = [1, 2]
    (layer,) = small["options"]["layers"]
    codes = [f"{layer}.vib.text", f"{layer}.vib.speaker"]
    small["probe"] = {"layers": codes}
    if "factors" in stem:  # the tests' corpus has no styles
        argv += ["--factors", "speaker"]
    argv += ["--labels", "{speaker: {probe: {controls: 5}}}"]
    argv += ["--baseline", "null", "--pretrain_options", "{}"]

    def options():
        chosen = {small["of"]: above, name: small}
        return [*argv, "--systems", json.dumps(chosen)]

    layers = small["probe"]["layers"]
    small["probe"]["layers"] = ["context.sae"]
    with pytest.raises(ValueError, match="no layer 'context.sae'"):
        recipes["study"].main(options())
    small["probe"]["layers"], of = layers, small["of"]
    wrong = json.dumps({name: small})
    with pytest.raises(ValueError, match=f"{name} is of {of}, but no entry"):
        recipes["study"].main([*argv, "--systems", wrong])
    recipes["study"].main(options())
    report = (tmp_path / "report.md").read_text()
    error = "WER" if stem.startswith("FSDD") else "PER"
    assert f"| {name} | text | {error} (%) |" in report
    assert (tmp_path / "figures/halves.svg").exists()
    curves = "Both stages, and what each half holds of speaker"
    assert curves in report
    encoders = 1 if "encoder" in above else 2
    assert len([*tmp_path.glob("activations/*/train")]) == encoders
    assert not [*tmp_path.glob(f"{name}_*/activations/*/train")]
    found = json.loads((tmp_path / "report.json").read_text())
    assert list(found["probes"]["speaker"][name]["layers"]) == layers
