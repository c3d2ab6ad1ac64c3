"""Looks inside encoders: decoders, traversals, numbers, and a report to hear.

    python recipes/analyse.py hparams/Synthetic/analyse.yaml

Each encoder of the yaml gets a decoder per layer (recipes/decode.py) and probes
without bias (recipes/probe.py), then every tool of `speechbrain_sim.analysis`.
The results are written as report.html, report.md and report.json. Stopped and
started again, an analysis goes on where it was.

To read the code, begin at the bottom.
"""

import hashlib
import json
import sys
from functools import partial
from pathlib import Path
from typing import NamedTuple

import decode
import probe
import speechbrain as sb
import torch
from speechbrain.utils.distributed import infer_device, run_on_main

from speechbrain_sim.analysis import latents, measures, story
from speechbrain_sim.analysis.delta import draw_pairs
from speechbrain_sim.analysis.listening import explore
from speechbrain_sim.analysis.probes import read_examples, read_system
from speechbrain_sim.config import (
    as_arguments,
    load_experiment,
    typed_run_options,
)
from speechbrain_sim.encoders.greedy import CONTEXT, GreedyEncoder
from speechbrain_sim.files import (
    cached_result,
    machine,
    sha256,
    versions,
    write_json,
)
from speechbrain_sim.models.format import load_parts
from speechbrain_sim.models.load import load_decoder, load_encoder
from speechbrain_sim.report.page import Section, write_page


def chosen_layers(hparams, front_end):
    """Names the layers that are analysed: all that have a decoder to mirror."""
    names = hparams["layers"] or front_end.layer_names
    return [name for name in names if hparams["layers"] or name != CONTEXT]


def corpus_options(hparams):
    """Options that every run on this corpus gets."""
    return {"data_folder": hparams["data_folder"], **hparams["corpus_options"]}


def train_decoder(hparams, run_options, name, layer, description):
    """Trains the decoder of one layer, or finds it done."""
    folder = f"{hparams['output_folder']}/{name}/decoder_{layer}"
    print(f"\n=== {name}: decoder of {layer}", flush=True)
    epochs = hparams["decoder_epochs"]
    decode.main(
        [f"{hparams['folder']}/decode.yaml", *run_options]
        + as_arguments(
            **corpus_options(hparams),
            encoder=hparams["systems"][name],
            layer=layer,
            output_folder=folder,
            **({"number_of_epochs": epochs[layer]} if layer in epochs else {}),
            **hparams["decode_options"],
        )
    )
    return load_decoder(folder, layer, description["sha256"])


def open_system(hparams, run_options, name, clips, device):
    """Loads an encoder, trains its decoders, and encodes the clips.

    Returns the System, and what its results are made of.
    """
    front_end, description = load_encoder(hparams["systems"][name])
    layers, decoders, hashes = chosen_layers(hparams, front_end), {}, {}
    for layer in layers:
        decoder, about = train_decoder(
            hparams, run_options, name, layer, description
        )
        decoders[layer], hashes[layer] = decoder.to(device), about["sha256"]
    wavs = clips.wavs.to(device)
    front_end = front_end.to(device)
    batch_size = hparams["encoding_batch_size"]
    encoded = latents.encode_clips(front_end, wavs, layers, batch_size)
    system = measures.System(name, front_end, decoders, wavs, encoded)
    return system, {
        "encoder": description["sha256"],
        "decoders": hashes,
        "clips": hashlib.sha256(clips.wavs.numpy().tobytes()).hexdigest(),
        "versions": versions(),
        "seed": hparams["seed"],
    }


class Probes(NamedTuple):
    """Bias-free probes of one encoder: their scores' file, and their weights."""

    path: Path
    scores: dict
    classes: list
    weights: dict


