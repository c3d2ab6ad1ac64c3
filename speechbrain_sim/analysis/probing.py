"""What a linear layer reads of each layer: the paper's table 1."""

import numpy as np

from speechbrain_sim.analysis.folds import (
    fold_tables,
    over_folds,
    read_folds,
)
from speechbrain_sim.analysis.probes import compare
from speechbrain_sim.analysis.study import Tool
from speechbrain_sim.report import style
from speechbrain_sim.report.page import Figure, Gap, Table
from speechbrain_sim.report.tables import number, percent, with_interval


def read_probed(folders, baseline):
    """Reads the probes of all systems, and compares them in pairs.

    Arguments
    ---------
    folders : dict
        Label -> system -> output folders of recipes/probe.py, one per seed; or
        fold -> such folders.
    baseline : str or None
        The system that the others are compared with, if any.

    Returns
    -------
    dict
        Label -> system -> what `read_system` returns, ready for json: the
        numbers of test `examples` and `recordings` instead of the outcomes, and
        `above_<baseline>`, from `speechbrain_sim.analysis.probes.compare`. Of
        folds see `speechbrain_sim.analysis.folds`.
    """
    probed = {}
    for label, systems in folders.items():
        joined = {n: read_folds(paths, label) for n, paths in systems.items()}
        for name, found in over_folds(joined).items():
            joined[name]["over_folds"] = found
        for name, system in joined.items():
            if baseline is not None and name != baseline:
                difference = compare(system, joined[baseline])
                system[f"above_{baseline}"] = difference
        for system in joined.values():
            total = system.pop("outcomes")["total"]
            system |= {"examples": int(total.sum()), "recordings": len(total)}
        probed[label] = joined
    return probed


def plot_probes(systems, label, path):
    """Plots the accuracy in each layer: system -> scores with `layers`."""
    layers = _layers(systems)
    width = 0.8 / len(systems)
    with style.drawing(path) as (figure, axes):
        panel = axes[0, 0]
        for i, (name, system) in enumerate(systems.items()):
            look = style.look(name, i)
            for layer, score in system["layers"].items():
                beside = [s for s in systems.values() if layer in s["layers"]]
                shift = beside.index(system) - (len(beside) - 1) / 2
                y, ends = style.error_bars([score], "accuracy", 100)
                x = layers.index(layer) + shift * width
                bar = {"yerr": ends, "error_kw": {"elinewidth": 1}}
                panel.bar(x, y, width, **bar, **look)
                look["label"] = None  # once in the legend
        chance = 100 * score["chance"]
        panel.axhline(chance, color="black", linestyle=":", linewidth=1)
        at = panel.get_yaxis_transform()
        panel.text(1, chance, " chance", va="center", transform=at)
        panel.set_xticks(range(len(layers)), layers)
        panel.set_ylabel("test accuracy (%)")
        panel.set_title(f"{label}: linear probes, 95 % intervals", loc="left")
        panel.legend(ncols=3, loc="upper left", bbox_to_anchor=(0, -0.1))


class Probing(Tool):
    """Section of the linear probes on every layer."""

    key = "probes"
    title = "What a linear layer reads"
    sentence = "Higher is better; compare with chance, and in the same layer."
    inside = False

    def items(self, found, study):
        """Returns a table and a figure of each label."""
        items = []
        for label, systems in study.probed.items():
            stem = style.figure_stem("probe", label)
            plot_probes(systems, label, study.folder / stem)
            figure = Figure(
                f"Accuracy, {label}",
                "95 % intervals over recordings (and encoders); chance dotted.",
                stem,
                "Bars of each system, grouped by layer.",
            )
            items += [_table(label, systems, study)]
            items += [*fold_tables(label, systems), figure]
        return items or [Gap("No probes", "There are no --labels to probe.")]


def _layers(systems):
    return list(dict.fromkeys(n for s in systems.values() for n in s["layers"]))


def _table(label, systems, study):
    """Accuracy in each layer, and the difference to the baseline, if any."""
    published = study.published.get("probes", {}).get(label, {})
    rows, every, versus = [], [], study.baseline
    for name, system in systems.items():
        scores = system["layers"]
        row = {"": name} | dict.fromkeys(_layers(systems), "")
        row |= {layer: percent(score) for layer, score in scores.items()}
        row["best layer"] = system["best_layer"]
        if versus is not None:
            above = system.get(f"above_{versus}"), 100, 1, "+"
            row[f"best − {versus}"] = with_interval(*above, key="difference")
        controls = [score["control"] for score in scores.values()]
        every += controls
        mean = np.mean([control["accuracy"] for control in controls])
        row["shuffled labels"] = number(100 * mean, 1)
        if published:
            row["paper"] = str(published.get(name, ""))
        rows.append(row)
    chance = 100 * next(iter(scores.values()))["chance"]
    passed, below = (sum(c[key] for c in every) for key in ("passed", "below"))
    visible = 100 * max(control["visible"] for control in every)
    remarks = [f"{n}: {r}" for n, s in systems.items() for r in s["remarks"]]
    chosen = [f"{n} {text}" for n, s in systems.items() if (text := _chosen(s))]
    if chosen:
        text = "; ".join(chosen)
        remarks += [f"Strength of L2 and units, chosen alike: {text}."]
    remarks += [study.published["note"]] if published else []
    return Table.of(
        label.capitalize(),
        f"{system['classes']} classes, chance (always the most frequent class "
        f"of the training part, or any at random) {chance:.1f} %, "
        f"{system['examples']} test examples from {system['recordings']} "
        "recordings. Test accuracy in percent: mean ± deviation over seeds of "
        "encoders (or of the paper's probes), if several, 95 % interval "
        f"{_over(systems)}. The best layer is chosen on the validation part; "
        "difference of the best layers: paired interval. Features are means of "
        "posteriors. "
        f"Shuffled labels: mean over layers; at chance: {passed} of "
        f"{len(every)}, where {visible:.1f} points more would have been seen; "
        f"below the probes by as much: {below}. {' '.join(remarks)}".strip(),
        rows,
    )


def _chosen(system):
    """States strength and units, and in which folds, where these differ."""
    best = system["layers"][system["best_layer"]]
    folds, choices = system.get("folds", {}), best["choices"]
    if not folds or len(choices) < 2:
        return " or ".join(choices)
    names = {c: [n for n in folds if c in folds[n]["choices"]] for c in choices}
    return ", ".join(f"{c} ({', '.join(names[c])})" for c in choices)


def _over(systems):
    """States what intervals are over: one encoder is not every encoder."""
    counts = {n: s["different_encoders"] for n, s in systems.items()}
    every = ", ".join(f"{name} {n}" for name, n in counts.items())
    of = "this encoder"
    for name, system in systems.items():
        if folds := system.get("folds"):  # each has encoders of its own
            of = f"the encoders of all folds ({every})"
            counts[name] = max(fold["encoders"] for fold in folds.values())
    several = [f"{name} ({n})" for name, n in counts.items() if n > 1]
    over = f"over test recordings (bootstrap), for {of}"
    if not several:
        return over
    names = ", ".join(several)
    return f"{over}; of {names} over encoders and recordings (Student's)"
