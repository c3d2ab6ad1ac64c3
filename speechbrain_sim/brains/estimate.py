"""Time, memory and disk of a run, extrapolated from its first steps."""

import sys
import time
from datetime import timedelta
from typing import NamedTuple

import torch

#: the first ones are slower: workers start, memory is allocated
SKIPPED, MEASURED = 5, 15
#: checkpoints on disk at once: two that are kept, one that is being written
CHECKPOINTS = 3


class Estimate(NamedTuple):
    """Expected cost of a run.

    Seconds of a training step, of those of an epoch, and of all that are left,
    without validation; bytes of peak memory so far (the GPU's, or else the
    process's), and of the checkpoints that exist at once.
    """

    step: float
    epoch: float
    left: float
    memory: int | None
    disk: int

    def __str__(self):
        epoch, left = (timedelta(seconds=round(x)) for x in self[1:3])
        memory = f"{self.memory / 1e9:.2f} GB" if self.memory else "unknown"
        return (
            f"Expected from {MEASURED} steps of {self.step:.3g} s, without "
            f"validation: {epoch} per epoch, {left} left in all (hours:minutes:"
            f"seconds); peak memory so far {memory}; checkpoints take up to "
            f"{self.disk / 1e9:.2f} GB of disk"
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
        self.laps, self.last = [], None

    def begin(self):
        """Starts an epoch: the time before it belongs to no step."""
        self.last = None

    def lap(self):
        """Ends a step; returns the mean step, once, and else None."""
        last, self.last = self.last, time.perf_counter()
        if last is None or len(self.laps) == SKIPPED + MEASURED:
            return None
        self.laps.append(self.last - last)
        done = len(self.laps) == SKIPPED + MEASURED
        return sum(self.laps[SKIPPED:]) / MEASURED if done else None


def peak_memory(device):
    """Returns the peak memory of the GPU, or process, in bytes, if known."""
    if torch.device(device).type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        from resource import RUSAGE_SELF, getrusage
    except ImportError:  # Windows
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * getrusage(RUSAGE_SELF).ru_maxrss


def checkpoint_bytes(modules, optimizers):
    """Sums the bytes of modules and, after a step, of their optimizers.

    Example
    -------
    >>> checkpoint_bytes([torch.nn.Linear(9, 10)], [])
    400
    """
    tensors = [x for m in modules for x in m.state_dict().values()]
    states = [state for o in optimizers for state in o.state.values()]
    tensors += [x for s in states for x in s.values() if torch.is_tensor(x)]
    return sum(tensor.nbytes for tensor in tensors)
