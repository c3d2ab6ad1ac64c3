"""Trains a decoder for one layer of a frozen encoder: latents -> waveform.

    python recipes/decode.py hparams/Synthetic/decode.yaml \
        --encoder results/Synthetic/sim_1/encoder --layer module3

The decoder mirrors the encoder's own convolutions. The run's folder gets
checkpoints, a log, the decoder and, after each epoch, what it makes of a few
validation recordings. Started again, a run is resumed.
"""

import sys
from pathlib import Path

import speechbrain as sb
from speechbrain.utils.distributed import run_on_main

from speechbrain_sim.brains.decoder import DecoderBrain
from speechbrain_sim.config import MAY_CHANGE, load_experiment
from speechbrain_sim.decoders import mirror
from speechbrain_sim.files import remembered
from speechbrain_sim.models.load import load_front_end


def check_encoder(folder, description):
    """Raises a ValueError if a run's folder has a decoder of another encoder."""
    path = Path(folder, "encoder_of_this_run.json")
    before = remembered(path, {}, lambda: description["sha256"])
    if before != description["sha256"]:
        raise ValueError(
            f"{folder} holds a decoder of another encoder ({before}, not "
            f"{description['sha256']}): choose another --output_folder."
        )


def decode(hparams, run_opts):
    """Prepares the data and trains."""
    sb.create_experiment_directory(hparams["output_folder"])
    front_end, description = load_front_end(hparams["encoder"])
    run_on_main(check_encoder, args=[hparams["output_folder"], description])
    decoder = mirror(front_end, hparams["layer"])
    run_on_main(hparams["prepare"])
    hparams["front_end"] = front_end
    hparams["about"] = {
        "encoder": description["sha256"],
        "reconstruction": hparams["reconstruction"].weights,
    }
    brain = DecoderBrain(
        modules={"decoder": decoder},
        opt_class=hparams["opt_class"],
        hparams=hparams,
        run_opts=run_opts,
        checkpointer=hparams["checkpointer"],
    )
    brain.fit_manifests()


def main(argv):
    """Runs the recipe with a command line."""
    decode(*load_experiment(argv, [*MAY_CHANGE, "encoder"]))


if __name__ == "__main__":
    main(sys.argv[1:])
