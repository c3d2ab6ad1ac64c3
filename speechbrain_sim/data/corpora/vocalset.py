"""VocalSet -> manifests of clips with technique, singer and vowel.

10.1 hours at 44.1 kHz: 20 singers (9 female, 11 male) sing scales, arpeggios,
long tones and excerpts in 17 techniques. Published by Julia Wilkins and
others, 2018, at https://doi.org/10.5281/zenodo.1193956 (CC BY 4.0).

Ten techniques, cut and divided as for "Sparse Autoencoders Make Audio
Foundation Models more Explainable" (https://arxiv.org/abs/2509.24793).
"""

import re
from pathlib import Path

from speechbrain_sim.data.audio import BadAudio, audio_info
from speechbrain_sim.data.manifests import hash_split, write_manifests
from speechbrain_sim.data.search import list_files

#: those that singers were to classify; the others are dynamics and tempos
TECHNIQUES = ("belt", "breathy", "inhaled", "lip_trill", "spoken", "straight")
TECHNIQUES += ("trill", "trillo", "vibrato", "vocal_fry")
#: a folder's misspelt name: female2/arpeggios/vibrado
SPELLING = {"vibrado": "vibrato"}
#: how names of recordings end; others are uncut, twice there, or excerpts
ENDINGS = ("a", "e", "i", "o", "u", "c", "f", "spoken")
#: singers of VocalSet's own test_singers_technique.txt
TEST_SINGERS = ("female2", "female8", "male3", "male5", "male10")
#: recordings of the other singers that are for validation
VALID_SHARE = 0.2


def prepare_vocalset(
    data_folder,
    save_folder,
    clip_seconds=5.0,
    min_samples=1600,
    on_bad_audio="fail",
):
    """Writes `train.csv`, `valid.csv` and `test.csv`, see `technique_labels`.

    The test part is five singers, as published. Of the recordings of the other
    fifteen, one in five is for validation, so that their singers train, too.
    Training recordings are cut into whole clips, one after the other (the
    paper draws one of each per epoch); of the others, the first clip is taken.
    Shorter recordings are one clip, not padded.

    Arguments
    ---------
    data_folder : str or Path
        The archive as it is unpacked; holds `FULL/`.
    clip_seconds : float
        Length of a clip.
    save_folder, min_samples, on_bad_audio :
        See `speechbrain_sim.data.manifests.write_manifests`.

    Raises
    ------
    FileNotFoundError
        If there is no recording of a technique.
    ValueError
        For a folder that is not a singer's, and as `write_manifests`.
    """
    arguments = dict(locals())
    recordings = _find(Path(data_folder, "FULL"))
    singers = {name: row["speaker"] for name, row in recordings.items()}
    others = [n for n, singer in singers.items() if singer not in TEST_SINGERS]
    sides = dict.fromkeys(recordings, "test")
    sides |= hash_split(others, {"valid": VALID_SHARE})
    splits = {"train": [], "valid": [], "test": []}
    for name, row in recordings.items():
        clips = _clips(row["wav"], clip_seconds)
        kept = clips if sides[name] == "train" else clips[:1]
        for number, (start, stop) in enumerate(kept):
            clip = {"ID": f"{name}-{number}", "start": start, "stop": stop}
            splits[sides[name]].append(row | clip)
    how = min_samples, on_bad_audio, arguments
    write_manifests(splits, save_folder, data_folder, *how)


def technique_labels(path):
    """Returns the labels of a recording; None if it is not to be used.

    Arguments
    ---------
    path : str or Path
        `.../<singer>/<context>/<technique>/<name>_<vowel>.wav`.

    Returns
    -------
    dict of str to str, or None
        `speaker`, `sex`, `context`, `technique` and `vowel` ("spoken" is one,
        and c and f are keys of scales); None for other techniques and endings.

    Raises
    ------
    ValueError
        If the singer's folder is not named as it is published.

    Example
    -------
    >>> technique_labels("female2/arpeggios/vibrado/f2_arpeggios_vibrato_a.wav")
    {'speaker': 'female2', 'sex': 'female', ... 'technique': 'vibrato', ...}
    >>> technique_labels("male1/scales/fast_forte/m1_scales_fast_forte_a.wav")
    """
    *_, singer, context, technique, name = Path(path).parts
    match = re.fullmatch(r"(female|male)\d+", singer)
    if match is None:
        raise ValueError(
            f"{path} is not in a folder <singer>/<context>/<technique>, with a "
            f"singer like female1: --data_folder is VocalSet as it is unpacked."
        )
    labels = {"speaker": singer, "sex": match[1], "context": context}
    labels["technique"] = SPELLING.get(technique, technique)
    labels["vowel"] = Path(name).stem.rpartition("_")[2]
    used = labels["technique"] in TECHNIQUES and labels["vowel"] in ENDINGS
    return labels if used else None


def _find(folder):
    """Rows of all recordings that are used, by ID."""
    paths = list_files(folder, [".wav"]) if folder.is_dir() else []
    rows = {}
    for path in paths:
        parts = path.relative_to(folder).with_suffix("").parts
        if labels := technique_labels(path):
            name = "-".join(parts[-4:])
            rows[name] = {"wav": path, "recording": name} | labels
    if not rows:
        raise FileNotFoundError(
            f"There is no {folder}/<singer>/<context>/<technique>/*.wav of the "
            f"techniques {', '.join(TECHNIQUES)}: --data_folder is VocalSet as "
            f"it is unpacked, from https://doi.org/10.5281/zenodo.1193956."
        )
    return rows


def _clips(path, seconds):
    """Start and stop of the whole clips of a recording, at its own rate."""
    try:
        info = audio_info(path)
    except BadAudio:  # which `write_manifests` reports
        return [(0, 0)]
    length = round(seconds * info.sample_rate)
    starts = range(0, max(1, info.frames - length + 1), length)
    return [(start, min(start + length, info.frames)) for start in starts]
