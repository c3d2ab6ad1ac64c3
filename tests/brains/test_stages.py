"""Modules in other processes learn the same bits."""

import json
import re
import signal
import socket
import sys
import time

import pytest
import torch
from safetensors.torch import load_file

from speechbrain_sim.brains.stages import balance, check_stages
from tests.conftest import ROOT, finish, same, start_process, start_recipe

THREE = "[[module1], [module2], [module3, context]]"
TWO = "[[module1, module2], [module3, context]]"
#: 20 utterances: 6 steps, the last batch of validation is smaller
OPTIONS = ["--batch_size", "3", "--random_crop", "True"]
OPTIONS += ["--grad_accumulation_factor", "4", "--ckpt_interval_steps", "4"]
OPTIONS += ["--lr", "0.01", "--batch_norm", "True"]


def staged(yaml, folder, stages, ranks, *options, launch=()):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    return start_process(
        [
            *(sys.executable, "-m", "torch.distributed.run"),
            *(f"--nproc-per-node={ranks}", "--master-addr=127.0.0.1"),
            *(f"--master-port={port}", *launch),
            *(ROOT / "recipes/pretrain.py", yaml, "--stages", stages),
            *("--output_folder", folder, "--device", "cpu"),
            *("--distributed_backend", "gloo", "--noprogressbar"),
            *(*OPTIONS, *options),
        ]
    )


def serial(yaml, folder, *options):
    options = "--output_folder", folder, *OPTIONS, *options
    return start_recipe("pretrain.py", yaml, *options)


def outcome(folder):
    """All that a run leaves: model, metadata, log, contents of checkpoints."""
    found = {"log": (folder / "train_log.txt").read_text()}
    found["encoder"] = load_file(folder / "encoder.safetensors")
    found["config"] = (folder / "config.json").read_text()
    for i, saved in enumerate(sorted((folder / "save").glob("CKPT*"))):
        for file in saved.glob("*.ckpt"):
            plain = file.stem in ("averages", "brain", "epoch_counter")
            plain = plain or file.stem in ("dataloader-TRAIN", "train_logger")
            content = file.read_text() if plain else torch.load(file)
            found[f"{i} {file.name}"] = content
    return found


def check_same(one, other):
    one, other = outcome(one), outcome(other)
    assert one.keys() == other.keys()
    for name in one:
        if isinstance(one[name], str):
            assert one[name] == other[name], name
        else:
            assert same(one[name], other[name]), name


@pytest.fixture(scope="module")
def whole(tiny_yaml, tmp_path_factory):
    """The folder of a run of one process."""
    folder = tmp_path_factory.mktemp("serial")
    finish(serial(tiny_yaml, folder))
    return folder


def test_three_stages_have_the_bits_of_one_process(whole, tiny_yaml, tmp_path):
    output = finish(staged(tiny_yaml, tmp_path, THREE, 3))
    check_same(tmp_path, whole)
    assert output.count("Epoch 1, train (valid): module1 loss") == 1
