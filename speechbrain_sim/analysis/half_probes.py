"""What probes read of each half of a layer, and how much of it survives.

A half (z^text, z^acoustic) and the layer h that it was made of have the same
frames, and are probed for the same labels, by the same rows.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from speechbrain_sim.analysis.code_scores import over_recordings
from speechbrain_sim.analysis.intervals import Unmeasurable
from speechbrain_sim.analysis.probes import score_probes
from speechbrain_sim.data.labels import NO_LABEL, UTTERANCE
from speechbrain_sim.data.splits import of_part
from speechbrain_sim.probes import ProbeSolver
from speechbrain_sim.randomness import keyed_generator
from speechbrain_sim.rows import Examples, Rows, StoredArray, moments

#: parts of the corpus
PARTS = "train", "valid", "test"
#: the layer that the halves were made of
WHOLE = "h"
#: follows the name of a half in that of draws of its codes
DRAWN = ", drawn"
#: rows that are read at once
PIECE = 2**14


class CodedRows:
    """Rows of a layer, coded as they are read: as means of posteriors, or drawn.

    Arguments
    ---------
    rows, half : Rows, InformationBottleneck
        Of the layer; what codes them.
    seed : int, optional
        Of draws, z = mean + std * noise, as in training; means without.
    """

    def __init__(self, rows, half, seed=None):
        self.rows, self.half, self.seed = rows, half, seed

    @torch.no_grad()
    def __getitem__(self, chosen):
        """Returns codes of rows (a tensor, or a slice), (rows, units)."""
        x = self.rows[chosen]
        if self.seed is None:
            return self.half.encode(x)
        mean, var = self.half.posterior(x)
        first = chosen.start if isinstance(chosen, slice) else int(chosen[0])
        noise = keyed_generator(self.seed, "codes", first, len(x))
        noise = torch.empty_like(mean).normal_(generator=noise)
        return torch.addcmul(mean, var.sqrt(), noise)


class Side(NamedTuple):
    """Utterances: the frames of a layer, and of its halves, and labels.

    Arguments
    ---------
    x : dict of str to Rows or CodedRows
        Name -> (rows, channels): unpadded frames; `WHOLE`, the layer itself, is
        first.
    spans : numpy.ndarray
        First and last row of each utterance, (utterances, 2).
    ids, recordings, parts : list of str
        Of the utterances; what is resampled for intervals; and where in the
        corpus they lie, as one name may be in several parts.
    y : dict of str to list of numpy.ndarray
        Label -> of each utterance its class, (), or those of its frames,
        (time,); NO_LABEL where there is none.
    means : dict of str to numpy.ndarray
        Name -> means over the frames, (utterances, channels): see `pool`.
    """

    x: dict
    spans: np.ndarray
    ids: list
    recordings: list
    parts: list
    y: dict
    means: dict

    @classmethod
    def read(cls, stores, layer, halves, labels, seed=None):
        """Reads all utterances of stores.

        Arguments
        ---------
        stores, layer : list of ActivationStore, str
            Of all frames, of `PARTS`; what h is.
        halves : dict of str to Bottleneck
            Name -> what codes the frames of the layer.
        labels : dict of str to (list of str, str)
            Classes and kind of each label of the manifests.
        seed : int, optional
            With it, there are draws of each half, too: see `CodedRows`.
        """
        rows = Rows([part for store in stores for part in store[layer].parts])
        ids = [name for store in stores for name in store.ids]
        first = np.searchsorted(rows.utterance, np.arange(1 + len(ids)))
        owners, y = [n for store in stores for n in store.recordings], {}
        of = zip(PARTS, stores, strict=False)
        parts = [part for part, store in of for _ in store.ids]
        for label, (classes, kind) in labels.items():
            every = [s.labels(label, classes, kind, layer) for s in stores]
            each = np.split(np.concatenate(every), first[1:-1])
            y[label] = [x[0] for x in each] if kind == UTTERANCE else each
        x = {name: CodedRows(rows, half) for name, half in halves.items()}
        if seed is not None:
            for name, half in halves.items():
                x[name + DRAWN] = CodedRows(rows, half, seed)
        x = {WHOLE: rows, **x}
        spans = np.stack([first[:-1], first[1:]], 1)
        return cls(x, spans, ids, owners, parts, y, {})

    def places(self, ids, part):
        """Returns where utterances of a part are: see `of_part`."""
        known = {}
        for at, (name, own) in enumerate(
            zip(self.ids, self.parts, strict=True)
        ):
            known.setdefault(own, {})[name] = at
        known = of_part(known, part)
        return [known[name] for name in ids]

    def select(self, ids, part):
        """Returns some of the utterances, of a part, in the order of IDs."""
        at = self.places(ids, part)
        y = {label: [known[i] for i in at] for label, known in self.y.items()}
        means = {name: known[at] for name, known in self.means.items()}
        owners, parts = (
            [x[i] for i in at] for x in (self.recordings, self.parts)
        )
        return Side(self.x, self.spans[at], list(ids), owners, parts, y, means)

    def of_frames(self, label):
        """Returns whether a label is of frames, not of utterances."""
        return np.ndim(self.y[label][0]) > 0

    def frames(self, name, utterance):
        """Returns the frames of an utterance, (time, channels)."""
        return self.x[name][slice(*self.spans[utterance].tolist())]

    def pool(self):
        """Returns the same with means over the frames of each utterance."""
        means = {}
        for name in self.x:
            each = (self.frames(name, i) for i in range(len(self.ids)))
            rows = [frames.double().mean(0).float() for frames in each]
            means[name] = torch.stack(rows).numpy()
        return self._replace(means=means)

    def units(self, name):
        """Computes mean and standard deviation of the frames' channels."""
        return moments(self.frames(name, i) for i in range(len(self.ids)))

    def examples(self, label, names, most, seed):
        """Returns what probes are trained or tested on: name -> Examples.

        Means of utterances or, of a label of frames, `most` of the frames at
        most, drawn.
        """
        y, owner, frames = self.y[label], np.arange(len(self.ids)), None
        if self.of_frames(label):
            frames = np.concatenate([np.arange(*span) for span in self.spans])
            y, owner = np.concatenate(y), np.repeat(owner, [*map(len, y)])
        y = np.array(y)
        at = np.flatnonzero(y != NO_LABEL)
        if not len(at):
            raise Unmeasurable(f"Nothing has a class of {label}.")
        if frames is not None:
            noise = keyed_generator(seed, "frames", label, len(at))
            drawn = torch.randperm(len(at), generator=noise)[:most]
            at = np.sort(at[drawn.numpy()])
        owners = [self.recordings[i] for i in owner[at]]
        kept, unit = np.unique(owners, return_inverse=True)
        found = {}
        for name in names:
            if frames is None:
                x = self.means[name][at]
            else:
                x = self.x[name][torch.from_numpy(frames[at])].numpy()
            x = Rows([StoredArray(x, [0, len(at)])])
            found[name] = Examples(x, y[at], unit, kept.tolist())
        return found


