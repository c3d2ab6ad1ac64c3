"""Measures what a linear layer reads from a frozen encoder, layer by layer.

    python recipes/probe.py hparams/Synthetic/probe.yaml \
        --encoder results/Synthetic/sim_1 --label phones

Activations are computed once and stay on disk, for all labels of utterances
together. Probes are logistic regressions, solved to convergence; their strength
of L2 and units, and the best layer, are chosen on the validation part. Every
layer is then solved on all training data, with controls on shuffled labels, and
tested. With `--protocol paper`, probes are trained as the paper's. Started
again after a kill, it resumes.

To read the code, begin at the bottom.
"""

import json
import re
import shutil
import sys
from pathlib import Path

import speechbrain as sb
from speechbrain.utils import distributed

from speechbrain_sim import __version__
from speechbrain_sim.activations import LABELS, MEAN
from speechbrain_sim.analysis import probes as results
from speechbrain_sim.analysis.intervals import check_controls
from speechbrain_sim.brains.probe import features_of, train_probes
from speechbrain_sim.cli import run_command
from speechbrain_sim.config import RUN, load_experiment
from speechbrain_sim.data.labels import FRAMES, SEQUENCE, kind_of
from speechbrain_sim.data.phones import name_phones
from speechbrain_sim.data.tables import manifest_hash
from speechbrain_sim.extraction import encode_manifest, layers_with
from speechbrain_sim.files import text_hash
from speechbrain_sim.models.format import PROBE, save_parts
from speechbrain_sim.models.load import (
    check_folder,
    load_encoder,
    save_encoder,
)
from speechbrain_sim.probes import ProbeSolver, units_of

PARTS = ("train", "valid", "test")
#: the protocol of the paper's probes
PAPER = "paper"
#: of any protocol, the options that results depend on
SETTINGS = ("layers", "bias", "alignment", "controls", "protocol")


def check(settings):
    """Raises a ValueError for what cannot be probed."""
    label, name = settings["label"], settings["label_name"]
    kind = kind_of(label, settings["label_kinds"])
    check_controls(settings["controls"], 3, kind == FRAMES)  # at least
    if settings["hidden"] and not settings["bias"]:
        raise ValueError(
            "--hidden 0: a probe without bias has no hidden layer."
        )
    if kind == SEQUENCE:
        raise ValueError(f"No linear probe reads a sequence: {label}")
    if not re.fullmatch(r"[^/\\\x00-\x1f]+", name) or len(name) > 99:
        raise ValueError(
            f"--label_name {name!r} names files: give one without slashes and "
            f"line breaks, of at most 99 characters."
        )


#: of runs: what may change when they are resumed (see `probe`), what is refused
RULES = (None, check)


def prepare(hparams):
    """Prepares the corpus; returns kind and classes of a label to probe for.

    Raises a ValueError, before features are computed, for what cannot be
    probed.
    """
    label, data_folder = hparams["label"], hparams["data_folder"]
    kind = kind_of(label, hparams["label_kinds"])
    hparams["prepare"]()
    manifests = {part: hparams[f"{part}_csv"] for part in PARTS}
    examples = manifests, data_folder, label, kind, hparams["controls"]
    return kind, results.check_examples(*examples)


def encode(hparams, run_opts, encoder, description, rows):
    """Encodes the parts of the corpus, unless they are cached."""
    folder, data = hparams["output_folder"], hparams["data_folder"]
    options = {
        "layers": hparams["layers"],
        "rows": rows,
        "alignment": hparams["alignment"],
        "max_seconds": hparams["encoding_seconds"],
        "device": run_opts["device"] or distributed.infer_device(),
    }
    for part in PARTS:
        paths = (
            hparams[f"{part}_csv"],
            data,
            f"{folder}/activations/{rows}/{part}",
        )
        yield encode_manifest(encoder, description, *paths, **options)


def made_of(hparams, kind, rows, description):
    """Returns what results depend on; with these they are not made anew."""
    options, used = sorted({*RUN} & {*hparams}), hparams["used_with"]
    manifests = {part: hparams[f"{part}_csv"] for part in PARTS}
    return {
        "label": hparams["label_name"],
        "column": hparams["label"],
        "kind": kind,
        "version": __version__,
        "activations": f"activations/{rows}",
        "encoder": description,
        "settings": {
            key: hparams[key]
            for key in [*SETTINGS, *used["protocol"][hparams["protocol"]]]
        },
        "run_options": {key: str(hparams[key]) for key in options},
        "manifests": {
            part: manifest_hash(path, hparams["data_folder"])
            for part, path in manifests.items()
        },
    }


