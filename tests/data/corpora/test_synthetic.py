"""The synthetic corpus: its layout, its labels and its reproducibility."""

import hashlib
import json
import sys

import numpy as np
import pytest
import soundfile

from speechbrain_sim.data.corpora.synthetic import PHONES, make_synthetic_corpus

pytest.importorskip("espeakng_loader")

SIZES = {"speakers": 3, "sentences": 5, "test_sentences": 2}
VOWELS = "AA AE AH AO AW AX AY EH ER EY IH IY OW OY UH UW".split()


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("synthetic")
    return make_synthetic_corpus(folder, **SIZES, workers=2)


def hashes(folder):
    return {
        str(path.relative_to(folder)): hashlib.sha256(
            path.read_bytes()
        ).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


def audio(folder):
    return {
        path.stem: soundfile.read(path)[0] for path in folder.rglob("*.flac")
    }


def labels(folder):
    path = folder / "LibriSpeech100_labels_split/converted_aligned_phones.txt"
    lines = [line.split() for line in path.read_text().splitlines()]
    return {name: np.array(ids, dtype=int) for name, *ids in lines}


def split(folder, side):
    path = folder / f"LibriSpeech100_labels_split/{side}_split.txt"
    return path.read_text().splitlines()


def transcripts(folder):
    return dict(
        line.split(" ", 1)
        for path in folder.rglob("*.trans.txt")
        for line in path.read_text().splitlines()
    )


def test_layout_is_librispeech(corpus):
    flacs = sorted((corpus / "LibriSpeech/train-clean-100").glob("*/*/*.flac"))
    assert len(flacs) == 15
    for path in flacs:
        speaker, chapter, number = path.stem.split("-")
        assert path.parts[-3:-1] == (speaker, chapter)
        assert speaker.isdigit() and chapter.isdigit() and len(number) == 4
        info = soundfile.info(path)
        assert (info.samplerate, info.channels) == (16000, 1)
        assert (info.format, info.subtype) == ("FLAC", "PCM_16")
        assert 1.2 <= info.duration <= 6
    texts = transcripts(corpus)
    assert sorted(texts) == [path.stem for path in flacs]
    for text in texts.values():
        assert text.replace(" ", "").isalpha() and text == text.upper()
    assert not list(corpus.rglob("*.tmp"))


def test_speakers_file(corpus):
    lines = (corpus / "LibriSpeech/SPEAKERS.TXT").read_text().splitlines()
    rows = [
        [field.strip() for field in line.split("|")]
        for line in lines
        if not line.startswith(";")
    ]
    voices = json.loads((corpus / "synthetic.json").read_text())["speakers"]
    seconds = {}
    for name, wav in audio(corpus).items():
        speaker = name.split("-")[0]
        seconds[speaker] = seconds.get(speaker, 0) + len(wav) / 16000
    assert len(rows) == 3
    for (speaker, sex, subset, minutes, _), voice in zip(
        rows, voices, strict=True
    ):
        assert (speaker, sex) == (str(voice["id"]), voice["sex"])
        assert subset == "train-clean-100"
        assert float(minutes) == pytest.approx(seconds[speaker] / 60, abs=0.01)


def test_splits_cover_every_speaker_and_share_no_text(corpus):
    train, test = split(corpus, "train"), split(corpus, "test")
    assert sorted(train + test) == sorted(audio(corpus))
    speakers = {name.split("-")[0] for name in train + test}
    for side, size in (train, 3), (test, 2):
        found = [name.split("-")[0] for name in side]
        assert sorted(found) == sorted(size * list(speakers))
    texts = transcripts(corpus)
    longest = max(len(texts[name].split()) for name in test)
    assert longest < min(len(texts[name].split()) for name in train)


def test_one_label_per_window(corpus):
    wavs, ids = audio(corpus), labels(corpus)
    assert sorted(wavs) == sorted(ids)
    for name, wav in wavs.items():
        assert len(ids[name]) == 1 + (len(wav) - 400) // 160
        assert ids[name].min() == 0 and ids[name].max() <= 40
        assert ids[name][0] == ids[name][-1] == 0
    names = [
        line.split()
        for line in (corpus / "phones.txt").read_text().splitlines()
    ]
    assert names == [[str(i), phone] for i, phone in enumerate(PHONES)]
    assert len(names) == 41 and names[0][1] == "SIL"


def test_labels_follow_the_energy(corpus):
    wavs, ids = audio(corpus), labels(corpus)
    vowels = [PHONES.index(phone) for phone in VOWELS]
    for name, wav in wavs.items():
        frames = np.lib.stride_tricks.sliding_window_view(wav, 400)[::160]
        energy = 10 * np.log10((frames**2).mean(1) + 1e-12)
        vowel = np.isin(ids[name], vowels)
        rise = energy[vowel].mean() - energy[ids[name] == 0].mean()
        assert rise > 35, name
        # labels shifted by 50 ms either way fit worse
        for shift in (-5, 5):
            shifted = np.roll(ids[name], shift)
            moved = energy[np.isin(shifted, vowels)].mean()
            assert moved < energy[vowel].mean() - 1, name


def test_silence_is_a_quiet_room(corpus):
    for name, wav in audio(corpus).items():
        edge = np.sqrt(np.mean(wav[:1500] ** 2))
        speech = np.sqrt(np.mean(wav**2))
        assert 40 < 20 * np.log10(speech / edge) < 58, name
        assert np.abs(wav).max() < 1, name


def test_same_seed_same_files_whatever_the_workers(corpus, tmp_path):
    again = make_synthetic_corpus(tmp_path / "again", **SIZES, workers=1)
    assert hashes(again) == hashes(corpus)


def test_another_seed_makes_another_corpus(corpus, tmp_path):
    other = make_synthetic_corpus(
        tmp_path, 1, sentences=2, test_sentences=1, seed=1, workers=1
    )
    name = sorted(audio(other))[0]
    assert name in audio(corpus)
    assert transcripts(other)[name] != transcripts(corpus)[name]
    assert not np.array_equal(audio(other)[name], audio(corpus)[name])


def test_finished_corpus_is_left_alone(corpus, monkeypatch):
    monkeypatch.setitem(sys.modules, "espeakng_loader", None)
    before = hashes(corpus)
    assert make_synthetic_corpus(corpus, **SIZES) == corpus
    assert hashes(corpus) == before


def test_interrupted_corpus_is_continued(tmp_path):
    sizes = {"speakers": 2, "sentences": 3, "test_sentences": 1, "workers": 1}
    make_synthetic_corpus(tmp_path, **sizes)
    whole = hashes(tmp_path)
    lost, kept, *_ = sorted(tmp_path.rglob("*.flac"))
    lost.unlink()
    (tmp_path / "phones.txt").unlink()
    (tmp_path / "synthetic.json").rename(tmp_path / "synthetic.partial.json")
    time = kept.stat().st_mtime_ns
    make_synthetic_corpus(tmp_path, **sizes)
    assert hashes(tmp_path) == whole
    assert kept.stat().st_mtime_ns == time


@pytest.mark.parametrize("record", ["synthetic.json", "synthetic.partial.json"])
def test_another_corpus_in_the_folder_is_an_error(tmp_path, record):
    arguments = {**SIZES, "seed": 5}
    (tmp_path / record).write_text(json.dumps({"arguments": arguments}))
    with pytest.raises(FileExistsError, match="delete it or choose") as error:
        make_synthetic_corpus(tmp_path, **SIZES)
    assert str(tmp_path) in str(error.value)


def test_real_librispeech_is_not_touched(tmp_path):
    (tmp_path / "LibriSpeech").mkdir()
    with pytest.raises(FileExistsError, match="not made here"):
        make_synthetic_corpus(tmp_path, **SIZES)


@pytest.mark.parametrize(
    "wrong",
    [
        {"speakers": 0},
        {"sentences": 1},
        {"test_sentences": 0},
        {"test_sentences": 5},
        {"seed": -1},
        {"speakers": 2.5},
        {"workers": 0},
    ],
)
def test_arguments_are_checked(tmp_path, wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        make_synthetic_corpus(tmp_path / "corpus", **{**SIZES, **wrong})
    assert not (tmp_path / "corpus").exists()


def test_missing_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "espeakng_loader", None)
    with pytest.raises(ImportError, match=r"speechbrain-sim\[synthetic\]"):
        make_synthetic_corpus(tmp_path, **SIZES)
