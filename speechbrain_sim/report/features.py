"""Cards of single features on a page: moments, profiles, what steering does."""

from typing import NamedTuple

import numpy as np

from speechbrain_sim.data.audio import SAMPLE_RATE
from speechbrain_sim.report.sounds import (
    CODEC,
    RANGE,
    common_gain,
    encode_sound,
    log_mel_of,
)
from speechbrain_sim.report.style import file_name, mel_png

#: bytes of sounds and pictures on a page, beyond which features are left out
MOST_BYTES = 18_000_000
#: ends of a difference's colours in nats: 20 dB
DIFFERENCE = np.log(100)
#: points of a drawn curve
POINTS = 240


class Clip(NamedTuple):
    """A short sound, and what is marked in it.

    Arguments
    ---------
    label, wav : str, numpy.ndarray
        What it is; (samples,), float, at 16 kHz.
    span : (float, float), optional
        Start and stop of the marked moment in seconds.
    curve : numpy.ndarray, optional
        (2, frames): seconds, and activations over the largest one.
    change : numpy.ndarray, optional
        By how much its log-mel differs from the first clip's, (frames, bands).
    """

    label: str
    wav: np.ndarray
    span: tuple | None = None
    curve: np.ndarray | None = None
    change: np.ndarray | None = None


class Card(NamedTuple):
    """A feature.

    Arguments
    ---------
    number, name : int, str
        Of the unit; the label it stands for, if any.
    words : list of str
        What it is found by, besides number and name.
    scores : dict of str to (float or None)
        The same for all cards of a catalogue; they can be sorted by.
    histogram : (list of int, float)
        Counts of its activations from 0 to the largest, in equal bins.
    profiles : dict of str to list of (str, float, float)
        Label -> class, the share of its frames where the feature fires (or of
        its utterances), and the mean activation there.
    moments, steered : list of Clip
        Where it is strongest; decoded with it changed.
    """

    number: int
    name: str
    words: list
    scores: dict
    histogram: tuple
    profiles: dict
    moments: list
    steered: list


class Catalogue(NamedTuple):
    """Features of a layer, as an item of a `Section`.

    Arguments
    ---------
    title, caption, system :
        See `speechbrain_sim.report.page.Table`.
    cards : list of Card
        The most interesting first.
    steering : str
        What the steered clips are, or why there are none.
    """

    title: str
    caption: str
    cards: list
    steering: str
    system: str | None = None


def render_catalogue(catalogue, key, files, blobs, most=MOST_BYTES):
    """Encodes sounds and pictures of a catalogue.

    Arguments
    ---------
    catalogue, key : Catalogue, str
        Of the section with that key.
    files, blobs : dict
        See `speechbrain_sim.report.page.write_page`: both are filled.
    most : int
        Bytes of all blobs, beyond which no further card is shown.

    Returns
    -------
    Catalogue
        Its cards are dicts for the template.
    """
    cards = []
    for card in catalogue.cards:
        if sum(map(len, blobs)) > most:
            break
        shown = card._asdict()
        name = f"{key}-{catalogue.title}-{card.number}"
        shown["id"] = file_name(name).replace(".", "-")
        for kind in ("moments", "steered"):
            clips = getattr(card, kind)
            shown[kind] = _render(clips, f"{name}-{kind}", files, blobs)
        tallest = max(card.histogram[0], default=0)
        shown["bars"] = [100 * n / tallest for n in card.histogram[0]]
        shown["words"] = " ".join([str(card.number), card.name, *card.words])
        cards.append(shown)
    left = len(catalogue.cards) - len(cards)
    caption = catalogue.caption
    if left:
        caption += f" {left} further features are left out: the page is full."
    return catalogue._replace(cards=cards, caption=caption)


def _render(clips, name, files, blobs):
    """Encodes clips at one gain; steered ones in the colours of the first."""
    if not clips:
        return []
    gain, shown, high = common_gain([clip.wav for clip in clips]), [], None
    for number, clip in enumerate(clips):
        wav = gain * np.asarray(clip.wav, np.float64)
        mel, seconds = log_mel_of(wav), len(wav) / SAMPLE_RATE
        if high is None or clip.change is None:
            high = mel.max()
        file = f"{len(files):03}-{file_name(name)}-{number}.wav"
        parts = {
            "sound": encode_sound(wav, CODEC),
            "mel": mel_png(mel, high - RANGE, high),
        }
        if clip.change is not None:
            ends = -DIFFERENCE, DIFFERENCE
            parts["change"] = mel_png(clip.change, *ends, colours="RdBu_r")
        entry = {k: blobs.setdefault(b, len(blobs)) for k, b in parts.items()}
        entry |= {"label": clip.label, "seconds": round(seconds, 2)}
        entry["file"] = files.setdefault(encode_sound(wav), file)
        entry["span"] = clip.span and _percent(clip.span, seconds)
        entry["curve"] = points(clip.curve, seconds)
        shown.append(entry)
    return shown


def _percent(span, seconds):
    """Returns left end and width of a span in percent of a sound."""
    start, stop = (min(max(0.0, 100 * s / seconds), 100.0) for s in span)
    return round(start, 2), round(stop - start, 2)


def points(curve, seconds):
    """Draws a curve as points of a polyline in a box of 100 x 100.

    Example
    -------
    >>> points(np.array([[0.0, 0.5], [0.0, 1.0]]), 1.0)
    '0.0,100.0 50.0,0.0'
    """
    if curve is None:
        return ""
    step = -(-curve.shape[1] // POINTS)
    starts = np.arange(0, curve.shape[1], step)
    x = 100 * curve[0][starts] / seconds
    y = 100 - 100 * np.maximum.reduceat(curve[1], starts)
    return " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(x, y, strict=True))
