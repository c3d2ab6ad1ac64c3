"""Edits of a clip's latents, one after the other: latents -> latents."""

from numbers import Integral, Real
from typing import NamedTuple

import torch

from speechbrain_sim.bottlenecks.coded import change_codes, move
from speechbrain_sim.randomness import keyed_generator
from speechbrain_sim.steering import frames_of_span
from speechbrain_sim.traversals import (
    aggregate,
    draw_prior,
    most_different,
    swap,
    traverse,
)

#: edits of one request, and features of one of them
MOST = 64
#: deviations that a dimension is set to; values of features
SIGMAS, LARGEST = 3.0, 1e6


class Space(NamedTuple):
    """A layer of an encoder, in which one clip is edited.

    Arguments
    ---------
    encoder, layer : Encoder, str
        The layer, whose codes' names may be in edits.
    latent : Latent
        Of the clip, (1, time, channel).
    other : callable
        Id of a clip -> its means, (time, channel).
    """

    encoder: torch.nn.Module
    layer: str
    latent: object
    other: object


class Swap(NamedTuple):
    """Means before and after dimensions were swapped, and their target."""

    start: torch.Tensor
    mixture: torch.Tensor
    target: torch.Tensor
    count: int


class Edited(NamedTuple):
    """Means after all edits, (time, channel), and the last Swap, or None.

    They are fewer than the clip's if an edit took a shorter clip.
    """

    z: torch.Tensor
    swapped: Swap | None


@torch.no_grad()
def apply_edits(space, edits, check=lambda: None):
    """Applies edits in order; see `speechbrain_sim.explorer.server`.

    An edit without `span` changes all frames; of two clips the longer one is
    cut. With a span, frames at which the other clip has ended stay.

    Arguments
    ---------
    space, edits : Space, list of dict
        Where; what.
    check : callable
        Called before each edit.

    Returns
    -------
    Edited

    Raises
    ------
    ValueError
        If an edit is not what it must be.

    Example
    -------
    >>> from speechbrain_sim.encoders.logmel import LogMel
    >>> latent = LogMel()(torch.randn(1, 1600))["logmel"]
    >>> space = Space(LogMel(), "logmel", latent, None)
    >>> edit = {"kind": "set", "dimension": 7, "deviations": 0}
    >>> z = apply_edits(space, [edit]).z[:, 7]
    >>> torch.allclose(z, latent.mean[0, :, 7].mean())
    True
    """
    if not isinstance(edits, list) or len(edits) > MOST:
        raise ValueError(f"edits must be a list of at most {MOST}.")
    z, swapped = space.latent.mean[0], None
    place = space.encoder.frame_geometry(space.layer)
    for edit in edits:
        check()
        kind, other = kind_of(edit), None
        frames, span = slice(0, len(z)), edit.get("span")
        if kind in OF_TWO:
            other = space.other(text_of(edit, "other"))[: len(z)]
            z = z[: len(other)] if span is None else z
            frames = slice(0, len(other))
        if span is not None:
            frames = frames_of_span(span, *place, frames.stop)
        changed = z.clone()
        changed[frames] = KINDS[kind](space, z, other, edit, frames)
        if kind == SWAP:
            target = z.clone()
            target[frames] = other[frames]
            swapped = Swap(z, changed, target, edit["count"])
        z = changed
    return Edited(z, swapped)


def kind_of(edit):
    """Returns the kind of an edit; a ValueError if it has none."""
    kind = edit.get("kind") if isinstance(edit, dict) else None
    if not isinstance(kind, str) or kind not in KINDS:
        raise ValueError(
            f"An edit is {kind!r:.40}: it must be one of {', '.join(KINDS)}."
        )
    return kind


def interpolated(space, z, other, edit, frames):
    """(1 - a) z + a z' in some frames."""
    amount = number_of(edit, "amount", 0, 1)
    return torch.lerp(z[frames], other[frames], amount)


