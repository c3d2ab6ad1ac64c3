"""The Free Spoken Digit Dataset -> manifests.

Six men say the digits 0 to 9 in English, 50 times each: 3,000 recordings of
0.14 to 2.3 s at 8 kHz, so that nothing lies above 4 kHz. Published by Zohar
Jackson and others at https://github.com/Jakobovski/free-spoken-digit-dataset
(CC BY-SA 4.0); its metadata.py lists all six speakers as male.
"""

import re
from pathlib import Path

from speechbrain_sim.data.manifests import write_manifests

_NAME = re.compile(r"([0-9])_([^_]+)_(\d+)")


def prepare_fsdd(
    data_folder,
    save_folder,
    held_out=None,
    min_samples=1920,
    on_bad_audio="fail",
):
    """Writes `train.csv`, `valid.csv` and `test.csv`, see `digit_labels`.

    Arguments
    ---------
    data_folder : str or Path
        The repository as it is cloned; holds `recordings/`.
    held_out : str, optional
        A speaker: all recordings of this one are the test part, all of the next
        in alphabetical order the validation part, and all others the training
        part, so that what is chosen is chosen for a speaker that training lacks.
        By default the published test part, recordings 0 to 4 of each digit and
        speaker, 5 to 9 for validation, and the rest.
    min_samples : int
        Shortest file allowed, in samples at 16 kHz. Predictions 10 frames
        ahead need 0.12 s.
    save_folder, on_bad_audio :
        See `speechbrain_sim.data.manifests.write_manifests`.

    Raises
    ------
    FileNotFoundError
        If there is no folder `recordings`, or nothing in it.
    ValueError
        For file names out of the scheme, a speaker that is not among three
        or more, and as `write_manifests`.
    """
    arguments = dict(locals())
    rows = _rows(Path(data_folder, "recordings"))
    parts = {}
    if held_out is not None:
        parts = _left_out(held_out, sorted({row["speaker"] for row in rows}))
    splits = {"train": [], "valid": [], "test": []}
    for row in rows:
        index = int(row["ID"].rpartition("_")[2])
        published = "test" if index < 5 else "valid" if index < 10 else "train"
        splits[parts.get(row["speaker"], published)].append(row)
    how = min_samples, on_bad_audio, arguments
    write_manifests(splits, save_folder, data_folder, *how)


def digit_labels(name):
    """Returns the `digit` and the `speaker` of a file.

    Arguments
    ---------
    name : str
        File name without extension; ValueError if it is out of the scheme.

    Example
    -------
    >>> digit_labels("7_jackson_32")
    {'digit': '7', 'speaker': 'jackson'}
    """
    match = _NAME.fullmatch(name)
    if match is None:
        raise ValueError(
            f"A recording is named like 7_jackson_32.wav, not {name}.wav"
        )
    return {"digit": match[1], "speaker": match[2]}


def digit_factors(row):
    """Returns the factors of a row of a manifest: every man says every digit.

    Example
    -------
    >>> digit_factors({"ID": "7_jackson_32", **digit_labels("7_jackson_32")})
    {'digit': '7', 'speaker': 'jackson'}
    """
    return {factor: row[factor] for factor in ("digit", "speaker")}


def _left_out(speaker, speakers):
    """The parts of all speakers, with one left out for the test part."""
    if speaker not in speakers or len(speakers) < 3:
        raise ValueError(
            f"--held_out is {speaker}, but the speakers are "
            f"{', '.join(speakers)}: it takes one of them, and three or more."
        )
    valid = speakers[(speakers.index(speaker) + 1) % len(speakers)]
    return dict.fromkeys(speakers, "train") | {valid: "valid", speaker: "test"}


def _rows(folder):
    """Rows of all recordings, sorted by name."""
    rows = [
        {"ID": path.stem, "wav": path, **digit_labels(path.stem)}
        for path in sorted(folder.glob("[!.]*.wav"))
    ]
    if not rows:
        raise FileNotFoundError(
            f"There is no {folder}/*.wav: --data_folder is a clone of "
            f"https://github.com/Jakobovski/free-spoken-digit-dataset."
        )
    return rows
