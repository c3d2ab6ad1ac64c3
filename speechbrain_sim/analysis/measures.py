"""What is measured of a trained encoder: all tools, layer by layer, as numbers.

Every function returns a plain dict, ready for json: one entry per layer. A layer
that a tool does not fit is a `gap` that says why.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from speechbrain_sim.analysis import (
    attribution,
    factors,
    shape,
    smoothness,
    weights,
)
from speechbrain_sim.analysis.delta import delta, measure_distances
from speechbrain_sim.analysis.intervals import (
    Unmeasurable,
    bootstrap_interval,
    bootstrap_pairs_difference,
)
from speechbrain_sim.randomness import keyed_generator

#: share of the dimensions at which delta is compared: the paper's 64 of 512
SHARE = 1 / 8
#: dimensions whose histograms are shown
SHOWN = 6
#: what is repeated of a probe's scores
PROBE_KEYS = ("accuracy", "deviation", "interval", "chance")


class System(NamedTuple):
    """An encoder under analysis.

    Arguments
    ---------
    name : str
        Its name in the report.
    front_end : nn.Module
        From `speechbrain_sim.models.load.load_encoder`.
    decoders : dict of str to ConvDecoder
        Of each layer.
    wavs : torch.Tensor
        The clips, (clips, samples).
    latents : dict of str to Latent
        Of each layer, for the clips.
    """

    name: str
    front_end: nn.Module
    decoders: dict
    wavs: torch.Tensor
    latents: dict

    def decode(self, layer):
        """Returns a layer's decoder, (batch, time, channel) -> waveforms."""
        samples = self.wavs.shape[1]
        return lambda z: self.decoders[layer](z, samples)


def eighth(channels):
    """The N that is `SHARE` of all dimensions, rounded; at least 1.

    Example
    -------
    >>> eighth(512), eighth(100), eighth(4)
    (64, 12, 1)
    """
    return max(1, round(SHARE * channels))


def powers_of_two(largest):
    """Lists 2, 4, 8, ... up to a number, and the number itself.

    Example
    -------
    >>> powers_of_two(20)
    [2, 4, 8, 16, 20]
    """
    powers = [2**k for k in range(1, largest.bit_length())]
    return sorted({*(p for p in powers if p <= largest), largest})


def each_layer(system, measure):
    """Measures every layer; what a tool refuses becomes a labelled gap.

    Arguments
    ---------
    system : System
        The encoder.
    measure : callable
        (layer, latent) -> dict; raises `Unmeasurable` if the layer does not
        fit.

    Returns
    -------
    dict
        Of each layer, its result, or its `gap`: the reason.
    """
    found = {}
    for layer, latent in system.latents.items():
        try:
            found[layer] = measure(layer, latent)
        except Unmeasurable as error:
            found[layer] = {"gap": str(error)}
    return found


@torch.no_grad()
def measure_delta(system, pairs, batch_size=8):
    """The paper's table 2, by both distances, and how good the decoders are.

    Arguments
    ---------
    system : System
        The encoder.
    pairs : torch.Tensor
        From `speechbrain_sim.analysis.delta.draw_pairs`.
    batch_size : int
        Latents decoded at once.

    Returns
    -------
    dict
        For each layer `mae` and `mse`, see `speechbrain_sim.analysis.delta`;
        `dimensions`, and `explained`, the share of the recorded energy that is
        in the decoded means; `per_pair`, the mean absolute errors at `eighth`,
        for paired comparisons.
    """

    def measure(layer, latent):
        decode, channels = system.decode(layer), latent.mean.shape[-1]
        counts = sorted({*powers_of_two(channels), eighth(channels)})
        distances = measure_distances(
            decode, latent.mean, pairs, counts, batch_size
        )
        mae, at = distances["mae"], counts.index(eighth(channels))
        decoded = torch.cat([decode(z) for z in latent.mean.split(batch_size)])
        error = (decoded - system.wavs).square().sum()
        return {
            "dimensions": channels,
            "explained": float(1 - error / system.wavs.square().sum()),
            **{name: delta(d, pairs) for name, d in distances.items()},
            "per_pair": [mae.mixtures[:, at].tolist(), mae.starts.tolist()],
        }

    return each_layer(system, measure)


