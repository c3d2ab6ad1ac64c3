"""Probes of several systems in the report, with a baseline and without."""

import numpy as np
import pytest

from speechbrain_sim.analysis import intervals
from speechbrain_sim.analysis.probes import write_probe_results
from speechbrain_sim.analysis.probing import Probing, read_probed
from speechbrain_sim.analysis.study import Study
from speechbrain_sim.report.page import Table


def write_probe(folder, hits):
    """Writes what a probe of two layers leaves in its output folder."""
    folder.mkdir()
    total = np.full(len(hits), 10)
    hits = np.array(hits, float)
    score = {
        "per_seed": [float(hits.sum() / total.sum())],
        "accuracy": float(hits.sum() / total.sum()),
        "deviation": 0.0,
        "interval": intervals.bootstrap_interval(hits, total),
        "valid_accuracy": 0.5,
        "chance": 0.5,
        "control": {"accuracy": 0.5, "passed": True},
    }
    outcomes = {"total": total, "ids": np.arange(len(hits)), "module1": hits}
    about = {"label": "speaker", "classes": 2, "encoder": "0"}
    write_probe_results(folder, ({"module1": score}, outcomes), **about)
    return [folder]


@pytest.mark.parametrize("baseline", ["random", None])
def test_the_difference_is_left_out_without_a_baseline(tmp_path, baseline):
    hits = {"SIM": [9, 8, 10, 9], "random": [6, 7, 5, 6]}
    folders = {n: write_probe(tmp_path / n, of) for n, of in hits.items()}
    probed = read_probed({"speaker": folders}, baseline)
    study = Study(tmp_path, baseline=baseline, probed=probed)
    table, _ = Probing().items({}, study)
    assert isinstance(table, Table)
    compared = [title for title in table.header if title.startswith("best −")]
    assert compared == (["best − random"] if baseline else [])
    found = [n for n in probed["speaker"]["SIM"] if n.startswith("above_")]
    assert found == (["above_random"] if baseline else [])
