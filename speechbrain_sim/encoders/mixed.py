"""Several layers of an encoder side by side, as one more layer."""

import torch

from speechbrain_sim.encoders.base import Encoder, at_frames_of

#: the layer's name
MIX = "mix"


class MixedEncoder(Encoder):
    """An encoder with a layer `mix`: several of its layers, side by side.

    They are averaged at the frames of the slowest of them, see `at_frames_of`.

    Arguments
    ---------
    encoder : Encoder
        Frozen.
    mixed : list of str
        Layers of equal width.

    Raises
    ------
    ValueError
        If one does not exist, or they are of several widths.

    Example
    -------
    >>> from speechbrain_sim.encoders.greedy import GreedyEncoder
    >>> encoder = GreedyEncoder(channels=4, context_channels=2)
    >>> mixed = MixedEncoder(encoder, ["module1", "module3"]).eval()
    >>> tuple(mixed(torch.randn(1, 10240), layers=["mix"])["mix"].mean.shape)
    (1, 64, 8)
    """

    def __init__(self, encoder, mixed):
        super().__init__()
        widths = {layer: encoder.channels_of(layer) for layer in mixed}
        if len({*widths.values()}) > 1:
            raise ValueError(
                f"Layers of several widths cannot be mixed ({widths}): give "
                f"--layers of one width, or one layer."
            )
        self.encoder, self.mixed = encoder, list(mixed)
        self.slowest = max(mixed, key=lambda n: encoder.frame_geometry(n)[0])

    def _of(self, layer):
        """Returns the layer of the encoder whose frames a layer has."""
        return self.slowest if layer == MIX else layer

    @property
    def layer_names(self):
        """Names of the layers, bottom first."""
        return [*self.encoder.layer_names, MIX]

    @property
    def conv_channels(self):
        """See `Encoder`."""
        return self.encoder.conv_channels

    def channels_of(self, layer):
        """See `Encoder`."""
        width = self.encoder.channels_of(self._of(layer))
        return width * len(self.mixed) if layer == MIX else width

    def convolutions(self, layer):
        """See `Encoder`."""
        return self.encoder.convolutions(self._of(layer))

    def output_lengths(self, samples, layer):
        """See `Encoder`."""
        return self.encoder.output_lengths(samples, self._of(layer))

    def frame_geometry(self, layer):
        """See `Encoder`."""
        return self.encoder.frame_geometry(self._of(layer))

    def has_posterior(self, layer):
        """See `Encoder`; the mixture has none."""
        return layer != MIX and self.encoder.has_posterior(layer)

    def predicts_input(self, layer):
        """See `Encoder`."""
        return self.encoder.predicts_input(self._of(layer))

    def freeze_unused(self, layers):
        """See `Encoder`."""
        self.encoder.freeze_unused(self._below(layers))

    def _below(self, layers):
        """Lists the layers of the encoder that some layers need."""
        needed = {*layers, *(self.mixed if MIX in layers else ())}
        return [n for n in self.encoder.layer_names if n in needed]

    def encode(self, wavs, lengths, layers, sample, generator):
        """See `Encoder`."""
        options = self._below(layers), sample, generator
        latents = dict(self.encoder.encode(wavs, lengths, *options))
        if MIX in layers:
            slowest = latents[self.slowest]
            parts = [self._at(latents[n], n, slowest) for n in self.mixed]
            mean, sample = (torch.cat(x, -1) for x in zip(*parts, strict=True))
            latents[MIX] = slowest._replace(
                mean=mean, log_var=None, sample=sample
            )
        return {name: latents[name] for name in layers}

    def _at(self, latent, layer, slowest):
        """Returns mean and sample of a layer at the frames of the slowest."""
        at = self.frame_geometry(layer), self.frame_geometry(MIX)
        both = latent, latent._replace(mean=latent.sample)
        return [at_frames_of(x, *at, slowest.mean.shape[1]) for x in both]
