"""Every recipe with every yaml for one tiny epoch."""

import json
from functools import partial
from pathlib import Path

import pytest
import soundfile
import torch

from speechbrain_sim.models.load import load_encoder
from tests.conftest import HPARAMS, ROOT, options_for
from tests.encoders.test_huggingface import save_mert, save_model

REAL = ROOT.parent / "shared/data/ArtificialSpeech"
TINY = ["--channels", "8", "--context_channels", "8", "--device", "cpu"]
TINY += ["--number_of_epochs", "1", "--num_workers", "0", "--noprogressbar"]
TINY_CODES = ["--num_units", "16", "--batch_size", "64", "--device", "cpu"]
TINY_CODES += ["--seeds", "[1]", "--number_of_epochs", "1", "--noprogressbar"]
TINY_CODES += ["--sheet"]
TINY_CODES += ["{train_rows: 300, test_rows: 200, probe_rows: 100, draws: 2, "]
TINY_CODES[-1] += "controls: [random], posterior_rows: 50, factor_rows: 100}"
TINY_SAE = [*TINY_CODES, "--k", "[2]", "--sparsity", "null"]
CLASSIFIED = ["--classes", "digit", "--classifier_weight", "1"]
CLASSIFIED += ["--samples_per_class", "2"]
TINY_VSC = [*TINY_CODES, "--alignment", "[1]", "--hidden", "8"]
TINY_VSC += ["--samples_per_class", "2", "--spike_epochs", "[0.2, 0.4]"]
TINY_VSC += ["--alignment_epochs", "[0.4, 1]", "--observation_std", "0.05"]


@pytest.fixture(autouse=True)
def anywhere(tmp_path, monkeypatch):
    """Recipes are run from a folder that is not the repository."""
    monkeypatch.chdir(tmp_path)


def yamls(stem):
    found = sorted(HPARAMS.glob(f"*/{stem}*.yaml"))
    assert found
    return [path for path in found if path.parent.name != "models"]


PRETRAIN = HPARAMS / "Synthetic/pretrain.yaml"
#: all but `sim`, which every yaml trains
OTHERS = ["gim", "sim_beta0", "sim_kl_only", "cpc", "sim_end_to_end", "random"]


@pytest.mark.parametrize(
    "yaml, model",
    [(path, "sim") for path in yamls("pretrain")]
    + [(PRETRAIN, model) for model in OTHERS],
    ids=str,
)
def test_pretrain_each_model(recipes, corpora, tmp_path, yaml, model):
    recipes["pretrain"].main(
        [str(yaml), "--model", model, "--output_folder", str(tmp_path)]
        + options_for(yaml, corpora)
        + TINY
    )
    _, about = load_encoder(tmp_path)
    assert about["model"] == model
    assert about["arguments"]["channels"] == 8
    assert about["epochs"] == (model != "random")
    if model != "random":
        assert "train " in (tmp_path / "train_log.txt").read_text()


@pytest.mark.parametrize("yaml", yamls("supervised"), ids=str)
def test_supervised(recipes, corpora, tmp_path, yaml):
    recipes["pretrain"].main(
        [str(yaml), "--output_folder", str(tmp_path)]
        + options_for(yaml, corpora)
        + TINY
    )
    log = (tmp_path / "train_log.txt").read_text()
    assert "valid encoder_accuracy" in log


def test_too_few_classes_says_so(recipes, corpora, tmp_path):
    yaml = HPARAMS / "Synthetic/supervised.yaml"
    with pytest.raises(ValueError, match="--classes is 2"):
        recipes["pretrain"].main(
            [str(yaml), "--output_folder", str(tmp_path), "--classes", "2"]
            + options_for(yaml, corpora)
            + TINY
        )


def test_labels_per_frame_are_phones_only(recipes, corpora, tmp_path):
    yaml = HPARAMS / "Synthetic/supervised.yaml"
    with pytest.raises(ValueError, match="per_frame is True for the label 'sp"):
        recipes["pretrain"].main(
            [str(yaml), "--output_folder", str(tmp_path), "--label", "speaker"]
            + options_for(yaml, corpora)
            + TINY
        )


def test_fewer_files_than_a_batch(recipes, corpora, tmp_path):
    yaml = HPARAMS / "Synthetic/pretrain.yaml"
    with pytest.raises(ValueError, match="batch_size below 1000"):
        recipes["pretrain"].main(
            [str(yaml), "--output_folder", str(tmp_path)]
            + ["--batch_size", "1000"]
            + options_for(yaml, corpora)
            + TINY
        )


