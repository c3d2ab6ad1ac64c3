"""Halves of two encoders: at equal options, and at equal information."""

import json
from itertools import chain, combinations, product

import numpy as np

from speechbrain_sim.analysis.intervals import student
from speechbrain_sim.report import style
from speechbrain_sim.report.page import Figure, Gap, Table
from speechbrain_sim.report.tables import with_interval

#: of a half's scores in `vib.json`, those that are no score
NUMBERS = "chance", "kl", "kl_per_second"
#: nats per second at which curves are compared
PLACES = 5
#: options that do not change a half, or by which runs are divided anyway
APART = "labels", "layers", "read", "reading"
#: options along which a curve goes
BETAS = {"initial_beta", "final_beta"}
#: of systems
MARKERS = "osD^v<>pXP*h"
EQUAL = (
    "Runs of the same options and seed, in percent; brackets: Student's 95 % "
    "intervals over the seeds of the encoders."
)
AT_NATS = (
    "Of each seed, a curve through an encoder's runs, linear over log(1 + nats "
    "per second), where all curves overlap; in percent. Mean: over these places. "
    "Brackets: Student's 95 % intervals over seeds."
)


def paired_runs(one, other):
    """Pairs the runs of two encoders that have the same options and seed.

    Arguments
    ---------
    one, other : list of dict
        What `vib.json` holds, with `options` and `seed`.

    Returns
    -------
    varied, pairs : (list of str, dict)
        Options that differ between pairs; their values -> seed -> two runs.

    Example
    -------
    >>> runs = [{"options": {"final_beta": b}, "seed": 1} for b in (0.1, 1)]
    >>> varied, pairs = paired_runs(runs, runs[::-1])
    >>> varied, list(pairs)
    (['final_beta'], ['final_beta 0.1', 'final_beta 1'])
    """
    options, pairs = {}, {}
    for run, like in product(one, other):
        own, its = (
            {n: x for n, x in of["options"].items() if n not in APART}
            for of in (run, like)
        )
        if own == its and run["seed"] == like["seed"]:
            key = json.dumps(own, sort_keys=True)
            options[key] = own
            pairs.setdefault(key, {})[run["seed"]] = run, like
    known = sorted({name for of in options.values() for name in of})
    values = {n: {str(of.get(n)) for of in options.values()} for n in known}
    varied = [name for name in known if len(values[name]) > 1]
    return varied, {
        ", ".join(f"{n} {options[key].get(n, '(default)')}" for n in varied): of
        for key, of in pairs.items()
    }


def points_of(pairs, half, kind):
    """Returns a dict for each encoder: options -> seed -> (nats, score)."""

    def point(run):
        of = run["halves"][half]
        return of["kl_per_second"], of[kind]["value"]

    return [
        {n: {s: point(x[i]) for s, x in of.items()} for n, of in pairs.items()}
        for i in (0, 1)
    ]


def at_equal_nats(one, other):
    """Interpolates the scores of two encoders at the same nats per second.

    Arguments
    ---------
    one, other : dict
        From `points_of`; seeds without all options are left out.

    Returns
    -------
    nats, scores : (numpy.ndarray, numpy.ndarray)
        (places,), from the least that all curves reach to the most; and (2,
        seeds, places). None where they do not overlap.

    Example
    -------
    >>> one = {b: {1: (b, 1 - b / 10)} for b in (0, 4, 8)}
    >>> other = {b: {1: (b, 0.8 - b / 10)} for b in (2, 6)}
    >>> nats, scores = at_equal_nats(one, other)
    >>> nats[[0, -1]].round(6).tolist(), scores.shape
    ([2.0, 6.0], (2, 1, 5))
    """
    seeds = sorted(set.intersection(*map(set, one.values())))
    lines = [
        [
            np.array(sorted(of[seed] for of in curve.values())).T
            for seed in seeds
        ]
        for curve in (one, other)
    ]
    ends = [x[[0, -1]] for line in lines for x, _ in line]
    low = max((x[0] for x in ends), default=0)
    high = min((x[1] for x in ends), default=0)
    if low >= high:
        return None, None
    at = np.linspace(np.log1p(low), np.log1p(high), PLACES)
    scores = [
        [np.interp(at, np.log1p(x), y) for x, y in line] for line in lines
    ]
    return np.expm1(at), np.array(scores)


def _mean(values, scale=100.0):
    """Formats the mean of seeds, with an interval if there are several."""
    if len(values) == 1:
        return f"{scale * values[0]:+.1f}"
    return with_interval(student(values, np.inf), scale, 1, "+")


