"""Scores of planted codes: perfect, noise, duplicated, rotated."""

import json
import math
import sys

import numpy as np
import pytest
import torch

from speechbrain_sim.analysis.factor_scores import (
    completeness,
    controls,
    dci,
    dependence,
    disentanglement,
    effective_dimensions,
    entropy,
    factor_scores,
    mig,
    mutual_information,
    sap,
)
from speechbrain_sim.analysis.factors import (
    Factors,
    FactorsTool,
    plot_factors,
    untrained,
)
from speechbrain_sim.analysis.lasso import Part, importances
from speechbrain_sim.analysis.study import Study
from speechbrain_sim.encoders.greedy import GreedyEncoder
from speechbrain_sim.encoders.logmel import LogMel
from tests.conftest import deliveries

TRAIN, TEST, NOISE = 900, 600, 6


def planted(seed=0):
    """Factors of both parts, and the columns that hold each perfectly."""
    rng = np.random.default_rng(seed)
    total = TRAIN + TEST
    vowel = rng.choice(["a", "i", "u"], total)
    factors = {
        "voiced": rng.integers(0, 2, total),
        "vowel": vowel,
        "pitch": rng.normal(size=total),
    }
    columns = [
        5.0 - factors["voiced"],
        np.searchsorted(["a", "i", "u"], vowel) / 10,
        np.exp(0.1 * factors["pitch"]),
    ]
    noise = rng.normal(size=(total, NOISE))
    return factors, np.stack(columns, 1), noise


def parts(code, factors):
    return [
        Part(code[at], {name: values[at] for name, values in factors.items()})
        for at in (slice(TRAIN), slice(TRAIN, None))
    ]


def with_code(parted, codes):
    pairs = zip(parted, codes, strict=True)
    return [part._replace(code=code) for part, code in pairs]


def test_a_perfect_code_scores_best():
    factors, columns, noise = planted()
    code = np.hstack([noise, columns])
    scores = factor_scores(*parts(code, factors))
    assert scores["disentanglement"] > 0.99
    for i, score in enumerate(scores["factors"].values(), NOISE):
        assert score["completeness"] > 0.98
        assert score["dimensions"] == pytest.approx(1, abs=0.05)
        assert score["mig"] == pytest.approx(1, abs=0.03)
        assert score["mig_maximum"] == pytest.approx(1)
        assert score["sap_share"] > 0.9
        assert score["dimension"] == i
    assert scores["factors"]["voiced"]["sap_maximum"] == 0.5
    assert scores["factors"]["vowel"]["sap_maximum"] == pytest.approx(2 / 3)
    assert scores["factors"]["pitch"]["sap_maximum"] == 1
    # a line through three vowels explains half of their indicators
    known = [f["informativeness"] for f in scores["factors"].values()]
    assert known == pytest.approx([1, 0.5, 1], abs=0.03)


@pytest.mark.parametrize("seed", range(3))
def test_noise_scores_about_zero(seed):
    factors, _, _ = planted(seed)
    noise = np.random.default_rng(100 + seed).normal(size=(TRAIN + TEST, 64))
    scores = factor_scores(*parts(noise, factors))
    for key in ("disentanglement", "completeness", "informativeness"):
        assert scores[key] == pytest.approx(0, abs=0.01)
    assert scores["mig"] < 0.01
    assert scores["sap"] < 0.02


def test_a_duplicated_code_has_no_gap_but_tells_all():
    factors, columns, noise = planted()
    del factors["vowel"]
    columns = columns[:, [0, 2]]
    code = np.hstack([columns, noise, columns])
    scores = factor_scores(*parts(code, factors))
    assert scores["mig"] == pytest.approx(0, abs=1e-9)
    assert scores["sap"] == pytest.approx(0, abs=1e-9)
    assert scores["informativeness"] > 0.97


def test_a_rotated_code_is_entangled_but_tells_as_much():
    factors, columns, noise = planted()
    parted = parts(np.hstack([columns, noise]), factors)
    perfect = factor_scores(*parted)
    codes = controls(*(part.code for part in parted))["rotation"]
    rotated = factor_scores(*with_code(parted, codes))
    assert rotated["disentanglement"] < 0.6 < perfect["disentanglement"]
    assert rotated["completeness"] < 0.6 < perfect["completeness"]
    assert rotated["mig"] < perfect["mig"] / 2
    assert rotated["sap"] < perfect["sap"] / 2
    assert rotated["informativeness"] == pytest.approx(
        perfect["informativeness"], abs=0.02
    )


