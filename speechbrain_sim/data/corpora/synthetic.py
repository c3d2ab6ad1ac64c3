"""A speech corpus out of a Python wheel: espeak-ng reads generated sentences
in many voices, and the result is laid out like LibriSpeech and its aligned
phones.

`make_synthetic_corpus` is the whole interface. The phone labels are exact, for
they are the synthesiser's own events and not the output of an aligner. Needs
the extra `speechbrain-sim[synthetic]`.
"""

import _ctypes  # dlclose has no public name
import ctypes
import functools
import importlib.metadata
import json
import multiprocessing
import os
import shutil
from pathlib import Path

import numpy as np
import scipy
import soundfile
from scipy.signal import resample_poly
from tqdm import tqdm

from speechbrain_sim.data.corpora.librispeech import prepare_librispeech
from speechbrain_sim.data.labels import HOP, WINDOW, num_labels
from speechbrain_sim.data.phones import NAMES

SAMPLE_RATE = 16000


SHORTEST = 19200  # samples of an utterance: 1.2 s


SUBSET = "train-clean-100"


VERSION_FILE = Path(__file__).parents[2] / "version.txt"


RECORD = "synthetic.json"


UNFINISHED = "synthetic.partial.json"


SPEAKERS_HEADER = """\
; The speakers of a synthetic corpus, in the format of LibriSpeech.
;
; reader_id, gender ('F' or 'M'), subset, minutes of speech, name: here the
; espeak-ng accent and voice variant
;
;ID  |SEX| SUBSET           |MINUTES| NAME"""


# accent: file of espeak-ng's language data
ACCENTS = {
    "en-us": "gmw/en-US",
    "en-gb": "gmw/en",
    "en-gb-scotland": "gmw/en-GB-scotland",
    "en-029": "gmw/en-029",
    "en-gb-x-rp": "gmw/en-GB-x-rp",
    "en-gb-x-gbclan": "gmw/en-GB-x-gbclan",
    "en-gb-x-gbcwmd": "gmw/en-GB-x-gbcwmd",
    "en-us-nyc": "gmw/en-US-nyc",
}


# no variant with an echo, which would smear one phone over the next
VARIANTS = {
    "F": "f1 steph aunty linda belinda Andrea Annie anika".split(),
    "M": "m1 m3 m4 m6 m7 m8 Mike max Alex adam".split(),
}


# each phone, and espeak-ng's mnemonics for it in all accents (without stress)
PHONE_TABLE = """\
SIL _ _:, AA 0 A: A@, AE a aa, AH V, AO O O: O2 O@ o@, AW aU, AX @ @2 @- a#,
AY aI aI2 aI3 aI@, B b, CH tS, D d, DH D, EH E e@, ER 3 3: VR IR, EY eI e:,
F f, G g, HH h, IH I I2 I# i@ i@3, IY i i:, JH dZ, K k x, L l @L, M m, N n n-,
NG N, OW oU o:, OY OI, P p, R r r-, S s, SH S, T t t2 t# t[ ?, TH T, UH U U@,
UW u:, V v, W w w#, Y j ;, Z z, ZH Z"""


PHONE_TABLE = [entry.split() for entry in PHONE_TABLE.split(",")]


PHONES = [phone for phone, *_ in PHONE_TABLE]


PHONE_IDS = {m: i for i, (_, *many) in enumerate(PHONE_TABLE) for m in many}


# plosives and affricates: silent, then released
CLOSED = [PHONE_IDS[m] for m in "b tS d g dZ k p t".split()]


WORDS = {
    "QUALITY": "brown young wooden usual noisy thin yellow gentle royal shy "
    "beige heavy hungry cheerful thirsty quiet loud good foolish spoiled rough "
    "casual joyful strange smooth pure chilly huge northern famous",
    "CREATURE": "boy fox teacher girl judge mouse cook doctor uncle thief "
    "farmer child sheep goose captain cousin lawyer father mother spider "
    "dragon zebra author oyster monkey bishop tiger cow sailor goat painter",
    "THING": "treasure coin button book chair yacht engine garage measure toy "
    "feather vase window hammer cushion cheese jar path bottle letter bridge "
    "table lemon ring basket thread machine pencil house voice onion zipper "
    "television pearl flower jungle boat leather candle map",
    "MOVED": "jumped walked waited returned laughed arrived listened sang "
    "rejoiced danced shouted slept worked yawned whistled vanished stumbled "
    "paused agreed travelled",
    "HANDLED": "measured enjoyed pulled found bought carried touched noticed "
    "changed destroyed washed admired followed heard pushed took treasured "
    "watched gathered avoided hid chose loved joined brought",
    "LOCATION": "garden river city kitchen harbour village forest station "
    "tower church beach theatre mountain market road yard meadow "
    "cave valley",
    "NEAR": "in near behind beyond around under above by outside across",
    "TIME": "yesterday today again together slowly quickly once often usually "
    "somehow everywhere outdoors",
    "WHO": "Mary John George Joyce Thelma Hugh Sasha Roger Jean Zoe Charles "
    "Ruth Victor Beth Doyle Asia",
    "MANY": "three four five six seven eight ten eleven thirty few several",
    "WHOSE": "the my your our his her this that every",
}


