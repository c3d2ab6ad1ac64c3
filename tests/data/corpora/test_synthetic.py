"""The synthetic corpus: its layout, its labels and its reproducibility."""

import csv
import hashlib
import json
import sys
from importlib.metadata import version

import numpy as np
import pytest
import soundfile

from speechbrain_sim.data.corpora.synthetic import (
    PHONES,
    make_synthetic_corpus,
    prepare_synthetic,
    voice_factors,
)
from speechbrain_sim.data.words import read_spans, spoken_values

pytest.importorskip("espeakng_loader")

SIZES = {"speakers": 3, "sentences": 5, "test_sentences": 2}
#: of a corpus that version 0.1 made: its labels, and its samples with these
MADE = {"speakers": 2, "sentences": 3, "test_sentences": 1, "workers": 1}
LABELS_HASH = "19e36d92afb3"
SAMPLES_HASH = "d7a0dcd0e039"
TWO = {"speakers": 2, "sentences": 18, "test_sentences": 3, "workers": 1}
VERSIONS = {"espeakng-loader": "0.2.4", "numpy": "2.4.6", "scipy": "1.17.1"}
VOWELS = "AA AE AH AO AW AX AY EH ER EY IH IY OW OY UH UW".split()


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("synthetic")
    return make_synthetic_corpus(folder, **SIZES, workers=2)


@pytest.fixture(scope="module")
def varied(tmp_path_factory):
    """Two speakers, a woman and a man, whose utterances vary on their own."""
    folder = tmp_path_factory.mktemp("varied")
    return make_synthetic_corpus(folder, **TWO, factors="independent")


@pytest.fixture(scope="module")
def tied(tmp_path_factory):
    """The same two with a pitch and a rate each."""
    return make_synthetic_corpus(tmp_path_factory.mktemp("tied"), **TWO)


def stated(folder):
    """ID to row of factors.csv."""
    with open(folder / "factors.csv", newline="") as file:
        return {row.pop("ID"): row for row in csv.DictReader(file)}


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


def test_words_are_where_their_phones_are(corpus, tmp_path):
    spans, texts, phones = (
        *(
            read_spans(corpus / "words.csv"),
            transcripts(corpus),
            labels(corpus),
        ),
    )
    silence = PHONES.index("SIL")
    assert spans.keys() == texts.keys()
    for name, words in spans.items():
        assert " ".join(span.word for span in words) == texts[name]
        count = len(phones[name])
        ones = {span.word: 1.0 for span in words}
        # labels of frames are centred at 160 i + 200
        spoken = spoken_values(words, ones, count, 160, 200).numpy() > 0
        assert (spoken == (phones[name] != silence)).all()
    # they lie beside the manifests, too
    prepare_synthetic(corpus, tmp_path, 16000, **SIZES)
    assert read_spans(tmp_path / "words.csv") == spans


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


def test_the_default_corpus_is_that_of_before(tmp_path):
    make_synthetic_corpus(tmp_path, **MADE)
    path = "LibriSpeech100_labels_split/converted_aligned_phones.txt"
    assert hashes(tmp_path)[path].startswith(LABELS_HASH)
    record = json.loads((tmp_path / "synthetic.json").read_text())
    assert "factors" not in record["arguments"]  # as in older records
    assert not (tmp_path / "factors.csv").exists()
    if any(version(name) != VERSIONS[name] for name in VERSIONS):
        pytest.skip("other versions may round other samples")
    digest = hashlib.sha256()
    for path in sorted(tmp_path.rglob("*.flac")):
        digest.update(soundfile.read(path, dtype="int16")[0].tobytes())
    assert digest.hexdigest().startswith(SAMPLES_HASH)


def test_independent_factors_leave_the_texts(varied, tied):
    assert transcripts(tied) == transcripts(varied)
    assert split(tied, "test") == split(varied, "test")
    assert list(stated(varied)) == list(labels(varied))
    with pytest.raises(FileExistsError, match="'factors': 'independent'"):
        make_synthetic_corpus(tied, **TWO, factors="independent")
    with pytest.raises(FileExistsError, match="'factors': 'independent'"):
        make_synthetic_corpus(varied, **TWO)


def slow_pitch(wav, centre):
    """Pitch in Hz by the largest correlation of a window with a later one."""
    best, lag = 0.0, 1
    for shift in range(40, 270):
        one = wav[centre - 400 : centre + 400 - shift]
        other = wav[centre - 400 + shift : centre + 400]
        size = np.sqrt(one @ one * (other @ other))
        if one @ other > (best + 0.02) * size:  # not a multiple of it
            best, lag = one @ other / size, shift
    return 16000 / lag


def test_stated_factors_are_in_the_sound(varied, tied):
    rows, wavs, ids = stated(varied), audio(varied), labels(varied)
    same_words = labels(tied)
    vowels = [PHONES.index(phone) for phone in VOWELS]
    for speaker in {name.split("-")[0] for name in rows}:
        said = [name for name in rows if name.startswith(speaker)]
        measured = {"pitch": [], "pitch_range": [], "rate": []}
        for name in said:
            wav, phones, row = wavs[name], ids[name], rows[name]
            centres = 160 * np.flatnonzero(np.isin(phones, vowels)) + 200
            melody = [slow_pitch(wav, centre) for centre in centres[::3]]
            melody = 12 * np.log2(melody)
            measured["pitch"].append(np.median(melody))
            tuned = 12 * np.log2(float(row["pitch_hz"]))
            assert np.median(melody) == pytest.approx(tuned, abs=1.3), name
            low, high = np.percentile(melody, [10, 90])
            measured["pitch_range"].append(high - low)
            quicker = np.count_nonzero(same_words[name])
            measured["rate"].append(quicker / np.count_nonzero(phones))
            speech = wav[160 * np.flatnonzero(phones)[0] :]
            speech = speech[: 160 * np.flatnonzero(phones)[-1]]
            level = 20 * np.log10(np.sqrt(np.mean(speech**2)))
            assert level == pytest.approx(float(row["loudness"]), abs=1), name
            assert np.abs(wav).max() < 0.95
        least = {"pitch": 0.97, "pitch_range": 0.6, "rate": 0.95}
        for factor, values in measured.items():
            known = [float(rows[name][factor]) for name in said]
            r = np.corrcoef(known, values)[0, 1]
            assert r > least[factor], (speaker, factor)


def test_factors_are_columns_of_the_manifests(varied, tmp_path):
    folders = {"data_folder": varied, "save_folder": tmp_path}
    more = {"min_samples": 16000, "factors": "independent"}
    prepare_synthetic(**folders, **TWO, **more)
    rows = stated(varied)
    for part in "train", "valid", "test":
        with open(tmp_path / f"{part}.csv", newline="") as file:
            for row in csv.DictReader(file):
                own = rows[row["ID"]]
                assert {name: row[name] for name in own} == own
                known = voice_factors(row, varied)
                assert known.pop("speaker") == row["speaker"]
                assert known == {name: float(own[name]) for name in known}
                assert list(known) == "pitch pitch_range rate loudness".split()
    path = varied / "factors.csv"
    text = path.read_text()
    path.write_text(text[: text.rindex("1008-")])
    try:
        with pytest.raises(ValueError, match="no row of 1 utterances, such as"):
            prepare_synthetic(**folders, **TWO, **more)
    finally:
        path.write_text(text)


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


@pytest.mark.parametrize("factors", ["speaker", "independent"])
def test_interrupted_corpus_is_continued(tmp_path, factors):
    sizes = {**MADE, "factors": factors}
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
        {"factors": "style"},
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
