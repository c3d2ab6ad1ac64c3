"""Preparation: manifests, a user's folder, and the two corpora."""

import csv
import functools
import hashlib
import json
import logging
import tarfile
import threading
from collections import Counter, defaultdict
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf
from speechbrain.dataio.dataset import DynamicItemDataset

from speechbrain_sim.data.audio import read_audio
from speechbrain_sim.data.corpora.artificial_speech import (
    prepare_artificial_speech,
)
from speechbrain_sim.data.corpora.folder import prepare_folder
from speechbrain_sim.data.corpora.librispeech import prepare_librispeech
from speechbrain_sim.data.labels import num_labels
from speechbrain_sim.data.manifests import hash_split, write_manifests

DATA = Path(__file__).resolve().parents[2] / ".." / "shared" / "data"
SPLITS = ("train", "valid", "test")


def make(path, frames=16000, rate=16000, scale=0.5):
    path.parent.mkdir(parents=True, exist_ok=True)
    x = np.random.default_rng(frames).uniform(-scale, scale, frames)
    sf.write(path, x, rate)
    return path


def rows_of(path):
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def ids(save, split):
    return [row["ID"] for row in rows_of(save / f"{split}.csv")]


def contents(save):
    return {path.name: path.read_bytes() for path in save.glob("*.csv")}


def real(name):
    folder = DATA / name
    if not folder.is_dir():
        pytest.skip(f"the folder ../shared/data/{name} is absent")
    return folder


# --- manifests ---------------------------------------------------------------


def test_hash_split_ignores_order_and_counts():
    names = [f"n{i}" for i in range(20)]
    shares = {"valid": 0.1, "test": 0.2}
    sides = hash_split(names, shares, seed=3)
    assert sides == hash_split(reversed(names), shares, seed=3)
    assert sides != hash_split(names, shares, seed=4)
    assert Counter(sides.values()) == {"train": 14, "valid": 2, "test": 4}
    assert set(hash_split("abc", shares).values()) == set(SPLITS)
    assert set(hash_split("ab", shares).values()) == {"train"}
    big = hash_split("abc", {"valid": 0.8, "test": 0.1})
    assert set(big.values()) == set(SPLITS)
    for bad in ({"test": 1.0}, {"test": -0.1, "valid": 0.5}):
        with pytest.raises(ValueError, match="Shares"):
            hash_split(names, bad)


@pytest.fixture
def corpus(tmp_path):
    """Three good files, of different rates, and a damaged one."""
    data = tmp_path / "data"
    good = [
        make(data / "a b" / "1.wav", 16000),
        make(data / "2.flac", 22050, 44100),
        make(data / "3.wav", 16000),
    ]
    bad = make(data / "bad.flac", 16000)
    bad.write_bytes(bad.read_bytes()[:9000])
    rows = [{"ID": p.stem, "wav": p, "label": f"l{p.stem}"} for p in good]
    rows_bad = [{"ID": "bad", "wav": bad, "label": "lb"}]
    return data, rows, rows_bad


def test_manifest_loads_in_speechbrain(corpus, tmp_path):
    data, rows, _ = corpus
    save = tmp_path / "save"
    counts = write_manifests({"train": rows}, save, data, min_samples=8000)
    assert counts == {"train": 3}
    first = rows_of(save / "train.csv")[0]
    assert list(first) == [
        "ID",
        "duration",
        "wav",
        "sample_rate",
        "num_samples",
        "label",
    ]
    assert first["wav"] == "$data_root/a b/1.wav"
    assert (
        not list(save.glob("*.tmp")) and not (save / "bad_audio.csv").exists()
    )

    moved = data.rename(tmp_path / "moved")
    dataset = DynamicItemDataset.from_csv(
        save / "train.csv", replacements={"data_root": moved}
    )
    dataset.set_output_keys(["wav", "duration", "num_samples", "label"])
    assert len(dataset) == 3
    for item in dataset:
        assert len(read_audio(item["wav"])) == int(item["num_samples"])
    assert dataset[1]["duration"] == 0.5
    assert dataset[1]["num_samples"] == "8000"
    assert dataset[1]["label"] == "l2"


def test_fail_names_bad_files_and_writes_no_manifest(corpus, tmp_path):
    data, rows, bad = corpus
    save = tmp_path / "save"
    with pytest.raises(ValueError) as caught:
        write_manifests({"train": rows, "test": bad}, save, data, 8000)
    for text in ("1 audio", "bad.flac", "bad_audio.csv", "--on_bad_audio skip"):
        assert text in str(caught.value)
    assert [path.name for path in save.iterdir()] == ["bad_audio.csv"]
    (line,) = rows_of(save / "bad_audio.csv")
    assert (line["split"], line["ID"]) == ("test", "bad")
    assert line["wav"].endswith("bad.flac") and "truncated" in line["reason"]


