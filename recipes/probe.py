"""Asks what a linear layer reads from a frozen encoder, layer by layer.

    python recipes/probe.py hparams/Synthetic/probe.yaml \
        --encoder results/Synthetic/sim_1/encoder --label phones

Features are computed once. Probes of all layers and seeds, and as many with
shuffled labels, are trained side by side. The best layer is chosen on the
validation part, and every layer is reported on the test part.

To read the code, begin at the bottom.
"""

import sys

import numpy as np
import speechbrain as sb
import torch
from speechbrain.utils.distributed import run_on_main
from tqdm import tqdm

from speechbrain_sim.brains.probe import ProbeBatches, ProbeBrain, make_probes
from speechbrain_sim.data.pipeline import classes_of
from speechbrain_sim.experiment import load_experiment
from speechbrain_sim.features import compute_features, load_front_end
from speechbrain_sim.report import (
    is_written,
    score_probes,
    write_probe_results,
)


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
            hparams["encoding_batch_size"],
            run_opts["device"] or sb.utils.distributed.infer_device(),
        )
        for part in ("train", "valid", "test")
    }
    return parts, classes


def as_tensors(parts, standardize):
    """Turns the features into tensors, in the training part's units if asked."""
    x = {}
    for part, layers in parts.items():
        x[part] = {
            n: torch.from_numpy(np.array(f.x)) for n, f in layers.items()
        }
    if standardize:
        for layer, train in x["train"].items():
            mean, std = train.mean(0), train.std(0).clamp(min=1e-5)
            for part in x:
                x[part][layer] = (x[part][layer] - mean) / std
    return x


def main(argv):
    """Computes features, trains the probes and writes the results."""
    hparams, run_opts = load_experiment(argv)
    sb.create_experiment_directory(hparams["output_folder"])
    run_on_main(hparams["prepare"])
    front_end, description = load_front_end(hparams["encoder"])
    about = {
        "label": hparams["label"],
        "encoder": description,
        "settings": {key: hparams[key] for key in hparams["settings"]},
    }
    if is_written(hparams["output_folder"], **about):
        return
    parts, classes = load_features(hparams, run_opts, front_end, description)
    x = as_tensors(parts, hparams["standardize"])
    labels = {p: next(iter(layers.values())).y for p, layers in parts.items()}
    batches = ProbeBatches(
        x["train"],
        torch.from_numpy(labels["train"]),
        hparams["seeds"],
        hparams["controls"],
        hparams["batch_size"],
    )
    probes = make_probes(
        {layer: features.shape[1] for layer, features in x["train"].items()},
        len(classes),
        batches.names,
        hparams["bias"],
    )
    brain = ProbeBrain(probes, hparams["opt_class"], hparams, run_opts)
    epochs = range(1, hparams["number_of_epochs"] + 1)
    brain.train_probes(batches, tqdm(epochs, desc="probes", unit="epoch"))
    scores = score_probes(
        {part: brain.predict(x[part]) for part in ("valid", "test")},
        parts,
        len(hparams["seeds"]),
    )
    write_probe_results(
        hparams["output_folder"], scores, classes=len(classes), **about
    )


if __name__ == "__main__":
    main(sys.argv[1:])
