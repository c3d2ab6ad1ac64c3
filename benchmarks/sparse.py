"""Joins the score sheets of runs of recipes/bottleneck.py into tables.

    python -m benchmarks.sparse SIM=results/sae/SIM GIM=results/sae/GIM

One table for each score, in percent: a row for each run and sparsity, with the
layer itself, the codes that were learned (mean over the run's seeds), and these
less each control of equal width, of which there is one: 95 % intervals
(Student's) are over seeds, and a single one has none. With `--against SIM`, the
codes of other runs less those of SIM, seed by seed, too.
"""

import argparse
from pathlib import Path

import numpy as np
from scipy import stats

from speechbrain_sim.analysis.code_controls import CONTROLS
from speechbrain_sim.analysis.sparsity import LEARNED, SEED, layer_of
from speechbrain_sim.files import read_json
from speechbrain_sim.report.tables import markdown_table, with_interval

#: where scores lie; those of probes, by label, follow
SCORES = {
    "Explained variance": ("reconstruction", "explained_variance"),
    "Loss recovered, InfoNCE above": ("recovered", "nce"),
    "Loss recovered, layer above": ("recovered", "above"),
    "Loss recovered, layer": ("recovered", "layer"),
    "Units alive": ("firing", "alive"),
    "F1 of single units": ("concept", "one"),
    "F1 of five units": ("concept", "few", "5"),
    "F1 of all units": ("concept", "all"),
    "Variance across classes": ("concept", "across"),
    "Disentanglement": ("factors", "disentanglement"),
    "Completeness": ("factors", "completeness"),
    "Informativeness": ("factors", "informativeness"),
    "ABX within speakers": ("abx", "codes", "within"),
    "ABX across speakers": ("abx", "codes", "across"),
    "ABX of reconstructions within": ("abx", "decoded", "within"),
    "ABX of reconstructions across": ("abx", "decoded", "across"),
}


def value_at(scores, path):
    """Returns the number at a path of a score sheet; None for a gap.

    >>> value_at({"recovered": {"layer": {"value": 0.5}}}, ("recovered", "layer"))
    0.5
    >>> value_at({"recovered": {"gap": "There are no labels."}}, ("recovered", "a"))
    """
    for key in path:
        scores = scores.get(key) if isinstance(scores, dict) else None
    return scores.get("value") if isinstance(scores, dict) else scores


def over_seeds(values, less=None):
    """Averages values of seeds, or their differences; None without any.

    Returns `value`, and its `interval` if there are two or more.
    """
    if any(x is None for x in [*values, *(less or ())]):
        return None
    if less is not None:
        values = [a - b for a, b in zip(values, less, strict=True)]
    score = {"value": float(np.mean(values))}
    if len(values) > 1:
        half = stats.sem(values) * stats.t.ppf(0.975, len(values) - 1)
        score["interval"] = [score["value"] - half, score["value"] + half]
    return score


def groups(results):
    """Maps each layer and sparsity to the scores of its seeds, by L0.

    `results` is what `measure_codes` of `speechbrain_sim.analysis.sparsity`
    returns; keys are (layer, name of the code without layer and seed).
    """
    found = {}
    for name, scores in results["codes"].items():
        code = SEED.sub("", name).rpartition(".")[2]
        found.setdefault((layer_of(name), code), []).append(scores)
    return dict(sorted(found.items(), key=lambda x: (x[0][0], mean_l0(x[1]))))


def mean_l0(seeds):
    """Averages how many units fire; 0 where nothing does."""
    values = [value_at(scores[LEARNED], ("firing", "l0")) for scores in seeds]
    return np.mean([value or 0 for value in values])


def cell(score, sign=""):
    """Formats a score in percent, with its interval if it has one."""
    if score is None:
        return ""
    if "interval" in score:
        return with_interval(score, 100, 1, sign)
    return f"{100 * score['value']:{sign}.1f}"


def table(runs, path, against=None):
    """Compares one score of several runs.

    Arguments
    ---------
    runs : dict of str to dict
        Name -> results.
    path : tuple of str
        See `SCORES`.
    against : str, optional
        A run.

    Returns
    -------
    header, rows : (list of str, list of list of str)
        No rows, where no run has this score.
    """
    header = ["", "L0", "seeds", "layer", LEARNED]
    header += [f"− {control}" for control in CONTROLS]
    others, rows = {}, []
    if against:
        header.append(f"− {against}")
        others = {code: s for (_, code), s in groups(runs[against]).items()}
    for run, results in runs.items():
        for (layer, code), seeds in groups(results).items():
            values = [value_at(s[LEARNED], path) for s in seeds]
            seeds = [
                s for s, x in zip(seeds, values, strict=True) if x is not None
            ]
            if not seeds:
                continue
            learned = [x for x in values if x is not None]
            itself = value_at(results["layers"].get(layer, {}), path)
            of_layer = None if itself is None else {"value": itself}
            row = [f"{run} {layer}", f"{mean_l0(seeds):.1f}", str(len(seeds))]
            row += [cell(of_layer), cell(over_seeds(learned))]
            for control in CONTROLS:
                less = [value_at(s.get(control, {}), path) for s in seeds]
                row.append(cell(over_seeds(learned, less), "+"))
            if against:
                less = [
                    value_at(s[LEARNED], path) for s in others.get(code, [])
                ]
                same = run != against and len(less) == len(learned)
                row.append(cell(over_seeds(learned, less), "+") if same else "")
            rows.append(row)
    return header, rows


def tables(runs, against=None):
    """Yields the title, header and rows of each score that a run has."""
    scores = dict(SCORES)
    for results in runs.values():
        for layer in results["layers"].values():
            for label in layer["probes"]:
                scores[f"Probes: {label}"] = ("probes", label)
                scores[f"Probes of reconstructions: {label}"] = (
                    "decoded",
                    label,
                )
    for title, path in scores.items():
        header, rows = table(runs, path, against)
        if rows:
            yield title, header, rows
    found = [
        [f"{run} {code}", *(f"{100 * x['shared']:.1f}" for x in pair)]
        for run, results in runs.items()
        for code, score in results["stability"].items()
        if "shared" in score
        for pair in [(score, score["random"])]
    ]
    if found:
        yield "Units that other seeds find", ["", LEARNED, "random"], found


def make_parser():
    """Makes the parser of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("runs", nargs="+", metavar="NAME=FOLDER")
    parser.add_argument("--against", metavar="NAME")
    titles = "tables to print, all by default"
    parser.add_argument("--only", nargs="+", metavar="TITLE", help=titles)
    return parser


def main(argv=None):
    """Prints the tables."""
    given = make_parser().parse_args(argv)
    folders = dict(run.split("=", 1) for run in given.runs)
    runs = {
        name: read_json(Path(folder, "sparsity.json"))["result"]
        for name, folder in folders.items()
    }
    for title, header, rows in tables(runs, given.against):
        if given.only and title not in given.only:
            continue
        print(f"**{title}**\n\n{markdown_table(header, rows)}\n")


if __name__ == "__main__":
    main()
