"""ABX: how often a token of one phone is nearer than another of the same.

    error(a, b) = P(d(x, a) > d(x, b)) + P(d(x, a) = d(x, b)) / 2,

x and a are tokens of one phone, b is one of another. Within speakers, all three
are of one person; across speakers, a and b are, and x is of someone else. The
distance is the mean angle between frames along the best alignment. Nothing is
trained: 0 % is perfect, 50 % chance; noise of unlike lengths may be above it.

References: Schatz et al., Evaluating speech features with the minimal-pair ABX
task (2013); Kahn et al., Libri-Light (2020), https://arxiv.org/abs/1912.07875,
and the ZeroSpeech challenge, whose conditions and averages are used here.
"""

import math
import shutil
from functools import partial
from itertools import product

import numpy as np
import torch
from torch.nn.functional import normalize

from speechbrain_sim.activations import LABELS, LOG_VAR
from speechbrain_sim.analysis.intervals import (
    RESAMPLES,
    Unmeasurable,
    draw_counts,
    middle,
)
from speechbrain_sim.analysis.study import Tool
from speechbrain_sim.analysis.tokens import draw_blocks, read_tokens
from speechbrain_sim.console import Bar
from speechbrain_sim.data.tables import manifest_hash
from speechbrain_sim.encoders.base import Latent
from speechbrain_sim.extraction import encode_manifest
from speechbrain_sim.files import cached_result, versions
from speechbrain_sim.models.load import load_encoder
from speechbrain_sim.randomness import keyed_generator
from speechbrain_sim.report.page import Gap, Table
from speechbrain_sim.report.tables import cell

#: who speaks, and how many people an interval needs
KINDS = {"within": 2, "across": 3}
#: values of frames that are compared at once
CHUNK = 2**23


def dtw(distances, rows, columns):
    """Aligns frames: the mean distance along the shortest path.

    A path goes on by one frame of either side, or of both; among equals, that
    of both first. Its sum of distances is divided by its number of steps.

    Arguments
    ---------
    distances : torch.Tensor
        Of frames, padded, (pairs, rows, columns).
    rows, columns : torch.Tensor
        Frames of the two sides of each pair, (pairs,), int64.

    Returns
    -------
    torch.Tensor
        (pairs,)

    Example
    -------
    >>> distances = torch.tensor([[[0.0, 0.5, 0.5], [0.5, 0.0, 0.3]]])
    >>> dtw(distances, torch.tensor([2]), torch.tensor([3]))
    tensor([0.1000])
    """
    pairs, n, m = distances.shape
    distances = distances.movedim(0, -1).contiguous()
    total = distances.new_full((n + 1, m + 1, pairs), math.inf)
    total[0, 0] = 0
    steps = torch.zeros_like(total)
    for i in range(n):
        for j in range(m):
            both, left, up = total[i, j], total[i + 1, j], total[i, j + 1]
            least = torch.minimum(torch.minimum(both, left), up)
            total[i + 1, j + 1] = distances[i, j] + least
            one = torch.where(left <= up, steps[i + 1, j], steps[i, j + 1])
            before = torch.where(both <= least, steps[i, j], one)
            steps[i + 1, j + 1] = before + 1
    at = rows, columns, torch.arange(pairs, device=rows.device)
    return total[at] / steps[at]


