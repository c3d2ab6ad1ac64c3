"""Latents as the features of any SpeechBrain recipe, by its yaml alone.

    compute_features: !new:speechbrain_sim.LatentFeatures
        source: user/model
        layers: [module3]

replaces `Fbank`; the recipe's feature size becomes the channels of the layer.
What learns (several layers, or `frozen: False`) has to be listed under
`modules`, and in the checkpointer's recoverables.
"""

import contextlib
from math import isfinite

import torch
from speechbrain.utils.logger import get_logger
from torch import nn

from speechbrain_sim.encoders.base import all_hidden_states, zero_padding
from speechbrain_sim.extras import not_compiled
from speechbrain_sim.files import text_hash
from speechbrain_sim.models.load import load_encoder

logger = get_logger(__name__)
#: batches after which what learns should have had a gradient, and have changed
PATIENCE, LONG_PATIENCE = 10, 100
#: begins the names of the encoder's weights
ENCODER = "encoder."


class LatentFeatures(nn.Module):
    """Latents of a trained encoder, in place of a spectrogram.

    One layer gives the means of its posteriors. Several are brought to the
    frame rate of the slowest, see `at_frames_of`, normalised over their channels
    as in layer norm (layers differ in scale by orders of magnitude), and added
    with weights softmax(w), which are learned, or with fixed weights.

    The model is loaded without running any code of its maker. A frozen encoder
    is not part of the `state_dict`, and so of no checkpoint. A warning is
    logged, once, if what should learn does not in the first batches.

    Arguments
    ---------
    source : str or Path
        A run or model folder, or `user/model` on the Hub, see
        `speechbrain_sim.models.load.load_encoder`.
    layers : str or list of str
        The layer, or layers of equal width.
    frozen : bool
        The encoder stays in eval mode and gets no gradient, even inside
        `modules.train()`. Otherwise it is fine-tuned. Means either way. What
        the features do not depend on is never trained, see
        `Encoder.freeze_unused`.
    revision : str, optional
        On the Hub: branch, tag or commit.
    layer_weights : list of float, optional
        Fixed weights of the layers, used as they are. With them, or a single
        layer, frozen features have no gradient, and can be cached.

    Example
    -------
    >>> from speechbrain_sim.models.format import example_folder
    >>> folder = example_folder(getfixture("tmp_path"))
    >>> compute_features = LatentFeatures(folder, ["module1", "module3"])
    >>> compute_features(torch.randn(2, 10240), torch.tensor([1.0, 0.5])).shape
    torch.Size([2, 64, 4])
    """

    def __init__(
        self, source, layers, frozen=True, revision=None, layer_weights=None
    ):
        super().__init__()
        encoder, description = load_encoder(source, revision=revision)
        self.encoder = encoder.requires_grad_(not frozen)
        self.layers = [layers] if isinstance(layers, str) else list(layers)
        self.frozen, self.sha256 = frozen, description.get("sha256", "")
        widths = {name: self.encoder.channels_of(name) for name in self.layers}
        if len(set(widths.values())) != 1:
            raise ValueError(f"layers: one, or several as wide; not {widths}.")
        self.encoder.freeze_unused(self.layers)
        #: channels of the features
        self.out_channels = widths[self.layers[0]]
        #: w, one per layer, if they are learned
        self.weights, self.layer_weights = None, []
        if layer_weights is not None:
            self.layer_weights = self._fixed(layer_weights)
        if len(self.layers) > 1 and not self.layer_weights:
            self.weights = nn.Parameter(torch.zeros(len(self.layers)))
        #: batches so far; whether one had a gradient, and a Brain has these
        self.batches, self.has_gradient, self.is_placed = 0, False, False
        self.register_state_dict_post_hook(_without_encoder)
        self.register_load_state_dict_pre_hook(_with_encoder)

    def _fixed(self, weights):
        """Weights as a list of float; a ValueError if they do not fit."""
        with contextlib.suppress(TypeError, ValueError):
            fixed = [float(weight) for weight in weights]
            if len(fixed) in (0, len(self.layers)) and all(
                map(isfinite, fixed)
            ):
                return fixed
        raise ValueError(
            f"layer_weights are {weights}: give one for each of "
            f"{', '.join(self.layers)}."
        )

    def train(self, mode=True):
        """Sets the mode; a frozen encoder stays in eval mode."""
        super().train(mode)
        self.is_placed = True
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
        features = states[0]
        if len(states) > 1:
            normal = [nn.functional.layer_norm(x, x.shape[-1:]) for x in states]
            weights = self.layer_weights or self.weights.softmax(0)
            total = sum(w * x for w, x in zip(weights, normal, strict=True))
            features = zero_padding(total, lengths)
        if self.training and features.requires_grad:
            self._watch(features)
        return features

    @not_compiled
    def _watch(self, features):
        """Warns if what learns got no gradient so far, or was not changed."""
        learns = [x for x in self.named_parameters() if x[1].requires_grad]
        functional = torch._C._are_functorch_transforms_active()
        if not learns or functional or self.batches > LONG_PATIENCE:
            return
        (name, weight), *_ = learns
        if not self.batches:
            self._first = weight.detach().clone()
        # an optimizer may wait on purpose, but none has what no Brain has
        waits = self.has_gradient and self.is_placed
        due = self.batches == (LONG_PATIENCE if waits else PATIENCE)
        if due and torch.equal(self._first.to(weight), weight):
            why = (
                "no optimizer changed"
                if self.has_gradient
                else "no gradient for"
            )
            logger.warning(
                f"The latent features do not learn: after {self.batches} "
                f"batches, {why} {name}. List them under `modules` of the yaml, "
                f"in what the optimizer is given, and among the recoverables; "
                f"do not detach them. Else use layer_weights, or one layer."
            )
        self.batches += 1
        features.register_hook(self._note_gradient)

    def _note_gradient(self, _):
        """Notes that the features got a gradient."""
        self.has_gradient = True

    def get_extra_state(self):
        """Returns the encoder's identity, as what SpeechBrain can average."""
        number = int(text_hash(self.sha256)[:12], 16)
        return torch.tensor(number, dtype=torch.float64)

    def set_extra_state(self, state):
        """Raises a ValueError if the weights are of another frozen encoder."""
        if self.frozen and state != self.get_extra_state():
            raise ValueError(
                f"The checkpoint is of features of another encoder, not of "
                f"{self.sha256}: give the source that it was trained with, or "
                f"another output folder."
            )


def _without_encoder(features, state, prefix, _):
    """Takes a frozen encoder out of a state_dict."""
    for name in list(state) if features.frozen else ():
        if name.startswith(prefix + ENCODER):
            del state[name]


def _with_encoder(features, state, prefix, *_):
    """Adds what a state_dict lacks, if it is not due to be there."""
    state.setdefault(f"{prefix}_extra_state", features.get_extra_state())
    if features.frozen:
        own = features.encoder.state_dict(prefix=prefix + ENCODER)
        state.update({n: x for n, x in own.items() if n not in state})
