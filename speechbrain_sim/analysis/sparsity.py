"""The score sheet of bottlenecks: codes beside controls and beside their layer.

Everything is measured on test recordings, with 95 % intervals over these, for
codes of posterior means. Controls are as wide, and fire as often.
"""

import re
from itertools import chain

import numpy as np
import torch

from speechbrain_sim.analysis.abx import KINDS
from speechbrain_sim.analysis.code_controls import make_control
from speechbrain_sim.analysis.code_scores import DECADES
from speechbrain_sim.analysis.egemaps import group_of
from speechbrain_sim.analysis.score_sheet import (
    ABX,
    Sheet,
    measured,
    read_settings,
)
from speechbrain_sim.analysis.stability import dictionary, stability
from speechbrain_sim.console import Bar
from speechbrain_sim.report import style
from speechbrain_sim.report.page import Figure, Gap, Section, Table
from speechbrain_sim.report.tables import cell, number, with_interval

#: the bottleneck itself, beside its controls
LEARNED = "learned"
#: of a bottleneck's name, what is its seed
SEED = re.compile(r"_s\d+$")
#: counts up whenever these scores change: older ones are stale
VERSION = 3
#: what to know about each table
CAPTIONS = {
    "Reconstruction and sparsity": "Explained variance in percent, mean squared "
    "error in units of the layer, cosine of x and x̂; units that fire in a frame "
    "(L0), ever, in more than 1 and 10 % of frames, and how long without a "
    "break. The untrained control's decoder has the wrong scale: what keeps more "
    "than it proves nothing. Kept: the probability, in percent, that a unit that "
    "fires for the posterior's mean fires for a draw from it.",
    "Linear probes": "Test accuracy in percent of logistic regressions, of frames "
    "that are drawn alike for all: wide codes would gain more from further ones. "
    "z: codes, x̂: what they decode to, x: the layer.",
    "Units and labels": "Mean F1 of the classes in percent, without silence: of "
    "the one unit, and threshold, that fits best in training frames; of least "
    "squares on the k units that go along with the class most; of a probe of "
    "all. The layer's own channels count as two units, one per sign. Always: "
    "predicting each class everywhere. Across: percent of the variance that "
    "lies between the means of classes.",
    "Known factors": "DCI of frames: D is a sum weighted by importance; C grows "
    "with the number of units, also of dead ones: compare controls, or the "
    "effective number of units, exp(H). R² on test frames, mean over factors; "
    "and over those of a group.",
    "What reconstructions keep": "Percent of the loss recovered, (L₀ − L_x̂) / "
    "(L₀ − L_x), L₀ of the layer's mean: L of a probe of the layer, of one of "
    "the layer above, which runs on x̂, and the InfoNCE of that module, with the "
    "matrices it was trained with. The untrained control's decoder has the wrong "
    "scale: what recovers more than it proves nothing.",
    "Phones apart": "ABX error in percent: how often a phone is nearer to "
    "another than to itself, within and across speakers, phones in any context, "
    "frames by angle; 0 is perfect, 50 chance. Of a few recordings, and of the "
    "first seed; intervals over speakers. z: codes, x̂: what they decode to.",
    "Other seeds": "Percent of units with a partner in another seed's dictionary "
    "(cosine above 0.7, one to one), mean cosine of partners, and overlap of the "
    "subspaces of the main directions; beside random dictionaries of the same "
    "covariance.",
}


def layer_of(name):
    """Returns the layer of a bottleneck.

    Example
    -------
    >>> layer_of("module3.sae_k64_s2")
    'module3'
    """
    return name.rpartition(".")[0]


