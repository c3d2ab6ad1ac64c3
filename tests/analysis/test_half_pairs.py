"""Halves of two encoders: differences seed by seed, and at equal information."""

import numpy as np
import pytest

from speechbrain_sim.analysis.half_pairs import (
    at_equal_nats,
    pair_items,
    paired_runs,
    points_of,
)
from speechbrain_sim.report.page import Gap

BETAS = (0.1, 0.3, 1.0)


def runs_of(encoder, better, fewer=1.0, seeds=(1, 2, 3)):
    """PER falls by 0.1 per unit of log(1 + nats); a better encoder's is less."""
    runs = []
    for seed in seeds:
        for beta in BETAS:
            nats = fewer * 100 / beta + seed
            error = 1 - 0.1 * np.log1p(nats) - better + 0.01 * seed
            score = {"value": error, "interval": [error, error]}
            text = {"kl": nats / 100, "kl_per_second": nats, "PER": score}
            halves = {"text": text, "text_baseline": {"PER": score}}
            own = {"of": encoder, "seed": seed, "options": {"final_beta": beta}}
            own["layer"] = "context"
            runs.append({"halves": halves, **own})
    return runs


def test_equal_betas_and_equal_nats_are_told_apart(tmp_path):
    """An encoder that is better at equal nats, with fewer of them."""
    runs = {"s": runs_of("SIM", 0.05, fewer=0.5), "g": runs_of("GIM", 0.0)}
    options, nats, figure = pair_items(runs, tmp_path)
    assert options.title == "SIM less GIM, context, at equal options"
    names = ["", "half", "of", "seed 1", "seed 2", "seed 3"]
    assert options.header == [*names, "mean", "nats per second"]
    first = dict(zip(options.header, options.rows[0], strict=True))
    fewer = -0.05 - 0.1 * np.log((1 + 501) / (1 + 1001))
    assert (
        first[""] == "final_beta 0.1"
        and first["seed 1"] == f"{100 * fewer:+.1f}"
    )
    assert first["nats per second"] == "-500.0 [-500.0, -500.0]"
    assert [row[0] for row in options.rows] == [
        f"final_beta {b}" for b in BETAS
    ]
    assert nats.title == "SIM less GIM, context, at equal information"
    assert {row[-1] for row in nats.rows} == {"-5.0 [-5.0, -5.0]"}
    assert nats.rows[0][0] == "103.0" and nats.rows[-1][0] == "mean"
    assert (tmp_path / f"{figure.stem}.svg").exists()


def test_what_does_not_overlap_is_a_gap(tmp_path):
    runs = {"s": runs_of("SIM", 0.0, fewer=0.01), "g": runs_of("GIM", 0.0)}
    _, gap, _ = pair_items(runs, tmp_path)
    assert (
        isinstance(gap, Gap) and "give final_beta further values" in gap.reason
    )


def test_only_what_all_have_is_paired(tmp_path):
    one, other = runs_of("SIM", 0.1), runs_of("GIM", 0.0, seeds=(2, 3))
    options, nats, _ = pair_items({"s": one, "g": other[:-1]}, tmp_path)
    assert "seed 1" not in options.header
    last = dict(zip(options.header, options.rows[-1], strict=True))
    assert last["seed 2"] == last["mean"] == "-10.0" and last["seed 3"] == ""
    assert nats.rows[0][-1] == "-10.0"  # of the seed that has all betas
    assert pair_items({"s": one}, tmp_path) == []
    assert pair_items({"s": one, "g": []}, tmp_path) == []


def test_layers_and_halves_that_only_some_runs_have(tmp_path):
    """Runs of the text alone, of another layer, and read in another way."""
    one, other = runs_of("SIM", 0.1), runs_of("GIM", 0.0)
    for run in (*one[:3], *other[:3]):
        run["layer"] = "module3"
    score = {"kl": 1.0, "kl_per_second": 100.0, "accuracy": {"value": 0.5}}
    for run in (one[-1], other[-1]):
        run["halves"]["speaker"] = score
        run["options"] = {**run["options"], "labels": ["speaker"]}
    items = pair_items({"s": one, "g": other}, tmp_path)
    tables = {x.title: x for x in items if hasattr(x, "rows")}
    options = tables["SIM less GIM, context, at equal options"]
    of = [(row[0], row[1]) for row in options.rows]
    assert of == [
        *((f"final_beta {b}", "text") for b in BETAS),
        ("all options", "speaker"),
    ]
    assert len(tables["SIM less GIM, module3, at equal options"].rows) == 3
    assert "SIM less GIM, context, at equal information" in tables
    assert (tmp_path / "figures/halves_SIM_GIM_module3.svg").exists()
    for run in (*one, *other):  # no curve goes along parts of a corpus
        run["options"] = {"split": run["options"]["final_beta"]}
    titles = [x.title for x in pair_items({"s": one, "g": other}, tmp_path)]
    assert not any("information" in title for title in titles)


def test_curves_cross_no_gap_of_one_seed():
    both = runs_of("SIM", 0.2, seeds=[1]), runs_of("GIM", 0, seeds=[1])
    _, pairs = paired_runs(*both)
    both = points_of(pairs, "text", "PER")
    nats, scores = at_equal_nats(*both)
    assert (np.diff(nats) > 0).all()
    assert scores[0] - scores[1] == pytest.approx(-0.2 * np.ones((1, 5)))
