"""Trains an encoder: SIM, GIM, CPC, ... or supervised, on any corpus.

    python recipes/pretrain.py hparams/Synthetic/pretrain.yaml
    python recipes/pretrain.py hparams/Synthetic/pretrain.yaml --model gim

Every key of the yaml is an option. The run's folder gets checkpoints, a log
and, after each epoch, the encoder: the folder is a model, for `--encoder` of other
recipes and for `speechbrain_sim.load_encoder`. Started again, a run is resumed.
"""

import sys

import speechbrain as sb
from speechbrain.utils.distributed import if_main_process, run_on_main
from torch import distributed as dist

from speechbrain_sim.brains.greedy import GreedyBrain
from speechbrain_sim.brains.one_by_one import OneByOneBrain
from speechbrain_sim.brains.schedules import check_decay
from speechbrain_sim.brains.stages import (
    StagedBrain,
    check_stages,
    make_chain,
)
from speechbrain_sim.cli import run_command
from speechbrain_sim.config import MAY_CHANGE, load_experiment
from speechbrain_sim.data.batches import classes_of
from speechbrain_sim.data.corpora import recognise
from speechbrain_sim.data.labels import FRAMES, UTTERANCE, kind_of
from speechbrain_sim.files import versions
from speechbrain_sim.models.format import ENCODER, save_parts


def check(settings):
    """Raises a ValueError for settings that do not fit together."""
    supervised = settings["objective"] == "supervised"
    one_by_one, each = settings["schedule"] == "one_by_one", "module_epochs"
    epochs = settings[each] or settings["number_of_epochs"]
    if one_by_one and isinstance(epochs, list):
        settings = {**settings, "number_of_epochs": max(epochs)}
    check_decay(settings)
    if one_by_one and settings["stages"]:
        raise ValueError(
            "--stages is for --schedule together: one_by_one trains one module "
            "at a time, in one process."
        )
    check_stages(settings)
    if one_by_one and (supervised or not settings["greedy"]):
        raise ValueError(
            f"--schedule one_by_one needs modules without a gradient between "
            f"them, such as --model sim or gim, not {settings['model_name']}."
        )
    if one_by_one and settings["frozen"]:
        raise ValueError(
            "--frozen is for --schedule together: in --module_epochs, 0 is for "
            "a module that does not learn."
        )
    if not one_by_one and (settings[each] or settings["store"]):
        raise ValueError(
            "--module_epochs and --store are for --schedule one_by_one."
        )
    label, classes = settings["label"], settings["classes"]
    if supervised and (label is None or classes < 2):
        raise ValueError(
            f"A supervised model needs --label and its number of --classes, 2 "
            f"or more; they are {label} and {classes}."
        )
    if label is not None and not supervised:
        raise ValueError(
            f"--label is {label}, but only --model supervised learns labels."
        )


#: of runs: what may change when they are resumed, and what is refused
RULES = ([*MAY_CHANGE, "module_epochs", "stages", "stage_timeout"], check)


def check_crop(hparams):
    """Raises a ValueError if a crop ends before what is to be predicted."""
    for module in hparams["modules"].values():
        objective, samples = module.smooth_info_nce, hparams["crop_samples"]
        frames = hparams["encoder"].output_lengths(
            samples, [*module.layers][-1]
        )
        steps, window = objective.prediction_steps, objective.window_frames
        if min(frames, window) <= steps:
            raise ValueError(
                f"--prediction_steps is {steps}, but of {module.name} there "
                f"are {frames} frames in --crop_samples {samples}, and "
                f"--window_frames is {window}: both need {steps + 1} frames."
            )


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
            f"'{label}', but --classes is {hparams['classes']}."
        )
    if hparams["per_frame"] != {FRAMES: True, UTTERANCE: False}.get(kind):
        raise ValueError(
            f"--per_frame is {hparams['per_frame']} for the label '{label}', "
            f"of the kind {kind}: it is True for frames, False for utterances."
        )
    return classes, kind


def name_corpus(hparams):
    """Leaves out the name of a corpus that only the layout of its files has."""
    manifests = [hparams["train_csv"], hparams["valid_csv"]]
    manifests.append(f"{hparams['manifest_folder']}/test.csv")
    places = manifests, hparams["data_folder"]
    hparams["about"]["corpus"] = recognise(hparams["corpus"], *places)


def pretrain(hparams, run_opts):
    """Prepares the data and trains."""
    if hparams["objective"] == "contrastive":
        check_crop(hparams)
    sb.create_experiment_directory(hparams["output_folder"])
    make, chain = GreedyBrain, {}
    if hparams["schedule"] == "one_by_one":
        make = OneByOneBrain
    elif hparams["stages"] and dist.is_initialized():
        made = make_chain(hparams, run_opts["device"])
        make, chain = StagedBrain, {"chain": made}
    brain = make(
        modules=hparams["modules"],
        opt_class=hparams["opt_class"],
        hparams=hparams,
        run_opts=run_opts,
        checkpointer=hparams["checkpointer"],
        **chain,
    )
    run_on_main(hparams["prepare"])
    name_corpus(hparams)
    if set(brain.frozen) < set(brain.module_names()):
        brain.fit_manifests(hparams["label"], *check_label(hparams))
    elif if_main_process():  # a random encoder
        training = {"epochs": 0, "seed": hparams["seed"]}
        training |= {"versions": versions(), **hparams["about"]}
        encoder = {ENCODER: hparams["encoder"]}
        save_parts(hparams["output_folder"], encoder, training=training)


def main(argv):
    """Runs the recipe with a command line."""
    pretrain(*load_experiment(argv, *RULES))


if __name__ == "__main__":
    run_command(main, sys.argv[1:], "pretrain.py")
