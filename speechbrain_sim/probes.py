"""Linear probes: what a linear layer can read from a latent."""

from itertools import groupby
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from speechbrain_sim.arguments import records_arguments


class LinearProbe(nn.Module):
    """Linear classifiers, trained side by side on the same features.

    logits_s = x_s W_s (+ b_s), for `probes` independent classifiers s. With an
    optimizer that works elementwise, such as Adam, training them together
    equals training each alone.

    Arguments
    ---------
    channels, classes : int
        Channels of the features, and classes.
    probes : int
        How many classifiers.
    bias : bool
        Whether they have a bias.
    generators : list of torch.Generator, optional
        One per classifier: source of its initial weights, which are uniform in
        +- 1 / sqrt(channels), as those of `torch.nn.Linear`.

    Example
    -------
    >>> LinearProbe(16, 3, probes=2)(torch.randn(2, 8, 16)).shape
    torch.Size([2, 8, 3])
    """

    def __init__(self, channels, classes, probes=1, bias=True, generators=None):
        super().__init__()
        generators = generators or [None] * probes
        bound = channels**-0.5

        def uniform(*shape):
            draws = torch.empty(len(generators), *shape)
            for draw, generator in zip(draws, generators, strict=True):
                draw.uniform_(-bound, bound, generator=generator)
            return nn.Parameter(draws)

        self.weight = uniform(channels, classes)
        self.bias = uniform(1, classes) if bias else None

    def forward(self, x):
        """(probes, examples, channels) -> logits (probes, examples, classes)."""
        if self.bias is None:
            return torch.bmm(x, self.weight)
        return torch.baddbmm(self.bias, x, self.weight)


@records_arguments
class LayerProbes(nn.Module):
    """Trained probes of every layer, and the units of their features.

    logits = (x - mean) / std W (+ b), with the mean and standard deviation of
    the features that the probes were trained on.

    Arguments
    ---------
    channels : dict of str to int
        Channels of each layer.
    classes, bias :
        See `LinearProbe`.
    probes : int
        Probes of each layer, one per seed.

    Example
    -------
    >>> probes = LayerProbes({"module3": 16, "context": 8}, 3, probes=2)
    >>> probes(torch.randn(2, 64, 16), "module3").shape
    torch.Size([2, 64, 3])
    """

    def __init__(self, channels, classes, bias=True, probes=1):
        super().__init__()
        #: the LinearProbe of each layer
        self.probes = nn.ModuleDict()
        for layer, width in channels.items():
            self.probes[layer] = LinearProbe(width, classes, probes, bias)
            self.register_buffer(f"{layer}_mean", torch.zeros(width))
            self.register_buffer(f"{layer}_std", torch.ones(width))

    def forward(self, x, layer):
        """Scores the classes with the first probe of a layer.

        (batch, time, channels) -> (batch, time, classes). A ValueError is
        raised if the layer has no probe.
        """
        if layer not in self.probes:
            known = ", ".join(self.probes)
            raise ValueError(f"'{layer}' has no probe, only {known} have.")
        mean = getattr(self, f"{layer}_mean")
        x = (x - mean) / getattr(self, f"{layer}_std")
        logits = x @ self.probes[layer].weight[0]
        bias = self.probes[layer].bias
        return logits if bias is None else logits + bias[0]


class Classification(NamedTuple):
    """Predictions of a probe.

    `probabilities` (batch, time, classes), one frame for labels of whole
    utterances; `lengths`, the valid frames (batch,); `classes`, their names.
    """

    probabilities: torch.Tensor
    lengths: torch.Tensor
    classes: list

    def names(self):
        """Names the likeliest classes: list of list of str, per utterance."""
        best = self.probabilities.argmax(-1)
        return [
            [self.classes[i] for i in row[:frames].tolist()]
            for row, frames in zip(best, self.lengths, strict=True)
        ]

    def sequences(self, change=6.0):
        """Names the classes that follow each other: list of list of str.

        They are those of `likeliest_path`: frame by frame, predictions flicker.
        """
        p, found = self.probabilities.double().cpu().numpy(), []
        for row, frames in zip(p, self.lengths, strict=True):
            path = likeliest_path(np.log(row[:frames] + 1e-30), change)
            found.append([self.classes[i] for i, _ in groupby(path)])
        return found


def likeliest_path(log_p, change):
    """Finds the classes c that maximise sum_t log p(c_t) - change * changes.

    Dynamic programming (Viterbi), where every change of class costs the same.

    Arguments
    ---------
    log_p : numpy.ndarray
        (time, classes).
    change : float
        What a change costs, in nats.

    Returns
    -------
    list of int
        The class of each frame.

    Example
    -------
    >>> p = np.array([[0.9, 0.1], [0.4, 0.6], [0.9, 0.1]])
    >>> likeliest_path(np.log(p), 1.0), likeliest_path(np.log(p), 0.0)
    ([0, 0, 0], [0, 1, 0])
    """
    if not len(log_p):
        return []
    score, before = log_p[0], []
    for frame in log_p[1:]:
        best = score.argmax()
        stays = score >= score[best] - change
        before.append(np.where(stays, np.arange(len(score)), best))
        score = np.where(stays, score, score[best] - change) + frame
    path = [int(score.argmax())]
    for at in reversed(before):
        path.append(int(at[path[-1]]))
    return path[::-1]
