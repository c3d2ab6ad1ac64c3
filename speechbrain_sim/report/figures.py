"""Every figure, in one style; the only file that imports matplotlib."""

import io
import re
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt  # noqa: E402
import numpy as np
from matplotlib.colors import LinearSegmentedColormap  # noqa: E402
from PIL import Image

matplotlib.use("agg")


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
        From `speechbrain_sim.analysis.probes.read_system`, by name.
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


def mel_png(mel, low, high):
    """Draws a spectrogram as a small picture: one pixel per number.

    Arguments
    ---------
    mel : numpy.ndarray
        (frames, channels); time goes right, channels go up.
    low, high : float
        What is darkest, and what is brightest.

    Returns
    -------
    bytes
        A PNG file.

    Example
    -------
    >>> mel_png(np.zeros((65, 80)), 0, 1)[1:4]
    b'PNG'
    """
    levels = (255 * (mel - low) / (high - low)).clip(0, 255).round()
    picture = Image.fromarray(levels.astype(np.uint8).T[::-1].copy())
    colours = plt.get_cmap("magma")(np.arange(256), bytes=True)
    picture.putpalette(colours[:, :3].tobytes())
    file = io.BytesIO()
    picture.save(file, "png", optimize=True)
    return file.getvalue()


def _module_panels(systems, width=2.6, height=2.8):
    """One panel per module, side by side: figure and axes by module."""
    modules = list(dict.fromkeys(m for s in systems.values() for m in s))
    figure, axes = plt.subplots(
        1,
        len(modules),
        figsize=(width * len(modules) + 0.6, height),
        sharey=True,
        squeeze=False,
    )
    for panel, module in zip(axes[0], modules, strict=True):
        panel.set_title(module, loc="left")
    return figure, dict(zip(modules, axes[0], strict=True))


def _plot_counts(systems, quantity, unit=None):
    """One panel per module, one line per system over counts of dimensions.

    Counts are divided by `unit(numbers)`, if it is given.
    """
    figure, axes = _module_panels(systems)
    for i, (name, modules) in enumerate(systems.items()):
        for module, found in modules.items():
            of = unit(found) if unit else 1
            rows = [
                (count / of, 100 * value, 100 * low, 100 * high)
                for count, value, (low, high) in zip(
                    found["counts"],
                    found[quantity],
                    found["interval"],
                    strict=True,
                )
                if count > 0  # the axis is logarithmic
            ]
            counts, values, low, high = zip(*rows, strict=True)
            colour, panel = COLOURS[i % len(COLOURS)], axes[module]
            panel.plot(
                counts, values, "o-", markersize=3, label=name, color=colour
            )
            panel.fill_between(
                counts, low, high, color=colour, alpha=0.25, linewidth=0
            )
            panel.set_xscale("log", base=2)
            panel.set_xlabel("dimensions")
            panel.set_ylim(0, max(105, *high, panel.get_ylim()[1]))
    return figure, axes


def _legend_below(figure):
    """One legend for all panels, each name once."""
    entries = {}
    for panel in figure.axes:
        for handle, name in zip(
            *panel.get_legend_handles_labels(), strict=True
        ):
            entries.setdefault(name, handle)
    figure.tight_layout()
    figure.legend(
        entries.values(),
        entries.keys(),
        ncols=min(len(entries), 5),
        loc="upper center",
        bbox_to_anchor=(0.5, 0.02),
    )


def plot_delta(systems, path, paper=None):
    """Plots the relative error delta in each module, over N / D.

    Arguments
    ---------
    systems : dict
        By name, then by module, from `speechbrain_sim.analysis.delta.delta`,
        with `dimensions`.
    path : str or Path
        Where to, without suffix: svg and png.
    paper : dict, optional
        Published values to stand beside: by system, then by module, `counts`,
        `delta` and `dimensions`.
    """

    def dimensions(found):
        return found["dimensions"]

    with plt.rc_context(STYLE):
        figure, axes = _plot_counts(systems, "delta", dimensions)
        for name, modules in (paper or {}).items():
            colour = COLOURS[list(systems).index(name) % len(COLOURS)]
            for module, found in modules.items():
                if module not in axes:
                    continue
                axes[module].plot(
                    [n / found["dimensions"] for n in found["counts"]],
                    [100 * value for value in found["delta"]],
                    linestyle="--",
                    linewidth=1,
                    label=f"{name}, paper",
                    color=colour,
                )
        for panel in axes.values():
            low = panel.get_xlim()[0]
            shares = [2**k for k in range(0, 12, 2) if 2.0**-k > low]
            names = ["1", *(f"1/{share}" for share in shares[1:])]
            panel.set_xticks([1 / share for share in shares], names, size=7)
            panel.minorticks_off()
            panel.set_xlabel("share of dimensions, N / D")
        figure.axes[0].set_ylabel("relative error δ (%)")
        _legend_below(figure)
        _save(figure, path)


