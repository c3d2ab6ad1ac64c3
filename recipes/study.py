"""Trains systems, probes them, looks inside some, and writes one report.

    python recipes/study.py hparams/Synthetic/study.yaml

Each step is a run of recipes/pretrain.py, probe.py or decode.py with its own
output folder, whose yaml lies beside the study's. Then every tool of
`speechbrain_sim.analysis.tools` measures the systems `inside`. The folder gets
report.html, report.md and report.json. Started again, a study is resumed:
finished runs and measurements are not repeated.
"""

import json
import sys
from functools import cache, partial
from pathlib import Path
from typing import NamedTuple

import decode
import pretrain
import probe
import speechbrain as sb
import vib
from entries import check
from folds import by_fold, folds_of
from hyperpyyaml import load_hyperpyyaml
from speechbrain.utils.distributed import infer_device, run_on_main
from speechbrain.utils.logger import get_logger

from speechbrain_sim import config
from speechbrain_sim.analysis import tools
from speechbrain_sim.analysis.abx import ABX
from speechbrain_sim.analysis.delta import draw_pairs
from speechbrain_sim.analysis.factors import Factors
from speechbrain_sim.analysis.folds import check_apart
from speechbrain_sim.analysis.latents import encode_clips, read_clips
from speechbrain_sim.analysis.probes import read_examples
from speechbrain_sim.analysis.probing import Probing, read_probed
from speechbrain_sim.analysis.study import Probes, Study, System
from speechbrain_sim.bottlenecks.coded import decoder_of
from speechbrain_sim.cli import run_command
from speechbrain_sim.data.manifests import DATA_COLUMNS
from speechbrain_sim.data.tables import row_hashes
from speechbrain_sim.decoders import DECODERS, WAVEFORM
from speechbrain_sim.files import machine, read_json, sha256, text_hash
from speechbrain_sim.models.format import load_parts
from speechbrain_sim.models.load import load_decoder, load_encoder, plain
from speechbrain_sim.options import dump_yaml
from speechbrain_sim.probes import key_of
from speechbrain_sim.report.page import Table
from speechbrain_sim.report.tables import markdown_table

logger = get_logger(__name__)

#: keys of a study that `report.json` repeats
SETTINGS = ("clips", "clip_samples", "pairs", "smooth_pairs", "weights_label")


class Runs(NamedTuple):
    """Inner runs: where their yamls lie, and what all of them share.

    `manifests` is the folder of those that have all settings of the `corpus`.
    With `dry`, a dict, nothing is run: it gets the settings by output folder.
    `fold` is the option of one of the study's folds, with its value.
    """

    yamls: Path
    options: dict
    run_opts: dict
    manifests: str
    corpus: dict
    dry: dict | None = None
    fold: dict = {}

    def run(self, recipe, yaml, rules, options, **own):
        """Runs a recipe; a run that is done already returns at once.

        `own` are options that nobody else may give, as the fold's.
        """
        own |= self.fold
        for key in sorted(options.keys() & own.keys()):
            raise ValueError(
                f"--{key} is {own[key]} in {own['output_folder']}: the study "
                f"gives it, no options do."
            )
        options, place = (
            {**self.options, **options, **own},
            own["output_folder"],
        )
        experiment = self.yamls / yaml, options, self.run_opts
        try:
            settings, _ = config.read_settings(*experiment, rules[-1])
        except (KeyError, ValueError) as error:
            raise ValueError(f"{place}: {error.args[0]}") from error
        corpus = {key: settings.get(key) for key in self.corpus}
        folder = self.manifests
        if corpus != self.corpus:
            folder += f"_{text_hash(json.dumps(corpus, default=str))[:8]}"
        options.setdefault("manifest_folder", folder)
        if self.dry is not None:
            self.dry[place], _ = config.read_settings(*experiment)
            return
        print(f"\n=== {place}: {yaml}", flush=True)
        recipe(*config.make_experiment(*experiment, *rules))


def open_runs(yamls, hparams, run_opts):
    """Returns the inner runs, which share what the study changes of its corpus.

    Those with equal settings share one preparation, too.
    """
    keys, corpus = ("on_bad_audio", "label_kinds"), {}
    options = {key: hparams[key] for key in keys}
    for key, value in config.read_yaml(yamls / "corpus.yaml").items():
        derived = config.tag_of(value) == "!ref"
        own = hparams.get(key, value)
        if own != value and not derived and not callable(own):
            options[key] = own
        if key in hparams and key not in ["corpus", *config.MAY_CHANGE]:
            corpus |= {} if callable(own) else {key: own}
    folder = hparams["manifest_folder"]
    return Runs(yamls, options, run_opts, folder, corpus)


