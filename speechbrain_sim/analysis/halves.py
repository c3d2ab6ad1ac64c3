"""The two halves of a layer: what each keeps, drops, and where it looks.

Paper: a frozen layer h is split into z^text, what can be transcribed, and
z^acoustic, what else a label needs. Its section 5, as a measurement: every probe
has controls and an interval, and what a half leaks is a share of what h holds.
"""

import json
import shutil
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from speechbrain_sim.analysis.half_probes import (
    DRAWN,
    PARTS,
    WHOLE,
    Side,
    compare_halves,
    probe,
)
from speechbrain_sim.analysis.half_settings import HIDDEN, PAPER
from speechbrain_sim.analysis.intervals import Unmeasurable
from speechbrain_sim.analysis.score_sheet import measured
from speechbrain_sim.analysis.sequence_probes import probe_pooled, probe_text
from speechbrain_sim.bottlenecks.base import CONSTANT
from speechbrain_sim.data.acoustics import LABELS as ACOUSTIC
from speechbrain_sim.data.acoustics import acoustic_labels, quantile_bins
from speechbrain_sim.data.batches import classes_of
from speechbrain_sim.data.labels import UTTERANCE, kind_of
from speechbrain_sim.data.splits import divide, of_part
from speechbrain_sim.data.tables import OWN, read_manifest
from speechbrain_sim.extras import import_extra
from speechbrain_sim.files import cached_result, text_hash
from speechbrain_sim.randomness import keyed_generator

#: the division of texts, and of labels without one of their own
OTHERS = "text"
#: fewest recordings of a map
FEWEST = 5
#: counts up whenever these scores change: older ones are stale
VERSION = 3


class Data(NamedTuple):
    """What halves are probed for.

    Arguments
    ---------
    layer, label : str
        Whose halves; the label of stage 2, or None.
    labels : dict of str to (list of str, str)
        Classes and kind of labels of the manifests.
    values : dict of str to dict of str to dict of str to float
        Further ones, such as pitch: part -> utterance -> number, for quantile
        bins.
    targets : (Labels, dict of str to dict of str to torch.Tensor), optional
        See `speechbrain_sim.analysis.sequence_probes.probe_text`.
    """

    layer: str
    label: str | None
    labels: dict
    values: dict
    targets: tuple | None = None


def read_data(manifests, data_folder, layer, label, labels, label_kinds):
    """Reads what a corpus' halves are probed for, but for the texts.

    Arguments
    ---------
    manifests, data_folder : dict of str to str or Path, str or Path
        Part -> csv file; of the audio.
    layer, label :
        See `Data`.
    labels : list of str
        Columns of the manifests, in bins if they are of fractions; or of
        `ACOUSTIC`, which are measured.
    label_kinds : dict of str to str
        See `speechbrain_sim.data.labels.kind_of`.

    Returns
    -------
    Data
    """
    known, values = {}, {}
    rows = {p: read_manifest(x, data_folder) for p, x in manifests.items()}
    row = next(iter(rows["train"].values()))
    first = [name for name in row if name not in OWN]  # duration is measured
    for name in labels:
        if name in first:  # the corpus' own
            kind, every = kind_of(name, label_kinds), set()
            if kind == UTTERANCE and (numbers := _fractions(rows, name)):
                values[name] = numbers
                continue
            for path in manifests.values():
                every.update(classes_of(path, data_folder, name, kind))
            known[name] = sorted(every), kind
        elif name not in ACOUSTIC:
            has = ", ".join([*first, *ACOUSTIC])
            raise ValueError(
                f"{manifests['train']} has no column '{name}', and it is not "
                f"measured: choose of {has}."
            )
    if asked := [n for n in labels if n not in {**known, **values}]:
        found = {
            part: acoustic_labels(path, data_folder)
            for part, path in manifests.items()
        }
        for name in asked:
            values[name] = {
                part: {i: numbers[name] for i, numbers in of.items()}
                for part, of in found.items()
            }
    return Data(layer, label, known, values)


def _fractions(rows, name):
    """Returns part -> utterance -> number of a column, None if it has classes.

    Whole numbers, such as digits, are classes.
    """
    try:
        found = {
            part: {i: float(row[name] or "nan") for i, row in of.items()}
            for part, of in rows.items()
        }
    except ValueError:
        return None
    every = np.array([x for of in found.values() for x in of.values()])
    every = every[np.isfinite(every)]
    return found if (every % 1).any() else None


