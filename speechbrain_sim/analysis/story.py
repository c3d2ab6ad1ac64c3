"""From what was measured to the report's tables, figures and sentences.

`results` is, throughout, a dict of tool -> system -> layer -> numbers, as
`speechbrain_sim.analysis.measures` returns them and `report.json` holds them.
"""

import numpy as np

from speechbrain_sim.analysis.measures import eighth
from speechbrain_sim.analysis.probes import percent
from speechbrain_sim.analysis.shape import worst
from speechbrain_sim.report import figures
from speechbrain_sim.report.page import Figure, Gap, Section, Table

TITLES = {
    "delta": "How few dimensions carry the sound",
    "smoothness": "Smoothness as a number",
}
#: dimensions of each layer in the table of the worst
WORST = 5


def split_gaps(found):
    """Parts what was measured from what could not be.

    Arguments
    ---------
    found : dict
        System -> layer -> numbers, or a `gap`.

    Returns
    -------
    measured, gaps : (dict, list of Gap)
        Systems and layers with numbers; the reasons of the others.

    Example
    -------
    >>> split_gaps({"SIM": {"a": {"gap": "Silent."}, "b": {"x": 1}}})
    ({'SIM': {'b': {'x': 1}}}, [Gap(title='SIM a', reason='Silent.', system='SIM')])
    """
    measured, gaps = {}, []
    for system, layers in found.items():
        for layer, numbers in layers.items():
            if "gap" in numbers:
                gaps.append(Gap(f"{system} {layer}", numbers["gap"], system))
            else:
                measured.setdefault(system, {})[layer] = numbers
    return measured, gaps


def first_of(measured):
    """Any layer's numbers: what they say of settings holds for all."""
    return next(iter(next(iter(measured.values())).values()))


def with_interval(score, scale=1.0, digits=2):
    """Writes a value with its interval.

    Example
    -------
    >>> with_interval({"value": 0.5, "interval": [0.4, 0.6]}, 100, 1)
    '50.0 [40.0, 60.0]'
    """
    value, (low, high) = score["value"], score["interval"]
    return (
        f"{scale * value:.{digits}f} "
        f"[{scale * low:.{digits}f}, {scale * high:.{digits}f}]"
    )


def delta_at_eighth(found, distance="mae"):
    """Looks up delta where an eighth of the dimensions is swapped.

    Arguments
    ---------
    found : dict
        Of one layer, from `speechbrain_sim.analysis.measures.measure_delta`.
    distance : str
        "mae" or "mse".

    Returns
    -------
    dict
        `n`, `value`, `interval`.

    Example
    -------
    >>> mae = {"counts": [1, 8], "delta": [0.5, 0.0], "interval": [[0, 1]] * 2}
    >>> delta_at_eighth({"dimensions": 8, "mae": mae})
    {'n': 1, 'value': 0.5, 'interval': [0, 1]}
    """
    scores, n = found[distance], eighth(found["dimensions"])
    at = scores["counts"].index(n)
    return {
        "n": n,
        "value": scores["delta"][at],
        "interval": scores["interval"][at],
    }


def summarise(results):
    """Makes the table that the report begins with.

    Arguments
    ---------
    results : dict
        See the module.

    Returns
    -------
    Table
    """
    rows = []
    for system, layers in results["delta"].items():
        for layer in layers:
            delta, weights, shape, smooth, factors = (
                results[tool][system].get(layer, {"gap": ""})
                for tool in (
                    "delta",
                    "weights",
                    "shape",
                    "smoothness",
                    "factors",
                )
            )
            cells = {
                "probe (%)": (weights, lambda w: percent(w["probe"])),
                "δ at N/D = 1/8 (%)": (
                    delta,
                    lambda d: with_interval(delta_at_eighth(d), 100, 1),
                ),
                "dimensions read": (
                    weights,
                    lambda w: f"{w['contribution']['participation_ratio']:.0f}"
                    f" of {w['dimensions']}",
                ),
                "KS to N(0, 1)": (shape, lambda s: _median(s["means"]["ks"])),
                "path / distance": (
                    smooth,
                    lambda s: with_interval(s["walks"]["path_ratio"]),
                ),
                "DCI D": (
                    factors,
                    lambda f: f"{f['encoder']['disentanglement']:.2f}",
                ),
            }
            rows.append(
                [f"{system} {layer}"]
                + [
                    "—" if "gap" in numbers else write(numbers)
                    for numbers, write in cells.values()
                ]
            )
    return Table(
        "In short",
        "Accuracy of bias-free probes; relative error δ when an eighth of the "
        "dimensions is swapped (lower: fewer dimensions carry the sound); "
        "dimensions that the probes read; distance of the means to N(0, 1) "
        "(median over dimensions); length of decoded paths (1: straight); "
        "disentanglement of known factors (1: one factor for each dimension). "
        "95 % intervals over recordings.",
        ["", *cells],
        rows,
    )


