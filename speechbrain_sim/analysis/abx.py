"""ABX: how often a token of one phone is nearer than another of the same.

    error(a, b) = P(d(x, a) > d(x, b)) + P(d(x, a) = d(x, b)) / 2,

x and a are tokens of one phone, b is one of another. Within speakers, all three
are of one person; across speakers, a and b are, and x is of someone else. The
distance is the mean angle between frames along the best alignment. Nothing is
trained: 0 % is perfect, 50 % chance.

References: Schatz et al., Evaluating speech features with the minimal-pair ABX
task (2013); Kahn et al., Libri-Light (2020), https://arxiv.org/abs/1912.07875,
and the ZeroSpeech challenge, whose conditions and averages are used here.
"""

import math
import shutil
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from scipy.sparse import csr_matrix
from torch.nn.functional import normalize
from tqdm import tqdm

from speechbrain_sim.activations import LABELS, LOG_VAR
from speechbrain_sim.analysis.intervals import Unmeasurable, middle
from speechbrain_sim.analysis.study import Tool
from speechbrain_sim.data.phones import SILENCES, name_phones
from speechbrain_sim.data.tables import read_manifest
from speechbrain_sim.encoders.base import Latent
from speechbrain_sim.extraction import encode_manifest
from speechbrain_sim.randomness import keyed_generator
from speechbrain_sim.report.page import Gap, Section, Table
from speechbrain_sim.report.tables import NOT_MEASURED, with_interval

#: of a token: a phone between the same two neighbours, or between any
CONTEXTS = SAME, ANY = "within", "any"
#: who speaks, and how many people an interval needs
KINDS = {"within": 2, "across": 3}
#: names that are no phones; 0 is the silence of lists without names
NO_PHONES = {*SILENCES, "spn", "0"}
#: draws of a bootstrap, so many at once; values compared at once
RESAMPLES, DRAWS, CHUNK = 1000, 100, 2**23


class Token(NamedTuple):
    """A phone, spoken once: `start` and `stop` count labels of 10 ms.

    Its `context` has to be the same of a, b and x; `utterance` is an ID.
    """

    phone: str
    context: str
    speaker: str
    utterance: str
    start: int
    stop: int


class Block(NamedTuple):
    """Triplets of all x with all a and b: indices of tokens.

    x and a are of one `phone`, each b of one of the `phones`; a and b are of a
    `speaker`, x is of the `other`, who may be the same.
    """

    phone: str
    speaker: str
    other: str
    x: np.ndarray
    a: np.ndarray
    b: np.ndarray
    phones: np.ndarray


class Cells(NamedTuple):
    """Errors of triplets of two phones, two speakers and a context.

    `names` are phone of x and a, phone of b, speaker of a and b, speaker of x,
    (cells, 4); `errors` means over triplets, (cells,).
    """

    names: np.ndarray
    errors: np.ndarray


def find_tokens(labels, speaker, utterance, context=SAME):
    """Finds the phones of an utterance.

    Arguments
    ---------
    labels : list of str
        The name of a phone per 10 ms; see `NO_PHONES`.
    speaker, utterance : str
        Who speaks; ID of the utterance.
    context : str
        "within": a token is a triphone, from the beginning of the phone before
        to the end of the phone after, and compared with those of the same
        neighbours; beside a silence there is none. "any": a token is the phone
        alone, and compared with all.

    Returns
    -------
    list of Token

    Example
    -------
    >>> labels = "SIL K K AE T T SIL".split()
    >>> find_tokens(labels, "7", "7-1")
    [Token(phone='AE', context='K T', speaker='7', utterance='7-1', start=1, stop=6)]
    >>> [token.phone for token in find_tokens(labels, "7", "7-1", "any")]
    ['K', 'AE', 'T']
    """
    spans, stop = [("", 0, 0)], 0
    for phone, run in groupby(labels):
        start, stop = stop, stop + len(list(run))
        phone = "" if phone.lower() in NO_PHONES else phone
        spans.append((phone, start, stop))
    spans.append(("", stop, stop))
    tokens = []
    for before, (phone, *span), after in zip(
        spans, spans[1:], spans[2:], strict=False
    ):
        around = ""
        if context == SAME:
            around, span = f"{before[0]} {after[0]}", (before[1], after[2])
        if phone and (context == ANY or before[0] and after[0]):
            tokens.append(Token(phone, around, speaker, utterance, *span))
    return tokens


