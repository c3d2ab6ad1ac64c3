"""From a yaml file and options to a run's hyper-parameters.

A yaml that begins with `base: other.yaml` is a difference: its keys replace
those of the other file. `base:` may be a list, of which later files replace the
keys of earlier ones. The file that `--model NAME` names in `hparams/models` is
such a difference, too. Precedence: base < difference < model < options.
"""

import io
from difflib import get_close_matches
from pathlib import Path

import ruamel.yaml
import speechbrain as sb
from hyperpyyaml import load_hyperpyyaml, resolve_references
from speechbrain.utils.distributed import if_main_process

_HERE = Path(__file__).parent
#: the model files, in a wheel or in a checkout
MODELS = _HERE / "hparams_models"
if not MODELS.is_dir():
    MODELS = _HERE.parent / "hparams/models"

#: options that may differ when a run goes on
MAY_CHANGE = ["number_of_epochs", "num_workers", "ckpt_interval_steps"]
MAY_CHANGE += ["tensorboard", "on_bad_audio", "data_folder", "download"]
MAY_CHANGE += ["download_from", "download_checksum"]
#: former names of keys
RENAMED = {
    "negatives": "num_negatives",
    "own_negatives": "within_utterance_negatives",
    "window": "window_frames",
    "draws": "num_samples",
}
#: kinds of values that are settings; others are objects made of them
PLAIN = (str, int, float, bool, list, type(None))


def _parse_yaml(text):
    return ruamel.yaml.YAML().load(text) or {}


def read_yaml(path, _above=()):
    """Reads a yaml with its bases merged, its objects not yet made.

    Arguments
    ---------
    path : str or Path
        A yaml file.

    Returns
    -------
    dict
        The file's own keys first, then those of its bases.

    Raises
    ------
    FileNotFoundError
        If the file, or a base, does not exist.
    ValueError
        If a file is its own base.

    Example
    -------
    >>> dict(list(read_yaml(MODELS / "gim.yaml").items())[:2])
    {'model_name': 'gim', 'probabilistic': False}
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no hyper-parameter file {path}.")
    if path.resolve() in _above:
        raise ValueError(f"{path} is its own base: remove one `base:`.")
    content = _parse_yaml(path.read_text(encoding="utf-8"))
    bases = content.pop("base", [])
    bases = [bases] if isinstance(bases, str) else bases
    for base in reversed(bases):
        inherited = read_yaml(path.parent / base, (*_above, path.resolve()))
        for key, value in inherited.items():
            content.setdefault(key, value)
    return content


def model_changes(name):
    """Reads what a model of the family changes in `sim.yaml`.

    Arguments
    ---------
    name : str
        Name of a file in `hparams/models`, without `.yaml`.

    Returns
    -------
    dict

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
    if name == "sim":
        return {}
    changes = _parse_yaml((MODELS / f"{name}.yaml").read_text("utf-8"))
    del changes["base"]
    return changes


def load_experiment(argv, may_change=None):
    """Reads a run's hyper-parameters from a command line.

    Starts the process group under torchrun, then `make_experiment`.

    Arguments
    ---------
    argv : list of str
        Yaml file, then options as in any SpeechBrain recipe: `--channels 64`,
        `--device cpu`; `--model NAME` picks a file of `hparams/models`.
    may_change : list of str, optional
        See `make_experiment`.

    Returns
    -------
    hparams, run_opts : (dict, RunOptions)

    Raises
    ------
    KeyError, ValueError
        See `make_experiment`.
    """
    hparams_file, run_opts, typed = sb.parse_arguments(argv)
    sb.utils.distributed.ddp_init_group(run_opts)
    options = _parse_yaml(typed)
    return make_experiment(hparams_file, options, run_opts, may_change)


def make_experiment(hparams_file, options, run_opts, may_change=None):
    """Merges a yaml, its bases, a model and options, and builds the objects.

    The whole, resolved, is written to `hyperparams.yaml` in the output folder:
    a yaml without bases, which `load_hyperpyyaml` reads as it is.

    Arguments
    ---------
    hparams_file : str or Path
        The yaml.
    options : dict
        Values for its keys; `model` names a file of `hparams/models`.
    run_opts : RunOptions
        SpeechBrain's own options, which are passed on.
    may_change : list of str, optional
        For runs that are resumed: the keys that may differ from the run that
        is already in the output folder.

    Returns
    -------
    hparams, run_opts : (dict, RunOptions)

    Raises
    ------
    KeyError
        See `check_keys`.
    ValueError
        If a key without a value is not given, or the output folder holds a
        run with other settings.
    """
    document, options = read_yaml(hparams_file), dict(options)
    model = document.pop("model", None)
    if "model_name" in document:
        model = options.pop("model", model)
    check_keys(hparams_file, document, options)
    defaults = dict(document)
    document.update({**(model_changes(model) if model else {}), **options})
    missing = [
        f"--{key}"
        for key, node in document.items()
        if hasattr(node, "tag") and node.tag.value == "!PLACEHOLDER"
    ]
    if missing:
        raise ValueError(f"{hparams_file} needs {', '.join(missing)}.")
    text = io.StringIO()
    ruamel.yaml.YAML().dump(document, text)
    resolved = resolve_references(text.getvalue()).getvalue()
    hparams = load_hyperpyyaml(resolved)
    if if_main_process():
        folder = Path(hparams["output_folder"])
        folder.mkdir(parents=True, exist_ok=True)
        written = folder / "hyperparams.yaml"
        if (
            may_change is not None
            and written.exists()
            and any(Path(hparams["save_folder"]).glob("CKPT*"))
            and not run_opts["debug"]
        ):
            settings = _parse_yaml(resolved)
            _check_same_run(written, settings, defaults, may_change)
        written.write_text(resolved, encoding="utf-8")
    return hparams, run_opts


def check_keys(hparams_file, document, options):
    """Checks the keys of a yaml and of the options for it.

    Raises
    ------
    KeyError
        If one has been renamed, or an option is not a key of the yaml.
    """
    for old, new in RENAMED.items():
        if old in document or old in options:
            raise KeyError(f"{old} is now {new} (in {hparams_file}).")
    unknown = sorted(set(options) - set(document))
    if unknown:
        near = get_close_matches(unknown[0], document, n=1)
        raise KeyError(
            f"{hparams_file} has no key {', '.join(unknown)}, and SpeechBrain "
            f"no such option.{f' Did you mean {near[0]}?' if near else ''} The "
            f"keys are: {', '.join(sorted(document))}."
        )


def _check_same_run(written, settings, defaults, may_change):
    """Raises a ValueError if plain settings differ from those of a run.

    An option that the run did not know yet had the value of its yaml.
    """
    former = _parse_yaml(written.read_text(encoding="utf-8"))
    former = {RENAMED.get(key, key): value for key, value in former.items()}
    before = {**defaults, **former}
    changed = [
        f"{key} ({before.get(key)} before, {value} now)"
        for key, value in settings.items()
        if key not in may_change
        and isinstance(value, PLAIN)
        and before.get(key) != value
    ]
    if changed:
        raise ValueError(
            f"{written.parent} holds a run with other settings: "
            f"{'; '.join(changed)}. Choose another --output_folder, or delete "
            f"this one to start over."
        )