def tell_probes(results, paper):
    """Section of the linear probes on every layer (table 1)."""
    found, items = results["probes"], []
    for label in dict.fromkeys(n for scores in found.values() for n in scores):
        scores = {s: of[label] for s, of in found.items() if label in of}
        layers = list(dict.fromkeys(n for s in scores.values() for n in s))
        published = paper.get("probes", {}).get(label, {})
        rows = [
            [system]
            + [percent(of[n]) if n in of else "" for n in layers]
            + [f"{100 * mean_control(of):.1f}"]
            + [str(published.get(system, ""))] * bool(published)
            for system, of in scores.items()
        ]
        one = next(iter(next(iter(scores.values())).values()))
        header = ["", *layers, "shuffled labels"]
        caption = (
            "Test accuracy in percent: mean ± deviation over seeds, 95 % "
            f"interval over recordings. Chance {100 * one['chance']:.1f} %; "
            "mean over layers of probes trained on shuffled labels."
        )
        if published:
            header.append("paper")
            caption += f" {paper['about']}"
        items.append(Table(label.capitalize(), caption, header, rows))
    items += [
        Gap(
            f"{system}: no probes",
            "They have not been trained: run recipes/table.py, or "
            "recipes/probe.py, and name their folders in --probes.",
        )
        for system, of in found.items()
        if not of
    ]
    return Section(
        "probes",
        "What a linear layer reads",
        "Higher is better; compare with chance, and systems in the same layer.",
        items or [Gap("No probes", "None are named in --probes.")],
    )


def mean_control(layers):
    """Mean accuracy over layers of the shuffled-label controls."""
    return float(np.mean([score["control"] for score in layers.values()]))


def tell_delta(results, paper, folder):
    """Section of the relative error delta (table 2)."""
    found, gaps = split_gaps(results["delta"])
    if not found:
        return Section("delta", TITLES["delta"], "", gaps)
    published = read_published(paper, found)
    curves = {
        system: {
            layer: {**scores["mae"], "dimensions": scores["dimensions"]}
            for layer, scores in layers.items()
        }
        for system, layers in found.items()
    }
    figures.plot_delta(curves, folder / "figures/delta", published)
    figure = Figure(
        "Relative error δ over the share of swapped dimensions",
        "Mean absolute error; bands: 95 % intervals over clips."
        + (f" Dashed: the paper's. {paper['about']}" if published else ""),
        "figures/delta",
        "One panel per layer, δ over the share of dimensions, a line for each "
        "system.",
    )
    tables = [
        _delta_table(found, distance, name)
        for distance, name in (("mae", "absolute"), ("mse", "squared"))
    ]
    if published:
        rows = [
            [f"{system} {layer}"]
            + [f"{100 * value:.2f}" for value in scores["delta"]]
            for system, layers in published.items()
            for layer, scores in layers.items()
        ]
        header = ["", *(f"N = {n}" for n in paper["counts"])]
        tables.append(
            Table("δ(N) in percent, as published", paper["about"], header, rows)
        )
    return Section(
        "delta",
        TITLES["delta"],
        "Lower is better: where δ falls early, the sound sits in few "
        "dimensions.",
        [
            _eighths_table(found, published, results["differences"]["delta"]),
            figure,
            *tables,
            *gaps,
        ],
    )


def read_published(paper, found):
    """Published deltas of the systems that are shown, as fractions."""
    return {
        system: {
            layer: {
                "counts": paper["counts"],
                "dimensions": paper["counts"][-1],
                "delta": [value / 100 for value in percents],
            }
            for layer, percents in layers.items()
        }
        for system, layers in paper.get("delta", {}).items()
        if system in found
    }


