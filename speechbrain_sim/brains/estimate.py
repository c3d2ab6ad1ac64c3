"""Time, memory and disk of a run, extrapolated from its first steps."""

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
    """Expected cost of a run.

    `step`, `epoch` and `left` are the seconds of a training step, of those of an
    epoch, and of all that are left, without validation; `memory` the peak so far
    in bytes, of the GPU or else of this process; `disk` the bytes of the
    checkpoints that exist at once.
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
    """Times the steps of a run, without the time between epochs.

    Example
    -------
    >>> watch = Stopwatch()
    >>> watch.begin()
    >>> seconds = [watch.lap() for _ in range(SKIPPED + MEASURED + 2)]
    >>> [i for i, lap in enumerate(seconds) if lap is not None]
    [20]
    """

    def __init__(self):
        self.laps, self.seconds, self.last = 0, 0.0, None

    def begin(self):
        """Starts an epoch: the time before it belongs to no step."""
        self.last = None

    def lap(self):
        """Ends a step; returns the mean step, once, and else None."""
        last, self.last = self.last, time.perf_counter()
        if last is None:
            return None
        self.laps += 1
        if self.laps > SKIPPED:
            self.seconds += self.last - last
        done = self.laps == SKIPPED + MEASURED
        return self.seconds / MEASURED if done else None


def hours(seconds):
    """Formats a duration.

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
    """Returns the peak of the GPU's memory, or of this process's, in bytes.

    None where it is not known.
    """
    if torch.device(device).type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if resource is None:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak * (1 if sys.platform == "darwin" else 1024)


def checkpoint_bytes(modules, optimizers):
    """Sums the bytes of modules and, after a step, of their optimizers.

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
    """Returns the bytes that are free on the disk of a folder."""
    return shutil.disk_usage(folder).free
