"""From a run to a model on the Hub: export, publish, check."""

import io
import json
from pathlib import Path

import numpy as np
import ruamel.yaml
import soundfile
import torch
from huggingface_hub import HfApi, constants

from speechbrain_sim.data.audio import SAMPLE_RATE, read_audio
from speechbrain_sim.files import write_json
from speechbrain_sim.hub.card import corpus_of, name_source, write_card
from speechbrain_sim.inference import SmoothInfoMax
from speechbrain_sim.models.fetch import (
    HubError,
    LocalFolder,
    hub_errors,
    names_a_repository,
    open_source,
)
from speechbrain_sim.models.format import (
    CARD,
    CONFIG,
    DECODER,
    ENCODER,
    EXAMPLE,
    HPARAMS,
    PROBE,
    load_decoder,
    load_encoder,
    read_config,
    write_folder,
)
from speechbrain_sim.probes import LayerProbes

#: what a model's yaml may make
CLASSES = {
    ENCODER: "speechbrain_sim.encoders.greedy.GreedyEncoder",
    DECODER: "speechbrain_sim.decoders.ConvDecoder",
    PROBE: "speechbrain_sim.probes.LayerProbes",
    "pretrainer": "speechbrain_sim.inference.SafetensorsPretrainer",
}


def export_model(
    run, folder, probes=(), decoders=(), example=None, data=None, licence=None
):
    """Turns the output of a recipe into a model folder.

    Arguments
    ---------
    run : str or Path
        Output folder of recipes/pretrain.py; or of recipes/probe.py or
        recipes/decode.py, whose encoder, and results, are taken.
    folder : str or Path
        Where to: a new folder, or one that an export made.
    probes, decoders : list of str
        Output folders of recipes/probe.py and recipes/decode.py to take along.
    example : str or Path, optional
        A recording that may be given away; by default some tones.
    data, licence : str, optional
        The training data and their licence, where they are not what the run
        says: see `speechbrain_sim.hub.card.corpus_of`.

    Returns
    -------
    dict
        The model's config.json.

    Raises
    ------
    FileNotFoundError
        If there is no encoder, probe or decoder.
    ValueError
        If a probe or decoder belongs to another encoder, or there are two of
        one label or layer, or the folder holds something else.
    """
    run, folder = Path(run), Path(folder)
    old = _weights_in(folder)
    encoder, said = load_encoder(find_encoder(run))
    probes = [*probes, *([run] if list(run.glob("probe_*.json")) else [])]
    decoders = [*decoders, *([run] if (run / DECODER).is_dir() else [])]
    parts = {ENCODER: encoder}
    about = {
        "encoder": {
            "architecture": encoder.arguments,
            "layers": encoder.layer_names,
            "checkpoint_sha256": said["sha256"],
        },
        "decoders": {},
        "probes": {},
    }
    for path in decoders:
        layer, part, about_part = _read_decoder(path, said)
        if layer in about["decoders"]:
            raise ValueError(
                f"{path} holds a second decoder of {layer}: give one per layer."
            )
        parts[f"{DECODER}_{layer}"] = part
        about["decoders"][layer] = about_part
    for path in probes:
        for label, part, about_part in _read_probes(path, said):
            if label in about["probes"]:
                raise ValueError(
                    f"{path} holds a second probe of {label}: give one per "
                    f"label."
                )
            parts[f"{PROBE}_{label}"] = part
            about["probes"][label] = about_part
    kept = ("architecture", "layers", "sha256")
    about["training"] = {k: v for k, v in said.items() if k not in kept}
    about["data"] = corpus_of(about["training"], data, licence)._asdict()
    wav = _read_example(example)
    # all is read: only now may an older model be lost
    config = write_folder(folder, parts, about)
    for name in old - set(config["sha256"]):
        (folder / name).unlink(missing_ok=True)
    soundfile.write(folder / EXAMPLE, wav, SAMPLE_RATE)
    config["example"] = fingerprint(
        SmoothInfoMax(parts, config, config=config, run_opts={"device": "cpu"}),
        folder / EXAMPLE,
    )
    write_json(folder / CONFIG, config)
    (folder / HPARAMS).write_text(hyperparams(config), encoding="utf-8")
    write_card(folder, config)
    return config


