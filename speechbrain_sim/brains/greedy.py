"""Greedy training: every module learns alone, one after the other."""

import fnmatch
import math
from contextlib import nullcontext

import speechbrain as sb
import torch
from speechbrain.utils.logger import get_logger
from torch import nn

from speechbrain_sim.brains.base import ResumableBrain
from speechbrain_sim.data.labels import NO_LABEL
from speechbrain_sim.encoders.base import absolute_lengths, valid_frames
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

    All randomness is keyed by (seed, rank, module, epoch, step).
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        frozen = getattr(self.hparams, "frozen", None) or []
        if isinstance(frozen, str):
            frozen = list(self.modules) if frozen == "all" else [frozen]
        self.frozen = list(frozen)
        unknown = sorted(set(self.frozen) - set(self.modules))
        if unknown:
            names = ", ".join(self.modules)
            raise ValueError(f"frozen names {unknown}; there are {names}.")
        on_cpus = self.distributed_launch and self.device_type == "cpu"
        if on_cpus and any(map(_is_batch_norm, self.modules.modules())):
            raise ValueError(
                "Batch norm cannot be shared by several processes on CPUs: "
                "use --batch_norm False, one process, or GPUs."
            )

    def freeze_optimizers(self, optimizers):
        """Leaves out the modules that `frozen` names."""
        return {n: o for n, o in optimizers.items() if n not in self.frozen}

    def targets(self, batch):
        """Returns the labels, (batch, labels) with NO_LABEL in the padding."""
        if not hasattr(batch, "target"):
            return None
        labels, lengths = batch.target
        valid = valid_frames(absolute_lengths(labels, lengths), labels.shape[1])
        return labels.masked_fill(~valid, NO_LABEL).to(self.device)

    def forward_modules(self, batch, stage):
        """Runs the modules bottom up.

        Yields name and `ModuleOutput` of each before the next one runs: the
        place to do its backward.
        """
        wavs, wav_lens = (x.to(self.device) for x in batch.sig)
        x, lengths = wavs[..., None], absolute_lengths(wavs, wav_lens)
        targets = self.targets(batch)
        train = stage == sb.Stage.TRAIN
        learns = set(self.modules) - set(self.frozen) if train else set()
        for name, module in self.modules.items():
            with (  # evaluate_batch has its own autocast, which cannot nest
                self.training_ctx if train else nullcontext(),
                torch.set_grad_enabled(name in learns),
            ):
                output = module(x, lengths, self.key(name, stage), targets)
            yield name, output
            x, lengths = output.x.detach(), output.lengths

    def on_fit_batch_start(self, batch, should_step):
        """Keeps the statistics of frozen batch norms as they are."""
        super().on_fit_batch_start(batch, should_step)
        for name in self.frozen:
            for layer in filter(_is_batch_norm, self.modules[name].modules()):
                layer.eval()

    def fit_batch(self, batch):
        """Trains on one batch; frees graph and gradients before the next module.

        Equals one backward of the summed losses and one step at the end, since
        no gradient crosses modules.
        """
        should_step = self.step % self.grad_accumulation_factor == 0
        self.on_fit_batch_start(batch, should_step)
        losses, stats, statistics = {}, {}, self._copy_statistics()
        with self.no_sync(not should_step):
            for name, output in self.forward_modules(batch, sb.Stage.TRAIN):
                if output.loss.requires_grad:
                    loss = output.loss / self.grad_accumulation_factor
                    self.scaler.scale(loss).backward()
                    if should_step:
                        self.step_module(name)
                losses[name] = output.loss.detach()
                stats.update(output.stats)
        self.losses, loss = losses, sum(losses.values())
        for now, before in statistics:  # a bad batch leaves no trace
            now.copy_(torch.where(torch.isfinite(loss), now, before))
        self.check_loss_isfinite(loss)
        if should_step:
            self.scaler.update()  # once: accumulated gradients share a scale
            self.optimizer_step += 1
        if torch.isfinite(loss):  # as SpeechBrain's own average does
            self.record(stats, sb.Stage.TRAIN)
        self.on_fit_batch_end(batch, None, loss, should_step)
        return loss.cpu()

    def _copy_statistics(self):
        """Lists buffers of batch norms, and copies, if steps may be skipped."""
        if not (self.skip_nonfinite_grads or self.scaler.is_enabled()):
            return []
        norms = filter(_is_batch_norm, self.modules.modules())
        return [(x, x.clone()) for norm in norms for x in norm.buffers()]

    def step_module(self, name):
        """Clips and applies the gradients of one module, and drops them."""
        optimizer = self.freeze_optimizers(self.optimizers_dict)[name]
        weights = list(self.modules[name].parameters())
        self.scaler.unscale_(optimizer)
        if math.isfinite(self.max_grad_norm):
            nn.utils.clip_grad_norm_(weights, self.max_grad_norm)
        if self.skip_nonfinite_grads and not self.scaler.is_enabled():
            # of this module alone: the others may still be accumulating
            for weight in weights:
                if weight.grad is not None and not weight.grad.isfinite().all():
                    weight.grad = None
                    logger.warning(f"{name}: a gradient with NaN is left out.")
        self.scaler.step(optimizer)
        optimizer.zero_grad(set_to_none=True)

    def compute_forward(self, batch, stage):
        """Runs all modules; returns a dict of str to ModuleOutput."""
        return dict(self.forward_modules(batch, stage))

    def compute_objectives(self, predictions, batch, stage):
        """Adds up the modules' losses."""
        stats = {}
        for output in predictions.values():
            stats.update(output.stats)
        self.record(stats, stage)
        return sum(output.loss for output in predictions.values())

    def on_stage_start(self, stage, epoch=None):
        """Sets the epoch of crops and of the KL; starts the averages anew."""
        super().on_stage_start(stage, epoch)
        schedule = getattr(self.hparams, "kl_schedule", None)
        if stage == sb.Stage.TRAIN and schedule is not None:
            for module in self.unwrapped.values():
                module.kl_scale = schedule(epoch)

    def save_result(self, training):
        """Warns of collapse, saves the encoder."""
        for name in self.unwrapped:
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
        objective = self.unwrapped[name].smooth_info_nce
        chance = math.log(1 + objective.num_negatives)
        if min(kls) < COLLAPSED_KL and nce > COLLAPSED_NCE * chance:
            logger.warning(
                f"{name} may have collapsed: KL {min(kls):.2f} nats per frame, "
                f"NCE {nce:.2f}, chance {chance:.2f}. If this stays: a lower "
                f"kl_weight, kl_reduction channel, initial_log_var -5, "
                f"batch_norm or kl_warmup_epochs."
            )


def _is_batch_norm(layer):
    return isinstance(layer, nn.modules.batchnorm._BatchNorm)
