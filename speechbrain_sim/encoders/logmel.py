"""Spectral features under the interface of an encoder: the baselines."""

import math

import torch
from torch.nn.functional import pad
from torchaudio.functional import compute_deltas, create_dct
from torchaudio.transforms import MelSpectrogram

from speechbrain_sim.arguments import records_arguments
from speechbrain_sim.data.audio import SAMPLE_RATE
from speechbrain_sim.data.labels import HOP, WINDOW
from speechbrain_sim.encoders.base import Encoder, Latent, zero_padding

LOGMEL, STACKED, MFCC = "logmel", "logmel_stacked", "mfcc"
#: added before the logarithm, and what that makes of silence
FLOOR = 1e-6
SILENCE = math.log(FLOOR)


@records_arguments
class LogMel(Encoder):
    """log(mel + 1e-6) of Hann windows, zeros beyond the edges.

    1 + samples // hop_length frames, frame i at sample `hop_length * i`.

    Arguments
    ---------
    n_fft, hop_length : int
        Window and hop in samples at 16 kHz: 25 ms and 10 ms.
    n_mels : int
        Channels.

    Example
    -------
    >>> LogMel()(torch.randn(2, 1600))["logmel"].mean.shape
    torch.Size([2, 11, 80])
    """

    layer_names = [LOGMEL]
    #: frames on either side that a frame depends on
    reach = 0

    def __init__(self, n_fft=WINDOW, hop_length=HOP, n_mels=80):
        super().__init__()
        sizes = {"n_fft": n_fft, "hop_length": hop_length, "n_mels": n_mels}
        self.mel = MelSpectrogram(SAMPLE_RATE, **sizes, pad_mode="constant")

    def channels_of(self, layer):
        """See `Encoder`."""
        self.check_layer(layer)
        return self.mel.n_mels

    def convolutions(self, layer):
        """See `Encoder`: the Fourier transform is one convolution."""
        self.check_layer(layer)
        fourier = self.mel.n_fft, self.mel.hop_length, self.mel.n_fft // 2
        around = (2 * self.reach + 1, 1, self.reach)
        return [fourier, around] if self.reach else [fourier]

    def frame_geometry(self, layer):
        """See `Encoder`; a periodic Hann window peaks at sample n_fft / 2."""
        return super().frame_geometry(layer)[0], 0.0

    def encode(self, wavs, lengths, layers, sample, generator):
        """See `Encoder`."""
        wavs = zero_padding(wavs[..., None], lengths)[..., 0]
        mel = torch.log(self.mel(wavs) + FLOOR).transpose(1, 2)
        (name,) = self.layer_names
        frames = self.output_lengths(lengths, name)
        x = self.transform(mel, frames)
        return {name: Latent(x, None, x, frames)}

    def transform(self, mel, frames):
        """(batch, time, mels), valid frames (batch,) -> the features."""
        return mel


class StackedLogMel(LogMel):
    """Log-mel frames and 5 on either side, silence beyond the edges.

    Arguments are those of `LogMel`.

    Example
    -------
    >>> StackedLogMel()(torch.randn(2, 1600))["logmel_stacked"].mean.shape
    torch.Size([2, 11, 880])
    """

    layer_names = [STACKED]
    reach = 5

    def channels_of(self, layer):
        """See `Encoder`."""
        return super().channels_of(layer) * (2 * self.reach + 1)

    def transform(self, mel, frames):
        """See `LogMel`: (batch, time, mels * (2 reach + 1))."""
        above = zero_padding(mel - SILENCE, frames)
        above = pad(above, (0, 0, self.reach, self.reach))
        around = above.unfold(1, 2 * self.reach + 1, 1)
        return (around + SILENCE).transpose(2, 3).flatten(2)


class Mfcc(LogMel):
    """Mel-frequency cepstral coefficients c and their slopes.

    The first 13 of the orthonormal DCT of a `LogMel`, whose arguments it has,
    and their regression over 5 frames,
    (sum_n n (c[t + n] - c[t - n])) / (2 sum_n n^2) for n = 1, 2.

    Example
    -------
    >>> Mfcc()(torch.randn(2, 1600))["mfcc"].mean.shape
    torch.Size([2, 11, 26])
    """

    layer_names = [MFCC]
    reach, coefficients = 2, 13

    def channels_of(self, layer):
        """See `Encoder`."""
        self.check_layer(layer)
        return 2 * self.coefficients

    def transform(self, mel, frames):
        """See `LogMel`: (batch, time, 2 coefficients)."""
        above = zero_padding(mel - SILENCE, frames)
        slopes = compute_deltas(above.mT, mode="constant").mT
        dct = create_dct(self.coefficients, mel.shape[-1], "ortho").to(mel)
        return torch.cat([mel @ dct, slopes @ dct], -1)


#: what needs no training, by name
SPECTRAL = {LOGMEL: LogMel, STACKED: StackedLogMel, MFCC: Mfcc}
