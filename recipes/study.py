"""Trains systems, probes them, looks inside some, and writes one report.

    python recipes/study.py hparams/Synthetic/study.yaml

Each step is a run of recipes/pretrain.py, probe.py or decode.py with its own
output folder, whose yaml lies beside the study's. Then every tool of
`speechbrain_sim.analysis.tools` measures the systems `inside`. The folder gets
report.html, report.md and report.json. Started again, a study is resumed:
finished runs and measurements are not repeated.
"""

import sys
from functools import partial
from pathlib import Path
from typing import NamedTuple

import decode
import pretrain
import probe
import speechbrain as sb
from speechbrain.utils.distributed import infer_device, run_on_main

from speechbrain_sim import config
from speechbrain_sim.analysis import tools
from speechbrain_sim.analysis.delta import draw_pairs
from speechbrain_sim.analysis.factors import Factors
from speechbrain_sim.analysis.latents import encode_clips, read_clips
from speechbrain_sim.analysis.probes import read_examples
from speechbrain_sim.analysis.probing import Probing, read_probed
from speechbrain_sim.analysis.study import Probes, Study, System
from speechbrain_sim.data.labels import FRAMES, kind_of
from speechbrain_sim.files import machine, read_json, sha256
from speechbrain_sim.models.format import load_parts
from speechbrain_sim.models.load import load_decoder, load_encoder
from speechbrain_sim.report.page import Table
from speechbrain_sim.report.tables import markdown_table

#: keys of a study that `report.json` repeats
SETTINGS = ("clips", "clip_samples", "pairs", "smooth_pairs", "weights_label")


class Runs(NamedTuple):
    """Inner runs: where their yamls lie, and what all of them share."""

    yamls: Path
    options: dict
    run_opts: dict

    def run(self, recipe, yaml, may_change, **options):
        """Runs a recipe; a run that is done already returns at once."""
        options = {**self.options, **options}
        print(f"\n=== {options['output_folder']}: {yaml}", flush=True)
        yaml = self.yamls / yaml
        experiment = yaml, options, self.run_opts, may_change
        recipe(*config.make_experiment(*experiment))


def corpus_options(yamls, hparams):
    """Returns what the study changes of the plain keys of corpus.yaml."""
    options = {"on_bad_audio": hparams["on_bad_audio"]}
    for key, value in config.read_yaml(yamls / "corpus.yaml").items():
        derived = config.tag_of(value) == "!ref"
        own = hparams.get(key, value)
        if own != value and not derived and not callable(own):
            options[key] = own
    return options


def check(hparams):
    """Raises a ValueError if an entry names what there is not."""
    systems = hparams["systems"]
    names = ", ".join(systems)
    if hparams["labels"] and hparams["baseline"] not in (None, *systems):
        raise ValueError(
            f"The baseline {hparams['baseline']} is not among the systems: "
            f"give --baseline one of {names}."
        )
    for name in hparams["inside"]:
        if systems.get(name, {"per_label": True}).get("per_label"):
            raise ValueError(
                f"There is no encoder of {name} to look inside: give --inside "
                f"some of {names}, but none that is trained per label."
            )
    frames = kind_of(hparams["factor_label"], hparams["label_kinds"]) == FRAMES
    if hparams["factors"] and not (hparams["factor_segments"] or frames):
        raise ValueError(
            f"{hparams['factor_label']} is no label of frames: give "
            f"--factor_label one of label_kinds, or --factor_segments."
        )


def train(hparams, runs, name, seed, label=None):
    """Trains a system with one seed; returns its folder and its encoder."""
    system = hparams["systems"][name]
    folder = f"{hparams['output_folder']}/{name}_{seed}"
    if "encoder" in system:
        return folder, system["encoder"]
    if "of" in system:
        return folder, f"{hparams['output_folder']}/{system['of']}_{seed}"
    options = {**hparams["pretrain_options"], **system.get("options", {})}
    if label is not None:
        folder += f"_{label}"
        supervised = hparams["labels"][label].get("supervised", {})
        options = {"label": label, **supervised, **options}
    options |= {"output_folder": folder, "seed": seed}
    runs.run(pretrain.pretrain, system["yaml"], config.MAY_CHANGE, **options)
    return folder, folder