WORDS = {slot: words.split() for slot, words in WORDS.items()}


# eight words and more to train on, five and fewer to test on: the two sides
# have no text in common
TRAIN = """\
WHOSE QUALITY CREATURE HANDLED the THING NEAR WHOSE LOCATION
NEAR the LOCATION, WHOSE CREATURE HANDLED a QUALITY THING TIME
WHO HANDLED the THING, and WHOSE QUALITY CREATURE MOVED TIME
TIME, WHOSE CREATURE MOVED NEAR the QUALITY LOCATION with WHO
one QUALITY CREATURE MOVED, but WHO HANDLED WHOSE THING
WHO and WHOSE CREATURE HANDLED the MANY things NEAR the LOCATION
when WHO MOVED, WHOSE CREATURE HANDLED a QUALITY THING"""


TEST = """\
WHOSE CREATURE HANDLED the THING
WHO MOVED NEAR the LOCATION
WHOSE QUALITY CREATURE MOVED TIME
one CREATURE HANDLED WHOSE THING
WHO HANDLED a QUALITY THING"""


TEMPLATES = TRAIN.splitlines(), TEST.splitlines()


def make_synthetic_corpus(
    folder,
    speakers=20,
    sentences=15,
    test_sentences=5,
    seed=0,
    workers=2,
):
    """Writes a LibriSpeech-shaped corpus of synthetic speech.

    Below `folder`: `LibriSpeech/SPEAKERS.TXT`,
    `LibriSpeech/train-clean-100/SPEAKER/CHAPTER/` with 16 kHz flac files and
    their transcripts, `LibriSpeech100_labels_split/` with `train_split.txt`,
    `test_split.txt` and `converted_aligned_phones.txt` (one phone every 10 ms:
    the one at the centre of its 25 ms window), `phones.txt`, and last
    `synthetic.json`, the record of how it was made. Equal arguments make
    equal files, whatever the number of workers; a finished corpus is left as it
    is, an interrupted one continued.

    Arguments
    ---------
    folder : str or Path
        Where to write; made if absent.
    speakers : int
        Number of voices, half of them female.
    sentences : int
        Utterances of each speaker, training and test together.
    test_sentences : int
        How many of them are test utterances: shorter, with sentences that
        occur nowhere in the training set.
    seed : int
        Seed of the voices, the sentences, the levels and the noise.
    workers : int
        Number of processes. Above one they are spawned, so that a script has
        to call this below `if __name__ == "__main__"`.

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

    Example
    -------
    >>> folder = make_synthetic_corpus(
    ...     getfixture("tmp_path"), 1, sentences=2, test_sentences=1, workers=1
    ... )
    >>> labels = folder / "LibriSpeech100_labels_split"
    >>> (labels / "train_split.txt").read_text().split()
    ['1001-100001-0000']
    """
    folder = Path(folder)
    arguments = {
        "speakers": speakers,
        "sentences": sentences,
        "test_sentences": test_sentences,
        "seed": seed,
    }
    lowest = {"speakers": 1, "sentences": 2, "test_sentences": 1, "seed": 0}
    for name, value in [*arguments.items(), ("workers", workers)]:
        least = lowest.get(name, 1)
        if not isinstance(value, int) or value < least:
            raise ValueError(f"{name} is {value!r}, not an integer >= {least}")
    if test_sentences >= sentences:
        raise ValueError(
            f"test_sentences ({test_sentences}) has to be less than sentences "
            f"({sentences}): nothing would be left to train on"
        )
    if _is_finished(folder, arguments):
        return folder

    _import_loader()
    voices = [_draw_voice(index, seed) for index in range(speakers)]
    record = {
        "arguments": arguments,
        "versions": {
            "speechbrain-sim": VERSION_FILE.read_text().strip(),
            "espeakng-loader": importlib.metadata.version("espeakng-loader"),
            "numpy": np.__version__,
            "scipy": scipy.__version__,
        },
        "speakers": voices,
    }
    _write(folder / UNFINISHED, [json.dumps(record, indent=2)])

    job = functools.partial(
        _make_speaker,
        audio_folder=folder / "LibriSpeech" / SUBSET,
        sentences=[sentences - test_sentences, test_sentences],
        seed=seed,
    )
    progress = functools.partial(
        tqdm, total=speakers, desc="synthetic corpus", unit="speaker"
    )
    if workers == 1:
        made = list(progress(map(job, voices)))
    else:
        with multiprocessing.get_context("spawn").Pool(workers) as pool:
            made = list(progress(pool.imap(job, voices)))

    labels = folder / "LibriSpeech100_labels_split"
    sides = [lines for speaker_sides in made for lines in speaker_sides]
    for name, part in ("train", sides[::2]), ("test", sides[1::2]):
        ids = [line.split(" ", 1)[0] for lines in part for line in lines]
        _write(labels / f"{name}_split.txt", ids)
    lines = [line for lines in sides for line in lines]
    _write(labels / "converted_aligned_phones.txt", lines)
    _write(folder / NAMES, [f"{i} {p}" for i, p in enumerate(PHONES)])
    rows = [SPEAKERS_HEADER]
    for voice, (train, test) in zip(voices, made, strict=True):
        minutes = sum(line.count(" ") for line in train + test) / 6000
        rows.append(
            f"{voice['id']:<5}| {voice['sex']} | {SUBSET:<17}| {minutes:<6.2f}"
            f"| {voice['accent']} {voice['variant']}"
        )
    _write(folder / "LibriSpeech" / "SPEAKERS.TXT", rows)
    os.replace(folder / UNFINISHED, folder / RECORD)
    return folder


