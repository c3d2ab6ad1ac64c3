"""Two stages in two processes against one process, each with one thread."""

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

import numpy as np
import soundfile as sf
import torch

from benchmarks.measure import row
from speechbrain_sim.brains.costs import measure, meshes
from speechbrain_sim.family import build_model

ROOT = Path(__file__).resolve().parent.parent
#: the paper's batch, narrower than its model
SHAPE, CHANNELS = (8, 10240), 256
#: as many as the recipe needs for its estimate of a step
STEPS = 22
RATE = re.compile(r"Expected from \d+ steps of ([\d.e-]+) s")


def write_corpus(folder, files=48):
    """Writes noise, a second each, for hparams/Folder/pretrain.yaml."""
    rng = np.random.default_rng(0)
    for i in range(files):
        wav = 0.1 * rng.standard_normal(16000)
        sf.write(Path(folder, f"{i:02}.wav"), wav, 16000)


def seconds(folder, *launch):
    """Runs the recipe and returns the seconds of a step that it states."""
    with tempfile.TemporaryDirectory() as output:
        command = [sys.executable, *launch, "recipes/pretrain.py"]
        command += ["hparams/Folder/pretrain.yaml", "--data_folder", folder]
        command += ["--output_folder", output, "--channels", str(CHANNELS)]
        command += ["--crop_samples", str(SHAPE[1]), "--batch_norm", "False"]
        command += ["--batch_size", str(SHAPE[0]), "--device", "cpu"]
        command += ["--noprogressbar", "--optimizer_step_limit", str(STEPS)]
        if launch:
            command += ["--distributed_backend", "gloo", "--stages", "auto"]
        done = subprocess.run(
            command,
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            check=True,
        )
    return float(RATE.search(done.stdout + done.stderr)[1])


def stages(repetitions=3):
    """Measures the speed-up, and the ceiling: sum / max of measured costs."""
    torch.set_num_threads(1)
    modules = build_model("sim", channels=CHANNELS).modules
    costs = measure(modules, torch.optim.Adam, *SHAPE)
    ceiling = meshes(costs, 2)[-1].ceiling
    costs = {name: cost.step for name, cost in costs.items()}
    launch = "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"
    with tempfile.TemporaryDirectory() as folder:
        write_corpus(folder)
        rounds = [
            (seconds(folder), seconds(folder, *launch))
            for _ in range(repetitions)
        ]
    one, two = (median(times) for times in zip(*rounds, strict=True))
    speedup = median(a / b for a, b in rounds)
    family = "Two stages against one process: share of the ceiling"
    name = f"SIM, {CHANNELS} channels: {speedup:.2f} of at most {ceiling:.2f}"
    rows = [row(family, name, "s", two, one, speedup / ceiling, "≥ 0.85")]
    rows[0] |= {"speedup": speedup, "ceiling": ceiling, "costs": costs}
    return rows
