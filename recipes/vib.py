"""Splits a layer of a frozen encoder into textual and acoustic halves.

    python recipes/vib.py hparams/Synthetic/vib.yaml --encoder sim-small \
        --layers "[context]" --latent_dim 64

Stage 1 keeps of each frame what transcribes it (--target chars, phones, words or
pieces, by CTC); stage 2 what else the --labels need, given that. Beside each half
the same decoder learns from the layer itself: the probing baseline. The run's
folder becomes a model: the encoder, and the halves, whose codes are layers named
`context.vib.text` and `context.vib.speaker`; and it gets `vib.json`, the scores
of the test part, and a report on what probes read of each half. Started again
after a kill, a run is resumed, in either stage.
"""

import json
import sys
from pathlib import Path

import speechbrain as sb
import torch
from bottleneck import encode, keep_model
from speechbrain.utils.epoch_loop import EpochCounter

from speechbrain_sim import config
from speechbrain_sim.activations import ALL
from speechbrain_sim.analysis.half_scores import score_halves, score_rows
from speechbrain_sim.analysis.half_settings import read_settings
from speechbrain_sim.analysis.halves import read_data, read_divisions
from speechbrain_sim.analysis.halves_page import write_report
from speechbrain_sim.bottlenecks.coded import MIXED, CodedEncoder
from speechbrain_sim.bottlenecks.vib import TextHalf
from speechbrain_sim.brains.checkpointer import (
    AtomicCheckpointer,
    RewindingTrainLogger,
)
from speechbrain_sim.brains.schedules import check_decay
from speechbrain_sim.brains.vib import (
    TEXT,
    HalvesBrain,
    make_halves,
    read_label,
    read_text,
    read_text_half,
    text_part,
)
from speechbrain_sim.cli import run_command
from speechbrain_sim.data.audio import SAMPLE_RATE
from speechbrain_sim.data.corpora.synthetic import WORDS
from speechbrain_sim.data.labels import UTTERANCE, kind_of
from speechbrain_sim.data.tables import manifest_hash
from speechbrain_sim.data.words import read_spans, read_values
from speechbrain_sim.encoders.mixed import MIX, MixedEncoder
from speechbrain_sim.files import (
    lock_folder,
    read_json,
    text_hash,
    unlock_folder,
    write_json,
)
from speechbrain_sim.models.format import load_parts, save_parts
from speechbrain_sim.models.load import (
    check_folder,
    load_encoder,
    named_by,
    plain,
)
from speechbrain_sim.report.page import Table
from speechbrain_sim.report.tables import markdown_table

PARTS = ("train", "valid", "test")


def check(settings):
    """Raises a ValueError for settings that do not go together."""
    check_decay(settings)
    read_settings(settings["reading"])
    for label in settings["labels"]:
        kind = kind_of(label, settings["label_kinds"])
        if kind != UTTERANCE or label == TEXT or not label.isidentifier():
            raise ValueError(
                f"--labels has {label!r}: a label is a column of whole "
                f"utterances, of letters and digits, and not named {TEXT}."
            )
    if not settings["labels"] and settings["text_from"]:
        raise ValueError(
            "There is nothing to train: give --labels, or leave --text_from out."
        )
    for name in ("words", "polarity"):
        if settings[name] and not settings["labels"]:
            raise ValueError(
                f"--{name} is of the report on where stage 2 looks, and there "
                f"is none without --labels: give one, or leave it out."
            )


#: of runs: what may change when they are resumed, but not the number of epochs,
#: on which the schedules depend; and what is refused
RULES = [n for n in config.MAY_CHANGE if n != "number_of_epochs"]
RULES += ["activations_folder"]
#: the report is no part of the training
SHOWN = ["read", "reading", "words", "polarity", "title", "note"]
RULES = ([*RULES, "encoder", *SHOWN], check)


def open_layer(encoder, layers, latent_dim):
    """Returns encoder, layer, and what is mixed in it, or None."""
    for layer in layers:
        encoder.check_layer(layer)
    channels = encoder.channels_of(layers[0])
    if latent_dim > channels:
        raise ValueError(
            f"--latent_dim {latent_dim} is more than the {channels} channels of "
            f"{layers[0]}: a bottleneck is not wider than its layer."
        )
    if len(layers) == 1:
        return encoder, layers[0], None
    return MixedEncoder(encoder, layers), MIX, layers


