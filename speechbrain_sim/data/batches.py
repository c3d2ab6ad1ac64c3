"""From manifests to the batches of a Brain."""

from itertools import islice

import torch
from speechbrain.dataio.dataset import DynamicItemDataset
from speechbrain.utils.data_pipeline import provides, takes
from speechbrain.utils.logger import get_logger

from speechbrain_sim.data import labels
from speechbrain_sim.data.audio import read_audio
from speechbrain_sim.data.labels import UTTERANCE
from speechbrain_sim.data.tables import OWN, read_manifest
from speechbrain_sim.randomness import key_seed

logger = get_logger(__name__)


class KeyedCrop:
    """Chooses the part of each utterance that an epoch reads.

    A random crop is a function of (seed, utterance, epoch), so it is the same
    in any worker and after any resume. The epoch lives in shared memory, where
    persistent workers see it change.

    Arguments
    ---------
    samples : int
        Length of a crop at 16 kHz; shorter utterances are read whole.
    random : bool
        A random place on a grid of 10 ms, or always the beginning.
    seed : int
        Of the random places.

    Example
    -------
    >>> crop = KeyedCrop(20480, random=True, seed=1)
    >>> crop.set_epoch(3)
    >>> start, stop = crop("utterance", 40000)
    >>> stop - start, start % 160
    (20480, 0)
    >>> crop("short", 7000)
    (0, 7000)
    """

    def __init__(self, samples, random=False, seed=0):
        self.samples = samples
        self.random = random
        self.seed = seed
        self.epoch = torch.zeros(1, dtype=torch.int64).share_memory_()

    def set_epoch(self, epoch):
        """Sets the epoch, in all workers."""
        self.epoch.fill_(epoch)

    def __call__(self, utterance, num_samples):
        """Returns (start, stop) in samples for an utterance of a length."""
        spare, start = num_samples - self.samples, 0
        if spare <= 0:
            return 0, num_samples
        if self.random:
            key = key_seed(self.seed, "crop", utterance, int(self.epoch))
            start = labels.HOP * (key % (spare // labels.HOP + 1))
        return start, start + self.samples


class BatchShare:
    """The batches of one of several processes: every n-th.

    All have equally many; a rest of fewer than n batches is left out.

    Arguments
    ---------
    batches : torch.utils.data.BatchSampler
        Of all processes, in the same order on each.
    rank, replicas : int
        The process, and their number n.

    Example
    -------
    >>> batches = [[3, 1], [4, 0], [2, 5], [7, 6], [8]]
    >>> list(BatchShare(batches, 1, 2))
    [[4, 0], [7, 6]]
    """

    def __init__(self, batches, rank, replicas):
        self.batches, self.rank, self.replicas = batches, rank, replicas

    def set_epoch(self, epoch):
        """Sets the epoch, on which the order depends."""
        for sampler in self.batches, getattr(self.batches, "sampler", None):
            if hasattr(sampler, "set_epoch"):
                sampler.set_epoch(epoch)

    def __len__(self):
        return len(self.batches) // self.replicas

    def __iter__(self):
        end = len(self) * self.replicas
        return islice(self.batches, self.rank, end, self.replicas)


def _open(manifest, data_folder, label):
    """Reads a manifest; raises a ValueError if it has no such column."""
    dataset = DynamicItemDataset(read_manifest(manifest, data_folder))
    own = OWN - {"sample_rate"}
    row = next(iter(dataset.data.values()))
    columns = [column for column in row if column not in own]
    if label is not None and label not in columns:
        has = ", ".join(columns) or "none for labels"
        raise ValueError(f"{manifest} has no column '{label}'; it has {has}.")
    return dataset


#: bytes of decoded audio that a run keeps in memory, in each worker
KEPT_BYTES = 1 << 28


def make_dataset(
    manifest,
    data_folder,
    crop=None,
    label=None,
    classes=None,
    kind=UTTERANCE,
    keep=False,
):
    """Opens a manifest as a dataset of waveforms and labels.

    Arguments
    ---------
    manifest, data_folder : str
        See `speechbrain_sim.data.tables.read_manifest`.
    crop : KeyedCrop, optional
        Which part to read; all by default.
    label : str, optional
        Column of the label, provided as `target`, int64.
    classes : list of str, optional
        The classes in order, from `classes_of`.
    kind : str
        See `speechbrain_sim.data.labels.kind_of`. The target is one class (1,)
        of an utterance, those of each 10 ms of the crop (labels,), or a whole
        sequence (tokens,).
    keep : bool
        Whether a waveform stays in memory once it is read, if all fit into
        `KEPT_BYTES`; for crops that do not change.

    Returns
    -------
    DynamicItemDataset
        Of `id`, `sig` (samples,), and `target` if a label is asked for.
        Utterances without a label are left out, with a warning.

    Raises
    ------
    ValueError
        If the manifest has no such column, a label that is not among the
        classes, or no label at all; or if a sequence would be cropped.
    """
    if kind == labels.SEQUENCE and crop:
        raise ValueError(f"A crop has a part of the '{label}', but which?")
    dataset = _open(manifest, data_folder, label)
    crop = crop or KeyedCrop(1 << 62)  # longer than any utterance
    _add_audio(dataset, manifest, crop, keep)
    dataset.set_output_keys(["id", "sig"] + ["target"] * (label is not None))
    if label is not None:
        dataset.data_ids = _labelled(dataset, manifest, label, classes, kind)
        _add_target(dataset, label, classes, kind, crop)
    return dataset


def _add_audio(dataset, manifest, crop, keep):
    """Provides the samples of each utterance as `sig`."""
    sizes = (row["num_samples"] for row in dataset.data.values())
    samples = sum(min(size, crop.samples) for size in sizes)
    kept, keep = {}, keep and 4 * samples <= KEPT_BYTES

    @takes("id", "wav", "start", "num_samples")
    @provides("sig")
    def read(item, wav, first, num_samples):
        if item in kept:
            return kept[item]
        start, stop = crop(item, num_samples)
        sig = read_audio(wav, first + start, first + stop)
        if len(sig) != stop - start:
            problem = f"{wav} has fewer than the {num_samples} samples"
            raise ValueError(f"{problem} of {item} in {manifest}.")
        if keep:
            kept[item] = sig
        return sig

    dataset.add_dynamic_item(read)


def _add_target(dataset, label, classes, kind, crop):
    """Provides the label of each utterance as `target`."""
    number = {name: index for index, name in enumerate(classes)}

    @takes("id", label, "num_samples")
    @provides("target")
    def target(item, value, num_samples):
        tokens = _tokens(value, kind)
        if kind == labels.FRAMES:
            start, stop = crop(item, num_samples)
            first = start // labels.HOP
            tokens = tokens[first : first + labels.num_labels(stop - start)]
        numbers = [number[token] for token in tokens]
        return torch.tensor(numbers, dtype=torch.int64)

    dataset.add_dynamic_item(target)


def training_sets(train_csv, valid_csv, data_folder, crop, batch_size, *target):
    """Opens what a run trains on, and what it is validated on.

    Arguments
    ---------
    train_csv, valid_csv : str
        Manifests.
    crop : KeyedCrop
        Of the training set; the crops of validation are those of epoch 0.
    batch_size : int
        Utterances of a batch.
    data_folder :
        See `make_dataset`.
    *target :
        Its `label`, `classes` and `kind`, for supervised training.

    Returns
    -------
    train, valid : (DynamicItemDataset, DynamicItemDataset)

    Raises
    ------
    ValueError
        If the training set is smaller than a batch.
    """
    still = KeyedCrop(crop.samples, crop.random, crop.seed)
    options = {"keep": not crop.random}
    train = make_dataset(train_csv, data_folder, crop, *target, **options)
    valid = make_dataset(valid_csv, data_folder, still, *target, keep=True)
    if len(train) < batch_size:
        few = f"{train_csv} lists {len(train)} utterances, fewer than a batch"
        raise ValueError(f"{few}: use a batch_size below {batch_size}.")
    return train, valid


def _tokens(value, kind):
    """The classes in a cell of a manifest."""
    if kind == UTTERANCE:
        return [value] if value.strip() else []
    return value.split()


def _labelled(dataset, manifest, label, classes, kind):
    """The utterances that have a label; checks it, see `make_dataset`."""
    cells = {item: row[label] for item, row in dataset.data.items()}
    known = [item for item, cell in cells.items() if cell.strip()]
    if not known:
        none = f"No utterance of {manifest} has a '{label}'"
        raise ValueError(f"{none}: give labels of this corpus, or more of it.")
    if len(known) < len(cells):
        lacking = f"{len(cells) - len(known)} of {len(cells)} utterances"
        logger.warning(
            "%s of %s have no %s: left out", lacking, manifest, label
        )
    for item in known:
        tokens, where = _tokens(cells[item], kind), f"{item} in {manifest} has"
        if strange := set(tokens) - set(classes):
            what = f"{where} the {label} {min(strange)}"
            raise ValueError(f"{what}, which no training utterance has.")
        due = labels.num_labels(dataset.data[item]["num_samples"])
        if kind == labels.FRAMES and len(tokens) != due:
            what = f"{where} {len(tokens)} {label}, but one per 10 ms makes"
            raise ValueError(f"{what} {due}: correct the column.")
    return known


def classes_of(manifest, data_folder, label, kind=UTTERANCE):
    """Lists the classes of a label.

    Arguments
    ---------
    manifest : str
        The csv of the training side.
    data_folder, label, kind :
        See `make_dataset`.

    Returns
    -------
    list of str
        Sorted; if those of frames are numbers, from 0 to the largest.
    """
    dataset, found = _open(manifest, data_folder, label), set()
    for row in dataset.data.values():
        found.update(_tokens(row[label], kind))
    if kind == labels.FRAMES and all(map(str.isdecimal, found)):
        return [str(n) for n in range(max(map(int, found), default=-1) + 1)]
    return sorted(found)