def read_tokens(manifest, label="phones", context=SAME, recordings=200, seed=0):
    """Reads the phones of recordings, of as few speakers as possible.

    Arguments
    ---------
    manifest, label : str or Path, str
        A csv from `speechbrain_sim.data`; its column with a label per 10 ms.
    context : str
        See `find_tokens`.
    recordings, seed : int
        How many at most, of speakers in an order that is drawn by the seed.

    Returns
    -------
    list of Token

    Raises
    ------
    Unmeasurable
        If the manifest has no such column, or names no speakers.
    """
    rows, speakers = read_manifest(manifest), {}
    for name, row in rows.items():
        if row.get(label):
            speaker = row.get("speaker") or row.get("spk_id") or ""
            speakers.setdefault(speaker, []).append(name)
    if not speakers or "" in speakers:
        lacks = "speaker" if speakers else label
        raise Unmeasurable(f"{Path(manifest).name} has no column '{lacks}'.")
    names = sorted(speakers)
    names = _draw(names, len(names), seed, "abx recordings", shuffle=True)
    chosen = [n for speaker in names for n in speakers[speaker]][:recordings]
    classes = sorted({c for name in chosen for c in rows[name][label].split()})
    named = name_phones(label, classes, Path(manifest).parent)
    phones, tokens = dict(zip(classes, named, strict=True)), []
    for name in chosen:
        row = rows[name]
        labels = [phones[c] for c in row[label].split()]
        speaker = row.get("speaker") or row["spk_id"]
        tokens += find_tokens(labels, speaker, name, context)
    return tokens


def _draw(items, count, *key, shuffle=False):
    """Draws some of a list, in their order unless they are shuffled."""
    if len(items) <= count and not shuffle:
        return items
    order = torch.randperm(len(items), generator=keyed_generator(*key))
    order = order[:count].tolist()
    return [items[i] for i in (order if shuffle else sorted(order))]


def draw_blocks(tokens, across, group=10, speakers=5, seed=0):
    """Chooses what is compared.

    Arguments
    ---------
    tokens : list of Token
        From `read_tokens`.
    across : bool
        Whether x is of another speaker; else of the same, and another token.
    group, speakers, seed : int
        How many tokens of each phone, context and speaker count, and how many
        speakers of x for each phone, context and speaker of a and b; they are
        drawn by the seed.

    Returns
    -------
    list of Block
    """
    groups, people = {}, {}
    for index, token in enumerate(tokens):
        same = groups.setdefault((token.context, token.speaker), {})
        same.setdefault(token.phone, []).append(index)
    for (context, speaker), phones in groups.items():
        for phone, found in phones.items():
            key = seed, "abx tokens", context, speaker, phone
            phones[phone] = np.array(_draw(found, group, *key))
            people.setdefault((context, phone), []).append(speaker)
    blocks = []
    for (context, speaker), phones in groups.items():
        every = np.concatenate([*phones.values()])
        of = np.repeat([*phones], [len(found) for found in phones.values()])
        for phone, a in phones.items():
            others = [speaker] if len(a) > 1 else []
            if across:
                others = [n for n in people[context, phone] if n != speaker]
                key = seed, "abx speakers", context, speaker, phone
                others = _draw(others, speakers, *key)
            b = every[of != phone], of[of != phone]
            for other in others if len(b[0]) else ():
                x = groups[context, other][phone]
                blocks.append(Block(phone, speaker, other, x, a, *b))
    return blocks


