"""Training of bottlenecks on what a store keeps of frozen layers."""

import math
from itertools import product
from typing import NamedTuple

import speechbrain as sb
from speechbrain.utils.logger import get_logger
from torch.utils.data import DataLoader

from speechbrain_sim.bottlenecks.base import STANDARDISE
from speechbrain_sim.bottlenecks.sae import TEMPORAL
from speechbrain_sim.brains.base import ResumableBrain
from speechbrain_sim.brains.classes import Aligned
from speechbrain_sim.brains.frames import (
    FrameBatches,
    check_store,
    measure,
)
from speechbrain_sim.models.format import BOTTLENECK, save_parts
from speechbrain_sim.randomness import keyed_generator

logger = get_logger(__name__)

#: learning rate of so many units; of K it is that by sqrt(K / BASE_UNITS)
BASE_LR, BASE_UNITS = 2e-4, 2**14
#: deviations from 0 at which a mean lets units die, arXiv:2605.31518
FAR = 3.0
REMEDY = (
    "lower --lr or --sparsity_weight, raise --lr_warmup_epochs, --auxk or --k, "
)
REMEDY += "or change --normalisation, in another --output_folder"
GATES_REMEDY = (
    "lower --alignment, --observation_std or --lr, change --alpha, or prolong "
)
GATES_REMEDY += "--spike_epochs, in another --output_folder"


class Planned(NamedTuple):
    """One of the bottlenecks of a run."""

    name: str
    layer: str
    num_units: int
    k: int | None
    seed: int
    alignment: float | None = None

    @property
    def key(self):
        """Its name without dots, which modules and their logs cannot have."""
        return self.name.replace(".", "_")

    @property
    def options(self):
        """What it has of its own, beside its seed."""
        options = {"k": self.k, "alignment": self.alignment}
        return {n: value for n, value in options.items() if value is not None}


def plan(units, k, sparsity, seeds):
    """Names the bottlenecks of a run: of each layer, all of `k` by all seeds.

    Arguments
    ---------
    units : dict of str to int
        Layers, and the number of units there.
    k, seeds : list of int
        Units active at once; the first of each list is not in the names.
    sparsity : list of float or None
        In place of `k`: percent of the units that are not active.

    Returns
    -------
    list of Planned

    Raises
    ------
    ValueError
        If k is not within the units, or two are the same.

    Example
    -------
    >>> [one.name for one in plan({"module3": 64}, [8, 16], None, [1, 2])]
    ['module3.sae', 'module3.sae_s2', 'module3.sae_k16', 'module3.sae_k16_s2']
    >>> [one.k for one in plan({"module3": 2048}, [], [75, 99], [1])]
    [512, 20]
    """
    planned = []
    for layer, width in units.items():
        option, values, counts = "k", k, k
        if sparsity is not None:
            option, values = "sparsity", sparsity
            counts = [round((1 - share / 100) * width) for share in sparsity]
        for value, count in zip(values, counts, strict=True):
            if not 1 <= count <= width or counts.count(count) > 1:
                raise ValueError(
                    f"--{option} {value} means {count} active units of the "
                    f"{width} for {layer}: it must be from 1 to {width}, each "
                    f"once. Use another --{option}, or --num_units."
                )
        for count, seed in product(counts, seeds):
            name = f"{layer}.sae" + f"_k{count}" * (count != counts[0])
            name += f"_s{seed}" * (seed != seeds[0])
            planned.append(Planned(name, layer, width, count, seed))
    return planned