def test_the_order_of_dimensions_changes_nothing():
    factors, columns, noise = planted()
    code = np.hstack([columns, noise]) @ np.diag(np.arange(1, 10))
    shuffled = code[:, np.random.default_rng(1).permutation(9)]
    scores = factor_scores(*parts(code, factors))
    others = factor_scores(*parts(shuffled, factors))
    for name, score in scores["factors"].items():
        other = others["factors"][name]
        del score["dimension"], other["dimension"]
        for key, value in score.items():
            assert other[key] == pytest.approx(value, abs=1e-3), key
    assert others["disentanglement"] == pytest.approx(
        scores["disentanglement"], abs=1e-3
    )


def test_units_change_nothing():
    factors, columns, noise = planted()
    code = np.hstack([columns, noise]) + np.hstack([noise[:, :3], noise]) / 2
    scaled = (code * np.logspace(-3, 3, 9) + 7).astype(np.float32)
    scores = factor_scores(*parts(code, factors))
    others = factor_scores(*parts(scaled, factors))
    for key in ("disentanglement", "completeness", "informativeness", "sap"):
        assert others[key] == pytest.approx(scores[key], abs=1e-2)


def test_dead_dimensions_count_for_nothing():
    factors, columns, noise = planted()
    code = np.hstack([columns, noise])
    dead = np.hstack([code, np.tile([0.0, 3.3], (len(code), 2))])
    scores = factor_scores(*parts(code, factors))
    others = factor_scores(*parts(dead.astype(np.float32), factors))
    assert (others["width"], others["dead"]) == (13, 4)
    for key in ("disentanglement", "informativeness", "mig", "sap"):
        assert others[key] == pytest.approx(scores[key], abs=1e-3)
    assert others["completeness"] >= scores["completeness"]
    for name, score in scores["factors"].items():
        other = others["factors"][name]["dimensions"]
        assert other == pytest.approx(score["dimensions"], abs=1e-3)
    silent = factor_scores(*parts(0 * code, factors))
    assert silent["disentanglement"] == silent["mig"] == silent["sap"] == 0
    assert silent["interval"] == [0, 0]


def test_scores_are_json():
    factors, columns, noise = planted()
    scores = factor_scores(*parts(np.hstack([columns, noise]), factors))
    assert json.loads(json.dumps(scores, allow_nan=False)) == scores


def test_the_interval_resamples_utterances():
    factors, columns, noise = planted()
    code = np.hstack([columns + 0.5 * noise[:, :3] * columns.std(0), noise])
    train, test = parts(code, factors)
    alone = dci(train, test)
    twice = Part(
        np.repeat(test.code, 2, axis=0),
        {name: np.repeat(values, 2) for name, values in test.factors.items()},
        [f"utterance{i // 2}" for i in range(2 * TEST)],
    )
    doubled = dci(train, twice)
    for key in ("informativeness", "interval"):
        assert doubled[key] == pytest.approx(alone[key], abs=0.01)
    low, high = alone["interval"]
    assert low < alone["informativeness"] < high < low + 0.1


def test_frames_of_one_recording_stay_in_one_fold():
    """What only tells recordings apart is not learned about the factor."""
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(12), 40)
    code = np.hstack([np.eye(12)[groups], rng.normal(size=(480, 4))])
    code += 0.1 * rng.normal(size=code.shape)
    factors = {"a": rng.normal(size=12)[groups], "b": rng.normal(size=480)}
    alone = importances(Part(code, factors)).penalties
    grouped = importances(Part(code, factors, groups)).penalties
    assert alone[0] is not None and grouped[0] is None


def test_a_permutation_is_disentangled_and_a_uniform_matrix_is_not():
    permutation = np.eye(6)[[3, 1, 5, 0, 2, 4]] * np.arange(1, 7)
    assert disentanglement(permutation) == pytest.approx(1, abs=1e-12)
    assert completeness(permutation) == pytest.approx(np.ones(6), abs=1e-12)
    assert effective_dimensions(permutation) == pytest.approx(np.ones(6))
    uniform = np.full((6, 6), 0.3)
    assert disentanglement(uniform) == pytest.approx(0, abs=1e-12)
    assert completeness(uniform) == pytest.approx(np.zeros(6), abs=1e-12)
    assert effective_dimensions(uniform) == pytest.approx(np.full(6, 6))


