"""From a run to a model on the Hub: export, publish, check."""

import io
import os
import shutil
from pathlib import Path

import numpy as np
import soundfile
from huggingface_hub import HfApi, constants
from speechbrain.utils.logger import get_logger

from speechbrain_sim.data.audio import SAMPLE_RATE, audio_info, read_audio
from speechbrain_sim.data.corpora import UNNAMED, corpus_of
from speechbrain_sim.files import (
    lock_folder,
    short_name,
    write_bytes,
    write_text,
)
from speechbrain_sim.hub.card import CARD, fill_in, name_source, write_card
from speechbrain_sim.hub.results import RESULTS, write_results
from speechbrain_sim.inference import HPARAMS, SmoothInfoMax
from speechbrain_sim.models import fetch
from speechbrain_sim.models.format import (
    CLASSES,
    CONFIG,
    DECODER,
    ENCODER,
    EXAMPLES,
    PROBE,
    WEIGHTS,
    encoder_of,
    halve,
    hashes_of,
    load_parts,
    read_config,
    save_parts,
)
from speechbrain_sim.models.pretrainer import INTERFACE

logger = get_logger(__name__)

EXAMPLE = "example.wav"
#: samples of it, which `check` encodes at once
LONGEST_EXAMPLE = 60 * SAMPLE_RATE


def export_model(
    run,
    folder,
    probes=(),
    decoders=(),
    examples=(),
    data=None,
    licence=None,
    half=False,
):
    """Turns the output of a recipe into a model folder; returns config.json.

    Copies the parts, and adds a card, the results, examples and the yaml of
    `SmoothInfoMax.from_hparams`.

    Arguments
    ---------
    run : str or Path
        Output folder of a recipe; all its parts are taken.
    folder : str or Path
        Where to: a new folder, or one that an export made.
    probes, decoders : list of str
        Output folders of recipes/probe.py and decode.py to take along.
    examples : list of str or Path, or dict
        Recordings that may be given away, and the text of each; the first
        minute is taken. By default some tones.
    data, licence : str, optional
        Of the training, if not those of the run: see `corpus_of`.
    half : bool
        Round weights to half precision: see `speechbrain_sim.models.format`.

    Raises
    ------
    FileNotFoundError
        If there is no encoder, probe or decoder.
    ValueError, BlockingIOError
        If a probe or decoder belongs to another encoder, or there are two of
        one label or layer, or the folder holds something else, or another
        process exports to it.
    """
    folder, path = Path(folder), Path(folder, CONFIG)
    exported = path.exists() and INTERFACE in read_config(path)
    if not exported and folder.exists() and any(folder.iterdir()):
        raise ValueError(f"{folder} is not empty, and no exported model.")
    parts, config = _gather(run, probes, decoders, half)
    spoken = _read_examples(examples)
    # written beside it: a full disk or a kill leaves an older model as it was
    folder = folder.resolve()
    beside = folder.with_name(f"{short_name(folder.name)}.part")
    lock_folder(beside)
    partial = beside / folder.name  # the title of its card
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        config = _write(partial, parts, config, spoken, data, licence)
        write_results(partial, config, run)
        _replace(folder, partial, config)
    finally:
        shutil.rmtree(beside)
    return config


def _replace(folder, partial, config):
    """Moves the files of a model to their folder, and removes former ones."""
    folder.mkdir(exist_ok=True)
    path = folder / CONFIG
    former = _files_of(read_config(path)) if path.exists() else []
    for file in sorted(partial.iterdir(), key=lambda f: f.name == CONFIG):
        os.replace(file, folder / file.name)  # config.json comes last
    for name in set(former) - set(_files_of(config)):
        (folder / name).unlink(missing_ok=True)
    for onnx in folder.glob("*.onnx"):
        onnx.unlink()


def _files_of(config):
    """Lists the files that a config.json names."""
    weights = [name + WEIGHTS for name in config["parts"]]
    return [*weights, *config.get(EXAMPLES, {})]


