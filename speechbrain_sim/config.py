"""From a yaml file and options to a run's hyper-parameters.

A yaml with `base: other.yaml` is a difference: its keys replace those of the
other file, and it has no further ones, except to refer to them. `base:` may be
a list, of which later files replace the keys of earlier ones. A yaml with
`uses:` is composed in the same way, but defines keys of its own. The file that
`--model NAME` names in `hparams/models` is a difference, too. Precedence: base <
difference < model < options.

An option has the kind of the key's value in the yaml or in one of its bases;
`__may_be: {key: example}` adds another. Text is literal.
"""

import contextlib
import io
import os
import re
from difflib import get_close_matches
from pathlib import Path
from urllib.parse import quote, unquote

import ruamel.yaml
import speechbrain as sb
from hyperpyyaml import load_hyperpyyaml, resolve_references
from speechbrain.core import RunOptions
from speechbrain.utils.distributed import if_main_process

from speechbrain_sim.files import write_text

_HERE = Path(__file__).parent
#: the model files, in a wheel or in a checkout
MODELS = _HERE / "hparams_models"
if not MODELS.is_dir():
    MODELS = _HERE.parent / "hparams/models"

#: options that may differ when a run is resumed
MAY_CHANGE = ["number_of_epochs", "num_workers", "ckpt_interval_steps"]
MAY_CHANGE += ["epochs_per_save"]
MAY_CHANGE += ["tensorboard", "on_bad_audio", "data_folder", "download"]
MAY_CHANGE += ["download_from", "download_checksum"]
#: former names of keys
RENAMED = {
    "negatives": "num_negatives",
    "own_negatives": "within_utterance_negatives",
    "window": "window_frames",
    "draws": "num_samples",
}
#: former keys that are no key now, and what replaces them
_REPLACED = {
    ("encoder_folder", "decoder_folder"): "the run's output_folder: a model",
    ("report_folder",): "output_folder",
    ("paper",): "published",
    ("folder",): "the folder that the study's yaml lies in",
    ("runs", "variants"): "in systems, as `yaml`, `options` and `encoder`",
    ("pretrain_yaml",): "the `yaml` of each entry of systems",
    ("probes",): "labels: a study trains its probes",
    ("corpus_options",): "a key each: options of corpus.yaml are handed on",
}
GONE = {key: text for keys, text in _REPLACED.items() for key in keys}
#: former beginnings of the names of a study's yaml
_STUDIES = ("table", "analyse", "sweep")
#: kinds of values; others are objects, made of these
KINDS = {bool: "True or False", int: "a whole number", float: "a number"}
KINDS |= {list: "a list", dict: "a mapping", str: "text", type(None): "null"}
#: stands for "<" while references are resolved
_LESS = "\ue000"
# from now on, texts that look like HyperPyYAML's tuples are quoted
load_hyperpyyaml("{}")


def _parse_yaml(text, kind="rt"):
    return ruamel.yaml.YAML(typ=kind, pure=True).load(text)


def _dump_yaml(content):
    stream = io.StringIO()
    ruamel.yaml.YAML().dump(content, stream)
    return stream.getvalue()


def _read_files(path, above=()):
    """Reads a yaml and its bases: {path: content}, lowest precedence first."""
    path = Path(os.path.abspath(path))
    if not path.is_file():
        former = path.stem.split("_")[0] in _STUDIES
        hint = " It is study.yaml now, or a study_*.yaml." if former else ""
        text = f"There is no hyper-parameter file {path}.{hint}"
        raise FileNotFoundError(text)
    if path in above:
        raise ValueError(f"{path} is its own base: remove one `base:`.")
    content = _parse_yaml(path.read_text(encoding="utf-8")) or {}
    bases = content.get("base", content.get("uses", []))
    files = {}
    for base in [bases] if isinstance(bases, str) else bases:
        files |= _read_files(path.parent / base, (*above, path))
    return {**files, path: content}


def _merge(files):
    """Merges files: the last one's keys first, then those of the others.

    Raises a KeyError if a difference has a key that nothing reads.
    """
    merged, known = {}, {"base", "uses", "model", *RunOptions()}
    for content in reversed(files.values()):
        known |= set(re.findall(r"<(\w+)", _dump_yaml(content)))
        known |= set() if "base" in content else content.keys()
        own = content.keys() - {"base", "uses", "__may_be", *merged}
        merged |= {key: content[key] for key in content if key in own}
    for path, content in files.items():
        keys = [key for key in content if not key.startswith("__")]
        check_keys(f"the bases of {path}", known, keys)
    return merged


