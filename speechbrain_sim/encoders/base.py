"""The contract of every encoder: waveforms -> one `Latent` per layer.

All tensors are (batch, time, channel).
"""

from abc import ABC, abstractmethod
from itertools import chain
from typing import NamedTuple

import torch
from torch import nn
from torch.nn.utils.rnn import pad_sequence

from speechbrain_sim.encoders.block_conv import conv_geometry, conv_lengths


class Latent(NamedTuple):
    """The output of a layer, (batch, time, channel).

    Arguments
    ---------
    mean : torch.Tensor
        Mean of the posterior, or the output of a deterministic layer.
    log_var : torch.Tensor or None
        Log-variance of the posterior, if there is one.
    sample : torch.Tensor
        Input of the next layer: a draw from the posterior, or the mean.
    lengths : torch.Tensor
        Valid frames of each utterance, (batch,), integer, on the CPU: there,
        no GPU has to be waited for.
    sampled : bool
        Whether this layer, or one below it, drew from a posterior.
    """

    mean: torch.Tensor
    log_var: torch.Tensor | None
    sample: torch.Tensor
    lengths: torch.Tensor
    sampled: bool = False

    def draw(self, generator=None):
        """Draws mean + sigma * noise; the mean where there is no posterior."""
        if self.log_var is None:
            return self.mean
        noise = torch.empty_like(self.mean).normal_(generator=generator)
        return torch.addcmul(self.mean, torch.exp(0.5 * self.log_var), noise)

    def window(self, start, frames):
        """Cuts out the frames `start : start + frames`; `lengths` stay."""
        return self._map(lambda x: x[:, start : start + frames])

    def without_padding(self):
        """Zeroes mean, log-variance and sample beyond each utterance."""
        return self._map(lambda x: zero_padding(x, self.lengths))

    def _map(self, change):
        """Changes mean, log-variance and sample alike."""
        return Latent._join([self], lambda x: change(x[0]), self.lengths)

    @classmethod
    def cat(cls, pieces):
        """Joins pieces, as `Encoder.stream` yields them, along time."""
        lengths = sum(piece.lengths for piece in pieces)
        return cls._join(pieces, lambda x: torch.cat(x, dim=1), lengths)

    @classmethod
    def pad(cls, rows):
        """Makes one padded batch of a list of (1, time, channel) latents."""

        def join(x):
            return pad_sequence([row[0] for row in x], batch_first=True)

        return cls._join(rows, join, torch.cat([row.lengths for row in rows]))

    @classmethod
    def stack(cls, batches):
        """Joins a list of batches of equally many frames."""
        lengths = torch.cat([batch.lengths for batch in batches])
        return cls._join(batches, torch.cat, lengths)

    @classmethod
    def _join(cls, latents, join, lengths):
        """Joins mean, log-variance and sample; where means are samples, once."""

        def joined(field):
            return join([getattr(latent, field) for latent in latents])

        mean = joined("mean")
        log_var = None if latents[0].log_var is None else joined("log_var")
        same = all(latent.sample is latent.mean for latent in latents)
        sample = mean if same else joined("sample")
        sampled = any(latent.sampled for latent in latents)
        return cls(mean, log_var, sample, lengths, sampled)


def to_device(x, device):
    """Copies a tensor to a device; a copy to a GPU is not waited for."""
    to_gpu = x.device.type == "cpu" and torch.device(device).type == "cuda"
    return (x.pin_memory() if to_gpu else x).to(device, non_blocking=to_gpu)


def absolute_lengths(x, wav_lens=None):
    """Converts SpeechBrain's relative lengths to samples, (batch,), int64.

    They are on the CPU; those that come from a GPU are waited for.

    Arguments
    ---------
    x : torch.Tensor
        Padded batch, (batch, time, ...).
    wav_lens : torch.Tensor, optional
        (batch,): relative lengths in (0, 1] if floating, samples if integer.
        Relative float32 ones are exact up to 2 ** 24 samples.

    Raises
    ------
    ValueError
        If a length is outside 1..time, or there is not one per utterance.

    Example
    -------
    >>> absolute_lengths(torch.zeros(2, 77), torch.tensor([1.0, 0.5]))
    tensor([77, 38])
    """
    batch, time = x.shape[:2]
    if wav_lens is None:
        return torch.full((batch,), time)
    lengths = torch.as_tensor(wav_lens).cpu()
    if lengths.is_floating_point():
        lengths = torch.round(lengths.double() * time)
    lengths = lengths.long()
    if lengths.shape != (batch,) or lengths.min() < 1 or lengths.max() > time:
        raise ValueError(
            f"wav_lens gives {lengths.tolist()} samples for {batch} utterances "
            f"of {time}: pass one each, in (0, 1] (floating) or 1..{time}."
        )
    return lengths


def valid_frames(lengths, time):
    """Marks the frames of each utterance: (batch,) -> (batch, time), bool.

    SpeechBrain's `length_to_mask`, traced, fixes the size of the batch.

    Example
    -------
    >>> valid_frames(torch.tensor([1, 2]), 2).tolist()
    [[True, False], [True, True]]
    """
    return torch.arange(time, device=lengths.device) < lengths[:, None]


