"""Training of bottlenecks by a command line: refusals, kills, what it leaves."""

import pytest
import torch
from safetensors.torch import load_file

from speechbrain_sim.activations import ActivationStore
from speechbrain_sim.brains.frames import check_store
from speechbrain_sim.models.format import load_parts
from speechbrain_sim.models.load import load_encoder
from tests.brains.test_resume import killed_once
from tests.conftest import HPARAMS, finish, options_for, same, start_recipe
from tests.recipes.test_recipes import TINY_VSC

YAML = HPARAMS / "Folder/sae.yaml"
#: a run of seconds, but of many steps
TINY = ["--num_units", "12", "--k", "[2, 4]", "--seeds", "[1]"]
TINY += ["--batch_size", "64", "--number_of_epochs", "3", "--lr", "0.01"]
SHEET = "{train_rows: 300, test_rows: 200, probe_rows: 100, draws: 2, "
TINY += ["--sheet", SHEET + "controls: [PCA], posterior_rows: 50}"]


def command(yaml, corpora, folder, *options):
    argv = [str(yaml), "--output_folder", str(folder), "--device", "cpu"]
    return [*argv, *options_for(yaml, corpora), *TINY, *options]


@pytest.mark.parametrize(
    "options, message",
    [
        (["--k", "[16]"], "--k 16 means 16 active units of the 12 for logmel"),
        (["--sparsity", "[99]"], "--k has no use with --sparsity .99.: leave"),
        (
            ["--held_out_classes", "[a]"],
            "--held_out_classes has no use with --c",
        ),
        (["--classifier_weight", "2"], "no use with --classes null: leave it"),
        (["--variant", "l1"], "--k has no use with --variant l1"),
        (["--temporal_weight", "2"], "no use with --variant topk"),
        (["--pooling", "mean", "--variant", "temporal"], "use --pooling frame"),
        (["--pooling", "sum"], "--pooling is 'sum', but must be frame or mean"),
        (["--num_units", "99999"], "logmel has .* fewer than its 99999 units"),
        (["--layers", "[module3]"], "no layer 'module3'; this encoder has log"),
        (["--lr_decay_epochs", "1"], "rate is 0 after --lr_decay_epochs 1"),
        (["--seeds", "[1, 1]"], "--seeds is .* must be not empty, unique"),
    ],
)
def test_what_cannot_be_trained_is_refused(
    recipes, corpora, tmp_path, options, message
):
    own = ["--encoder", "logmel", "--layers", "[logmel]", *options]
    with pytest.raises(ValueError, match=message):
        recipes["bottleneck"].main(command(YAML, corpora, tmp_path, *own))
    assert not list(tmp_path.glob("activations"))


def test_labels_of_frames_have_no_means(recipes, corpora, tmp_path):
    yaml = HPARAMS / "Synthetic/sae.yaml"
    own = ["--encoder", "logmel", "--layers", "[logmel]", "--pooling", "mean"]
    with pytest.raises(ValueError, match="--labels has phones, of frames"):
        recipes["bottleneck"].main(command(yaml, corpora, tmp_path, *own))


def test_killed_anywhere_it_ends_the_same(corpora, tmp_path):
    """While it encodes, in the middle of an epoch, and after one."""
    own = ["--encoder", "logmel", "--layers", "[logmel]", "--labels", "[]"]
    own += ["--ckpt_interval_steps", "10"]
    folder, whole = tmp_path / "killed", tmp_path / "whole"
    argv, other = (
        ["bottleneck.py", *command(YAML, corpora, f, *own)]
        for f in (folder, whole)
    )
    uninterrupted = start_recipe(*other)

    def logged():
        log = folder / "train_log.txt"
        return log.exists() and log.read_text().count("epoch: ")

    for reached in (
        lambda: list(folder.glob("activations/all/train/store.json")),
        lambda: list(folder.glob("save/CKPT*")),
        logged,
    ):
        killed_once(argv, reached)
    log = finish(start_recipe(*argv))
    finish(uninterrupted)
    assert "Loading a checkpoint" in log
    for name in "logmel.sae", "logmel.sae_k4":
        part = f"bottleneck_{name}.safetensors"
        assert same(load_file(whole / part), load_file(folder / part))
    for name in "train_log.txt", "sparsity.json":
        assert (whole / name).read_text() == (folder / name).read_text()


