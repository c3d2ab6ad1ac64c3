"""Log-mel spectrograms under the interface of an encoder: the baseline."""

import torch
from torchaudio.transforms import MelSpectrogram

from speechbrain_sim.arguments import records_arguments
from speechbrain_sim.data.audio import SAMPLE_RATE
from speechbrain_sim.data.labels import HOP, WINDOW
from speechbrain_sim.encoders.base import Encoder, Latent, zero_padding

LOGMEL = "logmel"


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
        return [(self.mel.n_fft, self.mel.hop_length, self.mel.n_fft // 2)]

    def frame_geometry(self, layer):
        """See `Encoder`; a periodic Hann window peaks at sample n_fft / 2."""
        return super().frame_geometry(layer)[0], 0.0

    def encode(self, wavs, lengths, layers, sample, generator):
        """See `Encoder`."""
        wavs = zero_padding(wavs[..., None], lengths)[..., 0]
        mel = torch.log(self.mel(wavs) + 1e-6).transpose(1, 2)
        frames = self.output_lengths(lengths, LOGMEL)
        return {LOGMEL: Latent(mel, None, mel, frames)}
