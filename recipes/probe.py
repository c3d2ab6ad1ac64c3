"""Measures what a linear layer reads from a frozen encoder, layer by layer.

    python recipes/probe.py hparams/Synthetic/probe.yaml \
        --encoder results/Synthetic/sim_1/encoder --label phones

Activations are computed once and stay on disk, for all labels of utterances
together. Probes of all layers and seeds, and controls with shuffled labels, are
trained side by side. The best layer is chosen on the validation part; every
layer is then trained on all training data and tested. Started again after a
kill, it resumes.

To read the code, begin at the bottom.
"""

import functools
import hashlib
import json
import shutil
import sys
from pathlib import Path

import speechbrain as sb
import torch
from speechbrain.utils.distributed import (
    infer_device,
    is_distributed_initialized,
)
from speechbrain.utils.epoch_loop import EpochCounter
from tqdm import tqdm

from speechbrain_sim.activations import LABELS, MEAN
from speechbrain_sim.analysis.probes import (
    is_written,
    score_probes,
    write_probe_results,
)
from speechbrain_sim.brains.checkpointer import AtomicCheckpointer
from speechbrain_sim.brains.probe import ProbeBatches, ProbeBrain, make_probes
from speechbrain_sim.config import load_experiment
from speechbrain_sim.data.batches import classes_of
from speechbrain_sim.data.labels import FRAMES, SEQUENCE, kind_of
from speechbrain_sim.data.phones import name_phones
from speechbrain_sim.extraction import encode_manifest
from speechbrain_sim.files import sha256
from speechbrain_sim.models.load import load_front_end

PARTS = ("train", "valid", "test")


def check(hparams, kind):
    """Raises a ValueError for what cannot be probed."""
    problem = None
    if hparams["controls"] < 2:
        problem = (
            f"--controls is {hparams['controls']}: an interval of the probes "
            "on shuffled labels needs at least 2."
        )
    if isinstance(hparams["layers"], str):
        problem = f"--layers is a list: '[{hparams['layers']}]', with brackets."
    if kind == SEQUENCE:
        problem = (
            f"--label {hparams['label']} is of sequences: not for a probe."
        )
    if is_distributed_initialized():
        problem = "recipes/probe.py is one process: start it without torchrun."
    if problem:
        raise ValueError(problem)


def encode(hparams, run_opts, encoder, description, rows):
    """Encodes the parts of the corpus, or finds them encoded."""
    return {
        part: encode_manifest(
            encoder,
            description,
            hparams[f"{part}_csv"],
            hparams["data_folder"],
            f"{hparams['output_folder']}/activations/{rows}/{part}",
            hparams["layers"],
            rows,
            alignment=hparams["alignment"],
            max_seconds=hparams["encoding_seconds"],
            device=run_opts["device"] or infer_device(),
        )
        for part in PARTS
    }


def progress(counter):
    """Counts the epochs that are left, with a bar of all."""
    with tqdm(total=counter.limit, desc="probes", unit="epoch") as bar:
        bar.update(counter.current)  # of a run that was killed
        for epoch in range(counter.current + 1, counter.limit + 1):
            counter.current = epoch
            yield epoch
            bar.update()


def train(hparams, run_opts, classes, folder, examples, controls):
    """Trains a probe per layer and seed, and controls; checkpoints in folder."""
    x = {layer: part.x for layer, part in examples.items()}
    y = torch.from_numpy(next(iter(examples.values())).y)
    batches = ProbeBatches(
        x, y, hparams["seeds"], controls, hparams["batch_size"]
    )
    widths = {layer: features.shape[1] for layer, features in x.items()}
    probes = make_probes(widths, len(classes), batches.names, hparams["bias"])
    counter = EpochCounter(hparams["number_of_epochs"])
    checkpointer = AtomicCheckpointer(folder, {"epoch_counter": counter})
    brain = ProbeBrain(
        probes, hparams["opt_class"], hparams, run_opts, checkpointer
    )
    brain.train_probes(batches, progress(counter))
    return brain


def probe(hparams, run_opts):
    """Encodes the corpus, trains the probes and writes the results."""
    label = hparams["label"]
    kind = kind_of(label, hparams["label_kinds"])
    check(hparams, kind)
    sb.create_experiment_directory(hparams["output_folder"])
    hparams["prepare"]()
    encoder, description = load_front_end(hparams["encoder"])
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
    layers = hparams["layers"] or encoder.layer_names
    manifest = Path(hparams["train_csv"])
    classes = classes_of(manifest, hparams["data_folder"], label, kind)
    stores = encode(hparams, run_opts, encoder, description, rows)
    units = {layer: stores["train"].statistics(layer) for layer in layers}
    units = units if hparams["standardize"] else {}
    known, valid, test = (
        store.examples(label, classes, kind, layers, units)
        for store in stores.values()
    )
    both = {layer: known[layer].join(valid[layer]) for layer in layers}

    # checkpoints of the same probes only are resumed
    key = hashlib.sha256(json.dumps(about).encode()).hexdigest()[:16]
    checkpoints = Path(hparams["save_folder"], f"probes_{key}")
    trained = functools.partial(train, hparams, run_opts, classes)
    # without the validation part, to choose a layer on it
    chooser = trained(checkpoints / "choosing", known, 0)
    # with it, to be tested
    brain = trained(checkpoints / "testing", both, hparams["controls"])
    seeds = len(hparams["seeds"])
    scores = score_probes(
        chooser.predict({layer: part.x for layer, part in valid.items()}),
        valid,
        brain.predict({layer: part.x for layer, part in test.items()}),
        test,
        both[layers[0]].y,
        seeds,
    )
    write_probe_results(
        hparams["output_folder"],
        scores,
        brain.trained(seeds, units),
        classes=len(classes),
        class_names=name_phones(label, classes, manifest.parent),
        **about,
    )
    shutil.rmtree(checkpoints)


def main(argv):
    """Runs the recipe with a command line."""
    probe(*load_experiment(argv))


if __name__ == "__main__":
    main(sys.argv[1:])
