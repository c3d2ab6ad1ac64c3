"""espeak-ng as a synthesiser of labelled speech: voices, sentences, phones.

The phone labels are exact, for they are the synthesiser's own events and not
the output of an aligner. Needs the extra `speechbrain-sim[synthetic]`.
"""

import _ctypes  # dlclose has no public name
import ctypes
import itertools
import re
from pathlib import Path

import numpy as np
from scipy.signal import resample_poly

from speechbrain_sim.data.audio import SAMPLE_RATE
from speechbrain_sim.extras import import_extra

# samples of an utterance: 1.2 s
SHORTEST = 19200

# accent: file of espeak-ng's language data
ACCENTS = """\
en-us gmw/en-US, en-gb gmw/en, en-gb-scotland gmw/en-GB-scotland,
en-029 gmw/en-029, en-gb-x-rp gmw/en-GB-x-rp,
en-gb-x-gbclan gmw/en-GB-x-gbclan, en-gb-x-gbcwmd gmw/en-GB-x-gbcwmd,
en-us-nyc gmw/en-US-nyc"""

ACCENTS = dict(entry.split() for entry in ACCENTS.split(","))

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

# each slot of a template, and the words for it
WORDS = """\
QUALITY brown young wooden usual noisy thin yellow gentle royal shy beige heavy
hungry cheerful thirsty quiet loud good foolish spoiled rough casual joyful
strange smooth pure chilly huge northern famous;
CREATURE boy fox teacher girl judge mouse cook doctor uncle thief farmer child
sheep goose captain cousin lawyer father mother spider dragon zebra author
oyster monkey bishop tiger cow sailor goat painter;
THING treasure coin button book chair yacht engine garage measure toy feather
vase window hammer cushion cheese jar path bottle letter bridge table lemon
ring basket thread machine pencil house voice onion zipper television pearl
flower jungle boat leather candle map;
MOVED jumped walked waited returned laughed arrived listened sang rejoiced
danced shouted slept worked yawned whistled vanished stumbled paused agreed
travelled;
HANDLED measured enjoyed pulled found bought carried touched noticed changed
destroyed washed admired followed heard pushed took treasured watched gathered
avoided hid chose loved joined brought;
LOCATION garden river city kitchen harbour village forest station tower church
beach theatre mountain market road yard meadow cave valley;
NEAR in near behind beyond around under above by outside across;
TIME yesterday today again together slowly quickly once often usually somehow
everywhere outdoors;
WHO Mary John George Joyce Thelma Hugh Sasha Roger Jean Zoe Charles Ruth Victor
Beth Doyle Asia;
MANY three four five six seven eight ten eleven thirty few several;
WHOSE the my your our his her this that every"""

WORDS = {slot: words for slot, *words in map(str.split, WORDS.split(";"))}

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

#: on which side of its centre a style has the cues of `CUES`; over the four,
#: any two cues are independent, so that none stands for another
STYLES = {
    "flat": (-1, -1, 1),
    "lively": (1, 1, 1),
    "hurried": (-1, 1, -1),
    "subdued": (1, -1, -1),
}

#: centre and reach: times the voice's own, words per minute, dB of full scale
CUES = {"pitch_range": (0.7, 0.4), "rate": (190, 60), "loudness": (-30, 6)}

#: height of a melody's middle: the median over vowels, measured in 12 voices
MIDDLE = 30


