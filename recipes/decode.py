"""Trains a decoder for one layer of a frozen encoder: latents -> waveform.

    python recipes/decode.py hparams/Synthetic/decode.yaml \
        --encoder results/Synthetic/sim_1 --layer module3

The decoder mirrors the encoder's own convolutions. The run's folder gets
checkpoints, a log, the decoder for recipes/analyse.py and, after each epoch,
what it makes of a few validation recordings. Started again, a run goes on
where it was.

To read the code, begin at the bottom.
"""

import sys

import speechbrain as sb
from speechbrain.utils.distributed import run_on_main
from speechbrain.utils.train_logger import TensorboardLogger

from speechbrain_sim.brains.decoder import DecoderBrain
from speechbrain_sim.config import MAY_CHANGE, load_experiment
from speechbrain_sim.data.batches import training_sets
from speechbrain_sim.decoders import mirror
from speechbrain_sim.models.load import (
    load_encoder,
    save_encoder,
    saved_encoder,
)


def keep_encoder(folder, encoder, description, source):
    """Saves the encoder beside the decoder; refuses that of another encoder."""
    there = saved_encoder(folder)
    if there not in (None, description["sha256"]):
        raise ValueError(
            f"{folder} holds a decoder of another encoder ({there}, not "
            f"{description['sha256']}): delete it, or choose another "
            f"--output_folder."
        )
    save_encoder(folder, encoder, description, source)


def decode(hparams, run_opts):
    """Prepares the data and trains."""
    sb.create_experiment_directory(hparams["output_folder"])
    source = hparams["encoder"]
    encoder, description = load_encoder(source)
    kept = [hparams["output_folder"], encoder, description, source]
    run_on_main(keep_encoder, args=kept)
    decoder = mirror(encoder, hparams["layer"])
    run_on_main(hparams["prepare"])
    if hparams["tensorboard"]:
        hparams["tensorboard_logger"] = TensorboardLogger(
            hparams["output_folder"] + "/tensorboard"
        )
    hparams["front_end"] = encoder
    brain = DecoderBrain(
        modules={"decoder": decoder},
        opt_class=hparams["opt_class"],
        hparams=hparams,
        run_opts=run_opts,
        checkpointer=hparams["checkpointer"],
    )
    train_set, valid_set = training_sets(
        hparams["train_csv"],
        hparams["valid_csv"],
        hparams["data_folder"],
        hparams["crop"],
        hparams["batch_size"],
    )
    brain.fit(
        hparams["epoch_counter"],
        train_set,
        valid_set,
        train_loader_kwargs=hparams["train_loader_kwargs"],
        valid_loader_kwargs=hparams["valid_loader_kwargs"],
    )


def main(argv):
    """Runs the recipe with a command line."""
    decode(*load_experiment(argv, [*MAY_CHANGE, "encoder"]))


if __name__ == "__main__":
    main(sys.argv[1:])
