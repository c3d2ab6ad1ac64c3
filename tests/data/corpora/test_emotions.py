"""RAVDESS and IEMOCAP: layouts, actors and sessions apart, equal emotions."""

import csv
from collections import Counter
from functools import partial

import numpy as np
import pytest

from speechbrain_sim.data.corpora import corpus_of, recognise
from speechbrain_sim.data.corpora.iemocap import prepare_iemocap, turn_labels
from speechbrain_sim.data.corpora.ravdess import prepare_ravdess
from speechbrain_sim.data.splits import divide
from speechbrain_sim.data.targets import read_targets
from tests.conftest import make_iemocap, make_ravdess

PARTS = "train", "valid", "test"
FOUR = {"neutral", "happy", "sad", "angry"}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder, rng = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    make_ravdess(folder / "RAVDESS", rng)
    make_iemocap(folder / "IEMOCAP", rng)
    return folder


def prepare(function, folder, save, **options):
    function(folder, save, **options)
    parts = {}
    for part in PARTS:
        with open(save / f"{part}.csv", newline="") as file:
            parts[part] = list(csv.DictReader(file))
    return parts


ravdess = partial(prepare, prepare_ravdess)
iemocap = partial(prepare, prepare_iemocap)


def count(rows, column="emotion"):
    return Counter(row[column] for row in rows)


def test_ravdess_has_four_equal_emotions_of_actors_apart(data, tmp_path):
    parts = ravdess(data / "RAVDESS", tmp_path / "a")
    actors = {part: {*count(rows, "speaker")} for part, rows in parts.items()}
    assert actors == {"train": {"01", "02"}, "valid": {"19"}, "test": {"22"}}
    for part, rows in parts.items():
        # of each actor two sentences, twice: 384 recordings of all 24
        per = 4 * len(actors[part])
        assert count(rows) == dict.fromkeys(FOUR, per)
        assert {*count(rows, "strength")} == {"normal"}
    assert count(parts["train"], "sex") == {"M": 16, "F": 16}
    (row,) = (r for r in parts["test"] if r["ID"] == "03-01-05-01-02-01-22")
    assert row["emotion"] == "angry" and row["sex"] == "F"
    assert row["transcript"].startswith("dogs")
    # all of it: twice as many of what can be strong
    everything = ravdess(data / "RAVDESS", tmp_path / "b", balanced=False)
    assert count(everything["test"]) == {
        "neutral": 4,
        **dict.fromkeys(FOUR - {"neutral"}, 8),
    }


def test_a_speaker_of_ravdess_is_tested_on_the_other_sentence(data, tmp_path):
    ravdess(data / "RAVDESS", tmp_path)
    manifests = {part: tmp_path / f"{part}.csv" for part in PARTS}
    folder = data / "RAVDESS"
    kept = divide(manifests, folder, tmp_path / "no", "emotion")
    assert kept.manifests == manifests and "no test speaker" in kept.sentence
    sentence = divide(manifests, folder, tmp_path / "yes", "speaker").sentence
    assert sentence == (
        "Divided by text: train 28, valid 4, test 32 utterances; 4 of 4 test "
        "speakers and no test text in another part."
    )


@pytest.mark.parametrize(("session", "valid"), [(5, "4"), (1, "5")])
def test_iemocap_has_sessions_apart(data, tmp_path, session, valid):
    parts = iemocap(data / "IEMOCAP", tmp_path, test_session=session)
    sessions = {part: {*count(rows, "session")} for part, rows in parts.items()}
    assert sessions["test"] == {str(session)} and sessions["valid"] == {valid}
    assert len(sessions["train"]) == 3
    for part, rows in parts.items():
        # happy and excited together are as many as neutral turns; 4 of sad
        assert count(rows) == dict.fromkeys(FOUR, 4 * len(sessions[part]))
    speakers = {part: {*count(rows, "speaker")} for part, rows in parts.items()}
    assert not speakers["train"] & (speakers["test"] | speakers["valid"])


def test_iemocap_keeps_words_and_who_speaks(data, tmp_path):
    parts = iemocap(data / "IEMOCAP", tmp_path, balanced=False)
    assert count(parts["test"]) == {
        "neutral": 8,
        "happy": 8,
        "sad": 4,
        "angry": 4,
    }
    (row,) = (r for r in parts["test"] if r["ID"] == "Ses05F_impro01_M003")
    labels = "emotion", "speaker", "sex", "session", "dialogue", "transcript"
    assert [row[label] for label in labels] == [
        *("happy", "5M", "M", "5", "impro01", "Oh, well.")
    ]
    manifests = {part: tmp_path / f"{part}.csv" for part in PARTS}
    labels, ids = read_targets(manifests, "chars")
    assert labels.text(ids["test"][row["ID"]]) == "OH WELL"


def test_turns_without_words_or_of_no_class_are_left_out(data, tmp_path):
    path = tmp_path / "data"
    make_iemocap(path, np.random.default_rng(0), count=1)
    texts = path / "Session2/dialog/transcriptions/Ses02F_impro01.txt"
    lines = texts.read_text().splitlines()
    lines[1] = lines[1].partition(":")[0] + ": [LAUGHTER]"
    texts.write_text("\n".join([*lines, "M: ’aside"]), encoding="cp1252")
    parts = iemocap(path, tmp_path / "save", balanced=False)
    names = {row["ID"] for row in parts["train"]}
    assert len(names) == 3 * 12 - 1 and "Ses02F_impro01_F000" not in names
    codes = path / "Session5/dialog/EmoEvaluation/Ses05F_impro01.txt"
    codes.write_text(codes.read_text().replace("\tsad", "\tfru"))
    with pytest.raises(ValueError, match="'test' has no turn that is sad"):
        iemocap(path, tmp_path / "save")
    codes.unlink()
    with pytest.raises(FileNotFoundError, match="Session5.*sail.usc.edu"):
        iemocap(path, tmp_path / "save")


def test_what_is_wrong_is_named(data, tmp_path):
    with pytest.raises(ValueError, match="'joyful', not one of neutral, calm"):
        ravdess(data / "RAVDESS", tmp_path, emotions=["joyful"])
    with pytest.raises(FileNotFoundError, match="Audio_Speech_Actors_01-24"):
        ravdess(tmp_path, tmp_path)
    with pytest.raises(ValueError, match="test_session is 6, not 1 to 5"):
        iemocap(data / "IEMOCAP", tmp_path, test_session=6)
    with pytest.raises(ValueError, match="named like Ses01F_impro05_M019"):
        turn_labels("Ses6F_impro01_M000")
    # one file twice, as some copies of the archive hold it
    make_ravdess(tmp_path / "twice", np.random.default_rng(0), (3, 19, 22))
    make_ravdess(tmp_path / "twice/again", np.random.default_rng(0), (3,))
    with pytest.raises(ValueError, match="two files have ID 03-01-01-01-01"):
        ravdess(tmp_path / "twice", tmp_path / "save")


def test_their_licences_are_given_by_name_only(data, tmp_path):
    ravdess(data / "RAVDESS", tmp_path)
    assert (
        recognise("RAVDESS", [tmp_path / "test.csv"], data / "RAVDESS") is None
    )
    assert corpus_of({}, "RAVDESS").licence == "cc-by-nc-sa-4.0"
    assert corpus_of({}, "IEMOCAP").licence == "other"
