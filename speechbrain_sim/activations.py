"""Features of a frozen front end, computed once and kept on disk."""

import json
import os
import shutil
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from speechbrain.dataio.dataloader import make_dataloader
from speechbrain.dataio.sampler import DynamicBatchSampler
from speechbrain.utils.logger import get_logger
from tqdm import tqdm

from speechbrain_sim.data.batches import make_dataset
from speechbrain_sim.data.labels import frames_of_labels, num_labels
from speechbrain_sim.encoders.base import (
    masked_mean,
)
from speechbrain_sim.files import sha256, write_json

logger = get_logger(__name__)


#: of lengths, within which utterances are batched
BUCKETS = 20


#: between two records of how far encoding has come
SAVE_SECONDS = 30


#: largest number that half precision holds, with some room
LARGEST_HALF = 60000


class Features(NamedTuple):
    """Examples for a probe.

    Arguments
    ---------
    x : numpy.ndarray or HalfFeatures
        (examples, channels), float32.
    y : numpy.ndarray
        Class of each example, int64.
    utterance : numpy.ndarray
        Index into `ids` of each example, int64.
    ids : list of str
        What is resampled for an interval: utterances, or, where the manifest
        has a column `recording`, the recordings they were cut from.
    """

    x: np.ndarray
    y: np.ndarray
    utterance: np.ndarray
    ids: list


class HalfFeatures:
    """Features on disk in half precision, read as float32.

    Row i is `offset + scale * stored[i]`: without its offset, a feature that
    varies little around a large mean, as an untrained encoder's do, would be
    rounded away.

    Arguments
    ---------
    stored : numpy.ndarray
        (examples, channels), float16.
    offset, scale : numpy.ndarray
        (channels,), float32.

    Example
    -------
    >>> stored = np.ones((3, 2), np.float16)
    >>> x = HalfFeatures(stored, np.float32([5, 6]), np.float32(0.25))
    >>> x.shape, x[1:].tolist()
    ((3, 2), [[5.25, 6.25], [5.25, 6.25]])
    """

    def __init__(self, stored, offset, scale):
        self.stored, self.offset, self.scale = stored, offset, scale
        self.shape = stored.shape

    def __len__(self):
        return len(self.stored)

    def __getitem__(self, rows):
        stored = np.asarray(self.stored[rows], np.float32)
        return self.offset + self.scale * stored

    def __array__(self, dtype=None, copy=None):
        return np.asarray(self[:], dtype)


class Examples:
    """Rows of one or several parts, read from disk as they are asked for.

    Arguments
    ---------
    parts : list of numpy.ndarray or HalfFeatures
        (examples, channels) each; counted through.
    mean, std : torch.Tensor, optional
        (channels,). Rows are given in these units.

    Example
    -------
    >>> x = Examples([np.zeros((2, 3)), np.ones((4, 3))])
    >>> x.shape, x[torch.tensor([[1, 2]])].tolist()
    ((6, 3), [[[0.0, 0.0, 0.0], [1.0, 1.0, 1.0]]])
    """

    def __init__(self, parts, mean=None, std=None):
        self.parts, self.mean, self.std = parts, mean, std
        self.bounds = np.cumsum([0, *map(len, parts)])
        self.shape = (int(self.bounds[-1]), parts[0].shape[1])

    def __len__(self):
        return self.shape[0]

    def __getitem__(self, chosen):
        rows = chosen.flatten().numpy()
        x = np.empty((len(rows), self.shape[1]), np.float32)
        for number, part in enumerate(self.parts):
            first, last = self.bounds[number : number + 2]
            here = (rows >= first) & (rows < last)
            x[here] = part[rows[here] - first]
        x = torch.from_numpy(x).unflatten(0, chosen.shape)
        return x if self.mean is None else (x - self.mean) / self.std

    def split(self, size):
        """Yields all rows in order, so many at a time."""
        for rows in torch.arange(len(self)).split(size):
            yield self[rows]


def moments(x, chunk=65536):
    """Mean and deviation of every channel, in one pass.

    Arguments
    ---------
    x : Examples
        Features.
    chunk : int
        Examples at once.

    Returns
    -------
    mean, std : (torch.Tensor, torch.Tensor)
        (channels,), float32; a channel that does not vary has deviation 1.

    Example
    -------
    >>> moments(Examples([np.array([[1.0, 5.0], [3.0, 5.0]])]))
    (tensor([2., 5.]), tensor([1.4142, 1.0000]))
    """
    count, mean, squares = 0, 0.0, 0.0
    for part in x.split(chunk):
        part = part.double()
        shift = part.mean(0) - mean
        total = count + len(part)
        squares = squares + (part - part.mean(0)).square().sum(0)
        squares = squares + shift.square() * (count * len(part) / total)
        mean = mean + shift * (len(part) / total)
        count = total
    std = (squares / max(1, count - 1)).sqrt().float()
    return mean.float(), std.where(std > 0, 1)


