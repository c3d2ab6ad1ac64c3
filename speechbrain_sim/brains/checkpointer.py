"""Checkpoints, averages and logs that survive a kill at any moment."""

import json
import os
import pathlib
import shutil

from speechbrain.utils import checkpoints as sb_checkpoints
from speechbrain.utils.checkpoints import (
    mark_as_loader,
    mark_as_saver,
    register_checkpoint_hooks,
)
from speechbrain.utils.distributed import (
    ddp_barrier,
    if_main_process,
    main_process_only,
)
from speechbrain.utils.logger import get_logger
from speechbrain.utils.train_logger import FileTrainLogger

from speechbrain_sim.files import sha256, write_json

logger = get_logger(__name__)


INCOMPLETE = "incomplete+"
HASHES = "SHA256.json"


class AtomicCheckpointer(sb_checkpoints.Checkpointer):
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
        if if_main_process():
            damaged = set(self._list_checkpoint_dirs()) - set(self._whole())
            damaged |= set(self.checkpoints_dir.glob(INCOMPLETE + "*"))
        ddp_barrier()
        saved = super().save_checkpoint(*args, **kwargs)
        ddp_barrier()  # every process has written what it writes
        if saved is not None:
            files = sorted(saved.path.iterdir())
            hashes = {file.name: sha256(file) for file in files}
            write_json(saved.path / HASHES, hashes)
            name = saved.path.name.removeprefix(INCOMPLETE)
            final = saved.path.with_name(name)
            if final.exists():
                shutil.rmtree(final)
            os.replace(saved.path, final)
            self._verified.add(final)
            for folder in damaged:  # not needed any more
                shutil.rmtree(folder)
            moved = {n: final / p.name for n, p in saved.paramfiles.items()}
            saved = saved._replace(path=final, paramfiles=moved)
        ddp_barrier()
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
                    f"Skipping the incomplete checkpoint {folder}: {problem}. "
                    f"The last good one is used instead, if there is one."
                )
        return [f for f in self._list_checkpoint_dirs() if f in self._verified]


def _damage(folder):
    """Returns what is wrong with a checkpoint folder; None if it is whole."""
    try:
        hashes = json.loads((folder / HASHES).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return f"{HASHES} is missing or unreadable"
    for name, expected in hashes.items():
        if not (folder / name).exists():
            return f"{name} is missing"
        if sha256(folder / name) != expected:
            return f"{name} does not match its hash"
    return None


@register_checkpoint_hooks
class Averages:
    """Running means of named numbers, exact across a resume.

    Example
    -------
    >>> averages = Averages()
    >>> averages.update({"loss": 1.0})
    >>> averages.update({"loss": 2.0})
    >>> averages.means()
    {'loss': 1.5}
    """

    def __init__(self):
        self.clear()

    def clear(self):
        """Starts anew."""
        self.sums, self.count = {}, 0

    def update(self, values):
        """Adds one step's numbers, a dict of str to float."""
        for name, value in values.items():
            self.sums[name] = self.sums.get(name, 0.0) + float(value)
        self.count += 1

    def means(self):
        """Returns the dict of means so far."""
        return {name: total / self.count for name, total in self.sums.items()}

    @mark_as_saver
    @main_process_only
    def save(self, path):
        """Writes the sums as json (floats survive exactly)."""
        write_json(path, {"sums": self.sums, "count": self.count})

    @mark_as_loader
    def load(self, path, end_of_epoch):
        """Reads what `save` wrote."""
        saved = json.loads(pathlib.Path(path).read_text(encoding="utf-8"))
        self.sums, self.count = saved["sums"], saved["count"]


@register_checkpoint_hooks
class RewindingTrainLogger(FileTrainLogger):
    """SpeechBrain's FileTrainLogger, rewound with the checkpoint it resumes.

    Lines that a killed run wrote after its last checkpoint are dropped on
    resume, so that no epoch is logged twice. Arguments are those of
    `speechbrain.utils.train_logger.FileTrainLogger`.
    """

    @mark_as_saver
    @main_process_only
    def save(self, path):
        """Saves the length of the log."""
        log = pathlib.Path(self.save_file)
        write_json(path, {"bytes": log.stat().st_size if log.exists() else 0})

    @mark_as_loader
    def load(self, path, end_of_epoch):
        """Cuts the log to the saved length."""
        self.rewind(json.loads(pathlib.Path(path).read_text())["bytes"])

    @main_process_only
    def rewind(self, size=0):
        """Cuts the log to a size in bytes."""
        log = pathlib.Path(self.save_file)
        if log.exists() and log.stat().st_size > size:
            os.truncate(log, size)
