"""One format for every saved part of a model, from the first epoch on.

A folder holds `config.json`

    {"model_type": "smooth_infomax", "format": 2, "sample_rate": 16000,
     "parts": {NAME: {"class": ..., "arguments": {...}, "sha256": ..., ...}},
     "training": {...}, "versions": {...}}

and `NAME.safetensors` for every part: `encoder`, `decoder_<layer>`,
`probe_<label>`, `bottleneck_<layer>.<name>`, `baseline_<layer>_<label>` (an
information bottleneck that codes nothing, which is no layer). Weights are float32, or float16 if
they were rounded to it before (see `halve`). An encoder is identified by the
sha256 of this file, see `identity_of`; every other part carries that of its
encoder as `encoder`, and probes of codes those of their bottlenecks as
`bottlenecks`. Where the encoder itself is not saved (a transformer),
config.json holds its `source` and `sha256` under `encoder`. The output folder of
a recipe is such a folder.
"""

import hashlib
import importlib
import json
import re
from contextlib import ExitStack
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from speechbrain_sim.bottlenecks.coded import DECODED
from speechbrain_sim.data.audio import SAMPLE_RATE
from speechbrain_sim.data.labels import KINDS
from speechbrain_sim.files import (
    atomic,
    read_json,
    sha256,
    sync,
    text_hash,
    versions,
    write_json,
)
from speechbrain_sim.models.fetch import HubRepository, open_source
from speechbrain_sim.models.limits import (
    LARGEST_FILE,
    SPECTRAL_CLASSES,
    out_of_range,
)

ENCODER, DECODER, PROBE = "encoder", "decoder", "probe"
BOTTLENECK, BASELINE = "bottleneck", "baseline"
#: kinds of parts that a layer or a label is appended to
PREFIXES = (DECODER, PROBE, BOTTLENECK, BASELINE)
CONFIG, WEIGHTS = "config.json", ".safetensors"
#: of config.json: recordings beside the model, and the text of each
EXAMPLES = "examples"
#: a file's name in this folder: no separator, no control character
FILE = r"[^/\\\x00-\x1f]+"
#: `model_type` and `format` of every config.json
MODEL_TYPE, FORMAT = "smooth_infomax", 2
#: the classes that a config.json may name, and where they are
CLASSES = {
    "GreedyEncoder": "speechbrain_sim.encoders.greedy",
    "LogMel": "speechbrain_sim.encoders.logmel",
    "StackedLogMel": "speechbrain_sim.encoders.logmel",
    "Mfcc": "speechbrain_sim.encoders.logmel",
    "ConvDecoder": "speechbrain_sim.decoders",
    "SpectrogramDecoder": "speechbrain_sim.decoders",
    "LayerProbes": "speechbrain_sim.probes",
    "SparseAutoencoder": "speechbrain_sim.bottlenecks.sae",
    "TextHalf": "speechbrain_sim.bottlenecks.vib",
    "UtteranceHalf": "speechbrain_sim.bottlenecks.vib",
    "VariationalSparseCoder": "speechbrain_sim.bottlenecks.vsc",
}


def save_parts(folder, parts, metadata=None, keep=True, **config):
    """Saves parts of a model; returns config.json.

    All files are written before any takes the place of a former one, the
    weights first and config.json last: after a kill in between, loading
    reports a hash that differs, and the run that was killed writes both again.

    Arguments
    ---------
    folder : str or Path
        Where to; made if needed.
    parts : dict of str to nn.Module
        By name, of classes in `CLASSES`.
    metadata : dict of str to dict, optional
        Further entries for a part: `layer`, `epochs`, `seed`, `classes`, ...;
        `class`, `arguments` and `sha256` are always those of the part.
    keep : bool
        Keep parts and keys that are there, if of the same encoder.
    **config : json values
        Keys of config.json: `training`; `encoder`, where it is not a part.

    Raises
    ------
    ValueError
        If a weight is NaN or infinite, or the folder holds another model.
    """
    path = Path(folder, CONFIG)
    known = read_config(path) if path.exists() else {"parts": {}}
    weights = {name: _serialise(name, part) for name, part in parts.items()}
    entries = {}
    for name, part in parts.items():
        own = {"class": type(part).__name__, "arguments": part.arguments}
        own["sha256"] = hashlib.sha256(weights[name]).hexdigest()
        entries[name] = {**own, **(metadata or {}).get(name, {}), **own}
    if ENCODER in parts:
        entries[ENCODER]["layers"] = list(parts[ENCODER].layer_names)
    encoder = encoder_of({**config, "parts": entries}) or encoder_of(known)
    for name in set(entries) - {ENCODER}:
        entries[name]["encoder"] = encoder
    kept = known if keep and encoder_of(known) == encoder else {"parts": {}}
    fixed = {"model_type": MODEL_TYPE, "format": FORMAT}
    fixed |= {"sample_rate": SAMPLE_RATE, "versions": versions()}
    made = {**kept, **fixed, **config, "parts": {**kept["parts"], **entries}}
    _join_probes(made["parts"], entries)
    with ExitStack() as stack:  # left in reverse order: config.json comes last
        write_json(stack.enter_context(atomic(path)), made)
        for name, content in weights.items():
            partial = atomic(path.with_name(name + WEIGHTS))
            partial = stack.enter_context(partial)
            partial.write_bytes(content)
            sync(partial)
    for name in set(known["parts"]) - set(made["parts"]):
        path.with_name(name + WEIGHTS).unlink(missing_ok=True)
    return made


