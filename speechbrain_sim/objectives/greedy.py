"""What learns on its own: layers of an encoder with an objective.

A `GreedyModule` is one entry of a Brain's `modules`. One per layer makes SIM and
GIM; a single one that holds all layers is trained end to end (CPC, end-to-end
SIM, supervised).
"""

from typing import NamedTuple

import torch
from torch import nn

from speechbrain_sim.data.labels import NO_LABEL, frames_of_labels
from speechbrain_sim.encoders.base import masked_mean
from speechbrain_sim.encoders.greedy import CONTEXT
from speechbrain_sim.objectives.info_nce import (
    Choices,
    draw_negatives,
    draw_window,
    info_nce,
)
from speechbrain_sim.objectives.kl import (
    active_units,
    kl_per_channel,
    reduce_kl,
)
from speechbrain_sim.randomness import keyed_generator


class SmoothInfoNCE(nn.Module):
    """The objective of one greedily trained module.

    L = NCE(c, z) + sum_l beta_l * KL(posterior_l || N(0, I))   (equation 7)

    A module trained greedily has one posterior; a stack trained end to end has
    one at every depth; a deterministic one has none.

    Arguments
    ---------
    z_channels, c_channels : int
        Channels of the predicted latents z and of the predictor's input c.
    prediction_steps : int
        K, how many frames ahead are predicted; one matrix W_k for each.
    negatives : int
        N, negatives of each frame.
    own_negatives : int
        How many of these are drawn from the same utterance.
    window : int
        Longest window of scored frames; negatives come from everywhere.
    kl_reduction : str
        "channel" or "time", see `gaussian_kl`.

    Example
    -------
    >>> from speechbrain_sim.encoders.base import Latent
    >>> objective = SmoothInfoNCE(z_channels=8, c_channels=8)
    >>> lengths = torch.tensor([64, 40])
    >>> mean, log_var = torch.randn(2, 64, 8), torch.zeros(2, 64, 8)
    >>> z = Latent(mean, log_var, mean, lengths, False)
    >>> drawn = objective.draw(lengths, time=64)
    >>> c = z.window(drawn.start, drawn.frames)
    >>> loss = objective([(c.draw(), z.draw())], lengths, drawn, [(z, 0.01)])
    >>> loss.total.ndim, loss.kl[0].shape
    (0, torch.Size([8]))
    """

    def __init__(
        self,
        z_channels,
        c_channels,
        prediction_steps=10,
        negatives=10,
        own_negatives=0,
        window=128,
        kl_reduction="time",
    ):
        super().__init__()
        if window < 2:
            raise ValueError(
                f"window is {window}; it must be 2 or more frames."
            )
        self.prediction_steps = prediction_steps
        self.negatives = negatives
        self.own_negatives = own_negatives
        self.window = window
        self.kl_reduction = kl_reduction
        # W_1 .. W_K, one below the other
        self.predictor = nn.Linear(
            c_channels, prediction_steps * z_channels, bias=False
        )

    def draw(self, lengths, time, generator=None):
        """Makes the random choices of a step.

        Arguments
        ---------
        lengths : torch.Tensor
            Valid frames, (batch,).
        time : int
            Padded frames.
        generator : torch.Generator, optional
            On the CPU.

        Returns
        -------
        Choices
        """
        start, frames = draw_window(int(lengths.max()), self.window, generator)
        negatives = draw_negatives(
            lengths,
            time,
            frames,
            self.negatives,
            self.own_negatives,
            generator,
        )
        return Choices(start, frames, negatives)

    def forward(self, pairs, lengths, choices, posteriors=()):
        """Adds the terms up.

        Arguments
        ---------
        pairs : list of (torch.Tensor, torch.Tensor)
            L Monte-Carlo draws of c inside the window, (batch, frames,
            channel), and z, (batch, time, channel); the NCE is their mean.
        lengths : torch.Tensor
            Valid frames, (batch,).
        choices : Choices
            From `draw`, shared by all L draws.
        posteriors : list of (Latent, float)
            What the KL regularises, with its weight beta.

        Returns
        -------
        SmoothInfoNCELoss
        """
        draws = []
        for c, z in pairs:
            predicted = self.predictor(c)
            predicted = predicted.unflatten(-1, (self.prediction_steps, -1))
            draws.append(
                info_nce(
                    predicted, z, lengths, choices.start, choices.negatives
                )
            )
        nce = sum(draw.loss for draw in draws) / len(draws)
        accuracy = sum(draw.accuracy for draw in draws) / len(draws)
        total, kl = nce, []
        for latent, kl_weight in posteriors:
            per_channel = kl_per_channel(
                latent.mean, latent.log_var, latent.lengths
            )
            total = total + kl_weight * reduce_kl(
                per_channel, latent.lengths, self.kl_reduction
            )
            kl.append(per_channel.detach())
        return SmoothInfoNCELoss(total, nce, kl, accuracy)


class SmoothInfoNCELoss(NamedTuple):
    """The sum (with a gradient) and its terms.

    `nce` is in nats, `kl` holds the KL of each posterior per channel in nats
    per frame, whatever the reduction, and `accuracy` is the share of positives
    that scored above all their negatives.
    """

    total: torch.Tensor
    nce: torch.Tensor
    kl: list
    accuracy: torch.Tensor


class ModuleOutput(NamedTuple):
    """What one training step of one module gives.

    Arguments
    ---------
    x : torch.Tensor
        What the module above reads, (batch, time, channel).
    lengths : torch.Tensor
        Its valid frames, (batch,).
    loss : torch.Tensor
        Scalar, with the gradient of this module only.
    stats : dict of str to torch.Tensor
        Detached scalars for the log.
    """

    x: torch.Tensor
    lengths: torch.Tensor
    loss: torch.Tensor
    stats: dict