def measure_codes(encoder, bottlenecks, stores, labels, settings=None):
    """Measures bottlenecks of an encoder, beside controls.

    Arguments
    ---------
    encoder : Encoder
        Frozen; a layer above a coded one is run on what is decoded.
    bottlenecks : dict of str to Bottleneck
        By names such as `module3.sae`, `module3.sae_k64`, `module3.sae_s2`:
        what differs in the last number alone are seeds of one.
    stores : dict of str to ActivationStore
        "train", "valid" and "test", with their layers.
    labels : dict of str to (list of str, str)
        Classes and kind of each label.
    settings : dict, optional
        What differs from `speechbrain_sim.analysis.score_sheet.Settings`.

    Returns
    -------
    dict
        Ready for json; where something cannot be measured, there is a `gap`.
        `layers`: layer -> scores of x itself; `codes`: name -> `LEARNED` and
        each control -> scores; `stability`: name without its seed -> see
        `speechbrain_sim.analysis.stability`; `units`: name -> what is known of
        each unit of the bottleneck (lists).
    """
    settings = read_settings(settings or {})
    results = {"layers": {}, "codes": {}, "stability": {}, "units": {}}
    layers, kept, done = {}, {}, set()
    bar = Bar(bottlenecks.items(), "score sheet", unit="code", disable=None)
    for name, code in bar:
        layer = layer_of(name)
        if layer not in layers:
            given = layer, encoder, stores, labels, settings
            layers[layer] = sheet = Sheet(*given)
            results["layers"][layer] = sheet.score_layer()
        sheet = layers[layer]
        group = SEED.sub("", name)
        abx = () if group in done else ABX
        done.add(group)
        scores = results["codes"][name] = {LEARNED: sheet.score(code, abx)}
        fires = scores[LEARNED]["firing"]
        k = max(1, round(fires.get("l0", {"value": 0})["value"]))
        for control in settings.controls:  # seeds share them
            key = group, control, code.num_units, k
            if key not in kept:
                x = torch.from_numpy(sheet.train.x)
                made = make_control(control, code, x, k, settings.seed)
                kept[key] = sheet.score(made, abx[:1])
                _units(kept[key])
            scores[control] = kept[key]
        results["units"][name] = _units(scores[LEARNED])
    _compare_seeds(results, bottlenecks, settings.seed)
    return results


def _units(scores):
    """Moves the lists of units out of scores: name -> list."""
    found = {"density": scores["firing"].pop("density", None)}
    found["duration"] = scores["duration"].pop("units", None)
    found |= scores["posterior"].pop("units", {})
    found |= scores["concept"].pop("units", {})
    return {name: values for name, values in found.items() if values}


def _compare_seeds(results, bottlenecks, seed):
    """Adds the stability of bottlenecks that differ in their seed."""
    groups = {}
    for name in bottlenecks:
        groups.setdefault(SEED.sub("", name), []).append(name)
    for group, names in groups.items():
        density = [results["units"][n].get("density", [0]) for n in names]
        alive = [np.array(values) > 0 for values in density]
        codes = [dictionary(bottlenecks[n]) for n in names]
        found = measured(stability, codes, alive, seed)
        units = found.pop("units", [None] * len(names))
        for name, values in zip(names, units, strict=True):
            if values:
                results["units"][name]["stability"] = values
        results["stability"][group] = found


def tables(results):
    """Makes the tables of `measure_codes`: list of Table."""
    rows = {title: [] for title in CAPTIONS}
    for layer, scores in results["layers"].items():
        for title, cells in _shared(scores).items():
            rows[title].append({"": layer, **cells})
    for name, scores in _each_code(results):
        for title, cells in {**_own(scores), **_shared(scores)}.items():
            if cells:
                rows[title].append({"": name, **cells})
    for name, found in results["stability"].items():
        pair = {name: found, f"{name}, random": found.get("random")}
        for row, one in pair.items() if "gap" not in found else ():
            cells = _cells(one, {"shared (%)": "shared"}, 100, 1)
            cells |= _cells(one, {"cosine": "cosine", "overlap": "overlap"})
            rows["Other seeds"].append({"": row, **cells})
    return [
        Table.of(title, CAPTIONS[title], found)
        for title, found in rows.items()
        if found
    ]


