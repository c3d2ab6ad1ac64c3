"""What every training loop here shares: logs, checkpoints, exact resume."""

import math
import shutil

import speechbrain as sb
import torch
from speechbrain.utils.distributed import if_main_process
from speechbrain.utils.logger import get_logger
from speechbrain.utils.train_logger import TensorboardLogger

from speechbrain_sim.brains import estimate
from speechbrain_sim.brains.checkpointer import Averages
from speechbrain_sim.brains.watch import WatchedBrain
from speechbrain_sim.data.batches import training_sets

logger = get_logger(__name__)


class ResumableBrain(WatchedBrain):
    """A Brain whose run, killed and started again, ends as if never killed.

    Every entry of `modules` has its own optimizer and is checkpointed, with
    the running means and the length of the log. Hyper-parameters read from
    `hparams`: `seed`, `epoch_counter`, `train_logger`, `output_folder`; of
    `fit_manifests` also `train_csv`, `valid_csv`, `data_folder`, `crop` (its
    epoch is set), `batch_size`, `train_loader_kwargs`, `valid_loader_kwargs`,
    `tensorboard`. Subclasses define `save_result`. After
    some twenty steps the cost of the run is logged, and kept as `estimate`.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.rank = getattr(self, "rank", 0)
        if self.max_grad_norm <= 0:
            raise ValueError(
                f"max_grad_norm is {self.max_grad_norm}, which would reverse "
                f"the gradient: use .inf (inf on the command line) for none."
            )
        #: the modules, never wrapped by DDP
        self.unwrapped = dict(self.modules.items())
        self.stopwatch, self.estimate = estimate.Stopwatch(), None
        self.averages = {stage: Averages() for stage in sb.Stage}
        if self.checkpointer is not None:
            others = {"averages": self.averages[sb.Stage.TRAIN]}
            others["train_logger"] = self.hparams.train_logger
            self.checkpointer.add_recoverables({**self.unwrapped, **others})

    def fit_manifests(self, *labels):
        """Trains on the manifests that `hparams` name.

        `labels` are the last arguments of `training_sets`.
        """
        hparams = self.hparams
        if hparams.tensorboard:
            folder = f"{hparams.output_folder}/tensorboard"
            hparams.tensorboard_logger = TensorboardLogger(folder)
        source = hparams.train_csv, hparams.valid_csv, hparams.data_folder
        sets = training_sets(*source, hparams.crop, hparams.batch_size, *labels)
        loaders = hparams.train_loader_kwargs, hparams.valid_loader_kwargs
        progressbar = None  # unless --noprogressbar
        self.fit(hparams.epoch_counter, *sets, progressbar, *loaders)

    def on_fit_start(self):
        """Wraps, makes optimizers, resumes; a new run starts with an empty log."""
        super().on_fit_start()
        begins = self.hparams.epoch_counter.current == 0
        if self.checkpointer is not None and begins and not self.debug:
            self.hparams.train_logger.rewind()

    def _should_save_intra_epoch_ckpt(self, *args):
        # a checkpoint cannot hold half-summed gradients
        complete = self.step % self.grad_accumulation_factor == 0
        return complete and super()._should_save_intra_epoch_ckpt(*args)

    def init_optimizers(self):
        """Gives every module its own optimizer, named as the module."""
        self.optimizers_dict = optimizers = {}
        for name, module in self.modules.items():
            optimizers[name] = self.opt_class(module.parameters())
        if self.checkpointer is not None:
            saved = {f"{name}_optimizer": o for name, o in optimizers.items()}
            self.checkpointer.add_recoverables(saved)

    def key(self, name, stage):
        """Returns the key of the draws of one module in this step."""
        if stage == sb.Stage.TRAIN:
            epoch = self.hparams.epoch_counter.current
            return (self.hparams.seed, self.rank, name, epoch, self.step)
        return (self.hparams.seed, stage.name, name, self.step)

    def record(self, stats, stage):
        """Adds one step's stats to the stage's averages, but NaN and infinity."""
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
        self.steps_per_epoch = len(train_set)
        self.stopwatch.begin()
        super()._fit_train(train_set, epoch, enable)

    def on_fit_batch_end(self, batch, outputs, loss, should_step):
        """Logs once what the run will take."""
        step = self.stopwatch.lap()
        if step is None or not if_main_process():
            return
        counter, steps = self.hparams.epoch_counter, self.steps_per_epoch
        left = (counter.limit - counter.current + 1) * steps - self.step
        saved = self.unwrapped.values(), self.optimizers_dict.values()
        seconds = step, step * steps, step * left
        disk = estimate.CHECKPOINTS * estimate.checkpoint_bytes(*saved)
        memory = estimate.peak_memory(self.device)
        self.estimate = estimate.Estimate(*seconds, memory, disk)
        logger.info(str(self.estimate))
        if self.checkpointer is not None:
            folder = self.checkpointer.checkpoints_dir
            free = shutil.disk_usage(folder).free
            if free < disk:
                logger.warning(
                    f"{folder} has only {free / 1e9:.2f} GB of disk free for "
                    f"them: make room, or choose another --output_folder."
                )

    def _fit_valid(self, valid_set, epoch, enable):
        super()._fit_valid(valid_set, epoch, enable)
        self.end_epoch(epoch, validated=valid_set is not None)

    def end_epoch(self, epoch, validated):
        """Logs the epoch, saves its result and a checkpoint."""
        self.check_epoch(epoch, validated)
        train = self.means(sb.Stage.TRAIN)
        valid = self.means(sb.Stage.VALID) if validated else None
        self.hparams.train_logger.log_stats({"epoch": epoch}, train, valid)
        board = getattr(self.hparams, "tensorboard_logger", None)
        if board is not None:
            last = epoch - 1  # which log_stats counts up
            steps = dict.fromkeys([*train, *(valid or ())], last)
            board.global_step.update(train={**steps}, valid=steps, meta=last)
            board.log_stats({}, train, valid)
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
