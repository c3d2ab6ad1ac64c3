"""Decoders: latents of a layer -> waveform.

Reference: Denoodt, de Boer, Oramas: Smooth InfoMax (2025), section 4.1.3,
https://arxiv.org/abs/2408.12936
"""

import math

import torch
from torch import nn

from speechbrain_sim.arguments import records_arguments
from speechbrain_sim.encoders.base import absolute_lengths, zero_padding
from speechbrain_sim.encoders.block_conv import conv_lengths

#: samples (30 s) beyond which a waveform is decoded in pieces, and of a piece
LONG = 480000


@records_arguments
class ConvDecoder(nn.Module):
    """The convolutions of an encoder, mirrored: latents -> waveform.

    One transposed convolution for each convolution below the latents, topmost
    first, with ReLU between. Lengths are retraced exactly.

    Arguments
    ---------
    in_channels : int
        Channels of the latents.
    channels : int
        Channels inside.
    kernel_sizes, strides, paddings : list of int
        Of the encoder's convolutions, waveform first.
    refinements : int
        Further transposed convolutions (kernel 3, stride 1) after each one.
    """

    def __init__(
        self,
        in_channels,
        channels,
        kernel_sizes,
        strides,
        paddings,
        refinements=0,
    ):
        super().__init__()
        #: (kernel size, stride, padding), waveform first
        self.shapes = list(zip(kernel_sizes, strides, paddings, strict=True))
        self.hop, self.reach = math.prod(strides), 0
        for kernel_size, stride, _ in self.shapes:
            taps = self.reach + kernel_size + refinements
            #: frames beside those of a piece that it depends on
            self.reach = -(-taps // stride)
        self.stages = nn.ModuleList()
        width = in_channels
        for i, shape in reversed(list(enumerate(self.shapes))):
            convs = []
            for out in [channels] * refinements + [channels if i else 1]:
                convs.append(nn.ConvTranspose1d(width, out, *shape))
                width, shape = out, (3, 1, 1)
            self.stages.append(nn.ModuleList(convs))

    def frames(self, samples):
        """Lists the lengths from the waveform up to the latents."""
        lengths = [samples]
        for shape in self.shapes:
            lengths.append(conv_lengths(lengths[-1], *shape))
        return lengths

    def forward(self, z, samples, wav_lens=None):
        """Decodes latents, (batch, time, in_channels), to (batch, samples).

        For `wav_lens` see `absolute_lengths`; zero beyond each utterance. A
        ValueError if `samples` do not encode to so many latents. Long ones are
        decoded in pieces, unless gradients are wanted.
        """
        frames, time = self.frames(samples)[-1], z.shape[1]
        if time != frames:
            raise ValueError(
                f"{samples} samples encode to {frames} frames, not {time}."
            )
        wavs = z.new_empty(1).expand(len(z), samples)
        lengths = absolute_lengths(wavs, wav_lens)
        if torch.is_grad_enabled() or samples <= LONG:
            return self._decode(z, samples, lengths)
        starts, pieces = range(0, time, max(1, LONG // self.hop)), []
        ends = [*starts[1:], time]
        for start, end in zip(starts, ends, strict=True):
            # a piece has `reach` more frames on both sides, cut off again
            begin, beyond = max(0, start - self.reach), end + self.reach
            piece, offset = z[:, begin:beyond], begin * self.hop
            size = samples - offset
            if beyond < time:
                size = shortest(self.shapes, piece.shape[1])
            wavs = self._decode(piece, size, lengths - offset)
            end = end * self.hop if end < time else samples
            pieces.append(wavs[:, start * self.hop - offset : end - offset])
        return torch.cat(pieces, dim=1)

    def _decode(self, z, samples, lengths):
        """Decodes at once; utterances of `lengths` <= 0 are padding."""
        padded, valid = self.frames(samples), self.frames(lengths)
        x = zero_padding(z, valid[-1])
        for depth, stage in enumerate(self.stages, start=2):
            for i, conv in enumerate(stage):
                x = x if depth == 2 and i == 0 else torch.relu(x)
                size = [padded[-depth]] if i == 0 else None
                x = conv(x.transpose(1, 2), output_size=size).transpose(1, 2)
                x = zero_padding(x, valid[-depth])
        return x[..., 0]


def shortest(shapes, frames):
    """Returns the fewest samples that convolutions turn into so many frames."""
    for kernel_size, stride, padding in reversed(shapes):
        frames = (frames - 1) * stride + kernel_size - 2 * padding
    return frames


def mirror(encoder, layer):
    """Makes the decoder of a layer from the encoder's hyper-parameters.

    As in the authors' release, the lowest layer, of two convolutions, has two
    refinements after each, and no other layer has any.

    Example
    -------
    >>> from speechbrain_sim.encoders.greedy import GreedyEncoder
    >>> encoder = GreedyEncoder(channels=8, context_channels=4).eval()
    >>> z = encoder(torch.randn(2, 8821))["module3"].mean
    >>> mirror(encoder, "module3")(z, 8821).shape
    torch.Size([2, 8821])
    """
    shapes = encoder.convolutions(layer)
    lowest = layer == encoder.layer_names[0] and len(shapes) == 2
    channels = encoder.channels_of(layer), encoder.conv_channels
    return ConvDecoder(*channels, *zip(*shapes, strict=True), 2 * lowest)
