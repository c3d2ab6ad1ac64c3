"""What a run will take, measured on its first steps."""

import shutil
import sys
import time
from typing import NamedTuple

import torch

try:
    import resource
except ImportError:  # Windows
    resource = None

#: the first ones are slower: workers start, memory is allocated
SKIPPED, MEASURED = 5, 15
#: checkpoints on disk at once: two that are kept, one that is being written
CHECKPOINTS = 3


class Estimate(NamedTuple):
    """What a run will take.

    Arguments
    ---------
    step, epoch, left : float
        Seconds of a training step, of the training steps of an epoch, and of
        all that are left; validation is not counted.
    memory : int or None
        Bytes at the peak so far: of the GPU, or else of this process.
    disk : int
        Bytes of the checkpoints that are there at once.
    """

    step: float
    epoch: float
    left: float
    memory: int | None
    disk: int

    def __str__(self):
        memory = f"{self.memory / 1e9:.2f} GB" if self.memory else "unknown"
        return (
            f"Expected from {MEASURED} steps of {self.step:.3g} s, without "
            f"validation: {hours(self.epoch)} per epoch, {hours(self.left)} "
            f"left in all; peak memory so far {memory}; checkpoints take up "
            f"to {self.disk / 1e9:.2f} GB of disk"
        )


class Stopwatch:
    """Times the steps of a run, without what lies between epochs.

    Example
    -------
    >>> watch = Stopwatch()
    >>> watch.begin()
    >>> seconds = [watch.lap() for _ in range(SKIPPED + MEASURED + 2)]
    >>> [i for i, found in enumerate(seconds) if found is not None]
    [20]
    """

    def __init__(self):
        self.laps, self.seconds, self.last = 0, 0.0, None

    def begin(self):
        """An epoch begins: what came before it belongs to no step."""
        self.last = None

    def lap(self):
        """A step ends. Returns the mean step, once; None at other times."""
        now = time.perf_counter()
        last, self.last = self.last, now
        if last is None:
            return None
        self.laps += 1
        if self.laps > SKIPPED:
            self.seconds += now - last
        return (
            self.seconds / MEASURED if self.laps == SKIPPED + MEASURED else None
        )


def hours(seconds):
    """Writes a duration.

    Example
    -------
    >>> [hours(s) for s in (7, 400, 40000, 4000000)]
    ['7 s', '7 min', '11.1 h', '46.3 days']
    """
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    if seconds < 48 * 3600:
        return f"{seconds / 3600:.1f} h"
    return f"{seconds / 86400:.1f} days"


def peak_memory(device):
    """Peak of the GPU's memory in bytes, or of this process's; None if unknown.

    Arguments
    ---------
    device : str
        Where the run is.
    """
    if torch.device(device).type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if resource is None:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak * (1 if sys.platform == "darwin" else 1024)


def checkpoint_bytes(modules, optimizers):
    """Bytes of the tensors in a checkpoint.

    Arguments
    ---------
    modules : iterable of nn.Module
        What is trained.
    optimizers : iterable of torch.optim.Optimizer
        After a step, so that they have their state.

    Returns
    -------
    int

    Example
    -------
    >>> checkpoint_bytes([torch.nn.Linear(9, 10)], [])
    400
    """
    tensors = [x for m in modules for x in m.state_dict().values()]
    for optimizer in optimizers:
        for state in optimizer.state.values():
            tensors += filter(torch.is_tensor, state.values())
    return sum(tensor.nbytes for tensor in tensors)


def free_disk(folder):
    """Bytes that are free where a folder is."""
    return shutil.disk_usage(folder).free
