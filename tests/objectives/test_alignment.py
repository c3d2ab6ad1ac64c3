"""Divergences of spikes and slabs, and of gates within and between classes."""

import math
from itertools import combinations, product

import pytest
import torch
from torch.distributions import Bernoulli, Normal, kl_divergence

from speechbrain_sim.objectives.alignment import (
    bernoulli_entropy,
    between_classes,
    class_alignment,
    jensen_shannon,
)
from speechbrain_sim.objectives.spike_slab import spike_slab_kl

#: gate, mean, deviation of two units; the KL of each from alpha = 0.1
UNITS = torch.tensor([[0.9, 0.2], [1.0, -0.5], [0.5, 0.8]]).double()
KNOWN = [2.49411, 0.07803]
ALPHA = torch.tensor(0.1).double()


def draw(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(*shape, generator=generator).double()


# spikes and slabs -----------------------------------------------------------


def test_kl_of_the_issue_and_by_monte_carlo():
    kl = sum(spike_slab_kl(tuple(UNITS), (ALPHA, 0.0, 1.0)))
    assert kl.tolist() == pytest.approx(KNOWN, abs=1e-5)
    assert kl.sum().item() == pytest.approx(2.57214, abs=2e-5)
    gate, mean, std = UNITS
    generator = torch.Generator().manual_seed(1)
    noise = torch.randn(200_000, 2, generator=generator).double()
    z = mean + std * noise
    slab = Normal(mean, std).log_prob(z) - Normal(0.0, 1.0).log_prob(z)
    opened = (gate / ALPHA).log() + slab.mean(0)
    shut = ((1 - gate) / (1 - ALPHA)).log()
    drawn = gate * opened + (1 - gate) * shut
    assert drawn.tolist() == pytest.approx(kl.tolist(), abs=0.01)


def test_an_open_gate_is_a_gaussian_and_what_opening_costs():
    _, mean, std = UNITS
    gate = torch.ones_like(mean)
    spikes, slabs = spike_slab_kl((gate, mean, std), (ALPHA, 0.0, 1.0))
    expected = kl_divergence(Normal(mean, std), Normal(0.0, 1.0))
    torch.testing.assert_close(slabs, expected, check_dtype=False)
    assert spikes.tolist() == pytest.approx([math.log(10)] * 2)


def test_kl_from_any_spike_and_slab():
    prior = tuple(UNITS.flip(1))
    spikes, slabs = spike_slab_kl(tuple(UNITS), prior)
    pair = [(Bernoulli(x[0]), Normal(*x[1:])) for x in (UNITS, prior)]
    (spike, slab), (other, ground) = pair
    torch.testing.assert_close(spikes, kl_divergence(spike, other))
    torch.testing.assert_close(slabs, UNITS[0] * kl_divergence(slab, ground))
    assert sum(spike_slab_kl(prior, prior)).abs().max() < 1e-12


# gates ----------------------------------------------------------------------


def test_divergence_is_symmetric_zero_on_equals_and_at_most_ln_2():
    one, other = draw(2, 50, 4)
    divergence = jensen_shannon(one, other)
    middle = Bernoulli((one + other) / 2)
    slow = sum(kl_divergence(Bernoulli(x), middle) for x in (one, other)) / 2
    torch.testing.assert_close(divergence, slow)
    torch.testing.assert_close(divergence, jensen_shannon(other, one))
    assert 0 <= divergence.min() and divergence.max() <= math.log(2)
    assert jensen_shannon(one, one).abs().max() < 1e-12
    ends = torch.tensor([0.0, 1.0])
    assert jensen_shannon(ends, 1 - ends).tolist() == pytest.approx(
        [math.log(2)] * 2
    )


def joint_divergence(one, other):
    """JSD of two products of Bernoullis, over all states."""
    total = 0.0
    for state in product((0, 1), repeat=len(one)):
        p, q = (
            math.prod(
                float(g if on else 1 - g)
                for g, on in zip(x, state, strict=False)
            )
            for x in (one, other)
        )
        middle = (p + q) / 2
        total += sum(x * math.log(x / middle) / 2 for x in (p, q))
    return total


def test_the_sum_is_an_upper_bound_of_the_joint_divergence():
    """In four dimensions; in one they are equal."""
    for seed in range(5):
        one, other = draw(2, 4, seed=seed)
        each = jensen_shannon(one, other)
        assert joint_divergence(one, other) < each.sum()
        alone = joint_divergence(one[:1], other[:1])
        assert alone == pytest.approx(each[0].item())


def slow_alignment(gates, classes, denominator, distance):
    """The mean over classes of the sum over pairs, one at a time."""
    found = []
    for c in set(classes.tolist()) - {-1}:
        rows = gates[classes == c]
        pairs = [*combinations(range(len(rows)), 2)]
        if not pairs:
            continue
        each = [jensen_shannon(rows[j], rows[k]).sum() for j, k in pairs]
        each = [x.sqrt() if distance else x for x in each]
        below = len(pairs) if denominator == "pairs" else len(rows)
        found.append(sum(each).item() / below)
    return sum(found) / len(found)


@pytest.mark.parametrize("denominator", ["pairs", "samples"])
@pytest.mark.parametrize("distance", [False, True])
def test_pairs_against_loops(denominator, distance, monkeypatch):
    gates, where = draw(40, 6), "speechbrain_sim.objectives.alignment"
    classes = torch.tensor([0] * 9 + [1] * 9 + [2] * 2 + [3, -1] + [4] * 18)
    classes = classes[draw(40, seed=3).argsort()]
    how = "pairs", denominator, distance
    expected = slow_alignment(gates, classes, *how[1:])
    found = class_alignment(gates, classes, *how).item()
    assert found == pytest.approx(expected, 1e-6)
    monkeypatch.setattr(f"{where}.PAIRS_AT_ONCE", 7)
    found = class_alignment(gates, classes, *how).item()
    assert found == pytest.approx(expected, 1e-6)


def test_the_centroid_form_is_equal_for_two_and_bounds_for_more():
    gates, classes = draw(6, 5), torch.tensor([0, 0, 1, 1, 2, 2])
    two = [class_alignment(gates, classes, f) for f in ("pairs", "centroid")]
    torch.testing.assert_close(*two)
    gates, classes = draw(9, 5), torch.zeros(9, dtype=torch.long)
    mean = gates.mean(0)
    middle = bernoulli_entropy(mean).sum()
    expected = middle - bernoulli_entropy(gates).sum(1).mean()
    found = class_alignment(gates, classes, "centroid")
    torch.testing.assert_close(found, expected)


def test_classes_of_one_sample_contribute_nothing_and_are_not_counted():
    gates, classes = draw(5, 3), torch.tensor([0, 0, 1, 2, -1])
    alone = class_alignment(gates[:2], classes[:2])
    torch.testing.assert_close(class_alignment(gates, classes), alone)
    assert class_alignment(gates, torch.arange(5)) == 0
    assert class_alignment(gates, torch.full((5,), -1)) == 0


def test_equal_gates_are_best_and_opposite_gates_worst():
    same = torch.tensor([[0.9, 0.1]] * 4)
    mixed = torch.tensor([[1.0, 0.0], [0.0, 1.0]] * 2)
    own, other = torch.tensor([0, 1, 0, 1]), torch.tensor([0, 0, 1, 1])
    assert class_alignment(same, other) == 0 == between_classes(same, other)
    worst = 2 * math.log(2)
    assert class_alignment(mixed, other, "centroid") == pytest.approx(worst)
    assert between_classes(mixed, other) == pytest.approx(0, abs=1e-6)
    assert class_alignment(mixed, own) == pytest.approx(0, abs=1e-6)
    assert between_classes(mixed, own) == pytest.approx(worst)


@pytest.mark.parametrize("form", ["pairs", "centroid"])
@pytest.mark.parametrize("distance", [False, True])
def test_gradients_of_equal_and_extreme_gates_are_finite(form, distance):
    gates = torch.tensor([[1e-6, 1 - 1e-6, 0.5]] * 3, requires_grad=True)
    classes = torch.zeros(3, dtype=torch.long)
    class_alignment(gates, classes, form, distance=distance).backward()
    assert gates.grad.isfinite().all()
