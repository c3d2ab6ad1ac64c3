"""The class of every row that bottlenecks are aligned by."""

import re
from typing import NamedTuple

import numpy as np
import torch
from speechbrain.utils.logger import get_logger

from speechbrain_sim.activations import MEAN
from speechbrain_sim.brains.frames import ROWS, SAMPLE
from speechbrain_sim.data.batches import classes_of
from speechbrain_sim.data.labels import FRAMES, NO_LABEL, SEQUENCE, UTTERANCE
from speechbrain_sim.data.phones import SILENCES
from speechbrain_sim.data.sampling import ClassBatches
from speechbrain_sim.extras import import_extra
from speechbrain_sim.files import cached_result
from speechbrain_sim.randomness import key_seed, keyed_generator

logger = get_logger(__name__)

#: what follows this are so many clusters, in place of a label
KMEANS = re.compile(r"kmeans:(\d+)")


class Wanted(NamedTuple):
    """What classes are wanted: a label's, or clusters.

    `classes` are as in the manifests, `names` as people know them; `held_out`
    are numbers of those that are not learned from.
    """

    label: str
    kind: str
    classes: list
    names: list
    held_out: list
    clusters: int = 0


def want_classes(
    label, kind, manifest, data_folder, pooling, held_out=(), names_of=None
):
    """Finds the classes of a label, or those of `kmeans:50`.

    Arguments
    ---------
    label, kind : str
        A column of the manifests, and what it is of; or `kmeans:50`.
    manifest, data_folder, pooling : str
        The training part's csv; see `speechbrain_sim.data.batches.make_dataset`;
        "frame" or "mean", what the rows are.
    held_out : list of str
        Classes, or their names, that are left out, as silence always is.
    names_of : callable, optional
        Classes -> names.

    Returns
    -------
    Wanted

    Raises
    ------
    ValueError
        If the label is of another kind than the rows, there is no such class,
        or fewer than two are left.
    """
    if clusters := KMEANS.fullmatch(label):
        count = int(clusters[1])
        kind, classes = FRAMES, [str(n) for n in range(count)]
        if pooling == "mean":
            kind = UTTERANCE
    else:
        count = 0
        _check_kind(label, kind, pooling)
        classes = classes_of(manifest, data_folder, label, kind)
    names = names_of(classes) if names_of and not count else classes
    known = [*zip(classes, names, strict=True)]
    silent = [str(name).lower() in SILENCES for name in names]
    numbers = [i for i in range(len(names)) if silent[i] and kind == FRAMES]
    for name in map(str, held_out):
        found = [i for i, pair in enumerate(known) if name in pair]
        if not found:
            raise ValueError(
                f"--held_out_classes has '{name}', no class of {label}: these "
                f"are {', '.join(map(str, names))}."
            )
        numbers += found
    if len(classes) - len({*numbers}) < 2:
        raise ValueError(
            f"--classes {label} leaves {len(classes) - len({*numbers})} of "
            f"{len(classes)} classes in {manifest}: two or more are needed to "
            f"align by."
        )
    return Wanted(label, kind, classes, names, numbers, count)


def _check_kind(label, kind, pooling):
    """Raises a ValueError if rows have no such label."""
    if kind == SEQUENCE:
        raise ValueError(
            f"--classes {label} is a sequence of tokens, and a row has one "
            f"class: use a label of frames or of utterances."
        )
    if kind == FRAMES and ROWS[pooling] == MEAN:
        raise ValueError(
            f"--classes {label} is a label of frames, and --pooling mean keeps "
            f"one row of a recording: use --pooling frame, or another label."
        )


def read_classes(wanted, stores, layers, folder, seed, shuffle=False):
    """Reads or finds the class of every row.

    Clusters are those of k-means on the standardised training rows; their
    centers are kept in the folder.

    Arguments
    ---------
    wanted : Wanted
        From `want_classes`.
    stores : dict of str to ActivationStore
        "train" and others.
    layers, folder, seed : list of str, Path, int
        Of the rows; of the run; of clusters and of the order.
    shuffle : bool
        Classes change their place: those of utterances between utterances,
        others between rows. A control.

    Returns
    -------
    dict of str to dict of str to numpy.ndarray
        Part -> layer -> (rows,), int64; below 0 where there is none.
    """
    found = {part: {} for part in stores}
    for layer in layers:
        if wanted.clusters:
            centers = _centers(wanted, stores["train"], layer, folder, seed)
        for part, store in stores.items():
            if wanted.clusters:
                y = _nearest(store, stores["train"], layer, centers)
            else:
                given = wanted.label, wanted.classes, wanted.kind, layer
                y = store.labels(*given)
            y = np.where(np.isin(y, wanted.held_out), NO_LABEL, y)
            if shuffle:
                owner = store[layer].utterance
                whole = wanted.kind == UTTERANCE
                y = shuffled(y, owner if whole else None, (seed, part))
            found[part][layer] = y
    return found


