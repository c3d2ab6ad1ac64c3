"""Cases of options: what is typed is used, checked, recorded; errors are lines."""

import logging
import os
import runpy
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import ruamel.yaml
import torch
from speechbrain.core import RunOptions

from speechbrain_sim import __version__, config
from speechbrain_sim.cli import main as cli
from speechbrain_sim.cli import run_command
from speechbrain_sim.config import load_experiment, read_settings
from speechbrain_sim.family import build_model
from speechbrain_sim.files import read_json, sha256
from speechbrain_sim.models.format import save_parts
from tests.brains.test_distributed import recipe as torchrun_pretrain
from tests.conftest import HPARAMS, ROOT, TINY, make_brain, make_loader

CPU = ["--device", "cpu", "--noprogressbar"]


@pytest.fixture(autouse=True)
def seed_of_the_process(monkeypatch):
    monkeypatch.setenv("SB_GLOBAL_SEED", "1")  # undone after a yaml sets it


@pytest.fixture(scope="module")
def runs(recipes, corpus, tmp_path_factory):
    """Yamls of a tiny corpus, and a function that runs a recipe with them."""
    folder = tmp_path_factory.mktemp("yamls")
    encoder = build_model("sim", **TINY).encoder
    save_parts(folder / "model", {"encoder": encoder})
    tiny = "".join(f"{key}: {value}\n" for key, value in TINY.items())
    tiny += "crop_samples: 4000\nnumber_of_epochs: 1\nnum_workers: 0\n"
    write = {
        "corpus": f"corpus: Tiny\ndata_folder: {corpus.folder}\n"
        f"prepare: !name:builtins.dict\ntrain_csv: {corpus.train}\n"
        f"valid_csv: {corpus.valid}\n",
        "pretrain": f"{tiny}batch_size: 2\n",
        "decode": "crop_samples: 4000\nnumber_of_epochs: 1\nnum_workers: 0\n"
        "batch_size: 2\nlayer: module1\n"
        f"encoder: {folder}/model\n",
        "probe": f"test_csv: {corpus.valid}\nencoder: logmel\nlabel: pitch\n"
        "number_of_epochs: 8\nlr: 0.01\ncontrols: 10\n",
        "study": "title: Tiny\nnote: Tiny\nlabels: {pitch: {}}\ninside: []\n"
        "systems: {log-mel: {encoder: logmel}}\nbaseline: null\n",
    }
    for name, text in write.items():
        if name != "corpus":
            bases = f"[{HPARAMS}/{name}.yaml, corpus.yaml]"
            text = f"base: {bases}\n{text}"
        (folder / f"{name}.yaml").write_text(text)

    def run(name, out, *options):
        argv = [str(folder / f"{name}.yaml"), "--output_folder", str(out)]
        recipes[name].main([*argv, *CPU, *map(str, options)])

    return SimpleNamespace(run=run, folder=folder)


def contents(folder):
    """The hash of every file below a folder, but what a process logs."""
    files = [path for path in Path(folder).rglob("*") if path.is_file()]
    files = [path for path in files if path.name != "log.txt"]
    log = Path(folder, "train_log.txt")
    hashes = {str(path): sha256(path) for path in files}
    return hashes | ({"log": log.read_text()} if log.exists() else {})


def refused(yaml, message, **options):
    """Checks that settings are refused, by an error with this message."""
    options = {"data_folder": "data", "output_folder": "out", **options}
    with pytest.raises((KeyError, ValueError), match=message):
        read_settings(yaml, options, RunOptions())


# A, H1, H2: what is typed ------------------------------------------------------


@pytest.mark.parametrize(
    "line",
    ["batch_norm: no", "channels: '8'", "lr: abc", "kernel_sizes: 4"]
    + ["noise: 1", "num_workers: 2.5", "corpus: 4", "train_csv: 2024-01-05"]
    + ["layers: module1", "label: [phones]"],
)
def test_a1_values_of_a_yaml_have_the_kinds_of_its_base(line, tmp_path):
    """As options have: tests/test_config.py."""
    verb = "probe" if "layers" in line else "pretrain"
    path = tmp_path / "mine.yaml"
    path.write_text(f"base: {HPARAMS}/Synthetic/{verb}.yaml\n{line}\n")
    refused(path, rf"mine.yaml: {line.split(':')[0]} is .*, not ")


