"""Training of linear probes on features that were computed before."""

import logging

import speechbrain as sb
import torch
from speechbrain.utils.epoch_loop import EpochCounter
from torch import nn
from tqdm import tqdm

from speechbrain_sim.brains.checkpointer import AtomicCheckpointer
from speechbrain_sim.probes import LayerProbes, LinearProbe
from speechbrain_sim.randomness import keyed_generator


class ProbeBatches(torch.utils.data.Dataset):
    """Batches for probes that are trained side by side.

    Each probe sees every example once per epoch, in an order of its own; a
    control sees labels that were shuffled once.

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
        names = [("probe", seed) for seed in seeds]
        names += [("control", number) for number in range(controls)]
        self.x, self.names, self.batch_size = x, names, batch_size
        # narrow: with 100 hours, these are what memory is needed for
        shape = (len(names), len(y))
        self.order, self.y = torch.empty((2, *shape), dtype=torch.int32)
        self.y[:] = y
        for row, name in enumerate(names[len(seeds) :], start=len(seeds)):
            generator = keyed_generator(*name, "labels")
            self.y[row] = y[torch.randperm(len(y), generator=generator)]
        self.set_epoch(0)

    def set_epoch(self, epoch):
        """Draws the orders of an epoch."""
        for row, name in enumerate(self.names):
            generator = keyed_generator(*name, epoch)
            self.order[row] = torch.randperm(
                self.y.shape[1], generator=generator
            )

    def __len__(self):
        return -(-self.y.shape[1] // self.batch_size)

    def __getitem__(self, batch):
        """Returns a dict of layer features, (probes, batch, channels), and y."""
        if batch >= len(self):
            raise IndexError(batch)
        first = batch * self.batch_size
        chosen = self.order[:, first : first + self.batch_size].long()
        x = {layer: features[chosen] for layer, features in self.x.items()}
        return {"x": x, "y": self.y.gather(1, chosen).long()}


class ProbeBrain(sb.Brain):
    """Trains linear probes, of all layers and all seeds at once.

    `modules` holds one `LinearProbe` per layer. The loss is the sum of the
    cross-entropies, so that each probe learns as if it were alone. With a
    checkpointer, a run that was killed resumes with the epoch it was in, and
    ends the same.
    """

    def __init__(
        self, modules, opt_class, hparams, run_opts=None, checkpointer=None
    ):
        super().__init__(modules, opt_class, hparams, run_opts, checkpointer)
        if checkpointer is not None:
            checkpointer.add_recoverable("probes", self.modules)

    def _should_save_intra_epoch_ckpt(self, last_ckpt_time, steps_since_ckpt):
        return False  # of a begun epoch, nothing is kept

    def compute_forward(self, batch, stage):
        """Returns logits, (probes, batch, classes), of each layer."""
        return {
            layer: self.modules[layer](x.to(self.device))
            for layer, x in batch["x"].items()
        }

    def compute_objectives(self, predictions, batch, stage):
        """Adds up the mean cross-entropies of all probes of all layers."""
        y = batch["y"].to(self.device)  # (probes, batch)
        return sum(
            nn.functional.cross_entropy(logits.flatten(0, 1), y.flatten())
            * len(y)
            for logits in predictions.values()
        )

    def on_stage_start(self, stage, epoch=None):
        """Draws new orders for the epoch."""
        if stage == sb.Stage.TRAIN:
            self.batches.set_epoch(epoch)

    def on_stage_end(self, stage, stage_loss, epoch=None):
        """Saves the epoch."""
        if stage == sb.Stage.TRAIN and self.checkpointer is not None:
            self.checkpointer.save_and_keep_only(verbosity=logging.DEBUG)

    def train_probes(self, batches, epoch_counter):
        """Trains on `ProbeBatches` for as many epochs as the counter counts."""
        self.batches = batches
        loader = torch.utils.data.DataLoader(batches, batch_size=None)
        self.fit(epoch_counter, loader, progressbar=False)

    @torch.no_grad()
    def predict(self, x, chunk=65536):
        """Returns the predictions of every probe.

        Arguments
        ---------
        x : dict of str to torch.Tensor or Rows
            Features of each layer, (examples, channels).
        chunk : int
            Examples at once.

        Returns
        -------
        dict of str to torch.Tensor
            (probes, examples), int64.
        """
        predictions = {}
        for layer, features in x.items():
            probe, found = self.modules[layer], []
            for part in features.split(chunk):
                part = part.to(self.device).expand(len(probe.weight), -1, -1)
                found.append(probe(part).argmax(-1).cpu())
            predictions[layer] = torch.cat(found, dim=1)
        return predictions

    @torch.no_grad()
    def trained(self, count, units):
        """Copies the first probes of each layer.

        Arguments
        ---------
        count : int
            How many: the controls come last.
        units : dict of str to (torch.Tensor, torch.Tensor)
            Mean and standard deviation of the features, if they were used.

        Returns
        -------
        LayerProbes
        """
        state, widths = {}, {}
        for layer, probe in self.modules.items():
            _, widths[layer], classes = probe.weight.shape
            for name, weight in probe.named_parameters():
                state[f"probes.{layer}.{name}"] = weight[:count]
        for layer, (mean, std) in units.items():
            state |= {f"{layer}_mean": mean, f"{layer}_std": std}
        probes = LayerProbes(widths, classes, probe.bias is not None, count)
        probes.load_state_dict(state, strict=bool(units))
        return probes.eval()


def make_probes(channels, classes, names, bias):
    """Makes the LinearProbe of each layer, its probes seeded by their names.

    Arguments
    ---------
    channels : dict of str to int
        Channels of each layer.
    classes, bias :
        See `LinearProbe`.
    names : list of tuple
        One key per probe, see `ProbeBatches`.
    """
    return {
        layer: LinearProbe(
            width,
            classes,
            len(names),
            bias,
            [keyed_generator(*name, layer, "weights") for name in names],
        )
        for layer, width in channels.items()
    }


def train_probes(examples, classes, hparams, run_opts, controls, folder):
    """Trains a probe per layer and seed, and controls of each layer.

    Arguments
    ---------
    examples : dict of str to Examples
        Of each layer.
    classes : int
        Number of classes.
    hparams, run_opts : dict, RunOptions
        Of recipes/probe.py.
    controls : int
        See `ProbeBatches`.
    folder : str or Path
        Of the checkpoints; training resumes from these.

    Returns
    -------
    ProbeBrain
    """
    x = {layer: part.x for layer, part in examples.items()}
    y = torch.from_numpy(next(iter(examples.values())).y)
    batches = ProbeBatches(
        x, y, hparams["seeds"], controls, hparams["batch_size"]
    )
    widths = {layer: features.shape[1] for layer, features in x.items()}
    probes = make_probes(widths, classes, batches.names, hparams["bias"])
    counter = EpochCounter(hparams["number_of_epochs"])
    checkpointer = AtomicCheckpointer(folder, {"epoch_counter": counter})
    brain = ProbeBrain(
        probes, hparams["opt_class"], hparams, run_opts, checkpointer
    )
    brain.train_probes(batches, _with_bar(counter))
    return brain


def _with_bar(counter):
    """Counts the epochs that are left, with a bar of all."""
    with tqdm(total=counter.limit, desc="probes", unit="epoch") as bar:
        bar.update(counter.current)  # of a run that was killed
        for epoch in range(counter.current + 1, counter.limit + 1):
            counter.current = epoch
            yield epoch
            bar.update()