def _eighths_table(found, published, differences):
    """Delta at an eighth of the dimensions, beside the paper's."""
    rows = []
    for system, layers in found.items():
        for layer, scores in layers.items():
            mae = delta_at_eighth(scores)
            row = [f"{system} {layer}", f"{mae['n']} of {scores['dimensions']}"]
            row.append(with_interval(mae, 100, 1))
            row.append(with_interval(delta_at_eighth(scores, "mse"), 100, 1))
            other = differences.get(system, {}).get(layer)
            row.append(with_interval(other, 100, 1) if other else "")
            if published:
                theirs = published.get(system, {}).get(layer)
                at = theirs and theirs["counts"].index(
                    eighth(theirs["dimensions"])
                )
                row.append(f"{100 * theirs['delta'][at]:.2f}" if theirs else "")
            rows.append(row)
    return Table(
        "δ in percent where an eighth of the dimensions is swapped",
        "By mean absolute and mean squared error; difference to the last "
        "system by mean absolute error, both on the same pairs. 95 % intervals "
        "over clips." + (" Paper: N = 64 of 512." if published else ""),
        ["", "N", "δ, absolute", "δ, squared", "difference"]
        + ["paper"] * bool(published),
        rows,
    )


def _delta_table(found, distance, name):
    """Delta of every N; blank where a layer has not so many dimensions."""
    every = [scores for layers in found.values() for scores in layers.values()]
    counts = sorted({n for scores in every for n in scores[distance]["counts"]})
    rows = []
    for system, layers in found.items():
        for layer, scores in layers.items():
            known = dict(
                zip(
                    scores[distance]["counts"],
                    zip(
                        scores[distance]["delta"],
                        scores[distance]["interval"],
                        strict=True,
                    ),
                    strict=True,
                )
            )
            row = [f"{system} {layer}", f"{100 * scores['explained']:.0f}"]
            for n in counts:
                value, interval = known.get(n, (None, None))
                score = {"value": value, "interval": interval}
                row.append(with_interval(score, 100, 1) if n in known else "")
            rows.append(row)
    one = every[0][distance]
    return Table(
        f"δ(N) in percent, mean {name} error",
        f"{one['pairs']} ordered pairs of {one['clips']} clips, means of "
        f"posteriors; a ratio of means over pairs. Decoded: share of the "
        f"recordings' energy that the decoder gives back.",
        ["", "decoded (%)", *(f"N = {n}" for n in counts)],
        rows,
    )


def tell_weights(results, paper, folder):
    """Section of where the information of a probe sits (figure 3)."""
    found, items = split_gaps(results["weights"])
    if found:
        figures.plot_weights(found, folder / "figures/weights")
        top_n = {
            system: {layer: scores["top_n"] for layer, scores in layers.items()}
            for system, layers in found.items()
        }
        chance = first_of(found)["probe"]["chance"]
        figures.plot_top_n(top_n, folder / "figures/top_n", chance)
        published = paper.get("bias_free", {})
        rows = []
        for system, layers in found.items():
            for layer, scores in layers.items():
                raw, given = scores["raw"], scores["contribution"]
                row = [
                    f"{system} {layer}",
                    percent(scores["probe"]),
                    f"{100 * scores['near_zero']['below_1_percent']:.1f}",
                    f"{100 * scores['near_zero']['below_10_percent']:.1f}",
                    f"{raw['gini']:.2f}",
                    f"{raw['participation_ratio']:.0f}",
                    f"{given['gini']:.2f}",
                    f"{given['participation_ratio']:.0f}",
                ]
                if published:
                    value = published.get(system, {}).get(layer, "")
                    row.append(str(value))
                rows.append(row)
        header = ["", "accuracy (%)", "weights < 1 % (%)", "< 10 % (%)"]
        header += ["Gini", "dimensions", "Gini, contribution"]
        header += ["dimensions, contribution", *["paper (%)"] * bool(published)]
        items = [
            Figure(
                "Weights of the probes",
                "Of all classes and seeds, over the largest of the layer.",
                "figures/weights",
                "Histograms of classifier weights, one panel per layer, one "
                "line per system.",
            ),
            Table(
                "Concentration",
                "Weights below 1 and 10 percent of the layer's largest; Gini "
                "coefficient and effective number (participation ratio) of the "
                "dimensions, by the norm of their weights as in the paper, and "
                "by what they contribute: weights less their mean over "
                "classes, times the deviation of the feature (a dimension with "
                "a small scale needs a large weight).",
                header,
                rows,
            ),
            Figure(
                "Accuracy from the n most important dimensions",
                "All others are held at their mean; no retraining. Bands: 95 % "
                "intervals over recordings.",
                "figures/top_n",
                "Accuracy over the number of dimensions kept, one panel per "
                "layer, one line per system.",
            ),
            *items,
        ]
    return Section(
        "weights",
        "Where the information sits",
        "More weights near zero, and a curve that rises early, mean that fewer "
        "dimensions have to be studied.",
        items,
    )


