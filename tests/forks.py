"""Scripts in processes of their own, which need not import everything again.

A server imports torch, SpeechBrain and the package once, and forks for every
script. Run as a program it is that server; tests call `start`.
"""

import atexit
import contextlib
import gc
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import threading
from functools import cache
from pathlib import Path

RECIPES = ["pretrain", "probe", "decode", "bottleneck", "vib", "study", "box"]


class Forked:
    """A forked script: what tests use of a subprocess.Popen.

    `stdout` is what it and its children print, errors too.
    """

    def __init__(self, pid, stdout, status):
        self.pid, self.stdout, self._status = pid, stdout, status
        self.returncode = None

    def wait(self):
        """Waits for its end; a signal is a negative number."""
        if self.returncode is None:
            self.returncode = int(self._status.readline())
            self._status.close()
        return self.returncode

    def poll(self):
        """Returns `returncode`, None while it runs."""
        if self.returncode is None:
            if not select.select([self._status], [], [], 0)[0]:
                return None
        return self.wait()

    def send_signal(self, number):
        """Sends a signal, unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def communicate(self, timeout):
        """Returns what it printed; kills it after so many seconds."""
        timer = threading.Timer(timeout, self.send_signal, [signal.SIGKILL])
        timer.start()
        with self.stdout:
            printed = self.stdout.read()
        self.wait()
        timer.cancel()
        return printed, None


def start(script, words, folder, environment):
    """Starts a script with words in a folder: a Forked."""
    out, printed = os.pipe()
    state, status = os.pipe()
    request = [str(script), list(map(str, words)), str(folder), environment]
    data = json.dumps(request).encode()
    try:
        descriptors = [printed, status]
        socket.send_fds(server(), [len(data).to_bytes(8, "big")], descriptors)
        server().sendall(data)
    finally:
        os.close(printed)
        os.close(status)
    status = os.fdopen(state)
    return Forked(int(status.readline()), os.fdopen(out), status)


@cache
def server():
    """Starts the server of this process; returns the socket to it."""
    ours, theirs = socket.socketpair()
    root = str(Path(__file__).parents[1])
    paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    environment |= {"PYTHONPATH": os.pathsep.join(paths)}
    command = [sys.executable, __file__, str(theirs.fileno())]
    process = subprocess.Popen(
        command,
        env={**os.environ, **environment},
        pass_fds=[theirs.fileno()],
        stdin=subprocess.DEVNULL,
    )
    theirs.close()

    atexit.register(stop, process, ours, os.getpid())
    return ours


def stop(process, sock, owner):
    """Ends the server, unless in a fork of the process that started it."""
    if os.getpid() == owner:
        sock.shutdown(socket.SHUT_RDWR)  # forks may have it open, too
        process.wait()


def describe_once():
    """Lets pip list what is installed once, not for each of hundreds of runs."""
    from speechbrain.utils import logger

    logger.get_environment_description = cache(
        logger.get_environment_description
    )
    return logger.get_environment_description


def import_all(root):
    """Imports what recipes import, and what they do not need at once."""
    import matplotlib.figure  # noqa: F401
    import torch.distributed.run  # noqa: F401

    sys.path.insert(0, f"{root}/recipes")
    for name in RECIPES:
        __import__(name)
    sys.path.pop(0)
    describe_once()()
    gc.freeze()  # collections would copy the pages that processes share


def reap():
    """Waits for the children that have ended."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def serve(sock):
    """Forks for every request; returns it in the process that has to do it."""
    while True:
        size, descriptors, *_ = socket.recv_fds(sock, 8, 2)
        reap()
        if not size:
            sys.exit()
        data = b""
        while len(data) < int.from_bytes(size, "big"):
            data += sock.recv(1 << 16)
        if not os.fork():  # keeps the one that works, and tells how it ends
            sock.close()
            printed, status = descriptors
            if not (pid := os.fork()):
                os.close(status)
                os.dup2(printed, 1)
                os.dup2(printed, 2)
                os.close(printed)
                return json.loads(data)
            os.close(printed)
            os.write(status, f"{pid}\n".encode())
            code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            os.write(status, f"{code}\n".encode())
            os._exit(0)
        for descriptor in descriptors:
            os.close(descriptor)


if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).parents[1])  # not this folder
    import_all(sys.path[0])
    script, words, folder, environment = serve(
        socket.socket(fileno=int(sys.argv[1]))
    )
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = [script, *words]
    sys.path[0] = str(Path(script).parent)
    runpy.run_path(script, run_name="__main__")
    # the end of an interpreter would visit all that was imported
    atexit._run_exitfuncs()
    sys.stdout.flush()
    os._exit(0)
