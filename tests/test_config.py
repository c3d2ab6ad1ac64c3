"""What a user types reaches the model, and what a yaml says is used."""

import re

import pytest
import ruamel.yaml
from hyperpyyaml import load_hyperpyyaml
from speechbrain.core import RunOptions

from speechbrain_sim.config import (
    MODELS,
    RENAMED,
    load_experiment,
    model_changes,
    read_yaml,
)
from speechbrain_sim.family import build_model
from tests.conftest import ROOT, TINY

SHARED = ROOT / "hparams" / "pretrain.yaml"
RUNS = sorted(
    path
    for pattern in ("pretrain*.yaml", "supervised*.yaml")
    for path in (ROOT / "hparams").glob(f"*/{pattern}")
    if path.parent.name != "models"
)
FAMILY = sorted(path.stem for path in MODELS.glob("*.yaml"))


@pytest.fixture(autouse=True)
def seed_of_the_process(monkeypatch):
    monkeypatch.setenv("SB_GLOBAL_SEED", "1")  # undone after a yaml sets it


def keys_of(path):
    """Reads a yaml as a dict, its objects unmade."""
    return read_yaml(path)


def load(yaml, folder, **options):
    typed = [x for k, v in options.items() for x in (f"--{k}", str(v))]
    argv = [str(yaml), "--output_folder", str(folder), *typed]
    return load_experiment([*argv, "--device", "cpu"])[0]


def count(encoder):
    return sum(parameter.numel() for parameter in encoder.parameters())


def parameters(channels, context, probabilistic, batch_norm):
    """Counts an encoder's parameters by hand (kernels 10 8, 4 4, 4)."""
    kernels = 10 * 1 * channels + (8 + 4 + 4 + 4) * channels**2
    convolutions = kernels + 5 * channels
    heads = 3 * (1 + probabilistic) * (channels**2 + channels)
    norms = 5 * 2 * channels * batch_norm
    gru = 3 * context * (channels + context + 2)
    return convolutions + heads + norms + gru


# options --------------------------------------------------------------------


@pytest.mark.parametrize(
    "yaml", RUNS, ids=[f"{path.parent.name}/{path.stem}" for path in RUNS]
)
def test_typed_channels_reach_the_model(yaml, tmp_path):
    sizes = {"channels": 24, "context_channels": 7}
    for norm in (False, True):
        hparams = load(
            yaml, tmp_path, data_folder=tmp_path, batch_norm=norm, **sizes
        )
        expected = parameters(24, 7, hparams["probabilistic"], norm)
        assert count(hparams["encoder"]) == expected
    complete = (tmp_path / "hyperparams.yaml").read_text()
    assert "!include" not in complete and "!PLACEHOLDER" not in complete
    assert not re.search(r"^base:", complete, re.MULTILINE)
    again = load_hyperpyyaml(complete)
    assert count(again["encoder"]) == expected
    assert again["modules"].keys() == hparams["modules"].keys()
    rerun = load(tmp_path / "hyperparams.yaml", tmp_path / "rerun")
    assert count(rerun["encoder"]) == expected


@pytest.mark.parametrize("model", FAMILY)
def test_every_model_can_be_typed(tiny_yaml, tmp_path, model):
    hparams = load(tiny_yaml, tmp_path, model=model, classes=3)
    assert hparams["model_name"] == model
    built = build_model(model, classes=3, **TINY)
    assert list(hparams["modules"]) == list(built.modules)
    assert count(hparams["encoder"]) == count(built.encoder)
    for key in set(keys_of(MODELS / "sim.yaml")) - {"encoder", "modules"}:
        assert hparams[key] == getattr(built, key), key
    weights = [
        getattr(module, "kl_weights", None)
        for module in hparams["modules"].values()
    ]
    assert weights == [
        getattr(module, "kl_weights", None) for module in built.modules.values()
    ]


def test_every_tunable_reaches_the_objective(tiny_yaml, tmp_path):
    hparams = load(
        tiny_yaml,
        tmp_path,
        kl_weight="[1,2,3]",
        num_samples=4,
        window_frames=17,
        prediction_steps=3,
        num_negatives=5,
        within_utterance_negatives=2,
        kl_reduction="channel",
    )
    for name, module in hparams["modules"].items():
        objective = module.smooth_info_nce
        assert module.num_samples == 4
        assert objective.window_frames == 17
        assert objective.num_negatives == 5
        assert objective.within_utterance_negatives == 2
        assert objective.kl_reduction == "channel"
        z, c = TINY["channels"], TINY["channels"]
        if name == "context":
            c = TINY["context_channels"]
        assert objective.predictor.weight.shape == (3 * z, c)
        assert list(module.kl_weights.values()) == [1, 2, 3]