def _write(folder, parts, config, spoken, data, licence):
    """Writes a model folder; returns config.json."""
    for name, (wav, _) in spoken.items():
        example = io.BytesIO()
        soundfile.write(example, wav, SAMPLE_RATE, format="WAV")
        write_bytes(folder / name, example.getvalue())
    hparams = {"sample_rate": config["sample_rate"]}
    model = SmoothInfoMax(parts, hparams, config, run_opts={"device": "cpu"})
    more = {
        INTERFACE: SmoothInfoMax.__name__,
        "training": config["training"],
        "data": corpus_of(config["training"], data, licence)._asdict(),
        "example": fingerprint(model, folder / EXAMPLE),
        EXAMPLES: {name: text for name, (_, text) in spoken.items()},
    }
    if more["data"]["name"] == UNNAMED and data is None:
        logger.warning(
            "What the model was trained on is not known: give --data and "
            "--licence. (The layout of a known corpus is not enough.)"
        )
    config = save_parts(folder, parts, config["parts"], keep=False, **more)
    write_text(folder / HPARAMS, hyperparams(config))
    write_card(folder, config)
    return config


def _gather(run, probes, decoders, half):
    """Loads, and rounds, the parts of a run and of its probes and decoders."""
    parts, config = load_parts(fetch.LocalFolder(run))
    if config["parts"].get(ENCODER, {}).get("class") != "GreedyEncoder":
        raise FileNotFoundError(
            f"{run} has no GreedyEncoder: only greedy encoders are exported."
        )
    more = [(PROBE, path) for path in probes]
    more += [(DECODER, path) for path in decoders]
    for kind, path in more:
        found, described = load_parts(fetch.LocalFolder(path))
        names = [name for name in found if name.startswith(kind)]
        if not names:
            raise FileNotFoundError(f"{path} holds no {kind}: give another.")
        if encoder_of(described) != encoder_of(config):
            raise ValueError(
                f"{path} belongs to another encoder: train a {kind} of this one."
            )
        coded = hashes_of(config["parts"]).items()
        for name in names:
            read = described["parts"][name].get("bottlenecks", {})
            if not read.items() <= coded:
                raise ValueError(
                    f"{path} holds a {name} of codes of bottlenecks that {run} "
                    f"does not have: export the run that it was trained on."
                )
            if name in parts:
                raise ValueError(
                    f"{path} holds a second {name}: give only one, or give a "
                    f"probe a --label_name of its own."
                )
            parts[name] = found[name]
            config["parts"][name] = described["parts"][name]
    for part in parts.values() if half else ():
        halve(part)
    return parts, config


