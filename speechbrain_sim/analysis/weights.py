"""Where the information that a linear probe reads sits: the paper's figure 3.

The probes have no bias, so their weights determine every prediction. Weights
are divided by the largest magnitude of their layer, so that layers compare.

Reference: Denoodt, de Boer, Oramas: Smooth InfoMax (2025), section 4.3.2,
https://arxiv.org/abs/2408.12936
"""

from typing import NamedTuple

import numpy as np

from speechbrain_sim.analysis import intervals
from speechbrain_sim.analysis.study import HIGHER, LOWER, Tool, powers_of_two
from speechbrain_sim.report import style
from speechbrain_sim.report.page import Figure, Table
from speechbrain_sim.report.tables import number, percent

#: what is repeated of a probe's scores
SCORES = ("accuracy", "deviation", "interval", "chance")
#: bins of the histogram, between -1 and 1
BINS = 100


class TopN(NamedTuple):
    """Predictions of a probe from its n most important dimensions.

    For each n in `counts`: `accuracy`, mean over probes, and `hits`, the
    correct examples of each utterance, mean over probes, (counts, utterances).
    `total`: examples of each utterance, (utterances,).
    """

    counts: list
    accuracy: list
    hits: np.ndarray
    total: np.ndarray


def contribution(weight, std):
    """How much each dimension moves a probe's predictions, (probes, channels).

    The norm of its weights, less their mean over classes, which moves all
    logits alike, times the deviation of the feature. The paper's importance is
    the norm alone: a dimension ten times larger needs a tenth of the weight.

    Arguments
    ---------
    weight, std : numpy.ndarray
        (probes, channels, classes); deviation of each feature, (channels,).
    """
    centred = weight - weight.mean(-1, keepdims=True)
    return np.linalg.norm(centred, axis=-1) * std


def gini(share):
    """Gini coefficient: 0 if all are equal, 1 - 1/D if one has everything.

    Of (..., D), not negative. An Unmeasurable if there is nothing to share, or
    not a number.

    Example
    -------
    >>> float(gini(np.array([0.0, 0.0, 0.0, 1.0])))
    0.75
    """
    share = np.sort(_checked(share), axis=-1)
    size = share.shape[-1]
    rank = 2 * np.arange(1, size + 1) - size - 1
    return share @ rank / (size * share.sum(-1))


def participation_ratio(share):
    """Participation ratio, (sum s)^2 / sum s^2: between 1 and D; see `gini`.

    Example
    -------
    >>> float(participation_ratio(np.array([0.0, 2.0, 0.0, 2.0])))
    2.0
    """
    share = _checked(share)
    return share.sum(-1) ** 2 / np.square(share).sum(-1)


def _checked(share):
    share = np.asarray(share, float)
    if not np.isfinite(share).all():
        raise intervals.Unmeasurable("An importance is NaN or infinite.")
    if not (share.sum(-1) > 0).all():
        raise intervals.Unmeasurable("No dimension has any importance.")
    return share


def concentration(weight, std):
    """Describes how few dimensions a layer's probes read.

    Arguments
    ---------
    weight, std : numpy.ndarray
        See `contribution`; of bias-free probes.

    Returns
    -------
    dict
        `dimensions`, D; `histogram`, the `edges` and the `density` of the
        weights of all probes, divided by the largest magnitude among them;
        `near_zero`, the share of weights `below_1_percent` and
        `below_10_percent` of that; and, of the `raw` importance (the paper's)
        and of the `contribution`, the means over probes of `gini`,
        `participation_ratio` and their `share` of D.

    Raises
    ------
    Unmeasurable
        If no dimension has any importance, or a weight is not a number.
    """
    weight = np.asarray(weight, float)
    found = {"dimensions": weight.shape[1]}
    kinds = {"raw": np.linalg.norm(weight, axis=-1)}
    kinds["contribution"] = contribution(weight, std)
    for kind, share in kinds.items():
        effective = participation_ratio(share).mean()
        found[kind] = {
            "gini": float(gini(share).mean()),
            "participation_ratio": float(effective),
            "share": float(effective / weight.shape[1]),
        }
    scaled = weight / np.abs(weight).max()
    density, edges = np.histogram(scaled, BINS, (-1, 1), density=True)
    histogram = {"edges": edges.tolist(), "density": density.tolist()}
    near_zero = {
        f"below_{limit}_percent": float(np.mean(np.abs(scaled) < limit / 100))
        for limit in (1, 10)
    }
    return found | {"histogram": histogram, "near_zero": near_zero}


def top_n_accuracy(weight, mean, std, x, y, utterance, counts):
    """Accuracy that remains when only the n top dimensions vary.

    The others are held at their mean: zeroing them would also take away what
    they add to every prediction, which is all the bias that such a probe has.
    Dimensions are ranked by their contribution, for each probe on its own.

    Arguments
    ---------
    weight, std : numpy.ndarray
        See `concentration`.
    mean : numpy.ndarray
        Of the features that the probes were trained on, (channels,).
    x, y, utterance : numpy.ndarray
        Test features, (examples, channels), their classes and the index of
        their utterance, (examples,).
    counts : list of int
        The n; a ValueError if they do not rise, or exceed the channels.

    Returns
    -------
    TopN
    """
    steps = [0, *counts]
    if sorted(steps) != steps or steps[-1] > weight.shape[1]:
        largest = f"{weight.shape[1]}, the number of dimensions"
        raise ValueError(f"n is {counts}; it must rise to at most {largest}.")
    correct = np.zeros((len(counts), len(weight), len(y)))
    order = np.argsort(-contribution(weight, std), axis=-1, kind="stable")
    for probe, (matrix, ranked) in enumerate(zip(weight, order, strict=True)):
        logits = np.tile(mean @ matrix, (len(y), 1))
        for i in range(len(counts)):
            more = ranked[steps[i] : steps[i + 1]]
            logits += (x[:, more] - mean[more]) @ matrix[more]
            correct[i, probe] = logits.argmax(-1) == y
    counted = (intervals.per_utterance(rows, utterance) for rows in correct)
    hits, totals = map(np.stack, zip(*counted, strict=True))
    return TopN(list(counts), correct.mean((1, 2)).tolist(), hits, totals[0])