def test_a1_objects_and_nothing_may_replace_objects(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(
        f"base: {HPARAMS}/Synthetic/pretrain.yaml\nkl_schedule: null\n"
        "opt_class: !name:torch.optim.SGD\n    lr: !ref <lr>\nlabel: null\n"
        "kl_weight: [0.1, 0.1, 0.1]\nfrozen: all\nlr: 1\n"
    )
    settings, _ = read_settings(path, {}, RunOptions())
    assert settings["kl_schedule"] is None and settings["lr"] == 1


def test_a4_a_run_goes_on_wherever_it_was_moved(runs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    runs.run("pretrain", "out/base")
    runs.run("pretrain", "out/base/", "--number_of_epochs", 2)
    Path("out").rename("moved")
    runs.run("pretrain", tmp_path / "moved/base", "--number_of_epochs", "3")
    log = Path("moved/base/train_log.txt").read_text()
    assert [line[:8] for line in log.splitlines()] == [
        f"epoch: {epoch}" for epoch in (1, 2, 3)
    ]
    record = Path("moved/base/hyperparams.yaml").read_text()
    record = ruamel.yaml.YAML().load(record)
    record |= {"number_of_epochs": 4, "output_folder": "moved/base"}
    with pytest.raises(ValueError, match="choose another") as error:
        runs.run("pretrain", "moved/base", "--lr", "0.5")
    assert "delete" not in str(error.value)


def test_a7_null_in_a_study_stays_null(runs, tmp_path):
    systems = "{A: {yaml: pretrain.yaml, options: {label: null, kl_weight: ~}}}"
    yaml, options = runs.folder / "study.yaml", {"systems": systems}
    settings, _ = read_settings(
        yaml, {**options, "output_folder": tmp_path}, RunOptions()
    )
    inner = settings["systems"]["A"]["options"]
    assert inner == {"label": None, "kl_weight": None}
    pretrain = runs.folder / "pretrain.yaml"
    settings, _ = read_settings(pretrain, {"label": None}, RunOptions())
    assert settings["label"] is None
    refused(pretrain, "--kl_weight is None, but takes a number", **inner)


# A5, A6: accumulation ----------------------------------------------------------


def test_a5_an_epoch_ends_with_a_step_of_what_is_left(runs, tmp_path):
    brain = make_brain(tmp_path, run_opts={"grad_accumulation_factor": 4})
    brain.steps_per_epoch, groups = 10, []
    for step in range(1, 11):
        brain.step = step
        groups.append(brain.accumulation())
    whole = [(False, 4)] * 3 + [(True, 4)]
    assert groups == whole + whole + [(False, 2), (True, 2)]
    for recipe, modules in (
        ("pretrain", ["module1", "context"]),
        (
            "decode",
            ["decoder"],
        ),
    ):
        out = tmp_path / recipe
        runs.run(recipe, out, "--grad_accumulation_factor", 4)
        (checkpoint,) = (out / "save").glob("CKPT*")
        for module in modules:  # 20 utterances, batches of 2
            state = torch.load(checkpoint / f"{module}_optimizer.ckpt")
            assert state["state"][0]["step"] == 3
        record = (out / "hyperparams.yaml").read_text()
        assert "grad_accumulation_factor: 4\n" in record


def test_a5_the_last_group_counts_as_one_of_its_size(tmp_path):
    """3 batches, 2 at a time: the last step is that of one batch alone."""
    weights = []
    for factor in 2, 1:
        brain = make_brain(
            tmp_path / str(factor),
            opt_class=lambda p: torch.optim.SGD(p, lr=0.1),
            run_opts={"grad_accumulation_factor": factor},
        )
        brain.on_fit_start()
        brain.hparams.epoch_counter.current, brain.step = 1, 3
        brain.steps_per_epoch, brain.nonfinite_count = 3, 0
        brain.modules.train()
        brain.fit_batch(next(iter(make_loader(1))))
        weights.append(brain.unwrapped["module1"].state_dict())
    for name, weight in weights[0].items():
        assert torch.equal(weight, weights[1][name])


@pytest.mark.parametrize("recipe", ["pretrain", "decode"])
def test_a5_more_than_an_epoch_is_refused(runs, recipe, tmp_path):
    with pytest.raises(ValueError, match="An epoch has 10 batches .* 11:"):
        runs.run(recipe, tmp_path, "--grad_accumulation_factor", 11)
    assert not (tmp_path / "encoder.safetensors").exists() or recipe == "decode"


def test_a6_steps_are_counted_per_process(tiny_yaml, tmp_path):
    process = torchrun_pretrain(tiny_yaml, tmp_path, "--batch_size", "12")
    output, _ = process.communicate(timeout=300)
    assert process.returncode
    assert "pretrain.py: An epoch has 0 batches for each process" in output
    assert "fewer processes" in output
    assert not (tmp_path / "encoder.safetensors").exists()


# F4: options of SpeechBrain are settings ---------------------------------------


def test_f4_typed_run_options_are_recorded_and_compared(runs, tmp_path):
    typed = ["--precision", "bf16", "--max_grad_norm", "0.01"]
    typed += ["--grad_accumulation_factor", "2", "--skip_nonfinite_grads"]
    runs.run("pretrain", tmp_path, *typed)
    record = config.parse_yaml((tmp_path / "hyperparams.yaml").read_text())
    assert record["precision"] == "bf16" and record["max_grad_norm"] == 0.01
    assert record["grad_accumulation_factor"] == 2
    assert record["skip_nonfinite_grads"] is True and record["processes"] == 1
    before = contents(tmp_path)
    for left, message in (
        (typed[2:], r"precision \(bf16 before, fp32 now"),
        (typed[:2] + typed[4:], r"max_grad_norm \(0.01 before, inf now"),
        (typed[:4] + typed[6:], r"grad_accumulation_factor \(2 before, 1 now"),
        (typed[:6], r"skip_nonfinite_grads \(True before, False now"),
        ([*typed, "--nonfinite_patience", "9"], r"patience \(3 before, 9 now"),
        ([*typed, "--eval_precision", "bf16"], r"eval_precision \(fp32 before"),
        ([*typed, "--compile"], r"compile \(False before, True now"),
    ):
        with pytest.raises(ValueError, match=message):
            runs.run("pretrain", tmp_path, *left)
    assert contents(tmp_path) == before
    record["processes"] = 2
    (tmp_path / "hyperparams.yaml").write_text(config.dump_yaml(record))
    with pytest.raises(ValueError, match=r"processes \(2 before, 1 now"):
        runs.run("pretrain", tmp_path, *typed)


def test_f4_another_optimizer_is_another_run(runs, tmp_path):
    yamls = []
    for name in "Adam", "SGD":
        yamls.append(tmp_path / f"{name}.yaml")
        yamls[-1].write_text(
            f"base: {runs.folder}/pretrain.yaml\n"
            f"opt_class: !name:torch.optim.{name}\n    lr: !ref <lr>  # yes\n"
        )
    argv = ["--output_folder", f"{tmp_path}/out", "--device", "cpu"]
    for yaml in yamls[0], yamls[0]:
        load_experiment([str(yaml), *argv], config.MAY_CHANGE)
        (tmp_path / "out/save/CKPT+1").mkdir(parents=True, exist_ok=True)
    with pytest.raises(ValueError, match="opt_class .*Adam.* before, .*SGD"):
        load_experiment([str(yamls[1]), *argv], config.MAY_CHANGE)
    with pytest.raises(ValueError, match=r"lr \(0.0002 before, 0.1 now"):
        argv += ["--lr", "0.1"]
        load_experiment([str(yamls[0]), *argv], config.MAY_CHANGE)


def test_f4_run_options_of_a_yaml_and_of_a_study(runs, tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(f"base: {runs.folder}/pretrain.yaml\nprecision: bf16\n")
    settings, _ = read_settings(path, {}, RunOptions())
    assert settings["precision"] == "bf16"
    options = {"precision": "bf16", "max_grad_norm": 2}  # pretrain_options
    yaml = runs.folder / "pretrain.yaml"
    settings, _ = read_settings(yaml, options, RunOptions())
    assert settings["precision"] == "bf16" and settings["max_grad_norm"] == 2
    given = RunOptions.from_dictionary({"max_grad_norm": 3.0, "device": "cpu"})
    settings, _ = read_settings(yaml, options, given)  # as a Brain does
    assert settings["max_grad_norm"] == 3 and "device" not in settings


def test_f4_probes_with_other_run_options_are_trained_anew(runs, tmp_path):
    results = []
    for options in ["--precision", "bf16"], [], []:
        runs.run("probe", tmp_path, *options)
        result = tmp_path / "probe_pitch.json"
        results.append((result.stat().st_mtime_ns, read_json(result)))
    assert results[0][0] < results[1][0] == results[2][0]
    assert results[0][1]["run_options"]["precision"] == "bf16"
    assert "precision" not in results[1][1]["run_options"]


@pytest.mark.parametrize("recipe", ["probe", "study"])
@pytest.mark.parametrize(
    "options, message",
    [
        (["--max_grad_norm", "1e-9"], "must be inf: one norm would couple"),
        (["--grad_accumulation_factor", "2"], "must be 1: "),
    ],
)
def test_f4_what_couples_probes_is_refused(
    runs, recipe, options, message, tmp_path
):
    with pytest.raises(ValueError, match=message):
        runs.run(recipe, tmp_path, *options)
    assert not (tmp_path / "activations").exists()


# F2: debug ---------------------------------------------------------------------

DEBUG = [["--debug"], ["--optimizer_step_limit", "1"]]
DEBUG += [["--debug", "--debug_persistently"]]


@pytest.mark.parametrize("recipe", ["pretrain", "decode"])
def test_f2_debug_leaves_a_finished_run(runs, recipe, tmp_path):
    out = tmp_path / "out"
    runs.run(recipe, out)
    before = contents(out)
    for options in DEBUG:
        runs.run(recipe, out, *options, "--number_of_epochs", 2)
        assert contents(out) == before
        assert (tmp_path / "out_debug/hyperparams.yaml").exists()
    runs.run(recipe, out)  # done
    assert (out / "train_log.txt").read_text() == before["log"]


@pytest.mark.parametrize("recipe", ["probe", "study"])
def test_f2_debug_is_no_result(runs, recipe, tmp_path):
    out, where = tmp_path / "out", {"study": "log-mel_1/probe/", "probe": ""}
    runs.run(recipe, out, *DEBUG[recipe == "probe"])
    assert not out.exists()
    runs.run(recipe, out)
    before, scores = contents(out), []
    for folder in out, tmp_path / "out_debug":
        result = read_json(folder / f"{where[recipe]}probe_pitch.json")
        scores.append(result["layers"]["logmel"])
    # a few steps, or passes
    assert scores[0]["accuracy"] >= scores[1]["accuracy"]
    assert scores[0].get("converged", True)
    assert not scores[1].get("converged", False)
    runs.run(recipe, out, "--debug")  # beside finished results
    assert contents(out) == before


def test_f2_debug_of_a_yaml_and_with_typed_folders(runs, tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(f"base: {runs.folder}/pretrain.yaml\ndebug: True\n")
    options = ["--output_folder", f"{tmp_path}/out/", "--device", "cpu"]
    options += ["--save_folder", f"{tmp_path}/kept"]
    hparams, _ = load_experiment([str(path), *options])
    assert hparams["output_folder"] == f"{tmp_path}/out_debug"
    assert hparams["save_folder"] == f"{tmp_path}/out_debug/save"
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "kept").exists()


@pytest.mark.parametrize("option", ["debug: True", "optimizer_step_limit: 1"])
def test_f2_debug_inside_a_study_is_refused(runs, option, tmp_path):
    systems = f"{{A: {{yaml: pretrain.yaml, options: {{{option}}}}}}}"
    with pytest.raises(ValueError, match="give them on the command line"):
        runs.run("study", tmp_path / "out", "--systems", systems)


# G6: circles; "=" in paths is text: tests/test_config.py ------------------------


@pytest.mark.parametrize("word", ["base: {}", "base: [a.yaml, {}]", "uses: {}"])
@pytest.mark.parametrize("length", [1, 2, 3])
def test_g6_h11_circles_of_bases(word, length, tmp_path):
    (tmp_path / "a.yaml").write_text("x: 1\n")
    names = [f"{number}.yaml" for number in range(length)]
    for name, base in zip(names, [*names[1:], names[0]], strict=True):
        (tmp_path / name).write_text(word.format(base) + "\n")
    with pytest.raises(ValueError, match="0.yaml is its own base: remove"):
        config.read_yaml(tmp_path / names[0])


# H8, H17: ranges ---------------------------------------------------------------

RANGES = {
    "pretrain": """number_of_epochs 0|number_of_epochs -3|channels 0|lr 0
        context_channels -1|num_negatives 0|crop_samples 0|kernel_sizes []
        kernel_sizes [[10,8],[],[4]]|strides [[5,0],[2,2],[2]]|num_samples 0
        paddings [[-1,2],[2,2],[1]]|kl_weight -1|kl_weight [0,-1,0]|lr -0.1
        kl_warmup_epochs -1|kl_reduction x|objective x|batch_size 0|seed -1
        num_workers -1|num_workers 100000|window_frames 1|prediction_steps 0|classes -1|lr .nan
        within_utterance_negatives -1|lr .inf|initial_log_var .inf
        schedule x|module_epochs -1|module_epochs [1,-1,1,1]
        kl_weight .nan|kl_weight [.nan,0,0]|on_bad_audio maybe
        epochs_per_save 0|ckpt_interval_steps -1|precision fp64|max_grad_norm 0|jit True
        max_grad_norm -1|max_grad_norm .nan|grad_accumulation_factor 0
        nonfinite_patience -1|optimizer_step_limit 0|test_only True""",
    "probe": """seeds [1,1]|seeds []|layers []|layers [a,a]|alignment x
        encoding_seconds 0|lr 0|batch_size -1|number_of_epochs 0|hidden -1
        strengths []|strengths [0]|standardize []|max_passes 0|protocol x
        max_grad_norm 1|grad_accumulation_factor 2""",
    "decode": """label_kinds {a: b}|mse -1|stft -1|mel .inf|lr 0|number_of_epochs -1
        decoder x|lr_decay_epochs -1|lr_warmup_epochs -1""",
    "study": """systems {}|layers []|tools [delta,delta]|clips 1|pairs 0
        decoder_epochs {module1: 0}|decoders [sound]|smooth_steps 0|directions -1|seed -1
        clip_samples 0|encoding_batch_size 0|factor_segments -1""",
}
RANGES = [
    (verb, option.strip())
    for verb, lines in RANGES.items()
    for option in lines.replace("\n", "|").split("|")
]


@pytest.fixture(scope="module")
def needed(runs):
    """Options without which a yaml of the tiny corpus cannot be read."""
    return {"output_folder": "out"}


@pytest.mark.parametrize("verb, option", RANGES)
def test_h8_h17_ranges(runs, needed, verb, option):
    key, value = option.split(" ", 1)
    with pytest.raises(ValueError) as error:
        read_settings(
            runs.folder / f"{verb}.yaml", {**needed, key: value}, RunOptions()
        )
    (line,) = str(error.value).splitlines()
    assert line.startswith(f"--{key} is ")
    assert "but must be " in line


def test_h8_h17_nothing_is_left_of_what_is_refused(runs, tmp_path):
    for recipe in "pretrain", "probe", "decode", "study":
        with pytest.raises(ValueError, match="--number_of_epochs|--pairs"):
            option = "pairs" if recipe == "study" else "number_of_epochs"
            runs.run(recipe, tmp_path / "out", f"--{option}", "0")
        assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "options, message",
    [
        (["--crop_samples", "100"], "are . frames in --crop_samples 100"),
        (
            ["--prediction_steps", "500"],
            "--prediction_steps is 500, but of mod",
        ),
        (["--window_frames", "2"], "--window_frames is 2: both need 3"),
        (["--within_utterance_negatives", "4"], "more than num_negatives, 3"),
        (["--frozen", "module9"], "there are module1, "),
        (["--precision", "fp16"], "not yet supported on CPU"),
        (["--kernel_sizes", "[[4]]"], "must list as many modules"),
        (["--kl_weight", "[0.1]"], "kl_weight lists 1 values for the 3"),
    ],
)
def test_h17_what_objects_refuse_is_refused_before_preparation(
    runs, recipes, options, message, tmp_path, monkeypatch
):
    def prepare(*_):
        raise AssertionError("prepared")

    monkeypatch.setattr(recipes["pretrain"], "run_on_main", prepare)
    with pytest.raises(ValueError, match=message):
        runs.run("pretrain", tmp_path, *options)


def test_h17_build_model_checks_ranges_too():
    with pytest.raises(ValueError, match="--channels is 0, but must be >= 1"):
        build_model("sim", channels=0)
    with pytest.raises(ValueError, match="kl_reduction is 'x'"):
        build_model("gim", **TINY, kl_reduction="x")


STUDY = {
    "SIM": "--systems is 'SIM', but takes a mapping",
    "{A: pretrain.yaml}": "--systems: A is 'pretrain.yaml', not a mapping",
    "{A: {yaml: pretrain.yaml, option: {}}}": "no key option in --systems: A",
    "{a/b: {encoder: logmel}}": "its name, of folders",
    "{'..': {encoder: logmel}}": "its name, of folders",
    "{3: {encoder: logmel}}": "its name, of folders",
    "{A: {}}": "A needs one of yaml, encoder and of",
    "{A: {encoder: logmel, yaml: x}}": "A needs one of yaml, encoder and of",
    "{A: {yaml: nope.yaml}}": "no hyper-parameter file .*nope.yaml",
    "{A: {yaml: pretrain.yaml, options: {chanels: 4}}}": "no key chanels",
    "{A: {yaml: pretrain.yaml, options: {channels: 0}}}": "--channels is 0",
    "{A: {yaml: pretrain.yaml, options: [1]}}": "options is .1., but takes a",
    "{A: {encoder: logmel, seeds: [1, 1]}}": "seeds is .1, 1., but must be",
    "{A: {encoder: logmel, seeds: 1}}": r"seeds is 1, but takes a list such as \[",
    "{A: {encoder: logmel, probe: {lr: 0}}}": "--lr is 0, but must be > 0",
    "{A: {of: B}, B: {yaml: pretrain.yaml}}": "A is of B, but no entry above",
    "{B: {yaml: pretrain.yaml}, A: {of: B, seeds: [2]}}": "the seeds .2.",
    "{A: {encoder: nowhere}}": "no folder nowhere",
}


@pytest.mark.parametrize("systems", STUDY)
def test_h17_systems_are_checked_before_any_is_trained(runs, systems, tmp_path):
    with pytest.raises((KeyError, ValueError, OSError), match=STUDY[systems]):
        runs.run("study", tmp_path / "out", "--systems", systems)
    assert {p.name for p in tmp_path.rglob("*")} <= {
        "out",
        "hyperparams.yaml",
        ".lock",
    }


@pytest.mark.parametrize(
    "option, value, message",
    [
        ("labels", "{pitch: {prob: {}}}", "no key prob in --labels: pitch"),
        ("labels", "{pitch: 3}", "--labels: pitch is 3, not a mapping"),
        ("probe_options", "{strengths: []}", "--strengths is .*not empty"),
        ("probe_options", "{seeds: [1]}", "--seeds has no use with"),
        ("tools", "[x]", "no tool x"),
        ("inside", "[x]", "no encoder of x"),
        ("decode_options", "{lr: -1}", "--lr is -1"),
        ("decode_options", "{layer: x}", "--layer is logmel in .*: the study"),
        ("layers", "[module9]", "no layer '?module9"),
        ("probe_options", "{layers: [module9]}", "no layer '?module9"),
        ("probe_options", "{label_name: x}", "--label_name is pitch in .*: "),
    ],
)
def test_h17_inner_runs_are_checked_first(
    runs, option, value, message, tmp_path
):
    looked = option in ("decode_options", "layers")
    options = ["--inside", "[log-mel]"] if looked else []
    options += ["--layers", "[logmel]"] if option == "decode_options" else []
    with pytest.raises((KeyError, ValueError), match=message):
        runs.run("study", tmp_path / "out", f"--{option}", value, *options)
    assert not (tmp_path / "out/log.txt").exists()


def test_e11_a_label_of_a_study_has_a_name_of_its_own(runs, tmp_path):
    labels = "{tone: {probe: {label: pitch}}}"
    runs.run("study", tmp_path, "--labels", labels)
    result = read_json(tmp_path / "log-mel_1/probe/probe_tone.json")
    assert (result["label"], result["column"]) == ("tone", "pitch")


# G3, H19: at the start ---------------------------------------------------------


def test_g3_torchrun_of_probes_and_studies(runs, monkeypatch, tmp_path):
    """In two processes: tests/recipes/test_probe.py."""
    several = "is_distributed_initialized"
    monkeypatch.setattr(config.distributed, several, lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    for recipe in "probe", "study":
        with pytest.raises(ValueError, match="1: start it without torchrun"):
            runs.run(recipe, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_h19_processes_on_cpus_need_gloo(runs, monkeypatch, tmp_path):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("LOCAL_RANK", "0")
    with pytest.raises(ValueError, match="need --distributed_backend gloo"):
        runs.run("pretrain", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("device", ["cuda", "cuda:99", "gpu", "", "cpu:x"])
@pytest.mark.parametrize("verb", ["encode", "decode"])
def test_h19_the_command_has_no_such_device(verb, device, tmp_path, capsys):
    if device == "cuda" and torch.cuda.is_available():
        pytest.skip("there is one")
    out = ["--layer", "module1", "--out", str(tmp_path / "out")]
    with pytest.raises(
        SystemExit, match=f"^speechbrain-sim: --device {device}:"
    ):
        cli([verb, "model", "a.wav", *out, "--device", device])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("device", ["cuda", "cuda:99", "gpu", "", "cpu:x"])
def test_h19_a_device_that_is_not_there(runs, device, tmp_path):
    if device == "cuda" and torch.cuda.is_available():
        pytest.skip("there is one")
    for recipe in "pretrain", "probe", "decode", "study":
        with pytest.raises(ValueError, match=f"^--device {device}: ") as error:
            runs.run(recipe, tmp_path / "out", "--device", device)
        assert len(str(error.value).splitlines()) == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "options, message",
    [
        (["--model", "supervised"], "needs --label .* None and 0"),
        (["--model", "supervised", "--classes", "3"], "None and 3"),
        (["--model", "supervised", "--label", "pitch"], "pitch and 0"),
        (["--objective", "supervised"], "needs --label"),
        (["--label", "pitch"], "only --model supervised learns labels"),
    ],
)
def test_h19_supervised_without_a_label(runs, options, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        runs.run("pretrain", tmp_path / "out", *options)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "content",
    [b"a: [", b"a: b: c", b"\xff\xfe\x00", b"text", b"- 1", b"a: 1\na: 2"],
)
def test_h19_an_unreadable_yaml_is_named(content, tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="mine.yaml is no") as error:
        load_experiment([str(path), "--device", "cpu"])
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize("recipe", ["probe", "decode"])
def test_h19_an_unreadable_encoder_is_named(runs, recipe, tmp_path):
    save_parts(
        tmp_path / "model", {"encoder": build_model("sim", **TINY).encoder}
    )
    (tmp_path / "model/encoder.safetensors").write_bytes(b"damaged")
    with pytest.raises(ValueError, match="encoder.safetensors"):
        runs.run(recipe, tmp_path / "out", "--encoder", tmp_path / "model")
    assert not (tmp_path / "out/save").exists() or recipe == "decode"


# H20, E14: one line ------------------------------------------------------------


def test_h20_e14_a_recipe_s_error_is_one_line(runs, tmp_path):
    command = [sys.executable, str(ROOT / "recipes/probe.py")]
    command += [str(runs.folder / "probe.yaml"), "--device", "cpu"]
    command += ["--output_folder", str(tmp_path / "out"), "--chanels", "3"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 1 and done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("probe.py: There is no key chanels in ")


def test_the_program_states_its_version(capsys):
    with pytest.raises(SystemExit) as stopped:
        cli(["--version"])
    assert not stopped.value.code
    assert capsys.readouterr().out == f"speechbrain-sim {__version__}\n"


@pytest.mark.parametrize("key", ["settings", "used_with"])
def test_what_results_depend_on_is_no_option(runs, key, tmp_path):
    with pytest.raises(KeyError, match=f"There is no key {key} in .*yaml"):
        runs.run("probe", tmp_path, f"--{key}", "[x]")


@pytest.mark.parametrize("protocol", ["converged", "paper"])
def test_keys_of_the_other_protocol_are_refused(protocol, tmp_path):
    yaml = HPARAMS / "Synthetic/probe.yaml"
    given = {"encoder": "logmel", "protocol": protocol}
    settings, _ = read_settings(yaml, given, RunOptions())
    for other, keys in settings["used_with"]["protocol"].items():
        for key in keys:
            options = {**given, key: settings[key]}
            if other == protocol:
                read_settings(yaml, options, RunOptions())
            else:
                refused(yaml, f"--{key} has no use with --protocol", **options)


@pytest.mark.parametrize("recipe", ["pretrain", "probe", "decode", "study"])
def test_h20_every_recipe_ends_in_a_line(runs, recipe, monkeypatch, capsys):
    argv = [f"{recipe}.py", str(runs.folder / f"{recipe}.yaml"), *CPU]
    script = str(ROOT / f"recipes/{recipe}.py")
    monkeypatch.setattr(sys, "argv", [*argv, "--lr0", "1"])
    with pytest.raises(SystemExit) as stopped:
        runpy.run_path(script, run_name="__main__")
    assert stopped.value.code.startswith(f"{recipe}.py: There is no key lr0 in")
    monkeypatch.setattr(sys, "argv", [*argv, "--lr0", "1", "--debug"])
    with pytest.raises(KeyError, match="no key lr0"):
        runpy.run_path(script, run_name="__main__")


@pytest.mark.parametrize(
    "words, message",
    [
        (
            ["--precision", "fp64"],
            "argument --precision: invalid choice: 'fp64'",
        ),
        (
            ["--max_grad_norm", "a b"],
            "--max_grad_norm: invalid float value: 'a",
        ),
        (["--optimizer_step_limit", "x"], "is 'x', but takes a whole number"),
        (["--debug_batches", "=1"], "--debug_batches: invalid int value: '=1'"),
    ],
)
def test_h20_what_speechbrain_parses_is_refused_in_a_line(
    runs, words, message, tmp_path, capsys
):
    with pytest.raises(ValueError, match=message):
        runs.run("pretrain", tmp_path / "out", *words)
    assert capsys.readouterr().err == ""
    with pytest.raises(ValueError, match="required: param_file"):
        load_experiment([])


def raise_ours(argv):
    raise argv


def raise_bug(argv):
    return {"a": 1}[argv]


def open_missing(argv):
    return open(argv, encoding="utf-8")


def read_in_a_worker(argv):
    from torch.utils.data import DataLoader

    return list(DataLoader(Broken(), num_workers=1))


class Broken(torch.utils.data.Dataset):
    def __len__(self):
        return 1

    def __getitem__(self, index):
        raise ValueError("x.wav is cut off: leave it out.")


@pytest.mark.parametrize(
    "error, line",
    [
        (KeyError("There is no key."), "There is no key."),
        (ValueError("A value."), "A value."),
        (RuntimeError("Controls failed."), "Controls failed."),
        (ImportError("Install it."), "Install it."),
        (OSError("It is not here."), "It is not here."),
        (
            FileNotFoundError(2, "No such file", "a"),
            "[Errno 2] No such file: 'a'",
        ),
    ],
)
def test_h20_expected_errors(error, line):
    with pytest.raises(SystemExit, match="^x.py: ") as stopped:
        run_command(lambda argv: raise_ours(error), [], "x.py")
    assert stopped.value.code == f"x.py: {line}"
    with pytest.raises(type(error)):
        run_command(lambda argv: raise_ours(error), ["--debug"], "x.py")


def test_h20_bugs_keep_their_traceback():
    for bug in raise_bug, lambda argv: int("x"), lambda argv: None + 1:
        with pytest.raises((KeyError, ValueError, TypeError)):
            run_command(bug, "b", "x.py")


def test_h20_files_workers_and_interrupts():
    with pytest.raises(SystemExit, match="No such file or directory: 'gone'"):
        run_command(open_missing, "gone", "x.py")
    with pytest.raises(SystemExit) as stopped:
        run_command(read_in_a_worker, [], "x.py")
    assert stopped.value.code == "x.py: x.wav is cut off: leave it out."

    def interrupted(argv):
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as stopped:
        run_command(interrupted, [], "x.py")
    assert stopped.value.code == 130


def test_h20_the_log_keeps_the_traceback(caplog):
    caplog.set_level(logging.DEBUG)
    with pytest.raises(SystemExit):
        run_command(lambda argv: raise_ours(ValueError("A value.")), [], "x.py")
    (record,) = caplog.records
    assert record.levelno == logging.DEBUG and "raise_ours" in caplog.text


def test_h20_the_command(tmp_path):
    argv = ["encode", str(tmp_path), "x.wav", "--layer", "a", "--out", "b"]
    with pytest.raises(SystemExit, match="^speechbrain-sim: .*no config.json"):
        cli(argv)
    with pytest.raises(OSError, match="no config.json"):
        cli(["--debug", *argv])
