"""Disentanglement of known factors: `factor_scores` of every layer's code."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np
import torch

from speechbrain_sim.analysis.factor_scores import (
    VERSION,
    controls,
    dependence,
    factor_scores,
)
from speechbrain_sim.analysis.intervals import Unmeasurable
from speechbrain_sim.analysis.lasso import Part
from speechbrain_sim.analysis.latents import read_codes
from speechbrain_sim.analysis.study import HIGHER, Results, Tool
from speechbrain_sim.bottlenecks.coded import CodedEncoder
from speechbrain_sim.data.tables import manifest_hash, read_manifest
from speechbrain_sim.encoders.greedy import GreedyEncoder
from speechbrain_sim.report import style
from speechbrain_sim.report.page import Figure, Gap, Table
from speechbrain_sim.report.tables import number, with_interval

#: scores that are drawn, and their names
MEASURES = {
    "disentanglement": "disentangled",
    "completeness": "complete",
    "informativeness": "informative\n(R², 95 % interval)",
    "mig": "MIG",
    "sap_share": "SAP\n(of its maximum)",
}


class Factors(NamedTuple):
    """Where examples with known factors come from.

    Arguments
    ---------
    of : callable
        Row of a manifest -> dict of factors.
    train_csv, test_csv, data_folder : str
        Manifests of both parts, and their `$data_root`.
    label : str
        A label of frames, see `speechbrain_sim.analysis.latents.read_codes`.
    segments : int
        Codes are the means of so many parts of a recording, or single frames
        (0).
    note : str
        What to know about the factors.
    """

    of: Callable
    train_csv: str
    test_csv: str
    data_folder: str
    label: str
    segments: int = 0
    note: str = ""

    def codes(self, encoder, layers):
        """Returns the `Codes` of the training and of the test part."""
        parts = self.train_csv, self.test_csv
        return [read_codes(encoder, layers, part, self) for part in parts]

    def values(self):
        """Returns factor -> its values in the recordings of both parts."""
        parts = map(read_manifest, (self.train_csv, self.test_csv))
        rows = [{"ID": n, **row} for p in parts for n, row in p.items()]
        found = [self.of(row) for row in rows]
        return {n: np.array([row[n] for row in found]) for n in found[0]}


def untrained(encoder, seed):
    """Returns an encoder of the same shape that was never trained, or None.

    Of codes: the encoder as it is, with bottlenecks that were never trained.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        if isinstance(encoder, GreedyEncoder):
            control = GreedyEncoder(**encoder.arguments)
        elif isinstance(encoder, CodedEncoder):
            fresh = {}
            for name, one in encoder.bottlenecks.items():
                fresh[name] = type(one)(**one.arguments)
                units = dict(one.named_buffers())
                fresh[name].load_state_dict(units, strict=False)
            control = CodedEncoder(encoder.encoder, fresh, encoder.entries)
        else:
            return None
    return control.eval().to(encoder.device)


def read_untrained(read, encoder, layers, seed):
    """Reads what untrained controls compute: layer -> codes of both parts.

    `read` is `Factors.codes`. The control of a code is an untrained bottleneck.
    """
    groups, found = {}, {}
    for layer in layers:
        is_code = encoder.origin(layer) != layer
        groups.setdefault(is_code, []).append(layer)
    for is_code, names in groups.items():
        plain = encoder
        if isinstance(encoder, CodedEncoder) and not is_code:
            plain = encoder.encoder
        control = untrained(plain, seed)
        if control is not None:
            parts = read(control, names)
            found |= {n: [part.x[n] for part in parts] for n in names}
    return found


def plot_factors(layers, title, path):
    """Plots scores: layer -> encoder or control -> `factor_scores`."""
    codes = list(dict.fromkeys(n for scores in layers.values() for n in scores))
    width, size = 0.8 / len(codes), (7, 1.5 * len(layers) + 0.8)
    places, shared = np.arange(len(MEASURES)), {"sharex": True, "sharey": True}
    with style.drawing(path, len(layers), 1, size, **shared) as (figure, axes):
        panels = zip(axes[:, 0], layers.items(), strict=True)
        for panel, (layer, scores) in panels:
            for i, name in enumerate(n for n in codes if n in scores):
                shift = width * (i - (len(scores) - 1) / 2)
                at, y = places + shift, [scores[name][m] for m in MEASURES]
                bar = {"color": style.colour(codes.index(name)), "label": name}
                panel.bar(at, y, 0.9 * width, **bar)
                ends = scores[name]["interval"]
                panel.vlines(at[2], *ends, color="black", linewidth=1)
            panel.set_title(layer, loc="left", size=9)
            panel.tick_params(axis="x", length=0)
        panel.set_ylim(top=1)
        panel.set_xticks(places, MEASURES.values())
        figure.suptitle(title, x=0.02, ha="left")
        style.legend_below(figure)


