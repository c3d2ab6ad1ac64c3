"""Reading and checking audio files, always as mono samples at one rate.

Samples are counted at the *target* rate everywhere, so that crops, manifests
and encoders speak of the same numbers whatever a file holds. Only libsndfile
(``soundfile``) touches the disk.
"""

import math
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soundfile as sf
import torch
import torchaudio

SAMPLE_RATE = 16000
"""Rate in Hz that every encoder of this package reads."""

BLOCK = 1 << 16
"""Frames decoded at a time when the content of a file is checked."""

# Writers that cannot seek back (pipes) announce a size of this or more.
STREAMED_WAV = 0x7FFFF000

# Largest page of an ogg file in bytes.
OGG_PAGE = 65307


class BadAudio(ValueError):
    """One file that cannot be used, and why.

    Arguments
    ---------
    path : str or Path
        The file.
    reason : str
        One sentence, without the path.

    Example
    -------
    >>> print(BadAudio("a.wav", "The file is missing."))
    a.wav: The file is missing.
    """

    def __init__(self, path, reason):
        super().__init__(str(path), reason)
        self.path = str(path)
        self.reason = reason

    def __str__(self):
        return f"{self.path}: {self.reason}"


class AudioInfo(NamedTuple):
    """What ``inspect_audio`` found in a file that can be used.

    ``sample_rate`` (Hz), ``frames`` and ``channels`` are the file's own;
    ``num_samples`` is its length once ``read_audio`` has converted it.
    """

    sample_rate: int
    frames: int
    channels: int
    num_samples: int


