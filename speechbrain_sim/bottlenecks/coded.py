"""Codes of bottlenecks as layers of their encoder, and codes that are changed."""

import math
from numbers import Integral, Real
from typing import NamedTuple

import torch
from torch import nn

from speechbrain_sim.encoders.base import Encoder, masked_mean
from speechbrain_sim.encoders.mixed import MixedEncoder

#: follows the name of codes in that of what they decode to
DECODED = ".decoded"
#: of the metadata of a bottleneck, `pooling`, if trained on means of recordings
MEAN = "mean"
#: of the same: the layers that lie side by side in the layer `mix`
MIXED = "mixed"
#: of the same: unit -> what its feature is called
NAMES = "names"
#: frames that are coded at once
BLOCK = 4096
#: how `change_codes` changes a feature
CHANGES = {
    "set": lambda old, value: torch.full_like(old, value),
    "scale": lambda old, value: old * value,
    "add": lambda old, value: old + value,
}


class CodedEncoder(Encoder):
    """An encoder, and the codes of its layers as further layers.

    Each coded layer is followed by, for instance, `module3.sae`, the codes of
    its means, and `module3.sae.decoded`, what these decode to. `sample` holds
    the codes of samples, where any are drawn. Bottlenecks stay in eval mode.
    Codes of an information bottleneck (`module3.vib.text`) decode to nothing.

    One that was trained on means over recordings (`pooling`: "mean") codes the
    mean of a recording: all its frames hold this one code, and nothing streams.
    One of several layers (`mixed`: their names) codes a layer `mix`, see
    `MixedEncoder`, which is there, too.

    Arguments
    ---------
    encoder : Encoder
        Whose layers are coded.
    bottlenecks : dict of str to Bottleneck
        By the name of the codes: that of a layer, a dot, and another.
    entries : dict of str to dict, optional
        Metadata of bottlenecks, as in config.json.

    Raises
    ------
    ValueError
        If a name has no layer, or a bottleneck is of other channels.

    Example
    -------
    >>> from speechbrain_sim.bottlenecks.sae import SparseAutoencoder
    >>> from speechbrain_sim.encoders.logmel import LogMel
    >>> sae = SparseAutoencoder(80, 320, k=8)
    >>> encoder = CodedEncoder(LogMel(), {"logmel.sae": sae})
    >>> latents = encoder(torch.randn(2, 1600))
    >>> {name: tuple(z.mean.shape) for name, z in latents.items()}
    {'logmel': (2, 11, 80), 'logmel.sae': (2, 11, 320),
     'logmel.sae.decoded': (2, 11, 80)}
    """

    def __init__(self, encoder, bottlenecks, entries=None):
        super().__init__()
        self.entries = dict(entries or {})
        mixed = [e[MIXED] for e in self.entries.values() if MIXED in e]
        self.encoder = MixedEncoder(encoder, mixed[0]) if mixed else encoder
        encoder = self.encoder
        # a ModuleDict takes no name with a dot
        self.coders = nn.ModuleList(bottlenecks.values())
        self._coder, self._origin = list(bottlenecks), {}
        for layer in encoder.layer_names:
            self._origin[layer] = layer
            for name, bottleneck in bottlenecks.items():
                if name.partition(".")[0] == layer:
                    names = [name, name + DECODED][: 1 + bottleneck.decodes]
                    self._origin |= dict.fromkeys(names, layer)
        for name, bottleneck in self.bottlenecks.items():
            layer = self._origin.get(name)
            if layer in (name, None) or name.endswith(DECODED):
                raise ValueError(
                    f"A bottleneck is named '{name}': it must be a layer, a dot "
                    f"and a name, of one of {', '.join(encoder.layer_names)}."
                )
            there, here = bottleneck.input_channels, encoder.channels_of(layer)
            if there != here:
                raise ValueError(
                    f"{name} is of {there} channels, and {layer} has {here}: it "
                    f"belongs to another encoder."
                )
        self.train(self.training)

    def train(self, mode=True):
        """Sets the mode; bottlenecks stay in eval mode."""
        super().train(mode)
        self.coders.eval()
        return self

    @property
    def plain(self):
        """The encoder, without codes and mixture."""
        mixed = isinstance(self.encoder, MixedEncoder)
        return self.encoder.encoder if mixed else self.encoder

    @property
    def bottlenecks(self):
        """The bottlenecks by the names of their codes."""
        return dict(zip(self._coder, self.coders, strict=True))

    @property
    def streams(self):
        """Whether `stream` works."""
        pooled = any(map(self.pools, self._coder))
        return self.encoder.streams and not pooled

    @property
    def layer_names(self):
        """Names of the layers, bottom first; codes follow what they code."""
        return list(self._origin)

    @property
    def conv_channels(self):
        """See `Encoder`."""
        return self.encoder.conv_channels

    def origin(self, layer):
        """See `Encoder`."""
        self.check_layer(layer)
        return self._origin[layer]

    def bottleneck_of(self, layer):
        """See `Encoder`."""
        self.check_layer(layer)
        return self.bottlenecks.get(layer)

    def pools(self, layer):
        """See `Encoder`."""
        self.check_layer(layer)
        entry = self.entries.get(layer.removesuffix(DECODED), {})
        return entry.get("pooling") == MEAN

    def names_of(self, layer):
        """Returns what features of codes are called: dict of int to str."""
        names = self.entries.get(layer, {}).get(NAMES, {})
        units = range(self.channels_of(layer))
        return {
            unit: str(names[str(unit)]) for unit in units if str(unit) in names
        }

    def channels_of(self, layer):
        """See `Encoder`."""
        bottleneck = self.bottleneck_of(layer)
        if bottleneck is None:
            return self.encoder.channels_of(self.origin(layer))
        return bottleneck.num_units

    def convolutions(self, layer):
        """See `Encoder`."""
        return self.encoder.convolutions(self.origin(layer))

    def output_lengths(self, samples, layer):
        """See `Encoder`."""
        return self.encoder.output_lengths(samples, self.origin(layer))

    def frame_geometry(self, layer):
        """See `Encoder`."""
        return self.encoder.frame_geometry(self.origin(layer))

    def has_posterior(self, layer):
        """See `Encoder`; codes are of the means of posteriors."""
        origin = self.origin(layer)
        return origin == layer and self.encoder.has_posterior(layer)

    def predicts_input(self, layer):
        """See `Encoder`."""
        return self.encoder.predicts_input(self.origin(layer))

    def freeze_unused(self, layers):
        """See `Encoder`; bottlenecks are never trained with their encoder."""
        self.encoder.freeze_unused(self._origins(layers))
        self.coders.requires_grad_(False)

    def encode(self, wavs, lengths, layers, sample, generator):
        """See `Encoder`."""
        options = self._origins(layers), sample, generator
        return self._code(self.encoder.encode(wavs, lengths, *options), layers)

    @torch.no_grad()
    def stream(self, chunks, layers=None, sample=None, generator=None):
        """See `GreedyEncoder.stream`; a ValueError unless `streams`."""
        if not self.streams:
            super().stream(chunks)
        names = [n for n, wanted in self.layers_up_to(layers).items() if wanted]
        options = self._origins(names), sample, generator
        for latents in self.encoder.stream(chunks, *options):
            yield self._code(latents, names)

    def _origins(self, layers):
        """Lists what layers code, bottom first."""
        origins = {self.origin(layer) for layer in layers}
        return [name for name in self.encoder.layer_names if name in origins]

    def codes_of(self, name, latent):
        """Returns the codes of a layer's Latent, which is whole: a Latent."""
        bottleneck = self.bottlenecks[name]

        def encode(x):
            if not self.pools(name):
                return bottleneck.encode(x)
            codes = bottleneck.encode(masked_mean(x, latent.lengths))
            return codes[:, None].expand(-1, x.shape[1], -1)

        return _mapped(latent, encode)

    def _code(self, latents, layers):
        """Adds codes, and what they decode to: dict of str to Latent."""
        latents = dict(latents)
        for name, bottleneck in self.bottlenecks.items():
            if not {name, name + DECODED}.isdisjoint(layers):
                latent = latents[self._origin[name]]
                latents[name] = self.codes_of(name, latent)
            if name + DECODED in layers:
                decoded = _mapped(latents[name], bottleneck.decode)
                latents[name + DECODED] = decoded
        return {name: latents[name] for name in layers}


