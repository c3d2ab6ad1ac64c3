"""What learns on its own: layers of an encoder with an objective.

A `GreedyModule` is one entry of a Brain's `modules`. One per layer makes SIM and
GIM; a single one that holds all layers is trained end to end (CPC, end-to-end
SIM, supervised).
"""

from typing import NamedTuple

import torch
from torch import nn

from speechbrain_sim.encoders import CONTEXT, masked_mean
from speechbrain_sim.losses import SmoothInfoNCE, active_units
from speechbrain_sim.probes import NO_LABEL, frames_of_labels
from speechbrain_sim.randomness import keyed_generator


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


def training_modules(
    encoder,
    objective="contrastive",
    greedy=True,
    kl_weight=0.0,
    draws=1,
    noise=True,
    classes=0,
    per_frame=False,
    **smooth_info_nce,
):
    """Divides an encoder into modules that train on their own.

    Arguments
    ---------
    encoder : GreedyEncoder
        Its layers are shared with the modules.
    objective : str
        "contrastive" or "supervised".
    greedy : bool
        Contrastive: one module per layer (SIM, GIM), or one for all (CPC,
        end-to-end SIM).
    kl_weight : float or list of float
        Beta; a list gives one for each layer with a posterior, bottom first.
    draws : int
        L, Monte-Carlo draws of (c, z).
    noise : bool
        Contrastive: whether training draws from posteriors.
    classes : int
        Supervised: number of classes.
    per_frame : bool
        Supervised: one label per 10 ms (phones), or one per utterance.
    **smooth_info_nce :
        Further arguments of `speechbrain_sim.losses.SmoothInfoNCE`; a list
        gives one value for each layer, bottom first.

    Returns
    -------
    dict of str to GreedyModule

    Raises
    ------
    ValueError
        If the objective is unknown, a list has not one value per layer, or a
        supervised model has no classes.

    Example
    -------
    >>> from speechbrain_sim.encoders import GreedyEncoder
    >>> encoder = GreedyEncoder(channels=4, context_channels=2)
    >>> list(training_modules(encoder, kl_weight=0.01))
    ['module1', 'module2', 'module3', 'context']
    >>> list(training_modules(encoder, greedy=False))
    ['encoder']
    """
    names = encoder.layer_names
    if objective == "supervised":
        if classes < 2:
            raise ValueError(f"classes is {classes}; it must be 2 or more.")
        module = SupervisedModule(
            "encoder",
            dict(encoder.layers),
            encoder.layers[names[-1]].out_channels,
            classes,
            encoder.frame_geometry(names[-1]) if per_frame else None,
        )
        return {"encoder": module}
    if objective != "contrastive":
        raise ValueError(
            f"objective is '{objective}'; it must be 'contrastive' or "
            f"'supervised'."
        )
    with_posterior = [name for name in names if name != CONTEXT]
    kl_weights = _per_layer("kl_weight", kl_weight, with_posterior)
    settings = {
        argument: _per_layer(argument, value, names)
        for argument, value in smooth_info_nce.items()
    }

    def contrastive(name, layer_names):
        top = layer_names[-1]
        z_name = with_posterior[-1] if top == CONTEXT else top
        return ContrastiveModule(
            name,
            {layer: encoder.layers[layer] for layer in layer_names},
            SmoothInfoNCE(
                encoder.layers[z_name].out_channels,
                encoder.layers[top].out_channels,
                **{
                    argument: value[top] for argument, value in settings.items()
                },
            ),
            kl_weights,
            draws,
            noise,
        )

    if greedy:
        return {name: contrastive(name, [name]) for name in names}
    return {"encoder": contrastive("encoder", names)}


def _per_layer(argument, value, layers):
    """Spreads a value, or a list with one for each layer, over the layers."""
    if not isinstance(value, (list, tuple)):
        value = [value] * len(layers)
    if len(value) != len(layers):
        raise ValueError(
            f"{argument} lists {len(value)} values for the {len(layers)} "
            f"layers {', '.join(layers)}."
        )
    return dict(zip(layers, value, strict=True))
