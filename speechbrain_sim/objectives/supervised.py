"""Training with labels: the same layers, a linear classifier on top."""

import torch
from torch import nn

from speechbrain_sim.data.labels import NO_LABEL, frames_of_labels
from speechbrain_sim.encoders.base import masked_mean, to_device
from speechbrain_sim.objectives.greedy import GreedyModule


class SupervisedModule(GreedyModule):
    """Layers trained with labels, through a linear classifier on the topmost.

    Arguments
    ---------
    channels, classes : int
        Shape of the classifier.
    frame_geometry : (int, float), optional
        Of the topmost layer, for one label per frame; without it, the mean over
        time predicts one label per utterance.
    """

    def __init__(self, name, layers, channels, classes, frame_geometry=None):
        super().__init__(name, layers)
        top = list(layers.values())[-1]
        if top.has_posterior:  # the classifier reads means: DDP would wait
            top.log_var.requires_grad_(False)
        self.classifier = nn.Linear(channels, classes)
        self.frame_geometry = frame_geometry

    def objective(self, latents, below, noise, choices, targets):
        """Cross-entropy of the labels; see `GreedyModule`."""
        top, targets = list(latents.values())[-1], targets.cpu()
        device = top.mean.device
        if self.frame_geometry is None:
            pooled, targets = masked_mean(top.mean, top.lengths), targets[:, 0]
        else:
            frames = frames_of_labels(targets.shape[1], *self.frame_geometry)
            beyond = frames >= top.lengths[:, None]  # (batch, labels)
            targets = targets.masked_fill(beyond, NO_LABEL).flatten()
            frames = frames.clamp(max=top.mean.shape[1] - 1)
            pooled = top.mean[:, to_device(frames, device)].flatten(0, 1)
        counted = (targets != NO_LABEL).nonzero()[:, 0]
        targets = to_device(targets[counted], device)
        counted = to_device(counted, device)
        logits = self.classifier(pooled)[counted]
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        loss = nn.functional.cross_entropy(logits, targets)
        correct = logits.argmax(-1) == targets
        return loss, {"accuracy": correct.float().mean()}
