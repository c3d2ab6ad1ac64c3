"""Linear probes: what a linear layer can read from a latent."""

from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from speechbrain_sim.arguments import records_arguments
from speechbrain_sim.console import Bar
from speechbrain_sim.files import atomic
from speechbrain_sim.logistic import (
    LOOSE,
    TOLERANCE,
    Solved,
    solve_logistic,
)
from speechbrain_sim.randomness import keyed_generator


def key_of(layer):
    """Returns a layer's name as torch takes it for a module: without dots.

    Example
    -------
    >>> key_of("module3.sae")
    'module3/sae'
    """
    return layer.replace(".", "/")


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
    the features that the probes were trained on; with a hidden layer,
    relu((x - mean) / std V + c) W + b.

    Arguments
    ---------
    channels : dict of str to int
        Channels of each layer.
    classes, bias :
        See `LinearProbe`.
    probes : int
        Probes of each layer, one per seed.
    hidden : int
        Units of a hidden layer; 0 for none.

    Example
    -------
    >>> probes = LayerProbes({"module3": 16, "context": 8}, 3, probes=2)
    >>> probes(torch.randn(2, 64, 16), "module3").shape
    torch.Size([2, 64, 3])
    """

    def __init__(self, channels, classes, bias=True, probes=1, hidden=0):
        super().__init__()
        #: the LinearProbe of each layer's key, and what is below it
        self.probes, self.hidden = nn.ModuleDict(), nn.ModuleDict()
        self.layers = list(channels)
        for layer, width in channels.items():
            below, key = hidden or width, key_of(layer)
            self.probes[key] = LinearProbe(below, classes, probes, bias)
            if hidden:
                self.hidden[key] = LinearProbe(width, hidden, probes)
            self.register_buffer(f"{key}_mean", torch.zeros(width))
            self.register_buffer(f"{key}_std", torch.ones(width))

    def forward(self, x, layer):
        """Scores the classes with the first probe of a layer.

        (batch, time, channels) -> (batch, time, classes). A ValueError is
        raised if the layer has no probe.
        """
        if layer not in self.layers:
            known = ", ".join(self.layers)
            raise ValueError(f"'{layer}' has no probe, only {known} have.")
        key = key_of(layer)
        mean = getattr(self, f"{key}_mean")
        x = (x - mean) / getattr(self, f"{key}_std")
        if key in self.hidden:
            below = self.hidden[key]
            x = (x @ below.weight[0] + below.bias[0]).relu()
        logits = x @ self.probes[key].weight[0]
        bias = self.probes[key].bias
        return logits if bias is None else logits + bias[0]


def shuffled_labels(y, controls):
    """Draws the labels of controls: as many of each class, in random order.

    `y` are classes, (examples,); returns (controls, examples), int32. So no
    class is special, see `speechbrain_sim.analysis.intervals`.
    """
    balanced = torch.arange(len(y), dtype=torch.int32) % (1 + int(y.max()))
    # narrow: with 100 hours, these are what memory is needed for
    drawn = torch.empty(controls, len(y), dtype=torch.int32)
    for number, row in enumerate(drawn):
        generator = keyed_generator("control", number, "labels")
        row[:] = balanced[torch.randperm(len(y), generator=generator)]
    return drawn


def units_of(mean, std, standardize, bias=True):
    """Returns the mean and deviation by which features of a layer are solved.

    Not standardized, they are centred, which a bias makes no difference.
    """
    if standardize:
        return mean, std
    return mean if bias else torch.zeros_like(mean), torch.ones_like(std)


class Choice(NamedTuple):
    """What was chosen on the validation part for a layer."""

    strength: float
    standardize: bool
    valid_accuracy: float
    #: of all that could be chosen: (strength, standardize, valid_accuracy)
    tried: list


class ProbeSolver(NamedTuple):
    """Solves the probes of several layers by `solve_logistic`.

    What is solved is kept in a folder, from which a killed run goes on.

    Arguments
    ---------
    classes, bias, hidden, limit, device :
        See `solve_logistic`.
    folder : Path
        Where to keep it.
    """

    classes: int
    bias: bool
    hidden: int
    limit: int
    device: str
    folder: Path

    def solve(self, name, x, y, strengths, tolerance=TOLERANCE):
        """Solves, unless that is kept; returns a Solved."""
        path = Path(self.folder, f"{name}.pt")
        if not path.exists():
            options = strengths, self.bias, self.hidden, self.limit, self.device
            solved = solve_logistic(x, y, self.classes, *options, tolerance)
            with atomic(path) as partial:
                torch.save(tuple(solved), partial)
        kept = torch.load(path, weights_only=True, map_location=self.device)
        return Solved(*kept)

    def choose(self, known, valid, units, strengths):
        """Chooses strength and units of each layer on the validation part.

        Arguments
        ---------
        known, valid : dict of str to Examples
            To be trained on, and to choose by.
        units : dict of str to dict of bool to tuple
            Of each layer, standardized or not: see `units_of`.
        strengths : list of float
            To choose from; the first of equally good ones is chosen.

        Returns
        -------
        choices, predictions : (dict of str to Choice, dict of str to Tensor)
            And the predictions for the validation part, (1, examples).
        """
        choices, predictions = {}, {}
        for layer, part in Bar(known.items(), "choosing", unit="layer"):
            tried, y = [], torch.from_numpy(part.y)
            for standardize, unit in units[layer].items():
                name, x = f"{layer}_{standardize}", part.x.scaled(*unit)
                what = f"{name}_choosing", x, y, strengths
                solved = self.solve(*what, LOOSE)
                answers = solved.predict(valid[layer].x.scaled(*unit))
                right = (answers.numpy() == valid[layer].y).mean(1).tolist()
                alike = [standardize] * len(strengths)
                tried += zip(strengths, alike, right, answers, strict=True)
            best = max(tried, key=lambda one: one[2])
            choices[layer] = Choice(*best[:3], [one[:3] for one in tried])
            predictions[layer] = best[3][None]
        return choices, predictions

    def test(self, known, test, units, choices, controls):
        """Solves each layer's probe, as chosen, and controls; predicts.

        Arguments
        ---------
        known, test : dict of str to Examples
            To be trained on, and to be tested on.
        units, choices :
            See `choose`.
        controls : int
            How many probes get shuffled labels.

        Returns
        -------
        probes, predictions, converged : (LayerProbes, dict, dict)
            The probes; predictions of each layer, (1 + controls, examples);
            and whether the probe of each layer has converged.
        """
        solved, predictions = {}, {}
        y = torch.from_numpy(next(iter(known.values())).y)
        shuffled = shuffled_labels(y, controls)
        for layer, part in Bar(known.items(), "probes", unit="layer"):
            choice = choices[layer]
            unit = units[layer][choice.standardize]
            x = part.x.scaled(*unit)
            solved[layer] = self.solve(layer, x, y, choice.strength)
            of_controls = f"{layer}_controls", x, shuffled, choice.strength
            every = solved[layer], self.solve(*of_controls, LOOSE)
            x = test[layer].x.scaled(*unit)
            rows = [one.predict(x) for one in every]
            predictions[layer] = torch.cat(rows)
        used = {n: units[n][c.standardize] for n, c in choices.items()}
        converged = {n: bool(s.converged[0]) for n, s in solved.items()}
        return self._saved(solved, used), predictions, converged

    def _saved(self, solved, units):
        """Returns the LayerProbes of what was solved, without controls."""
        state, widths = {}, {}
        for layer, (weights, *_) in solved.items():
            mean, std = units[layer]
            weights, key = [part.cpu() for part in weights], key_of(layer)
            parts = [f"probes.{key}.weight", f"probes.{key}.bias"]
            if self.hidden:
                parts[:0] = [f"hidden.{key}.weight", f"hidden.{key}.bias"]
            state |= dict(zip(parts, weights, strict=False))
            state |= {f"{key}_mean": mean, f"{key}_std": std}
            widths[layer] = len(mean)
        probes = LayerProbes(widths, self.classes, self.bias, 1, self.hidden)
        probes.load_state_dict(state)
        return probes.eval()


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
