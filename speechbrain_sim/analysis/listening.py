"""Walks through a latent space as sounds: the stops of the report's sliders."""

import torch

from speechbrain_sim.analysis.study import Tool
from speechbrain_sim.data.audio import SAMPLE_RATE
from speechbrain_sim.decoders import DECODERS
from speechbrain_sim.randomness import keyed_generator
from speechbrain_sim.report.page import Explorer, Stop
from speechbrain_sim.traversals import (
    aggregate,
    deviations,
    draw_prior,
    interpolate,
    most_different,
    swap,
    traverse,
)

#: stops of an interpolation, and of the traversal of one dimension
WALK_STOPS, TRAVERSAL_STOPS = 9, 7
#: how many dimensions are traversed, and how many times noise is drawn
TRAVERSED, DRAWS = 2, 4


@torch.no_grad()
def explore(system, layer, clips, seed=0):
    """Decodes the sounds of one layer.

    Arguments
    ---------
    system : System
        The encoder, with decoders; the spectrogram's is played, if any.
    layer : str
        The layer.
    clips : Clips
        With the two clips to walk between.
    seed : int
        Of the noise.

    Returns
    -------
    list of Explorer
    """
    latent, at = system.latents[layer], list(clips.walk)
    names, ends = [clips.name(i) for i in at], latent.mean[at]
    *others, kind = system.decoders  # the audible one is last
    decode = system.decode(layer, kind)
    kinds = ["recorded", *(f"decoded, {k}" for k in [kind, *others])]
    labels = [f"{name}, {kind}" for name in names for kind in kinds]
    whole = " and ".join(f"{clips.ids[i]}: {clips.name(i, 200)}" for i in at)
    seconds = clips.wavs.shape[1] / SAMPLE_RATE
    every = [system.decode(layer, k)(ends) for k in [kind, *others]]
    both = torch.stack([system.wavs[at], *every], dim=1).flatten(0, 1)
    caption = "What decoders keep of two recordings, of which the first "
    caption += f"{seconds:g} s are used. {whole}."
    sounds = [("Recorded and decoded", caption, labels, both)]
    walks = [interpolation(*ends, names), swapped(*ends, names)]
    if system.encoder.bottleneck_of(layer) is None:
        walks += traversals(latent, ends[0])
        walks.append(prior_noise(latent, seed, layer))
    else:  # sparse, and no activation is negative
        walks += activations(latent, ends[0])
    by = f"Sounds of the {kind} decoder."
    sounds += [
        (title, f"{caption} {by}", labels, decode(z))
        for title, caption, labels, z in walks
    ]
    explorers = []
    for title, caption, labels, wavs in sounds:
        stops = map(Stop, labels, wavs.cpu().numpy())
        of = list(stops), system.name, layer
        explorers.append(Explorer(title, caption, *of))
    return explorers


def interpolation(a, b, names):
    """Returns title, caption, labels and latents from one clip to another."""
    alphas = torch.linspace(0, 1, WALK_STOPS).tolist()
    walk = "(1 − α) z + α z′ in every frame (figure 2 of the paper)"
    caption = f"From {names[0]} to {names[1]}, {walk}."
    labels = [f"α = {alpha:.3f}" for alpha in alphas]
    return "Interpolation", caption, labels, interpolate(a, b, WALK_STOPS)


def swapped(a, b, names):
    """Returns the same of clips between which dimensions are swapped."""
    counts, ranked = swap_counts(a.shape[-1]), most_different(a, b)
    most = "the N dimensions that differ most"
    caption = f"{names[0]} with {most} taken from {names[1]}."
    labels = [f"N = {count} of {a.shape[-1]}" for count in counts]
    latents = torch.stack([swap(a, b, ranked[:count]) for count in counts])
    return "Swapped dimensions", caption, labels, latents


def swap_counts(channels):
    """Lists the numbers of swapped dimensions, from none to all.

    Example
    -------
    >>> swap_counts(128)
    [0, 2, 4, 8, 16, 32, 64, 96, 128]
    """
    halves = [channels >> k for k in range(1, WALK_STOPS - 2)]
    return sorted({0, *halves, channels * 3 // 4, channels})


def traversals(latent, z):
    """Yields the same of one dimension at several values, at all times.

    The dimensions whose means vary most over the clips are chosen: over three
    deviations of the prior, and over three of the aggregate posterior.
    """
    means, log_var, kinds = latent.mean.flatten(0, 1), None, {"its own": None}
    if latent.log_var is not None:
        log_var = latent.log_var.flatten(0, 1)
        kinds = {"the prior's": (0.0, 1.0), "the posterior's": None}
    mean, std = aggregate(means, log_var)
    chosen = means.var(0).argsort(descending=True)[:TRAVERSED].tolist()
    sigmas = deviations(TRAVERSAL_STOPS)
    for rank, d in enumerate(chosen, 1):
        own = float(mean[d]), float(std[d])
        variance = f"number {rank} by variance"
        numbers = f"mean {own[0]:.2f}, deviation {own[1]:.2f}"
        caption = f"Dimension {d}, {variance}; {numbers}."
        for kind, moments in kinds.items():
            values = deviations(TRAVERSAL_STOPS, *(moments or own))
            pairs = zip(sigmas, values, strict=True)
            labels = [f"{sigma:+.0f} σ ({value:.2f})" for sigma, value in pairs]
            title = f"Traversal {rank}, over {kind} deviations"
            yield title, caption, labels, traverse(z, d, values)


def activations(latent, z):
    """Yields the same of one feature of a code, from silent to its largest.

    In all frames; of the features that vary most over the clips.
    """
    codes = latent.mean.flatten(0, 1)
    ranked = codes.var(0).argsort(descending=True)[:TRAVERSED].tolist()
    for rank, feature in enumerate(ranked, 1):
        largest = float(codes[:, feature].max())
        values = torch.linspace(0, largest, TRAVERSAL_STOPS).tolist()
        caption = f"Feature {feature}, number {rank} by variance, set to up to "
        caption += f"its largest activation, {largest:.2f}, in every frame."
        labels = [f"{value:.2f}" for value in values]
        title = f"Feature {rank}, from silent to its largest"
        yield title, caption, labels, traverse(z, feature, values)


def prior_noise(latent, seed, layer):
    """Returns the same of N(0, I): every frame drawn anew, or one draw held."""
    frames, channels = latent.mean.shape[1:]
    noise = keyed_generator(seed, layer, "prior")
    draws = [draw_prior(frames, channels, noise) for _ in range(DRAWS)]
    held = [z[:1].expand(frames, -1) for z in draws]
    kinds = {"each frame anew": draws, "first frame held": held}
    trained = "Does the prior sound like speech?"
    if latent.log_var is None:
        trained = "This layer has no prior; for comparison."
    caption = f"Decoded draws from N(0, I). {trained}"
    labels = [f"draw {i + 1}, {kind}" for kind in kinds for i in range(DRAWS)]
    return "Noise", caption, labels, torch.stack(draws + held).to(latent.mean)


class Listening(Tool):
    """Section of sounds; decoded anew for each report."""

    key = "listen"
    title = "Listen"
    sentence = "Move the sliders: a smooth space changes evenly, as speech."
    needs = DECODERS

    def items(self, found, study):
        """Returns the explorers of all systems and layers."""
        pairs = [(s, layer) for s in study.systems for layer in s.latents]
        settings = study.clips, study.seed
        return [e for pair in pairs for e in explore(*pair, *settings)]