def plot_top_n(systems, path, chance=None):
    """Plots a probe's accuracy from its n most important dimensions.

    Arguments
    ---------
    systems : dict
        By name, then by module: `counts`, and for each of them `accuracy` and
        its `interval`, as from `speechbrain_sim.analysis.weights`.
    path : str or Path
        Where to, without suffix: svg and png.
    chance : float, optional
        Accuracy of a guess.
    """
    with plt.rc_context(STYLE):
        figure, axes = _plot_counts(systems, "accuracy")
        for panel in axes.values():
            counts = panel.lines[0].get_xdata().astype(int)
            panel.set_xticks(counts, counts, size=7)
            if chance is not None:
                panel.axhline(
                    100 * chance,
                    color="black",
                    linestyle=":",
                    linewidth=1,
                    label="chance",
                )
            panel.set_xlabel("dimensions kept")
        figure.axes[0].set_ylabel("test accuracy (%)")
        _legend_below(figure)
        _save(figure, path)


def plot_weights(systems, path):
    """Plots how the weights of linear probes are distributed in each module.

    Arguments
    ---------
    systems : dict
        By name, then by module, from
        `speechbrain_sim.analysis.weights.concentration`.
    path : str or Path
        Where to, without suffix: svg and png.
    """
    with plt.rc_context(STYLE):
        figure, axes = _module_panels(systems)
        for i, (name, modules) in enumerate(systems.items()):
            for module, found in modules.items():
                axes[module].stairs(
                    found["histogram"]["density"],
                    found["histogram"]["edges"],
                    label=name,
                    color=COLOURS[i % len(COLOURS)],
                )
                axes[module].set_xlabel("weight / largest weight")
        figure.axes[0].set_yscale("log")  # of all panels, which share it
        figure.axes[0].set_ylabel("density")
        _legend_below(figure)
        _save(figure, path)


def plot_shape(systems, path):
    """Plots how values of some dimensions are distributed, against N(0, 1).

    Arguments
    ---------
    systems : dict
        By name, from `speechbrain_sim.analysis.measures.measure_shape`, of one
        layer.
    path : str or Path
        Where to, without suffix: svg and png.
    """
    columns = max(len(found["shown"]) for found in systems.values())
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(
            len(systems),
            columns,
            figsize=(1.7 * columns + 0.6, 1.6 * len(systems) + 0.4),
            squeeze=False,
        )
        for row, (name, found) in zip(axes, systems.items(), strict=True):
            edges = np.array(found["edges"])
            x = np.linspace(edges[0], edges[-1], 200)
            for panel in row[len(found["shown"]) :]:
                panel.set_axis_off()
            for panel, dimension in zip(row, found["shown"], strict=False):
                for i, kind in enumerate(["means", "samples"]):
                    if found[kind] is not None:
                        panel.stairs(
                            found[kind]["density"][dimension],
                            edges,
                            label=kind,
                            fill=i == 0,
                            alpha=0.6 if i == 0 else 1,
                            color=COLOURS[i],
                        )
                normal = np.exp(-(x**2) / 2) / np.sqrt(2 * np.pi)
                panel.plot(x, normal, "k--", linewidth=1, label="N(0, 1)")
                panel.set_title(f"dimension {dimension}", loc="left", size=8)
            row[0].set_ylabel(f"{name}\ndensity")
        for panel in axes[-1]:
            panel.set_xlabel("value")
        _legend_below(figure)
        _save(figure, path)


def plot_smoothness(systems, path):
    """Plots how straight, even and gentle the decoder's answers are.

    Arguments
    ---------
    systems : dict
        By name, then by module: `walks` and `moves`, as summarised by
        `speechbrain_sim.analysis.smoothness`.
    path : str or Path
        Where to, without suffix: svg and png.
    """
    panels = [
        ("walks", "path_ratio", "path length / distance\n(1: straight)"),
        ("walks", "step_ratio", "largest / mean step\n(1: even)"),
        ("moves", "relative_mean", "relative change\nper deviation"),
    ]
    modules = list(dict.fromkeys(m for s in systems.values() for m in s))
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(1, len(panels), figsize=(8.4, 2.6))
        for panel, (kind, quantity, label) in zip(axes, panels, strict=True):
            for i, (name, found) in enumerate(systems.items()):
                shift = 0.5 * ((i + 0.5) / len(systems) - 0.5)
                points = [found[m][kind][quantity] for m in found]
                value = [point["value"] for point in points]
                low, high = zip(*(p["interval"] for p in points), strict=True)
                panel.errorbar(
                    [modules.index(m) + shift for m in found],
                    value,
                    [np.subtract(value, low), np.subtract(high, value)],
                    fmt="o",
                    markersize=4,
                    elinewidth=1,
                    label=name,
                    color=COLOURS[i % len(COLOURS)],
                )
            panel.set_xticks(range(len(modules)), modules)
            panel.set_xlim(-0.5, len(modules) - 0.5)
            panel.set_ylabel(label)
            if kind == "walks":
                panel.axhline(1, color="black", linestyle=":", linewidth=1)
            else:
                panel.set_ylim(bottom=0)
        _legend_below(figure)
        _save(figure, path)


