"""Runs pretrain.py in forked processes: imports, the slow part, happen once.

`python -m tests.brains.forked` reads lines of json, {"ranks", "argv"}, runs each
as torchrun would, and prints a line of json with the exit codes and outputs.
With "signal": [rank, number, pattern], a rank gets a signal when a file is new;
"pause" is the number of seconds until it goes on. Only the first "readers" ranks
can read audio.
"""

import contextlib
import itertools
import json
import math
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

from tests.conftest import ROOT

#: seconds until a process that does not end is killed
PATIENCE = 240


class Launcher:
    """Runs pretrain.py with a yaml, see above; `seconds` from signal to end."""

    def __init__(self, yaml, *options):
        self.argv = [str(yaml), *options]
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
        argv = [*self.argv, "--output_folder", str(folder), *options]
        job = {"ranks": ranks, "argv": argv, **given}
        self.process.stdin.write(json.dumps(job) + "\n")
        self.process.stdin.flush()
        done = json.loads(self.process.stdout.readline())
        assert any(done["codes"]) == fails, "\n".join(done["outputs"])
        self.seconds = done["seconds"]
        return done["outputs"]


def rank_of(rank, ranks, port, argv, readers):
    """Runs one rank in this process, to its end."""
    from recipes.pretrain import main
    from speechbrain_sim.cli import run_command
    from speechbrain_sim.data import batches

    if rank >= readers:
        batches.read_audio = None
    if ranks > 1:
        place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks}
        place |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        os.environ |= {key: str(value) for key, value in place.items()}
        argv = [*argv, "--distributed_backend", "gloo"]
    argv = [*argv, "--device", "cpu", "--noprogressbar", "--num_workers", "0"]
    run_command(main, argv, "pretrain.py")


def start(output, *arguments):
    """Forks a rank, whose output goes to a file; returns its process id."""
    if pid := os.fork():
        return pid
    code = 1
    try:
        os.dup2(output, 1)
        os.dup2(output, 2)
        rank_of(*arguments)
        code = 0
    except SystemExit as stop:
        print(stop.code, file=sys.stderr)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _is_new(pattern, begin):
    """Whether a file that fits was written since a time."""
    for file in Path(pattern).parent.glob(Path(pattern).name):
        with contextlib.suppress(FileNotFoundError):  # deleted meanwhile
            if file.stat().st_mtime > begin:
                return True
    return False


def disturb(pid, number, pattern, pause=math.inf):
    """Sends a signal when a file is new; yields whether it was sent."""
    begin = time.time()
    while not _is_new(pattern, begin):
        yield False
    os.kill(pid, number)
    end = time.time() + pause
    while time.time() < end:
        yield True
    os.kill(pid, signal.SIGCONT)
    yield from itertools.repeat(True)


def run(ranks, argv, readers=99, **given):
    """Runs all ranks; returns exit codes, outputs, seconds since the signal."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    sys.stdout.flush()
    files = [os.memfd_create(f"rank{rank}") for rank in range(ranks)]
    job = ranks, port, argv, readers
    pids = [start(file, rank, *job) for rank, file in enumerate(files)]
    codes, begin, sent = {}, time.time(), None
    victim, *signalled = given.get("signal", [None])
    if signalled:
        pause = given.get("pause", math.inf)
        steps = disturb(pids[victim], *signalled, pause)
    while len(codes) < ranks:
        if signalled and victim not in codes and next(steps):
            sent = sent or time.time()
        last = len(codes) == ranks - 1 and "pause" not in given
        over = time.time() > begin + PATIENCE
        for rank, pid in enumerate(pids):
            if rank not in codes:
                if over or (last and sent and rank == victim):
                    os.kill(pid, signal.SIGKILL)
                done, status = os.waitpid(pid, os.WNOHANG)
                if done:
                    codes[rank] = os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    outputs, seconds = [], sent and time.time() - sent
    for file in files:
        os.lseek(file, 0, os.SEEK_SET)
        with os.fdopen(file) as stream:
            outputs.append(stream.read())
    codes = [codes[rank] for rank in range(ranks)]
    return {"codes": codes, "outputs": outputs, "seconds": seconds}


def prepare():
    """Does once what each run would do: imports, a list of packages."""
    import torch._dynamo  # noqa: F401
    from speechbrain.utils import logger

    import recipes.pretrain  # noqa: F401

    logger.get_environment_description = str


if __name__ == "__main__":
    prepare()
    for line in sys.stdin:
        print(json.dumps(run(**json.loads(line))), flush=True)
