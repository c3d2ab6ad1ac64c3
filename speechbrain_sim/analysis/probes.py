"""Scores of probes: every number with its uncertainty."""

from pathlib import Path

import numpy as np
from speechbrain.utils.logger import get_logger

from speechbrain_sim.activations import ActivationStore
from speechbrain_sim.analysis import intervals
from speechbrain_sim.data.batches import classes_of, make_dataset
from speechbrain_sim.data.labels import FRAMES
from speechbrain_sim.files import (
    read_arrays,
    read_json,
    write_arrays,
    write_json,
)
from speechbrain_sim.report.tables import markdown_table, number, percent

logger = get_logger(__name__)

#: recordings that a test needs, and below which its intervals are rough
NEEDED, FEW = 3, 20


def check_examples(manifests, data_folder, label, kind, controls):
    """Checks, before any work, that a label can be probed; returns its classes.

    Arguments
    ---------
    manifests : dict of str to str
        "train", "valid" and "test": csv files.
    data_folder, label, kind :
        See `speechbrain_sim.data.batches.make_dataset`.
    controls : int
        How many are wanted.

    Raises
    ------
    ValueError
        If training or test part have fewer than two classes, an utterance has
        a class that the training part lacks (frames may: they count as
        errors), the test part has fewer than `NEEDED` labelled recordings, or
        there are too few controls.
    """
    classes = classes_of(manifests["train"], data_folder, label, kind)
    found, recordings = {}, set()
    for part, path in manifests.items():
        dataset = make_dataset(path, data_folder, None, label, classes, kind)
        found[part] = set()
        for name in dataset.data_ids:
            row = dataset.data[name]
            cell = row[label].split() if kind == FRAMES else [row[label]]
            found[part].update(cell)
            if part == "test":
                recordings.add(row.get("recording", name))
        if part != "valid" and len(found[part]) < 2:
            raise ValueError(
                f"{path} has one {label}, {min(found[part])}: a probe needs two "
                f"or more classes to tell apart."
            )
    if len(recordings) < NEEDED:
        raise ValueError(
            f"{manifests['test']} has {len(recordings)} labelled recordings: a "
            f"test needs {NEEDED} or more ({FEW} for a good interval)."
        )
    intervals.check_controls(controls, len(classes), kind == FRAMES)
    return classes


def score_probes(
    valid_predictions, valid, predictions, test, train_y, seeds, notes=None
):
    """Scores the probes of every layer.

    Arguments
    ---------
    valid_predictions : dict of str to torch.Tensor
        Of each layer, by probes that were trained without the validation part,
        (seeds, examples).
    valid, test : dict of str to Examples
        The two parts, of each layer.
    predictions : dict of str to torch.Tensor
        Of each layer on the test part, (probes, examples); the first `seeds`
        probes are real, the others controls.
    train_y : numpy.ndarray
        The classes that the tested probes were trained on.
    seeds : int
        Number of real probes.
    notes : dict of str to dict, optional
        More on each layer: whether its probe has converged, ...

    Returns
    -------
    layers, outcomes : (dict, dict)
        Scores of each layer, ready for json; and, for paired comparisons, the
        hits and totals of each test utterance.
    """
    layers, outcomes, classes = {}, {}, 1 + int(train_y.max())
    for layer, (_, y, utterance, ids) in test.items():
        predicted = predictions[layer].numpy()
        correct = predicted[:seeds] == y
        right = valid_predictions[layer].numpy() == valid[layer].y
        hits, total = intervals.per_utterance(correct, utterance)
        outcomes.update({layer: hits, "total": total, "ids": np.array(ids)})
        control = intervals.control_interval(predicted[seeds:], y, classes)
        score = layers[layer] = {
            **_over_seeds(correct.mean(1)),
            "interval": intervals.bootstrap_interval(hits, total),
            "valid_accuracy": float(right.mean()),
            "chance": intervals.chance_level(train_y, y),
            **(notes or {}).get(layer, {}),
            "control": control,
        }
        above = score["accuracy"] - control["accuracy"]
        control["below"] = above >= control["visible"]
    return layers, outcomes