def _join_probes(parts, entries):
    """Notes of new probes the bottlenecks they read; removes those of others."""
    coded = hashes_of(parts)
    for name in parts_of(parts, PROBE):
        entry = parts[f"{PROBE}_{name}"]
        if f"{PROBE}_{name}" in entries:
            read = {layer.removesuffix(DECODED) for layer in entry["layers"]}
            read = {n: coded[n] for n in coded if n in read}
            entry |= {"bottlenecks": read} if read else {}
        elif not entry.get("bottlenecks", {}).items() <= coded.items():
            del parts[f"{PROBE}_{name}"]


def sha256_of(encoder):
    """Returns the identity of an encoder: see `identity_of`."""
    coded = {
        name: hashlib.sha256(_serialise(name, part)).hexdigest()
        for name, part in getattr(encoder, "bottlenecks", {}).items()
    }
    encoder = encoder.plain if coded else encoder
    weights = hashlib.sha256(_serialise(ENCODER, encoder)).hexdigest()
    return joined_hash(weights, coded)


def encoder_of(config):
    """Returns the sha256 of the encoder of a config.json; None without one."""
    encoder = config["parts"].get(ENCODER) or config.get(ENCODER) or {}
    return encoder.get("sha256")


def hashes_of(parts):
    """Returns the sha256 of each bottleneck of a config.json's parts."""
    return {n: e["sha256"] for n, e in parts_of(parts, BOTTLENECK).items()}


def identity_of(config):
    """Returns the identity of a config.json's encoder, with its bottlenecks.

    Without any, the sha256 of its weights' file; else a hash of all such.
    """
    return joined_hash(encoder_of(config), hashes_of(config["parts"]))


def joined_hash(encoder, bottlenecks):
    """Joins the sha256 of an encoder and of its bottlenecks, by name.

    Example
    -------
    >>> joined_hash("abc", {})
    'abc'
    """
    if not bottlenecks:
        return encoder
    return text_hash(json.dumps([encoder, sorted(bottlenecks.items())]))


def load_parts(source, names=None):
    """Makes and loads parts of a model; runs no code of its maker.

    Arguments
    ---------
    source : str, Path, LocalFolder or HubRepository
        See `speechbrain_sim.models.fetch.open_source`.
    names : list of str, optional
        Which parts; all by default. Others are not fetched.

    Returns
    -------
    parts, config : (dict of str to nn.Module, dict)
        Frozen, in eval mode; config.json. A FileNotFoundError, HubError or
        ValueError if a file or part is missing, damaged, or does not fit.
    """
    source = open_source(source)
    config, parts = describe(source), {}
    for name in config["parts"] if names is None else names:
        path, digest = fetch_weights(source, config, name)
        # weights are compared with shapes that take no memory
        shapes = _make(name, config["parts"][name], "meta")
        state = read_weights(shapes, path, digest)
        parts[name] = _make(name, config["parts"][name])
        parts[name].eval().requires_grad_(False).load_state_dict(state)
    return parts, config


