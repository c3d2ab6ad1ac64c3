"""What every training loop here shares: logs, checkpoints, exact resume."""

import math
import os
import shutil
from pathlib import Path

import speechbrain as sb
import torch
from speechbrain.utils.distributed import if_main_process, run_on_main
from speechbrain.utils.logger import get_logger
from speechbrain.utils.train_logger import TensorboardLogger
from torch import distributed as dist
from torch import nn
from torch.utils.data import BatchSampler, SequentialSampler

from speechbrain_sim.brains import estimate
from speechbrain_sim.brains.checkpointer import Averages
from speechbrain_sim.brains.watch import WatchedBrain
from speechbrain_sim.data.batches import BatchShare, training_sets
from speechbrain_sim.data.manifests import check_same_data

logger = get_logger(__name__)

#: training steps whose losses and stats are read from a GPU together
READ_STEPS = 50


#: stats of an epoch's line on the screen; the accuracy too if there is no KL
SHOWN = ("loss", "kl", "error", "explained", "l0", "dead")
#: modules of which there are more get a line each
MODULES_IN_LINE = 4


def epoch_line(epoch, train, valid=None):
    """Writes the few numbers of an epoch that matter.

    Arguments
    ---------
    epoch : int
        Its number.
    train, valid : dict of str to float
        All averages; `valid` may be None.

    Example
    -------
    >>> train = {"m1_loss": 5.1234, "m1_kl": 2.0, "m1_accuracy": 0.1}
    >>> epoch_line(3, train | {"m2_accuracy": 0.2}, {"m1_loss": 5.5})
    'Epoch 3, train (valid): m1 loss 5.12 (5.5), m1 kl 2, m2 accuracy 0.2'
    """
    parts, valid = {}, valid or {}
    for name in {**train, **valid}:
        prefix, _, stat = name.rpartition("_")
        if stat in SHOWN or stat == "accuracy" and f"{prefix}_kl" not in train:
            numbers = [f"{train[name]:.3g}"] if name in train else []
            numbers += [f"({valid[name]:.3g})"] if name in valid else []
            text = " ".join([name.replace("_", " "), *numbers])
            parts.setdefault(prefix, []).append(text)
    kinds = "train (valid)" if valid else "train"
    first, between = " ", ", "
    if len(parts) > MODULES_IN_LINE:
        first = between = "\n"
    lines = between.join(map(", ".join, parts.values()))
    return f"Epoch {epoch}, {kinds}:{first}{lines}"


