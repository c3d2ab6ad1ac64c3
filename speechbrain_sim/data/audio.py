"""Reading and checking audio files, always as mono samples at 16 kHz.

Samples are counted at 16 kHz everywhere, whatever a file holds. Only
libsndfile (`soundfile`) reads the disk, and only `AudioFile` calls it: a part
of a file is the slice of what is decoded from its beginning.
"""

import io
import os
import re
from fractions import Fraction
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soundfile as sf
import torch
import torchaudio
from speechbrain.utils.logger import get_logger

logger = get_logger(__name__)

SAMPLE_RATE = 16000
"""Rate in Hz that every encoder of this package reads."""

# frames decoded at a time when the content of a file is checked
BLOCK = 1 << 16

# frames decoded before a part of a file whose decoder has a memory, or whose
# last page libsndfile 1.2.2 misplaces: an ogg page has 255 packets at most
PREROLL = 1 << 18

# bytes that a header may announce too many, as if it counted itself in
SLACK = 80

# samples beyond this are no audio within -1 and 1, but int16 or worse
LOUDEST = 10.0

# shares of a recording's peak below which a mix of its channels is silence
SILENT = 1e-6

# size of a resampling kernel, in taps without their reach, and the largest
# number in a ratio of rates that is taken in place of a ratio with more taps
TAPS, NEARBY = 1 << 22, 2048

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


def readable(path):
    """Returns a path as text, with bytes that are not UTF-8 escaped."""
    return os.fsencode(path).decode(errors="backslashreplace")


class BadAudio(ValueError):
    """One file that cannot be used: its `path`; the `reason`, a sentence.

    Bytes of the path that are not UTF-8 are escaped.
    """

    def __init__(self, path, reason):
        super().__init__(readable(path), reason)
        self.path = readable(path)
        self.reason = reason

    def __str__(self):
        return f"{self.path}: {self.reason}"


class AudioInfo(NamedTuple):
    """Rate (Hz), frames and channels of a file; its length at 16 kHz."""

    sample_rate: int
    frames: int
    channels: int
    num_samples: int


def ratio_of(rate):
    """Returns samples at 16 kHz per frame at a rate, a Fraction.

    torchaudio's resampling kernel grows with the terms of the ratio: to 3.6 GB
    at 22,254 Hz. Rates with more than `TAPS` get a nearby ratio, off by 0.03 %
    at most, everywhere.

    Example
    -------
    >>> ratio_of(44100), ratio_of(22254)
    (Fraction(160, 441), Fraction(811, 1128))
    """
    ratio = Fraction(SAMPLE_RATE, rate)
    if ratio.numerator * ratio.denominator <= TAPS:
        return ratio
    if ratio > 1:
        return 1 / (1 / ratio).limit_denominator(NEARBY)
    return ratio.limit_denominator(NEARBY)


