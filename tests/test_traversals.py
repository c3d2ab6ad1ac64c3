"""Walks through a latent space."""

import pytest
import torch

from speechbrain_sim.traversals import (
    interpolate,
    most_different,
    swap,
    traverse,
)


def test_interpolation_ends_at_its_ends():
    start, target = torch.randn(2, 7, 5)
    stops = interpolate(start, target, 5)
    assert torch.equal(stops[0], start)
    torch.testing.assert_close(stops[-1], target)
    torch.testing.assert_close(stops[2], (start + target) / 2)
    with pytest.raises(ValueError, match="Cannot walk"):
        interpolate(start, target[:6], 5)


def test_dimensions_are_ranked_by_the_difference_of_their_means():
    start, target = torch.randn(2, 3, 9, 6)
    ranked = most_different(start, target)
    for pair in range(3):
        slow = sorted(
            range(6),
            key=lambda d: -abs(
                sum(start[pair, :, d]).item() - sum(target[pair, :, d]).item()
            ),
        )
        assert ranked[pair].tolist() == slow


def test_swapping_none_or_all():
    start, target = torch.randn(2, 3, 9, 6)
    ranked = most_different(start, target)
    assert torch.equal(swap(start, target, ranked[:, :0]), start)
    assert torch.equal(swap(start, target, ranked), target)
    two = swap(start, target, ranked[:, :2])
    changed = (two != start).any(1)  # (pair, dimension)
    for pair in range(3):
        assert set(changed[pair].nonzero()[:, 0].tolist()) == set(
            ranked[pair, :2].tolist()
        )


def test_a_traversal_moves_one_dimension():
    z = torch.randn(9, 6)
    stops = traverse(z, 4, [-3.0, 0.0, 3.0])
    assert (stops[..., 4] == torch.tensor([-3.0, 0.0, 3.0])[:, None]).all()
    others = [d for d in range(6) if d != 4]
    assert (stops[..., others] == z[:, others]).all()
    assert not torch.equal(z[:, 4], stops[1, :, 4])
