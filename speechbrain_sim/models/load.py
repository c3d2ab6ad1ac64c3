"""One opener for everything that encodes, and one for decoders."""

import os
from pathlib import Path

from speechbrain_sim.bottlenecks.coded import CodedEncoder
from speechbrain_sim.encoders import huggingface
from speechbrain_sim.encoders.logmel import SPECTRAL
from speechbrain_sim.files import write_json
from speechbrain_sim.models.fetch import BUILT_IN, LocalFolder, open_source
from speechbrain_sim.models.format import (
    BOTTLENECK,
    CLASSES,
    CONFIG,
    DECODER,
    ENCODER,
    MODEL_TYPE,
    describe,
    encoder_of,
    hashes_of,
    identity_of,
    load_parts,
    parts_of,
    read_config,
    save_parts,
    sha256_of,
)

#: what a description holds beside the metadata of the training
OWN = ("sha256", "arguments", "layers", "source", "encoder", "bottlenecks")


def load_encoder(source, **options):
    """Loads an encoder, from wherever it is.

    Arguments
    ---------
    source : str or Path
        "sim-small", which is built in; the output folder of a recipe, a folder
        that `speechbrain-sim export` wrote, `user/model` or `hf://user/model`
        on the Hub; the folder of a Hugging Face transformer, see
        `load_hidden_states`; or "logmel", "logmel_stacked" or "mfcc".
    **options :
        Of the Hub: see `speechbrain_sim.models.fetch.open_source`.

    Returns
    -------
    encoder, description : (Encoder, dict)
        Frozen, in eval mode; `sha256` (its identity), `model`, `arguments`,
        `layers`, and the metadata of its training. A CodedEncoder, if the
        folder holds bottlenecks: then also the `sha256` of the `encoder` alone,
        and of its `bottlenecks`, by name.

    Raises
    ------
    FileNotFoundError, HubError, ValueError
        If there is none, or it is damaged.

    Example
    -------
    >>> encoder, description = load_encoder("logmel")
    >>> description["layers"]
    ['logmel']
    """
    kind = MODEL_TYPE  # as all that are built in
    if source not in BUILT_IN:
        kind = huggingface.model_type(os.path.expanduser(str(source)))
    if (name := str(source)) in SPECTRAL:
        encoder, description = SPECTRAL[name](), {"model": name, "sha256": name}
        description["arguments"] = encoder.arguments
    elif kind in huggingface.MODEL_TYPES:
        folder = os.path.expanduser(str(source))
        encoder, description = huggingface.load_hidden_states(folder)
    elif kind not in (None, MODEL_TYPE):
        raise ValueError(
            f"{source} is a model of the type '{kind}': those that can be read "
            f"are {MODEL_TYPE}, {', '.join(huggingface.MODEL_TYPES)}."
        )
    else:
        parts, config = load_model(open_source(source, **options), whole=False)
        encoder = parts[ENCODER]
        entry = config["parts"].get(ENCODER, config.get(ENCODER))
        description = dict(config.get("training", {}))
        description |= {name: entry[name] for name in OWN if name in entry}
        if coded := hashes_of(config["parts"]):
            description |= {"encoder": encoder_of(config), "bottlenecks": coded}
            description["sha256"] = identity_of(config)
    description["layers"] = list(encoder.layer_names)
    return encoder.eval().requires_grad_(False), description


def load_model(source, whole=True):
    """Loads the parts of a model; its bottlenecks become layers.

    Arguments as in `load_parts`; not `whole`, of the encoder alone. Returns
    the same, but an `encoder` that is a CodedEncoder in place of bottlenecks,
    and one of these that is a transformer is loaded from where it is.
    """
    source = open_source(source)
    config = describe(source)
    coded = [f"{BOTTLENECK}_{name}" for name in hashes_of(config["parts"])]
    there = not coded or ENCODER in config["parts"]
    names = None if whole else [ENCODER] * there + coded
    parts, config = load_parts(source, names)
    if not there:
        named = config[ENCODER]
        if not isinstance(source, LocalFolder):
            raise ValueError(
                f"{source.name} has no encoder, but the bottlenecks of one "
                f"elsewhere: download it and {named['source']!r:.80}."
            )
        folder = os.path.expanduser(named["source"])
        parts[ENCODER], description = huggingface.load_hidden_states(folder)
        if description["sha256"] != named["sha256"]:
            raise ValueError(
                f"{named['source']} is no longer the encoder that the "
                f"bottlenecks of {source.name} belong to: its weights differ."
            )
        named["arguments"] = description["arguments"]
    return join_bottlenecks(parts, config), config