def probe_options(hparams, name, label, folder):
    """Returns the options of a system's probes, but their encoder."""
    return {
        **hparams["labels"].get(label, {}).get("probe", {}),
        **hparams["systems"][name].get("probe", {}),
        **hparams["probe_options"],
        "label": label,
        "output_folder": f"{folder}/probe",
    }


def check_labels(hparams, runs, chosen):
    """Raises a ValueError, before any training, if a label cannot be probed."""
    labels = dict.fromkeys(hparams["labels"])
    if hparams["inside"] and any("probes" in tool.needs for tool in chosen):
        labels |= {hparams["weights_label"]: None}
    name, system = next(iter(hparams["systems"].items()))
    seed = system.get("seeds", [1])[0]
    for label in filter(None, labels):
        folder = f"{hparams['output_folder']}/{name}_{seed}"
        folder += f"_{label}" * system.get("per_label", False)
        options = probe_options(hparams, name, label, folder)
        options["encoder"] = "logmel"  # any: the corpus alone is checked
        runs.run(probe.prepare, "probe.yaml", None, **options)


def train_and_probe(hparams, runs):
    """Trains every system, and probes it for every label.

    Returns the encoder of each system's first seed, the folders of the probes,
    label -> system -> list, and the training logs by system.
    """
    encoders, logs, labels = {}, {}, hparams["labels"]
    probed = {label: {} for label in labels}
    for name, system in hparams["systems"].items():
        per_label = system.get("per_label", False)
        for seed in system.get("seeds", [1]):
            if not per_label:
                folder, encoder = train(hparams, runs, name, seed)
                encoders.setdefault(name, (folder, encoder))
                log = Path(folder, "train_log.txt")
                logs |= {name: str(log)} if log.exists() else {}
            for label in labels:
                if per_label:
                    folder, encoder = train(hparams, runs, name, seed, label)
                options = probe_options(hparams, name, label, folder)
                options["encoder"] = encoder
                runs.run(probe.probe, "probe.yaml", None, **options)
                probed[label].setdefault(name, []).append(f"{folder}/probe")
    return encoders, probed, logs


def train_decoder(hparams, runs, folder, encoder, layer, description):
    """Trains the decoder of a layer; returns it, and its hash."""
    epochs = hparams["decoder_epochs"]
    options = {"number_of_epochs": epochs[layer]} if layer in epochs else {}
    options |= hparams["decode_options"]
    options |= {"encoder": encoder, "layer": layer}
    options["output_folder"] = f"{folder}/decoder_{layer}"
    runs.run(decode.decode, "decode.yaml", decode.MAY_CHANGE, **options)
    folder, digest = options["output_folder"], description["sha256"]
    decoder, about = load_decoder(folder, layer, digest)
    return decoder, about["sha256"]


def train_bias_free(hparams, runs, folder, encoder, layers):
    """Trains probes without bias; returns them, and the hash of the scores."""
    label = hparams["weights_label"]
    if label is None:
        return None, None
    out = f"{folder}/probe_without_bias"
    options = {
        **hparams["labels"].get(label, {}).get("probe", {}),
        **hparams["probe_options"],
        "encoder": encoder,
        "label": label,
        "layers": layers,
        "bias": False,
        "standardize": False,
        "output_folder": out,
    }
    runs.run(probe.probe, "probe.yaml", None, **options)
    scores, name = Path(out, f"probe_{label}.json"), f"probe_{label}"
    about = read_json(scores)
    linear = load_parts(out, [name])[0][name].probes
    probes = Probes(
        about["layers"],
        [f"{label} {name}" for name in about["class_names"]],
        {layer: linear[layer].weight.detach().numpy() for layer in layers},
        lambda part: read_examples(out, label, part, layers),
    )
    return probes, sha256(scores)


