"""Reading and checking audio files, always as mono samples at 16 kHz.

Samples are counted at 16 kHz everywhere, whatever a file holds. Only
libsndfile (`soundfile`) reads the disk.
"""

import math
import re
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soundfile as sf
import torch
import torchaudio

SAMPLE_RATE = 16000
"""Rate in Hz that every encoder of this package reads."""

# frames decoded at a time when the content of a file is checked
BLOCK = 1 << 16

# largest page of an ogg file in bytes
OGG_PAGE = 65307

# sizes that writers to a pipe (sox, ffmpeg, libsndfile) announce
STREAMED = range(0x7F000000, 1 << 32)

# sizes in bytes that libsndfile's log gives, and what there is instead
_SIZES = re.compile(
    r"^ *(data|SSND|BODY|Data Size|Data length|riff|Riff size|RIFF|FORM) *:? "
    r"(\d+)(?: \(?should be (\d+))?",
    re.MULTILINE,
)

# lengths in frames, in the log or header of some containers
_FRAMES = re.compile(r"(?:\b(?:Frames|Cols) *:|^sample_count -i) (\d+)", re.M)
_COUNTED = ("AVR", "MAT4", "MAT5", "MPC2K", "NIST")


class BadAudio(ValueError):
    """One file that cannot be used: its `path`; the `reason`, a sentence."""

    def __init__(self, path, reason):
        super().__init__(str(path), reason)
        self.path = str(path)
        self.reason = reason

    def __str__(self):
        return f"{self.path}: {self.reason}"


class AudioInfo(NamedTuple):
    """Rate (Hz), frames and channels of a file; its length at 16 kHz."""

    sample_rate: int
    frames: int
    channels: int
    num_samples: int


