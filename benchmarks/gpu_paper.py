"""Part three on a GPU: the paper's artificial set at full size.

SIM and GIM, their probes, decoders and delta are steps of a study of
recipes/study.py. Steps that need nothing of each other run side by side, each in
a process of its own; the study then finds all of them done and writes its
report. Started again, what was interrupted goes on.
"""

import io
import json
import os
import re
import subprocess
import sys
import tarfile
import time
import traceback
from pathlib import Path
from unittest import mock

ROOT = Path(__file__).resolve().parent.parent
STUDY = ROOT / "hparams/ArtificialSpeech/study.yaml"
NAMES = "SIM", "GIM"
#: what paid among the levers of docs/experiments.md: batch norm, and a rate
#: that is higher, rises at first and falls to 0
PLUS = {"batch_norm": True, "lr": 0.001, "lr_warmup_epochs": 20}
LAYERS = "module1", "module2", "module3"
#: of what is handed over
KINDS = ".json", ".md", ".txt", ".html", ".yaml", ".svg", ".log"
#: of the paper's runs
EPOCHS, DECODER_EPOCHS, PROBE_EPOCHS = 1000, 50, 50
#: seconds that a step takes on an H100 with 16 cores, beside the others: fixed
#: ones, and per epoch; the first process of each is slow to import
EXPECTED = {"train": (17, 0.385), "probe": (30, 2.3), "decode": (15, 1.5)}
EXPECTED |= {"measure": (29, 0), "report": (40, 0)}
#: of module 1's decoder, the longest
DEEP = 2.35
#: kept for the tables and the archive, in seconds
RESERVE = 12
#: kept for probes, decoders and delta, 162 s: training stops before
EVALUATION = 175
#: checkpoints of a training: what it has learnt since its last one is lost
SAVES = 40


def prepare(chosen, results):
    """Prepares the artificial set; returns the folder of its manifests."""
    from speechbrain_sim.data.corpora.artificial_speech import (
        prepare_artificial_speech,
    )

    folder = results.work / "manifests"
    prepare_artificial_speech(chosen.data, folder)
    return folder


def layers_of(chosen):
    """Lists the layers that are decoded."""
    return list(LAYERS[-1:] if chosen.toy else LAYERS)


def names_of(chosen):
    """Lists the encoders: the paper's, and the levers' winner if asked for."""
    return (*NAMES, "SIM_plus") if chosen.plus else NAMES


def systems_of(chosen):
    """Returns the study's systems: each, and its probes as the paper's."""
    systems = {}
    for name in names_of(chosen):
        options = {"model": name.lower().removesuffix("_plus")}
        if name not in NAMES:
            options |= {**PLUS, "lr_decay_epochs": chosen.epochs}
        systems[name] = {"yaml": "pretrain.yaml", "options": options}
    epochs, _, probe = epochs_of(chosen)
    paper = {"protocol": "paper"}
    paper |= {} if epochs == EPOCHS else {"number_of_epochs": probe}
    for name in NAMES:
        systems[f"{name}-paper"] = {"of": name, "probe": paper}
    return systems


def epochs_of(chosen):
    """Returns the epochs of encoders, decoders and probes."""
    share = min(1, chosen.epochs / EPOCHS)
    decoder = max(1, round(share * DECODER_EPOCHS))
    return chosen.epochs, decoder, max(1, round(share * PROBE_EPOCHS))


