"""The layers of a greedy encoder: the boxes of the paper's figure 1.

Reference: Denoodt, de Boer, Oramas: Smooth InfoMax (2025), section 4.1.2,
https://arxiv.org/abs/2408.12936
"""

from contextlib import contextmanager, nullcontext

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from speechbrain_sim.encoders.base import (
    Latent,
    absolute_lengths,
    to_device,
    valid_frames,
    zero_padding,
)
from speechbrain_sim.encoders.block_conv import BlockConv1d
from speechbrain_sim.extras import not_compiled

#: numbers in the widest tensor of an encoding without gradients
PART = 1 << 22


def run_layers(layers, x, lengths, sample=None, generator=None, state=None):
    """Runs a dict of layers bottom up, each on the sample of the one below.

    Yields name and `Latent` of each before the next one runs. See
    `ConvModule.forward`.
    """
    sampled = False
    for name, layer in layers.items():
        latent = layer(x, lengths, sample, generator, state)
        sampled = sampled or latent.sampled
        x, lengths = latent.sample, latent.lengths
        yield name, latent._replace(sampled=sampled)


class ConvModule(nn.Module):
    """One encoder module: convolutions, then the heads of a Gaussian.

    x -> [conv -> (batch norm) -> ReLU] * n -> mean, log_var. Each ReLU but the
    last is part of the next convolution, see `BlockConv1d`. Padding is zeroed
    before the first and after every convolution, so that an utterance encodes
    to the same frames alone or in any batch.

    Arguments
    ---------
    in_channels, channels : int
        Channels of the input, 1 for a waveform, and of everything else.
    shapes : list of (int, int, int)
        Kernel size, stride and padding of each convolution.
    probabilistic : bool
        Whether there is a log-variance head, or the module is deterministic.
    batch_norm : bool
        Whether each convolution is followed by batch norm (over valid frames).
    """

    predicts_input = False

    def __init__(
        self, in_channels, channels, shapes, probabilistic, batch_norm
    ):
        super().__init__()
        self.out_channels, self.has_posterior = channels, probabilistic
        #: whether backward convolves again instead of storing activations
        self.activation_checkpointing = False
        self.convs = nn.ModuleList()
        self.norms = nn.ModuleList()
        for shape in shapes:
            self.convs.append(BlockConv1d(in_channels, channels, *shape))
            if batch_norm:
                self.norms.append(nn.BatchNorm1d(channels))
            in_channels = channels
        self.mean = nn.Linear(channels, channels)
        self.log_var = nn.Linear(channels, channels) if probabilistic else None

    def forward(self, x, lengths=None, sample=None, generator=None, state=None):
        """Encodes a padded batch, or the next piece of a longer signal.

        Arguments
        ---------
        x, lengths : torch.Tensor
            (batch, time, in_channels); valid frames, (batch,), all by default.
        sample, generator :
            See `Encoder.forward`.
        state : StreamState, optional
            Of a signal in pieces; the frames that are complete are returned.

        Returns
        -------
        Latent

        Raises
        ------
        ValueError
            If an utterance is too short for a single frame.
        """
        lengths = absolute_lengths(x) if lengths is None else lengths
        if state is not None:
            x = self._convolve(x, lengths, state)
            return self._posterior(x, absolute_lengths(x), sample, generator)
        frames = lengths
        for conv in self.convs:
            frames = conv.output_lengths(frames)
        tracing = torch.jit.is_tracing()
        if not tracing and frames.min() < 1:
            shortest = int(lengths.min())
            raise ValueError(f"{shortest} frames are too short to encode.")
        learns = torch.is_grad_enabled()
        if learns and self.activation_checkpointing:
            x = self._convolve_again_in_backward(x, lengths)
        elif learns or self.training or tracing or x.device.type != "cpu":
            x = self._convolve(x, lengths)
        else:  # a part of the batch at a time, so that it stays in the cache
            wide = self.convs[0].output_lengths(x.shape[1]) * self.out_channels
            size = max(1, PART // wide)
            parts = zip(x.split(size), lengths.split(size), strict=True)
            x = torch.cat([self._convolve(*part) for part in parts])
        return self._posterior(x, frames, sample, generator)

    @not_compiled  # cannot trace the batch norms' context
    def _convolve_again_in_backward(self, x, lengths):
        """Convolutions that store their input only."""
        contexts = nullcontext(), _keep_statistics(self.norms)
        options = {"use_reentrant": False, "preserve_rng_state": False}
        options["context_fn"] = lambda: contexts
        return checkpoint(self._convolve, x, lengths, **options)

    def _convolve(self, x, lengths, state=None):
        """All convolutions of a padded batch, or of the next piece."""
        x = zero_padding(x, lengths)
        for i, conv in enumerate(self.convs):
            if state is None:
                x, lengths = conv(x, relu=i > 0), conv.output_lengths(lengths)
            else:
                x = state.convolve(conv, x, relu=i > 0)
                lengths = absolute_lengths(x)
            if self.norms:
                x = _norm_valid(self.norms[i], x, lengths)
            x = zero_padding(x, lengths)
        return x

    def _posterior(self, x, lengths, sample, generator):
        """From the last convolution's output to the latent."""
        x = torch.relu(x)
        mean = self.mean(x)
        log_var = self.log_var(x) if self.has_posterior else None
        sample = self.training if sample is None else sample
        latent = Latent(mean, log_var, mean, lengths)
        if not sample or log_var is None:
            return latent
        return latent._replace(sample=latent.draw(generator), sampled=True)


@contextmanager
def _keep_statistics(norms):
    """Keeps the statistics of batch norms that compute a batch again."""
    kept = [(n, n.momentum, n.num_batches_tracked.clone()) for n in norms]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, momentum, batches in kept:
            norm.momentum = momentum
            norm.num_batches_tracked.copy_(batches)


def _norm_valid(norm, x, lengths):
    """Batch norm over (batch, time, channel), the padding left out."""
    if not norm.training or lengths.min() >= x.shape[1]:
        return norm(x.flatten(0, 1)).view(x.shape)
    valid = valid_frames(lengths, x.shape[1]).flatten().nonzero()[:, 0]
    valid, rows = to_device(valid, x.device), x.flatten(0, 1)
    normed = torch.zeros_like(rows)
    normed[valid] = norm(rows[valid])
    return normed.view(x.shape)


class ContextModule(nn.Module):
    """The autoregressive module g_ar: a GRU over the latents below it."""

    has_posterior = False
    predicts_input = True

    def __init__(self, in_channels, channels):
        super().__init__()
        self.out_channels = channels
        self.gru = nn.GRU(in_channels, channels, batch_first=True)

    def forward(self, x, lengths=None, sample=None, generator=None, state=None):
        """See `ConvModule.forward`; there is no posterior to draw from."""
        lengths = absolute_lengths(x) if lengths is None else lengths
        y = self.gru(x)[0] if state is None else state.recur(self.gru, x)
        return Latent(y, None, y, lengths)