def measure_shape(system, seed=0):
    """The paper's figure 4, see `speechbrain_sim.analysis.shape`.

    Arguments
    ---------
    system : System
        The encoder.
    seed : int
        Of the samples, and of the aggregate posterior's frames.

    Returns
    -------
    dict
        Of each layer, from `speechbrain_sim.analysis.shape.shape`; and the
        dimensions to be `shown`: from the one farthest from N(0, 1) to the
        nearest.
    """

    def measure(layer, latent):
        log_var, sample = latent.log_var, None
        if log_var is not None:
            noise = keyed_generator(seed, layer, "shape", device=log_var.device)
            sample = latent.draw(noise).flatten(0, 1).cpu().numpy()
            log_var = log_var.flatten(0, 1).cpu().numpy()
        mean = latent.mean.flatten(0, 1).cpu().numpy()
        found = shape.shape(mean, log_var, sample, seed=seed)
        ranked = shape.worst(found["means"], found["dimensions"])
        at = np.linspace(0, len(ranked) - 1, min(SHOWN, len(ranked)))
        found["shown"] = [ranked[round(i)] for i in at]
        return found

    return each_layer(system, measure)


def measure_smoothness(system, pairs, steps, directions, batch_size=8, seed=0):
    """How straight, even and gentle decoded paths are.

    Arguments
    ---------
    system : System
        The encoder.
    pairs : torch.Tensor
        From `speechbrain_sim.analysis.delta.draw_pairs`.
    steps : int
        Steps of each interpolation.
    directions : int
        Random moves of each clip, for the local Lipschitz estimate.
    batch_size : int
        Latents decoded at once.
    seed : int
        Of the moves.

    Returns
    -------
    dict
        Of each layer `walks` and `moves`, from
        `speechbrain_sim.analysis.smoothness`; and `per_pair`, path length and
        distance of the ends, for paired comparisons.
    """

    def measure(layer, latent):
        decode, z = system.decode(layer), latent.mean
        walks = smoothness.measure_walks(decode, z, pairs, steps, batch_size)
        moves = smoothness.measure_moves(
            decode, z, directions, batch_size=batch_size, seed=seed
        )
        return {
            "walks": smoothness.summarise_walks(walks, pairs),
            "moves": smoothness.summarise_moves(moves),
            "per_pair": [walks.steps.sum(1).tolist(), walks.distances.tolist()],
        }

    return each_layer(system, measure)


def compare(results, baseline, pairs):
    """Compares every system with one of them, layer by layer, in pairs.

    Arguments
    ---------
    results : dict
        System -> layer -> numbers with `per_pair`, from `measure_delta` or
        `measure_smoothness`.
    baseline : str
        The system that the others are compared with.
    pairs : torch.Tensor
        What they were measured on.

    Returns
    -------
    dict
        System -> layer -> `value` and `interval` of system - baseline: of
        delta at `SHARE`, or of path length / distance, as ratios of means over
        pairs. Layers that either does not have, and deltas of other widths,
        are left out.
    """
    found = {}
    for system, layers in results.items():
        if system == baseline:
            continue
        for layer, numbers in layers.items():
            other = results[baseline].get(layer, {"gap": ""})
            if "gap" in numbers or "gap" in other:
                continue
            if numbers.get("dimensions") != other.get("dimensions"):
                continue
            value, low, high = bootstrap_pairs_difference(
                *(
                    (np.array(above)[:, None], np.array(below))
                    for above, below in (numbers["per_pair"], other["per_pair"])
                ),
                pairs,
            )
            found.setdefault(system, {})[layer] = {
                "value": float(value[0]),
                "interval": [float(low[0]), float(high[0])],
            }
    return found


