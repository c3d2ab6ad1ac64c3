"""The section of a report on the two halves of a layer."""

from pathlib import Path

import numpy as np

from speechbrain_sim.analysis.half_probes import DRAWN, WHOLE
from speechbrain_sim.analysis.half_settings import LINEAR
from speechbrain_sim.analysis.halves import OTHERS
from speechbrain_sim.models.format import BASELINE
from speechbrain_sim.report import style
from speechbrain_sim.report.page import (
    Explorer,
    Figure,
    Gap,
    Section,
    Stop,
    Table,
)
from speechbrain_sim.report.tables import (
    cell,
    number,
    percent,
    with_interval,
)

#: classes beyond which a map has no legend
LEGEND = 8
#: what it means where controls are above chance
FAILED = (
    "Probes on shuffled labels are above chance: labels reach the features, or "
    "examples are few. These accuracies mean nothing."
)
#: and where the solver ended too early
STOPPED = "Not converged: more may be read with more passes (see --reading)."
#: what to know about each table
CAPTIONS = {
    "read": "Test accuracy in percent, with 95 % intervals over recordings, of "
    "probes that are solved: logistic regressions, and networks of one hidden "
    "layer; of attention pooling, trained by a fixed protocol. Labels of "
    "recordings are read from means over unpadded frames, those of frames from "
    "single frames, the same ones for h and its halves. Numbers such as pitch "
    "are quantile bins of the training part. Chance, the largest of a row: what "
    "the same predictions reach in random order. Shuffled labels: the same "
    "probes, which learned "
    "from labels in random order; visible: how many points above chance would "
    "have been seen.",
    "kept": "Percent of what a probe of h reads above chance that a probe of the "
    "half reads, and its 95 % interval over recordings, which are drawn for both "
    "alike. 0: nothing is left; 100: all. At chance: halves whose interval of "
    "the accuracy above chance contains 0. That a half lacks something is "
    "claimed of draws: the KL bounds these, not means.",
    "text": "Errors per symbol in percent of a linear layer that is trained by "
    "CTC. Shuffled texts: the same, which learned from the texts of other "
    "recordings. What is left below: of the errors that h avoids, compared with "
    "the mean of all probes of shuffled texts.",
    "divided": "z_text has learned the texts of the training part of 'text'. "
    "Where it has learned those of test recordings of a label, too (their texts, "
    "not the label), it may keep more of them than of recordings that are new.",
    "cues": "Mean over recordings of the dot product of weights of frames, which "
    "sum to 1, with a cue, over what equal weights (the mean of all shifts in "
    "time) reach: 1 is no agreement.",
}


def tables(found):
    """Makes the tables of `speechbrain_sim.analysis.halves.measure`."""
    read, kept, texts, gaps = [], [], [], {}
    for kind, labels in found["probes"].items():
        for label, scores in labels.items():
            row = {"": f"{label}, {kind}"}
            if "gap" in scores:
                gaps.setdefault(scores["gap"], row[""])
                continue
            if not all(s["control"]["passed"] for s in scores.values()):
                gaps.setdefault(FAILED, row[""])
            done = all(s.get("converged", True) for s in scores.values())
            if kind == LINEAR and not done:
                gaps.setdefault(STOPPED, row[""])
            cells = {n: percent(score) for n, score in scores.items()}
            most = max(s["chance"] for s in scores.values())
            cells["chance"] = number(100 * most, 1)
            for column, key in {
                "shuffled": "accuracy",
                "visible": "visible",
            }.items():
                most = max(s["control"][key] for s in scores.values())
                cells[column] = number(100 * most, 1)
            read.append(row | cells)
            kept.append(row | _kept(scores))
    spoken = dict(found["text"])
    if gap := spoken.pop("gap", None):
        gaps.setdefault(gap, "text, linear CTC")
    for kind, scores in spoken.items():
        for name, score in scores.items():
            cells = {"": f"{kind}, {name}", "errors (%)": score}
            cells["shuffled texts (%)"] = score["control"]
            shown = {n: with_interval(x, 100, 1) for n, x in cells.items() if n}
            texts.append(cells | shown)
        kept.append({"": f"{kind}, linear CTC"} | _kept(scores))
    shown = {
        "What probes read of h and of its halves": (read, "read"),
        "What transcribes h and its halves": (texts, "text"),
        "What is left in each half (%)": (kept, "kept"),
        "How the corpus is divided": (_divided(found["divisions"]), "divided"),
    }
    items = [
        Table.of(title, CAPTIONS[key], rows)
        for title, (rows, key) in shown.items()
        if rows
    ]
    return items + [Gap(name, reason) for reason, name in gaps.items()]


