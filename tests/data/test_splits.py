"""Divisions: what the test part shares is what the sentence states."""

import csv
from itertools import product

import numpy as np
import pytest
import soundfile as sf

from speechbrain_sim.data.manifests import write_manifests
from speechbrain_sim.data.splits import divide
from speechbrain_sim.data.tables import read_manifest


def corpus(folder, rows, own=("train", "valid", "test")):
    """Manifests of short files whose columns are `rows`; in turn of each part."""
    audio = folder / "audio"
    audio.mkdir(parents=True, exist_ok=True)
    splits = {part: [] for part in own}
    for number, row in enumerate(rows):
        wav = audio / f"{number:03}.wav"
        sf.write(wav, np.arange(800) / (900 + number), 16000)
        part = row.pop("part", own[number % len(own)])
        splits[part].append({"ID": wav.stem, "wav": wav, **row})
    write_manifests(splits, folder / "own", audio, 400)
    return {part: folder / f"own/{part}.csv" for part in own}, audio


def speakers(count, texts, **columns):
    """Every speaker says every text."""
    return [
        {"speaker": f"s{s}", "sex": "FM"[s % 2], "text": t, **columns}
        for s, t in product(range(count), texts)
    ]


def values(manifests, column):
    return {
        part: {row[column] for row in read_manifest(path).values()}
        for part, path in manifests.items()
    }


def test_a_label_is_tested_on_new_speakers_of_each_sex(tmp_path):
    data = corpus(tmp_path, speakers(12, ["one", "two", "three"]))
    (tmp_path / "own/phones.txt").write_text("0 SIL\n")
    manifests, sentence = divide(*data, tmp_path / "new", "sex")
    parts = values(manifests, "speaker")
    assert [len(parts[part]) for part in parts] == [8, 2, 2]
    assert len(set.union(*parts.values())) == 12
    assert values(manifests, "sex")["test"] == {"F", "M"}
    assert sentence == (
        "Divided by speaker: train 24, valid 6, test 6 utterances; no test "
        "speaker and 3 of 3 test texts in another part."
    )
    assert (tmp_path / "new/phones.txt").read_text() == "0 SIL\n"
    # the same again, and of a transcript
    assert divide(*data, tmp_path / "new", "sex") == (manifests, sentence)
    again = divide(*data, tmp_path / "again").manifests
    assert not set.intersection(*values(again, "speaker").values())


def test_a_speaker_is_tested_on_new_texts_where_they_repeat(tmp_path):
    data = corpus(tmp_path, speakers(3, "abcdefghij"))
    manifests, sentence = divide(*data, tmp_path / "new", "speaker")
    texts = values(manifests, "text")
    assert len(texts["test"]) == 2
    assert not texts["test"] & (texts["train"] | texts["valid"])
    assert {len(names) for names in values(manifests, "speaker").values()} == {
        3
    }
    assert sentence.startswith("Divided by text: train ")
    assert sentence.endswith(
        "3 of 3 test speakers and no test text in another part."
    )


def test_a_speaker_is_tested_on_new_utterances_where_none_repeats(tmp_path):
    rows = [
        {"speaker": f"s{s}", "text": f"{s} and {i}", "part": part}
        for s, part in enumerate(["train", "train", "valid", "test"])
        for i in range(10)
    ]
    manifests, sentence = divide(*corpus(tmp_path, rows), tmp_path, "speaker")
    assert {len(names) for names in values(manifests, "speaker").values()} == {
        4
    }
    assert sentence == (
        "Divided by utterance: train 28, valid 4, test 8 utterances; 4 of 4 "
        "test speakers and no test text in another part."
    )


def test_parts_of_a_corpus_that_are_apart_are_kept(tmp_path):
    rows = speakers(6, "ab", part="train")
    for row in rows:
        row["part"] = {"s4": "valid", "s5": "test"}.get(row["speaker"], "train")
    data = corpus(tmp_path, rows)
    manifests, sentence = divide(*data, tmp_path / "new", "sex")
    assert manifests == data[0] and not (tmp_path / "new").exists()
    assert sentence.startswith(
        "The corpus' own parts: train 8, valid 2, test 2"
    )
    # as published, whatever they share
    mixed = corpus(tmp_path / "mixed", speakers(2, "abc"))
    manifests, sentence = divide(
        *mixed, tmp_path / "new", "sex", split="published"
    )
    assert manifests == mixed[0]
    assert "2 of 2 test speakers and no test text in another part." in sentence


def test_one_name_in_two_parts_is_refused(tmp_path):
    train, audio = corpus(tmp_path, speakers(3, "abc"), own=("train",))
    data = {"train": train["train"], "test": train["train"]}
    with pytest.raises(
        ValueError, match="train.csv cannot be .* 000 is in several"
    ):
        divide(data, audio, tmp_path / "new", "sex")


def test_a_part_of_a_file_stays_that_part(tmp_path):
    rows = [{**row, "start": 100, "stop": 700} for row in speakers(4, "abc")]
    data = corpus(tmp_path, rows)
    manifests = divide(*data, tmp_path / "new", "sex").manifests
    row = next(iter(read_manifest(manifests["test"], data[1]).values()))
    assert (row["start"], row["num_samples"]) == (100, 600)
    with open(manifests["test"], newline="") as file:
        assert next(csv.DictReader(file))["stop"] == "700"


@pytest.mark.parametrize(
    ("rows", "label", "message"),
    [
        (
            speakers(1, "abc"),
            "sex",
            "of sex takes 3 .*all: s0. .*published",
        ),
        (speakers(2, "abc"), None, "of texts takes 3 .*all: s0, s1"),
        (speakers(3, "abc"), "style", "train.csv has no column 'style'"),
        (
            [{**r, "accent": r["speaker"]} for r in speakers(4, "abc")],
            *("accent", "accent 's.' .such as .* is nowhere in .*train.csv"),
        ),
    ],
)
def test_what_cannot_be_divided_is_named(tmp_path, rows, label, message):
    with pytest.raises(ValueError, match=message):
        divide(*corpus(tmp_path, rows), tmp_path / "new", label)


def test_a_corpus_without_speakers_is_kept(tmp_path):
    data = corpus(tmp_path, [{"take": "1"} for _ in range(6)])
    manifests, sentence = divide(*data, tmp_path / "new", "take")
    assert manifests == data[0]
    assert sentence.endswith("; neither speakers nor texts are named.")
