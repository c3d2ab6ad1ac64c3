"""What learns on its own: layers of an encoder with an objective.

One `GreedyModule` per layer makes SIM and GIM; a single one of all layers is
trained end to end (CPC, end-to-end SIM, supervised).

Reference: Denoodt, de Boer, Oramas: Smooth InfoMax (2025), section 3.2,
https://arxiv.org/abs/2408.12936
"""

from typing import NamedTuple

import torch
from torch import nn

from speechbrain_sim.encoders.base import to_device
from speechbrain_sim.encoders.layers import run_layers
from speechbrain_sim.objectives import kl
from speechbrain_sim.objectives.info_nce import (
    Choices,
    draw_negatives,
    draw_window,
    info_nce,
)
from speechbrain_sim.randomness import keyed_generator


class SmoothInfoNCE(nn.Module):
    """The objective of one greedily trained module.

    L = NCE(c, z) + sum_l beta_l * KL(posterior_l || N(0, I))   (equation 7)

    with one posterior per module trained greedily, one at every depth of a stack
    trained end to end, and none of deterministic layers.

    Arguments
    ---------
    z_channels, c_channels : int
        Channels of the predicted latents z and of the predictor's input c.
    prediction_steps : int
        K, how many frames ahead are predicted; one matrix W_k for each.
    num_negatives, within_utterance_negatives : int
        N, negatives of each frame; how many are from the same utterance.
    window_frames : int
        Longest window of scored frames; negatives come from everywhere.
    kl_reduction : str
        "channel" or "time", see `reduce_kl`.

    Example
    -------
    >>> from speechbrain_sim.encoders.base import Latent
    >>> objective, lengths = SmoothInfoNCE(8, 8), torch.tensor([64, 40])
    >>> mean, log_var = torch.randn(2, 2, 64, 8)
    >>> z = Latent(mean, log_var, mean, lengths)
    >>> choices = objective.draw(lengths, time=64)
    >>> loss = objective([(mean, mean)], lengths, choices, [(z, 0.01)])
    >>> loss.kl[0].shape
    torch.Size([8])
    """

    def __init__(
        self,
        z_channels,
        c_channels,
        prediction_steps=10,
        num_negatives=10,
        within_utterance_negatives=0,
        window_frames=128,
        kl_reduction="time",
    ):
        super().__init__()
        if window_frames < 2:
            raise ValueError(f"window_frames is {window_frames}; at least 2.")
        self.prediction_steps = prediction_steps
        self.num_negatives = num_negatives
        self.within_utterance_negatives = within_utterance_negatives
        self.window_frames = window_frames
        self.kl_reduction = kl_reduction
        rows = prediction_steps * z_channels  # W_1 .. W_K, one below the other
        self.predictor = nn.Linear(c_channels, rows, bias=False)

    def draw(self, lengths, time, generator=None):
        """Draws the `Choices` of a step, for (batch,) lengths padded to `time`."""
        longest = int(lengths.max())
        start, frames = draw_window(longest, self.window_frames, generator)
        counts = self.num_negatives, self.within_utterance_negatives
        negatives = draw_negatives(lengths, time, frames, *counts, generator)
        return Choices(start, frames, negatives)

    def forward(self, pairs, lengths, choices, posteriors=()):
        """Adds the terms up: a SmoothInfoNCELoss.

        Arguments
        ---------
        pairs : list of (torch.Tensor, torch.Tensor)
            L Monte-Carlo samples of c inside the window, (batch, frames,
            channel), and z, (batch, time, channel); the NCE is their mean.
        lengths, choices : torch.Tensor, Choices
            Valid frames, (batch,); from `draw`, shared by all L samples.
        posteriors : iterable of (Latent, float)
            The posteriors of the KL, each with its weight beta.
        """
        negatives = to_device(choices.negatives, pairs[0][1].device)
        terms, where = [], (choices.start, negatives)
        for c, z in pairs:
            predicted = self.predictor(c)  # (batch, frames, K * channel)
            predicted = predicted.unflatten(-1, (self.prediction_steps, -1))
            terms.append(info_nce(predicted, z, lengths, *where))
        nce = sum(term.loss for term in terms) / len(terms)
        accuracy = sum(term.accuracy for term in terms) / len(terms)
        total, kls = nce, []
        for z, beta in posteriors:
            of_z = kl.kl_per_channel(z.mean, z.log_var, z.lengths)
            reduced = kl.reduce_kl(of_z, z.lengths, self.kl_reduction)
            total = total + beta * reduced
            kls.append(of_z.detach())
        return SmoothInfoNCELoss(total, nce, kls, accuracy)


