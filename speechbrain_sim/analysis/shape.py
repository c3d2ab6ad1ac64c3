"""The values of each dimension of a layer over a data set: figure 4.

Noise makes any latent look Gaussian, so means and samples are described
separately. What a layer does not have, such as the divergences where there is
no posterior, is None.

Reference: Denoodt, de Boer, Oramas: Smooth InfoMax (2025), section 4.3.4,
https://arxiv.org/abs/2408.12936
"""

import numpy as np
import torch
from scipy import stats
from scipy.special import ndtr, xlogy

from speechbrain_sim.analysis.intervals import Unmeasurable
from speechbrain_sim.analysis.study import LOWER, Tool
from speechbrain_sim.objectives.kl import active_units, kl_per_channel
from speechbrain_sim.randomness import key_seed, keyed_generator
from speechbrain_sim.report import style
from speechbrain_sim.report.page import Figure, Gap, Table
from speechbrain_sim.report.tables import number

#: bins of the histograms
BINS = 100
#: least deviation of a posterior, for the aggregate's KL
RESOLUTION = 0.1
#: dimensions of each layer whose histograms are drawn, and in the table
SHOWN, WORST = 6, 5
#: columns of the tables, and their keys
MOMENTS = {"mean": "mean", "std": "std", "skew": "skew"}
MOMENTS |= {"excess kurtosis": "kurtosis"}


def _blocks(x, width=64):
    """Some dimensions at a time: (dimensions, frames), float64."""
    for first in range(0, x.shape[1], width):
        yield np.ascontiguousarray(x[:, first : first + width].T, float)


def common_range(*parts):
    """Range that shows the bulk of every dimension of (frames, D) arrays.

    From the least 1 % quantile of a dimension to the greatest 99 % quantile:
    outlying frames do not widen it, but a dimension away from the others does.
    """
    blocks = (block for x in parts for block in _blocks(x))
    ends = [np.quantile(block, [0.01, 0.99], axis=1) for block in blocks]
    lows, highs = np.hstack(ends)
    low, high = float(lows.min()), float(highs.max())
    return (low, high) if low < high else (low - 0.5, high + 0.5)


def ks_normal(x):
    """Kolmogorov-Smirnov distance of each dimension to N(0, 1), (D,) in [0, 1].

    Example
    -------
    >>> ks_normal(np.zeros((9, 2)))
    array([0.5, 0.5])
    """
    steps = np.arange(len(x) + 1) / len(x)
    distances = []
    for block in _blocks(x):
        cdf = ndtr(np.sort(block, axis=1))
        above, below = steps[1:] - cdf, cdf - steps[:-1]
        distances.append(np.maximum(above.max(1), below.max(1)))
    return np.concatenate(distances)


def describe(x, edges):
    """Describes the values of each dimension.

    Arguments
    ---------
    x : numpy.ndarray
        (frames, D): valid frames of all utterances.
    edges : numpy.ndarray
        Of the histogram's bins, equally wide.

    Returns
    -------
    dict
        Lists over dimensions: `density` (a list over bins each; the mass inside
        the edges), `outside` (the share of frames beyond the edges, which is in
        no bin), `mean`, `std`, `skew`, excess `kurtosis` (both None where a
        dimension is constant) and `ks`, the distance to N(0, 1).
    """
    frames, blocks = len(x), []
    for block in _blocks(x):
        counts = np.stack([np.histogram(row, edges)[0] for row in block])
        constant = np.ptp(block, axis=1) == 0
        some, moments = block[~constant], np.full((2, len(block)), None)
        moments[:, ~constant] = stats.skew(some, 1), stats.kurtosis(some, 1)
        table = {"density": counts / (frames * (edges[1] - edges[0]))}
        table["outside"] = 1 - counts.sum(1) / frames
        table["mean"] = block.mean(1)
        table["std"] = np.where(constant, 0, block.std(1))
        table["skew"], table["kurtosis"] = moments
        blocks.append(table)
    found = {k: np.concatenate([b[k] for b in blocks]) for k in blocks[0]}
    found["ks"] = ks_normal(x)
    return {key: values.tolist() for key, values in found.items()}


