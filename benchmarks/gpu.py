"""What one GPU does: right, fast, and the paper at full size, in one command.

    make gpu-bundle                       # code, wheels and data in one archive
    python benchmarks/gpu.py --data DATA --output results/gpu

Three parts, in this order: `right` compares with the CPU, `fast` measures steps
and extraction, `paper` trains SIM and GIM at 512 channels on the artificial
speech set, through the recipes, and evaluates them. After each measurement
`gpu.json` and `gpu.md` are written: what is done is not repeated by the next
run, and a training that was interrupted goes on. `compile` measures `--compile`.
`--toy` does all of it at toy size, on a CPU, too. `--publish` writes results into
docs/gpu.md, those of the last folder first where several measured the same.
"""

import argparse
import logging
import os
import sys
import time
import traceback
from pathlib import Path

# before CUDA starts: products are the same from run to run
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
ROOT = Path(__file__).resolve().parent.parent
HERE = str(Path(__file__).resolve().parent)
if sys.path[0] == HERE:  # a script's: profile.py is a module of Python, too
    sys.path.pop(0)
sys.path[:0] = [str(ROOT), str(ROOT / "recipes")]

from speechbrain_sim.files import (  # noqa: E402
    machine,
    read_json,
    write_json,
    write_text,
)
from speechbrain_sim.report.tables import markdown_table  # noqa: E402

#: in docs/gpu.md: what follows is written by --publish
MARK = "<!-- measured -->"
PARTS = ("right", "fast", "paper", "compile")
#: kernels in a published table, the costliest first
SHOWN = 8

PARTS_SHOWN = {
    "right": "Right",
    "fast": "Fast",
    "paper": "The paper's systems",
    "compile": "Compiled",
}


class TimeIsUp(Exception):
    """The minutes are over; a next run goes on."""


class Results:
    """What was measured, kept in two folders after each measurement.

    Arguments
    ---------
    work, output : Path
        Where a next run looks, and where the results are handed over.
    minutes : float
        Until `TimeIsUp`.
    """

    def __init__(self, work, output, minutes):
        self.work, self.output = work, output
        self.deadline = time.monotonic() + 60 * minutes
        path = work / "gpu.json"
        self.content = read_json(path) if path.exists() else {"done": {}}
        self.content |= {"date": time.strftime("%Y-%m-%d"), "errors": {}}
        self.content["machine"] = machine()

    def left(self):
        """Returns the seconds until the deadline."""
        return self.deadline - time.monotonic()

    def check_time(self):
        """Raises a TimeIsUp after the deadline."""
        if self.left() < 0:
            raise TimeIsUp

    def measure(self, part, title, function):
        """Calls `function` once, in all runs together; returns its rows.

        It returns a list of dict, or a dict of functions, one for each row,
        called with the rows so far: each row is written when it is measured,
        and a next run goes on with those that are missing. None if it fails:
        the others go on.
        """
        done = self.content["done"].setdefault(part, {})
        table = done.get(title, {"rows": [], "keys": [], "seconds": 0.0})
        if title in done and not table.get("keys"):
            return table["rows"]
        self.check_time()
        print(f"[{self.left():.0f} s left] {part}: {title}", flush=True)
        rows = self.guarded(part, title, function)
        if isinstance(rows, dict):
            for key, row in rows.items():
                if key in table["keys"]:
                    continue
                self.check_time()
                row = self.guarded(part, f"{title}: {key}", row, table["rows"])
                if row is not None:
                    self.note(part, title, table, [row], [key])
        elif rows is not None:
            self.note(part, title, table, rows, [])
        return done.get(title, {}).get("rows")

    def guarded(self, part, title, function, *arguments):
        """Returns what a function does; None, and its error noted, if it fails."""
        self.start = time.monotonic()
        try:
            return function(*arguments)
        except TimeIsUp:
            raise
        except Exception:
            error = traceback.format_exc()
            print(error, flush=True)
            self.content["errors"][f"{part}: {title}"] = error[-3000:]
            self.save()

    def note(self, part, title, table, rows, keys):
        """Adds rows to a table, and writes all."""
        table["rows"], table["keys"] = (
            table["rows"] + rows,
            table["keys"] + keys,
        )
        table["seconds"] += time.monotonic() - self.start
        table |= {"date": self.content["date"], "on": card(self.content)}
        self.content["done"][part][title] = table
        for row in rows:
            print(
                "   ", *(f"{k}={show(v)}" for k, v in row.items()), flush=True
            )
        self.save()

    def save(self):
        """Writes gpu.json and gpu.md into both folders."""
        for folder in {self.work, self.output}:
            write_json(folder / "gpu.json", self.content)
            write_text(folder / "gpu.md", markdown(self.content))