def prepare_synthetic(
    data_folder,
    save_folder,
    min_samples,
    valid_share=0.1,
    on_bad_audio="fail",
    **corpus,
):
    """Makes the corpus if it is not there, its manifests, and `phones.txt`.

    Arguments
    ---------
    data_folder : str or Path
        Where the corpus is, or goes.
    save_folder : str or Path
        Where manifests go.
    min_samples, valid_share, on_bad_audio :
        See `speechbrain_sim.data.corpora.librispeech.prepare_librispeech`.
    **corpus :
        See `make_synthetic_corpus`.
    """
    make_synthetic_corpus(data_folder, **corpus)
    prepare_librispeech(
        data_folder,
        save_folder,
        SUBSET,
        valid_share=valid_share,
        min_samples=min_samples,
        on_bad_audio=on_bad_audio,
    )
    # a list's numbers have no names, but these are this corpus' own
    shutil.copyfile(Path(data_folder, NAMES), Path(save_folder, NAMES))


def voice_factors(row, data_folder):
    """What is known of a voice, for `speechbrain_sim.analysis.factors`.

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
        and rate belong to the speaker, and do not vary within one.
    """
    voice = _voices(str(data_folder))[row["speaker"]]
    return {
        "speaker": row["speaker"],
        "pitch": float(
            (voice["pitch"] - 50) / 70 + np.log2(voice["warp"] / 441)
        ),
        "rate": voice["rate"] * voice["warp"] / 441,
    }


@functools.lru_cache
def _voices(data_folder):
    record = json.loads(Path(data_folder, RECORD).read_text())
    return {str(voice["id"]): voice for voice in record["speakers"]}