def test_skip_drops_bad_files_with_a_warning(corpus, tmp_path, caplog):
    data, rows, bad = corpus
    save = tmp_path / "save"
    with caplog.at_level(logging.WARNING):
        write_manifests({"train": rows + bad}, save, data, 8000, "skip")
    assert "Skipped 1 bad" in caplog.text
    assert ids(save, "train") == ["1", "2", "3"]
    assert len(rows_of(save / "bad_audio.csv")) == 1

    write_manifests({"train": rows}, save, data, 8000, "skip")
    assert not (save / "bad_audio.csv").exists()


def test_split_emptied_by_skipping_is_an_error(corpus, tmp_path):
    data, rows, bad = corpus
    splits = {"train": rows, "test": bad}
    with pytest.raises(ValueError, match="'test' is empty: 1 files"):
        write_manifests(splits, tmp_path / "save", data, 8000, "skip")
    assert not (tmp_path / "save" / "train.csv").exists()


def test_wrong_rows_are_errors(corpus, tmp_path):
    data, rows, _ = corpus
    twice = [*rows, {**rows[0], "wav": data / "3.wav"}]
    with pytest.raises(ValueError, match="ID 1: a b/1.wav and 3.wav"):
        write_manifests({"train": twice}, tmp_path / "s", data, 1)
    dollar = [{**rows[0], "label": "$x"}]
    with pytest.raises(ValueError, match="placeholder"):
        write_manifests({"train": dollar}, tmp_path / "s", data, 1)
    clash = [{**rows[0], "duration": 3}]
    with pytest.raises(ValueError, match="cannot be labels"):
        write_manifests({"train": clash}, tmp_path / "s", data, 1)
    with pytest.raises(ValueError, match="'fail' or 'skip'"):
        write_manifests({"train": rows}, tmp_path / "s", data, 1, "ignore")


def test_equal_manifests_are_not_rewritten(corpus, tmp_path, caplog):
    data, rows, _ = corpus
    save = tmp_path / "save"

    def rewritten(rows, min_samples=8000, splits=("train",)):
        caplog.clear()
        with caplog.at_level(logging.INFO):
            write_manifests(
                {name: rows for name in splits}, save, data, min_samples
            )
        return "Already" not in caplog.text

    assert rewritten(rows, splits=("train", "test"))
    assert not rewritten(rows, splits=("train", "test"))
    assert rewritten(rows)
    assert not (save / "test.csv").exists()
    assert rewritten(rows, min_samples=1)
    assert rewritten([{**row, "label": "new"} for row in rows])
    assert rewritten(rows)
    make(data / "3.wav", 17000)
    assert rewritten(rows)
    (save / "train.csv").unlink()
    assert rewritten(rows)
    assert rows_of(save / "train.csv")[2]["num_samples"] == "17000"
    assert not rewritten(rows)
    whole = (save / "train.csv").read_bytes()
    (save / "train.csv").write_bytes(whole[:-30])  # cut, or edited
    assert rewritten(rows)
    assert (save / "train.csv").read_bytes() == whole


# --- folder ------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    """Three speakers with 10, 4 and 2 files, one of them in a subfolder."""
    data = tmp_path / "data"
    for speaker, count in (("ann", 10), ("bob", 4), ("cy", 2)):
        for i in range(count):
            make(data / speaker / "day" / f"{i}.wav", 1600 + i)
    make(data / ".hidden.wav")
    make(data / ".Trash-1000" / "files" / "0.wav")
    (data / "notes.txt").write_text("no audio")
    return data