def _divided(divisions):
    """Rows of how the corpus is divided for each label."""
    return [
        {
            "": "text, and all others" if name == OTHERS else name,
            "division": of["how"],
            "z_text has learned": f"{of['learned']} of {of['test']} tested",
        }
        for name, of in divisions.items()
    ]


def _kept(scores):
    """Cells of the shares that halves keep, and which are at chance."""
    cells = {
        name: cell(score["leakage"], 100, 1)
        for name, score in scores.items()
        if name != WHOLE
    }
    of_h = scores[WHOLE]["at_chance"]
    least = [n for n, s in scores.items() if n != WHOLE and s["at_chance"]]
    cells["at chance"] = "h" if of_h else " and ".join(least) or "none"
    return cells


def headline(found, label):
    """Makes the sentence of the section: what a half keeps of the other's task.

    It is of draws of codes, where they are measured: the KL bounds these.
    """
    texts, claims, seen = found["text"], [], []
    texts = {} if "gap" in texts else dict([*texts.items()][:1])
    probes = {k: labels.get(label, {}) for k, labels in found["probes"].items()}
    for half, what, kinds in (
        ("z_text", label, probes),
        (f"z_{label}", "the text", texts),
    ):
        for kind, scores in kinds.items():
            # what does not read its own half cannot show that another lacks it
            drawn = half + DRAWN in scores and not all(
                s["at_chance"] for n, s in scores.items() if n.endswith(DRAWN)
            )
            score = scores.get(half + DRAWN if drawn else half)
            if score is None or "gap" in score["leakage"]:
                continue
            left = with_interval(score["leakage"], 100, 0)
            of = f"{'draws' if drawn else 'means'} of {half}"
            claims.append(f"{of} keep {left} % of {what} ({kind})")
            seen += [] if score["at_chance"] else [half]
    if not claims:
        return "What each half of the layer keeps, beside the layer itself."
    seen = " and ".join(dict.fromkeys(seen))
    verdict = (
        f"So the halves are not disentangled: {seen} is above chance"
        if seen
        else "None is above chance"
    )
    return f"Of what is read of h, {', '.join(claims)}. {verdict}."


def plot_bars(series, path, unit, lines=()):
    """Plots bars in groups: name -> group -> score (`value`, `interval`).

    `unit` names the y axis; `lines` are dotted, heights by group.
    """
    groups = [*dict.fromkeys(n for found in series.values() for n in found)]
    size = max(6.4, 0.3 * len(groups) * (len(series) + 1)), 3.2
    with style.drawing(path, size=size) as (figure, axes):
        panel, width = axes[0, 0], 0.8 / len(series)
        for i, (name, found) in enumerate(series.items()):
            if not found:
                continue
            shift = (i - (len(series) - 1) / 2) * width
            at = [groups.index(group) + shift for group in found]
            y, ends = style.error_bars([*found.values()])
            bar = {"yerr": ends, "error_kw": {"elinewidth": 1}}
            panel.bar(at, y, width, **bar, **style.look(name, i))
        for group, height in dict(lines).items():
            at = groups.index(group)
            panel.hlines(height, at - 0.4, at + 0.4, "black", ":", lw=1)
        panel.set_xticks(range(len(groups)), groups)
        panel.set_ylabel(unit)
        style.legend_below(figure)


def probe_figure(kind, labels, folder):
    """Draws the accuracies of one kind of probes; returns a list of Figure."""
    labels = {n: scores for n, scores in labels.items() if "gap" not in scores}
    if not labels:
        return []
    series, stem = {}, style.figure_stem("halves", kind)
    for label, scores in labels.items():
        for name, score in scores.items():
            ends = [100 * end for end in score["interval"]]
            bar = {"value": 100 * score["accuracy"], "interval": ends}
            series.setdefault(name, {})[label] = bar
    chance = {
        label: 100 * max(score["chance"] for score in scores.values())
        for label, scores in labels.items()
    }
    plot_bars(series, folder / stem, "test accuracy (%)", chance)
    alt = "Bars of accuracy of h and of its halves, in groups of labels."
    caption = "Test accuracy, 95 % intervals; largest chance dotted."
    return [Figure(f"What probes read, {kind}", caption, stem, alt)]


