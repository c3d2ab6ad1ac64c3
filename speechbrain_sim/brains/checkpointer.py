"""Checkpoints, averages and logs that survive a kill at any moment."""

import os
import shutil
from collections import Counter
from pathlib import Path

from speechbrain.utils import checkpoints, distributed
from speechbrain.utils.logger import get_logger
from speechbrain.utils.train_logger import FileTrainLogger

from speechbrain_sim.files import read_json, sha256, write_json

logger = get_logger(__name__)


INCOMPLETE = "incomplete+"
HASHES = "SHA256.json"


class AtomicCheckpointer(checkpoints.Checkpointer):
    """SpeechBrain's Checkpointer, safe against a kill at any moment.

    A checkpoint gets its name only when all its files are written and hashed.
    Recovery checks the hashes, and falls back with a warning to the last good
    checkpoint when the newest is damaged. Arguments are those of
    `speechbrain.utils.checkpoints.Checkpointer`.

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
        self._verified = set()

    def _new_checkpoint_dirpath(self):
        path = super()._new_checkpoint_dirpath()
        return path.with_name(INCOMPLETE + path.name)

    def _custom_checkpoint_dirpath(self, name):
        path = super()._custom_checkpoint_dirpath(name)
        return path.with_name(INCOMPLETE + path.name)

    def save_checkpoint(self, *args, **kwargs):
        """Saves like the parent class, then gives the folder its name."""
        if distributed.if_main_process():
            damaged = set(self._list_checkpoint_dirs()) - set(self._whole())
            damaged |= set(self.checkpoints_dir.glob(INCOMPLETE + "*"))
        distributed.ddp_barrier()
        saved = super().save_checkpoint(*args, **kwargs)
        distributed.ddp_barrier()  # every process has written what it writes
        if saved is not None:
            path = saved.path
            hashes = {f.name: sha256(f) for f in sorted(path.iterdir())}
            write_json(path / HASHES, hashes)
            final = path.with_name(path.name.removeprefix(INCOMPLETE))
            shutil.rmtree(final, ignore_errors=True)  # of the same name
            os.replace(path, final)
            self._verified.add(final)
            for folder in damaged:  # not needed any more
                shutil.rmtree(folder)
            moved = {n: final / p.name for n, p in saved.paramfiles.items()}
            saved = saved._replace(path=final, paramfiles=moved)
        distributed.ddp_barrier()
        return saved

    def recover_if_possible(self, *args, **kwargs):
        """Recovers like the parent class, after checking every hash anew."""
        self._verified.clear()
        return super().recover_if_possible(*args, **kwargs)

    def list_checkpoints(self):
        """Lists the undamaged checkpoints; warns of the others."""
        return self._construct_checkpoint_objects(self._whole())

    def _whole(self):
        for folder in set(self._list_checkpoint_dirs()) - self._verified:
            problem = _damage(folder)
            if problem is None:
                self._verified.add(folder)
            else:
                logger.warning(
                    f"Skipping the checkpoint {folder}: {problem}. The last "
                    f"good one is used instead, if there is one."
                )
        return [f for f in self._list_checkpoint_dirs() if f in self._verified]


def _damage(folder):
    """Returns what is wrong with a checkpoint folder; None if it is whole."""
    try:
        hashes = read_json(folder / HASHES)
    except (OSError, ValueError):
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
