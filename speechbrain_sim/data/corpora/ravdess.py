"""RAVDESS -> manifests of spoken emotions.

24 actors (12 female, 12 male) speak two sentences in eight emotions, calmly or
strongly, twice: 1,440 recordings at 48 kHz. Published by Steven Livingstone and
Frank Russo, 2018, at https://doi.org/10.5281/zenodo.1188976 (CC BY-NC-SA 4.0).
"""

import re
from pathlib import Path

from speechbrain_sim.data.manifests import write_manifests
from speechbrain_sim.data.search import list_files

#: by the third number of a name
EMOTIONS = "neutral calm happy sad angry fearful disgust surprised".split()
#: as in the paper of the two halves
FOUR = "neutral", "happy", "sad", "angry"
SENTENCES = "kids are talking by the door", "dogs are sitting by the door"
#: the last actors: as many women as men
VALID, TEST = range(19, 21), range(21, 25)

_NAME = re.compile(r"03-01-0([1-8])-0([12])-0([12])-0([12])-([0-2]\d)")


def prepare_ravdess(
    data_folder,
    save_folder,
    emotions=FOUR,
    balanced=True,
    min_samples=1600,
    on_bad_audio="fail",
):
    """Writes `train.csv`, `valid.csv` and `test.csv`, see `emotion_labels`.

    Actors are apart: 1 to 18 are for training, 19 and 20 for validation, 21 to
    24 for the test. Songs and films are left out.

    Arguments
    ---------
    data_folder : str or Path
        Holds `Actor_01`, ..., at any depth.
    emotions : list of str
        Of `EMOTIONS`.
    balanced : bool
        Whether strong emotions are left out: there is no strong "neutral". Of
        four emotions, 384 recordings are left, 16 of each actor.
    save_folder, min_samples, on_bad_audio :
        See `speechbrain_sim.data.manifests.write_manifests`.

    Raises
    ------
    FileNotFoundError
        If there is no recording of these emotions.
    ValueError
        For an emotion that is none, and as `write_manifests`.
    """
    arguments = dict(locals())
    if unknown := [name for name in emotions if name not in EMOTIONS]:
        known = ", ".join(EMOTIONS)
        raise ValueError(f"emotions has {unknown[0]!r}, not one of {known}.")
    splits = {"train": [], "valid": [], "test": []}
    folder = Path(data_folder)
    for path in list_files(folder, [".wav"]) if folder.is_dir() else []:
        labels = emotion_labels(path.stem)
        if labels is None or labels["emotion"] not in emotions:
            continue
        if balanced and labels["strength"] == "strong":
            continue
        actor = int(labels["speaker"])
        part = (
            "test" if actor in TEST else "valid" if actor in VALID else "train"
        )
        splits[part].append({"ID": path.stem, "wav": path, **labels})
    if not any(splits.values()):
        raise FileNotFoundError(
            f"There is no {data_folder}/Actor_<number>/03-01-*.wav of the "
            f"emotions {', '.join(emotions)}: --data_folder is what "
            f"Audio_Speech_Actors_01-24.zip of "
            f"https://doi.org/10.5281/zenodo.1188976 holds."
        )
    how = min_samples, on_bad_audio, arguments
    write_manifests(splits, save_folder, data_folder, *how)


def emotion_labels(name):
    """Returns what the seven numbers of a file state; None if it is no speech.

    Arguments
    ---------
    name : str
        File name without extension.

    Returns
    -------
    dict of str to str, or None
        `emotion`, `strength` (normal or strong), `transcript`, `take`,
        `speaker` (the actor's number) and `sex` (even numbers are women).

    Example
    -------
    >>> emotion_labels("03-01-06-01-02-01-12")
    {'emotion': 'fearful', 'strength': 'normal',
     'transcript': 'dogs are sitting by the door', 'take': '1',
     'speaker': '12', 'sex': 'F'}
    >>> emotion_labels("03-02-06-01-02-01-12")  # sung
    """
    match = _NAME.fullmatch(name)
    if match is None or not 1 <= int(match[5]) <= 24:
        return None
    emotion, strength, sentence, take, actor = match.groups()
    return {
        "emotion": EMOTIONS[int(emotion) - 1],
        "strength": ("normal", "strong")[int(strength) - 1],
        "transcript": SENTENCES[int(sentence) - 1],
        "take": take,
        "speaker": actor,
        "sex": "MF"[int(actor) % 2 == 0],
    }