def untrained(settings, encoder_of):
    """Returns the encoder that a run will leave, but with untrained halves.

    `encoder_of` returns the encoder of a source.
    """
    original = encoder_of(settings["encoder"])
    original = getattr(original, "plain", original)
    asked = settings["layers"], settings["latent_dim"]
    encoder, layer, mixed = open_layer(original, *asked)
    sizes = encoder.channels_of(layer), settings["latent_dim"]
    made = {"labels": 2, "layers": len(settings["layers"])}
    names = [f"{layer}.vib.{name}" for name in (TEXT, *settings["labels"])]
    entries = {name: {MIXED: mixed} if mixed else {} for name in names}
    halves = {name: TextHalf(*sizes, **made) for name in names}
    return CodedEncoder(original, halves, entries)


def read_tasks(hparams, encoder, layer):
    """Prepares the corpus, and lists its tasks: the text first.

    Raises a ValueError, before any work, for what cannot be learnt. With
    --text_from, the text is of the report alone, and left out where it probes
    no transcripts.
    """
    hparams["prepare"]()
    manifests, tasks = {part: hparams[f"{part}_csv"] for part in PARTS}, []
    data, folder = hparams["data_folder"], hparams["save_folder"]
    if not hparams["text_from"] or read_settings(hparams["reading"]).epochs:
        task = read_text(
            manifests,
            data,
            f"{folder}/{TEXT}",
            hparams["split"],
            target=hparams["target"],
            text=hparams["text_column"],
            frames=lambda samples: encoder.output_lengths(samples, layer),
            vocabulary=hparams["pieces"],
        )
        tasks.append(task)
    for label in hparams["labels"]:
        asked = hparams["split"], label, hparams["text_column"]
        tasks.append(read_label(manifests, data, f"{folder}/{label}", *asked))
    return tasks


def encode_once(hparams, run_opts, encoder, description, layer):
    """Encodes the corpus, unless another run with this folder has done so.

    Returns a list of ActivationStore, see `encode`. Stores of other layers,
    encoders or manifests lie beside each other.
    """
    made_of = [description["sha256"], description.get("arguments"), layer]
    data = hparams["data_folder"]
    made_of += [manifest_hash(hparams[f"{part}_csv"], data) for part in PARTS]
    digest = text_hash(json.dumps(made_of, default=str))[:8]
    place = f"{hparams['activations_folder']}/{digest}"
    kept = {"rows": ALL, "max_seconds": hparams["encoding_seconds"]}
    lock_folder(place)
    of = encoder, description, [layer], place
    stores = encode(hparams, run_opts, *of, **kept)
    unlock_folder(place)
    return [*stores.values()]


def next_stage(hparams, name):
    """Returns settings with other objects that count, log and save epochs.

    The first stage has those of the yaml: by these, a run is known again.
    """
    counter = EpochCounter(hparams["number_of_epochs"])
    saved = f"{hparams['save_folder']}/{name}", {"epoch_counter": counter}
    log = f"{hparams['output_folder']}/train_log_{name}.txt"
    return {
        **hparams,
        "epoch_counter": counter,
        "train_logger": RewindingTrainLogger(log, 4),
        "checkpointer": AtomicCheckpointer(*saved),
    }


def train(hparams, run_opts, task, stores, text_half=None):
    """Trains a half, and its baseline; returns their scores of the test part."""
    kind = TEXT if task.name == TEXT else "label"
    sizes = hparams["latent_dim"], getattr(text_half, "num_units", 0)
    halves = make_halves(
        task,
        hparams["halves"][kind],
        hparams["seed"],
        *sizes,
        input_channels=hparams["channels"],
        layers=len(hparams["layers"]),
    )
    own = {"task": task, "text_half": text_half}
    own |= {f"{part}_csv": path for part, path in task.manifests.items()}
    saved = hparams["checkpointer"]
    settings = {**hparams, **own}
    brain = HalvesBrain(halves, hparams["opt_class"], settings, run_opts, saved)
    brain.open_run()
    print(f"\n=== {task.name}: {task.division}", flush=True)
    brain.fit_stores(stores)
    y = []
    for part in ("test", "train") if kind != TEXT else ():
        y.append(torch.stack([*task.targets[part].values()]).numpy())
    return score_halves(brain.test(), hparams["frame_rate"], *y)


