"""What a user types reaches the model, and what a yaml says is used."""

import io
import os
import re
import runpy
import shutil
from pathlib import Path

import pytest
import ruamel.yaml
from hyperpyyaml import load_hyperpyyaml
from speechbrain.core import RunOptions

from speechbrain_sim.config import (
    GONE,
    MODELS,
    RENAMED,
    load_experiment,
    make_experiment,
    model_changes,
    read_yaml,
)
from speechbrain_sim.family import build_model
from tests.conftest import ROOT, TINY

HPARAMS = ROOT / "hparams"
SHARED = HPARAMS / "pretrain.yaml"
CORPORA = sorted(path.parent for path in HPARAMS.glob("*/corpus.yaml"))
#: yamls of a verb, of all corpora
RUNS = {
    verb: sorted(path for c in CORPORA for path in c.glob(f"{verb}*.yaml"))
    for verb in ("pretrain", "supervised", "decode", "probe", "sae", "vib")
}
PRETRAIN = RUNS["pretrain"] + RUNS["supervised"]
EVERY = [path for paths in RUNS.values() for path in paths]
#: with what they are made of
FILES = [*EVERY, *(c / "corpus.yaml" for c in CORPORA)]
FILES += [HPARAMS / f"{name}.yaml" for name in ("pretrain", "decode", "probe")]
FILES += [
    HPARAMS / f"{name}.yaml"
    for name in ("training", "steps", "data", "bottleneck", "vib")
]
FAMILY = sorted(path.stem for path in MODELS.glob("*.yaml"))


@pytest.fixture(autouse=True)
def seed_of_the_process(monkeypatch):
    monkeypatch.setenv("SB_GLOBAL_SEED", "1")  # undone after a yaml sets it


def keys_of(path):
    """Reads a yaml as a dict, its objects unmade."""
    return read_yaml(path)


def load(yaml, output_folder, /, **options):
    typed = [x for k, v in options.items() for x in (f"--{k}", str(v))]
    argv = [str(yaml), "--output_folder", str(output_folder), *typed]
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


def name(path):
    return f"{path.parent.name}/{path.stem}"


@pytest.mark.parametrize("yaml", PRETRAIN, ids=name)
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


@pytest.mark.parametrize("old", GONE)
def test_a_key_that_is_gone_is_answered_with_what_replaces_it(tmp_path, old):
    now = re.escape(f"{old} is now {GONE[old]}")
    study = HPARAMS / "Synthetic/study.yaml"
    with pytest.raises(KeyError, match=now):
        load(study, tmp_path, **{old: "x"})
    yaml = tmp_path / "former.yaml"
    yaml.write_text(f"base: {study}\n{old}: x\n")
    with pytest.raises(KeyError, match=now):
        load(yaml, tmp_path)
    yaml.write_text(f"uses: {study}\n{old}: x\n")  # a key of its own
    assert read_yaml(yaml)[old] == "x"


@pytest.mark.parametrize("name", ["table", "analyse", "sweep"])
def test_a_former_study_is_answered_with_study_yaml(name):
    for file in f"{name}.yaml", f"{name}_reduced.yaml":
        with pytest.raises(FileNotFoundError, match="is study.yaml now"):
            read_yaml(HPARAMS / file)
    with pytest.raises(FileNotFoundError) as error:
        read_yaml(HPARAMS / "tables.yaml")
    assert "study" not in str(error.value)
    script = ROOT / f"recipes/{name}.py"
    with pytest.raises(SystemExit, match=r"is now recipes/study.py"):
        runpy.run_path(str(script))


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
    "pretrain": [
        "recipes/pretrain.py",
        "speechbrain_sim/brains/greedy.py",
        "speechbrain_sim/brains/one_by_one.py",
        "speechbrain_sim/brains/stages.py",
    ],
    "decode": ["recipes/decode.py", "speechbrain_sim/brains/decoder.py"],
    "probe": ["recipes/probe.py", "speechbrain_sim/brains/probe.py"],
}
READERS["supervised"] = READERS["pretrain"]
READERS["sae"] = [
    path.replace("probe", "bottleneck") for path in READERS["probe"]
]
READERS["vib"] = [path.replace("probe", "vib") for path in READERS["probe"]]


