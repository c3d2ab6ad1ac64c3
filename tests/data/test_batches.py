"""Crops that depend on names only, and labels that lie where the crop does."""

import csv

import pytest
import speechbrain as sb
import torch
from speechbrain.dataio.dataloader import make_dataloader

from speechbrain_sim.data.audio import read_audio
from speechbrain_sim.data.batches import KeyedCrop, classes_of, make_dataset
from speechbrain_sim.data.labels import HOP, kind_of

PHONES = [str(phone) for phone in range(41)]
KINDS = {"phones": "frames", "words": "sequence"}


def rows_of(manifest):
    with open(manifest, newline="") as file:
        return {row["ID"]: row for row in csv.DictReader(file)}


def path_of(row, corpus):
    return row["wav"].replace("$data_root", corpus.folder)


# crops ----------------------------------------------------------------------


@pytest.mark.parametrize("spare", [0, 1, 159, 160, 161, 5000])
def test_a_crop_is_on_the_grid_and_within_bounds(spare):
    crop = KeyedCrop(4000, random=True, seed=3)
    for epoch in range(50):
        crop.set_epoch(epoch)
        start, stop = crop("utterance", 4000 + spare)
        assert start % HOP == 0 and stop - start == 4000
        assert 0 <= start and stop <= 4000 + spare


def test_a_short_utterance_is_read_whole():
    for random in (False, True):
        assert KeyedCrop(4000, random)("utterance", 3999) == (0, 3999)


def test_without_chance_a_crop_is_the_beginning():
    crop = KeyedCrop(4000)
    crop.set_epoch(3)
    assert crop("utterance", 40000) == (0, 4000)


def test_a_crop_is_a_function_of_seed_utterance_and_epoch():
    def starts(seed, utterance):
        crop = KeyedCrop(1600, random=True, seed=seed)
        places = []
        for epoch in range(20):
            crop.set_epoch(epoch)
            crop("another", 10**6)  # no call shifts another
            places.append(crop(utterance, 10**6)[0])
        return places

    first = starts(1, "a")
    assert first == starts(1, "a")
    assert len(set(first)) == 20
    assert first != starts(2, "a") and first != starts(1, "b")


