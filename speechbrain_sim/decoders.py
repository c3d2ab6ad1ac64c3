"""Decoders: latents of a layer -> waveform.

Two kinds: the paper's, by squared error of waveforms, and one to listen to, by
spectrograms and Griffin-Lim.

Reference: Denoodt, de Boer, Oramas: Smooth InfoMax (2025), section 4.1.3,
https://arxiv.org/abs/2408.12936
"""

import math
from abc import ABC, abstractmethod

import torch
from torch import nn

from speechbrain_sim.arguments import records_arguments
from speechbrain_sim.data.labels import HOP
from speechbrain_sim.encoders.base import absolute_lengths, zero_padding
from speechbrain_sim.encoders.block_conv import conv_geometry, conv_lengths
from speechbrain_sim.spectrograms import (
    BINS,
    PERIOD,
    REACH,
    frames_of,
    griffin_lim,
)

#: samples (30 s) beyond which a waveform is decoded in pieces, and of a piece
LONG = 480000
#: kinds of decoders, see `make_decoder`
DECODERS = WAVEFORM, SPECTROGRAM = "waveform", "spectrogram"
#: of the spectrogram decoder: residual convolutions, kernels, channels
BLOCKS, KERNEL, CHANNELS = 2, 5, 128
#: deviation and mean of the log-power of speech, about: no step is spent on them
SCALE, LEVEL = 4.0, -8.0
#: least deviation of a channel, relative to the largest: noise stays small
QUIET = 0.01