def measure_distances(frames, first, length, pairs):
    """Measures how far tokens are apart, by angles: 0 to 1.

    Arguments
    ---------
    frames : torch.Tensor
        (frames, channels); one that is zero counts as all channels alike.
    first, length : torch.Tensor
        The first frame of each token, and how many it has, (tokens,), int64.
    pairs : torch.Tensor
        Indices of tokens, (pairs, 2).

    Returns
    -------
    torch.Tensor
        (pairs,), float32.
    """
    silent = ~frames.any(-1, keepdim=True)
    frames = normalize(frames + silent.to(frames), dim=-1)
    longest, order = length[pairs].amax(1).sort(descending=True)
    result = frames.new_empty(len(pairs))
    done, bar = 0, Bar(total=len(pairs), desc="ABX", unit="pair", disable=None)
    while done < len(pairs):
        most = int(longest[done])
        count = max(1, CHUNK // (most * max(most, frames.shape[1])))
        now = order[done : done + count]
        index = torch.arange(most, device=first.device)
        x, y = (
            frames[(first[token, None] + index).clamp(max=len(frames) - 1)]
            for token in pairs[now].T
        )
        angles = (x @ y.mT).clamp(-1, 1).acos() / math.pi
        result[now] = dtw(angles, *length[pairs[now]].T)
        done += len(now)
        bar.update(len(now))
    bar.close()
    return result


def score_blocks(tokens, blocks, distance):
    """Scores the triplets of each two phones, two speakers and a context.

    Arguments
    ---------
    tokens, blocks : list of Token, list of Block
        From `read_tokens` and `draw_blocks`.
    distance : callable
        Indices of tokens, (pairs, 2) -> distances, (pairs,).

    Returns
    -------
    cells, errors : (numpy.ndarray, numpy.ndarray)
        Phone of x and a, phone of b, speaker of a and b, speaker of x,
        (cells, 4); means over triplets, (cells,).
    """
    grids = [np.meshgrid(b.x, [*b.a, *b.b], indexing="ij") for b in blocks]
    pairs = [np.stack(grid, -1).reshape(-1, 2) for grid in grids]
    far = distance(np.concatenate(pairs))
    ends, cells, errors = np.cumsum([*map(len, pairs)])[:-1], [], []
    for (x, a, b), values in zip(blocks, np.split(far, ends), strict=True):
        values = values.reshape(len(x), -1)
        to_a, to_b = values[:, : len(a), None], values[:, None, len(a) :]
        wrong = (to_a > to_b) + (to_a == to_b) / 2  # (x, a, b)
        wrong = wrong[x[:, None] != a].mean(0)
        names = [tokens[i].phone for i in b]
        names, of = np.unique(names, return_inverse=True)
        errors.append(np.bincount(of, wrong) / np.bincount(of))
        phone, _, speaker, *_ = tokens[a[0]]
        other = tokens[x[0]].speaker
        cells += [(phone, name, speaker, other) for name in names]
    return np.array(cells), np.concatenate(errors)


def average(cells, errors, resamples=RESAMPLES, seed=0):
    """Averages errors as ZeroSpeech does, with an interval over speakers.

    The mean over contexts and speakers of x, then over speakers of a and b,
    then over ordered pairs of phones. The interval is a percentile bootstrap
    that draws speakers; a cell counts as often as both of its speakers were
    drawn together. In simulations, 91 to 99 % of the intervals of 20 speakers
    cover the truth, 83 % of those of six. Phones and sentences are fixed in it.

    Arguments
    ---------
    cells, errors : numpy.ndarray
        From `score_blocks`.
    resamples, seed : int
        Number of draws, and their seed.

    Returns
    -------
    value, (low, high) : (float, (float, float))
    """
    people, who = np.unique(cells[:, 2:], return_inverse=True)
    owner, other = who.reshape(-1, 2).T
    _, pair = np.unique(cells[:, :2], axis=0, return_inverse=True)
    of, group = np.unique(
        pair.ravel() * len(people) + owner, return_inverse=True
    )
    pair, owner = np.divmod(of, len(people))

    def mean(weights):
        """The mean with a weight of each speaker."""
        weight = weights[other]
        below = np.bincount(group, weight)
        x = np.bincount(group, weight * errors) / np.maximum(below, 1)
        weight = weights[owner] * (below > 0)
        below = np.bincount(pair, weight)
        x = np.bincount(pair, weight * x)[below > 0] / below[below > 0]
        return x.mean() if len(x) else np.nan

    draws = draw_counts(len(people), resamples, seed)
    draws, which = np.unique(draws, axis=0, return_inverse=True)
    means = np.array([mean(weights) for weights in draws])
    low, high = middle(means[which.ravel()])
    return float(mean(np.ones(len(people)))), (float(low), float(high))


def _frames_of(features, tokens):
    """Joins frames; returns them, and first frame and length of each token."""
    frames, places, total = torch.cat([*features.values()]).float(), {}, 0
    for name, x in features.items():
        places[name], total = total, total + len(x)
    for name, _, stop in (token[3:] for token in tokens):
        if stop > len(features[name]):
            raise ValueError(
                f"{name} has {len(features[name])} frames, and a phone up to "
                f"label {stop}: features need a frame for each 10 ms."
            )
    if not frames.isfinite().all():
        raise ValueError("Features are not finite: no angle, no ABX.")
    spans = [(places[t.utterance] + t.start, t.stop - t.start) for t in tokens]
    return frames, *torch.tensor(spans).to(frames.device).T


def abx(features, tokens, group=10, speakers=5, seed=0):
    """Measures the ABX error of phones, within and across speakers.

    Arguments
    ---------
    features : dict of str to torch.Tensor
        Of each utterance (labels, channels): the frame of each 10 ms.
    tokens : list of Token
        From `read_tokens` or `find_tokens`.
    group, speakers, seed : int
        See `draw_blocks`.

    Returns
    -------
    dict
        "within" and "across": `value` and `interval` (see `average`), the
        numbers of `cells`, `tokens` and `speakers`, and whether tokens are
        `triphones`; or a `gap`, the reason why there is no number.

    Raises
    ------
    ValueError
        If an utterance has fewer frames than labels, or one is not finite.

    Example
    -------
    >>> from speechbrain_sim.analysis.tokens import find_tokens
    >>> labels = {"1": "A B A B".split(), "2": "B A B A".split()}
    >>> found = [find_tokens(x, n, n, "any") for n, x in labels.items()]
    >>> tokens = sum(found, [])
    >>> code = dict(zip("AB", torch.eye(2)))
    >>> features = {
    ...     n: torch.stack([*map(code.get, x)]) for n, x in labels.items()
    ... }
    >>> error = abx(features, tokens)
    >>> error["within"]["value"], error["across"]["gap"]
    (0.0, '2 speakers are too few for an interval; it needs 3.')
    """
    frames, first, length = _frames_of(features, tokens)

    def distance(pairs):
        pairs = torch.from_numpy(pairs).to(frames.device)
        return measure_distances(frames, first, length, pairs).cpu().numpy()

    results = {}
    for kind, needed in KINDS.items():
        blocks = draw_blocks(tokens, kind == "across", group, speakers, seed)
        used = {i for block in blocks for part in block for i in part}
        people = len({tokens[i].speaker for i in used})
        if people < needed:
            few = f"{people} speakers are too few for an interval; it needs"
            results[kind] = {"gap": f"{few} {needed}."}
            continue
        cells, errors = score_blocks(tokens, blocks, distance)
        value, interval = average(cells, errors)
        counts = {"cells": len(errors), "tokens": len(used), "speakers": people}
        counts["triphones"] = bool(tokens[0].context)
        results[kind] = {"value": value, "interval": [*interval], **counts}
    return results


def encode_tokens(encoder, description, tokens, places, seed=0, device="cpu"):
    """Encodes the utterances of tokens: means, and samples where there are any.

    Arguments
    ---------
    encoder, description : Encoder, dict
        From `load_encoder`.
    tokens : list of Token
        From `read_tokens`.
    places : (str, str, str)
        Of the manifest, what is its `$data_root`, and of a folder that holds
        the activations until all are used.
    seed, device : int, str
        Of the samples; of the encoder.

    Yields
    ------
    layer, codes, features : (str, str, dict of str to torch.Tensor)
        "means", or "samples" of the posteriors; see `abx`.
    """
    only = sorted({token.utterance for token in tokens})
    how = {"rows": LABELS, "log_var": True, "device": device, "only": only}
    store = encode_manifest(encoder, description, *places, **how)
    for layer in store.layers:
        codes = {"means": store[layer][:].to(device)}
        if layer + LOG_VAR in store.arrays:
            log_var = store[layer + LOG_VAR][:].to(device)
            noise = keyed_generator(seed, "abx samples", layer, device=device)
            latent = Latent(codes["means"], log_var, None, None)
            codes["samples"] = latent.draw(noise)
        counts = np.bincount(store[layer].utterance).tolist()
        for name, x in codes.items():
            rows = zip(store.ids, x.split(counts), strict=True)
            yield layer, name, dict(rows)
    shutil.rmtree(store.folder)


def measure_abx(
    encoder, description, tokens, places, limits, seed=0, device="cpu"
):
    """Measures every layer of an encoder; see `encode_tokens`.

    `limits` are `group` and `speakers` of `draw_blocks`. Returns layer ->
    "means", and "samples" of a posterior -> what `abx` returns.
    """
    results, how = {}, (encoder, description, tokens, places, seed)
    for layer, codes, features in encode_tokens(*how, device):
        found = abx(features, tokens, *limits, seed)
        results.setdefault(layer, {})[codes] = found
    return results


def measure_systems(
    systems, manifest, data_folder, asked, limits, seed=0, device="cpu"
):
    """Measures the first encoder of each system, or reads what was measured.

    Arguments
    ---------
    systems : dict of str to (str, str)
        Folder of its results, and encoder.
    manifest, data_folder : str
        Of the recordings.
    asked, limits : tuple of str, str, int, and of int, int
        `label`, `context` and `count` of `read_tokens`; `group` and `speakers`
        of `draw_blocks`.
    seed, device : int, str
        Of all draws; of the encoders.

    Returns
    -------
    dict
        System -> what `measure_abx` returns; or one gap, if the corpus has no
        phones or no speakers.
    """
    try:
        tokens, results = read_tokens(manifest, *asked, seed), {}
    except Unmeasurable as error:
        return {"ABX": {"of phones": {"gap": str(error)}}}
    made_of = {"manifest": manifest_hash(manifest, data_folder)}
    made_of |= {"selection": [*asked, seed], "limits": limits}
    made_of["versions"] = versions()
    for name, (folder, source) in systems.items():
        print(f"\n=== {name}: {ABX.key}", flush=True)
        encoder, about = load_encoder(source)
        made_of["encoder"] = about["sha256"], about["arguments"]
        places = manifest, data_folder, f"{folder}/activations/abx"
        what = encoder, about, tokens, places, limits, seed
        measure = partial(measure_abx, *what, device=device)
        results[name] = cached_result(f"{folder}/abx.json", made_of, measure)
    return results


class ABX(Tool):
    """Section of the ABX errors, which the study measures of every system."""

    key = "abx"
    title = "How phones lie apart"
    sentence = "Lower is better: 0 % is perfect, 50 % is chance."
    inside = False

    def items(self, found, study):
        """Returns the table of means and samples, and a gap for each reason."""
        rows, gaps, counted = [], {}, {}
        for name, _, _, numbers in found.rows():
            rows.append({"": name})
            for codes, kind in product(("means", "samples"), KINDS):
                score = numbers.get(codes, {}).get(kind)
                if score and "gap" in score:
                    gaps[kind] = Gap(f"{kind} speakers", score["gap"])
                elif score:
                    counted[kind] = score
                text = cell(score, 100, 1) if score else ""
                rows[-1][f"{kind} speakers, {codes}"] = text
        whole = any(n["triphones"] for n in counted.values())
        of = "; ".join(
            f"{kind} speakers {n['cells']} cells, {n['tokens']} tokens of "
            f"{n['speakers']} speakers"
            for kind, n in counted.items()
        )
        caption = (
            "How often, in percent, a token is nearer to one of another phone "
            "than to one of its own: "
            f"{'triphones in the same' if whole else 'phones in any'} context, "
            "frames each 10 ms, as they are, by angle, along the best "
            "alignment. Of all systems alike: "
            f"{of}. Means of posteriors, and samples of the layer itself. 95 % "
            "intervals over speakers, for this encoder and these sentences."
        )
        table = Table.of("ABX error", caption, rows)
        return [table] * bool(rows) + [*gaps.values()]

    def section(self, results, study):
        """Returns the section, which belongs to no single system."""
        section = super().section(results, study)
        items = [item._replace(system=None) for item in section.items]
        return section._replace(items=items)