def check_clips(hparams, folder):
    """Warns if clips are among what the run of a folder was trained on."""
    path = Path(folder, "save/data.json")
    if not path.exists():
        return
    trained = set(read_json(path)[0].values())
    places = hparams["clips_csv"], hparams["data_folder"], DATA_COLUMNS
    clips = [n for n, row in row_hashes(*places).items() if row in trained]
    if clips:
        logger.warning(
            f"{folder} was trained on {len(clips)} recordings of "
            f"{hparams['clips_csv']}, such as {clips[0]}: numbers of these "
            f"clips are of training data."
        )


def train(hparams, runs, name, seed, label=None):
    """Trains a system with one seed; returns its folder and its encoder."""
    system = hparams["systems"][name]
    folder = f"{hparams['output_folder']}/{name}_{seed}"
    if "encoder" in system:
        return folder, system["encoder"]
    if "of" in system:
        source = f"{hparams['output_folder']}/{system['of']}_{seed}"
        source = hparams["systems"][system["of"]].get("encoder", source)
        if "yaml" not in system:
            return folder, source
        own = {"output_folder": folder, "seed": seed, "encoder": source}
        own["activations_folder"] = f"{hparams['output_folder']}/activations"
        asked = system["yaml"], vib.RULES, system.get("options", {})
        runs.run(vib.vib, *asked, **own)
        return folder, folder
    options = {**hparams["pretrain_options"], **system.get("options", {})}
    if label is not None:
        folder += f"_{label}"
        supervised = hparams["labels"][label].get("supervised", {})
        options = {"label": label, **supervised, **options}
    own = {"output_folder": folder, "seed": seed}
    yaml, rules = system["yaml"], pretrain.RULES
    runs.run(pretrain.pretrain, yaml, rules, options, **own)
    return folder, folder


def run_probe(hparams, runs, name, label, folder, encoder, **others):
    """Probes an encoder of a system for a label; see `Runs.run`."""
    entry, own = hparams["labels"].get(label, {}), hparams["systems"][name]
    options = {**own.get("probe", {}), **hparams["probe_options"]}
    paper = options.get("protocol") == probe.PAPER
    options = {
        "label": label,  # the column, unless options have another
        **entry.get("probe", {}),
        **(entry.get("paper", {}) if paper else {}),
        **options,
        **others,
    }
    for key in ("standardize", "hidden") if paper else ():
        options.pop(key, None)  # the paper's are like this
    own = {"output_folder": folder, "label_name": label, "encoder": encoder}
    runs.run(probe.probe, "probe.yaml", probe.RULES, options, **own)


def check_labels(hparams, runs, chosen):
    """Raises a ValueError, before any training, if a label cannot be probed.

    Returns the manifests of the test parts.
    """
    labels, dry = dict.fromkeys(hparams["labels"]), runs._replace(dry={})
    if hparams["inside"] and any("probes" in tool.needs for tool in chosen):
        labels |= {hparams["weights_label"]: None}
    name = next(iter(hparams["systems"]))
    for label in filter(None, labels):
        # of any encoder: the corpus alone is looked at
        run_probe(hparams, dry, name, label, label, "logmel")
        probe.prepare(load_hyperpyyaml(dump_yaml(dry.dry[label])))
    return {settings["test_csv"] for settings in dry.dry.values()}


def train_and_probe(hparams, runs):
    """Trains every system, and probes it for every label.

    Returns folder and encoder of each system's first seed (of `abx_label`, if it
    is trained per label), the folders of the probes, label -> system -> list,
    and the training logs by system.
    """
    encoders, logs, labels = {}, {}, hparams["labels"]
    probed = {label: {} for label in labels}
    for name, system in hparams["systems"].items():
        per_label = system.get("per_label", False)
        seeds = system.get("seeds", [1])
        for seed in seeds if runs.dry is None else seeds[:1]:
            if not per_label:
                folder, encoder = train(hparams, runs, name, seed)
                encoders.setdefault(name, (folder, encoder))
                log = Path(folder, "train_log.txt")
                if log.exists() and "of" not in system:
                    logs |= {name: str(log)}
            for label in labels:
                if per_label:
                    folder, encoder = train(hparams, runs, name, seed, label)
                    if label == hparams["abx_label"]:
                        encoders.setdefault(name, (folder, encoder))
                place = f"{folder}/probe"
                run_probe(hparams, runs, name, label, place, encoder)
                probed[label].setdefault(name, []).append(place)
    return encoders, probed, logs