def plan_alignments(units, alignments, seeds, kind="vsc"):
    """Names the variational sparse coders of a run: all alignments by all seeds.

    Arguments
    ---------
    units, seeds :
        See `plan`.
    alignments : list of float
        Weights of the alignment; the first is not in the names.
    kind : str
        Of which there are names.

    Returns
    -------
    list of Planned

    Example
    -------
    >>> [one.name for one in plan_alignments({"module3": 64}, [1, 0, 0.1], [1])]
    ['module3.vsc', 'module3.vsc_lambda0', 'module3.vsc_lambda0p1']
    """
    planned = []
    for layer, width in units.items():
        for value, seed in product(alignments, seeds):
            shown = f"_lambda{value:g}".replace(".", "p")
            name = f"{layer}.{kind}" + shown * (value != alignments[0])
            name += f"_s{seed}" * (seed != seeds[0])
            planned.append(Planned(name, layer, width, None, seed, value))
    return planned


def make_bottlenecks(planned, make, channels, dead_after):
    """Makes the bottlenecks of a run, each drawn by its layer and seed.

    Arguments
    ---------
    planned : list of Planned
        From `plan`.
    make : callable
        (channels, units, dead_after=, generator=, and `Planned.options`) ->
        Bottleneck.
    channels, dead_after : dict of str to int
        Of each layer: its channels; the frames after which a unit is dead.

    Returns
    -------
    dict of str to Bottleneck
        By `Planned.key`.
    """
    return {
        one.key: make(
            channels[one.layer],
            one.num_units,
            **one.options,
            dead_after=dead_after[one.layer],
            generator=keyed_generator(one.seed, one.layer, "bottleneck"),
        )
        for one in planned
    }


def default_rate(num_units):
    """Returns the learning rate for so many units: 2e-4 / sqrt(K / 2^14).

    Gao et al. 2024, https://arxiv.org/abs/2406.04093, as fitted by
    EleutherAI's sparsify.
    """
    return BASE_LR / (num_units / BASE_UNITS) ** 0.5


def by_bottleneck(means, keys):
    """Splits the means of an epoch by the bottleneck that they are of.

    Example
    -------
    >>> means = {"a_l0": 4.0, "a_k2_l0": 2.0}
    >>> by_bottleneck(means, ["a", "a_k2"])
    {'a': {'l0': 4.0}, 'a_k2': {'l0': 2.0}}
    """
    split = {key: {} for key in keys}
    for name, value in means.items():
        key = max((k for k in keys if name.startswith(f"{k}_")), key=len)
        split[key][name.removeprefix(f"{key}_")] = value
    return split


