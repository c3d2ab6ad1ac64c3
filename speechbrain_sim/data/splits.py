"""Manifests -> parts that share no speaker, or no text: what a claim needs.

A label is tested on speakers that training lacks; the speaker itself on
utterances that it lacks, and on texts that it lacks where texts repeat.
"""

import shutil
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from speechbrain_sim.data.manifests import hash_split, write_manifests
from speechbrain_sim.data.phones import NAMES
from speechbrain_sim.data.tables import ROOT, manifest_rows
from speechbrain_sim.data.targets import TEXTS, normalise

SPEAKER = "speaker"
#: "apart" divides a corpus anew if its own parts share what they must not
SPLITS = APART, PUBLISHED = "apart", "published"
SHARES = {"valid": 0.1, "test": 0.2}
UNNAMED = "neither speakers nor texts are named"
#: what may lie beside manifests, see `speechbrain_sim.data.words`
SPANS = "words.csv"
#: columns that `write_manifests` fills
_FILLED = "duration", "sample_rate", "num_samples"


class Division(NamedTuple):
    """Part to manifest; and how they were divided, and what they share."""

    manifests: dict
    sentence: str


def divide(
    manifests,
    data_folder,
    folder,
    label=None,
    split=APART,
    text=None,
    seed=1234,
):
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
    seed : int
        Of the division.

    Returns
    -------
    Division

    Raises
    ------
    ValueError
        For fewer than three speakers (of the label "speaker": than two), a
        class that training lacks, or an utterance that is on two sides.
    """
    if split not in SPLITS:
        raise ValueError(f"split is {split!r}, not one of {SPLITS}.")
    rows = {}
    for part, path in manifests.items():
        for _, row in manifest_rows(path):
            rows[part, row["ID"]] = row
    sides = {key: key[0] for key in rows}
    how = "The corpus' own parts"
    texts = _texts(rows, text)
    speakers = {key: row.get(SPEAKER, "") for key, row in rows.items()}
    test = speakers, texts
    if label is not None and label not in next(iter(rows.values())):
        has = ", ".join(next(iter(rows.values())))
        place = manifests["train"]
        raise ValueError(f"{place} has no column '{label}': it has {has}.")
    if not (split == PUBLISHED or _is_apart(sides, label, *test)):
        how, sides = _divide(rows, label, *test, seed)
        manifests = _write(rows, sides, manifests, data_folder, folder)
    _check_classes(rows, sides, label, manifests)
    return Division(manifests, f"{how}: {_shared(sides, *test)}")


def _texts(rows, column):
    """Utterance to text; {} if there is no such column."""
    columns = next(iter(rows.values()))
    if column is None:
        column = next((name for name in TEXTS if name in columns), None)
    if column is None:
        return {}
    return {key: normalise(row[column]) for key, row in rows.items()}


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


def _divide(rows, label, speakers, texts, seed):
    """How, and utterance to part, by speaker, by text, or by utterance."""
    names = sorted({*speakers.values()})
    least = 2 if label == SPEAKER else 3
    if len(names) < least:
        raise ValueError(
            f"There are {len(names)} speakers ({', '.join(names)}), and a test of "
            f"{label or 'texts'} takes {least}: add some, or --split published."
        )
    if label != SPEAKER:
        classes = {name: set() for name in names}
        for key, row in rows.items():
            classes[speakers[key]].add(row[label] if label else "")
        group = {n: c.pop() if len(c) == 1 else "" for n, c in classes.items()}
        enough = min(Counter(group.values()).values()) >= least
        parts = hash_split(names, SHARES, seed, group.get if enough else None)
        return "Divided by speaker", {k: parts[speakers[k]] for k in rows}
    ids = {f"{part}/{name}": (part, name) for part, name in rows}
    if len({*texts.values()}) == len(texts):  # none repeats, or none is known
        parts = hash_split(ids, SHARES, seed, lambda name: speakers[ids[name]])
        return "Divided by utterance", {ids[n]: p for n, p in parts.items()}
    parts = hash_split({*texts.values()}, {"test": SHARES["test"]}, seed)
    sides = {key: parts[texts[key]] for key in rows}
    rest = [name for name, key in ids.items() if sides[key] == "train"]
    shares = {"valid": SHARES["valid"]}
    parts = hash_split(rest, shares, seed, lambda name: speakers[ids[name]])
    return "Divided by text", sides | {ids[n]: p for n, p in parts.items()}


def _write(rows, sides, manifests, data_folder, folder):
    """Writes manifests of other parts; returns their paths."""
    splits = {part: [] for part in ("train", "valid", "test")}
    for key, row in rows.items():
        row = {k: v for k, v in row.items() if k not in _FILLED}
        row["wav"] = ROOT.sub(lambda _: str(data_folder), row["wav"])
        splits[sides[key]].append(row)
    names = Counter(name for _, name in rows)
    if (twice := names.most_common(1)[0])[1] > 1:
        raise ValueError(
            f"{twice[0]} is in several parts of {manifests}, so that they cannot "
            f"be divided anew: rename it, or --split published."
        )
    if empty := [part for part, rows in splits.items() if not rows]:
        raise ValueError(f"There are too few utterances for a part {empty[0]}.")
    write_manifests(splits, folder, data_folder, min_samples=1)
    for name in (NAMES, SPANS):
        source = Path(next(iter(manifests.values()))).with_name(name)
        if source.exists():
            shutil.copyfile(source, Path(folder, name))
    return {part: str(Path(folder, f"{part}.csv")) for part in splits}


def _check_classes(rows, sides, label, manifests):
    """Raises for a class without examples in the training part."""
    if label is None:
        return
    classes = {side: {} for side in ("train", "other")}
    for key, row in rows.items():
        side = "train" if sides[key] == "train" else "other"
        classes[side].setdefault(row[label], key)
    lacking = classes["other"].keys() - classes["train"].keys() - {""}
    if lacking:
        name = min(lacking)
        raise ValueError(
            f"{label} {name!r} (such as {classes['other'][name][1]}) is nowhere "
            f"in the training part, {manifests['train']}: leave the class out, "
            f"or add recordings of it."
        )


def _shared(sides, speakers, texts):
    """States the sizes of all parts, and what the test part shares."""
    parts = Counter(sides.values())
    order = sorted(parts, key=["train", "valid", "test"].index)
    sizes = [f"{part} {parts[part]}" for part in order]
    shared = []
    for what, values in ((SPEAKER, speakers), ("text", texts)):
        tested = {values[key] for key in values if sides[key] == "test"} - {""}
        common = len(_common(sides, values) - {""})
        if tested:
            some = f"{common} of {len(tested)} test {what}s"
            shared.append(some if common else f"no test {what}")
    stated = f"{' and '.join(shared)} in another part" if shared else UNNAMED
    return f"{', '.join(sizes)} utterances; {stated}."
