"""Products of which only few entries are not zero.

Entries of a matrix (rows, units) are named by two vectors, `rows` and `units`,
in the order of `rows`. A sum over them costs as many products as there are
entries, not as there are elements: with 32 of 4,096, a hundredth.
"""

import torch
from torch.nn.functional import embedding_bag

#: what a candidate among the largest must exceed, as a share of the threshold
MARGIN = 0.9
#: width of the rectangle that stands for the derivative of H in `JumpReLU`
BANDWIDTH = 0.1


def largest_of_rows(acts, k):
    """Names the k largest entries of each row of a matrix: (rows, units)."""
    units = acts.topk(k, dim=1, sorted=False).indices
    rows = torch.arange(len(acts), device=acts.device).repeat_interleave(k)
    return rows, units.flatten()


def largest_of_batch(acts, count, threshold):
    """Names the `count` largest positive entries of a matrix: (rows, units).

    Only a share of entries is sorted, those near and above `threshold`, unless
    they are too few: the result does not depend on it.

    Example
    -------
    >>> acts = torch.tensor([[5.0, 1.0, 3.0], [-1.0, 2.0, -9.0]])
    >>> largest_of_batch(acts, 3, threshold=4.0)
    (tensor([0, 0, 1]), tensor([0, 2, 1]))
    """
    flat = acts.flatten()
    among = (flat > max(MARGIN * float(threshold), 0)).nonzero()[:, 0]
    if len(among) < count:
        among = (flat > 0).nonzero()[:, 0]
    if len(among) > count:
        top = flat[among].topk(count, sorted=False).indices
        among = among[top].sort().values
    return among // acts.shape[1], among % acts.shape[1]


def weighted_sums(weights, rows, x, bags, num_bags):
    """Sums weights times rows of a matrix, (bags, channels).

    The sum of bag j is over the entries e with bags[e] = j, which are in
    order: sum_e weights[e] x[rows[e]].
    """
    counts = torch.bincount(bags, minlength=num_bags)
    offsets = counts.cumsum(0) - counts
    return embedding_bag(
        rows, x, offsets, mode="sum", per_sample_weights=weights
    )


class EntriesOfProduct(torch.autograd.Function):
    """Entries of x W^T + b that are known already, with their gradients.

    Arguments are x (rows, channels), W (units, channels), b (units,), the
    values of the entries, their `rows` and their `units`. x has no gradient.
    """

    @staticmethod
    def forward(ctx, x, weight, bias, values, rows, units):
        """Returns the values."""
        ctx.save_for_backward(x, rows, units)
        ctx.num_units = len(weight)
        return values.clone()

    @staticmethod
    def backward(ctx, gradient):
        """Sums the gradient times rows of x, for each unit."""
        x, rows, units = ctx.saved_tensors
        units, order = units.sort(stable=True)
        gradient = gradient[order]
        weight = weighted_sums(gradient, rows[order], x, units, ctx.num_units)
        bias = gradient.new_zeros(ctx.num_units).index_add(0, units, gradient)
        return None, weight, bias, None, None, None


class JumpReLU(torch.autograd.Function):
    """a H(a - t) and H(a - t), with H the step from 0 to 1.

    Arguments are a (rows, units) and t (units,). The derivative of H is taken
    as 1 / e where |a - t| < e / 2, for t only: see `SparseAutoencoder`.
    """

    @staticmethod
    def forward(ctx, a, threshold):
        """Returns both, (rows, units)."""
        steps = (a > threshold).to(a.dtype)
        ctx.save_for_backward(a, threshold, steps)
        return a * steps, steps

    @staticmethod
    def backward(ctx, gradient, gradient_of_steps):
        """Returns the gradients for a and t."""
        a, threshold, steps = ctx.saved_tensors
        near = ((a - threshold).abs() < BANDWIDTH / 2) / BANDWIDTH
        both = threshold * gradient + gradient_of_steps
        return gradient * steps, -(near * both).sum(0)


def geometric_median(x, iterations=100, tolerance=1e-5):
    """Computes the point of least mean distance to rows, by Weiszfeld's steps.

    Example
    -------
    >>> geometric_median(torch.tensor([[0.0], [1.0], [100.0]])).round()
    tensor([1.])
    """
    median = x.mean(0)
    for _ in range(iterations):
        weights = 1 / (x - median).norm(dim=1).clamp_min(1e-12)
        former, median = median, weights @ x / weights.sum()
        if (median - former).norm() < tolerance:
            break
    return median
