"""Trains a decoder for one layer of a frozen encoder: latents -> waveform.

    python recipes/decode.py hparams/Synthetic/decode.yaml \
        --encoder results/Synthetic/sim_1 --layer module3 --decoder spectrogram

By default the decoder is the paper's, the encoder's own convolutions mirrored;
--decoder spectrogram trains one that is audible where that one is silent. The
run's folder gets checkpoints, a log, the decoder and, after each epoch, what it
makes of a few validation recordings. Started again, a run is resumed.
"""

import sys

import speechbrain as sb
from speechbrain.utils.distributed import run_on_main

from speechbrain_sim import config
from speechbrain_sim.brains.decoder import DecoderBrain
from speechbrain_sim.brains.schedules import check_decay
from speechbrain_sim.cli import run_command
from speechbrain_sim.decoders import SPECTROGRAM, make_decoder
from speechbrain_sim.models.load import (
    check_folder,
    load_encoder,
    plain,
    save_encoder,
)
from speechbrain_sim.objectives.reconstruction import SpectrogramLoss

#: of runs: what may change when they are resumed, and what is refused
RULES = ([*config.MAY_CHANGE, "encoder"], check_decay)


def keep_encoder(folder, encoder, description, source):
    """Saves the encoder beside the decoder; refuses that of another encoder."""
    check_folder(folder, encoder, description, source)
    save_encoder(folder, encoder, description, source)


def decode(hparams, run_opts):
    """Prepares the data and trains."""
    sb.create_experiment_directory(hparams["output_folder"])
    source, layer = hparams["encoder"], hparams["layer"]
    encoder, description = load_encoder(source)
    if (origin := encoder.origin(layer)) != layer:
        raise ValueError(
            f"{layer} is decoded by the decoder of {origin}: give --layer "
            f"{origin}."
        )
    encoder, description = plain(encoder, description)
    kept = [hparams["output_folder"], encoder, description, source]
    kind = hparams["decoder"]
    decoder = make_decoder(encoder, layer, kind)
    if kind == SPECTROGRAM:
        hparams["reconstruction"] = SpectrogramLoss()
    run_on_main(keep_encoder, args=kept)
    hparams["frozen_encoder"] = encoder
    brain = DecoderBrain(
        modules={"decoder": decoder},
        opt_class=hparams["opt_class"],
        hparams=hparams,
        run_opts=run_opts,
        checkpointer=hparams["checkpointer"],
    )
    run_on_main(hparams["prepare"])
    brain.fit_manifests()


def main(argv):
    """Runs the recipe with a command line."""
    decode(*config.load_experiment(argv, *RULES))


if __name__ == "__main__":
    run_command(main, sys.argv[1:], "decode.py")
