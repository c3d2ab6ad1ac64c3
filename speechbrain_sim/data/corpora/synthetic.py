"""A speech corpus out of a Python wheel, laid out like LibriSpeech.

espeak-ng reads generated sentences in many voices; its own events make the
list of phones. Needs the extra `speechbrain-sim[synthetic]`.
"""

import multiprocessing
import os
import shutil
import sys
from concurrent.futures import ProcessPoolExecutor
from functools import lru_cache, partial
from importlib.metadata import version
from itertools import groupby
from pathlib import Path
from types import ModuleType

import numpy as np
import soundfile

from speechbrain_sim import __version__
from speechbrain_sim.console import Bar
from speechbrain_sim.data import espeak
from speechbrain_sim.data.audio import SAMPLE_RATE
from speechbrain_sim.data.corpora.librispeech import LABELS, prepare_librispeech
from speechbrain_sim.data.espeak import PHONES
from speechbrain_sim.data.labels import HOP, WINDOW, num_labels
from speechbrain_sim.data.phones import NAMES
from speechbrain_sim.data.tables import write_csv
from speechbrain_sim.files import read_json, write_json, write_text

SUBSET = "train-clean-100"
RECORD = "synthetic.json"
UNFINISHED = "synthetic.partial.json"
#: other packages that the corpus depends on
PACKAGES = "espeakng-loader", "numpy", "scipy"
#: what pitch, range, rate and loudness belong to
FACTORS = "speaker", "independent"
COLUMNS = "factors.csv"
#: when each word is spoken, see `speechbrain_sim.data.words`
WORDS = "words.csv"
SPEAKERS_HEADER = """\
; The speakers of a synthetic corpus, in the format of LibriSpeech.
;
; reader_id, gender ('F' or 'M'), subset, minutes of speech, name: here the
; espeak-ng accent and voice variant
;
;ID  |SEX| SUBSET           |MINUTES| NAME"""


def make_synthetic_corpus(
    folder,
    speakers=20,
    sentences=15,
    test_sentences=5,
    seed=0,
    workers=2,
    factors="speaker",
):
    """Writes a LibriSpeech-shaped corpus of synthetic speech.

    Below `folder`: `LibriSpeech/SPEAKERS.TXT`, 16 kHz flac files and
    transcripts in `LibriSpeech/train-clean-100`, lists and phones (one per
    10 ms, see `phones.py`) in `LibriSpeech100_labels_split`, `phones.txt`,
    `words.csv`, the times of words, exact as those of the phones, and
    last `synthetic.json`, the record of how it was made. Equal arguments make
    equal files; a finished corpus is left as it is, an interrupted one
    continued.

    Arguments
    ---------
    folder : str or Path
        Where to write; made if absent.
    speakers : int
        Number of voices, half of them female.
    sentences, test_sentences : int
        Utterances of each speaker, and how many of them are for testing:
        shorter, with sentences that occur nowhere in the training set.
    seed : int
        Seed of the voices, the sentences, the levels and the noise.
    workers : int
        Number of processes.
    factors : str
        "speaker": pitch, its range and the rate are the voice's. Or
        "independent": each utterance draws them, loudness and a style, see
        `espeak.draw_delivery`; `factors.csv` has them. Texts are the same.

    Returns
    -------
    Path
        `folder`.

    Raises
    ------
    ValueError
        If an argument is out of range.
    FileExistsError
        If `folder` holds another corpus.
    ImportError
        Without the extra.
    """
    folder = Path(folder)
    sizes = {"speakers": speakers, "sentences": sentences}
    sizes |= {"test_sentences": test_sentences, "seed": seed}
    _check_sizes(factors, **sizes, workers=workers)
    if factors != FACTORS[0]:  # older records do not name it
        sizes["factors"] = factors
    if not _is_finished(folder, sizes):
        _make_corpus(folder, sizes, workers)
    return folder


def prepare_synthetic(
    data_folder, save_folder, min_samples, on_bad_audio="fail", **corpus
):
    """Makes the corpus if it is not there, its manifests and word times.

    Beside the manifests are copies of `phones.txt` and `words.csv`; a corpus of
    an older version has no `words.csv`.

    Arguments
    ---------
    data_folder : str or Path
        Where the corpus is, or goes.
    save_folder, min_samples, on_bad_audio :
        See `speechbrain_sim.data.corpora.librispeech.prepare_librispeech`.
    **corpus :
        See `make_synthetic_corpus`.
    """
    make_synthetic_corpus(data_folder, **corpus)
    options = {"min_samples": min_samples, "on_bad_audio": on_bad_audio}
    if (columns := Path(data_folder, COLUMNS)).exists():
        options["columns"] = columns
    prepare_librispeech(data_folder, save_folder, SUBSET, **options)
    # a list's numbers have no names, but these are this corpus' own
    for name in (NAMES, WORDS):
        if Path(data_folder, name).exists():
            shutil.copyfile(Path(data_folder, name), Path(save_folder, name))