class GreedyModule(nn.Module):
    """Layers of an encoder that share one objective and one backward.

    The input is detached here: whoever calls, no gradient crosses modules.

    Arguments
    ---------
    name : str
        Name in the log, and part of the key of every random draw.
    layers : dict of str to nn.Module
        The layers, shared with the encoder.
    sample : bool, optional
        Whether posteriors are drawn from; by default in training only.

    Subclasses define `objective`.
    """

    def __init__(self, name, layers, sample=None):
        super().__init__()
        self.name = name
        self.sample = sample
        self.layers = nn.ModuleDict(layers)

    def forward(self, x, lengths, key=None, targets=None):
        """Encodes a batch and scores it.

        Arguments
        ---------
        x : torch.Tensor
            (batch, time, channel), from the module below.
        lengths : torch.Tensor
            Valid frames, (batch,).
        key : tuple, optional
            Key of the random draws, e.g. (seed, rank, module, epoch, step);
            the global generator by default.
        targets : torch.Tensor, optional
            Labels, for a supervised objective.

        Returns
        -------
        ModuleOutput
        """
        x = x.detach()
        noise = key and keyed_generator(*key, "noise", device=x.device)
        choices = key and keyed_generator(*key, "negatives")
        latents = {}
        for name, layer in self.layers.items():
            below = x
            latents[name] = layer(x, lengths, self.sample, noise)
            x, lengths = latents[name].sample, latents[name].lengths
        loss, stats = self.objective(latents, below, noise, choices, targets)
        stats = {"loss": loss, **stats}
        for name, latent in latents.items():
            prefix = "" if name == self.name else f"{name}_"
            stats[prefix + "active_units"] = active_units(
                latent.mean.detach(), lengths=latent.lengths
            )
        stats = {f"{self.name}_{n}": v.detach() for n, v in stats.items()}
        return ModuleOutput(x, lengths, loss, stats)


class ContrastiveModule(GreedyModule):
    """Layers trained with Smooth-InfoNCE on the topmost of them.

    Arguments
    ---------
    name, layers :
        See `GreedyModule`.
    smooth_info_nce : SmoothInfoNCE
        The objective, with the scorer's matrices W_k.
    kl_weights : dict of str to float
        Beta of each layer that has a posterior.
    draws : int
        L, Monte-Carlo draws of (c, z).
    noise : bool
        Whether training draws from posteriors; without, means are scored, and
        the KL alone keeps them near N(0, I).
    """

    def __init__(
        self, name, layers, smooth_info_nce, kl_weights, draws=1, noise=True
    ):
        super().__init__(name, layers, None if noise else False)
        self.smooth_info_nce = smooth_info_nce
        self.kl_weights = kl_weights
        self.draws = draws
        #: share of beta that counts now; a warm-up moves it from 0 to 1
        self.kl_scale = 1.0

    def objective(self, latents, below, noise, choices, targets):
        """Scores the topmost layer; see `GreedyModule.forward`."""
        top_name, top = list(latents.items())[-1]
        z = below if top_name == CONTEXT else top.sample  # what is predicted
        drawn = self.smooth_info_nce.draw(top.lengths, z.shape[1], choices)
        c = top.window(drawn.start, drawn.frames)
        if top.sampled and top_name != CONTEXT:
            # c and z: independent draws of one posterior
            pairs = [(c.draw(noise), z)]
            pairs += [
                (c.draw(noise), top.draw(noise)) for _ in range(self.draws - 1)
            ]
        else:
            pairs = [(c.mean, z)]
        posteriors = {n: z for n, z in latents.items() if z.log_var is not None}
        terms = self.smooth_info_nce(
            pairs,
            top.lengths,
            drawn,
            [
                (z, self.kl_scale * self.kl_weights[n])
                for n, z in posteriors.items()
            ],
        )
        stats = {"nce": terms.nce, "accuracy": terms.accuracy}
        for name, kl in zip(posteriors, terms.kl, strict=True):
            prefix = "" if name == self.name else f"{name}_"
            stats[f"{prefix}kl"] = kl.sum()
            stats[f"{prefix}kl_median"] = kl.median()
            stats[f"{prefix}kl_max"] = kl.max()
        return terms.total, stats


class SupervisedModule(GreedyModule):
    """Layers trained with labels, through a linear classifier on the topmost.

    Arguments
    ---------
    name, layers :
        See `GreedyModule`.
    channels, classes : int
        Shape of the classifier.
    frame_geometry : (int, float), optional
        Hop and centre of the topmost layer, for one label per frame; without
        it, one label per utterance is predicted from the mean over time.
    """

    def __init__(self, name, layers, channels, classes, frame_geometry=None):
        super().__init__(name, layers)
        self.classifier = nn.Linear(channels, classes)
        self.frame_geometry = frame_geometry

    def objective(self, latents, below, noise, choices, targets):
        """Cross-entropy of the labels; see `GreedyModule.forward`."""
        top = list(latents.values())[-1]
        if self.frame_geometry is None:
            pooled, targets = masked_mean(top.mean, top.lengths), targets[:, 0]
        else:
            frames = frames_of_labels(targets.shape[1], *self.frame_geometry)
            frames = frames.to(top.mean.device)
            beyond = frames >= top.lengths[:, None]
            targets = targets.masked_fill(beyond, NO_LABEL).flatten()
            frames = frames.clamp(max=top.mean.shape[1] - 1)
            pooled = top.mean[:, frames].flatten(0, 1)
        logits = self.classifier(pooled).float()
        counted = targets != NO_LABEL
        loss = nn.functional.cross_entropy(logits[counted], targets[counted])
        correct = logits.argmax(-1)[counted] == targets[counted]
        return loss, {"accuracy": correct.float().mean()}
