"""Hidden states of pretrained transformers, under the interface of an encoder.

wav2vec 2.0, HuBERT, WavLM and MERT: probes, decoders and measures read their
layers as they read our own. Needs `pip install 'speechbrain-sim[huggingface]'`.
"""

from pathlib import Path

import torch
from torch import nn
from torchaudio.transforms import Resample

from speechbrain_sim.data.audio import SAMPLE_RATE
from speechbrain_sim.encoders.base import Encoder, Latent
from speechbrain_sim.encoders.block_conv import conv_geometry, conv_lengths
from speechbrain_sim.extras import import_extra
from speechbrain_sim.files import naming, read_json, sha256, text_hash

CONFIG = "config.json"
#: what follows the name of weights that lie in several files
INDEX = ".index.json"
#: in the order of preference
WEIGHTS = ("model.safetensors", "pytorch_model.bin")
WEIGHTS += tuple(name + INDEX for name in WEIGHTS)
PREPROCESSOR = ("preprocessor_config.json", "processor_config.json")
#: MERT is HuBERT for music, with a class of its own beside its weights
MERT = "mert_model"
#: options of MERT that HuBERT lacks, and that change what it computes
MERT_ONLY = ("feature_extractor_cqt", "deepnorm")
#: of config.json
MODEL_TYPES = ("wav2vec2", "hubert", "wavlm", MERT)


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
    model : transformers.Wav2Vec2Model
        Or HubertModel, or WavLMModel.
    normalize_wav : bool
        Whether it reads waveforms of mean 0 and variance 1.
    sample_rate : int
        Of the waveforms it reads: those at 16 kHz are resampled. At another
        rate a frame is not a whole number of samples, and `convolutions` do
        not lead from samples at 16 kHz, so that it has no decoders.
    """

    def __init__(self, model, normalize_wav, sample_rate=SAMPLE_RATE):
        super().__init__()
        self.model, self.normalize_wav = model, normalize_wav
        self.config, self.sample_rate = model.config, sample_rate
        self.resample = Resample(SAMPLE_RATE, sample_rate)
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
        if self.sample_rate != SAMPLE_RATE:
            raise ValueError(
                f"This model reads {self.sample_rate} Hz: there are no "
                f"convolutions, and no decoders, from {SAMPLE_RATE} Hz to it."
            )
        return self._convolutions()

    def _convolutions(self):
        """Lists the convolutions, of waveforms at the model's own rate."""
        kernels, strides = self.config.conv_kernel, self.config.conv_stride
        return [(k, s, 0) for k, s in zip(kernels, strides, strict=True)]

    def output_lengths(self, samples, layer):
        """See `Encoder`."""
        self.check_layer(layer)
        samples = -(-samples * self.sample_rate // SAMPLE_RATE)  # rounded up
        for conv in self._convolutions():
            samples = conv_lengths(samples, *conv)
        return samples

    def frame_geometry(self, layer):
        """See `Encoder`; in samples at 16 kHz."""
        self.check_layer(layer)
        hop, center = conv_geometry(self._convolutions())
        if self.sample_rate == SAMPLE_RATE:
            return hop, center
        ratio = SAMPLE_RATE / self.sample_rate
        return hop * ratio, center * ratio

    def encode(self, wavs, lengths, layers, sample, generator):
        """See `Encoder`; all layers are computed."""
        frames = self.output_lengths(lengths, layers[0])
        time = self.output_lengths(wavs.shape[1], layers[0])
        rows = []
        for wav, end in zip(wavs, lengths.tolist(), strict=True):
            row = self._encode(wav[:end])  # (layers, time, channel)
            rows.append(nn.functional.pad(row, (0, 0, 0, time - row.shape[1])))
        hidden = torch.stack(rows, dim=1)  # (layers, batch, time, channel)
        states = dict(zip(self.layer_names, hidden, strict=True))
        return {n: Latent(states[n], None, states[n], frames) for n in layers}

    def _encode(self, wav):
        """One utterance, (samples,) -> (layers, time, channel)."""
        wav = self.resample(wav)
        if self.normalize_wav:
            wav = nn.functional.layer_norm(wav, wav.shape)
        output = self.model(wav[None], output_hidden_states=True)
        # whether the last hidden state has passed the final norm depends on
        # the version of transformers; the model's output always has
        states = [*output.hidden_states[:-1], output.last_hidden_state]
        return torch.cat(states)


def model_type(folder):
    """Returns the `model_type` of a folder's config.json; None without one."""
    path = Path(folder, CONFIG)
    return read_json(path).get("model_type") if path.exists() else None


def load_hidden_states(folder):
    """Loads a pretrained transformer from a folder; the network is not used.

    No code that lies in the folder is run: MERT's weights are those of a
    HuBERT, and are read as one.

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
        If transformers or a file is missing, it is another kind of model, the
        weights do not fit, or a MERT computes what HuBERT does not.
    """
    folder = Path(folder)
    files = [CONFIG], WEIGHTS, PREPROCESSOR
    config, weights, inputs = (_find(folder, names) for names in files)
    kind = model_type(folder)
    if kind not in MODEL_TYPES:
        raise ValueError(
            f"{config} has the model_type '{kind}', not one of {MODEL_TYPES}."
        )
    description = {"model": kind, "sha256": hash_weights(weights)}
    as_hubert = _as_hubert(config) if kind == MERT else None
    encoder = HiddenStates(*_load(folder, as_hubert)).requires_grad_(False)
    arguments = {**read_json(config), "preprocessor": read_json(inputs)}
    return encoder, {**description, "arguments": arguments}


def hash_weights(path):
    """Returns the sha256 of a file of weights, or of all that an index names.

    A FileNotFoundError names a file of the index that is not there.
    """
    if not path.name.endswith(INDEX):
        return sha256(path)
    with naming(path, "an index of weights"):
        names = sorted(set(read_json(path)["weight_map"].values()))
    for name in names:
        if Path(name).name != name or not (path.parent / name).is_file():
            raise FileNotFoundError(
                f"{path} names {name}: there is no such file."
            )
    lines = "".join(f"{n} {sha256(path.parent / n)}\n" for n in names)
    return text_hash(lines)


def _find(folder, names):
    """Returns the first of some files that exists."""
    for name in names:
        if (folder / name).exists():
            return folder / name
    raise FileNotFoundError(
        f"{folder} holds no {' or '.join(names)}: give a Hugging Face model's "
        f"folder, with config, weights and preprocessor config."
    )


def _as_hubert(path):
    """Returns the arguments of a HubertConfig for the config.json of a MERT.

    Its `attention_relax` shifts all logits of a softmax alike: no change.
    """
    own = read_json(path)
    for option in filter(own.get, MERT_ONLY):
        raise ValueError(
            f"{path} is a MERT with {option} = {own[option]}, which HuBERT "
            f"lacks, and code from a model's folder is not run: it cannot be "
            f"read."
        )
    return {k: v for k, v in own.items() if k not in ("model_type", "auto_map")}


def _load(folder, as_hubert=None):
    """Loads a model in float32, whether it normalises waveforms, and its rate.

    Weights that are damaged, or leave a part of the model random, are refused.
    With the arguments of a HubertConfig, a HuBERT is made of the weights.
    """
    library = import_extra("transformers", "huggingface")
    load, options = library.AutoModel.from_pretrained, {}
    try:
        if as_hubert is not None:
            load = library.HubertModel.from_pretrained
            options = {"config": library.HubertConfig(**as_hubert)}
        model, info = load(folder, output_loading_info=True, **options)
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
    extractor = library.AutoFeatureExtractor.from_pretrained(folder)
    return model.float(), extractor.do_normalize, extractor.sampling_rate
