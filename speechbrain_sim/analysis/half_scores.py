"""How well halves, and the layer itself, do what they were trained for."""

import numpy as np

from speechbrain_sim.analysis.intervals import bootstrap_interval, chance_level
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
            if kind in ("chance", "kl", "kl_per_second"):
                continue
            rows.append({"": name, "of": f"{kind} (%)"})
            rows[-1]["test"] = with_interval(numbers[kind], 100, 1)
            chance = numbers.get("chance")
            rows[-1]["chance"] = number(chance and 100 * chance, 1)
            rows[-1]["KL per frame"] = number(numbers.get("kl"))
            rows[-1]["per second"] = number(numbers.get("kl_per_second"), 0)
    return rows