def train(hparams, run_opts, known, valid, both, test, classes, folder):
    """Trains probes as the paper's, of several seeds, features as they are.

    Returns the predictions for the validation part, by probes without it, and
    for the test part; how many probes are real; these; and notes on layers.
    """
    options = classes, hparams, run_opts
    controls, seeds = hparams["controls"], len(hparams["seeds"])
    chooser = train_probes(known, *options, 0, folder / "choosing")
    brain = train_probes(both, *options, controls, folder / "testing")
    chosen = chooser.predict(features_of(valid))
    tested = brain.predict(features_of(test))
    falling = brain.watch.still_falling()
    notes = {layer: {"still_falling": layer in falling} for layer in known}
    return chosen, tested, seeds, brain.trained(seeds), notes


def solve(
    hparams, run_opts, known, valid, both, test, classes, folder, moments
):
    """Solves probes: see `train`; strength and units chosen beforehand."""
    options = {"bias": hparams["bias"], "hidden": hparams["hidden"]}
    device = run_opts["device"] or distributed.infer_device()
    steps = run_opts["optimizer_step_limit"] or 2 * bool(run_opts["debug"])
    limit = min(hparams["max_passes"], steps or hparams["max_passes"])
    options |= {"limit": limit, "device": device}
    solver = ProbeSolver(classes, folder=folder, **options)
    units = {
        layer: {
            standardize: units_of(*values, standardize, hparams["bias"])
            for standardize in hparams["standardize"]
        }
        for layer, values in moments.items()
    }
    choices, chosen = solver.choose(known, valid, units, hparams["strengths"])
    testing = both, test, units, choices, hparams["controls"]
    probes, tested, converged = solver.test(*testing)
    notes = {
        layer: {"converged": converged[layer], **choice._asdict()}
        for layer, choice in choices.items()
    }
    return chosen, tested, 1, probes, notes


def probe(hparams, run_opts):
    """Encodes the corpus, trains the probes and writes the results."""
    label, folder = hparams["label"], hparams["output_folder"]
    encoder, description = load_encoder(hparams["encoder"])
    for layer in hparams["layers"] or ():
        encoder.check_layer(layer)
    check_folder(folder, encoder, description, hparams["encoder"])
    sb.create_experiment_directory(folder)
    kind, classes = prepare(hparams)
    rows = LABELS if kind == FRAMES else MEAN
    layers = layers_with(encoder, rows, hparams["layers"])
    about = made_of(hparams, kind, rows, description)
    if results.is_written(folder, **about):
        return
    stores = list(encode(hparams, run_opts, encoder, description, rows))
    known, valid, test = (
        store.examples(label, classes, kind, layers) for store in stores
    )
    both = {layer: known[layer].join(valid[layer]) for layer in layers}

    # of the same probes only, a killed run is resumed
    key = text_hash(json.dumps(about))[:16]
    kept = Path(hparams["save_folder"], f"probes_{key}")
    parts = known, valid, both, test, len(classes), kept
    if hparams["protocol"] == PAPER:
        fitted = train(hparams, run_opts, *parts)
    else:
        moments = {layer: stores[0].statistics(layer) for layer in layers}
        fitted = solve(hparams, run_opts, *parts, moments)
    chosen, tested, real, trained, notes = fitted
    learnt = both[layers[0]].y, real, notes
    scores = results.score_probes(chosen, valid, tested, test, *learnt)
    try:
        save(hparams, encoder, trained, scores, classes, about)
    except RuntimeError:  # of controls: begins anew next time
        shutil.rmtree(kept)
        raise
    shutil.rmtree(kept)


def save(hparams, encoder, probes, scores, classes, about):
    """Saves the probes beside their encoder, then the results."""
    folder, part = hparams["output_folder"], f"{PROBE}_{about['label']}"
    manifests = Path(hparams["train_csv"]).parent
    names = name_phones(about["column"], classes, manifests)
    metadata = {key: about[key] for key in ("label", "kind", "settings")}
    metadata |= {"classes": names, "layers": scores[0]}
    metadata["best_layer"] = results.best_layer(scores[0])
    save_encoder(folder, encoder, about["encoder"], hparams["encoder"])
    save_parts(folder, {part: probes}, {part: metadata})
    about = {**about, "classes": len(classes), "class_names": names}
    results.write_probe_results(folder, scores, **about)


def main(argv):
    """Runs the recipe with a command line."""
    probe(*load_experiment(argv, *RULES))


if __name__ == "__main__":
    run_command(main, sys.argv[1:], "probe.py")