def zero_padding(x, lengths):
    """Zeroes (batch, time, channel) beyond each utterance."""
    if not torch.jit.is_tracing() and lengths.min() >= x.shape[1]:
        return x
    valid = valid_frames(to_device(lengths, x.device), x.shape[1])
    return x.masked_fill(~valid[..., None], 0)


def masked_mean(x, lengths):
    """Averages (batch, time, channel) over the valid frames.

    Example
    -------
    >>> masked_mean(torch.tensor([[[1.0], [3.0], [99.0]]]), torch.tensor([2]))
    tensor([[2.]])
    """
    counts = to_device(lengths, x.device)
    return zero_padding(x, lengths).sum(1) / counts[:, None]


def check_finite(latents, names):
    """Raises a ValueError that names layer and recording of NaN or infinity.

    Arguments
    ---------
    latents : dict of str to (Latent or torch.Tensor)
        Of each layer, bottom first: (batch, ...).
    names : list of str
        Of the recordings of the batch.
    """
    for layer, x in latents.items():
        for values in x[:3] if isinstance(x, Latent) else (x,):
            if values is None or values.isfinite().all():
                continue
            good = values.isfinite().flatten(1).all(1).tolist()
            raise ValueError(
                f"{layer} of {names[good.index(False)]} holds NaN or infinity: "
                f"correct this recording, or train the encoder again (weights "
                f"may be too large for {values.dtype})."
            )


class Encoder(nn.Module, ABC):
    """Waveforms -> latents of named layers, whatever it is made of."""

    #: whether `stream` works
    streams = False

    @property
    @abstractmethod
    def layer_names(self):
        """Names of the layers, bottom first."""

    @abstractmethod
    def channels_of(self, layer):
        """Returns the number of channels of a layer."""

    @abstractmethod
    def convolutions(self, layer):
        """Lists (kernel size, stride, padding) of the convolutions below."""

    @abstractmethod
    def encode(self, wavs, lengths, layers, sample, generator):
        """Encodes a batch that `forward` has checked: dict of str to Latent.

        `lengths` are samples, (batch,), int64, on the CPU, and `layers` is a
        list, bottom first. Frames beyond an utterance may hold anything.
        """

    def forward(
        self, wavs, wav_lens=None, layers=None, sample=None, generator=None
    ):
        """Encodes waveforms.

        Arguments
        ---------
        wavs : torch.Tensor
            (batch, samples) at 16 kHz.
        wav_lens : torch.Tensor, optional
            See `absolute_lengths`.
        layers : list of str, optional
            The layers to return; all by default.
        sample : bool, optional
            Draw from every posterior on the way; by default in training only.
        generator : torch.Generator, optional
            Source of the noise.

        Returns
        -------
        dict of str to Latent
            Bottom first; zero beyond each utterance.

        Raises
        ------
        ValueError
            If a layer does not exist, `wavs` has another shape, or an
            utterance is too short for a frame.
        """
        wavs = self.as_input(wavs)
        wanted = self.layers_up_to(layers)
        lengths = absolute_lengths(wavs, wav_lens)
        shortest = int(lengths.min())
        for name in wanted:
            if min(shortest, self.output_lengths(shortest, name)) < 1:
                raise ValueError(
                    f"An utterance of {shortest} samples is too short for a "
                    f"frame of {name}: wavs is {tuple(wavs.shape)}, taken as "
                    f"(batch, samples)."
                )
        names = [name for name, is_wanted in wanted.items() if is_wanted]
        latents = self.encode(wavs, lengths, names, sample, generator)
        return {name: latents[name].without_padding() for name in names}

    def as_input(self, wavs):
        """Returns waveforms in the dtype of the weights.

        Raises a ValueError if they are not a floating tensor, (batch, samples),
        or on another device; a RuntimeError in `torch.jit.trace`.
        """
        if torch.jit.is_tracing():
            raise RuntimeError(
                "An encoder cannot be traced: lengths would become constants. "
                "Trace speechbrain_sim.integrations.onnx.PlainEncoder(encoder, "
                "layer) with (wavs, lengths)."
            )
        if not (isinstance(wavs, torch.Tensor) and wavs.is_floating_point()):
            kind = getattr(wavs, "dtype", type(wavs).__name__)
            raise ValueError(
                f"wavs must be a floating tensor, within -1 and 1; got {kind}: "
                f"divide int16 by 32768."
            )
        if wavs.ndim != 2 or not len(wavs):
            shape = tuple(wavs.shape)
            raise ValueError(f"wavs is {shape}; expected (batch, samples).")
        weight = next(chain(self.parameters(), self.buffers()), wavs)
        if wavs.device != weight.device:
            raise ValueError(
                f"wavs are on {wavs.device}, the encoder on {weight.device}: "
                f"move one of them. A Brain of SpeechBrain moves what its yaml "
                f"lists under `modules`."
            )
        return wavs.to(weight.dtype)

    def stream(self, chunks, layers=None, sample=None, generator=None):
        """Encodes a signal piece by piece; a ValueError unless `streams`."""
        raise ValueError(f"{type(self).__name__} cannot encode in pieces.")

    def freeze_unused(self, layers):
        """Switches off gradients that the means of these layers do not give.

        DistributedDataParallel waits in vain for gradients of such weights. By
        default there are none.
        """

    @property
    def device(self):
        """Device of the parameters, or buffers: where waveforms have to be."""
        return next(chain(self.parameters(), self.buffers())).device

    @property
    def conv_channels(self):
        """Channels between the convolutions."""
        return self.channels_of(self.layer_names[0])

    def has_posterior(self, layer):
        """Returns whether a layer is a Gaussian posterior."""
        self.check_layer(layer)
        return False

    def predicts_input(self, layer):
        """Returns whether a contrastive layer predicts its own input."""
        self.check_layer(layer)
        return False

    def origin(self, layer):
        """Returns the layer that this one codes; itself, if it is no code."""
        self.check_layer(layer)
        return layer

    def bottleneck_of(self, layer):
        """Returns the bottleneck whose codes a layer holds; None if no code."""
        self.check_layer(layer)

    def pools(self, layer):
        """Returns whether all frames of a recording hold the same, of all."""
        self.check_layer(layer)
        return False

    def check_layer(self, layer):
        """Raises a ValueError that names the layers if `layer` is not one."""
        if layer not in self.layer_names:
            raise ValueError(
                f"There is no layer '{layer}'; this encoder has "
                f"{', '.join(self.layer_names)}."
            )

    def output_lengths(self, samples, layer):
        """Computes frames from samples at 16 kHz, int or integer tensor."""
        for conv in self.convolutions(layer):
            samples = conv_lengths(samples, *conv)
        return samples

    def frame_geometry(self, layer):
        """Returns hop and center: frame i is at sample `center + hop * i`.

        Example
        -------
        >>> from speechbrain_sim.encoders.greedy import GreedyEncoder
        >>> encoder = GreedyEncoder(channels=4, context_channels=2)
        >>> [encoder.frame_geometry(name) for name in encoder.layer_names]
        [(20, 10.0), (80, -20.0), (160, 20.0), (160, 20.0)]
        """
        return conv_geometry(self.convolutions(layer))

    def layers_up_to(self, layers=None):
        """Maps each layer up to the highest of `layers` to whether it is one."""
        names = list(self.layer_names)
        layers = names if layers is None else list(layers)
        for layer in layers:
            self.check_layer(layer)
        top = max(names.index(layer) for layer in layers)
        return {name: name in layers for name in names[: top + 1]}


