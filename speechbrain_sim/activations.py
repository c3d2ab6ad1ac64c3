"""What a frozen encoder computes over a manifest, kept on disk.

A store is a folder, filled by `speechbrain_sim.extraction.encode_manifest`:

    store.json        what it was made of, its layers, whether it is complete
    manifest.csv      the rows of the manifest: utterances and their labels
    index.npz         utterances, first rows, units of half precision
    done.npy          a flag per utterance
    <array>.npy       (rows, channels); arrays are <layer>, <layer>.log_var
    statistics.npz    mean and standard deviation of each array's channels
"""

import os
import shutil
from pathlib import Path

import numpy as np
import torch
from speechbrain.utils.logger import get_logger

from speechbrain_sim.data import labels as kinds
from speechbrain_sim.data.batches import make_dataset
from speechbrain_sim.data.tables import write_csv
from speechbrain_sim.files import (
    allocate,
    full_disk_explained,
    naming,
    read_arrays,
    read_json,
    write_arrays,
    write_json,
)
from speechbrain_sim.rows import Examples, Rows, StoredArray, moments

logger = get_logger(__name__)

FORMAT = 1
#: rows that a store may have of each layer, see `encode_manifest`
KEPT = ALL, MEAN, LABELS = "all", "mean", "labels"
#: what follows a layer in the name of the array of its log-variances
LOG_VAR = ".log_var"
#: values read at once, to compute statistics
PIECE = 2**18


