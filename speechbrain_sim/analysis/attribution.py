"""Which samples of a waveform drive a number: integrated gradients.

Reference: Sundararajan, Taly, Yan: Axiomatic attribution for deep networks
(2017), section 3, https://arxiv.org/abs/1703.01365
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from speechbrain_sim.analysis.study import Tool
from speechbrain_sim.data.audio import SAMPLE_RATE
from speechbrain_sim.data.labels import HOP
from speechbrain_sim.extras import import_extra
from speechbrain_sim.report import style
from speechbrain_sim.report.page import Figure

#: differences below this share of a value are float32's rounding
ROUNDING = 1e-6
#: points of the rule for the report
STEPS = 128


class Attribution(NamedTuple):
    """Contribution of each sample, or of each value of another input.

    `values`, (batch, samples), sum to the `difference` f(wavs) - f(baseline),
    (batch,), but for `gap`, relative to it, (batch,): the error of the
    integration. Where it is too large, take more steps.
    """

    values: torch.Tensor
    difference: torch.Tensor
    gap: torch.Tensor


def integrated_gradients(function, wavs, baseline=None, steps=64, batch_size=4):
    """Attributes the value of a function to the samples of its input.

    (x - b) * integral of f'(b + a (x - b)) over a from 0 to 1, by Gauss and
    Legendre's rule: captum's.

    Arguments
    ---------
    function : callable
        (batch, samples) -> (batch,), each from its own waveform.
    wavs : torch.Tensor
        x, (batch, samples); or any other input, (batch, ...).
    baseline : torch.Tensor, optional
        b, of the shape of `wavs`; silence by default.
    steps : int
        Points of the rule. The kinks of a trained encoder leave a gap of about
        1 % at 64, and more where the difference is small.
    batch_size : int
        Waveforms given to the function at once.

    Returns
    -------
    Attribution

    Raises
    ------
    ImportError
        If captum is missing.
    ValueError
        If the function's values carry no gradient, or have another shape.
    """
    captum = import_extra("captum.attr", "analysis")
    wavs = wavs.detach()
    baseline = torch.zeros_like(wavs) if baseline is None else baseline
    method = captum.IntegratedGradients(
        lambda points: _checked(function, points)
    )
    rule = {"n_steps": steps, "method": "gausslegendre"}
    rule["internal_batch_size"] = batch_size
    pairs = zip(wavs.split(1), baseline.split(1), strict=True)
    # cuDNN's recurrent layers have no backward in eval mode
    with torch.backends.cudnn.flags(enabled=False):
        rows = [method.attribute(wav, start, **rule) for wav, start in pairs]
    values = torch.cat(rows).detach()
    with torch.no_grad():
        ends = torch.cat([wavs, baseline]).split(batch_size)
        ends = torch.cat([function(part) for part in ends]).view(2, -1)
    difference = ends[0] - ends[1]
    rounding = ROUNDING * ends.abs().amax(0)
    size = torch.maximum(difference.abs(), rounding)
    gap = (values.flatten(1).sum(1) - difference).abs() / size.clamp(min=1e-30)
    return Attribution(values, difference, gap)


def _checked(function, points):
    """Values of a function, which must be one number each, with gradients."""
    values = function(points)
    if values.shape != points.shape[:1]:
        shape, batch = tuple(values.shape), len(points)
        got = f"returns {shape} for {batch} waveforms"
        raise ValueError(f"The function {got}; expected one number each.")
    if not values.requires_grad:
        raise ValueError("The function's values carry no gradient.")
    return values


def dimension_function(encoder, layer, dimension, frames=None):
    """Makes a function of one dimension's mean over time.

    Arguments
    ---------
    encoder : Encoder
        Its parameters may be frozen; a ValueError in train mode.
    layer, dimension : str, int
        The layer's name, and the index of the dimension.
    frames : slice or list of int, optional
        What the mean is over; all by default.

    Returns
    -------
    callable
        Waveforms without padding, (batch, samples) -> (batch,).
    """
    at = slice(None) if frames is None else frames
    return _function(encoder, layer, lambda z: z[:, at, dimension].mean(1))


def class_function(encoder, layer, weight, class_index):
    """Makes a function of a linear probe's logit, from the mean over time.

    As `dimension_function`, of the column `class_index` of `weight`, (channels,
    classes), as `LinearProbe.weight` of one probe. A bias adds nothing to
    attributions. To ask why this class rather than another, subtract the mean
    over classes from the weight.
    """
    column = weight[:, class_index].detach()
    return _function(encoder, layer, lambda z: z.mean(1) @ column.to(z))


def _function(encoder, layer, read):
    """Waveforms -> what is read of a layer's means, which are not random."""
    if encoder.training:
        raise ValueError("The encoder samples in train mode: call eval().")
    return lambda wavs: read(encoder(wavs, layers=[layer])[layer].mean)


