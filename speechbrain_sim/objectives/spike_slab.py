"""KL divergence between spikes and slabs, pure."""

from torch.special import xlogy


def gaussian_kl(mean, std, prior_mean=0.0, prior_std=1.0):
    """KL divergence of N(mean, std^2) from another Gaussian, nats, elementwise.

    log(s' / s) + (s^2 + (m - m')^2) / (2 s'^2) - 1/2.

    Example
    -------
    >>> import torch
    >>> gaussian_kl(torch.tensor([0.0, 1.0]), torch.ones(2))
    tensor([0.0000, 0.5000])
    """
    ratio = std / prior_std
    gap = (mean - prior_mean) / prior_std
    return 0.5 * (ratio.square() + gap.square() - 1) - ratio.log()


def bernoulli_kl(gate, prior):
    """KL divergence of Bernoulli(gate) from Bernoulli(prior), elementwise.

    g log(g / p) + (1 - g) log((1 - g) / (1 - p)), nats.

    Example
    -------
    >>> import torch
    >>> bernoulli_kl(torch.tensor([0.2, 1.0]), torch.tensor(0.1))
    tensor([0.0444, 2.3026])
    """
    shut = 1 - gate
    kept = xlogy(gate, gate) + xlogy(shut, shut)
    return kept - xlogy(gate, prior) - xlogy(shut, 1 - prior)


def spike_slab_kl(posterior, prior):
    """KL divergence of gate N(mean, std^2) + (1 - gate) delta(0) from another.

    Both are (gate, mean, std). Bernoulli(gate) from Bernoulli(prior gate), plus
    gate times the Gaussian's: Tonolini et al. 2020,
    https://proceedings.mlr.press/v115/tonolini20a.html, equation 6; with a prior
    (alpha, 0, 1), equations 1-2 of the paper on class alignment.

    Returns
    -------
    spikes, slabs : (torch.Tensor, torch.Tensor)
        The two addends, nats, elementwise.

    Example
    -------
    >>> import torch
    >>> one = torch.tensor([0.9, 0.2])
    >>> q = one, torch.tensor([1.0, -0.5]), torch.tensor([0.5, 0.8])
    >>> sum(spike_slab_kl(q, (torch.tensor(0.1), 0.0, 1.0)))
    tensor([2.4941, 0.0780])
    """
    (gate, *slab), (prior_gate, *prior_slab) = posterior, prior
    slabs = gate * gaussian_kl(*slab, *prior_slab)
    return bernoulli_kl(gate, prior_gate), slabs
