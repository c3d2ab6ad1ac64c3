"""Training curves: the terms of each module's loss over the epochs."""

import math
import re
from pathlib import Path

from speechbrain_sim.analysis.study import Tool
from speechbrain_sim.report import style
from speechbrain_sim.report.page import Figure

TERMS = {
    "nce": "NCE (nats)",
    "kl": "KL (nats per frame)",
    "active_units": "active units",
}


def read_train_log(path):
    """Reads SpeechBrain's `train_log.txt`.

    Arguments
    ---------
    path : str or Path
        The log.

    Returns
    -------
    dict of str to list of float
        The numbers of each name over the epochs, e.g. "train module1_nce"; NaN
        in those that have none, as of modules that train one after another.
    """
    numbers, lines = {}, Path(path).read_text(encoding="utf-8").splitlines()
    for epoch, line in enumerate(lines):
        for name, value in re.findall(r"([\w ]+): ([-+.e\w]+)", line):
            values = numbers.setdefault(name.strip(), [math.nan] * len(lines))
            values[epoch] = float(value)
    return numbers


def curves(numbers, term):
    """Finds one term's curves: module, or layer of a module -> numbers.

    Where one module holds all layers, its stats are named after both.

    Example
    -------
    >>> log = {"train encoder_nce": [5.0], "train encoder_module1_kl": [2.0]}
    >>> curves(log, "nce"), curves(log, "kl")
    ({'encoder': [5.0]}, {'module1': [2.0]})
    """
    found = {}
    for name, values in numbers.items():
        if match := re.fullmatch(rf"train (?:encoder_)?(\w+)_{term}", name):
            found[match[1]] = values
    return found


def plot_training(logs, path):
    """Plots each module's or layer's terms over epochs: system -> log."""
    logs = {name: read_train_log(log) for name, log in logs.items()}
    found = [curves(numbers, t) for numbers in logs.values() for t in TERMS]
    names = list(dict.fromkeys(name for shown in found for name in shown))
    size, shared = (2.9 * len(logs), 5.5), {"sharex": "col", "sharey": "row"}
    with style.drawing(path, len(TERMS), len(logs), size, **shared) as drawn:
        figure, axes = drawn
        for column, (name, numbers) in zip(axes.T, logs.items(), strict=True):
            for panel, term in zip(column, TERMS, strict=True):
                shown = curves(numbers, term)
                for layer, values in shown.items():
                    look = {"color": style.colour(names.index(layer))}
                    look |= {"label": layer, "markersize": 3}
                    panel.plot(numbers["epoch"], values, ".-", **look)
                if term == "kl" and not shown:
                    at = {"ha": "center", "transform": panel.transAxes}
                    panel.text(0.5, 0.5, "no posterior", **at)
                panel.set_ylim(bottom=0)
            column[0].set_title(f"{name}, training", loc="left")
            column[-1].set_xlabel("epoch")
        for panel, unit in zip(axes[:, 0], TERMS.values(), strict=True):
            panel.set_ylabel(unit)
        style.legend_below(figure)


class Training(Tool):
    """Section of the training curves; empty if nothing was trained."""

    key = "training"
    title = "Training"
    sentence = "A module whose NCE stays at chance has learned nothing."
    inside = False

    def items(self, found, study):
        """Returns the figure of all systems."""
        if not study.logs:
            return []
        plot_training(study.logs, study.folder / "figures/training")
        return [
            Figure(
                "Training curves",
                "Means over each epoch of training, of every module or layer.",
                "figures/training",
                "NCE, KL and active units over epochs, a column per system.",
            )
        ]