def tell_shape(results, folder):
    """Section of the latent space's shape (figure 4)."""
    found, gaps = split_gaps(results["shape"])
    items, rows, worst_rows = [], [], []
    layers = dict.fromkeys(n for table in found.values() for n in table)
    for layer in layers:
        tables = {s: t[layer] for s, t in found.items() if layer in t}
        for system, table in tables.items():
            rows.append(_shape_row(f"{system} {layer}", table))
            worst_rows += [
                _worst_row(f"{system} {layer} {d}", table, d)
                for d in worst(table["means"], WORST)
            ]
        stem = f"figures/shape_{layer}"
        figures.plot_shape(tables, folder / stem)
        items.append(
            Figure(
                f"Some dimensions of {layer}",
                "From the one farthest from N(0, 1) to the nearest, by the "
                "Kolmogorov-Smirnov distance of the means; 100 bins. Samples "
                "are means plus the posterior's noise. Dashed: N(0, 1).",
                stem,
                "Histograms of means and samples against the normal curve, one "
                "row per system.",
            )
        )
    summary = Table(
        "Latent shape",
        "Medians over dimensions. Active: variance of the mean above 0.01. "
        "KL to N(0, 1), summed over dimensions: of each frame's posterior "
        "(rate), and of each dimension's aggregate over 1000 frames (which "
        "scarcity alone raises by up to 0.01 for each dimension).",
        ["", "active", "KS, means", "KS, samples", "mean", "std", "skew"]
        + ["excess kurtosis", "rate (nats)", "aggregate KL (nats)"],
        rows,
    )
    table = Table(
        "The dimensions farthest from N(0, 1)",
        "Means of posteriors, or outputs.",
        ["", "KS", "mean", "std", "skew", "excess kurtosis"],
        worst_rows,
    )
    no_posterior = [
        Gap(
            f"{system}: no KL",
            "Its layers have no posterior; histograms are of its outputs.",
            system,
        )
        for system, table in found.items()
        if all(layer["rate"] is None for layer in table.values())
    ]
    return Section(
        "shape",
        "The shape of the latent space",
        "Dimensions that follow the dashed curve of N(0, 1) tell an analyst "
        "where to look; shifted, wide or lopsided ones do not.",
        [summary, *no_posterior, *items, table, *gaps],
    )


def _number(value, digits=2):
    return "—" if value is None else f"{value:.{digits}f}"


def _median(values):
    known = [value for value in values if value is not None]
    return _number(float(np.median(known)) if known else None)


def _shape_row(name, table):
    means, samples = table["means"], table["samples"]
    return [
        name,
        f"{table['active_units']} of {table['dimensions']}",
        _median(means["ks"]),
        _median(samples["ks"]) if samples else "—",
        *(_median(means[key]) for key in ("mean", "std", "skew", "kurtosis")),
        *(
            _number(None if table[key] is None else sum(table[key]), 1)
            for key in ("rate", "aggregate_kl")
        ),
    ]


def _worst_row(name, table, dimension):
    keys = ("ks", "mean", "std", "skew", "kurtosis")
    return [name, *(_number(table["means"][k][dimension]) for k in keys)]


def _maybe(score):
    return with_interval(score) if score else ""


def tell_smoothness(results, folder):
    """Section of smoothness as a number."""
    found, gaps = split_gaps(results["smoothness"])
    if not found:
        return Section("smoothness", TITLES["smoothness"], "", gaps)
    figures.plot_smoothness(found, folder / "figures/smoothness")
    differences = results["differences"]["smoothness"]
    rows = [
        [
            f"{system} {layer}",
            with_interval(scores["walks"]["path_ratio"]),
            _maybe(differences.get(system, {}).get(layer)),
            with_interval(scores["walks"]["step_ratio"]),
            with_interval(scores["moves"]["relative_mean"]),
            with_interval(scores["moves"]["relative_p95"]),
            str(scores["walks"]["left_out"]),
        ]
        for system, layers in found.items()
        for layer, scores in layers.items()
    ]
    walks = first_of(found)["walks"]
    pairs = walks["pairs"] + walks["left_out"]
    return Section(
        "smoothness",
        TITLES["smoothness"],
        "Nearer to 1 is smoother on the left and in the middle; lower is "
        "gentler on the right.",
        [
            Figure(
                "Decoded walks and moves",
                "Left: length of the decoded path over the distance of its "
                "ends. Middle: largest over mean step. Right: change of the "
                "waveform when one frame moves in a random direction, for each "
                "deviation it moves (by moves of a tenth), over the loudness "
                "of a frame: a local Lipschitz estimate.",
                "figures/smoothness",
                "Three panels of points with intervals, layers side by side, "
                "one colour per system.",
            ),
            Table(
                "Along interpolations, and around latents",
                f"{pairs} pairs of clips, {walks['steps']} steps; means over "
                "pairs. Difference to the last system: of the ratio of mean "
                "length to mean distance, on the same pairs. Left out: pairs "
                "that decode to the same sound. 95 % intervals over clips.",
                ["", "path / distance", "difference", "largest / mean step"]
                + ["Lipschitz, mean", "Lipschitz, 95th percentile", "left out"],
                rows,
            ),
            *gaps,
        ],
    )


