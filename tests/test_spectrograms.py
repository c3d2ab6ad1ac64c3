"""Spectrograms against a slow transform; Griffin-Lim by its properties."""

import math

import numpy as np
import pytest
import torch

from speechbrain_sim import spectrograms
from speechbrain_sim.encoders.logmel import LogMel
from speechbrain_sim.spectrograms import (
    frames_of,
    griffin_lim,
    log_mel,
    log_power,
    mel_filters,
)

LENGTHS = torch.tensor([3000, 2011])


@pytest.fixture
def wavs():
    """Two chords that fade in, with noise."""
    torch.manual_seed(0)
    time = torch.arange(3000, dtype=torch.float64)
    chords = [
        sum(torch.sin(time * f) for f in fs) for fs in ([0.1, 0.3], [0.7])
    ]
    noise = 0.05 * torch.randn(2, 3000, dtype=torch.float64)
    wavs = 0.3 * torch.stack(chords) * time / 3000 + noise
    wavs[1, 2011:] = 99.0  # padding
    return wavs


def slow_log_power(wav):
    padded = np.pad(wav, 200)
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(400) / 400)
    turns = np.outer(np.arange(201), np.arange(400)) / 400
    rows = []
    for frame in range(1 + len(wav) // 160):
        part = window * padded[160 * frame : 160 * frame + 400]
        power = np.abs(np.exp(-2j * np.pi * turns) @ part) ** 2
        rows.append(np.log(power + 1e-6))
    return np.array(rows)


def test_spectrograms_equal_a_slow_transform(wavs):
    found = log_power(wavs, LENGTHS)
    assert found.shape == (2, 19, 201)
    for row, wav, end in zip(found, wavs, LENGTHS.tolist(), strict=True):
        slow = slow_log_power(wav[:end].numpy())
        np.testing.assert_allclose(row[: len(slow)], slow, atol=1e-6)
        assert not row[len(slow) :].any()


def test_their_mel_is_that_of_the_baseline(wavs):
    wavs, expected = wavs.float(), LogMel()(wavs.float(), LENGTHS)["logmel"]
    found = log_mel(log_power(wavs, LENGTHS), mel_filters())
    for row, theirs, end in zip(
        found, expected.mean, frames_of(LENGTHS).tolist(), strict=True
    ):
        torch.testing.assert_close(row[:end], theirs[:end], atol=2e-3, rtol=0)


def inconsistency(spectrogram, monkeypatch, rounds):
    """Relative distance to the magnitudes of the sound that is found."""
    monkeypatch.setattr(spectrograms, "ROUNDS", rounds)
    lengths = torch.tensor([3000])
    again = log_power(griffin_lim(spectrogram, 3000, lengths), lengths)
    ours, true = again.exp().sqrt(), spectrogram.exp().sqrt()
    return (ours - true).norm() / true.norm()


def test_rounds_make_a_true_magnitude_sound(wavs, monkeypatch):
    true = log_power(wavs[:1], LENGTHS[:1])
    gaps = [inconsistency(true, monkeypatch, n) for n in (0, 4, 32)]
    assert gaps[0] > gaps[1] > gaps[2] and gaps[2] < 0.15 < gaps[0]


def test_an_utterance_sounds_alone_as_in_a_batch(wavs):
    spectrogram = log_power(wavs, LENGTHS)
    both = griffin_lim(spectrogram, 3000, LENGTHS)
    alone = griffin_lim(spectrogram[1:, :13], 2011, LENGTHS[1:])
    torch.testing.assert_close(both[1:, :2011], alone, atol=1e-9, rtol=0)
    assert not both[1, 2011:].any() and both.abs().max() < 2
    assert torch.equal(both, griffin_lim(spectrogram, 3000, LENGTHS))


def test_silence_is_silent_and_half_precision_has_sound():
    floor = torch.full((1, 11, 201), math.log(1e-6))
    assert griffin_lim(floor, 1600, torch.tensor([1600])).abs().max() < 1e-4
    loud = torch.randn(1, 11, 201).half()
    wavs = griffin_lim(loud, 1600, torch.tensor([1600]))
    assert wavs.dtype == torch.half and wavs.isfinite().all() and wavs.any()