def table_of(examples=1):
    """The factors of a real corpus: 20 speakers, 40 sentences, 20 to test."""
    table = deliveries(20, 60)
    table = {n: np.repeat(v, examples) for n, v in table.items()}
    test = np.tile(np.arange(60 * examples) >= 40 * examples, 20)
    order = np.argsort(test, kind="stable")  # the training part first
    return {n: values[order] for n, values in table.items()}, order // examples


def scored(code, factors, groups):
    """Scores of a code of `table_of`, without the style."""
    known = {n: v for n, v in factors.items() if n != "style"}
    ends = slice(len(code) * 2 // 3), slice(len(code) * 2 // 3, None)
    pairs = [
        Part(code[at], {n: v[at] for n, v in known.items()}, groups[at])
        for at in ends
    ]
    return factor_scores(*pairs), pairs


def test_codes_of_the_factors_of_the_synthetic_corpus():
    """Five dimensions, one for each factor; rotated; shuffled; noise."""
    factors, groups = table_of()
    rng = np.random.default_rng(0)
    order = np.unique(factors["speaker"], return_inverse=True)[1]
    names = "pitch", "pitch_range", "rate", "loudness"
    columns = [order, *(factors[n] * (-1) ** len(n) for n in names)]
    noise = rng.normal(size=(len(order), 8))
    code = np.hstack([np.stack(columns, 1), noise])
    perfect, parted = scored(code, factors, groups)
    assert perfect["disentanglement"] > 0.98
    for i, (name, score) in enumerate(perfect["factors"].items()):
        assert score["dimension"] == i and score["mig"] > 0.95, name
        assert score["sap_share"] > 0.97, name
        # linear models do not read 20 speakers from their numbers
        for key in "completeness", "informativeness":
            assert (score[key] > 0.98) == (name != "speaker"), (name, key)
    codes = controls(*(part.code for part in parted))["rotation"]
    rotated = factor_scores(*with_code(parted, codes))
    shuffled, _ = scored(rng.permutation(code), factors, groups)
    empty, _ = scored(rng.normal(size=code.shape), factors, groups)
    assert rotated["disentanglement"] < 0.4 and rotated["mig"] < 0.1
    assert rotated["sap_share"] < 0.2 and rotated["completeness"] < 0.3
    assert rotated["informativeness"] > perfect["informativeness"] - 0.05
    for scores in shuffled, empty:
        assert scores["disentanglement"] == pytest.approx(0, abs=0.05)
        assert scores["informativeness"] == pytest.approx(0, abs=0.02)
        assert scores["mig"] < 0.03 and scores["sap"] < 0.03


def test_frames_of_a_recording_are_no_evidence_of_its_factors():
    """What is constant in a recording tells it, but none of its factors."""
    factors, groups = table_of(examples=10)
    code = np.random.default_rng(0).normal(size=(len(groups), 2))
    code[:, 1] = code[groups, 0]
    scores, _ = scored(code, factors, groups)
    assert all(score["mig"] < 0.06 for score in scores["factors"].values())


def test_the_factors_of_the_synthetic_corpus_are_independent():
    factors, _ = table_of()
    shares = dependence(factors)
    cues = {"pitch_range", "rate", "loudness"}
    for one, row in shares.items():
        for other, share in row.items():
            if one == other:
                assert share == pytest.approx(1)
            elif one == "style" and other in cues:
                # 2/3 of the values allow two styles, the others four
                assert share == pytest.approx(1 / 3, abs=0.06)
            elif other != "style" or one not in cues:
                assert share == pytest.approx(0, abs=0.03), (one, other)


def test_values_fewer_than_bins_have_a_bin_each():
    speaker = np.repeat(np.arange(15), np.arange(11, 26))
    code = np.stack([speaker, np.zeros(len(speaker))], 1)
    scores = mig(Part(code, {"speaker": speaker}))
    assert scores["mig"] == pytest.approx(1)


def test_a_line_that_fits_worse_than_the_mean_scores_zero():
    rng = np.random.default_rng(0)
    pitch = rng.normal(size=60)
    code = np.stack([pitch, -pitch], 1)
    moved = np.stack([pitch, pitch], 1)
    parted = Part(code, {"pitch": pitch}), Part(moved, {"pitch": pitch})
    assert sap(*parted)["sap"] == pytest.approx(1)


def test_values_of_both_parts_are_tabled(corpus):
    parts = corpus.train, corpus.valid, corpus.folder
    known = Factors(pitch_of, *parts, "phones").values()
    assert known["pitch"].tolist() == ["low", "high"] * 12


def slow_entropy(weights):
    shares = [w / sum(weights) for w in weights if w > 0]
    return -sum(share * math.log(share) for share in shares)


def test_entropies_equal_loops():
    matrix = np.random.default_rng(0).exponential(size=(7, 3))
    matrix[2] = 0
    matrix[4, 1] = 0
    rows, columns = matrix.tolist(), matrix.T.tolist()
    total = sum(map(sum, rows))
    d = sum(
        sum(row) / total * (1 - slow_entropy(row) / math.log(3))
        for row in rows
        if sum(row)
    )
    assert disentanglement(matrix) == pytest.approx(d)
    c = [1 - slow_entropy(column) / math.log(7) for column in columns]
    assert completeness(matrix) == pytest.approx(c)
    effective = [math.exp(slow_entropy(column)) for column in columns]
    assert effective_dimensions(matrix) == pytest.approx(effective)
    assert entropy(matrix, 1)[2] == 0


def slow_mutual_information(code, labels):
    total = len(code)
    pairs = list(zip(code, labels, strict=True))
    return sum(
        pairs.count((x, y))
        / total
        * math.log(
            pairs.count((x, y)) * total / (code.count(x) * labels.count(y))
        )
        for x, y in set(pairs)
    )


def test_mutual_information_equals_loops():
    rng = np.random.default_rng(0)
    code = rng.integers(0, 4, (60, 5))
    code[:, 3] = 2
    labels = np.minimum(code[:, 1], rng.integers(0, 4, 60))
    fast = mutual_information(code, labels)
    slow = [
        slow_mutual_information(column, labels.tolist())
        for column in code.T.tolist()
    ]
    assert fast == pytest.approx(slow, abs=1e-12)
    assert fast[3] == pytest.approx(0, abs=1e-12)


def test_importances_are_those_of_the_whole_data():
    """The shortened data give the Lasso that scikit-learn gives."""
    from sklearn.linear_model import MultiTaskLasso

    factors, columns, noise = planted()
    code = np.hstack([columns, noise])[:TRAIN]
    vowel = factors["vowel"][:TRAIN]
    known = {"a": vowel, "b": factors["pitch"][:TRAIN]}
    fit = importances(Part(code, known))
    y = (vowel[:, None] == ["a", "i", "u"]).astype(float)
    y = (y - y.mean(0)) / np.sqrt(y.var(0).sum())
    x = (code - code.mean(0)) / code.std(0)
    model = MultiTaskLasso(fit.penalties[0], tol=1e-8, fit_intercept=False)
    expected = np.linalg.norm(model.fit(x, y).coef_, axis=0)
    assert fit.importances[:, 0] == pytest.approx(expected, abs=1e-3)


def test_a_class_between_two_others_is_found():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 900)
    code = np.stack([labels + 0.1 * rng.normal(size=900), rng.normal(size=900)])
    part = Part(code.T, {"vowel": labels})
    scores = sap(part, part)
    assert scores["sap_share"] > 0.9


