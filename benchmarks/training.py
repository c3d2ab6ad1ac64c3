"""Training: speed against the plain way and the floor, memory, growth."""

from statistics import median

from benchmarks.floor import step_flops
from benchmarks.measure import (
    SavedTensors,
    floor_row,
    in_turn,
    matrix_product,
    memory_row,
    peak_memory,
    time_row,
)
from benchmarks.systems import Ours, Plain, make_batch, must_agree

PAPER, LIBRISPEECH = (8, 10240), (8, 20480)
#: model, shape, batch norm, least speed-up, goal in floors
STEPS = [
    ("sim", PAPER, False, "≥ 2.0", "≤ 1.3"),
    ("gim", PAPER, False, "≥ 2.0", "≤ 1.3"),
    ("sim", LIBRISPEECH, True, "≥ 2.2", "≤ 1.4"),
    ("gim", LIBRISPEECH, True, "≥ 2.2", "≤ 1.4"),
]


def _title(model, shape, batch_norm):
    norm = ", batch norm" if batch_norm else ""
    return f"{model.upper()} step {shape[0]} × {shape[1]:,}{norm}"


def speed(regime, repetitions=7):
    """Seconds of a step, ours and the plain one, and the floor."""
    rows = []
    for model, shape, batch_norm, least, goal in STEPS:
        ours = Ours(model, make_batch(*shape), batch_norm=batch_norm)
        plain = Plain(ours)
        timings = in_turn(
            {"product": matrix_product(), "ours": ours, "plain": plain},
            repetitions,
            warm_up=2,
        )
        must_agree(ours, plain)
        title = f"{_title(model, shape, batch_norm)}, {regime}"
        for clock, label in (("wall", "seconds"), ("cpu", "CPU seconds")):
            rows.append(
                time_row(
                    f"Training step, {regime}: times faster than the plain way",
                    f"{title}: {label} against the plain way",
                    timings,
                    "ours",
                    "plain",
                    least,
                    clock=clock,
                )
            )
        flops = step_flops(ours.model.encoder, ours.model.modules, *shape)
        for name, target in (("ours", goal), ("plain", "≤ 2.86")):
            measured = f"Training step, {regime}", title, timings, name
            rows.append(floor_row(*measured, flops, target, name == "ours"))
    return rows


def precision(repetitions=7):
    """What `--precision bf16` brings on this machine."""
    batch = make_batch(*PAPER)
    systems = {
        "fp32": Ours("sim", batch),
        "bf16": Ours("sim", batch, {"precision": "bf16"}),
    }
    timings = in_turn(systems, repetitions, warm_up=2)
    return [
        time_row(
            "Half precision (bf16): times faster than fp32",
            f"{_title('sim', PAPER, False)}, --precision bf16 against fp32",
            timings,
            "bf16",
            "fp32",
            "",
        )
    ]


def memory():
    """Peak memory of a step above the idle model and its optimizer state."""
    rows = []
    for model, shape, batch_norm, _, _ in STEPS:
        ours = Ours(model, make_batch(*shape), batch_norm=batch_norm)
        plain = Plain(ours)
        systems, peaks, saved = {"ours": ours, "plain": plain}, {}, {}
        for step in systems.values():
            step()  # makes the optimizer's state
        for _ in range(3):  # in turn, or they would not agree
            for name, step in systems.items():
                peaks.setdefault(name, []).append(peak_memory(step))
        for name, step in systems.items():
            peaks[name] = median(peaks[name])
            with SavedTensors(step.parameters()) as tensors:
                step()
            saved[name] = tensors.peak
        must_agree(ours, plain)
        for label, of in (("peak memory", peaks), ("saved tensors", saved)):
            rows.append(
                memory_row(
                    f"Training step: {label}, share of the plain way's",
                    f"{_title(model, shape, batch_norm)}: {label}",
                    of["ours"],
                    of["plain"],
                    "≤ 0.5",
                )
            )
    return rows


def checkpointing():
    """What activation checkpointing in module 1 saves, and costs."""
    batch = make_batch(*PAPER)
    systems = {
        "without": Ours("sim", batch),
        "with": Ours("sim", batch, activation_checkpointing=["module1"]),
    }
    timings = in_turn(systems, 5)
    peaks = {
        name: median([peak_memory(step) for _ in range(3)])
        for name, step in systems.items()
    }
    title = f"{_title('sim', PAPER, False)}, module 1 checkpointed"
    return [
        memory_row(
            "Activation checkpointing in module 1: share of the memory",
            f"{title}: peak memory",
            peaks["with"],
            peaks["without"],
            "",
        ),
        time_row(
            "Activation checkpointing in module 1: times slower",
            f"{title}: seconds",
            timings,
            "with",
            "without",
            "",
            faster=False,
        ),
    ]


def stack(modules):
    """Shapes of a stack whose modules all run at 200 Hz."""
    return {
        "context_channels": 0,
        "kernel_sizes": [[10, 16]] + [[3]] * (modules - 1),
        "strides": [[5, 16]] + [[1]] * (modules - 1),
        "paddings": [[2, 0]] + [[1]] * (modules - 1),
    }


def depth():
    """Peak memory of a stack of 3 to 12 modules, greedy and end to end."""
    rows, depths = [], (3, 6, 9, 12)
    for model, target in (("sim", "≤ 1.05"), ("sim_end_to_end", "")):
        peaks, saved = {}, {}
        for modules in depths:
            step = Ours(model, make_batch(*PAPER), **stack(modules))
            step()
            peaks[modules] = median([peak_memory(step) for _ in range(3)])
            with SavedTensors(step.parameters()) as tensors:
                step()
            saved[modules] = tensors.peak
        for label, of in (("peak memory", peaks), ("saved tensors", saved)):
            rows.append(
                memory_row(
                    f"Memory of 12 modules against 3, {model}",
                    f"{model}: {label} of 12 modules at 200 Hz against 3",
                    of[12],
                    of[3],
                    target,
                    modules=list(depths),
                    values=[of[modules] / 2**20 for modules in depths],
                )
            )
    return rows


#: one size doubled: changes of the model, factor of the batch and the length
DOUBLED = {
    "batch": ({}, 2, 1),
    "length": ({}, 1, 2),
    "K": ({"prediction_steps": 20}, 1, 1),
    "N": ({"num_negatives": 20}, 1, 1),
    "channels": ({"channels": 512, "context_channels": 256}, 1, 1),
}


def growth(repetitions=9):
    """How a step's time grows when one size is doubled."""
    small = {"channels": 256, "context_channels": 128}
    systems = {"base": Ours("sim", make_batch(8, 10240), **small)}
    for name, (changes, batches, lengths) in DOUBLED.items():
        batch = make_batch(8 * batches, 10240 * lengths)
        systems[name] = Ours("sim", batch, **{**small, **changes})
    for modules in (3, 6):
        systems[f"{modules} modules"] = Ours(
            "sim", make_batch(8, 10240), **{**small, **stack(modules)}
        )
    timings = in_turn(systems, repetitions, warm_up=2)
    pairs = [(name, "base") for name in DOUBLED] + [("6 modules", "3 modules")]
    return [
        time_row(
            "Time of a step when one size is doubled",
            f"Growth: twice the {name.removeprefix('6 ')}",
            timings,
            name,
            base,
            "≤ 4.0" if name == "channels" else "≤ 2.0",
            faster=False,
        )
        for name, base in pairs
    ]