def probe(sides, label, classes, names, settings, hidden, folder):
    """Solves probes of a label, linear or of one hidden layer, and controls.

    Strengths are chosen on the validation part; probes and controls are then
    solved on training and validation part, and tested.

    Arguments
    ---------
    sides : dict of str to Side
        "train", "valid" and "test".
    label, classes, names : str, int, list of str
        What is probed for, how many classes it has, and of what.
    settings : Settings
        See `speechbrain_sim.analysis.half_settings`.
    hidden, folder : int, Path
        Units of the hidden layer, or 0; where what is solved is kept.

    Returns
    -------
    scores, outcomes, chance : (dict, dict, dict of str to numpy.ndarray)
        See `speechbrain_sim.analysis.probes.score_probes` and `by_chance`.
    """
    rows = dict.fromkeys(sides, settings.frame_rows)
    rows["test"] = settings.test_rows
    known, valid, test = (
        sides[part].examples(label, names, rows[part], settings.seed)
        for part in ("train", "valid", "test")
    )
    if not sides["test"].of_frames(label):
        check_classes(known, test, label)
    units = {n: {True: moments(x.x.split(PIECE))} for n, x in known.items()}
    folder = Path(folder, f"{label}_{hidden}")
    passes = settings.hidden_passes if hidden else settings.passes
    options = classes, True, hidden, passes, settings.device
    solver = ProbeSolver(*options, folder)
    choosing = known, valid, units, list(settings.strengths)
    choices, chosen = solver.choose(*choosing)
    both = {name: x.join(valid[name]) for name, x in known.items()}
    testing = both, test, units, choices, settings.controls
    _, tested, converged = solver.test(*testing)
    notes = {n: {"converged": converged[n]} for n in names}
    train_y = next(iter(both.values())).y
    scored = score_probes(chosen, valid, tested, test, train_y, 1, notes)
    chance = {n: by_chance(tested[n][0].numpy(), test[n]) for n in names}
    return (*scored, chance)


