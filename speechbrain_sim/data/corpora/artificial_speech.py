"""The artificial speech set of the paper → manifests.

One speaker says words of three syllables, each one of b, d, g and one of a,
i, u; some words were recorded twice (take 1 and 2). The set holds whole words
(``reshuffledv2``) and single syllables cut from them (``split up data
padded``); the two are divided into train and test independently.

File names of the syllables mislead. All are named as take 1, and those of
``train`` are cut from take 1; those of ``test`` are cut from take 2. Aligning
the audio shows it: each of the 360 test clips correlates with a stretch of
its word's take 2 above 0.9999, and with none of take 1 above 0.93. So most
test clips come from recordings that pretraining hears, see ``split``.
"""

import re
from pathlib import Path

from speechbrain.utils.logger import get_logger

from speechbrain_sim.data.manifests import hash_split, write_manifests

logger = get_logger(__name__)


WORDS = "reshuffledv2"


SYLLABLES = "split up data padded"


VALID_SHARE = 0.3


_WORD = re.compile(r"((?:[bdg][aiu]){3})_([12])")


_SYLLABLE = re.compile(r"((?:[bdg][aiu]){3})_1_([123])_([bdg][aiu])")


def prepare_artificial_speech(
    data_folder,
    save_folder,
    split="published",
    min_samples=8800,
    on_bad_audio="fail",
    skip_prep=False,
):
    """Write the manifests of words (pretraining) and syllables (probes).

    ``pretrain.csv`` and ``pretrain_valid.csv`` hold the words of
    ``reshuffledv2/train`` and ``/test``, with the columns ``word``,
    ``recording`` (``<word>_<take>``), ``consonants`` and ``vowels``.

    ``train.csv``, ``valid.csv`` and ``test.csv`` hold the syllables, with
    ``syllable, consonant, vowel, position`` (1 to 3), ``word`` and
    ``recording``, the word they are really cut from. ``valid.csv`` is 30 % of
    the recordings of the published train folder: no recording is on two
    sides. ``labelled.csv`` is ``train.csv`` and ``valid.csv`` together.

    Arguments
    ---------
    data_folder : str or Path
        The set, in its published layout.
    save_folder : str or Path
        Where manifests go.
    split : str
        "published" pretrains on all words, among them recordings that test
        syllables are cut from; how many is logged. "unheard" leaves those
        recordings out of both word manifests.
    min_samples : int
        Shortest file allowed, in samples at 16 kHz. Syllables have 8821.
    on_bad_audio : str
        "fail" or "skip", see ``write_manifests``.
    skip_prep : bool
        Do nothing: the manifests are there.

    Raises
    ------
    FileNotFoundError
        If a folder of the published layout is missing.
    ValueError
        For file names out of the scheme, and as ``write_manifests``.

    Example
    -------
    >>> syllable_labels("badagu_1_3_gu", "test")["recording"]
    'badagu_2'
    """
    if skip_prep:
        return
    arguments = dict(locals())
    if split not in ("published", "unheard"):
        raise ValueError(
            f"split must be 'published' or 'unheard', got {split!r}"
        )
    folder = Path(data_folder)
    splits = {
        "pretrain": _rows(folder, WORDS, "train", word_labels),
        "pretrain_valid": _rows(folder, WORDS, "test", word_labels),
        "train": _rows(folder, SYLLABLES, "train", syllable_labels),
        "valid": [],
        "test": _rows(folder, SYLLABLES, "test", syllable_labels),
    }
    recordings = {row["recording"] for row in splits["train"]}
    sides = hash_split(recordings, {"valid": VALID_SHARE})
    clips = splits["labelled"] = splits["train"]
    for side in ("train", "valid"):
        splits[side] = [c for c in clips if sides[c["recording"]] == side]

    tested = {row["recording"] for row in splits["test"]}
    heard = tested & {row["recording"] for row in splits["pretrain"]}
    logger.info(
        "%d of %d test syllables (%d of %d recordings) are cut from words of "
        "the published pretraining set",
        sum(row["recording"] in heard for row in splits["test"]),
        len(splits["test"]),
        len(heard),
        len(tested),
    )
    if split == "unheard":
        for name in ("pretrain", "pretrain_valid"):
            rows = splits[name]
            splits[name] = [r for r in rows if r["recording"] not in tested]
            logger.info(
                "unheard: %s keeps %d of %d words",
                name,
                len(splits[name]),
                len(rows),
            )
    write_manifests(
        splits,
        save_folder,
        data_folder,
        min_samples,
        on_bad_audio,
        arguments=arguments,
    )


def word_labels(name, side):
    """Labels of a word, from its file name.

    Arguments
    ---------
    name : str
        File name without extension.
    side : str
        "train" or "test"; words are named alike on both.

    Returns
    -------
    dict
        ``word, recording, consonants, vowels``.

    Raises
    ------
    ValueError
        If the name is out of the scheme.

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
    return {
        "word": word,
        "recording": name,
        "consonants": word[0::2],
        "vowels": word[1::2],
    }


def syllable_labels(name, side):
    """Labels of a syllable, from its file name and folder.

    Arguments
    ---------
    name : str
        File name without extension.
    side : str
        "train" (cut from take 1) or "test" (cut from take 2).

    Returns
    -------
    dict
        ``syllable, consonant, vowel, position, word, recording``.

    Raises
    ------
    ValueError
        If the name is out of the scheme.

    Example
    -------
    >>> syllable_labels("bidagu_1_2_da", "train")
    {'syllable': 'da', 'consonant': 'd', 'vowel': 'a', 'position': '2',
     'word': 'bidagu', 'recording': 'bidagu_1'}
    """
    match = _SYLLABLE.fullmatch(name)
    if match is None:
        raise ValueError(
            f"A syllable is named like bidagu_1_2_da.wav, not {name}"
        )
    word, position, syllable = match.groups()
    return {
        "syllable": syllable,
        "consonant": syllable[0],
        "vowel": syllable[1],
        "position": position,
        "word": word,
        "recording": f"{word}_{1 if side == 'train' else 2}",
    }


def word_factors(row):
    """What a word is made of, for `speechbrain_sim.analysis.factors`.

    Arguments
    ---------
    row : dict
        Row of `pretrain.csv` or `pretrain_valid.csv`.

    Returns
    -------
    dict of str to str
        The consonant and the vowel of each position.

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
        raise FileNotFoundError(
            f"There is no {folder}: the set consists of '{WORDS}/train', "
            f"'{WORDS}/test', '{SYLLABLES}/train' and '{SYLLABLES}/test'."
        )
    return [
        {"ID": path.stem, "wav": path, **labels(path.stem, side)}
        for path in sorted(folder.glob("*.wav"))
    ]
