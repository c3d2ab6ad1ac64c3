"""Features of a recording: which are active, and how it sounds without them."""

import math
from os import PathLike
from typing import NamedTuple

import torch

from speechbrain_sim.bottlenecks.coded import (
    code_blocks,
    draw_codes,
    move,
)
from speechbrain_sim.data.audio import SAMPLE_RATE
from speechbrain_sim.features import check_file
from speechbrain_sim.inputs import as_batch
from speechbrain_sim.randomness import keyed_generator


class Steered(NamedTuple):
    """A recording before and after features were changed.

    `original` and `changed`, (samples,): both are decoded from the frames that
    were coded, the latter from moved ones. Their codes, (frames, units).
    """

    original: torch.Tensor
    changed: torch.Tensor
    codes: torch.Tensor
    changed_codes: torch.Tensor


class Activity(NamedTuple):
    """Where a feature is active in a recording, in frames, and how strongly.

    Of the `feature`, its `mean` over all frames, the `share` of frames in which
    it is active, its largest activation `peak`, at frame `at`; `start` and
    `stop` of the frames around it in which it is active without a pause.
    """

    feature: int
    mean: float
    share: float
    peak: float
    at: int
    start: int
    stop: int


def rank_features(codes, count=10):
    """Ranks features by their mean activation: list of `Activity`.

    `codes` are (frames, units), dense or sparse; features that are never active
    are left out.

    Example
    -------
    >>> codes = torch.tensor([[0.0, 1.0], [0.5, 2.0], [0.0, 0.0]])
    >>> rank_features(codes, 1)
    [Activity(feature=1, mean=1.0, share=0.66..., peak=2.0, at=1, start=0, stop=2)]
    """
    if not codes.is_sparse:
        codes = codes.to_sparse()
    (frames, units), (time, _) = codes.coalesce().indices(), codes.shape
    values = codes.coalesce().values().double()
    sums = torch.bincount(units, values, codes.shape[1]) / time
    best = sums.sort(descending=True, stable=True).indices[:count].tolist()
    order = units.argsort(stable=True)
    sizes = torch.bincount(units, minlength=codes.shape[1]).tolist()
    frames, values = (x[order].split(sizes) for x in (frames, values))
    found = []
    for feature in best:
        at, active = frames[feature], values[feature]
        if not len(at):
            break
        largest = int(active.argmax())
        pauses = (at.diff() > 1).nonzero().flatten() + 1
        first = int(torch.searchsorted(pauses, largest, right=True))
        ends = [0, *pauses.tolist(), len(at)][first : first + 2]
        activity = Activity(
            feature,
            mean=float(sums[feature]),
            share=len(at) / time,
            peak=float(active[largest]),
            at=int(at[largest]),
            start=int(at[ends[0]]),
            stop=int(at[ends[1] - 1]) + 1,
        )
        found.append(activity)
    return found


class ActiveFeature(NamedTuple):
    """Where a feature is active in a recording, and how strongly.

    Its number and its `name` in the metadata of the model, if any; `mean` over
    all frames, and `share` of frames in which it is active; `peak`, its largest
    activation, at `at` seconds, and from `start` to `stop` of the frames around
    it without a pause. `deviation` is that of the peak over draws from the
    layer's posterior, see `draw_codes`; None where there is none.
    """

    feature: int
    name: str | None
    mean: float
    share: float
    peak: float
    at: float
    start: float
    stop: float
    deviation: float | None


def frames_of_span(span, hop, center, frames):
    """Returns the frames whose center lies in a span of seconds, a slice.

    A ValueError if there is none.

    Example
    -------
    >>> frames_of_span((0.01, 0.03), 160, 20.0, 100)
    slice(1, 3, None)
    """
    try:
        ends = [(float(x) * SAMPLE_RATE - center) / hop for x in span]
        start, stop = (min(max(math.ceil(x), 0), frames) for x in ends)
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(
            f"span is {span!r:.80}: give its start and its end, in seconds."
        ) from error
    if start >= stop:
        raise ValueError(
            f"No frame lies between {span[0]} and {span[1]} s; those of this "
            f"recording end at {(center + hop * (frames - 1)) / SAMPLE_RATE:g} s."
        )
    return slice(start, stop)


