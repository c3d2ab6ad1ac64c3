"""The section of a report on classes that share dimensions, and its sounds."""

from pathlib import Path

import numpy as np

from speechbrain_sim.analysis.alignment import (
    CLOSED,
    GLOBAL,
    KINDS,
    MIXED,
    OPEN,
    SPECIFIC,
    UNSURE,
    UNUSED,
)
from speechbrain_sim.analysis.alignment_baselines import SHUFFLED
from speechbrain_sim.analysis.alignment_scores import (
    NEW_CLASSES,
    NEW_SPEAKERS,
    score_run,
)
from speechbrain_sim.analysis.alignment_sounds import traversals
from speechbrain_sim.analysis.intervals import Unmeasurable, student
from speechbrain_sim.analysis.sparsity import SEED, find_gaps, layer_of
from speechbrain_sim.report import style
from speechbrain_sim.report.page import (
    Figure,
    Gap,
    Section,
    Table,
)
from speechbrain_sim.report.tables import NOT_MEASURED, cell

#: key and title of the section
HEADING = "alignment", "Dimensions of classes"
#: dimensions of a heat map
SHOWN = 80
#: inches of a square matrix beside which there is no second, so that it is read
WIDE = 4.0
#: column -> path of a score, factor and digits
SCORES = {
    "EV (%)": ("reconstruction", 100, 1),
    "EV of the rarest tenth (%)": ("rare", 100, 1),
    "active": ("active", 1, 1),
    "within (nats)": ("agreement.within", 1, 2),
    "between (nats)": ("agreement.between", 1, 2),
    "within / between": ("agreement.ratio", 1, 3),
    "p": ("agreement.p", 1, 3),
    "probe of γ (%)": ("probes.gate", 100, 1),
    "probe of μ (%)": ("probes.mean", 100, 1),
    "probe of z (%)": ("probes.code", 100, 1),
    "shuffled, γ (%)": ("probes.gate.shuffled", 100, 1),
    "r, all": ("phonetics.tests.all", 1, 2),
}
#: scores that may be below 0; none of them is above 1
SIGNED = "reconstruction", "rare", "phonetics"
#: what alignment changes, and the lines of the curve
CHANGED = "EV (%)", "EV of the rarest tenth (%)", "probe of γ (%)"
CHANGED += "within / between", "r, all"
SCORED, RULE, GAINED, TESTED, NEW, PSEUDO = (
    "Alignment, reconstruction and probes",
    "Global, class-specific and unused dimensions",
    "Alignment less its controls",
    "Class means and distances between classes",
    "Classes and speakers that were not trained on",
    "Classes without labels",
)
CAPTIONS = {
    SCORED: "On test recordings, 95 % intervals over these; of several seeds, of "
    "their mean (Student's), and the largest p. EV: explained variance of the "
    "layer, and that of the tenth of each class that has the farthest neighbours "
    "among training rows. Active: gates above 0.5 in a row. Within, between: "
    "Jensen-Shannon divergence of gates, mean over pairs of rows of one class "
    "and of two; their ratio is 1 if classes do not matter. p: of permuted "
    "classes, a row of a recording and class at most. Probes: logistic "
    "regressions. r: see below.",
    RULE: f"A dimension is used where its gate is above 0.5. Global: in more than "
    f"{100 * OPEN:.0f} % of the rows of every class; specific: in more than "
    f"{100 * OPEN:.0f} % of those of some classes, and less than "
    f"{100 * CLOSED:.0f} % of those of others; unused: in less than "
    f"{100 * CLOSED:.0f} % of those of all; mixed: anything else. Numbers of "
    "dimensions, with 95 % intervals over recordings; unsure: dimensions whose "
    "kind less than 95 % of the draws of recordings agree on.",
    GAINED: "Differences of scores of the same seed to those without alignment, "
    "and to those of shuffled classes and the same λ, and Student's 95 % "
    "intervals over seeds. Better is: a smaller ratio, a larger r, more "
    "explained variance.",
    TESTED: "Mantel tests: does 1 - r of class means go with the distance of "
    "classes? Spearman's correlation and p of permuted classes (of fewer than 8 "
    "classes exact), corrected for all tests of a code by Holm's method (not for "
    "several codes). All: mean over voice, place, manner, height, backness.",
    NEW: "The same scores of test rows of which nothing was trained on.",
    PSEUDO: "Within / between of classes that k-means finds in the layer, as many "
    "as there are classes. These share the information of the true classes, "
    "over the mean entropy, of: ",
}


