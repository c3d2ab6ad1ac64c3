"""Which samples of a waveform drive a number: integrated gradients.

Reference: Sundararajan, Taly, Yan: Axiomatic attribution for deep networks
(2017), section 3, https://arxiv.org/abs/1703.01365
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import nn

#: differences below this share of a value are float32's rounding
ROUNDING = 1e-6


class Attribution(NamedTuple):
    """What each sample contributes.

    Arguments
    ---------
    values : torch.Tensor
        (batch, samples); they sum to the difference.
    difference : torch.Tensor
        f(wavs) - f(baseline), (batch,).
    gap : torch.Tensor
        |sum of the values - difference|, relative to the difference, (batch,):
        the error of the integration. Where it is too large, take more steps.
    """

    values: torch.Tensor
    difference: torch.Tensor
    gap: torch.Tensor


def integrated_gradients(function, wavs, baseline=None, steps=64, batch_size=4):
    """Attributes the value of a function to the samples of its input.

    (x - b) * integral of f'(b + a (x - b)) over a from 0 to 1, by Gauss and
    Legendre's rule.

    Arguments
    ---------
    function : callable
        (batch, samples) -> (batch,), each from its own waveform.
    wavs : torch.Tensor
        x, (batch, samples).
    baseline : torch.Tensor, optional
        b, of the shape of `wavs`; silence by default.
    steps : int
        Points of the rule. The kinks of a trained encoder leave a gap of about
        1 % at 64, and more where the difference is small.
    batch_size : int
        Waveforms given to the function at once.

    Returns
    -------
    Attribution

    Raises
    ------
    ValueError
        If the function's values carry no gradient, or have another shape.

    Example
    -------
    >>> weight = torch.tensor([1.0, -2.0, 0.0])
    >>> integrated_gradients(lambda x: x @ weight, torch.ones(1, 3)).values
    tensor([[ 1., -2.,  0.]])
    """
    wavs = wavs.detach()
    baseline = torch.zeros_like(wavs) if baseline is None else baseline
    places, weights = (
        torch.as_tensor(rule).to(wavs)
        for rule in np.polynomial.legendre.leggauss(steps)
    )
    places, weights = (places + 1) / 2, weights / 2
    values = torch.zeros_like(wavs)
    for row, (wav, start) in enumerate(zip(wavs, baseline, strict=True)):
        for part, weight in zip(
            places.split(batch_size), weights.split(batch_size), strict=True
        ):
            points = start + part[:, None] * (wav - start)
            values[row] += weight @ _gradient(function, points)
    values *= wavs - baseline
    with torch.no_grad():
        ends = [
            torch.cat([function(part) for part in x.split(batch_size)])
            for x in (wavs, baseline)
        ]
    difference = ends[0] - ends[1]
    rounding = ROUNDING * torch.stack(ends).abs().amax(0)
    size = torch.maximum(difference.abs(), rounding)
    gap = (values.sum(1) - difference).abs() / size.clamp(min=1e-30)
    return Attribution(values, difference, gap)


def _gradient(function, points):
    """Gradient of each value with respect to its own waveform."""
    # cuDNN's recurrent layers have no backward in eval mode
    with torch.enable_grad(), torch.backends.cudnn.flags(enabled=False):
        points = points.requires_grad_()
        values = function(points)
        if values.shape != points.shape[:1]:
            raise ValueError(
                f"The function returns {tuple(values.shape)} for {len(points)} "
                f"waveforms; expected one number each."
            )
        if not values.requires_grad:
            raise ValueError(
                "The function's values carry no gradient: it must not detach "
                "them, nor compute them under no_grad."
            )
        (gradient,) = torch.autograd.grad(values.sum(), points)
    return gradient


def dimension_function(encoder, layer, dimension, frames=None):
    """Makes a function of one dimension's mean over time.

    Arguments
    ---------
    encoder : GreedyEncoder
        In eval mode; its parameters may be frozen.
    layer : str
        Name of the layer.
    dimension : int
        Which one.
    frames : slice or list of int, optional
        What the mean is over; all by default.

    Returns
    -------
    callable
        Waveforms without padding, (batch, samples) -> (batch,).

    Raises
    ------
    ValueError
        If the encoder is in train mode.

    Example
    -------
    >>> from speechbrain_sim.encoders.greedy import GreedyEncoder
    >>> encoder = GreedyEncoder(channels=4, context_channels=2).eval()
    >>> function = dimension_function(encoder, "module1", 3)
    >>> integrated_gradients(function, torch.randn(2, 800)).values.shape
    torch.Size([2, 800])
    """
    _check(encoder)
    frames = slice(None) if frames is None else frames

    def function(wavs):
        mean = encoder(wavs, layers=[layer])[layer].mean
        return mean[:, frames, dimension].mean(1)

    return function


def class_function(encoder, layer, weight, class_index):
    """Makes a function of a linear probe's logit, from the mean over time.

    A bias adds nothing to attributions. To ask why this class rather than
    another, subtract the mean over classes from the weight.

    Arguments
    ---------
    encoder : GreedyEncoder
        In eval mode; its parameters may be frozen.
    layer : str
        Name of the layer that the probe reads.
    weight : torch.Tensor
        (channels, classes), as `LinearProbe.weight` of one probe.
    class_index : int
        Which class.

    Returns
    -------
    callable
        Waveforms without padding, (batch, samples) -> (batch,).

    Raises
    ------
    ValueError
        If the encoder is in train mode.

    Example
    -------
    >>> from speechbrain_sim.encoders.greedy import GreedyEncoder
    >>> encoder = GreedyEncoder(channels=4, context_channels=2).eval()
    >>> function = class_function(encoder, "module3", torch.ones(4, 3), 0)
    >>> function(torch.randn(2, 800)).shape
    torch.Size([2])
    """
    _check(encoder)
    column = weight[:, class_index].detach()

    def function(wavs):
        mean = encoder(wavs, layers=[layer])[layer].mean
        return mean.mean(1) @ column.to(mean)

    return function


def _check(encoder):
    """Raises a ValueError if the means that are explained are random."""
    if encoder.training:
        raise ValueError("The encoder samples in train mode: call eval().")


def envelope(values, hop=160):
    """Sums the absolute attributions of each 10 ms.

    Arguments
    ---------
    values : torch.Tensor
        (batch, samples).
    hop : int
        Samples to sum over.

    Returns
    -------
    torch.Tensor
        (batch, hops), the last of which may be shorter.

    Example
    -------
    >>> envelope(torch.tensor([[1.0, -1.0, 2.0, 0.0, -5.0]]), hop=2)
    tensor([[2., 2., 5.]])
    """
    missing = -values.shape[1] % hop
    padded = nn.functional.pad(values.abs(), (0, missing))
    return padded.unflatten(1, (-1, hop)).sum(2)