def card(content):
    """Returns what was measured on, by the names of its device and versions."""
    at = content["machine"]
    versions = f"torch {at['torch']}, speechbrain {at['speechbrain']}"
    return f"{at['gpu'] or 'a CPU'}, {versions}"


def show(value):
    """Returns a value as the cell of a table."""
    if isinstance(value, bool):
        return "yes" if value else "NO"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def markdown(content):
    """Returns all results as markdown: a table for each measurement."""
    text, here = "", (content["date"], card(content))
    for part in filter(content["done"].get, PARTS):
        tables = content["done"][part]
        text += f"\n## {PARTS_SHOWN[part]}\n"
        places = {(t.get("date"), t.get("on")) for t in tables.values()}
        for date, on in sorted({p if p[1] else here for p in places}):
            text += f"\nMeasured {date} on {on}.\n"
        for title, table in tables.items():
            seconds = table["seconds"]
            text += f"\n{title}"
            text += f" ({seconds:.1f} s):\n\n" if seconds else ":\n\n"
            header = list(
                dict.fromkeys(k for row in table["rows"] for k in row)
            )
            cells = [
                [show(r.get(k, "")) for k in header] for r in table["rows"]
            ]
            text += markdown_table(header, cells) + "\n"
    for title, error in content["errors"].items():
        text += f"\nFailed: {title}\n\n```\n{error}\n```\n"
    return text


def publish(folders, page=ROOT / "docs/gpu.md"):
    """Replaces the tables at the end of a page by those of some folders."""
    found = [read_json(Path(folder, "gpu.json")) for folder in folders]
    content = {**found[-1], "done": {}, "errors": {}}
    for one in found:
        for part, tables in one["done"].items():
            for table in tables.values():
                table.setdefault("on", card(one))
                table.setdefault("date", one["date"])
            content["done"].setdefault(part, {}).update(tables)
    for title, table in content["done"].get("fast", {}).items():
        if title.startswith("Kernels"):
            table["rows"] = table["rows"][:SHOWN]
    about = page.read_text(encoding="utf-8").split(MARK)[0]
    write_text(page, f"{about}{MARK}\n{markdown(content)}")


def options(argv):
    """Parses the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="the artificial speech set")
    parser.add_argument("--output", type=Path, default=ROOT / "results/gpu")
    parser.add_argument(
        "--work", type=Path, help="runs and checkpoints; output/work"
    )
    parser.add_argument(
        "--parts", nargs="+", choices=PARTS, default=[*PARTS[:3]]
    )
    parser.add_argument("--minutes", type=float, default=9.5)
    parser.add_argument("--device")
    parser.add_argument(
        "--precision",
        choices=["fp32", "tf32", "bf16", "fp16"],
        help="of the paper's runs; by default the fastest that is right",
    )
    parser.add_argument(
        "--batch_size", type=int, default=64, help="of the paper's runs"
    )
    parser.add_argument("--epochs", type=int, default=1000, help="of the same")
    parser.add_argument(
        "--plus", action="store_true", help="also SIM with the levers that paid"
    )
    parser.add_argument("--publish", nargs="+", help="folders of results")
    parser.add_argument(
        "--toy", action="store_true", help="all of it at toy size"
    )
    return parser.parse_args(argv)


def main(argv=None):
    """Measures the parts asked for; returns whether nothing failed."""
    chosen = options(argv)
    if chosen.publish:
        publish(chosen.publish)
        return True
    import torch

    chosen.device = chosen.device or (
        "cuda" if torch.cuda.is_available() else "cpu"
    )
    chosen.work = chosen.work or chosen.output / "work"
    if chosen.toy and not chosen.data:
        from benchmarks.bundle import write_toy_set

        chosen.data = write_toy_set(chosen.work / "toy")
    results = Results(chosen.work, chosen.output, chosen.minutes)
    try:
        for part in chosen.parts:
            if part == "right":
                from benchmarks.gpu_right import right as measure
            elif part == "fast":
                from benchmarks.gpu_fast import fast as measure
            elif part == "paper":
                from benchmarks.gpu_paper import paper as measure
            else:
                from benchmarks.gpu_fast import compiled as measure
            measure(results, chosen)
    except TimeIsUp:
        print("The minutes are over: run it again to go on.")
    results.save()
    print(f"Written: {chosen.output}/gpu.json and gpu.md")
    return not results.content["errors"]


if __name__ == "__main__":
    logging.disable(logging.WARNING)  # lines per epoch and per run
    sys.exit(0 if main() else 1)
