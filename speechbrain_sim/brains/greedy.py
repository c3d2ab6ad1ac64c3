"""Greedy training: every module learns alone, one after the other."""

import fnmatch
import math
from contextlib import nullcontext

import speechbrain as sb
import torch
from speechbrain.utils.logger import get_logger
from torch import nn

from speechbrain_sim.brains.base import ResumableBrain
from speechbrain_sim.brains.transport import Here
from speechbrain_sim.data.labels import NO_LABEL
from speechbrain_sim.encoders.base import (
    absolute_lengths,
    to_device,
    valid_frames,
)
from speechbrain_sim.files import versions
from speechbrain_sim.models.format import ENCODER, save_parts

logger = get_logger(__name__)

#: a module has collapsed at this share of chance and this many nats
COLLAPSED_NCE, COLLAPSED_KL = 0.95, 1.0


class GreedyBrain(ResumableBrain):
    """Trains greedy modules: forward, backward, step and free, one by one.

    `modules` are `GreedyModule`s in order, bottom first. Batches have `sig`
    (padded waveforms) and, for supervised modules, `target`. Hyper-parameters
    read from `hparams` beside those of `ResumableBrain`: `encoder`,
    `output_folder`; optional `frozen` (modules that do not learn),
    `kl_schedule` (epoch -> share of beta), `about` (metadata of the encoder).

    All randomness is keyed by (seed, module, epoch, step). R processes draw
    and learn what one process does in R times as many steps, if it accumulates
    gradients over R.
    """

    #: where the bottom module's input comes from
    transport = Here()

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        frozen = getattr(self.hparams, "frozen", None) or []
        if isinstance(frozen, str):
            frozen = self.module_names() if frozen == "all" else [frozen]
        self.frozen = list(frozen)
        unknown = sorted(set(self.frozen) - set(self.module_names()))
        if unknown:
            names = ", ".join(self.module_names())
            raise ValueError(f"frozen names {unknown}; there are {names}.")
        on_cpus = self.replicas > 1 and self.device_type == "cpu"
        if on_cpus and any(map(_is_batch_norm, self.modules.modules())):
            raise ValueError(
                "Batch norm cannot be shared by several processes on CPUs: "
                "use --batch_norm False, one process, or GPUs."
            )

    def module_names(self):
        """Returns the names of all modules, bottom first."""
        return list(self.modules)

    def running(self):
        """Returns the names of the modules that run here, bottom first."""
        return list(self.modules)

    def freeze_optimizers(self, optimizers):
        """Leaves out the modules that `frozen` names."""
        return {n: o for n, o in optimizers.items() if n not in self.frozen}

    def targets(self, batch):
        """Returns the labels, (batch, labels) with NO_LABEL in the padding."""
        if not hasattr(batch, "target"):
            return None
        labels, lengths = batch.target
        valid = valid_frames(absolute_lengths(labels, lengths), labels.shape[1])
        return labels.masked_fill(~valid, NO_LABEL)

    def forward_modules(self, batch, stage):
        """Runs the modules bottom up, those of `running`.

        Yields name and `ModuleOutput` of each before the next one runs: the
        place to do its backward.
        """
        train, names = stage == sb.Stage.TRAIN, self.running()
        when = int(train), self.hparams.epoch_counter.current, self.step
        x, lengths = self.transport.receive(batch, when)
        x, targets = to_device(x, self.device), self.targets(batch)
        self.total = self.transport.below  # of all modules up to the last run
        learns = set(self.modules) - set(self.frozen) if train else set()
        for name in names:
            with (  # evaluate_batch has its own autocast, which cannot nest
                self.training_ctx if train else nullcontext(),
                torch.set_grad_enabled(name in learns),
            ):
                key = self.key(name, stage)
                output = self.modules[name](x, lengths, key, targets)
            x, lengths = output.x.detach(), output.lengths
            self.total = self.total + output.loss.detach()
            if name == names[-1]:  # before the backward
                self.transport.send(x, lengths, self.total, when)
            yield name, output

    def on_fit_batch_start(self, batch, should_step):
        """Keeps the statistics of frozen batch norms as they are."""
        super().on_fit_batch_start(batch, should_step)
        for name in self.frozen:
            for layer in filter(_is_batch_norm, self.modules[name].modules()):
                layer.eval()

    def learn(self, batch, should_step):
        """Frees graph and gradients of a module before the next one.

        Equals one backward of the summed losses and one step at the end, since
        no gradient crosses modules.
        """
        losses, stats, statistics = {}, {}, self._copy_statistics()
        for name, output in self.forward_modules(batch, sb.Stage.TRAIN):
            if output.loss.requires_grad:
                self.backward(name, output.loss, should_step)
            losses[name] = output.loss.detach()
            stats.update(output.stats)
        loss = self.total
        for now, before in statistics:  # a bad batch leaves no trace
            now.copy_(torch.where(torch.isfinite(loss), now, before))
        self.watched = self.step, batch, losses
        return loss, stats

    def _copy_statistics(self):
        """Lists buffers of batch norms, and copies, if steps may be skipped."""
        if not (self.skip_nonfinite_grads or self.scaler.is_enabled()):
            return []
        norms = filter(_is_batch_norm, self.modules.modules())
        return [(x, x.clone()) for norm in norms for x in norm.buffers()]

    def compute_forward(self, batch, stage):
        """Runs all modules; returns a dict of str to ModuleOutput."""
        return dict(self.forward_modules(batch, stage))

    def compute_objectives(self, predictions, batch, stage):
        """Returns the sum of the modules' losses."""
        stats = {}
        for output in predictions.values():
            stats.update(output.stats)
        self.record(stats, stage)
        return self.total

    def on_stage_start(self, stage, epoch=None):
        """Sets the epoch of crops and of the KL; starts the averages anew."""
        super().on_stage_start(stage, epoch)
        schedule = getattr(self.hparams, "kl_schedule", None)
        if stage == sb.Stage.TRAIN and schedule is not None:
            for module in self.unwrapped.values():
                module.kl_scale = schedule(epoch)

    def save_result(self, training):
        """Warns of collapse, saves the encoder."""
        for name in self.module_names():
            self.warn_of_collapse(name, training["train"])
        about = getattr(self.hparams, "about", None) or {}
        training = {**training, "versions": versions(), **about}
        encoder = {ENCODER: self.hparams.encoder}
        save_parts(self.hparams.output_folder, encoder, training=training)

    def warn_of_collapse(self, name, stats):
        """Warns if a posterior of a module carries no information any more."""
        nce = stats.get(f"{name}_nce")
        kls = [stats[stat] for stat in fnmatch.filter(stats, f"{name}_*kl")]
        if nce is None or not kls:
            return
        module = self.unwrapped[name]
        chance = math.log(1 + module.smooth_info_nce.num_negatives)
        if min(kls) < COLLAPSED_KL and nce > COLLAPSED_NCE * chance:
            logger.warning(
                f"{name} may have collapsed: KL {min(kls):.2f} nats per frame, "
                f"NCE {nce:.2f}, chance {chance:.2f}. If this stays: "
                f"{', or '.join(self._remedies(module))}."
            )

    def _remedies(self, module):
        """Yields what may help a collapsed module, unless the run has it."""
        if any(module.kl_weights.values()):
            yield "a lower --kl_weight"
            if module.smooth_info_nce.kl_reduction != "channel":
                yield "--kl_reduction channel"
            if not getattr(self.hparams, "kl_warmup_epochs", 0):
                yield "--kl_warmup_epochs 10"
        if getattr(self.hparams, "initial_log_var", 0) > -5:
            yield "--initial_log_var -5"
        if not any(map(_is_batch_norm, module.modules())):
            yield "--batch_norm True"
        yield "another --lr"


def _is_batch_norm(layer):
    return isinstance(layer, nn.modules.batchnorm._BatchNorm)
