"""Training of linear probes by the paper's protocol, on stored features."""

import logging
import math

import speechbrain as sb
import torch
from speechbrain.utils.epoch_loop import EpochCounter
from torch import nn
from torch.nn.functional import cross_entropy

from speechbrain_sim.brains.checkpointer import AtomicCheckpointer
from speechbrain_sim.console import Bar
from speechbrain_sim.probes import (
    LayerProbes,
    LinearProbe,
    key_of,
    shuffled_labels,
)
from speechbrain_sim.randomness import keyed_generator

#: share of the last loss by which a loss that still falls fell, see `Watch`
FALL = 0.02


class ProbeBatches(torch.utils.data.IterableDataset):
    """Batches for probes that are trained side by side.

    Each probe sees every example once per epoch, in an order of its own; a
    control sees labels of `shuffled_labels`. A batch is a dict: x, the
    features of each layer, (probes, batch, channels), and y, (probes, batch).

    Arguments
    ---------
    x : dict of str to torch.Tensor or Rows
        Features of each layer, (examples, channels).
    y : torch.Tensor
        Classes, (examples,).
    seeds : list of int
        One probe per seed.
    controls : int
        How many more probes get shuffled labels.
    batch_size : int
        Examples of a batch; the last one may be smaller.
    """

    def __init__(self, x, y, seeds, controls, batch_size):
        probes = [("probe", seed) for seed in seeds]
        self.names = probes + [("control", n) for n in range(controls)]
        self.x, self.batch_size, self.epoch = x, batch_size, 0
        # narrow: with 100 hours, these are what memory is needed for
        shape = (2, len(self.names), len(y))
        self.order, self.y = torch.empty(shape, dtype=torch.int32)
        self.y[: len(probes)] = y
        self.y[len(probes) :] = shuffled_labels(y, controls)

    def _shuffled(self, row, *key):
        """Returns the examples in the random order of a probe."""
        generator = keyed_generator(*self.names[row], *key)
        return torch.randperm(self.y.shape[1], generator=generator)

    def __iter__(self):
        """Yields the batches of `epoch`."""
        for row in range(len(self.names)):
            self.order[row] = self._shuffled(row, self.epoch)
        for chosen in self.order.split(self.batch_size, dim=1):
            chosen = chosen.long()
            x = {layer: features[chosen] for layer, features in self.x.items()}
            yield {"x": x, "y": self.y.gather(1, chosen).long()}


class Watch(nn.Module):
    """Mean losses, in nats, of two epochs: the last, and a fifth before it.

    They are (layers,), buffers, so that a checkpoint holds them; of the real
    probes alone.
    """

    def __init__(self, layers, epochs):
        super().__init__()
        self.layers = list(layers)
        earlier = min(math.ceil(0.8 * epochs), epochs - 1)
        self.names = {earlier: "earlier", epochs: "last"}
        for name in self.names.values():
            self.register_buffer(name, torch.zeros(len(self.layers)))

    def still_falling(self):
        """Returns the layers whose loss fell by more than `FALL` between."""
        fell = self.earlier - self.last > FALL * self.last.clamp(min=0.5)
        fell |= self.earlier == 0  # of a single epoch, nothing is known
        return [n for n, f in zip(self.layers, fell, strict=True) if f]


