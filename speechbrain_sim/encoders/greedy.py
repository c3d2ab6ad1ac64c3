"""The encoders: waveform -> one latent per module, every 10 ms at the top.

`ConvModule` and `ContextModule` are the boxes of the paper's figure 1;
`GreedyEncoder` stacks them and names them. All public tensors are
(batch, time, channel).

Reference: Denoodt, de Boer, Oramas: Smooth InfoMax (2025), section 4.1.2,
https://arxiv.org/abs/2408.12936
"""

from contextlib import contextmanager, nullcontext

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from speechbrain_sim.arguments import records_arguments
from speechbrain_sim.encoders.base import (
    Encoder,
    Latent,
    absolute_lengths,
    valid_frames,
    zero_padding,
)
from speechbrain_sim.encoders.block_conv import BlockConv1d

CONTEXT = "context"


#: numbers in the widest tensor of an encoding without gradients
PART = 1 << 22


class ConvModule(nn.Module):
    """One encoder module: convolutions, then the heads of a Gaussian.

    x -> [conv -> (batch norm) -> ReLU] * n -> mean, log_var
    (the paper's figure 1; heads are 1x1 convolutions without ReLU). Each ReLU
    but the last is part of the next convolution, see `BlockConv1d`.
    Padding is zeroed before the first and after every convolution, so that an
    utterance encodes to the same frames alone or in any batch.

    Arguments
    ---------
    in_channels : int
        Channels of the input; 1 for a waveform.
    channels : int
        Channels of the convolutions and of the latent.
    kernel_sizes, strides, paddings : list of int
        One number per convolution, in frames of its input.
    probabilistic : bool
        Whether there is a log-variance head. Without it the module is
        deterministic (Greedy InfoMax) and `log_var` is None.
    batch_norm : bool
        Whether each convolution is followed by batch norm (over valid frames).
    initial_log_var : float
        Added to the log-variance head's initial bias. At 0 the first samples
        are mostly noise of unit variance; well below, a module starts almost
        deterministic, and learns at once.

    Example
    -------
    >>> module = ConvModule(1, 16, [10, 8], [5, 4], [2, 2]).eval()
    >>> latent = module(torch.randn(2, 10240, 1))
    >>> latent.mean.shape, latent.log_var.shape, latent.sampled
    (torch.Size([2, 511, 16]), torch.Size([2, 511, 16]), False)
    """

    def __init__(
        self,
        in_channels,
        channels,
        kernel_sizes,
        strides,
        paddings,
        probabilistic=True,
        batch_norm=False,
        initial_log_var=0.0,
    ):
        super().__init__()
        if not len(kernel_sizes) == len(strides) == len(paddings):
            raise ValueError(
                f"kernel_sizes {kernel_sizes}, strides {strides} and paddings "
                f"{paddings} of a module must be equally long."
            )
        self.out_channels = channels
        #: whether backward convolves again, rather than remember
        self.activation_checkpointing = False
        self.convs = nn.ModuleList()
        self.norms = nn.ModuleList()
        for kernel_size, stride, padding in zip(
            kernel_sizes, strides, paddings, strict=True
        ):
            self.convs.append(
                BlockConv1d(in_channels, channels, kernel_size, stride, padding)
            )
            if batch_norm:
                self.norms.append(nn.BatchNorm1d(channels))
            in_channels = channels
        self.mean = nn.Linear(channels, channels)
        self.log_var = nn.Linear(channels, channels) if probabilistic else None
        if probabilistic:
            self.log_var.bias.data.add_(initial_log_var)

    def output_lengths(self, lengths):
        """Computes frames out from frames in, by the convolutions' arithmetic.

        Arguments
        ---------
        lengths : int or torch.Tensor
            Frames (samples for the first module) in.

        Returns
        -------
        int or torch.Tensor
            Frames out; zero or less where the input is too short.
        """
        for conv in self.convs:
            lengths = conv.output_lengths(lengths)
        return lengths

    def forward(self, x, lengths=None, sample=None, generator=None):
        """Encodes a padded batch.

        Arguments
        ---------
        x : torch.Tensor
            (batch, time, in_channels).
        lengths : torch.Tensor, optional
            Valid frames of the input, (batch,); all by default.
        sample : bool, optional
            Whether to draw from the posterior; by default in training only.
        generator : torch.Generator, optional
            Source of the noise.

        Returns
        -------
        Latent

        Raises
        ------
        ValueError
            If an utterance is too short for a single frame.
        """
        lengths = absolute_lengths(x) if lengths is None else lengths
        if self.output_lengths(lengths).min() < 1:
            raise ValueError(
                f"An utterance of {int(lengths.min())} frames is too short: "
                f"the module's convolutions give it no output frame."
            )
        if torch.is_grad_enabled() and self.activation_checkpointing:
            x = self._convolve_again_in_backward(x, lengths)
        elif torch.is_grad_enabled() or self.training or x.device.type != "cpu":
            x = self._convolve(x, lengths)
        else:  # a part of the batch at a time, so that it stays in the cache
            wide = self.convs[0].output_lengths(x.shape[1]) * self.out_channels
            size = max(1, PART // wide)
            parts = zip(x.split(size), lengths.split(size), strict=True)
            x = torch.cat([self._convolve(*part) for part in parts])
        lengths = self.output_lengths(lengths)
        return self._posterior(x, lengths, sample, generator)

    @torch.compiler.disable  # cannot trace the batch norms' context
    def _convolve_again_in_backward(self, x, lengths):
        """Convolutions that remember their input only."""
        return checkpoint(
            self._convolve,
            x,
            lengths,
            use_reentrant=False,
            preserve_rng_state=False,
            context_fn=lambda: (nullcontext(), _keep_statistics(self.norms)),
        )

    def _convolve(self, x, lengths):
        """All convolutions of a padded batch."""
        x = zero_padding(x, lengths)
        for i, conv in enumerate(self.convs):
            x = conv(x, relu=i > 0)
            lengths = conv.output_lengths(lengths)
            if self.norms:
                x = _norm_valid(self.norms[i], x, lengths)
            x = zero_padding(x, lengths)
        return x

    def encode_next(
        self, x, state=None, last=False, sample=None, generator=None
    ):
        """Encodes the next piece of a longer signal, as if it were one.

        Arguments
        ---------
        x : torch.Tensor
            (batch, time, in_channels); time may be 0.
        state : list of torch.Tensor, optional
            What the piece before left over; None for the first piece.
        last : bool
            Whether the signal ends here.
        sample, generator :
            See `forward`.

        Returns
        -------
        latent, state : (Latent, list of torch.Tensor)
            The frames that are complete; what each convolution still has to
            read again.
        """
        left = [] if state is None else state
        rest = []
        for i, conv in enumerate(self.convs):
            padding = conv.padding[0]
            if conv.kernel_size[0] < conv.stride[0]:
                raise ValueError("A kernel below its stride cannot stream.")
            if state is None:
                left.append(x.new_zeros(len(x), padding, x.shape[2]))
            x = torch.cat([left[i], x], dim=1)
            if last:
                x = nn.functional.pad(x, (0, 0, 0, padding))
            frames = max(0, conv.output_lengths(x.shape[1] - 2 * padding))
            rest.append(x[:, frames * conv.stride[0] :].clone())
            if not frames:
                x = x.new_zeros(len(x), 0, self.out_channels)
                continue
            x = conv(x, relu=i > 0, padding=0)
            if self.norms:
                x = _norm_valid(self.norms[i], x, absolute_lengths(x))
        return self._posterior(x, absolute_lengths(x), sample, generator), rest

    def _posterior(self, x, lengths, sample, generator):
        """From the last convolution's output to the latent."""
        x = torch.relu(x)
        mean = self.mean(x)
        log_var = None if self.log_var is None else self.log_var(x)
        sample = self.training if sample is None else sample
        sampled = bool(sample) and log_var is not None
        latent = Latent(mean, log_var, mean, lengths, sampled)
        drawn = latent.draw(generator) if sampled else mean
        return Latent(mean, log_var, drawn, lengths, sampled)


@contextmanager
def _keep_statistics(norms):
    """Lets batch norms compute again what they have counted already."""
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
    mask = valid_frames(lengths, x.shape[1])
    normed = torch.zeros_like(x)
    normed[mask] = norm(x[mask])
    return normed


class ContextModule(nn.Module):
    """The autoregressive module g_ar: a GRU over the latents below it.

    Arguments
    ---------
    in_channels : int
        Channels of the latents it reads.
    channels : int
        Channels of the context.

    Example
    -------
    >>> ContextModule(16, 8)(torch.randn(2, 64, 16)).mean.shape
    torch.Size([2, 64, 8])
    """

    def __init__(self, in_channels, channels):
        super().__init__()
        self.out_channels = channels
        self.gru = nn.GRU(in_channels, channels, batch_first=True)

    def output_lengths(self, lengths):
        """Frames out are frames in."""
        return lengths

    def forward(self, x, lengths=None, sample=None, generator=None):
        """Runs over a padded batch from its start; deterministic.

        Arguments
        ---------
        x : torch.Tensor
            (batch, time, in_channels).
        lengths : torch.Tensor, optional
            Valid frames, (batch,).
        sample, generator : ignored
            There is no posterior to draw from.

        Returns
        -------
        Latent
            With `log_var` None and `sample` the mean.
        """
        lengths = absolute_lengths(x) if lengths is None else lengths
        context, _ = self.gru(x)
        return Latent(context, None, context, lengths, False)

    def encode_next(
        self, x, state=None, last=False, sample=None, generator=None
    ):
        """Goes on where the piece before ended.

        Arguments
        ---------
        x, last, sample, generator :
            See `ConvModule.encode_next`.
        state : torch.Tensor, optional
            The GRU's.

        Returns
        -------
        latent, state : (Latent, torch.Tensor)
        """
        if not x.shape[1]:
            context = x.new_zeros(len(x), 0, self.out_channels)
        else:
            context, state = self.gru(x, state)
        return Latent(context, None, context, absolute_lengths(x), False), state


@records_arguments
class GreedyEncoder(Encoder):
    """The stack of modules, as one feature extractor.

    Layers are named `module1`, `module2`, ..., and `context` if there is one.
    In `train()` every posterior is sampled, in `eval()` the means travel
    upwards; `sample=` overrides both, and `Latent.sampled` tells which it was.
    This class does not train anything: `speechbrain_sim.brains` does.

    Arguments
    ---------
    channels : int
        Channels of every convolution.
    context_channels : int
        Channels of the GRU; 0 for no context module.
    kernel_sizes, strides, paddings : list of list of int
        One list per module, one number per convolution.
    probabilistic : bool
        Gaussian posteriors (SIM), or deterministic modules (GIM).
    batch_norm : bool
        Batch norm after each convolution.
    initial_log_var : float
        Where the log-variances begin, see `ConvModule`.
    activation_checkpointing : list of str
        Modules whose convolutions backward computes again, for less memory;
        the first one dominates it. Changes no number.

    Example
    -------
    >>> encoder = GreedyEncoder(channels=16, context_channels=8).eval()
    >>> latents = encoder(torch.randn(2, 10240), torch.tensor([1.0, 0.5]))
    >>> {name: tuple(z.mean.shape) for name, z in latents.items()}
    {'module1': (2, 511, 16), 'module2': (2, 129, 16), 'module3': (2, 64, 16),
     'context': (2, 64, 8)}
    >>> latents["module3"].lengths
    tensor([64, 32])
    """

    def __init__(
        self,
        channels=512,
        context_channels=256,
        kernel_sizes=((10, 8), (4, 4), (4,)),
        strides=((5, 4), (2, 2), (2,)),
        paddings=((2, 2), (2, 2), (1,)),
        probabilistic=True,
        batch_norm=False,
        initial_log_var=0.0,
        activation_checkpointing=(),
    ):
        super().__init__()
        if not len(kernel_sizes) == len(strides) == len(paddings):
            raise ValueError(
                f"kernel_sizes, strides and paddings list {len(kernel_sizes)}, "
                f"{len(strides)} and {len(paddings)} modules."
            )
        self.layers = nn.ModuleDict()
        in_channels = 1
        for m, sizes in enumerate(
            zip(kernel_sizes, strides, paddings, strict=False), 1
        ):
            self.layers[f"module{m}"] = ConvModule(
                in_channels,
                channels,
                *sizes,
                probabilistic,
                batch_norm,
                initial_log_var,
            )
            in_channels = channels
        if context_channels:
            self.layers[CONTEXT] = ContextModule(in_channels, context_channels)
        for name in activation_checkpointing:
            self.check_layer(name)
            if name == CONTEXT:
                raise ValueError(
                    "activation_checkpointing is for convolutions: context "
                    "has none."
                )
            self.layers[name].activation_checkpointing = True

    @property
    def layer_names(self):
        """Names of the layers, bottom first."""
        return list(self.layers)

    @property
    def conv_channels(self):
        """Channels of the convolutions."""
        return self.arguments["channels"]

    def channels_of(self, layer):
        """Tells the channels of a layer."""
        self.check_layer(layer)
        return self.layers[layer].out_channels

    def convolutions(self, layer):
        """Lists the convolutions between the waveform and a layer.

        Arguments
        ---------
        layer : str
            Name of the layer.

        Returns
        -------
        list of (int, int, int)
            Kernel size, stride and padding, waveform first.

        Example
        -------
        >>> GreedyEncoder(channels=4).convolutions("module2")
        [(10, 5, 2), (8, 4, 2), (4, 2, 2), (4, 2, 2)]
        """
        convs = []
        for name in self.layers_up_to([layer]):
            convs += getattr(self.layers[name], "convs", [])
        return [(c.kernel_size[0], c.stride[0], c.padding[0]) for c in convs]

    def forward(
        self, wavs, wav_lens=None, layers=None, sample=None, generator=None
    ):
        """Encodes waveforms.

        Arguments
        ---------
        wavs : torch.Tensor
            (batch, samples) at 16 kHz.
        wav_lens : torch.Tensor, optional
            Relative lengths (floating) or samples (integer), (batch,).
        layers : list of str, optional
            The layers to return; all by default. Nothing above the highest of
            them is computed.
        sample : bool, optional
            Draw from every posterior on the way; by default in training only.
        generator : torch.Generator, optional
            Source of the noise.

        Returns
        -------
        dict of str to Latent
            Bottom first.

        Raises
        ------
        ValueError
            If a layer does not exist, or an utterance is too short.
        """
        if wavs.ndim != 2:
            raise ValueError(
                f"wavs has shape {tuple(wavs.shape)}; expected (batch, samples)."
            )
        wanted = self.layers_up_to(layers)
        x, lengths = wavs[..., None], absolute_lengths(wavs, wav_lens)
        sampled, latents = False, {}
        for name, is_wanted in wanted.items():
            latent = self.layers[name](x, lengths, sample, generator)
            sampled = sampled or latent.sampled
            if is_wanted:
                latents[name] = Latent(*latent[:4], sampled)
            x, lengths = latent.sample, latent.lengths
        return latents

    @torch.no_grad()
    def stream(self, chunks, layers=None, sample=None, generator=None):
        """Encodes a signal of any length, piece by piece.

        The pieces of each layer, one after the other, are what `forward` gives
        for the whole signal: every convolution keeps the frames that it has to
        read again, the GRU its state. Memory does not grow with the length,
        and there are no gradients.

        Arguments
        ---------
        chunks : iterable of torch.Tensor
            (batch, samples) at 16 kHz, of any and varying length.
        layers, sample, generator :
            See `forward`.

        Yields
        ------
        dict of str to Latent
            For each chunk, the frames that are complete; there may be none.

        Raises
        ------
        ValueError
            In train mode, if a layer does not exist, or if the signal ends
            before its first frame.

        Example
        -------
        >>> encoder = GreedyEncoder(channels=16, context_channels=8).eval()
        >>> wavs = torch.randn(1, 10240)
        >>> pieces = encoder.stream(wavs.split(1000, dim=1), ["module3"])
        >>> torch.cat([piece["module3"].mean for piece in pieces], 1).shape
        torch.Size([1, 64, 16])
        """
        if self.training:
            raise ValueError(
                "Only an encoder in eval mode streams: call eval()."
            )
        wanted = self.layers_up_to(layers)
        states, frames = dict.fromkeys(wanted), 0
        chunks = iter(chunks)
        following = next(chunks, None)
        while following is not None:
            x, following = following[..., None], next(chunks, None)
            sampled, latents = False, {}
            for name, is_wanted in wanted.items():
                latent, states[name] = self.layers[name].encode_next(
                    x, states[name], following is None, sample, generator
                )
                sampled = sampled or latent.sampled
                if is_wanted:
                    latents[name] = Latent(*latent[:4], sampled)
                x = latent.sample
            frames += x.shape[1]
            yield latents
        if not frames:
            raise ValueError(
                f"The signal is too short for a frame of {list(wanted)[-1]}."
            )


def freeze_unused(encoder, layers):
    """Switches gradients off where the means of some layers get none from.

    These are the heads of log variances, and the layers above the highest one:
    DistributedDataParallel waits in vain for gradients of such weights.

    Arguments
    ---------
    encoder : GreedyEncoder
        The encoder.
    layers : list of str
        The layers whose means are used.

    Example
    -------
    >>> from speechbrain_sim.encoders.greedy import GreedyEncoder
    >>> encoder = GreedyEncoder(channels=4, context_channels=2)
    >>> freeze_unused(encoder, ["module1"])
    >>> [n for n, p in encoder.named_parameters() if p.requires_grad][-2:]
    ['layers.module1.mean.weight', 'layers.module1.mean.bias']
    """
    used = encoder.layers_up_to(layers)
    for name, layer in encoder.layers.items():
        if name not in used:
            layer.requires_grad_(False)
        elif getattr(layer, "log_var", None) is not None:
            layer.log_var.requires_grad_(False)
