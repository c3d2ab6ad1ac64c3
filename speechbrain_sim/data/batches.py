"""From manifests to the batches of a Brain."""

import torch
from speechbrain.dataio.dataset import DynamicItemDataset
from speechbrain.dataio.encoder import CategoricalEncoder
from speechbrain.utils.data_pipeline import provides, takes
from speechbrain.utils.logger import get_logger

from speechbrain_sim.data.audio import read_audio
from speechbrain_sim.data.labels import num_labels
from speechbrain_sim.randomness import key_seed

logger = get_logger(__name__)


#: crops start on multiples of this, the hop of the topmost layer
GRID = 160


class KeyedCrop:
    """Chooses the part of each utterance that an epoch hears.

    A random crop is a function of (seed, utterance, epoch), so it is the same
    in any worker and after any resume. The epoch lives in shared memory, where
    persistent workers see it change.

    Arguments
    ---------
    samples : int
        Length of a crop at 16 kHz; shorter utterances are read whole.
    random : bool
        A random place on a grid of 160 samples, or always the beginning.
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
        """Tells all workers the epoch."""
        self.epoch.fill_(epoch)

    def __call__(self, utterance, num_samples):
        """Returns (start, stop) in samples for an utterance of a length."""
        spare = num_samples - self.samples
        if spare <= 0:
            return 0, num_samples
        start = 0
        if self.random:
            places = spare // GRID + 1
            key = (self.seed, "crop", utterance, int(self.epoch))
            start = GRID * (key_seed(*key) % places)
        return start, start + self.samples


def make_dataset(manifest, data_folder, crop=None, label=None, classes=None):
    """Opens a manifest as a dataset of waveforms and labels.

    Arguments
    ---------
    manifest : str
        A csv from `speechbrain_sim.data`.
    data_folder : str
        What `$data_root` in it stands for.
    crop : KeyedCrop, optional
        Which part to read; all by default.
    label : str, optional
        Column of the label, provided as `target`: a class per utterance
        (1,), or, for `phones`, a class per 10 ms of the crop (labels,).
    classes : list of str, optional
        The classes in order, from `classes_of`.

    Returns
    -------
    DynamicItemDataset
        Of `id`, `sig` (samples,), and `target` if a label is asked for.

    Raises
    ------
    ValueError
        If the manifest has no such column, a label that is not among the
        classes, or no label at all. Utterances without one are left out.
    """
    dataset = DynamicItemDataset.from_csv(
        manifest, replacements={"data_root": data_folder}
    )

    def place(item, num_samples):
        length = int(num_samples)
        return crop(item, length) if crop else (0, length)

    @takes("id", "wav", "num_samples")
    @provides("sig")
    def read(item, wav, num_samples):
        return read_audio(wav, *place(item, num_samples))

    dataset.add_dynamic_item(read)
    keys = ["id", "sig"]
    if label is not None:
        check_column(dataset, manifest, label)
        dataset = labelled(dataset, manifest, label, classes)
        keys.append("target")
    if label == "phones":

        @takes("id", "phones", "num_samples")
        @provides("target")
        def frame_targets(item, phones, num_samples):
            start, stop = place(item, num_samples)
            first = start // GRID
            last = first + num_labels(stop - start)
            labels = [int(phone) for phone in phones.split()]
            return torch.tensor(labels[first:last], dtype=torch.int64)

        dataset.add_dynamic_item(frame_targets)
    elif label is not None:
        encoder = CategoricalEncoder()
        encoder.update_from_iterable(classes)
        encoder.expect_len(len(classes))

        @takes(label)
        @provides("target")
        def utterance_target(name):
            return encoder.encode_label_torch(name)

        dataset.add_dynamic_item(utterance_target)
    dataset.set_output_keys(keys)
    return dataset


def training_sets(
    train_csv,
    valid_csv,
    data_folder,
    crop,
    batch_size,
    label=None,
    classes=None,
):
    """Opens what a run trains on, and what it is validated on.

    Arguments
    ---------
    train_csv, valid_csv : str
        Manifests.
    crop : KeyedCrop
        Of the training set; validation hears the same crops in every epoch.
    batch_size : int
        Utterances of a batch.
    data_folder, label, classes :
        See `make_dataset`.

    Returns
    -------
    train, valid : (DynamicItemDataset, DynamicItemDataset)

    Raises
    ------
    ValueError
        If the training set is smaller than a batch.
    """
    still = KeyedCrop(crop.samples, crop.random, crop.seed)
    train, valid = (
        make_dataset(manifest, data_folder, chosen, label, classes)
        for manifest, chosen in ((train_csv, crop), (valid_csv, still))
    )
    if len(train) < batch_size:
        raise ValueError(
            f"{train_csv} lists {len(train)} utterances, fewer than a batch: "
            f"use a batch_size below {batch_size}."
        )
    return train, valid


def labelled(dataset, manifest, label, classes):
    """Leaves out what has no label; see `make_dataset` for what is raised."""
    names = {item: row[label] for item, row in dataset.data.items()}
    known = [item for item, name in names.items() if name.strip()]
    if not known:
        raise ValueError(
            f"No utterance of {manifest} has a '{label}': give labels of this "
            f"corpus, or more of it."
        )
    if len(known) < len(names):
        logger.warning(
            f"{len(names) - len(known)} of {len(names)} utterances of "
            f"{manifest} have no '{label}' and are left out."
        )
    for item in known:
        found = names[item].split() if label == "phones" else [names[item]]
        strange = set(found) - set(classes)
        if strange:
            raise ValueError(
                f"{item} in {manifest} has the {label} {sorted(strange)[0]}, "
                f"which no training utterance has."
            )
    dataset.data_ids = known
    return dataset


def check_column(dataset, manifest, label):
    """Raises a ValueError if a manifest's dataset has no such column."""
    columns = next(iter(dataset.data.values()))
    if label not in columns:
        raise ValueError(
            f"{manifest} has no column '{label}'; it has {', '.join(columns)}."
        )


def classes_of(manifest, data_folder, label):
    """Lists the classes of a label, sorted.

    Arguments
    ---------
    manifest : str
        A csv from `speechbrain_sim.data`, the training side.
    data_folder : str
        What `$data_root` in it stands for.
    label : str
        The column.

    Returns
    -------
    list of str
        For `phones`: the numbers from 0 to the largest.
    """
    dataset = DynamicItemDataset.from_csv(
        manifest, replacements={"data_root": data_folder}
    )
    check_column(dataset, manifest, label)
    values = [row[label] for row in dataset.data.values()]
    if label == "phones":
        phones = {int(p) for line in values for p in line.split()}
        return [str(phone) for phone in range(max(phones, default=-1) + 1)]
    return sorted(set(values) - {""})
