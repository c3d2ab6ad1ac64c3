"""Measures what a linear layer reads from a frozen encoder, layer by layer.

    python recipes/probe.py hparams/Synthetic/probe.yaml \
        --encoder results/Synthetic/sim_1 --label phones

Activations are computed once and stay on disk, for all labels of utterances
together. Probes of all layers and seeds, and controls with shuffled labels, are
trained side by side. The best layer is chosen on the validation part; every
layer is then trained on all training data and tested. Started again after a
kill, it resumes.

To read the code, begin at the bottom.
"""

import json
import re
import shutil
import sys
from pathlib import Path

import speechbrain as sb
from speechbrain.utils import distributed

from speechbrain_sim import __version__
from speechbrain_sim.activations import LABELS, MEAN
from speechbrain_sim.analysis import probes as results
from speechbrain_sim.analysis.intervals import check_controls
from speechbrain_sim.brains.probe import features_of, train_probes
from speechbrain_sim.cli import run_command
from speechbrain_sim.config import RUN, load_experiment
from speechbrain_sim.data.labels import FRAMES, SEQUENCE, kind_of
from speechbrain_sim.data.phones import name_phones
from speechbrain_sim.data.tables import manifest_hash
from speechbrain_sim.extraction import encode_manifest
from speechbrain_sim.files import text_hash
from speechbrain_sim.models.format import PROBE, save_parts
from speechbrain_sim.models.load import (
    check_folder,
    load_encoder,
    save_encoder,
)

PARTS = ("train", "valid", "test")


def check(settings):
    """Raises a ValueError for what cannot be probed."""
    label, name = settings["label"], settings["label_name"]
    kind = kind_of(label, settings["label_kinds"])
    check_controls(settings["controls"], 3, kind == FRAMES)  # at least
    if kind == SEQUENCE:
        raise ValueError(f"No linear probe reads a sequence: {label}")
    if not re.fullmatch(r"[^/\\\x00-\x1f]+", name) or len(name) > 99:
        raise ValueError(
            f"--label_name {name!r} names files: give one without slashes and "
            f"line breaks, of at most 99 characters."
        )


#: of runs: what may change when they are resumed (see `probe`), what is refused
RULES = (None, check)


def prepare(hparams):
    """Prepares the corpus; returns kind and classes of a label to probe for.

    Raises a ValueError, before features are computed, for what cannot be
    probed.
    """
    label, data_folder = hparams["label"], hparams["data_folder"]
    kind = kind_of(label, hparams["label_kinds"])
    hparams["prepare"]()
    manifests = {part: hparams[f"{part}_csv"] for part in PARTS}
    examples = manifests, data_folder, label, kind, hparams["controls"]
    return kind, results.check_examples(*examples)


def encode(hparams, run_opts, encoder, description, rows):
    """Encodes the parts of the corpus, unless they are cached."""
    folder, data = hparams["output_folder"], hparams["data_folder"]
    options = {
        "layers": hparams["layers"],
        "rows": rows,
        "alignment": hparams["alignment"],
        "max_seconds": hparams["encoding_seconds"],
        "device": run_opts["device"] or distributed.infer_device(),
    }
    for part in PARTS:
        paths = (
            hparams[f"{part}_csv"],
            data,
            f"{folder}/activations/{rows}/{part}",
        )
        yield encode_manifest(encoder, description, *paths, **options)


def made_of(hparams, kind, rows, description):
    """Returns what results depend on; with these they are not made anew."""
    options = sorted({*RUN} & {*hparams})
    manifests = {part: hparams[f"{part}_csv"] for part in PARTS}
    return {
        "label": hparams["label_name"],
        "column": hparams["label"],
        "kind": kind,
        "version": __version__,
        "activations": f"activations/{rows}",
        "encoder": description,
        "settings": {key: hparams[key] for key in hparams["settings"]},
        "run_options": {key: str(hparams[key]) for key in options},
        "manifests": {
            part: manifest_hash(path, hparams["data_folder"])
            for part, path in manifests.items()
        },
    }


def probe(hparams, run_opts):
    """Encodes the corpus, trains the probes and writes the results."""
    label, folder = hparams["label"], hparams["output_folder"]
    encoder, description = load_encoder(hparams["encoder"])
    layers = hparams["layers"] or encoder.layer_names
    for layer in layers:
        encoder.check_layer(layer)
    check_folder(folder, encoder, description, hparams["encoder"])
    sb.create_experiment_directory(folder)
    kind, classes = prepare(hparams)
    rows = LABELS if kind == FRAMES else MEAN
    about = made_of(hparams, kind, rows, description)
    if results.is_written(folder, **about):
        return
    stores = list(encode(hparams, run_opts, encoder, description, rows))
    units = {layer: stores[0].statistics(layer) for layer in layers}
    units = units if hparams["standardize"] else {}
    known, valid, test = (
        store.examples(label, classes, kind, layers, units) for store in stores
    )
    both = {layer: known[layer].join(valid[layer]) for layer in layers}

    # checkpoints of the same probes only are resumed
    key = text_hash(json.dumps(about))[:16]
    checkpoints = Path(hparams["save_folder"], f"probes_{key}")
    options = len(classes), hparams, run_opts
    # to choose a layer on the validation part
    chooser = train_probes(known, *options, 0, checkpoints / "choosing")
    # to be tested
    controls, seeds = hparams["controls"], len(hparams["seeds"])
    brain = train_probes(both, *options, controls, checkpoints / "testing")
    chosen = chooser.predict(features_of(valid)), valid
    tested = brain.predict(features_of(test)), test
    learnt = both[layers[0]].y, seeds, brain.watch.still_falling()
    scores = results.score_probes(*chosen, *tested, *learnt)
    trained = brain.trained(seeds, units)
    try:
        save(hparams, encoder, trained, scores, classes, about)
    except RuntimeError:  # of controls: begins anew next time
        shutil.rmtree(checkpoints)
        raise
    shutil.rmtree(checkpoints)


def save(hparams, encoder, probes, scores, classes, about):
    """Saves the probes beside their encoder, then the results."""
    folder, part = hparams["output_folder"], f"{PROBE}_{about['label']}"
    manifests = Path(hparams["train_csv"]).parent
    names = name_phones(about["column"], classes, manifests)
    metadata = {key: about[key] for key in ("label", "kind", "settings")}
    metadata |= {"classes": names, "layers": scores[0]}
    metadata["best_layer"] = results.best_layer(scores[0])
    save_encoder(folder, encoder, about["encoder"], hparams["encoder"])
    save_parts(folder, {part: probes}, {part: metadata})
    about = {**about, "classes": len(classes), "class_names": names}
    results.write_probe_results(folder, scores, **about)


def main(argv):
    """Runs the recipe with a command line."""
    probe(*load_experiment(argv, *RULES))


if __name__ == "__main__":
    run_command(main, sys.argv[1:], "probe.py")