def coded_layer(model, layer=None):
    """Returns the name of a model's codes: `layer`, or the only ones.

    A ValueError names them if there are others, or none.
    """
    encoder = model.encoder
    codes = [n for n in encoder.layer_names if encoder.bottleneck_of(n)]
    if layer is None and len(codes) == 1:
        return codes[0]
    if layer not in codes:
        asked = "Which codes? Give a layer"
        if layer is not None:
            asked = f"'{layer}' holds no codes; those that do"
        there = ", ".join(codes) or "none, train one with recipes/bottleneck.py"
        raise ValueError(f"{asked}: {there}.")
    return layer


def steer(model, wav, layer, features, span=None, how="set"):
    """Changes features of a recording: see `SmoothInfoMax.steer`."""
    layer = coded_layer(model, layer)
    origin, encoder = model.encoder.origin(layer), model.encoder
    if isinstance(wav, (str, PathLike)):
        samples = check_file(encoder, wav, [origin])
        latent = model.encode_file(wav, origin)
    else:
        one = getattr(wav, "ndim", 0) == 1
        wavs, lengths = as_batch([wav] if one else wav)
        if len(wavs) > 1:
            raise ValueError(f"{len(wavs)} waveforms: steer one at a time.")
        samples = int(lengths)
        latent = model.encode_batch(wavs, layer=origin)
    x, codes = latent.mean, encoder.codes_of(layer, latent).mean
    frames = slice(None)
    if span is not None:
        place = encoder.frame_geometry(layer)
        frames = frames_of_span(span, *place, x.shape[1])
    parts = encoder.bottleneck_of(layer), x, codes
    moved, changed = move(*parts, features, frames, how)
    sounds = model.decode(torch.cat([x, moved]), origin, samples)
    return Steered(*sounds, codes[0], changed[0])


def top_features(model, path, layer=None, count=10, latent=None):
    """Ranks the features of a file: see `SmoothInfoMax.top_features`.

    `latent` is that of the file and the layer below, if it was encoded.
    """
    layer = coded_layer(model, layer)
    encoder, bottleneck = model.encoder, model.encoder.bottleneck_of(layer)
    latent = latent or model.encode_file(path, encoder.origin(layer))
    samples = check_file(encoder, path, [layer])
    x = latent.mean[0]
    if encoder.pools(layer):
        x = x.mean(0, keepdim=True)
    codes = [z.to_sparse() for z in code_blocks(bottleneck, x)]
    moments = rank_features(torch.cat(codes), count)
    found = place_features(encoder, layer, moments, samples)
    if latent.log_var is None or encoder.pools(layer):
        return found
    for i, (feature, *_, at, _, _) in enumerate(moments):
        noise = keyed_generator("top features", at, device=x.device)
        place = x[at], latent.log_var[0, at], 32, noise
        deviation = draw_codes(bottleneck, *place).deviation[feature]
        found[i] = found[i]._replace(deviation=float(deviation))
    return found


def place_features(encoder, layer, moments, samples):
    """Places what `rank_features` found in a recording of so many samples.

    Returns a list of ActiveFeature, without deviations.
    """
    names = encoder.names_of(layer)
    hop, center = encoder.frame_geometry(layer)
    if encoder.pools(layer):  # one frame, which is the whole recording
        hop, center = samples, samples / 2

    def seconds(frame):
        time = (center + hop * frame) / SAMPLE_RATE
        return min(max(time, 0.0), samples / SAMPLE_RATE)

    return [
        ActiveFeature(
            moment.feature,
            names.get(moment.feature),
            *moment[1:4],
            seconds(moment.at),
            seconds(moment.start - 0.5),
            seconds(moment.stop - 0.5),
            deviation=None,
        )
        for moment in moments
    ]