def parts_of(parts, kind):
    """Maps layers to what is of their decoders, or labels of their probes.

    Example
    -------
    >>> parts_of({"encoder": 1, "decoder_module3": 2}, DECODER)
    {'module3': 2}
    """
    kind = f"{kind}_"
    return {
        name.removeprefix(kind): part
        for name, part in parts.items()
        if name.startswith(kind)
    }


def read_config(path):
    """Reads a config.json.

    Raises a ValueError if it is not one of this package, or of another format.
    """
    if Path(path).stat().st_size > LARGEST_FILE:
        raise ValueError(f"{path} is too large for a description of a model.")
    config = read_json(path)
    kind = config.get("model_type") if isinstance(config, dict) else config
    if kind != MODEL_TYPE:
        raise ValueError(
            f"{path} describes no model: the type '{kind}' is not {MODEL_TYPE}."
        )
    if config.get("format") != FORMAT:
        there = (
            f"the format {config.get('format')}; this version reads {FORMAT}"
        )
        remedy = "install a newer version"
        if config.get("format") == 1:
            remedy = "train and export the model again"
        raise ValueError(f"{path} has {there}: {remedy}.")
    try:
        problem = next(_problems(config), None)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        problem = f"has another layout ({error!r})"
    if problem:
        raise ValueError(f"{path} {problem}: export the model again.")
    return config


def _problems(config):
    """Lists what is wrong with the layout of a config.json."""
    for key in "parts", "training", ENCODER, EXAMPLES:
        absent = None if key == "parts" else {}
        if not isinstance(there := config.get(key, absent), dict):
            yield f"states {key} as {type(there).__name__}, not dict"
    for name in config.get(EXAMPLES, {}):
        if not re.fullmatch(FILE + "[.]wav", name):
            yield f"names an example {name!r:.80}: it is no wav file beside it"
    if (rate := config.get("sample_rate")) != SAMPLE_RATE:
        yield f"states the sample_rate {rate!r:.40}, not {SAMPLE_RATE}"
    for name, part in config["parts"].items():
        pattern = rf"{ENCODER}|({'|'.join(PREFIXES)})_{FILE}"
        if not re.fullmatch(pattern, name):
            yield f"names a part '{name}': none of this package"
        part = part if isinstance(part, dict) else {}
        for key, kind in ("class", str), ("arguments", dict), ("sha256", str):
            if not isinstance(part.get(key), kind):
                yield f"lacks the {key} of {name}"
        for odd in out_of_range(part["class"], part["arguments"]):
            yield f"states {odd} for {name}, which is out of range"
        if name.startswith(PROBE):
            classes, made = part.get("classes"), part["arguments"]
            count = made.get("classes")
            if not isinstance(classes, list) or len(classes) != count:
                yield f"does not name the {count} classes of {name}"
            if part.get("best_layer") not in dict(made.get("channels") or {}):
                yield f"names no best_layer of {name} that is probed"
            if part.get("kind") not in KINDS:
                yield f"does not state the kind of label of {name}"


def _make(name, entry, device=None):
    """Makes an untrained part."""
    kind = entry["class"]
    if kind not in CLASSES:
        there = f"{CONFIG} names a class '{kind}' for {name}"
        raise ValueError(f"{there}, not {', '.join(CLASSES)}.")
    make = getattr(importlib.import_module(CLASSES[kind]), kind)
    if kind in SPECTRAL_CLASSES:
        device = None  # torchaudio looks at the filters that it makes
    try:
        with torch.device(device or torch.get_default_device()):
            return make(**entry["arguments"])
    except (TypeError, ValueError, RuntimeError, AttributeError) as error:
        raise ValueError(
            f"{CONFIG} describes no {name} that can be made: {error!r}."
        ) from error


@torch.no_grad()
def halve(part):
    """Rounds the matrices of a part to half precision, as which it is saved.

    Its vectors are as they were: statistics may be far smaller than their means.
    """
    for value in part.state_dict().values():
        if value.ndim > 1 and value.is_floating_point():
            value.copy_(value.half())


def _serialise(name, part):
    """Returns the weights of a part as the content of a safetensors file.

    Matrices that half precision holds exactly are in half precision, so that an
    encoder that was saved so keeps its identity.
    """
    state = {n: t.cpu().contiguous() for n, t in part.state_dict().items()}
    for tensor, value in state.items():
        if not value.isfinite().all():
            raise ValueError(
                f"{tensor} of {name} holds NaN or infinity, and is not saved: "
                f"lower the learning rate, or clip gradients."
            )
        half, single = value.half(), value.dtype == torch.float32
        if single and value.ndim > 1 and torch.equal(half.float(), value):
            state[tensor] = half
    return save(state, {"format": "pt"})