def read_labels(hparams, tasks, layer):
    """Reads what probes look for in the halves: a `Data`.

    Raises a ValueError, before any work, for what cannot be looked for.
    """
    manifests = {part: hparams[f"{part}_csv"] for part in PARTS}
    own = Path(hparams["train_csv"]).with_name(WORDS)
    if hparams["words"] is None and own.exists():
        hparams["words"] = own
    if hparams["polarity"] and not hparams["words"]:
        raise ValueError(
            "--polarity needs to know when words are spoken: give --words."
        )
    for name, read in (("words", read_spans), ("polarity", read_values)):
        if hparams[name] and not Path(hparams[name]).is_file():
            raise FileNotFoundError(
                f"There is no {hparams[name]}: give another --{name}, or none."
            )
        if hparams[name]:
            read(hparams[name])
    known, label = hparams["labels"], next(iter(hparams["labels"]), None)
    known = [*dict.fromkeys([*known, *hparams["read"]])]
    asked = layer, label, known, hparams["label_kinds"]
    data = read_data(manifests, hparams["data_folder"], *asked)
    for task in tasks:
        if task.name == TEXT:
            data = data._replace(targets=(task.texts, task.targets))
    return data


def report(hparams, stores, data):
    """Probes and attributes the halves, and writes the report."""
    manifests = {part: hparams[f"{part}_csv"] for part in PARTS}
    corpus = manifests, hparams["data_folder"]
    own = [n for n, (_, kind) in data.labels.items() if kind == UTTERANCE]
    where = hparams["save_folder"], own, hparams["split"]
    where += (hparams["text_column"],)
    made = stores, read_divisions(*corpus, *where), data
    page = {"title": hparams["title"], "note": hparams["note"]}
    page |= {name: hparams[name] for name in ("words", "polarity")}
    settings = read_settings(hparams["reading"])
    write_report(hparams["output_folder"], *made, settings, *corpus, **page)


def read_scores(folder):
    """Returns what `vib.json` holds and, as `read`, what `halves.json` does."""
    read = read_json(f"{folder}/halves.json")["result"]
    return {**read_json(f"{folder}/vib.json"), "read": read}


def vib(hparams, run_opts):
    """Encodes, trains both stages, and scores the halves."""
    folder, source = hparams["output_folder"], hparams["encoder"]
    original, description = plain(*load_encoder(source))
    asked = hparams["layers"], hparams["latent_dim"]
    encoder, layer, mixed = open_layer(original, *asked)
    check_folder(folder, original, description, source)
    name, given = text_part(layer), None
    if hparams["text_from"]:
        asked = named_by(original, description), layer, mixed
        given = read_text_half(hparams["text_from"], *asked)
    sb.create_experiment_directory(folder)
    tasks = read_tasks(hparams, encoder, layer)
    data = read_labels(hparams, tasks, layer)
    known = description
    if mixed:
        arguments = {MIXED: mixed, "of": description["arguments"]}
        known = {**description, "arguments": arguments}
    stores = encode_once(hparams, run_opts, encoder, known, layer)
    keep_model(folder, original, description, source)
    if given is not None:
        save_parts(folder, {name: given[0]}, {name: given[1]})
    rate = SAMPLE_RATE / encoder.frame_geometry(layer)[0]
    made = {"layer": layer, "mixed": mixed, "frame_rate": rate}
    hparams |= {**made, "channels": encoder.channels_of(layer)}
    tasks = [task for task in tasks if task.name != TEXT or given is None]
    scores = {}
    for task in tasks:
        stage = next_stage(hparams, task.name) if scores else hparams
        half = (
            None if task.name == TEXT else load_parts(folder, [name])[0][name]
        )
        scores |= train(stage, run_opts, task, stores, half)
    made["split"] = {task.name: task.division for task in tasks}
    write_json(f"{folder}/vib.json", {**made, "halves": scores})
    table = Table.of("", "", score_rows(scores))
    print(f"\n{markdown_table(table.header, table.rows)}")
    report(hparams, stores, data)
    print(f"\nWritten to {folder}/report.html, report.md and vib.json")


def main(argv):
    """Runs the recipe with a command line."""
    vib(*config.load_experiment(argv, *RULES))


if __name__ == "__main__":
    run_command(main, sys.argv[1:], "vib.py")
