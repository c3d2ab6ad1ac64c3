"""Training with labels: the same layers, a linear classifier on top."""

from torch import nn

from speechbrain_sim.data.labels import NO_LABEL, frames_of_labels
from speechbrain_sim.encoders.base import masked_mean
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
        top = list(latents.values())[-1]
        if self.frame_geometry is None:
            pooled, targets = masked_mean(top.mean, top.lengths), targets[:, 0]
        else:
            frames = frames_of_labels(targets.shape[1], *self.frame_geometry)
            frames = frames.to(top.mean.device)
            beyond = frames >= top.lengths[:, None]  # (batch, labels)
            targets = targets.masked_fill(beyond, NO_LABEL).flatten()
            frames = frames.clamp(max=top.mean.shape[1] - 1)
            pooled = top.mean[:, frames].flatten(0, 1)
        logits = self.classifier(pooled).float()
        counted = targets != NO_LABEL
        loss = nn.functional.cross_entropy(logits[counted], targets[counted])
        correct = logits.argmax(-1)[counted] == targets[counted]
        return loss, {"accuracy": correct.float().mean()}