def test_folder_probes_test_on_what_pretraining_did_not_hear(
    recipes, corpora, tmp_path
):
    for recipe, more in ("pretrain", TINY), ("probe", ["--encoder", "logmel"]):
        yaml = HPARAMS / f"Folder/{recipe}.yaml"
        recipes[recipe].main(
            [str(yaml), "--output_folder", str(tmp_path / recipe)]
            + options_for(yaml, corpora)
            + more
        )
    ids = {
        (recipe, part): {
            line.split(",")[0]
            for line in (tmp_path / recipe / f"save/{part}.csv")
            .read_text()
            .splitlines()[1:]
        }
        for recipe, part in (("pretrain", "train"), ("probe", "test"))
    }
    assert ids["probe", "test"]
    assert not ids["pretrain", "train"] & ids["probe", "test"]


def test_probing_other_layers_is_done_anew(recipes, corpora, tmp_path):
    yaml = HPARAMS / "Synthetic/pretrain.yaml"
    recipes["pretrain"].main(
        [str(yaml), "--output_folder", str(tmp_path), "--model", "random"]
        + options_for(yaml, corpora)
        + TINY
    )
    yaml = HPARAMS / "Synthetic/probe.yaml"
    argv = [str(yaml), "--encoder", str(tmp_path)]
    argv += ["--output_folder", str(tmp_path / "probe"), "--label", "speaker"]
    argv += options_for(yaml, corpora)
    for layers in ["[module1]", "[module1, context]"]:
        recipes["probe"].main([*argv, "--layers", layers])
        result = json.loads((tmp_path / "probe/probe_speaker.json").read_text())
        assert list(result["layers"]) == layers.strip("[]").split(", ")


@pytest.mark.parametrize("yaml", yamls("probe"), ids=str)
def test_probe_logmel_then_find_it_done(
    recipes, corpora, tmp_path, yaml, capfd
):
    argv = [str(yaml), "--encoder", "logmel", "--output_folder", str(tmp_path)]
    argv += options_for(yaml, corpora)
    recipes["probe"].main(argv)
    (result,) = tmp_path.glob("probe_*.json")
    score = json.loads(result.read_text())["layers"]["logmel"]
    low, high = score["interval"]
    assert low <= score["accuracy"] <= high
    assert len(score["per_seed"]) == 1
    written = result.stat().st_mtime_ns
    recipes["probe"].main(argv)
    assert result.stat().st_mtime_ns == written


@pytest.mark.parametrize("yaml", yamls("sae") + yamls("vsc"), ids=str)
def test_sparse_codes_of_every_corpus(recipes, corpora, tmp_path, yaml):
    argv = [str(yaml), "--encoder", "logmel", "--output_folder", str(tmp_path)]
    argv += options_for(yaml, corpora) + ["--layers", "[logmel]"]
    argv += TINY_SAE if yaml.stem == "sae" else TINY_VSC
    classified = yaml == HPARAMS / "FSDD/sae.yaml"  # a baseline of vsc.yaml
    argv += CLASSIFIED * classified
    pooled = yaml.parent.name == "VocalSet" or yaml == HPARAMS / "FSDD/vsc.yaml"
    argv += ["--number_of_epochs", "20"] if pooled else ["--pooling", "frame"]
    recipes["bottleneck"].main(argv)
    parts = json.loads((tmp_path / "config.json").read_text())["parts"]
    (name,) = (name for name in parts if name.startswith("bottleneck_"))
    training = parts[name]["training"]
    assert ("class" in training["train"]) == classified
    assert ("within" in training["train"]) == (yaml.stem == "vsc")
    assert parts[name]["layer"] == "logmel"
    assert parts[name]["pooling"] == ("mean" if pooled else "frame")
    report = (tmp_path / "report.md").read_text()
    published = "| AST hidden6 | 81.8 | 80.3 |" in report
    assert published == (yaml.parent.name == "VocalSet")


@pytest.mark.parametrize("kind", ["hubert", "mert"])
def test_sparse_autoencoders_of_a_transformer(recipes, corpora, tmp_path, kind):
    make = save_mert if kind == "mert" else partial(save_model, kind=kind)
    make(tmp_path / kind, size="base")
    yaml = HPARAMS / "FSDD/sae.yaml"
    argv = [str(yaml), "--encoder", str(tmp_path / kind)]
    argv += ["--output_folder", str(tmp_path / "run")]
    argv += options_for(yaml, corpora) + [*TINY_SAE, "--layers", "[hidden1]"]
    recipes["bottleneck"].main(argv)
    encoder, _ = load_encoder(tmp_path / "run")
    layers = ["hidden1", "hidden1.sae"]
    for name, latent in encoder(torch.randn(1, 4000), layers=layers).items():
        assert latent.mean.shape[1] == encoder.output_lengths(4000, name) > 10
    assert 0 < (latent.mean > 0).sum(-1).max() <= 2  # k