def join_bottlenecks(parts, config):
    """Makes bottlenecks layers of their encoder: returns the other parts."""
    if not (coded := parts_of(parts, BOTTLENECK)):
        return parts
    entries = parts_of((config or {}).get("parts", {}), BOTTLENECK)
    encoder = CodedEncoder(parts[ENCODER], coded, entries).eval()
    others = {
        n: p for n, p in parts.items() if n.partition("_")[0] != BOTTLENECK
    }
    return {**others, ENCODER: encoder}


def plain(encoder, description):
    """Returns an encoder without its bottlenecks, and its description."""
    if not isinstance(encoder, CodedEncoder):
        return encoder, description
    description = {**description, "sha256": description["encoder"]}
    description["layers"] = list(encoder.plain.layer_names)
    del description["encoder"], description["bottlenecks"]
    return encoder.plain, description


def save_encoder(folder, encoder, description, source):
    """Saves what `load_encoder` returned, for parts that will belong to it.

    An encoder whose class cannot be saved (a transformer) is referred to by
    `source`, from where it was loaded. Returns config.json.
    """
    coded = getattr(encoder, "bottlenecks", {})
    parts = {f"{BOTTLENECK}_{name}": part for name, part in coded.items()}
    entries = {f"{BOTTLENECK}_{n}": encoder.entries.get(n, {}) for n in coded}
    encoder, description = plain(encoder, description)
    config = {k: v for k, v in description.items() if k not in OWN}
    config = {"training": config}
    if type(encoder).__name__ in CLASSES:
        parts[ENCODER] = encoder
    else:
        named = {"source": str(source), **description}
        config[ENCODER] = {key: named[key] for key in ("source", "sha256")}
    return save_parts(folder, parts, entries, **config)


def add_metadata(folder, entries):
    """Adds metadata to parts that a folder holds, by their names."""
    path = Path(folder, CONFIG)
    config = read_config(path)
    for name, entry in entries.items():
        config["parts"][name] |= entry
    write_json(path, config)


def named_by(encoder, description):
    """Returns the hash by which parts name their encoder: of logmel, too."""
    own = type(encoder).__name__ in CLASSES
    return sha256_of(encoder) if own else description["sha256"]


def check_folder(folder, encoder, description, source):
    """Raises a ValueError if a folder holds a model of another encoder.

    `encoder` and `description` are from `load_encoder`, of `source`.
    """
    coded = description.get("bottlenecks", {})
    encoder, description = plain(encoder, description)
    path, digest = Path(folder, CONFIG), named_by(encoder, description)
    config = read_config(path) if path.exists() else {"parts": {}}
    pairs = {"encoder": (encoder_of(config), digest)}
    for name, there in hashes_of(config["parts"]).items():
        pairs[name] = there, coded.get(name, there)
    for name, (there, here) in pairs.items():
        if there not in (None, here):
            raise ValueError(
                f"{folder} holds a model of another {name} ({there}) than "
                f"{source} ({here}): choose another --output_folder."
            )


def load_decoder(source, layer, encoder_sha256):
    """Loads the decoder of a layer.

    Arguments
    ---------
    source, layer : str or Path, str
        The output folder of recipes/decode.py, or a model with a decoder, see
        `speechbrain_sim.models.fetch.open_source`; the layer.
    encoder_sha256 : str
        `sha256` of the encoder whose latents it shall decode.

    Returns
    -------
    decoder, description : (ConvDecoder, dict)
        Frozen, in eval mode; its entry in config.json. A FileNotFoundError if
        there is none; a ValueError if it decodes another encoder, or is damaged.
    """
    name = f"{DECODER}_{layer}"
    if encoder_sha256 in SPECTRAL:  # whose parts carry a hash
        encoder_sha256 = sha256_of(SPECTRAL[encoder_sha256]())
    try:
        parts, config = load_parts(source, [name])
    except FileNotFoundError as error:
        remedy = f"Train it with recipes/decode.py --layer {layer}."
        raise FileNotFoundError(f"{error} {remedy}") from error
    description = config["parts"][name]
    there = description["encoder"]
    if there != encoder_sha256:
        raise ValueError(
            f"{source} decodes the encoder {there}, not {encoder_sha256}: train "
            f"a decoder for this one with recipes/decode.py."
        )
    return parts[name], description
