"""Folds: joined recordings, intervals over folds, and what is refused."""

import numpy as np
import pytest
from scipy import stats

from speechbrain_sim.analysis import intervals
from speechbrain_sim.analysis.folds import (
    CHOSEN,
    check_apart,
    check_folds,
    fold_tables,
    over_folds,
    read_folds,
)
from speechbrain_sim.analysis.probes import write_probe_results
from speechbrain_sim.analysis.probing import Probing, read_probed
from speechbrain_sim.analysis.study import Study

FOLDS = ["ann", "bob", "eve"]
LAYERS = ["module1", "module2"]


def write_fold(folder, fold, rng, skill):
    """Writes a probe's results; the second fold's best layer is module2."""
    total, outcomes, layers = np.full(30, 2), {}, {}
    for number, layer in enumerate(LAYERS):
        hits = rng.binomial(2, skill, 30).astype(float)
        accuracy = float(hits.sum() / total.sum())
        layers[layer] = {
            "per_seed": [accuracy],
            "accuracy": accuracy,
            "deviation": None,
            "interval": intervals.bootstrap_interval(hits, total),
            "valid_accuracy": 0.5 + 0.1 * (number == (fold == "bob")),
            "chance": 0.5,
            "strength": 0.1 if fold == "bob" else 0.01,
            "standardize": False,
            "converged": fold != "eve",
            "control": {
                "accuracy": 0.5,
                "visible": 0.6,
                "passed": True,
                "below": True,
            },
        }
        outcomes[layer] = hits
    outcomes |= {"total": total}
    outcomes |= {"ids": np.array([f"{fold}{i}" for i in range(30)])}
    about = {"label": "digit", "classes": 2, "encoder": fold}
    folder.mkdir(parents=True)
    write_probe_results(folder, (layers, outcomes), **about)
    return outcomes


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The folders of two systems by fold, and the outcomes of each."""
    folder, rng = tmp_path_factory.mktemp("folds"), np.random.default_rng(0)
    folders, outcomes = {}, {}
    for system, skill in {"SIM": 0.9, "random": 0.6}.items():
        paths = {fold: [folder / system / fold] for fold in FOLDS}
        folders[system] = paths
        outcomes[system] = {
            fold: write_fold(path, fold, rng, skill)
            for fold, (path,) in paths.items()
        }
    return folders, outcomes


def best_of(outcomes):
    """Hits of the best layer in each fold, as `write_fold` makes it."""
    return [
        outcomes[fold]["module2" if fold == "bob" else "module1"]
        for fold in FOLDS
    ]


def test_recordings_of_all_folds_are_joined(made):
    folders, outcomes = made
    for name, paths in folders.items():
        joined = read_folds(paths, "digit")
        layers = {
            layer: [outcomes[name][fold][layer] for fold in FOLDS]
            for layer in LAYERS
        }
        layers[CHOSEN] = best_of(outcomes[name])
        total = np.full(90, 2)
        assert list(joined["layers"]) == [*LAYERS, CHOSEN]
        for layer, hits in layers.items():
            score, hits = joined["layers"][layer], np.concatenate(hits)
            assert score["accuracy"] == pytest.approx(hits.sum() / 180)
            expected = intervals.bootstrap_interval(hits, total)
            assert score["interval"] == pytest.approx(expected)
            assert score["valid_accuracy"] == pytest.approx(
                {"module1": 1.7, "module2": 1.6}.get(layer, 1.8) / 3
            )
        assert joined["best_layer"] == CHOSEN
        assert joined["encoders"] == FOLDS
        assert joined["different_encoders"] == 3
        assert not joined["layers"][CHOSEN]["converged"]
        choices = ["0.01 raw", "0.1 raw"]
        assert joined["layers"][CHOSEN]["choices"] == choices
        assert joined["folds"]["bob"]["choices"] == choices[1:]
        for fold, hits in zip(FOLDS, layers[CHOSEN], strict=True):
            assert joined["folds"][fold]["accuracy"] == hits.sum() / 60


def test_intervals_over_folds_are_student_s(made):
    folders, outcomes = made
    joined = {n: read_folds(paths, "digit") for n, paths in folders.items()}
    found = over_folds(joined)
    one, other = (
        np.array([hits.sum() / 60 for hits in best_of(outcomes[n])])
        for n in joined
    )
    mean, paired = stats.ttest_1samp(one, 0), stats.ttest_rel(one, other)
    for score, test, values in (
        (found["SIM"]["mean"], mean, one),
        (found["SIM"]["above_random"], paired, one - other),
    ):
        assert score["value"] == pytest.approx(values.mean())
        expected = test.confidence_interval(0.95)
        assert score["interval"] == pytest.approx([expected.low, expected.high])
    opposite = found["random"]["above_SIM"]["interval"]
    assert opposite == [
        -x for x in found["SIM"]["above_random"]["interval"][::-1]
    ]
    assert intervals.student([1.0, 0.0])["interval"] == [-1.0, 1.0]
    with pytest.raises(intervals.Unmeasurable, match="too few"):
        intervals.student([0.5])


def test_the_report_shows_each_fold(made, tmp_path):
    probed = read_probed({"digit": made[0]}, "random")
    assert probed["digit"]["SIM"]["recordings"] == 90
    study = Study(tmp_path, baseline="random", probed=probed)
    pooled, folds, differences, _ = Probing().items({}, study)
    assert pooled.header[1:4] == [*LAYERS, CHOSEN]
    for text in (
        "SIM 0.01 raw (ann, eve), 0.1 raw (bob); random 0.01",
        "(bootstrap), for the encoders of all folds (SIM 3, random 3). The",
        "eve, Not converged",
    ):
        assert text in pooled.caption
    assert folds.header == ["", "mean", *FOLDS, "layers"]
    assert [row[-1] for row in folds.rows] == ["2 × module1, 1 × module2"] * 2
    assert differences.header == ["", "− SIM", "− random"]
    assert differences.rows[0][1] == "" and "+" in differences.rows[0][2]
    assert fold_tables("digit", {"SIM": {}}) == []


def test_what_are_no_folds(tmp_path):
    check_folds({}, ["SIM"])
    check_folds({"option": "held_out", "values": ["ann", "bob"]}, [])
    for values, inside in (["a"], []), (["a", "a"], []), (["a", "b"], ["SIM"]):
        with pytest.raises(ValueError, match="two or more values"):
            check_folds({"option": "x", "values": values}, inside)
    with pytest.raises(ValueError, match="the option None"):
        check_folds({"values": ["a", "b"]}, [])
    for fold, names in {"ann": "ab", "bob": "cb"}.items():
        lines = [f"{name},$data_root/{name}.wav" for name in names]
        text = "\n".join(["ID,wav", *lines])
        (tmp_path / f"{fold}.csv").write_text(text)
    tests = {fold: [tmp_path / f"{fold}.csv"] for fold in ("ann", "bob")}
    check_apart({"ann": tests["ann"]}, tmp_path)
    with pytest.raises(ValueError, match="ann and bob both test .*/b.wav"):
        check_apart(tests, tmp_path)
