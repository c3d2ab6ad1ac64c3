"""Trains sparse autoencoders on the frames of layers of a frozen encoder.

    python recipes/bottleneck.py hparams/Synthetic/sae.yaml --encoder sim-small \
        --k "[16, 32, 64]" --seeds "[1, 2]"

What the encoder computes for the corpus is kept in the run's folder; all layers,
sparsities (--k, or --sparsity in percent) and seeds are trained in one pass over
it, and scored beside controls on the test part. The folder becomes a model: the
encoder, its decoders if it has any, and the autoencoders, whose codes are layers
named `module3.sae`; and it gets a report with a page of their features. Started
again after a kill, a run is resumed.
"""

import sys
from pathlib import Path

import speechbrain as sb
from speechbrain.utils.distributed import infer_device

from speechbrain_sim import config
from speechbrain_sim.analysis import feature_pages, sparsity
from speechbrain_sim.analysis.probes import check_examples
from speechbrain_sim.bottlenecks.sae import L1
from speechbrain_sim.brains.bottleneck import (
    BottleneckBrain,
    make_bottlenecks,
    plan,
)
from speechbrain_sim.brains.frames import ROWS, check_rows, count_rows
from speechbrain_sim.brains.schedules import check_decay
from speechbrain_sim.cli import run_command
from speechbrain_sim.data.labels import FRAMES, kind_of
from speechbrain_sim.data.phones import name_phones
from speechbrain_sim.encoders.logmel import SPECTRAL
from speechbrain_sim.extraction import encode_manifest
from speechbrain_sim.files import cached_result
from speechbrain_sim.inference import SmoothInfoMax
from speechbrain_sim.models.fetch import open_source
from speechbrain_sim.models.format import (
    DECODER,
    ENCODER,
    describe,
    identity_of,
    load_parts,
    save_parts,
)
from speechbrain_sim.models.load import (
    check_folder,
    load_encoder,
    plain,
    save_encoder,
)
from speechbrain_sim.report.page import Section, Table
from speechbrain_sim.report.tables import number

PARTS = ("train", "valid", "test")
#: what features are chosen by for their pages, besides F1 and effect
SCORES = {"stability": "stability", "certainty": "sure"}


def check(settings):
    """Raises a ValueError for settings that do not go together."""
    check_decay(settings)
    sparsity.read_settings(settings["sheet"])
    if settings["pooling"] != "mean":
        return
    if settings["variant"] == "temporal":
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


#: what may change when a run is resumed: it is no part of the training
REPORT = ["encoder", "labels", "sheet", "factors_of", "title", "note"]
#: of runs: what may change when they are resumed, and what is refused
RULES = ([*config.MAY_CHANGE, *REPORT], check)


def read_labels(hparams):
    """Prepares the corpus; returns classes and kind of each label.

    Raises a ValueError, before any work, for what cannot be probed.
    """
    hparams["prepare"]()
    manifests, labels = {n: hparams[f"{n}_csv"] for n in PARTS}, {}
    for label in hparams["labels"]:
        kind = kind_of(label, hparams["label_kinds"])
        data = manifests, hparams["data_folder"], label, kind
        labels[label] = check_examples(*data, controls=10), kind
    return labels


