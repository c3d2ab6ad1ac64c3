"""The two halves of a layer: what each keeps, drops, and where it looks.

Paper: a frozen layer h is split into z^text, what can be transcribed, and
z^acoustic, what else a label needs. Its section 5, as a measurement: every probe
has controls and an interval, and what a half leaks is a share of what h holds.
"""

import json
import shutil
from pathlib import Path
from typing import NamedTuple

import numpy as np

from speechbrain_sim.analysis.half_probes import (
    WHOLE,
    Side,
    compare_halves,
    probe,
)
from speechbrain_sim.analysis.intervals import Unmeasurable
from speechbrain_sim.analysis.score_sheet import measured
from speechbrain_sim.analysis.sequence_probes import probe_pooled, probe_text
from speechbrain_sim.bottlenecks.base import CONSTANT
from speechbrain_sim.data.acoustics import quantile_bins
from speechbrain_sim.extras import import_extra
from speechbrain_sim.files import cached_result, text_hash

#: parts of the corpus
PARTS = "train", "valid", "test"
#: kinds of probes: of the mean over frames, or of single frames, linear and with
#: a hidden layer; and the paper's
LINEAR, HIDDEN, POOLED = PROBES = "linear", "hidden layer", "attention pooling"
#: fewest recordings of a map
FEWEST = 5
#: counts up whenever these scores change: older ones are stale
VERSION = 1


class Settings(NamedTuple):
    """How halves are measured.

    Arguments
    ---------
    seed : int
        Of all draws.
    probes : tuple of str
        Of `PROBES`.
    frame_rows, test_rows : int
        Most frames, drawn, that probes of frames are trained and tested on.
    strengths : tuple of float
        Of L2, to choose from on the validation part.
    hidden, passes : int
        Units of the hidden layer; most passes of a solver.
    controls : int
        Probes with shuffled labels.
    epochs, lr : int, float
        Of the probes of sequences: CTC, and `POOLED`.
    bins : int
        Quantile bins of a number.
    device : str
        Where probes are solved.
    """

    seed: int = 1
    probes: tuple = (LINEAR, HIDDEN)
    frame_rows: int = 6_000
    test_rows: int = 20_000
    strengths: tuple = (1e-1, 1e-2, 1e-3)
    hidden: int = 64
    passes: int = 300
    controls: int = 10
    epochs: int = 30
    lr: float = 5e-3
    bins: int = 4
    device: str = "cpu"


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


def read_sides(stores, layer, halves, labels, values, bins=4):
    """Reads the parts of a corpus, numbers of recordings as quantile bins.

    Arguments
    ---------
    stores : dict of str to ActivationStore
        "train", "valid" and "test", of all frames.
    layer, halves : str, dict of str to Bottleneck
        What h is; from `halves_of`.
    labels : dict of str to (list of str, str)
        Classes and kind of labels of the manifests.
    values : dict of str to dict of str to float
        Further ones, such as pitch: utterance -> number.
    bins : int
        Their number; edges are those of the training part.

    Returns
    -------
    sides, classes : (dict of str to Side, dict of str to list of str)
        By part; and the classes of each label: none if its values do not fill
        the bins.
    """
    binned, classes = {part: {} for part in PARTS}, {}
    for label, known in values.items():
        numbers = {
            part: [known.get(name, np.nan) for name in stores[part].ids]
            for part in PARTS
        }
        try:
            for part, found in numbers.items():
                y = quantile_bins(numbers["train"], found, bins, label)
                binned[part][label] = y
            classes[label] = [f"{i + 1} of {bins}" for i in range(bins)]
        except ValueError:  # equal, or few
            classes[label] = []
    given = layer, halves, labels
    sides = {p: Side.read(stores[p], *given, binned[p]) for p in PARTS}
    return sides, {n: known for n, (known, _) in labels.items()} | classes


def measure(sides, classes, settings, folder, targets=None):
    """Measures what probes read of h and of its halves.

    Arguments
    ---------
    sides, classes :
        From `read_sides`, or `Side.of`.
    settings : Settings
        How.
    folder : str or Path
        Where probes are kept that are solved, until all are.
    targets : Targets, optional
        The transcripts of all parts, for probes by CTC.

    Returns
    -------
    dict
        Ready for json. `probes`: kind of probe -> label -> name -> scores (see
        `compare_halves`), or a `gap`; `text`: see `probe_text`; `map`: see
        `map_means`, and `mapped`, label -> classes and those of utterances.
    """
    folder, names = Path(folder, "half_probes"), [*sides["train"].x]
    test, found = sides["test"], {"probes": {}, "text": {}}

    def solve(kind, label):
        if not classes[label]:
            few = f"The training part has too few values of {label}"
            raise Unmeasurable(f"{few}, or too many that are equal, for bins.")
        of = sides, label, len(classes[label]), names, settings
        if kind == POOLED:
            if len(test.y[label]) != len(test.ids):
                raise Unmeasurable("Attention pools utterances, not frames.")
            return compare_halves(*probe_pooled(*of))
        hidden = settings.hidden if kind == HIDDEN else 0
        return compare_halves(*probe(*of, hidden, folder))

    for kind in settings.probes:
        found["probes"][kind] = {
            label: measured(solve, kind, label) for label in classes
        }
    if targets is not None and settings.epochs:
        found["text"] = probe_text(sides, targets, names, settings)
    halves = [name for name in names if name != WHOLE]
    means = {name: test.means(name) for name in halves}
    found["map"] = measured(map_means, means, settings.seed)
    found["mapped"] = {
        label: (known, test.y[label].tolist())
        for label, known in classes.items()
        if known and len(test.y[label]) == len(test.ids)
    }
    if targets is not None:
        texts = [targets.ids["test"][i].tolist() for i in test.ids]
        texts = [targets.labels.text(ids) for ids in texts]
        known, of = np.unique(texts, return_inverse=True)
        if 2 * len(known) <= len(texts):  # they are spoken again
            found["mapped"]["text"] = known.tolist(), of.tolist()
    shutil.rmtree(folder, ignore_errors=True)
    return found


def map_means(means, seed=1):
    """Maps the means of utterances to a plane by t-SNE.

    Arguments
    ---------
    means : dict of str to numpy.ndarray
        Half -> (utterances, channels): of unpadded frames, see `Side.means`.
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


def measure_model(
    path, model, stores, layer, labels, values, settings, targets=None
):
    """Measures the halves of a layer of a model, or reads what was measured.

    Arguments
    ---------
    path : str or Path
        The json file that keeps the result, with hashes of all it is made of.
    model : (CodedEncoder, dict)
        From `speechbrain_sim.models.load.load_encoder`.
    stores, layer, labels, values, settings, targets :
        See `read_sides` and `measure`.

    Returns
    -------
    dict
    """
    coded, description = model
    halves = halves_of(coded, layer)
    texts = {} if targets is None else targets.ids
    texts = {p: {n: x.tolist() for n, x in t.items()} for p, t in texts.items()}
    made_of = {
        "of": VERSION,
        "model": description["sha256"],
        "layer": layer,
        "stores": {part: store.made_of for part, store in stores.items()},
        "labels": labels,
        "values": text_hash(json.dumps(values, sort_keys=True)),
        "texts": text_hash(json.dumps(texts, sort_keys=True)),
        "settings": settings._asdict() | {"device": None},
    }

    def compute():
        given = stores, layer, halves, labels, values, settings.bins
        folder = Path(path).parent
        return measure(*read_sides(*given), settings, folder, targets)

    return cached_result(path, made_of, compute)
