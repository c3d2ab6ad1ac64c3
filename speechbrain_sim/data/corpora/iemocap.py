"""IEMOCAP -> manifests of emotions in dialogue.

Ten actors in five sessions, a woman and a man in each, speak scripted and
improvised dialogues: 12 hours, 10,039 turns at 16 kHz. Published by Carlos Busso
and others, 2008; the University of Southern California gives it to researchers
who ask, under a licence of its own: https://sail.usc.edu/iemocap.
"""

import re
from collections import defaultdict
from pathlib import Path

from speechbrain.utils.logger import get_logger

from speechbrain_sim.data.manifests import write_manifests
from speechbrain_sim.files import text_hash

logger = get_logger(__name__)

#: codes of the four usual classes, two of which are one
EMOTIONS = {"neu": "neutral", "hap": "happy", "exc": "happy"}
EMOTIONS |= {"sad": "sad", "ang": "angry"}
SESSIONS = range(1, 6)
PARTS = "train", "valid", "test"

#: a turn is named by its dialogue, and by who speaks, which is not the F or M in
#: the dialogue's name: that one wears the markers
_TURN = re.compile(r"Ses0([1-5])[FM]_((impro|script).+)_([FM])[X\d]+")
_LABEL = re.compile(r"^\[[\d. -]+\]\s+(\w+)\s+(\w{3})\s", re.M)
_TEXT = re.compile(r"^(\w+) \[[\d. -]+\]:\s*(.*)$", re.M)


def prepare_iemocap(
    data_folder,
    save_folder,
    test_session=5,
    balanced=True,
    min_samples=1600,
    on_bad_audio="fail",
):
    """Writes `train.csv`, `valid.csv` and `test.csv`, see `turn_labels`.

    Sessions are apart, and so are speakers: one is the test part, the one
    before (of the first: the last) is for validation. Emotions are neutral,
    happy (with excited), sad and angry; turns on which the raters did not agree
    on one of these, or without a word, are left out.

    Arguments
    ---------
    data_folder : str or Path
        `IEMOCAP_full_release`; holds `Session1`, ...
    test_session : int
        1 to 5.
    balanced : bool
        Whether turns are left out, by their hashes, until the emotions of a
        part have equal numbers.
    save_folder, min_samples, on_bad_audio :
        See `speechbrain_sim.data.manifests.write_manifests`.

    Raises
    ------
    FileNotFoundError
        If a session is missing.
    ValueError
        For another session, a part without an emotion, and as
        `write_manifests`.
    """
    arguments = dict(locals())
    if test_session not in SESSIONS:
        raise ValueError(f"test_session is {test_session!r}, not 1 to 5.")
    sides = dict.fromkeys(SESSIONS, "train") | {test_session: "test"}
    sides[(test_session - 2) % 5 + 1] = "valid"
    splits, left = {part: [] for part in PARTS}, 0
    for session, part in sides.items():
        rows, without = _read(Path(data_folder, f"Session{session}"))
        splits[part] += rows
        left += without
    if balanced:
        splits = {part: _balance(part, rows) for part, rows in splits.items()}
    kept = sum(map(len, splits.values()))
    logger.info("%d turns; %d of other emotions or without words", kept, left)
    how = min_samples, on_bad_audio, arguments
    write_manifests(splits, save_folder, data_folder, *how)


def turn_labels(name):
    """Returns the labels in a turn's name.

    Arguments
    ---------
    name : str
        File name without extension; ValueError if it is out of the scheme.

    Example
    -------
    >>> turn_labels("Ses01F_impro05_M019")
    {'speaker': '1M', 'sex': 'M', 'session': '1', 'kind': 'impro',
     'dialogue': 'impro05'}
    """
    match = _TURN.fullmatch(name)
    if match is None:
        raise ValueError(
            f"A turn is named like Ses01F_impro05_M019, not {name}"
        )
    session, dialogue, kind, sex = match.groups()
    labels = {"speaker": session + sex, "sex": sex, "session": session}
    return labels | {"kind": kind, "dialogue": dialogue}


def _read(session):
    """Rows of a session, and how many turns are left out."""
    labels = sorted(session.glob("dialog/EmoEvaluation/Ses*.txt"))
    if not labels:
        raise FileNotFoundError(
            f"There is no {session}/dialog/EmoEvaluation/Ses*.txt: --data_folder "
            f"is IEMOCAP_full_release, from https://sail.usc.edu/iemocap."
        )
    rows, left = [], 0
    for path in labels:
        texts = dict(_TEXT.findall(_text(session, path.name)))
        for name, code in _LABEL.findall(path.read_text(encoding="cp1252")):
            text = re.sub(r"\[.*?\]", " ", texts.get(name, "")).strip()
            if code not in EMOTIONS or not re.search(r"\w", text):
                left += 1
                continue
            wav = session / f"sentences/wav/{path.stem}/{name}.wav"
            row = {"ID": name, "wav": wav, "emotion": EMOTIONS[code]}
            rows.append(row | turn_labels(name) | {"transcript": text})
    return rows, left


def _text(session, name):
    """The transcripts of a dialogue, "" if there are none."""
    path = session / "dialog/transcriptions" / name
    if not path.is_file():
        return ""
    return path.read_text(encoding="cp1252", errors="replace")


def _balance(part, rows):
    """As many rows of each emotion as there are of the rarest."""
    classes = defaultdict(list)
    for row in rows:
        classes[row["emotion"]].append(row)
    if lacking := sorted({*EMOTIONS.values()} - classes.keys()):
        raise ValueError(
            f"The part '{part}' has no turn that is {lacking[0]}: get all of its "
            f"sessions, or --balanced False."
        )
    count = min(map(len, classes.values()))
    kept = []
    for members in classes.values():
        kept += sorted(members, key=lambda row: text_hash(row["ID"]))[:count]
    return sorted(kept, key=lambda row: row["ID"])
