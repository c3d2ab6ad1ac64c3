"""Targets of CTC: each kind, each corpus, what cannot be one, and errors."""

import csv
import math
from itertools import product

import pytest
import torch
from torch.nn.functional import ctc_loss

from speechbrain_sim.data.corpora.artificial_speech import (
    prepare_artificial_speech,
)
from speechbrain_sim.data.corpora.fsdd import prepare_fsdd
from speechbrain_sim.data.corpora.synthetic import prepare_synthetic
from speechbrain_sim.data.targets import (
    Labels,
    error_rates,
    frames_needed,
    normalise,
    read_targets,
)

SENTENCES = {"train": "the cat sat|a hat|cat's hat", "test": "A cat sat."}


def write(folder, texts, column="text", **columns):
    """Manifests of sentences, separated by bars; returns their paths."""
    paths = {}
    for part, joined in texts.items():
        paths[part] = folder / f"{part}.csv"
        rows = [
            {"ID": f"{part}{i}", "wav": "a.wav", column: text, **columns}
            for i, text in enumerate(joined.split("|"))
        ]
        with open(paths[part], "w", newline="") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)
    return paths


def prepared(prepare, corpora, folder, save, **options):
    prepare(corpora / folder, save, **options)
    return {part: save / f"{part}.csv" for part in ("train", "valid", "test")}


@pytest.mark.parametrize("target", ["chars", "words", "pieces"])
def test_texts_come_back_from_their_numbers(tmp_path, target):
    labels, ids = read_targets(
        write(tmp_path, SENTENCES), target, vocabulary=20
    )
    texts = {part: [*map(labels.text, ids[part].values())] for part in ids}
    assert texts["train"] == ["THE CAT SAT", "A HAT", "CAT'S HAT"]
    assert texts["test"] == ["A CAT SAT"]
    assert labels.symbols[0] == "<blank>" and 0 not in ids["test"]["test0"]
    # the same labels in the same order, from whatever order of utterances
    again = write(
        tmp_path, SENTENCES | {"train": "cat's hat|a hat|the cat sat"}
    )
    same = read_targets(again, target, vocabulary=20).labels
    assert same.symbols == labels.symbols


def test_phones_are_runs_of_the_labels_of_frames(corpora, tmp_path):
    paths = prepared(
        *(prepare_synthetic, corpora, "Synthetic", tmp_path),
        **{"min_samples": 16000, "speakers": 3},
        **{"sentences": 9, "test_sentences": 3},
    )
    labels, ids = read_targets(paths, "phones")
    with open(paths["test"], newline="") as file:
        row = next(csv.DictReader(file))
    names = dict(
        line.split()
        for line in (tmp_path / "phones.txt").read_text().split("\n")[:-1]
    )
    expected, before = [], None
    for number in row["phones"].split():
        if number != before and names[number] != "SIL":
            expected.append(names[number])
        before = number
    assert labels.text(ids["test"][row["ID"]]) == " ".join(expected)
    assert "SIL" not in labels.symbols
    # the transcript is that of the corpus, and found without being named
    labels, ids = read_targets(paths, "chars")
    assert labels.text(ids["test"][row["ID"]]) == row["transcript"]


def test_digits_and_syllables_are_words(corpora, tmp_path):
    digits = prepared(prepare_fsdd, corpora, "FSDD", tmp_path / "fsdd")
    labels, ids = read_targets(digits, "words")
    assert labels.symbols == ["<blank>", "0", "1"]
    assert ids["train"]["1_theo_10"].tolist() == [2]
    artificial = prepared(
        prepare_artificial_speech, corpora, "ArtificialSpeech", tmp_path / "art"
    )
    labels, ids = read_targets(artificial, "words")
    assert labels.text(ids["test"]["bababi_1_3_bi"]) == "BI"
    with pytest.raises(
        ValueError, match="test.csv has no column 'phones'|train"
    ):
        read_targets(artificial, "phones")