def plot_map(places, labels, path):
    """Plots `map_means`, a row per label: label -> (classes, class of each)."""
    size = 2.8 * len(places) + 1.6, 2.6 * len(labels)
    grid = len(labels), len(places), size
    with style.drawing(path, *grid) as (figure, axes):
        import matplotlib

        wheel = matplotlib.colormaps["turbo"]
        for row, (label, (classes, y)) in zip(
            axes, labels.items(), strict=True
        ):
            few = len(classes) <= LEGEND
            for panel, (half, xy) in zip(row, places.items(), strict=True):
                x = np.array(xy)
                for i, name in enumerate(classes):
                    look = style.look(name, i)
                    if not few:
                        look["color"] = wheel(i / (len(classes) - 1))
                    panel.scatter(*x[np.array(y) == i].T, s=8, **look)
                panel.set_title(f"{half}, by {label}", loc="left", size=8)
                panel.set_xticks([])
                panel.set_yticks([])
            if few:
                place = {"loc": "center left", "bbox_to_anchor": (1, 0.5)}
                row[-1].legend(fontsize=7, **place)
        figure.tight_layout()


def curves_of(runs, label):
    """Makes the panels of curves over runs, of figure 4: over layers.

    Arguments
    ---------
    runs : list of (str, dict, dict)
        Name, such as a layer's; scores of the training, from `score_halves`; and
        from `speechbrain_sim.analysis.halves.measure`. Runs of one name differ
        in their seed: numbers, and ends of intervals, are means.
    label : str
        Of stage 2.

    Returns
    -------
    dict of str to dict of str to dict
        See `plot_layers`: errors of stage 1 and accuracies of stage 2, beside
        the same decoder of h; and what linear probes read of each half.
    """
    panels = {}

    def add(title, line, layer, score, key="value"):
        lines = panels.setdefault(title, {}).setdefault(line, {})
        lines.setdefault(layer, []).append([score[key], *score["interval"]])

    for layer, trained, found in runs:
        kind = next(
            k for k, x in trained["text"].items() if isinstance(x, dict)
        )
        stages = {"text": (kind, 1), label: ("accuracy", 2)}
        for name, (key, stage) in stages.items():
            for half, line in (
                (name, f"z_{name}"),
                (f"{name}_{BASELINE}", WHOLE),
            ):
                title = f"{name}, {key}, stage {stage}"
                add(title, line, layer, trained[half][key])
        scores = next(iter(found["probes"].values()))[label]
        for name, score in scores.items() if "gap" not in scores else ():
            title = f"{label}, by each half"
            add(title, name, layer, score, "accuracy")
    for lines in panels.values():
        for scores in lines.values():
            for layer, numbers in scores.items():
                value, *ends = np.mean(numbers, 0).tolist()
                scores[layer] = {"value": value, "interval": ends}
    return panels


def curve_items(runs, label, folder):
    """Draws curves over runs, such as those of several layers.

    `runs`, `label` as of `curves_of`, `folder` that of the report. Returns a list
    of Figure and Table.
    """
    panels, systems = curves_of(runs, label), dict.fromkeys(r[0] for r in runs)
    stem = style.figure_stem("halves", "curves", label)
    plot_layers(panels, [*systems], Path(folder, stem))
    caption = "Test part, 95 % intervals over recordings, means over seeds."
    alt = "Three panels of curves over runs."
    title = f"Both stages, and what each half holds of {label}"
    items = [Figure(title, caption, stem, alt)]
    for name, lines in panels.items():
        rows = []
        for line, scores in lines.items():
            cells = {n: with_interval(x, 100, 1) for n, x in scores.items()}
            rows.append({"": line} | cells)
        items.append(Table.of(f"{name} (%)", "", rows))
    return items


