"""Stages in processes of their own against one process, one thread each.

Started by torchrun, as `python -m benchmarks.parallel TASK FILE`, this is one of
the ranks, and the first one writes what they measured.
"""

import functools
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import torch
from torch import distributed as dist

from benchmarks.measure import (
    GIVE_BACK,
    KEEP,
    matrix_product,
    memory_row,
    peak_memory,
    resident,
    row,
)
from benchmarks.systems import Ours, make_batch, ready
from benchmarks.training import PAPER, stack
from speechbrain_sim.brains.costs import Cost, balance, ceiling, measure
from speechbrain_sim.brains.stages import StagedBrain
from speechbrain_sim.brains.transport import WINDOW, Chain
from speechbrain_sim.family import build_model

ROOT = Path(__file__).resolve().parent.parent
#: rounds, and steps of a round in one process and in two
ROUNDS, STEPS = 5, 3
#: twelve equal modules whose weights, not their activations, take the memory
WIDE = {**stack(12), "channels": 768}
WIDE |= {"kernel_sizes": [[80, 3]] + [[3]] * 11}
WIDE |= {"strides": [[80, 1]] + [[1]] * 11}
WIDE |= {"paddings": [[0, 1]] + [[1]] * 11}
WIDE_BATCH = 1, 2560
ADAM = functools.partial(torch.optim.Adam, fused=True)


class Rank:
    """One rank and its part of a model, one call per step."""

    def __init__(self, stages, batch, **changes):
        torch.manual_seed(0)
        model, self.batch = build_model("sim", **changes), batch
        self.chain = Chain(stages, timeout=300)
        made = functools.partial(StagedBrain, chain=self.chain)
        self.brain = ready(made, model.modules, None, encoder=model.encoder)

    def __call__(self, steps=1):
        """Some steps, to the end of them on all ranks."""
        for _ in range(steps):
            self.brain.step += 1
            self.brain.fit_batch(self.batch)
        self.chain.finish()


def seconds_of(function, *args):
    """Seconds of a call."""
    begin = time.perf_counter()
    function(*args)
    return time.perf_counter() - begin


def speed(channels):
    """Times steps of one process, while the other waits, then of both.

    The first rank measures what modules cost, too, in each round.
    """
    first, batch = dist.get_rank() == 0, make_batch(*PAPER)
    changes = {"channels": channels}
    modules = build_model("sim", **changes).modules
    costs = []
    if first:
        one = Ours("sim", batch, **changes)
        costs.append(measure(modules, ADAM, *PAPER))
    # a plan as `--stages auto` makes
    names, sizes = list(modules), [None]
    if first:
        sizes = [balance([c.step for c in costs[0].values()], 2)]
    dist.broadcast_object_list(sizes)
    stages = [names[: sizes[0][0]], names[sizes[0][0] :]]
    two, times = Rank(stages, batch, **changes), []
    two()
    for _ in range(ROUNDS):
        if first:
            costs.append(measure(modules, ADAM, *PAPER))
            alone = seconds_of(lambda: [one() for _ in range(STEPS)])
        dist.barrier()
        two.chain.bytes = 0
        both = seconds_of(two, STEPS)
        if first:
            times.append((alone / STEPS, both / STEPS))
    if not first:
        return None
    steps = [[c.step for c in cost.values()] for cost in costs]
    middle = map(median, zip(*steps, strict=True))
    costs = {
        name: cost._replace(step=step)
        for (name, cost), step in zip(costs[0].items(), middle, strict=True)
    }
    sent = two.chain.bytes / STEPS
    return {"times": times, "costs": costs, "sent": sent, "stages": stages}


def memory(channels):
    """Measures what each rank holds of a stack, at its peak, above nothing."""
    wide, batch = {**WIDE, "channels": channels}, make_batch(*WIDE_BATCH)
    modules = [f"module{m}" for m in range(1, 13)]
    share = len(modules) // dist.get_world_size()
    stages = [modules[n : n + share] for n in range(0, 12, share)]
    # what the process itself keeps: code, threads, buffers of products
    Rank(stages, batch, **{**wide, "channels": 8})(2)
    matrix_product()()
    before = resident()
    rank = Rank(stages, batch, **wide)
    rank(2)  # makes the optimizers' state
    peak = peak_memory(rank) + resident() - before
    peaks = rank.chain.collect(peak)
    costs = dist.get_rank() == 0 and dist.get_world_size() == 1
    if costs:
        costs = measure(rank.brain.modules, ADAM, *WIDE_BATCH)
    return {"peaks": peaks, "costs": costs}