def command_line(chosen, folder, precision):
    """Returns the study's command line, the same for all of its steps."""
    epochs, decoder, _ = epochs_of(chosen)
    pretrain = {"batch_size": chosen.batch_size, "number_of_epochs": epochs}
    pretrain["precision"] = precision.replace("tf32", "fp32")
    # the process itself loads clips, which are in memory
    pretrain |= {"epochs_per_save": max(1, epochs // SAVES), "num_workers": 0}
    decode = {"epochs_per_save": max(1, decoder // 2), "num_workers": 0}
    if epochs != EPOCHS:
        decode["number_of_epochs"] = decoder
    more = []
    if chosen.toy:
        small = {"channels": 8, "context_channels": 8, "batch_size": 4}
        pretrain |= small
        decode["batch_size"] = 4
        labels = {"vowel": {"probe": {"controls": 5}}}
        more = ["--labels", json.dumps(labels), "--clips", "4", "--pairs", "6"]
        more += ["--walk", "null", "--layers", json.dumps(layers_of(chosen))]
    note = f"Encoders: {epochs} epochs, batch {chosen.batch_size}. "
    if epochs != EPOCHS or chosen.toy:
        note += f"Reduced: the paper's have {EPOCHS} epochs. "
    note += "Probes read means; rows named -paper follow its protocol."
    return [
        str(STUDY),
        *("--data_folder", str(chosen.data), "--output_folder", str(folder)),
        *("--systems", json.dumps(systems_of(chosen)), "--baseline", "null"),
        *("--pretrain_options", json.dumps(pretrain)),
        *("--decode_options", json.dumps(decode)),
        *("--weights_label", "null", "--tools", '["delta"]', "--note", note),
        *("--decoders", "[waveform]"),
        *("--encoding_batch_size", "64"),
        *("--device", chosen.device, "--noprogressbar", *more),
    ]


def plan(chosen):
    """Returns the steps: {(kind, system, layer): steps that come before}."""
    train = {name: ("train", name, "") for name in names_of(chosen)}
    steps = {step: [] for step in train.values()}
    for probed in systems_of(chosen):
        steps["probe", probed, ""] = [train[probed.removesuffix("-paper")]]
    decoders = {
        name: [("decode", name, layer) for layer in layers_of(chosen)]
        for name in names_of(chosen)
    }
    for name in names_of(chosen):
        steps |= {step: [train[name]] for step in decoders[name]}
    for name in names_of(chosen):
        steps["measure", name, ""] = decoders[name]
    return steps | {("report", "", ""): list(steps)}


def run_step(kind, name, layer, precision, argv):
    """Runs one step of the study, in this process."""
    sys.path[:0] = [str(ROOT / "recipes")]
    import study

    from benchmarks.gpu_right import precision_of
    from speechbrain_sim import config
    from speechbrain_sim.analysis import tools

    if kind == "report":
        study.main(argv)
        return
    with precision_of(precision if kind == "train" else "tf32"):
        # steps side by side share the study's folder; their own are locked
        with mock.patch.object(config, "lock_folder"):
            hparams, run_opts = config.load_experiment(argv)
        runs = study.open_runs(STUDY.parent, hparams, run_opts)
        folder = f"{hparams['output_folder']}/{name.removesuffix('-paper')}_1"
        if kind == "train":
            hparams["systems"] = {name: hparams["systems"][name]}
            hparams["labels"] = {}
            study.train_and_probe(hparams, runs)
        elif kind == "probe":
            system = {**hparams["systems"][name], "encoder": folder}
            hparams["systems"] = {name: system}
            plain = study.probe.probe
            with mock.patch.object(study.probe, "probe", probe_on_cpu(plain)):
                study.train_and_probe(hparams, runs)
        elif kind == "decode":
            study.train_decoder(hparams, runs, folder, folder, layer)
        else:
            hparams["inside"] = [name]
            measured = tools.choose_tools(hparams["tools"])
            whole, encoders = study.make_study(hparams), {name: [folder] * 2}
            study.look_inside(hparams, runs, whole, measured, encoders)


def probe_on_cpu(probe):
    """Probes an encoder: it runs on the GPU, what reads it on the CPU.

    Probes are so small that a GPU would do nothing but wait.
    """
    from probe import encode

    from speechbrain_sim.activations import MEAN
    from speechbrain_sim.models.load import load_encoder

    def run(hparams, run_opts):
        hparams["prepare"]()
        encoder, description = load_encoder(hparams["encoder"])
        list(encode(hparams, run_opts, encoder, description, MEAN))
        probe(hparams, {**run_opts, "device": "cpu"})

    return run


class Steps:
    """Runs the steps side by side, until all are done or time is up.

    Arguments
    ---------
    results, chosen :
        Of benchmarks/gpu.py.
    precision : str
        Of the training of encoders.
    """

    def __init__(self, results, chosen, precision):
        self.results, self.chosen = results, chosen
        self.precision, self.folder = precision, results.work / "paper"
        self.argv = command_line(chosen, self.folder, precision)
        self.state = results.content.setdefault("steps", {})
        self.running, self.inline = {}, chosen.toy

    def expected(self, kind, layer):
        """Returns the seconds that a step is expected to take."""
        epochs, decoder, probe = epochs_of(self.chosen)
        count = {"train": epochs, "decode": decoder, "probe": probe}
        fixed, each = EXPECTED[kind]
        each = DEEP if layer == LAYERS[0] else each
        return fixed + each * count.get(kind, 0)

    def run(self):
        """Runs the steps; returns whether all are done."""
        steps = plan(self.chosen)
        waiting = {s: b for s, b in steps.items() if not self.is_done(s)}
        share = min(1, self.chosen.epochs / EPOCHS)
        begun = time.monotonic()
        while waiting or self.running:
            for step, before in list(waiting.items()):
                if all(map(self.is_done, before)):
                    self.begin(step)
                    del waiting[step]
            if self.inline:
                continue
            if not self.running:
                break  # what is left needs a step that failed
            self.collect()
            if self.results.left() < EVALUATION * share:
                self.cut(waiting)
            if self.results.left() < RESERVE:
                self.stop()
                break
            if time.monotonic() - begun > 30:
                begun = time.monotonic()
                self.show()
            time.sleep(0.2)
        return all(map(self.is_done, steps))

    def is_done(self, step):
        """Returns whether a step has ended well."""
        return "/".join(step) in self.state

    def begin(self, step):
        """Starts a step; at toy size, runs it here."""
        name, left = "/".join(step), self.results.left()
        seconds = self.expected(step[0], step[2])
        print(f"[{left:.0f} s left] {name}: expected {seconds:.0f} s")
        arguments = [*step, self.precision, *self.argv]
        start = time.monotonic()
        if self.inline:
            run_step(*step, self.precision, self.argv)
            self.end(name, time.monotonic() - start)
            return
        log = self.folder / f"logs/{'_'.join(filter(None, step))}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        paths = [str(ROOT), str(ROOT / "recipes"), os.getenv("PYTHONPATH", "")]
        variables = {"PYTHONPATH": os.pathsep.join(paths)}
        variables |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        with open(log, "w") as file:
            process = subprocess.Popen(
                [sys.executable, "-m", "benchmarks.gpu_paper", *arguments],
                cwd=ROOT,
                env={**os.environ, **variables},
                stdout=file,
                stderr=subprocess.STDOUT,
            )
        self.running[name] = process, start, log

    def collect(self):
        """Notes the steps that have ended."""
        for name, (process, start, log) in list(self.running.items()):
            if process.poll() is None:
                continue
            del self.running[name]
            seconds = time.monotonic() - start
            if process.returncode == 0:
                self.end(name, seconds)
                continue
            error = log.read_text(errors="replace")[-3000:]
            print(f"{name} failed after {seconds:.0f} s:\n{error}")
            self.results.content["errors"][f"paper: {name}"] = error

    def end(self, name, seconds):
        """Notes that a step is done; hands over what there is."""
        print(f"[{self.results.left():.0f} s left] {name}: {seconds:.0f} s")
        self.state[name] = seconds
        try:
            hand_over(self.results, self.chosen, self.precision)
        except Exception:  # steps go on without a table
            traceback.print_exc()

    def cut(self, waiting):
        """Ends trainings: the encoders of their last checkpoints are evaluated.

        The report is left out, since the study would go on with them.
        """
        for name in [n for n in self.running if n.startswith("train/")]:
            process, start, _ = self.running.pop(name)
            process.terminate()
            process.wait(5)
            system = name.split("/")[1]
            path = self.folder / f"{system}_1/encoder.safetensors"
            waiting.pop(("report", "", ""), None)
            if path.exists():
                self.results.content.setdefault("cut", []).append(system)
                self.end(name, time.monotonic() - start)

    def stop(self):
        """Ends the processes: time is up."""
        print("The minutes are over: run it again to go on.")
        for process, *_ in self.running.values():
            process.terminate()
        for process, *_ in self.running.values():
            process.wait(5)

    def show(self):
        """Prints how far trainings are."""
        for name in self.running:
            kind, system, layer = name.split("/")
            inner = f"decoder_{layer}/" if kind == "decode" else ""
            log = self.folder / f"{system}_1/{inner}train_log.txt"
            if log.exists() and kind in ("train", "decode"):
                text = log.read_text().splitlines()
                print(f"    {name}: {len(text)} epochs; {text[-1][:200]}")


def last_line(path):
    """Returns the numbers of a log's last line: dict of str to float."""
    found = re.findall(r"(\w[\w ]*): ([-+.\de]+)", path.read_text())
    return {name: float(value) for name, value in found}


def tables_of(results, chosen, precision):
    """Yields title and rows of what there is of the paper's tables."""
    from speechbrain_sim.analysis.delta import delta_at_share
    from speechbrain_sim.config import read_yaml
    from speechbrain_sim.files import read_json

    folder, state = results.work / "paper", results.content["steps"]
    published = read_yaml(STUDY)["published"]
    epochs, decoder, probe = epochs_of(chosen)
    reduced = chosen.toy or epochs != EPOCHS
    rows = [
        {"step": " ".join(filter(None, step)), "s": state.get("/".join(step))}
        for step in plan(chosen)
    ]
    for row in rows:
        row["s"] = "missing" if row["s"] is None else row["s"]
    yield "Steps of the study", rows
    of = f"{epochs} epochs of {chosen.batch_size}, {precision}"
    of += ", **reduced**" if reduced else ""
    rows, logs = (
        [],
        {name: folder / f"{name}_1/train_log.txt" for name in names_of(chosen)},
    )
    for name, log in logs.items():
        if log.exists():
            numbers, config = last_line(log), folder / f"{name}_1/config.json"
            epochs = f"{numbers['epoch']:g}"
            if name in results.content.get("cut", ()):
                saved = read_json(config)["training"]["epochs"]
                epochs += f", cut short: that of epoch {saved} is evaluated"
            rows += [
                {"system": name, "epochs": epochs, "module": module}
                | {
                    term: numbers[f"train {module}_{term}"]
                    for term in ("nce", "accuracy", "kl", "active_units")
                    if f"train {module}_{term}" in numbers
                }
                for module in (*LAYERS, "context")
            ]
    yield f"Last epoch of training ({of})", rows
    rows = []
    for system in systems_of(chosen):
        inner = folder / f"{system}_1/probe"
        for path in sorted(inner.glob("probe_*.json")):
            found = read_json(path)
            paper = published["probes"].get(found["label"], {})
            for layer, score in found["layers"].items():
                row = {"system": system, "label": found["label"]}
                row |= {"layer": layer, "accuracy, %": 100 * score["accuracy"]}
                row["of seeds, %"] = " ".join(
                    f"{100 * x:.1f}" for x in score["per_seed"]
                )
                row["shuffled, %"] = 100 * score["control"]["accuracy"]
                if layer == "context":
                    row["paper, %"] = paper.get(system.split("-")[0], "")
                rows.append(row)
    yield f"Probes; -paper: {probe} epochs (encoders: {of})", rows
    shares, every = [], []
    for name in names_of(chosen):
        path = folder / f"{name}_1/delta.json"
        found = read_json(path)["result"] if path.exists() else {}
        for layer, numbers in found.items():
            row, paper = {"system": name, "layer": layer}, published["delta"]
            deltas = paper.get(name, {}).get(layer, ())
            paper = dict(zip(published["counts"], deltas, strict=False))
            if "mae" not in numbers:
                shares.append(row | {"δ, absolute, %": str(numbers)})
                continue
            row["decoded, %"] = 100 * numbers["explained"]
            n = delta_at_share(numbers)["n"]
            row["N"] = f"{n} of {numbers['dimensions']}"
            for distance in ("mae", "mse"):
                scores = delta_at_share(numbers, distance)
                low, high = scores["interval"]
                row[f"{distance}, %"] = 100 * scores["value"]
                row[f"{distance}, interval"] = (
                    f"{100 * low:.1f} to {100 * high:.1f}"
                )
            row["paper, %"] = "" if reduced else paper.get(n, "")
            shares.append(row)
            for distance in ("mae", "mse"):
                scores = numbers[distance]
                row = {"system": name, "layer": layer, "distance": distance}
                for n, value in zip(
                    scores["counts"], scores["delta"], strict=True
                ):
                    row[f"N = {n}"] = 100 * value
                every.append(row)
            row = {"system": name, "layer": layer, "distance": "paper"}
            if not reduced:
                every.append(row | {f"N = {n}": x for n, x in paper.items()})
    text = f"decoders of {decoder} epochs"
    yield f"δ at N/D = 1/8 ({text}; encoders: {of})", shares
    yield f"δ(N), % ({text}; encoders: {of})", every


def hand_over(results, chosen, precision):
    """Writes tables, an archive of small files, and encoders, into output."""
    tables = results.content["done"]["paper"] = {}
    for title, rows in tables_of(results, chosen, precision):
        if rows:
            tables[title] = {"rows": rows, "seconds": 0.0}
    results.save()
    results.output.mkdir(parents=True, exist_ok=True)
    folder = results.work / "paper"
    with tarfile.open(results.output / "paper.tar.gz", "w:gz") as tar:
        for path in sorted(finished_files(folder)):
            inner = path.relative_to(folder)
            try:
                info = tar.gettarinfo(path, f"paper/{inner}")
                data = path.read_bytes()
            except FileNotFoundError:  # a step that runs has replaced it
                continue
            info.size = len(data)  # a log may have grown
            tar.addfile(info, io.BytesIO(data))
    for name in names_of(chosen):
        if f"train/{name}/" in results.content["steps"]:
            halve(folder / f"{name}_1", results.output / f"{name}.safetensors")


def finished_files(folder, kinds=KINDS):
    """Yields the small files of results: no checkpoints, no activations."""
    for path, folders, names in os.walk(folder):
        folders[:] = [f for f in folders if f not in ("save", "activations")]
        yield from (Path(path, n) for n in names if Path(n).suffix in kinds)


def halve(run, target):
    """Copies a run's encoder in half precision."""
    from safetensors import safe_open
    from safetensors.torch import load_file, save_file

    path = run / "encoder.safetensors"
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    weights = load_file(path)
    halved = {
        k: x.half() if x.is_floating_point() else x for k, x in weights.items()
    }
    if not target.exists():
        save_file(halved, target, metadata)


def precision_for(results, chosen):
    """Chooses bf16 on a GPU, unless part one found it wrong; else TF32."""
    if chosen.precision:
        return chosen.precision
    if chosen.device == "cpu":
        return "fp32"
    done = results.content["done"].get("right", {})
    rows = done.get("Training in each precision", {"rows": []})["rows"]
    right = {row["precision"]: row["right"] for row in rows}
    return "bf16" if right.get("bf16", True) else "tf32"


def paper(results, chosen):
    """Runs part three."""
    if not chosen.data:
        raise SystemExit("The paper's part needs --data.")
    steps = Steps(results, chosen, precision_for(results, chosen))
    steps.run()
    hand_over(results, chosen, steps.precision)


if __name__ == "__main__":
    import logging

    logging.disable(logging.WARNING)
    kind, name, layer, precision, *argv = sys.argv[1:]
    run_step(kind, name, layer, precision, argv)
