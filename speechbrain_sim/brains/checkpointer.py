"""Checkpoints, averages and logs that survive a kill at any moment."""

import os
import re
import shutil
import time
from collections import Counter
from pathlib import Path

import torch
from speechbrain.utils import checkpoints, distributed
from speechbrain.utils.logger import get_logger
from speechbrain.utils.train_logger import FileTrainLogger

from speechbrain_sim.files import (
    full_disk_explained,
    read_json,
    sha256,
    sync,
    write_json,
)

logger = get_logger(__name__)


INCOMPLETE = "incomplete+"
HASHES = "SHA256.json"


class AtomicCheckpointer(checkpoints.Checkpointer):
    """SpeechBrain's Checkpointer, safe against a kill at any moment.

    A checkpoint gets its name only when all its files are finite, written and
    hashed. Recovery checks the hashes and the values, and falls back with a
    warning to the last good checkpoint when the newest is damaged. Checkpoints
    are ordered as they were saved, whatever the clock shows. Arguments are
    those of `speechbrain.utils.checkpoints.Checkpointer`.

    Example
    -------
    >>> import torch
    >>> model, folder = torch.nn.Linear(2, 2), getfixture("tmpdir")
    >>> checkpointer = AtomicCheckpointer(folder, {"model": model})
    >>> saved = checkpointer.save_checkpoint()
    >>> checkpointer.recover_if_possible().path == saved.path
    True
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self._problems = {}  # by folder; None for a good one
        #: a `Chain`, if other ranks have other modules; what this one saves
        self.chain, self.parts = None, {}

    def _new_checkpoint_dirpath(self):
        path = super()._new_checkpoint_dirpath()
        return path.with_name(INCOMPLETE + path.name)

    def _custom_checkpoint_dirpath(self, name):
        path = super()._custom_checkpoint_dirpath(name)
        return path.with_name(INCOMPLETE + path.name)

    def _save_checkpoint_metafile(self, path, meta=(), end_of_epoch=True):
        """Adds a time that is later than that of all other checkpoints."""
        others = [c.meta["unixtime"] for c in self.list_checkpoints()]
        later = max([time.time(), *(other + 1e-3 for other in others)])
        meta = {"unixtime": later, **dict(meta)}
        return super()._save_checkpoint_metafile(path, meta, end_of_epoch)

    def save_checkpoint(self, *args, **kwargs):
        """Saves like the parent class, then gives the folder its name."""
        self.check_finite()
        damaged = set()
        if distributed.if_main_process():
            self._remove_incomplete()  # of a killed run
            damaged = set(self._folders()) - set(self._whole())
        chained = self.chain is not None
        barrier = self.chain.barrier if chained else distributed.ddp_barrier
        barrier()
        saved = self._save_explained(*args, **kwargs)
        barrier()  # every process has written what it writes
        if saved is not None:
            path = saved.path
            hashes = {f.name: sha256(f) for f in sorted(path.iterdir())}
            write_json(path / HASHES, hashes)
            for file in (*path.iterdir(), path):
                sync(file)
            final = path.with_name(path.name.removeprefix(INCOMPLETE))
            shutil.rmtree(final, ignore_errors=True)  # of the same name
            os.replace(path, final)
            sync(final.parent)
            self._problems[final] = None
            for folder in damaged - {final}:  # not needed any more
                shutil.rmtree(folder)
            moved = {n: final / p.name for n, p in saved.paramfiles.items()}
            saved = saved._replace(path=final, paramfiles=moved)
        barrier()
        return saved

    def _save_explained(self, *args, **kwargs):
        """Saves; if the disk is full, states it, and leaves nothing of it."""
        try:
            with full_disk_explained(self.checkpoints_dir / "a checkpoint"):
                if self.chain is None:
                    return super().save_checkpoint(*args, **kwargs)
                return self._save_parts(*args, **kwargs)
        except (OSError, RuntimeError) as error:
            self._remove_incomplete()
            # torch's, of a full disk
            if re.search("inline_container|iostream error", str(error)):
                raise OSError(
                    f"A checkpoint cannot be written whole: make room in "
                    f"{self.checkpoints_dir}, and start again."
                ) from error
            raise

    def _save_parts(self, *args, **kwargs):
        """Saves in one folder what all stages have; rank 0's has the rest."""
        saved = None
        with distributed.MainProcessContext():  # no rank waits for another
            if distributed.if_main_process():
                saved = super().save_checkpoint(*args, **kwargs)
        folder = self.chain.share(saved and saved.path)
        if not self.chain.first and self.chain.replica == 0:
            for name, part in self.parts.items():
                file = folder / (name + checkpoints.PARAMFILE_EXT)
                checkpoints.torch_save.__wrapped__(part, file)
        return saved

    def _remove_incomplete(self):
        if distributed.if_main_process():
            for folder in self.checkpoints_dir.glob(INCOMPLETE + "*"):
                shutil.rmtree(folder)

    def check_finite(self):
        """Raises a ValueError if modules or optimizers hold NaN or infinity."""
        if problem := not_finite(self.recoverables):
            raise ValueError(
                f"{problem}, and is not saved: lower the learning rate or clip "
                f"gradients in another --output_folder, or correct the data and "
                f"start again, to go on from the last checkpoint in "
                f"{self.checkpoints_dir}."
            )

    def recover_if_possible(self, *args, **kwargs):
        """Recovers like the parent class, after checking every hash anew.

        A checkpoint that holds NaN or infinity counts as damaged. Raises a
        ValueError if there are checkpoints, and none is good.
        """
        self._problems.clear()
        while chosen := super().recover_if_possible(*args, **kwargs):
            problem = not_finite(self.recoverables)
            if problem is None:
                return chosen
            self._note(chosen.path, problem)
        if (there := self._folders()) and not self._whole():
            names = ", ".join(sorted(folder.name for folder in there))
            raise ValueError(
                f"None of the checkpoints in {self.checkpoints_dir} is whole "
                f"and finite ({names}): restore one, or choose another "
                f"--output_folder to start anew."
            )
        return None

    def list_checkpoints(self):
        """Lists the undamaged checkpoints; warns of the others."""
        return self._construct_checkpoint_objects(self._whole())

    def _folders(self):
        """Returns all that were checkpoints once, damaged or not."""
        there = self.checkpoints_dir.glob(checkpoints.CKPT_PREFIX + "*")
        return [folder for folder in there if folder.is_dir()]

    def _whole(self):
        for folder in set(self._folders()) - self._problems.keys():
            self._note(folder, _damage(folder))
        return [f for f in self._folders() if self._problems[f] is None]

    def _note(self, folder, problem):
        self._problems[folder] = problem
        if problem is not None:
            logger.warning(
                f"Skipping the checkpoint {folder}: {problem}. The last good "
                f"one is used instead, if there is one."
            )


