"""Encoders as ONNX files: any length, any batch, with padding, without Python.

Needs `pip install 'speechbrain-sim[onnx]'`.
"""

import torch
from torch import nn

from speechbrain_sim.encoders.base import zero_padding
from speechbrain_sim.extras import import_extra


class PlainEncoder(nn.Module):
    """A GreedyEncoder in eval mode, up to one layer, from tensors to tensors.

    While it is traced, the encoder takes no branch that depends on the data.
    """

    def __init__(self, encoder, layer):
        super().__init__()
        if encoder.training:
            raise ValueError("Only an encoder in eval mode is exported.")
        encoder.check_layer(layer)
        self.encoder, self.layer = encoder, layer

    def forward(self, wavs, lengths):
        """Encodes waveforms, (batch, samples), with `lengths` valid samples.

        Returns means, (batch, time, channel), zero beyond each utterance, and
        valid frames, (batch,).
        """
        latents = self.encoder.encode(wavs, lengths, [self.layer], False, None)
        latent = latents[self.layer]
        return zero_padding(latent.mean, latent.lengths), latent.lengths


def export_onnx(encoder, layer, path):
    """Writes a layer of a GreedyEncoder, on the CPU, as an ONNX file.

    Inputs `wavs` (batch, samples) float32 at 16 kHz and `lengths` (batch,)
    int64; outputs `mean` (batch, time, channel) and `frames` (batch,).
    """
    import_extra("onnx", "onnx")  # torch's exporter needs it
    inputs = {"wavs": {0: "batch", 1: "samples"}, "lengths": {0: "batch"}}
    outputs = {"mean": {0: "batch", 1: "time"}, "frames": {0: "batch"}}
    torch.onnx.export(
        PlainEncoder(encoder, layer).eval(),
        (torch.randn(2, 4000), torch.tensor([4000, 3000])),
        str(path),
        input_names=list(inputs),
        output_names=list(outputs),
        dynamic_axes=inputs | outputs,
        dynamo=False,  # torch.export, of torch 2.11, fails at the GRU
    )
