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

import hashlib
import json
import shutil
import sys
from pathlib import Path

import speechbrain as sb
from speechbrain.utils import distributed

from speechbrain_sim.activations import LABELS, MEAN
from speechbrain_sim.analysis.probes import (
    best_layer,
    is_written,
    score_probes,
    write_probe_results,
)
from speechbrain_sim.brains.probe import train_probes
from speechbrain_sim.config import load_experiment
from speechbrain_sim.data.batches import classes_of
from speechbrain_sim.data.labels import FRAMES, SEQUENCE, kind_of
from speechbrain_sim.data.phones import name_phones
from speechbrain_sim.extraction import encode_manifest
from speechbrain_sim.files import sha256
from speechbrain_sim.models.format import PROBE, save_parts
from speechbrain_sim.models.load import load_encoder, save_encoder

PARTS = ("train", "valid", "test")


def check(hparams, kind):
    """Raises a ValueError for what cannot be probed."""
    if hparams["controls"] < 2:
        raise ValueError("--controls: an interval needs at least 2.")
    if isinstance(hparams["layers"], str):
        layers = hparams["layers"]
        raise ValueError(f"--layers is a list: '[{layers}]', with brackets.")
    if kind == SEQUENCE:
        raise ValueError(
            f"No linear probe reads a sequence: {hparams['label']}"
        )
    if distributed.is_distributed_initialized():
        raise ValueError("One process probes: start it without torchrun.")


def encode(hparams, run_opts, encoder, description, rows):
    """Encodes the parts of the corpus, or finds them encoded."""
    folder = f"{hparams['output_folder']}/activations/{rows}"
    return [
        encode_manifest(
            encoder,
            description,
            hparams[f"{part}_csv"],
            hparams["data_folder"],
            f"{folder}/{part}",
            hparams["layers"],
            rows,
            alignment=hparams["alignment"],
            max_seconds=hparams["encoding_seconds"],
            device=run_opts["device"] or distributed.infer_device(),
        )
        for part in PARTS
    ]


def probe(hparams, run_opts):
    """Encodes the corpus, trains the probes and writes the results."""
    label = hparams["label"]
    kind = kind_of(label, hparams["label_kinds"])
    check(hparams, kind)
    sb.create_experiment_directory(hparams["output_folder"])
    hparams["prepare"]()
    encoder, description = load_encoder(hparams["encoder"])
    layers = hparams["layers"] or encoder.layer_names
    rows = LABELS if kind == FRAMES else MEAN
    about = {
        "label": label,
        "kind": kind,
        "activations": f"activations/{rows}",
        "encoder": description,
        "settings": {key: hparams[key] for key in hparams["settings"]},
        "manifests": {p: sha256(hparams[f"{p}_csv"]) for p in PARTS},
    }
    if is_written(hparams["output_folder"], **about):
        return
    manifest, data_folder = hparams["train_csv"], hparams["data_folder"]
    classes = classes_of(manifest, data_folder, label, kind)
    stores = encode(hparams, run_opts, encoder, description, rows)
    units = {layer: stores[0].statistics(layer) for layer in layers}
    units = units if hparams["standardize"] else {}
    known, valid, test = (
        store.examples(label, classes, kind, layers, units) for store in stores
    )
    both = {layer: known[layer].join(valid[layer]) for layer in layers}

    # checkpoints of the same probes only are resumed
    key = hashlib.sha256(json.dumps(about).encode()).hexdigest()[:16]
    checkpoints = Path(hparams["save_folder"], f"probes_{key}")
    options = len(classes), hparams, run_opts
    # to choose a layer on the validation part
    chooser = train_probes(known, *options, 0, checkpoints / "choosing")
    # to be tested
    brain = train_probes(
        both, *options, hparams["controls"], checkpoints / "testing"
    )
    scores = score_probes(
        chooser.predict({layer: part.x for layer, part in valid.items()}),
        valid,
        brain.predict({layer: part.x for layer, part in test.items()}),
        test,
        both[layers[0]].y,
        len(hparams["seeds"]),
    )
    probes = brain.trained(len(hparams["seeds"]), units)
    save(hparams, encoder, probes, scores, classes, about)
    shutil.rmtree(checkpoints)


def save(hparams, encoder, probes, scores, classes, about):
    """Saves the probes beside their encoder, then the results."""
    folder, label = hparams["output_folder"], about["label"]
    manifests = Path(hparams["train_csv"]).parent
    names, best = name_phones(label, classes, manifests), best_layer(scores[0])
    metadata = {key: about[key] for key in ("label", "kind", "settings")}
    metadata |= {"classes": names, "layers": scores[0], "best_layer": best}
    save_encoder(folder, encoder, about["encoder"], hparams["encoder"])
    part = f"{PROBE}_{label}"
    save_parts(folder, {part: probes}, {part: metadata})
    about = {**about, "classes": len(classes), "class_names": names}
    write_probe_results(folder, scores, **about)


def main(argv):
    """Runs the recipe with a command line."""
    probe(*load_experiment(argv))


if __name__ == "__main__":
    main(sys.argv[1:])