def group_seeds(results, own=False):
    """Groups names of codes that differ in their seed: dict of str to list.

    `own` leaves out baselines, and codes of other runs.
    """
    groups = {}
    for name in results["codes"]:
        if not (own and "," in name):
            groups.setdefault(SEED.sub("", name), []).append(name)
    return groups


def score_of(results, names, path):
    """Returns a score of several seeds: their mean, of p the largest.

    A dict of `value` and perhaps `interval`; None if one has none.
    """
    found = []
    for name in names:
        score = results["codes"][name]
        for key in path.split("."):
            score = score.get(key, {}) if isinstance(score, dict) else {}
        found.append(score)
    if all(isinstance(score, (int, float)) for score in found):
        return {"value": max(found)}
    if not all(isinstance(x, dict) and "value" in x for x in found):
        return None
    if len(found) == 1:
        return found[0]
    mean = student([score["value"] for score in found], np.inf)
    low, high = mean["interval"]
    kind = path.partition(".")[0]
    least = 0.0 if kind not in SIGNED else -np.inf
    most = 1.0 if kind in (*SIGNED, "probes") else np.inf
    return {**mean, "interval": [max(low, least), min(high, most)]}


def gain_of(results, names, others, path):
    """Returns the mean difference of seeds, with an interval, or None."""
    pairs = [
        [score_of(results, [name], path) for name in pair]
        for pair in zip(names, others, strict=True)
    ]
    if any(score is None for pair in pairs for score in pair):
        return None
    return student([a["value"] - b["value"] for a, b in pairs], np.inf)


def columns_of(results):
    """Returns the tables of scores: title -> column -> path, factor, digits."""
    counts = {k: (f"dimensions.counts.{k}", 1, 0) for k in (*KINDS, UNSURE)}
    found = {SCORED: SCORES, RULE: counts, TESTED: {}, NEW: {}}
    scores = results["codes"].values()
    for name in dict.fromkeys(
        n for one in scores for n in one["phonetics"].get("tests", {})
    ):
        path = f"phonetics.tests.{name}"
        found[TESTED][f"r, {name}"] = path, 1, 2
        found[TESTED][f"p, {name}"] = f"{path}.corrected", 1, 4
    for name in (NEW_CLASSES, NEW_SPEAKERS):
        path = f"held.{name}"
        found[NEW][f"EV, {name} (%)"] = f"{path}.reconstruction", 100, 1
        ratio = f"{path}.agreement.ratio"
        found[NEW][f"within / between, {name}"] = ratio, 1, 3
    found[PSEUDO] = {"within / between": ("pseudo.ratio", 1, 3)}
    found[PSEUDO]["p"] = "pseudo.p", 1, 3
    return found


def tables(results):
    """Makes the tables of `measure_alignment`: list of Table."""
    groups, found = group_seeds(results), []
    for title, columns in columns_of(results).items():
        rows = []
        for group, names in groups.items():
            weight = results["codes"][names[0]]["weight"]
            row = {"": group, "λ": "" if weight is None else f"{weight:g}"}
            for column, (path, *how) in columns.items():
                row[column] = cell(score_of(results, names, path), *how)
            rows.append(row)
        found.append((title, rows))
    rows = []
    for group, names in group_seeds(results, own=True).items():
        for title, others in _references(results, group):
            row = {"": group, "less": title}
            for column in CHANGED:
                path, *how = SCORES[column]
                gain = gain_of(results, names, others, path)
                row[column] = cell(gain, *how, "+")
            rows.append(row)
    captions, of = dict(CAPTIONS), results["layers"].items()
    shared = [f"{100 * one['pseudo']:.0f} % in {n}" for n, one in of]
    captions[PSEUDO] += ", ".join(shared) + "."
    if read := [(n, x["probe"]) for n, x in of if "gap" not in x["probe"]]:
        words = [f"{n} {cell(score, 100, 1)} %" for n, score in read]
        captions[SCORED] += f" Probes of layers: {', '.join(words)}."
    return [
        Table.of(title, captions[title], _filled(rows))
        for title, rows in [*found, (GAINED, rows)]
        if any(len(row) > 2 for row in _filled(rows))
    ]


