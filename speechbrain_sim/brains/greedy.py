"""Greedy training: every module learns alone, one after the other.

A `GreedyModule` is a part of the encoder with its own objective; `GreedyBrain`
trains a stack of them, each with its own optimizer. A single module that holds
all layers is trained end to end (CPC, end-to-end SIM, supervised).
"""

import math
from contextlib import nullcontext
from typing import NamedTuple

import speechbrain as sb
import torch
from speechbrain.utils.logger import get_logger
from torch import nn

from speechbrain_sim.checkpoints import Averages, save_encoder
from speechbrain_sim.encoders import (
    CONTEXT,
    absolute_lengths,
    masked_mean,
    valid_frames,
)
from speechbrain_sim.losses import SmoothInfoNCE, active_units
from speechbrain_sim.probes import NO_LABEL, frames_of_labels
from speechbrain_sim.randomness import keyed_generator

logger = get_logger(__name__)

#: a module has collapsed at this share of chance and this many nats
COLLAPSED_NCE, COLLAPSED_KL = 0.95, 1.0


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

    Subclasses define `objective`.
    """

    def __init__(self, name, layers):
        super().__init__()
        self.name = name
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
            latents[name] = layer(x, lengths, generator=noise)
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
    """

    def __init__(self, name, layers, smooth_info_nce, kl_weights, draws=1):
        super().__init__(name, layers)
        self.smooth_info_nce = smooth_info_nce
        self.kl_weights = kl_weights
        self.draws = draws
        #: share of beta that counts now; a warm-up moves it from 0 to 1
        self.kl_scale = 1.0

    def objective(self, latents, below, noise, choices, targets):
        """Scores the topmost layer; see `GreedyModule.forward`."""
        top_name, top = list(latents.items())[-1]
        if top_name == CONTEXT:  # the GRU predicts what it reads
            pairs = [(top.mean, below)]
        elif top.sampled:  # c and z: independent draws of one posterior
            pairs = [(top.draw(noise), top.sample)]
            pairs += [
                (top.draw(noise), top.draw(noise))
                for _ in range(self.draws - 1)
            ]
        else:
            pairs = [(top.mean, top.mean)]
        posteriors = {n: z for n, z in latents.items() if z.log_var is not None}
        terms = self.smooth_info_nce(
            pairs,
            top.lengths,
            [
                (z, self.kl_scale * self.kl_weights[n])
                for n, z in posteriors.items()
            ],
            choices,
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


class GreedyBrain(sb.Brain):
    """Trains greedy modules: forward, backward and free, module by module.

    `modules` are `GreedyModule`s in order, bottom first; `opt_class` makes one
    optimizer for each, named as the module. Batches have `sig` (SpeechBrain's
    padded waveforms) and, for supervised modules, `target`. Hyper-parameters
    read from `hparams`: `seed`, `epoch_counter`, `train_logger`, `encoder`,
    `encoder_folder`; optional `frozen` (modules that do not learn),
    `kl_warmup_epochs`, `crop` (told the epoch), `tensorboard_logger`, `about`
    (what the saved encoder says of itself).

    All randomness is keyed by (seed, rank, module, epoch, step); a checkpoint
    holds modules, optimizers, running means and the length of the log, so a
    resumed run ends as one that was never killed.
    """

    def __init__(
        self, modules, opt_class, hparams, run_opts=None, checkpointer=None
    ):
        super().__init__(modules, opt_class, hparams, run_opts, checkpointer)
        self.rank = getattr(self, "rank", 0)
        frozen = getattr(self.hparams, "frozen", None) or []
        if isinstance(frozen, str):
            frozen = list(self.modules) if frozen == "all" else [frozen]
        self.frozen = list(frozen)
        unknown = set(self.frozen) - set(self.modules)
        if unknown:
            raise ValueError(
                f"frozen names {sorted(unknown)}; the modules are "
                f"{', '.join(self.modules)}."
            )
        if self.max_grad_norm <= 0:
            raise ValueError(
                f"max_grad_norm is {self.max_grad_norm}: SpeechBrain would "
                f"stop or reverse the gradient. Use .inf for no clipping."
            )
        on_cpus = self.distributed_launch and self.device_type == "cpu"
        if on_cpus and any(map(_is_batch_norm, self.modules.modules())):
            raise ValueError(
                "Batch norm cannot be shared by several processes on CPUs: "
                "use --batch_norm False, one process, or GPUs."
            )
        self.raw = dict(self.modules.items())  # never wrapped by DDP
        self.averages = {stage: Averages() for stage in sb.Stage}
        if checkpointer is not None:
            for name, module in self.raw.items():
                checkpointer.add_recoverable(name, module)
            checkpointer.add_recoverable(
                "averages", self.averages[sb.Stage.TRAIN]
            )
            checkpointer.add_recoverable(
                "train_logger", self.hparams.train_logger
            )

    def on_fit_start(self):
        """Wraps, makes optimizers, resumes; a run without past has no log."""
        super().on_fit_start()
        begins = self.hparams.epoch_counter.current == 0
        if self.checkpointer is not None and begins and not self.debug:
            self.hparams.train_logger.rewind()

    def _should_save_intra_epoch_ckpt(self, last_ckpt_time, steps_since_ckpt):
        if self.step % self.grad_accumulation_factor:
            return False  # a checkpoint cannot hold half-summed gradients
        return super()._should_save_intra_epoch_ckpt(
            last_ckpt_time, steps_since_ckpt
        )

    def init_optimizers(self):
        """Gives every module its own optimizer, named as the module."""
        self.optimizers_dict = {}
        for name, module in self.modules.items():
            optimizer = self.opt_class(module.parameters())
            self.optimizers_dict[name] = optimizer
            if self.checkpointer is not None:
                self.checkpointer.add_recoverable(
                    f"{name}_optimizer", optimizer
                )

    def freeze_optimizers(self, optimizers):
        """Leaves out the modules that `frozen` names."""
        return {n: o for n, o in optimizers.items() if n not in self.frozen}

    def key(self, name, stage):
        """Names the draws of one module in this step."""
        if stage == sb.Stage.TRAIN:
            epoch = self.hparams.epoch_counter.current
            return (self.hparams.seed, self.rank, name, epoch, self.step)
        return (self.hparams.seed, stage.name, name, self.step)

    def targets(self, batch):
        """Returns the labels, (batch, labels) with NO_LABEL in the padding."""
        if not hasattr(batch, "target"):
            return None
        labels, lengths = batch.target
        valid = valid_frames(absolute_lengths(labels, lengths), labels.shape[1])
        return labels.masked_fill(~valid, NO_LABEL).to(self.device)

    def forward_modules(self, batch, stage):
        """Runs the modules bottom up.

        Each output is yielded before the next module runs: the place to do its
        backward.

        Arguments
        ---------
        batch : PaddedBatch
            With `sig`, and `target` if supervised.
        stage : sb.Stage
            TRAIN, VALID or TEST.

        Yields
        ------
        name, output : (str, ModuleOutput)
        """
        wavs, wav_lens = batch.sig
        x = wavs.to(self.device)[..., None]
        lengths = absolute_lengths(x, wav_lens.to(self.device))
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
        for name in self.frozen:
            for layer in filter(_is_batch_norm, self.modules[name].modules()):
                layer.eval()

    def fit_batch(self, batch):
        """Trains on one batch, each module's graph freed before the next.

        Equals one backward of the summed losses: no gradient crosses modules.
        """
        should_step = self.step % self.grad_accumulation_factor == 0
        self.on_fit_batch_start(batch, should_step)
        losses, stats = [], {}
        with self.no_sync(not should_step):
            for _, output in self.forward_modules(batch, sb.Stage.TRAIN):
                if output.loss.requires_grad:
                    self.scaler.scale(
                        output.loss / self.grad_accumulation_factor
                    ).backward()
                losses.append(output.loss.detach())
                stats.update(output.stats)
        loss = sum(losses)
        self.check_loss_isfinite(loss)
        if should_step:
            self.optimizers_step()
        if torch.isfinite(loss):  # as SpeechBrain's own average does
            self.record(stats, sb.Stage.TRAIN)
        self.on_fit_batch_end(batch, None, loss, should_step)
        return loss.cpu()

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

    def record(self, stats, stage):
        """Adds one step's stats to the stage's averages."""
        values = torch.stack([value.float() for value in stats.values()])
        named = dict(zip(stats, values.tolist(), strict=True))
        self.averages[stage].update(named)

    def on_stage_start(self, stage, epoch=None):
        """Tells crops and KL warm-up the epoch; starts the averages anew."""
        if stage != sb.Stage.TRAIN or self.step == 0:  # else: resumed
            self.averages[stage].clear()
        if stage == sb.Stage.TRAIN:
            crop = getattr(self.hparams, "crop", None)
            if crop is not None:
                crop.set_epoch(epoch)
            warmup = getattr(self.hparams, "kl_warmup_epochs", 0)
            for module in self.raw.values():
                module.kl_scale = min(1.0, epoch / warmup) if warmup else 1.0

    def on_stage_end(self, stage, stage_loss, epoch=None):
        """Logs the test stage; `end_epoch` logs the others together."""
        if stage == sb.Stage.TEST:
            self.hparams.train_logger.log_stats(
                {"Epoch loaded": self.hparams.epoch_counter.current},
                test_stats=self.averages[stage].means(),
            )

    def _fit_valid(self, valid_set, epoch, enable):
        super()._fit_valid(valid_set, epoch, enable)
        self.end_epoch(epoch, validated=valid_set is not None)

    def end_epoch(self, epoch, validated):
        """Logs the epoch, warns of collapse, saves encoder and checkpoint."""
        train = self.averages[sb.Stage.TRAIN].means()
        valid = self.averages[sb.Stage.VALID].means() if validated else None
        meta = {"epoch": epoch}
        self.hparams.train_logger.log_stats(meta, train, valid)
        self.log_tensorboard(epoch, train, valid)
        for name in self.raw:
            self.warn_of_collapse(name, train)
        if sb.utils.distributed.if_main_process():
            save_encoder(
                self.hparams.encoder,
                self.hparams.encoder_folder,
                epochs=epoch,
                seed=self.hparams.seed,
                train=train,
                valid=valid,
                **(getattr(self.hparams, "about", None) or {}),
            )
        # last: a run that is killed before this point repeats the epoch
        if self.checkpointer is not None:
            self.checkpointer.save_and_keep_only(
                meta={"epoch": epoch, **(valid or train)},
                num_to_keep=1,
                importance_keys=[],
            )

    def log_tensorboard(self, epoch, train, valid):
        """Logs to TensorBoard if asked, at the epoch's place."""
        board = getattr(self.hparams, "tensorboard_logger", None)
        if board is not None:
            steps = dict.fromkeys([*train, *(valid or ())], epoch - 1)
            board.global_step = {
                "train": dict(steps),
                "valid": dict(steps),
                "test": {},
                "meta": epoch - 1,
            }
            board.log_stats({}, train, valid)

    def warn_of_collapse(self, name, stats):
        """Warns when a posterior of a module carries nothing any more."""
        nce = stats.get(f"{name}_nce")
        kls = [
            value
            for stat, value in stats.items()
            if stat.startswith(f"{name}_") and stat.endswith("_kl")
        ]
        if nce is None or not kls:
            return
        chance = math.log(1 + self.raw[name].smooth_info_nce.negatives)
        if min(kls) < COLLAPSED_KL and nce > COLLAPSED_NCE * chance:
            logger.warning(
                f"{name} may have collapsed: its KL is {min(kls):.2f} nats per "
                f"frame and its NCE {nce:.2f}, chance being {chance:.2f}. If "
                f"this stays after the first epochs, lower its kl_weight, use "
                f"kl_reduction: channel, an initial_log_var of -5, batch_norm, "
                f"or kl_warmup_epochs."
            )


def _is_batch_norm(layer):
    return isinstance(layer, nn.modules.batchnorm._BatchNorm)