def pair_items(runs, folder):
    """Compares encoders by their halves: items of a report, a list.

    `runs` is system -> list as of `paired_runs`, each with `of`, the encoder;
    `folder` that of the report. Empty, unless encoders have runs of the same
    layer and options.
    """
    encoders, items = {}, []
    for run in chain(*runs.values()):
        layers = encoders.setdefault(run["of"], {})
        layers.setdefault(run["layer"], []).append(run)
    for names in combinations(encoders, 2):
        one, other = map(encoders.get, names)
        for layer in [layer for layer in one if layer in other]:
            items += _compare(names, layer, (one[layer], other[layer]), folder)
    return items


def _compare(names, layer, runs, folder):
    """Makes the items of two encoders' runs of one layer."""
    halves = {h: of for run in chain(*runs) for h, of in run["halves"].items()}
    equal, nats, panels, apart = [], [], {}, None
    for half, of in halves.items():
        has = [[run for run in x if half in run["halves"]] for x in runs]
        varied, pairs = paired_runs(*has)
        kinds = sorted(of.keys() - {*NUMBERS})
        for kind in kinds if "kl" in of and pairs else ():
            both = points_of(pairs, half, kind)
            panels[f"{half}, {kind}"] = dict(zip(names, both, strict=True))
            cells = {"half": half, "of": f"{kind} (%)"}
            equal += _equal_rows(cells, *both)
            if varied and BETAS.issuperset(varied):
                apart = varied[0]
                nats += _nats_rows(cells, names, both)
    if not equal:
        return []
    title = f"{' less '.join(names)}, {layer}, at equal"
    items = [Table.of(f"{title} options", EQUAL, equal)]
    title += " information"
    if nats:
        items.append(Table.of(title, AT_NATS, nats))
    elif apart:
        reason = "There are no nats per second that all curves reach: "
        items.append(Gap(title, f"{reason}give {apart} further values."))
    stem = style.figure_stem("halves", *names, layer)
    plot_points(panels, folder / stem)
    caption = "Of the test part: each seed, thin, and the mean of the seeds."
    alt = "Scores over nats per second, a line per encoder and seed."
    return [
        *items,
        Figure(f"{' and '.join(names)}, {layer}", caption, stem, alt),
    ]


def _equal_rows(cells, one, other):
    """Rows of the differences at equal options."""
    rows = []
    for name, seeds in one.items():
        found = {s: np.subtract(x, other[name][s]) for s, x in seeds.items()}
        row = {"": name or "all options", **cells}
        row |= {f"seed {s}": f"{100 * x[1]:+.1f}" for s, x in found.items()}
        nats, scores = zip(*found.values(), strict=True)
        row["mean"] = _mean(scores)
        row["nats per second"] = _mean(nats, 1.0)
        rows.append(row)
    return rows


def _nats_rows(cells, names, both):
    """Rows of both scores, and of their difference, at equal nats."""
    nats, scores = at_equal_nats(*both)
    if nats is None:
        return []
    columns = [*zip(map("{:.1f}".format, nats), scores.T, strict=True)]
    columns.append(("mean", scores.mean(-1).T))
    rows = []
    for at, of_seeds in columns:
        row = {"nats per second": at, **cells}
        for name, values in zip(names, of_seeds.T, strict=True):
            row[name] = f"{100 * values.mean():.1f}"
        row["difference"] = _mean(-np.diff(of_seeds)[:, 0])
        rows.append(row)
    return rows


def plot_points(panels, path):
    """Plots scores over nats per second: of each seed, thin, and their mean.

    `panels` are title -> system -> options -> seed -> (nats, score).
    """
    size = 3.4 * len(panels), 3.4
    with style.drawing(path, 1, len(panels), size) as (figure, axes):
        for panel, (title, systems) in zip(
            axes[0], panels.items(), strict=True
        ):
            for i, (name, points) in enumerate(systems.items()):
                look = style.look(name, i) | {"marker": MARKERS[i % 12]}
                thin = {**look, "label": None, "lw": 0.6, "ms": 3}
                for seed in sorted({s for of in points.values() for s in of}):
                    known = (of[seed] for of in points.values() if seed in of)
                    x, y = np.array(sorted(known)).T
                    panel.plot(x, 100 * y, **thin)
                means = [np.mean([*of.values()], 0) for of in points.values()]
                x, y = np.array(sorted(map(tuple, means))).T
                panel.plot(x, 100 * y, lw=2, **look)
            panel.set_title(title, loc="left")
            panel.set_xlabel("KL (nats per second)")
            panel.set_xscale("symlog", subs=[2, 5])
            # plain numbers: mathematics is no text here, see `style`
            panel.xaxis.set_major_formatter("{x:g}")
            panel.xaxis.set_minor_formatter("{x:g}")
            panel.set_ylim(bottom=0)
        axes[0, 0].set_ylabel("of the test part (%)")
        style.legend_below(figure)