def _over_seeds(accuracy):
    """Mean and standard deviation, if any, of the accuracies of probes."""
    several = len(accuracy) > 1
    return {
        "accuracy": float(accuracy.mean()),
        "deviation": float(accuracy.std(ddof=1)) if several else None,
        "per_seed": accuracy.tolist(),
    }


def remarks(layers, recordings):
    """Lists what to know about scores of so many test recordings."""
    falling = [n for n, s in layers.items() if s.get("still_falling")]
    stopped = [n for n, s in layers.items() if not s.get("converged", True)]
    weak = [n for n, s in layers.items() if not s["control"].get("below", True)]
    few = [str(recordings)] * (recordings < FEW)
    found = {
        "The training loss still falls, more --number_of_epochs or a larger "
        "--lr read more": falling,
        "Not converged, as --max_passes or float32 ended the search": stopped,
        "No better than shuffled labels": weak,
        f"Intervals of fewer than {FEW} recordings are too narrow": few,
    }
    return [f"{text}: {', '.join(of)}." for text, of in found.items() if of]


def best_layer(layers):
    """Returns the layer with the best validation accuracy."""
    return max(layers, key=lambda layer: layers[layer]["valid_accuracy"])


def write_probe_results(folder, scores, **about):
    """Writes `probe_<label>.json`, `.md` and `.npz`, and logs the rows.

    Arguments
    ---------
    folder : str
        Where to.
    scores : (dict, dict)
        From `score_probes`.
    **about : json values
        `label`, `kind`, `classes`, `encoder`, `settings`, ...

    Raises
    ------
    RuntimeError
        If shuffled-label controls are better or worse than chance; the results
        are written nevertheless, and not taken for done.
    """
    layers, outcomes = scores
    stem, best = Path(folder) / f"probe_{about['label']}", best_layer(layers)
    result = {**about, "best_layer": best, "sampled": False, "layers": layers}
    result["remarks"] = remarks(layers, len(outcomes["total"]))
    write_arrays(Path(f"{stem}.npz"), **outcomes)
    header = [about["label"], "test accuracy (%)", "chance", "shuffled labels"]
    rows = []
    for layer, score in layers.items():
        name = f"{layer} (best on valid)" if layer == best else layer
        others = score["chance"], score["control"]["accuracy"]
        cells = [number(100 * accuracy, 1) for accuracy in others]
        rows.append([name, percent(score), *cells])
    lines = [markdown_table(header, rows), *result["remarks"]]
    text = "\n\n".join(lines) + "\n"
    Path(f"{stem}.md").write_text(text, encoding="utf-8")
    write_json(Path(f"{stem}.json"), result)
    logger.info("Results in %s.json:\n%s", stem, text)
    for remark in result["remarks"]:
        logger.warning("%s: %s", about["label"], remark)
    failed = [n for n, s in layers.items() if not s["control"]["passed"]]
    if failed:
        raise RuntimeError(
            f"Probes on shuffled labels are above chance for "
            f"{', '.join(failed)} (see 'control' in {stem}.json): labels reach "
            f"the features, or examples are few. The accuracies mean nothing."
        )


def is_written(folder, label, **about):
    """Returns whether `write_probe_results` has written the same before.

    Any part of what was written may be given; True only if its controls passed.
    """
    path = Path(folder) / f"probe_{label}.json"
    if not path.exists():
        return False
    found = read_json(path)
    same = all(found.get(name) == value for name, value in about.items())
    passed = all(s["control"]["passed"] for s in found["layers"].values())
    if same and passed:
        logger.info("%s has these results already; delete it to redo.", path)
    return same and passed