class ProbeBrain(sb.Brain):
    """Trains linear probes, of all layers and all seeds at once.

    `modules` holds one `LinearProbe` per layer, by `key_of`. The loss is the sum of the
    cross-entropies, so that each probe learns as if it were alone. With a
    checkpointer, a run that was killed resumes with the epoch it was in, and
    ends the same. A `watch`, if set, gets the losses of the real probes.
    """

    watch = None

    def _should_save_intra_epoch_ckpt(self, last_ckpt_time, steps_since_ckpt):
        return False  # of a begun epoch, nothing is kept

    def compute_forward(self, batch, stage):
        """Returns logits, (probes, batch, classes), of each layer."""
        features = {n: x.to(self.device) for n, x in batch["x"].items()}
        return {n: self.modules[key_of(n)](x) for n, x in features.items()}

    def compute_objectives(self, predictions, batch, stage):
        """Adds up the mean cross-entropies of all probes of all layers."""
        y = batch["y"].to(self.device)  # (probes, batch)
        logits = [x.flatten(0, 1) for x in predictions.values()]
        if self.watch is not None and self.batches.epoch in self.watch.names:
            self._watch(predictions, y)
        return len(y) * sum(cross_entropy(x, y.flatten()) for x in logits)

    @torch.no_grad()
    def _watch(self, predictions, y):
        """Adds a batch to the mean losses of this epoch."""
        real = sum(kind == "probe" for kind, _ in self.batches.names)
        share = 1 / (real * self.batches.y.shape[1])
        y, name = y[:real].flatten(), self.watch.names[self.batches.epoch]
        sums = [
            cross_entropy(x[:real].flatten(0, 1), y, reduction="sum")
            for x in predictions.values()
        ]
        getattr(self.watch, name).add_(share * torch.stack(sums).cpu())

    def on_stage_start(self, stage, epoch=None):
        """Sets the epoch of the batches."""
        if stage == sb.Stage.TRAIN:
            self.batches.epoch = epoch

    def on_stage_end(self, stage, stage_loss, epoch=None):
        """Saves the epoch."""
        if stage == sb.Stage.TRAIN and self.checkpointer is not None:
            self.checkpointer.save_and_keep_only(verbosity=logging.DEBUG)

    def train_probes(self, batches, epochs):
        """Trains on `ProbeBatches` for some epochs, an iterable of int."""
        self.batches, self.layers = batches, list(batches.x)
        loader = torch.utils.data.DataLoader(batches, batch_size=None)
        self.fit(epochs, loader, progressbar=False)

    @torch.no_grad()
    def predict(self, x, chunk=65536):
        """Returns the predictions of every probe, (probes, examples), int64.

        Of each layer, `chunk` examples at once. `x`: see `ProbeBatches`.
        """
        predictions = {}
        for layer, features in x.items():
            probe, classes = self.modules[key_of(layer)], []
            for part in features.split(chunk):
                part = part.to(self.device).expand(len(probe.weight), -1, -1)
                classes.append(probe(part).argmax(-1).cpu())
            predictions[layer] = torch.cat(classes, dim=1)
        return predictions

    def trained(self, count):
        """Copies the first probes of each layer: the controls come last."""
        weights = self.modules.state_dict()
        state = {f"probes.{name}": w[:count] for name, w in weights.items()}
        widths = {}
        for layer in self.layers:
            probe = self.modules[key_of(layer)]
            _, widths[layer], classes = probe.weight.shape
        probes = LayerProbes(widths, classes, probe.bias is not None, count)
        probes.load_state_dict(state, strict=False)  # of features as they are
        return probes.eval()


def make_probes(channels, classes, names, bias):
    """Makes the LinearProbe of each layer, its probes seeded by their names.

    `channels` are those of each layer, `names` from `ProbeBatches`; returns a
    ModuleDict by `key_of`.
    """
    probes = nn.ModuleDict()
    for layer, width in channels.items():
        draws = [keyed_generator(*name, layer, "weights") for name in names]
        probe = LinearProbe(width, classes, len(names), bias, draws)
        probes[key_of(layer)] = probe
    return probes


def features_of(examples):
    """Returns the features of each layer's Examples: dict of str to Rows."""
    return {layer: part.x for layer, part in examples.items()}


def train_probes(examples, classes, hparams, run_opts, controls, folder):
    """Trains a probe per layer and seed, and controls of each layer.

    Arguments
    ---------
    examples : dict of str to Examples
        Of each layer.
    classes, controls : int
        See `LinearProbe` and `ProbeBatches`.
    hparams, run_opts : dict, RunOptions
        Of recipes/probe.py.
    folder : str or Path
        Of the checkpoints; training resumes from these.

    Returns
    -------
    ProbeBrain
    """
    x = features_of(examples)
    y = torch.from_numpy(next(iter(examples.values())).y)
    seeds, batch_size = hparams["seeds"], hparams["batch_size"]
    batches = ProbeBatches(x, y, seeds, controls, batch_size)
    widths = {layer: features.shape[1] for layer, features in x.items()}
    probes = make_probes(widths, classes, batches.names, hparams["bias"])
    counter = EpochCounter(hparams["number_of_epochs"])
    watch = Watch(x, hparams["number_of_epochs"])
    kept = {"epoch_counter": counter, "probes": probes, "watch": watch}
    checkpointer = AtomicCheckpointer(folder, kept)
    options = hparams["opt_class"], hparams, run_opts, checkpointer
    brain = ProbeBrain(probes, *options)
    brain.watch = watch
    brain.train_probes(batches, _with_bar(counter))
    return brain


def _with_bar(counter):
    """Yields the epochs that are left, also of a killed run, with a bar."""
    left = range(counter.current + 1, counter.limit + 1)
    options = {"initial": counter.current, "unit": "epoch"}
    for epoch in Bar(left, "probes", counter.limit, **options):
        counter.current = epoch
        yield epoch
