"""One opener for everything that encodes, and one for decoders."""

import os
from pathlib import Path

from speechbrain_sim.encoders import huggingface
from speechbrain_sim.encoders.logmel import SPECTRAL
from speechbrain_sim.models.fetch import BUILT_IN, open_source
from speechbrain_sim.models.format import (
    CLASSES,
    CONFIG,
    DECODER,
    ENCODER,
    MODEL_TYPE,
    encoder_of,
    load_parts,
    read_config,
    save_parts,
    sha256_of,
)

#: what a description holds beside the metadata of the training
OWN = ("sha256", "arguments", "layers")


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
        `layers`, and the metadata of its training.

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
        parts, config = load_parts(open_source(source, **options), [ENCODER])
        encoder, entry = parts[ENCODER], config["parts"][ENCODER]
        description = dict(config.get("training", {}))
        description |= {name: entry[name] for name in OWN if name in entry}
    description["layers"] = list(encoder.layer_names)
    return encoder.eval().requires_grad_(False), description


def save_encoder(folder, encoder, description, source):
    """Saves what `load_encoder` returned, for parts that will belong to it.

    An encoder whose class cannot be saved (a transformer) is referred to by
    `source`, from where it was loaded. Returns config.json.
    """
    training = {k: v for k, v in description.items() if k not in OWN}
    if type(encoder).__name__ in CLASSES:
        return save_parts(folder, {ENCODER: encoder}, training=training)
    named = {"source": str(source), "sha256": description["sha256"]}
    return save_parts(folder, {}, encoder=named, training=training)


def check_folder(folder, encoder, description, source):
    """Raises a ValueError if a folder holds a model of another encoder.

    `encoder` and `description` are from `load_encoder`, of `source`.
    """
    path, digest = Path(folder, CONFIG), description["sha256"]
    if type(encoder).__name__ in CLASSES:
        digest = sha256_of(encoder)  # of logmel, too
    there = encoder_of(read_config(path)) if path.exists() else None
    if there not in (None, digest):
        raise ValueError(
            f"{folder} holds a model of another encoder ({there}) than "
            f"{source} ({digest}): choose another --output_folder."
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