def section(results, folder):
    """Draws figures into the report's folder; returns the Section of a sheet."""
    items, gaps = [], {}
    for label in next(iter(results["layers"].values()))["probes"]:
        stem = style.figure_stem("sheet", label)
        plot_probes(results, label, folder / stem)
        caption = (
            "Test accuracy, 95 % intervals over recordings, mean over seeds; "
            "controls are of the same width and of as many units that fire. "
            "Chance dotted."
        )
        alt = "Lines of accuracy over the number of units that fire, by layer."
        title = f"What a linear probe reads over sparsity, {label}"
        items.append(Figure(title, caption, stem, alt))
    stem = style.figure_stem("sheet", "density")
    plot_density(results, folder / stem)
    caption = "Living units by the share of test frames in which they fire."
    alt = "Histograms of the first code of each layer, and of its controls."
    items.append(Figure("How often units fire", caption, stem, alt))
    items += tables(results)
    each = chain(results["layers"].items(), _each_code(results))
    for name, scores in chain(each, results["stability"].items()):
        for reason in find_gaps(scores):
            gaps.setdefault(reason, name)
    items += [Gap(name, reason) for reason, name in gaps.items()]
    sentence = "A learned code is worth its units where it beats the controls."
    return Section("sheet", "Sparse codes beside controls", sentence, items)


def plot_probes(results, label, path):
    """Plots the accuracy of z and x̂ over L0, beside x and z of controls."""
    layers = _lines(results, label)
    with style.layer_drawing(path, layers) as panels:
        for layer, lines in layers.items():
            panel = panels[layer]
            for i, (line, points) in enumerate(lines.items()):
                x, *y = zip(*points, strict=True)
                y = 100 * np.array(y)
                look = style.look(line, i)
                panel.plot(x, y[0], "o-" if i < 2 else "o--", ms=3, **look)
                shade = {"color": look["color"], "alpha": 0.2, "linewidth": 0}
                panel.fill_between(x, *y[1:], **shade)
            of_x = results["layers"][layer]["probes"][label]
            if "gap" not in of_x:
                panel.axhline(100 * of_x["value"], color="black", label="x")
                panel.axhspan(*np.multiply(100, of_x["interval"]), alpha=0.1)
                panel.axhline(100 * of_x["chance"], color="black", ls=":", lw=1)
            every = [n for points in lines.values() for n, *_ in points]
            ticks = sorted({max(1, round(n)) for n in every})
            panel.set_xscale("log")
            panel.set_xticks(ticks, list(map(str, ticks)))
            panel.minorticks_off()
            panel.set_xlabel("units that fire (L0)")
        next(iter(panels.values())).set_ylabel("test accuracy (%)")


def _lines(results, label):
    """Layer -> line -> L0, accuracy and ends of its interval, means over seeds."""
    layers = {}
    for name, versions in results["codes"].items():
        lines = layers.setdefault(layer_of(name), {})
        for version, scores in versions.items():
            l0 = scores["firing"].get("l0", {}).get("value", 0)
            found = {version: scores["probes"][label]}
            if version == LEARNED:
                found = {"z": found[version], "x̂": scores["decoded"][label]}
            for line, score in found.items():
                if l0 and "gap" not in score:
                    points = lines.setdefault(line, {})
                    point = l0, score["value"], *score["interval"]
                    points.setdefault(SEED.sub("", name), []).append(point)
    return {
        layer: {
            line: sorted(tuple(np.mean(each, 0)) for each in points.values())
            for line, points in lines.items()
        }
        for layer, lines in layers.items()
    }


