"""What walks through a latent space sound like: the stops of the report's sliders."""

import torch

from speechbrain_sim.randomness import keyed_generator
from speechbrain_sim.report.page import Explorer, Stop
from speechbrain_sim.traversals import (
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
def explore(system, layer, start, target, names, seed=0):
    """Decodes what the report lets people hear of one layer.

    Arguments
    ---------
    system : System
        The encoder.
    layer : str
        The layer.
    start, target : int
        Two clips.
    names : (str, str)
        What they are called.
    seed : int
        Of the noise.

    Returns
    -------
    list of Explorer
    """
    latent, decode = system.latents[layer], system.decode(layer)
    a, b = latent.mean[start], latent.mean[target]

    def explorer(title, caption, labels, latents):
        wavs = decode(latents).cpu().numpy()
        stops = [Stop(*stop) for stop in zip(labels, wavs, strict=True)]
        return Explorer(title, caption, stops, system.name, layer)

    recorded = [system.wavs[i].cpu().numpy() for i in (start, target)]
    decoded = decode(torch.stack([a, b])).cpu().numpy()
    found = [
        Explorer(
            "Recorded and decoded",
            "What the decoder keeps of the two recordings.",
            [
                Stop(f"{name}, {kind}", wav)
                for i, name in enumerate(names)
                for kind, wav in (
                    ("recorded", recorded[i]),
                    ("decoded", decoded[i]),
                )
            ],
            system.name,
            layer,
        )
    ]
    walk = interpolate(a, b, WALK_STOPS)
    alphas = torch.linspace(0, 1, WALK_STOPS).tolist()
    found.append(
        explorer(
            "Interpolation",
            f"From {names[0]} to {names[1]}, (1 − α) z + α z′ in every frame "
            f"(figure 2 of the paper).",
            [f"α = {alpha:.3f}" for alpha in alphas],
            walk,
        )
    )
    counts = swap_counts(a.shape[-1])
    ranked = most_different(a, b)
    swapped = [swap(a, b, ranked[:count]) for count in counts]
    found.append(
        explorer(
            "Swapped dimensions",
            f"{names[0]} with the N dimensions that differ most taken from "
            f"{names[1]}.",
            [f"N = {count} of {a.shape[-1]}" for count in counts],
            torch.stack(swapped),
        )
    )
    found += traversals(explorer, latent, a)
    found.append(prior_noise(explorer, latent, seed, layer))
    return found


def swap_counts(channels, stops=WALK_STOPS):
    """Numbers of swapped dimensions, from none to all.

    Example
    -------
    >>> swap_counts(128)
    [0, 2, 4, 8, 16, 32, 64, 96, 128]
    """
    halves = [channels >> k for k in range(1, stops - 2)]
    return sorted({0, *halves, channels * 3 // 4, channels})


def traversals(explorer, latent, z):
    """One dimension set to each of several values, at all times.

    The dimensions whose means vary most over the clips are chosen: over three
    deviations of the prior, and over three of the aggregate posterior, which
    has the variance of the means plus the mean variance.
    """
    means = latent.mean.flatten(0, 1)
    spread, mean = means.var(0), means.mean(0)
    total = spread
    if latent.log_var is not None:
        total = spread + latent.log_var.exp().flatten(0, 1).mean(0)
    std = total.sqrt()
    chosen = spread.argsort(descending=True)[:TRAVERSED].tolist()
    found = []
    for rank, dimension in enumerate(chosen, 1):
        own = (float(mean[dimension]), float(std[dimension]))
        kinds = {"its own": own}
        if latent.log_var is not None:
            kinds = {"the prior's": (0.0, 1.0), "the posterior's": own}
        for kind, (center, scale) in kinds.items():
            values = deviations(TRAVERSAL_STOPS, center, scale)
            sigmas = deviations(TRAVERSAL_STOPS)
            found.append(
                explorer(
                    f"Traversal {rank}, over {kind} deviations",
                    f"Dimension {dimension}, number {rank} by variance; mean "
                    f"{mean[dimension]:.2f}, deviation {std[dimension]:.2f}.",
                    [
                        f"{sigma:+.0f} σ ({value:.2f})"
                        for sigma, value in zip(sigmas, values, strict=True)
                    ],
                    traverse(z, dimension, values),
                )
            )
    return found


def prior_noise(explorer, latent, seed, layer):
    """Decodes N(0, I): every frame drawn anew, or one draw held."""
    frames, channels = latent.mean.shape[1:]
    noise = keyed_generator(seed, layer, "prior")
    draws = [draw_prior(frames, channels, noise) for _ in range(DRAWS)]
    held = [z[:1].expand(frames, -1) for z in draws]
    kinds = {"each frame anew": draws, "first frame held": held}
    trained = "Does the prior sound like speech?"
    if latent.log_var is None:
        trained = "This layer knows no prior; for comparison."
    return explorer(
        "Noise",
        f"Decoded draws from N(0, I). {trained}",
        [f"draw {i + 1}, {kind}" for kind in kinds for i in range(DRAWS)],
        torch.stack([z for zs in kinds.values() for z in zs]).to(latent.mean),
    )
