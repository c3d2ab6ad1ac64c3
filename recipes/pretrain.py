"""Trains an encoder: SIM, GIM, CPC, ... or supervised, on any corpus.

    python recipes/pretrain.py hparams/Synthetic/pretrain.yaml
    python recipes/pretrain.py hparams/Synthetic/pretrain.yaml --model gim

Every key of the yaml is an option. The run's folder gets checkpoints, a log
and, after each epoch, the encoder: it is what other recipes take as --encoder,
and `speechbrain_sim.load_encoder` loads. Started again, a run goes on where it
was.

To read the code, begin at the bottom.
"""

import sys

import speechbrain as sb
from speechbrain.utils.distributed import if_main_process, run_on_main
from speechbrain.utils.train_logger import TensorboardLogger

from speechbrain_sim.brains.greedy import GreedyBrain
from speechbrain_sim.config import MAY_CHANGE, load_experiment
from speechbrain_sim.data.batches import classes_of, training_sets
from speechbrain_sim.data.labels import FRAMES, UTTERANCE, kind_of
from speechbrain_sim.files import versions
from speechbrain_sim.models.format import ENCODER, save_parts


def check_label(hparams):
    """Returns the classes of a supervised run, and what they are of."""
    label = hparams["label"]
    if label is None:
        return None, UTTERANCE
    kind = kind_of(label, hparams["label_kinds"])
    manifest, data_folder = hparams["train_csv"], hparams["data_folder"]
    classes = classes_of(manifest, data_folder, label, kind)
    if len(classes) > hparams["classes"]:
        raise ValueError(
            f"{hparams['train_csv']} has {len(classes)} classes of "
            f"'{label}'; the option --classes says {hparams['classes']}."
        )
    if hparams["per_frame"] != {FRAMES: True, UTTERANCE: False}.get(kind):
        raise ValueError(
            f"per_frame is {hparams['per_frame']} for the label '{label}', of "
            f"kind {kind}: True is for frames, False for utterances."
        )
    return classes, kind


def pretrain(hparams, run_opts):
    """Prepares the data and trains."""
    sb.create_experiment_directory(hparams["output_folder"])
    run_on_main(hparams["prepare"])
    if hparams["tensorboard"]:
        hparams["tensorboard_logger"] = TensorboardLogger(
            hparams["output_folder"] + "/tensorboard"
        )
    brain = GreedyBrain(
        modules=hparams["modules"],
        opt_class=hparams["opt_class"],
        hparams=hparams,
        run_opts=run_opts,
        checkpointer=hparams["checkpointer"],
    )
    if set(brain.frozen) == set(brain.modules):  # a random encoder
        if if_main_process():
            training = {"epochs": 0, "seed": hparams["seed"]}
            training |= {"versions": versions(), **hparams["about"]}
            save_parts(
                hparams["output_folder"],
                {ENCODER: hparams["encoder"]},
                training=training,
            )
        return
    train_set, valid_set = training_sets(
        hparams["train_csv"],
        hparams["valid_csv"],
        hparams["data_folder"],
        hparams["crop"],
        hparams["batch_size"],
        hparams["label"],
        *check_label(hparams),
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
    pretrain(*load_experiment(argv, MAY_CHANGE))


if __name__ == "__main__":
    main(sys.argv[1:])
