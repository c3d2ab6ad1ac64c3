"""From a yaml file and options to a run's hyper-parameters.

A yaml with `base: other.yaml` is a difference: its keys replace those of the
other file, and it has no further ones, except to refer to them. `base:` may be
a list, of which later files replace the keys of earlier ones. A yaml with
`uses:` is composed in the same way, but defines keys of its own. The file that
`--model NAME` names in `hparams/models` is a difference, too. Precedence: base <
difference < model < options.

What an option may be: see `speechbrain_sim.options`. Those of SpeechBrain that
were typed are settings, too: recorded, and compared when a run is resumed.
"""

import contextlib
import io
import os
import re
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path
from urllib.parse import quote, unquote

import ruamel.yaml
import speechbrain as sb
import torch
from hyperpyyaml import load_hyperpyyaml
from speechbrain.core import RunOptions
from speechbrain.utils import distributed

from speechbrain_sim.console import set_console
from speechbrain_sim.files import lock_folder, naming, write_text
from speechbrain_sim.options import (
    check_kinds,
    check_ranges,
    check_used,
    dump_yaml,
    kind_of,
    parse_yaml,
    resolve,
    tag_of,
    typed,
)

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
# the data are compared by their contents, see `check_same_data`
MAY_CHANGE += ["manifest_folder", "train_csv", "valid_csv"]
#: keys that are no options: on options, of a yaml and of its bases
NOTES = "__may_be", "__must_be", "used_with"
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
#: options of SpeechBrain that change no result of a run that ends
ASIDE = {"device", "distributed_backend", "distributed_launch", "log_config"}
ASIDE |= {"find_unused_parameters", "noprogressbar", "tqdm_colored_bar"}
ASIDE |= {"tqdm_barcolor", "param_file", "overridden_args", "profile_training"}
ASIDE |= {"profile_warmup", "profile_steps", "ckpt_interval_minutes"}
ASIDE |= {"ckpt_interval_steps", "debug_persistently"}
#: its other options, which are settings; the kinds of some are open there
RUN = {k: v for k, v in RunOptions().as_dict().items() if k not in ASIDE}
RUN |= {"optimizer_step_limit": 1}
RUN |= dict.fromkeys(["jit_module_keys", "compile_module_keys"], [""])
#: keys that only one recipe's yaml has, by which its records are known
RECIPES = {"kl_schedule": "pretrain.py", "reconstruction": "decode.py"}
RECIPES |= {"controls": "probe.py", "systems": "study.py"}
RECIPES |= {"bottleneck": "bottleneck.py", "halves": "vib.py"}
#: stands for "<" while references are resolved
_LESS = "\ue000"
# from now on, texts that look like HyperPyYAML's tuples are quoted
load_hyperpyyaml("{}")


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
    try:
        content = parse_yaml(path.read_text(encoding="utf-8")) or {}
    except (ruamel.yaml.error.YAMLError, UnicodeDecodeError) as error:
        problem = " ".join(str(error).split())
        raise ValueError(f"{path} is not yaml: {problem}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} is no hyper-parameter file: no `key: value`.")
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
        known |= set(re.findall(r"<(\w+)", dump_yaml(content)))
        known |= set() if "base" in content else content.keys()
        own = content.keys() - {"base", "uses", *NOTES, *merged}
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
    changes = parse_yaml((MODELS / f"{name}.yaml").read_text("utf-8"))
    return {} if changes.pop("base", None) is None else changes


def load_experiment(argv, may_change=None, check=None):
    """Reads a run's hyper-parameters from a command line.

    Starts the process group under torchrun, then `make_experiment`. With
    `--debug` or `--optimizer_step_limit`, `_debug` is appended to the output
    folder: such a run leaves nothing that another one would take for its own.

    Arguments
    ---------
    argv : list of str
        Yaml file, then options as in any SpeechBrain recipe: `--channels 64`,
        `--device cpu`; `--model NAME` picks a file of `hparams/models`.
    may_change, check : optional
        See `make_experiment`, also for what is returned and raised.

    Raises
    ------
    ValueError
        If a word belongs to no option, an option of SpeechBrain's has a wrong
        value, or there is no such device.
    """
    file, run_opts, lines = _parse_words([_encoded(word) for word in argv])
    set_console(run_opts["noprogressbar"])
    check_device(run_opts["device"])
    cpus = run_opts["device"] == "cpu" and "LOCAL_RANK" in os.environ
    if cpus and run_opts["distributed_backend"] != "gloo":
        remedy = "Several processes on CPUs need --distributed_backend gloo."
        raise ValueError(remedy)
    distributed.ddp_init_group(run_opts)
    options = {}
    for line in lines.splitlines():
        key, *values = line.replace(":", "", 1).split()
        if len(values) != 1:
            raise ValueError(f"'{unquote(line)}' is not --name 'one value'.")
        options[key] = unquote(*values)
    names = {word.split("=")[0][2:] for word in argv if word[:2] == "--"}
    # SpeechBrain's options, abbreviated, are unknown, too
    options |= dict.fromkeys(names - {*options, *RunOptions()})
    return _build(unquote(file), options, run_opts, may_change, check, True)


