"""Folds: an option of the corpus, such as a speaker left out, takes each value.

All systems are trained, probed and tested once per value, on other recordings.
Intervals over recordings are for these encoders; those over folds, which are
few but have test parts of their own, are Student's. Folds share training data:
their accuracies are not quite independent.
"""

from collections import Counter

import numpy as np

from speechbrain_sim.analysis import intervals
from speechbrain_sim.analysis.probes import read_system
from speechbrain_sim.data.tables import audio_of
from speechbrain_sim.report.page import Table
from speechbrain_sim.report.tables import with_interval

#: stands for the layer that each fold chooses on its validation part
CHOSEN = "chosen"
#: of a system's outcomes, beside its hits
OUTCOMES = "total", "ids"
#: of a layer's scores, what is kept of each fold
SCORES = "accuracy", "interval", "choices"


def check_folds(folds, inside):
    """Raises a ValueError unless an option takes several values, or no folds.

    `folds` has the `option` and its `values`; `inside` lists the systems to look
    inside, and is empty: every fold has others.
    """
    option, values = folds.get("option"), folds.get("values", [])
    several = len(set(map(str, values))) == len(values) > 1
    if folds and (inside or not option or not several):
        raise ValueError(
            f"--folds has the option {option} and the values {values}: it takes "
            f"an option, two or more values, and --inside [], no system."
        )


def check_apart(tests, data_folder):
    """Raises a ValueError if a recording is tested in two folds.

    `tests` maps each fold to the manifests of its test part, whose
    `$data_root` is `data_folder`.
    """
    tested = {}
    for fold, manifests in tests.items():
        for path in manifests:
            for wav in audio_of(path, data_folder).values():
                if (other := tested.setdefault(wav, fold)) != fold:
                    raise ValueError(
                        f"--folds: {other} and {fold} both test {wav}, but "
                        f"folds need test parts of their own."
                    )


def read_folds(folders, label):
    """Reads the probes of a system, and joins those of several folds.

    Arguments
    ---------
    folders : list of str, or dict
        See `read_system`; or fold -> such a list.
    label : str
        The probed label.

    Returns
    -------
    dict
        As `read_system`, over the recordings of all folds. It has the layer
        `CHOSEN`, of each fold its best one, and `folds` with the `best_layer`
        of each, its `accuracy`, `interval` and `choices`, and the number of its
        `encoders`; `different_encoders` counts those of all folds.
    """
    if not isinstance(folders, dict):
        return read_system(folders, label)
    systems = {n: read_system(paths, label) for n, paths in folders.items()}
    folds, remarks = {}, []
    for name, one in systems.items():
        best, hits = one["best_layer"], one["outcomes"]["hits"]
        score = one["layers"][CHOSEN] = one["layers"][best]
        hits[CHOSEN] = hits[best]
        folds[name] = {k: score[k] for k in SCORES}
        folds[name]["best_layer"] = best
        folds[name]["encoders"] = one["different_encoders"]
        remarks += [f"{name}, {remark}" for remark in one["remarks"]]
    every = list(systems.values())
    parts = [one["outcomes"] for one in every]
    total, ids = (np.concatenate([p[k] for p in parts]) for k in OUTCOMES)
    layers, hits = {}, {}
    for layer in every[0]["layers"]:
        rows = np.concatenate([p["hits"][layer] for p in parts], axis=1)
        hits[layer], accuracy = rows, float(rows.mean(0).sum() / total.sum())
        layers[layer] = _pool([one["layers"][layer] for one in every])
        interval = intervals.encoders_interval(total, rows)
        layers[layer] |= {"accuracy": accuracy, "interval": interval}
    joined = {"layers": layers, "folds": folds, "remarks": remarks}
    joined["encoders"] = [
        encoder for one in every for encoder in one["encoders"]
    ]
    joined["different_encoders"] = len(set(map(str, joined["encoders"])))
    joined["outcomes"] = {"hits": hits, "total": total, "ids": ids}
    return {**every[0], **joined, "best_layer": CHOSEN}


def _pool(scores):
    """Joins what folds state of a layer, besides the accuracy."""
    keys, pooled = ("per_seed", "chance", "valid_accuracy"), {}
    for key in keys:
        pooled[key] = np.mean([score[key] for score in scores], 0).tolist()
    seeds, controls = pooled["per_seed"], [score["control"] for score in scores]
    pooled["deviation"] = (
        float(np.std(seeds, ddof=1)) if len(seeds) > 1 else None
    )
    pooled["converged"] = all(score["converged"] for score in scores)
    pooled["still_falling"] = any(score["still_falling"] for score in scores)
    pooled["choices"] = sorted({c for s in scores for c in s["choices"]})
    control = {k: all(c[k] for c in controls) for k in ("passed", "below")}
    control["accuracy"] = float(np.mean([c["accuracy"] for c in controls]))
    control["visible"] = max(c["visible"] for c in controls)
    return {**pooled, "control": control}


def over_folds(systems):
    """Compares systems fold by fold, from `read_folds`; {} without folds.

    Returns
    -------
    dict
        System -> `mean` accuracy, and `above_<other>`, the paired difference
        to each other system, with Student's intervals over the folds.
    """
    found, compared = {}, {}
    for name, system in systems.items():
        if folds := system.get("folds", {}).values():
            found[name] = np.array([fold["accuracy"] for fold in folds])
    for name, scores in found.items():
        compared[name] = {"mean": intervals.student(scores)}
        for other in filter(name.__ne__, found):
            difference = intervals.student(scores - found[other])
            compared[name][f"above_{other}"] = difference
    return compared


def fold_tables(label, systems):
    """Makes the tables of a label: each fold, and differences over folds."""
    compared, rows, differences = over_folds(systems), [], []
    for name, found in compared.items():
        folds = systems[name]["folds"]
        row = {"": name, "mean": with_interval(found["mean"], 100, 1)}
        for fold, score in folds.items():
            row[fold] = with_interval(score, 100, 1, key="accuracy")
        layers = Counter(fold["best_layer"] for fold in folds.values())
        row["layers"] = ", ".join(f"{n} × {k}" for k, n in layers.items())
        rows.append(row)
        differences.append({"": name})
        for other in compared:
            above = found.get(f"above_{other}"), 100, 1, "+"
            differences[-1][f"− {other}"] = with_interval(*above)
    if not rows:
        return []
    each = (
        "Test accuracy in percent, of the layer that each fold chooses on its "
        "validation part, 95 % interval over its test recordings. Mean: over "
        "folds, Student's 95 % interval."
    )
    paired = (
        "Row less column in points: mean of the differences in each fold, "
        "Student's 95 % interval over folds."
    )
    name = label.capitalize()
    return [
        Table.of(f"{name}, fold by fold", each, rows),
        Table.of(f"{name}, differences over folds", paired, differences),
    ]
