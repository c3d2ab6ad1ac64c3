"""Spoken digits: the published split, and one speaker left out."""

import csv
from collections import Counter
from itertools import product

import numpy as np
import pytest
import soundfile

from speechbrain_sim.data.corpora.fsdd import prepare_fsdd
from tests.conftest import ROOT, spoken_digits

REAL = ROOT.parent / "shared/data/FSDD"
SPEAKERS = ["george", "jackson", "lucas", "nicolas", "theo", "yweweler"]


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    folder = tmp_path_factory.mktemp("digits")
    (folder / "recordings").mkdir()
    for number, name in enumerate(spoken_digits()):
        wave = [0.1, -0.1] * (700 + number)  # at 8 kHz
        soundfile.write(folder / f"recordings/{name}.wav", wave, 8000)
    return folder


def prepare(data, save, held_out=None):
    prepare_fsdd(data, save, held_out)
    parts = {}
    for part in ("train", "valid", "test"):
        with open(save / f"{part}.csv", newline="") as file:
            parts[part] = list(csv.DictReader(file))
    return parts


def test_published_split(digits, tmp_path):
    parts = prepare(digits, tmp_path)
    sides = {0: "test", 1: "test", 5: "valid"}
    sides |= dict.fromkeys([10, 11, 49], "train")
    for part, rows in parts.items():
        indices = [i for i, side in sides.items() if side == part]
        men = "george", "jackson", "theo"
        names = {f"{d}_{m}_{i}" for d, m, i in product("01", men, indices)}
        assert {row["ID"] for row in rows} == names
        for row in rows:
            name = f"{row['digit']}_{row['speaker']}_"
            assert row["ID"].startswith(name)
            assert row["wav"] == f"$data_root/recordings/{row['ID']}.wav"
    assert parts["test"][0]["num_samples"] == "2800"  # at 16 kHz


@pytest.mark.parametrize(
    "man, other", [("george", "jackson"), ("theo", "george")]
)
def test_a_speaker_is_left_out(digits, tmp_path, man, other):
    parts = prepare(digits, tmp_path, man)
    men = {k: {row["speaker"] for row in rows} for k, rows in parts.items()}
    assert men["test"] == {man} and men["valid"] == {other}
    assert men["train"] == {"george", "jackson", "theo"} - {man, other}
    assert {len(rows) for rows in parts.values()} == {12}  # all of each


def test_what_is_wrong_is_named(digits, tmp_path):
    with pytest.raises(ValueError, match="are george, jackson, theo: it"):
        prepare_fsdd(digits, tmp_path, "lucas")
    with pytest.raises(FileNotFoundError, match="is a clone of"):
        prepare_fsdd(digits / "recordings", tmp_path)
    (tmp_path / "recordings").mkdir()
    for name in ("0_george_1", "0_theo_1", "ten_theo_2"):
        wav = tmp_path / f"recordings/{name}.wav"
        soundfile.write(wav, [0.1, 0.2] * 1000, 8000)
    with pytest.raises(ValueError, match="not ten_theo_2.wav"):
        prepare_fsdd(tmp_path, tmp_path / "save")
    wav.unlink()
    with pytest.raises(ValueError, match="and three or more"):
        prepare_fsdd(tmp_path, tmp_path / "save", "theo")


@pytest.mark.data
def test_the_real_recordings(tmp_path):
    if not REAL.is_dir():
        pytest.skip("../shared/data/FSDD is absent")
    parts = prepare(REAL, tmp_path / "published")
    sizes = {part: len(rows) for part, rows in parts.items()}
    assert sizes == {"train": 2400, "valid": 300, "test": 300}
    rows = [row for part in parts.values() for row in part]
    count = Counter((row["digit"], row["speaker"]) for row in rows)
    assert count == dict.fromkeys(product("0123456789", SPEAKERS), 50)
    assert {row["sample_rate"] for row in rows} == {"8000"}
    seconds = sorted(float(row["duration"]) for row in rows)
    assert round(seconds[0], 2) == 0.14 and round(seconds[-1], 1) == 2.3
    assert round(seconds[1500], 2) == 0.42
    level = {}  # in dB, of ten recordings of each
    for man in SPEAKERS:
        wavs = [REAL / f"recordings/{d}_{man}_10.wav" for d in range(10)]
        power = [np.square(soundfile.read(wav)[0]).mean() for wav in wavs]
        level[man] = 10 * np.log10(power).mean()
    quiet = sorted(SPEAKERS, key=level.get)
    assert quiet[:2] == ["theo", "yweweler"]
    assert level[quiet[2]] - level["yweweler"] > 10
    parts = prepare(REAL, tmp_path / "held_out", "yweweler")
    sizes = {part: len(rows) for part, rows in parts.items()}
    assert sizes == {"train": 2000, "valid": 500, "test": 500}
    assert {row["speaker"] for row in parts["valid"]} == {"george"}