def test_crops_are_uniform_over_all_places():
    places, draws = 16, 8000
    crop = KeyedCrop(1600, random=True)
    length = 1600 + HOP * (places - 1) + 159
    starts = torch.tensor([crop(str(i), length)[0] for i in range(draws)])
    counts = torch.bincount(starts // HOP)
    assert len(counts) == places
    expected = draws / places
    chi_square = ((counts - expected) ** 2 / expected).sum()
    assert chi_square < 37.7  # 0.1 % of chi-square with 15 degrees of freedom


def test_persistent_workers_hear_the_new_epoch(corpus):
    crop = KeyedCrop(4000, random=True, seed=5)
    dataset = make_dataset(corpus.train, corpus.folder, crop)
    loader = make_dataloader(
        dataset, batch_size=3, num_workers=2, persistent_workers=True
    )
    rows, heard = rows_of(corpus.train), []
    for epoch in (1, 2):
        crop.set_epoch(epoch)
        signals = {}
        for batch in loader:
            assert batch.sig.lengths.eq(1).all()
            signals.update(zip(batch.id, batch.sig.data, strict=True))
        assert signals.keys() == rows.keys()
        for name, signal in signals.items():
            place = crop(name, int(rows[name]["num_samples"]))
            whole = read_audio(path_of(rows[name], corpus))
            assert torch.equal(signal, whole[slice(*place)])
        heard.append(signals)
    moved = [not torch.equal(heard[0][n], heard[1][n]) for n in rows]
    assert sum(moved) > len(moved) / 2


def test_without_a_crop_files_are_read_whole(corpus):
    dataset = make_dataset(corpus.valid, corpus.folder)
    rows = rows_of(corpus.valid)
    assert len(dataset) == len(rows)
    for item in dataset:
        assert item.keys() == {"id", "sig"}
        assert len(item["sig"]) == int(rows[item["id"]]["num_samples"])


# labels ---------------------------------------------------------------------


def labels_within(phones, start, stop):
    """Keeps the labels whose 25 ms lie inside, by their centres; a loop."""
    kept = []
    for i, phone in enumerate(phones):
        center = 160 * i + 200
        if start + 200 <= center <= stop - 200:
            kept.append(phone)
    return kept


@pytest.mark.parametrize("samples", [399, 400, 559, 560, 4000, 10**6])
def test_phones_of_a_crop_are_those_inside(corpus, samples):
    crop = KeyedCrop(samples, random=True, seed=2)
    dataset = make_dataset(
        corpus.train, corpus.folder, crop, "phones", PHONES, "frames"
    )
    rows, starts = rows_of(corpus.train), set()
    for epoch in (1, 2):
        crop.set_epoch(epoch)
        for item in dataset:
            row = rows[item["id"]]
            phones = [int(phone) for phone in row["phones"].split()]
            start, stop = crop(item["id"], int(row["num_samples"]))
            expected = labels_within(phones, start, stop)
            assert item["target"].tolist() == expected
            assert item["target"].dtype == torch.int64
            assert len(item["sig"]) == stop - start
            starts.add(start)
    assert (len(starts) > 5) == (samples < 10000)


def test_classes_in_order(corpus):
    assert classes_of(corpus.train, corpus.folder, "pitch") == ["high", "low"]
    phones = classes_of(corpus.train, corpus.folder, "phones", "frames")
    assert phones == ["0", "1", "2", "3", "4"]


def test_a_class_is_its_place_in_the_list(corpus):
    classes = ["low", "unheard", "high"]
    dataset = make_dataset(corpus.train, corpus.folder, None, "pitch", classes)
    rows = rows_of(corpus.train)
    for item in dataset:
        label = rows[item["id"]]["pitch"]
        assert item["target"].tolist() == [classes.index(label)]


def test_batches_have_what_a_brain_reads(corpus):
    dataset = make_dataset(
        corpus.train, corpus.folder, None, "phones", PHONES, "frames"
    )
    brain = sb.Brain(run_opts={"device": "cpu"})
    loader = brain.make_dataloader(dataset, sb.Stage.VALID, batch_size=4)
    batch = next(iter(loader))
    wavs, wav_lens = batch.sig
    labels, label_lens = batch.target
    assert wavs.shape[0] == labels.shape[0] == 4
    assert wav_lens.max() == label_lens.max() == 1
    rows = list(rows_of(corpus.train).values())[:4]
    counts = [len(row["phones"].split()) for row in rows]
    got = (label_lens.double() * labels.shape[1]).round()
    assert got.tolist() == counts


@pytest.mark.parametrize("label", ["phone", "speaker"])
def test_a_missing_column_names_the_others(corpus, label):
    with pytest.raises(ValueError, match=f"no column '{label}'.*pitch, phones"):
        make_dataset(corpus.train, corpus.folder, None, label, ["a", "b"])
    with pytest.raises(ValueError, match=f"no column '{label}'"):
        classes_of(corpus.train, corpus.folder, label)


def relabel(corpus, tmp_path, label, values):
    """The training manifest with other labels in its first rows."""
    with open(corpus.train, newline="") as file:
        rows = list(csv.DictReader(file))
    for row, value in zip(rows, values, strict=False):
        row[label] = value
    path = tmp_path / "changed.csv"
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return str(path), len(rows)


@pytest.mark.parametrize("label", ["phones", "pitch"])
def test_unlabelled_utterances_are_left_out(corpus, tmp_path, label):
    path, total = relabel(corpus, tmp_path, label, ["", ""])
    kind = kind_of(label, KINDS)
    classes = classes_of(path, corpus.folder, label, kind)
    assert "" not in classes
    dataset = make_dataset(path, corpus.folder, None, label, classes, kind)
    assert len(dataset) == total - 2
    path, _ = relabel(corpus, tmp_path, label, [""] * total)
    with pytest.raises(ValueError, match=f"has a '{label}'"):
        make_dataset(path, corpus.folder, None, label, classes, kind)


@pytest.mark.parametrize("label, strange", [("phones", "3 77"), ("pitch", "x")])
def test_a_label_that_training_never_had(corpus, tmp_path, label, strange):
    kind = kind_of(label, KINDS)
    classes = classes_of(corpus.train, corpus.folder, label, kind)
    path, _ = relabel(corpus, tmp_path, label, [strange])
    with pytest.raises(ValueError, match=strange.split()[-1]):
        make_dataset(path, corpus.folder, None, label, classes, kind)


def test_a_sequence_is_the_classes_of_its_tokens(corpus, tmp_path):
    """Of the whole utterance: nobody can tell which words a crop has."""
    said = ["to be or", "not to be", ""]
    path, total = relabel(corpus, tmp_path, "pitch", said + ["be"] * 20)
    classes = classes_of(path, corpus.folder, "pitch", "sequence")
    assert classes == ["be", "not", "or", "to"]
    dataset = make_dataset(
        path, corpus.folder, None, "pitch", classes, "sequence"
    )
    assert len(dataset) == total - 1
    assert dataset[0]["target"].tolist() == [3, 0, 2]
    assert dataset[1]["target"].tolist() == [1, 3, 0]
    with pytest.raises(ValueError, match="crop"):
        make_dataset(
            path, corpus.folder, KeyedCrop(400), "pitch", classes, "sequence"
        )


def test_kinds_of_labels():
    assert kind_of("phones", KINDS) == "frames"
    assert kind_of("speaker", KINDS) == "utterance"
    with pytest.raises(ValueError, match="'frame', not of utterance, frames"):
        kind_of("phones", {"phones": "frame"})
