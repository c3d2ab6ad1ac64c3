"""Latents as the features of any SpeechBrain recipe, by its yaml alone.

    compute_features: !new:speechbrain_sim.LatentFeatures
        source: user/model
        layers: [module3]

replaces `Fbank`; the recipe's feature size becomes the channels of the layer.
"""

import torch
from torch import nn

from speechbrain_sim.encoders.base import all_hidden_states, zero_padding
from speechbrain_sim.models.load import load_encoder


class LatentFeatures(nn.Module):
    """Latents of a trained encoder, in place of a spectrogram.

    One layer gives the means of its posteriors. Several are brought to the
    frame rate of the slowest, see `at_frames_of`, normalised over their channels
    as in layer norm (layers differ in scale by orders of magnitude), and added
    with weights softmax(w), which are learned.

    The model is loaded without running any code of its maker.

    Arguments
    ---------
    source : str or Path
        A run or model folder, or `user/model` on the Hub, see
        `speechbrain_sim.models.load.load_encoder`.
    layers : list of str
        The layers, of equal width.
    frozen : bool
        The encoder stays in eval mode and gets no gradient, even inside
        `modules.train()`. Otherwise it is fine-tuned: put this module among
        the recoverables of the checkpointer. Means either way. What the
        features do not depend on is never trained, see `Encoder.freeze_unused`.
    revision : str, optional
        On the Hub: branch, tag or commit.

    Example
    -------
    >>> from speechbrain_sim.models.format import example_folder
    >>> folder = example_folder(getfixture("tmp_path"))
    >>> compute_features = LatentFeatures(folder, ["module1", "module3"])
    >>> compute_features(torch.randn(2, 10240), torch.tensor([1.0, 0.5])).shape
    torch.Size([2, 64, 4])
    """

    def __init__(self, source, layers, frozen=True, revision=None):
        super().__init__()
        encoder, _ = load_encoder(source, revision=revision)
        self.encoder = encoder.requires_grad_(not frozen)
        self.layers, self.frozen = list(layers), frozen
        widths = {name: self.encoder.channels_of(name) for name in self.layers}
        if len(set(widths.values())) != 1:
            raise ValueError(f"Layers of unequal width are not added: {widths}")
        self.encoder.freeze_unused(self.layers)
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

        `wavs` are (batch, samples) at 16 kHz; without relative `wav_lens`,
        (batch,), padding counts as signal. Returns (batch, time, channels),
        zero beyond each utterance.
        """
        wanted = wav_lens, self.layers
        with torch.set_grad_enabled(
            torch.is_grad_enabled() and not self.frozen
        ):
            states, lengths = all_hidden_states(self.encoder, wavs, *wanted)
        if self.weights is None:
            return states[0]
        normal = [nn.functional.layer_norm(x, x.shape[-1:]) for x in states]
        weights = self.weights.softmax(0)
        total = sum(w * x for w, x in zip(weights, normal, strict=True))
        return zero_padding(total, lengths)