def train_decoder(hparams, runs, folder, encoder, layer, kind=WAVEFORM):
    """Trains the decoder of a layer; returns its folder."""
    name, options = kind, hparams["spectrogram_options"]
    if kind == WAVEFORM:
        name, epochs = "decoder", hparams["decoder_epochs"]
        options = {"number_of_epochs": epochs[layer]} if layer in epochs else {}
    options = {**hparams["decode_options"], **options}
    own = {"output_folder": f"{folder}/{name}_{layer}"}
    own |= {"encoder": encoder, "layer": layer, "decoder": kind}
    runs.run(decode.decode, "decode.yaml", decode.RULES, options, **own)
    return own["output_folder"]


def train_bias_free(hparams, runs, name, folder, encoder, layers):
    """Trains probes without bias; returns them, and the hash of the scores."""
    label = hparams["weights_label"]
    if label is None:
        return None, None
    out = f"{folder}/probe_without_bias"
    others = {"layers": layers, "bias": False}
    others |= {"standardize": [False], "hidden": 0}
    run_probe(hparams, runs, name, label, out, encoder, **others)
    part = f"probe_{label}"
    scores = Path(out, f"{part}.json")
    about = read_json(scores)
    linear = load_parts(out, [part])[0][part].probes
    probes = Probes(
        about["layers"],
        [f"{label} {name}" for name in about["class_names"]],
        {n: linear[key_of(n)].weight.detach().numpy() for n in layers},
        lambda part: read_examples(out, label, part, layers),
    )
    return probes, sha256(scores)


def layers_of(hparams, encoder):
    """Lists the layers to look at; null: that do not predict their input."""
    names = [n for n in encoder.layer_names if not encoder.predicts_input(n)]
    return hparams["layers"] or names


def origins_of(encoder, layers):
    """Lists the layers whose decoders decode some layers, see `Encoder`."""
    return list(dict.fromkeys(encoder.origin(layer) for layer in layers))


def kinds_of_decoders(hparams, chosen):
    """Lists the kinds of decoders that are chosen and needed by tools."""
    needed = {need for tool in chosen for need in tool.needs}
    return [k for k in DECODERS if k in needed and k in hparams["decoders"]]


def open_system(hparams, runs, study, chosen, name, folder, source):
    """Loads an encoder, trains what the tools need of it, encodes the clips."""
    encoder, description = load_encoder(source)
    layers = layers_of(hparams, encoder)
    device = runs.run_opts["device"] or infer_device()
    encoder, wavs = encoder.to(device), study.clips.wavs.to(device)
    latents = encode_clips(encoder, wavs, layers, study.batch_size)
    decoders, probes = {}, None
    made_of = {"encoder": [description["sha256"], description["arguments"]]}
    digest = plain(encoder, description)[1]["sha256"]
    for kind in kinds_of_decoders(hparams, chosen):
        hashes, made = {}, {}
        made_of[kind] = hashes
        for layer in origins_of(encoder, layers):
            run = train_decoder(hparams, runs, folder, source, layer, kind)
            check_clips(hparams, run)
            made[layer], about = load_decoder(run, layer, digest)
            hashes[layer] = about["sha256"]
        of = {layer: made[encoder.origin(layer)] for layer in layers}
        of = {n: decoder_of(encoder, n, x).to(device) for n, x in of.items()}
        decoders[kind] = of
    if any("probes" in tool.needs for tool in chosen):
        probes, made_of["probes"] = train_bias_free(
            hparams, runs, name, folder, source, layers
        )
    return System(name, encoder, wavs, latents, decoders, probes, made_of)


def check_runs(hparams, runs, chosen):
    """Raises what an inner run would, also if an encoder lacks a layer."""
    dry = runs._replace(dry={})
    encoders, _, _ = train_and_probe(hparams, dry)

    @cache
    def encoder_of(source):
        if source not in dry.dry:
            return load_encoder(source)[0]
        if "halves" in dry.dry[source]:
            return vib.untrained(dry.dry[source], encoder_of)
        untrained = {"encoder": dry.dry[source]["encoder"]}
        return load_hyperpyyaml(dump_yaml(untrained))["encoder"]

    for name in hparams["inside"]:
        folder, source = encoders[name]
        layers = layers_of(hparams, encoder_of(source))
        for layer in origins_of(encoder_of(source), layers):
            for kind in kinds_of_decoders(hparams, chosen):
                train_decoder(hparams, dry, folder, source, layer, kind)
    for settings in dry.dry.values():
        if isinstance(settings["encoder"], str):  # of a probe, or decoder
            encoder = encoder_of(settings["encoder"])
            for layer in settings.get("layers") or ():
                encoder.check_layer(layer)


