"""Waveforms -> log-power spectrograms, and back: Griffin-Lim.

Windows and hops are those of `LogMel`: Hann windows of 25 ms every 10 ms, zeros
beyond the edges. All are (batch, frames, bins).

References: Griffin, Lim: Signal estimation from modified short-time Fourier
transform (1984), https://doi.org/10.1109/TASSP.1984.1164317; Perraudin, Balazs,
Søndergaard: A fast Griffin-Lim algorithm (2013),
https://doi.org/10.1109/WASPAA.2013.6701851
"""

import math

import torch

from speechbrain_sim.data.labels import HOP, WINDOW
from speechbrain_sim.encoders.base import zero_padding
from speechbrain_sim.encoders.logmel import FLOOR, LogMel

BINS = WINDOW // 2 + 1
#: power that no phase is taken of
TINY = 1e-32
#: rounds of Griffin-Lim, and how far each goes on: 0.99 / (1 + 0.99), as in
#: torchaudio
ROUNDS, MOMENTUM = 32, 0.99 / 1.99
#: frames on either side that a frame's waveform depends on
REACH = (ROUNDS + 1) * (WINDOW // HOP)
#: frames after which the initial phases repeat
PERIOD = WINDOW // math.gcd(WINDOW, HOP)


def frames_of(samples):
    """Returns the frames of so many samples, int or integer tensor.

    Example
    -------
    >>> frames_of(319), frames_of(320), frames_of(0)
    (2, 3, 0)
    """
    return (samples > 0) * (1 + samples // HOP)


def fourier(wavs):
    """Transforms (batch, samples): complex, (batch, frames, bins)."""
    window = torch.hann_window(WINDOW, dtype=wavs.dtype, device=wavs.device)
    options = {"pad_mode": "constant", "return_complex": True}
    return torch.stft(wavs, WINDOW, HOP, window=window, **options).mT


def log_power(wavs, lengths):
    """Computes log(|STFT|^2 + 1e-6), zero beyond each utterance.

    `lengths` are samples, (batch,), integer, on the CPU.
    """
    power = fourier(zero_padding(wavs[..., None], lengths)[..., 0])
    power = power.real.square() + power.imag.square()
    return zero_padding(torch.log(power + FLOOR), frames_of(lengths))


@torch.no_grad()
def griffin_lim(spectrogram, samples, lengths):
    """Finds waveforms, (batch, samples), of log-power spectrograms.

    The fast variant of Griffin-Lim, from phases that turn evenly, so that the
    same spectrogram always gives the same sound. Every frame depends on those
    within `REACH` only, and an utterance sounds in a batch as alone.

    Arguments
    ---------
    spectrogram : torch.Tensor
        (batch, frames, bins), see `log_power`.
    samples, lengths : int, torch.Tensor
        Of the longest utterance; of each one, (batch,), on the CPU.

    Example
    -------
    >>> wavs, lengths = torch.sin(torch.arange(3200) / 5)[None], torch.tensor([3200])
    >>> again = griffin_lim(log_power(wavs, lengths), 3200, lengths)
    >>> (log_power(again, lengths) - log_power(wavs, lengths)).abs().mean() < 0.5
    tensor(True)
    """
    size = frames_of(samples + WINDOW // 2)  # all windows that reach the end
    # Fourier transforms of half precision are not everywhere
    wide = torch.promote_types(spectrogram.dtype, torch.float32)
    power = (torch.exp(spectrogram.to(wide)) - FLOOR).clamp(min=0)
    power = zero_padding(power, frames_of(lengths))
    short = size - power.shape[1]
    magnitude = torch.nn.functional.pad(power.sqrt(), (0, 0, 0, short))
    window = torch.hann_window(WINDOW).to(magnitude)
    # 1 / sum of the squared windows that reach a sample
    scale = 1 / overlapped(window.square().expand(1, size, WINDOW))

    def sound(phases):
        frames = torch.fft.irfft(magnitude * phases, WINDOW) * window
        wavs = overlapped(frames) * scale
        return zero_padding(wavs[..., None], lengths)[..., 0]

    turns = torch.arange(size)[:, None] * torch.arange(BINS) % PERIOD
    turns = 2 * math.pi * (turns * HOP % WINDOW).to(magnitude) / WINDOW
    phases = torch.polar(torch.ones_like(turns), turns)
    last = 0.0
    for _ in range(ROUNDS):
        here = fourier(sound(phases))
        phases, last = here - MOMENTUM * last, here
        power = torch.view_as_real(phases).square().sum(-1)
        phases = phases * (power + TINY).rsqrt()
    return sound(phases)[:, :samples].to(spectrogram)


def overlapped(frames):
    """Adds windows, (batch, frames, WINDOW), half a window cut off both ends.

    As `torch.istft` does, in less time: (batch, samples).
    """
    batch, size, _ = frames.shape
    parts = torch.nn.functional.pad(frames, (0, -WINDOW % HOP))
    parts = parts.unflatten(-1, (-1, HOP))  # (batch, frames, 3, HOP)
    rows = frames.new_zeros(batch, size + parts.shape[2] - 1, HOP)
    for i, part in enumerate(parts.unbind(2)):
        rows[:, i : i + size] += part
    middle = WINDOW // 2
    return rows.flatten(1)[:, middle : middle + (size - 1) * HOP]


def log_mel(spectrogram, filters):
    """Computes `LogMel` of log-power spectrograms, by its `mel_filters`."""
    power = (torch.exp(spectrogram) - FLOOR).clamp(min=0)
    return torch.log(power @ filters + FLOOR)


def mel_filters():
    """Returns the filters of `LogMel`, (bins, bands)."""
    return LogMel().mel.mel_scale.fb.clone()