def draw_voice(index, seed):
    """Draws the voice of a speaker, whatever the number of speakers.

    Arguments
    ---------
    index, seed : int
        Number of the speaker, and seed of all voices.

    Returns
    -------
    dict
        `id, chapter, sex, accent, variant`; espeak-ng's `pitch` (0 to 99: 50
        is that of the variant, 70 more an octave), `pitch_range` and `rate`
        (words per minute); formants are multiplied by `warp` / 441, for which
        pitch and rate compensate.
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


def draw_delivery(rng):
    """Draws how a sentence is spoken, whoever speaks it.

    Arguments
    ---------
    rng : numpy.random.Generator
        Draws the style, and independent of it the pitch, within 3 semitones;
        then, independent of each other, the cues: on the style's side of their
        centre, or up to a fifth of their reach on the other.

    Returns
    -------
    dict
        `style`; `pitch`, semitones above the voice's own; `pitch_range`, times
        the voice's own; `rate`, words per minute; `loudness`, root mean square
        of the speech, in dB of full scale.
    """
    style = str(rng.choice(list(STYLES)))
    pitch = rng.uniform(-3, 3)
    places = 0.4 * np.array(STYLES[style]) + rng.uniform(-0.6, 0.6, size=3)
    pairs = zip(CUES.items(), places, strict=True)
    cues = {n: round(at + reach * x, 2) for (n, (at, reach)), x in pairs}
    return {"style": style, "pitch": round(pitch, 2), **cues}


def deliver(voice, delivery):
    """Returns a voice that speaks as drawn.

    The pitch in Hz is p b - 18 s (r - 1) + m s r in espeak-ng 1.52 (wavegen.c,
    voices.c): p and r are factors, of which the parameter `pitch` sets the one
    (50 an octave) and `pitch_range` the other, b and s are the variant's, and m
    is the height of the melody. Here p and r are such that the middle of the
    melody and its range in semitones are as drawn.

    Arguments
    ---------
    voice, delivery : dict
        See `draw_voice` (its pitch, range and rate are not used), and
        `draw_delivery`.

    Returns
    -------
    dict
        The voice with `pitch`, `pitch_range` and `rate` as espeak-ng's
        parameters, `loudness`, and `pitch_hz`: the median pitch of its vowels.
    """
    base, step = _own_pitch(voice["variant"])
    slower, higher = 441 / voice["warp"], 2 ** (delivery["pitch"] / 12)
    hertz = higher * (base + MIDDLE * step)
    spread = higher * slower * delivery["pitch_range"]
    raised = hertz * slower - step * (MIDDLE * spread - 18 * (spread - 1))
    return voice | {
        "pitch": round(50 + 50 * np.log2(raised / base)),
        "pitch_range": round(50 * spread),
        "rate": round(delivery["rate"] * slower),
        "loudness": delivery["loudness"],
        "pitch_hz": round(hertz, 1),
    }


def _own_pitch(variant):
    """Lowest pitch of a variant, and a step of its melody, in Hz."""
    path = Path(import_loader().get_data_path(), "voices/!v", variant)
    line = re.search(r"^pitch\s+(\d+)\s+(\d+)", path.read_text(), re.M)
    low, high = map(int, line.groups() if line else (82, 118))  # its default
    return low - 9, (high - low) * 108 / 4096


def draw_sentence(side, rng):
    """Draws a sentence to train (side 0) or to test on (side 1)."""
    sentence = []
    for word in str(rng.choice(TEMPLATES[side])).split():
        slot = word.rstrip(",")
        choice = str(rng.choice(WORDS[slot])) if slot in WORDS else slot
        sentence.append(choice + word[len(slot) :])
    return " ".join(sentence)


def speak(text, voice):
    """Synthesises a sentence.

    Arguments
    ---------
    text : str
        In English, ASCII.
    voice : dict
        See `draw_voice`.

    Returns
    -------
    speech : numpy.ndarray
        Samples of 16 bits at 22050 Hz, as float64.
    phones, starts, words : list of int
        Places in `PHONES` of the phones and pauses; the sample at which each
        of them starts; and the character of the text at which its word does.

    Raises
    ------
    RuntimeError
        If espeak-ng cannot use its data, or has no such voice.
    ValueError
        If a phoneme is missing in the table.
    ImportError
        Without the extra.
    """
    chunks, events = _synthesise(text, voice)
    speech = np.frombuffer(b"".join(chunks), np.int16).astype(float)
    phones, starts, words, word = [], [], [], text
    for kind, sample, position, length, mnemonic in events:
        if kind == _WORD:
            word = text[position - 1 :][:length]
        elif kind == _PHONEME:
            mnemonic = mnemonic.decode().strip("',%=")
            if mnemonic not in PHONE_IDS:
                what = f"'{mnemonic}' in '{word}' ({voice['accent']})"
                raise ValueError(f"Phoneme {what} is missing in PHONE_TABLE")
            phones.append(PHONE_IDS[mnemonic])
            starts.append(sample)
            words.append(max(0, position - 1))
    return speech, phones, _start_at_closures(speech, phones, starts), words


def record(speech, warp, rng, loudness=None):
    """Puts speech into a quiet room.

    Arguments
    ---------
    speech, warp : numpy.ndarray, int
        Samples at 50 * `warp` Hz, as `speak` returns them.
    rng : numpy.random.Generator
        Draws the pauses, the level and the noise.
    loudness : float, optional
        Level in dB, instead of the one drawn.

    Returns
    -------
    wav, start : (numpy.ndarray, int)
        Speech at 16 kHz between two pauses, 22 to 28 dB below full scale, 45
        to 55 dB above the noise; and the sample at which it starts.
    """
    # played at 50 * warp Hz instead of 22050 Hz, which moves the formants
    speech = resample_poly(speech, SAMPLE_RATE // 50, warp)
    speech /= np.sqrt(np.mean(speech**2))
    before, after = rng.integers(1600, 4000, size=2)
    after = max(after, SHORTEST - before - len(speech))
    wav = np.pad(speech, (before, after))
    wav += 10 ** (-rng.uniform(45, 55) / 20) * rng.standard_normal(len(wav))
    drawn = rng.uniform(-28, -22)
    level = 10 ** ((drawn if loudness is None else loudness) / 20)
    return wav * min(level, 0.99 / np.abs(wav).max()), before


_INTEGERS = "type id text_position length position sample".split()


class _Event(ctypes.Structure):
    """`espeak_EVENT` of espeak-ng 1.52; `name` is a union with a pointer."""

    _fields_ = [(name, ctypes.c_int) for name in _INTEGERS]
    _fields_ += [("user_data", ctypes.c_void_p), ("name", ctypes.c_char * 8)]


_SAMPLES, _EVENTS = (ctypes.POINTER(t) for t in (ctypes.c_short, _Event))
_CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int, _SAMPLES, ctypes.c_int, _EVENTS)
_LIST_END, _WORD, _PHONEME = 0, 1, 7  # types of events
_SYNCHRONOUS, _PHONEME_EVENTS, _DONT_EXIT, _UTF8 = 2, 1, 0x8000, 1
_VOLUME, _PARAMETERS = 2, {1: "rate", 3: "pitch", 4: "pitch_range"}


def _synthesise(text, voice):
    """Pieces of 16 bit samples, and the events, of a sentence."""
    loader = import_loader()
    chunks, events = [], []

    @_CALLBACK
    def collect(wave, count, event):
        if wave and count > 0:
            chunks.append(ctypes.string_at(wave, 2 * count))
        for e in itertools.takewhile(lambda e: e.type != _LIST_END, event):
            events.append((e.type, e.sample, e.text_position, e.length, e.name))
        return 0

    # The phase of the voice and of its flutter survive every reset that the
    # interface offers: a sentence would depend on the ones before it. So each
    # is spoken by a library loaded anew, which takes a few milliseconds.
    library = ctypes.CDLL(loader.get_library_path())
    try:
        data = loader.get_data_path()
        how = _SYNCHRONOUS, 0, data.encode(), _PHONEME_EVENTS | _DONT_EXIT
        if library.espeak_Initialize(*how) != 22050:
            raise RuntimeError(f"espeak-ng cannot use its data in {data}")
        library.espeak_ng_SetRandSeed(ctypes.c_long(1))
        library.espeak_SetSynthCallback(collect)
        name = f"{ACCENTS[voice['accent']]}+{voice['variant']}"
        if library.espeak_SetVoiceByName(name.encode()):
            raise RuntimeError(f"espeak-ng has no voice {name}")
        library.espeak_SetParameter(_VOLUME, 60, 0)  # far from clipping
        for parameter, key in _PARAMETERS.items():
            library.espeak_SetParameter(parameter, voice[key], 0)
        size = ctypes.c_size_t(len(text) + 1)
        library.espeak_Synth(text.encode(), size, 0, 1, 0, _UTF8, None, None)
    finally:
        library.espeak_Terminate()
        _ctypes.dlclose(library._handle)
    return chunks, events


def _start_at_closures(speech, phones, starts):
    """Starts with every plosive at its closure, the silence before it.

    espeak-ng's events count the closure to the phone before.
    """
    starts = list(starts)
    for i in range(1, len(phones)):
        if phones[i] in CLOSED and phones[i - 1] != 0:
            before = np.abs(speech[starts[i - 1] : starts[i]]) > 40
            if before.any():
                starts[i] -= int(np.argmax(before[::-1]))
    return starts


def import_loader():
    """Returns the module that holds espeak-ng; names the extra if absent."""
    return import_extra("espeakng_loader", "synthetic")