class Aligned(NamedTuple):
    """What bottlenecks of several layers are aligned by.

    `classes` are part -> layer -> (rows,), `draws` layer -> ClassBatches, and
    `about` is what metadata keep of them.
    """

    classes: dict
    draws: dict
    about: dict


def align(
    wanted, stores, layers, folder, seed, samples, several=None, shuffle=False
):
    """Reads the classes of all rows, and prepares the draws of batches.

    Arguments
    ---------
    wanted, stores, layers, folder, seed, shuffle :
        See `read_classes`.
    samples, several : int
        See `ClassBatches`.

    Returns
    -------
    Aligned
    """
    given = wanted, stores, layers, folder, seed, shuffle
    classes = read_classes(*given)
    draws = make_draws(wanted, classes["train"], samples, several)
    held_out = [wanted.names[i] for i in wanted.held_out]
    about = {"classes": wanted.label, "held_out": held_out, "shuffled": shuffle}
    return Aligned(classes, draws, about)


def shuffled(classes, owner, key):
    """Moves classes to other rows, or to other utterances.

    Arguments
    ---------
    classes : numpy.ndarray
        (rows,); rows without a class stay so.
    owner : numpy.ndarray or None
        The utterance of each row, all of whose rows have one class.
    key : tuple
        Of the order.

    Example
    -------
    >>> classes, owner = np.array([0, 0, 1, 1, 2]), np.array([0, 0, 1, 1, 2])
    >>> shuffled(classes, owner, (4,))
    array([0, 0, 2, 2, 1])
    """
    known = np.flatnonzero(classes != NO_LABEL)
    if owner is None:
        owner = np.arange(len(classes))
    utterances, first, at = np.unique(
        owner[known], return_index=True, return_inverse=True
    )
    generator = keyed_generator(*key, "shuffled", len(utterances))
    order = torch.randperm(len(utterances), generator=generator).numpy()
    moved = classes.copy()
    moved[known] = classes[known][first][order][at]
    return moved


def _centers(wanted, store, layer, folder, seed):
    """The centers of clusters of standardised rows, kept in the folder."""
    rows = store[layer]
    if len(rows) < wanted.clusters:
        raise ValueError(
            f"--classes {wanted.label} wants more clusters than the {len(rows)} "
            f"training rows of {layer}: use fewer."
        )

    def compute():
        cluster = import_extra("sklearn.cluster", "analysis")
        sample = rows[:: 1 + (len(rows) - 1) // (4 * SAMPLE)]
        mean, std = store.statistics(layer)
        found = cluster.MiniBatchKMeans(
            wanted.clusters,
            batch_size=4096,
            n_init=3,
            random_state=key_seed(seed, layer, "kmeans") % 2**32,
        ).fit(((sample - mean) / std).numpy())
        return found.cluster_centers_.tolist()

    made_of = {"store": store.made_of, "clusters": wanted.clusters}
    made_of |= {"layer": layer, "seed": seed}
    path = folder / f"kmeans_{layer}.json"
    return torch.tensor(cached_result(path, made_of, compute))


def _nearest(store, train, layer, centers):
    """The cluster of each row, (rows,)."""
    mean, std = train.statistics(layer)
    pieces = store[layer].scaled(mean, std).split(SAMPLE)
    found = [torch.cdist(rows, centers).argmin(1) for rows in pieces]
    return torch.cat(found).numpy()


def make_draws(wanted, classes, samples, several=None):
    """Makes the draws of batches of each layer's training rows.

    Clusters of too few rows are left out, with a message; classes are refused.

    Arguments
    ---------
    wanted, classes : Wanted, dict of str to numpy.ndarray
        Layer -> (rows,); changed in place.
    samples, several : int
        See `ClassBatches`.

    Returns
    -------
    dict of str to ClassBatches
    """
    draws = {}
    for layer, y in classes.items():
        if wanted.clusters:
            few = np.bincount(y, minlength=wanted.clusters) < samples
            if few.any():
                logger.info(
                    f"{int(few.sum())} clusters of {layer} have fewer than "
                    f"{samples} rows, and are left out."
                )
            y[few[y]] = NO_LABEL
        try:
            draws[layer] = ClassBatches(y, samples, several, wanted.names)
        except ValueError as error:
            raise ValueError(f"{layer}, {wanted.label}: {error}") from error
    return draws