@pytest.mark.parametrize(
    ("texts", "target", "message"),
    [
        ({"train": "a|"}, "chars", "train.csv, train1 has an empty"),
        ({"train": "a|--."}, "chars", "train.csv, train1 has an empty"),
        ({"train": "ab", "test": "az"}, "chars", "test.csv, test0 has 'Z'"),
        ({"train": "ab", "test": "az"}, "words", "test0 has 'AZ'.*--target"),
        (
            {"train": "abc", "test": "az"},
            "pieces",
            "test.csv, test0 has '[▁A]*Z",
        ),
        ({"train": "abcdefghij"}, "pieces", "--pieces 10 .* 11 .*: give 12"),
        ({"train": "a", "test": "a"}, "letters", "'letters', not one of"),
    ],
)
def test_what_cannot_be_a_target_is_named(tmp_path, texts, target, message):
    with pytest.raises(ValueError, match=message):
        read_targets(write(tmp_path, texts), target, vocabulary=10)


def test_a_transcript_longer_than_its_frames_is_named(tmp_path):
    paths = write(tmp_path, {"train": "ab|hello"}, num_samples=60)
    read_targets(paths, "chars", frames=lambda samples: samples // 10)
    with pytest.raises(
        ValueError, match="train1: CTC needs 6 .* 5 labels .* 5:"
    ):
        read_targets(paths, "chars", frames=lambda samples: samples // 12)
    read_targets(paths, "words", frames=lambda samples: samples // 12)


@pytest.mark.parametrize("labels", list(product([1, 2], repeat=3)), ids=str)
def test_fewest_frames_are_those_of_a_finite_loss(labels):
    for frames in range(1, 7):
        scores = torch.zeros(frames, 1, 3).log_softmax(-1)
        lengths = torch.tensor([frames]), torch.tensor([len(labels)])
        loss = ctc_loss(scores, torch.tensor([labels]), *lengths)
        assert math.isfinite(loss) == (frames >= frames_needed(labels))


def distance(a, b):
    """Levenshtein's, by its definition."""
    if not a or not b:
        return len(a) + len(b)
    same = distance(a[1:], b[1:]) + (a[0] != b[0])
    return min(same, distance(a[1:], b) + 1, distance(a, b[1:]) + 1)


def test_errors_are_those_of_the_definition():
    symbols = [" ", *"ABC"]
    truth = {"x": "AB CA", "y": "B", "z": "C C C"}
    said = {"x": "A  BA", "y": "", "z": " CAC C"}
    number = {symbol: i + 1 for i, symbol in enumerate(symbols)}
    predicted, true = (
        {name: [number[c] for c in text] for name, text in texts.items()}
        for texts in (said, truth)
    )
    rates = error_rates(predicted, true, Labels("chars", symbols))
    for kind, split in {"CER": list, "WER": str.split}.items():
        edits = [
            distance(split(" ".join(said[n].split())), split(truth[n]))
            for n in truth
        ]
        lengths = [len(split(text)) for text in truth.values()]
        assert rates[kind].edits == edits and rates[kind].lengths == lengths
        assert rates[kind].percent == pytest.approx(
            100 * sum(edits) / sum(lengths)
        )


def test_an_oracle_has_no_errors_and_silence_has_all(tmp_path):
    paths = write(tmp_path, SENTENCES)
    labels, parts = read_targets(paths, "pieces", vocabulary=20)
    oracle, silent = {}, {}
    for name, ids in parts["train"].items():
        frames = torch.zeros(2 * len(ids) + 1, dtype=torch.long)
        frames[1::2] = ids  # a blank between any two
        scores = torch.eye(len(labels.symbols))[frames]
        padded = torch.cat([scores, scores.flip(0)])[None]
        (oracle[name],) = labels.decode(padded, torch.tensor([len(frames)]))
        silent[name] = []
    best, worst = (
        error_rates(p, parts["train"], labels) for p in (oracle, silent)
    )
    assert {rate.percent for rate in best.values()} == {0}
    assert {rate.percent for rate in worst.values()} == {100}


def test_punctuation_goes_and_letters_stay():
    assert normalise("Él dijo: ¡«qué»!") == "ÉL DIJO QUÉ"
    assert normalise("a\tb\n c") == "A B C"
