"""Saving that survives a kill, and loading that refuses a wrong file.

A checkpoint is written under another name, hashed, and renamed when complete;
an encoder is a state dict beside a json file that says what it is.
"""

import hashlib
import json
import os
import pathlib
import re
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from speechbrain.utils.logger import get_logger

from speechbrain_sim.data.audio import SAMPLE_RATE
from speechbrain_sim.decoders import ConvDecoder
from speechbrain_sim.encoders.greedy import GreedyEncoder
from speechbrain_sim.files import sha256, versions, write_json
from speechbrain_sim.probes import LayerProbes

logger = get_logger(__name__)


ENCODER, DECODER = "encoder", "decoder"


def save_model(model, folder, stem, /, **about):
    """Saves a model that explains itself.

    Writes `<stem>.ckpt` (a state dict, as SpeechBrain's Pretrainer loads it)
    and `<stem>.json` (architecture, versions, hash and `about`).

    Arguments
    ---------
    model : nn.Module
        With a dict `config`, the arguments that construct it.
    folder : str or pathlib.Path
        Where to; made if needed.
    stem : str
        Name of the files.
    **about : json values
        What else to say: how it was trained, with which results.
    """
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    state = {n: t.detach().cpu() for n, t in model.state_dict().items()}
    partial = folder / f"{stem}.ckpt.part"
    torch.save(state, partial)
    digest = sha256(partial)
    os.replace(partial, folder / f"{stem}.ckpt")
    write_json(
        folder / f"{stem}.json",
        {
            "architecture": model.arguments,
            "sha256": digest,
            "versions": versions(),
            **about,
        },
    )


def load_model(make, folder, stem, recipe):
    """Loads what `save_model` wrote, in eval mode.

    Arguments
    ---------
    make : callable
        Makes the model from its architecture.
    folder : str or pathlib.Path
        Where it was saved.
    stem : str
        Name of the files.
    recipe : str
        Which recipe writes them, for the error.

    Returns
    -------
    model, description : (nn.Module, dict)

    Raises
    ------
    FileNotFoundError
        If the folder does not hold the two files.
    ValueError
        If weights and description do not belong together, or the weights do
        not fit the architecture.
    """
    folder = pathlib.Path(folder)
    weights, described = folder / f"{stem}.ckpt", folder / f"{stem}.json"
    for path in (described, weights):
        if not path.exists():
            raise FileNotFoundError(
                f"{folder} holds no {path.name}: give the folder '{stem}' that "
                f"{recipe} wrote into its output_folder."
            )
    description = json.loads(described.read_text("utf-8"))
    if sha256(weights) != description["sha256"]:
        raise ValueError(
            f"{weights} does not have the hash that {described.name} states: "
            f"it is damaged or belongs to another run. Copy both files again, "
            f"or train again."
        )
    model = make(**description["architecture"])
    state = torch.load(weights, weights_only=True)
    try:
        model.load_state_dict(state, strict=True)
    except RuntimeError as error:
        raise ValueError(
            f"{weights} does not fit the architecture in {described.name}: "
            f"{error}"
        ) from error
    return model.eval(), description


def save_encoder(encoder, folder, **about):
    """Saves an encoder: see `save_model`; also names its layers.

    Arguments
    ---------
    encoder : GreedyEncoder
        What to save.
    folder, **about :
        See `save_model`.
    """
    save_model(encoder, folder, ENCODER, layers=encoder.layer_names, **about)


def load_encoder(folder):
    """Loads what `save_encoder` wrote, in eval mode.

    Arguments
    ---------
    folder : str or pathlib.Path
        The folder of `encoder.json` and `encoder.ckpt`.

    Returns
    -------
    encoder, description : (GreedyEncoder, dict)

    Raises
    ------
    FileNotFoundError, ValueError
        See `load_model`.

    Example
    -------
    >>> folder = getfixture("tmpdir")
    >>> save_encoder(GreedyEncoder(channels=4, context_channels=2), folder)
    >>> encoder, description = load_encoder(folder)
    >>> description["architecture"]["channels"]
    4
    """
    return load_model(GreedyEncoder, folder, ENCODER, "recipes/pretrain.py")


