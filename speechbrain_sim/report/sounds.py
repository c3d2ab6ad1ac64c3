"""Sounds of a page: one gain, one codec, and what is drawn of them."""

import io
import math
from functools import cache

import numpy as np
import soundfile
import torch

from speechbrain_sim.data.audio import SAMPLE_RATE
from speechbrain_sim.encoders.logmel import LOGMEL, LogMel

#: peak of the loudest sound of an explorer, and what counts as silence
PEAK, SILENCE = 0.9, 1e-4
#: range of a mel spectrogram's colours in dB, and the same in nats
RANGE_DB = 60
RANGE = RANGE_DB / 10 * math.log(10)
#: the page's sounds: libsndfile's format, or one that every build of it writes
TYPES = {"MP3": "audio/mpeg", "WAV": "audio/wav"}
CODEC = next(kind for kind in TYPES if kind in soundfile.available_formats())
#: columns of a drawn waveform
COLUMNS = 640


def common_gain(wavs):
    """Computes the gain that brings the loudest sound to a peak of 0.9.

    Example
    -------
    >>> common_gain([np.array([0.1, -0.45]), np.zeros(3)])
    2.0
    """
    peak = max(float(np.abs(wav).max()) for wav in wavs)
    return PEAK / peak if peak > SILENCE else 1.0


def encode_sound(wav, kind="WAV"):
    """Encodes a sound, (samples,) in [-1, 1], as MP3, or WAV of 16 bits.

    Example
    -------
    >>> len(encode_sound(np.zeros(100)))
    244
    """
    file = io.BytesIO()
    soundfile.write(file, wav, SAMPLE_RATE, format=kind)
    return file.getvalue()


def outline(wav):
    """Draws a sound, (samples,) in [-1, 1]: the ends of each of its columns.

    Returns bytes from 0 (the value 1) to 200 (the value -1): the highest of
    each column, then the lowest.

    Example
    -------
    >>> drawn = outline(np.array([0.5, -0.5]))
    >>> drawn[0], drawn[639], drawn[640], len(drawn)
    (50, 150, 50, 1280)
    """
    starts = np.arange(COLUMNS) * len(wav) // COLUMNS
    ends = [f.reduceat(wav, starts) for f in (np.maximum, np.minimum)]
    drawn = 100 - 100 * np.concatenate(ends)
    return drawn.clip(0, 200).round().astype(np.uint8).tobytes()


def log_mel_of(wav):
    """Computes the log-mel of a sound, (samples,): (frames, bands)."""
    wav = torch.as_tensor(wav).float()
    return _log_mel()(wav[None])[LOGMEL].mean[0].numpy()


#: makes its filters once
_log_mel = cache(LogMel)