def plot_weights(systems, path):
    """Plots the histograms of `concentration`: `Results`."""
    from matplotlib.ticker import LogFormatter

    with style.layer_drawing(path, systems.layers()) as panels:
        for _, name, layer, numbers in systems.rows():
            edges, density = numbers["histogram"].values()
            panels[layer].stairs(density, edges, **systems.look(name))
            panels[layer].set_xlabel("weight / largest weight")
        first = next(iter(panels.values()))
        first.set_yscale("log")  # of all panels, which share it
        first.yaxis.set_major_formatter("{x:g}")  # the default is mathtext
        first.yaxis.set_minor_formatter(LogFormatter())
        first.set_ylabel("density")


def plot_top_n(systems, path, chance):
    """Plots the accuracy from the n most important dimensions: `Results`."""
    with style.layer_drawing(path, systems.layers()) as panels:
        style.draw_counts(panels, systems, "accuracy")
        line = {"color": "black", "linestyle": ":", "linewidth": 1}
        for panel in panels.values():
            counts = panel.lines[0].get_xdata().astype(int)
            panel.set_xticks(counts, counts, size=7)
            panel.axhline(100 * chance, label="chance", **line)
            panel.set_xlabel("dimensions kept")
        next(iter(panels.values())).set_ylabel("test accuracy (%)")


class Weights(Tool):
    """Section of where the information of a probe sits."""

    key = "weights"
    title = "Where the information sits"
    sentence = "Weights near zero, early curves: few dimensions are to study."
    needs = ("probes",)
    columns = {
        f"probe (%)\n{HIGHER}": "Probe: accuracy of a linear classifier "
        "without bias, on features as they are.",
        f"dimensions read\n{LOWER}": "Dimensions read: how many "
        "of the layer's it effectively uses.",
    }

    def cells(self, numbers):
        """Returns the cells of `columns`."""
        read = f"{_effective(numbers)} of {numbers['dimensions']}"
        return [percent(numbers["probe"]), read]

    def measure(self, system, study):
        """Returns `concentration` of each layer, `probe` and `top_n`."""
        probes = system.probes
        if probes is None:
            reason = "No label to probe for (--weights_label)."
            return {layer: {"gap": reason} for layer in system.latents}
        train, valid, test = map(probes.features, ("train", "valid", "test"))

        def measure(layer, latent):
            weight, (x, y, utterance, _) = probes.weights[layer], test[layer]
            known = np.concatenate([train[layer].x, valid[layer].x])
            mean, std = known.mean(0), known.std(0)
            counts = [1, *powers_of_two(weight.shape[1])]
            examples = np.asarray(x), y, utterance, counts
            top = top_n_accuracy(weight, mean, std, *examples)
            ends = [
                intervals.bootstrap_interval(h, top.total) for h in top.hits
            ]
            scores = {"counts": counts, "accuracy": top.accuracy}
            return {
                "probe": {key: probes.scores[layer][key] for key in SCORES},
                **concentration(weight, std),
                "top_n": {**scores, "interval": ends},
            }

        return system.each_layer(measure)

    def items(self, found, study):
        """Returns histograms, the table, and curves over dimensions kept."""
        plot_weights(found, study.folder / "figures/weights")
        top_n = found.map(lambda numbers: numbers["top_n"])
        chance = found.first()["probe"]["chance"]
        plot_top_n(top_n, study.folder / "figures/top_n", chance)
        return [
            Figure(
                "Weights of the probes",
                "Of all classes and seeds, over the largest of the layer.",
                "figures/weights",
                "Histograms of weights, a panel per layer, a line per system.",
            ),
            _table(found, study.published.get("bias_free", {})),
            Figure(
                "Accuracy from the n most important dimensions",
                "All others are held at their mean; no retraining. Bands: 95 % "
                "intervals over recordings.",
                "figures/top_n",
                "Lines of accuracy over dimensions kept, a panel per layer.",
            ),
        ]


def _effective(numbers, kind="contribution"):
    return number(numbers[kind]["participation_ratio"], 0)


def _table(found, published):
    """Concentration of each layer, beside the paper's accuracy."""
    rows = []
    for name, system, layer, numbers in found.rows():
        row = {"": name, "accuracy (%)": percent(numbers["probe"])}
        near = [number(100 * x, 1) for x in numbers["near_zero"].values()]
        row["weights < 1 % (%)"], row["< 10 % (%)"] = near
        for kind, of in (("raw", ""), ("contribution", ", contribution")):
            row[f"Gini{of}"] = number(numbers[kind]["gini"])
            row[f"dimensions{of}"] = _effective(numbers, kind)
        if published:
            row["paper (%)"] = str(published.get(system, {}).get(layer, ""))
        rows.append(row)
    return Table.of(
        "Concentration",
        "Weights below 1 and 10 percent of the layer's largest; Gini "
        "coefficient and effective number (participation ratio) of the "
        "dimensions, by the norm of their weights as in the paper, and by what "
        "they contribute: weights less their mean over classes, times the "
        "deviation of the feature.",
        rows,
    )