class FactorsTool(Tool):
    """Section of disentanglement against known factors."""

    key = "factors"
    title = "Known factors of variation"
    sentence = "A learned layout stands out against the code in other axes."
    columns = {
        f"DCI D\n{HIGHER}": "DCI D: disentanglement, from 0 to 1 (one known "
        "factor for each dimension)."
    }

    def cells(self, numbers):
        """Returns the cells of `columns`."""
        return [number(numbers["encoder"]["disentanglement"])]

    def settings(self, study):
        """Returns what the scores depend on but the encoder."""
        factors = study.factors
        if factors is None:
            return {"factors": None}
        whole = partial(factors.of)  # of a partial: function and all arguments
        name = f"{whole.func.__module__}.{whole.func.__qualname__}"
        keywords = {key: str(v) for key, v in whole.keywords.items()}
        return {
            "scores": VERSION,
            "factors": [name, keywords],
            "parts": factors.segments or factors.label,
            "manifests": [
                manifest_hash(manifest, factors.data_folder)
                for manifest in (factors.train_csv, factors.test_csv)
            ],
        }

    def measure(self, system, study):
        """Scores each layer's code, beside controls of equal width.

        Returns, of each layer, `encoder`, `untrained` (if one can be made),
        `pca` and `rotation`, each from `factor_scores`, and the test examples
        `left_out`, of a class that no training example has; nothing if the
        corpus names no factors.
        """
        if study.factors is None:
            return {}
        read, layers = study.factors.codes, list(system.latents)
        train, test = read(system.encoder, layers)
        known = read_untrained(read, system.encoder, layers, study.seed)
        kept = np.ones(len(test.utterance), bool)
        for name, values in test.factors.items():
            if values.dtype.kind != "f":
                kept &= np.isin(values, train.factors[name])
        factors = {name: values[kept] for name, values in test.factors.items()}
        left_out = {"left_out": int((~kept).sum())}

        def measure(layer, latent):
            codes = {"encoder": [train.x[layer], test.x[layer]]}
            if layer in known:
                codes["untrained"] = known[layer]
            codes |= controls(*codes["encoder"], study.seed)
            scores = {}
            for name, (x, z) in codes.items():
                one = Part(x, train.factors, train.utterance)
                other = Part(z[kept], factors, test.utterance[kept])
                scores[name] = left_out | factor_scores(one, other, study.seed)
            return scores

        return system.each_layer(measure)

    def items(self, found, study):
        """Returns a figure and a table of each system."""
        if study.factors is None:
            return [Gap("No factors", "This corpus names none.")]
        items = [_dependence_table(study.factors)]
        for system, layers in found.items():
            one = next(iter(layers.values()))["encoder"]
            names, counts = ", ".join(one["factors"]), one["examples"]
            stem = style.figure_stem("factors", system)
            plot_factors(layers, f"{system}: {names}", study.folder / stem)
            caption = (
                f"Mean over {names}. {counts['train']} training and "
                f"{counts['test']} test examples; {one['left_out']} of classes "
                "that are not in the training part are left out. SAP's maximum "
                f"is 1 − 1/classes, 1 for quantities. {study.factors.note}"
            )
            figure = Figure(
                f"Factors of variation, {system}",
                "Controls of the same width: an untrained encoder, if any; the "
                "code's principal components; a random rotation of the code.",
                stem,
                "Bars of five scores, a panel per layer.",
                system,
            )
            items += [figure, _table(layers, system, caption)]
        return items


def _dependence_table(factors):
    """How dependent the factors are; a gap where there are too few values."""
    title, values = "How independent the factors are", factors.values()
    try:
        known = dependence(values)
    except Unmeasurable as error:
        return Gap(title, str(error))
    rows = [
        {"": name} | {n: number(max(x, 0)) for n, x in shares.items()}
        for name, shares in known.items()
    ]
    caption = (
        "How much of a row's factor a column's determines: mutual information "
        "over entropy, both less what chance gives, uncertain in less than some "
        f"hundreds of recordings. Here, in both parts: {len(values[rows[0]['']])}."
    )
    return Table.of(title, caption, rows)


def _table(layers, system, caption):
    rows = []
    for name, _, _, scores in Results(layers).rows():
        row = {"": name}
        for key in ("disentanglement", "completeness"):
            row[key] = number(scores[key])
        known = with_interval(scores, key="informativeness")
        row["informativeness (R²)"] = known
        keys = {"MIG": "mig", "SAP": "sap", "SAP / maximum": "sap_share"}
        row |= {title: number(scores[key], 3) for title, key in keys.items()}
        rows.append(row)
    return Table.of(f"Scores, {system}", caption, rows, system)
