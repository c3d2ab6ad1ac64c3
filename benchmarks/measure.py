"""What every benchmark measures with: time, memory, and what is possible.

Figures are ratios of measurements that were taken in turn, in one process: a
machine that others use, too, slows both sides down alike.
"""

import ctypes
import gc
import statistics
import time
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch

#: glibc gives no memory back, so that no step waits for the system to find
#: some: both sides run at the speed of their arithmetic
KEEP = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(1 << 34),
    "MALLOC_TOP_PAD_": str(1 << 28),
}
#: glibc gives every tensor back at once: what is resident is what is alive
GIVE_BACK = {"MALLOC_MMAP_THRESHOLD_": "65536"}

STATUS, REFERENCES = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class Timing(NamedTuple):
    """Seconds of each repetition, by the clock and of all CPUs together."""

    wall: list
    cpu: list


def in_turn(functions, repetitions, warm_up=1):
    """Times functions one after the other, again and again.

    Arguments
    ---------
    functions : dict of str to callable
        What to time.
    repetitions, warm_up : int
        Rounds that count, and rounds before them that do not.

    Returns
    -------
    dict of str to Timing
    """
    timings = {name: Timing([], []) for name in functions}
    for repetition in range(-warm_up, repetitions):
        for name, function in functions.items():
            wall, cpu = time.perf_counter(), time.process_time()
            function()
            wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
            if repetition >= 0:
                timings[name].wall.append(wall)
                timings[name].cpu.append(cpu)
    return timings


def quotient(timings, name, other, clock="wall"):
    """Median over the rounds of name's time by other's."""
    pairs = zip(
        getattr(timings[name], clock),
        getattr(timings[other], clock),
        strict=True,
    )
    return statistics.median(one / two for one, two in pairs)


SIZE = 2048
#: floating point operations of `matrix_product`
PRODUCT_FLOPS = 2 * SIZE**3


def matrix_product():
    """Returns a function that does one large fp32 product, in place."""
    one, two = torch.randn(2, SIZE, SIZE)
    out = torch.empty(SIZE, SIZE)
    return lambda: torch.mm(one, two, out=out)


def _status(key):
    """A line of /proc/self/status in bytes."""
    for line in STATUS.read_text().splitlines():
        if line.startswith(key + ":"):
            return int(line.split()[1]) * 1024
    raise KeyError(key)


def resident():
    """Bytes of resident memory, when freed memory is given back. Linux only."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    return _status("VmRSS")


@contextmanager
def given_back():
    """As `GIVE_BACK`, in a running process: glibc keeps no large tensor.

    Else it keeps some of those that were freed, more or less as it happens.
    """
    mallopt, threshold = ctypes.CDLL(None).mallopt, -3
    mallopt(threshold, 1 << 16)
    yield
    mallopt(threshold, 1 << 25)  # the largest, to which glibc itself moves it


def peak_memory(function):
    """Bytes of resident memory that a call needs beyond what there is.

    Linux only. Freed memory is given back to the system before.
    """
    before = resident()
    REFERENCES.write_text("5")  # the peak starts anew
    function()
    return _status("VmHWM") - before


class SavedTensors(torch.autograd.graph.saved_tensors_hooks):
    """Counts the bytes that graphs hold for their backward, and their peak.

    Arguments
    ---------
    parameters : iterable of torch.Tensor
        What does not count, since the model holds it anyway.

    Example
    -------
    >>> x = torch.ones(1000, requires_grad=True)
    >>> with SavedTensors() as saved:
    ...     x.exp().sum().backward()
    >>> saved.peak
    4000
    """

    def __init__(self, parameters=()):
        self.peak = self.now = 0
        self.holders = {}
        self.ignored = {p.untyped_storage().data_ptr() for p in parameters}
        super().__init__(lambda x: _Held(self, x), lambda held: held.tensor)

    def __enter__(self):
        super().__enter__()
        return self


class _Held:
    """One saved tensor; its storage counts once, however often it is saved."""

    def __init__(self, count, tensor):
        self.count, self.tensor = count, tensor.detach()
        storage = tensor.untyped_storage()
        self.key = storage.data_ptr()
        self.size = 0 if self.key in count.ignored else storage.nbytes()
        holders = count.holders.get(self.key, 0)
        count.holders[self.key] = holders + 1
        if not holders:
            count.now += self.size
            count.peak = max(count.peak, count.now)

    def __del__(self):
        self.count.holders[self.key] -= 1
        if not self.count.holders[self.key]:
            self.count.now -= self.size


def row(family, name, unit, ours, reference, ratio, target, goal=False, **more):
    """One line of the result.

    Arguments
    ---------
    family, name, unit : str
        What was measured, in which case, and the unit of `ours` and
        `reference`.
    ours, reference, ratio : float
        The measurements, and what is compared with the target.
    target : str
        As "≥ 2.0" or "≤ 0.5"; empty where nothing is asked.
    goal : bool
        Wished, not required.

    Returns
    -------
    dict
    """
    met = None
    if target:
        relation, limit = target.split()
        above = relation == "≥"
        met = ratio >= float(limit) if above else ratio <= float(limit)
    return {
        "family": family,
        "name": name,
        "unit": unit,
        "ours": ours,
        "reference": reference,
        "ratio": ratio,
        "target": target,
        "goal": goal,
        "met": met,
        **more,
    }


def time_row(
    family,
    name,
    timings,
    ours,
    reference,
    target,
    faster=True,
    clock="wall",
    **more,
):
    """A row of two timings.

    Arguments
    ---------
    family, name, target :
        See `row`.
    timings : dict of str to Timing
        From `in_turn`.
    ours, reference : str
        Whose times to compare.
    faster : bool
        Whether the ratio is how many times faster ours is, or slower.
    clock : str
        "wall" or "cpu".

    Returns
    -------
    dict
    """
    pair = (reference, ours) if faster else (ours, reference)
    return row(
        family,
        name,
        "s",
        statistics.median(getattr(timings[ours], clock)),
        statistics.median(getattr(timings[reference], clock)),
        quotient(timings, *pair, clock),
        target,
        **more,
    )


def memory_row(family, name, ours, reference, target, **more):
    """A row of two numbers of bytes, shown in MiB; see `row`."""
    return row(
        family,
        name,
        "MiB",
        ours / 2**20,
        reference / 2**20,
        ours / reference,
        target,
        **more,
    )


def floor_row(family, title, timings, name, flops, target, goal=False, **more):
    """A step's time in floors, the time of its products at this machine's rate.

    `timings` are of `in_turn`, with those of `matrix_product` as "product".
    """
    share = flops / PRODUCT_FLOPS
    product = statistics.median(timings["product"].wall)
    floors = quotient(timings, name, "product") / share
    return row(
        f"{family}: {name} in floors",
        f"{title}: {name} in floors",
        "s",
        statistics.median(timings[name].wall),
        share * product,
        floors,
        target,
        goal,
        gflop=flops / 1e9,
        **more,
    )