def train_probes(hparams, run_options, name, layers):
    """Trains bias-free probes, or finds them done; None without a label."""
    label = hparams["weights_label"]
    if label is None:
        return None
    folder = f"{hparams['output_folder']}/{name}/probe"
    print(f"\n=== {name}: probes without bias for {label}", flush=True)
    probe.main(
        [f"{hparams['folder']}/probe.yaml", *run_options]
        + as_arguments(
            **corpus_options(hparams),
            encoder=hparams["systems"][name],
            label=label,
            layers=layers,
            output_folder=folder,
            bias=False,
            standardize=False,
            **hparams["probe_options"],
        )
    )
    path = Path(folder, f"probe_{label}.json")
    found = json.loads(path.read_text(encoding="utf-8"))
    parts, _ = load_parts(folder, [f"probe_{label}"])
    trained = parts[f"probe_{label}"].probes
    return Probes(
        path,
        found["layers"],
        [f"{label} {name}" for name in found["class_names"]],
        {layer: trained[layer].weight.numpy() for layer in layers},
    )


def weigh(system, probes, label):
    """Where the information of the probes sits."""
    if probes is None:
        reason = "No label to probe for (--weights_label)."
        return {layer: {"gap": reason} for layer in system.latents}
    *known, test = (
        read_examples(probes.path.parent, label, part, list(system.latents))
        for part in ("train", "valid", "test")
    )
    return measures.measure_weights(
        system, probes.weights, known, test, probes.scores
    )


def untrained(front_end, seed, device):
    """Returns an encoder of the same shape that was never trained, or None."""
    if not isinstance(front_end, GreedyEncoder):
        return None
    torch.manual_seed(seed)
    return GreedyEncoder(**front_end.arguments).eval().to(device)


def read_codes(hparams, front_end, layers):
    """Codes of the training and of the test part, with their factors."""
    factors_of, segments = hparams["factors"], hparams["factor_segments"]
    return [
        latents.segment_codes(*part, factors_of, segments)
        if segments
        else latents.frame_codes(*part, factors_of)
        for part in (
            (front_end, hparams[key], hparams["data_folder"], layers)
            for key in ("factors_train_csv", "factors_test_csv")
        )
    ]


def disentangle(hparams, system, device):
    """Scores every layer against the factors that the corpus names."""
    if hparams["factors"] is None:
        return {}
    layers = list(system.latents)
    codes = read_codes(hparams, system.front_end, layers)
    control = untrained(system.front_end, hparams["seed"], device)
    control = control and read_codes(hparams, control, layers)
    return measures.measure_factors(system, *codes, control, hparams["seed"])


def measure(hparams, run_options, name, clips, device):
    """Measures one encoder, or finds it measured.

    Returns the System, and its results by tool.
    """
    system, made_of = open_system(hparams, run_options, name, clips, device)
    layers, seed = list(system.latents), hparams["seed"]
    probes = train_probes(hparams, run_options, name, layers)
    batch_size = hparams["encoding_batch_size"]
    if probes is not None:
        made_of["probes"] = sha256(probes.path)
    pairs = [
        draw_pairs(len(clips.ids), hparams[key], seed)
        for key in ("pairs", "smooth_pairs")
    ]
    steps = hparams["smooth_steps"], hparams["directions"]
    label = hparams["weights_label"]
    tools = {
        "delta": (
            {"pairs": hparams["pairs"]},
            lambda: measures.measure_delta(system, pairs[0], batch_size),
        ),
        "shape": ({}, lambda: measures.measure_shape(system, seed)),
        "smoothness": (
            {"pairs": hparams["smooth_pairs"], "steps": steps},
            lambda: measures.measure_smoothness(
                system, pairs[1], *steps, batch_size, seed
            ),
        ),
        "weights": ({}, lambda: weigh(system, probes, label)),
        "factors": (
            {
                "factors": name_of(hparams["factors"]),
                "segments": hparams["factor_segments"],
                **{
                    key: sha256(hparams[key])
                    for key in ("factors_train_csv", "factors_test_csv")
                },
            },
            lambda: disentangle(hparams, system, device),
        ),
        "attribution": (
            {"clip": clips.walk[0]},
            lambda: measures.measure_attribution(system, clips.walk[0], probes),
        ),
    }
    results = {}
    for tool, (settings, compute) in tools.items():
        print(f"\n=== {name}: {tool}", flush=True)
        path = f"{hparams['output_folder']}/{name}/{tool}.json"
        results[tool] = cached_result(path, {**made_of, **settings}, compute)
    return system, results