def measure_weights(system, probes, train, test, scores):
    """The paper's figure 3, see `speechbrain_sim.analysis.weights`.

    Arguments
    ---------
    system : System
        The encoder.
    probes : dict of str to numpy.ndarray
        Weights of bias-free probes of each layer, (seeds, channels, classes).
    train : list of dict of str to Features
        The parts that they were trained on.
    test : dict of str to Features
        What they were tested on.
    scores : dict of str to dict
        Theirs, from `probe_<label>.json`.

    Returns
    -------
    dict
        Of each layer `probe`, its accuracy; what
        `speechbrain_sim.analysis.weights.concentration` says; and `top_n`,
        `counts` with `accuracy` and `interval` of each.
    """

    def measure(layer, latent):
        weight, part = probes[layer], test[layer]
        known = np.concatenate([features[layer].x for features in train])
        mean, std = known.mean(0), known.std(0)
        counts = [1, *powers_of_two(weight.shape[1])]
        top = weights.top_n_accuracy(
            weight, mean, std, part.x[:].numpy(), part.y, part.utterance, counts
        )
        return {
            "probe": {key: scores[layer][key] for key in PROBE_KEYS},
            **weights.concentration(weight, std),
            "top_n": {
                "counts": counts,
                "accuracy": top.accuracy,
                "interval": [
                    bootstrap_interval(hits, top.total) for hits in top.hits
                ],
            },
        }

    return each_layer(system, measure)


def measure_factors(system, train, test, untrained=None, seed=0):
    """Disentanglement of each layer's code, beside controls of equal width.

    Arguments
    ---------
    system : System
        The encoder.
    train, test : Codes
        From `speechbrain_sim.analysis.latents`.
    untrained : (Codes, Codes), optional
        Of an encoder of the same shape that was never trained.
    seed : int
        Of the controls, and of what is drawn.

    Returns
    -------
    dict
        Of each layer `encoder`, `untrained` (if given), `pca` and `rotation`,
        each from `speechbrain_sim.analysis.factors.factor_scores`, and the test
        examples `left_out` for a class that no training example has.
    """
    known = _known_classes(train.factors, test.factors)

    def measure(layer, latent):
        codes = {"encoder": (train.x[layer], test.x[layer])}
        if untrained is not None:
            codes["untrained"] = tuple(part.x[layer] for part in untrained)
        codes |= factors.controls(*codes["encoder"], seed)
        return {
            name: {
                **factors.factor_scores(
                    code,
                    test_code[known],
                    train.factors,
                    {n: values[known] for n, values in test.factors.items()},
                    train.utterance,
                    test.utterance[known],
                    seed,
                ),
                "left_out": int((~known).sum()),
            }
            for name, (code, test_code) in codes.items()
        }

    return each_layer(system, measure)


def _known_classes(train, test):
    """Which test examples have only classes that training examples have."""
    known = np.ones(len(next(iter(test.values()))), bool)
    for name, values in test.items():
        if values.dtype.kind != "f":
            known &= np.isin(values, train[name])
    return known


def measure_attribution(system, clip, probes=None, steps=128):
    """Which samples of a clip drive a probe's class, and a dimension.

    Of each layer: the class that its bias-free probe answers, against the
    other classes, and the dimension whose means vary most over the clips.

    Arguments
    ---------
    system : System
        The encoder.
    clip : int
        Which clip.
    probes : object, optional
        With `weights`, of each layer (seeds, channels, classes), the first seed
        of which is explained, and the names of the `classes`.
    steps : int
        Points of the integral.

    Returns
    -------
    dict
        Of each layer `targets`, a list of dicts: `target`, `envelope` (sum of
        absolute attributions per 10 ms) and the completeness `gap`.
    """
    wav, encoder = system.wavs[clip : clip + 1], system.front_end

    def measure(layer, latent):
        dimension = int(latent.mean.flatten(0, 1).std(0).argmax())
        targets = {
            f"dimension {dimension}": attribution.dimension_function(
                encoder, layer, dimension
            )
        }
        if probes is not None:
            weight = torch.from_numpy(probes.weights[layer][0]).to(wav)
            answer = int((latent.mean[clip].mean(0) @ weight).argmax())
            weight = weight - weight.mean(1, keepdim=True)
            targets[probes.classes[answer]] = attribution.class_function(
                encoder, layer, weight, answer
            )
        found = []
        for target, function in targets.items():
            values, _, gap = attribution.integrated_gradients(
                function, wav, steps=steps
            )
            envelope = attribution.envelope(values)[0].tolist()
            found.append(
                {"target": target, "envelope": envelope, "gap": float(gap[0])}
            )
        return {"targets": found}

    return each_layer(system, measure)