def all_hidden_states(encoder, wavs, wav_lens=None, layers=None):
    """Computes the means of several layers at one frame rate.

    For the arguments see `Encoder.forward`.

    Returns
    -------
    states, lengths : (tuple of torch.Tensor, torch.Tensor)
        In the order of `layers`, (batch, time, channels) at the frames of the
        slowest, zero beyond each utterance; valid frames, (batch,).

    Example
    -------
    >>> from speechbrain_sim.encoders.greedy import GreedyEncoder
    >>> encoder = GreedyEncoder(channels=4, context_channels=2).eval()
    >>> states, lengths = all_hidden_states(encoder, torch.randn(1, 10240))
    >>> [tuple(x.shape) for x in states]
    [(1, 64, 4), (1, 64, 4), (1, 64, 4), (1, 64, 2)]
    """
    layers = encoder.layer_names if layers is None else list(layers)
    latents = encoder(wavs, wav_lens, layers, sample=False)
    geometry = {name: encoder.frame_geometry(name) for name in layers}
    slowest = max(layers, key=lambda name: geometry[name][0])
    lengths, time = latents[slowest].lengths, latents[slowest].mean.shape[1]
    states = []
    for name in layers:
        at = geometry[name], geometry[slowest], time
        states.append(zero_padding(at_frames_of(latents[name], *at), lengths))
    return tuple(states), lengths


def at_frames_of(latent, geometry, slower, time):
    """Averages the means of a layer at the `time` frames of a slower one.

    Frame i becomes the mean of the hop / hop' frames around frame i of the
    slower layer; at the ends of an utterance, its first and last frames are
    repeated. `geometry` and `slower` are the layers' `frame_geometry`.

    Example
    -------
    >>> x = torch.arange(8.0).view(1, 8, 1)
    >>> latent = Latent(x, None, x, torch.tensor([8]))
    >>> at_frames_of(latent, (20, 10.0), (80, 40.0), 2)[0, :, 0]
    tensor([1.5000, 5.5000])
    """
    (hop, center), (slow_hop, slow_center) = geometry, slower
    if geometry == slower:
        return latent.mean
    count = slow_hop // hop
    first = round((slow_center - center) / hop - (count - 1) / 2)
    at = first + torch.arange(time * count, device=latent.mean.device)
    last = to_device(latent.lengths, at.device)[:, None] - 1
    at = at.clamp(min=0).minimum(last)
    rows = torch.arange(len(at), device=at.device)[:, None]
    averaged = latent.mean[rows, at]  # (batch, time * count, channel)
    return averaged.unflatten(1, (time, count)).mean(2)