def dtw(distances, rows, columns):
    """Aligns frames: the mean distance along the shortest path.

    A path goes on by one frame of either side, or of both; among equals, that
    of both first. Its sum of distances is divided by its number of steps.

    Arguments
    ---------
    distances : torch.Tensor
        Of frames, padded, (pairs, rows, columns).
    rows, columns : torch.Tensor
        Frames of the two sides of each pair, (pairs,), int64.

    Returns
    -------
    torch.Tensor
        (pairs,)

    Example
    -------
    >>> distances = torch.tensor([[[0.0, 0.5, 0.5], [0.5, 0.0, 0.3]]])
    >>> dtw(distances, torch.tensor([2]), torch.tensor([3]))
    tensor([0.1000])
    """
    pairs, n, m = distances.shape
    distances = distances.movedim(0, -1).contiguous()
    total = distances.new_full((n + 1, m + 1, pairs), math.inf)
    total[0, 0] = 0
    steps = torch.zeros_like(total)
    for i in range(n):
        for j in range(m):
            both, left, up = total[i, j], total[i + 1, j], total[i, j + 1]
            least = torch.minimum(torch.minimum(both, left), up)
            total[i + 1, j + 1] = distances[i, j] + least
            one = torch.where(left <= up, steps[i + 1, j], steps[i, j + 1])
            before = torch.where(both <= least, steps[i, j], one)
            steps[i + 1, j + 1] = before + 1
    at = rows, columns, torch.arange(pairs, device=rows.device)
    return total[at] / steps[at]