def test_aligned_codes_are_killed_and_end_the_same(
    recipes, corpora, tmp_path, monkeypatch
):
    """While their alignment rises, in the middle of an epoch."""
    own = ["--encoder", "logmel", "--layers", "[logmel]", "--labels", "[]"]
    own += ["--samples_per_class", "32", "--number_of_epochs", "2"]
    own += ["--ckpt_interval_steps", "5", "--pooling", "frame"]
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    yaml, threads = HPARAMS / "FSDD/vsc.yaml", torch.get_num_threads()
    argv, other = (
        [str(yaml), "--output_folder", str(folder), "--device", "cpu"]
        + [*options_for(yaml, corpora), *TINY_VSC, *own]
        for folder in (killed, whole)
    )
    killed_once(
        ["bottleneck.py", *argv], lambda: list(killed.glob("save/CKPT*"))
    )
    before = (killed / "save").glob("CKPT*")
    assert [*before] and not (killed / "train_log.txt").exists()
    recipe = recipes["bottleneck"]
    monkeypatch.setattr(recipe, "write_report", lambda *_, **__: None)
    torch.set_num_threads(1)  # as the process that was killed
    for run in argv, other:
        recipe.main(run)
    torch.set_num_threads(threads)
    part = "bottleneck_logmel.vsc.safetensors"
    assert same(load_file(whole / part), load_file(killed / part))
    log = (whole / "train_log.txt").read_text()
    assert log == (killed / "train_log.txt").read_text()


def test_a_run_of_a_model_keeps_what_belongs_to_it(
    recipes, corpora, trained, tmp_path
):
    yaml = HPARAMS / "Synthetic/sae.yaml"
    own = ["--encoder", str(trained.model), "--layers", "[module3]"]
    own += ["--number_of_epochs", "1"]
    argv = command(yaml, corpora, tmp_path, *own)
    recipes["bottleneck"].main(argv)
    parts, config = load_parts(tmp_path)
    assert {"encoder", "decoder_module3", "bottleneck_module3.sae"} <= {*parts}
    _, about = load_encoder(trained.model)
    coded, now = load_encoder(tmp_path)
    assert now["encoder"] == about["sha256"] != now["sha256"]
    latents = coded(torch.randn(1, 8000))
    assert (latents["module3.sae_k4"].mean != 0).sum(-1).max() <= 4
    assert (tmp_path / "report.html").exists()
    written = (tmp_path / "sparsity.json").stat().st_mtime_ns
    recipes["bottleneck"].main(argv)  # nothing is left to do
    assert (tmp_path / "sparsity.json").stat().st_mtime_ns == written

    store = ActivationStore.open(tmp_path / "activations/all/train")
    with pytest.raises(ValueError, match="is of another encoder"):
        check_store(store, ["module3"], now["sha256"], "frame")
    other = [*argv, "--encoder", "logmel", "--layers", "[logmel]"]
    with pytest.raises(ValueError, match="other settings|another encoder"):
        recipes["bottleneck"].main(other)


@pytest.mark.parametrize(
    "options, message",
    [
        (["--classes", "null"], "--alignment .* needs --classes: give a label"),
        (["--alpha", "1.0"], "--alpha is 1.0, but must be > 0, < 1"),
        (["--k", "[2]"], "no key k in"),
        (
            ["--classes", "null", "--alignment", "[0]", "--alignment_form"]
            + ["centroid"],
            "--alignment_form has no use with --classes null",
        ),
        (
            ["--variant", "vae", "--gate", "concrete"],
            "no use with --variant vae",
        ),
        (
            ["--prior", "simple", "--num_pseudo_inputs", "3"],
            "no use with --prior",
        ),
        (
            ["--gate", "threshold", "--prior", "pseudo_inputs"],
            "--prior has no use with --gate threshold",
        ),
        (["--spike_epochs", "[1, 4]"], "--spike_epochs end after 4 epochs"),
        (["--classes", "accent"], "no column 'accent'"),
        (["--pooling", "mean", "--labels", "[speaker]"], "use --pooling frame"),
        (["--held_out_classes", "[QQ]"], "has 'QQ', no class of phones"),
    ],
)
def test_what_cannot_be_aligned_is_refused(
    recipes, corpora, tmp_path, options, message
):
    yaml = HPARAMS / "Synthetic/vsc.yaml"
    argv = [str(yaml), "--output_folder", str(tmp_path), "--device", "cpu"]
    argv += options_for(yaml, corpora) + ["--num_units", "12", *options]
    argv += ["--number_of_epochs", "3", "--encoder", "logmel"]
    with pytest.raises((ValueError, KeyError), match=message):
        recipes["bottleneck"].main([*argv, "--layers", "[logmel]"])
    assert not list(tmp_path.glob("activations"))