def check_classes(known, test, label):
    """Raises an Unmeasurable for classes of recordings that training lacks."""
    known, test = (next(iter(part.values())).y for part in (known, test))
    if lacking := np.setdiff1d(test, known).size:
        raise Unmeasurable(
            f"The test part has {lacking} classes of {label} that the training "
            f"part lacks: it is divided by {label}, and no probe can read it."
        )


def by_chance(predicted, test):
    """Counts what is right of predictions that do not depend on the labels.

    Of each example the share of all predictions that are of its class, as in
    Cohen's kappa; summed for each recording. So a class that happens to be
    frequent in the test part is no evidence, for a half or against it: a
    constant prediction is at chance, and what tells classes apart is above it.

    Example
    -------
    >>> y, unit = np.array([0, 0, 0, 1]), np.arange(4)
    >>> test = Examples(None, y, unit, [*"abcd"])
    >>> by_chance(np.array([0, 0, 0, 0]), test)
    array([1., 1., 1., 0.])
    >>> by_chance(y, test)
    array([0.75, 0.75, 0.75, 0.25])
    """
    size = 1 + max(np.max(predicted), test.y.max())
    share = np.bincount(predicted, minlength=size) / len(predicted)
    return np.bincount(test.utterance, weights=share[test.y])


def survives(half, whole, total):
    """Computes how much of what is read of h is read of a half.

    Σ half / Σ whole, and its interval by drawing recordings: for both alike, so
    it is paired. 0: the half is at chance, 1: as good as h.

    Arguments
    ---------
    half, whole : numpy.ndarray
        What probes of the half, and of h, get right above chance, of each
        recording, (recordings,).
    total : numpy.ndarray
        Examples, (recordings,).

    Returns
    -------
    dict
        `value` and `interval`; a `gap` where h itself is at chance.

    Example
    -------
    >>> half, whole = np.array([1.0, 3.0]), np.array([6.0, 6.0])
    >>> survives(half, whole, np.full(2, 10))["value"]
    0.333...
    """
    at = np.arange(len(total))
    if over_recordings(whole, total, at)["interval"][0] <= 0:
        return {"gap": "h itself is at chance: nothing can be kept or lost."}
    return over_recordings(half, whole, at)


def compare_halves(scores, outcomes, chance):
    """Adds to the scores of `probe` what they prove, beside chance and h.

    To each its own `chance`; `above`, the accuracy above it, with its interval; `at_chance`,
    whether that interval reaches 0; and to each half its `leakage`, from
    `survives`.
    """
    total = outcomes["total"]
    at = np.arange(len(total))
    above = {n: outcomes[n] - chance[n] for n in scores}
    for name, score in scores.items():
        score["chance"] = float(chance[name].sum() / total.sum())
        score["above"] = over_recordings(above[name], total, at)
        score["at_chance"] = score["above"]["interval"][0] <= 0
        if name != WHOLE:
            score["leakage"] = survives(above[name], above[WHOLE], total)
    return scores
