"""Hidden states of pretrained transformers, under the interface of an encoder.

wav2vec 2.0, HuBERT and WavLM, through SpeechBrain's interface to Hugging Face:
probes, decoders and measures read their layers as they read our own. Needs
`pip install 'speechbrain-sim[huggingface]'`.
"""

import json
from importlib import import_module
from pathlib import Path

import torch
from torch import nn

from speechbrain_sim.encoders.base import Encoder, Latent
from speechbrain_sim.files import sha256

CONFIG = "config.json"
#: in the order of preference
WEIGHTS = ("model.safetensors", "pytorch_model.bin")
PREPROCESSOR = ("preprocessor_config.json", "processor_config.json")
#: of config.json -> SpeechBrain's class, in the module of that name
MODEL_TYPES = {"wav2vec2": "Wav2Vec2", "hubert": "HuBERT", "wavlm": "WavLM"}


class HiddenStates(Encoder):
    """The hidden states of a transformer, one layer each.

    `hidden0` is the input of the transformer's first layer, `hidden1`, ... are
    the outputs of its layers; the last is the model's output, after the final
    norm if there is one. Deterministic and always in eval mode.

    Each utterance is encoded alone and without its padding: in one piece its
    frames would depend on the padding, over which the waveform and the group
    norm of the "base" models are normalised.

    Arguments
    ---------
    encoder : speechbrain.integrations.huggingface.wav2vec2.Wav2Vec2
        Or HuBERT, or WavLM, with `output_all_hiddens=True` and without
        `output_norm`.
    """

    def __init__(self, encoder):
        super().__init__()
        if not encoder.output_all_hiddens or encoder.output_norm:
            raise ValueError(
                "Pass output_all_hiddens=True and output_norm=False to it."
            )
        self.encoder = encoder
        #: Hugging Face's, of the transformer
        self.config = encoder.model.config
        self.eval()

    def train(self, mode=True):
        """Stays in eval mode: dropout would make the states random."""
        return super().train(False)

    @property
    def layer_names(self):
        """Names of the layers, bottom first."""
        return [f"hidden{i}" for i in range(self.config.num_hidden_layers + 1)]

    @property
    def conv_channels(self):
        """Channels of the convolutions (of the last, if they differ)."""
        return self.config.conv_dim[-1]

    def channels_of(self, layer):
        """See `Encoder`."""
        self.check_layer(layer)
        return self.config.hidden_size

    def convolutions(self, layer):
        """See `Encoder`; all layers have those below the transformer."""
        self.check_layer(layer)
        kernels, strides = self.config.conv_kernel, self.config.conv_stride
        return [(k, s, 0) for k, s in zip(kernels, strides, strict=True)]

    def encode(self, wavs, lengths, layers, sample, generator):
        """See `Encoder`; all layers are computed."""
        frames = self.output_lengths(lengths, layers[0])
        time = self.output_lengths(wavs.shape[1], layers[0])
        rows = []
        for wav, end in zip(wavs, lengths.tolist(), strict=True):
            row = self._encode(wav[:end])  # (layers, time, channel)
            rows.append(nn.functional.pad(row, (0, 0, 0, time - row.shape[1])))
        hidden = torch.stack(rows, dim=1)  # (layers, batch, time, channel)
        return {
            name: Latent(x, None, x, frames, False)
            for name, x in zip(self.layer_names, hidden, strict=True)
            if name in layers
        }

    def _encode(self, wav):
        """One utterance, (samples,) -> (layers, time, channel)."""
        outputs = []
        # whether the last hidden state has passed the final norm depends on
        # the version of transformers; the transformer's output always has
        hook = self.encoder.model.encoder.register_forward_hook(
            lambda module, args, output: outputs.append(output[0])
        )
        try:
            hidden = self.encoder(wav[None])
        finally:
            hook.remove()
        return torch.cat([hidden[:-1], outputs[0][None]])[:, 0]


def model_type(folder):
    """Returns the `model_type` of a folder's config.json; None without one."""
    path = Path(folder) / CONFIG
    if not path.exists():
        return None
    return _read_json(path).get("model_type")


def load_hidden_states(folder):
    """Loads a pretrained transformer from a folder; the network is not used.

    Arguments
    ---------
    folder : str or Path
        As `save_pretrained` of transformers writes it, or the Hub holds it:
        config.json, weights and preprocessor_config.json.

    Returns
    -------
    encoder, description : (HiddenStates, dict)
        Frozen; its metadata.

    Raises
    ------
    ImportError, FileNotFoundError, ValueError
        If transformers or a file is missing, it is another kind of model, or
        the weights do not fit.

    Example
    -------
    >>> from transformers import HubertConfig, HubertModel
    >>> from transformers import Wav2Vec2FeatureExtractor
    >>> folder = getfixture("tmp_path")
    >>> config = HubertConfig(
    ...     hidden_size=8, num_hidden_layers=2, num_attention_heads=2,
    ...     intermediate_size=8, conv_dim=[8] * 7, num_conv_pos_embeddings=4,
    ...     num_conv_pos_embedding_groups=2, vocab_size=4)
    >>> HubertModel(config).save_pretrained(folder)
    >>> saved = Wav2Vec2FeatureExtractor().save_pretrained(folder)
    >>> encoder, description = load_hidden_states(folder)
    >>> encoder(torch.randn(2, 10240))["hidden2"].mean.shape
    torch.Size([2, 31, 8])
    """
    folder = Path(folder)
    config = _find(folder, [CONFIG])
    weights = _find(folder, WEIGHTS)
    _find(folder, PREPROCESSOR)
    kind = model_type(folder)
    if kind not in MODEL_TYPES:
        raise ValueError(
            f"{config} has the model_type '{kind}'; it must be one of "
            f"{', '.join(MODEL_TYPES)}."
        )
    try:
        module = import_module(f"speechbrain.integrations.huggingface.{kind}")
    except ImportError as error:
        raise ImportError(
            f"{folder} needs transformers: pip install "
            f"'speechbrain-sim[huggingface]'."
        ) from error
    make = getattr(module, MODEL_TYPES[kind])
    _check_weights(folder)
    # SpeechBrain's own freezing would also stop gradients of the waveform
    encoder = make(str(folder), str(folder), output_all_hiddens=True).float()
    return HiddenStates(encoder).requires_grad_(False), {
        "model": kind,
        "sha256": sha256(weights),
        "arguments": _read_json(config),
    }


def _find(folder, names):
    """Returns the first of some files that exists."""
    for name in names:
        if (folder / name).exists():
            return folder / name
    raise FileNotFoundError(
        f"{folder} holds no {' or '.join(names)}: give a folder with config, "
        f"weights and preprocessor config of a Hugging Face model."
    )


def _read_json(path):
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not json: {error}") from error


def _check_weights(folder):
    """Refuses weights that are damaged, or leave a part of the model random."""
    from transformers import AutoModel

    try:
        _, info = AutoModel.from_pretrained(folder, output_loading_info=True)
    except Exception as error:  # of whatever kind the library raises
        raise ValueError(
            f"The weights in {folder} cannot be loaded: {error}"
        ) from error
    missing = set(info["missing_keys"]) - {"masked_spec_embed"}  # training's
    if missing:
        raise ValueError(
            f"The weights in {folder} lack {len(missing)} parameters of the "
            f"model, among them {min(missing)}."
        )