def _draw_voice(index, seed):
    """The voice of a speaker, whatever the number of speakers.

    `pitch` and `pitch_range` are espeak-ng's, 0 to 99, where 50 is that of
    the variant and 70 more an octave; `rate` is in words/min; formants are
    multiplied by `warp` / 441, for which `pitch` and `rate` compensate.
    """
    order = np.random.default_rng([seed, 0])
    sexes = order.permutation(["F", "M"])
    accents = order.permutation(list(ACCENTS))
    variants = {sex: order.permutation(VARIANTS[sex]) for sex in VARIANTS}
    rng = np.random.default_rng([seed, 1, index])
    sex = str(sexes[index % 2])
    # every variant once, then every variant again in the next accent
    cycle, variant = divmod(index // 2, len(variants[sex]))
    warp = int(rng.integers(401, 482))
    octaves = rng.uniform(-0.3, 0.3) - np.log2(warp / 441)
    return {
        "id": 1001 + 7 * index,
        "chapter": 100001 + 13 * index,
        "sex": sex,
        "accent": str(accents[(variant + cycle) % len(accents)]),
        "variant": str(variants[sex][variant]),
        "pitch": round(50 + 70 * octaves),
        "pitch_range": int(rng.integers(30, 71)),
        "rate": round(rng.uniform(160, 195) * 441 / warp),
        "warp": warp,
    }


def _draw_sentence(templates, rng):
    sentence = []
    for word in str(rng.choice(templates)).split():
        slot = word.rstrip(",")
        choice = str(rng.choice(WORDS[slot])) if slot in WORDS else slot
        sentence.append(choice + word[len(slot) :])
    return " ".join(sentence)


def _label_windows(phones, starts, num_samples):
    """The phone (id) at the centre of every window of an utterance whose
    phones start at `starts`, in samples at 16 kHz.

    >>> _label_windows([0, 5, 7], [0, 201, 520], 1040)
    array([0, 5, 7, 7, 7])
    """
    centres = HOP * np.arange(num_labels(num_samples)) + WINDOW // 2
    return np.array(phones)[np.searchsorted(starts, centres, "right") - 1]


def _make_speaker(voice, audio_folder, sentences, seed):
    """Writes what one speaker says, keeping the files that exist; returns the
    lines of labels of the training and of the test side.
    """
    chapter = f"{voice['id']}-{voice['chapter']}"
    folder = audio_folder / chapter.replace("-", "/")
    folder.mkdir(parents=True, exist_ok=True)
    texts, sides = {}, ([], [])
    for number in range(sum(sentences)):
        rng = np.random.default_rng([seed, 2, voice["id"], number])
        side = int(number >= sentences[0])
        text = _draw_sentence(TEMPLATES[side], rng)
        while text in texts.values():
            text = _draw_sentence(TEMPLATES[side], rng)
        name = f"{chapter}-{number:04d}"
        texts[name] = text

        speech, phones, starts = _speak(text, voice)
        wav, offset = _record(speech, voice["warp"], rng)
        scale = SAMPLE_RATE / (50 * voice["warp"])
        starts = [0, *(offset + scale * start for start in starts)]
        labels = _label_windows([0, *phones], starts, len(wav))
        sides[side].append(f"{name} {' '.join(map(str, labels))}")
        path = folder / f"{name}.flac"
        if not path.exists():
            unfinished = path.with_suffix(".tmp")
            soundfile.write(
                unfinished, wav, SAMPLE_RATE, "PCM_16", format="FLAC"
            )
            os.replace(unfinished, path)
    _write(
        folder / f"{chapter}.trans.txt",
        [f"{i} {text.replace(',', '').upper()}" for i, text in texts.items()],
    )
    return sides


def _record(speech, warp, rng):
    """Puts speech into a quiet room: warped to 16 kHz, between two pauses, at
    a level of -25 dB or so below full scale, 45 to 55 dB above the noise.
    Returns the waveform and the sample at which the speech starts.
    """
    # played at 50 * warp Hz instead of 22050 Hz, which moves the formants
    speech = resample_poly(speech, SAMPLE_RATE // 50, warp)
    speech /= np.sqrt(np.mean(speech**2))
    before, after = rng.integers(1600, 4000, size=2)
    after = max(after, SHORTEST - before - len(speech))
    wav = np.pad(speech, (before, after))
    snr = rng.uniform(45, 55)
    wav += 10 ** (-snr / 20) * rng.standard_normal(len(wav))
    level = 10 ** (rng.uniform(-28, -22) / 20)
    return wav * min(level, 0.99 / np.abs(wav).max()), before


class _Event(ctypes.Structure):
    """`espeak_EVENT` of espeak-ng 1.52; `name` is a union with a pointer."""

    _fields_ = [
        ("type", ctypes.c_int),
        ("unique_identifier", ctypes.c_uint),
        ("text_position", ctypes.c_int),
        ("length", ctypes.c_int),
        ("audio_position", ctypes.c_int),
        ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p),
        ("name", ctypes.c_char * 8),
    ]


_CALLBACK = ctypes.CFUNCTYPE(
    ctypes.c_int,
    ctypes.POINTER(ctypes.c_short),
    ctypes.c_int,
    ctypes.POINTER(_Event),
)


_LIST_END, _WORD, _PHONEME = 0, 1, 7  # types of events


_SYNCHRONOUS, _PHONEME_EVENTS, _DONT_EXIT, _UTF8 = 2, 1, 0x8000, 1


_RATE, _VOLUME, _PITCH, _RANGE = 1, 2, 3, 4  # parameters


def _speak(text, voice):
    """espeak-ng's samples at 22050 Hz, the ids of the phones and pauses, and
    the sample at which each of them starts.
    """
    loader = _import_loader()
    chunks, events = [], []

    @_CALLBACK
    def collect(wave, count, event):
        if wave and count > 0:
            chunks.append(ctypes.string_at(wave, 2 * count))
        index = 0
        while event[index].type != _LIST_END:
            e = event[index]
            events.append((e.type, e.sample, e.text_position, e.length, e.name))
            index += 1
        return 0

    # The phase of the voice and of its flutter survive every reset that the
    # interface offers: a sentence would depend on the ones before it. So each
    # is spoken by a library loaded anew, which takes a few milliseconds.
    library = ctypes.CDLL(loader.get_library_path())
    try:
        data = loader.get_data_path()
        rate = library.espeak_Initialize(
            _SYNCHRONOUS, 0, data.encode(), _PHONEME_EVENTS | _DONT_EXIT
        )
        if rate != 22050:
            raise RuntimeError(f"espeak-ng cannot use its data in {data}")
        library.espeak_ng_SetRandSeed(ctypes.c_long(1))
        library.espeak_SetSynthCallback(collect)
        name = f"{ACCENTS[voice['accent']]}+{voice['variant']}"
        if library.espeak_SetVoiceByName(name.encode()):
            raise RuntimeError(f"espeak-ng has no voice {name}")
        library.espeak_SetParameter(_RATE, voice["rate"], 0)
        library.espeak_SetParameter(_PITCH, voice["pitch"], 0)
        library.espeak_SetParameter(_RANGE, voice["pitch_range"], 0)
        library.espeak_SetParameter(_VOLUME, 60, 0)  # far from clipping
        size = ctypes.c_size_t(len(text) + 1)
        library.espeak_Synth(text.encode(), size, 0, 1, 0, _UTF8, None, None)
    finally:
        library.espeak_Terminate()
        _ctypes.dlclose(library._handle)

    speech = np.frombuffer(b"".join(chunks), np.int16).astype(float)
    phones, starts, word = [], [], text
    for kind, sample, position, length, mnemonic in events:
        if kind == _WORD:
            word = text[position - 1 : position - 1 + length]
        elif kind == _PHONEME:
            mnemonic = mnemonic.decode().strip("',%=")
            if mnemonic not in PHONE_IDS:
                raise ValueError(
                    f"espeak-ng's phoneme '{mnemonic}' in '{word}' "
                    f"({voice['accent']}) is missing in PHONE_TABLE"
                )
            phones.append(PHONE_IDS[mnemonic])
            starts.append(sample)
    return speech, phones, _start_at_closures(speech, phones, starts)


def _start_at_closures(speech, phones, starts):
    """Moves the start of every plosive from its release to its closure, the
    silence before it, which espeak-ng's events count to the phone before.
    """
    starts = list(starts)
    for i in range(1, len(phones)):
        if phones[i] in CLOSED and phones[i - 1] != 0:
            before = np.abs(speech[starts[i - 1] : starts[i]]) > 40
            if before.any():
                starts[i] -= int(np.argmax(before[::-1]))
    return starts


def _is_finished(folder, arguments):
    """Whether the corpus is complete; FileExistsError if it is another."""
    for name in (RECORD, UNFINISHED):
        if (folder / name).exists():
            found = json.loads((folder / name).read_text())["arguments"]
            if found != arguments:
                raise FileExistsError(
                    f"{folder} holds a synthetic corpus made with {found}, not "
                    f"with {arguments}: delete it or choose another folder"
                )
            return name == RECORD
    if (folder / "LibriSpeech").exists():
        raise FileExistsError(
            f"{folder} holds a LibriSpeech that was not made here: choose "
            "another folder"
        )
    return False


def _import_loader():
    try:
        import espeakng_loader
    except ImportError as error:
        raise ImportError(
            "The synthetic corpus is spoken by espeak-ng, which is not "
            "installed: pip install speechbrain-sim[synthetic]"
        ) from error
    return espeakng_loader


def _write(path, lines):
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".tmp")
    unfinished.write_text("".join(f"{line}\n" for line in lines))
    os.replace(unfinished, path)