class BottleneckBrain(ResumableBrain):
    """Trains the bottlenecks of several layers in one pass over their frames.

    Each batch is read once for all bottlenecks of its layer, which learn as if
    each were alone: with an optimizer, clipping and rate of its own. `modules`
    is from `make_bottlenecks`. Hyper-parameters read from `hparams` beside those
    of `ResumableBrain`: `planned` (from `plan`), `lr` (by default that of
    `default_rate`), `batch_size`, `variant`, `pooling`, and `schedules`: name of
    what a bottleneck anneals -> epochs since the beginning -> value.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.planned = {one.key: one for one in self.hparams.planned}
        self.layers = list(dict.fromkeys(p.layer for p in self.hparams.planned))
        self.aligned = Aligned({}, {}, {})
        self.share, self.variances = 0.0, {}

    def fit_stores(self, stores, encoder_sha256, aligned=None):
        """Trains on the ActivationStore "train" of a dict, validates on "valid".

        Further ones are checked for the score sheet. `aligned` is from
        `speechbrain_sim.brains.classes.align`. Raises a ValueError, before the
        first step, for a layer that cannot be learnt from, and for the store of
        another encoder.
        """
        hparams = self.hparams
        train, valid = stores["train"], stores["valid"]
        for store in stores.values():
            check_store(store, self.layers, encoder_sha256, hparams.pooling)
        for layer in self.layers:
            self.set_units(layer, train)
        for stage, store in (sb.Stage.TRAIN, train), (sb.Stage.VALID, valid):
            self.variances[stage] = self.in_units(store)
        paired = hparams.variant == TEMPORAL
        following = hparams.temporal_frames if paired else 0
        options = self.layers, hparams.batch_size, following
        self.aligned = aligned = aligned or self.aligned
        classes = {"train": None, "valid": None} | aligned.classes
        self.batches = FrameBatches(
            train, *options, hparams.seed, classes["train"], aligned.draws
        )
        sets = (
            self.batches,
            FrameBatches(valid, *options, classes=classes["valid"]),
        )
        loaders = [DataLoader(part, batch_size=None) for part in sets]
        self.fit(hparams.epoch_counter, *loaders)

    def epochs_done(self):
        """Of the layer whose turn it is: see `ResumableBrain`."""
        return self.hparams.epoch_counter.current - 1 + self.share

    def set_units(self, layer, train):
        """Sets the units of a layer's bottlenecks, and initialises them."""
        mean, std, sample = measure(train, layer)
        offset = float(mean.norm() / std.norm().clamp(min=1e-30))
        if self.hparams.normalisation != STANDARDISE and offset > FAR:
            logger.warning(
                f"The mean of {layer} is {offset:.1f} deviations from 0: many "
                f"units may die without --normalisation {STANDARDISE}."
            )
        norm = float(sample.norm(dim=1).mean())
        for key, bottleneck in self.unwrapped.items():
            if self.planned[key].layer == layer:
                try:
                    bottleneck.set_units(mean, std, norm)
                except ValueError as error:
                    place = f"{train.folder}, {layer}"
                    raise ValueError(f"{place}: {error}") from error
                bottleneck.initialise(self.to_device(sample))

    def in_units(self, store):
        """Returns the mean variance of channels for each bottleneck."""
        stds = {layer: measure(store, layer)[1] for layer in self.layers}
        variances = {}
        for key, one in self.planned.items():
            deviation = stds[one.layer] / self.unwrapped[key].std.cpu()
            variances[key] = float(deviation.square().mean())
        return variances

    def init_optimizers(self):
        """Sets the learning rate of each bottleneck, see `default_rate`."""
        super().init_optimizers()
        for key, optimizer in self.optimizers_dict.items():
            optimizer.defaults["lr"] = self.rate(key)
            for group in optimizer.param_groups:
                group["lr"] = self.rate(key)

    def rate(self, key):
        """Returns the learning rate of a bottleneck."""
        return self.hparams.lr or default_rate(self.planned[key].num_units)

    def on_stage_start(self, stage, epoch=None):
        """Sets the epoch of the batches, and what it has had of them."""
        super().on_stage_start(stage, epoch)
        if stage == sb.Stage.TRAIN:
            self.batches.epoch, self.batches.done = epoch, self.step

    def learn(self, batch, should_step):
        """See `ResumableBrain`."""
        losses, stats = {}, {}
        for key, bottleneck, rows in self.in_turn(batch):
            self.share = rows.share
            done, one = self.epochs_done(), self.planned[key]
            for name, schedule in self.hparams.schedules.items():
                bottleneck.anneal(name, schedule(done))
            noise = one.seed, one.layer, "noise", done
            noise = keyed_generator(*noise, device=self.device)
            with self.training_ctx:
                given = rows.x, rows.following, rows.classes
                loss, terms = bottleneck.loss(*given, noise)
            self.backward(key, loss, should_step)
            losses[key] = loss.detach()
            stats |= {f"{key}_{name}": value for name, value in terms.items()}
        self.watched = self.step, None, losses
        return sum(losses.values()), stats

    def in_turn(self, batch):
        """Yields key, bottleneck and batch of those that a step has."""
        there = {
            layer: rows._replace(
                x=self.to_device(rows.x),
                following=self.to_device(rows.following),
                classes=self.to_device(rows.classes),
            )
            for layer, rows in batch.items()
        }
        for key, bottleneck in self.modules.items():
            if (rows := there.get(self.planned[key].layer)) is not None:
                yield key, bottleneck, rows

    def to_device(self, x):
        """Returns a tensor, or None, on the Brain's device."""
        return None if x is None else x.to(self.device, non_blocking=True)

    def step_module(self, name):
        """Steps, with what a bottleneck does before and after it."""
        self.unwrapped[name].before_step()
        super().step_module(name)
        self.unwrapped[name].after_step()

    def compute_forward(self, batch, stage):
        """Returns a batch: `compute_objectives` codes it for each in turn."""
        return batch

    def compute_objectives(self, predictions, batch, stage):
        """Adds up the losses, and records their terms."""
        total = 0.0
        for key, bottleneck, rows in self.in_turn(batch):
            given = rows.x, rows.following, rows.classes
            loss, terms = bottleneck.loss(*given)
            terms = {f"{key}_{name}": value for name, value in terms.items()}
            self.record(terms, stage)
            total = total + loss
        return total

    def means(self, stage):
        """Returns means of terms, of each first explained variance, L0, dead.

        The share of dead units is that of now.
        """
        means, first = super().means(stage), {}
        for key, bottleneck in self.unwrapped.items():
            variance = self.variances[stage][key]
            if f"{key}_mse" in means:
                first[f"{key}_explained"] = 1 - means[f"{key}_mse"] / variance
                first[f"{key}_l0"] = means[f"{key}_l0"]
                first[f"{key}_dead"] = float(bottleneck.dead().float().mean())
        return {**first, **{n: x for n, x in means.items() if n not in first}}

    def save_result(self, training):
        """Saves the bottlenecks beside their encoder; warns of silent ones."""
        parts, metadata, hparams = {}, {}, self.hparams
        stages = {
            stage: by_bottleneck(training[stage] or {}, self.planned)
            for stage in ("train", "valid")
        }
        for key, one in self.planned.items():
            part = f"{BOTTLENECK}_{one.name}"
            about = {"epochs": training["epochs"], "seed": one.seed}
            about |= {**one.options, **self.aligned.about}
            about |= {"lr": self.rate(key), "batch_size": hparams.batch_size}
            about |= {stage: of[key] for stage, of in stages.items()}
            parts[part] = self.unwrapped[key]
            metadata[part] = {"layer": one.layer, "pooling": hparams.pooling}
            metadata[part]["training"] = about
        save_parts(self.hparams.output_folder, parts, metadata)
        for _, problem in self.problems():
            logger.warning(f"{problem}.")

    def silent(self):
        """Returns the names of bottlenecks none of whose units is active."""
        means = super().means(sb.Stage.TRAIN)
        return [
            self.planned[key].name
            for key, bottleneck in self.unwrapped.items()
            if means.get(f"{key}_l0") == 0 or bottleneck.dead().all()
        ]

    def collapsed(self):
        """Returns the names of bottlenecks whose gates are all but constant.

        In the validation part, after the epoch: its first steps do not count.
        """
        means = super().means(sb.Stage.VALID)
        return [
            one.name
            for key, one in self.planned.items()
            if means.get(f"{key}_varied", math.inf) < 1
            and one.name not in self.silent()
        ]

    def problems(self):
        """Lists what is wrong with some bottlenecks: their names, a text."""
        found = []
        if silent := self.silent():
            text = f"All units of {', '.join(silent)} are dead"
            found.append((silent, text))
        if same := self.collapsed():
            text = f"{', '.join(same)}: none of its gates tells frames apart"
            found.append((same, text))
        return found

    def check_alive(self):
        """Raises a ValueError if all bottlenecks are dead or collapsed.

        Only warns of some.
        """
        problems = self.problems()
        several = sum(len(n) for n, _ in problems) < len(self.planned)
        gated = any("alignment" in p.options for p in self.planned.values())
        remedy = GATES_REMEDY if gated else REMEDY
        for _, problem in problems:
            text = f"{problem} after the last epoch: {remedy}."
            if not several:
                raise ValueError(text)
            logger.warning(text)
