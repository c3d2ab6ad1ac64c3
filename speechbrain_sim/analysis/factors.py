"""Disentanglement of known factors: `factor_scores` of every layer's code."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np
import torch

from speechbrain_sim.analysis.factor_scores import controls, factor_scores
from speechbrain_sim.analysis.latents import frame_codes, segment_codes
from speechbrain_sim.analysis.study import Column, Tool
from speechbrain_sim.encoders.greedy import GreedyEncoder
from speechbrain_sim.files import sha256
from speechbrain_sim.report import style
from speechbrain_sim.report.page import Figure, Gap, Table
from speechbrain_sim.report.tables import with_interval

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
    segments: int = 0
    note: str = ""

    def identity(self):
        """Names the callable, with its arguments, for the cache."""
        whole = partial(self.of)  # of a partial: the function, all arguments
        name = f"{whole.func.__module__}.{whole.func.__qualname__}"
        return [name, {key: str(v) for key, v in whole.keywords.items()}]

    def codes(self, encoder, layers):
        """Returns the `Codes` of the training and of the test part."""
        return [
            segment_codes(*part, self.of, self.segments)
            if self.segments
            else frame_codes(*part, self.of)
            for part in (
                (encoder, manifest, self.data_folder, layers)
                for manifest in (self.train_csv, self.test_csv)
            )
        ]


def untrained(encoder, seed):
    """Returns an encoder of the same shape that was never trained, or None."""
    if not isinstance(encoder, GreedyEncoder):
        return None
    device = next(encoder.parameters()).device
    torch.manual_seed(seed)
    return GreedyEncoder(**encoder.arguments).eval().to(device)


def score_layers(system, train, test, control=None, seed=0):
    """Scores each layer's code, beside controls of equal width.

    Arguments
    ---------
    system : System
        The encoder.
    train, test : Codes
        From `Factors.codes`.
    control : (Codes, Codes), optional
        Of an encoder of the same shape that was never trained.
    seed : int
        Of the controls, and of what is drawn.

    Returns
    -------
    dict
        Of each layer `encoder`, `untrained` (if given), `pca` and `rotation`,
        each from `factor_scores`, and the test examples `left_out` for a class
        that no training example has.
    """
    known = np.ones(len(test.utterance), bool)
    for name, values in test.factors.items():
        if values.dtype.kind != "f":
            known &= np.isin(values, train.factors[name])
    factors = {name: values[known] for name, values in test.factors.items()}
    groups = train.utterance, test.utterance[known], seed

    def measure(layer, latent):
        codes = {"encoder": (train.x[layer], test.x[layer])}
        if control is not None:
            codes["untrained"] = tuple(part.x[layer] for part in control)
        codes |= controls(*codes["encoder"], seed)
        left_out = {"left_out": int((~known).sum())}
        return {
            name: left_out
            | factor_scores(x, z[known], train.factors, factors, *groups)
            for name, (x, z) in codes.items()
        }

    return system.each_layer(measure)


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
    sentence = (
        "A layout that the encoder learned stands out against the same code in "
        "other axes; what only the content explains does not."
    )
    columns = [
        Column(
            "DCI D",
            "disentanglement of known factors (1: one factor for each "
            "dimension)",
            lambda numbers: f"{numbers['encoder']['disentanglement']:.2f}",
        )
    ]

    def settings(self, study):
        """Returns what identifies the factors, and hashes of the manifests."""
        if study.factors is None:
            return {"factors": None}
        factors = study.factors
        return {
            "factors": factors.identity(),
            "segments": factors.segments,
            "train": sha256(factors.train_csv),
            "test": sha256(factors.test_csv),
        }

    def measure(self, system, study):
        """Returns `score_layers`; nothing if the corpus names no factors."""
        if study.factors is None:
            return {}
        layers, encoder = list(system.latents), system.encoder
        codes = study.factors.codes(encoder, layers)
        control = untrained(encoder, study.seed)
        control = control and study.factors.codes(control, layers)
        return score_layers(system, *codes, control, study.seed)

    def items(self, found, study):
        """Returns a figure and a table of each system."""
        if study.factors is None:
            return [Gap("No factors", "This corpus names none.")]
        items = []
        for system, layers in found.items():
            one = next(iter(next(iter(layers.values())).values()))
            names = ", ".join(one["factors"])
            stem = f"figures/factors_{system}"
            plot_factors(layers, f"{system}: {names}", study.folder / stem)
            items.append(
                Figure(
                    f"Factors of variation, {system}",
                    "Beside controls of the same width: an untrained encoder "
                    "(if one can be made); the same code's principal "
                    "components; the same code rotated at random.",
                    stem,
                    "Grouped bars of five scores for the encoder and its "
                    "controls, one panel per layer.",
                    system,
                )
            )
            caption = (
                f"Mean over {names}. {one['examples']['train']} training and "
                f"{one['examples']['test']} test examples; {one['left_out']} "
                "were left out, being of a class that is not in the training "
                "part. SAP's maximum is 1 − 1/classes for classes, 1 for "
                f"quantities. {study.factors.note}"
            )
            items.append(_table(layers, system, caption))
        return items


def _table(layers, system, caption):
    rows = []
    for layer, codes in layers.items():
        for code, scores in codes.items():
            value, interval = scores["informativeness"], scores["interval"]
            score = {"value": value, "interval": interval}
            row = {"": f"{layer} {code}"}
            for key in ("disentanglement", "completeness"):
                row[key] = f"{scores[key]:.2f}"
            row["informativeness (R²)"] = with_interval(score)
            for key in ("mig", "sap"):
                row[key.upper()] = f"{scores[key]:.3f}"
            row["SAP / maximum"] = f"{scores['sap_share']:.3f}"
            rows.append(row)
    return Table.of(f"Scores, {system}", caption, rows, system)
