"""Codes of a recording for the page: features, and textual and acoustic halves."""

import torch

from speechbrain_sim.bottlenecks.vib import TextHalf
from speechbrain_sim.data.audio import SAMPLE_RATE
from speechbrain_sim.explorer.engine import rounded
from speechbrain_sim.explorer.jobs import Refused
from speechbrain_sim.models.format import BOTTLENECK, parts_of
from speechbrain_sim.steering import rank_features

#: features in one answer
PAGE = 50


@torch.no_grad()
def activations(engine, model, layer, clip, check=lambda: None):
    """Returns what is shown of codes, (frames, units), kept.

    Activations, or of variational sparse codes the probability that each gate
    is open.
    """
    opened = engine.layer_of(model, layer, ("sae", "vsc"))
    if opened.kind_of(layer) == "sae":
        return codes_of(engine, model, layer, clip, check)

    def compute():
        x = frames_below(engine, model, layer, clip, check)
        return opened.encoder.bottleneck_of(layer).posterior(x).gate

    return engine.kept.get(("gates", model, layer, clip), compute)


@torch.no_grad()
def codes_of(engine, model, layer, clip, check):
    """Returns codes, (frames, units), kept."""
    bottleneck = engine.opened(model).encoder.bottleneck_of(layer)

    def compute():
        x = frames_below(engine, model, layer, clip, check)
        return bottleneck.encode(x)

    return engine.kept.get(("codes", model, layer, clip), compute)


def frames_below(engine, model, layer, clip, check):
    """Returns what codes are of: frames, or their mean where it is coded."""
    encoder = engine.opened(model).encoder
    x = engine.latents(model, clip, check)[encoder.origin(layer)].mean[0]
    return x.mean(0, keepdim=True) if encoder.pools(layer) else x


def list_features(engine, model, layer, clip, search, offset, check):
    """Answers /api/features: the most active first."""
    opened = engine.layer_of(model, layer, ("sae", "vsc"))
    x = activations(engine, model, layer, clip, check)
    encoder, seconds = opened.encoder, engine.clips[clip].seconds
    names = encoder.names_of(layer)
    hop, center = encoder.frame_geometry(layer)
    if encoder.pools(layer):
        hop, center = seconds * SAMPLE_RATE, seconds * SAMPLE_RATE / 2
    if opened.kind_of(layer) == "vsc":  # a gate is open, or is not
        x = x * (x > 0.5)
    ranked = engine.kept.get(
        ("ranked", model, layer, clip),
        lambda: rank_features(x, x.shape[1]),
    )
    wanted = search.strip().casefold()

    def time(frame):
        at = (center + hop * frame) / SAMPLE_RATE
        return round(min(max(at, 0.0), seconds), 4)

    found = [
        r
        for r in ranked
        if wanted in names.get(r.feature, "").casefold()
        or wanted == str(r.feature)
    ]
    page = found[offset : offset + PAGE]
    features = [
        {
            "feature": r.feature,
            "name": names.get(r.feature),
            "mean": r.mean,
            "share": r.share,
            "peak": r.peak,
            "at": time(r.at),
            "start": time(r.start - 0.5),
            "stop": time(r.stop - 0.5),
        }
        for r in page
    ]
    return {"total": len(found), "features": features}


def show_feature(engine, model, layer, clip, feature, check):
    """Answers /api/feature."""
    x = activations(engine, model, layer, clip, check)
    if not 0 <= feature < x.shape[1]:
        raise Refused(404, f"There are features 0 to {x.shape[1] - 1}.")
    largest = rounded(codes_of(engine, model, layer, clip, check)[:, feature])
    return {"activation": rounded(x[:, feature]), "largest": max(largest)}


@torch.no_grad()
def show_half(engine, model, layer, clip, check):
    """Answers /api/halves."""
    opened = engine.layer_of(model, layer, ("vib",))
    encoder, half = opened.encoder, opened.encoder.bottleneck_of(layer)
    entry = parts_of(opened.model.config["parts"], BOTTLENECK)[layer]
    below = engine.latents(model, clip, check)[encoder.origin(layer)]
    z = half.encode(below.mean)
    if isinstance(half, TextHalf):
        best = half.logits(z).argmax(-1)[0].tolist()
        path = [b for a, b in zip([0, *best], best, strict=False) if a != b]
        tokens = [entry["classes"][i] for i in path if i]
        return {"label": entry.get("target"), "transcript": tokens}
    text = None
    if half.text_units:
        sibling = f"{layer.rpartition('.')[0]}.text"
        text = encoder.bottleneck_of(sibling).encode(below.mean)
    logits, attention = half(z, below.lengths, text)
    p, best = logits.softmax(-1)[0].max(-1)
    own, text = attention.own[0], attention.text
    return {
        "label": layer.rpartition(".")[2],
        "prediction": entry["classes"][int(best)],
        "probability": round(float(p), 4),
        "attention": {
            "own": rounded(own),
            "text": None if text is None else rounded(text[0]),
        },
    }
