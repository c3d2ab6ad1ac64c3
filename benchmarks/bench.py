"""Measures speed and memory of everything with a stated cost, in one command.

    python -m benchmarks.bench
    python -m benchmarks.bench --only steps memory
    python -m benchmarks.bench --publish

Each group runs in a process of its own. Writes `results/bench`: bench.json,
bench.md and plots, anew after each group. `--publish` copies the last result to
docs/ and a summary into docs/performance.md.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

from benchmarks import (
    analysis,
    bottleneck,
    explorer,
    extraction,
    parallel,
    training,
)
from benchmarks.measure import (
    GIVE_BACK,
    KEEP,
    PRODUCT_FLOPS,
    in_turn,
    matrix_product,
)
from benchmarks.plots import plot_lines, plot_pairs
from benchmarks.profile import profile
from speechbrain_sim.files import machine
from speechbrain_sim.report.tables import markdown_table

ROOT = Path(__file__).resolve().parent.parent
RESULTS, DOCS = ROOT / "results/bench", ROOT / "docs"

AS_INSTALLED, MEMORY_KEPT = "as installed", "memory kept"


def _write_profile():
    """Writes profile.md; there is no row to be met."""
    (RESULTS / "profile.md").write_text(profile(), encoding="utf-8")
    return []


#: name: what to call, and the process's environment
GROUPS = {
    "steps": (lambda _: training.speed(AS_INSTALLED), {}),
    "steps_kept": (lambda _: training.speed(MEMORY_KEPT), KEEP),
    "profile": (lambda _: _write_profile(), KEEP),
    "precision": (lambda _: training.precision(), KEEP),
    "memory": (lambda _: training.memory(), GIVE_BACK),
    "checkpointing": (lambda _: training.checkpointing(), GIVE_BACK),
    "depth": (lambda _: training.depth(), GIVE_BACK),
    "growth": (lambda _: training.growth(), KEEP),
    "features": (lambda _: extraction.speed(), {}),
    "streaming": (lambda minutes: extraction.streaming(minutes), GIVE_BACK),
    "probes": (lambda _: extraction.probes(), {}),
    "drawing": (lambda _: extraction.drawing(), GIVE_BACK),
    "loading": (lambda _: extraction.loading(), {}),
    "delta": (lambda _: analysis.delta(), {}),
    "explorer": (lambda _: explorer.latency(), {}),
    "parallel": (lambda _: parallel.parallel(), {}),
    "bottleneck": (lambda _: bottleneck.step() + bottleneck.one_pass(), KEEP),
}

#: where the summary stands, between these marks
PAGE = DOCS / "performance.md"
MARKS = "<!-- bench -->", "<!-- /bench -->"


def measure(group, minutes):
    """Runs one group here: its rows, and the machine's load and rate."""
    load, started = os.getloadavg()[0], time.perf_counter()
    rates = in_turn({"product": matrix_product()}, 9)["product"].wall
    rate = PRODUCT_FLOPS / median(rates) / 1e9
    return {
        "rows": GROUPS[group][0](minutes),
        "seconds": time.perf_counter() - started,
        "load": load,
        "gflop_per_second": rate,
        "environment": GROUPS[group][1],
    }


def run(group, minutes):
    """Runs one group in a process of its own and returns what it measured."""
    out = RESULTS / f"{group}.json"
    command = [sys.executable, "-m", "benchmarks.bench", "--group", group]
    command += ["--minutes", str(minutes)]
    subprocess.run(
        command, check=True, cwd=ROOT, env={**os.environ, **GROUPS[group][1]}
    )
    return json.loads(out.read_text(encoding="utf-8"))


def table(rows):
    """Returns the rows as a markdown table."""
    cells = []
    for line in rows:
        ours, reference = (
            f"{line[side]:.3g} {line['unit']}" for side in ("ours", "reference")
        )
        if "real_time_factor" in line:
            ours += f" ({line['real_time_factor']:.3f} × real time)"
        cells.append([line["name"], ours, reference, f"{line['ratio']:.2f}"])
    header = ["what", "ours", "reference", "ratio"]
    return markdown_table(header, cells) + "\n"


def summary(rows):
    """Returns the rows as a short markdown table, a family in each line."""
    families, cells = {}, []
    for line in rows:
        families.setdefault(line["family"], []).append(line["ratio"])
    for family, ratios in families.items():
        ends = dict.fromkeys(f"{r:.3g}" for r in (min(ratios), max(ratios)))
        cells.append([family, " – ".join(ends)])
    return markdown_table(["what", "measured"], cells) + "\n"


def missed(rows):
    """Returns a line for each row that misses its target."""
    return "".join(
        f"missed: {line['name']}: {line['ratio']:.2f}, target {line['target']}"
        f"{' (goal)' if line['goal'] else ''}\n"
        for line in rows
        if line["met"] is False
    )


