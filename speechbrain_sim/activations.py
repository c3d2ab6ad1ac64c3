"""What a frozen encoder computes over a manifest, kept on disk.

A store is a folder, filled by `speechbrain_sim.extraction.encode_manifest`:

    store.json        what it was made of, its layers, whether it is complete
    manifest.csv      a copy of the manifest: its utterances and their labels
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

from speechbrain_sim.data.batches import make_dataset
from speechbrain_sim.data.labels import (
    FRAMES,
    NO_LABEL,
    SEQUENCE,
    UTTERANCE,
    labels_of_frames,
)
from speechbrain_sim.files import read_json, write_json
from speechbrain_sim.rows import Examples, Rows, StoredArray, moments

logger = get_logger(__name__)

FORMAT = 1
#: rows that a store may have of each layer, see `encode_manifest`
KEPT = ALL, MEAN, LABELS = "all", "mean", "labels"
#: what follows a layer in the name of the array of its log-variances
LOG_VAR = ".log_var"
#: largest number that half precision holds, with some room
LARGEST_HALF = 60000
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
        described = read_json(self.folder / "store.json")
        #: hashes and settings
        self.made_of = described["made_of"]
        #: layer -> (hop, center), see `Encoder.frame_geometry`
        self.layers = described["layers"]
        self.arrays, self.complete = described["arrays"], described["complete"]
        self._index = dict(np.load(self.folder / "index.npz"))
        self.ids = self._index["ids"].tolist()
        self.recordings = self._index["recordings"].tolist()
        self._written = []

    @classmethod
    def open(cls, folder, complete=True, **made_of):
        """Opens a store.

        Arguments
        ---------
        folder : str or Path
            From `encode_manifest`.
        complete : bool
            Whether it has to be complete.
        **made_of : json values
            What it has to be made of: `encoder`, `manifest`, `rows`, ...

        Returns
        -------
        ActivationStore

        Raises
        ------
        ValueError
            If it is incomplete, or made of something else.
        """
        store = cls(folder)
        made_of = {"format": FORMAT, **made_of}
        wrong = [k for k, v in made_of.items() if store.made_of.get(k) != v]
        if wrong or (complete and not store.complete):
            problem = f"of another {wrong[0]}" if wrong else "not complete"
            raise ValueError(f"{folder} is {problem}: encode the manifest.")
        return store

    @classmethod
    def create(cls, folder, made_of, manifest, recordings, layers, sample):
        """Makes an empty store, in place of what the folder held.

        Arguments
        ---------
        folder, made_of, manifest :
            Where, hashes and settings, and a csv that is copied.
        recordings : dict of str to str
            Utterance to recording, in the order of the rows.
        layers : dict of str to ((int, float), list of int)
            `Encoder.frame_geometry`, and the rows of each utterance.
        sample : dict of str to numpy.ndarray
            Some rows of each array: half precision is relative to these.

        Returns
        -------
        ActivationStore

        Raises
        ------
        OSError
            If the disk is too small.
        """
        folder, half = Path(folder), made_of["rows"] != MEAN
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "store.json").unlink(missing_ok=True)
        for old in folder.glob("*.np[yz]"):
            old.unlink()
        index = {"ids": list(recordings), "recordings": [*recordings.values()]}
        for layer, (_, counts) in layers.items():
            index[f"first.{layer}"] = np.cumsum([0, *counts])
        for name, x in sample.items() if half else ():
            scale = x.std(0)
            # a channel that is quiet in the sample may be loud later
            scale = np.maximum(scale, 1e-3 * scale.max()) + (not scale.any())
            index |= {f"offset.{name}": x.mean(0), f"scale.{name}": scale}
        shapes = {
            name: (int(index[f"first.{layer_of(name)}"][-1]), x.shape[1])
            for name, x in sample.items()
        }
        dtype = np.dtype(np.float16 if half else np.float32)
        _check_disk(
            folder, [dtype.itemsize * np.prod(s) for s in shapes.values()]
        )
        for name, shape in shapes.items():
            np.lib.format.open_memmap(
                folder / f"{name}.npy", "w+", dtype, shape
            )
        np.savez(folder / "index.npz", **index)
        np.save(folder / "done.npy", np.zeros(len(recordings), bool))
        shutil.copyfile(manifest, folder / "manifest.csv")
        content = {"made_of": made_of, "complete": False, "arrays": [*shapes]}
        content["layers"] = {n: place for n, (place, _) in layers.items()}
        write_json(folder / "store.json", content)
        return cls(folder)

    @property
    def done(self):
        """Whether each utterance is written, as of now: (utterances,), bool."""
        return np.load(self.folder / "done.npy")

    def write(self, position, values):
        """Writes the rows of one utterance; `flush` marks it as done.

        Arguments
        ---------
        position : int
            Of the utterance in `ids`.
        values : dict of str to numpy.ndarray
            Of each array, (rows, channels).

        Raises
        ------
        ValueError
            If there are not as many rows as the index has.
        """
        for name, x in values.items():
            array = self._array(name)
            first, end = array.first[position : position + 2]
            if len(x) != end - first:
                raise ValueError(
                    f"{self.ids[position]} has {len(x)} rows of {name}, but "
                    f"{end - first} by the manifest: prepare the data again."
                )
            if array.offset is not None:
                x = (x - array.offset) / array.scale
                x = x.clip(-LARGEST_HALF, LARGEST_HALF)
            _overwrite(array.stored, first, x)
        self._written.append(position)

    def flush(self):
        """Marks what was written as done, once it is on the disk."""
        for name in self.arrays:
            with open(self.folder / f"{name}.npy", "r+b") as file:
                os.fsync(file)
        done = np.load(self.folder / "done.npy", mmap_mode="r")
        for position in self._written:
            _overwrite(done, position, True)
        self._written = []

    def finish(self):
        """Completes the store, with the statistics of its arrays.

        Raises
        ------
        ValueError
            If an utterance is missing.
        """
        missing = int((~self.done).sum())
        if missing:
            raise ValueError(f"{self.folder} lacks {missing} utterances.")
        found = {}
        for name in self.arrays:
            rows, channels = self[name].shape
            step = max(1, PIECE // channels)
            # opened for each piece, or all that was read would stay mapped
            pieces = (self[name][n : n + step] for n in range(0, rows, step))
            found[name] = torch.stack(moments(pieces)).numpy()
        np.savez(self.folder / "statistics.npz", **found)
        path = self.folder / "store.json"
        content = read_json(path)
        write_json(path, {**content, "complete": True})

    def statistics(self, name):
        """Returns mean and standard deviation of an array, (2, channels)."""
        with np.load(self.folder / "statistics.npz") as found:
            return torch.from_numpy(found[name])

    def __getitem__(self, name):
        """Returns the Rows of an array: a layer's, or `<layer>.log_var`."""
        if name not in self.arrays:
            raise KeyError(
                f"{self.folder} has no '{name}', only {', '.join(self.arrays)}."
            )
        return Rows([self._array(name)])

    def _array(self, name):
        return StoredArray(
            np.load(self.folder / f"{name}.npy", mmap_mode="r"),
            self._index[f"first.{layer_of(name)}"],
            self._index.get(f"offset.{name}"),
            self._index.get(f"scale.{name}"),
        )

    def labels(self, label, classes, kind=UTTERANCE, layer=None):
        """Reads the labels of the rows from the manifest.

        Arguments
        ---------
        label, classes, kind :
            See `speechbrain_sim.data.batches.make_dataset`.
        layer : str, optional
            Whose rows; the first layer's by default. They differ only where
            all frames are kept.

        Returns
        -------
        numpy.ndarray or list of numpy.ndarray
            (rows,), int64, NO_LABEL where there is none. Of a sequence, the
            tokens of each utterance: (tokens,).

        Raises
        ------
        ValueError
            See `make_dataset`; or if labels of frames meet rows of means.
        """
        rows, layer = self.made_of["rows"], layer or next(iter(self.layers))
        if kind == FRAMES and rows == MEAN:
            raise ValueError(
                f"{self.folder} has no frames, which '{label}' is of."
            )
        dataset = make_dataset(
            self.folder / "manifest.csv", "", None, label, classes, kind
        )
        with dataset.output_keys_as(["id", "target"]):
            known = {item["id"]: item["target"].numpy() for item in dataset}
        targets = [known.get(name, np.empty(0, int)) for name in self.ids]
        if kind == SEQUENCE:
            return targets
        first = self._array(layer).first
        y = np.full(first[-1], NO_LABEL)
        for target, row, end in zip(targets, first, first[1:], strict=False):
            at = np.arange(end - row)
            if kind == UTTERANCE:
                at = np.zeros_like(at)
            elif rows == ALL:
                at = labels_of_frames(len(at), *self.layers[layer]).numpy()
            inside = (at >= 0) & (at < len(target))
            y[row:end][inside] = target[at[inside]]
        return y

    def examples(self, label, classes, kind=UTTERANCE, layers=None, units=None):
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
        examples, units, y = {}, units or {}, None
        for layer in layers or self.layers:
            if y is None or self.made_of["rows"] == ALL:
                y = self.labels(label, classes, kind, layer)
                known = np.flatnonzero(y != NO_LABEL)
            array, ids = self._array(layer), {}
            if len(known) < len(y):
                array = array._replace(index=known)
            owner, number = array.utterance(), np.zeros(len(self.ids), int)
            for position in np.unique(owner):
                name = self.recordings[position]
                number[position] = ids.setdefault(name, len(ids))
            x = Rows([array], *units.get(layer, ()))
            examples[layer] = Examples(x, y[known], number[owner], list(ids))
        return examples


def layer_of(name):
    """Returns the layer of an array."""
    return name.removesuffix(LOG_VAR)


def _overwrite(array, first, rows):
    """Writes rows into a mapped file, where other processes write others."""
    with open(array.filename, "r+b") as file:
        file.seek(array.offset + int(first) * array.strides[0])
        file.write(np.asarray(rows, array.dtype).tobytes())


def _check_disk(folder, sizes):
    """Logs what arrays need; raises an OSError if the disk is too small."""
    need, free = sum(sizes) / 1e9, shutil.disk_usage(folder).free / 1e9
    logger.info("The activations take %.2f GB of disk in %s", need, folder)
    if need > free:
        raise OSError(
            f"The activations need {need:.1f} GB, but {folder} has {free:.1f} "
            "GB: keep fewer --layers, or put the --output_folder elsewhere."
        )
