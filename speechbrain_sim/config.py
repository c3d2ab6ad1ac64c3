"""From a yaml file and a command line to a run's hyper-parameters.

A yaml that begins with `base: other.yaml` is a difference: its keys replace
those of the other file. The file that `--model NAME` names in `hparams/models`
is such a difference, too. Precedence: base < difference < model < command line.
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


def _read_yaml(text):
    return ruamel.yaml.YAML().load(text) or {}


def resolve_base(path):
    """Follows `base:` to the complete yaml.

    Arguments
    ---------
    path : str or Path
        A yaml file.

    Returns
    -------
    path, changes : (Path, dict)
        The yaml without a base, and what the files on the way change in it.

    Raises
    ------
    FileNotFoundError
        If a file does not exist.

    Example
    -------
    >>> path, changes = resolve_base(MODELS / "gim.yaml")
    >>> path.name, dict(changes)
    ('sim.yaml', {'model_name': 'gim', 'probabilistic': False})
    """
    path, changes = Path(path), {}
    while True:
        if not path.is_file():
            raise FileNotFoundError(f"There is no hyper-parameter file {path}.")
        content = _read_yaml(path.read_text(encoding="utf-8"))
        if "base" not in content:
            return path, changes
        base = path.parent / content.pop("base")
        path, changes = base, {**content, **changes}


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
    return {} if name == "sim" else resolve_base(MODELS / f"{name}.yaml")[1]


def load_experiment(argv, may_change=None):
    """Reads a run's hyper-parameters as every recipe here does.

    Merges the yaml with its base, the model's difference and the command line,
    starts the process group under torchrun, builds the objects, and writes the
    whole, resolved, to `hyperparams.yaml` in the output folder.

    Arguments
    ---------
    argv : list of str
        Yaml file, then options as in any SpeechBrain recipe: `--channels 64`,
        `--device cpu`; `--model NAME` picks a file of `hparams/models`.
    may_change : list of str, optional
        For runs that go on: the keys that may differ from the run that is
        already in the output folder.

    Returns
    -------
    hparams, run_opts : (dict, RunOptions)

    Raises
    ------
    KeyError
        If an option is neither SpeechBrain's nor a key of the yaml.
    ValueError
        If a key without a value is not given, or the output folder holds a
        run with other settings.
    """
    hparams_file, run_opts, typed = sb.parse_arguments(argv)
    sb.utils.distributed.ddp_init_group(run_opts)
    path, changes = resolve_base(hparams_file)
    typed = _read_yaml(typed)
    document = _read_yaml(path.read_text(encoding="utf-8"))
    model = changes.pop("model", None)
    if "model" in document:
        model = typed.pop("model", model)
    document.update(changes)
    unknown = sorted(set(typed) - set(document))
    if unknown:
        near = get_close_matches(unknown[0], document, n=1)
        raise KeyError(
            f"{hparams_file} has no key {', '.join(unknown)}, and SpeechBrain "
            f"no such option.{f' Did you mean {near[0]}?' if near else ''} The "
            f"keys are: {', '.join(sorted(document))}."
        )
    defaults = dict(document)
    document.update({**(model_changes(model) if model else {}), **typed})
    missing = [
        f"--{key}"
        for key, node in document.items()
        if hasattr(node, "tag") and node.tag.value == "!PLACEHOLDER"
    ]
    if missing:
        raise ValueError(f"{hparams_file} needs {', '.join(missing)}.")
    text = io.StringIO()
    ruamel.yaml.YAML().dump(document, text)
    merged = io.StringIO(text.getvalue())
    merged.name = str(path)  # what !include: is relative to
    resolved = resolve_references(merged).getvalue()
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
            settings = _read_yaml(resolved)
            _check_same_run(written, settings, defaults, may_change)
        written.write_text(resolved, encoding="utf-8")
    return hparams, run_opts


def as_arguments(**values):
    """Writes options as a command line has them.

    Arguments
    ---------
    **values : any
        Plain values, by the options' names.

    Returns
    -------
    list of str

    Example
    -------
    >>> as_arguments(channels=64, label=None)
    ['--channels', '64', '--label', 'null']
    """
    written = {n: "null" if v is None else str(v) for n, v in values.items()}
    return [text for n, v in written.items() for text in (f"--{n}", v)]


def typed_run_options(run_opts):
    """Returns SpeechBrain's own options, such as --device, as they were typed.

    Arguments
    ---------
    run_opts : RunOptions
        From `load_experiment`.

    Returns
    -------
    list of str
    """
    argv = []
    for name in sorted(run_opts.overridden_args - {"param_file"}):
        value = run_opts[name]
        argv += [f"--{name}"] if value is True else [f"--{name}", str(value)]
    return argv


def _check_same_run(written, settings, defaults, may_change):
    """Raises a ValueError if plain settings differ from those of a run.

    An option that the run did not know yet had the value of its yaml.
    """
    before = {**defaults, **_read_yaml(written.read_text(encoding="utf-8"))}
    plain = (str, int, float, bool, list, type(None))
    changed = [
        f"{key} ({before.get(key)} before, {value} now)"
        for key, value in settings.items()
        if key not in may_change
        and isinstance(value, plain)
        and before.get(key) != value
    ]
    if changed:
        raise ValueError(
            f"{written.parent} holds a run with other settings: "
            f"{'; '.join(changed)}. Choose another --output_folder, or delete "
            f"this one to start over."
        )