def test_many_classes_do_not_fit_into_the_bins():
    phones = np.repeat(np.arange(41), 50)
    code = np.stack([phones, np.random.default_rng(7).permutation(phones)], 1)
    score = mig(Part(code, {"phone": phones}))["factors"]["phone"]
    assert score["mig_maximum"] == pytest.approx(
        math.log(20) / math.log(41), 0.01
    )
    assert 0.7 < score["mig"] < score["mig_maximum"]


def test_controls_hold_what_the_code_holds():
    rng = np.random.default_rng(0)
    train, test = rng.normal(size=(40, 6)), rng.normal(size=(30, 6))
    train[:, 5] = train[:, 0]  # five dimensions, in truth
    test[:, 5] = test[:, 0]
    scaled = (test - train.mean(0)) / train.std(0)
    for name, (_, control) in controls(train, test).items():
        assert control.shape == test.shape
        gram = control @ control.T
        if name == "pca":
            assert np.all(control[:, 5] == 0)
        assert gram == pytest.approx(scaled @ scaled.T, abs=1e-8)
    wide = controls(train[:4], test)["pca"]
    assert wide[0].shape == (4, 6) and wide[1].shape == (30, 6)
    other = controls(train, test, seed=1)["rotation"][0]
    assert not np.allclose(other, controls(train, test)["rotation"][0])