def test_precedence(tiny_yaml, tmp_path):
    """base < difference < model < typed."""
    difference = tmp_path / "difference.yaml"
    difference.write_text(
        f"base: {tiny_yaml}\n"
        "model: gim\nprobabilistic: True\nnum_negatives: 5\nbatch_size: 3\n"
    )
    hparams = load(difference, tmp_path / "0")
    assert hparams["prediction_steps"] == TINY["prediction_steps"]  # base's
    assert hparams["channels"] == TINY["channels"]
    assert hparams["num_negatives"] == 5  # the difference's
    assert hparams["batch_size"] == 3
    assert hparams["probabilistic"] is False  # the model's
    assert hparams["model_name"] == "gim"
    assert hparams["encoder"].layers["module1"].log_var is None
    hparams = load(
        difference,
        tmp_path / "1",
        probabilistic=True,
        num_negatives=4,
        model="cpc",
    )
    assert hparams["probabilistic"] is True  # typed
    assert hparams["num_negatives"] == 4
    assert hparams["model_name"] == "cpc"
    assert list(hparams["modules"]) == ["encoder"]
    assert hparams["encoder"].layers["module1"].log_var is not None


def test_a_difference_of_a_difference(tmp_path):
    (tmp_path / "a.yaml").write_text("x: 1\ny: 1\nz: 1\n")
    (tmp_path / "b.yaml").write_text("base: a.yaml\ny: 2\nz: 2\n")
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep/c.yaml").write_text("base: ../b.yaml\nz: 3\n")
    assert dict(read_yaml(tmp_path / "deep/c.yaml")) == {"z": 3, "y": 2, "x": 1}
    (tmp_path / "b.yaml").write_text("base: gone.yaml\n")
    with pytest.raises(FileNotFoundError, match="gone.yaml"):
        read_yaml(tmp_path / "deep/c.yaml")


def test_of_several_bases_the_later_wins_and_the_file_over_both(tmp_path):
    (tmp_path / "a.yaml").write_text("x: 1\ny: 1\nz: 1\n")
    (tmp_path / "b.yaml").write_text("y: 2\nz: 2\n")
    (tmp_path / "c.yaml").write_text("base: [a.yaml, b.yaml]\nz: 3\n")
    merged = read_yaml(tmp_path / "c.yaml")
    assert list(merged.items()) == [("z", 3), ("y", 2), ("x", 1)]


def test_a_circle_of_bases_is_refused(tmp_path):
    (tmp_path / "a.yaml").write_text("base: b.yaml\n")
    (tmp_path / "b.yaml").write_text("base: a.yaml\n")
    with pytest.raises(ValueError, match="a.yaml is its own base"):
        read_yaml(tmp_path / "a.yaml")


def test_unknown_names(tiny_yaml, tmp_path):
    with pytest.raises(KeyError, match="no key chanels.*channels"):
        load(tiny_yaml, tmp_path, chanels=24)
    with pytest.raises(ValueError, match="no model 'simm'.*sim_beta0"):
        load(tiny_yaml, tmp_path, model="simm")
    with pytest.raises(ValueError, match="no model 'simm'"):
        build_model("simm")
    assert not (tmp_path / "hyperparams.yaml").exists()


@pytest.mark.parametrize("old, new", RENAMED.items())
def test_a_former_name_is_answered_with_the_new_one(
    tiny_yaml, tmp_path, old, new
):
    with pytest.raises(KeyError, match=f"{old} is now {new}"):
        load(tiny_yaml, tmp_path, **{old: 2})
    yaml = tmp_path / "former.yaml"
    yaml.write_text(f"base: {tiny_yaml}\n{old}: 2\n")
    with pytest.raises(KeyError, match=f"{old} is now {new}"):
        load(yaml, tmp_path)
    with pytest.raises(KeyError, match=f"{old} is now {new}"):
        build_model("sim", **{old: 2})
    assert not (tmp_path / "hyperparams.yaml").exists()


@pytest.mark.parametrize("workers", [0, 2])
def test_workers_persist_if_there_are_any(tiny_yaml, tmp_path, workers):
    hparams = load(tiny_yaml, tmp_path, num_workers=workers)
    assert hparams["train_loader_kwargs"]["num_workers"] == workers
    assert hparams["train_loader_kwargs"]["persistent_workers"] is (workers > 0)


# values ---------------------------------------------------------------------


def test_the_papers_values():
    sim = build_model("sim")
    assert (sim.channels, sim.context_channels) == (512, 256)
    assert count(sim.encoder) == parameters(512, 256, True, False)
    convolutions = [
        (conv.kernel_size[0], conv.stride[0], conv.padding[0])
        for name in ("module1", "module2", "module3")
        for conv in sim.encoder.layers[name].convs
    ]
    assert convolutions == [
        *((10, 5, 2), (8, 4, 2)),
        *((4, 2, 2), (4, 2, 2)),
        (4, 2, 1),
    ]
    for name, module in sim.modules.items():
        objective = module.smooth_info_nce
        assert objective.prediction_steps == objective.num_negatives == 10
        assert objective.within_utterance_negatives == 0
        assert objective.window_frames == 128
        assert objective.kl_reduction == "time"
        assert module.num_samples == 1
        c = 256 if name == "context" else 512
        assert objective.predictor.weight.shape == (5120, c)
        assert objective.predictor.bias is None
    assert set(sim.modules["module1"].kl_weights.values()) == {0.01}