def _parse_words(words):
    """Parses SpeechBrain's options; a ValueError for their wrong values."""
    usage = io.StringIO()
    try:
        with contextlib.redirect_stderr(usage):
            file, run_opts, lines = sb.parse_arguments(words)
    except SystemExit as stop:
        if not stop.code:  # --help
            raise
        problem = unquote(usage.getvalue().rpartition("error: ")[2].strip())
        raise ValueError(f"{problem}.") from None
    limit = run_opts["optimizer_step_limit"]
    if limit is not None:  # SpeechBrain's parser leaves it a text
        limit = typed("optimizer_step_limit", limit, [RUN])
    return file, replace(run_opts, optimizer_step_limit=limit), lines


def check_device(device):
    """Raises a ValueError if a device, by default the best, cannot be used."""
    device = distributed.infer_device() if device is None else device
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        problem = str(error).splitlines()[0]
        raise ValueError(f"--device {device}: {problem}") from error


def _encoded(word):
    """Hides blanks and "=" of values from SpeechBrain, which splits there."""
    name, equals, value = word.partition("=")
    if word[:2] == "--":
        return name + equals + quote(value, safe="/:")
    return quote(word, safe="/:")


def make_experiment(
    hparams_file, options, run_opts, may_change=None, check=None
):
    """Merges a yaml, its bases, a model and options, and builds the objects.

    The whole, resolved, is written to `hyperparams.yaml` (or the yaml's
    `hyperparams_file`) in the output folder: a yaml without bases, which
    `load_hyperpyyaml` reads as it is, with the number of `processes`.

    Arguments
    ---------
    hparams_file : str or Path
        The yaml.
    options : dict
        Values for its keys, or their text; `model` names a file of
        `hparams/models`.
    run_opts : RunOptions
        SpeechBrain's own options, which are passed on. Those that were typed
        and may change a result are settings, and replace `options`.
    may_change : list of str, optional
        For runs that are resumed: the keys that may differ from the run that
        is already in the output folder.
    check : function, optional
        Gets the settings, a dict whose objects are not made yet; raises an
        error before anything is written.

    Returns
    -------
    hparams, run_opts : (dict, RunOptions)

    Raises
    ------
    KeyError
        If an option is not a key of the yaml, or see `read_yaml`.
    ValueError
        If an option is of another kind than the yaml's value, or out of its
        range, a key without a value is not given, or the output folder holds
        a run with other settings.
    """
    return _build(hparams_file, options, run_opts, may_change, check, False)


def _build(file, options, run_opts, may_change, check, apart):
    """See `make_experiment`; `apart`: debug runs have a folder of their own."""
    settings, defaults = read_settings(file, options, run_opts, check, apart)
    resolved = dump_yaml(settings)
    hparams = load_hyperpyyaml(resolved)
    if distributed.if_main_process():
        name = hparams.get("hyperparams_file", "hyperparams.yaml")
        lock_folder(hparams["output_folder"])
        written = Path(hparams["output_folder"], name)
        _check_same_recipe(written, defaults)
        begun = any(Path(hparams["save_folder"]).glob("CKPT*"))
        if may_change is not None and begun and written.exists():
            _check_same_run(written, settings, defaults, may_change)
        write_text(written, resolved)
    return hparams, run_opts