GOOD = {"vowel": ["a", "i"] * 10, "pitch": [0.1 * i for i in range(20)]}


@pytest.mark.parametrize(
    "train, test, message",
    [
        ({"vowel": ["a"] * 20}, {}, "'vowel' has a single value, 'a'"),
        ({}, {"pitch": [0.5] * 20}, "'pitch' has a single value, 0.5"),
        ({}, {"vowel": ["a", "u"] * 10}, "'vowel' has the value 'u' in"),
        ({"vowel": range(20)}, {}, "'vowel' has 20 classes in 20 examples"),
        ({"pitch": [math.nan] * 20}, {}, "'pitch' holds NaN"),
        ({"pitch": [0.1, 0.2]}, {}, "'pitch' has 2 values for 20 examples"),
        ({}, {"pitch": [0, 1] * 10}, "'pitch' holds floats in one part only"),
        ({"tone": [1, 2] * 10}, {}, "The factors are"),
    ],
)
def test_bad_factors_are_named(train, test, message):
    code = np.random.default_rng(0).normal(size=(20, 3))
    with pytest.raises(ValueError, match=message):
        factor_scores(Part(code, GOOD | train), Part(code, GOOD | test))


def test_bad_codes_are_named():
    code = np.random.default_rng(0).normal(size=(20, 3))
    broken = np.where(code > 1, np.nan, code)
    with pytest.raises(ValueError, match="NaN"):
        factor_scores(Part(code, GOOD), Part(broken, GOOD))
    with pytest.raises(ValueError, match="two dimensions"):
        factor_scores(Part(code[:, :1], GOOD), Part(code[:, :1], GOOD))
    with pytest.raises(ValueError, match="2 dimensions in the training part"):
        factor_scores(Part(code[:, :2], GOOD), Part(code, GOOD))
    with pytest.raises(ValueError, match="1 factor is too few"):
        dci(*2 * [Part(code, {"vowel": GOOD["vowel"]})])
    with pytest.raises(ValueError, match="1 utterance"):
        dci(Part(code, GOOD), Part(code, GOOD, [0] * 20))


def test_without_scikit_learn_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.linear_model", None)
    code = np.random.default_rng(0).normal(size=(20, 3))
    with pytest.raises(ImportError, match=r"speechbrain-sim\[analysis\]"):
        importances(Part(code, GOOD))


def test_plot_factors(tmp_path):
    factors, columns, noise = planted()
    parted = parts(np.hstack([columns, noise]), factors)
    scores = {"SIM": factor_scores(*parted)}
    for name, codes in controls(*(part.code for part in parted)).items():
        scores[name] = factor_scores(*with_code(parted, codes))
    layers = {"module1": scores, "context": {"SIM": scores["SIM"]}}
    plot_factors(layers, "artificial speech", tmp_path / "factors")
    assert (tmp_path / "factors.svg").exists()
    assert (tmp_path / "factors.png").exists()


def pitch_of(row):
    return {"pitch": row["pitch"]}


@pytest.mark.parametrize("segments", [0, 2])
def test_codes_of_an_encoder_without_parameters(corpus, segments):
    parts = corpus.train, corpus.valid, corpus.folder
    factors = Factors(pitch_of, *parts, "phones", segments)
    train, test = factors.codes(LogMel().eval(), ["logmel"])
    examples = 1 if segments else 10  # of each recording
    assert train.x["logmel"].shape == (20 * examples, 80 * max(1, segments))
    assert len(test.x["logmel"]) == 4 * examples
    names = ["pitch"] if segments else ["pitch", "phones"]
    assert list(train.factors) == names
    assert untrained(LogMel(), 1) is None


def test_an_untrained_control_leaves_the_generator_alone():
    encoder = GreedyEncoder(channels=4, context_channels=2)
    before = torch.get_rng_state()
    one, other = untrained(encoder, 3), untrained(encoder, 3)
    assert torch.equal(torch.get_rng_state(), before)
    for a, b in zip(one.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)


def test_scores_of_another_version_are_stale(corpus, monkeypatch):
    known = Factors(
        pitch_of, corpus.train, corpus.valid, corpus.folder, "phones"
    )
    study = Study(".", factors=known)
    before = FactorsTool().settings(study)
    assert FactorsTool().settings(study) == before
    monkeypatch.setattr("speechbrain_sim.analysis.factors.VERSION", 0)
    assert FactorsTool().settings(study) != before
