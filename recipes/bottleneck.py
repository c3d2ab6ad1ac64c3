"""Trains sparse codes of the frames of layers of a frozen encoder.

    python recipes/bottleneck.py hparams/Synthetic/sae.yaml --encoder sim-small \
        --k "[16, 32, 64]" --seeds "[1, 2]"
    python recipes/bottleneck.py hparams/Synthetic/vsc.yaml --encoder sim-small \
        --alignment "[1, 0, 0.1, 10]"

`sae.yaml` makes sparse autoencoders, `vsc.yaml` variational sparse coders, whose
gates agree within --classes. What the encoder computes for the corpus is kept in
the run's folder; all layers, sparsities (--k, or --sparsity in percent) or
alignments, and seeds are trained in one pass over it, and scored beside controls
on the test part. The folder becomes a model: the encoder, its decoders if it has
any, and the bottlenecks, whose codes are layers named `module3.sae` or
`module3.vsc`; and it gets a report with a page of their features. Started again
after a kill, a run is resumed.
"""

import sys
from functools import partial
from pathlib import Path

import speechbrain as sb
from speechbrain.utils.distributed import infer_device

from speechbrain_sim import config
from speechbrain_sim.analysis.alignment_baselines import open_beside
from speechbrain_sim.analysis.code_parts import read_predictors
from speechbrain_sim.analysis.code_report import write_report
from speechbrain_sim.analysis.probes import check_examples
from speechbrain_sim.analysis.sparsity import read_settings
from speechbrain_sim.bottlenecks.sae import L1, TEMPORAL
from speechbrain_sim.bottlenecks.vsc import VAE
from speechbrain_sim.brains.bottleneck import (
    BottleneckBrain,
    make_bottlenecks,
    plan,
    plan_alignments,
)
from speechbrain_sim.brains.classes import align, want_classes
from speechbrain_sim.brains.frames import ROWS, check_counts, count_rows
from speechbrain_sim.brains.schedules import Ramp, check_decay
from speechbrain_sim.cli import run_command
from speechbrain_sim.data.labels import FRAMES, kind_of
from speechbrain_sim.data.phones import name_phones
from speechbrain_sim.encoders.logmel import SPECTRAL
from speechbrain_sim.extraction import encode_manifest
from speechbrain_sim.models.fetch import open_source
from speechbrain_sim.models.format import (
    DECODER,
    ENCODER,
    describe,
    load_parts,
    save_parts,
)
from speechbrain_sim.models.load import (
    check_folder,
    load_encoder,
    named_by,
    plain,
    save_encoder,
)

PARTS = ("train", "valid", "test")


def check(settings):
    """Raises a ValueError for settings that do not go together."""
    check_decay(settings)
    read_settings(settings["sheet"])
    check_classes(settings)
    if settings["pooling"] != "mean":
        return
    if settings["variant"] == TEMPORAL:
        raise ValueError(
            "--variant temporal compares neighbouring frames, and --pooling "
            "mean keeps one row of a recording: use --pooling frame."
        )
    for label in settings["labels"]:
        if kind_of(label, settings["label_kinds"]) == FRAMES:
            raise ValueError(
                f"--labels has {label}, of frames, and --pooling mean keeps one "
                f"row of a recording: leave it out, or use --pooling frame."
            )


def check_classes(settings):
    """Raises a ValueError if classes are missing, or no use."""
    variant, classes = settings["variant"], settings["classes"]
    if classes is not None and variant == TEMPORAL:
        raise ValueError(
            "--variant temporal compares neighbouring frames, and --classes "
            "draws frames from everywhere: leave one of them out."
        )
    if "alignment" not in settings:
        return
    if classes is None and variant != VAE and any(settings["alignment"]):
        raise ValueError(
            f"--alignment {settings['alignment']} needs --classes: give a label "
            f"of the corpus, or kmeans:50, or --alignment [0]."
        )
    epochs = settings["number_of_epochs"]
    for name in ("spike_epochs", "alignment_epochs"):
        Ramp(settings[name])
        if settings[name][1] > epochs:
            raise ValueError(
                f"--{name} end after {settings[name][1]} epochs, but "
                f"--number_of_epochs is {epochs}: raise that, or let them end "
                f"before."
            )


#: of runs: what may change when they are resumed, and what is refused; the
#: report is no part of the training
SHOWN = [
    "labels",
    "beside",
    "sheet",
    "factors_of",
    "published",
    "title",
    "note",
]
RULES = ([*config.MAY_CHANGE, "encoder", *SHOWN], check)


def read_labels(hparams):
    """Prepares the corpus; returns classes, kind and names of each label.

    Raises a ValueError, before any work, for what cannot be probed.
    """
    hparams["prepare"]()
    manifests, labels = {n: hparams[f"{n}_csv"] for n in PARTS}, {}
    for label in hparams["labels"]:
        kind = kind_of(label, hparams["label_kinds"])
        data = manifests, hparams["data_folder"], label, kind
        classes = check_examples(*data, controls=10)
        names = name_phones(label, classes, Path(hparams["train_csv"]).parent)
        labels[label] = classes, kind, names
    return labels


