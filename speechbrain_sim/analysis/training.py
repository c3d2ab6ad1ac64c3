"""Training curves: the terms of each module's loss over the epochs."""

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
        The numbers of each name over the epochs, e.g. "train module1_nce".
    """
    numbers = {}
    for line in Path(path).read_text(encoding="utf-8").splitlines():
        for name, value in re.findall(r"([\w ]+): ([-+.e\w]+)", line):
            numbers.setdefault(name.strip(), []).append(float(value))
    return numbers


def plot_training(logs, path):
    """Plots each module's terms over the epochs: system -> log."""
    size, shared = (2.9 * len(logs), 5.5), {"sharex": "col", "sharey": "row"}
    with style.drawing(path, len(TERMS), len(logs), size, **shared) as drawn:
        figure, axes = drawn
        for column, (name, log) in zip(axes.T, logs.items(), strict=True):
            numbers = read_train_log(log)
            names = re.findall(r"train (\w+)_nce", " ".join(numbers))
            for panel, term in zip(column, TERMS, strict=True):
                curves = {n: numbers.get(f"train {n}_{term}") for n in names}
                for i, (module, values) in enumerate(curves.items()):
                    look = {"color": style.colour(i), "label": module}
                    if values:
                        x = numbers["epoch"]
                        panel.plot(x, values, ".-", markersize=3, **look)
                if not any(curves.values()):
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
                "Means over each epoch of the training set, of every module.",
                "figures/training",
                "NCE, KL and active units over epochs, a column per system.",
            )
        ]
