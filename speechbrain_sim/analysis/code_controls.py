"""Codes as wide and as sparse as a bottleneck's, in which nothing was learned."""

import numpy as np
import torch
from scipy import sparse

from speechbrain_sim.analysis.code_scores import encode_rows
from speechbrain_sim.bottlenecks.sae import SparseAutoencoder
from speechbrain_sim.randomness import keyed_generator

#: their names
CONTROLS = UNTRAINED, RANDOM, PCA = "untrained", "random", "PCA"
#: ridge of a fitted decoder, relative to the mean square of codes
RIDGE = 1e-3


def untrained(bottleneck, x, k, seed=0):
    """Makes a TopK autoencoder before its first step.

    Its constant is the median of training frames `x`, a tensor.
    """
    code = _make(bottleneck, k, seed, UNTRAINED)
    code.initialise(x)
    return code


def random_projection(bottleneck, x, k, seed=0):
    """Makes a TopK code of random directions; its decoder is fitted.

    By least squares from the codes of training frames `x`, a tensor.
    """
    code = _make(bottleneck, k, seed, RANDOM)
    z, _ = encode_rows(code, x.numpy())
    z = sparse.hstack([z, np.ones((len(x), 1))]).tocsr()  # and a constant
    square = (z.T @ z).toarray() / len(x)
    ridge = RIDGE * np.trace(square) / len(square) * np.eye(len(square))
    target = z.T @ code.to_units(x).numpy() / len(x)
    *weight, bias = np.linalg.solve(square + ridge, target)
    code.decoder.weight.copy_(torch.from_numpy(np.array(weight).T))
    code.b_dec.copy_(torch.from_numpy(bias))
    # what is subtracted before the encoder is added to it again
    code.encoder.bias.copy_(code.encoder.weight @ code.b_dec)
    return code


def principal_components(bottleneck, x, k):
    """Makes a TopK code of principal components, a unit for each sign.

    As many as there are units; what is left of these is never used.
    """
    code = _make(bottleneck, k, PCA)
    code.encoder.weight.zero_()
    u = code.to_units(x)
    code.b_dec.copy_(u.mean(0))
    _, axes = torch.linalg.eigh(torch.cov(u.double().T))
    axes = axes.T.flip(0)[: code.num_units // 2].float()  # the largest first
    axes = torch.stack([axes, -axes], 1).flatten(0, 1)
    code.encoder.weight[: len(axes)] = axes
    code.decoder.weight[:, : len(axes)] = axes.T
    return code


def _make(bottleneck, k, *key):
    """An untrained TopK code of the bottleneck's sizes and units."""
    sizes = bottleneck.input_channels, bottleneck.num_units
    code = SparseAutoencoder(*sizes, k, generator=keyed_generator(*key))
    code.mean.copy_(bottleneck.mean)
    code.std.copy_(bottleneck.std)
    return code.eval().requires_grad_(False)


def make_control(name, bottleneck, x, k, seed=0):
    """Makes one of `CONTROLS` of a bottleneck.

    Arguments
    ---------
    name, bottleneck : str, Bottleneck
        Which, and as wide as what.
    x : torch.Tensor
        Training frames, (rows, channels).
    k, seed : int
        Units that fire in a frame; of draws.

    Returns
    -------
    Bottleneck
    """
    if name == UNTRAINED:
        return untrained(bottleneck, x, k, seed)
    if name == RANDOM:
        return random_projection(bottleneck, x, k, seed)
    return principal_components(bottleneck, x, k)