def markdown(bench, shape=table):
    """The whole result as markdown, with `table` or `summary`."""
    at = bench["machine"]
    loads = [group["load"] for group in bench["groups"].values()]
    rates = [group["gflop_per_second"] for group in bench["groups"].values()]
    return (
        f"Measured {bench['date']} with `make bench` on {at['cores']} cores "
        f"({at['threads']} threads, {at['processor']}, torch {at['torch']}), "
        f"load {min(loads):.1f} to {max(loads):.1f} before each group; fp32 "
        f"product {min(rates):.0f} to {max(rates):.0f} GFLOP/s; "
        f"{bench['seconds'] / 60:.0f} minutes in all. Times are medians of "
        f"repetitions taken in turn.\n\n{shape(bench['rows'])}"
    )


def plot(rows, folder):
    """Draws what can be seen better than read."""
    floors = {}
    for line in rows:
        match = re.match(r"(.*): (ours|plain) in floors", line["name"])
        if match and match[1].endswith(MEMORY_KEPT):
            case = match[1].removesuffix(f", {MEMORY_KEPT}")
            case = case.replace(" step ", ", ")
            floors.setdefault(case, {})[match[2]] = line["ratio"]
    if floors:
        plot_pairs(
            {c: (of["ours"], of["plain"]) for c, of in floors.items()},
            ("ours", "plain way"),
            f"Time of a training step ({MEMORY_KEPT})",
            "floors",
            folder / "steps",
            ("matrix products alone", 1.0),
        )
    stacks = {
        line["name"].split(":")[0]: (line["modules"], line["values"])
        for line in rows
        if ": peak memory of 12 modules" in line["name"]
    }
    if stacks:
        names = {"sim": "greedy", "sim_end_to_end": "end to end"}
        plot_lines(
            {names[name]: line for name, line in stacks.items()},
            "Memory of a training step over depth",
            "modules at 200 Hz, 512 channels",
            "peak above the idle model (MiB)",
            folder / "depth",
        )


PUBLISHED = ["bench.json", "bench.md", "profile.md", "steps.svg", "depth.svg"]


def _commit():
    """What was measured; None outside a git checkout."""
    command = ["git", "rev-parse", "--short", "HEAD"]
    got = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    return got.stdout.strip() or None


def publish(bench):
    """Puts the last result into docs/, a summary into performance.md."""
    missing = set(GROUPS) - set(bench["groups"])
    if missing:
        raise SystemExit(f"Not measured yet: {', '.join(sorted(missing))}.")
    for name in PUBLISHED:
        shutil.copy(RESULTS / name, DOCS / name)
    before, rest = PAGE.read_text(encoding="utf-8").split(MARKS[0])
    after = rest.split(MARKS[1])[1]
    text = markdown(bench, summary)
    PAGE.write_text(
        f"{before}{MARKS[0]}\n{text}{MARKS[1]}{after}", encoding="utf-8"
    )


def main(argv=None):
    """Runs the groups asked for and writes the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=GROUPS, default=[*GROUPS])
    parser.add_argument("--group", choices=GROUPS, help=argparse.SUPPRESS)
    parser.add_argument(
        "--minutes",
        type=int,
        default=10,
        help="of audio to stream; 60: an hour",
    )
    parser.add_argument(
        "--publish",
        action="store_true",
        help="measure nothing; put the last result into docs/",
    )
    options = parser.parse_args(argv)
    RESULTS.mkdir(parents=True, exist_ok=True)
    done = RESULTS / "bench.json"
    if options.group:
        result = measure(options.group, options.minutes)
        out = RESULTS / f"{options.group}.json"
        out.write_text(json.dumps(result, indent=2), encoding="utf-8")
        return
    if options.publish:
        publish(json.loads(done.read_text(encoding="utf-8")))
        return
    groups = {
        path.stem: json.loads(path.read_text(encoding="utf-8"))
        for path in RESULTS.glob("*.json")
        if path.stem in GROUPS and options.only != [*GROUPS]
    }
    for number, group in enumerate(options.only, 1):
        print(f"[{number}/{len(options.only)}] {group} ...", flush=True)
        groups[group] = run(group, options.minutes)
        print(table(groups[group]["rows"]))
        print(missed(groups[group]["rows"]), flush=True)
        print(f"{groups[group]['seconds']:.0f} s", flush=True)
        ordered = {name: groups[name] for name in GROUPS if name in groups}
        bench = {
            "date": time.strftime("%Y-%m-%d"),
            "commit": _commit(),
            "seconds": sum(of["seconds"] for of in ordered.values()),
            "machine": machine(),
            "groups": {
                name: {k: v for k, v in of.items() if k != "rows"}
                for name, of in ordered.items()
            },
            "rows": [line for of in ordered.values() for line in of["rows"]],
        }
        done.write_text(json.dumps(bench, indent=2), encoding="utf-8")
        (RESULTS / "bench.md").write_text(markdown(bench), encoding="utf-8")
        plot(bench["rows"], RESULTS)
    print(f"Written: {RESULTS}/bench.json, bench.md, *.png")


if __name__ == "__main__":
    main()
