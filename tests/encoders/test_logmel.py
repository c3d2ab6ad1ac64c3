"""Spectral features, against plain loops and torchaudio's own."""

import numpy as np
import pytest
import torch
import torchaudio

from speechbrain_sim.encoders.logmel import (
    SILENCE,
    LogMel,
    Mfcc,
    StackedLogMel,
)


@pytest.fixture
def wavs():
    return torch.randn(2, 4000, generator=torch.Generator().manual_seed(1))


def test_stacked_frames_are_those_around(wavs):
    lengths = torch.tensor([4000, 2400])
    mel = LogMel()(wavs, lengths)["logmel"]
    stacked = StackedLogMel()(wavs, lengths)["logmel_stacked"]
    for row, frames in enumerate(mel.lengths.tolist()):
        for t in range(frames):
            around = [
                mel.mean[row, t + n]
                if 0 <= t + n < frames
                else torch.full((80,), SILENCE)
                for n in range(-5, 6)
            ]
            torch.testing.assert_close(
                stacked.mean[row, t], torch.cat(around), rtol=0, atol=1e-5
            )


def test_mfcc_are_those_of_torchaudio(wavs):
    mfcc = torchaudio.transforms.MFCC(
        16000,
        13,
        log_mels=True,
        melkwargs={
            "n_fft": 400,
            "hop_length": 160,
            "n_mels": 80,
            "pad_mode": "constant",
        },
    )
    ours = Mfcc()(wavs)["mfcc"].mean[..., :13]
    torch.testing.assert_close(
        ours, mfcc(wavs).transpose(1, 2), rtol=0, atol=1e-3
    )


def test_slopes_are_those_of_a_line_through_five_frames(wavs):
    z = Mfcc()(wavs)["mfcc"].mean.numpy()
    c, slopes = z[..., :13], z[..., 13:]
    for t in range(2, z.shape[1] - 2):
        for coefficient in (0, 7):
            line = np.polyfit(range(5), c[0, t - 2 : t + 3, coefficient], 1)
            assert slopes[0, t, coefficient] == pytest.approx(line[0], abs=1e-4)