def own_keys(path):
    """Reads a yaml without its bases: {key: its text, without comments}."""
    content = ruamel.yaml.YAML().load(path.read_text())
    return {key: as_text({key: content[key]}) for key in content}


def as_text(content):
    stream = io.StringIO()
    ruamel.yaml.YAML().dump(dict(content), stream)
    return re.sub(r"\s*#.*", "", stream.getvalue()).strip()


def bases_of(path):
    own = ruamel.yaml.YAML().load(path.read_text())
    bases = own.get("base", own.get("uses", []))
    bases = [bases] if isinstance(bases, str) else bases
    return [path.parent / base for base in bases]


@pytest.mark.parametrize("yaml", EVERY, ids=name)
def test_every_key_is_used(yaml):
    (verb,) = (verb for verb, paths in RUNS.items() if yaml in paths)
    merged = keys_of(yaml)
    text = as_text(merged)

    def used(key, verbs):
        paths = [path for verb in verbs for path in READERS[verb]]
        paths.append("speechbrain_sim/brains/base.py")
        paths.append("speechbrain_sim/config.py")
        code = "".join((ROOT / path).read_text() for path in paths)
        return (
            f"<{key}>" in text
            or re.search(rf"""hparams(\.{key}\b|\[["']{key}["']\])""", code)
            or ('_csv"]' in code and key in ("valid_csv", "test_csv"))
            or re.search(rf'hparams(, |\.get\()"{key}"', code)
            or key in RunOptions().as_dict()
        )

    shared = keys_of(HPARAMS / "data.yaml")
    unread = [
        key
        for key in merged
        if key[:2] != "__"
        and not used(key, READERS if key in shared else [verb])
    ]
    assert unread == [] or unread == ["model"]
    assert not used("chanels", READERS)


@pytest.mark.parametrize("yaml", FILES, ids=name)
def test_kinds_are_of_keys(yaml):
    own = ruamel.yaml.YAML().load(yaml.read_text())
    assert set(own.get("__may_be", {})) <= set(keys_of(yaml))


@pytest.mark.parametrize("yaml", FILES, ids=name)
def test_no_yaml_repeats_what_its_base_has(yaml):
    assert "!include" not in yaml.read_text()
    inherited = {}
    for base in bases_of(yaml):
        inherited |= keys_of(base)
    again = [
        key
        for key, text in own_keys(yaml).items()
        if key in inherited and as_text({key: inherited[key]}) == text
    ]
    assert again == []


def test_what_runs_share_stands_once():
    """No two yamls of a folder repeat a block of each other."""
    for folder in [HPARAMS, *CORPORA]:
        files = [path for path in FILES if path.parent == folder]
        blocks = [
            (key, text)
            for path in files
            for key, text in own_keys(path).items()
            if text.count("\n") > 1
        ]
        assert len(blocks) == len(set(blocks))


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
    with pytest.raises(ValueError, match="kl_weight .*choose another"):
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


# from anywhere --------------------------------------------------------------


