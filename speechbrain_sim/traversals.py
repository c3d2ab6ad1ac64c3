"""Paths through a latent space; all pure, latents -> latents.

Reference: Smooth InfoMax (2025), sections 4.3.1 and 4.3.3,
https://arxiv.org/abs/2408.12936
"""

import torch


def interpolate(start, target, steps):
    """Interpolates between two latents: (1 - a) start + a target.

    From two of (time, channel) to (steps, time, channel), with both ends.
    """
    if start.shape != target.shape:
        raise ValueError(f"Cannot walk from {start.shape} to {target.shape}.")
    alpha = torch.linspace(0, 1, steps).to(start)
    return torch.lerp(start, target, alpha.view(-1, *[1] * start.ndim))


def most_different(start, target):
    """Ranks the dimensions by how much their means over time differ.

    From (..., time, channel) to (..., channel), int64, most different first.
    """
    distance = (start.mean(-2) - target.mean(-2)).abs()
    return distance.argsort(dim=-1, descending=True, stable=True)


def swap(start, target, dimensions):
    """Copies `dimensions`, (..., n), of the target into the start.

    Both are (..., time, channel).
    """
    chosen = torch.zeros_like(start[..., 0, :], dtype=torch.bool)
    chosen.scatter_(-1, dimensions, True)
    return torch.where(chosen.unsqueeze(-2), target, start)


def traverse(z, dimension, values):
    """Sets one dimension of (time, channel): (values, time, channel)."""
    stops = z.expand(len(values), *z.shape).clone()
    stops[..., dimension] = torch.as_tensor(values).to(z)[:, None]
    return stops


def deviations(steps, mean=0.0, std=1.0):
    """Lists the values of a traversal: mean - 3 std ... mean + 3 std.

    Example
    -------
    >>> deviations(3, mean=1.0, std=2.0)
    [-5.0, 1.0, 7.0]
    """
    ends = mean - 3.0 * std, mean + 3.0 * std
    return torch.linspace(*ends, steps, dtype=torch.float64).tolist()


def aggregate(mean, log_var=None):
    """Returns mean and deviation of the aggregate posterior, over frames.

    Its variance is that of the means plus the mean variance; of (time, ...).

    Example
    -------
    >>> aggregate(torch.tensor([-1.0, 1.0]), torch.zeros(2))
    (tensor(0.), tensor(1.4142))
    """
    variance = mean.var(0, correction=0)
    if log_var is not None:
        variance = variance + log_var.exp().mean(0)
    return mean.mean(0), variance.sqrt()


def draw_prior(frames, channels, generator=None):
    """Draws (frames, channels) from the prior N(0, I)."""
    return torch.randn(frames, channels, generator=generator)