def load_decoder(folder, encoder, layer):
    """Loads the decoder that `recipes/decode.py` trained for a layer.

    Arguments
    ---------
    folder : str or pathlib.Path
        The folder of `decoder.json` and `decoder.ckpt`.
    encoder : dict
        Description of the encoder whose latents it shall decode.
    layer : str
        The layer.

    Returns
    -------
    decoder, description : (ConvDecoder, dict)
        Frozen, in eval mode.

    Raises
    ------
    FileNotFoundError
        If there is no decoder.
    ValueError
        If it decodes another layer or another encoder, or is damaged.
    """
    decoder, description = load_model(
        ConvDecoder, folder, DECODER, "recipes/decode.py"
    )
    wanted = {"layer": layer, "encoder": encoder["sha256"]}
    for name, value in wanted.items():
        if description[name] != value:
            raise ValueError(
                f"{folder} decodes the {name} {description[name]}, not "
                f"{value}: train a decoder for this one with recipes/decode.py."
            )
    return decoder.requires_grad_(False), description


CONFIG = "config.json"


HPARAMS = "hyperparams.yaml"


CARD = "README.md"


EXAMPLE = "example.wav"


WEIGHTS = ".safetensors"


PROBE = "probe"


#: what every config.json holds
LAYOUT = {
    "decoders": dict,
    "encoder": dict,
    "probes": dict,
    "sample_rate": int,
    "sha256": dict,
}


#: what config.json calls itself, and the version of its layout
MODEL_TYPE, FORMAT = "smooth_infomax", 1


def read_config(path):
    """Reads a model's config.json.

    Arguments
    ---------
    path : str or Path
        The file.

    Returns
    -------
    dict

    Raises
    ------
    ValueError
        If it is not the config.json of a model of this package, or of a
        newer version of it.
    """
    try:
        config = json.loads(Path(path).read_text(encoding="utf-8"))
        known = config["model_type"] == MODEL_TYPE
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} describes no model: {error!r}.") from error
    if not known:
        raise ValueError(
            f"{path} describes a model of the type '{config['model_type']}', "
            f"not {MODEL_TYPE}."
        )
    if config.get("format") != FORMAT:
        raise ValueError(
            f"{path} has the layout {config.get('format')}; this version of "
            f"speechbrain-sim reads {FORMAT}: install a newer one."
        )
    problem = next(_problems(config), None)
    if problem:
        raise ValueError(
            f"{path} {problem}: export the model again, into a new folder."
        )
    return config


def _problems(config):
    """Says what is wrong with the layout of a config.json."""
    for key, kind in LAYOUT.items():
        if key not in config:
            yield f"lacks {key}"
        elif not isinstance(config[key], kind):
            there = type(config[key]).__name__
            yield f"states {key} as {there}, not {kind.__name__}"
    parts = _described(config)
    for name, part in parts.items():
        if not re.fullmatch(r"[\w-]+", name, re.ASCII):
            yield f"names a part '{name}', not of letters, digits, '_' and '-'"
        part = part if isinstance(part, dict) else {}
        if not isinstance(part.get("architecture"), dict):
            yield f"lacks the architecture of {name}"
    files = {name + WEIGHTS for name in parts}
    if files != set(config["sha256"]):
        yield f"lacks hashes of {', '.join(sorted(files))}, or has more"
    for label, probe in config["probes"].items():
        names, made = probe.get("classes"), probe["architecture"]
        if not isinstance(names, list) or len(names) != made.get("classes"):
            yield f"does not name the {made.get('classes')} classes of {label}"
        layers = made.get("channels")
        layers = list(layers) if isinstance(layers, dict) else []
        if probe.get("best_layer") not in layers:
            yield f"names no best_layer of {label} that is probed"
        if not isinstance(probe.get("per_frame"), bool):
            yield f"does not say whether {label} is per_frame"


def _described(config):
    """What is said of each network of a model, by its name."""
    decoders, probes = config["decoders"], config["probes"]
    return {
        ENCODER: config["encoder"],
        **{f"{DECODER}_{layer}": part for layer, part in decoders.items()},
        **{f"{PROBE}_{label}": part for label, part in probes.items()},
    }


def make_parts(config):
    """Makes the networks that a config.json describes, untrained.

    Arguments
    ---------
    config : dict
        From `read_config`.

    Returns
    -------
    dict of str to nn.Module
        `encoder`, `decoder_<layer>`, `probe_<label>`: named as their files.

    Raises
    ------
    ValueError
        If an architecture cannot be made.
    """
    kinds = {ENCODER: GreedyEncoder, DECODER: ConvDecoder, PROBE: LayerProbes}
    parts = {}
    for name, part in _described(config).items():
        try:
            parts[name] = kinds[name.split("_")[0]](**part["architecture"])
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise ValueError(
                f"{CONFIG} describes no {name} that can be made: {error!r}."
            ) from error
    return parts


def save_weights(model, path):
    """Writes a network's weights.

    Arguments
    ---------
    model : nn.Module
        The network.
    path : str or Path
        A file that ends in `.safetensors`.

    Returns
    -------
    str
        The file's sha256.
    """
    state = {n: t.cpu().contiguous() for n, t in model.state_dict().items()}
    Path(path).write_bytes(save(state))
    return sha256(path)