def not_finite(objects):
    """Describes the first NaN or infinity in modules and optimizers.

    `objects` maps names to anything; None if there is none. GPUs are waited for
    once.

    Example
    -------
    >>> model = torch.nn.Linear(1, 1)
    >>> _ = torch.nn.init.constant_(model.bias, torch.nan)
    >>> not_finite({"model": model, "epoch": 3})
    'model has NaN or infinity in bias'
    """
    places, flags = [], []
    for name, thing in objects.items():
        state = {}
        if isinstance(thing, torch.nn.Module):
            state = thing.state_dict()
        elif isinstance(thing, torch.optim.Optimizer):
            of_weights = thing.state_dict()["state"].items()
            state = {f"{k} {n}": v for n, x in of_weights for k, v in x.items()}
        for key, value in state.items():
            if torch.is_tensor(value):
                places.append(f"{name} has NaN or infinity in {key}")
                flags.append(value.isfinite().all())
    devices = {flag.device for flag in flags}  # step counts are on the CPU
    device = max(devices, key=str, default=None)
    flags = [flag.to(device, non_blocking=True) for flag in flags]
    flags = torch.stack(flags).tolist() if flags else []
    bad = (p for p, good in zip(places, flags, strict=True) if not good)
    return next(bad, None)


def _damage(folder):
    """Returns what is wrong with a checkpoint folder; None if it is whole."""
    try:
        hashes = dict(read_json(folder / HASHES))
        hashes[checkpoints.METAFNAME]  # of each checkpoint
    except (OSError, ValueError, TypeError, KeyError):
        return f"{HASHES} is missing or unreadable"
    for name, expected in hashes.items():
        if not (folder / name).exists():
            return f"{name} is missing"
        if sha256(folder / name) != expected:
            return f"{name} does not match its hash"
    return None


@checkpoints.register_checkpoint_hooks
class Averages:
    """Running means of named numbers, exact across a resume.

    Example
    -------
    >>> averages = Averages()
    >>> averages.update({"loss": 1.0, "kl": 3.0})
    >>> averages.update({"loss": 2.0})
    >>> averages.means()
    {'loss': 1.5, 'kl': 3.0}
    """

    def __init__(self):
        self.clear()

    def clear(self):
        """Starts anew."""
        self.sums, self.counts = Counter(), Counter()

    def update(self, values):
        """Adds numbers of one step, a dict of str to float."""
        self.sums.update(values)
        self.counts.update(values.keys())

    def means(self):
        """Returns the dict of means so far."""
        return {name: x / self.counts[name] for name, x in self.sums.items()}

    @checkpoints.mark_as_saver
    @distributed.main_process_only
    def save(self, path):
        """Writes the sums as json (floats survive exactly)."""
        write_json(path, {"sums": self.sums, "counts": self.counts})

    @checkpoints.mark_as_loader
    def load(self, path, end_of_epoch):
        """Reads what `save` wrote."""
        saved = read_json(path)
        self.sums = Counter(saved["sums"])
        self.counts = Counter(saved["counts"])


@checkpoints.register_checkpoint_hooks
class RewindingTrainLogger(FileTrainLogger):
    """SpeechBrain's FileTrainLogger, rewound with the checkpoint it resumes.

    Lines that a killed run wrote after its last checkpoint are dropped on
    resume, so that no epoch is logged twice. Arguments are those of
    `speechbrain.utils.train_logger.FileTrainLogger`.
    """

    @checkpoints.mark_as_saver
    @distributed.main_process_only
    def save(self, path):
        """Saves the length of the log."""
        log = Path(self.save_file)
        write_json(path, {"bytes": log.stat().st_size if log.exists() else 0})

    @checkpoints.mark_as_loader
    def load(self, path, end_of_epoch):
        """Cuts the log to the saved length."""
        self.rewind(read_json(path)["bytes"])

    @distributed.main_process_only
    def rewind(self, size=0):
        """Cuts the log to a size in bytes."""
        log = Path(self.save_file)
        if log.exists() and log.stat().st_size > size:
            os.truncate(log, size)