def _weights_in(folder):
    """Names of the weight files that an earlier export left in a folder."""
    if not folder.exists() or not any(folder.iterdir()):
        return set()
    if not (folder / CONFIG).exists():
        raise ValueError(f"{folder} is not empty: give a new folder.")
    return set(read_config(folder / CONFIG)["sha256"])


def find_encoder(run):
    """Finds the encoder of a recipe's output.

    Arguments
    ---------
    run : str or Path
        Output folder of a recipe.

    Returns
    -------
    Path
        The folder of `encoder.json` and `encoder.ckpt`.

    Raises
    ------
    FileNotFoundError
        If there is none.
    """
    run = Path(run)
    for folder in (run / ENCODER, run):
        if (folder / f"{ENCODER}.json").exists():
            return folder
    if (run / HPARAMS).exists():
        yaml = ruamel.yaml.YAML().load((run / HPARAMS).read_text("utf-8"))
        named = yaml.get(ENCODER)
        if isinstance(named, str) and (Path(named) / "encoder.json").exists():
            return Path(named)
    raise FileNotFoundError(
        f"{run} has no encoder: give the output folder of a recipe, and run "
        f"from where the recipe was run."
    )


def _read_decoder(path, encoder):
    """Loads a decoder: its layer, the network, what to say of it."""
    path = Path(path)
    path = path / DECODER if (path / DECODER).is_dir() else path
    described = path / f"{DECODER}.json"
    if not described.exists():
        raise FileNotFoundError(
            f"{path} holds no decoder: give the output folder of "
            f"recipes/decode.py."
        )
    layer = json.loads(described.read_text("utf-8"))["layer"]
    decoder, said = load_decoder(path, encoder, layer)
    keys = ("sampled", "epochs", "seed", "reconstruction", "valid")
    about = {key: said[key] for key in keys if key in said}
    return layer, decoder, {"architecture": decoder.arguments, **about}


def _read_probes(path, encoder):
    """Loads the probes of the first seed: label, network, what to say of it."""
    found = sorted(Path(path).glob("probe_*.json"))
    if not found:
        raise FileNotFoundError(
            f"{path} holds no probes: give the output folder of "
            f"recipes/probe.py."
        )
    for described in found:
        said = json.loads(described.read_text("utf-8"))
        if said["encoder"]["sha256"] != encoder["sha256"]:
            raise ValueError(
                f"{described} is about another encoder: probe this one."
            )
        weights = np.load(described.with_name(f"{described.stem}_weights.npz"))
        layers = list(said["layers"])
        probes = LayerProbes(
            {layer: weights[f"{layer}.weight"].shape[1] for layer in layers},
            said["classes"],
            bias=f"{layers[0]}.bias" in weights,
        )
        state = probes.state_dict()
        for layer in layers:
            for name in ("weight", "bias"):
                if f"{layer}.{name}" in weights:
                    state[f"probes.{layer}.{name}"] = torch.from_numpy(
                        weights[f"{layer}.{name}"][:1]
                    )
            for name in ("mean", "std"):
                if f"{layer}.{name}" in weights:
                    state[f"{layer}_{name}"] = torch.from_numpy(
                        weights[f"{layer}.{name}"]
                    )
        probes.load_state_dict(state)
        about = {
            "architecture": probes.config,
            "classes": said["class_names"],
            "per_frame": said["label"] == "phones",
            "best_layer": said["best_layer"],
            "settings": said["settings"],
            "layers": said["layers"],
        }
        yield said["label"], probes.eval(), about