def make_study(hparams):
    """Prepares the corpus, and reads the clips if there is a system inside."""
    names = {"published": "published", "label": "weights_label"}
    names |= {"seed": "seed", "batch_size": "encoding_batch_size"}
    names |= {"steps": "smooth_steps", "directions": "directions"}
    study = Study(
        Path(hparams["output_folder"]),
        baseline=hparams["baseline"],
        **{field: hparams[key] for field, key in names.items()},
    )
    if not hparams["inside"]:
        return study
    run_on_main(hparams["prepare"])
    keys = "clips_csv data_folder clip_samples clips walk seed".split()
    clips = read_clips(*map(hparams.get, keys))
    hparams["clip_samples"] = clips.wavs.shape[1]
    pairs = partial(draw_pairs, len(clips.ids), seed=hparams["seed"])
    keys = "factors_of factors_train_csv factors_test_csv data_folder".split()
    keys += ["factor_label", "factor_segments", "factors_note"]
    return study._replace(
        clips=clips,
        pairs=pairs(pairs=hparams["pairs"]),
        walk_pairs=pairs(pairs=hparams["smooth_pairs"]),
        factors=hparams["factors_of"] and Factors(*map(hparams.get, keys)),
    )


def compare_phones(hparams, runs, encoders):
    """Measures ABX of all systems; returns the results of the tool.

    None with folds: what one fold tests, the encoders of another learnt.
    """
    if hparams["abx_label"] is None or hparams["folds"]:
        return {}
    run_on_main(hparams["prepare"])
    of = hparams["systems"]
    own = {name: e for name, e in encoders.items() if "of" not in of[name]}
    device = runs.run_opts["device"] or infer_device()
    return {ABX.key: hparams["abx"](own, device=device)}


def read_halves(hparams):
    """Reads the scores of the systems' halves: system -> list, by seed.

    Each is from `vib.read_scores`, with `of`, `options` and `seed`.
    """
    found = {}
    for name, system in hparams["systems"].items():
        halves = {"yaml", "of"} <= system.keys()
        for seed in system.get("seeds", [1]) if halves else ():
            run = vib.read_scores(f"{hparams['output_folder']}/{name}_{seed}")
            run |= {"options": {}, **system, "seed": seed}
            found.setdefault(name, []).append(run)
    return found


def look_inside(hparams, runs, study, chosen, encoders):
    """Opens and measures the systems `inside`; returns the study with both."""
    systems, results = [], dict(study.results)
    for name in hparams["inside"]:
        folder, source = encoders[name]
        check_clips(hparams, source)
        system = open_system(hparams, runs, study, chosen, name, folder, source)
        systems.append(system)
        found = tools.measure_system(system, study, chosen, folder)
        for tool, numbers in found.items():
            results.setdefault(tool, {})[name] = numbers
    return study._replace(systems=systems, results=results)


def main(argv):
    """Runs the study with a command line; returns its hyper-parameters."""
    hparams, run_opts = config.load_experiment(argv, None, check)
    inside, decoders = bool(hparams["inside"]), hparams["decoders"]
    chosen = tools.choose_tools(hparams["tools"], inside, decoders)
    yamls = Path(argv[0]).resolve().parent
    runs = open_runs(yamls, hparams, run_opts)
    folds = folds_of(hparams, runs)
    for fold in folds.values():
        check_runs(*fold, chosen)
    sb.create_experiment_directory(hparams["output_folder"])
    tests = {n: check_labels(*fold, chosen) for n, fold in folds.items()}
    check_apart(tests, hparams["data_folder"])
    study = make_study(hparams)
    trained = {n: train_and_probe(*fold) for n, fold in folds.items()}
    encoders, folders, logs = by_fold(trained)
    probed = read_probed(folders, hparams["baseline"])
    results = compare_phones(hparams, runs, encoders)
    halves = {} if hparams["folds"] else read_halves(hparams)
    made = {"probed": probed, "logs": logs, "halves": halves}
    study = study._replace(results=results, **made)
    study = look_inside(hparams, runs, study, chosen, encoders)
    at = machine()
    note = (
        f"{hparams['note'].strip()}\nComputed on {at['cores']} cores "
        f"({at['gpu'] or 'no GPU'}) with torch {at['torch']} and speechbrain "
        f"{at['speechbrain']}."
    )
    settings = {key: hparams[key] for key in SETTINGS}
    shown = hparams["title"], note, settings
    sections = tools.write_report(study, chosen, *shown)
    items = [i for s in sections if s.key == Probing.key for i in s.items]
    for item in items:
        if isinstance(item, Table):
            table = markdown_table(item.header, item.rows)
            print(f"\n{item.title}: {item.caption}\n\n{table}")
    print(f"\nWritten to {study.folder}/report.html, report.md and report.json")
    return hparams


if __name__ == "__main__":
    run_command(main, sys.argv[1:], "study.py")