def encode(hparams, run_opts, encoder, description, layers, folder, **options):
    """Encodes the parts of the corpus, unless they are cached in a folder."""
    options["device"] = run_opts["device"] or infer_device()
    return {
        part: encode_manifest(
            encoder,
            description,
            hparams[f"{part}_csv"],
            hparams["data_folder"],
            f"{folder}/{part}",
            layers,
            **options,
        )
        for part in PARTS
    }


def keep_model(folder, encoder, description, source):
    """Saves the encoder, and the decoders that come with it."""
    known = save_encoder(folder, encoder, description, source)
    if str(source) in SPECTRAL or ENCODER not in known["parts"]:
        return  # no model folder
    about = describe(open_source(source))["parts"]
    about = {n: part for n, part in about.items() if n.startswith(DECODER)}
    decoders, _ = load_parts(source, list(about))
    save_parts(folder, decoders, about)


def read_wanted(hparams):
    """Finds the classes to align by: Wanted, or None; see `want_classes`."""
    if hparams["classes"] is None:
        return None
    folder = Path(hparams["train_csv"]).parent
    label = hparams["classes"]
    return want_classes(
        label,
        kind_of(label, hparams["label_kinds"]),
        hparams["train_csv"],
        hparams["data_folder"],
        hparams["pooling"],
        hparams["held_out_classes"],
        lambda classes: name_phones(label, classes, folder),
    )


def true_classes(wanted, labels):
    """Returns the classes that gates are scored by: as of `measure_alignment`.

    Of clusters those of the first of --labels, or None.
    """
    label, held_out = wanted.label, [wanted.names[i] for i in wanted.held_out]
    known = wanted.classes, wanted.kind, wanted.names
    if wanted.clusters:
        label, held_out = next(iter(labels), None), []
        known = labels.get(label, known)
    found = dict(zip(("classes", "kind", "names"), known, strict=True))
    return label and {"label": label, "held_out": held_out, **found}


def plan_run(hparams, units):
    """Names the bottlenecks of a run."""
    if "alignment" in hparams:
        weights, kind = hparams["alignment"], hparams["variant"]
        weights = [0.0] if kind == VAE else weights
        return plan_alignments(units, weights, hparams["seeds"], kind)
    several = hparams["k"], hparams["sparsity"]
    if hparams["variant"] == L1:
        several = [1], None  # there is no k
    return plan(units, *several, hparams["seeds"])


def make_brain(hparams, run_opts, encoder, layers, wanted):
    """Makes the bottlenecks and their Brain, after all that can be refused."""
    channels = {layer: encoder.channels_of(layer) for layer in layers}
    width, expansion = hparams["num_units"], hparams["expansion"]
    units = {n: width or round(expansion * c) for n, c in channels.items()}
    hparams["planned"] = plan_run(hparams, units)
    data = hparams["train_csv"], hparams["data_folder"], hparams["pooling"]
    rows = count_rows(encoder, layers, *data)
    check_counts(rows, units, hparams["pooling"])
    idle = {n: hparams["dead_after"] or count for n, count in rows.items()}
    make = hparams["bottleneck"]
    if wanted and "classifier_weight" in hparams:
        make = partial(make, num_classes=len(wanted.classes))
    made = hparams["planned"], make, channels, idle
    return BottleneckBrain(
        make_bottlenecks(*made),
        hparams["opt_class"],
        hparams,
        run_opts,
        hparams["checkpointer"],
    )


def bottleneck(hparams, run_opts):
    """Encodes, trains, scores and reports."""
    folder, source = hparams["output_folder"], hparams["encoder"]
    encoder, description = plain(*load_encoder(source))
    layers = hparams["layers"] or encoder.layer_names
    for layer in layers:
        encoder.check_layer(layer)
    check_folder(folder, encoder, description, source)
    own = named_by(encoder, description)
    open_beside(hparams["beside"], own, layers)
    predictors = read_predictors(source, encoder)
    sb.create_experiment_directory(folder)
    labels = read_labels(hparams)
    wanted = read_wanted(hparams)
    brain = make_brain(hparams, run_opts, encoder, layers, wanted)
    brain.open_run()
    of, rows = (encoder, description, layers), ROWS[hparams["pooling"]]
    kept = {"rows": rows, "log_var": hparams["pooling"] == "frame"}
    kept["max_seconds"] = hparams["encoding_seconds"]
    place = f"{folder}/activations/{rows}"
    stores = encode(hparams, run_opts, *of, place, **kept)
    keep_model(folder, encoder, description, source)
    aligned = wanted and align(
        wanted,
        stores,
        layers,
        Path(hparams["save_folder"]),
        hparams["seed"],
        hparams["samples_per_class"],
        hparams["classes_per_batch"],
        hparams["shuffle_classes"],
    )
    brain.fit_stores(stores, description["sha256"], aligned)
    brain.check_alive()
    write_report(
        folder,
        stores,
        labels,
        (hparams["test_csv"], hparams["data_folder"]),
        hparams["sheet"],
        hparams["factors_of"],
        hparams["published"],
        predictors,
        aligned=wanted and true_classes(wanted, labels),
        beside=hparams["beside"],
        title=hparams["title"],
        note=hparams["note"],
    )
    print(f"\nWritten to {folder}/report.html, report.md and sparsity.json")


def main(argv):
    """Runs the recipe with a command line."""
    bottleneck(*config.load_experiment(argv, *RULES))


if __name__ == "__main__":
    run_command(main, sys.argv[1:], "bottleneck.py")
