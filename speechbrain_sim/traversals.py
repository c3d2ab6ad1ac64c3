"""Walks through a latent space; all pure, latents -> latents.

All take and return (..., channel). Reference: Denoodt, de Boer, Oramas: Smooth
InfoMax (2025), sections 4.3.1 and 4.3.3, https://arxiv.org/abs/2408.12936
"""

import torch


def interpolate(start, target, steps):
    """Walks from one latent to another: (1 - a) start + a target.

    Arguments
    ---------
    start, target : torch.Tensor
        Of one shape, (time, channel).
    steps : int
        Number of stops, both ends among them.

    Returns
    -------
    torch.Tensor
        (steps, time, channel).

    Example
    -------
    >>> interpolate(torch.zeros(1, 1), torch.ones(1, 1), 3).flatten()
    tensor([0.0000, 0.5000, 1.0000])
    """
    if start.shape != target.shape:
        raise ValueError(
            f"Cannot walk from {tuple(start.shape)} to {tuple(target.shape)}."
        )
    alpha = torch.linspace(0, 1, steps).to(start)
    alpha = alpha.view(-1, *[1] * start.ndim)
    return torch.lerp(start, target, alpha)


def most_different(start, target):
    """Ranks the dimensions by how much their means over time differ.

    Arguments
    ---------
    start, target : torch.Tensor
        (..., time, channel).

    Returns
    -------
    torch.Tensor
        (..., channel), int64: dimensions, most different first.

    Example
    -------
    >>> most_different(torch.zeros(2, 3), torch.tensor([[1.0, -4.0, 2.0]]))
    tensor([1, 2, 0])
    """
    distance = (start.mean(-2) - target.mean(-2)).abs()
    return distance.argsort(dim=-1, descending=True, stable=True)


def swap(start, target, dimensions):
    """Copies some dimensions of the target into the start.

    Arguments
    ---------
    start, target : torch.Tensor
        (..., time, channel).
    dimensions : torch.Tensor
        (..., n), int64: which ones.

    Returns
    -------
    torch.Tensor
        Of the shape of `start`.

    Example
    -------
    >>> start, target = torch.zeros(2, 3), torch.ones(2, 3)
    >>> swap(start, target, torch.tensor([2]))
    tensor([[0., 0., 1.],
            [0., 0., 1.]])
    """
    chosen = torch.zeros_like(start[..., 0, :], dtype=torch.bool)
    chosen.scatter_(-1, dimensions, True)
    return torch.where(chosen.unsqueeze(-2), target, start)


def traverse(z, dimension, values):
    """Sets one dimension to each of several values, at all times.

    Arguments
    ---------
    z : torch.Tensor
        (time, channel).
    dimension : int
        Which one.
    values : list of float
        Stops, e.g. from -3 to 3 for three deviations of the prior.

    Returns
    -------
    torch.Tensor
        (stops, time, channel).

    Example
    -------
    >>> traverse(torch.zeros(1, 2), 1, [-3.0, 3.0])
    tensor([[[ 0., -3.]],
            [[ 0.,  3.]]])
    """
    stops = z.expand(len(values), *z.shape).clone()
    stops[..., dimension] = torch.as_tensor(values).to(z)[:, None]
    return stops


def deviations(steps, mean=0.0, std=1.0, reach=3.0):
    """Lists the stops of a traversal: mean - reach std ... mean + reach std.

    Arguments
    ---------
    steps : int
        How many; odd, to pass through the mean.
    mean, std : float
        Of the dimension: 0 and 1 are the prior's, or the posterior's own.
    reach : float
        How far to go, in deviations.

    Returns
    -------
    list of float

    Example
    -------
    >>> deviations(3, mean=1.0, std=2.0)
    [-5.0, 1.0, 7.0]
    """
    return torch.linspace(
        mean - reach * std, mean + reach * std, steps, dtype=torch.float64
    ).tolist()


def draw_prior(frames, channels, generator=None):
    """Draws latents from the prior N(0, I), every frame by itself.

    Arguments
    ---------
    frames, channels : int
        Shape.
    generator : torch.Generator, optional
        Source of the noise.

    Returns
    -------
    torch.Tensor
        (frames, channels).

    Example
    -------
    >>> draw_prior(64, 8).shape
    torch.Size([64, 8])
    """
    return torch.randn(frames, channels, generator=generator)