def num_samples_at(frames, rate):
    """Returns the length of `read_audio` for a file of so many frames.

    Example
    -------
    >>> num_samples_at(12156, 22050)
    8821
    """
    return -(-frames * SAMPLE_RATE // rate)


def read_audio(path, start=0, stop=None):
    """Reads a part of a file as float32 mono samples at 16 kHz.

    Only that part is read and resampled. The result is the slice
    `[start:stop]` of the whole file: exactly at the file's own rate, up to
    float32 rounding at others. Channels are averaged.

    Arguments
    ---------
    path : str or Path
        Any file that libsndfile reads.
    start, stop : int, optional
        First sample, and one past the last, at 16 kHz. As in any slice, what
        lies beyond the end of the file is left out.

    Returns
    -------
    torch.Tensor
        (samples,), nominally in [-1, 1].

    Raises
    ------
    BadAudio
        If the file is missing, no audio, or cannot be decoded there.
    ValueError
        If `start` is negative or beyond `stop`.

    Example
    -------
    >>> path = getfixture("tmp_path") / "tone.wav"
    >>> sf.write(path, np.sin(np.arange(44100) / 20), 44100)
    >>> read_audio(path).shape, read_audio(path, 8000, 8160).shape
    (torch.Size([16000]), torch.Size([160]))
    """
    if start < 0 or (stop is not None and stop < start):
        raise ValueError(f"{path}: not 0 <= start <= stop: {start}, {stop}")
    with _open(path) as file:
        total = num_samples_at(file.frames, file.samplerate)
        start, stop, _ = slice(start, stop).indices(total)
        if file.samplerate == SAMPLE_RATE:
            return _read_mono(file, start, stop)
        return _resample(file, start, stop)


def audio_info(path):
    """Returns the AudioInfo of a file from its header; see `inspect_audio`.

    Nothing is decoded: NaN, silence and a flac that was cut are not noticed.
    """
    with _open(path) as file:
        return _info(file)


def inspect_audio(path, min_samples=1):
    """Checks that a whole file can be used, in bounded memory.

    Arguments
    ---------
    path : str or Path
        The file.
    min_samples : int
        Shortest length allowed, at 16 kHz.

    Returns
    -------
    AudioInfo

    Raises
    ------
    BadAudio
        If the file is missing, empty, no audio, truncated, shorter than
        `min_samples`, holds NaN or infinities, or averages to zeros only.

    Example
    -------
    >>> path = getfixture("tmp_path") / "noise.flac"
    >>> sf.write(path, np.random.default_rng(0).uniform(-1, 1, 8000), 8000)
    >>> inspect_audio(path, min_samples=1600)
    AudioInfo(sample_rate=8000, frames=8000, channels=1, num_samples=16000)
    """
    with _open(path) as file:
        info = _info(file)
        if info.num_samples < min_samples:
            length = f"{info.num_samples} samples at {SAMPLE_RATE} Hz"
            reason = f"It has {length}, fewer than the {min_samples} needed."
            raise BadAudio(path, reason)
        silent = True
        for start in range(0, file.frames, BLOCK):
            block = _read(file, start, min(start + BLOCK, file.frames))
            if not np.isfinite(block).all():
                raise BadAudio(path, "It holds NaN or infinite samples.")
            silent = silent and not block.mean(axis=1).any()
    if silent:
        raise BadAudio(path, "Every sample is zero.")
    return info


def _open(path):
    """Opens a file with libsndfile; BadAudio if that is impossible."""
    path = Path(path)
    if not path.is_file():
        raise BadAudio(path, "The file is missing.")
    if not path.stat().st_size:
        raise BadAudio(path, "The file is empty (0 bytes).")
    try:
        file = sf.SoundFile(path)
    except sf.LibsndfileError as error:
        reason = f"It is no audio libsndfile reads: {error.error_string}"
        raise BadAudio(path, reason) from error
    if file.frames > 1 << 60:  # libsndfile's "unknown"
        file.close()
        raise BadAudio(path, "Its header does not state its length.")
    return file


def _info(file):
    """AudioInfo of an open file; BadAudio if it is cut or empty."""
    if missing := _missing(file):
        raise BadAudio(file.name, f"It is truncated: {missing}.")
    if not file.frames:
        raise BadAudio(file.name, "It holds no samples.")
    samples = num_samples_at(file.frames, file.samplerate)
    return AudioInfo(file.samplerate, file.frames, file.channels, samples)


def _missing(file):
    """What a file lacks of its announced length, in words; None if nothing.

    libsndfile takes a cut file for a shorter one, and logs the difference. Its
    log ends after 2 kB: without the inner chunk, the outermost has to do. An
    ogg file announces no length, but marks its last page.
    """
    if file.format == "OGG":
        return None if _ogg_ends(file.name) else "its last page ends no stream"
    log = file.extra_info
    sizes = {
        name: 0 if int(size) in STREAMED else int(size) - int(present or size)
        for name, size, present in _SIZES.findall(log)
    }
    inner = sizes.keys() - {"RIFF", "FORM"} or sizes.keys()
    missing = max((sizes[name] for name in inner), default=0)
    if missing > 0:
        return f"{missing} bytes of audio are missing"
    if file.format == "NIST":  # nothing is logged, but the header is text
        log = Path(file.name).read_bytes()[:1024].decode("latin-1")
    frames = [int(count) for count in _FRAMES.findall(log)]
    if file.format in _COUNTED and max(frames, default=0) > file.frames:
        return f"it holds {file.frames} of {max(frames)} frames"
    if "Seems to be a truncated file." in log:  # voc
        return "it is shorter than its header announces"
    return None


def _ogg_ends(path):
    """Whether the last page of an ogg file is whole and marked as the end."""
    with open(path, "rb") as file:
        file.seek(max(0, Path(path).stat().st_size - OGG_PAGE))
        tail = file.read()
    page = tail[tail.rfind(b"OggS") :]
    body = 27 + page[26] if len(page) > 26 else len(page) + 1
    return len(page) >= body + sum(page[27:body]) and bool(page[5] & 4)


def _read(file, start, stop):
    """Decodes frames [start:stop]: (frames, channels); BadAudio if it fails."""
    try:
        if file.tell() != start:
            file.seek(start)
        block = file.read(stop - start, dtype="float32", always_2d=True)
    except sf.LibsndfileError as error:
        reason = "It is truncated or damaged, decoding fails: "
        raise BadAudio(file.name, reason + error.error_string) from error
    if (end := start + len(block)) < stop:
        decoded = f"{end} of {file.frames} frames can be decoded"
        raise BadAudio(file.name, f"It is truncated: {decoded}.")
    return block


def _read_mono(file, start, stop):
    """Frames [start:stop] of an open file, averaged over its channels."""
    block = _read(file, start, stop)
    mono = block[:, 0] if file.channels == 1 else block.mean(axis=1)
    return torch.from_numpy(np.ascontiguousarray(mono))


def _resample(file, start, stop):
    """Samples [start:stop] at 16 kHz of an open file at another rate."""
    # The resampling filter repeats itself every `period` frames, which
    # become `hop` samples: cut there, with the filter's reach around.
    resampler = _resampler(file.samplerate)
    common = math.gcd(file.samplerate, SAMPLE_RATE)
    period, hop = file.samplerate // common, SAMPLE_RATE // common
    margin = resampler.width // period + 2
    first = max(0, start // hop - margin)
    last = min(file.frames, (stop // hop + 1 + margin) * period)
    samples = resampler(_read_mono(file, first * period, last))
    samples = samples[start - first * hop :][: stop - start]
    return torch.nn.functional.pad(samples, (0, stop - start - len(samples)))


@lru_cache
def _resampler(rate):
    """Resampler to 16 kHz, its filter computed once."""
    return torchaudio.transforms.Resample(rate, SAMPLE_RATE)