class ResumableBrain(WatchedBrain):
    """A Brain whose run, killed and started again, ends as if never killed.

    Every entry of `modules` has its own optimizer and is checkpointed, with
    the running means and the length of the log. Hyper-parameters read from
    `hparams`: `seed`, `epoch_counter`, `train_logger`, `output_folder`, optional
    `lr_schedule` (epochs since the beginning -> share of the rate); of
    `fit_manifests` also `train_csv`, `valid_csv`, `data_folder`, `crop` (its
    epoch is set), `batch_size`, `train_loader_kwargs`, `valid_loader_kwargs`,
    `tensorboard`. Subclasses define `save_result`. After
    some twenty steps the cost of the run is logged, and kept as `estimate`.
    """

    #: what an estimate leaves out
    estimate_of = ""
    #: opens the data
    training_sets = staticmethod(training_sets)

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.rank = getattr(self, "rank", 0)
        self.replicas = self.count_replicas()
        if self.max_grad_norm <= 0:
            raise ValueError(
                f"max_grad_norm is {self.max_grad_norm}, which would reverse "
                f"the gradient: use .inf (inf on the command line) for none."
            )
        #: the modules, never wrapped by DDP
        self.unwrapped = dict(self.modules.items())
        self.stopwatch, self.estimate = estimate.Stopwatch(), None
        self.steps_per_epoch = math.inf  # until there is a training set
        self.averages = {stage: Averages() for stage in sb.Stage}
        self._unread, self._shown_loss = [], 0.0
        if self.optimizer_step_limit is not None:
            self.checkpointer = None  # a trial run, like those of debug
        if self.checkpointer is not None:
            others = {"averages": self.averages[sb.Stage.TRAIN]}
            others["train_logger"] = self.hparams.train_logger
            self.checkpointer.add_recoverables({**self.unwrapped, **others})

    def count_replicas(self):
        """Returns how many processes train the same modules."""
        return dist.get_world_size() if self.distributed_launch else 1

    def _train_loader_specifics(self, dataset, loader_kwargs):
        """Gives each replica its share of the batches of one process."""
        launched, self.distributed_launch = self.distributed_launch, False
        options = super()._train_loader_specifics(dataset, {**loader_kwargs})
        self.distributed_launch = launched
        if self.replicas == 1:
            return options
        options.pop("shuffle", None)
        sampler = options.pop("sampler", None) or SequentialSampler(dataset)
        shape = options.pop("batch_size", 1), options.pop("drop_last", False)
        batches = options.pop("batch_sampler", None)
        batches = batches or BatchSampler(sampler, *shape)
        self.train_sampler = BatchShare(batches, self.rank, self.replicas)
        return {**options, "batch_sampler": self.train_sampler}

    def fit_manifests(self, *labels):
        """Trains on the manifests that `hparams` name.

        `labels` are the last arguments of `training_sets`.
        """
        hparams, source = self.hparams, self.open_run(*labels[:1])
        options = hparams.crop, hparams.batch_size, *labels
        sets = self.training_sets(*source, *options)
        loaders = hparams.train_loader_kwargs, hparams.valid_loader_kwargs
        loaders = [self.for_device(dict(options)) for options in loaders]
        self.fit_sets(*sets, *loaders)

    def fit_sets(self, train, valid, train_loader, valid_loader):
        """Trains on two datasets, with options of their loaders."""
        sets = self.hparams.epoch_counter, train, valid
        progressbar = None  # unless --noprogressbar
        self.fit(*sets, progressbar, train_loader, valid_loader)

    def open_run(self, label=None):
        """Opens the tensorboard, if there is one; refuses other data.

        Returns the manifests and the folder of the data; see `check_data`.
        """
        hparams = self.hparams
        if hparams.tensorboard:
            folder = f"{hparams.output_folder}/tensorboard"
            hparams.tensorboard_logger = TensorboardLogger(folder)
        source = hparams.train_csv, hparams.valid_csv, hparams.data_folder
        run_on_main(self.check_data, (source, [label]))
        return source

    def for_device(self, loader):
        """Completes the options of a DataLoader for the Brain's device.

        Several workers, unless there is a number, and pinned memory on a GPU.
        """
        on_gpu = self.device_type == "cuda"
        if loader.get("num_workers", 0) is None:
            cores = (os.cpu_count() or 1) // int(os.getenv("WORLD_SIZE", "1"))
            loader["num_workers"] = max(1, min(8, cores - 1)) if on_gpu else 1
            loader["persistent_workers"] = True
        return {"pin_memory": on_gpu, **loader}

    def check_data(self, source, label):
        """Raises a ValueError if a run goes on with other files."""
        if self.checkpointer is None or self.debug:
            return
        *manifests, data_folder = source
        folder = Path(self.checkpointer.checkpoints_dir)
        columns = [name for name in label if name is not None]
        begun = any(folder.glob("CKPT*"))
        check_same_data(
            folder / "data.json", manifests, data_folder, begun, columns
        )

    def on_fit_start(self):
        """Wraps, makes optimizers, resumes; a new run begins an empty log."""
        super().on_fit_start()
        begins = self.hparams.epoch_counter.current == 0
        if self.checkpointer is not None and begins and not self.debug:
            self.hparams.train_logger.rewind()

    def _should_save_intra_epoch_ckpt(self, *args):
        # a checkpoint cannot hold half-summed gradients
        complete, _ = self.accumulation()
        return complete and super()._should_save_intra_epoch_ckpt(*args)

    def accumulation(self):
        """Returns whether the optimizers step now, and after how many batches.

        After `grad_accumulation_factor` batches, or what an epoch has left.
        """
        factor = self.grad_accumulation_factor
        begin = (self.step - 1) // factor * factor
        size = min(factor, self.steps_per_epoch - begin)
        return self.step == begin + size, size

    def init_optimizers(self):
        """Gives every module its own optimizer, named as the module."""
        self.optimizers_dict = optimizers = {}
        for name, module in self.modules.items():
            optimizers[name] = self.opt_class(module.parameters())
        if self.checkpointer is not None:
            saved = {f"{name}_optimizer": o for name, o in optimizers.items()}
            self.checkpointer.add_recoverables(saved)

    def fit_batch(self, batch):
        """Trains on one batch, as SpeechBrain's, but waits for no GPU."""
        should_step, _ = self.accumulation()
        self.on_fit_batch_start(batch, should_step)
        self.watched = self.step, batch, {}
        with self.no_sync(not should_step):
            loss, stats = self.learn(batch, should_step)
        values = [x.float() for x in (loss, *stats.values())]
        values = torch.stack(values)
        self._unread.append((list(stats), values, self.watched))
        if values.device.type == "cpu" or len(self._unread) == READ_STEPS:
            self.read()
        if should_step:
            self.scaler.update()  # once: accumulated gradients share a scale
            self.optimizer_step += 1
        self.on_fit_batch_end(batch, None, loss, should_step)
        return loss

    def learn(self, batch, should_step):
        """Does the `backward` of a batch: detached loss, dict of stats."""
        raise NotImplementedError

    def backward(self, name, loss, should_step):
        """Computes the gradients of one module, and applies them if due."""
        _, size = self.accumulation()
        self.scaler.scale(loss / size).backward()
        if should_step:
            self.step_module(name)

    def step_module(self, name):
        """Clips and applies the gradients of one module, and drops them."""
        optimizer = self.freeze_optimizers(self.optimizers_dict)[name]
        self.set_rate(optimizer)
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

    def set_rate(self, optimizer):
        """Sets the learning rate of this step, if `hparams` has a schedule."""
        schedule = getattr(self.hparams, "lr_schedule", None)
        if schedule is None:
            return
        share = schedule(self.epochs_done())
        for group in optimizer.param_groups:
            group["lr"] = optimizer.defaults["lr"] * share

    def epochs_done(self):
        """Returns the epochs up to this step, with a fraction."""
        epoch, steps = self.hparams.epoch_counter.current, self.steps_per_epoch
        return epoch - 1 + (0 if math.isinf(steps) else self.step / steps)

    def read(self):
        """Checks and averages the losses and stats of the last steps.

        Those of a step whose loss is not finite do not count, as in
        SpeechBrain's own average.
        """
        unread, self._unread = self._unread, []
        if not unread:
            return
        counts = [len(values) for _, values, _ in unread]
        rows = torch.cat([values for _, values, _ in unread]).cpu()
        rows = rows.split(counts)
        for row, (names, _, watched) in zip(rows, unread, strict=True):
            (loss, *values), self.watched = row, watched
            self.check_loss_isfinite(loss)
            if torch.isfinite(loss):
                stats = dict(zip(names, values, strict=True))
                self.record(stats, sb.Stage.TRAIN)
        self._shown_loss = float(rows[-1][0])

    def update_average(self, loss, avg_loss):
        """As SpeechBrain's; of losses on a GPU, one that was read before."""
        if loss.device.type == "cpu":
            return super().update_average(loss, avg_loss)
        return self._shown_loss

    def _save_intra_epoch_ckpt(self):
        self.read()
        epoch = self.hparams.epoch_counter.current
        self.check_state(f"In epoch {epoch}, after step {self.step}")
        super()._save_intra_epoch_ckpt()

    def key(self, name, stage):
        """Returns the key of the draws of one module in this step."""
        if stage == sb.Stage.TRAIN:
            epoch = self.hparams.epoch_counter.current
            # of one process that does what all replicas do, in turn
            step = (self.step - 1) * self.replicas + self.rank + 1
            return (self.hparams.seed, 0, name, epoch, step)
        return (self.hparams.seed, stage.name, name, self.step)

    def record(self, stats, stage):
        """Adds a step's stats to the stage's averages, but NaN and infinity."""
        values = torch.stack([value.float() for value in stats.values()])
        named = zip(stats, values.tolist(), strict=True)
        finite = {name: x for name, x in named if math.isfinite(x)}
        self.averages[stage].update(finite)

    def means(self, stage):
        """Returns the means of what was recorded, for log and metadata."""
        return self.averages[stage].means()

    def on_stage_start(self, stage, epoch=None):
        """Sets the epoch of crops; starts the averages anew."""
        if stage != sb.Stage.TRAIN or self.step == 0:  # else: resumed
            self.averages[stage].clear()
        crop = getattr(self.hparams, "crop", None)
        if stage == sb.Stage.TRAIN and crop is not None:
            crop.set_epoch(epoch)

    def _fit_train(self, train_set, epoch, enable):
        steps, factor = len(train_set), self.grad_accumulation_factor
        if steps < factor:
            raise ValueError(
                f"An epoch has {steps} batches for each process, fewer than "
                f"grad_accumulation_factor, {factor}: use a smaller one, a "
                f"smaller batch_size, more data, or fewer processes."
            )
        stop = self.debug_batches if self.debug else steps
        self.steps_per_epoch = min(steps, stop)
        self.stopwatch.begin()
        super()._fit_train(train_set, epoch, enable)
        self.read()

    def on_fit_batch_end(self, batch, outputs, loss, should_step):
        """Logs once what the run will take."""
        step = self.stopwatch.lap()
        unknown = step is None or math.isinf(self.steps_per_epoch)
        if unknown or not if_main_process():
            return
        counter, steps = self.hparams.epoch_counter, self.steps_per_epoch
        left = (counter.limit - counter.current + 1) * steps - self.step
        saved = self.unwrapped.values(), self.optimizers_dict.values()
        seconds = step, step * steps, step * left
        disk = estimate.CHECKPOINTS * estimate.checkpoint_bytes(*saved)
        memory = estimate.peak_memory(self.device)
        self.estimate = estimate.Estimate(*seconds, memory, disk)
        logger.info(f"{self.estimate}{self.estimate_of}")
        if self.checkpointer is not None:
            folder = self.checkpointer.checkpoints_dir
            free = shutil.disk_usage(folder).free
            if free < disk:
                logger.warning(
                    f"{folder} has only {free / 1e9:.2f} GB of disk free for "
                    f"them: make room, or choose another --output_folder."
                )

    def _fit_valid(self, valid_set, epoch, enable):
        every = getattr(self.hparams, "epochs_per_save", 1)
        saves = epoch % every == 0 or epoch == self.hparams.epoch_counter.limit
        valid_set = valid_set if saves else None
        super()._fit_valid(valid_set, epoch, enable)
        self.end_epoch(epoch, valid_set is not None, saves)

    def end_epoch(self, epoch, validated, saves=True):
        """Logs the epoch; if it `saves`, its result and a checkpoint."""
        if saves:
            self.check_epoch(epoch, validated)
        train = self.means(sb.Stage.TRAIN)
        valid = self.means(sb.Stage.VALID) if validated else None
        every = {"epoch": epoch}, train, valid
        self.hparams.train_logger.log_stats(*every, verbose=False)
        if if_main_process():
            logger.info(epoch_line(epoch, train, valid))
        board = getattr(self.hparams, "tensorboard_logger", None)
        if board is not None:
            last = epoch - 1  # which log_stats counts up
            steps = dict.fromkeys([*train, *(valid or ())], last)
            board.global_step.update(train={**steps}, valid=steps, meta=last)
            board.log_stats({}, train, valid)
        if not saves:
            return
        if if_main_process():
            training = {"epochs": epoch, "seed": self.hparams.seed}
            self.save_result({**training, "train": train, "valid": valid})
        # last: a run that is killed before this point repeats the epoch
        if self.checkpointer is not None:
            meta = {"epoch": epoch, **(valid or train)}
            kept = {"num_to_keep": 2, "importance_keys": []}  # for a fall-back
            self.checkpointer.save_and_keep_only(meta, **kept)

    def save_result(self, training):
        """Saves what the run is for, after every epoch, in the main process.

        `training` has `epochs` so far, `seed`, and the epoch's averages `train`
        and `valid`, which is None without a validation set.
        """
        raise NotImplementedError