def halves_of(coded, layer):
    """Returns the halves of a layer of a CodedEncoder: name -> bottleneck.

    That of `context.vib.text` is named `z_text`.
    """
    start = f"{layer}.vib."
    return {
        f"z_{name.removeprefix(start)}": half
        for name, half in coded.bottlenecks.items()
        if name.startswith(start)
    }


def read_divisions(manifests, data_folder, folder, labels, split, text=None):
    """Divides a corpus for each label of utterances, and for all others.

    Arguments
    ---------
    manifests, data_folder, folder, split, text :
        See `speechbrain_sim.data.splits.divide`: by speakers, but for the label
        `speaker`.
    labels : list of str
        Labels of utterances.

    Returns
    -------
    dict of str to dict
        Label, or `OTHERS` for all others -> part -> IDs, and `how`; or a `gap`.
    """
    found = {}
    for label in (None, *labels):
        name = label or OTHERS
        try:
            asked = data_folder, Path(folder, name), label, split, text
            paths, how = divide(manifests, *asked)
            found[name] = {
                part: [*read_manifest(path, data_folder)]
                for part, path in paths.items()
            }
            found[name]["how"] = how
        except ValueError as error:
            found[name] = {"gap": str(error)}
    return found


def read_side(stores, data, halves, divisions, settings):
    """Reads a corpus, with numbers of recordings as quantile bins.

    Arguments
    ---------
    stores, halves :
        See `Side.read`.
    data, settings : Data, Settings
        What is probed for, and how: the edges of bins are those of the training
        part.
    divisions : dict
        From `read_divisions`.

    Returns
    -------
    side, classes : (Side, dict of str to list of str)
        Classes of each label: none if its values do not fill the bins.
    """
    given, bins = (data.layer, halves, data.labels), settings.bins
    seed = settings.seed if settings.draws else None
    side = Side.read(stores, *given, seed)
    classes = {label: known for label, (known, _) in data.labels.items()}
    for label, known in data.values.items():
        of = divisions.get(label, divisions[OTHERS])
        pairs = zip(side.parts, side.ids, strict=True)
        numbers = np.array([known[part][name] for part, name in pairs])
        try:
            train = numbers[side.places(of.get("train", ()), "train")]
            side.y[label] = [*quantile_bins(train, numbers, bins, label)]
            classes[label] = [f"{i + 1} of {bins}" for i in range(bins)]
        except ValueError:  # few, or equal
            classes[label] = []
    return side, classes


def measure(side, divisions, classes, settings, folder, label, targets=None):
    """Measures what probes read of h and of its halves.

    Arguments
    ---------
    side, divisions, classes :
        From `read_side` and `read_divisions`.
    settings : Settings
        How.
    folder : str or Path
        Of its own, for probes that are solved, until all are.
    label : str
        Of stage 2: whose test part is mapped.
    targets : (Labels, dict of str to dict of str to torch.Tensor), optional
        Transcripts: see `probe_text`.

    Returns
    -------
    dict
        Ready for json. `probes`: kind of probe -> label -> name -> scores (see
        `compare_halves`), or a `gap`; `text`: see `probe_text`; `map`: see
        `map_means`, and `classes`, label -> names, class of each utterance;
        `divisions`: see `_overlaps`.
    """
    names, found = [*side.x], {"divisions": _overlaps(side, divisions)}
    found |= {"probes": {}, "text": {}}

    @cache
    def divided(name):
        if "gap" in (of := divisions[name]):
            raise Unmeasurable(of["gap"])
        ids = {p: _drawn(of[p], settings, name, p) for p in PARTS}
        return {part: side.select(ids[part], part).pool() for part in PARTS}

    def parts(label):
        return divided(label if label in divisions else OTHERS)

    def solve(kind, label):
        if not classes[label]:
            few = f"The training part has too few values of {label}"
            raise Unmeasurable(f"{few}, or too many that are equal, for bins.")
        of = parts(label), label, len(classes[label]), names, settings
        if kind == PAPER:
            if side.of_frames(label):
                raise Unmeasurable("Attention pools utterances, not frames.")
            return compare_halves(*probe_pooled(*of))
        hidden = settings.hidden if kind == HIDDEN else 0
        return compare_halves(*probe(*of, hidden, folder))

    for kind in settings.probes:
        found["probes"][kind] = {
            label: measured(solve, kind, label) for label in classes
        }
    if targets is not None and settings.epochs:
        given = targets, names, settings
        found["text"] = measured(lambda: probe_text(parts(OTHERS), *given))
    mapped = classes, targets, settings.seed
    found["map"] = measured(lambda: _map(parts(label)["test"], *mapped))
    shutil.rmtree(folder, ignore_errors=True)
    return found