def envelope(values):
    """Sums absolute values of each 10 ms, (batch, samples) -> (batch, hops)."""
    padded = nn.functional.pad(values.abs(), (0, -values.shape[1] % HOP))
    return padded.unflatten(1, (-1, HOP)).sum(2)


def plot_attribution(rows, title, path):
    """Plots waveforms, shaded by attribution: target -> (wav, `envelope`)."""
    from matplotlib.colors import LinearSegmentedColormap

    colours = ["white", style.colour(4)]
    shade = LinearSegmentedColormap.from_list("shade", colours)
    size = (7, 1.1 * len(rows) + 0.6)
    with style.drawing(path, len(rows), 1, size, sharex=True) as (figure, axes):
        panels = zip(axes[:, 0], rows.items(), strict=True)
        for panel, (name, (wav, sums)) in panels:
            seconds = np.arange(len(wav)) / SAMPLE_RATE
            edges = np.arange(len(sums) + 1) * HOP / SAMPLE_RATE
            edges[-1] = len(wav) / SAMPLE_RATE
            loudest = max(np.abs(wav).max(), 1e-9)
            shares = [np.divide(sums, max(np.max(sums), 1e-30))]
            scale = {"cmap": shade, "vmin": 0, "vmax": 1, "rasterized": True}
            mesh = panel.pcolormesh(edges, [-loudest, loudest], shares, **scale)
            panel.plot(seconds, wav, color="black", linewidth=0.4)
            panel.set_xlim(0, edges[-1])
            panel.set_yticks([])
            panel.spines["left"].set_visible(False)
            panel.set_title(name, loc="left", size=8)
        panel.set_xlabel("time (s)")
        figure.suptitle(title, x=0.02, ha="left")
        figure.tight_layout()
        place = {"ax": axes[:, 0], "aspect": 40, "pad": 0.02}
        label = "|attribution| / largest"
        figure.colorbar(mesh, label=label, ticks=[0, 1], **place)


class AttributionTool(Tool):
    """Section of what in a waveform drives a class, or a dimension."""

    key = "attribution"
    title = "What in the waveform drives it"
    sentence = "Dark: where the attribution to the samples is large."
    needs = ("probes",)

    def settings(self, study):
        """Returns the index of the clip."""
        return {"clip": study.clips.walk[0]}

    def measure(self, system, study):
        """Returns the `targets` of each layer, for the first clip of the walk.

        Of each target, `target`, `envelope` and the completeness `gap`: the
        dimension whose means vary most over the clips and, if there are probes,
        the class that the first bias-free one predicts, against the others.
        """
        encoder, probes = system.encoder, system.probes
        clip = study.clips.walk[0]
        wav = system.wavs[clip : clip + 1]

        def measure(layer, latent):
            widest = int(latent.mean.flatten(0, 1).std(0).argmax())
            function = dimension_function(encoder, layer, widest)
            functions, targets = {f"dimension {widest}": function}, []
            if probes is not None:
                weight = torch.from_numpy(probes.weights[layer][0]).to(wav)
                best = int((latent.mean[clip].mean(0) @ weight).argmax())
                weight = weight - weight.mean(1, keepdim=True)
                function = class_function(encoder, layer, weight, best)
                functions[probes.classes[best]] = function
            for target, function in functions.items():
                found = integrated_gradients(function, wav, steps=STEPS)
                sums = envelope(found.values)[0].tolist()
                gap = float(found.gap[0])
                targets.append({"target": target, "gap": gap, "envelope": sums})
            return {"targets": targets}

        return system.each_layer(measure)

    def items(self, found, study):
        """Returns a figure of each system."""
        clip, items = study.clips.walk[0], []
        wav, name = study.clips.wavs[clip].numpy(), study.clips.name(clip)
        for system, layers in found.items():
            stem, rows = style.figure_stem("attribution", system), {}
            for layer, numbers in layers.items():
                for target in numbers["targets"]:
                    gap = f"gap {100 * target['gap']:.2g} %"
                    sums = np.array(target["envelope"])
                    rows[f"{layer}: {target['target']} ({gap})"] = wav, sums
            plot_attribution(rows, f"{system}, {name}", study.folder / stem)
            figure = Figure(
                f"Attribution, {system}",
                "Integrated gradients from silence: of the predicted class "
                "against the others, and of the dimension that varies most. "
                "Gap: what they lack of the difference that they explain.",
                stem,
                "Waveforms, shaded where the attribution is large.",
                system,
            )
            items.append(figure)
        return items
