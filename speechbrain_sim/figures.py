"""Every figure, in one style; the only file that imports matplotlib."""

import re
from pathlib import Path

import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt  # noqa: E402

#: Okabe and Ito's colours, told apart by colour-blind eyes
COLOURS = [
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#999999",
    "#E69F00",
    "#56B4E9",
    "#CC79A7",
    "#F0E442",
]
STYLE = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.prop_cycle": plt.cycler(color=COLOURS),
    "legend.frameon": False,
    "svg.hashsalt": "speechbrain_sim",
}


def _save(figure, path):
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    for suffix in (".svg", ".png"):
        metadata = {"Date": None} if suffix == ".svg" else None
        figure.savefig(
            path.with_suffix(suffix),
            bbox_inches="tight",
            dpi=150,
            metadata=metadata,
        )
    plt.close(figure)


def plot_probes(systems, label, path):
    """Plots the accuracy of each system in each layer.

    Arguments
    ---------
    systems : dict
        From `speechbrain_sim.report.read_system`, by name.
    label : str
        What was probed.
    path : str or Path
        Where to, without suffix: svg and png.
    """
    layers = list(
        dict.fromkeys(n for s in systems.values() for n in s["layers"])
    )
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(6.4, 3.2))
        width = 0.8 / len(systems)
        for i, (name, system) in enumerate(systems.items()):
            for at, layer in enumerate(layers):
                if layer not in system["layers"]:
                    continue
                score = system["layers"][layer]
                beside = [n for n in systems if layer in systems[n]["layers"]]
                shift = beside.index(name) - (len(beside) - 1) / 2
                mean, ends = score["accuracy"], score["interval"]
                first = layer == next(iter(system["layers"]))
                axes.bar(
                    at + shift * width,
                    100 * mean,
                    width,
                    yerr=[[100 * (mean - ends[0])], [100 * (ends[1] - mean)]],
                    error_kw={"elinewidth": 1},
                    label=name if first else None,
                    color=COLOURS[i % len(COLOURS)],
                )
        chance = 100 * score["chance"]
        axes.axhline(chance, color="black", linestyle=":", linewidth=1)
        axes.text(
            1,
            chance,
            " chance",
            va="center",
            transform=axes.get_yaxis_transform(),
        )
        axes.set_xticks(range(len(layers)), layers)
        axes.set_ylabel("test accuracy (%)")
        axes.set_title(f"{label}: linear probes, 95 % intervals", loc="left")
        axes.legend(ncols=3, loc="upper left", bbox_to_anchor=(0, -0.1))
        _save(figure, path)


def read_train_log(path):
    """Reads SpeechBrain's `train_log.txt`.

    Arguments
    ---------
    path : str or Path
        The log.

    Returns
    -------
    dict of str to list of float
        The numbers of each name over the epochs, e.g. "train module1_nce".
    """
    numbers = {}
    for line in Path(path).read_text(encoding="utf-8").splitlines():
        for name, value in re.findall(r"([\w ]+): ([-+.e\w]+)", line):
            numbers.setdefault(name.strip(), []).append(float(value))
    return numbers


def plot_training(logs, path):
    """Plots the terms of each module's loss over the epochs.

    Arguments
    ---------
    logs : dict of str to str
        `train_log.txt` of each system.
    path : str or Path
        Where to, without suffix: svg and png.
    """
    terms = {
        "nce": "NCE (nats)",
        "kl": "KL (nats per frame)",
        "active_units": "active units",
    }
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(
            len(terms),
            len(logs),
            figsize=(2.9 * len(logs), 5.5),
            sharex="col",
            sharey="row",
            squeeze=False,
        )
        for column, (name, log) in enumerate(logs.items()):
            numbers = read_train_log(log)
            modules = dict.fromkeys(
                re.findall(r"train (\w+)_nce", " ".join(numbers))
            )
            for row, (term, unit) in enumerate(terms.items()):
                for i, module in enumerate(modules):
                    values = numbers.get(f"train {module}_{term}")
                    if values:
                        axes[row, column].plot(
                            numbers["epoch"],
                            values,
                            label=module,
                            marker=".",
                            markersize=3,
                            color=COLOURS[i % len(COLOURS)],
                        )
                axes[row, 0].set_ylabel(unit)
                axes[row, column].set_ylim(bottom=0)
                if f"train module1_{term}" not in numbers:
                    axes[row, column].text(
                        0.5,
                        0.5,
                        "no posterior",
                        ha="center",
                        transform=axes[row, column].transAxes,
                    )
            axes[0, column].set_title(f"{name}, training", loc="left")
            axes[-1, column].set_xlabel("epoch")
        handles, names = axes[0, 0].get_legend_handles_labels()
        figure.legend(handles, names, ncols=4, loc="lower center")
        figure.subplots_adjust(bottom=0.15)
        _save(figure, path)