def voice_factors(row, data_folder):
    """Returns what a recording is made of, for `speechbrain_sim.analysis.factors`.

    Arguments
    ---------
    row : dict
        Row of a manifest.
    data_folder : str or Path
        The corpus.

    Returns
    -------
    dict
        `speaker`, `pitch` (octaves above that of espeak-ng's variant) and
        `rate` (words per minute), the shift of the formants taken back. Pitch
        and rate belong to the speaker, and do not vary within one. Of a corpus
        with independent factors `speaker`, `pitch`, `pitch_range`, `rate` and
        `loudness`, see `espeak.draw_delivery`; sex and style are not
        independent of them.
    """
    if "style" in row:
        names = "pitch", *espeak.CUES
        return {"speaker": row["speaker"]} | {n: float(row[n]) for n in names}
    voice = _voices(str(data_folder))[row["speaker"]]
    pitch = (voice["pitch"] - 50) / 70 + np.log2(voice["warp"] / 441)
    rate = voice["rate"] * voice["warp"] / 441
    return {"speaker": row["speaker"], "pitch": float(pitch), "rate": rate}


@lru_cache
def _voices(data_folder):
    record = read_json(Path(data_folder, RECORD))
    return {str(voice["id"]): voice for voice in record["speakers"]}


def _check_sizes(factors, **sizes):
    """Raises a ValueError for a size that is no integer, or too small."""
    if factors not in FACTORS:
        raise ValueError(f"factors is {factors!r}, not one of {FACTORS}")
    lowest = {"sentences": 2, "seed": 0}
    for name, value in sizes.items():
        least = lowest.get(name, 1)
        if not isinstance(value, int) or value < least:
            raise ValueError(f"{name} is {value!r}, not an integer >= {least}")
    tested, sentences = sizes["test_sentences"], sizes["sentences"]
    if tested >= sentences:
        raise ValueError(f"test_sentences is {tested}, not < {sentences}")


def _is_finished(folder, sizes):
    """Whether the corpus is complete; FileExistsError if it is another."""
    for name in (RECORD, UNFINISHED):
        if (folder / name).exists():
            other = read_json(folder / name)["arguments"]
            if other != sizes:
                remedy = "delete it or choose another folder"
                made = f"made with {other}, not with {sizes}: {remedy}"
                raise FileExistsError(f"{folder} holds a corpus {made}")
            return name == RECORD
    if (folder / "LibriSpeech").exists():
        holds = f"{folder} holds a LibriSpeech that was not made here"
        raise FileExistsError(f"{holds}: choose another folder")
    return False


def _make_corpus(folder, sizes, workers):
    """Makes the voices, their utterances, and the lists; last, the record."""
    espeak.import_loader()
    indices = range(sizes["speakers"])
    voices = [espeak.draw_voice(index, sizes["seed"]) for index in indices]
    if "factors" in sizes:
        drawn = "pitch", "pitch_range", "rate"
        voices = [{k: x[k] for k in x if k not in drawn} for x in voices]
    versions = {"speechbrain-sim": __version__}
    versions |= {name: version(name) for name in PACKAGES}
    record = {"arguments": sizes, "versions": versions, "speakers": voices}
    write_json(folder / UNFINISHED, record)
    made = _make_speakers(voices, folder, sizes, workers)
    _write_labels(made, folder)
    if rows := [row for *_, rows, _ in made for row in rows]:
        write_csv(folder / COLUMNS, rows[0], [r.values() for r in rows])
    spans = [span for *_, spans in made for span in spans]
    write_csv(folder / WORDS, ["ID", "word", "start", "end"], spans)
    _write_speakers(voices, made, folder / "LibriSpeech" / "SPEAKERS.TXT")
    os.replace(folder / UNFINISHED, folder / RECORD)


def _make_speakers(voices, folder, sizes, workers):
    """Makes the utterances of all speakers; returns their lines of labels."""
    audio_folder = folder / "LibriSpeech" / SUBSET
    job = partial(_make_speaker, audio_folder=audio_folder, sizes=sizes)
    bar = partial(Bar, total=len(voices), desc="speakers")
    if workers == 1:
        return list(bar(map(job, voices)))
    # multiprocessing would run the caller's script in each process that it
    # spawns (a fork may hang): without a guard, each would make the corpus
    main, sys.modules["__main__"] = sys.modules["__main__"], ModuleType("none")
    try:
        spawn = multiprocessing.get_context("spawn")
        pool = ProcessPoolExecutor(workers, spawn)
        made = pool.map(job, voices)  # starts all processes
    finally:
        sys.modules["__main__"] = main
    with pool:
        return list(bar(made))