class Decoder(nn.Module, ABC):
    """Latents of one layer -> waveform, whatever lies between.

    Lengths are those of the encoder's convolutions, retraced exactly.

    Arguments
    ---------
    kernel_sizes, strides, paddings : list of int
        Of the encoder's convolutions, waveform first.
    """

    def __init__(self, kernel_sizes, strides, paddings):
        super().__init__()
        #: (kernel size, stride, padding), waveform first
        self.shapes = list(zip(kernel_sizes, strides, paddings, strict=True))
        #: samples per frame; frames beside a piece that it depends on; where
        #: pieces may begin, multiples of so many frames
        self.hop, self.reach, self.unit = math.prod(strides), 0, 1

    @abstractmethod
    def predict(self, z, samples, lengths):
        """Predicts what is learned, zero beyond each utterance.

        For `z` and `samples` see `forward`; `lengths` are samples, (batch,),
        on the CPU: utterances of `lengths` <= 0 are padding.
        """

    def sound(self, predicted, samples, lengths):
        """Makes waveforms, (batch, samples), of what `predict` returned."""
        return predicted

    def frames(self, samples):
        """Lists the lengths from the waveform up to the latents."""
        lengths = [samples]
        for shape in self.shapes:
            lengths.append(conv_lengths(lengths[-1], *shape))
        return lengths

    def forward(self, z, samples, wav_lens=None, as_sound=True):
        """Decodes latents, (batch, time, in_channels), to (batch, samples).

        For `wav_lens` see `absolute_lengths`; zero beyond each utterance. A
        ValueError if `samples` do not encode to so many latents. Long ones are
        decoded in pieces, unless gradients are wanted. Without `as_sound`, what
        `predict` returns is returned: training needs no more.
        """
        frames, time = self.frames(samples)[-1], z.shape[1]
        if time != frames:
            raise ValueError(
                f"{samples} samples encode to {frames} frames, not {time}."
            )
        wavs = z.new_empty(1).expand(len(z), samples)
        lengths = absolute_lengths(wavs, wav_lens)
        if not as_sound:
            return self.predict(z, samples, lengths)
        if torch.is_grad_enabled() or samples <= LONG:
            return self._decode(z, samples, lengths)
        return torch.cat([*self.pieces(z, samples, lengths)], dim=1)

    def pieces(self, z, samples, lengths, long=None):
        """Yields what `forward` returns, about `long` samples at a time."""
        time = z.shape[1]
        step = self.unit * max(1, (long or LONG) // self.hop // self.unit)
        starts = range(0, time, step)
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
            yield wavs[:, start * self.hop - offset : end - offset]

    def _decode(self, z, samples, lengths):
        """Decodes at once."""
        predicted = self.predict(z, samples, lengths)
        return self.sound(predicted, samples, lengths)


@records_arguments
class ConvDecoder(Decoder):
    """The convolutions of an encoder, mirrored: latents -> waveform.

    One transposed convolution for each convolution below the latents, topmost
    first, with ReLU between.

    Arguments
    ---------
    in_channels : int
        Channels of the latents.
    channels : int
        Channels inside.
    kernel_sizes, strides, paddings : list of int
        See `Decoder`.
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
        super().__init__(kernel_sizes, strides, paddings)
        for kernel_size, stride, _ in self.shapes:
            taps = self.reach + kernel_size + refinements
            self.reach = -(-taps // stride)
        self.stages = nn.ModuleList()
        width = in_channels
        for i, shape in reversed(list(enumerate(self.shapes))):
            convs = []
            for out in [channels] * refinements + [channels if i else 1]:
                convs.append(nn.ConvTranspose1d(width, out, *shape))
                width, shape = out, (3, 1, 1)
            self.stages.append(nn.ModuleList(convs))

    def predict(self, z, samples, lengths):
        """Returns the waveforms, (batch, samples): see `Decoder`."""
        padded, valid = self.frames(samples), self.frames(lengths)
        x = zero_padding(z, valid[-1])
        for depth, stage in enumerate(self.stages, start=2):
            for i, conv in enumerate(stage):
                x = x if depth == 2 and i == 0 else torch.relu(x)
                size = [padded[-depth]] if i == 0 else None
                x = conv(x.transpose(1, 2), output_size=size).transpose(1, 2)
                x = zero_padding(x, valid[-depth])
        return x[..., 0]


@records_arguments
class SpectrogramDecoder(Decoder):
    """A few convolutions, latents -> log-power spectrogram, and Griffin-Lim.

    Latents are standardized, by each channel's mean and deviation in what it was
    trained on so far. A convolution of them, whose outputs around each
    10 ms, side by side, pass a linear layer and two residual convolutions over
    time; what they predict has a bin per 40 Hz. Its phases are found by
    `griffin_lim`, which nothing is trained through.

    Arguments
    ---------
    in_channels, channels, kernel_sizes, strides, paddings :
        See `ConvDecoder`.

    Example
    -------
    >>> decoder = SpectrogramDecoder(8, 16, [10], [5], [2])
    >>> decoder(torch.randn(2, 639, 8), 3200).shape
    torch.Size([2, 3200])
    >>> decoder(torch.randn(2, 639, 8), 3200, as_sound=False).shape
    torch.Size([2, 21, 201])
    """

    def __init__(self, in_channels, channels, kernel_sizes, strides, paddings):
        super().__init__(kernel_sizes, strides, paddings)
        self.register_buffer("mean", torch.zeros(in_channels))
        self.register_buffer("deviation", torch.ones(in_channels))
        self.register_buffer("batches", torch.zeros(()))  # that these are of
        #: latents on either side that a frame is made of
        self.beside = -(-HOP // self.hop)
        taps = 2 * self.beside + 1
        # of signed latents: what passes the ReLU can be summed over 10 ms
        self.before = nn.Conv1d(in_channels, channels, KERNEL, padding="same")
        self.first = nn.Linear(taps * channels, channels)
        self.blocks = nn.ModuleList(
            nn.Conv1d(channels, channels, KERNEL, padding="same")
            for _ in range(BLOCKS)
        )
        self.norms = nn.ModuleList(
            nn.LayerNorm(channels) for _ in range(BLOCKS + 1)
        )
        self.last = nn.Linear(channels, BINS)
        frames = REACH + BLOCKS * (KERNEL // 2) + 1
        self.unit = math.lcm(self.hop, PERIOD * HOP) // self.hop
        reach = frames * HOP // self.hop + self.beside + KERNEL
        self.reach = -(-reach // self.unit) * self.unit

    def predict(self, z, samples, lengths):
        """Returns log-power spectrograms, (batch, frames, bins)."""
        valid, latents = frames_of(lengths), self.frames(lengths)[-1]
        z = zero_padding(self.standardize(z, latents), latents)
        z = torch.relu(self.before(z.transpose(1, 2))).transpose(1, 2)
        x = self.around(zero_padding(z, latents), frames_of(samples))
        x = self.norms[0](self.first(x))
        for block, norm in zip(self.blocks, self.norms[1:], strict=True):
            y = zero_padding(torch.relu(x), valid).transpose(1, 2)
            x = norm(x + block(y).transpose(1, 2))
        x = SCALE * self.last(torch.relu(x)) + LEVEL
        return zero_padding(x, valid)

    def standardize(self, z, lengths):
        """Standardizes latents; in training, by these as well."""
        if self.training:
            pairs = zip(z.detach(), lengths, strict=True)
            x = torch.cat([row[:length] for row, length in pairs]).to(self.mean)
            self.batches += 1
            self.mean.lerp_(x.mean(0), 1 / self.batches)
            self.deviation.lerp_(x.std(0), 1 / self.batches)
        least = QUIET * self.deviation.max() + torch.finfo(z.dtype).tiny
        return (z - self.mean) / self.deviation.clamp(min=least)

    def around(self, z, frames):
        """Lays the latents around each frame side by side."""
        hop, center = conv_geometry(self.shapes)
        at = HOP * torch.arange(frames, dtype=torch.float64) - center
        at = (at / hop).round().long()[:, None]
        at = at + torch.arange(-self.beside, self.beside + 1)
        before, after = -int(at.min()), int(at.max()) + 1 - z.shape[1]
        z = nn.functional.pad(z, (0, 0, max(before, 0), max(after, 0)))
        return z[:, (at + max(before, 0)).to(z.device)].flatten(2)

    def sound(self, predicted, samples, lengths):
        """See `Decoder`; nothing is trained through it."""
        return griffin_lim(predicted, samples, lengths)


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


def make_decoder(encoder, layer, kind=WAVEFORM):
    """Makes the decoder of a layer: `WAVEFORM` is `mirror`'s.

    Example
    -------
    >>> from speechbrain_sim.encoders.logmel import LogMel
    >>> type(make_decoder(LogMel(), "logmel", SPECTROGRAM)).__name__
    'SpectrogramDecoder'
    """
    if kind == WAVEFORM:
        return mirror(encoder, layer)
    shapes = zip(*encoder.convolutions(layer), strict=True)
    return SpectrogramDecoder(encoder.channels_of(layer), CHANNELS, *shapes)
