"""Asks what a linear layer reads from a frozen encoder, layer by layer.

    python recipes/probe.py hparams/Synthetic/probe.yaml \
        --encoder results/Synthetic/sim_1 --label phones

Features are computed once and stay on disk. Probes of all layers and seeds, and
controls with shuffled labels, are trained side by side. The best layer is chosen
on the validation part; every layer is then trained on all training data and
tested. Started again after a kill, it goes on.

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
from speechbrain.utils.distributed import run_on_main
from speechbrain.utils.epoch_loop import EpochCounter
from tqdm import tqdm

from speechbrain_sim.activations import Examples, compute_features, moments
from speechbrain_sim.analysis.probes import (
    is_written,
    score_probes,
    write_probe_results,
)
from speechbrain_sim.brains.checkpointer import AtomicCheckpointer
from speechbrain_sim.brains.probe import ProbeBatches, ProbeBrain, make_probes
from speechbrain_sim.config import load_experiment
from speechbrain_sim.data.batches import classes_of
from speechbrain_sim.data.phones import name_phones
from speechbrain_sim.files import sha256
from speechbrain_sim.models.load import load_encoder

PARTS = ("train", "valid", "test")


def load_features(hparams, run_opts, front_end, description):
    """Computes or finds the features of the three parts."""
    layers = hparams["layers"] or front_end.layer_names
    label, data_folder = hparams["label"], hparams["data_folder"]
    classes = classes_of(hparams["train_csv"], data_folder, label)
    parts = {
        part: compute_features(
            front_end,
            description,
            hparams[f"{part}_csv"],
            data_folder,
            label,
            classes,
            layers,
            f"{hparams['output_folder']}/features/{label}/{part}",
            hparams["encoding_seconds"],
            run_opts["device"] or sb.utils.distributed.infer_device(),
            hparams["alignment"],
        )
        for part in PARTS
    }
    return parts, classes


def as_examples(parts, standardize):
    """Opens features to draw from: {part: {layer: x}}, {part: y}, and units.

    A part more, "both", is training and validation part together.
    """
    x = {part: {} for part in (*PARTS, "both")}
    units = {}
    for layer, train in parts["train"].items():
        mean, std = None, None
        if standardize:  # in the training part's units
            mean, std = moments(Examples([train.x]))
            units.update({f"{layer}.mean": mean, f"{layer}.std": std})
        stored = {part: [features[layer].x] for part, features in parts.items()}
        stored["both"] = stored["train"] + stored["valid"]
        for part, arrays in stored.items():
            x[part][layer] = Examples(arrays, mean, std)
    any_layer = next(iter(x["train"]))
    y = {p: torch.from_numpy(f[any_layer].y) for p, f in parts.items()}
    y["both"] = torch.cat([y["train"], y["valid"]])
    return x, y, units


def trained_weights(brain, seeds):
    """Returns the weights of the real probes, the controls' left out."""
    return {
        f"{layer}.{name}": weight[:seeds].detach().cpu()
        for layer, probe in brain.modules.items()
        for name, weight in probe.named_parameters()
    }


def progress(counter):
    """Goes through the epochs that are left, with a bar of all."""
    with tqdm(total=counter.limit, desc="probes", unit="epoch") as bar:
        bar.update(counter.current)  # of a run that was killed
        for epoch in range(counter.current + 1, counter.limit + 1):
            counter.current = epoch
            yield epoch
            bar.update()


def train_probes(hparams, run_opts, x, y, classes, controls, folder):
    """Trains one probe per layer and seed, and the controls of each layer.

    Checkpoints go to a folder.
    """
    batches = ProbeBatches(
        x, y, hparams["seeds"], controls, hparams["batch_size"]
    )
    probes = make_probes(
        {layer: features.shape[1] for layer, features in x.items()},
        len(classes),
        batches.names,
        hparams["bias"],
    )
    counter = EpochCounter(hparams["number_of_epochs"])
    checkpointer = AtomicCheckpointer(folder, {"epoch_counter": counter})
    brain = ProbeBrain(
        probes, hparams["opt_class"], hparams, run_opts, checkpointer
    )
    brain.train_probes(batches, progress(counter))
    return brain


def probe(hparams, run_opts):
    """Computes features, trains the probes and writes the results."""
    if hparams["controls"] < 2:
        raise ValueError(
            f"--controls is {hparams['controls']}: an interval of the probes "
            "on shuffled labels needs at least 2."
        )
    if isinstance(hparams["layers"], str):
        raise ValueError(
            f"--layers is a list: '[{hparams['layers']}]', with brackets."
        )
    sb.create_experiment_directory(hparams["output_folder"])
    run_on_main(hparams["prepare"])
    front_end, description = load_encoder(hparams["encoder"])
    about = {
        "label": hparams["label"],
        "encoder": description,
        "settings": {key: hparams[key] for key in hparams["settings"]},
        "manifests": {p: sha256(hparams[f"{p}_csv"]) for p in PARTS},
    }
    if is_written(hparams["output_folder"], **about):
        return
    parts, classes = load_features(hparams, run_opts, front_end, description)
    x, y, units = as_examples(parts, hparams["standardize"])

    # checkpoints of the same probes only are gone on with
    key = hashlib.sha256(json.dumps(about).encode()).hexdigest()[:16]
    checkpoints = Path(hparams["save_folder"], f"probes_{key}")
    train = functools.partial(train_probes, hparams, run_opts)
    # on the training part, to choose a layer on the validation part
    chooser = train(
        x["train"], y["train"], classes, 0, checkpoints / "choosing"
    )
    # on both, to be tested
    brain = train(
        x["both"],
        y["both"],
        classes,
        hparams["controls"],
        checkpoints / "testing",
    )
    scores = score_probes(
        chooser.predict(x["valid"]),
        y["valid"].numpy(),
        brain.predict(x["test"]),
        parts["test"],
        y["both"].numpy(),
        len(hparams["seeds"]),
    )
    write_probe_results(
        hparams["output_folder"],
        scores,
        {**trained_weights(brain, len(hparams["seeds"])), **units},
        classes=len(classes),
        class_names=name_phones(
            hparams["label"], classes, hparams["save_folder"]
        ),
        **about,
    )
    shutil.rmtree(checkpoints)


def main(argv):
    """Runs the recipe with a command line."""
    probe(*load_experiment(argv))


if __name__ == "__main__":
    main(sys.argv[1:])
