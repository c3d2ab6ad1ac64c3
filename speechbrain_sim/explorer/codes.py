"""Codes of a recording for the page: features, textual and acoustic halves."""

import torch
from speechbrain.decoders.ctc import ctc_greedy_decode

from speechbrain_sim.bottlenecks.vib import BLANK, TextHalf
from speechbrain_sim.explorer.engine import rounded
from speechbrain_sim.explorer.jobs import Refused
from speechbrain_sim.explorer.models import SAE, VIB, VSC
from speechbrain_sim.models.format import BOTTLENECK, parts_of
from speechbrain_sim.steering import place_features, rank_features

#: features in one answer
PAGE = 50


@torch.no_grad()
def activations(engine, model, layer, clip, check):
    """Returns codes, and what is shown of them, (frames, units) each, kept.

    Of variational codes the probability that each gate is open is shown.
    """
    explored = engine.explored(model, layer, SAE, VSC)
    encoder = explored.encoder
    bottleneck = encoder.bottleneck_of(layer)

    def compute():
        x = engine.latents(model, clip, check)[encoder.origin(layer)].mean[0]
        x = x.mean(0, keepdim=True) if encoder.pools(layer) else x
        codes = bottleneck.encode(x)
        if explored.layers[layer] == SAE:
            return codes, codes
        return codes, bottleneck.posterior(x).gate

    return engine.kept.get(("codes", model, layer, clip), compute)


def list_features(
    engine,
    model: str,
    layer: str,
    clip: str,
    check,
    search: str = "",
    offset: int = 0,
):
    """Answers /api/features: the most active first."""
    codes, x = activations(engine, model, layer, clip, check)
    if x is not codes:  # a gate is open, or it is not
        x = x * (x > 0.5)
    key, encoder = ("ranked", model, layer, clip), engine.models[model].encoder
    ranked = engine.kept.get(key, lambda: rank_features(x, x.shape[1]))
    samples = len(engine.wav(clip))
    wanted, offset = search.strip().casefold(), max(offset, 0)
    found = [
        {n: v for n, v in active._asdict().items() if n != "deviation"}
        for active in place_features(encoder, layer, ranked, samples)
        if wanted in (active.name or "").casefold()
        or wanted == str(active.feature)
    ]
    return {"total": len(found), "features": found[offset : offset + PAGE]}


def show_feature(
    engine, model: str, layer: str, clip: str, feature: int, check
):
    """Answers /api/feature."""
    codes, x = activations(engine, model, layer, clip, check)
    if not 0 <= feature < x.shape[1]:
        raise Refused(404, f"There are features 0 to {x.shape[1] - 1}.")
    largest = float(codes[:, feature].max())
    return {"activation": rounded(x[:, feature]), "largest": largest}


@torch.no_grad()
def show_half(engine, model: str, layer: str, clip: str, check):
    """Answers /api/halves."""
    explored = engine.explored(model, layer, VIB)
    encoder, half = explored.encoder, explored.encoder.bottleneck_of(layer)
    entry = parts_of(explored.model.config["parts"], BOTTLENECK)[layer]
    below = engine.latents(model, clip, check)[encoder.origin(layer)]
    z, classes = half.encode(below.mean), entry["classes"]
    if isinstance(half, TextHalf):
        (path,) = ctc_greedy_decode(half.logits(z), torch.ones(1), BLANK)
        transcript = [classes[label] for label in path]
        return {"label": entry.get("target"), "transcript": transcript}
    stem, _, label = layer.rpartition(".")
    text = None
    if half.text_units:
        text = encoder.bottleneck_of(f"{stem}.text").encode(below.mean)
    logits, weights = half(z, below.lengths, text)
    p, best = logits.softmax(-1)[0].max(-1)
    attention = {"own": rounded(weights.own[0]), "text": None}
    if text is not None:
        attention["text"] = rounded(weights.text[0])
    prediction = {"prediction": classes[int(best)], "probability": float(p)}
    return {"label": label, **prediction, "attention": attention}