def plot_factors(layers, title, path):
    """Plots how the codes of each layer lay out known factors.

    Arguments
    ---------
    layers : dict
        By layer, then by system or control, from
        `speechbrain_sim.analysis.factors.factor_scores`.
    title : str
        Heading: which factors.
    path : str or Path
        Where to, without suffix: svg and png.
    """
    measures = {
        "disentanglement": "disentangled",
        "completeness": "complete",
        "informativeness": "informative\n(R², 95 % interval)",
        "mig": "MIG",
        "sap_share": "SAP\n(of its maximum)",
    }
    codes = list(dict.fromkeys(n for scores in layers.values() for n in scores))
    width = 0.8 / len(codes)
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(
            len(layers),
            figsize=(7, 1.5 * len(layers) + 0.8),
            sharex=True,
            sharey=True,
            squeeze=False,
        )
        for panel, (layer, scores) in zip(
            axes[:, 0], layers.items(), strict=True
        ):
            for i, name in enumerate(n for n in codes if n in scores):
                at = np.arange(len(measures)) + width * (
                    i - (len(scores) - 1) / 2
                )
                colour = codes.index(name)
                panel.bar(
                    at,
                    [scores[name][measure] for measure in measures],
                    0.9 * width,
                    label=name,
                    color=COLOURS[colour % len(COLOURS)],
                    hatch="///" if colour >= len(COLOURS) else None,
                )
                ends = scores[name]["interval"]
                panel.vlines(at[2], *ends, color="black", linewidth=1)
            panel.set_title(layer, loc="left", size=9)
            panel.tick_params(axis="x", length=0)
        panel.set_ylim(top=1)
        panel.set_xticks(range(len(measures)), measures.values())
        figure.suptitle(title, x=0.02, ha="left")
        _legend_below(figure)
        _save(figure, path)


def plot_attribution(rows, title, path, hop=160, sample_rate=16000):
    """Plots where in a waveform the attributions of some numbers lie.

    Arguments
    ---------
    rows : dict of str to (array, array)
        Of each system and target, the samples of a clip, and its attribution's
        `speechbrain_sim.analysis.attribution.envelope`. The hop of full
        colour is the largest of its row.
    title : str
        Heading: which clip.
    path : str or Path
        Where to, without suffix: svg and png.
    hop : int
        Samples of each number of the envelope.
    sample_rate : int
        Samples per second.
    """
    shade = LinearSegmentedColormap.from_list("shade", ["white", COLOURS[4]])
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(
            len(rows),
            figsize=(7, 1.1 * len(rows) + 0.6),
            sharex=True,
            squeeze=False,
        )
        for panel, (name, (wav, envelope)) in zip(
            axes[:, 0], rows.items(), strict=True
        ):
            seconds = np.arange(len(wav)) / sample_rate
            edges = np.arange(len(envelope) + 1) * hop / sample_rate
            edges[-1] = len(wav) / sample_rate
            loudest = max(np.abs(wav).max(), 1e-9)
            mesh = panel.pcolormesh(
                edges,
                [-loudest, loudest],
                [np.divide(envelope, max(np.max(envelope), 1e-30))],
                cmap=shade,
                vmin=0,
                vmax=1,
                rasterized=True,
            )
            panel.plot(seconds, wav, color="black", linewidth=0.4)
            panel.set_xlim(0, edges[-1])
            panel.set_yticks([])
            panel.spines["left"].set_visible(False)
            panel.set_title(name, loc="left", size=8)
        panel.set_xlabel("time (s)")
        figure.suptitle(title, x=0.02, ha="left")
        figure.tight_layout()
        figure.colorbar(
            mesh,
            ax=axes[:, 0],
            label="|attribution| / largest",
            ticks=[0, 1],
            aspect=40,
            pad=0.02,
        )
        _save(figure, path)


def plot_trade_off(layers, label, path):
    """Plots a probe's accuracy against delta, a point for each variant.

    Arguments
    ---------
    layers : dict
        By layer, then by variant: a score with `accuracy` and `interval`, and a
        delta with `value` and `interval`. A layer may have no variant.
    label : str
        What was probed.
    path : str or Path
        Where to, without suffix: svg and png.
    """
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(
            1,
            len(layers),
            figsize=(3 * len(layers), 3.4),
            sharex=True,
            sharey=True,
            squeeze=False,
        )
        for panel, (layer, variants) in zip(
            axes[0], layers.items(), strict=True
        ):
            for i, (name, (score, delta)) in enumerate(variants.items()):
                x, y = 100 * delta["value"], 100 * score["accuracy"]
                ends = [
                    [[abs(100 * end - center)] for end in found["interval"]]
                    for found, center in ((delta, x), (score, y))
                ]
                panel.errorbar(
                    x,
                    y,
                    xerr=ends[0],
                    yerr=ends[1],
                    marker="osD^v<>pXP*h"[i % 12],
                    color=COLOURS[i % len(COLOURS)],
                    linewidth=0.8,
                    label=name,
                )
            panel.set_title(layer, loc="left")
            panel.set_xlabel("δ at N/D = 1/8 (%)")
        axes[0, 0].set_ylabel(f"{label} accuracy (%)")
        _legend_below(figure)
        _save(figure, path)
