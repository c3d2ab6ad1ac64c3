"""Manifests -> parts that share no speaker, or no text: what a claim needs.

A label is tested on speakers that training lacks; the speaker itself on
utterances that it lacks, and on texts that it lacks where texts repeat.
"""

import shutil
from collections import Counter, defaultdict
from pathlib import Path
from typing import NamedTuple

from speechbrain_sim.data.manifests import hash_split, write_manifests
from speechbrain_sim.data.phones import NAMES
from speechbrain_sim.data.tables import ROOT, manifest_rows
from speechbrain_sim.data.targets import normalise, text_column

SPEAKER = "speaker"
#: "apart" divides a corpus anew if its own parts share what they must not
SPLITS = APART, PUBLISHED = "apart", "published"
SHARES, SEED = {"valid": 0.1, "test": 0.2}, 1234
UNNAMED = "neither speakers nor texts are named"
#: what may lie beside manifests, see `speechbrain_sim.data.words`
SPANS = "words.csv"
#: columns that `write_manifests` fills
_FILLED = "duration", "sample_rate", "num_samples"


class Division(NamedTuple):
    """Part to manifest; and how they were divided, and what they share."""

    manifests: dict
    sentence: str


def divide(manifests, data_folder, folder, label=None, split=APART, text=None):
    """Divides a corpus so that the test part tests what a label needs.

    The corpus' own parts are kept if they do: if no test speaker is in the
    others, or, of the label "speaker", if no test text is, and every test
    speaker is in training. Otherwise 20 % of the speakers (of the speaker: of
    the texts, or of its utterances if none repeats) are tested on, 10 % are for
    validation. Speakers are drawn from each class of a label of theirs, such as
    their sex.

    Arguments
    ---------
    manifests : dict of str to str or Path
        Part to manifest: "train", "valid" and "test".
    data_folder, folder : str or Path
        Of the audio; and where new manifests go.
    label : str, optional
        Column of the classes; none for a transcript.
    split : str
        "apart", or "published" to keep the corpus' own parts in any case.
    text : str, optional
        Column of the text, see `speechbrain_sim.data.targets.read_targets`.

    Returns
    -------
    Division

    Raises
    ------
    ValueError
        For fewer than three speakers (of the label "speaker": than two), a
        class that training lacks, or an utterance that is on two sides.
    """
    rows = {
        (part, row["ID"]): row
        for part, path in manifests.items()
        for _, row in manifest_rows(path)
    }
    first, place = next(iter(rows.values())), manifests["train"]
    if label is not None and label not in first:
        has = ", ".join(first)
        raise ValueError(f"{place} has no column '{label}': it has {has}.")
    texts = {}
    if (column := text_column(first, text)) in first:
        texts = {key: normalise(row[column]) for key, row in rows.items()}
    speakers = {key: row.get(SPEAKER, "") for key, row in rows.items()}
    how, sides = "The corpus' own parts", {key: key[0] for key in rows}
    if split == APART and not _is_apart(sides, label, speakers, texts):
        divided = _divide_speaker if label == SPEAKER else _divide_others
        how, sides = divided(rows, label, speakers, texts)
        manifests = _write(rows, sides, manifests, data_folder, folder)
    if label is not None:
        _check_classes(rows, sides, label, place)
    return Division(manifests, f"{how}: {_shared(sides, speakers, texts)}")


def of_part(known, part):
    """Joins name -> value of all parts; a name in several has that of `part`.

    Test clips of the artificial set are named as others of its training part.

    Example
    -------
    >>> of_part({"train": {"a": 1, "b": 2}, "test": {"a": 3}}, "test")
    {'a': 3, 'b': 2}
    """
    order = sorted(known, key=lambda other: other == part)
    return {n: x for other in order for n, x in known[other].items()}


def _is_apart(sides, label, speakers, texts):
    """Whether the test part shares nothing with the others that it must not."""
    if not all(speakers.values()):  # nobody is named
        return True
    if label != SPEAKER:
        return not _common(sides, speakers)
    trained = {speakers[key] for key, side in sides.items() if side == "train"}
    tested = {speakers[key] for key, side in sides.items() if side == "test"}
    return tested <= trained and not _common(sides, texts)