def _read_example(example):
    """Reads a recording at 16 kHz, or makes three tones in a little noise."""
    if example is not None:
        return read_audio(example).numpy()
    time = np.arange(SAMPLE_RATE // 2) / SAMPLE_RATE
    tones = [np.sin(2 * np.pi * f * time) for f in (220, 330, 440)]
    wav = 0.3 * np.concatenate(tones)
    return wav + 0.01 * np.random.default_rng(0).standard_normal(len(wav))


def fingerprint(model, path):
    """Describes what a model makes of a file, to be compared elsewhere.

    Arguments
    ---------
    model : SmoothInfoMax
        The model.
    path : str or Path
        An audio file.

    Returns
    -------
    dict of str to list
        For each layer, its number of frames, and the mean of |mean|.
    """
    return {
        layer: [latent.mean.shape[1], latent.mean.abs().mean().item()]
        for layer, latent in model.encode_file(path).items()
    }


def hyperparams(config):
    """Writes the yaml that SpeechBrain's `from_hparams` reads.

    Arguments
    ---------
    config : dict
        A model's config.json.

    Returns
    -------
    str
    """
    described = {ENCODER: (ENCODER, config["encoder"])}
    for kind, many in (DECODER, "decoders"), (PROBE, "probes"):
        for name, part in config[many].items():
            described[f"{kind}_{name}"] = kind, part
    lines = [
        "# Needs the package speechbrain-sim. Load it with",
        "# speechbrain_sim.inference.SmoothInfoMax.from_hparams",
        f"sample_rate: {config['sample_rate']}",
        "",
    ]
    for name, (kind, part) in described.items():
        lines += [f"{name}: !new:{CLASSES[kind]}", _indented(part), ""]
    refs = [f"{name}: !ref <{name}>" for name in described]
    lines += ["modules:", *(f"    {ref}" for ref in refs), ""]
    lines += [f"pretrainer: !new:{CLASSES['pretrainer']}", "    loadables:"]
    lines += [f"        {ref}" for ref in refs]
    return "\n".join(lines) + "\n"


def _indented(part):
    """Arguments as yaml, one level in."""
    yaml, text = ruamel.yaml.YAML(), io.StringIO()
    yaml.default_flow_style = None
    yaml.dump(part["architecture"], text)
    return "\n".join(f"    {line}" for line in text.getvalue().splitlines())


def check_model(source, **options):
    """Verifies a model; runs no code of its maker.

    Arguments
    ---------
    source :
        A folder, or `user/model`, see `open_source`.
    **options :
        See `open_source`.

    Yields
    ------
    str
        What has been found good, step by step.

    Raises
    ------
    FileNotFoundError, HubError, ValueError
        At what is not; says what to do.
    """
    opened = open_source(source, **options)
    model = SmoothInfoMax.from_pretrained(opened)
    count = sum(weight.numel() for weight in model.mods.parameters())
    yield (
        f"{len(model.config['sha256'])} weight files have their hashes and fit "
        f"the architecture: {count} parameters."
    )
    text = opened.fetch(HPARAMS).read_text(encoding="utf-8")
    made = {tag for _, tag, _ in _events(text)} - {"None", "!", "!ref"}
    strange = sorted(made - {f"!new:{name}" for name in CLASSES.values()})
    if strange:
        raise ValueError(
            f"{HPARAMS} of {opened.name} does more than make the model: "
            f"{', '.join(strange)}. Do not load it with from_hparams."
        )
    if _events(text) != _events(hyperparams(model.config)):
        raise ValueError(
            f"{HPARAMS} of {opened.name} does not make the model of {CONFIG}: "
            f"export it again, or use from_pretrained."
        )
    yield f"{HPARAMS} makes the model of {CONFIG} and nothing else."
    expected = _example_of(model, opened.name)
    found = fingerprint(model, opened.fetch(EXAMPLE))
    for layer, (frames, size) in expected.items():
        close = abs(found[layer][1] - size) <= 1e-3 * abs(size)  # never if nan
        if found[layer][0] != frames or not close:
            raise ValueError(
                f"{layer} of {opened.name} makes {found[layer]} of {EXAMPLE}, "
                f"not {[frames, size]}: this machine computes something else."
            )
    yield f"{EXAMPLE} is encoded as where the model was exported."
    opened.fetch(CARD)
    yield f"There is a card, {CARD}."


def _example_of(model, name):
    """Reads what a model says of its example; it must say its data, too."""
    data, example = model.config.get("data"), model.config.get("example")
    if not isinstance(data, dict) or not {"name", "licence"} <= set(data):
        raise ValueError(
            f"{CONFIG} of {name} says nothing of the training data and their "
            f"licence: export the model again."
        )
    try:
        example = {k: (int(n), float(size)) for k, (n, size) in example.items()}
    except (AttributeError, TypeError, ValueError, OverflowError):
        example = {}
    if set(example) != set(model.layer_names):
        raise ValueError(
            f"{CONFIG} of {name} does not say what all layers make of "
            f"{EXAMPLE}: export the model again."
        )
    return example


def _events(text):
    """Lists what a yaml consists of, with tags and values; makes none of it."""
    try:
        return [
            (
                type(event).__name__,
                str(getattr(event, "tag", None)),
                getattr(event, "value", None),
            )
            for event in ruamel.yaml.YAML().parse(text)
        ]
    except ruamel.yaml.YAMLError as error:
        raise ValueError(
            f"{HPARAMS} is no yaml: {' '.join(str(error).split())}. Export the "
            f"model again, or use from_pretrained."
        ) from error


def publish_model(folder, repo, private=False, dry_run=False, say=print):
    """Uploads a model folder to the Hub.

    Only the model's own files are uploaded. Interrupted and started again, it
    uploads what is missing.

    Arguments
    ---------
    folder : str or Path
        From `export_model`.
    repo : str
        `user/model`; created if it is not there.
    private : bool
        Whether only you may see it.
    dry_run : bool
        Say what would be done, and do nothing.
    say : callable
        Gets a line at a time, before what it says is done.

    Raises
    ------
    FileNotFoundError, ValueError
        If the folder is no sound model, see `check_model`, or `repo` no name.
    HubError
        If the Hub refuses; or if the repository is there, and is public though
        `private` was asked for.
    """
    folder = Path(folder)
    if not names_a_repository(repo):
        raise ValueError(
            f"'{repo}' is no name of a model on the Hub: give user/model, "
            f"after the name of a user or organization."
        )
    if not folder.is_dir():
        raise FileNotFoundError(
            f"There is no folder {folder}: give one that `speechbrain-sim "
            f"export` wrote."
        )
    for line in check_model(LocalFolder(folder)):
        say(line)
    files = [*read_config(folder / CONFIG)["sha256"], CONFIG, HPARAMS]
    files += [CARD, EXAMPLE]
    size = sum((folder / name).stat().st_size for name in files)
    say(
        f"To upload to {repo} at {constants.ENDPOINT}, made "
        f"{'private' if private else 'public'} if it is not there yet, "
        f"{size / 1e6:.1f} MB: {', '.join(files)}."
    )
    say(f"{CARD} will name {repo} as its source, there and in {folder}.")
    if read_config(folder / CONFIG)["data"]["licence"] == "other":
        say("Nobody said under which licence: export it with --licence.")
    left = sorted({path.name for path in folder.iterdir()} - set(files))
    if left:
        say(f"Not part of the model, and left out: {', '.join(left)}.")
    if dry_run:
        say("Nothing was done (--dry-run).")
        return
    api = HfApi()
    with hub_errors(repo):
        api.create_repo(repo, private=private, exist_ok=True)
        if private and not api.model_info(repo).private:
            raise HubError(
                f"The model {repo} is there already, and is public: choose "
                f"another name, or make it private on its page."
            )
    name_source(folder / CARD, repo)
    with hub_errors(repo):
        done = api.upload_folder(
            repo_id=repo,
            folder_path=folder,
            allow_patterns=files,
            commit_message="Upload with speechbrain-sim",
        )
    say(f"Done: {constants.ENDPOINT}/{repo}, commit {done.oid}.")