def read_yaml(path):
    """Reads a yaml with its bases merged, its objects not yet made.

    Returns
    -------
    dict
        The file's own keys first, then those of its bases.

    Raises
    ------
    FileNotFoundError, ValueError
        If the file, or a base, does not exist, or is its own base.
    KeyError
        If a difference has a key that its bases do not have and that nothing
        refers to.

    Example
    -------
    >>> dict(list(read_yaml(MODELS / "gim.yaml").items())[:2])
    {'model_name': 'gim', 'probabilistic': False}
    """
    return _merge(_read_files(path))


def model_changes(name):
    """Reads what a model of `hparams/models` changes in `sim.yaml`.

    Raises
    ------
    ValueError
        If there is no such model; names the ones there are.

    Example
    -------
    >>> dict(model_changes("sim_beta0"))
    {'model_name': 'sim_beta0', 'kl_weight': 0.0}
    """
    names = sorted(path.stem for path in MODELS.glob("*.yaml"))
    if name not in names:
        raise ValueError(
            f"There is no model '{name}'; hparams/models has {', '.join(names)}."
        )
    changes = _parse_yaml((MODELS / f"{name}.yaml").read_text("utf-8"))
    return {} if changes.pop("base", None) is None else changes


def load_experiment(argv, may_change=None):
    """Reads a run's hyper-parameters from a command line.

    Starts the process group under torchrun, then `make_experiment`.

    Arguments
    ---------
    argv : list of str
        Yaml file, then options as in any SpeechBrain recipe: `--channels 64`,
        `--device cpu`; `--model NAME` picks a file of `hparams/models`.
    may_change : list of str, optional
        See `make_experiment`, also for what is returned and raised.

    Raises
    ------
    ValueError
        If a word belongs to no option.
    """
    file, run_opts, typed = sb.parse_arguments([_encoded(w) for w in argv])
    sb.utils.distributed.ddp_init_group(run_opts)
    options = {}
    for line in typed.splitlines():
        key, *values = line.replace(":", "", 1).split()
        if len(values) != 1:
            raise ValueError(f"'{unquote(line)}' is not --name 'one value'.")
        options[key] = unquote(*values)
    names = {word.split("=")[0][2:] for word in argv if word[:2] == "--"}
    # SpeechBrain's options, abbreviated, are unknown, too
    options |= dict.fromkeys(names - {*options, *RunOptions()})
    return make_experiment(unquote(file), options, run_opts, may_change)


def _encoded(word):
    """Hides blanks and "=" of values from SpeechBrain, which splits there."""
    name, equals, value = word.partition("=")
    if word[:2] == "--":
        return name + equals + quote(value, safe="/:")
    return quote(word, safe="/:")


def make_experiment(hparams_file, options, run_opts, may_change=None):
    """Merges a yaml, its bases, a model and options, and builds the objects.

    The whole, resolved, is written to `hyperparams.yaml` (or the yaml's
    `hyperparams_file`) in the output folder: a yaml without bases, which
    `load_hyperpyyaml` reads as it is.

    Arguments
    ---------
    hparams_file : str or Path
        The yaml.
    options : dict
        Values for its keys, or their text; `model` names a file of
        `hparams/models`.
    run_opts : RunOptions
        SpeechBrain's own options, which are passed on. Those that are keys of
        the yaml, too, are recorded there.
    may_change : list of str, optional
        For runs that are resumed: the keys that may differ from the run that
        is already in the output folder.

    Returns
    -------
    hparams, run_opts : (dict, RunOptions)

    Raises
    ------
    KeyError
        If an option is not a key of the yaml, or see `read_yaml`.
    ValueError
        If an option is of another kind than the yaml's value, a key without a
        value is not given, or the output folder holds a run with other
        settings.
    """
    files, options = _read_files(hparams_file), dict(options)
    defaults = _merge(files)
    model = defaults.pop("model", None)
    if "model_name" in defaults:
        model = options.pop("model", model)
    check_keys(hparams_file, defaults, options)
    for key in run_opts.get("overridden_args", ()):
        if key in defaults:
            options.setdefault(key, run_opts[key])
    options = {k: _typed(k, v, files) for k, v in options.items()}
    changes = model_changes(model) if model else {}
    resolved = _resolve({**defaults, **changes, **options}, options)
    hparams = load_hyperpyyaml(resolved)
    if if_main_process():
        name = hparams.get("hyperparams_file", "hyperparams.yaml")
        written = Path(hparams["output_folder"], name)
        begun = any(Path(hparams["save_folder"]).glob("CKPT*"))
        begun = begun and written.exists() and not run_opts["debug"]
        if may_change is not None and begun:
            _check_same_run(written, resolved, defaults, may_change)
        write_text(written, resolved)
    return hparams, run_opts