def compute_features(
    front_end,
    description,
    manifest,
    data_folder,
    label,
    classes,
    layers,
    folder,
    max_seconds=120.0,
    device="cpu",
    alignment="centre",
):
    """Encodes a manifest once, goes on with it, or finds that it was done.

    Utterance labels: one example each, the mean over time, in float32. Phones:
    one example per label, its frame of the whole utterance, in half precision.
    Always means of posteriors.

    Arguments
    ---------
    front_end, description : nn.Module, dict
        From `load_encoder`.
    manifest, data_folder : str
        A csv from `speechbrain_sim.data`, and its `$data_root`.
    label : str
        A column of the manifest.
    classes : list of str
        The classes, from `speechbrain_sim.data.batches.classes_of`.
    layers : list of str
        Layers to keep.
    folder : str or Path
        The cache: `<layer>.npy`, `labels.npz` and, last, `features.json`.
    max_seconds : float
        Audio encoded at once, with its padding; utterances of like lengths are
        put together. Longer ones are encoded alone.
    device : str
        Where.
    alignment : str
        Which frame a phone's label belongs to, see `frames_of_labels`.

    Returns
    -------
    dict of str to Features

    Raises
    ------
    ValueError
        If a label is not among the classes, or no utterance has a label.
    OSError
        If the disk is too small.
    """
    folder = Path(folder)
    made_of = {
        "front_end": description["sha256"],
        "manifest": sha256(manifest),
        "label": label,
        "classes": list(classes),
        "sampled": False,
        "alignment": alignment if label == "phones" else None,
    }
    done = folder / "features.json"
    known = json.loads(done.read_text()) if done.exists() else {}
    if {**known, "layers": None} != {**made_of, "layers": None} or (
        not set(layers) <= set(known["layers"])
    ):
        folder.mkdir(parents=True, exist_ok=True)
        done.unlink(missing_ok=True)
        dataset = make_dataset(
            manifest, data_folder, label=label, classes=classes
        ).filtered_sorted(sort_key="duration")
        _encode(
            front_end.to(device),
            dataset,
            layers,
            folder,
            max_seconds,
            device,
            made_of,
        )
        write_json(done, {**made_of, "layers": list(layers)})
    return read_features(folder, layers)


def read_features(folder, layers):
    """Opens what `compute_features` left in its cache.

    Arguments
    ---------
    folder, layers :
        See `compute_features`.

    Returns
    -------
    dict of str to Features
    """
    labels = np.load(Path(folder, "labels.npz"))
    return {
        layer: Features(
            _open_stored(Path(folder, f"{layer}.npy")),
            labels["y"],
            labels["utterance"],
            labels["ids"].tolist(),
        )
        for layer in layers
    }


def _open_stored(path):
    stored = np.load(path, mmap_mode="r")
    if stored.dtype != np.float16:
        return stored
    units = np.load(path.with_suffix(".units.npz"))
    return HalfFeatures(stored, units["offset"], units["scale"])


class _Store:
    """Writes the features of one layer, anywhere; whole once it is closed."""

    def __init__(self, path):
        self.path, self.partial = path, path.with_suffix(".part.npy")
        self.units = path.with_suffix(".units.npz")

    def create(self, first, total, half):
        """Makes the file; half precision is relative to the first batch."""
        if half:
            scale = first.std(0)
            # a channel that is quiet in the first batch may be loud later
            scale = np.maximum(scale, 1e-3 * scale.max()) + (not scale.any())
            np.savez(self.units, offset=first.mean(0), scale=scale)
        np.lib.format.open_memmap(
            self.partial,
            mode="w+",
            dtype=np.float16 if half else np.float32,
            shape=(total, first.shape[1]),
        )

    def open(self):
        self.array = np.load(self.partial, mmap_mode="r+")
        if self.array.dtype == np.float16:
            self.offset, self.scale = np.load(self.units).values()

    def write(self, place, x):
        if self.array.dtype == np.float16:
            x = (x - self.offset) / self.scale
            x = x.clip(-LARGEST_HALF, LARGEST_HALF)
        self.array[place] = x

    def close(self):
        self.array.flush()
        os.replace(self.partial, self.path)