def open_system(hparams, runs, study, chosen, name, folder, source):
    """Loads an encoder, trains what the tools need of it, encodes the clips."""
    encoder, description = load_encoder(source)
    # null: all that do not predict their own input
    names = [n for n in encoder.layer_names if not encoder.predicts_input(n)]
    layers = hparams["layers"] or names
    device = runs.run_opts["device"] or infer_device()
    encoder, wavs = encoder.to(device), study.clips.wavs.to(device)
    latents = encode_clips(encoder, wavs, layers, study.batch_size)
    decoders, probes = {}, None
    made_of = {"encoder": description["sha256"]}
    needs = {need for tool in chosen for need in tool.needs}
    if "decoders" in needs:
        hashes = made_of["decoders"] = {}
        for layer in layers:
            decoder, hashes[layer] = train_decoder(
                hparams, runs, folder, source, layer, description
            )
            decoders[layer] = decoder.to(device)
    if "probes" in needs:
        probes, made_of["probes"] = train_bias_free(
            hparams, runs, folder, source, layers
        )
    return System(name, encoder, wavs, latents, decoders, probes, made_of)


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
    pairs = partial(draw_pairs, len(clips.ids), seed=hparams["seed"])
    keys = "factors factors_train_csv factors_test_csv data_folder".split()
    keys += ["factor_label", "factor_segments", "factors_note"]
    return study._replace(
        clips=clips,
        pairs=pairs(pairs=hparams["pairs"]),
        walk_pairs=pairs(pairs=hparams["smooth_pairs"]),
        factors=hparams["factors"] and Factors(*map(hparams.get, keys)),
    )


def look_inside(hparams, runs, study, chosen, encoders):
    """Opens and measures the systems `inside`; returns the study with both."""
    systems, results = [], {}
    for name in hparams["inside"]:
        folder, source = encoders[name]
        system = open_system(hparams, runs, study, chosen, name, folder, source)
        systems.append(system)
        found = tools.measure_system(system, study, chosen, folder)
        for tool, numbers in found.items():
            results.setdefault(tool, {})[name] = numbers
    return study._replace(systems=systems, results=results)


def main(argv):
    """Runs the study with a command line."""
    hparams, run_opts = config.load_experiment(argv)
    check(hparams)
    chosen = tools.choose_tools(hparams["tools"], bool(hparams["inside"]))
    sb.create_experiment_directory(hparams["output_folder"])
    yamls = Path(argv[0]).resolve().parent
    runs = Runs(yamls, corpus_options(yamls, hparams), run_opts)
    check_labels(hparams, runs, chosen)
    study = make_study(hparams)
    encoders, folders, logs = train_and_probe(hparams, runs)
    probed = read_probed(folders, hparams["baseline"])
    study = study._replace(probed=probed, logs=logs)
    study = look_inside(hparams, runs, study, chosen, encoders)
    at = machine()
    note = (
        f"{hparams['note'].strip()}\nComputed on {at['cores']} cores "
        f"({at['gpu'] or 'no GPU'}) with torch {at['torch']} and speechbrain "
        f"{at['speechbrain']}."
    )
    settings = {key: hparams[key] for key in SETTINGS}
    sections = tools.write_report(
        study, chosen, hparams["title"], note, settings
    )
    items = [i for s in sections if s.key == Probing.key for i in s.items]
    for item in items:
        if isinstance(item, Table):
            table = markdown_table(item.header, item.rows)
            print(f"\n{item.title}: {item.caption}\n\n{table}")
    print(f"\nWritten to {study.folder}/report.html, report.md and report.json")


if __name__ == "__main__":
    main(sys.argv[1:])
