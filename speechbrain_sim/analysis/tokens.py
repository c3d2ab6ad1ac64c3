"""Phones, each spoken once, and which of them ABX compares."""

from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from speechbrain_sim.analysis.intervals import Unmeasurable
from speechbrain_sim.data.phones import SILENCES, name_phones
from speechbrain_sim.data.tables import read_manifest
from speechbrain_sim.randomness import keyed_generator

#: a token is a phone between the same two neighbours, or between any
CONTEXTS = WITHIN, ANY = "within", "any"
#: names that are no phones; 0 is the silence of lists without names
NO_PHONES = {*SILENCES, "spn", "0"}


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

    x and a are of one phone, b of all others of the same context; a and b are
    of one speaker, x of the same or of another.
    """

    x: np.ndarray
    a: np.ndarray
    b: np.ndarray


def find_tokens(labels, speaker, utterance, context=WITHIN):
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
    >>> [(*t[:2], *t[4:]) for t in find_tokens(labels, "7", "7-1")]
    [('AE', 'K T', 1, 6)]
    >>> [token.phone for token in find_tokens(labels, "7", "7-1", "any")]
    ['K', 'AE', 'T']
    """
    spans, stop, tokens = [("", 0, 0)], 0, []
    for phone, run in groupby(labels):
        start, stop = stop, stop + len(list(run))
        phone = "" if phone.lower() in NO_PHONES else phone
        spans.append((phone, start, stop))
    spans.append(("", stop, stop))
    triples = zip(spans, spans[1:], spans[2:], strict=False)
    for (before, left, _), (phone, *alone), (after, _, right) in triples:
        if phone and context == ANY:
            tokens.append(Token(phone, "", speaker, utterance, *alone))
        elif before and phone and after:
            of = phone, f"{before} {after}", speaker, utterance
            tokens.append(Token(*of, left, right))
    return tokens


def read_tokens(
    manifest, label="phones", context=WITHIN, count=200, seed=0, names=None
):
    """Reads the phones of recordings, of as few speakers as possible.

    Arguments
    ---------
    manifest, label : str or Path, str
        A csv from `speechbrain_sim.data`; its column with a label per 10 ms.
    context : str
        See `find_tokens`.
    count, seed : int
        How many recordings at most; the seed draws the order of speakers.
    names : dict of str to str, optional
        What labels are called; by default as a list beside the manifest does.

    Returns
    -------
    list of Token

    Raises
    ------
    Unmeasurable
        If there is no manifest, or it has no such column, phones or speakers.
    """
    if not Path(manifest).exists():
        raise Unmeasurable(f"There is no {manifest}: give another --abx_csv.")
    rows, speakers = read_manifest(manifest), {}
    for name, row in rows.items():
        if row.get(label):
            speaker = row.get("speaker") or row.get("spk_id") or ""
            speakers.setdefault(speaker, []).append(name)
    if not speakers or "" in speakers:
        lacks = "speaker" if speakers else label
        raise Unmeasurable(f"{Path(manifest).name} has no column '{lacks}'.")
    generator, every = keyed_generator(seed, "abx recordings"), [*speakers]
    order = torch.randperm(len(every), generator=generator).tolist()
    chosen = [(every[i], n) for i in order for n in speakers[every[i]]][:count]
    labels = {name: rows[name][label].split() for _, name in chosen}
    classes, tokens = sorted(set().union(*labels.values())), []
    if names is None:
        names = name_phones(label, classes, Path(manifest).parent)
        names = dict(zip(classes, names, strict=True))
    for speaker, name in chosen:
        phones = [names[number] for number in labels[name]]
        tokens += find_tokens(phones, speaker, name, context)
    if not tokens:
        raise Unmeasurable(f"{Path(manifest).name} has no {label} to compare.")
    return tokens


def _draw(items, count, *key):
    """Draws some of a list; all of a short one."""
    order = torch.randperm(len(items), generator=keyed_generator(*key))
    return [items[i] for i in sorted(order[:count].tolist())]


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
    groups, people, blocks = {}, {}, []
    for index, token in enumerate(tokens):
        same = groups.setdefault((token.context, token.speaker), {})
        same.setdefault(token.phone, []).append(index)
    for (context, speaker), phones in groups.items():
        for phone, found in phones.items():
            key = seed, "abx tokens", context, speaker, phone
            phones[phone] = np.array(_draw(found, group, *key))
            people.setdefault((context, phone), []).append(speaker)
    for (context, speaker), phones in groups.items():
        for phone, a in phones.items() if len(phones) > 1 else ():
            b = np.concatenate([phones[n] for n in phones if n != phone])
            others = [speaker] * (len(a) > 1)
            if across:
                others = [n for n in people[context, phone] if n != speaker]
                key = seed, "abx speakers", context, speaker, phone
                others = _draw(others, speakers, *key)
            found = (groups[context, other][phone] for other in others)
            blocks += [Block(x, a, b) for x in found]
    return blocks