def aggregate_kl(mean, log_var, frames=1000, seed=0):
    """KL divergence from each dimension's aggregate posterior to N(0, 1).

    In nats, (D,). The aggregate is the mixture over frames of N(mean,
    exp(log_var)): what the dimension is over a data set. The integral is a sum
    over a grid with two steps per `RESOLUTION`, coarser only where a dimension
    reaches over more than 2000 steps. A posterior narrower than two steps is
    widened to them: finitely many frames without variance would be infinitely
    far from N(0, 1).

    Arguments
    ---------
    mean, log_var : numpy.ndarray
        (frames, D).
    frames, seed : int
        At most so many are drawn; their scarcity adds about 0.01 nats.
    """
    chosen = slice(None)
    if len(mean) > frames:
        rng = np.random.default_rng(key_seed(seed, "aggregate"))
        chosen = rng.choice(len(mean), frames, replace=False)
    mean = mean[chosen].T.astype(float)
    std = np.exp(0.5 * log_var[chosen].T.astype(float))
    divergences = []
    for mu, sigma in zip(mean, np.maximum(std, RESOLUTION), strict=True):
        low, high = (mu - 6 * sigma).min(), (mu + 6 * sigma).max()
        step = max(RESOLUTION / 2, (high - low) / 2000)
        sigma = np.maximum(sigma, 2 * step)
        grid = np.arange(low, high + step, step)[:, None]
        peak = step / (np.sqrt(2 * np.pi) * sigma)
        mass = (peak * np.exp(-0.5 * ((grid - mu) / sigma) ** 2)).mean(1)
        mass /= mass.sum()
        log_prior = np.log(step / np.sqrt(2 * np.pi)) - 0.5 * grid[:, 0] ** 2
        divergences.append((xlogy(mass, mass) - mass * log_prior).sum())
    return np.array(divergences)


def shape(mean, log_var=None, sample=None, seed=0):
    """Describes the shape of a layer's latent space.

    Arguments
    ---------
    mean : numpy.ndarray
        Means of the posteriors, or outputs of a deterministic layer, (frames,
        D): valid frames of all utterances; an Unmeasurable if not finite.
    log_var, sample : numpy.ndarray, optional
        Log-variances and draws of the same posteriors.
    seed : int
        Of the frames that stand for all in the aggregate posterior.

    Returns
    -------
    dict
        `frames`, `dimensions`, the histograms' `edges` over one
        `common_range`; `means` and `samples`, each from `describe`;
        `active_units`, the number of dimensions whose means have a variance
        above 0.01; and lists over dimensions, in nats: `rate`,
        KL(q(z|x) || N(0, 1)) averaged over frames, and `aggregate_kl`.
        `samples`, `rate` and `aggregate_kl` are None without a posterior.
    """
    parts = [x for x in (mean, log_var, sample) if x is not None]
    if not all(np.isfinite(x).all() for x in parts):
        raise Unmeasurable("A latent is NaN or infinite.")
    shown = [x for x in (mean, sample) if x is not None]
    edges = np.linspace(*common_range(*shown), BINS + 1)
    lengths, means = torch.tensor([len(mean)]), torch.as_tensor(mean)[None]
    found = {
        "frames": len(mean),
        "dimensions": mean.shape[1],
        "edges": edges.tolist(),
        "means": describe(mean, edges),
        "samples": None if sample is None else describe(sample, edges),
        "active_units": int(active_units(means, lengths)),
    }
    found |= {"rate": None, "aggregate_kl": None}
    if log_var is not None:
        rate = kl_per_channel(means, torch.as_tensor(log_var)[None], lengths)
        found["rate"] = rate.tolist()
        found["aggregate_kl"] = aggregate_kl(mean, log_var, seed=seed).tolist()
    return found


def farthest(table):
    """Ranks the dimensions by their distance to N(0, 1), the largest first.

    Example
    -------
    >>> farthest({"ks": [0.1, 0.5, 0.3]})
    [1, 2, 0]
    """
    return np.argsort(-np.array(table["ks"]), kind="stable").tolist()


def plot_shape(systems, path):
    """Plots histograms of one layer against N(0, 1): system -> numbers."""
    columns = max(len(found["shown"]) for found in systems.values())
    size = (1.7 * columns + 0.6, 1.6 * len(systems) + 0.4)
    with style.drawing(path, len(systems), columns, size) as (figure, axes):
        for row, (name, found) in zip(axes, systems.items(), strict=True):
            edges = np.array(found["edges"])
            x = np.linspace(edges[0], edges[-1], 200)
            normal = np.exp(-(x**2) / 2) / np.sqrt(2 * np.pi)
            for panel in row[len(found["shown"]) :]:
                panel.set_axis_off()
            for panel, dimension in zip(row, found["shown"], strict=False):
                for i, kind in enumerate(["means", "samples"]):
                    look = {"fill": i == 0, "alpha": 1 if i else 0.6}
                    look |= {"color": style.colour(i), "label": kind}
                    if found[kind] is not None:
                        density = found[kind]["density"][dimension]
                        panel.stairs(density, edges, **look)
                panel.plot(x, normal, "k--", linewidth=1, label="N(0, 1)")
                panel.set_title(f"dimension {dimension}", loc="left", size=8)
            row[0].set_ylabel(f"{name}\ndensity")
        for panel in axes[-1]:
            panel.set_xlabel("value")
        style.legend_below(figure)


