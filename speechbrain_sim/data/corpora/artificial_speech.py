"""The artificial speech set of the paper -> manifests.

One speaker speaks words of three syllables, each one of b, d, g and one of a,
i, u; some words were recorded twice (take 1 and 2). The set holds whole words
(`reshuffledv2`) and single syllables cut from them (`split up data padded`);
the two are divided into train and test independently.

File names of the syllables mislead: all are named as take 1, but those of
`test` are cut from take 2. Each of the 360 test clips correlates with a
stretch of its word's take 2 above 0.9999, and with none of take 1 above 0.93.
So most test clips come from recordings of the pretraining set, see `split`.
"""

import re
from pathlib import Path

from speechbrain.utils.logger import get_logger

from speechbrain_sim.data.manifests import hash_split, write_manifests

logger = get_logger(__name__)

WORDS = "reshuffledv2"
SYLLABLES = "split up data padded"
VALID_SHARE = 0.3

_WORD = re.compile(r"((?:[bdg][aiu]){3})_[12]")
_SYLLABLE = re.compile(r"((?:[bdg][aiu]){3})_1_([123])_([bdg][aiu])")


def prepare_artificial_speech(
    data_folder,
    save_folder,
    split="published",
    min_samples=8800,
    on_bad_audio="fail",
):
    """Writes the manifests of words (pretraining) and syllables (probes).

    `pretrain.csv` and `pretrain_valid.csv` hold the words of
    `reshuffledv2/train` and `/test`, see `word_labels`. `train.csv`,
    `valid.csv` and `test.csv` hold the syllables, see `syllable_labels`:
    `valid.csv` is 30 % of the recordings of the published train folder, so
    that no recording is on two sides; `labelled.csv` is both together.

    Arguments
    ---------
    data_folder : str or Path
        The set, in its published layout.
    split : str
        "published" pretrains on all words, among them recordings that test
        syllables are cut from; how many is logged. "unheard" leaves those
        recordings out of both word manifests.
    min_samples : int
        Shortest file allowed, in samples at 16 kHz. Syllables have 8821.
    save_folder, on_bad_audio :
        See `speechbrain_sim.data.manifests.write_manifests`.

    Raises
    ------
    FileNotFoundError
        If a folder of the published layout is missing.
    ValueError
        For file names out of the scheme, and as `write_manifests`.
    """
    arguments = dict(locals())
    if split not in ("published", "unheard"):
        raise ValueError(f"split: 'published' or 'unheard', not {split!r}")
    folder = Path(data_folder)
    clips = _rows(folder, SYLLABLES, "train", syllable_labels)
    sides = hash_split({c["recording"] for c in clips}, {"valid": VALID_SHARE})
    test = _rows(folder, SYLLABLES, "test", syllable_labels)
    splits = _words(folder, test, split)
    for side in ("train", "valid"):
        splits[side] = [c for c in clips if sides[c["recording"]] == side]
    splits |= {"test": test, "labelled": clips}
    how = min_samples, on_bad_audio, arguments
    write_manifests(splits, save_folder, folder, *how)


def _words(folder, test, split):
    """The two splits of words, "unheard" without the recordings of test."""
    words = {
        "pretrain": _rows(folder, WORDS, "train", word_labels),
        "pretrain_valid": _rows(folder, WORDS, "test", word_labels),
    }
    tested = {row["recording"] for row in test}
    shared = tested & {row["recording"] for row in words["pretrain"]}
    count = sum(row["recording"] in shared for row in test)
    logger.info(
        f"{count} of {len(test)} test syllables ({len(shared)} of "
        f"{len(tested)} recordings) are cut from words to pretrain on"
    )
    for name, rows in words.items() if split == "unheard" else ():
        words[name] = [row for row in rows if row["recording"] not in tested]
        counts = len(words[name]), len(rows)
        logger.info("unheard: %s keeps %d of %d words", name, *counts)
    return words


def word_labels(name, side):
    """Returns `word, recording, consonants, vowels` of a word's file.

    Arguments
    ---------
    name : str
        File name without extension; ValueError if it is out of the scheme.
    side : str
        "train" or "test"; words are named alike on both.

    Example
    -------
    >>> word_labels("bidagu_2", "train")
    {'word': 'bidagu', 'recording': 'bidagu_2', 'consonants': 'bdg',
     'vowels': 'iau'}
    """
    match = _WORD.fullmatch(name)
    if match is None:
        raise ValueError(f"A word is named like bidagu_1.wav, not {name}")
    word = match[1]
    labels = {"word": word, "recording": name}
    return labels | {"consonants": word[0::2], "vowels": word[1::2]}


def syllable_labels(name, side):
    """Returns the labels of a syllable's file, and the recording it is from.

    Arguments
    ---------
    name : str
        File name without extension; ValueError if it is out of the scheme.
    side : str
        "train" (cut from take 1) or "test" (cut from take 2).

    Example
    -------
    >>> syllable_labels("bidagu_1_2_da", "train")
    {'syllable': 'da', 'consonant': 'd', 'vowel': 'a', 'position': '2',
     'word': 'bidagu', 'recording': 'bidagu_1'}
    >>> syllable_labels("badagu_1_3_gu", "test")["recording"]
    'badagu_2'
    """
    match = _SYLLABLE.fullmatch(name)
    if match is None:
        raise ValueError(f"A syllable is named bidagu_1_2_da.wav, not {name}")
    word, position, syllable = match.groups()
    consonant, vowel = syllable
    labels = {"syllable": syllable, "consonant": consonant, "vowel": vowel}
    recording = f"{word}_{1 if side == 'train' else 2}"
    return labels | {"position": position, "word": word, "recording": recording}


def word_factors(row):
    """Returns the consonant and the vowel of each position of a word.

    Arguments
    ---------
    row : dict
        Row of `pretrain.csv` or `pretrain_valid.csv`.

    Example
    -------
    >>> word_factors({"consonants": "bdg", "vowels": "iau"})
    {'consonant 1': 'b', 'vowel 1': 'i', 'consonant 2': 'd', 'vowel 2': 'a',
     'consonant 3': 'g', 'vowel 3': 'u'}
    """
    return {
        f"{kind} {i + 1}": row[f"{kind}s"][i]
        for i in range(3)
        for kind in ("consonant", "vowel")
    }


def _rows(data_folder, part, side, labels):
    """Rows of one folder of the set, sorted by name."""
    folder = data_folder / part / side
    if not folder.is_dir():
        parts = f"'{WORDS}' and '{SYLLABLES}', each with 'train' and 'test'"
        raise FileNotFoundError(f"No {folder}: the set consists of {parts}.")
    return [
        {"ID": path.stem, "wav": path, **labels(path.stem, side)}
        for path in sorted(folder.iterdir())
        if path.suffix in (".wav", ".flac")
    ]