def num_samples_at(frames, rate):
    """Returns the length of `read_audio` for a file of so many frames.

    Example
    -------
    >>> num_samples_at(12156, 22050)
    8821
    """
    ratio = ratio_of(rate)
    return -(-frames * ratio.numerator // ratio.denominator)


def read_audio(path, start=0, stop=None):
    """Reads a part of a file as float32 mono samples at 16 kHz.

    Only that part is read and resampled. The result is the slice
    `[start:stop]` of the whole file: exactly at the file's own rate, up to
    float32 rounding at others and in mp3. Channels are averaged.

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
        If the file is missing, no audio, cannot be decoded there, or holds
        NaN, infinities or samples far beyond 1 there.
    ValueError
        If `start` is negative or beyond `stop`.

    Example
    -------
    >>> path = getfixture("tmp_path") / "tone.wav"
    >>> sf.write(path, np.sin(np.arange(44100) / 20), 44100)
    >>> read_audio(path).shape, read_audio(path, 8000, 8160).shape
    (torch.Size([16000]), torch.Size([160]))
    """
    with AudioFile(path) as file:
        return file.samples(start, stop)


def audio_info(path):
    """Returns the AudioInfo of a file, undecoded; see `inspect_audio`.

    NaN, silence and a flac that was cut are not noticed.
    """
    with AudioFile(path) as file:
        return file.info()


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
        Its length is what was decoded.

    Raises
    ------
    BadAudio
        If the file is missing, empty, no audio, truncated, shorter than
        `min_samples`, holds NaN, infinities or samples far beyond 1, if its
        channels average to silence, or its name is not UTF-8.

    Example
    -------
    >>> path = getfixture("tmp_path") / "noise.flac"
    >>> sf.write(path, np.random.default_rng(0).uniform(-1, 1, 8000), 8000)
    >>> inspect_audio(path, min_samples=1600)
    AudioInfo(sample_rate=8000, frames=8000, channels=1, num_samples=16000)
    """
    if readable(path) != str(path):
        raise BadAudio(path, "Its name is not UTF-8: rename it.")
    with AudioFile(path) as file:
        info = file.info()
        if info.num_samples < min_samples:
            length = f"{info.num_samples} samples at {SAMPLE_RATE} Hz"
            needed = f"fewer than the {min_samples} of --min_samples"
            raise BadAudio(path, f"It has {length}, {needed}.")
        file.check_sound()
    return info


class AudioFile:
    """An open audio file, and the only reader of one; a context manager.

    Parts in order are decoded once, even if they overlap.

    Arguments
    ---------
    path : str or Path
        Any file that libsndfile reads; else a BadAudio is raised.
    """

    def __init__(self, path):
        self.path = Path(path)
        self._open()

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.close()

    def close(self):
        """Closes the file."""
        self._file.close()
        if self._raw is not None:
            self._raw.close()

    def info(self):
        """Returns its AudioInfo; a BadAudio is raised if it is cut or empty."""
        if missing := _missing(self._file, self.path):
            raise BadAudio(self.path, f"It is truncated: {missing}.")
        if not self.frames:
            raise BadAudio(self.path, "It holds no samples.")
        channels = self._file.channels
        return AudioInfo(self.rate, self.frames, channels, len(self))

    def __len__(self):
        return num_samples_at(self.frames, self.rate)

    def samples(self, start=0, stop=None):
        """Returns samples [start:stop] at 16 kHz: see `read_audio`."""
        if start < 0 or (stop is not None and stop < start):
            what = f"not 0 <= start <= stop: {start}, {stop}"
            raise ValueError(f"{self.path}: {what}")
        start, stop, _ = slice(start, stop).indices(len(self))
        hop, period = ratio_of(self.rate).as_integer_ratio()
        if hop == period:
            return self._mono(start, stop)
        # The resampling filter repeats itself every `period` frames, which
        # become `hop` samples: cut there, with the filter's reach around.
        resampler = _resampler(period, hop)
        margin = resampler.width // period + 2
        first = max(0, start // hop - margin)
        last = min(self.frames, (stop // hop + 1 + margin) * period)
        samples = resampler(self._mono(first * period, last))
        samples = samples[start - first * hop :][: stop - start]
        missing = stop - start - len(samples)
        return torch.nn.functional.pad(samples, (0, missing))

    def pieces(self, seconds, start=0, stop=None):
        """Yields samples [start:stop], so many seconds at a time: (1, time)."""
        start, stop, _ = slice(start, stop).indices(len(self))
        step = max(1, round(seconds * SAMPLE_RATE))
        for first in range(start, stop, step):
            yield self.samples(first, min(first + step, stop))[None]

    def check_sound(self):
        """Decodes all of it; a BadAudio is raised if there is no sound."""
        lows, highs = [], []
        for start in range(0, self.frames, BLOCK):
            mono = self._mono(start, min(start + BLOCK, self.frames))
            lows.append(mono.min().item())
            highs.append(mono.max().item())
        silence, low, high = SILENT * self._peak, min(lows), max(highs)
        if max(-low, high) <= silence:
            raise BadAudio(self.path, "Every sample is zero.")
        if self.frames > 1 and high - low <= silence:
            raise BadAudio(self.path, "Every sample is the same.")

    def _open(self):
        """Opens the file with libsndfile; BadAudio if that is impossible."""
        path, self._raw = self.path, None
        if not os.path.isfile(path):  # Path's raises for a name too long
            raise BadAudio(path, "The file is missing.")
        if not path.stat().st_size:
            raise BadAudio(path, "The file is empty (0 bytes).")
        if not os.access(path, os.R_OK):
            raise BadAudio(path, "Its permissions do not allow reading it.")
        try:
            self._file = sf.SoundFile(os.fsencode(path))
            if self._file.format == "MP3":
                self._file.close()
                self._raw = _Unsized(path)
                self._file = sf.SoundFile(self._raw)
        except sf.LibsndfileError as error:
            reason = f"It is no audio libsndfile reads: {error.error_string}"
            raise BadAudio(path, reason) from error
        self.frames, self.rate = self._file.frames, self._file.samplerate
        states = f"a rate of {self.rate} Hz"
        if self.frames > 1 << 60:  # libsndfile's "unknown"
            states = "no length"
        if states == "no length" or self.rate > SAMPLE_RATE * NEARBY:
            self.close()
            reason = f"Its header states {states}: encode it again."
            raise BadAudio(path, reason)
        kinds = self._file.format, self._file.subtype[:4]
        self._remembers = not {"MP3", "OGG", "ALAC"}.isdisjoint(kinds)
        # first frame, and mono frames, that were decoded last; peak so far
        self._first, self._held, self._peak = 0, torch.empty(0), 0.0

    def _mono(self, start, stop):
        """Frames [start:stop], averaged over the channels; BadAudio if cut."""
        # the end of an opus file depends on where reading stopped before it
        grid = BLOCK if self._remembers else 1
        end, parts = self._first + len(self._held), [self._held]
        try:
            if not self._first <= start <= end:
                self._first = end = self._seek(start - start % grid, end)
                parts = []
            last = min(self.frames, stop + -stop % grid)
            while end < last:
                parts.append(self._decode(end, min(last, end + BLOCK)))
                end += len(parts[-1])
                while parts and self._first + len(parts[0]) <= start:
                    self._first += len(parts.pop(0))
        except sf.LibsndfileError as error:
            reason = "It is truncated or damaged, decoding fails: "
            raise BadAudio(self.path, reason + error.error_string) from error
        joined = torch.cat(parts or [torch.empty(0)])
        self._first, self._held = start, joined[start - self._first :]
        return self._held[: stop - start]

    def _seek(self, start, here):
        """Moves from a frame to another, or before it; returns where to."""
        goal = max(0, start - PREROLL) if self._remembers else start
        if not self._file.seekable():  # GSM 6.10, G.721, NMS ADPCM
            goal = 0
        if goal <= here <= start:
            return here
        if goal:
            return self._file.seek(goal)
        self.close()
        self._open()
        return 0

    def _decode(self, start, stop):
        """The next frames, averaged over the channels; checks them."""
        file = self._file
        block = file.read(stop - start, dtype="float32", always_2d=True)
        if (end := start + len(block)) < stop:
            decoded = f"{end} of {self.frames} frames can be decoded"
            raise BadAudio(self.path, f"It is truncated: {decoded}.")
        peak = np.maximum(block.max(initial=0), -block.min(initial=0))
        if not np.isfinite(peak):
            raise BadAudio(self.path, "It holds NaN or infinite samples.")
        if peak > LOUDEST:
            loud = f"Its samples reach {peak:.6g}, far beyond -1 and 1"
            raise BadAudio(self.path, f"{loud}: divide by their full scale.")
        self._peak = max(self._peak, float(peak))
        mono = block[:, 0] if block.shape[1] == 1 else block.mean(axis=1)
        return torch.from_numpy(np.ascontiguousarray(mono))


class _Unsized(io.FileIO):
    """A file that states its size to libsndfile, but not to mpg123 within.

    mpg123 estimates the length of an mp3 from its size, unless that is 0: then
    it walks through the frames. libsndfile asks first, for its own use.
    """

    _asked, _at_end = 0, False

    def seek(self, offset, whence=0):
        self._asked += whence == os.SEEK_END
        self._at_end = whence == os.SEEK_END and self._asked > 1
        return 0 if self._at_end else super().seek(offset, whence)

    def tell(self):
        return 0 if self._at_end else super().tell()


def _missing(file, path):
    """What a file lacks of its announced length, in words; None if nothing.

    A header may count itself, or padding, as audio: a few bytes too many are
    logged, if the file ends on a whole frame.

    libsndfile takes a cut file for a shorter one, and logs the difference. Its
    log ends after 2 kB: without the inner chunk, the outermost has to do. An
    ogg file announces no length, but marks its last page.
    """
    if file.format == "OGG":
        return None if _ogg_ends(path) else "its last page ends no stream"
    log = file.extra_info
    sizes = {
        name: (int(size), int(present or size))
        for name, size, present in _SIZES.findall(log)
    }
    for name in sizes.keys() - {"RIFF", "FORM"} or sizes.keys():
        size, present = sizes[name]
        missing = 0 if size in STREAMED else size - present
        frame_bytes = present - 8 * (name == "SSND")  # offset and block size
        whole = file.frames and not frame_bytes % file.frames
        if missing > (SLACK if whole else 0):
            return f"{missing} bytes of audio are missing"
        if missing > 0:
            more = f"its header announces {missing} bytes more than there are"
            logger.warning_once(f"{path}: {more}; every frame is whole.")
    if file.format == "NIST":  # nothing is logged, but the header is text
        log = path.read_bytes()[:1024].decode("latin-1")
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


@lru_cache(maxsize=16)
def _resampler(period, hop):
    """Resampler from so many frames to so many samples, made once."""
    return torchaudio.transforms.Resample(period, hop)
