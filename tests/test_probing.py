"""Probes side by side, features on disk, and how sure a score is."""

import itertools

import numpy as np
import pytest
import speechbrain as sb
import torch

from speechbrain_sim.analysis.intervals import (
    bootstrap_interval,
    chance_level,
    control_interval,
    per_utterance,
)
from speechbrain_sim.brains.checkpointer import AtomicCheckpointer
from speechbrain_sim.brains.probe import ProbeBatches, ProbeBrain, make_probes
from speechbrain_sim.data.labels import frames_of_labels
from speechbrain_sim.probes import (
    Classification,
    LinearProbe,
    likeliest_path,
)
from speechbrain_sim.randomness import keyed_generator


def train(x, y, seeds, controls=0, epochs=3, batch_size=8, bias=True):
    batches = ProbeBatches(x, y, seeds, controls, batch_size)
    channels = {layer: features.shape[1] for layer, features in x.items()}
    probes = make_probes(channels, int(y.max()) + 1, batches.names, bias)
    brain = ProbeBrain(
        probes,
        lambda parameters: torch.optim.Adam(parameters, lr=1e-2),
        {"max_grad_norm": float("inf")},
        {"device": "cpu"},
    )
    brain.train_probes(batches, range(1, epochs + 1))
    return brain


@pytest.fixture(scope="module")
def examples():
    torch.manual_seed(0)
    y = torch.arange(60) % 3
    x = torch.randn(60, 6)
    x[:, :3] += 4 * torch.nn.functional.one_hot(y, 3)
    return {"low": x, "high": x[:, :4]}, y


def test_side_by_side_equals_alone(examples):
    x, y = examples
    together = train(x, y, [1, 2], controls=2)
    for index, seed in enumerate([1, 2]):
        for layer in x:
            alone = train({layer: x[layer]}, y, [seed]).modules[layer]
            both = together.modules[layer]
            assert torch.allclose(
                both.weight[index], alone.weight[0], atol=1e-5
            )
            assert torch.allclose(both.bias[index], alone.bias[0], atol=1e-5)


def test_what_was_not_typed_does_not_beat_the_yaml(tmp_path):
    """SpeechBrain would clip at 5: by all probes together, controls too."""
    _, run_opts, _ = sb.parse_arguments(["probe.yaml", "--device", "cpu"])
    brain = ProbeBrain(
        make_probes({"low": 2}, 2, [("probe", 1)], True),
        torch.optim.Adam,
        {"max_grad_norm": float("inf")},
        run_opts,
        AtomicCheckpointer(tmp_path),
    )
    assert brain.max_grad_norm == float("inf")
    assert not brain._should_save_intra_epoch_ckpt(0.0, 10**9)