def load_weights(model, path, digest):
    """Reads a network's weights: these and no others.

    Arguments
    ---------
    model : nn.Module
        Gets the weights.
    path : str or Path
        What `save_weights` wrote.
    digest : str
        Its sha256.

    Raises
    ------
    ValueError
        If the file has another hash, is cut, or does not fit the network.

    Example
    -------
    >>> path = getfixture("tmp_path") / "a.safetensors"
    >>> digest = save_weights(torch.nn.Linear(2, 2), path)
    >>> load_weights(torch.nn.Linear(2, 2), path, digest)
    >>> load_weights(torch.nn.Linear(3, 2), path, digest)
    Traceback (most recent call last):
    ValueError: ...a.safetensors does not fit ...: weight is [2, 2] ...
    """
    content = Path(path).read_bytes()  # what is hashed is what is loaded
    if hashlib.sha256(content).hexdigest() != digest:
        raise ValueError(
            f"{path} does not have the hash that {CONFIG} states: it is "
            f"damaged, cut, or belongs to another model. Delete it and fetch "
            f"or export it again."
        )
    try:
        state = load(content)
    except SafetensorError as error:
        raise ValueError(
            f"{path} is no safetensors file: {error}. Export it again."
        ) from error
    own = model.state_dict()
    problems = [
        *(f"{name} is missing" for name in own if name not in state),
        *(f"{name} is too much" for name in state if name not in own),
        *(
            f"{name} is {list(state[name].shape)} {state[name].dtype} there, "
            f"{list(own[name].shape)} {own[name].dtype} here"
            for name in own
            if name in state
            and (state[name].shape, state[name].dtype)
            != (own[name].shape, own[name].dtype)
        ),
    ]
    if problems:
        more = f", and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise ValueError(
            f"{path} does not fit the architecture that it is loaded into: "
            f"{'; '.join(problems[:3])}{more}. Use the {CONFIG} or {HPARAMS} "
            f"that it came with."
        )
    with torch.no_grad():
        model.load_state_dict(state, strict=True)


def write_folder(folder, parts, about):
    """Writes weights and config.json.

    Arguments
    ---------
    folder : str or Path
        Where to; made if needed.
    parts : dict of str to nn.Module
        `encoder`, `decoder_<layer>`, `probe_<label>`.
    about : dict
        For config.json: `encoder`, `decoders` and `probes`, each with its
        `architecture`, and what else there is to say.

    Returns
    -------
    dict
        config.json.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "model_type": MODEL_TYPE,
        "format": FORMAT,
        "speechbrain_interface": "SmoothInfoMax",
        "sample_rate": SAMPLE_RATE,
        **about,
        "versions": versions(),
        "sha256": {
            name + WEIGHTS: save_weights(part, folder / (name + WEIGHTS))
            for name, part in parts.items()
        },
    }
    write_json(folder / CONFIG, config)
    return config


def example_folder(folder, **architecture):
    """Writes a small untrained model, for examples and tests.

    Arguments
    ---------
    folder : str or Path
        Where to.
    **architecture :
        Arguments of `GreedyEncoder`.

    Returns
    -------
    Path
        The folder.

    Example
    -------
    >>> folder = example_folder(getfixture("tmp_path"))
    >>> sorted(path.name for path in folder.iterdir())
    ['config.json', 'encoder.safetensors']
    """
    encoder = GreedyEncoder(
        **{"channels": 4, "context_channels": 2, **architecture}
    )
    about = {
        "encoder": {"architecture": encoder.arguments},
        "decoders": {},
        "probes": {},
    }
    write_folder(folder, {ENCODER: encoder}, about)
    return Path(folder)


def load_parts(source, names=None):
    """Makes and loads the networks of a model; runs no code of its maker.

    Arguments
    ---------
    source : LocalFolder or HubRepository
        From `speechbrain_sim.models.fetch.open_source`.
    names : list of str, optional
        Which networks; all by default. Others are not fetched.

    Returns
    -------
    parts, config : (dict of str to nn.Module, dict)
        See `make_parts`; frozen, in eval mode.

    Raises
    ------
    FileNotFoundError, HubError, ValueError
        See `open_source`, `read_config` and `load_weights`.
    """
    config = read_config(source.fetch(CONFIG))
    parts = make_parts(config)
    parts = {name: parts[name] for name in names or parts}
    for name, part in parts.items():
        path = source.fetch(name + WEIGHTS)
        load_weights(part, path, config["sha256"][name + WEIGHTS])
        part.eval().requires_grad_(False)
    return parts, config
