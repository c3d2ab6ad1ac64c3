"""Encoders as ONNX files: any length, any batch, with padding, without Python.

Needs `pip install 'speechbrain-sim[onnx]'`.
"""

import itertools

import torch
from torch import nn

from speechbrain_sim import __version__
from speechbrain_sim.data.audio import SAMPLE_RATE
from speechbrain_sim.encoders.base import absolute_lengths, zero_padding
from speechbrain_sim.extras import import_extra
from speechbrain_sim.models.format import sha256_of


class Possible(nn.Module):
    """Returns lengths from `shortest` to the samples of a batch.

    Others are no index of a table: the one check that a graph can hold. In an
    error, a runtime gives the name that the module has, as a path.
    """

    def __init__(self, shortest):
        super().__init__()
        self.shortest = shortest

    def forward(self, wavs, lengths):
        """Returns `lengths`; an IndexError if one is not possible."""
        samples = wavs.shape[1]
        table = torch.arange(samples + 1, device=wavs.device)
        impossible = lengths < self.shortest  # negative ones count backwards
        return table[lengths.masked_fill(impossible, samples + 1)]


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
        names = list(encoder.layers_up_to([layer]))
        #: samples of the shortest utterance that has a frame in every layer
        self.shortest = next(
            n
            for n in itertools.count(1)
            if all(encoder.output_lengths(n, name) > 0 for name in names)
        )
        self.lengths_must_be_possible = Possible(self.shortest)

    def forward(self, wavs, lengths):
        """Encodes waveforms, (batch, samples), with `lengths` valid samples.

        Returns means, (batch, time, channel), zero beyond each utterance, and
        valid frames, (batch,). An error is raised, here and by other runtimes,
        if a length is not `shortest` to samples.
        """
        if not torch.jit.is_tracing():
            absolute_lengths(wavs, lengths)  # raises a clearer error
        lengths = self.lengths_must_be_possible(wavs, lengths)
        latents = self.encoder.encode(wavs, lengths, [self.layer], False, None)
        latent = latents[self.layer]
        return zero_padding(latent.mean, latent.lengths), latent.lengths


def export_onnx(encoder, layer, path):
    """Writes a layer of a GreedyEncoder, on the CPU, as an ONNX file.

    Inputs `wavs` (batch, samples) float32 at 16 kHz and `lengths` (batch,)
    int64; outputs `mean` (batch, time, channel) and `frames` (batch,). See
    `PlainEncoder`. Returns the metadata in the file, a dict of str: the
    sample rate, layer, hop and shortest utterance (samples), channels, the
    encoder's sha256, the version.
    """
    onnx = import_extra("onnx", "onnx")  # torch's exporter needs it, too
    plain = PlainEncoder(encoder, layer).eval()
    inputs = {"wavs": {0: "batch", 1: "samples"}, "lengths": {0: "batch"}}
    outputs = {"mean": {0: "batch", 1: "time"}, "frames": {0: "batch"}}
    torch.onnx.export(
        plain,
        (torch.randn(2, 4000), torch.tensor([4000, 3000])),
        str(path),
        input_names=list(inputs),
        output_names=list(outputs),
        dynamic_axes=inputs | outputs,
        dynamo=False,  # torch.export, of torch 2.11, fails at the GRU
    )
    metadata = {
        "sample_rate": SAMPLE_RATE,
        "layer": layer,
        "hop": encoder.frame_geometry(layer)[0],
        "shortest": plain.shortest,
        "channels": encoder.channels_of(layer),
        "encoder_sha256": sha256_of(encoder),
        "speechbrain_sim": __version__,
    }
    metadata = {name: str(value) for name, value in metadata.items()}
    graph = onnx.load(path)
    onnx.helper.set_model_props(graph, metadata)
    onnx.save(graph, path)
    return metadata