def plot_density(results, path):
    """Plots how many units fire how often, of the first code of each layer."""
    layers = {}
    for name, versions in results["codes"].items():
        layers.setdefault(layer_of(name), versions)
    with style.layer_drawing(path, layers) as panels:
        for layer, versions in layers.items():
            for i, (version, scores) in enumerate(versions.items()):
                counts = scores["firing"].get("histogram", [])
                edges = DECADES[: len(counts) + 1]
                panels[layer].stairs(counts, edges, **style.look(version, i))
            panels[layer].set_xlabel("share of frames, log10")
        next(iter(panels.values())).set_ylabel("units")


def _each_code(results):
    """Yields a row's name and scores; a control that seeds share, once."""
    seen = set()
    for name, versions in results["codes"].items():
        for version, scores in versions.items():
            row = name
            if version != LEARNED:
                row = f"{SEED.sub('', name)}, {version}"
            if row not in seen:
                yield row, scores
            seen.add(row)


def find_gaps(scores):
    """Yields the reasons of gaps, at any depth."""
    for key, value in scores.items():
        if key == "gap":
            yield value
        elif isinstance(value, dict):
            yield from find_gaps(value)


def _own(scores):
    """Cells of what only codes have: table -> column -> cell."""
    fires, keeps = scores["firing"], scores["reconstruction"]
    percent = {
        "alive (%)": "alive",
        "> 1 % (%)": "above_1",
        "> 10 % (%)": "above_10",
    }
    length = {"duration": scores["duration"]}
    return {
        "Reconstruction and sparsity": {
            **_cells(keeps, {"EV (%)": "explained_variance"}, 100, 1),
            **_cells(keeps, {"MSE": "mse"}, 1, 4),
            **_cells(keeps, {"cosine": "cosine"}, 1, 3),
            **_cells(fires, {"L0": "l0"}, 1, 1),
            **_cells(fires, percent, 100, 1),
            **_cells(length, {"duration (ms)": "duration"}, 1, 0),
            **_cells(scores["posterior"], {"kept (%)": "kept"}, 100, 1),
            **_cells(scores["posterior"], {"sure": "sure"}, 1, 1),
        },
        "What reconstructions keep": _cells(
            scores["recovered"],
            {
                "this layer": "layer",
                "the layer above": "above",
                "its InfoNCE": "nce",
            },
            100,
            1,
        ),
    }


def _shared(scores):
    """Cells of what codes and layers have: table -> column -> cell."""
    probes, decoded = scores["probes"], scores.get("decoded", {})
    concept, factors = scores["concept"], scores["factors"]
    names = {f"k = {k}": k for k in concept.get("few", {})}
    last = {"all": "all", "always": "always", "across": "across"}
    read = _cells(probes, {label: label for label in probes}, 100, 1)
    read |= _cells(decoded, {f"{n}, x̂": n for n in decoded}, 100, 1)
    layout = {"D": "disentanglement", "C": "completeness"}
    groups = {}
    for name, score in factors.get("factors", {}).items():
        groups.setdefault(group_of(name), []).append(score)
    units = [x["dimensions"] for g in groups.values() for x in g]
    found = _cells(factors, layout)
    if "gap" not in factors:
        found["units"] = number(np.mean(units), 1)
        found["R²"] = with_interval(factors, key="informativeness")
        for group, each in groups.items():
            r2 = np.mean([x["informativeness"] for x in each])
            found[f"{group}, R²"] = number(r2)
    apart = {}
    for of, score in scores["abx"].items():
        kinds = {k + ", x̂" * (of != ABX[0]): k for k in KINDS}
        apart |= _cells(score, kinds, 100, 1)
    return {
        "Linear probes": read,
        "Units and labels": {
            **_cells(concept, {"1 unit": "one"}, 100, 1),
            **_cells(concept.get("few", {}), names, 100, 1),
            **_cells(concept, last, 100, 1),
        },
        "Known factors": found,
        "Phones apart": apart,
    }


def _cells(scores, columns, scale=1, digits=2):
    """Formats scores, {column: key}."""
    return {
        column: cell(scores.get(key), scale, digits)
        for column, key in columns.items()
    }
