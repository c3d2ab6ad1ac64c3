"""VocalSet: its layout, the published singers, clips of recordings."""

import csv

import numpy as np
import pytest
import soundfile as sf

from speechbrain_sim.data.audio import read_audio
from speechbrain_sim.data.batches import make_dataset
from speechbrain_sim.data.corpora import corpus_of, recognise
from speechbrain_sim.data.corpora.vocalset import prepare_vocalset
from speechbrain_sim.data.manifests import write_manifests
from speechbrain_sim.data.tables import read_manifest
from tests.conftest import make_vocalset


@pytest.fixture
def singers(tmp_path):
    """Recordings of 0.6 and 1.5 s, and files that are not used."""
    folder = tmp_path / "data"
    make_vocalset(folder, np.random.default_rng(0), 22050, (0.6, 1.5))
    excerpts = folder / "FULL/male4/excerpts"
    for name in (
        "spoken/m4_row_spoken.wav",  # used
        "vibrato/m4_row_vibrato.wav",  # an excerpt without a vowel
        "fast_forte/m4_scales_fast_forte_a.wav",  # a tempo
        "belt/m4_scales_belt_a(1).wav",  # twice there
        "belt/._m4_scales_belt_a.wav",  # of macOS
    ):
        (excerpts / name).parent.mkdir(parents=True, exist_ok=True)
        sf.write(excerpts / name, [0.1, -0.1] * 9000, 22050)
    return folder


def prepare(data, save, **options):
    prepare_vocalset(data, save, 0.5, **options)
    parts = {}
    for part in ("train", "valid", "test"):
        with open(save / f"{part}.csv", newline="") as file:
            parts[part] = list(csv.DictReader(file))
    return parts


def test_singers_and_recordings_are_divided(singers, tmp_path):
    parts = prepare(singers, tmp_path / "save")
    who = {k: {row["speaker"] for row in rows} for k, rows in parts.items()}
    assert who["test"] == {"female2", "male3"} and len(parts["test"]) == 12
    assert who["train"] | who["valid"] == {"female1", "male4"}
    recordings = {
        k: {row["recording"] for row in rows} for k, rows in parts.items()
    }
    # 13 recordings of two singers, one in five for validation
    assert [len(recordings[k]) for k in parts] == [10, 3, 12]
    assert not recordings["train"] & recordings["valid"]
    assert "male4-excerpts-spoken-m4_row_spoken" in set.union(
        *recordings.values()
    )
    rows = [row for rows in parts.values() for row in rows]
    # the misspelt folder is of vibrato, and its rows keep all their labels
    (row,) = (
        r
        for r in rows
        if r["ID"].startswith("female2-scales-vibrado-f2_scales_vibrato_a")
    )
    labels = "speaker", "sex", "context", "technique", "vowel"
    assert [row[label] for label in labels] == [
        *("female2", "female", "scales", "vibrato", "a")
    ]
    assert {row["technique"] for row in rows} == {"vibrato", "belt", "spoken"}


def test_clips_are_parts_of_their_recordings(singers, tmp_path):
    parts = prepare(singers, tmp_path / "save")
    for part, rows in parts.items():
        manifest = read_manifest(tmp_path / f"save/{part}.csv", singers)
        dataset = make_dataset(tmp_path / f"save/{part}.csv", singers)
        items = {item["id"]: item["sig"] for item in dataset}
        for row in rows:
            frames = sf.info(singers / row["wav"].partition("/")[2]).frames
            number = int(row["ID"].rpartition("-")[2])
            clips = frames // 11025
            assert int(row["start"]) == number * 11025
            assert int(row["stop"]) == (number + 1) * 11025
            assert number < (clips if part == "train" else 1)
            assert int(row["num_samples"]) == 8000
            read = manifest[row["ID"]]
            assert (read["start"], read["num_samples"]) == (8000 * number, 8000)
            whole = read_audio(read["wav"])
            cut = whole[8000 * number : 8000 * (number + 1)]
            assert np.allclose(items[row["ID"]], cut, atol=1e-6)
    count = sum(row["num_samples"] == "8000" for row in parts["train"])
    assert count == len({(r["wav"], r["start"]) for r in parts["train"]}) > 10


def test_a_short_recording_is_one_clip(singers, tmp_path):
    prepare_vocalset(singers, tmp_path / "save", clip_seconds=5.0)
    for part in ("train", "valid", "test"):
        for row in read_manifest(tmp_path / f"save/{part}.csv").values():
            assert row["start"] == 0 and row["num_samples"] in (
                *(9600, 24000, 13062),
            )


def test_its_licence_is_given_by_name_only(singers, tmp_path):
    prepare(singers, tmp_path / "save")
    manifests = [tmp_path / "save/train.csv"]
    assert recognise("VocalSet", manifests, singers) is None
    assert corpus_of({}, "VocalSet").licence == "cc-by-4.0"


@pytest.mark.parametrize("part", [(-1, 5), (5, 5), (0, 99999999)], ids=str)
def test_a_part_that_is_not_there_is_refused(singers, tmp_path, part):
    wav = next(singers.glob("FULL/female1/scales/belt/*.wav"))
    row = {"ID": "a", "wav": wav, "start": part[0], "stop": part[1]}
    with pytest.raises(ValueError, match="a has start .* not within the"):
        write_manifests({"train": [row]}, tmp_path / "save", singers, 400)


def test_what_is_wrong_is_named(singers, tmp_path):
    with pytest.raises(FileNotFoundError, match="VocalSet as it is unpacked"):
        prepare_vocalset(singers / "FULL", tmp_path / "save")
    broken = next(singers.glob("FULL/female1/scales/belt/*.wav"))
    content = broken.read_bytes()
    broken.write_bytes(content[:30])
    with pytest.raises(
        ValueError, match=f"1 audio files .*\n.*\n.*{broken.name}"
    ):
        prepare_vocalset(singers, tmp_path / "save")
    parts = prepare(singers, tmp_path / "save", on_bad_audio="skip")
    assert broken.stem not in str(parts)
    (singers / "FULL/anna/scales/belt").mkdir(parents=True)
    sf.write(singers / "FULL/anna/scales/belt/a_a.wav", [0.1] * 9, 8000)
    with pytest.raises(ValueError, match="a singer like female1"):
        prepare_vocalset(singers, tmp_path / "save")