@pytest.mark.parametrize("yaml", EVERY, ids=name)
def test_every_yaml_loads_from_anywhere(yaml, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    given = {"data_folder": "my data", "encoder": "logmel"}
    needed = [key for key in given if is_placeholder(keys_of(yaml).get(key))]
    typed = [word for key in needed for word in (f"--{key}", given[key])]
    hparams, _ = load_experiment([os.path.relpath(yaml), *typed])
    file = hparams.get("hyperparams_file", "hyperparams.yaml")
    written = Path(hparams["output_folder"], file).read_text()
    again = load_hyperpyyaml(written)
    assert again.keys() == hparams.keys()
    assert again["corpus"] == yaml.parent.name
    folder = again["prepare"].keywords["data_folder"]
    assert folder == hparams["data_folder"]
    assert folder == "my data" or "data_folder" not in needed
    for key, value in again.items():
        if isinstance(value, (str, int, float, list, type(None))):
            assert value == hparams[key], key


def is_placeholder(value):
    return hasattr(value, "tag") and value.tag.value == "!PLACEHOLDER"


# what is typed --------------------------------------------------------------


def test_an_option_has_the_kind_of_the_yamls_value(tiny_yaml, tmp_path):
    for key, text, kinds in (
        ("batch_norm", "no", "True or False"),
        ("batch_norm", "1", "True or False"),
        ("lr", "abc", "a number"),
        ("lr", "null", "a number"),
        ("batch_size", "2.5", "a whole number"),
        ("number_of_epochs", "[1]", "a whole number"),
        ("kernel_sizes", "4", "a list"),
        ("kernel_sizes", "[a, b]", "a list"),
        ("kl_weight", "[a]", "a number or a list"),
        ("encoder", "mine", "no value"),
        ("train_loader_kwargs", "4", "a mapping"),
    ):
        with pytest.raises(ValueError) as error:
            load(tiny_yaml, tmp_path, **{key: text})
        assert f"--{key} is {text!r}, but takes {kinds}" in str(error.value)
    assert not (tmp_path / "hyperparams.yaml").exists()
    for key, text, value in (
        ("batch_norm", "true", True),
        ("lr", "1e-3", 0.001),
        ("lr", "1", 1),
        ("initial_log_var", "-5", -5),
        ("kernel_sizes", "[[4], [4], [4]]", [[4], [4], [4]]),
        ("frozen", "all", "all"),
        ("frozen", "[module1]", ["module1"]),
        ("kl_weight", "[0.1, 0.2, 0.3]", [0.1, 0.2, 0.3]),
        ("label", "null", None),
        ("corpus", "null", "null"),
        ("corpus", "[a]", "[a]"),
    ):
        more = {"strides": "[[4], [4], [4]]", "paddings": "[[0], [0], [0]]"}
        more = more if key == "kernel_sizes" else {}
        hparams = load(tiny_yaml, tmp_path, **{key: text}, **more)
        assert hparams[key] == value


def test_null_where_the_yaml_allows_it(tmp_path):
    yaml, out = HPARAMS / "Folder/probe.yaml", tmp_path / "out"
    options = {"data_folder": tmp_path, "encoder": "logmel"}
    hparams = load(yaml, out, **options, speakers="null", layers="null")
    assert hparams["prepare"].keywords["speakers"] is None
    assert hparams["layers"] is None
    hparams = load(yaml, out, **options, layers="[module1]", speakers="a: b")
    assert hparams["layers"] == ["module1"]
    assert hparams["speakers"] == "a: b"
    with pytest.raises(ValueError, match="--layers is 'module1'.*a list"):
        load(yaml, out, **options, layers="module1")


TEXTS = ["run #1", "2024-01-05", "2024", "null", "~", "a=b/c=d", "x <seed>"]
TEXTS += ["<output_folder>", "a: b", "[x]", "{x: y}", "*x", "&x", "!x", "yes"]
TEXTS += ["%x", "- x", "'x'", '"x"', "$x", "é ü", "1e3", "x" * 100, "a -b --c"]
TEXTS += ["(a)", "(a) (b)"]


@pytest.mark.parametrize("text", TEXTS)
def test_text_is_literal(text, tiny_yaml, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for style in "separate", "joined":
        options = {"--data_folder": text, "--output_folder": text}
        words = [word for option in options.items() for word in option]
        if style == "joined":
            words = [f"{key}={value}" for key, value in options.items()]
        hparams, _ = load_experiment([str(tiny_yaml), *words])
        assert [path.name for path in tmp_path.iterdir()] == [
            text.split("/")[0]
        ]
        again = load_hyperpyyaml(Path(text, "hyperparams.yaml").read_text())
        for read in hparams, again:
            assert read["data_folder"] == read["output_folder"] == text
            assert read["save_folder"] == f"{text}/save"
        shutil.rmtree(text.split("/")[0])


def test_a_yaml_with_blanks_in_its_name(tiny_yaml, tmp_path):
    path = tmp_path / "my = yaml.yaml"
    path.write_text(f"base: {tiny_yaml}\n")
    assert load(path, tmp_path / "out")["corpus"] == "Tiny"


@pytest.mark.parametrize(
    "words, message",
    [
        (["-lr", "0.001"], "one value"),
        (["--lr", "0.001", "stray"], "lr: 0.001 stray' is not --name"),
        (["--lr"], "lr:' is not --name"),
        (["--output_folder", ""], "one value"),
        (["--output_folder="], "one value"),
        (["stray", "--lr", "1"], "one value|no key"),
        (["--chanels", "64"], "no key chanels in .* mean channels"),
        (["--prec", "bf16"], "no key prec in .* mean precision"),
        (["--param_file", "x"], "no key param_file"),
    ],
)
def test_unknown_words_are_refused(tiny_yaml, tmp_path, words, message):
    out = ["--output_folder", str(tmp_path / "out")]
    with pytest.raises((KeyError, ValueError), match=message):
        load_experiment([str(tiny_yaml), *out, *words])
    assert not (tmp_path / "out").exists()


def test_options_of_speechbrain_are_read_by_speechbrain(tiny_yaml, tmp_path):
    argv = [str(tiny_yaml), "--output_folder", str(tmp_path)]
    argv += ["--precision=bf16", "--max_grad_norm", "1.5", "--device", "cpu"]
    hparams, run_opts = load_experiment([*argv, "--noprogressbar"])
    assert run_opts["noprogressbar"] and run_opts["precision"] == "bf16"
    assert run_opts["max_grad_norm"] == hparams["max_grad_norm"] == 1.5
    written = load_hyperpyyaml((tmp_path / "hyperparams.yaml").read_text())
    # those that may change a result
    assert written["max_grad_norm"] == 1.5 and written["precision"] == "bf16"
    assert "noprogressbar" not in written


def test_options_of_a_function_have_kinds_too(tiny_yaml, tmp_path):
    options = {"output_folder": tmp_path, "kl_weight": [1, 2, 3]}
    options |= {"label": None, "lr": 1, "frozen": ["module1"]}
    hparams, _ = make_experiment(tiny_yaml, options, RunOptions(device="cpu"))
    assert hparams["output_folder"] == str(tmp_path)
    assert hparams["label"] is None and hparams["lr"] == 1
    for wrong in {"lr": None}, {"batch_norm": 0}, {"channels": True}:
        with pytest.raises(ValueError, match="but takes"):
            make_experiment(tiny_yaml, {**options, **wrong}, RunOptions())


def test_a_misspelt_key_of_a_difference(tiny_yaml, tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(f"base: {tiny_yaml}\nbatchsize: 4\n")
    with pytest.raises(
        KeyError, match="no key batchsize in .*mine.yaml. Did yo"
    ):
        load(path, tmp_path / "out")
    deeper = tmp_path / "deeper.yaml"
    deeper.write_text("base: mine.yaml\n")
    with pytest.raises(KeyError, match="no key batchsize .* batch_size"):
        load(deeper, tmp_path / "out")
    # what is referred to, or is an option of SpeechBrain's, is no mistake
    path.write_text(
        f"base: {tiny_yaml}\nbatchsize: 4\nbatch_size: !ref <batchsize>\n"
        "precision: bf16\n"
    )
    assert load(path, tmp_path / "out")["batch_size"] == 4
    assert load(path, tmp_path / "out", batch_size=3)["batch_size"] == 3
    with pytest.raises(ValueError, match="takes a whole number"):
        load(path, tmp_path / "out", batch_size="x")


def test_a_run_is_the_same_wherever_it_lies(tiny_yaml, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def resume(folder, **options):
        typed = [f"--{key}={value}" for key, value in options.items()]
        argv = [str(tiny_yaml), "--output_folder", str(folder), *typed]
        load_experiment(argv, may_change=["number_of_epochs"])

    resume("out/base")
    Path("out/base/save/CKPT+1").mkdir(parents=True)
    resume("out/base/", number_of_epochs=3)
    resume(tmp_path / "out/base")
    resume("out//../out/base")
    Path("out/base").rename("moved")
    resume("moved")
    resume(tmp_path / "moved")
    resume("moved", train_csv=os.path.relpath(keys_of(tiny_yaml)["train_csv"]))
    with pytest.raises(ValueError, match="train_csv .*choose another") as error:
        resume("moved", train_csv="other.csv")
    assert "delete" not in str(error.value)
    (tmp_path / "other").mkdir()
    with pytest.raises(ValueError, match="holds a run with other settings"):
        resume("moved", manifest_folder="other")