def num_samples_at(frames, rate, sample_rate=SAMPLE_RATE):
    """Length of a whole file after conversion, rounded up to a sample.

    Arguments
    ---------
    frames : int
        Length of the file in its own frames.
    rate : int
        Sampling rate of the file in Hz.
    sample_rate : int
        Target rate in Hz.

    Returns
    -------
    int
        Exactly the length of ``read_audio`` for the whole file.

    Example
    -------
    >>> num_samples_at(12156, 22050)
    8821
    """
    return -(-frames * sample_rate // rate)


def read_audio(path, start=0, stop=None, sample_rate=SAMPLE_RATE):
    """Read a part of a file as float32 mono samples at the target rate.

    Only the wanted part is read and resampled. The result is the slice
    ``[start:stop]`` of the whole file: exactly at the file's own rate, up to
    float32 rounding at others. Channels are averaged.

    Arguments
    ---------
    path : str or Path
        Any file that libsndfile reads.
    start : int
        First sample, counted at ``sample_rate``.
    stop : int or None
        One past the last sample, at ``sample_rate``; ``None`` is the end. As
        in any slice, what lies beyond the end of the file is left out.
    sample_rate : int
        Target rate in Hz.

    Returns
    -------
    torch.Tensor
        (samples,), nominally in [-1, 1].

    Raises
    ------
    BadAudio
        If the file is missing, no audio, or cannot be decoded there.
    ValueError
        If ``start`` is negative or beyond ``stop``.

    Example
    -------
    >>> path = getfixture("tmp_path") / "tone.wav"
    >>> sf.write(path, np.sin(np.arange(44100) / 20), 44100)
    >>> read_audio(path).shape, read_audio(path, 8000, 8160).shape
    (torch.Size([16000]), torch.Size([160]))
    """
    if start < 0 or (stop is not None and stop < start):
        raise ValueError(
            f"{path}: need 0 <= start <= stop, got start={start}, stop={stop}"
        )
    with _open(path) as file:
        total = num_samples_at(file.frames, file.samplerate, sample_rate)
        stop = total if stop is None else min(stop, total)
        start = min(start, stop)
        if file.samplerate == sample_rate:
            return _read_mono(file, start, stop)
        # The resampling filter repeats itself every `period` frames, which
        # become `hop` samples: cut there, with the filter's reach around.
        resampler = _resampler(file.samplerate, sample_rate)
        common = math.gcd(file.samplerate, sample_rate)
        period, hop = file.samplerate // common, sample_rate // common
        margin = resampler.width // period + 2
        first = max(0, start // hop - margin)
        last = min(file.frames, (stop // hop + 1 + margin) * period)
        samples = resampler(_read_mono(file, first * period, last))
        samples = samples[start - first * hop :][: stop - start]
        missing = stop - start - len(samples)
        return torch.nn.functional.pad(samples, (0, missing))


def inspect_audio(
    path,
    min_samples=1,
    check_content=True,
    expected_rate=None,
    expected_channels=None,
    sample_rate=SAMPLE_RATE,
):
    """Check that a file can be used, in bounded memory.

    Other rates and several channels are fine, since ``read_audio`` converts
    them, unless a rate or a number of channels is asked for.

    Arguments
    ---------
    path : str or Path
        The file.
    min_samples : int
        Shortest length allowed, counted at ``sample_rate``.
    check_content : bool
        Decode the whole file too. Without, NaN, silence and a flac that was
        cut go unnoticed.
    expected_rate, expected_channels : int or None
        Refuse other sampling rates (Hz) or numbers of channels.
    sample_rate : int
        Target rate in Hz.

    Returns
    -------
    AudioInfo
        Rate, frames and channels of the file, its length after conversion.

    Raises
    ------
    BadAudio
        If the file is missing, empty, no audio, truncated, shorter than
        ``min_samples``, not as expected, holds NaN or infinities, or nothing
        but zeros.

    Example
    -------
    >>> path = getfixture("tmp_path") / "noise.flac"
    >>> sf.write(path, np.random.default_rng(0).uniform(-1, 1, 8000), 8000)
    >>> inspect_audio(path)
    AudioInfo(sample_rate=8000, frames=8000, channels=1, num_samples=16000)
    >>> try:
    ...     inspect_audio(path, min_samples=20480)
    ... except BadAudio as error:
    ...     print(error.reason)
    It has 16000 samples at 16000 Hz, fewer than the 20480 needed.
    """
    with _open(path) as file:
        rate, frames, channels = file.samplerate, file.frames, file.channels
        missing = _missing_wav_bytes(path)
        if missing:
            raise BadAudio(
                path, f"It is truncated: {missing} bytes of audio are missing."
            )
        if file.format == "OGG" and not _ogg_ends(path):
            raise BadAudio(
                path, "It is truncated: its last ogg page ends no stream."
            )
        if not frames:
            raise BadAudio(path, "It holds no samples.")
        if expected_rate not in (None, rate):
            raise BadAudio(
                path, f"It is at {rate} Hz, expected {expected_rate} Hz."
            )
        if expected_channels not in (None, channels):
            raise BadAudio(
                path, f"It has {channels} channels, not {expected_channels}."
            )
        samples = num_samples_at(frames, rate, sample_rate)
        if samples < min_samples:
            raise BadAudio(
                path,
                f"It has {samples} samples at {sample_rate} Hz, fewer than "
                f"the {min_samples} needed.",
            )
        if check_content:
            _check_content(file)
    return AudioInfo(rate, frames, channels, samples)


def _open(path):
    """Open a file with libsndfile, or say why that is impossible."""
    path = Path(path)
    if not path.is_file():
        raise BadAudio(path, "The file is missing.")
    if not path.stat().st_size:
        raise BadAudio(path, "The file is empty (0 bytes).")
    try:
        file = sf.SoundFile(path)
    except sf.LibsndfileError as error:
        raise BadAudio(
            path, f"It is no audio libsndfile reads: {error.error_string}"
        ) from error
    if file.frames > 1 << 60:  # libsndfile's "unknown"
        file.close()
        raise BadAudio(path, "Its header does not say how long it is.")
    return file


def _read(file, frames, start=None):
    """Decode frames, the next ones or from a start: (frames, channels)."""
    try:
        if start is not None:
            file.seek(start)
        return file.read(frames, dtype="float32", always_2d=True)
    except sf.LibsndfileError as error:
        raise BadAudio(
            file.name,
            f"It is truncated or damaged, decoding fails: {error.error_string}",
        ) from error


def _read_mono(file, start, stop):
    """Frames [start:stop] of an open file, averaged over its channels."""
    block = _read(file, stop - start, start)
    if len(block) < stop - start:
        raise BadAudio(
            file.name,
            f"It is truncated: {start + len(block)} of {file.frames} frames "
            "can be decoded.",
        )
    mono = block[:, 0] if file.channels == 1 else block.mean(axis=1)
    return torch.from_numpy(np.ascontiguousarray(mono))


def _check_content(file):
    """Decode an open file in blocks; raise BadAudio for what is wrong."""
    decoded, silent = 0, True
    while len(block := _read(file, BLOCK)):
        if not np.isfinite(block).all():
            raise BadAudio(file.name, "It holds NaN or infinite samples.")
        decoded += len(block)
        silent = silent and not block.any()
    if decoded < file.frames:
        raise BadAudio(
            file.name,
            f"It is truncated: {decoded} of {file.frames} frames can be "
            "decoded.",
        )
    if silent:
        raise BadAudio(file.name, "Every sample is zero.")


def _missing_wav_bytes(path):
    """Bytes that a wav announces beyond its end.

    libsndfile silently shortens such a file. Zero for other formats, and for
    wavs written to a pipe, whose header announces no true size.
    """
    size = Path(path).stat().st_size
    with open(path, "rb") as file:
        head = file.read(12)
        if head[:4] != b"RIFF" or head[8:] != b"WAVE":
            return 0
        while len(chunk := file.read(8)) == 8:
            length = int.from_bytes(chunk[4:], "little")
            if chunk[:4] == b"data":
                missing = file.tell() + length - size
                return 0 if length >= STREAMED_WAV else max(0, missing)
            file.seek(length + length % 2, 1)
    return 0


def _ogg_ends(path):
    """Whether the last page of an ogg file is marked as the end.

    libsndfile takes a cut file for a shorter one: no header gives a length.
    """
    with open(path, "rb") as file:
        file.seek(max(0, Path(path).stat().st_size - OGG_PAGE))
        tail = file.read()
    page = tail[tail.rfind(b"OggS") :]
    body = 27 + page[26] if len(page) > 26 else len(page) + 1
    complete = len(page) >= body + sum(page[27:body])
    return complete and bool(page[5] & 4)


@lru_cache
def _resampler(rate, sample_rate):
    """Resampler between two rates, its filter computed once."""
    return torchaudio.transforms.Resample(rate, sample_rate)