def measure_distances(frames, first, length, pairs):
    """Measures how far tokens are apart, by angles: 0 to 1.

    Arguments
    ---------
    frames : torch.Tensor
        (frames, channels); one that is zero counts as all channels alike.
    first, length : torch.Tensor
        The first frame of each token, and how many it has, (tokens,), int64.
    pairs : torch.Tensor
        Indices of tokens, (pairs, 2).

    Returns
    -------
    torch.Tensor
        (pairs,), float32.
    """
    silent = ~frames.any(-1, keepdim=True)
    frames = normalize(frames + silent.to(frames), dim=-1)
    longest, order = length[pairs].amax(1).sort(descending=True)
    result = frames.new_empty(len(pairs))
    done, bar = 0, tqdm(total=len(pairs), desc="ABX", unit="pair", disable=None)
    while done < len(pairs):
        most = int(longest[done])
        count = max(1, CHUNK // (most * max(most, frames.shape[1])))
        now = order[done : done + count]
        index = torch.arange(most, device=first.device)
        x, y = (
            frames[(first[token, None] + index).clamp(max=len(frames) - 1)]
            for token in pairs[now].T
        )
        angles = (x @ y.mT).clamp(-1, 1).acos() / math.pi
        result[now] = dtw(angles, *length[pairs[now]].T)
        done += len(now)
        bar.update(len(now))
    bar.close()
    return result


def score_blocks(blocks, distance):
    """Scores triplets.

    Arguments
    ---------
    blocks : list of Block
        From `draw_blocks`.
    distance : callable
        Indices of tokens, (pairs, 2) -> distances, (pairs,).

    Returns
    -------
    Cells
    """
    grids = [np.meshgrid(b.x, [*b.a, *b.b], indexing="ij") for b in blocks]
    pairs = np.concatenate([np.stack(g, -1).reshape(-1, 2) for g in grids])
    ends = np.cumsum([g[0].size for g in grids])[:-1]
    names, errors = [], []
    found = zip(blocks, np.split(distance(pairs), ends), strict=True)
    for block, values in found:
        values = values.reshape(len(block.x), -1)
        to_a, to_b = np.split(values, [len(block.a)], axis=1)
        to_a, to_b = to_a[:, :, None], to_b[:, None]
        wrong = (to_a > to_b) + (to_a == to_b) / 2  # (x, a, b)
        wrong = wrong[block.x[:, None] != block.a].mean(0)
        phones, of = np.unique(block.phones, return_inverse=True)
        errors.append(np.bincount(of, wrong) / np.bincount(of))
        rest = block.speaker, block.other
        names += [(block.phone, phone, *rest) for phone in phones]
    return Cells(np.array(names), np.concatenate(errors))


def average(cells, resamples=RESAMPLES, seed=0):
    """Averages cells as ZeroSpeech does, with an interval over speakers.

    The mean over contexts and speakers of x, then over speakers of a and b,
    then over ordered pairs of phones. The interval is a percentile bootstrap
    that draws speakers; a cell counts as often as both of its speakers were
    drawn together. Phones and sentences are fixed in it.

    Arguments
    ---------
    cells : Cells
        From `score_blocks`.
    resamples, seed : int
        Number of draws, and their seed.

    Returns
    -------
    value, (low, high) : (float, (float, float))
    """
    names, errors = cells
    groups, at = np.unique(names[:, :3], axis=0, return_inverse=True)
    pairs, pair = np.unique(groups[:, :2], axis=0, return_inverse=True)
    people, who = np.unique(names[:, 2:], return_inverse=True)
    other = who.reshape(-1, 2)[:, 1]
    owner = np.searchsorted(people, groups[:, 2])
    shape, ones = (len(groups), len(people)), np.ones_like(errors)
    total, count = (
        csr_matrix((x, (at.ravel(), other)), shape) for x in (errors, ones)
    )
    where = pair.ravel(), np.arange(len(groups))
    over = csr_matrix((np.ones(len(groups)), where))

    def means(weights):
        """Means of draws, weights of each speaker, (people, draws)."""
        below = count @ weights
        of_group = total @ weights / np.where(below > 0, below, 1)
        counts = weights[owner] * (below > 0)
        below = over @ counts
        of_pair = over @ (counts * of_group) / np.where(below > 0, below, 1)
        counted = (below > 0).sum(0)
        return of_pair.sum(0) / np.where(counted > 0, counted, np.nan)

    n, rng = len(people), np.random.default_rng(seed)
    often = rng.multinomial(n, np.full(n, 1 / n), resamples).T.astype(float)
    parts = np.array_split(often, -(-resamples // DRAWS), axis=1)
    low, high = middle(np.concatenate([means(part) for part in parts]))
    return float(means(np.ones((n, 1)))[0]), (float(low), float(high))


def abx(features, tokens, group=10, speakers=5, seed=0):
    """Measures the ABX error of phones, within and across speakers.

    Arguments
    ---------
    features : dict of str to torch.Tensor
        Of each utterance (labels, channels): the frame of each 10 ms.
    tokens : list of Token
        From `read_tokens` or `find_tokens`.
    group, speakers, seed : int
        See `draw_blocks`.

    Returns
    -------
    dict
        "within" and "across": `value` and `interval` (see `average`), and the
        numbers of `cells`, `pairs` of phones, `tokens` and `speakers`; or a
        `gap`, the reason why there is no number.

    Example
    -------
    >>> said = {"1": "A B A B", "2": "B A B A"}
    >>> tokens = [
    ...     token
    ...     for who, labels in said.items()
    ...     for token in find_tokens(labels.split(), who, who, "any")
    ... ]
    >>> names = dict(zip("AB", torch.eye(2)))
    >>> features = {
    ...     who: torch.stack([names[phone] for phone in labels.split()])
    ...     for who, labels in said.items()
    ... }
    >>> found = abx(features, tokens)
    >>> found["within"]["value"], found["across"]["gap"]
    (0.0, '2 speakers are too few for an interval; it needs 3.')
    """
    offset, places = 0, {}
    for name, rows in features.items():
        places[name] = offset
        offset += len(rows)
    for token in tokens:
        if token.stop > len(features[token.utterance]):
            raise ValueError(
                f"{token.utterance} has {len(features[token.utterance])} "
                f"frames, but labels of {token.stop}: give one per 10 ms."
            )
    frames = torch.cat([*features.values()]).float()
    first = [places[token.utterance] + token.start for token in tokens]
    length = [token.stop - token.start for token in tokens]
    spans = [torch.tensor(x, device=frames.device) for x in (first, length)]

    def distance(pairs):
        pairs = torch.from_numpy(pairs).to(frames.device)
        return measure_distances(frames, *spans, pairs).cpu().numpy()

    results = {}
    for kind, needed in KINDS.items():
        blocks = draw_blocks(tokens, kind == "across", group, speakers, seed)
        people = {name for b in blocks for name in (b.speaker, b.other)}
        if len(people) < needed:
            gap = f"{len(people)} speakers are too few for an interval"
            results[kind] = {"gap": f"{gap}; it needs {needed}."}
            continue
        cells = score_blocks(blocks, distance)
        value, interval = average(cells)
        used = np.concatenate([i for b in blocks for i in (b.x, b.a, b.b)])
        results[kind] = {
            "value": value,
            "interval": interval,
            "cells": len(cells.errors),
            "pairs": len(np.unique(cells.names[:, :2], axis=0)),
            "tokens": len(np.unique(used)),
            "speakers": len(people),
        }
    return results


def measure_abx(
    encoder,
    description,
    manifest,
    data_folder,
    folder,
    label="phones",
    context=SAME,
    recordings=200,
    group=10,
    speakers=5,
    seed=0,
    device="cpu",
):
    """Measures every layer of an encoder, by means and by samples.

    Arguments
    ---------
    encoder, description : Encoder, dict
        From `load_encoder`.
    manifest, data_folder : str or Path
        A csv from `speechbrain_sim.data`, and its `$data_root`.
    folder : str or Path
        Holds the activations until all is measured.
    label, context, recordings, group, speakers, seed :
        See `read_tokens` and `draw_blocks`.
    device : str
        Of the encoder.

    Returns
    -------
    dict
        Layer -> "means" and, where it has a posterior, "samples" of it ->
        what `abx` returns. Of each layer a `gap` if the corpus has no phones
        or no speakers.
    """
    try:
        tokens = read_tokens(manifest, label, context, recordings, seed)
    except Unmeasurable as error:
        return {layer: {"gap": str(error)} for layer in encoder.layer_names}
    only = {token.utterance for token in tokens}
    how = {"rows": LABELS, "log_var": True, "device": device, "only": only}
    places = manifest, data_folder, folder
    store, results = encode_manifest(encoder, description, *places, **how), {}
    for layer in store.layers:
        codes = {"means": store[layer][:].to(device)}
        if layer + LOG_VAR in store.arrays:
            log_var = store[layer + LOG_VAR][:].to(device)
            noise = keyed_generator(seed, "abx samples", layer, device=device)
            latent = Latent(codes["means"], log_var, None, None)
            codes["samples"] = latent.draw(noise)
        counts = np.bincount(store[layer].utterance).tolist()
        found = results[layer] = {}
        for name, x in codes.items():
            features = dict(zip(store.ids, x.split(counts), strict=True))
            found[name] = abx(features, tokens, group, speakers, seed)
    shutil.rmtree(folder)
    return results


class ABX(Tool):
    """Section of the ABX errors, which the study measures of every system."""

    key = "abx"
    title = "How phones lie apart"
    sentence = "Lower is better: 0 % is perfect, 50 % is chance."
    inside = False

    def items(self, found, study):
        """Returns the table of means and samples, and a gap for each reason."""
        rows, gaps, counted = [], {}, {}
        for name, _, _, numbers in found.rows():
            rows.append({"": name})
            for codes in ("means", "samples"):
                scores = numbers.get(codes) or dict.fromkeys(KINDS)
                for kind, score in scores.items():
                    column = f"{kind} speakers, {codes}"
                    if score and "gap" in score:
                        gaps[kind] = Gap(f"{kind} speakers", score["gap"])
                        rows[-1][column] = NOT_MEASURED
                        continue
                    counted[kind] = score or counted.get(kind)
                    rows[-1][column] = with_interval(score, 100, 1)
        of = "; ".join(
            f"{kind} speakers, {n['cells']} cells of {n['pairs']} ordered pairs "
            f"of phones, {n['tokens']} tokens, {n['speakers']} speakers"
            for kind, n in counted.items()
        )
        caption = (
            "Error in percent: how often a token is nearer to one of another "
            "phone than to one of its own. Frames each 10 ms, as they are, by "
            "angle, along the best alignment. Means of posteriors, and samples "
            f"of the layer itself. Of all systems alike: {of}. 95 % intervals "
            "over speakers (bootstrap), for this encoder and these sentences."
        )
        return [Table.of("ABX error (%)", caption, rows), *gaps.values()]

    def section(self, results, study):
        """Returns the section, in which a corpus without phones is one gap."""
        found, gaps = results.split()
        items = self.items(found, study) if found else []
        reasons = dict.fromkeys(gap.reason for gap in gaps)
        items += [Gap("No ABX", reason) for reason in reasons]
        return Section(self.key, self.title, self.sentence, items)