def read_system(folders, label):
    """Joins the probe results of one system.

    Arguments
    ---------
    folders : list of str
        Output folders of `recipes/probe.py`; several if the system was trained
        (or, random, drawn) with several seeds.
    label : str
        The probed label.

    Returns
    -------
    dict
        As in `probe_<label>.json`, over all encoder and probe seeds, with
        `outcomes` for paired comparisons.
    """
    stems = [Path(folder) / f"probe_{label}" for folder in folders]
    results = [read_json(Path(f"{stem}.json")) for stem in stems]
    outcomes = [read_arrays(Path(f"{stem}.npz")) for stem in stems]
    for other in outcomes[1:]:
        check_paired(outcomes[0], other)
    joined = {**results[0], "encoders": [r["encoder"] for r in results]}
    del joined["encoder"]
    names = np.array([str(encoder) for encoder in joined["encoders"]])
    total, ids, hits = outcomes[0]["total"], outcomes[0]["ids"], {}
    for layer, score in joined["layers"].items():
        same = [result["layers"][layer] for result in results]
        controls = [s["control"] for s in same]
        accuracy = float(np.mean([c["accuracy"] for c in controls]))
        control = {"accuracy": accuracy}
        control["visible"] = max(c.get("visible", 1.0) for c in controls)
        for key in ("passed", "below"):
            control[key] = all(c.get(key, False) for c in controls)
        valid = np.mean([s["valid_accuracy"] for s in same])
        each = np.stack([o[layer] for o in outcomes])
        # (encoders, recordings): probes of one encoder do not make it two
        hits[layer] = np.stack(
            [np.mean(each[names == n], 0) for n in np.unique(names)]
        )
        score |= _over_seeds(np.concatenate([s["per_seed"] for s in same]))
        score |= {
            "interval": intervals.encoders_interval(total, hits[layer]),
            "valid_accuracy": float(valid),
            "still_falling": any(s.get("still_falling") for s in same),
            "converged": all(s.get("converged", True) for s in same),
            "choices": sorted({_choice(s) for s in same} - {None}),
            "control": control,
        }
    joined["different_encoders"] = len(set(names))
    joined["remarks"] = remarks(joined["layers"], len(total))
    outcomes = {"hits": hits, "total": total, "ids": ids}
    best = best_layer(joined["layers"])
    return joined | {"best_layer": best, "outcomes": outcomes}


def _choice(score):
    """States the strength and units that were chosen; None if none were."""
    if "strength" not in score:
        return None
    units = "standardized" if score["standardize"] else "raw"
    return f"{score['strength']:g} {units}"


def read_examples(folder, label, part, layers=None):
    """Reopens what probes were trained, chosen or tested on.

    Of a `part` ("train", "valid" or "test") of an output folder of
    `recipes/probe.py`: `Examples` of each layer, not standardized.
    """
    path = Path(folder) / f"probe_{label}.json"
    found = read_json(path)
    stores, kind = Path(folder, found["activations"]), found["kind"]
    label = found.get("column", label)
    classes = classes_of(stores / "train/manifest.csv", None, label, kind)
    store = ActivationStore.open(stores / part)
    return store.examples(label, classes, kind, layers)


def check_paired(one, other):
    """Raises a ValueError if two systems were tested on different data."""
    for name in ("ids", "total"):
        if not np.array_equal(one[name], other[name]):
            remedy = "probe both with the same manifests"
            raise ValueError(f"Systems differ in test utterances: {remedy}.")


def compare(system, baseline):
    """Compares the best layers of two systems, from `read_system`.

    Returns the `difference` of accuracies, its paired 95 % `interval`, and
    whether the systems' own intervals are `apart`. The utterances must be the
    same: else a ValueError.
    """
    check_paired(system["outcomes"], baseline["outcomes"])
    pair = system, baseline
    ours, theirs = (s["layers"][s["best_layer"]] for s in pair)
    hits = [s["outcomes"]["hits"][s["best_layer"]] for s in pair]
    total = system["outcomes"]["total"]
    return {
        "difference": ours["accuracy"] - theirs["accuracy"],
        "interval": intervals.encoders_interval(total, *hits),
        "apart": bool(ours["interval"][0] > theirs["interval"][1]),
    }