def _make_speaker(voice, audio_folder, sizes):
    """Writes the utterances of a speaker, keeping files that exist.

    Returns the lines of labels of the training and of the test side, and the
    rows of `COLUMNS` and of `WORDS`.
    """
    chapter = f"{voice['id']}-{voice['chapter']}"
    folder = audio_folder / chapter.replace("-", "/")
    folder.mkdir(parents=True, exist_ok=True)
    texts, sides, rows, words = {}, ([], []), [], []
    train = sizes["sentences"] - sizes["test_sentences"]
    for number in range(sizes["sentences"]):
        rng = np.random.default_rng([sizes["seed"], 2, voice["id"], number])
        side = int(number >= train)
        text = espeak.draw_sentence(side, rng)
        while text in texts.values():
            text = espeak.draw_sentence(side, rng)
        name = f"{chapter}-{number:04d}"
        texts[name] = text
        if "factors" in sizes:
            key = [sizes["seed"], 3, voice["id"], number]
            drawn = espeak.draw_delivery(np.random.default_rng(key))
            voice = espeak.deliver(voice, drawn)
            rows.append({"ID": name, **drawn, "pitch_hz": voice["pitch_hz"]})
        wav, labels, spans = _make_utterance(text, voice, rng)
        words += [(name, *span) for span in spans]
        sides[side].append(f"{name} {' '.join(map(str, labels))}")
        path = folder / f"{name}.flac"
        if not path.exists():
            cut = path.with_suffix(".tmp")
            soundfile.write(cut, wav, SAMPLE_RATE, "PCM_16", format="FLAC")
            os.replace(cut, path)
    lines = [f"{i} {t.replace(',', '').upper()}" for i, t in texts.items()]
    _write_lines(folder / f"{chapter}.trans.txt", lines)
    return *sides, rows, words


def _make_utterance(text, voice, rng):
    """Waveform of a sentence, the phone of every window, and spans of words."""
    speech, phones, starts, words = espeak.speak(text, voice)
    level = voice.get("loudness")
    wav, offset = espeak.record(speech, voice["warp"], rng, level)
    scale = SAMPLE_RATE / (50 * voice["warp"])
    starts = [offset + scale * start for start in (*starts, len(speech))]
    centres = HOP * np.arange(num_labels(len(wav))) + WINDOW // 2
    at = np.searchsorted([0, *starts[:-1]], centres, "right") - 1
    return wav, np.array([0, *phones])[at], _spans(text, phones, starts, words)


def _spans(text, phones, starts, words):
    """Word, start and end in seconds of all words; "IN THE" may be one."""
    spoken = [i for i, phone in enumerate(phones) if phone]  # no pause
    groups = [(at, [*g]) for at, g in groupby(spoken, words.__getitem__)]
    ends = [at for at, _ in groups[1:]] + [len(text)]
    return [
        (
            text[at:end].replace(",", "").strip().upper(),
            round(starts[group[0]] / SAMPLE_RATE, 4),
            round(starts[group[-1] + 1] / SAMPLE_RATE, 4),
        )
        for (at, group), end in zip(groups, ends, strict=True)
    ]


def _write_labels(made, folder):
    """Writes the two lists of IDs, the phones of all, and their names."""
    for side, name in enumerate(("train", "test")):
        ids = [line.split(" ", 1)[0] for sides in made for line in sides[side]]
        _write_lines(folder / LABELS / f"{name}_split.txt", ids)
    lines = [line for train, test, *_ in made for line in train + test]
    _write_lines(folder / LABELS / "converted_aligned_phones.txt", lines)
    _write_lines(folder / NAMES, [f"{i} {p}" for i, p in enumerate(PHONES)])


def _write_speakers(voices, made, path):
    """Writes SPEAKERS.TXT."""
    rows = [SPEAKERS_HEADER]
    for voice, (train, test, *_) in zip(voices, made, strict=True):
        minutes = sum(line.count(" ") for line in train + test) / 6000
        start = f"{voice['id']:<5}| {voice['sex']} | {SUBSET:<17}"
        name = f"{voice['accent']} {voice['variant']}"
        rows.append(f"{start}| {minutes:<6.2f}| {name}")
    _write_lines(path, rows)


def _write_lines(path, lines):
    write_text(path, "".join(f"{line}\n" for line in lines))
