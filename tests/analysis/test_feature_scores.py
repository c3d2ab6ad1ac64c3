"""Single units, few and all of them, against scikit-learn and planted codes."""

import numpy as np
import pytest
import torch
from scipy import sparse
from sklearn.metrics import f1_score as reference_f1

from speechbrain_sim.analysis import feature_scores
from speechbrain_sim.analysis.intervals import Unmeasurable
from speechbrain_sim.logistic import solve_logistic

CLASSES, UNIT = 4, np.repeat(np.arange(20), 30)


@pytest.fixture(scope="module")
def labels():
    """Classes of training and test rows."""
    rng = np.random.default_rng(0)
    return rng.integers(0, CLASSES, (2, 600))


def planted(y, seed=0):
    """Codes whose unit 2 c + 1 fires for the class c; the others are noise."""
    rng = np.random.default_rng(seed)
    noise = rng.exponential(size=(len(y), 2 * CLASSES))
    z = noise * (rng.random(noise.shape) < 0.2)
    z[:, 1::2] = (1 + noise[:, 1::2]) * (y[:, None] == np.arange(CLASSES))
    return sparse.csr_array(z)


def noisy(y, seed=0):
    """Codes that know a little of the classes."""
    rng = np.random.default_rng(seed)
    z = rng.normal(size=(len(y), 6)) + 0.7 * np.eye(CLASSES, 6)[y]
    return sparse.csr_array(np.maximum(z.round(1), 0))


def test_thresholds_are_the_best_of_all(labels):
    y = labels[0][:150]
    z = noisy(y)
    truth = y[:, None] == np.arange(CLASSES)
    f1, threshold = feature_scores.unit_f1(z, truth)
    dense = z.toarray()
    for j in range(6):
        for c in range(CLASSES):
            tried = [
                reference_f1(truth[:, c], dense[:, j] >= least)
                for least in np.unique(dense[:, j])[1:]
            ]
            assert f1[j, c] == pytest.approx(max(tried))
            predicted = dense[:, j] >= threshold[j, c]
            assert reference_f1(truth[:, c], predicted) == max(tried)


def test_a_score_is_the_mean_f1_of_classes(labels):
    rng = np.random.default_rng(3)
    y = np.where(labels[0] == 3, 0, labels[0])  # the last class is never there
    truth = y[:, None] == np.arange(CLASSES)
    predicted = truth ^ (rng.random(truth.shape) < 0.2)
    predicted[:, 3] = False
    found = feature_scores.f1_score(predicted, truth, UNIT)
    each = [reference_f1(truth[:, c], predicted[:, c]) for c in range(3)]
    np.testing.assert_allclose(found["classes"][:3], each)
    assert found["classes"][3] is None
    assert found["value"] == pytest.approx(np.mean(each))
    assert found["interval"][0] < found["value"] < found["interval"][1]


def test_planted_units_are_found(labels):
    y, there = labels
    known, codes = planted(y), planted(there, 1)
    given = known, y, codes, there, UNIT, CLASSES
    score, units = feature_scores.best_units(*given)
    assert score["value"] == 1.0 and score["interval"] == [1.0, 1.0]
    assert score["units"] == [1, 3, 5, 7]
    assert units["class"][1::2] == [0, 1, 2, 3]
    assert units["f1"][1::2] == [1.0] * 4
    assert max(units["f1"][::2]) < 0.5
    sizes = np.bincount(there)
    always = 2 * sizes / (len(there) + sizes)
    assert units["gain"][1::2] == pytest.approx(1 - always)
    few = feature_scores.few_units(*given)
    assert few["1"]["value"] == 1.0 and few["10"]["value"] > 0.99
    assert feature_scores.variance_across(*given[:5])["value"] > 0.4


def test_f1_of_units_is_that_of_their_predictions(labels):
    y, there = labels
    known, codes = noisy(y), noisy(there, 1)
    given = known, y, codes, there, UNIT, CLASSES
    score, units = feature_scores.best_units(*given)
    _, threshold = feature_scores.unit_f1(
        known, y[:, None] == np.arange(CLASSES)
    )
    dense = codes.toarray()
    for j, (c, f1) in enumerate(zip(units["class"], units["f1"], strict=True)):
        predicted = dense[:, j] >= threshold[j, c]
        assert f1 == pytest.approx(reference_f1(there == c, predicted))
    # shuffled labels: no better than predicting each class everywhere
    wrong = np.random.default_rng(5).permutation(there)
    chance = feature_scores.always_f1(wrong, UNIT, CLASSES)["value"]
    shuffled = feature_scores.best_units(known, y, codes, wrong, UNIT, CLASSES)
    assert shuffled[0]["value"] < chance + 0.03 < score["value"]
    assert chance == pytest.approx(0.4, abs=0.01)