def launch(task, ranks, channels):
    """Starts ranks, and returns what the first of them measured."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "measured.json")
        command = [sys.executable, "-m", "torch.distributed.run"]
        command += ["--standalone", f"--nproc-per-node={ranks}"]
        command += ["-m", "benchmarks.parallel", task, str(out), str(channels)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        environment |= GIVE_BACK if task == "memory" else KEEP
        subprocess.run(command, cwd=ROOT, env=environment, check=True)
        return json.loads(out.read_text(encoding="utf-8"))


def simulate(seconds, replicas, steps=400):
    """Returns how many times as fast as one process stages are, simulated.

    Stage i takes `seconds[i]` for a step and has `replicas[i]` processes, which
    take turns; one waits for its input, and while WINDOW results are not yet
    taken. Sending and averaging gradients takes no time.
    """
    begun = [[0.0] * steps for _ in seconds]  # of each stage and step
    ended = [[0.0] * steps for _ in seconds]
    for t in range(steps):
        for i, (cost, of_stage) in enumerate(
            zip(seconds, replicas, strict=True)
        ):
            waits = [ended[i - 1][t]] if i else [0.0]
            if t >= of_stage:
                waits.append(ended[i][t - of_stage])
            held = t - WINDOW * of_stage
            if i + 1 < len(seconds) and held >= 0:
                waits.append(begun[i + 1][held])
            begun[i][t] = max(waits)
            ended[i][t] = begun[i][t] + cost
    return steps * sum(seconds) / max(ended[-1])


def divisions(count, parts):
    """Lists the ways to write a number as an ordered sum of parts, 1 or more."""
    cuts = itertools.combinations(range(1, count), parts - 1)
    return [
        [b - a for a, b in itertools.pairwise((0, *cut, count))] for cut in cuts
    ]


def best_division(seconds, workers, uneven):
    """Returns the fastest two or more stages: their seconds, their replicas.

    `uneven`: whether stages may have different numbers of replicas.
    """
    found = []
    for count in range(2, min(len(seconds), workers) + 1):
        for sizes in divisions(len(seconds), count):
            ends = [0, *itertools.accumulate(sizes)]
            stages = [sum(seconds[a:b]) for a, b in itertools.pairwise(ends)]
            for replicas in divisions(workers, count):
                if uneven or len({*replicas}) == 1:
                    each = zip(stages, replicas, strict=True)
                    slowest = max(x / n for x, n in each)
                    found.append((slowest, -count, stages, replicas))
    return min(found)[2:]


def simulated_rows(costs):
    """Rows of 4 and 8 workers, of which this machine has too few cores."""
    seconds, rows = [c.step for c in costs.values()], []
    for workers, uneven in itertools.product((4, 8), (False, True)):
        stages, replicas = best_division(seconds, workers, uneven)
        speed_up = simulate(stages, replicas)
        kind = "as many of each stage" if not uneven else "uneven (not built)"
        name = f"Simulated: {workers} workers, {kind}, replicas "
        name += " + ".join(map(str, replicas))
        family = "Simulated: 4 and 8 workers, times as fast as one process"
        numbers = sum(seconds) / speed_up, sum(seconds), speed_up
        rows.append(row(family, name, "s", *numbers, ""))
    return rows


def speed_rows(channels):
    """Rows of two stages on two cores, and what `plan` expects of them."""
    found = launch("speed", 2, channels)
    costs = {name: Cost(*cost) for name, cost in found["costs"].items()}
    one, two = map(median, zip(*found["times"], strict=True))
    faster = median(a / b for a, b in found["times"])
    # of the stages that were measured: by now, others may seem better
    most = ceiling(costs, found["stages"])
    parts = " / ".join("+".join(part) for part in found["stages"])
    title = f"SIM 8 × 10,240, {channels} channels, {parts}"
    reach = f"{faster:.2f} of at most {most:.2f} times"
    planned = sum(c.step for c in costs.values()) / most
    plan = "Plan beside measurement"
    last = costs[found["stages"][0][-1]].sent
    rows = [
        row(
            "Two stages on two cores: share of the ceiling",
            f"{title}: {reach}, seconds against one process",
            *("s", two, one, faster / most, "≥ 0.85"),
            costs=found["costs"],
        ),
        row(plan, f"{title}: seconds", "s", two, planned, two / planned, ""),
        row(
            plan,
            f"{title}: bytes of a step",
            *("MB", found["sent"] / 1e6, last / 1e6, found["sent"] / last, ""),
        ),
    ]
    return rows + simulated_rows(costs)


def memory_rows(channels):
    """Rows of a rank of four against a quarter of the whole stack."""
    whole, ranks = (launch("memory", n, channels) for n in (1, 4))
    (of_whole,), of_rank = whole["peaks"], max(ranks["peaks"])
    costs = {name: Cost(*cost) for name, cost in whole["costs"].items()}
    # four stages of three modules: `plan` would balance seconds
    parts = [[*costs.values()][n : n + 3] for n in range(0, 12, 3)]
    planned = max(
        sum(c.weights + c.optimizer for c in part)
        + max(c.gradients + c.activations for c in part)
        for part in parts
    )
    title = f"12 modules of {channels} channels on 4 ranks"
    return [
        memory_row(
            "Memory of a rank of 4: against a quarter of the whole",
            f"{title}: peak of a rank against a quarter of one process",
            of_rank,
            of_whole / 4,
            "≤ 1.1",
            peaks=ranks["peaks"],
        ),
        memory_row(
            "Plan beside measurement",
            f"{title}: memory of a rank",
            of_rank,
            planned,
            "",
        ),
    ]


def parallel(channels=512, wide=WIDE["channels"]):
    """All rows of training in several processes."""
    return speed_rows(channels) + memory_rows(wide)


def main(task, out, channels):
    """Measures as one rank of torchrun."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    found = {"speed": speed, "memory": memory}[task](int(channels))
    if dist.get_rank() == 0:
        Path(out).write_text(json.dumps(found), encoding="utf-8")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