def plot_layers(panels, layers, path):
    """Plots curves over layers, such as figure 4's three panels.

    Arguments
    ---------
    panels : dict of str to dict of str to dict
        Title -> line -> layer -> score (`value`, `interval`).
    layers : list of str
        In order.
    path : Path
        See `style.drawing`.
    """
    size = 2.9 * len(panels) + 0.4, 3.0
    with style.drawing(path, 1, len(panels), size) as (figure, axes):
        for panel, (title, lines) in zip(axes[0], panels.items(), strict=True):
            for i, (line, scores) in enumerate(lines.items()):
                at = [n for n, layer in enumerate(layers) if layer in scores]
                y, ends = style.error_bars(
                    [scores[layers[n]] for n in at], scale=100
                )
                how = {"yerr": ends, "marker": "o", "ms": 3, "capsize": 2}
                panel.errorbar(at, y, **how, **style.look(line, i))
            panel.set_title(title, loc="left", size=9)
            panel.set_xticks(
                range(len(layers)), layers, rotation=30, ha="right"
            )
        axes[0, 0].set_ylabel("%")
        style.legend_below(figure)


def attribution_items(found, folder, read):
    """Makes the items of `measure_attribution`.

    `read` is utterance -> samples at 16 kHz, for the player.
    """
    ratios = {
        name: {n: s["ratio"] for n, s in cues.items() if "gap" not in s}
        for name, cues in found["cues"].items()
    }
    shown = {
        n: {c: with_interval(x) for c, x in r.items()}
        for n, r in ratios.items()
    }
    rows = [{"": name} | cells for name, cells in shown.items()]
    stem, title = style.figure_stem("halves", "cues"), "What drives the class"
    plot_bars(ratios, folder / stem, "ratio")
    alt = "Bars of each score, in groups of cues."
    worst = number(100 * max(found["gaps"]), 2)
    caption = f"{CAPTIONS['cues']} Gradients miss {worst} % of the difference "
    caption += "that they explain, at most."
    stops = [
        Stop(name, read(name), {n: np.array(x) for n, x in strips.items()})
        for name, strips in found["strips"].items()
    ]
    about = "Weights of the frames, and cues, below the sound: bright is much."
    return [
        Figure(title, caption, stem, alt),
        Table.of(f"{title}, ratios", "", rows),
        Explorer("Where it looks", about, stops),
    ]


def map_figure(found, label, folder):
    """Draws the maps of both halves; returns a Figure, or a Gap."""
    title, stem = "Maps of both halves", style.figure_stem("halves", "map")
    if "gap" in found["map"]:
        return Gap(title, found["map"]["gap"])
    of = found["map"]["classes"]
    others = [n for n in of if n != label]
    others.sort(key=lambda n: (n != "text", len(of[n][0])))
    shown = [n for n in (label, *others[:1]) if n in of]
    if not shown:
        return Gap(title, "No label of whole recordings is read: see --read.")
    plot_map(found["map"]["places"], {n: of[n] for n in shown}, folder / stem)
    caption = "t-SNE of means over unpadded frames; a point is a recording."
    alt = "Points of test recordings, a panel per half, by their classes."
    return Figure(title, caption, stem, alt)


def section(found, folder, label, attribution=None, weights=None, read=None):
    """Draws figures into the report's folder; returns the Section of halves.

    Arguments
    ---------
    found : dict
        From `speechbrain_sim.analysis.halves.measure`.
    folder, label : str or Path, str
        Of the report; the label of stage 2.
    attribution : dict, optional
        From `measure_attribution`, or a `gap`.
    weights : dict, optional
        Of mixed layers: name -> layer -> weight.
    read : callable, optional
        See `attribution_items`.
    """
    folder, items = Path(folder), []
    for kind, labels in found["probes"].items():
        items += probe_figure(kind, labels, folder)
    items += [*tables(found), map_figure(found, label, folder)]
    if weights:
        stem = style.figure_stem("halves", "weights")
        bars = {
            name: {n: {"value": w, "interval": [w, w]} for n, w in of.items()}
            for name, of in weights.items()
        }
        plot_bars(bars, folder / stem, "weight")
        caption = "Softmax weights of the layers that are mixed."
        alt = "Bars of weights, in groups of layers."
        items.append(Figure("Weights of layers", caption, stem, alt))
    if attribution and "gap" in attribution:
        items.append(Gap("What drives the class", attribution["gap"]))
    elif attribution:
        items += attribution_items(attribution, folder, read)
    sentence = headline(found, label)
    return Section("halves", "Textual and acoustic halves", sentence, items)
