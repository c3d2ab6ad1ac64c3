"""A run that is killed, however often, ends as one that never was."""

import os
import random
import signal
import sys
import time

import pytest
import torch
from safetensors.torch import load_file

from speechbrain_sim.brains.checkpointer import AtomicCheckpointer
from speechbrain_sim.models.format import load_parts
from tests.conftest import (
    HPARAMS,
    ROOT,
    finish,
    same,
    start_process,
    start_recipe,
)

OPTIONS = {
    "number_of_epochs": 5,
    "random_crop": True,
    "batch_norm": True,
    "num_workers": 2,
    "grad_accumulation_factor": 2,
    "ckpt_interval_steps": 2,
    "lr_warmup_epochs": 2,
    "lr_decay_epochs": 5,
}
#: 20 utterances in batches of 2
STEPS_PER_EPOCH = 10


@pytest.mark.parametrize(
    "line, code, printed",
    [
        ("", 0, ""),
        ("raise ValueError('no')", 1, "ValueError: no"),
        ("sys.exit('why')", 1, "why"),
        ("os.kill(os.getpid(), 9)", -signal.SIGKILL, ""),
    ],
)
def test_forked_scripts_end_as_processes_do(tmp_path, line, code, printed):
    script = tmp_path / "script.py"
    script.write_text(
        "import os, sys\nassert __name__ == '__main__'\n"
        f"print(sys.argv[1:], os.getcwd(), flush=True)\n{line}\n"
    )
    process = start_process([sys.executable, script, "a b", 3])
    output, _ = process.communicate(timeout=60)
    assert process.returncode == process.poll() == code
    assert output.startswith(f"['a b', '3'] {ROOT}\n") and printed in output


def start(yaml, folder):
    options = [x for k, v in OPTIONS.items() for x in (f"--{k}", str(v))]
    return start_recipe(
        "pretrain.py", yaml, "--output_folder", str(folder), *options
    )


def checkpoints(folder):
    """Names of the complete checkpoints, oldest first."""
    names = os.listdir(folder / "save") if (folder / "save").exists() else []
    return sorted(name for name in names if name.startswith("CKPT"))


def progress(folder):
    """Reads (epoch, step in it) of the newest checkpoint; (0, 0) at first."""
    for name in reversed(checkpoints(folder)):
        path = folder / "save" / name
        try:
            epoch = int((path / "epoch_counter.ckpt").read_text())
            brain = (path / "brain.ckpt").read_text()
        except FileNotFoundError:  # deleted by the run meanwhile
            return progress(folder)
        step = int(brain.split("step:")[-1].split()[0])
        return (epoch - 1, step) if step else (epoch, 0)
    return 0, 0


def epochs_logged(folder):
    log = folder / "train_log.txt"
    return len(log.read_text().splitlines()) if log.exists() else 0


def kill_at(process, folder, place, fraction):
    """Sends SIGKILL once a place is reached, and a random moment later.

    Persistent workers end by themselves: their parent is gone.
    """
    deadline = time.time() + 240
    while progress(folder) < place:
        assert process.poll() is None, process.stdout.read()
        assert time.time() < deadline
        time.sleep(0.003)
    time.sleep(fraction * 0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert process.returncode == -signal.SIGKILL
    assert progress(folder) < (OPTIONS["number_of_epochs"], 0)


def final_state(folder):
    """Loads what the last checkpoint holds of modules and optimizers."""
    newest = AtomicCheckpointer(folder / "save").find_checkpoint().path
    names = ["module1", "module2", "module3", "context"]
    names += [f"{name}_optimizer" for name in names]
    state = {name: torch.load(newest / f"{name}.ckpt") for name in names}
    encoder = load_file(folder / "encoder.safetensors")
    return {**state, "encoder": encoder}


def test_killed_three_times_is_bitwise_the_same(tiny_yaml, tmp_path):
    uninterrupted = start(tiny_yaml, tmp_path / "whole")
    rng, folder = random.Random(2), tmp_path / "killed"
    places = [(epoch, rng.randrange(1, STEPS_PER_EPOCH)) for epoch in range(3)]
    for place in places:
        assert progress(folder) < place
        kill_at(start(tiny_yaml, folder), folder, place, rng.random())
    reached = progress(folder)
    log = finish(start(tiny_yaml, folder))
    finish(uninterrupted)

    assert reached >= places[-1]
    assert f"Going into epoch {reached[0] + 1}" in log
    assert f"Going into epoch {reached[0]}\n" not in log
    assert epochs_logged(folder) == OPTIONS["number_of_epochs"]
    whole = tmp_path / "whole"
    killed_log = (folder / "train_log.txt").read_text()
    assert killed_log == (whole / "train_log.txt").read_text()
    assert same(final_state(folder), final_state(whole))
    steps = final_state(folder)["module1_optimizer"]["state"][0]["step"]
    assert steps == OPTIONS["number_of_epochs"] * STEPS_PER_EPOCH / 2


def test_killed_before_the_first_checkpoint_begins_anew(tiny_yaml, tmp_path):
    """A log without a checkpoint is not continued: no epoch is told twice."""
    (tmp_path / "train_log.txt").write_text("epoch: 1 - of a killed run\n")
    options = ["--output_folder", str(tmp_path), "--number_of_epochs", "1"]
    finish(start_recipe("pretrain.py", tiny_yaml, *options))
    (line,) = (tmp_path / "train_log.txt").read_text().splitlines()
    assert line.startswith("epoch: 1 - train module1_loss")


def killed_once(argv, reached):
    """Starts a recipe and sends SIGKILL once something is reached."""
    process = start_recipe(*argv)
    deadline = time.time() + 240
    while not reached():
        assert process.poll() is None, process.stdout.read()
        assert time.time() < deadline
        time.sleep(0.003)
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert process.returncode == -signal.SIGKILL


def test_killed_probes_end_the_same(corpora, tmp_path):
    """Killed while it reads, while it encodes, and twice while it trains."""
    argv = ["probe.py", HPARAMS / "LibriSpeech/probe.yaml"]
    argv += ["--data_folder", corpora / "LibriSpeech", "--encoder", "logmel"]
    argv += ["--protocol", "paper"]
    argv += ["--number_of_epochs", "40", "--batch_size", "64"]
    argv += ["--controls", "10", "--output_folder"]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    uninterrupted = start_recipe(*argv, whole)

    def epochs(stage):
        return list(killed.glob(f"save/probes_*/{stage}/CKPT*"))

    def encoding():
        return list(killed.glob("activations/labels/train/store.json"))

    for reached in (
        lambda: (killed / "save").is_dir(),
        encoding,
        lambda: epochs("choosing"),
        lambda: epochs("testing"),
    ):
        killed_once([*argv, killed], reached)
    log = finish(start_recipe(*argv, killed))
    finish(uninterrupted)
    assert log.count("Loading a checkpoint") == 2  # both stages went on
    results = [(f / "probe_phones.md").read_text() for f in (whole, killed)]
    assert results[0] == results[1]
    probes = [
        load_parts(folder, ["probe_phones"])[0]["probe_phones"]
        for folder in (whole, killed)
    ]
    assert same(probes[0].state_dict(), probes[1].state_dict())
    assert not list(killed.glob("save/probes_*"))