def _common(sides, values):
    """Values of the test part that others have, too."""
    test = {values[key] for key in values if sides[key] == "test"}
    return test & {values[key] for key in values if sides[key] != "test"}


def _divide_others(rows, label, speakers, texts):
    """Parts of utterances, by their speakers."""
    classes = defaultdict(set)
    for key, row in rows.items():
        classes[speakers[key]].add(row[label] if label else "")
    _require(classes, 3, label or "texts")
    group = {n: c.pop() if len(c) == 1 else "" for n, c in classes.items()}
    enough = min(Counter(group.values()).values()) >= 3
    parts = hash_split(classes, SHARES, SEED, group.get if enough else None)
    return "Divided by speaker", {key: parts[speakers[key]] for key in rows}


def _divide_speaker(rows, label, speakers, texts):
    """Parts of utterances, by their texts if some repeat."""
    _require({*speakers.values()}, 2, label)
    keys = {"/".join(key): key for key in rows}
    how, shares, sides = "Divided by utterance", SHARES, {}
    if len({*texts.values()}) < len(texts):
        how, shares = "Divided by text", {"valid": SHARES["valid"]}
        parts = hash_split({*texts.values()}, {"test": SHARES["test"]}, SEED)
        sides = {key: "test" for key in rows if parts[texts[key]] == "test"}
    rest = [name for name, key in keys.items() if key not in sides]
    parts = hash_split(rest, shares, SEED, lambda name: speakers[keys[name]])
    return how, sides | {keys[name]: part for name, part in parts.items()}


def _require(speakers, least, what):
    """Raises if there are too few speakers."""
    if len(speakers) < least:
        raise ValueError(
            f"A test of {what} takes {least} speakers, and these are all: "
            f"{', '.join(sorted(speakers))}. Add some, or --split {PUBLISHED}."
        )


def _write(rows, sides, manifests, data_folder, folder):
    """Writes manifests of other parts; returns their paths."""
    (name, count), *_ = Counter(name for _, name in rows).most_common(1)
    splits = {part: [] for part in ("train", "valid", "test")}
    for key, row in rows.items():
        row = {k: v for k, v in row.items() if k not in _FILLED}
        row["wav"] = ROOT.sub(lambda _: str(data_folder), row["wav"])
        splits[sides[key]].append(row)
    if count > 1 or not all(splits.values()):
        wrong = f"{name} is in several parts" if count > 1 else "there are few"
        raise ValueError(
            f"The utterances of {', '.join(map(str, manifests.values()))} cannot "
            f"be divided anew, for {wrong}: rename or add some, or --split "
            f"{PUBLISHED}."
        )
    write_manifests(splits, folder, data_folder, min_samples=1)
    for name in (NAMES, SPANS):
        source = Path(manifests["train"]).with_name(name)
        if source.exists():
            shutil.copyfile(source, Path(folder, name))
    return {part: str(Path(folder, f"{part}.csv")) for part in splits}


def _check_classes(rows, sides, label, place):
    """Raises for a class without examples in the training part."""
    trained = {row[label] for key, row in rows.items() if sides[key] == "train"}
    for (_, name), row in rows.items():
        if row[label] and row[label] not in trained:
            raise ValueError(
                f"{label} {row[label]!r} (such as {name}) is nowhere in the "
                f"training part, {place}: leave the class out, or add "
                f"recordings of it."
            )


def _shared(sides, speakers, texts):
    """States the sizes of all parts, and what the test part shares."""
    parts, shared = Counter(sides.values()), []
    for what, values in ((SPEAKER, speakers), ("text", texts)):
        tested = {values[key] for key in values if sides[key] == "test"} - {""}
        common = len(_common(sides, values) - {""})
        if tested:
            some = f"{common} of {len(tested)} test {what}s"
            shared.append(some if common else f"no test {what}")
    sizes = [f"{part} {parts[part]}" for part in ("train", "valid", "test")]
    stated = f"{' and '.join(shared)} in another part" if shared else UNNAMED
    return f"{', '.join(sizes)} utterances; {stated}."