def _overlaps(side, divisions):
    """Counts what probes test z_text on and it has learned from: by division.

    Name -> `how` it was divided, `test` recordings, and of these, the `learned`.
    """
    learned = side.places(divisions[OTHERS].get("train", ()), "train")
    found = {}
    for name, of in divisions.items():
        if "gap" not in of:
            test = side.places(of["test"], "test")
            found[name] = {"how": of.get("how", ""), "test": len(test)}
            found[name]["learned"] = len({*test} & {*learned})
    return found


def _drawn(ids, settings, *key):
    """Draws `recordings` of a part at most, in their order."""
    noise = keyed_generator(settings.seed, "recordings", *key)
    order = torch.randperm(len(ids), generator=noise).tolist()
    return [ids[i] for i in sorted(order[: settings.recordings])]


def _map(test, classes, targets, seed):
    """Maps the means of all halves: `places`, and `classes` of recordings."""
    means = {n: x for n, x in test.means.items() if not n.endswith(DRAWN)}
    del means[WHOLE]
    found = {
        label: (known, np.array(test.y[label]).tolist())
        for label, known in classes.items()
        if known and not test.of_frames(label)
    }
    if targets is not None:
        labels, ids = targets[0], of_part(targets[1], "test")
        texts = [labels.text(ids[name]) for name in test.ids]
        known, at = np.unique(texts, return_inverse=True)
        if 2 * len(known) <= len(texts):  # they are spoken again
            found["text"] = known.tolist(), at.tolist()
    return {"places": map_means(means, seed), "classes": found}


def map_means(means, seed=1):
    """Maps the means of utterances to a plane by t-SNE.

    Arguments
    ---------
    means : dict of str to numpy.ndarray
        Half -> (utterances, channels): of unpadded frames, see `Side.pool`.
    seed : int
        Of t-SNE.

    Returns
    -------
    dict of str to list of list of float
        Half -> x and y of each utterance, without halves whose means are all
        alike. Unmeasurable if none is left, or there are too few utterances.
    """
    manifold, places = import_extra("sklearn.manifold", "analysis"), {}
    for name, x in means.items():
        if len(x) < FEWEST:
            few = f"{len(x)} test recordings are no map"
            raise Unmeasurable(f"{few}: it needs {FEWEST}.")
        varies = x.std(0) > CONSTANT * np.abs(x).max()
        if varies.any():
            x = x[:, varies].astype(float)
            x = (x - x.mean(0)) / x.std(0)
            perplexity = min(30, (len(x) - 1) / 3)
            tsne = manifold.TSNE(perplexity=perplexity, random_state=seed)
            place = tsne.fit_transform(x)
            places[name] = place.astype(float).round(3).tolist()
    if not places:
        raise Unmeasurable("The halves do not vary over test recordings.")
    return places


def measure_model(path, model, stores, divisions, data, settings):
    """Measures the halves of a layer of a model, or reads what was measured.

    Arguments
    ---------
    path : str or Path
        The json file that keeps the result, with hashes of all it is made of.
    model : (CodedEncoder, dict)
        From `speechbrain_sim.models.load.load_encoder`.
    stores, divisions, settings :
        See `read_side` and `measure`.
    data : Data
        What is probed for.

    Returns
    -------
    dict
    """
    coded, description = model
    labels, texts = data.targets or (None, {})
    texts = {
        part: {name: known.tolist() for name, known in sorted(ids.items())}
        for part, ids in texts.items()
    }
    made_of = {
        "of": VERSION,
        "model": description["sha256"],
        "stores": [store.made_of for store in stores],
        "data": data._replace(values=None, targets=None)._asdict(),
        "divisions": text_hash(json.dumps(divisions, sort_keys=True)),
        "values": text_hash(json.dumps(data.values, sort_keys=True)),
        "texts": text_hash(json.dumps([texts, labels and labels.symbols])),
        "settings": settings._asdict() | {"device": None},
    }

    # of the same only, what was solved before a kill is used
    key = text_hash(json.dumps(made_of))[:16]
    folder = Path(path).with_name(f"half_probes_{key}")

    def compute():
        given = stores, data, halves_of(coded, data.layer), divisions
        side, classes = read_side(*given, settings)
        how = divisions, classes, settings, folder, data.label, data.targets
        return measure(side, *how)

    return cached_result(path, made_of, compute)