def _mapped(latent, function):
    """Changes mean and sample of a Latent, which has no posterior any more."""
    mean = sample = function(latent.mean)
    if latent.sample is not latent.mean:
        sample = function(latent.sample)
    return latent._replace(mean=mean, log_var=None, sample=sample)


class CodeDecoder(nn.Module):
    """Codes of a layer -> waveform, by the decoder of the layer.

    Arguments
    ---------
    decoder, bottleneck : Decoder, Bottleneck
        See `speechbrain_sim.decoders.Decoder`, whose `forward` this one has.
    """

    def __init__(self, decoder, bottleneck):
        super().__init__()
        self.decoder, self.bottleneck = decoder, bottleneck
        self.shapes = decoder.shapes

    def forward(self, codes, *args, **options):
        """See `Decoder`; codes are (batch, time, units)."""
        return self.decoder(self.bottleneck.decode(codes), *args, **options)


def decoder_of(encoder, layer, decoder):
    """Returns the decoder of a layer, from the decoder of its `origin`."""
    bottleneck = encoder.bottleneck_of(layer)
    return decoder if bottleneck is None else CodeDecoder(decoder, bottleneck)


@torch.no_grad()
def code_blocks(bottleneck, x, rows=None):
    """Codes frames, `BLOCK` at a time.

    Arguments
    ---------
    bottleneck, x : Bottleneck, Rows or torch.Tensor
        Frames, (frames, channels).
    rows : torch.Tensor, optional
        Which of them, (frames,), int64; all by default.

    Yields
    ------
    torch.Tensor
        Codes, (block, units), on the bottleneck's device.
    """
    device = next(bottleneck.buffers()).device
    rows = torch.arange(len(x)) if rows is None else rows
    for block in rows.split(BLOCK):
        yield bottleneck.encode(x[block].to(device))