def draw_modules(path):
    """Draws the architecture: what is trained on what, and where it is cut.

    Arguments
    ---------
    path : str or Path
        Where to, without suffix: svg and png.
    """
    boxes = [
        "module1\n2 conv",
        "module2\n2 conv",
        "module3\n1 conv",
        "context\nGRU",
    ]
    shapes = [
        "samples\n10240",
        "511 × 512",
        "129 × 512",
        "64 × 512",
        "64 × 256",
    ]
    step, arrow = 3.0, {"arrowstyle": "->", "color": "black"}
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(9, 2.6))
        axes.set_axis_off()
        axes.set_xlim(-0.3, 4 * step + 1.5)
        axes.set_ylim(-1.9, 1.2)
        for i, shape in enumerate(shapes):
            x = step * i  # an arrow, and the box it leads to
            axes.annotate("", (x + 1.45, 0), (x, 0), arrowprops=arrow)
            axes.text(x + 0.7, 0.15, shape, ha="center", va="bottom", size=8)
            if i in (1, 2, 3):
                axes.text(
                    x + 0.7, -0.08, "∥", ha="center", va="center", size=14
                )
        for i, text in enumerate(boxes):
            x, colour = step * i + 2.2, COLOURS[i]
            loss = "InfoNCE" if i == 3 else "InfoNCE\n+ β KL(q ‖ N(0, I))"
            axes.text(
                x,
                0,
                text,
                ha="center",
                va="center",
                bbox={
                    "boxstyle": "round,pad=0.5",
                    "facecolor": "white",
                    "edgecolor": colour,
                },
            )
            axes.annotate(
                loss,
                (x, -0.45),
                (x, -1.4),
                ha="center",
                va="center",
                color=colour,
                size=8.5,
                arrowprops={"arrowstyle": "<->", "color": colour},
            )
        axes.text(
            0,
            1.0,
            "∥  no gradient crosses: each module learns from its own loss",
        )
        _save(figure, path)


def plot_pairs(pairs, labels, title, ylabel, path, line=None):
    """Plots two bars beside each other for each of several cases.

    Arguments
    ---------
    pairs : dict of str to (float, float)
        The two heights of each case.
    labels : (str, str)
        What the first bars are, and the second.
    title, ylabel : str
        Heading; what is on the axis, with its unit.
    path : str or Path
        Where to, without suffix: svg and png.
    line : (str, float), optional
        Name and height of a line across.
    """
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(6.4, 3.2))
        for i, label in enumerate(labels):
            places = [at + 0.4 * (i - 0.5) for at in range(len(pairs))]
            bars = axes.bar(
                places, [pair[i] for pair in pairs.values()], 0.38, label=label
            )
            axes.bar_label(bars, fmt="%.2f")
        if line is not None:
            axes.axhline(line[1], color="black", linestyle=":", label=line[0])
        axes.set_xticks(
            range(len(pairs)), [name.replace(", ", "\n") for name in pairs]
        )
        axes.set_ylabel(ylabel)
        axes.set_title(title, loc="left")
        axes.legend(ncols=3, loc="upper left", bbox_to_anchor=(0, -0.25))
        _save(figure, path)


def plot_lines(lines, title, xlabel, ylabel, path):
    """Plots lines with a marker at each measurement.

    Arguments
    ---------
    lines : dict of str to (list of float, list of float)
        Name of each line, its x and its y.
    title, xlabel, ylabel : str
        Heading; what is on the axes, with units.
    path : str or Path
        Where to, without suffix: svg and png.
    """
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(6.4, 3.2))
        for name, (x, y) in lines.items():
            axes.plot(x, y, marker="o", label=name)
        axes.set_ylim(bottom=0)
        axes.set_xticks(x)
        axes.set_xlabel(xlabel)
        axes.set_ylabel(ylabel)
        axes.set_title(title, loc="left")
        axes.legend()
        _save(figure, path)