def test_a_probe_equals_torch_by_hand(examples):
    x, y = examples
    brain = train({"low": x["low"]}, y, [5], epochs=2)
    linear = torch.nn.Linear(6, 3)
    start = make_probes({"low": 6}, 3, [("probe", 5)], True)["low"]
    with torch.no_grad():
        linear.weight.copy_(start.weight[0].T)
        linear.bias.copy_(start.bias[0, 0])
    optimizer = torch.optim.Adam(linear.parameters(), lr=1e-2)
    for epoch in (1, 2):
        generator = keyed_generator("probe", 5, epoch)
        order = torch.randperm(len(y), generator=generator)
        for chosen in order.split(8):
            logits = linear(x["low"][chosen])
            loss = torch.nn.functional.cross_entropy(logits, y[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    got = brain.modules["low"].weight[0].T
    assert torch.allclose(got, linear.weight, atol=1e-5)


def test_probes_learn_and_controls_do_not(examples):
    x, y = examples
    brain = train(x, y, [1, 2], controls=8, epochs=40)
    answers = brain.predict(x, chunk=7)["low"]
    right = (answers == y).float().mean(1)
    assert (right[:2] > 0.9).all()
    assert right[2:].mean() < 0.6


def test_batches_show_every_example_once_per_epoch(examples):
    x, y = examples
    batches = ProbeBatches(x, y, [1, 2], 1, 7)
    first = [batch["y"] for batch in batches]
    assert len(first) == 9
    batches.epoch = 1
    seen = torch.cat([batch["x"]["low"] for batch in batches], dim=1)
    for probe in seen:
        assert torch.equal(
            probe[:, 0].sort().values, x["low"][:, 0].sort().values
        )
    second = [batch["y"] for batch in batches]
    assert any(
        not torch.equal(a, b) for a, b in zip(first, second, strict=True)
    )
    real = torch.cat(second, dim=1)[:2].sort(dim=1).values
    assert torch.equal(real, y.sort().values.expand(2, -1))


def test_bias_free_probe():
    probe = LinearProbe(4, 3, probes=2, bias=False)
    assert [name for name, _ in probe.named_parameters()] == ["weight"]
    assert torch.equal(probe(torch.zeros(2, 5, 4)), torch.zeros(2, 5, 3))


@pytest.mark.parametrize("bias", [True, False])
def test_trained_probes_are_of_all_seeds_and_no_control(examples, bias):
    x, y = examples
    brain = train(x, y, [1, 2], controls=2, bias=bias)
    probes = brain.trained(2)
    assert probes.arguments["probes"] == 2
    assert len(probes.probes["low"].weight) == 2
    logits = probes(x["low"][None], "low")[0]
    assert torch.equal(logits.argmax(-1), brain.predict(x)["low"][0])
    with pytest.raises(ValueError, match="only low, high have"):
        probes(x["low"][None], "middle")


@pytest.mark.parametrize("hop, center", [(160, 20), (20, 10), (80, -20)])
def test_labels_find_the_nearest_frame(hop, center):
    for label, frame in enumerate(frames_of_labels(50, hop, center)):
        middle = 160 * label + 200
        best = min(range(1000), key=lambda j: abs(center + hop * j - middle))
        assert abs(center + hop * frame - middle) == abs(
            center + hop * best - middle
        )


@pytest.mark.parametrize("hop", [160, 80, 20])
def test_labels_by_either_end(hop):
    per_label = 160 // hop
    frames = 52 * per_label - 1  # some fifty labels, and one or two to spare
    front, end = (
        frames_of_labels(50, hop, 20, frames, alignment).tolist()
        for alignment in ("front", "end")
    )
    assert end == [per_label * i for i in range(50)]
    assert front == [frames - 1 - per_label * i for i in range(49, -1, -1)]
    few = frames_of_labels(50, hop, 20, 3, "front")
    assert few.min() == 0 and few.max() == 2


def test_interval_covers_the_truth_as_often_as_it_says():
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(200):
        ability = rng.beta(4, 2, size=60)  # utterances differ: truth is 2/3
        total = rng.integers(5, 30, size=60)
        hits = rng.binomial(total, ability)
        low, high = bootstrap_interval(hits, total)
        covered += low <= 2 / 3 <= high
    assert 0.88 <= covered / 200 <= 0.99


def test_paired_interval_is_narrower_than_either():
    rng = np.random.default_rng(1)
    total = np.full(80, 20)
    hits = rng.binomial(20, rng.beta(2, 2, size=80))
    better = np.minimum(hits + 1, 20)
    low, high = bootstrap_interval(better - hits, total)
    own = bootstrap_interval(hits, total)
    assert 0 < low < high < 0.06
    assert high - low < (own[1] - own[0]) / 3


def test_one_utterance_is_too_few():
    with pytest.raises(ValueError, match="too few"):
        bootstrap_interval(np.array([1.0]), np.array([2]))


def test_hits_average_over_seeds():
    correct = np.array([[True, False, True, True], [True, True, False, True]])
    hits, total = per_utterance(correct, np.array([0, 0, 1, 1]))
    assert hits.tolist() == [1.5, 1.5] and total.tolist() == [2, 2]


def test_chance_is_the_best_constant():
    train_labels = np.array([2, 2, 2, 0, 1])
    assert chance_level(train_labels, np.array([2, 0, 2, 1])) == 0.5


def controls_that(know, seed=0):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 5, size=400)
    answers = rng.integers(0, 5, size=(10, 400))
    answers = np.where(rng.random((10, 400)) < know, labels, answers)
    return answers, labels


def test_control_passes_at_chance_and_below_and_fails_above():
    answers, labels = controls_that(know=0.0)
    assert control_interval(answers, labels)["passed"]
    knowing, labels = controls_that(know=0.1)
    result = control_interval(knowing, labels)
    assert not result["passed"]
    assert result["accuracy"] > result["chance"][1]
    shy = np.where(answers == labels, (labels + 1) % 5, answers)
    assert control_interval(shy, labels)["passed"]  # an unlucky draw


def test_control_that_always_says_the_frequent_class_passes():
    labels = np.array([0] * 70 + [1] * 30)
    result = control_interval(np.zeros((10, 100), dtype=int), labels)
    low, high = result["chance"]
    assert result["passed"] and result["accuracy"] == 0.7
    assert (low, high) == pytest.approx((0.7, 0.7), abs=0.01)


def test_controls_that_answer_alike_for_a_class_pass_as_often_as_said():
    labels = np.repeat(np.arange(20), 10)
    passed = 0
    for trial in range(200):
        rng = np.random.default_rng(trial)
        named = np.stack([rng.permutation(20) for _ in range(5)])
        passed += control_interval(named[:, labels], labels)["passed"]
    assert passed >= 198


@pytest.mark.parametrize("change", [0.0, 0.7, 3.0, 50.0])
def test_the_likeliest_path_is_the_best_of_all(change):
    rng = np.random.default_rng(0)
    for frames in (1, 2, 5, 6):
        log_p = np.log(rng.dirichlet([0.3] * 3, frames) + 1e-30)

        def score(path, log_p=log_p):
            changes = sum(a != b for a, b in zip(path, path[1:], strict=False))
            total = sum(row[c] for row, c in zip(log_p, path, strict=True))
            return total - change * changes

        found = likeliest_path(log_p, change)
        best = max(itertools.product(range(3), repeat=frames), key=score)
        assert score(found) == pytest.approx(score(best))


def test_sequences_follow_frames_that_are_sure():
    p = torch.full((2, 6, 3), 0.05)
    for at, c in enumerate([0, 0, 2, 0, 1, 1]):
        p[:, at, c] = 0.9
    p[:, 2] = torch.tensor([0.3, 0.3, 0.4])  # one frame, hardly more likely
    found = Classification(p, torch.tensor([6, 3]), ["a", "b", "c"])
    assert found.names()[0] == ["a", "a", "c", "a", "b", "b"]
    assert found.sequences(change=1.0) == [["a", "b"], ["a"]]
    assert found.sequences(change=0.0)[0] == ["a", "c", "a", "b"]
    empty = Classification(p, torch.tensor([0, 0]), ["a", "b", "c"])
    assert empty.sequences() == [[], []]