def change_codes(codes, features, frames=None, how="set"):
    """Changes features of some frames, and returns all codes.

    Arguments
    ---------
    codes : torch.Tensor
        (..., time, units).
    features : dict of int to float
        What each feature is set to, multiplied by ("scale"), or what is added.
    frames : slice, optional
        All by default.
    how : str
        "set", "scale" or "add".

    Raises
    ------
    ValueError
        If there is no such feature, or way, or a value is not finite.

    Example
    -------
    >>> codes = torch.tensor([[0.0, 2.0], [1.0, 0.0]])
    >>> change_codes(codes, {1: 0.5}, slice(0, 1), "scale").tolist()
    [[0.0, 1.0], [1.0, 0.0]]
    """
    if how not in CHANGES:
        raise ValueError(f"how is {how!r}: give one of {', '.join(CHANGES)}.")
    codes, units = codes.clone(), codes.shape[-1]
    frames = slice(None) if frames is None else frames
    for feature, value in features.items():
        if not (isinstance(feature, Integral) and 0 <= feature < units):
            raise ValueError(
                f"There is no feature {feature!r}: they are 0 to {units - 1}."
            )
        if not (isinstance(value, Real) and math.isfinite(value)):
            raise ValueError(
                f"Feature {feature} is given {value!r}: no number."
            )
        old = codes[..., frames, feature]
        codes[..., frames, feature] = CHANGES[how](old, value)
    return codes


def move(bottleneck, x, codes, features, frames=None, how="set"):
    """Moves frames as a change of their codes moves what these decode to.

    x + decode(changed) - decode(codes): what the bottleneck loses of x is not
    lost.

    Arguments
    ---------
    bottleneck, x, codes : Bottleneck, torch.Tensor, torch.Tensor
        Frames, (..., time, channels), and their codes, (..., time, units).
    features, frames, how :
        See `change_codes`.

    Returns
    -------
    moved, changed : (torch.Tensor, torch.Tensor)
        Frames and codes.
    """
    changed = change_codes(codes, features, frames, how)
    moved = bottleneck.decode(changed) - bottleneck.decode(codes)
    still = (changed == codes).all(-1, keepdim=True)  # but for rounding
    return x + moved.masked_fill(still, 0), changed


class Drawn(NamedTuple):
    """Of the codes of draws, how often each fires, their mean and deviation."""

    fires: torch.Tensor
    level: torch.Tensor
    deviation: torch.Tensor


@torch.no_grad()
def draw_codes(bottleneck, mean, log_var, draws=32, generator=None):
    """Estimates how uncertain codes are where a layer is a Gaussian posterior.

    Of codes of draws from N(mean, exp(log_var)), as the encoder itself draws:
    the share that is not 0, mean, and standard deviation of each activation.

    Arguments
    ---------
    bottleneck : Bottleneck
        Trained on means.
    mean, log_var : torch.Tensor
        (..., channels).
    draws, generator : int, torch.Generator
        How many, two or more; source of the noise.

    Returns
    -------
    Drawn
        (..., units) each.
    """
    if draws < 2:
        raise ValueError(f"{draws} draws have no deviation: take two or more.")
    std = torch.exp(0.5 * log_var)
    fires, center, squares = 0.0, 0.0, 0.0  # Welford's
    for count in range(1, draws + 1):
        noise = torch.empty_like(mean).normal_(generator=generator)
        codes = bottleneck.encode(torch.addcmul(mean, std, noise))
        gap = codes - center
        center = center + gap / count
        squares = squares + gap * (codes - center)
        fires = fires + (codes != 0)
    return Drawn(fires / draws, center, (squares / (draws - 1)).sqrt())