def check_keys(source, known, keys):
    """Raises a KeyError if a key is renamed, or none of those of a source."""
    unknown = sorted(set(keys) - set(known))
    for key in [*(RENAMED.keys() & set(keys)), *(GONE.keys() & set(unknown))]:
        now = {**RENAMED, **GONE}[key]
        raise KeyError(f"{key} is now {now} (in {source}).")
    if unknown:
        near = get_close_matches(unknown[0], {*known, *RunOptions()}, n=1)
        hint = f"Did you mean {near[0]}?" if near else f"It has {[*known]}."
        raise KeyError(f"There is no key {unknown[0]} in {source}. {hint}")


def tag_of(value):
    """Returns the tag of a yaml's value, such as `!ref`, or None."""
    return getattr(getattr(value, "tag", None), "value", None)


def _kind(value):
    """Returns the kind of a value in `KINDS`; None for an object."""
    kinds = [kind for kind in KINDS if isinstance(value, kind)]
    return kinds[0] if kinds and not tag_of(value) else None


def _fits(value, example):
    """Whether a value is of the kind of an example; a list in all elements."""
    if isinstance(value, list) and isinstance(example, list) and example:
        return all(any(_fits(v, e) for e in example) for v in value)
    kind = _kind(example)
    kinds = (float, int) if kind is float else (kind,)
    return kind is not None and _kind(value) in kinds


def _typed(key, value, files):
    """Returns an option, or what its text means, of a kind that the key has."""
    contents = [c for f in files.values() for c in (f, f.get("__may_be", {}))]
    examples = [content[key] for content in contents if key in content]
    examples = [
        e for e in examples if tag_of(e) not in ("!ref", "!PLACEHOLDER")
    ]
    if not any(example is not None for example in examples):
        examples.append("")  # text, unless __may_be has something else
    value = meant = str(value) if isinstance(value, Path) else value
    if isinstance(value, str):
        with contextlib.suppress(ValueError, ruamel.yaml.error.YAMLError):
            meant = _parse_yaml(value, "safe")
    # the meaning of a text may be a number, but no other text
    for found in [value] if isinstance(meant, str) else [meant, value]:
        if any(_fits(found, example) for example in examples):
            return found
    kinds = " or ".join({KINDS[_kind(e)]: 0 for e in examples if _kind(e)})
    kinds = kinds or "no value: other keys make it"
    raise ValueError(f"--{key} is {value!r}, but takes {kinds}.")


def _resolve(document, options):
    """Resolves references, but none in options, and returns the text."""
    holes = [k for k in document if tag_of(document[k]) == "!PLACEHOLDER"]
    if holes:
        raise ValueError(f"This run needs --{', --'.join(holes)}.")
    typed = _parse_yaml(_dump_yaml(options).replace("<", _LESS))
    text, before = _dump_yaml({**document, **typed}), None
    while text != before:  # a reference may lead to another one
        text, before = resolve_references(text).getvalue(), text
    return text.replace(_LESS, "<")


def _check_same_run(written, resolved, defaults, may_change):
    """Raises a ValueError if plain settings differ from those of a run.

    Paths are compared relative to the run's folder, or else as absolute paths.
    An option that the run did not have had the value of its yaml.
    """
    before = _parse_yaml(written.read_text(encoding="utf-8"))
    before = {RENAMED.get(key, key): value for key, value in before.items()}
    settings = _parse_yaml(resolved)

    def place(value, run):
        folder, text = os.path.abspath(run["output_folder"]), str(value)
        inside = os.path.abspath(text).removeprefix(folder)
        return inside if isinstance(value, str) else value

    changed = []
    for key, value in settings.items():
        old = before.get(key, defaults.get(key))
        if key in may_change or {_kind(value), _kind(old)} & {dict, None}:
            continue  # mappings and objects are made of other settings
        if place(old, before) != place(value, settings):
            changed.append(f"{key} ({old} before, {value} now)")
    if changed:
        raise ValueError(
            f"{written.parent} holds a run with other settings: "
            f"{'; '.join(changed)}. To resume it, give its settings; for "
            f"these, choose another --output_folder."
        )
