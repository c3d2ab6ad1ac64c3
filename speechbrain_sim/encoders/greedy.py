"""The encoder: waveform -> one latent per module, every 10 ms at the top.

Reference: Denoodt, de Boer, Oramas: Smooth InfoMax (2025), section 4.1.2,
https://arxiv.org/abs/2408.12936
"""

import torch
from torch import nn

from speechbrain_sim.arguments import records_arguments
from speechbrain_sim.encoders.base import Encoder, absolute_lengths
from speechbrain_sim.encoders.layers import (
    ContextModule,
    ConvModule,
    run_layers,
)
from speechbrain_sim.encoders.streaming import StreamState

CONTEXT = "context"


@records_arguments
class GreedyEncoder(Encoder):
    """The stack of modules, as one feature extractor.

    Layers are named `module1`, `module2`, ..., and `context` if there is one.
    In `train()` every posterior is sampled, in `eval()` the means travel
    upwards; `sample=` overrides both.

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
        Added to the initial biases of log-variances. At 0 the first samples are
        mostly noise; well below, modules start almost deterministic.
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
    """

    streams = True
    #: how it is trained is not part of what it is
    unrecorded = ("activation_checkpointing",)

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
        numbers = kernel_sizes, strides, paddings
        counts = [[len(of_module) for of_module in kind] for kind in numbers]
        if not counts[0] == counts[1] == counts[2]:
            raise ValueError(
                f"kernel_sizes, strides and paddings must list as many modules "
                f"and convolutions; they list {counts}."
            )
        self.layers = nn.ModuleDict()
        in_channels = 1
        for m, of_module in enumerate(zip(*numbers, strict=True), 1):
            sizes = in_channels, channels, zip(*of_module, strict=True)
            layer = ConvModule(*sizes, probabilistic, batch_norm)
            if probabilistic:
                layer.log_var.bias.data.add_(initial_log_var)
            self.layers[f"module{m}"] = layer
            in_channels = channels
        if context_channels:
            self.layers[CONTEXT] = ContextModule(in_channels, context_channels)
        for name in activation_checkpointing:
            if self._checked(name).predicts_input:
                raise ValueError(f"{name} has no activation_checkpointing.")
            self.layers[name].activation_checkpointing = True

    @property
    def layer_names(self):
        """Names of the layers, bottom first."""
        return list(self.layers)

    def channels_of(self, layer):
        """See `Encoder`."""
        return self._checked(layer).out_channels

    def has_posterior(self, layer):
        """See `Encoder`."""
        return self._checked(layer).has_posterior

    def predicts_input(self, layer):
        """See `Encoder`."""
        return self._checked(layer).predicts_input

    def _checked(self, layer):
        """Returns the module of a layer."""
        self.check_layer(layer)
        return self.layers[layer]

    def convolutions(self, layer):
        """See `Encoder`."""
        convs = []
        for name in self.layers_up_to([layer]):
            convs += getattr(self.layers[name], "convs", [])
        return [conv.shape for conv in convs]

    def encode(self, wavs, lengths, layers, sample, generator, state=None):
        """See `Encoder`; `state` is a `StreamState` for a signal in pieces."""
        needed = self.layers_up_to(layers)
        stack = {name: self.layers[name] for name in needed}
        options = sample, generator, state
        latents = run_layers(stack, wavs[..., None], lengths, *options)
        return {name: latent for name, latent in latents if needed[name]}

    def freeze_unused(self, layers):
        """See `Encoder`: heads of log-variances, and the layers above."""
        used = self.layers_up_to(layers)
        for name, layer in self.layers.items():
            if name not in used:
                layer.requires_grad_(False)
            elif layer.has_posterior:
                layer.log_var.requires_grad_(False)

    @torch.no_grad()
    def stream(self, chunks, layers=None, sample=None, generator=None):
        """Encodes a signal of any length, piece by piece, without gradients.

        Memory does not grow with the length.

        Arguments
        ---------
        chunks : iterable of torch.Tensor
            (batch, samples) at 16 kHz, of any and varying length.
        layers, sample, generator :
            See `forward`.

        Yields
        ------
        dict of str to Latent
            For each chunk, the frames that are complete, perhaps none; together
            those that `forward` returns for the whole signal.

        Raises
        ------
        ValueError
            In train mode, if a layer does not exist, or if the signal ends
            before its first frame.

        Example
        -------
        >>> encoder = GreedyEncoder(channels=16, context_channels=8).eval()
        >>> chunks = torch.randn(1, 10240).split(1000, dim=1)
        >>> sum(z["module3"].mean.shape[1] for z in encoder.stream(chunks))
        64
        """
        if self.training:
            raise ValueError("Only encoders in eval mode stream: call eval().")
        top = list(self.layers_up_to(layers))[-1]
        state, frames = StreamState(), 0
        chunks = iter(chunks)
        following = next(chunks, None)
        while following is not None:
            wavs, following = self.as_input(following), next(chunks, None)
            state.last = following is None
            options = layers, sample, generator, state
            latents = self.encode(wavs, absolute_lengths(wavs), *options)
            frames += latents[top].mean.shape[1]
            yield latents
        if not frames:
            raise ValueError(f"The signal is too short for a frame of {top}.")