def encode(hparams, run_opts, encoder, description, layers):
    """Encodes the parts of the corpus, unless they are cached."""
    rows, folder = ROWS[hparams["pooling"]], hparams["output_folder"]
    options = {
        "layers": layers,
        "rows": rows,
        "log_var": hparams["pooling"] == "frame",
        "max_seconds": hparams["encoding_seconds"],
        "device": run_opts["device"] or infer_device(),
    }
    return {
        part: encode_manifest(
            encoder,
            description,
            hparams[f"{part}_csv"],
            hparams["data_folder"],
            f"{folder}/activations/{rows}/{part}",
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


def make_brain(hparams, run_opts, encoder, layers):
    """Makes the bottlenecks and their Brain, after all that can be refused."""
    channels = {layer: encoder.channels_of(layer) for layer in layers}
    width, expansion = hparams["num_units"], hparams["expansion"]
    units = {n: width or round(expansion * c) for n, c in channels.items()}
    k = hparams["k"][: 1 if hparams["variant"] == L1 else None]  # has no k
    chosen = k, hparams["sparsity"], hparams["seeds"]
    hparams["planned"] = plan(units, *chosen)
    data = hparams["train_csv"], hparams["data_folder"], hparams["pooling"]
    rows = count_rows(encoder, layers, *data)
    check_rows(rows, units, hparams["pooling"])
    idle = {n: hparams["dead_after"] or count for n, count in rows.items()}
    made = hparams["planned"], hparams["bottleneck"], channels, idle
    return BottleneckBrain(
        make_bottlenecks(*made),
        hparams["opt_class"],
        hparams,
        run_opts,
        hparams["checkpointer"],
    )


def report(hparams, stores, labels):
    """Writes the score sheet, and the report with a page of the features."""
    folder = Path(hparams["output_folder"])
    model = SmoothInfoMax.from_pretrained(folder)
    coded, manifests = model.encoder, Path(hparams["train_csv"]).parent
    names = {
        label: name_phones(label, classes, manifests)
        for label, (classes, _) in labels.items()
    }
    settings = {"names": names, "factors_of": hparams["factors_of"]}
    settings |= hparams["sheet"]
    made_of = {"sheet": hparams["sheet"], "labels": labels, "names": names}
    made_of |= {"model": identity_of(model.config), "of": sparsity.VERSION}
    made_of["factors"] = hparams["factors_of"] is not None
    made_of["stores"] = {n: store.made_of for n, store in stores.items()}
    work = coded.encoder, coded.bottlenecks, stores, labels, settings
    sheet = cached_result(
        folder / "sparsity.json", made_of, lambda: sparsity.measure_codes(*work)
    )
    rows = {
        layer: {
            label: (names[label], stores["test"].labels(label, *how, layer))
            for label, how in labels.items()
        }
        for layer in map(coded.origin, coded.bottlenecks)
    }
    data = stores["test"], rows, hparams["test_csv"], hparams["data_folder"]
    about = {"title": hparams["title"], "note": hparams["note"]}
    about["sections"] = [sparsity.section(sheet, folder)]
    about["sections"] += published_sections(hparams["published"])
    about["scores"] = {
        name: {s: units[key] for s, key in SCORES.items() if key in units}
        for name, units in sheet["units"].items()
    }
    feature_pages.write_pages(folder, model, *data, **about)
    print(f"\nWritten to {folder}/report.html, report.md and sparsity.json")


def published_sections(published):
    """Makes a Section of a paper's accuracies, of a layer and over sparsity."""
    if not published:
        return []
    published, header = dict(published), ["", "layer"]
    note, sparsities = published.pop("note"), published.pop("sparsities")
    header += [f"{share} % zero" for share in sparsities]
    tables = [
        Table(
            f"Published accuracy of {label} (%)",
            note,
            header,
            [
                [name, number(found["layer"], 1)]
                + [number(x, 1) for x in found["codes"]]
                for name, found in systems.items()
            ],
        )
        for label, systems in published.items()
    ]
    sentence = "Of other encoders, to compare with."
    return [Section("published", "What the paper reports", sentence, tables)]


def bottleneck(hparams, run_opts):
    """Encodes, trains, scores and reports."""
    folder, source = hparams["output_folder"], hparams["encoder"]
    encoder, description = plain(*load_encoder(source))
    layers = hparams["layers"] or encoder.layer_names
    for layer in layers:
        encoder.check_layer(layer)
    check_folder(folder, encoder, description, source)
    sb.create_experiment_directory(folder)
    labels = read_labels(hparams)
    brain = make_brain(hparams, run_opts, encoder, layers)
    brain.open_run()
    stores = encode(hparams, run_opts, encoder, description, layers)
    keep_model(folder, encoder, description, source)
    brain.fit_stores(stores["train"], stores["valid"], description["sha256"])
    brain.check_alive()
    report(hparams, stores, labels)


def main(argv):
    """Runs the recipe with a command line."""
    bottleneck(*config.load_experiment(argv, *RULES))


if __name__ == "__main__":
    run_command(main, sys.argv[1:], "bottleneck.py")