def read_probes(hparams):
    """Scores of the probes that recipes/table.py has trained before, if any."""
    found = {}
    for system, folders in hparams["probes"].items():
        found[system] = {}
        for label in hparams["labels"]:
            paths = [Path(folder, f"probe_{label}.json") for folder in folders]
            if not all(path.exists() for path in paths):
                continue
            found[system][label] = {
                layer: {
                    **{key: score[key] for key in measures.PROBE_KEYS},
                    "control": score["control"]["accuracy"],
                }
                for layer, score in read_system(folders, label)[
                    "layers"
                ].items()
            }
    return found


def name_of(function):
    """Names what a yaml's `!name:` refers to, with its arguments."""
    if function is None:
        return None
    whole = partial(function)  # of a partial: the function, all arguments
    name = f"{whole.func.__module__}.{whole.func.__qualname__}"
    return [name, {key: str(v) for key, v in whole.keywords.items()}]


def slim(results):
    """Leaves out what is kept beside the report: single pairs, histograms."""
    if not isinstance(results, dict):
        return results
    heavy = ("per_pair", "density")
    return {k: slim(v) for k, v in results.items() if k not in heavy}


def listen(hparams, systems, clips):
    """Decodes what the report's sliders move through."""
    start, target = clips.walk
    names = (clips.ids[start], clips.ids[target])
    sounds = [
        explorer
        for system in systems
        for layer in system.latents
        for explorer in explore(
            system, layer, start, target, names, hparams["seed"]
        )
    ]
    return Section(
        "listen",
        "Listen",
        "Move the sliders: a smooth space changes evenly, and stays speech "
        "between two recordings.",
        sounds,
    )


def prepare(argv):
    """Reads options, prepares the corpus, reads the clips."""
    hparams, run_opts = load_experiment(argv)
    sb.create_experiment_directory(hparams["output_folder"])
    run_on_main(hparams["prepare"])
    clips = latents.read_clips(
        hparams["clips_csv"],
        hparams["data_folder"],
        hparams["clip_samples"],
        hparams["clips"],
        hparams["walk"],
        hparams["seed"],
    )
    device = run_opts["device"] or infer_device()
    return hparams, typed_run_options(run_opts), clips, device


def main(argv):
    """Measures every encoder, then writes the report."""
    hparams, run_options, clips, device = prepare(argv)
    systems, results = [], {"probes": read_probes(hparams)}
    for name in hparams["systems"]:
        system, found = measure(hparams, run_options, name, clips, device)
        systems.append(system)
        for tool, numbers in found.items():
            results.setdefault(tool, {})[name] = numbers
    baseline = list(hparams["systems"])[-1]
    results["differences"] = {
        tool: measures.compare(
            results[tool],
            baseline,
            draw_pairs(len(clips.ids), hparams[pairs], hparams["seed"]),
        )
        for tool, pairs in (("delta", "pairs"), ("smoothness", "smooth_pairs"))
    }
    folder, start = Path(hparams["report_folder"]), clips.walk[0]
    sections = [
        listen(hparams, systems, clips),
        *story.tell(
            results,
            hparams["paper"],
            folder,
            clips.wavs[start].numpy(),
            clips.ids[start],
            hparams["factors_note"],
        ),
    ]
    summary = story.summarise(results)
    where = {"machine": machine(), "clips": len(clips.ids)}
    about = {"title": hparams["title"], "note": hparams["note"], **where}
    about["settings"] = {
        key: hparams[key]
        for key in ("clip_samples", "pairs", "smooth_pairs", "weights_label")
    }
    write_json(folder / "report.json", {**about, **slim(results)})
    write_page(
        folder,
        hparams["title"],
        hparams["note"],
        summary,
        sections,
        list(hparams["systems"]),
    )
    print(f"\nWritten to {folder}/report.html, report.md and report.json")


if __name__ == "__main__":
    main(sys.argv[1:])
