"""encoders.logmel."""

import torch
import torchaudio
from speechbrain.utils.logger import get_logger
from torch import nn

from speechbrain_sim.arguments import records_arguments
from speechbrain_sim.data.audio import (
    SAMPLE_RATE,
)
from speechbrain_sim.encoders.base import Latent, absolute_lengths, valid_frames

logger = get_logger(__name__)


LOGMEL = "logmel"


@records_arguments
class LogMel(nn.Module):
    """Log-mel spectrogram with the interface of an encoder: the baseline.

    Natural logarithm of 80 mel energies, 25 ms windows every 10 ms, zeros
    beyond the edges.

    Example
    -------
    >>> LogMel()(torch.randn(2, 10240))["logmel"].mean.shape
    torch.Size([2, 65, 80])
    """

    layer_names = [LOGMEL]
    config = {"n_fft": 400, "hop_length": 160, "n_mels": 80}

    def __init__(self):
        super().__init__()
        self.mel = torchaudio.transforms.MelSpectrogram(
            SAMPLE_RATE, pad_mode="constant", **self.config
        )

    def frame_geometry(self, layer):
        """Frame i is centred at sample 160 i; see `GreedyEncoder`."""
        return self.config["hop_length"], 0.0

    def forward(self, wavs, wav_lens=None, layers=None, sample=None):
        """Computes the spectrogram; see `GreedyEncoder.forward`."""
        if layers is not None and list(layers) != [LOGMEL]:
            raise ValueError(f"There is no layer {layers}, only {LOGMEL}.")
        lengths = absolute_lengths(wavs, wav_lens)
        wavs = wavs.masked_fill(~valid_frames(lengths, wavs.shape[1]), 0)
        mel = torch.log(self.mel(wavs) + 1e-6).transpose(1, 2)
        frames = 1 + lengths // self.config["hop_length"]
        mel = mel.masked_fill(~valid_frames(frames, mel.shape[1])[..., None], 0)
        return {LOGMEL: Latent(mel, None, mel, frames, False)}
