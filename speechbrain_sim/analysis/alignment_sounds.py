"""Dimensions that all classes share, and those of some alone, as sounds."""

import numpy as np
import torch

from speechbrain_sim.analysis.alignment import GLOBAL, SPECIFIC
from speechbrain_sim.analysis.alignment_scores import code_rows
from speechbrain_sim.analysis.code_parts import read_part
from speechbrain_sim.analysis.feature_pages import decoder_below
from speechbrain_sim.bottlenecks.coded import move
from speechbrain_sim.data.audio import SAMPLE_RATE, read_audio
from speechbrain_sim.data.tables import read_manifest
from speechbrain_sim.report.page import Explorer, Gap, Stop
from speechbrain_sim.traversals import deviations

#: stops of a traversal, over three deviations of the slab, N(0, 1)
STOPS = 7
#: seconds of a sound
SECONDS = 2.0


@torch.no_grad()
def traversals(
    model, name, results, store, kind, classes, manifest, data_folder
):
    """Decodes a global and a specific dimension, from -3 to 3 deviations.

    All frames of a recording are moved as a change of one code moves what the
    codes decode to, and decoded by the decoder of the layer.

    Arguments
    ---------
    model, name, results : SmoothInfoMax, str, dict
        Opened with its codes; which codes; from `measure_alignment`.
    store, kind, classes, manifest, data_folder :
        The test part; of the label; what the store was made of.

    Returns
    -------
    list of Explorer or Gap
        Of a global dimension one, of a specific one two: in a recording of a
        class in which it is open, and of another.
    """
    layer, label = model.encoder.origin(name), results["label"]
    found = results["codes"][name]["dimensions"]
    if decoder_below(model, layer) is None:
        reason = f"{layer} has no decoder: train one with recipes/decode.py."
        return [Gap("Traversals of dimensions", reason)]
    if "gap" in found:
        return [Gap("Traversals of dimensions", found["gap"])]
    part = read_part(store, layer, {label: (classes, kind)}, 4000, 0)
    bottleneck, y = model.encoder.bottleneck_of(name), part.y[label]
    spread = code_rows(bottleneck, part.x).code.std(0)
    there = [c for c, row in enumerate(found["means"]) if row and c in y]
    data, items = read_manifest(manifest, data_folder), []
    for what in (GLOBAL, SPECIFIC):
        of = [i for i, k in enumerate(found["kinds"]) if k == what]
        if not of:
            reason = f"{name} has no dimension that is surely {what}."
            items.append(Gap(f"Traversal of a {what} dimension", reason))
            continue
        d = max(of, key=lambda i: spread[i])
        inside = [c for c in found["open"][d] if c in there]
        outside = [c for c in there if c not in found["open"][d]]
        names = [results["names"][c] for c in found["open"][d]]
        words = "in all classes" if what == GLOBAL else f"in {', '.join(names)}"
        for c in [*inside[:1], *outside[: what == SPECIFIC]]:
            owner = np.bincount(part.utterance[y == c]).argmax()
            called, at = results["names"][c], store.ids[owner]
            caption = (
                f"Dimension {d} of {name}, open {words}, set in all frames "
            )
            caption += (
                f"of {at}, of {called}. The slab of the prior is N(0, 1)."
            )
            place = "where it is open" if c in inside else "where it is closed"
            title = f"A {what} dimension, {place}"
            stops = walk(model, name, data[at], d)
            items.append(Explorer(title, caption, stops, None, layer))
    return items


def walk(model, name, row, dimension):
    """Decodes a recording with one dimension changed: list of Stop.

    `row` is of a manifest; the first stop is unchanged.
    """
    samples = min(row["num_samples"], round(SECONDS * SAMPLE_RATE))
    wav = read_audio(row["wav"], row["start"], row["start"] + samples)
    encoder = model.encoder
    layer, bottleneck = encoder.origin(name), encoder.bottleneck_of(name)
    latent = model.encode_batch(wav[None], layer=layer)
    x, z = latent.mean, encoder.codes_of(name, latent).mean
    values = deviations(STOPS)
    changes = [{}, *({dimension: value} for value in values)]
    moved = torch.cat([move(bottleneck, x, z, one)[0] for one in changes])
    sounds = model.decode(moved, layer, samples).cpu().numpy()
    labels = ["unchanged", *(f"{value:+.0f} σ" for value in values)]
    return [Stop(*pair) for pair in zip(labels, sounds, strict=True)]
