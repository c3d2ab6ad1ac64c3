"""Runs a recipe in forked processes: imports, the slow part, happen once.

`python -m tests.brains.forked` reads lines of json, {"ranks", "argv"}, runs each
as torchrun would, and prints a line of json with the exit codes and outputs.
With "signal": [rank, number, pattern], a rank gets a signal when a file is new.
"""

import json
import os
import signal
import socket
import sys
import time
from pathlib import Path

#: seconds until a process that does not end is killed
PATIENCE = 240


def rank_of(rank, ranks, port, argv, output):
    """Runs one rank in this process, to its end."""
    from recipes.pretrain import main
    from speechbrain_sim.cli import run_command

    os.dup2(output, 1)
    os.dup2(output, 2)
    if ranks > 1:
        place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks}
        place |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        os.environ |= {key: str(value) for key, value in place.items()}
        argv = [*argv, "--distributed_backend", "gloo"]
    argv = [*argv, "--device", "cpu", "--noprogressbar", "--num_workers", "0"]
    run_command(main, argv, "pretrain.py")


def _is_new(pattern, begin):
    """Whether a file that fits was written since a time."""
    files = Path(pattern).parent.glob(Path(pattern).name)
    return any(file.stat().st_mtime > begin for file in files)


def run(ranks, argv, **given):
    """Runs all ranks; returns exit codes and outputs."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    sys.stdout.flush()
    pids, files = [], []
    for rank in range(ranks):
        files.append(os.memfd_create(f"rank{rank}"))
        if not (pid := os.fork()):
            code = 1
            try:
                rank_of(rank, ranks, port, argv, files[-1])
                code = 0
            except SystemExit as stop:
                print(stop.code, file=sys.stderr)
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)
        pids.append(pid)
    target, number, pattern = given.get("signal", (None, 0, ""))
    codes, begin = {}, time.time()
    end = begin + PATIENCE
    while len(codes) < ranks:
        if target is not None and _is_new(pattern, begin):
            os.kill(pids[target], number)
            stopped, target = target, None
        over = time.time() > end
        if number == signal.SIGSTOP and len(codes) == ranks - 1:
            os.kill(pids[stopped], signal.SIGKILL)
        for rank, pid in enumerate(pids):
            if rank not in codes:
                if over:
                    os.kill(pid, signal.SIGKILL)
                done, status = os.waitpid(pid, os.WNOHANG)
                if done:
                    codes[rank] = os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    outputs = []
    for file in files:
        os.lseek(file, 0, os.SEEK_SET)
        with os.fdopen(file) as stream:
            outputs.append(stream.read())
    return {"codes": [codes[r] for r in range(ranks)], "outputs": outputs}


if __name__ == "__main__":
    import recipes.pretrain  # noqa: F401

    for line in sys.stdin:
        print(json.dumps(run(**json.loads(line))), flush=True)