def _check_disk(first, total, folder, half):
    """Says what the features will take; OSError if the disk is too small."""
    width = sum(x.shape[1] for x in first.values())
    need = width * total * (2 if half else 4)
    free = shutil.disk_usage(folder).free
    logger.info(
        "Features: %d examples of %d channels take %.2f GB of disk in %s",
        total,
        width,
        need / 1e9,
        folder,
    )
    if need > free:
        raise OSError(
            f"The features need {need / 1e9:.1f} GB, but {folder} has "
            f"{free / 1e9:.1f} GB: keep fewer --layers, or put the "
            "--output_folder on a larger disk."
        )


def _places(dataset, per_frame):
    """Item to the slice of its examples, in the dataset's order."""
    places, total = {}, 0
    for item in dataset.data_ids:
        row, count = dataset.data[item], 1
        if per_frame:
            count = len(row["phones"].split())
            count = min(count, num_labels(int(row["num_samples"])))
        places[item] = slice(total, total + count)
        total += count
    return places, total


def _batches(dataset, max_seconds):
    """Batches of utterances of like lengths, the longest first: their places
    in the dataset.
    """
    return list(
        DynamicBatchSampler(
            dataset,
            max_seconds,
            num_buckets=BUCKETS,
            shuffle=False,
            batch_ordering="descending",
        )
    )


@torch.no_grad()
def _encode(front_end, dataset, layers, folder, max_seconds, device, made_of):
    """Fills the cache; without an alignment, one example per utterance.

    What `encoding.json` counts as done is not done again.
    """
    alignment = made_of["alignment"]
    places, total = _places(dataset, alignment is not None)
    stores = {layer: _Store(folder / f"{layer}.npy") for layer in layers}
    batches = _batches(dataset, max_seconds)
    made_of = {**made_of, "layers": list(layers), "seconds": max_seconds}
    record = folder / "encoding.json"
    known = json.loads(record.read_text()) if record.exists() else {}
    done = known.pop("done", 0) if known.items() > made_of.items() else 0
    if done:
        for store in stores.values():
            store.open()
    dataset.set_output_keys(["id", "sig"])
    loader = make_dataloader(dataset, batch_sampler=batches[done:])
    saved = time.monotonic()
    for batch in tqdm(
        loader, "encoding", total=len(batches), initial=done, unit="batch"
    ):
        wavs, wav_lens = batch.sig
        latents = front_end(
            wavs.to(device), wav_lens.to(device), layers, sample=False
        )
        x = {
            layer: _examples(front_end, layer, latent, alignment, batch, places)
            for layer, latent in latents.items()
        }
        if not done:
            record.unlink(missing_ok=True)  # of something else
            first = {layer: np.concatenate(rows) for layer, rows in x.items()}
            _check_disk(first, total, folder, alignment is not None)
            for layer, store in stores.items():
                store.create(first[layer], total, alignment is not None)
                store.open()
        for row, item in enumerate(batch.id):
            for layer, store in stores.items():
                store.write(places[item], x[layer][row])
        done += 1
        if time.monotonic() - saved > SAVE_SECONDS:
            for store in stores.values():
                store.array.flush()
            write_json(record, {**made_of, "done": done})
            saved = time.monotonic()
    _write_labels(dataset, places, total, folder)
    record.unlink(missing_ok=True)
    for store in stores.values():
        store.close()


def _write_labels(dataset, places, total, folder):
    y, utterance = np.empty((2, total), np.int64)
    ids = {}
    with dataset.output_keys_as(["target"]):
        for number, (item, place) in enumerate(places.items()):
            target = torch.as_tensor(dataset[number]["target"]).flatten()
            y[place] = target[: place.stop - place.start]
            name = dataset.data[item].get("recording", item)
            utterance[place] = ids.setdefault(name, len(ids))
    np.savez(
        folder / "labels.npz", y=y, utterance=utterance, ids=np.array(list(ids))
    )


def _examples(front_end, layer, latent, alignment, batch, places):
    """Examples of every utterance of a batch: a list of (count, channels)."""
    if alignment is None:
        pooled = masked_mean(latent.mean, latent.lengths)[:, None]
        return list(pooled.cpu().numpy())
    hop, center = front_end.frame_geometry(layer)
    examples = []
    for row, item in enumerate(batch.id):
        count = places[item].stop - places[item].start
        frames = frames_of_labels(
            count, hop, center, int(latent.lengths[row]), alignment
        )
        examples.append(latent.mean[row, frames.to(latent.mean.device)])
    return [x.cpu().numpy() for x in examples]
