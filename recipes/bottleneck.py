"""Trains sparse autoencoders on the frames of layers of a frozen encoder.

    python recipes/bottleneck.py hparams/Synthetic/sae.yaml --encoder sim-small \
        --k "[16, 32, 64]" --seeds "[1, 2]"

What the encoder computes for the corpus is kept in the run's folder; all layers,
sparsities (--k, or --sparsity in percent) and seeds are trained in one pass over
it, and scored beside controls on the test part. The folder becomes a model: the
encoder, its decoders if it has any, and the autoencoders, whose codes are layers
named `module3.sae`. Started again after a kill, a run is resumed.
"""

import sys

import speechbrain as sb
import torch
from speechbrain.utils.distributed import infer_device
from speechbrain.utils.logger import get_logger

from speechbrain_sim import config
from speechbrain_sim.brains.bottleneck import (
    BottleneckBrain,
    make_bottlenecks,
    plan,
)
from speechbrain_sim.brains.frames import ROWS
from speechbrain_sim.brains.schedules import check_decay
from speechbrain_sim.cli import run_command
from speechbrain_sim.data.tables import read_manifest
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
    plain,
    save_encoder,
)

logger = get_logger(__name__)

PARTS = ("train", "valid", "test")


def check(settings):
    """Raises a ValueError for settings that do not go together."""
    check_decay(settings)
    if settings["variant"] == "temporal" and settings["pooling"] == "mean":
        raise ValueError(
            "--variant temporal compares neighbouring frames, and --pooling "
            "mean keeps one row of a recording: use --pooling frame."
        )
    kinds = settings["label_kinds"]
    frames = [n for n in settings["labels"] if kinds.get(n) == "frames"]
    if frames and settings["pooling"] == "mean":
        raise ValueError(
            f"--labels has {frames[0]}, of frames, and --pooling mean keeps one "
            f"row of a recording: leave {frames[0]} out, or use --pooling frame."
        )


#: of runs: what may change when they are resumed, and what is refused
RULES = ([*config.MAY_CHANGE, "encoder", "labels"], check)


def count_rows(encoder, layers, hparams):
    """Counts the rows of the training part; refuses fewer than units.

    Returns a dict of layer to rows.
    """
    manifest = read_manifest(hparams["train_csv"], hparams["data_folder"])
    samples = torch.tensor([row["num_samples"] for row in manifest.values()])
    if hparams["pooling"] == "mean":
        return dict.fromkeys(layers, len(samples))
    return {n: int(encoder.output_lengths(samples, n).sum()) for n in layers}


def check_rows(rows, units, pooling):
    """Refuses a layer that has fewer frames than units."""
    for layer, count in rows.items():
        few = (
            f"{layer} has {count} rows in the training part, fewer than its "
            f"{units[layer]} units: use a smaller --num_units or --expansion, "
            f"or more data."
        )
        if count < units[layer] and pooling == "mean":
            logger.warning(few)  # as the paper's set has
        elif count < units[layer]:
            raise ValueError(few)


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


def bottleneck(hparams, run_opts):
    """Encodes, trains, scores and reports."""
    folder, source = hparams["output_folder"], hparams["encoder"]
    encoder, description = plain(*load_encoder(source))
    layers = hparams["layers"] or encoder.layer_names
    for layer in layers:
        encoder.check_layer(layer)
    channels = {layer: encoder.channels_of(layer) for layer in layers}
    units = {
        layer: hparams["num_units"] or round(hparams["expansion"] * count)
        for layer, count in channels.items()
    }
    chosen = hparams["k"], hparams["sparsity"], hparams["seeds"]
    hparams["planned"] = plan(units, *chosen)
    check_folder(folder, encoder, description, source)
    sb.create_experiment_directory(folder)
    hparams["prepare"]()
    rows = count_rows(encoder, layers, hparams)
    check_rows(rows, units, hparams["pooling"])
    dead_after = {
        n: hparams["dead_after"] or count for n, count in rows.items()
    }
    brain = BottleneckBrain(
        make_bottlenecks(
            hparams["planned"], hparams["bottleneck"], channels, dead_after
        ),
        hparams["opt_class"],
        hparams,
        run_opts,
        hparams["checkpointer"],
    )
    brain.open_run()
    stores = encode(hparams, run_opts, encoder, description, layers)
    keep_model(folder, encoder, description, source)
    digest = description["sha256"]
    brain.fit_stores(stores["train"], stores["valid"], digest)
    brain.check_alive()
    report(hparams, stores)


def report(hparams, stores):
    """Writes the score sheet and the pages of features."""


def main(argv):
    """Runs the recipe with a command line."""
    bottleneck(*config.load_experiment(argv, *RULES))


if __name__ == "__main__":
    run_command(main, sys.argv[1:], "bottleneck.py")
