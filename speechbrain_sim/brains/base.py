"""What every training loop here shares: logs, checkpoints, exact resume."""

import speechbrain as sb
import torch
from speechbrain.utils.distributed import if_main_process
from speechbrain.utils.logger import get_logger
from speechbrain.utils.train_logger import TensorboardLogger

from speechbrain_sim.brains.checkpointer import Averages
from speechbrain_sim.brains.estimate import (
    CHECKPOINTS,
    Estimate,
    Stopwatch,
    checkpoint_bytes,
    free_disk,
    peak_memory,
)
from speechbrain_sim.data.batches import training_sets

logger = get_logger(__name__)


class ResumableBrain(sb.Brain):
    """A Brain whose run, killed and started again, ends as if never killed.

    Every entry of `modules` has its own optimizer and is checkpointed, with
    the running means and the length of the log. Hyper-parameters read from
    `hparams`: `epoch_counter`, `train_logger`; optional `crop` (its epoch is
    set), `tensorboard_logger`. Subclasses define `save_result`. After some
    twenty steps the cost of the run is logged, and kept as `estimate`.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.rank = getattr(self, "rank", 0)
        if self.max_grad_norm <= 0:
            raise ValueError(
                f"max_grad_norm is {self.max_grad_norm}: SpeechBrain would "
                f"stop or reverse the gradient. Use .inf (inf on the command "
                f"line) for no clipping."
            )
        #: the modules, never wrapped by DDP
        self.unwrapped = dict(self.modules.items())
        self.stopwatch, self.estimate = Stopwatch(), None
        self.averages = {stage: Averages() for stage in sb.Stage}
        if self.checkpointer is not None:
            averages, log = self.averages[sb.Stage.TRAIN], "train_logger"
            self.checkpointer.add_recoverables(self.unwrapped)
            self.checkpointer.add_recoverable("averages", averages)
            self.checkpointer.add_recoverable(log, self.hparams.train_logger)

    def fit_manifests(self, *labels):
        """Trains on the manifests that `hparams` name.

        Arguments
        ---------
        *labels :
            The last arguments of `training_sets`, for supervised runs.
        """
        hparams = self.hparams
        if hparams.tensorboard:
            folder = f"{hparams.output_folder}/tensorboard"
            hparams.tensorboard_logger = TensorboardLogger(folder)
        train_set, valid_set = training_sets(
            hparams.train_csv,
            hparams.valid_csv,
            hparams.data_folder,
            hparams.crop,
            hparams.batch_size,
            *labels,
        )
        self.fit(
            hparams.epoch_counter,
            train_set,
            valid_set,
            train_loader_kwargs=hparams.train_loader_kwargs,
            valid_loader_kwargs=hparams.valid_loader_kwargs,
        )

    def on_fit_start(self):
        """Wraps, makes optimizers, resumes; a new run starts with an empty log."""
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
            self.optimizers_dict[name] = self.opt_class(module.parameters())
        if self.checkpointer is not None:
            for name, optimizer in self.optimizers_dict.items():
                name = f"{name}_optimizer"
                self.checkpointer.add_recoverable(name, optimizer)

    def key(self, name, stage):
        """Returns the key of the draws of one module in this step."""
        if stage == sb.Stage.TRAIN:
            epoch = self.hparams.epoch_counter.current
            return (self.hparams.seed, self.rank, name, epoch, self.step)
        return (self.hparams.seed, stage.name, name, self.step)

    def record(self, stats, stage):
        """Adds one step's stats to the stage's averages."""
        values = torch.stack([value.float() for value in stats.values()])
        named = dict(zip(stats, values.tolist(), strict=True))
        self.averages[stage].update(named)

    def on_stage_start(self, stage, epoch=None):
        """Sets the epoch of crops; starts the averages anew."""
        if stage != sb.Stage.TRAIN or self.step == 0:  # else: resumed
            self.averages[stage].clear()
        crop = getattr(self.hparams, "crop", None)
        if stage == sb.Stage.TRAIN and crop is not None:
            crop.set_epoch(epoch)

    def on_stage_end(self, stage, stage_loss, epoch=None):
        """Logs the test stage; `end_epoch` logs the others together."""
        if stage == sb.Stage.TEST:
            self.hparams.train_logger.log_stats(
                {"Epoch loaded": self.hparams.epoch_counter.current},
                test_stats=self.averages[stage].means(),
            )

    def _fit_train(self, train_set, epoch, enable):
        self.steps_per_epoch = len(train_set)
        self.stopwatch.begin()
        super()._fit_train(train_set, epoch, enable)

    def on_fit_batch_end(self, batch, outputs, loss, should_step):
        """Logs once what the run will take."""
        seconds = self.stopwatch.lap()
        if seconds is None or not if_main_process():
            return
        counter = self.hparams.epoch_counter
        epochs = counter.limit - counter.current + 1
        steps = epochs * self.steps_per_epoch - self.step
        saved = self.unwrapped.values(), self.optimizers_dict.values()
        self.estimate = Estimate(
            step=seconds,
            epoch=seconds * self.steps_per_epoch,
            left=seconds * steps,
            memory=peak_memory(self.device),
            disk=CHECKPOINTS * checkpoint_bytes(*saved),
        )
        logger.info(str(self.estimate))
        if self.checkpointer is not None:
            free = free_disk(self.checkpointer.checkpoints_dir)
            if free < self.estimate.disk:
                logger.warning(
                    f"Only {free / 1e9:.2f} GB of disk are free for them: make "
                    f"room, or put the --output_folder on a larger disk."
                )

    def _fit_valid(self, valid_set, epoch, enable):
        super()._fit_valid(valid_set, epoch, enable)
        self.end_epoch(epoch, validated=valid_set is not None)

    def end_epoch(self, epoch, validated):
        """Logs the epoch, saves its result and a checkpoint."""
        train = self.averages[sb.Stage.TRAIN].means()
        valid = self.averages[sb.Stage.VALID].means() if validated else None
        self.hparams.train_logger.log_stats({"epoch": epoch}, train, valid)
        self.log_tensorboard(epoch, train, valid)
        self.save_result(epoch, train, valid)
        # last: a run that is killed before this point repeats the epoch
        if self.checkpointer is not None:
            self.checkpointer.save_and_keep_only(
                meta={"epoch": epoch, **(valid or train)},
                num_to_keep=2,  # one to fall back to
                importance_keys=[],
            )

    def save_result(self, epoch, train, valid):
        """Saves what the run is for, after every epoch.

        Arguments
        ---------
        epoch : int
            The epoch that ends.
        train, valid : dict of str to float
            Its averages; `valid` is None without a validation set.
        """
        raise NotImplementedError

    def log_tensorboard(self, epoch, train, valid):
        """Logs an epoch to TensorBoard, where there is a logger."""
        board = getattr(self.hparams, "tensorboard_logger", None)
        if board is not None:
            steps = dict.fromkeys([*train, *(valid or ())], epoch - 1)
            board.global_step.update(
                train=dict(steps), valid=steps, meta=epoch - 1
            )
            board.log_stats({}, train, valid)