def _references(results, group):
    """Yields what a code is compared with, seed by seed: title and names."""
    groups, codes = group_seeds(results), results["codes"]
    own = codes[groups[group][0]]["weight"]
    for other, names in groups.items():
        weight = codes[names[0]]["weight"]
        plain = "," not in other and weight == 0
        shuffled = other.endswith(SHUFFLED) and weight == own
        alike = _layer(other) == _layer(group) and other != group
        several = len(names) == len(groups[group]) > 1
        if alike and several and (plain or shuffled):
            yield "λ = 0" if plain else SHUFFLED, names


def _layer(name):
    """The layer of a code, or of a baseline."""
    return layer_of(name.partition(",")[0]) or name.partition(",")[0]


def _filled(rows):
    """Leaves out columns that no row has: gaps say why."""
    empty = {"", NOT_MEASURED}
    kept = {n for row in rows for n, cell in row.items() if cell not in empty}
    return [
        {n: x for n, x in row.items() if not n or n in kept} for row in rows
    ]


def plot_gates(results, name, path):
    """Plots mean gates of classes, dimensions sorted by what they are."""
    found = results["codes"][name]
    phonetics, dimensions = found["phonetics"], found["dimensions"]
    classes = [phonetics["classes"][i] for i in phonetics["order"]]
    means = np.array([dimensions["means"][c] for c in classes])
    kinds = np.array(dimensions["kinds"])
    order = [GLOBAL, SPECIFIC, UNSURE, MIXED, UNUSED]
    rank = np.array([order.index(kind) for kind in kinds])
    at = np.lexsort((-means.max(0), means.argmax(0), rank))[:SHOWN]
    size = 7.0, 1.2 + 0.16 * len(classes)
    with style.drawing(path, size=size) as (figure, axes):
        panel = axes[0, 0]
        how = {"aspect": "auto", "vmin": 0, "vmax": 1, "cmap": "viridis"}
        image = panel.imshow(means[:, at], **how)
        _name_classes(panel, results, classes)
        edges = np.flatnonzero(np.diff(rank[at])) + 1
        panel.vlines(edges - 0.5, -0.5, len(classes) - 0.5, color="white")
        panel.set_xticks([])
        counts = [(k, int((rank[at] == i).sum())) for i, k in enumerate(order)]
        words = ", ".join(f"{n} {kind}" for kind, n in counts if n)
        panel.set_xlabel(f"dimensions: {words}")
        figure.colorbar(image, label="mean γ")


