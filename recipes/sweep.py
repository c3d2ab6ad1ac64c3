"""Trains variants of an encoder and shows what each gives up, and gains.

    python recipes/sweep.py hparams/ArtificialSpeech/sweep.yaml --data_folder DATA

Each variant is a run of recipes/pretrain.py with its own options: other beta,
beta of one module only, no KL, no noise. Its layers are probed and decoded, and
accuracy is plotted against delta. Stopped and started again, a sweep goes on
where it was.

To read the code, begin at the bottom.
"""

import json
import sys
from pathlib import Path

import analyse
import pretrain
import probe

from speechbrain_sim.analysis import measures
from speechbrain_sim.analysis.delta import draw_pairs
from speechbrain_sim.analysis.probes import percent
from speechbrain_sim.analysis.story import delta_at_eighth, with_interval
from speechbrain_sim.config import as_arguments
from speechbrain_sim.files import cached_result, machine, write_json
from speechbrain_sim.report import figures


def train(hparams, run_options, name):
    """Trains and probes one variant; returns the scores of its layers."""
    folder = Path(hparams["output_folder"], name)
    corpus = analyse.corpus_options(hparams)
    print(f"\n=== {name}: training, or finding it done", flush=True)
    pretrain.main(
        [hparams["pretrain_yaml"], *run_options]
        + as_arguments(
            **corpus,
            output_folder=folder,
            seed=hparams["seed"],
            **hparams["pretrain_options"],
            **hparams["variants"][name],
        )
    )
    hparams["systems"][name] = folder
    label = hparams["weights_label"]
    probe.main(
        [f"{hparams['folder']}/probe.yaml", *run_options]
        + as_arguments(
            **corpus,
            encoder=hparams["systems"][name],
            label=label,
            output_folder=folder / "probe",
            **hparams["probe_options"],
        )
    )
    scores = folder / f"probe/probe_{label}.json"
    return json.loads(scores.read_text(encoding="utf-8"))["layers"]


def decode(hparams, run_options, name, clips, device):
    """Decodes one variant; returns delta of its layers."""
    system, made_of = analyse.open_system(
        hparams, run_options, name, clips, device
    )
    pairs = draw_pairs(len(clips.ids), hparams["pairs"], hparams["seed"])
    return cached_result(
        f"{hparams['output_folder']}/{name}/delta.json",
        {**made_of, "pairs": hparams["pairs"]},
        lambda: measures.measure_delta(system, pairs),
    )


def write_sweep(hparams, results):
    """Writes sweep.json, sweep.md and the picture of the trade-off."""
    folder = Path(hparams["output_folder"])
    layers = list(next(iter(results.values()))["delta"])
    lines = [
        f"# {hparams['title']}",
        "",
        hparams["note"],
        "",
        f"| variant | layer | {hparams['weights_label']} accuracy (%) | "
        f"δ at N/D = 1/8 (%) | decoded (%) |",
        "|---|---|---|---|---|",
    ]
    points = {layer: {} for layer in layers}
    for name, found in results.items():
        for layer in layers:
            score, numbers = found["probe"][layer], found["delta"][layer]
            cells = ["—", "—"]  # all its clips decode to the same sound
            if "gap" not in numbers:
                delta = delta_at_eighth(numbers)
                points[layer][name] = (score, delta)
                cells = [
                    with_interval(delta, 100, 1),
                    f"{100 * numbers['explained']:.0f}",
                ]
            lines.append(
                f"| {name} | {layer} | {percent(score)} | {' | '.join(cells)} |"
            )
    figures.plot_trade_off(points, hparams["weights_label"], folder / "sweep")
    text = "\n".join([*lines, "", "![trade-off](sweep.svg)", ""])
    (folder / "sweep.md").write_text(text, encoding="utf-8")
    write_json(
        folder / "sweep.json",
        {
            "variants": hparams["variants"],
            "machine": machine(),
            **analyse.slim(results),
        },
    )
    print(f"\n{text}\nWritten to {folder}/sweep.md, .json and .svg")


def main(argv):
    """Runs every variant, then writes the table and the picture."""
    hparams, run_options, clips, device = analyse.prepare(argv)
    results = {}
    for name in hparams["variants"]:
        scores = train(hparams, run_options, name)
        results[name] = {
            "probe": scores,
            "delta": decode(hparams, run_options, name, clips, device),
        }
    write_sweep(hparams, results)


if __name__ == "__main__":
    main(sys.argv[1:])
