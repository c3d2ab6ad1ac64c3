"""The results of a model: RESULTS.md, a table for whatever was measured.

The numbers are those of config.json, and of the run that it was exported from:
`vib.json` of information bottlenecks, and the tables of `report.md`, its own or
that of its study.
"""

import re
from pathlib import Path

from speechbrain_sim.files import read_json, write_text
from speechbrain_sim.models.format import (
    BOTTLENECK,
    DECODER,
    ENCODER,
    PROBE,
    parts_of,
)
from speechbrain_sim.report.page import Section, Table, template
from speechbrain_sim.report.tables import number, percent, with_interval

#: the file
RESULTS = "RESULTS.md"
NOTE = (
    "What was measured of this model, generated from config.json and from the "
    "run that it was exported from. Brackets: 95 % intervals over test "
    "recordings. What the model is for, and its limits: README.md."
)
ENDS, EXPLAINED = "At the end of training", "explained"
KL = {"kl": "KL of a frame (nats)", "kl_per_second": "KL of a second (nats)"}
#: items of a report that need no pictures or sounds
KEPT = "\n| ", "\n**Not measured.**"


def write_results(folder, config, run=None):
    """Writes the results page of a model.

    Arguments
    ---------
    folder : str or Path
        The model's folder; its name is the title.
    config : dict
        Its config.json.
    run : str or Path, optional
        The run that it was exported from.
    """
    folder, parts = Path(folder), config["parts"]
    codes = parts_of(parts, BOTTLENECK).items()
    ends = {
        "Decoders": parts_of(parts, DECODER),
        "Codes": {name: part.get("training", {}) for name, part in codes},
        "Encoder": _by_layer(config["training"], parts[ENCODER]["layers"]),
    }
    tables = {"Linear probes": _probes(parts_of(parts, PROBE))}
    tables["Halves"] = _halves(Path(run, "vib.json")) if run else []
    tables |= {title: _terms(found) for title, found in ends.items()}
    shown = {"title": f"{folder.resolve().name}: results", "note": NOTE}
    shown["sections"] = [Section("", k, "", v) for k, v in tables.items() if v]
    text = template("page.md").render(shown)
    text += "".join(map(_tables_only, _reports(Path(run)) if run else ()))
    write_text(folder / RESULTS, re.sub(r"\n{3,}", "\n\n", text))


def _probes(probes):
    """Makes a table for each label: all layers, and the controls."""
    tables = []
    for label, probe in probes.items():
        rows = []
        for layer, score in probe["layers"].items():
            others = {
                "validation (%)": score.get("valid_accuracy"),
                "without the input (%)": score["chance"],
                "shuffled labels (%)": score.get("control", {}).get("accuracy"),
            }
            row = {"": layer + ", chosen" * (layer == probe["best_layer"])}
            row["test (%)"] = percent(score)
            for name, value in others.items():
                row[name] = number(None if value is None else 100 * value, 1)
            rows.append(row)
        title = f"{label}, {len(probe['classes'])} classes"
        caption = "Accuracy; the layer is chosen on validation data."
        tables.append(Table.of(title, caption, rows))
    return tables


def _halves(path):
    """Makes a table of `vib.json`, if there is one."""
    if not path.exists():
        return []
    rows = []
    for name, half in read_json(path)["halves"].items():
        row = {"": re.sub("_baseline$", ", read from the layer", name)}
        for key, value in half.items():
            if isinstance(value, dict):
                row[f"{key} (%)"] = with_interval(value, 100, 1)
            elif key in KL:
                row[KL[key]] = number(value)
        rows.append(row)
    return [Table.of("Errors, accuracy, KL", "Of the test part.", rows)]


def _by_layer(training, layers):
    """Returns the terms of each layer's loss: layer -> part -> term."""
    return {
        layer: {
            part: {
                term.removeprefix(f"{layer}_"): value
                for term, value in (training.get(part) or {}).items()
                if term.startswith(f"{layer}_")
            }
            for part in ("train", "valid")
        }
        for layer in layers
    }


def _terms(found):
    """Makes a table of what training logged last: name -> part -> term."""
    rows = [
        {"": f"{name}, {part}"}
        | {key: "—" if x is None else f"{x:.4g}" for key, x in terms.items()}
        for name, parts in found.items()
        for part in ("train", "valid")
        if (terms := parts.get(part))
    ]
    share = f"; {EXPLAINED}: the share of the variance"
    share *= any(EXPLAINED in row for row in rows)
    return [Table.of("Terms of the loss", f"{ENDS}{share}.", rows)] * bool(rows)


def _reports(run):
    """Yields the text of a run's report, or of its study's."""
    study = run.parent / "report.json"
    system = run.resolve().name.rpartition("_")[0]  # without its seed
    if (run / "report.md").exists():
        yield (run / "report.md").read_text(encoding="utf-8")
    elif study.exists() and any(
        system in systems for systems in read_json(study)["probes"].values()
    ):
        yield study.with_suffix(".md").read_text(encoding="utf-8")


def _tables_only(report):
    """Returns a report without what needs its pictures and sounds."""
    kept = []
    for part in reversed(re.split(r"^(?=#{1,3} )", report, flags=re.M)):
        full = bool(kept) and kept[-1].startswith("####")
        wanted = {"#": True, "##": full}.get(part.split(" ")[0])
        if wanted or any(item in part for item in KEPT):
            kept.append(f"#{part}")
    return "\n" + "".join(reversed(kept))