class SmoothInfoNCELoss(NamedTuple):
    """The sum, and its terms in nats.

    `kl` of each posterior is (channel,), in nats per frame, whatever the
    reduction; for `accuracy` see `NCE`.
    """

    total: torch.Tensor
    nce: torch.Tensor
    kl: list
    accuracy: torch.Tensor


class ModuleOutput(NamedTuple):
    """What a module computes in one step.

    `x` is the input of the module above, (batch, time, channel), with `lengths`
    valid frames, (batch,); `loss` has the gradient of this module only, and
    `stats` are detached scalars for the log.
    """

    x: torch.Tensor
    lengths: torch.Tensor
    loss: torch.Tensor
    stats: dict


class GreedyModule(nn.Module):
    """Layers of an encoder that share one objective and one backward.

    The input is detached here. Subclasses define `objective`.

    Arguments
    ---------
    name : str
        Name in the log, and part of the key of every random draw.
    layers : dict of str to nn.Module
        The layers, shared with the encoder.
    sample : bool, optional
        Whether posteriors are drawn from; by default in training only.
    """

    def __init__(self, name, layers, sample=None):
        super().__init__()
        self.name = name
        self.sample = sample
        self.layers = nn.ModuleDict(layers)

    def forward(self, x, lengths, key=None, targets=None):
        """Encodes a batch and scores it: a ModuleOutput.

        Arguments
        ---------
        x, lengths : torch.Tensor
            (batch, time, channel), from the module below; valid frames, (batch,),
            on the CPU.
        key : tuple, optional
            Key of the random draws; the global generator by default.
        targets : torch.Tensor, optional
            Labels, for a supervised objective.
        """
        x, lengths = x.detach(), lengths.cpu()  # DDP has moved them
        noise = key and keyed_generator(*key, "noise", device=x.device)
        choices = key and keyed_generator(*key, "negatives")
        latents = dict(run_layers(self.layers, x, lengths, self.sample, noise))
        samples = [latent.sample for latent in latents.values()]
        *_, below, top = x, *samples  # the topmost layer's input and output
        loss, terms = self.objective(latents, below, noise, choices, targets)
        stats = {"loss": loss, **terms}
        for name, latent in latents.items():
            units = kl.active_units(latent.mean.detach(), latent.lengths)
            stats[self.prefix(name) + "active_units"] = units
        stats = {f"{self.name}_{n}": v.detach() for n, v in stats.items()}
        return ModuleOutput(top, latent.lengths, loss, stats)

    def prefix(self, layer):
        """Returns the prefix of a layer's stats, beside the module's name."""
        return "" if layer == self.name else f"{layer}_"

    def objective(self, latents, below, noise, choices, targets):
        """Scores latents, dict of str to Latent: loss, dict of stats.

        `below` is the topmost layer's input; `noise` and `choices` are generators.
        """
        raise NotImplementedError


class ContrastiveModule(GreedyModule):
    """Layers trained with a SmoothInfoNCE on the topmost one.

    Arguments
    ---------
    kl_weights : dict of str to float
        Beta of each layer that has a posterior.
    num_samples : int
        L, Monte-Carlo samples of (c, z).
    noise : bool
        Whether training draws from posteriors, or scores means.
    """

    def __init__(
        self, name, layers, smooth_info_nce, kl_weights, num_samples, noise
    ):
        super().__init__(name, layers, None if noise else False)
        self.smooth_info_nce = smooth_info_nce
        self.kl_weights = kl_weights
        self.num_samples = num_samples
        #: share of beta that counts now, set by a schedule
        self.kl_scale = 1.0

    def objective(self, latents, below, noise, choices, targets):
        """See `GreedyModule`."""
        top_name, top = list(latents.items())[-1]
        predicts_input = self.layers[top_name].predicts_input
        z = below if predicts_input else top.sample  # what is predicted
        chosen = self.smooth_info_nce.draw(top.lengths, z.shape[1], choices)
        c = top.window(chosen.start, chosen.frames)
        if top.sampled and not predicts_input:
            # c and z: independent draws of one posterior
            pairs = [(c.draw(noise), z)]
            for _ in range(self.num_samples - 1):
                pairs.append((c.draw(noise), top.draw(noise)))
        else:
            pairs = [(c.mean, z)]
        names = [n for n, z in latents.items() if z.log_var is not None]
        betas = [self.kl_scale * self.kl_weights[name] for name in names]
        posteriors = zip((latents[n] for n in names), betas, strict=True)
        terms = self.smooth_info_nce(pairs, top.lengths, chosen, posteriors)
        stats = {"nce": terms.nce, "accuracy": terms.accuracy}
        for name, x in zip(map(self.prefix, names), terms.kl, strict=True):
            stats[name + "kl"] = x.sum()
            stats[name + "kl_median"] = x.median()
            stats[name + "kl_max"] = x.max()
        return terms.total, stats
