"""Latents as the features of any SpeechBrain recipe, by its yaml alone.

    compute_features: !new:speechbrain_sim.lobes.LatentFeatures
        source: user/model
        layers: [module3]

replaces `Fbank`; the recipe's feature size becomes the channels of the layer.
"""

import torch
from torch import nn

from speechbrain_sim.checkpoints import ENCODER
from speechbrain_sim.encoders import zero_padding
from speechbrain_sim.model_folder import load_parts
from speechbrain_sim.sources import open_source


class LatentFeatures(nn.Module):
    """What a trained encoder says of waveforms, in place of a spectrogram.

    One layer gives the means of its posteriors. Several are brought to the
    frame rate of the slowest, see `at_frames_of`, normalised over their channels
    as in layer norm (layers differ in scale by orders of magnitude), and added
    with weights softmax(w), which are learned.

    The model is loaded without running any code of its maker.

    Arguments
    ---------
    source : str or Path
        A model folder, or `user/model` on the Hub, see
        `speechbrain_sim.sources.open_source`.
    layers : list of str
        The layers, of equal width.
    frozen : bool
        The encoder stays in eval mode and gets no gradient, even inside
        `modules.train()`. Otherwise it is fine-tuned: put this module among
        the recoverables of the checkpointer. Means either way. What the
        features do not depend on is never trained, see `freeze_unused`.
    revision : str, optional
        On the Hub: branch, tag or commit.

    Example
    -------
    >>> from speechbrain_sim.model_folder import example_folder
    >>> folder = example_folder(getfixture("tmp_path"))
    >>> compute_features = LatentFeatures(folder, ["module1", "module3"])
    >>> compute_features(torch.randn(2, 10240), torch.tensor([1.0, 0.5])).shape
    torch.Size([2, 64, 4])
    """

    def __init__(self, source, layers, frozen=True, revision=None):
        super().__init__()
        parts, _ = load_parts(open_source(source, revision=revision), [ENCODER])
        self.encoder = parts[ENCODER].requires_grad_(not frozen)
        self.layers, self.frozen = list(layers), frozen
        widths = {name: self.encoder.channels_of(name) for name in self.layers}
        if len(set(widths.values())) != 1:
            raise ValueError(
                f"Only layers of equal width can be added; these have {widths}."
            )
        freeze_unused(self.encoder, self.layers)
        #: channels of the features
        self.out_channels = widths[self.layers[0]]
        #: w, one per layer; a single layer has none
        self.weights = None
        if len(self.layers) > 1:
            self.weights = nn.Parameter(torch.zeros(len(self.layers)))

    def train(self, mode=True):
        """Sets the mode; a frozen encoder stays in eval mode."""
        super().train(mode)
        if self.frozen:
            self.encoder.eval()
        return self

    def forward(self, wavs, wav_lens=None):
        """Computes features.

        Arguments
        ---------
        wavs : torch.Tensor
            (batch, samples) at 16 kHz.
        wav_lens : torch.Tensor, optional
            Relative lengths, (batch,); without them, padding counts as signal.

        Returns
        -------
        torch.Tensor
            (batch, time, channels), zero beyond each utterance.
        """
        with torch.set_grad_enabled(
            torch.is_grad_enabled() and not self.frozen
        ):
            states, lengths = all_hidden_states(
                self.encoder, wavs, wav_lens, self.layers
            )
        if self.weights is None:
            return states[0]
        total = sum(
            weight * nn.functional.layer_norm(x, x.shape[-1:])
            for weight, x in zip(self.weights.softmax(0), states, strict=True)
        )
        return zero_padding(total, lengths)


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
    >>> from speechbrain_sim.encoders import GreedyEncoder
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


def all_hidden_states(encoder, wavs, wav_lens=None, layers=None):
    """Computes the means of several layers at one frame rate.

    Like `hidden_states` of Hugging Face's encoders, a tuple with one tensor per
    layer; here the layers may differ in width.

    Arguments
    ---------
    encoder : GreedyEncoder
        The encoder.
    wavs : torch.Tensor
        (batch, samples) at 16 kHz.
    wav_lens : torch.Tensor, optional
        Relative lengths (floating) or samples (integer), (batch,).
    layers : list of str, optional
        The layers, all by default.

    Returns
    -------
    states, lengths : (tuple of torch.Tensor, torch.Tensor)
        Of each layer, in the order asked for, (batch, time, channels), at the
        frames of the slowest and zero beyond each utterance; valid frames,
        (batch,).

    Example
    -------
    >>> from speechbrain_sim.encoders import GreedyEncoder
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
    states = (
        at_frames_of(latents[name], geometry[name], geometry[slowest], time)
        for name in layers
    )
    return tuple(zero_padding(x, lengths) for x in states), lengths


def at_frames_of(latent, geometry, slower, time):
    """Averages the means of a layer at the frames of a slower one.

    Frame i becomes the mean of the hop / hop' frames that are centred around
    frame i of the slower layer; at the ends of an utterance, its first and last
    frames stand for those that are missing.

    Arguments
    ---------
    latent : Latent
        Of the faster layer.
    geometry, slower : (int, float)
        `frame_geometry` of the two layers.
    time : int
        Frames of the slower layer.

    Returns
    -------
    torch.Tensor
        (batch, time, channel).

    Example
    -------
    >>> from speechbrain_sim.encoders import Latent
    >>> x = torch.arange(8.0).view(1, 8, 1)
    >>> latent = Latent(x, None, x, torch.tensor([8]), False)
    >>> at_frames_of(latent, (20, 10.0), (80, 40.0), 2)[0, :, 0]
    tensor([1.5000, 5.5000])
    """
    (hop, center), (slow_hop, slow_center) = geometry, slower
    if geometry == slower:
        return latent.mean
    count = slow_hop // hop
    device = latent.mean.device
    first = (slow_center - center) / hop - (count - 1) / 2
    index = round(first) + count * torch.arange(time, device=device)
    total = 0.0
    for step in range(count):
        at = (index + step).clamp(min=0)[None]
        at = torch.minimum(at, latent.lengths[:, None] - 1)
        rows = torch.arange(len(at), device=device)[:, None]
        total = total + latent.mean[rows, at]
    return total / count