def test_classes_without_training_rows_do_not_count(labels):
    y, there = labels
    known, codes = planted(y), 10 * planted(there, 1)
    given = known, y, codes, there, UNIT
    score, _ = feature_scores.best_units(*given, CLASSES)
    more, _ = feature_scores.best_units(*given, CLASSES + 2)
    assert more["value"] == score["value"]
    assert more["classes"] == [*score["classes"], None, None]


def test_two_units_where_one_is_not_enough(labels):
    rng = np.random.default_rng(4)
    z = rng.integers(0, 2, (2, 600, 5)).astype(float)
    y, there = (part[:, 1] * part[:, 3] for part in z)
    given = z[0], y.astype(int), z[1], there.astype(int), UNIT, 2
    found = feature_scores.few_units(*given, few=(1, 2))
    assert found["1"]["classes"][1] < 0.8
    assert found["2"]["classes"][1] == 1.0


def test_a_reader_has_the_units_of_its_probe(labels):
    y, there = labels
    known, codes = noisy(y), noisy(there, 1)
    wide = sparse.hstack([known, sparse.csr_array((600, 3))]).tocsr()
    fit = feature_scores.fit_reader
    read = fit(wide, y, wide, y, CLASSES, [1e-2])
    dense = known.toarray().astype(np.float32)
    mean, std = dense.mean(0), dense.std(0, ddof=1)
    x = torch.from_numpy((dense - mean) / std)
    solved = solve_logistic(x, torch.from_numpy(y), CLASSES, [1e-2])
    tested = torch.from_numpy((codes.toarray() - mean) / std).float()
    wanted = solved.predict(tested)[0].numpy()
    empty = sparse.hstack([codes, sparse.csr_array((600, 3))]).tocsr()
    same = read.scores(empty).argmax(1) == wanted
    assert same.mean() > 0.99  # solved less tightly
    score = feature_scores.accuracy(read, empty, there, UNIT, y)
    assert score["value"] == np.mean(read.scores(empty).argmax(1) == there)
    assert score["chance"] == pytest.approx(0.27, abs=0.03)
    # the strength that reads best on validation rows
    strong = fit(known, y, codes, there, CLASSES, [1e3, 1e-3])
    assert (
        abs(strong.weight).max()
        > 10 * abs(fit(known, y, codes, there, CLASSES, [1e3]).weight).max()
    )


def test_readers_name_classes_too(labels):
    y, there = labels
    known, codes = planted(y), planted(there, 1)
    read = feature_scores.fit_reader(known, y, known, y, CLASSES, [1e-3])
    given = known, y, codes, there, UNIT
    assert feature_scores.reader_f1(read, *given)["value"] > 0.99


def test_what_a_reconstruction_recovers(labels):
    y, there = labels
    known, codes = noisy(y).toarray(), noisy(there, 1).toarray()
    read = feature_scores.fit_reader(known, y, known, y, CLASSES, [1e-2])
    mean = np.broadcast_to(known.mean(0), codes.shape)
    of_mean, of_codes = (read.losses(x, there) for x in (mean, codes))
    log_p = torch.from_numpy(read.scores(codes)).log_softmax(1).numpy()
    wanted = -log_p[np.arange(600), there]
    np.testing.assert_allclose(of_codes, wanted, rtol=1e-6)
    for losses, value in ((of_codes, 1.0), (of_mean, 0.0)):
        three = of_mean, losses, of_codes
        found = feature_scores.recovered(three, UNIT)
        assert found["value"] == pytest.approx(value)


def test_a_probe_that_reads_nothing_has_no_loss_to_recover():
    rng = np.random.default_rng(6)
    of_mean, decoded = np.full(600, 1.0), rng.normal(3, 1, 600)
    frames = of_mean + rng.normal(-0.001, 0.2, 600)
    with pytest.raises(Unmeasurable, match="no loss to recover"):
        feature_scores.recovered((of_mean, decoded, frames), UNIT)


def test_variance_between_classes(labels):
    y, there = labels
    known, codes = noisy(y), noisy(there, 1)
    means = [known.toarray()[y == c].mean(0) for c in range(CLASSES)]
    z, mean = codes.toarray(), known.toarray().mean(0)
    within = sum(
        np.square(a - means[c]).sum() for a, c in zip(z, there, strict=False)
    )
    wanted = 1 - within / np.square(z - mean).sum()
    given = known, y, codes, there, UNIT
    found = feature_scores.variance_across(*given)
    assert found["value"] == pytest.approx(wanted)
    names = sparse.csr_array(np.eye(CLASSES)[y])
    tested = sparse.csr_array(np.eye(CLASSES)[there])
    given = names, y, tested, there, UNIT
    assert feature_scores.variance_across(*given)["value"] == pytest.approx(1)
    wrong = np.random.default_rng(5).permutation(there)
    given = names, y, tested, wrong, UNIT
    assert feature_scores.variance_across(*given)["value"] < 0.02