def plot_correlations(results, names, path):
    """Plots correlations of class means, in the order of the first code's."""
    phonetics = {n: results["codes"][n]["phonetics"] for n in names}
    shown = {n: p for n, p in phonetics.items() if "gap" not in p}
    order = next(iter(shown.values()))["order"]
    side = 1.3 + 0.14 * len(order)
    columns = min(len(shown), 1 if side > WIDE else 2)
    rows = -(-len(shown) // columns)
    size = side * columns + 1, (side + 0.4) * rows
    with style.drawing(path, rows, columns, size) as (figure, axes):
        for panel in axes.flat[len(shown) :]:
            panel.axis("off")
        for panel, (name, found) in zip(axes.flat, shown.items(), strict=False):
            r = np.array(found["correlations"])[np.ix_(order, order)]
            how = {"vmin": -1, "vmax": 1, "cmap": "RdBu_r"}
            image = panel.imshow(r, **how)
            classes = [found["classes"][i] for i in order]
            _name_classes(panel, results, classes)
            panel.set_xticks([])
            panel.set_title(name, loc="left", fontsize=7)
        bar = {"ax": axes, "shrink": 0.6 / rows, "pad": 0.01}
        figure.colorbar(image, label="r", **bar)


def _name_classes(panel, results, classes):
    """Writes the names of classes beside their rows."""
    names = [results["names"][c] for c in classes]
    panel.set_yticks(range(len(names)), names, fontsize=7)


def plot_curve(results, path):
    """Plots scores over the weight of the alignment, means over seeds."""
    lines = {}
    for group, names in group_seeds(results, own=True).items():
        weight = results["codes"][names[0]]["weight"]
        lines.setdefault(_layer(group), {})[weight] = names
    with style.layer_drawing(path, lines) as panels:
        for layer, weights in lines.items():
            panel, x = panels[layer], sorted(weights)
            for i, column in enumerate(CHANGED):
                of = SCORES[column][0]
                found = {w: score_of(results, weights[w], of) for w in x}
                found = {w: f for w, f in found.items() if f}
                drawn = [
                    {"interval": [f["value"]] * 2, **f} for f in found.values()
                ]
                if drawn:
                    y, ends = style.error_bars(drawn, scale=100)
                    look = style.look(column.removesuffix(" (%)"), i)
                    panel.errorbar([*found], y, ends, fmt="o-", ms=3, **look)
            panel.set_xscale("symlog", linthresh=0.1)
            panel.set_xticks(x, [f"{w:g}" for w in x])
            panel.set_xlabel("λ of the alignment")
        next(iter(panels.values())).set_ylabel("percent")


def section(results, folder, sounds=()):
    """Draws figures into the report's folder; returns the Section.

    Arguments
    ---------
    results : dict
        From `measure_alignment`.
    folder : Path
        Of the report.
    sounds : list of Explorer or Gap
        From `traversals`.
    """
    items, groups = [], group_seeds(results)
    for layer in results["layers"]:
        of = [names[0] for g, names in groups.items() if _layer(g) == layer]
        items += _figures(results, of, folder, layer)
    if len({results["codes"][n]["weight"] for n in groups if "," not in n}) > 1:
        stem = style.figure_stem("alignment", "curve")
        plot_curve(results, folder / stem)
        caption = "Scores over λ, with 95 % intervals: of r, and of within / "
        caption += "between, 100 times."
        alt = "Lines of scores over the weight of the alignment, by layer."
        title = "What alignment gives and costs"
        items.append(Figure(title, caption, stem, alt))
    items += [*tables(results), *sounds]
    reasons = {}
    for name, scores in results["codes"].items():
        for reason in find_gaps(scores):
            reasons.setdefault(reason, name)
    items += [Gap(name, reason) for reason, name in reasons.items()]
    sentence = (
        f"Classes of {results['label']}: which dimensions all share, which are "
        f"of some alone, and whether alignment does more than the baselines."
    )
    return Section(*HEADING, sentence, items)


def _figures(results, names, folder, layer):
    """Draws gates and correlations of a layer's codes; returns Figures."""
    found, scores = [], results["codes"]
    measured = [n for n in names if "gap" not in scores[n]["phonetics"]]
    if names[0] in measured and "gap" not in scores[names[0]]["dimensions"]:
        stem = style.figure_stem("alignment", "gates", layer)
        plot_gates(results, names[0], folder / stem)
        caption = (
            f"Mean γ of each class in test rows, of {names[0]}; classes in "
        )
        caption += "the order of their clusters, dimensions by the rule."
        alt = "A heat map, classes by dimensions."
        found.append(Figure(f"Gates of classes, {layer}", caption, stem, alt))
    if measured:
        stem = style.figure_stem("alignment", "correlations", layer)
        plot_correlations(results, measured, folder / stem)
        caption = "Pearson's correlation of class means of γ, in the order of "
        caption += "hierarchical clusters (average linkage) of the first."
        alt = "Square matrices of correlations between classes, one per code."
        title = f"Which classes use the same dimensions, {layer}"
        found.append(Figure(title, caption, stem, alt))
    return found


def report_run(folder, model, stores, data, beside=(), **aligned):
    """Scores a run, and returns its Section: see `score_run` and `section`.

    `data` are the manifest of the test part, and the folder of its audio.
    """
    try:
        results = score_run(folder, model, stores, beside, **aligned)
    except Unmeasurable as error:
        return Section(*HEADING, "", [Gap("Scores", str(error))])
    first = next(iter(group_seeds(results, own=True)))
    known = aligned["kind"], aligned["classes"]
    sounds = traversals(model, first, results, stores["test"], *known, *data)
    return section(results, Path(folder), sounds)