class ActivationStore:
    """Means (and log-variances) of chosen layers over a manifest, on disk.

    `store[layer]` and `store["<layer>.log_var"]` are `Rows`. Several processes
    may write into one store, each other utterances; what was flushed survives
    a kill.

    Arguments
    ---------
    folder : str or Path
        A store, complete or not; `open` refuses an incomplete one.
    """

    def __init__(self, folder):
        self.folder = Path(folder)
        path = self.folder / "store.json"
        with naming(path, "the record of a store"):
            described = read_json(path)
            #: hashes and settings
            self.made_of = dict(described["made_of"])
            #: layer -> (hop, center), see `Encoder.frame_geometry`
            self.layers = described["layers"]
            self.arrays = described["arrays"]
            self.complete = described["complete"]
        self._index = read_arrays(self.folder / "index.npz")
        self.ids = self._index["ids"].tolist()
        self.recordings = self._index["recordings"].tolist()
        self._written = []

    @classmethod
    def open(cls, folder, complete=True, **made_of):
        """Opens a store.

        `made_of` is what it has to be made of: `encoder`, `manifest`, `rows`,
        ...; a ValueError is raised if it is not, or unless it is complete.
        """
        store = cls(folder)
        made_of = {"format": FORMAT, **made_of}
        wrong = [k for k, v in made_of.items() if store.made_of.get(k) != v]
        if wrong or (complete and not store.complete):
            problem = f"of another {wrong[0]}" if wrong else "not complete"
            raise ValueError(f"{folder} is {problem}: encode the manifest.")
        return store

    @classmethod
    def create(cls, folder, made_of, manifest, recordings, layers, first):
        """Makes a store of a first batch, in place of what the folder held.

        Half precision is relative to that batch. An OSError is raised if the
        disk is too small.

        Arguments
        ---------
        folder, made_of, manifest :
            Where, hashes and settings, and the rows of `read_manifest`.
        recordings : dict of str to str
            Utterance to recording, in the order of the rows.
        layers : dict of str to ((int, float), list of int)
            `Encoder.frame_geometry`, and the rows of each utterance.
        first : list of (int or None, dict of str to numpy.ndarray)
            Arguments of `write`; not written without a position.
        """
        folder, half = Path(folder), _is_half(made_of)
        dtype = np.dtype(np.float16 if half else np.float32)
        index = {"ids": list(recordings), "recordings": [*recordings.values()]}
        places = {layer: place for layer, (place, _) in layers.items()}
        for layer, (_, counts) in layers.items():
            index[f"first.{layer}"] = np.cumsum([0, *counts])
        shapes = {}
        for name in first[0][1]:
            x = np.concatenate([values[name] for _, values in first])
            shapes[name] = sum(layers[layer_of(name)][1]), x.shape[1]
            scale = x.std(0)
            # a channel that is quiet in the sample may be loud later
            scale = np.maximum(scale, 1e-3 * scale.max()) + (not scale.any())
            if half:
                index |= {f"offset.{name}": x.mean(0), f"scale.{name}": scale}
        folder.mkdir(parents=True, exist_ok=True)
        for old in (folder / "store.json", *folder.glob("*.np[yz]")):
            old.unlink(missing_ok=True)
        values = sum(rows * channels for rows, channels in shapes.values())
        _check_disk(folder, values * dtype.itemsize)
        for name, shape in shapes.items():
            path = folder / f"{name}.npy"
            size = dtype.itemsize * shape[0] * shape[1]
            with full_disk_explained(path, size):
                np.lib.format.open_memmap(path, "w+", dtype, shape)
            with open(path, "r+b") as file:
                allocate(file, path.stat().st_size)
        write_arrays(folder / "index.npz", **index)
        np.save(folder / "done.npy", np.zeros(len(recordings), bool))
        # without the place of an utterance in its file: all of it is here
        own = "id", "start", "stop"
        columns = [c for c in next(iter(manifest.values())) if c not in own]
        cells = [[n, *map(row.get, columns)] for n, row in manifest.items()]
        write_csv(folder / "manifest.csv", ["ID", *columns], cells)
        made_of = {"format": FORMAT, **made_of}
        content = {"made_of": made_of, "complete": False, "layers": places}
        write_json(folder / "store.json", {**content, "arrays": [*shapes]})
        store = cls(folder)
        for position, values in first:
            if position is not None:
                store.write(position, values)
        store.flush()
        return store

    def check(self):
        """Raises a ValueError or FileNotFoundError if a file is damaged."""
        for name in self.arrays:
            self._array(name)
            if self.complete:
                self.statistics(name)
        if len(self.done) != len(self.ids):
            raise ValueError(f"{self.folder} has flags of another store.")

    @property
    def done(self):
        """Whether each utterance is written, as of now: (utterances,), bool."""
        return read_arrays(self.folder / "done.npy")

    def write(self, position, values):
        """Writes the rows of one utterance; `flush` marks it as done.

        `position` is its place in `ids`, `values` the (rows, channels) of each
        array, or an iterable of such pieces; a ValueError is raised for more or
        fewer rows than expected.
        """
        pieces = [values] if isinstance(values, dict) else values
        counts = dict.fromkeys(self.arrays, 0)
        for piece in pieces:
            for name, x in piece.items():
                array = self._array(name)
                first = array.first[position] + counts[name]
                counts[name] += len(x)
                if first + len(x) <= array.first[position + 1]:
                    largest = np.finfo(array.stored.dtype).max
                    x = (x - array.offset) / array.scale
                    _overwrite(array.stored, first, x.clip(-largest, largest))
        for name, count in counts.items():
            expected = np.diff(self._array(name).first)[position]
            if count != expected:
                raise ValueError(
                    f"{self.ids[position]} has {count} rows of {name}, but "
                    f"{expected} by the manifest: prepare the data again."
                )
        self._written.append(position)

    def flush(self):
        """Marks what was written as done, once it is on the disk."""
        for name in self.arrays:
            with open(self.folder / f"{name}.npy", "r+b") as file:
                os.fsync(file)
        done = read_arrays(self.folder / "done.npy", mmap=True)
        for position in self._written:
            _overwrite(done, position, True)
        self._written = []

    def finish(self):
        """Completes the store, with the statistics of its arrays.

        A ValueError is raised if an utterance is missing.
        """
        missing = int((~self.done).sum())
        if missing:
            raise ValueError(f"{self.folder} lacks {missing} utterances.")
        statistics = {}
        for name in self.arrays:
            rows, channels = self[name].shape
            step = max(1, PIECE // channels)
            # opened for each piece, or all that was read would stay mapped
            pieces = (self[name][n : n + step] for n in range(0, rows, step))
            statistics[name] = torch.stack(moments(pieces)).numpy()
        write_arrays(self.folder / "statistics.npz", **statistics)
        path = self.folder / "store.json"
        write_json(path, {**read_json(path), "complete": True})

    def statistics(self, name):
        """Returns mean and standard deviation of an array, (2, channels)."""
        path = self.folder / "statistics.npz"
        return torch.from_numpy(read_arrays(path)[name])

    def __getitem__(self, name):
        """Returns the Rows of an array: a layer's, or `<layer>.log_var`."""
        return Rows([self._array(name)])

    def frames(self, name, position, first, frames):
        """Returns rows of one utterance of an array, (frames, channels).

        `position` is its place in `ids`, `first` the first row.
        """
        array = self._array(name)
        begin = int(array.first[position]) + first
        return Rows([array])[begin : begin + frames]

    def _array(self, name):
        if name not in self.arrays:
            known = ", ".join(self.arrays)
            raise KeyError(f"{self.folder} has no '{name}', only {known}.")
        return StoredArray(
            read_arrays(self.folder / f"{name}.npy", mmap=True),
            self._index[f"first.{layer_of(name)}"],
            self._index.get(f"offset.{name}", 0.0),
            self._index.get(f"scale.{name}", 1.0),
        )

    def labels(self, label, classes, kind=kinds.UTTERANCE, layer=None):
        """Reads the labels of the rows from the manifest.

        Arguments
        ---------
        label, classes, kind :
            See `speechbrain_sim.data.batches.make_dataset`; a ValueError is
            raised, too, if labels of frames meet rows of means.
        layer : str, optional
            Whose rows; the first layer's by default. They differ only where
            all frames are kept.

        Returns
        -------
        numpy.ndarray or list of numpy.ndarray
            (rows,), int64, NO_LABEL where there is none. Of a sequence, the
            tokens of each utterance: (tokens,).
        """
        rows, layer = self.made_of["rows"], layer or next(iter(self.layers))
        if kind == kinds.FRAMES and rows == MEAN:
            raise ValueError(f"{self.folder} has no frames, as '{label}' has.")
        path = self.folder / "manifest.csv"
        dataset = make_dataset(path, None, None, label, classes, kind)
        with dataset.output_keys_as(["id", "target"]):
            known = {item["id"]: item["target"].numpy() for item in dataset}
        targets = [known.get(name, np.empty(0, int)) for name in self.ids]
        if kind == kinds.SEQUENCE:
            return targets
        y, counts = [], np.diff(self._index[f"first.{layer}"])
        for target, count in zip(targets, counts, strict=True):
            at = np.zeros(count, int)
            if kind == kinds.FRAMES and rows == LABELS:
                at = np.arange(count)
            elif kind == kinds.FRAMES:
                at = kinds.labels_of_frames(count, *self.layers[layer]).numpy()
            # at -1 and beyond the last label there is none
            target = np.append(target, kinds.NO_LABEL)
            y.append(target[at.clip(-1, len(target) - 1)])
        return np.concatenate(y)

    def examples(
        self, label, classes, kind=kinds.UTTERANCE, layers=None, units=None
    ):
        """Returns the labelled rows of some layers, for probes.

        Arguments
        ---------
        label, classes, kind :
            See `labels`.
        layers : list of str, optional
            All by default.
        units : dict of str to (torch.Tensor, torch.Tensor), optional
            Mean and standard deviation of layers, from `statistics`.

        Returns
        -------
        dict of str to Examples
        """
        examples, units = {}, units or {}
        for layer in layers or self.layers:
            array = self._array(layer)
            if self.made_of["rows"] == ALL or not examples:
                y = self.labels(label, classes, kind, layer)
                known = np.flatnonzero(y != kinds.NO_LABEL)
                owner, ids = array.utterance()[known], {}
                number = np.zeros(len(self.ids), int)
                for position in np.unique(owner):
                    name = self.recordings[position]
                    number[position] = ids.setdefault(name, len(ids))
                labels = y[known], number[owner], list(ids)
            if len(known) < len(y):
                array = array._replace(index=known)
            x = Rows([array], *units.get(layer, ()))
            examples[layer] = Examples(x, *labels)
        return examples


def layer_of(name):
    """Returns the layer of an array."""
    return name.removesuffix(LOG_VAR)


def _is_half(made_of):
    """Whether rows are in half precision: all but means, if not `exact`."""
    return made_of["rows"] != MEAN and not made_of.get("exact")


def _overwrite(array, first, rows):
    """Writes rows into a mapped file, where other processes write others."""
    with open(array.filename, "r+b") as file:
        file.seek(array.offset + int(first) * array.strides[0])
        file.write(np.asarray(rows, array.dtype).tobytes())


def _check_disk(folder, size):
    """Logs what arrays need; raises an OSError if the disk is too small."""
    need, free = size / 1e9, shutil.disk_usage(folder).free / 1e9
    logger.info("The activations take %.2f GB of disk in %s", need, folder)
    if need > free:
        problem = f"{folder} has {free:.1f} GB; activations need {need:.1f}"
        raise OSError(f"{problem}: fewer --layers, or another --output_folder.")