def describe(source):
    """Fetches and reads the config.json of an opened model."""
    path = source.fetch(CONFIG)
    if isinstance(source, HubRepository):
        try:
            read_json(path)
        except ValueError as error:
            path = source.fetch_again(CONFIG, error)
    return read_config(path)


def fetch_weights(source, config, name):
    """Fetches the weights of a part of an opened model: their path, and hash.

    What the Hub's cache holds is fetched again, once, if its hash is another,
    with config.json. Raises a FileNotFoundError that names the parts if there
    is no such part.
    """
    if name not in config["parts"]:
        there = ", ".join(config["parts"]) or "a reference to its encoder"
        raise FileNotFoundError(f"{source.name} holds no {name}, only {there}.")
    file, part = name + WEIGHTS, config["parts"][name]
    path = source.fetch(file)
    if isinstance(source, HubRepository) and sha256(path) != part["sha256"]:
        path = source.fetch_again(file, f"{path} does not have its hash")
        again = source.fetch_again(CONFIG, f"{CONFIG} may be damaged, too")
        part.update(read_config(again)["parts"].get(name, {}))
    return path, part["sha256"]


def read_weights(model, path, digest):
    """Reads the weights of a network: these and no others.

    Arguments
    ---------
    model : nn.Module
        What they are for; it may be on the device "meta".
    path, digest : str or Path, str
        A safetensors file, its sha256.

    Returns
    -------
    dict of str to torch.Tensor
        A ValueError if the file has another hash, is cut, or does not fit.

    Example
    -------
    >>> from safetensors.torch import save_file
    >>> from speechbrain_sim.files import sha256
    >>> path = getfixture("tmp_path") / "a.safetensors"
    >>> save_file(torch.nn.Linear(2, 2).state_dict(), path)
    >>> read_weights(torch.nn.Linear(3, 2), path, sha256(path))
    Traceback (most recent call last):
    ValueError: ...a.safetensors does not fit ...: weight is [2, 2] ...
    """
    size = sum(tensor.nbytes for tensor in model.state_dict().values())
    if Path(path).stat().st_size > size + LARGEST_FILE:
        raise ValueError(
            f"{path} is larger than the architecture of {CONFIG} or the yaml, "
            f"which takes {size} bytes: it is of another model."
        )
    content = Path(path).read_bytes()  # what is hashed is what is loaded
    if hashlib.sha256(content).hexdigest() != digest:
        raise ValueError(
            f"{path} does not have the hash of {CONFIG}: it is damaged, or its "
            f"run goes on or was killed. Start that run again, or copy both."
        )
    try:
        kinds, state = {torch.float16: torch.float32}, load(content)
        state = {n: x.to(kinds.get(x.dtype, x.dtype)) for n, x in state.items()}
    except SafetensorError as error:
        raise ValueError(f"{path} is no safetensors file: {error}.") from error
    here, there = (
        {name: f"{list(x.shape)} {x.dtype}" for name, x in tensors.items()}
        for tensors in (model.state_dict(), state)
    )
    problems = [f"{name} is missing" for name in here.keys() - there.keys()]
    problems += [f"{name} is too much" for name in there.keys() - here.keys()]
    problems += [
        f"{name} is {there[name]} there, {here[name]} here"
        for name in here.keys() & there.keys()
        if here[name] != there[name]
    ]
    if problems:
        more = f", and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise ValueError(
            f"{path} does not fit the architecture of {CONFIG} or the yaml: "
            f"{'; '.join(sorted(problems)[:3])}{more}."
        )
    return state


def example_folder(folder, **arguments):
    """Saves a small untrained encoder, for examples and tests.

    `arguments` are those of `GreedyEncoder`; returns the folder, a Path.

    Example
    -------
    >>> folder = example_folder(getfixture("tmp_path"))
    >>> sorted(path.name for path in folder.iterdir())
    ['config.json', 'encoder.safetensors']
    """
    arguments = {"channels": 4, "context_channels": 2, **arguments}
    entry = {"class": "GreedyEncoder", "arguments": arguments}
    save_parts(folder, {ENCODER: _make(ENCODER, entry)}, training={})
    return Path(folder)