def read_settings(hparams_file, options, run_opts, check=None, apart=False):
    """Merges and checks what `make_experiment` builds, but makes nothing.

    Returns the resolved settings, and what they are without options. `apart`:
    a debug run's output goes to another folder.
    """
    files, options = _read_files(hparams_file), dict(options)
    defaults, contents = _merge(files), [RUN, *files.values()]
    check_kinds(files)
    model = defaults.pop("model", None)
    if "model_name" in defaults:
        model = options.pop("model", model)
    defaults.pop("processes", None)  # of a record
    check_keys(hparams_file, [*defaults, *RUN], options)
    overridden = run_opts.get("overridden_args", ())
    options |= {k: run_opts[k] for k in overridden if k in {*RUN, *defaults}}
    options = {k: typed(k, v, contents) for k, v in options.items()}
    defaults |= model_changes(model) if model else {}
    settings = _resolve(defaults, options)
    debug = settings.get("debug") or settings.get("optimizer_step_limit")
    if debug and apart:
        folder = f"{os.path.normpath(settings['output_folder'])}_debug"
        if distributed.if_main_process():
            print(f"A debug run: its output goes to {folder}", flush=True)
        options |= {"output_folder": folder, "save_folder": f"{folder}/save"}
        settings = _resolve(defaults, options)
    elif debug and not (run_opts["debug"] or run_opts["optimizer_step_limit"]):
        raise ValueError(
            f"debug and optimizer_step_limit are no settings of a run inside "
            f"another ({hparams_file}): give them on the command line."
        )
    several = distributed.is_distributed_initialized()
    processes = torch.distributed.get_world_size() if several else 1
    settings["processes"] = processes
    for notes in NOTES:  # for a run of the record, too
        of_files = [content.get(notes, {}) for content in contents]
        settings[notes] = {k: v for notes in of_files for k, v in notes.items()}
    check_ranges(settings, settings["__must_be"])
    check_used(settings, options)
    if check is not None:
        check(settings)
    return settings, {**defaults, "processes": processes}


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


def _resolve(document, options):
    """Resolves references, but none in options; returns the settings."""
    document = {**document, **options}
    holes = [k for k in document if tag_of(document[k]) == "!PLACEHOLDER"]
    if holes:
        raise ValueError(f"This run needs --{', --'.join(holes)}.")
    literal = parse_yaml(dump_yaml(options).replace("<", _LESS))
    text = resolve(dump_yaml({**document, **literal}))
    return parse_yaml(text.replace(_LESS, "<"))


def _read_record(written):
    """Reads the settings of the run that a folder holds."""
    with naming(written, "a run's yaml"):
        return dict(parse_yaml(written.read_text(encoding="utf-8")))


def _check_same_recipe(written, defaults):
    """Raises a ValueError if a record, or model, of something else is there."""
    before = defaults
    if written.exists():
        before = _read_record(written)
    elif (
        "kl_schedule" in defaults
        and Path(written.parent, "config.json").exists()
    ):
        before = {}  # probes, whose encoder would be another one
    made, now = (
        [recipe for key, recipe in RECIPES.items() if key in keys]
        for keys in (before, defaults)
    )
    if made != now:
        raise ValueError(
            f"{written.parent} holds the results of "
            f"{', '.join(made) or 'something else'}, which would be lost: "
            f"choose another --output_folder."
        )


def _plain_text(value):
    """Returns the yaml of an object in a line, without comments."""
    return " ".join(re.sub(r" #.*", "", dump_yaml([value])).split())[2:]


def _check_same_run(written, settings, defaults, may_change):
    """Raises a ValueError if plain settings differ from those of a run.

    Paths are compared relative to the run's folder, or else as absolute paths.
    What the run did not record had the value of its yaml, or of SpeechBrain.
    """
    before = {RENAMED.get(k, k): v for k, v in _read_record(written).items()}
    defaults = {**RunOptions().as_dict(), **defaults}

    def place(value, run):
        folder, text = os.path.abspath(run["output_folder"]), str(value)
        inside = os.path.abspath(text).removeprefix(folder)
        return inside if isinstance(value, str) else value

    changed = []
    for key in [*settings, *(before.keys() & RUN.keys() - settings.keys())]:
        old, value = (x.get(key, defaults.get(key)) for x in (before, settings))
        if key in ("opt_class", "kl_schedule") and key in before:
            old, value = map(_plain_text, (old, value))
        if key in may_change or {kind_of(value), kind_of(old)} & {dict, None}:
            continue  # mappings and objects are made of other settings
        if place(old, before) != place(value, settings):
            changed.append(f"{key} ({old} before, {value} now)")
    if changed:
        raise ValueError(
            f"{written.parent} holds a run with other settings: "
            f"{'; '.join(changed)}. To resume it, give its settings; for "
            f"these, choose another --output_folder."
        )
