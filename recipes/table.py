"""Trains and probes the systems of a table, and writes their scores.

    python recipes/table.py hparams/Synthetic/table.yaml

Each step is a run of recipes/pretrain.py or recipes/probe.py with its own
output folder, so that a table that was stopped goes on where it was.

To read the code, begin at the bottom.
"""

import sys
from pathlib import Path

import pretrain
import probe

from speechbrain_sim.analysis.probes import write_table
from speechbrain_sim.config import (
    as_arguments,
    load_experiment,
    typed_run_options,
)


def run_system(hparams, run_options, name, label, seed):
    """Trains one system with one seed, and probes it for one label.

    Returns the folders of its training (none if untrained) and of its probes.
    """
    system = hparams["systems"][name]
    folder = f"{hparams['output_folder']}/{name}_{seed}"
    corpus = {
        "data_folder": hparams["data_folder"],
        **hparams["corpus_options"],
    }
    encoder = system.get("encoder")
    if "of" in system:
        encoder = f"{hparams['output_folder']}/{system['of']}_{seed}"
    if encoder is None:
        labelled = {}
        if system.get("per_label"):
            folder += f"_{label}"
            labelled = {
                "label": label,
                **hparams["labels"][label]["supervised"],
            }
        encoder = folder
        print(
            f"\n=== {name} (seed {seed}): training, or finding it done",
            flush=True,
        )
        pretrain.main(
            [f"{hparams['folder']}/{system['yaml']}", *run_options]
            + as_arguments(
                **corpus,
                output_folder=folder,
                seed=seed,
                **labelled,
                **{**hparams["pretrain_options"], **system.get("options", {})},
            )
        )
    print(f"\n=== {name} (seed {seed}): probes for {label}", flush=True)
    probe.main(
        [f"{hparams['folder']}/probe.yaml", *run_options]
        + as_arguments(
            **corpus,
            output_folder=f"{folder}/probe",
            encoder=encoder,
            label=label,
            **{
                **hparams["labels"][label]["probe"],
                **system.get("probe", {}),
                **hparams["probe_options"],
            },
        )
    )
    return folder, f"{folder}/probe"


def main(argv):
    """Runs every system for every label, then writes the table."""
    hparams, run_opts = load_experiment(argv)
    if hparams["baseline"] not in hparams["systems"]:
        raise ValueError(
            f"The baseline {hparams['baseline']} is not among the systems: give "
            f"--baseline one of {', '.join(hparams['systems'])}."
        )
    run_options = typed_run_options(run_opts)
    probed = {label: {} for label in hparams["labels"]}
    logs = {}
    for name, system in hparams["systems"].items():
        for label in hparams["labels"]:
            for seed in system.get("seeds", [1]):
                folder, results = run_system(
                    hparams, run_options, name, label, seed
                )
                probed[label].setdefault(name, []).append(results)
                log = Path(folder, "train_log.txt")
                if log.exists() and not system.get("per_label"):
                    logs[name] = str(log)
    report = write_table(
        hparams["output_folder"],
        hparams["title"],
        hparams["note"],
        probed,
        hparams["baseline"],
        logs,
    )
    print(f"\n{report}\nWritten to {hparams['output_folder']}/table.md")


if __name__ == "__main__":
    main(sys.argv[1:])