def dimension_set(space, z, other, edit, frames):
    """One dimension, at so many deviations from its mean over the clip.

    With `of` "prior", from 0, and deviations are 1.
    """
    d = whole_of(edit, "dimension", 0, z.shape[1] - 1)
    sigmas = number_of(edit, "deviations", -SIGMAS, SIGMAS)
    of, mean, std = edit.get("of", "clip"), 0.0, 1.0
    if of not in ("clip", "prior"):
        raise ValueError(f"of is {of!r:.40}: give 'clip' or 'prior'.")
    if of == "clip":
        mean, std = own_deviation(space.latent, d)
    return traverse(z[frames], d, [mean + sigmas * std])[0]


def own_deviation(latent, d):
    """Returns mean and deviation of a dimension over a clip."""
    log_var = None if latent.log_var is None else latent.log_var[0, :, d]
    return tuple(map(float, aggregate(latent.mean[0, :, d], log_var)))


def swapped_in(space, z, other, edit, frames):
    """The dimensions that differ most in these frames, of the other clip."""
    count = whole_of(edit, "count", 0, z.shape[1])
    pair = z[frames], other[frames]
    return swap(*pair, most_different(*pair)[:count])


def noise(space, z, other, edit, frames):
    """A draw from the prior in these frames."""
    seed = whole_of(edit, "seed", 0, 2**53)
    generator = keyed_generator(seed, space.layer, "prior")
    whole = draw_prior(space.latent.mean.shape[1], z.shape[1], generator)
    return whole[frames].to(z)


def features_set(space, z, other, edit, frames):
    """Frames, moved as a change of their codes' features moves them."""
    layer, encoder = text_of(edit, "layer"), space.encoder
    bottleneck = encoder.bottleneck_of(layer)
    if bottleneck is None or not bottleneck.decodes:
        raise ValueError(f"{layer!r:.80} holds no codes that decode to frames.")
    if encoder.origin(layer) != encoder.origin(space.layer):
        raise ValueError(f"{layer} codes another layer than {space.layer}.")
    given, features = edit.get("features"), {}
    if not isinstance(given, dict) or len(given) > MOST:
        raise ValueError(f"features must map at most {MOST} of them to values.")
    for name in given:
        if not (name.isdecimal() and len(name) < 10):
            raise ValueError(f"There is no feature {name!r:.40}.")
        features[int(name)] = number_of(given, name, -LARGEST, LARGEST)
    how = str(edit.get("how", "set"))
    if layer == space.layer:
        return change_codes(z, features, frames, how)[frames]
    latent = space.latent._replace(mean=z[None], sample=z[None])
    latent = latent._replace(lengths=torch.tensor([len(z)]))
    codes = encoder.codes_of(layer, latent).mean[0]
    return move(bottleneck, z, codes, features, frames, how)[0][frames]


#: edits that take another clip
OF_TWO = INTERPOLATE, SWAP = "interpolate", "swap"
KINDS = {
    INTERPOLATE: interpolated,
    "set": dimension_set,
    SWAP: swapped_in,
    "noise": noise,
    "features": features_set,
}


def number_of(edit, key, low, high):
    """Returns a number of an edit; a ValueError if it is out of range."""
    value = edit.get(key)
    real = isinstance(value, Real) and not isinstance(value, bool)
    if not (real and low <= value <= high):  # also if it is NaN
        raise ValueError(
            f"{key!s:.40} is {value!r:.40}: give a number from {low} to {high}."
        )
    return float(value)


def whole_of(edit, key, low, high):
    """Returns a whole number of an edit."""
    if not isinstance(edit.get(key), Integral):
        raise ValueError(
            f"{key} is {edit.get(key)!r:.40}: give a whole number."
        )
    return int(number_of(edit, key, low, high))


def text_of(edit, key):
    """Returns a text of an edit."""
    if not isinstance(edit.get(key), str):
        raise ValueError(f"{key} is {edit.get(key)!r:.40}: give a name.")
    return edit[key]