def _read_examples(examples):
    """Reads recordings at 16 kHz, or makes three tones in a little noise.

    Maps the names that they will have to their samples and texts.
    """
    if not isinstance(examples, dict):
        examples = dict.fromkeys(examples, "")
    if examples:
        names = [f"example_{i + 1}.wav" for i in range(len(examples))]
        read = [read_audio(x, 0, LONGEST_EXAMPLE).numpy() for x in examples]
        spoken = zip(read, examples.values(), strict=True)
        return dict(zip([EXAMPLE, *names[1:]], spoken, strict=True))
    time = np.arange(SAMPLE_RATE // 2) / SAMPLE_RATE
    tones = [np.sin(2 * np.pi * f * time) for f in (220, 330, 440)]
    wav = 0.3 * np.concatenate(tones)
    wav += 0.01 * np.random.default_rng(0).standard_normal(len(wav))
    return {EXAMPLE: (wav, "three tones")}


def fingerprint(model, path):
    """Describes the latents of a file, to compare them on other machines.

    For each layer, its number of frames, and the mean of |mean|.
    """
    samples = audio_info(path).num_samples
    if samples > LONGEST_EXAMPLE:
        raise ValueError(
            f"{path} lasts {samples / SAMPLE_RATE:.0f} s, more than the "
            f"{LONGEST_EXAMPLE // SAMPLE_RATE} s of an example: export again."
        )
    return {
        layer: [latent.mean.shape[1], latent.mean.abs().mean().item()]
        for layer, latent in model.encode_file(path).items()
    }


def hyperparams(config):
    """Returns the text of the yaml of `from_hparams`, from a config.json."""
    return fill_in("hyperparams.yaml", config, classes=CLASSES)


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
        What is right, step by step.

    Raises
    ------
    FileNotFoundError, HubError, ValueError
        At what is not.
    """
    opened = fetch.open_source(source, **options)
    model = SmoothInfoMax.from_pretrained(opened)
    config, name = model.config, opened.name
    count = sum(weight.numel() for weight in model.mods.parameters())
    fit = f"have their hashes and fit the architecture: {count} parameters."
    yield f"{len(config['parts'])} weight files {fit}"
    found = opened.fetch(HPARAMS).read_text(encoding="utf-8")
    expected = hyperparams(config)
    if found != expected and "example" not in config:
        raise ValueError(f"{name} is a run: export it, and check that model.")
    if found != expected:
        lines = set(found.splitlines()) - set(expected.splitlines())
        raise ValueError(
            f"{HPARAMS} of {name} is not the one that makes the model of "
            f"{CONFIG} ({min(lines, default='lines are missing').strip()}): do "
            f"not load it with from_hparams, but with from_pretrained."
        )
    yield f"{HPARAMS} makes the model of {CONFIG} and nothing else."
    data = config.get("data")
    if not isinstance(data, dict) or not {"name", "licence"} <= data.keys():
        raise ValueError(
            f"{CONFIG} of {name} states no training data and their licence: "
            f"export the model again."
        )
    expected = config.get("example")
    for layer, found in fingerprint(model, opened.fetch(EXAMPLE)).items():
        if not _agrees(expected, layer, found):
            raise ValueError(
                f"{layer} of {name} makes {found} of {EXAMPLE}, which is not in "
                f"{expected}: this machine computes something else, or {CONFIG} "
                f"was changed."
            )
    yield f"{EXAMPLE} is encoded as where the model was exported."
    opened.fetch(CARD)
    yield f"There is a card, {CARD}."


def _agrees(expected, layer, found):
    """Whether an example is encoded as config.json states; never if NaN."""
    try:
        frames, size = expected[layer]
        return frames == found[0] and abs(found[1] - size) <= 1e-3 * abs(size)
    except (KeyError, TypeError, ValueError):
        return False


def publish_model(folder, repo, private=False, dry_run=False, say=print):
    """Uploads a model folder to the Hub.

    Only the model's own files; started again, it uploads what is missing.

    Arguments
    ---------
    folder : str or Path
        From `export_model`.
    repo : str
        `user/model`; created if it is not there.
    private : bool
        Whether only you may see it.
    dry_run : bool
        Only print what would be done.
    say : callable
        Prints a line.

    Raises
    ------
    FileNotFoundError, ValueError
        If the folder is no sound model, see `check_model`, or `repo` no name.
    HubError
        If the Hub refuses; or if the repository is there, and is public though
        `private` was asked for.
    """
    folder = Path(folder)
    if not fetch.names_a_repository(repo):
        raise ValueError(
            f"'{repo}' is no name of a model on the Hub: give user/model."
        )
    if not folder.is_dir():
        raise FileNotFoundError(
            f"There is no folder {folder}: give one that was exported."
        )
    for line in check_model(fetch.LocalFolder(folder)):
        say(line)
    files = _plan(folder, repo, private, say)
    if dry_run:
        return say("Nothing was done (--dry-run).")
    api = HfApi()
    failed = f"{repo} could not be uploaded whole", "Run it again, it goes on"
    with fetch.hub_errors(*failed):
        api.create_repo(repo, private=private, exist_ok=True)
        public = private and not api.model_info(repo).private
    if public:
        raise fetch.HubError(
            f"The model {repo} is there already, and is public: choose another "
            f"name, or make it private on its page."
        )
    name_source(folder / CARD, repo)
    options = {"repo_id": repo, "folder_path": folder, "allow_patterns": files}
    options["commit_message"] = "Upload with speechbrain-sim"
    with fetch.hub_errors(*failed):
        done = api.upload_folder(**options)
    say(f"Done: {constants.ENDPOINT}/{repo}, commit {done.oid}.")


def _plan(folder, repo, private, say):
    """Prints what will be uploaded; returns the names of the files."""
    config = read_config(folder / CONFIG)
    files = [*_files_of(config), CONFIG, HPARAMS, CARD]
    files += [RESULTS] * (folder / RESULTS).exists()  # older exports lack it
    files += sorted(path.name for path in folder.glob("*.onnx"))
    size = sum((folder / name).stat().st_size for name in files) / 1e6
    seen = "private" if private else "public"
    say(
        f"To upload to {repo} at {constants.ENDPOINT}, made {seen} if it is not "
        f"there yet, {size:.1f} MB: {', '.join(files)}."
    )
    say(f"{CARD} will name {repo} as its source, there and in {folder}.")
    if config["data"]["licence"] == "other":
        say("The licence is not known: export it with --licence.")
    left = sorted({path.name for path in folder.iterdir()} - set(files))
    if left:
        say(f"Not part of the model, and left out: {', '.join(left)}.")
    return files