def tell_factors(results, folder, note):
    """Section of disentanglement against known factors."""
    found, gaps = split_gaps(results["factors"])
    items = []
    for system, scored in found.items():
        rows = [
            [
                f"{layer} {code}",
                f"{scores['disentanglement']:.2f}",
                f"{scores['completeness']:.2f}",
                with_interval(
                    {
                        "value": scores["informativeness"],
                        "interval": scores["interval"],
                    }
                ),
                f"{scores['mig']:.3f}",
                f"{scores['sap']:.3f}",
                f"{scores['sap_share']:.3f}",
            ]
            for layer, codes in scored.items()
            for code, scores in codes.items()
        ]
        one = next(iter(next(iter(scored.values())).values()))
        stem = f"figures/factors_{system}"
        title = f"{system}: {', '.join(one['factors'])}"
        figures.plot_factors(scored, title, folder / stem)
        items += [
            Figure(
                f"Factors of variation, {system}",
                "Beside controls of the same width: an untrained encoder (if "
                "one can be made); the same code's principal components; the "
                "same code rotated at random.",
                stem,
                "Grouped bars of five scores for the encoder and its controls, "
                "one panel per layer.",
                system,
            ),
            Table(
                f"Scores, {system}",
                f"Mean over {', '.join(one['factors'])}. "
                f"{one['examples']['train']} training and "
                f"{one['examples']['test']} test examples; "
                f"{one['left_out']} were left out, being of a class that is "
                "not in the training part. SAP's maximum is 1 − 1/classes for "
                f"classes, 1 for quantities. {note}",
                ["", "disentanglement", "completeness"]
                + ["informativeness (R²)", "MIG", "SAP", "SAP / maximum"],
                rows,
                system,
            ),
        ]
    return Section(
        "factors",
        "Known factors of variation",
        "A layout that the encoder learned stands out against the same code in "
        "other axes; what only the content explains does not.",
        [*items, *gaps] or [Gap("No factors", "This corpus names none.")],
    )


def tell_attribution(results, folder, wav, name):
    """Section of what in a waveform drives a class, or a dimension."""
    found, gaps = split_gaps(results["attribution"])
    items = []
    for system, layers in found.items():
        targets = {
            f"{layer}: {target['target']} (gap {100 * target['gap']:.2g} %)": target
            for layer, numbers in layers.items()
            for target in numbers["targets"]
        }
        stem = f"figures/attribution_{system}"
        rows = {
            label: (wav, np.array(target["envelope"]))
            for label, target in targets.items()
        }
        figures.plot_attribution(rows, f"{system}, {name}", folder / stem)
        items.append(
            Figure(
                f"Attribution, {system}",
                "Integrated gradients from silence: of the class that the "
                "probe answers, against the others, and of the dimension that "
                "varies most. Gap: how far the attributions are from adding "
                "up to the difference that they explain.",
                stem,
                "A waveform per layer and target, shaded where the attribution "
                "is large.",
                system,
            )
        )
    return Section(
        "attribution",
        "What in the waveform drives it",
        "Dark: where the attribution to the samples is large.",
        [*items, *gaps],
    )


def tell(results, paper, folder, wav, name, note):
    """Tells all that was measured.

    Arguments
    ---------
    results : dict
        See the module.
    paper : dict
        Published numbers: `about`, `probes`, `bias_free`, `counts`, `delta` (in
        percent); may be empty.
    folder : Path
        Where the report goes; pictures go to its folder `figures`.
    wav : numpy.ndarray
        The clip that the attributions are of.
    name : str
        What it is called.
    note : str
        What to know about the factors.

    Returns
    -------
    list of Section
    """
    return [
        tell_delta(results, paper, folder),
        tell_weights(results, paper, folder),
        tell_shape(results, folder),
        tell_smoothness(results, folder),
        tell_factors(results, folder, note),
        tell_probes(results, paper),
        tell_attribution(results, folder, wav, name),
    ]
