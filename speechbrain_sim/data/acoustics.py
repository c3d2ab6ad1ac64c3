"""Recordings -> pitch, intensity, ...: labels that nobody has to write.

Of what SpeechBrain's `VocalFeatures` consists of, the autocorrelation and the
periods are used, with Praat's range of pitch (75 to 600 Hz: its own ends at 300,
which some voices exceed) and without its moving average, which mixes voiced and
unvoiced frames; its glottal-to-noise ratio, three quarters of its time, is not.
It has no intensity. Periods are whole samples, and no octave is preferred: of a
very regular voice above 400 Hz it may take several periods for one.
`docs/speech-labels.md` compares all of this with Praat.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from speechbrain.processing.vocal_features import (
    compute_autocorr_features,
    compute_periodic_features,
)

from speechbrain_sim import __version__
from speechbrain_sim.console import Bar
from speechbrain_sim.data.audio import SAMPLE_RATE, read_audio
from speechbrain_sim.data.labels import HOP, NO_LABEL, WINDOW, num_labels
from speechbrain_sim.data.tables import read_manifest, row_hashes
from speechbrain_sim.extras import import_extra
from speechbrain_sim.files import read_json, write_json

#: Hz; a window has four periods of the lowest pitch
LOWEST, HIGHEST = 75, 600
LONG = 2 * -(-2 * SAMPLE_RATE // LOWEST)
#: a voiced frame has this autocorrelation, and at most so many dB less than the
#: strongest
PERIODIC, BELOW = 0.5, 30
#: of each recording
LABELS = "pitch", "pitch_range", "intensity", "duration"
LABELS += "harmonicity", "jitter", "shimmer"
SOURCES = SPEECHBRAIN, PRAAT = "speechbrain", "praat"
#: frames that are computed at once, and recordings between two savings
_CHUNK, _SAVED = 3000, 500


class Contours(NamedTuple):
    """What a recording does every 10 ms, at the centres of labels of frames.

    Arguments
    ---------
    pitch : torch.Tensor
        (labels,), Hz; NaN where it is not voiced.
    intensity : torch.Tensor
        (labels,), dB of full scale, in a Hann window of 53 ms.
    harmonicity : torch.Tensor
        (labels,), the autocorrelation at the pitch's period.
    jitter, shimmer : torch.Tensor
        (labels,), mean deviation of four periods, and of their peaks: shares.
    """

    pitch: torch.Tensor
    intensity: torch.Tensor
    harmonicity: torch.Tensor
    jitter: torch.Tensor
    shimmer: torch.Tensor


@torch.no_grad()
def contours(wav):
    """Measures a recording every 10 ms.

    Arguments
    ---------
    wav : torch.Tensor
        (samples,) at 16 kHz, 25 ms or more.

    Returns
    -------
    Contours
        Label i is centred at sample 160 i + 200, see
        `speechbrain_sim.data.labels.frames_of_labels`.

    Example
    -------
    >>> time = torch.arange(8000) / 16000
    >>> tone = (2 * torch.pi * 200 * time).sin() / 2
    >>> pitch, intensity, *_ = contours(tone)
    >>> round(float(pitch[20])), round(float(intensity[20]))
    (200, -9)
    """
    count, side = num_labels(len(wav)), (LONG - WINDOW) // 2
    around = (side, side + HOP)  # zeros
    padded = torch.nn.functional.pad(wav.float() - wav.float().mean(), around)
    frames = padded.unfold(-1, LONG, HOP)[:count]
    window = torch.hann_window(LONG) ** 2
    pieces = []
    for first in range(0, count, _CHUNK):
        before = min(first, 2)  # which the median over five lags needs
        piece = frames[first - before : first + _CHUNK + 2][None]
        lags = SAMPLE_RATE // HIGHEST, SAMPLE_RATE // LOWEST
        harmonicity, periods = compute_autocorr_features(piece, *lags)
        jitter, shimmer = compute_periodic_features(piece, periods)
        power = (piece**2 * window).sum(-1) / window.sum()
        rows = SAMPLE_RATE / periods, 10 * power.clamp(min=1e-10).log10()
        rows = torch.cat([*rows, harmonicity, jitter, shimmer])
        pieces.append(rows[:, before : before + _CHUNK])
    pitch, intensity, harmonicity, *rest = torch.cat(pieces, 1)
    voiced = (harmonicity > PERIODIC) & (intensity > intensity.max() - BELOW)
    pitch = torch.where(voiced, pitch, torch.nan)
    return Contours(pitch, intensity, harmonicity, *rest)


def measure(wav, source=SPEECHBRAIN):
    """Measures a recording as a whole.

    Arguments
    ---------
    wav : torch.Tensor
        (samples,) at 16 kHz.
    source : str
        "speechbrain", or "praat": needs the extra `praat`.

    Returns
    -------
    dict of str to float
        `pitch`, median of voiced frames, Hz; `pitch_range`, semitones between
        its 10th and 90th percentile; `intensity`, mean power in dB (of full
        scale; Praat's are 94 more); `duration`, seconds; of voiced frames
        `harmonicity`, dB, `jitter` and `shimmer`, percent. NaN where nothing is
        voiced.
    """
    values = _praat(wav) if source == PRAAT else _measure(wav)
    pitch = values["pitch"]
    values["pitch"] = values["pitch_range"] = np.nan
    if len(pitch):
        low, middle, high = np.percentile(pitch, [10, 50, 90])
        values["pitch"] = float(middle)
        values["pitch_range"] = float(12 * np.log2(high / low))
    values["duration"] = len(wav) / SAMPLE_RATE
    return {name: float(values[name]) for name in LABELS}


def acoustic_labels(manifest, data_folder, source=SPEECHBRAIN):
    """Measures the recordings of a manifest, or reads what was measured.

    Results are kept beside the manifest, by the content of each recording, so
    that an interrupted call is continued.

    Arguments
    ---------
    manifest, data_folder : str or Path
        See `speechbrain_sim.data.tables.read_manifest`.
    source : str
        See `measure`.

    Returns
    -------
    dict of str to dict of str to float
        Utterance to what `measure` returns.
    """
    if source not in SOURCES:
        raise ValueError(f"acoustics is {source!r}, not one of {SOURCES}.")
    rows = read_manifest(manifest, data_folder)
    hashes = row_hashes(manifest, data_folder, ["start", "stop"])
    path = Path(manifest).with_suffix(f".acoustics.{source}.json")
    made_of = {"version": __version__, "labels": list(LABELS)}
    kept = read_json(path) if path.exists() else {}
    known = kept["values"] if kept.get("made_of") == made_of else {}
    known = {key: known[key] for key in hashes.values() if key in known}
    lacking = {hashes[name]: row for name, row in rows.items()}
    lacking = {key: row for key, row in lacking.items() if key not in known}
    bar = Bar(lacking.items(), "Measuring", unit="file", disable=None)
    for number, (key, row) in enumerate(bar, start=1):
        start = row["start"]
        wav = read_audio(row["wav"], start, start + row["num_samples"])
        values = measure(wav, source)
        known[key] = [v if np.isfinite(v) else None for v in values.values()]
        if number % _SAVED == 0 or number == len(lacking):
            write_json(path, {"made_of": made_of, "values": known})
    labels = {}
    for name in rows:
        values = np.array(known[hashes[name]], dtype=float)
        labels[name] = dict(zip(LABELS, values.tolist(), strict=True))
    return labels


def quantile_bins(train_values, values, bins=4, name="the values"):
    """Divides values at the quantiles of those of the training part.

    The outer bins are open: no value is outside of them.

    Arguments
    ---------
    train_values, values : array of float
        (n,); NaN is no value.
    bins : int
        How many.
    name : str
        In messages.

    Returns
    -------
    numpy.ndarray
        Of `values`, int64: 0, the lowest, to `bins` - 1; -1 of NaN.

    Raises
    ------
    ValueError
        If a bin would have no training value: for fewer values than bins, or
        many that are equal.

    Example
    -------
    >>> quantile_bins([1, 2, 3, 4], [-9, 2, 2.6, 9, float("nan")])
    array([ 0,  1,  2,  3, -1])
    """
    train_values, values = (
        np.asarray(v, float) for v in (train_values, values)
    )
    train = train_values[np.isfinite(train_values)]
    if len(train) >= bins:
        edges = np.quantile(train, np.linspace(0, 1, bins + 1)[1:-1])
        used = np.unique(np.searchsorted(edges, train, "right"))
    if len(train) < bins or len(used) < bins:
        raise ValueError(
            f"{name}: {len(train)} training values, {len(np.unique(train))} of "
            f"them different, do not fill {bins} bins: leave the label out, or "
            f"add recordings."
        )
    found = np.searchsorted(edges, values, "right")
    return np.where(np.isnan(values), NO_LABEL, found)


def _measure(wav):
    """Of a recording: the pitch of voiced frames, and means over them."""
    if len(wav) < WINDOW:
        wav = torch.nn.functional.pad(wav, (0, WINDOW - len(wav)))
    found = contours(wav)
    voiced = ~found.pitch.isnan()
    noise = (1 - found.harmonicity[voiced]).clamp(min=1e-3)
    return {
        "pitch": found.pitch[voiced].numpy(),
        "intensity": 10 * wav.var(correction=0).clamp(min=1e-10).log10(),
        "harmonicity": -10 * noise.log10().mean(),
        "jitter": 100 * found.jitter[voiced].mean(),
        "shimmer": 100 * found.shimmer[voiced].mean(),
    }


def _praat(wav):
    """The same by Praat, with the settings of its manual."""
    parselmouth = import_extra("parselmouth", PRAAT)
    call = parselmouth.praat.call
    shortest = max(0, int(0.1 * SAMPLE_RATE) - len(wav))  # of its intensity
    sound = torch.nn.functional.pad(wav, (0, shortest)).double().numpy()
    sound = parselmouth.Sound(sound, SAMPLE_RATE)
    pitch = sound.to_pitch_ac(HOP / SAMPLE_RATE, LOWEST, pitch_ceiling=HIGHEST)
    pitch = pitch.selected_array["frequency"]
    pulses = call(sound, "To PointProcess (periodic, cc)", LOWEST, HIGHEST)
    whole, periods = (0, 0), (0.0001, 0.02, 1.3)
    harmonic = sound.to_harmonicity_cc(0.01, LOWEST).values
    harmonic = harmonic[harmonic > -200]  # dB, of no period
    shimmer = [sound, pulses], "Get shimmer (local)"
    loudness = sound.to_intensity(LOWEST)
    return {
        "pitch": pitch[pitch > 0],
        "intensity": call(loudness, "Get mean", *whole, "energy"),
        "harmonicity": np.mean(harmonic) if len(harmonic) else np.nan,
        "jitter": 100 * call(pulses, "Get jitter (local)", *whole, *periods),
        "shimmer": 100 * call(*shimmer, *whole, *periods, 1.6),
    }
