"""Modules in other processes learn the same bits."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from speechbrain_sim.brains.checkpointer import AtomicCheckpointer
from speechbrain_sim.brains.stages import check_stages
from tests.conftest import ROOT, finish, same, start_process

THREE = ["--stages", "[[module1], [module2], [module3, context]]"]
TWO = ["--stages", "[[module1, module2], [module3, context]]"]
#: 20 utterances: 6 steps; the last batch of validation is smaller, and so is
#: the last step of accumulated gradients
OPTIONS = ["--batch_size", "3", "--random_crop", "True", "--lr", "0.01"]
OPTIONS += ["--grad_accumulation_factor", "4", "--ckpt_interval_steps", "4"]
#: saved as text
PLAIN = {"averages", "brain", "epoch_counter", "train_logger"}
PLAIN |= {"dataloader-TRAIN"}


class Launcher:
    """Runs pretrain.py in forks of one process, see tests/brains/forked.py."""

    def __init__(self, yaml):
        self.yaml = str(yaml)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.brains.forked"],
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __call__(self, folder, ranks, *options, fails=False, **given):
        """Runs it in a folder; returns the ranks' outputs."""
        argv = [self.yaml, "--output_folder", str(folder), *OPTIONS, *options]
        job = {"ranks": ranks, "argv": argv, **given}
        self.process.stdin.write(json.dumps(job) + "\n")
        self.process.stdin.flush()
        done = json.loads(self.process.stdout.readline())
        assert any(done["codes"]) == fails, "\n".join(done["outputs"])
        return done["outputs"]


@pytest.fixture(scope="module")
def launch(tiny_yaml):
    launcher = Launcher(tiny_yaml)
    yield launcher
    launcher.process.communicate()


def outcome(folder):
    """All that a run leaves: model, metadata, log, contents of checkpoints."""
    left = {"log": (folder / "train_log.txt").read_text()}
    left["encoder"] = load_file(folder / "encoder.safetensors")
    left["config"] = (folder / "config.json").read_text()
    newest = AtomicCheckpointer(folder / "save").find_checkpoint()
    for file in newest.path.glob("*.ckpt"):
        plain = file.stem in PLAIN
        left[file.name] = file.read_text() if plain else torch.load(file)
    return left


def check_same(one, other):
    one, other = outcome(one), outcome(other)
    assert one.keys() == other.keys()
    for name in one:
        if isinstance(one[name], str):
            assert one[name] == other[name], name
        else:
            assert same(one[name], other[name]), name


@pytest.fixture(scope="module")
def whole(launch, tmp_path_factory):
    """The folder of a run of one process."""
    folder = tmp_path_factory.mktemp("serial")
    launch(folder, 1)
    return folder


def test_stages_have_the_bits_of_one_process(launch, whole, tmp_path):
    """Started with three, resumed with one; and stopped, resumed with two."""
    first, *others = launch(
        tmp_path / "three", 3, *THREE, "--number_of_epochs", "1"
    )
    assert first.count("Epoch 1, train (valid): module1 loss") == 1
    assert "Stages were busy" in first
    assert not any("Epoch 1" in other for other in others)
    launch(tmp_path / "three", 1)
    check_same(tmp_path / "three", whole)
    killed = [0, signal.SIGKILL, str(tmp_path / "one/save/CKPT*")]
    launch(tmp_path / "one", 1, fails=True, signal=killed)
    launch(tmp_path / "one", 2, *TWO)
    check_same(tmp_path / "one", whole)


def test_a_lost_rank_ends_all_and_the_run_goes_on(launch, whole, tmp_path):
    new = str(tmp_path / "save/CKPT*")
    stopped = r"Rank {} \(stage {}: .*\) stopped at epoch \d, .*step \d"
    killed = [1, signal.SIGKILL, new]
    outputs = launch(tmp_path, 3, *THREE, fails=True, signal=killed)
    for rank in 0, 2:
        assert re.search(stopped.format(rank, rank + 1), outputs[rank])
    silent, more = [2, signal.SIGSTOP, new], ["--stage_timeout", "15"]
    outputs = launch(tmp_path, 3, *THREE, *more, fails=True, signal=silent)
    assert re.search(stopped.format(1, 2), outputs[1])
    assert "did not answer for 15 s" in outputs[1]
    launch(tmp_path, 3, *THREE)
    check_same(tmp_path, whole)


@pytest.mark.slow
def test_torchrun_restarts_and_goes_on(whole, tiny_yaml, tmp_path):
    process = start_process(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
            *("--nproc-per-node=2", "--max-restarts=1"),
            *(ROOT / "recipes/pretrain.py", tiny_yaml, *OPTIONS, *TWO),
            *("--output_folder", tmp_path, "--num_workers", "0"),
            *("--device", "cpu", "--distributed_backend", "gloo"),
        ]
    )
    while not any(tmp_path.glob("save/CKPT*")):
        assert process.poll() is None, process.stdout.read()
        time.sleep(0.01)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    os.kill(int(children.read_text().split()[-1]), signal.SIGKILL)
    assert "Loading a checkpoint from" in finish(process)
    check_same(tmp_path, whole)


def test_replicas_learn_what_one_process_accumulates(launch, tmp_path):
    launch(tmp_path / "one", 1, "--grad_accumulation_factor", "2")
    launch(tmp_path / "mesh", 4, *TWO, "--grad_accumulation_factor", "1")
    one, mesh = outcome(tmp_path / "one"), outcome(tmp_path / "mesh")
    for name, weight in one["encoder"].items():
        print(name, (weight-mesh["encoder"][name]).abs().max())
        torch.testing.assert_close(
            mesh["encoder"][name], weight, rtol=1e-5, atol=1e-5
        )
    assert mesh["log"] == one["log"]


@pytest.mark.slow
def test_auto_measures_and_divides(launch, whole, tmp_path):
    first, _ = launch(tmp_path, 2, "--stages", "auto")
    assert re.search(r"Measured: module1 .* ms, .*; --stages \[\[", first)
    check_same(tmp_path, whole)


SETTINGS = {"objective": "contrastive", "greedy": True, "frozen": []}
SETTINGS |= {"kernel_sizes": [[4], [4], [4]], "context_channels": 4}
LISTS = [["module1"], ["module2"], ["module3", "context"]]


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"processes": 4}, "4 processes cannot be 3 stages.*start 3, 6, 9"),
        ({"processes": 1}, "nproc-per-node=3"),
        ({"greedy": False}, "a gradient of this model crosses its modules"),
        ({"objective": "supervised"}, "crosses its modules"),
        ({"stages": [["module2"], ["module1"]]}, "bottom first, such as"),
        ({"stages": "[[module1]"}, "must be auto, or lists"),
        ({"stages": ["module1"]}, "must be auto, or lists"),
        ({"stages": "auto", "processes": 5}, "auto cannot divide 4 modules"),
        ({"precision": "fp16"}, "--precision fp16 and --stages exclude"),
        ({"frozen": "all"}, "no use if all modules are frozen"),
    ],
)
def test_what_cannot_be_divided_is_refused(changes, message):
    settings = {**SETTINGS, "stages": LISTS, "processes": 3, **changes}
    with pytest.raises(ValueError, match=message):
        check_stages(settings)


def test_processes_of_the_record_are_replicas():
    for stages, ranks in ([], 2), (LISTS, 6), ("auto", 8):
        settings = {**SETTINGS, "stages": stages, "processes": ranks}
        check_stages(settings)
        assert settings["processes"] == 2
