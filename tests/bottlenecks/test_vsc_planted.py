"""The paper's claim on planted factors: alignment shows whose each unit is.

As of pictures of digits: two factors are of all classes (thickness, slant), and
each class but the last has one of its own (a loop, a tail, ...).
"""

import numpy as np
import pytest
import torch

from benchmarks.planted import plant, recovered, train


def test_shared_and_own_factors_are_found_again():
    planted = plant(seed=0, mean=1.5, mark=0.0)
    coder = train(planted, 5.0, steps=400, units=10)
    score, shares = recovered(coder, planted)
    assert score >= 0.9
    everywhere = (shares > 0.9).all(1).sum()
    assert everywhere == 2
    untrained = train(planted, 5.0, steps=1, units=10)
    assert recovered(untrained, planted)[0] < 0.4


def test_alignment_finds_whose_factors_of_any_sign_are():
    planted = plant(seed=0)
    ways = {
        "aligned": (20.0, 0, 400),
        "none": (0.0, 0, 400),
        "shuffled": (20.0, 0, 400, True),
    }
    scores = {
        name: recovered(train(planted, *given), planted)[0]
        for name, given in ways.items()
    }
    assert scores["aligned"] > 0.05 + max(scores["none"], scores["shuffled"])


def test_the_score_of_what_was_planted_is_best_and_of_noise_worst():
    planted = plant(seed=0)

    class Planted(torch.nn.Module):
        """Gates and directions, known."""

        def __init__(self, gates, atoms):
            super().__init__()
            self.gates, self.atoms, self.num_units = gates, atoms, len(atoms)

        def posterior(self, x):
            return self.gates, None, None

        def decode(self, codes):
            return codes @ self.atoms

    gates = planted.belongs.T[planted.classes]
    assert recovered(Planted(gates, planted.atoms), planted)[0] == 1
    noise = torch.from_numpy(np.random.default_rng(0).random(gates.shape))
    assert recovered(Planted(noise, planted.atoms), planted)[0] < 0.4
    always = torch.ones_like(gates)
    score = recovered(Planted(always, planted.atoms), planted)[0]
    assert score == pytest.approx(2 / 6)
