"""The scores of variational sparse codes whose classes were aligned.

Everything is measured on test recordings. What the codes are compared with is
in the same table: the same codes without alignment, codes that a classifier
learned, classes that k-means made.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from scipy.cluster.vq import kmeans2, vq

from speechbrain_sim.analysis import alignment
from speechbrain_sim.analysis.alignment_baselines import (
    BASELINES,
    open_beside,
    train_baseline,
)
from speechbrain_sim.analysis.code_parts import read_part
from speechbrain_sim.analysis.code_scores import (
    BLOCK,
    over_recordings,
    reconstruction,
)
from speechbrain_sim.analysis.feature_scores import LOOSE
from speechbrain_sim.analysis.intervals import (
    Unmeasurable,
    chance_level,
    control_interval,
    holm,
)
from speechbrain_sim.analysis.score_sheet import measured
from speechbrain_sim.analysis.tokens import NO_PHONES
from speechbrain_sim.console import Bar
from speechbrain_sim.data.articulation import articulation, distances
from speechbrain_sim.data.labels import FRAMES, NO_LABEL, UTTERANCE
from speechbrain_sim.data.tables import read_manifest
from speechbrain_sim.files import cached_result
from speechbrain_sim.logistic import solve_logistic
from speechbrain_sim.models.format import encoder_of, identity_of
from speechbrain_sim.rows import moments

#: counts up whenever these scores change: older ones are stale
VERSION = 2
#: rows that are read, those of training and of test
TRAIN_ROWS, TEST_ROWS = 6000, 12000
#: rows that a probe learns from, its strength, and shuffled controls
PROBE_ROWS, STRENGTH, CONTROLS = 3000, 1e-2, 10
#: what a probe reads
READ = "gate", "mean", "code"
#: columns of a manifest that describe recordings, not classes
TECHNICAL = {"ID", "wav", "start", "stop", "num_samples", "duration"}
#: column of speakers; rows of what was not trained on
SPEAKER = "speaker"
NEW_CLASSES, NEW_SPEAKERS = "held-out classes", "held-out speakers"


class Coded(NamedTuple):
    """What a bottleneck makes of rows: gates, means and codes, (rows, units).

    And what the codes decode to, (rows, channels).
    """

    gate: np.ndarray
    mean: np.ndarray
    code: np.ndarray
    decoded: np.ndarray


@torch.no_grad()
def code_rows(bottleneck, x):
    """Codes rows, (rows, channels), block by block: see `Coded`.

    A sparse autoencoder's gate is 1 where a unit fires, else 0.
    """
    device, parts = next(bottleneck.buffers()).device, []
    for rows in torch.from_numpy(x).split(BLOCK):
        rows = rows.to(device)
        code = bottleneck.encode(rows)
        if hasattr(bottleneck, "posterior"):
            gate, mean, _ = bottleneck.posterior(rows)
        else:
            gate, mean = (code > 0).to(code), code
        found = gate, mean, code, bottleneck.decode(code)
        parts.append([value.cpu().numpy() for value in found])
    return Coded(*map(np.concatenate, zip(*parts, strict=True)))


def probe(known, y, x, there, unit, classes, seed=0):
    """Scores a probe of rows, beside probes of shuffled labels.

    Arguments
    ---------
    known, y, x, there : numpy.ndarray
        Training rows, (rows, units), and their classes; those of test.
    unit, classes, seed : numpy.ndarray, int, int
        Recordings of test rows; number of classes; of the shuffling.

    Returns
    -------
    dict
        Accuracy, `value` and `interval`; `chance`; that of `shuffled` labels.

    Raises
    ------
    Unmeasurable
        If shuffled labels are read above chance, see `control_interval`.
    """
    rng = np.random.default_rng(seed)
    labels = np.stack([y, *(rng.permutation(y) for _ in range(CONTROLS))])
    known, x = (torch.from_numpy(part).float() for part in (known, x))
    mean, std = moments([known])
    known, x = (((part - mean) / std.clamp_min(1e-6)) for part in (known, x))
    solved = solve_logistic(
        known, torch.from_numpy(labels), classes, STRENGTH, tolerance=LOOSE
    )
    predicted = solved.predict(x).numpy()
    right = predicted[0] == there
    control = control_interval(predicted[1:], there, classes)
    if not control["passed"]:
        raise Unmeasurable(
            "Probes on shuffled labels are above chance: labels reach the "
            "features, or examples are few."
        )
    return {
        **over_recordings(right, np.ones(len(there)), unit),
        "chance": chance_level(y, there),
        "shuffled": control["accuracy"],
    }


def class_features(store, label, classes, kind, names):
    """Describes classes: how they are made, or columns that go with them.

    Arguments
    ---------
    store : ActivationStore
        Whose manifest has the columns, such as `sex` of a `speaker`.
    label, classes, kind, names : str, list of str, str, list of str
        See `measure_alignment`.

    Returns
    -------
    list of dict
        Of each class, see `speechbrain_sim.data.articulation.distances`.
    """
    features = [articulation(name) for name in names]
    if kind != UTTERANCE or any(features):
        return features
    rows = read_manifest(store.folder / "manifest.csv").values()
    for column in sorted({n for row in rows for n in row} - TECHNICAL):
        values = {c: set() for c in classes}
        for row in rows:
            if row[label] in values:
                values[row[label]].add(row.get(column))
        several = {v for found in values.values() for v in found}
        one_each = all(len(found) == 1 for found in values.values())
        if one_each and 1 < len(several) < len(classes):
            for c, found in zip(classes, features, strict=True):
                found[column] = str(*values[c])
    return features


class Layer:
    """Scores codes of one layer by a label; what they share is read once.

    Arguments
    ---------
    layer, stores, label, classes, kind, names, held_out, seed :
        See `measure_alignment`.
    """

    def __init__(
        self, layer, stores, label, classes, kind, names, held_out=(), seed=1
    ):
        self.label, self.names, self.seed = label, names, seed
        sizes, parts = {"train": TRAIN_ROWS, "test": TEST_ROWS}, []
        left_out = [
            i
            for i, name in enumerate(names)
            if kind == FRAMES and name.lower() in NO_PHONES
        ]
        for part, most in sizes.items():
            how = layer, {label: (classes, kind)}, most, seed
            found = read_part(stores[part], *how)
            y = found.y[label]
            kept = (y != NO_LABEL) & ~np.isin(y, left_out)
            if len(np.unique(y[kept])) < 2:
                raise Unmeasurable(
                    f"The {part} part has rows of fewer than two classes of "
                    f"{label}."
                )
            rows = found.x[kept], y[kept], found.unit[kept]
            parts.append((*rows, found.utterance[kept]))
        self.train, self.test = parts
        known = ~np.isin(self.train[1], self._indices(held_out))
        #: which training rows have a class that was trained with
        self.known = np.flatnonzero(known)
        (x, y, *_), (z, there, *_) = parts
        self.mean, self.std = (
            v.numpy() for v in moments([torch.from_numpy(x)])
        )
        units = self.in_units(z), there, self.in_units(x), y
        self.rare = alignment.rarest(*units)
        self.held = self._held(stores, held_out)
        features = class_features(stores["test"], label, classes, kind, names)
        self.distances = distances(features)
        k = len(np.unique(y))
        centres, _ = kmeans2(self.in_units(x), k, minit="++", rng=seed)
        self.pseudo = vq(self.in_units(z), centres)[0]

    def in_units(self, x):
        """Rows, (rows, channels), in deviations from the mean."""
        return (x - self.mean) / self.std

    def _indices(self, classes):
        """Indices of classes by name."""
        if missing := {*classes} - {*self.names}:
            raise Unmeasurable(f"{self.label} has no class {min(missing)}.")
        return [self.names.index(name) for name in classes]

    def _held(self, stores, held_out):
        """Finds test rows of classes and speakers that were not trained on."""
        _, y, _, utterance = self.test
        held = {NEW_CLASSES: np.isin(y, self._indices(held_out))}
        rows = [
            read_manifest(stores[part].folder / "manifest.csv").values()
            for part in ("train", "test")
        ]
        heard = {row.get(SPEAKER) for row in rows[0]}
        seen = np.array([row.get(SPEAKER) in heard for row in rows[1]])
        held[NEW_SPEAKERS] = ~seen[utterance]
        return held

    def baselines(self, bottleneck, k):
        """Trains baselines as wide as a bottleneck: dict of str to Bottleneck."""
        x, y = (torch.from_numpy(v[self.known]) for v in self.train[:2])
        given = bottleneck, x, y, len(self.names), k, self.seed
        return {name: train_baseline(name, *given) for name in BASELINES}

    def score_layer(self):
        """Scores the layer itself: a probe of it, and what k-means finds."""
        x, y, *_ = self.train
        z, there, unit, _ = self.test
        return {
            "probe": self._probe(x, z),
            "pseudo": float(alignment.shared_information(there, self.pseudo)),
        }

    def _probe(self, known, x):
        """Probes rows of test, from some of training."""
        rng = np.random.default_rng(self.seed)
        at = rng.permutation(len(known))[:PROBE_ROWS]
        given = known[at], self.train[1][at], x, *self.test[1:3]
        return measured(probe, *given, len(self.names), self.seed)

    def score(self, bottleneck):
        """Scores a bottleneck: see `measure_alignment`."""
        known = code_rows(bottleneck, self.train[0])
        coded = code_rows(bottleneck, self.test[0])
        x, y, unit, _ = self.test
        active = (coded.gate > 0.5).sum(1)
        whole = np.ones(len(x), bool)
        compare = coded.gate, y, unit
        pseudo = coded.gate, self.pseudo, unit
        found = {
            "weight": getattr(bottleneck, "alignment", None),
            "active": over_recordings(active, np.ones(len(y)), unit),
            "reconstruction": self._kept(coded, whole),
            "rare": self._kept(coded, self.rare),
            "agreement": measured(alignment.agreement, *compare),
            "dimensions": measured(
                alignment.sort_dimensions, *compare, len(self.names)
            ),
            "probes": {
                name: self._probe(getattr(known, name), getattr(coded, name))
                for name in READ
            },
            "pseudo": measured(alignment.agreement, *pseudo),
            "held": {
                name: self._score_held(coded, at, name)
                for name, at in self.held.items()
            },
        }
        found["phonetics"] = measured(self._phonetics, *compare)
        return found

    def _kept(self, coded, at):
        """Explained variance of some test rows."""
        x, _, unit, _ = self.test
        rows = x[at], coded.decoded[at], self.mean, unit[at]
        found = measured(reconstruction, *rows)
        return found.get("explained_variance", found)

    def _score_held(self, coded, at, name):
        """Scores rows that were not trained on: see `measure_alignment`."""
        if not at.any():
            return {"gap": f"The test part has no {name}."}
        _, y, unit, _ = self.test
        compare = coded.gate[at], y[at], unit[at]
        return {
            "reconstruction": self._kept(coded, at),
            "agreement": measured(alignment.agreement, *compare),
        }

    def _phonetics(self, gates, y, unit):
        """Correlates class means, and compares them with phonetic distance."""
        there, known = np.unique(y, return_inverse=True)
        means = alignment.class_means(gates, known, len(there))
        r = alignment.correlate(means)
        found = {
            "classes": there.tolist(),
            "correlations": r.round(4).tolist(),
            "order": alignment.order_classes(r),
            "tests": {},
        }
        for name, (of, apart) in self.distances.items():
            of = np.isin(of, there).nonzero()[0], of[np.isin(of, there)]
            at = np.searchsorted(there, of[1])
            pair = 1 - r[np.ix_(at, at)], apart[np.ix_(of[0], of[0])]
            if len(at) > 2:
                found["tests"][name] = measured(alignment.mantel, *pair)
        tests = [test for test in found["tests"].values() if "p" in test]
        corrected = holm([test["p"] for test in tests]).tolist()
        for test, p in zip(tests, corrected, strict=True):
            test["corrected"] = p
        return found


def measure_alignment(
    bottlenecks, stores, label, classes, kind, names, held_out=(), seed=1
):
    """Scores bottlenecks that have gates, by one label.

    Arguments
    ---------
    bottlenecks : dict of str to Bottleneck
        By their names, such as `module3.vsc`: see `code_rows`.
    stores : dict of str to ActivationStore
        "train" and "test", with their layers.
    label, classes, kind, names : str, list of str, str, list of str
        A column of the manifests, its classes, what it is of, and what the
        classes are called.
    held_out : list of str
        Names of classes that the alignment was not trained with.
    seed : int
        Of the draws of rows, and of baselines.

    Returns
    -------
    dict
        Ready for json; where something cannot be measured there is a `gap`.
        `label`, `names`; `layers`: layer -> `Layer.score_layer`; `codes`: name
        -> scores, of baselines, too, whose names are those of the layer and of
        `BASELINES`:

        - `weight` of the alignment, λ, None of baselines; `active` dimensions
          of a row; `reconstruction`, explained variance,
          and that of the `rare` tenth of each class;
        - `agreement`: see `alignment.agreement`; `pseudo`: the same of classes
          that k-means finds in the layer;
        - `dimensions`: see `alignment.sort_dimensions`;
        - `probes` of `READ`; `phonetics`: correlations of class means, their
          order, and `tests` against distances between classes;
        - `held`: reconstruction and agreement of classes and speakers that
          were not trained on.
    """
    results = {"label": label, "names": names, "layers": {}, "codes": {}}
    layers, given = {}, (label, classes, kind, names, held_out, seed)
    codes, baselines = results["codes"], {}
    bar = Bar(bottlenecks.items(), "alignment", unit="code", disable=None)
    for name, bottleneck in bar:
        layer = name.partition(".")[0]
        first = layer not in layers
        if first:
            layers[layer] = Layer(layer, stores, *given)
            results["layers"][layer] = layers[layer].score_layer()
        codes[name] = layers[layer].score(bottleneck)
        if first:
            k = max(1, round(codes[name]["active"]["value"]))
            for title, code in layers[layer].baselines(bottleneck, k).items():
                scores = layers[layer].score(code)
                baselines[f"{layer}, {title}"] = scores
    codes |= baselines
    return results


def score_run(folder, model, stores, beside=(), **aligned):
    """Scores the codes of a run, and of others beside; kept in `alignment.json`.

    Arguments
    ---------
    folder, model : str or Path, SmoothInfoMax
        The run, and opened, with its codes.
    stores : dict of str to ActivationStore
        "train" and "test".
    beside : list of str
        See `open_beside`: such as a run whose classes were shuffled.
    **aligned :
        `label`, `classes`, `kind`, `names` and `held_out`: see
        `measure_alignment`, whose results are returned.
    """
    codes = dict(model.encoder.bottlenecks)
    layers = list(dict.fromkeys(name.partition(".")[0] for name in codes))
    others, identities = open_beside(beside, encoder_of(model.config), layers)
    made_of = {"of": VERSION, "model": identity_of(model.config), **aligned}
    made_of["stores"] = {part: s.made_of for part, s in stores.items()}
    made_of["beside"] = identities
    return cached_result(
        Path(folder) / "alignment.json",
        made_of,
        lambda: measure_alignment(codes | others, stores, **aligned),
    )
