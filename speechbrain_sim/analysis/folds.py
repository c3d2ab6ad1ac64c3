"""Folds: an option of the corpus, such as a speaker left out, takes each value.

All systems are trained, probed and tested once per value, on other recordings.
Intervals over recordings are for these encoders; those over folds, which are
few but have test parts of their own, are Student's.
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
            f"an option, two or more values, and --inside []."
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
        of each, its `accuracy` and `interval`.
    """
    if not isinstance(folders, dict):
        return read_system(folders, label)
    systems = {n: read_system(paths, label) for n, paths in folders.items()}
    folds = {}
    for name, system in systems.items():
        best, hits = system["best_layer"], system["outcomes"]["hits"]
        score = system["layers"][CHOSEN] = system["layers"][best]
        hits[CHOSEN] = hits[best]
        keys = "accuracy", "interval"
        folds[name] = {"best_layer": best} | {k: score[k] for k in keys}
    joined, every = dict(system), list(systems.values())
    outcomes = [system["outcomes"] for system in every]
    total, ids = (
        np.concatenate([o[k] for o in outcomes]) for k in ("total", "ids")
    )
    hits = {
        layer: np.concatenate([o["hits"][layer] for o in outcomes], axis=1)
        for layer in system["layers"]
    }
    joined["layers"] = {
        layer: _pool([s["layers"][layer] for s in every])
        | {"accuracy": float(rows.mean(0).sum() / total.sum())}
        | {"interval": intervals.encoders_interval(total, rows)}
        for layer, rows in hits.items()
    }
    return joined | {
        "best_layer": CHOSEN,
        "encoders": [encoder for s in every for encoder in s["encoders"]],
        "remarks": [
            f"{n}, {r}" for n, s in systems.items() for r in s["remarks"]
        ],
        "outcomes": {"hits": hits, "total": total, "ids": ids},
        "folds": folds,
    }


def _pool(scores):
    """Joins what folds state of a layer, besides the accuracy."""
    seeds = np.mean([score["per_seed"] for score in scores], axis=0)
    controls = [score["control"] for score in scores]
    control = {k: all(c[k] for c in controls) for k in ("passed", "below")}
    control["accuracy"] = float(np.mean([c["accuracy"] for c in controls]))
    control["visible"] = max(c["visible"] for c in controls)
    mean = {
        k: float(np.mean([s[k] for s in scores]))
        for k in ("chance", "valid_accuracy")
    }
    deviation = float(seeds.std(ddof=1)) if len(seeds) > 1 else None
    return {
        **scores[0],
        **mean,
        "per_seed": seeds.tolist(),
        "deviation": deviation,
        "control": control,
    }


def over_folds(systems):
    """Compares systems fold by fold, from `read_folds`; {} without folds.

    Returns
    -------
    dict
        System -> `mean` accuracy, and its difference to each other system,
        each with Student's interval over the folds.
    """
    found = {
        name: np.array([fold["accuracy"] for fold in system["folds"].values()])
        for name, system in systems.items()
        if "folds" in system
    }
    return {
        name: {"mean": intervals.student(scores)}
        | {
            n: intervals.student(scores - o)
            for n, o in found.items()
            if n != name
        }
        for name, scores in found.items()
    }


def fold_tables(label, systems):
    """Makes the tables of a label: each fold, and differences over folds."""
    compared, rows, differences = over_folds(systems), [], []
    for name, found in compared.items():
        folds = systems[name]["folds"]
        layers = Counter(fold["best_layer"] for fold in folds.values())
        row = {"": name, "mean": with_interval(found["mean"], 100, 1)}
        for fold, score in folds.items():
            row[fold] = with_interval(score, 100, 1, key="accuracy")
        row["layers"] = ", ".join(
            f"{n} × {layer}" for layer, n in layers.items()
        )
        rows.append(row)
        row = {
            f"− {n}": with_interval(found.get(n), 100, 1, "+") for n in compared
        }
        differences.append({"": name} | row)
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
    tables = (
        (f"{name}, fold by fold", each, rows),
        (
            f"{name}, differences over folds",
            paired,
            differences,
        ),
    )
    return [Table.of(*table) for table in tables if rows]