def test_the_papers_training():
    shared = keys_of(SHARED)
    assert shared["lr"] == 2e-4
    assert shared["batch_size"] == 8
    assert shared["number_of_epochs"] == 1000
    assert shared["crop_samples"] == 10240
    assert shared["max_grad_norm"] == float("inf")
    assert shared["grad_accumulation_factor"] == 1
    assert shared["opt_class"].tag.value == "!name:torch.optim.Adam"
    assert set(shared["opt_class"]) == {"lr", "fused"}


# no dead keys ---------------------------------------------------------------


READERS = {
    "pretrain.yaml": ["recipes/pretrain.py", "brains/greedy.py"],
    "decode.yaml": ["recipes/decode.py", "brains/decoder.py"],
    "analyse.yaml": ["recipes/analyse.py"],
    "ArtificialSpeech/sweep.yaml": ["recipes/sweep.py", "recipes/analyse.py"],
}


@pytest.mark.parametrize("name", READERS)
def test_every_key_is_used(name):
    yaml = ROOT / "hparams" / name
    yamls = "".join(
        path.read_text()
        for path in [
            yaml,
            MODELS / "sim.yaml",
            *(ROOT / "hparams").glob(f"*/{yaml.name}"),
        ]
    )
    code = "".join(
        (ROOT / path).read_text()
        if path.startswith("recipes")
        else (ROOT / "speechbrain_sim" / path).read_text()
        for path in [*READERS[name], "brains/base.py"]
    )

    def used(key):
        return (
            re.search(rf"<{key}[\[>]", yamls)
            or f'hparams["{key}"]' in code
            or f"hparams['{key}']" in code
            or f'"{key}"' in code
            or re.search(rf"self\.hparams\.{key}\b", code)
            or key in RunOptions().as_dict()
        )

    keys = [key for key in keys_of(yaml) if key not in ("__set_seed", "base")]
    assert [key for key in keys if not used(key)] == []
    assert not used("chanels")


def test_the_models_keys_stand_once():
    own = ruamel.yaml.YAML().load(SHARED.read_text())
    assert not set(own) & set(keys_of(MODELS / "sim.yaml"))


@pytest.mark.parametrize("model", FAMILY)
def test_a_model_changes_only_keys_of_sim(model):
    changes = dict(model_changes(model))
    assert set(changes) <= set(keys_of(MODELS / "sim.yaml"))
    assert model == "sim" or changes.pop("model_name") == model
    defaults = keys_of(MODELS / "sim.yaml")
    assert all(value != defaults[key] for key, value in changes.items())


def test_a_run_goes_on_only_with_its_own_settings(tmp_path):
    argv = [str(SHARED.parent / "ArtificialSpeech/pretrain.yaml")]
    argv += ["--data_folder", str(tmp_path), "--output_folder", str(tmp_path)]
    argv += ["--channels", "4", "--context_channels", "4"]
    allowed = ["number_of_epochs"]
    load_experiment([*argv, "--split", "unheard"], may_change=allowed)
    # one that has not come to a checkpoint has no settings of its own
    load_experiment(argv, may_change=allowed)
    (tmp_path / "save/CKPT+1").mkdir(parents=True)
    load_experiment([*argv, "--number_of_epochs", "7"], may_change=allowed)
    written = tmp_path / "hyperparams.yaml"  # as before a key got its new name
    former = written.read_text().replace("num_negatives: 10", "negatives: 12")
    written.write_text(former)
    load_experiment([*argv, "--num_negatives", "12"], may_change=allowed)
    written.write_text(former)
    with pytest.raises(ValueError, match="num_negatives .12 before, 10 now"):
        load_experiment(argv, may_change=allowed)
    written.write_text(former.replace("negatives: 12", "negatives: 10"))
    load_experiment(argv, may_change=allowed)
    with pytest.raises(ValueError, match=r"split \(published before, unheard"):
        load_experiment([*argv, "--split", "unheard"], may_change=allowed)
    with pytest.raises(ValueError, match="kl_weight .*Choose another"):
        load_experiment([*argv, "--kl_weight", "0.5"], may_change=allowed)


def test_probe_has_no_model_to_pick(tmp_path):
    argv = [str(SHARED.parent / "Synthetic/probe.yaml"), "--encoder", "logmel"]
    argv += ["--output_folder", str(tmp_path), "--model", "gim"]
    with pytest.raises(KeyError, match="no key model"):
        load_experiment(argv)


def test_what_is_needed_and_what_was_meant(tmp_path):
    argv = [str(SHARED.parent / "ArtificialSpeech/pretrain.yaml")]
    with pytest.raises(ValueError, match="needs --data_folder"):
        load_experiment(argv)
    with pytest.raises(KeyError, match="Did you mean channels"):
        load_experiment([*argv, "--chanels", "64"])
