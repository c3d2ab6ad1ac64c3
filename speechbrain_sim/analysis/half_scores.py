"""How well halves, and the layer itself, do what they were trained for."""

import numpy as np

from speechbrain_sim.analysis.half_pairs import NUMBERS, pair_items, plot_points
from speechbrain_sim.analysis.halves_report import curve_items
from speechbrain_sim.analysis.intervals import bootstrap_interval, chance_level
from speechbrain_sim.analysis.study import Tool
from speechbrain_sim.models.format import BASELINE
from speechbrain_sim.report.page import Figure, Table
from speechbrain_sim.report.tables import number, with_interval

ACCURACY = "accuracy"


def score_halves(found, frame_rate, y=None, train_y=None):
    """Scores what `HalvesBrain.test` found, with intervals over utterances.

    Arguments
    ---------
    found : dict
        Module -> KL per frame, or None, and errors by kind.
    frame_rate : float
        Frames per second.
    y, train_y : numpy.ndarray, optional
        Classes of this part and of the training part, for chance.

    Returns
    -------
    dict
        Module -> numbers: `kl` in nats per frame, `kl_per_second`; "PER", ...,
        each `value` (errors per label) and `interval`; or "accuracy", with
        `chance`.

    Example
    -------
    >>> found = {"text": (2.0, {"PER": ([1, 0], [4, 4])})}
    >>> score_halves(found, 100.0)["text"]["PER"]["value"]
    0.125
    """
    scores = {}
    for name, (kl, errors) in found.items():
        numbers = scores[name] = {}
        if kl is not None:
            numbers |= {"kl": kl, "kl_per_second": kl * frame_rate}
        for kind, (wrong, of) in errors.items():
            if kind == "error":
                kind, wrong = ACCURACY, np.subtract(of, wrong)
                numbers["chance"] = chance_level(train_y, y)
            interval = bootstrap_interval(wrong, of)
            value = float(np.sum(wrong) / np.sum(of))
            numbers[kind] = {"value": value, "interval": list(interval)}
    return scores


def score_rows(scores):
    """Returns the rows of a table, a dict each, of `score_halves`."""
    rows = []
    for name, numbers in scores.items():
        for kind in numbers:
            if kind in NUMBERS:
                continue
            rows.append({"": name, "of": f"{kind} (%)"})
            rows[-1]["test"] = with_interval(numbers[kind], 100, 1)
            chance = numbers.get("chance")
            rows[-1]["chance"] = number(chance and 100 * chance, 1)
            rows[-1]["KL per frame"] = number(numbers.get("kl"))
            rows[-1]["per second"] = number(numbers.get("kl_per_second"), 0)
    return rows


class HalfScores(Tool):
    """Section of the halves of a study's runs of recipes/vib.py."""

    key = "halves"
    title = "Textual and acoustic halves"
    sentence = (
        "What each half does that it was trained for, and at how many nats; "
        "beside it, the same decoder on the layer itself (baseline)."
    )
    inside = False

    def items(self, found, study):
        """Returns a table of all runs, and scores over nats per second."""
        if not study.halves:
            return []
        rows, points = [], {}
        for system, runs in study.halves.items():
            for half, of in runs[0]["halves"].items():
                for kind in sorted(of.keys() - {*NUMBERS}):
                    found = [run["halves"][half] for run in runs]
                    values = [each[kind]["value"] for each in found]
                    score, row = of[kind], {"": system, "half": half}
                    if len(runs) > 1:
                        ends = [min(values), max(values)]
                        score = {"value": np.mean(values), "interval": ends}
                    row["of"] = f"{kind} (%)"
                    row["test"] = with_interval(score, 100, 1)
                    row["nats per second"] = "—"
                    if "kl_per_second" in of:
                        nats = [each["kl_per_second"] for each in found]
                        row["nats per second"] = number(np.mean(nats), 1)
                        each = dict(enumerate(zip(nats, values, strict=True)))
                        panel = points.setdefault(f"{half}, {kind}", {})
                        panel[system] = {"": each}
                    rows.append(row)
        plot_points(points, study.folder / "figures/halves")
        caption = (
            "Of the test part. Brackets: 95 % intervals over utterances; of "
            "several seeds, the least and the largest."
        )
        items = [
            Table.of("Halves and baselines", caption, rows),
            Figure(
                "Scores and nats",
                "Each run's score over the KL of its codes from N(0, 1).",
                "figures/halves",
                "Scores over nats per second, a panel per half and score.",
            ),
            *pair_items(study.halves, study.folder),
        ]
        runs = [
            (system, run["halves"], run["read"])
            for system, several in study.halves.items()
            for run in several
            if "text" in run["halves"]
        ]
        labels = dict.fromkeys(name for run in runs for name in run[1])
        for label in labels:
            own = [run for run in runs if f"{label}_{BASELINE}" in run[1]]
            if own and label != "text":
                items += curve_items(own, label, study.folder)
        return items
