"""Scores of one code of a layer, and of the layer itself, in one place."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from scipy import sparse

from speechbrain_sim.activations import ALL, LOG_VAR
from speechbrain_sim.analysis import code_scores, feature_scores
from speechbrain_sim.analysis.code_controls import CONTROLS
from speechbrain_sim.analysis.code_parts import (
    LayerAbove,
    Phones,
    nce_losses,
    read_part,
)
from speechbrain_sim.analysis.code_scores import encode_rows
from speechbrain_sim.analysis.factor_scores import dci
from speechbrain_sim.analysis.intervals import Unmeasurable
from speechbrain_sim.analysis.lasso import Part as Example
from speechbrain_sim.analysis.tokens import NO_PHONES
from speechbrain_sim.data.audio import SAMPLE_RATE
from speechbrain_sim.data.labels import FRAMES, NO_LABEL
from speechbrain_sim.options import read_fields
from speechbrain_sim.randomness import keyed_generator

#: of the Lasso between wide codes and factors: a third of the time of 1e-3
LOOSE = 1e-2
#: those of a sheet
PARTS = ("train", "test", "valid")
#: what ABX is measured of
ABX = ("codes", "decoded")


class Settings(NamedTuple):
    """How much is read for the score sheet.

    Arguments
    ---------
    seed : int
        Of all draws.
    train_rows, test_rows : int
        Rows read of both parts: whole recordings, drawn until there are so
        many.
    probe_rows, factor_rows, posterior_rows : int
        Rows, drawn from these, that probes are solved on, that factors are
        scored on, and whose posteriors are drawn from.
    draws : int
        From each posterior.
    strengths : tuple of float
        Of L2 of the probes, to choose from on validation rows.
    controls : tuple of str
        Of `CONTROLS`.
    names : dict of str to list of str
        Names of a label's classes, by which silence is left out of F1.
    factors_of : callable, optional
        Row of a manifest -> dict of factors of its recording, beside the
        labels: see `speechbrain_sim.analysis.factors.Factors`.
    abx_recordings : int
        Test recordings whose phones ABX compares.
    predictors : dict of str to torch.Tensor
        See `speechbrain_sim.analysis.code_parts.read_predictors`.
    """

    seed: int = 1
    train_rows: int = 30_000
    test_rows: int = 100_000
    probe_rows: int = 6_000
    factor_rows: int = 2_000
    posterior_rows: int = 2_000
    draws: int = 32
    strengths: tuple = (1e-2, 1e-3)
    controls: tuple = CONTROLS
    names: dict = {}
    factors_of: Callable | None = None
    abx_recordings: int = 30
    predictors: dict = {}


COUNTS = "train_rows", "test_rows", "probe_rows", "factor_rows"
COUNTS += "posterior_rows", "draws", "abx_recordings"
#: ranges of settings
RULES = dict.fromkeys(COUNTS, ">= 2") | {"strengths": "not empty, >= 0"}
RULES |= {"seed": ">= 0", "controls": [*CONTROLS]}
#: checks what differs from `Settings`, a dict; returns them
read_settings = partial(read_fields, "sheet", fields=Settings, rules=RULES)


def measured(function, *arguments):
    """Returns what a function returns, or a `gap`: why it cannot be measured."""
    try:
        return function(*arguments)
    except (Unmeasurable, ImportError) as error:  # of an extra
        return {"gap": str(error)}


def check_labelled(at, part, label):
    """Raises an Unmeasurable if no row, of those `at`, has a label."""
    if not len(at):
        raise Unmeasurable(f"No row of the {part} part has a class of {label}.")


class Sheet:
    """Scores codes of one layer; what they share is read and solved once.

    Arguments
    ---------
    layer : str
        The layer.
    encoder, stores, labels, settings :
        See `measure_codes`; a `Settings`.
    """

    def __init__(self, layer, encoder, stores, labels, settings):
        self.layer, self.labels, self.settings = layer, labels, settings
        sizes = settings.train_rows, settings.test_rows, settings.probe_rows
        how = (settings.seed,)
        #: those of `PARTS`
        self.parts = [
            read_part(stores[n], layer, labels, m, *how, settings.factors_of)
            for n, m in zip(PARTS, sizes, strict=True)
        ]
        self.train, self.test, _ = self.parts
        self.store, self.mean = stores["test"], self.train.x.mean(0)
        kinds = {label: kind for label, (_, kind) in labels.items()}
        #: what single units are named by: a label of frames, if there is one
        self.concept = next(
            (label for label, kind in kinds.items() if kind == FRAMES),
            next(iter(kinds), None),
        )
        x = [part.x for part in self.parts]
        self.readers, self.probes = self._probe(x)
        self.phones = measured(self._find_phones)
        self.above = measured(self._find_above, encoder)
        losses = "layer", self._lost_here, "above", self._lost_above
        losses += "nce", self._lost_nce
        #: of frames, their utterances and the layer above -> losses, recordings
        self.losses = {
            name: measured(find, stores)
            for name, find in zip(losses[::2], losses[1::2], strict=True)
        }
        mean = np.broadcast_to(self.mean, self.test.x.shape)
        self.ends = self._losses(mean), self._losses(self.test.x)

    def score_layer(self):
        """Scores the layer itself: its channels are two units, one per sign."""
        x, z, _ = (part.x for part in self.parts)
        low, high = x.min(0), x.max(0)
        units = [np.c_[v - low, high - v].clip(0) for v in (x, z)]
        return {
            "probes": self.probes,
            "concept": measured(self._concept, units, (x, z), self.readers),
            "factors": measured(self._factors, x, z),
            "abx": {"codes": self._abx(lambda x: x)},
        }

    def score(self, code, abx=()):
        """Scores a bottleneck, or a control; see `measure_codes`.

        `abx` are "codes" and "decoded", or fewer of them.
        """
        pairs = [encode_rows(code, part.x) for part in self.parts]
        codes, decoded = zip(*pairs, strict=True)
        unit, z = self.test.unit, codes[1]
        readers, probes = self._probe(codes)
        given = self.test.x, decoded[1], self.mean, unit
        return {
            "reconstruction": measured(code_scores.reconstruction, *given),
            "firing": measured(code_scores.firing, z, unit),
            "duration": measured(self._durations, z),
            "posterior": measured(self._sureness, code),
            "probes": probes,
            "decoded": self._probe(decoded)[1],
            "recovered": self._recovered(decoded[1]),
            "concept": measured(self._concept, codes[:2], codes[:2], readers),
            "factors": measured(self._factors, *codes[:2]),
            "abx": {
                n: self._abx(lambda x, i=i: encode_rows(code, x)[i])
                for i, n in enumerate(ABX)
                if n in abx
            },
        }

    def _draw(self, at, most, *key):
        """Draws some of the rows, in their order."""
        noise = keyed_generator(self.settings.seed, "rows", *key)
        drawn = torch.randperm(len(at), generator=noise)[:most].numpy()
        return np.sort(at[drawn])

    def _labelled(self, label, most, left_out=()):
        """Lists the rows of a label, `most` of training, and their classes.

        Of each part; without rows of the classes that are `left_out`.
        """
        for name, part in zip(PARTS, self.parts, strict=True):
            y = part.y[label]
            at = np.flatnonzero((y != NO_LABEL) & ~np.isin(y, left_out))
            check_labelled(at, name, label)
            if part is self.train:
                at = self._draw(at, most, label)
            yield at, y[at]

    def _probe(self, codes):
        """Solves probes of all labels; returns the readers and their scores."""
        readers = {}

        def probe(label):
            rows = [*self._labelled(label, self.settings.probe_rows)]
            (_, known), (to, there), (_, chosen) = rows
            x, z, v = (c[at] for c, (at, _) in zip(codes, rows, strict=True))
            fits = x, known, v, chosen, len(self.labels[label][0])
            read = feature_scores.fit_reader(*fits, self.settings.strengths)
            readers[label] = read
            tested = z, there, self.test.unit[to], known
            return feature_scores.accuracy(read, *tested)

        scores = {label: measured(probe, label) for label in self.labels}
        return readers, scores

    def _concept(self, units, codes, readers):
        """Scores one, few and all units by the F1 of the concept's classes."""
        if self.concept is None:
            raise Unmeasurable("There are no labels.")
        classes, kind = self.labels[self.concept]
        names = self.settings.names.get(self.concept, classes)
        silence = NO_PHONES if kind == FRAMES else ()
        quiet = [i for i, name in enumerate(names) if name.lower() in silence]
        (at, y), (to, there), _ = self._labelled(
            self.concept, self.settings.train_rows, quiet
        )
        unit = self.test.unit[to]
        one = units[0][at], y, units[1][to], there, unit, len(classes)
        given = codes[0][at], y, codes[1][to], there, unit
        score, labels = feature_scores.best_units(*one)
        return {
            "label": self.concept,
            "one": score,
            "few": feature_scores.few_units(*given, len(classes)),
            "all": feature_scores.reader_f1(readers[self.concept], *given),
            "always": feature_scores.always_f1(there, unit, len(classes)),
            "across": feature_scores.variance_across(*given),
            "units": labels,
        }

    def _factors(self, *codes):
        """Scores the disentanglement of labels and further factors."""
        examples, most = [], self.settings.factor_rows
        for part, z in zip(self.parts, codes, strict=False):
            kept = np.ones(len(part.x), bool)
            for label, y in part.y.items():
                known = examples[0].factors[label] if examples else y
                kept &= (y != NO_LABEL) & np.isin(y, known)
            at = self._draw(np.flatnonzero(kept), most, "factors")
            factors = {n: y[at] for n, y in {**part.y, **part.factors}.items()}
            z = z[at].toarray() if sparse.issparse(z) else z[at]
            examples.append(Example(z, factors, part.unit[at]))
        vary = [
            {n for n, values in e.factors.items() if len(np.unique(values)) > 1}
            for e in examples
        ]
        for e in examples:
            for name in e.factors.keys() - (vary[0] & vary[1]):
                del e.factors[name]
        if len(examples[0].factors) < 2:
            raise Unmeasurable("Fewer than two labels or factors vary.")
        return dci(*examples, self.settings.seed, LOOSE)

    def _durations(self, codes):
        """Measures how long units fire, where rows are frames."""
        if self.store.made_of["rows"] != ALL:
            raise Unmeasurable("Rows are means of utterances, not frames.")
        hop = 1000 * self.store.layers[self.layer][0] / SAMPLE_RATE
        where = self.test.utterance, self.test.unit, hop
        return code_scores.durations(codes, *where)

    def _sureness(self, code):
        """Draws from the posteriors of some test frames."""
        name, settings = self.layer + LOG_VAR, self.settings
        if name not in self.store.arrays or self.store.made_of["rows"] != ALL:
            raise Unmeasurable("There are no posteriors of frames.")
        at = np.arange(len(self.test.x))
        at = self._draw(at, settings.posterior_rows, "posterior")
        log_var = self.store[name][torch.from_numpy(self.test.rows[at])]
        given = self.test.x[at], log_var.numpy(), self.test.unit[at]
        return code_scores.sureness(code, *given, settings.draws, settings.seed)

    def _check_frames(self):
        """Raises an Unmeasurable unless rows, and the concept's labels, are frames."""
        frames = self.store.made_of["rows"] == ALL
        if not frames or self.labels.get(self.concept, [None])[-1] != FRAMES:
            raise Unmeasurable("There are no labels of frames.")

    def _find_phones(self):
        """Reads what ABX compares."""
        self._check_frames()
        label, settings = self.concept, self.settings
        classes = self.labels[label][0]
        names = settings.names.get(label, classes)
        names = dict(zip(classes, names, strict=True))
        given = label, names, settings.abx_recordings, settings.seed
        return Phones(self.store, self.layer, *given)

    def _abx(self, encode):
        """Measures ABX of what becomes of frames, or returns a gap."""
        if isinstance(self.phones, dict):
            return self.phones
        return self.phones.abx(encode(self.phones.x))

    def _recovered(self, decoded):
        """Measures what probes and the module above recover."""
        found, (of_mean, of_x) = self._losses(decoded), self.ends
        for name, lost in found.items():
            if not isinstance(lost, dict):
                losses = of_mean[name][0], lost[0], of_x[name][0]
                given = losses, lost[1]
                found[name] = measured(feature_scores.recovered, *given)
        return found

    def _losses(self, x):
        """Computes the `losses` of frames; gaps stay."""
        found, above = dict(self.losses), None
        if not isinstance(self.above, dict):
            above = self.above.run(x, self.test.utterance)
        for name, lost in found.items():
            if not isinstance(lost, dict):
                found[name] = lost(x, above)
        return found

    def _lost_here(self, stores):
        """Returns what the layer's probe loses."""
        label, test = self.concept, self.test
        if label is None:
            raise Unmeasurable("There are no labels.")
        _, (at, y), _ = self._labelled(label, 0)
        reader = self.readers[label]
        return lambda x, _: (reader.losses(x[at], y), test.unit[at])

    def _find_above(self, encoder):
        """Returns the layer above, which runs on frames."""
        if self.store.made_of["rows"] != ALL:
            raise Unmeasurable("Rows are means of utterances, not frames.")
        return LayerAbove(encoder, self.layer)

    def _lost_above(self, stores):
        """Returns what a probe of the layer above loses, solved on means."""
        self._check_frames()
        layer, label = self._above(), self.concept
        classes, sides = self.labels[label][0], []
        for name, part in zip(PARTS[:2], self.parts, strict=False):
            x, owner = layer.run(part.x, part.utterance)
            y = layer.labels(stores[name], label, classes, owner)
            check_labelled(np.flatnonzero(y != NO_LABEL), name, label)
            sides.append((x, y, owner))
        (x, y, _), (_, there, owner) = sides
        at = np.flatnonzero(y != NO_LABEL)
        at = self._draw(at, self.settings.probe_rows, "above")
        fits = (x[at], y[at]) * 2  # one strength: nothing to choose
        strengths = self.settings.strengths[-1:]
        read = feature_scores.fit_reader(*fits, len(classes), strengths)
        kept = there != NO_LABEL
        y, unit = there[kept], self._unit_of(owner[kept])
        return lambda _, above: (read.losses(above[0][kept], y), unit)

    def _lost_nce(self, stores):
        """Returns what the InfoNCE of the module above loses, as it was trained."""
        layer, seed = self._above(), self.settings.seed
        if layer.name not in self.settings.predictors:
            raise Unmeasurable(
                f"The matrices that {layer.name} learned are in checkpoints of "
                f"a greedy training: give --encoder the folder of such a run."
            )
        weight = self.settings.predictors[layer.name]

        def lost(x, above):
            c, owner = above
            z = np.ascontiguousarray(x) if layer.predicts_input else c
            losses = nce_losses(c, z, owner, weight, seed)
            return losses, self._unit_of(owner)

        return lost

    def _above(self):
        """Returns the layer above, or raises why there is none."""
        if isinstance(self.above, dict):
            raise Unmeasurable(self.above["gap"])
        return self.above

    def _unit_of(self, utterance):
        """Returns the recording of each of the test part's utterances."""
        unit = np.zeros(1 + self.test.utterance.max(), int)
        unit[self.test.utterance] = self.test.unit
        return unit[utterance]