class Shape(Tool):
    """Section of the latent space's shape."""

    key = "shape"
    title = "The shape of the latent space"
    sentence = "Dimensions that follow N(0, 1), dashed, tell where to look."
    columns = {
        f"KS to N(0, 1)\n{LOWER}": "KS: median distance of the dimensions to "
        "the normal curve that SIM's prior is, from 0 to 1."
    }

    def cells(self, numbers):
        """Returns the cells of `columns`."""
        ks = numbers["means"]["ks"]
        return ["—" if numbers.get("code") else _median(ks)]

    def measure(self, system, study):
        """Returns `shape` of each layer, and the dimensions to be `shown`.

        Also whether it is a `code`, of which none is near N(0, 1).
        """

        def measure(layer, latent):
            parts = [latent.mean]
            if latent.log_var is not None:
                device = latent.mean.device
                key = study.seed, layer, "shape"
                noise = latent.draw(keyed_generator(*key, device=device))
                parts += [latent.log_var, noise]
            parts = [part.flatten(0, 1).cpu().numpy() for part in parts]
            found = shape(*parts, seed=study.seed)
            ranked = farthest(found["means"])
            at = np.linspace(0, len(ranked) - 1, min(SHOWN, len(ranked)))
            found["code"] = system.encoder.bottleneck_of(layer) is not None
            return found | {"shown": [ranked[round(i)] for i in at]}

        return system.each_layer(measure)

    def items(self, found, study):
        """Returns tables of moments, and histograms of each layer."""
        figures, rows, worst = [], [], []
        for layer in found.layers():
            tables = {s: t[layer] for s, t in found.items() if layer in t}
            for system, table in tables.items():
                name, means = f"{system} {layer}", table["means"]
                rows.append({"": name} | _row(table))
                for d in farthest(means)[: 0 if table.get("code") else WORST]:
                    columns = {"KS": "ks", **MOMENTS}.items()
                    cells = {t: number(means[key][d]) for t, key in columns}
                    worst.append({"": f"{name} {d}"} | cells)
            stem = style.figure_stem("shape", layer)
            plot_shape(tables, study.folder / stem)
            figure = Figure(
                f"Some dimensions of {layer}",
                "From the farthest from N(0, 1) to the nearest, by the KS "
                "distance of the means; samples add the posterior's noise.",
                stem,
                "Histograms against the normal curve, a row per system.",
            )
            figures.append(figure)
        summary = Table.of(
            "Latent shape",
            "Medians over dimensions. Active: variance of the mean above 0.01. "
            "KL to N(0, 1), summed over dimensions: of each frame's posterior "
            "(rate), and of each dimension's aggregate over 1000 frames (which "
            "scarcity alone raises by up to 0.01 for each dimension).",
            rows,
        )
        title = "The dimensions farthest from N(0, 1)"
        table = Table.of(title, "Means of posteriors, or outputs.", worst)
        return [summary, *_without_posterior(found), *figures, table]


def _without_posterior(found):
    reason = "Its layers have no posterior; histograms are of its outputs."
    rates = found.map(lambda numbers: numbers["rate"])
    plain = [s for s, of in rates.items() if not any(of.values())]
    return [Gap(f"{system}: no KL", reason, system) for system in plain]


def _median(values):
    known = [value for value in values if value is not None]
    return number(float(np.median(known)) if known else None)


def _row(table):
    means, samples = table["means"], table["samples"]
    row = {"active": f"{table['active_units']} of {table['dimensions']}"}
    row["KS, means"] = _median(means["ks"])
    row["KS, samples"] = _median(samples["ks"]) if samples else "—"
    row |= {title: _median(means[key]) for title, key in MOMENTS.items()}
    for title, key in (("rate", "rate"), ("aggregate KL", "aggregate_kl")):
        total = None if table[key] is None else sum(table[key])
        row[f"{title} (nats)"] = number(total, 1)
    return row