def test_probe_of_a_missing_encoder_names_the_folder(
    recipes, corpora, tmp_path
):
    yaml = HPARAMS / "Synthetic/probe.yaml"
    with pytest.raises(FileNotFoundError, match="nowhere"):
        recipes["probe"].main(
            [
                str(yaml),
                "--encoder",
                "nowhere",
                "--output_folder",
                str(tmp_path),
            ]
            + options_for(yaml, corpora)
        )


def test_unknown_label_names_the_columns(recipes, corpora, tmp_path):
    yaml = HPARAMS / "Synthetic/probe.yaml"
    with pytest.raises(ValueError, match="it has .*speaker"):
        recipes["probe"].main(
            [str(yaml), "--encoder", "logmel", "--output_folder", str(tmp_path)]
            + options_for(yaml, corpora)
            + ["--label", "accent"]
        )


@pytest.mark.data
def test_real_artificial_speech_trains(recipes, tmp_path):
    if not REAL.is_dir():
        pytest.skip("../shared/data/ArtificialSpeech is absent")
    recipes["pretrain"].main(
        [
            str(HPARAMS / "ArtificialSpeech/pretrain_reduced.yaml"),
            *("--data_folder", str(REAL), "--output_folder", str(tmp_path)),
            *("--debug", "--debug_epochs", "1"),
            *TINY,
        ]
    )
    log = Path(f"{tmp_path}_debug/train_log.txt").read_text()
    assert "valid context_nce" in log


def cut_up(excerpt, folder, parts=16):
    """The excerpt's labelled utterance as several, in LibriSpeech's layout.

    A cut at sample 160 k is a cut before label k; a part of n samples has the
    first 1 + (n - 400) // 160 labels of those that follow.
    """
    name = "4051-11218-0044"
    labels = "LibriSpeech100_labels_split/converted_aligned_phones.txt"
    lines = (excerpt / labels).read_text().splitlines()
    (line,) = (line for line in lines if line.startswith(name))
    phones = line.split()[1:]
    chapter = "LibriSpeech/train-clean-100/4051/11218"
    wav, rate = soundfile.read(
        excerpt / chapter / f"{name}.flac", dtype="int16"
    )
    (folder / chapter).mkdir(parents=True)
    (folder / labels).parent.mkdir()
    length = len(wav) // parts // 160
    lines = []
    for part in range(parts):
        first = part * length
        piece = wav[160 * first : 160 * (first + length)]
        count = 1 + (len(piece) - 400) // 160
        name = f"4051-11218-{part:04d}"
        soundfile.write(folder / chapter / f"{name}.flac", piece, rate)
        lines.append(" ".join([name, *phones[first : first + count]]))
    (folder / labels).write_text("\n".join(lines))


@pytest.mark.data
def test_real_librispeech_trains_and_is_probed(recipes, tmp_path, caplog):
    excerpt = ROOT.parent / "shared/data/LibriSpeechExcerpt"
    if not excerpt.is_dir():
        pytest.skip("../shared/data/LibriSpeechExcerpt is absent")
    recipes["pretrain"].main(
        [
            str(HPARAMS / "LibriSpeech/pretrain.yaml"),
            *("--data_folder", str(excerpt), "--incomplete", "allow"),
            *("--output_folder", str(tmp_path / "sim"), "--batch_size", "2"),
            *TINY,
        ]
    )
    log = (tmp_path / "sim/train_log.txt").read_text()
    assert "valid context_nce" in log
    cut_up(excerpt, tmp_path / "parts")
    recipes["probe"].main(
        [
            str(HPARAMS / "LibriSpeech/probe.yaml"),
            *("--data_folder", str(tmp_path / "parts")),
            *("--incomplete", "allow"),
            *("--encoder", str(tmp_path / "sim")),
            *("--output_folder", str(tmp_path / "probe")),
            *("--controls", "10"),
        ]
    )
    result = json.loads((tmp_path / "probe/probe_phones.json").read_text())
    assert list(result["layers"]) == [
        "module1",
        "module2",
        "module3",
        "context",
    ]