def test_folder_is_divided_deterministically(folder, tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        prepare_folder(folder, tmp_path / name, 1600, seed=seed)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    assert contents(tmp_path / "a") != contents(tmp_path / "c")
    every = [ids(tmp_path / "a", split) for split in SPLITS]
    assert [len(part) for part in every] == [12, 2, 2]
    assert len(set().union(*every)) == 16
    assert "ann-day-0" in set().union(*every)
    assert "speaker" not in rows_of(tmp_path / "a" / "train.csv")[0]


def test_folder_speakers_are_on_every_side(folder, tmp_path):
    prepare_folder(folder, tmp_path / "a", 1600, speakers="folder")
    sides = defaultdict(Counter)
    for split in SPLITS:
        for row in rows_of(tmp_path / "a" / f"{split}.csv"):
            assert row["ID"].startswith(row["speaker"])
            sides[row["speaker"]][split] += 1
    assert sides == {
        "ann": {"train": 8, "valid": 1, "test": 1},
        "bob": {"train": 2, "valid": 1, "test": 1},
        "cy": {"train": 2},
    }


def test_folder_speakers_from_csv(folder, tmp_path):
    table = tmp_path / "speakers.csv"
    names = [p.relative_to(folder).as_posix() for p in folder.glob("*/*/*")]
    lines = [f"{name},{name[:3].upper()}" for name in names]
    table.write_text("\n".join(["path,speaker", *lines]))
    prepare_folder(folder, tmp_path / "a", 1600, speakers=table)
    for row in rows_of(tmp_path / "a" / "train.csv"):
        assert row["speaker"] == row["wav"][len("$data_root/") :][:3].upper()

    table.write_text("\n".join(["path,speaker", *lines[1:]]))
    with pytest.raises(ValueError, match=f"no labels for {names[0]}"):
        prepare_folder(folder, tmp_path / "b", 1600, speakers=table)
    table.write_text("\n".join(["path,speaker", *lines, "ann/gone.wav,ann"]))
    with pytest.raises(ValueError, match="lists ann/gone.wav"):
        prepare_folder(folder, tmp_path / "b", 1600, speakers=table)
    table.write_text("\n".join(["path,speaker", *lines, f"{names[0]},other"]))
    with pytest.raises(ValueError, match="two of them"):
        prepare_folder(folder, tmp_path / "b", 1600, speakers=table)
    table.write_text("file,speaker\n")
    with pytest.raises(ValueError, match="needs the columns"):
        prepare_folder(folder, tmp_path / "b", 1600, speakers=table)


def test_folder_errors(tmp_path):
    data = tmp_path / "data"
    with pytest.raises(FileNotFoundError, match="no folder"):
        prepare_folder(data, tmp_path / "a", 1600)
    data.mkdir()
    with pytest.raises(FileNotFoundError, match="ends in .aif, .*.wav"):
        prepare_folder(data, tmp_path / "a", 1600)
    for name in ("x-y.wav", "z.wav"):
        make(data / name)
    with pytest.raises(ValueError, match="2 files are too few"):
        prepare_folder(data, tmp_path / "a", 1600)
    with pytest.raises(ValueError, match="lies in no folder"):
        prepare_folder(data, tmp_path / "a", 1600, speakers="folder")
    prepare_folder(data, tmp_path / "a", 1600, valid_share=0, test_share=0)
    assert ids(tmp_path / "a", "train") == ["x-y", "z"]
    assert not (tmp_path / "a" / "valid.csv").exists()
    make(data / "x" / "y.wav")
    with pytest.raises(ValueError, match="both have the ID x-y"):
        prepare_folder(data, tmp_path / "a", 1600)


# --- artificial speech -------------------------------------------------------


@pytest.fixture
def artificial(tmp_path):
    """A small set with the published names.

    The test syllables are cut from bagidu_2 (a word of the pretraining set),
    and didiga_2 (a word of its test set).
    """
    data = tmp_path / "set"
    words = {
        "train": ["bagidu_1", "bagidu_2", "gagagu_1", "bubiba_1"],
        "test": ["didiga_1", "didiga_2", "dadagi_1"],
    }
    syllables = {
        "train": ["bagidu", "gagagu", "bubiba", "didiga", "dadagi"],
        "test": ["bagidu", "didiga"],
    }
    for side, names in words.items():
        for name in names:
            make(data / "reshuffledv2" / side / f"{name}.wav", 33075, 44100)
    for side, names in syllables.items():
        for word in names:
            for i in range(3):
                name = f"{word}_1_{i + 1}_{word[2 * i :][:2]}.wav"
                path = data / "split up data padded" / side / name
                make(path, 12156, 22050)
    return data


def test_artificial_labels(artificial, tmp_path):
    save = tmp_path / "save"
    prepare_artificial_speech(artificial, save)
    assert ids(save, "pretrain") == [
        "bagidu_1",
        "bagidu_2",
        "bubiba_1",
        "gagagu_1",
    ]
    word = rows_of(save / "pretrain.csv")[1]
    assert word["num_samples"] == "12000"
    assert (word["word"], word["recording"]) == ("bagidu", "bagidu_2")
    assert (word["consonants"], word["vowels"]) == ("bgd", "aiu")
    clip = rows_of(save / "test.csv")[2]
    expected = {
        "ID": "bagidu_1_3_du",
        "num_samples": "8821",
        "syllable": "du",
        "consonant": "d",
        "vowel": "u",
        "position": "3",
        "word": "bagidu",
        "recording": "bagidu_2",
    }
    assert expected.items() <= clip.items()
    clips = rows_of(save / "train.csv") + rows_of(save / "valid.csv")
    assert {c["recording"] for c in clips} == {f"{c['word']}_1" for c in clips}
    assert len(clips) == 15 and len(ids(save, "valid")) == 6


def no_shared_recordings(save):
    sides = [
        {row["recording"] for row in rows_of(save / f"{split}.csv")}
        for split in SPLITS
    ]
    return sum(map(len, sides)) == len(set().union(*sides))


def test_artificial_splits_are_disjoint(artificial, tmp_path):
    save = tmp_path / "save"
    prepare_artificial_speech(artificial, save, "unheard")
    assert no_shared_recordings(save)
    assert ids(save, "pretrain") == ["bagidu_1", "bubiba_1", "gagagu_1"]
    assert ids(save, "pretrain_valid") == ["dadagi_1", "didiga_1"]
    again = tmp_path / "again"
    prepare_artificial_speech(artificial, again, "unheard")
    assert contents(save) == contents(again)
    prepare_artificial_speech(artificial, save, "published")
    assert len(ids(save, "pretrain")) == 4


def test_artificial_logs_the_overlap(artificial, tmp_path, caplog):
    with caplog.at_level(logging.INFO):
        prepare_artificial_speech(artificial, tmp_path / "save")
    assert "3 of 6 test syllables (1 of 2 recordings)" in caplog.text


def test_artificial_errors(artificial, tmp_path):
    with pytest.raises(ValueError, match="'published' or 'unheard'"):
        prepare_artificial_speech(artificial, tmp_path / "s", "other")
    test = artificial / "reshuffledv2" / "test"
    wrong = make(test / "bagid_1.wav")
    with pytest.raises(ValueError, match="not bagid_1"):
        prepare_artificial_speech(artificial, tmp_path / "s")
    wrong.unlink()
    test.rename(artificial / "elsewhere")
    with pytest.raises(FileNotFoundError, match="the set consists of"):
        prepare_artificial_speech(artificial, tmp_path / "s")


@pytest.mark.data
def test_real_artificial_set(tmp_path, caplog):
    data = real("ArtificialSpeech")
    with caplog.at_level(logging.INFO):
        prepare_artificial_speech(data, tmp_path / "p")
        prepare_artificial_speech(data, tmp_path / "u", "unheard")
    assert "285 of 360 test syllables (95 of 120 recordings)" in caplog.text
    count = {
        path.stem: len(rows_of(path)) for path in (tmp_path / "p").glob("*.csv")
    }
    assert count == {
        "pretrain": 680,
        "pretrain_valid": 171,
        "train": 1527,
        "valid": 654,
        "test": 360,
    }
    assert count["train"] + count["valid"] == 2181
    for save in (tmp_path / "p", tmp_path / "u"):
        assert no_shared_recordings(save)
    tested = {row["recording"] for row in rows_of(tmp_path / "u" / "test.csv")}
    heard = set(ids(tmp_path / "p", "pretrain")) & tested
    assert len(tested) == 120 and len(heard) == 95
    unheard = ids(tmp_path / "u", "pretrain")
    assert set(unheard) == set(ids(tmp_path / "p", "pretrain")) - tested
    assert len(unheard) == 585
    assert not tested & set(ids(tmp_path / "u", "pretrain_valid"))


# --- LibriSpeech -------------------------------------------------------------


@pytest.fixture
def libri(tmp_path):
    """Two speakers with ten utterances of 4000 samples each, and lists."""
    data = tmp_path / "libri"
    subset = data / "LibriSpeech" / "train-clean-100"
    names = []
    make(subset / "19" / "7" / "._19-7-0000.flac")  # of macOS
    for speaker in ("19", "1034"):
        for i in range(10):
            name = f"{speaker}-7-{i:04d}"
            make(subset / speaker / "7" / f"{name}.flac", 4000)
            names.append(name)
        lines = [f"{name} WORD {name[-1]}" for name in names[-10:]]
        (subset / speaker / "7" / f"{speaker}-7.trans.txt").write_text(
            "\n".join(lines)
        )
    (data / "LibriSpeech" / "SPEAKERS.TXT").write_text(
        "; a comment | F | x\n19   | F | train-clean-100 | 25.1 | A | B\n"
        "1034 | M | train-clean-100 | 25.1 | C\n14 | F | dev-clean | 8 | D\n"
    )
    labels = data / "LibriSpeech100_labels_split"
    labels.mkdir()
    (labels / "train_split.txt").write_text(
        "\n".join(names[0:6] + names[10:17])
    )
    (labels / "test_split.txt").write_text("\n".join(names[6:9] + names[17:20]))
    (labels / "converted_aligned_phones.txt").write_text(
        f"{names[0]} {' '.join(['4'] * 23)}\n"
    )
    return data


def prepare_libri(data, save, **changes):
    prepare_librispeech(data, save, **{"min_samples": 4000, **changes})


def test_librispeech_follows_the_lists(libri, tmp_path, caplog):
    save = tmp_path / "save"
    with caplog.at_level(logging.INFO):
        prepare_libri(libri, save)
    labels = libri / "LibriSpeech100_labels_split"
    assert f"Split: the two lists of {labels}" in caplog.text
    listed = {
        side: set((labels / f"{side}_split.txt").read_text().split())
        for side in ("train", "test")
    }
    assert set(ids(save, "test")) == listed["test"]
    assert set(ids(save, "train") + ids(save, "valid")) == listed["train"]
    rows = {r["ID"]: r for s in SPLITS for r in rows_of(save / f"{s}.csv")}
    assert {r["speaker"] for r in rows_of(save / "valid.csv")} == {"19", "1034"}
    assert len(rows) == 19
    first = rows["19-7-0000"]
    assert (first["speaker"], first["sex"]) == ("19", "F")
    assert first["transcript"] == "WORD 0"
    assert first["phones"] == " ".join(["4"] * 23)
    assert rows["1034-7-0009"]["transcript"] == "WORD 9"
    assert rows["1034-7-0009"]["sex"] == "M"
    assert rows["1034-7-0009"]["phones"] == ""

    inner = tmp_path / "inner"
    prepare_libri(libri / "LibriSpeech", inner)
    assert ids(inner, "valid") == ids(save, "valid")
    prepare_libri(libri, save, valid_share=0)
    assert not (save / "valid.csv").exists()
    assert set(ids(save, "train")) == listed["train"]


def test_librispeech_without_lists(libri, tmp_path, caplog):
    labels = libri / "LibriSpeech100_labels_split"
    (labels / "test_split.txt").unlink()
    with pytest.raises(FileNotFoundError, match="only the other list"):
        prepare_libri(libri, tmp_path / "a")
    (labels / "train_split.txt").unlink()
    with caplog.at_level(logging.INFO):
        prepare_libri(libri, tmp_path / "a")
    assert "20 % of each speaker's utterances" in caplog.text
    for split, count in (("train", 7), ("valid", 1), ("test", 2)):
        rows = rows_of(tmp_path / "a" / f"{split}.csv")
        speakers = Counter(row["speaker"] for row in rows)
        assert speakers == {"19": count, "1034": count}
    prepare_libri(libri, tmp_path / "b")
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    prepare_libri(libri, tmp_path / "b", seed=7)
    assert contents(tmp_path / "a") != contents(tmp_path / "b")


def test_librispeech_errors(libri, tmp_path):
    labels = libri / "LibriSpeech100_labels_split"
    with pytest.raises(FileNotFoundError, match="present: train-clean-100"):
        prepare_libri(libri, tmp_path / "a", subset="dev-clean")
    with pytest.raises(FileNotFoundError, match="nowhere"):
        prepare_libri(libri, tmp_path / "a", labels_folder="nowhere")
    with pytest.raises(FileNotFoundError, match="no phone labels in nowhere"):
        prepare_libri(libri, tmp_path / "a", phones="nowhere")
    with pytest.raises(ValueError, match="'fail' or 'allow', got 'skip'"):
        prepare_libri(libri, tmp_path / "a", incomplete="skip")
    train = labels / "train_split.txt"
    listed = train.read_text()
    train.write_text(listed + "\n19-7-0007")
    with pytest.raises(ValueError, match="19-7-0007 is on both lists"):
        prepare_libri(libri, tmp_path / "a")
    script = "LibriSpeech/train-clean-100/19/7/19-7.trans.txt"
    train.write_text(listed)
    for path in (train, libri / "LibriSpeech/SPEAKERS.TXT", libri / script):
        whole = path.read_bytes()
        path.write_bytes(whole + b"\xe9")
        with pytest.raises(ValueError, match=f"{path} is not UTF-8 .* 0xe9"):
            prepare_libri(libri, tmp_path / "a")
        path.write_bytes(whole)
    assert not (tmp_path / "a").exists()


def problems_of(data, save, **changes):
    """Problems that preparation lists; no manifest is written with them."""
    with pytest.raises(ValueError, match="problems in the corpus") as caught:
        prepare_libri(data, save, **changes)
    assert [path.name for path in save.iterdir()] == ["problems.csv"]
    rows = rows_of(save / "problems.csv")
    assert all(row["remedy"].endswith(".") for row in rows)
    for row in rows[:1]:
        assert row["path"] in str(caught.value)
        assert row["remedy"] in str(caught.value)
    return [(row["path"], row["problem"]) for row in rows]


def test_librispeech_gaps_are_listed_or_allowed(libri, tmp_path, caplog):
    """As a half-extracted archive leaves them."""
    root = libri / "LibriSpeech"
    chapter = root / "train-clean-100" / "19" / "7"
    (chapter / "19-7-0009.flac").unlink()  # on no list
    (root / "train-clean-100/1034/7/1034-7.trans.txt").unlink()
    with open(root / "SPEAKERS.TXT", "a") as file:
        file.write("26 | M | train-clean-100 | 25.1 | E\n")
    found = dict(problems_of(libri, tmp_path / "a"))
    subset = root / "train-clean-100"
    assert {path: problem[:26] for path, problem in found.items()} == {
        str(subset / "1034/7/1034-7.trans.txt"): "10 utterances have no tran",
        str(chapter / "19-7-0009.flac"): "It has a transcript, but t",
        str(subset / "26"): "SPEAKERS.TXT lists the spe",
    }
    with caplog.at_level(logging.INFO):
        prepare_libri(libri, tmp_path / "a", incomplete="allow")
    assert "10 without transcript" in caplog.text and "3 gaps" in caplog.text
    assert not (tmp_path / "a/problems.csv").exists()


def test_librispeech_listed_audio_that_is_missing(libri, tmp_path, caplog):
    """With lists, a half-extracted archive is described as without."""
    subset = libri / "LibriSpeech" / "train-clean-100"
    (subset / "19/7/19-7-0001.flac").unlink()  # listed, with a transcript
    for path in (subset / "1034/7").iterdir():
        path.unlink()
    found = problems_of(libri, tmp_path / "a")
    assert found[0] == (str(subset / "1034/7"), "This chapter has no audio.")
    audio = dict(found[1:-1])
    assert audio.pop(str(subset / "19/7/19-7-0001.flac")).startswith("It has")
    assert audio == {
        str(subset / f"1034/7/1034-7-{i:04d}.flac"): (
            "It is on a list, but the audio is missing."
        )
        for i in range(10)
    }
    assert found[-1][1].startswith("SPEAKERS.TXT lists the speaker")
    (subset / "1034/7").rmdir()
    with caplog.at_level(logging.INFO):
        prepare_libri(libri, tmp_path / "a", incomplete="allow")
    assert "12 gaps" in caplog.text
    names = [name for split in SPLITS for name in ids(tmp_path / "a", split)]
    assert len(names) == 8 and "19-7-0001" not in names


def test_librispeech_lists_of_another_subset(libri, tmp_path, caplog):
    """Those beside the corpus are not for all of it; those asked for are."""
    root = libri / "LibriSpeech"
    for i in range(10):
        make(root / "dev-clean/14/1" / f"14-1-{i:04d}.flac", 4000)
    (root / "dev-clean/14/1/14-1.trans.txt").write_text(
        "".join(f"14-1-{i:04d} WORD\n" for i in range(10))
    )
    with caplog.at_level(logging.INFO):
        prepare_libri(libri, tmp_path / "a", subset="dev-clean")
    assert "Split: no lists of this subset" in caplog.text
    assert len(ids(tmp_path / "a", "test")) == 2
    asked = {
        "subset": "dev-clean",
        "labels_folder": libri / "LibriSpeech100_labels_split",
    }
    found = problems_of(libri, tmp_path / "b", **asked)
    assert len([p for _, p in found if p.startswith("It is on a list")]) == 19
    found = problems_of(libri, tmp_path / "b", **asked, incomplete="allow")
    assert [problem for _, problem in found] == [
        f"No utterance is left for {split}.csv." for split in SPLITS
    ]


def test_librispeech_labels_of_no_utterance(libri, tmp_path):
    source = tmp_path / "mine"
    source.mkdir()
    of_no = [(str(source), "no labels of any utterance of train-clean-100")]

    def found():
        problems = problems_of(libri, tmp_path / "a", phones=source)
        return [(path, text[7:-1]) for path, text in problems]

    assert found() == of_no
    source.rmdir()
    source.write_text("14-1-0000 4 4\n")
    assert found() == of_no
    source = source.rename(tmp_path / "mine.csv")
    source.write_text("ID,start,end,phone\n14-1-0000,0,0.1,AA\n")
    of_no = [(str(source), of_no[0][1])]
    assert found() == of_no


def test_librispeech_names_of_classes_are_those_of_the_labels(libri, tmp_path):
    intervals = tmp_path / "phones.csv"
    intervals.write_text("ID,start,end,phone\n19-7-0000,0,0.25,AA\n")
    lines = tmp_path / "phones.lst"
    lines.write_text(f"19-7-0000 {'4 ' * 23}\n")
    names = tmp_path / "a" / "phones.txt"
    for source, has_names in ((intervals, True), (lines, False)) * 2:
        prepare_libri(libri, tmp_path / "a", phones=source)
        assert names.exists() is has_names
    prepare_libri(libri, tmp_path / "a", phones=intervals)
    names.unlink()  # as of a run killed before it wrote them
    prepare_libri(libri, tmp_path / "a", phones=intervals)
    assert names.exists()


def test_librispeech_is_not_read_again(libri, tmp_path, monkeypatch):
    intervals = tmp_path / "phones.csv"
    intervals.write_text("ID,start,end,phone\n19-7-0000,0,0.25,AA\n")
    read = []
    monkeypatch.setattr(
        "speechbrain_sim.data.corpora.librispeech._length",
        lambda path: read.append(path) or 4000,
    )

    def reads(**changes):
        read.clear()
        prepare_libri(libri, tmp_path / "a", phones=intervals, **changes)
        return bool(read)

    assert reads() and not reads() and not reads()
    assert reads(seed=2) and not reads(seed=2) and reads() and not reads()
    with pytest.raises(FileNotFoundError):
        prepare_libri(libri, tmp_path / "a", phones="nowhere")
    subset = libri / "LibriSpeech" / "train-clean-100"
    labels = libri / "LibriSpeech100_labels_split"
    for path in (
        subset / "19/7/19-7-0000.flac",
        subset / "19/7/19-7.trans.txt",
        subset.parent / "SPEAKERS.TXT",
        labels / "test_split.txt",
        intervals,
    ):
        path.write_bytes(path.read_bytes() + b"\n")
        assert reads() and not reads()
    (tmp_path / "a/train.csv").unlink()
    assert reads() and not reads()
    (subset / "19/7/19-7-0009.flac").unlink()  # on no list
    with pytest.raises(ValueError, match="1 problems"):
        reads()
    make(subset / "19/7/19-7-0009.flac", 4000)
    make(subset / "19/7/19-7-0010.flac", 4000)
    assert reads(incomplete="allow") and not reads(incomplete="allow")
    (subset / "19/8").mkdir()
    with pytest.raises(ValueError, match="This chapter has no audio"):
        reads(incomplete="allow")
    (subset / "19/8").rmdir()
    assert (tmp_path / "a/problems.csv").exists()
    assert not reads(incomplete="allow")
    assert not (tmp_path / "a/problems.csv").exists()


def test_librispeech_unknown_speakers(libri, tmp_path):
    speakers = libri / "LibriSpeech" / "SPEAKERS.TXT"
    lines = speakers.read_text().splitlines()
    speakers.write_text("\n".join(lines[:2]))
    ((path, problem),) = problems_of(libri, tmp_path / "a")
    assert path.endswith("train-clean-100/1034") and "unknown" in problem
    speakers.unlink()
    assert problems_of(libri, tmp_path / "a") == [
        (str(speakers), "There is no such file.")
    ]
    prepare_libri(libri, tmp_path / "a", incomplete="allow")
    assert rows_of(tmp_path / "a/train.csv")[0]["sex"] == ""


def test_librispeech_broken_folders(libri, tmp_path):
    """Neither an excerpt nor the whole corpus looks like this."""
    subset = libri / "LibriSpeech" / "train-clean-100"
    (subset / "19" / "8").mkdir()
    make(subset / "19" / "7" / "19-9-0000.flac")
    script = subset / "1034" / "7" / "1034-7.trans.txt"
    script.write_text(script.read_text() + "\n1034-7-0000 ANOTHER\n")
    found = problems_of(libri, tmp_path / "a", incomplete="allow")
    assert found == [
        (
            str(subset / "19/7/19-9-0000.flac"),
            "Its name does not begin with 19-7-.",
        ),
        (str(subset / "19/8"), "This chapter has no audio."),
        (str(script), "1034-7-0000 has two transcripts."),
    ]


def test_librispeech_label_lines_that_do_not_fit(libri, tmp_path):
    path = libri / "LibriSpeech100_labels_split/converted_aligned_phones.txt"
    lines = [
        "19-7-0001 " + "4 " * 22,
        "19-7-0002 " + "4 " * 22 + "41",
        "19-7-0003 " + "4 " * 22 + "AA",
        "19-7-0004 " + "40 " * 23,
        "19-7-0004 " + "4 " * 23,
        "19-7-0005",
        "",
        "elsewhere 4 4",
    ]
    path.write_text("\n".join(lines))
    found = problems_of(libri, tmp_path / "a")
    assert [place for place, _ in found] == [
        f"{path}:{number}" for number in (1, 2, 3, 5, 6)
    ]
    for (_, problem), words in zip(
        found,
        [
            "has 22 labels, but its 4000 samples make 23",
            "the phone 41; they are 0 to 40",
            "the phone AA",
            "a second line",
            "has 0 labels",
        ],
        strict=True,
    ):
        assert words in problem


def test_librispeech_short_utterances_are_counted(libri, tmp_path, caplog):
    subset = libri / "LibriSpeech" / "train-clean-100"
    make(subset / "19/7/19-7-0001.flac", 20640)
    make(subset / "19/7/19-7-0002.flac", 20641)
    for i in (3, 6):
        make(subset / f"19/7/19-7-000{i}.flac", 30000)
    with caplog.at_level(logging.INFO):
        prepare_librispeech(libri, tmp_path / "a", valid_share=0)
    assert "16 left out for fewer than 20641 samples" in caplog.text
    assert ids(tmp_path / "a", "train") == ["19-7-0002", "19-7-0003"]
    assert ids(tmp_path / "a", "test") == ["19-7-0006"]
    found = problems_of(libri, tmp_path / "b", min_samples=30001)
    assert [problem for _, problem in found] == [
        f"No utterance is left for {split}.csv." for split in SPLITS
    ]


def test_librispeech_a_cut_file_is_bad_audio(libri, tmp_path):
    path = libri / "LibriSpeech/train-clean-100/19/7/19-7-0000.flac"
    path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(ValueError, match="1 audio files cannot be used"):
        prepare_libri(libri, tmp_path / "a")
    path.write_bytes(b"")
    with pytest.raises(ValueError, match="1 audio files cannot be used"):
        prepare_libri(libri, tmp_path / "a")


@pytest.fixture
def archives(tmp_path):
    """A folder that a server gives away, and its address."""
    folder = tmp_path / "archives"
    folder.mkdir()
    handler = functools.partial(SimpleHTTPRequestHandler, directory=folder)
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield folder, f"http://127.0.0.1:{server.server_address[1]}/"
    server.shutdown()
    server.server_close()


def test_librispeech_is_downloaded_if_asked(libri, tmp_path, archives):
    archives, address = archives
    with tarfile.open(archives / "train-clean-100.tar.gz", "w:gz") as tar:
        tar.add(libri / "LibriSpeech", "LibriSpeech")
    content = (archives / "train-clean-100.tar.gz").read_bytes()
    options = {
        "download": True,
        "download_from": address,
        "checksum": "md5:" + hashlib.md5(content).hexdigest(),
    }
    with pytest.raises(
        FileNotFoundError, match="folder .*--download True gets"
    ):
        prepare_libri(tmp_path / "new", tmp_path / "a")
    with pytest.raises(ValueError, match="not 2a93770f6d5c6c964bc36631d331a"):
        prepare_libri(
            tmp_path / "new", tmp_path / "a", **{**options, "checksum": None}
        )
    prepare_libri(tmp_path / "new", tmp_path / "a", **options)
    assert len(ids(tmp_path / "a", "train")) > 10
    (archives / "train-clean-100.tar.gz").unlink()  # it is not needed again
    prepare_libri(tmp_path / "new", tmp_path / "a", **options)
    prepare_libri(tmp_path / "new/LibriSpeech", tmp_path / "b", **options)
    (tmp_path / "new/LibriSpeech/train-clean-100").rename(tmp_path / "gone")
    inner = tmp_path / "new/LibriSpeech"  # the archive is beside it
    prepare_libri(inner, tmp_path / "c", **options)
    assert sorted(path.name for path in inner.iterdir()) == [
        "SPEAKERS.TXT",
        "train-clean-100",
    ]


@pytest.mark.data
def test_real_librispeech_excerpt(tmp_path, caplog):
    data = real("LibriSpeechExcerpt")
    with pytest.raises(ValueError, match="--incomplete allow"):
        prepare_librispeech(data, tmp_path / "a")
    with caplog.at_level(logging.INFO):
        prepare_librispeech(data, tmp_path / "a", incomplete="allow")
    assert "8 utterances of 5 speakers, 0 unlisted, 0 left out" in caplog.text
    prepare_librispeech(data, tmp_path / "b", valid_share=0, incomplete="allow")
    assert not (tmp_path / "b" / "valid.csv").exists()
    rows = [r for s in SPLITS for r in rows_of(tmp_path / "a" / f"{s}.csv")]
    assert len(rows) == 8
    labelled = [row for row in rows if row["phones"]]
    assert [row["ID"] for row in labelled] == ["4051-11218-0044"]
    assert labelled[0]["sex"] == "F"
    assert len(labelled[0]["phones"].split()) == 1119
    assert num_labels(int(labelled[0]["num_samples"])) == 1119
    arguments = json.loads((tmp_path / "b" / "prepare.json").read_text())
    assert arguments["arguments"]["valid_share"] == 0
