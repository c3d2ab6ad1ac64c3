"""The tools, in the order of the report; a new tool is one line here."""

from functools import partial

from speechbrain_sim.analysis.abx import ABX
from speechbrain_sim.analysis.attribution import AttributionTool
from speechbrain_sim.analysis.delta import Delta
from speechbrain_sim.analysis.factors import FactorsTool
from speechbrain_sim.analysis.half_scores import HalfScores
from speechbrain_sim.analysis.headline import headline
from speechbrain_sim.analysis.listening import Listening
from speechbrain_sim.analysis.probing import Probing
from speechbrain_sim.analysis.shape import Shape
from speechbrain_sim.analysis.smoothness import Smoothness
from speechbrain_sim.analysis.study import HIGHER, Results, Tool
from speechbrain_sim.analysis.trade_off import TradeOff
from speechbrain_sim.analysis.training import Training
from speechbrain_sim.analysis.weights import Weights
from speechbrain_sim.decoders import DECODERS, SPECTROGRAM
from speechbrain_sim.files import cached_result, machine, versions, write_json
from speechbrain_sim.report.page import Section, Table, write_page
from speechbrain_sim.report.tables import NOT_MEASURED, percent

TOOLS = [
    Probing(),
    ABX(),
    Training(),
    HalfScores(),
    Listening(),
    Delta(),
    Delta(SPECTROGRAM),
    TradeOff(),
    Weights(),
    Shape(),
    Smoothness(),
    Smoothness(SPECTROGRAM),
    FactorsTool(),
    AttributionTool(),
]


def choose_tools(keys=None, inside=True, decoders=DECODERS):
    """Returns the tools of these keys; all by default.

    Those of the probes, ABX and training are always there, and are all there are
    if there is nothing `inside`; those that need other kinds of `decoders` only
    are left out. Raises a ValueError for an unknown key.
    """
    names = [tool.key for tool in TOOLS]
    asked = set(names if keys is None else keys)
    unknown = ", ".join(sorted(asked - set(names)))
    if unknown:
        there = f"there are {', '.join(names)}"
        raise ValueError(f"There is no tool {unknown} (--tools); {there}.")
    chosen = [t for t in TOOLS if not t.inside or inside and t.key in asked]
    missing = set(DECODERS) - set(decoders)
    return [t for t in chosen if not t.needs or set(t.needs) - missing]


def measure_system(system, study, tools, folder):
    """Measures a system with each tool, or reads what was measured before.

    The folder holds `<tool>.json`, each with what it is made of. Returns tool
    -> layer -> numbers, of the tools that define `measure`.
    """
    results, encoder = {}, system.made_of["encoder"]
    made_of = {"clips": study.clips_hash(), "seed": study.seed}
    made_of |= {"versions": versions(), "encoder": encoder}
    made_of["layers"] = list(system.latents)
    for tool in tools:
        if type(tool).measure is Tool.measure:
            continue
        print(f"\n=== {system.name}: {tool.key}", flush=True)
        needs = {need: system.made_of.get(need) for need in tool.needs}
        results[tool.key] = cached_result(
            f"{folder}/{tool.key}.json",
            {**made_of, **needs, **tool.settings(study)},
            partial(tool.measure, system, study),
        )
    return results


def summarise(tools, study, differences):
    """Makes the section that the report begins with.

    The `columns` of the tools for each system and layer, and why some have no
    number; if there are none, the probes' best layers.
    """
    rows, gaps = [], []
    for system in study.systems:
        for layer in system.latents:
            rows.append({"": f"{system.name} {layer}"})
            for tool in tools:
                layers = study.results.get(tool.key, {}).get(system.name, {})
                numbers, cells = layers.get(layer), ["—"] * len(tool.columns)
                if numbers and "gap" not in numbers:
                    cells = tool.cells(numbers)
                elif numbers and cells:
                    cells = [NOT_MEASURED] * len(cells)
                    what = ", ".join(c.split("\n")[0] for c in tool.columns)
                    gaps.append([rows[-1][""], what, numbers["gap"]])
                rows[-1] |= zip(tool.columns, cells, strict=True)
    text = " ".join(m for tool in tools for m in tool.columns.values())
    if not rows:
        text = "Accuracy of linear probes in the layer chosen for each system."
        for label, systems in study.probed.items():
            for name, system in systems.items():
                row = {"": f"{name} {label}"}
                best = system["layers"][system["best_layer"]]
                row[f"probe (%)\n{HIGHER}"] = percent(best)
                rows.append(row)
    caption = f"{text} Brackets: 95 % intervals over recordings."
    items = [Table.of("In short", caption, rows)]
    if gaps:
        items.append(Table("Not measured", "", ["", "what", "why"], gaps))
    return Section("summary", "Summary", headline(study, differences), items)


def write_report(study, tools, title, note, settings):
    """Writes `report.html`, `report.md` and `report.json`.

    Arguments
    ---------
    study : Study
        With all results.
    tools : list of Tool
        Whose sections are shown; those without items are left out.
    title, note : str
        Heading; what a reader has to know about the runs.
    settings : dict
        For the json file.

    Returns
    -------
    list of Section
    """
    results = {key: Results(found) for key, found in study.results.items()}
    sections = [t.section(results.get(t.key, Results()), study) for t in tools]
    sections = [section for section in sections if section.items]
    measured = [tool for tool in tools if tool.key in results]
    differences = {t.key: t.compare(results[t.key], study) for t in measured}
    content = {"title": title, "note": note, "machine": machine()}
    content |= {"settings": settings, "probes": study.probed}
    content["differences"] = {k: v for k, v in differences.items() if v}
    write_json(study.folder / "report.json", content | _slim(results))
    names = [system.name for system in study.systems]
    summary = summarise(tools, study, differences)
    write_page(study.folder, title, note, [summary, *sections], names)
    return sections


def _slim(results):
    """Leaves out what is kept beside the report: single pairs, histograms."""
    if not isinstance(results, dict):
        return results
    heavy = ("per_pair", "density")
    return {k: _slim(v) for k, v in results.items() if k not in heavy}
