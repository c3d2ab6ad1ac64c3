"""Prints what pages state of studies of halves, means over seeds.

    python -m docs.half_tables results/vib_seeds

Of every system with several seeds: scores of both stages, and of what each half
keeps; brackets are Student's 95 % intervals over the seeds.
"""

import argparse
from pathlib import Path

import numpy as np

from speechbrain_sim.analysis.half_settings import LINEAR
from speechbrain_sim.analysis.intervals import student
from speechbrain_sim.files import read_json
from speechbrain_sim.report.page import Table
from speechbrain_sim.report.tables import markdown_table, with_interval

#: errors and accuracies in `vib.json`
KINDS = "PER", "WER", "CER", "accuracy"


def make_parser():
    """Makes the parser of the command line."""
    parser = argparse.ArgumentParser("half_tables", description=__doc__)
    parser.add_argument("study", type=Path, help="folder of a study")
    return parser


def mean_of(values, digits):
    """Formats the mean of several seeds, and its interval."""
    return with_interval(student(values, np.inf), 1, digits)


def score_rows(name, runs):
    """Lists the scores of both stages, and of their baselines."""
    rows = []
    for half, first in runs[0].items():
        of = [run[half] for run in runs]
        for kind in [kind for kind in KINDS if kind in first]:
            value = mean_of([100 * x[kind]["value"] for x in of], 1)
            row = {"": name, "of": half, "score": f"{kind} (%)", "mean": value}
            if "kl" in first:
                nats = [x["kl_per_second"] for x in of]
                row["nats per second"] = mean_of(nats, 0)
            rows.append(row)
    return rows


def left_rows(name, probes):
    """Lists the shares of h that a linear probe reads in each half."""
    rows = []
    for label in probes[0]:
        row = {"": name, "left of h's": label}
        of = [probe[label] for probe in probes]
        for half in [name for name in of[0] if name != "h"]:
            left = [(x[half]["leakage"] or {}).get("value") for x in of]
            if None not in left:  # a gap, where h is at chance
                row[half] = mean_of([100 * share for share in left], 0)
        read = 100 * np.mean([x["h"]["accuracy"] for x in of])
        rows.append(row | {"read from h (%)": f"{read:.1f}"})
    return rows


def main(study):
    """Prints the tables of a study's folder."""
    folders = {}
    for path in sorted(Path(study).glob("*/vib.json")):
        name = path.parent.name.rpartition("_")[0]
        folders.setdefault(name, []).append(path.parent)
    scores, left = [], []
    for name, of in folders.items():
        if len(of) > 1:
            runs = [read_json(x / "vib.json")["halves"] for x in of]
            scores += score_rows(name, runs)
            read = [read_json(x / "halves.json")["result"] for x in of]
            left += left_rows(name, [x["probes"][LINEAR] for x in read])
    if not scores:
        raise ValueError(f"{study} holds no runs of several seeds.")
    for rows in scores, left:
        table = Table.of("", "", rows)
        print(f"{markdown_table(table.header, table.rows)}\n")


if __name__ == "__main__":
    main(make_parser().parse_args().study)
