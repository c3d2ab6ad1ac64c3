"""Recordings of the explorer: those of the command line, and uploads."""

import hashlib
import io
import time
from collections import OrderedDict
from pathlib import Path
from threading import Lock
from typing import NamedTuple

import numpy as np
import soundfile
import torch
import torchaudio

from speechbrain_sim.data.audio import (
    LOUDEST,
    SAMPLE_RATE,
    audio_info,
    num_samples_at,
    ratio_of,
    read_audio,
)
from speechbrain_sim.explorer.jobs import Refused
from speechbrain_sim.files import sha256

#: of an upload: seconds of sound and bytes; seconds that decoding may take
SECONDS, BYTES, PATIENCE = 60, 48 << 20, 20
#: and its highest rate, its channels, and frames that are decoded at once
RATE, CHANNELS, BLOCK = 384_000, 32, 1 << 16
#: uploads that are kept
KEPT = 16
#: libsndfile's frames of a file that states no length are beyond
UNKNOWN = 1 << 60
#: digits of a recording's id
ID = 12
#: peak of what counts as silence
SILENT = 1e-5


class Clip(NamedTuple):
    """A recording.

    Its `id`, the beginning of its file's SHA-256; its `name`; its length in
    `seconds`; its `source`, samples at 16 kHz, or a path.
    """

    id: str
    name: str
    seconds: float
    source: torch.Tensor | Path

    def describe(self):
        """Describes it for the page."""
        seconds = round(self.seconds, 3)
        return {"id": self.id, "name": self.name, "seconds": seconds}

    def read(self):
        """Returns its samples, (samples,)."""
        if isinstance(self.source, torch.Tensor):
            return self.source
        return read_audio(self.source, 0, SECONDS * SAMPLE_RATE)


class Clips:
    """Recordings by their ids; safe to be used by several threads.

    Arguments
    ---------
    paths : list of str or Path
        Files, of which the first 60 seconds are used. A BadAudio is raised if
        one cannot be read.
    kept : int
        How many uploads are kept: the oldest go.
    """

    def __init__(self, paths, kept=KEPT):
        self.kept, self._lock = kept, Lock()
        self._given, self._uploads = {}, OrderedDict()
        for path in map(Path, paths):
            seconds = audio_info(path).num_samples / SAMPLE_RATE
            name = path.name.encode(errors="replace").decode()
            if seconds > SECONDS:
                name, seconds = f"{name} (first {SECONDS} s)", SECONDS
            clip = Clip(sha256(path)[:ID], name, seconds, path)
            if clip.id in self._given:
                continue
            same = sum(path.name == c.source.name for c in self._given.values())
            name += f" ({same + 1})" if same else ""
            self._given[clip.id] = clip._replace(name=name)

    def __iter__(self):
        with self._lock:
            return iter([*self._given.values(), *self._uploads.values()])

    def __getitem__(self, name):
        with self._lock:
            for clips in (self._given, self._uploads):
                if name in clips:
                    return clips[name]
        gone = f"of uploads, the last {self.kept} are kept"
        raise Refused(
            404, f"There is no such recording ({gone}): drop it again."
        )

    def add(self, clip):
        """Keeps an upload, and drops the oldest if there are too many."""
        with self._lock:
            if clip.id not in self._given:
                self._uploads[clip.id] = clip
                self._uploads.move_to_end(clip.id)
            while len(self._uploads) > self.kept:
                self._uploads.popitem(last=False)


def decode_upload(data, name, check=lambda: None):
    """Decodes the bytes of a sound file in memory: a Clip.

    Nothing is decoded before its header is known to announce no more than 60
    seconds. `check` is called between blocks.

    Raises
    ------
    Refused
        If it is no sound (415), too long (413), silent, not finite, or of an
        odd rate (400).
    """
    try:
        with soundfile.SoundFile(io.BytesIO(data)) as file:
            rate, channels = file.samplerate, file.channels
            if not 1 <= rate <= RATE or channels > CHANNELS:
                odd = f"{channels} channels at {rate} Hz"
                few = f"at most {CHANNELS} at {RATE} Hz are read"
                raise Refused(400, f"The file holds {odd}: {few}.")
            # of an mp3 it is an estimate, and some files state none
            stated = file.format != "MP3" and file.frames < UNKNOWN
            if stated and file.frames > SECONDS * rate:
                raise Refused(413, too_long(file.frames / rate))
            mono = decode_mono(file, SECONDS * rate, check)
    except (soundfile.LibsndfileError, RuntimeError, OSError) as error:
        what = getattr(error, "error_string", "it cannot be decoded")
        raise Refused(415, f"This is no sound file: {what}") from error
    if not len(mono):
        raise Refused(400, "The file holds no samples.")
    hop, period = ratio_of(rate).as_integer_ratio()
    wav = torch.from_numpy(mono)
    if hop != period:
        wav = torchaudio.functional.resample(wav, period, hop)
        wav = wav[: num_samples_at(len(mono), rate)].clone()
    digest = hashlib.sha256(data).hexdigest()
    return Clip(digest[:ID], name, len(wav) / SAMPLE_RATE, wav)


def decode_mono(file, most, check):
    """Decodes an open file, averaged over its channels: (frames,), float32."""
    blocks, frames, end = [], 0, time.monotonic() + PATIENCE
    while True:
        check()
        block = file.read(BLOCK, dtype="float32", always_2d=True)
        frames += len(block)
        if frames > most:
            raise Refused(413, too_long(frames / file.samplerate))
        if time.monotonic() > end:
            raise Refused(400, f"Decoding takes longer than {PATIENCE} s.")
        if not len(block):
            break
        blocks.append(block.mean(axis=1))
    mono = np.concatenate(blocks) if blocks else np.zeros(0, np.float32)
    peak = float(np.abs(mono).max(initial=0))
    if not peak <= LOUDEST:  # also if there is a NaN
        raise Refused(
            400, "Its samples are not finite, or far beyond -1 and 1."
        )
    if len(mono) and peak < SILENT:
        raise Refused(400, "The recording is silent.")
    return mono


def too_long(seconds):
    """Returns the sentence on a recording that is too long."""
    return (
        f"The recording lasts {seconds:.1f} s: at most {SECONDS} s are taken."
    )
