"""Test recordings of one length, and their latents in each layer."""

from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from speechbrain.utils.logger import get_logger

from speechbrain_sim.console import Bar
from speechbrain_sim.data.batches import KeyedCrop, make_dataset
from speechbrain_sim.data.labels import frames_of_labels
from speechbrain_sim.encoders.base import Latent, check_finite
from speechbrain_sim.randomness import keyed_generator

logger = get_logger(__name__)


#: columns of manifests with what is said
SAID = "transcript", "text", "wrd", "words", "word", "syllable", "digit"


class Clips(NamedTuple):
    """Recordings that are analysed.

    Their `ids` and `wavs`, (clips, samples) at 16 kHz; `walk`, indices of the
    two between which the report interpolates; `rows` of their manifest, by id.
    """

    ids: list
    wavs: torch.Tensor
    walk: tuple
    rows: dict = {}

    def name(self, index, longest=28):
        """Returns what is said in a recording, and by whom, or else its id.

        Example
        -------
        >>> row = {"transcript": "A  B C", "speaker": "7", "sex": "F"}
        >>> Clips(["7-1"], torch.zeros(1, 9), (0, 0), {"7-1": row}).name(0, 4)
        '“a b…” (speaker 7, F)'
        """
        row = self.rows.get(self.ids[index], {})
        said = " ".join(next(filter(None, map(row.get, SAID)), "").split())
        said = said.lower() if said.isupper() else said
        if len(said) > longest:
            said = f"{said[: longest - 1].rstrip()}…"
        said = f"“{said}”" if said else self.ids[index]
        who = row.get("speaker") or row.get("spk_id")
        who = filter(None, (who and f"speaker {who}", row.get("sex")))
        return f"{said} ({', '.join(who)})".removesuffix(" ()")


def read_clips(manifest, data_folder, samples, clips=200, walk=None, seed=0):
    """Reads the beginning of some recordings.

    Arguments
    ---------
    manifest, data_folder : str
        A csv from `speechbrain_sim.data`, and its `$data_root`.
    samples : int
        Length of all clips at 16 kHz; shorter recordings are left out. If fewer
        than three have it, that of half of the recordings, with a warning.
    clips : int
        How many are wanted; if there are more, they are drawn.
    walk : (str, str), optional
        How the names of two recordings begin that are always among them; by
        default the first two.
    seed : int
        Of the draw.

    Returns
    -------
    Clips
        As many as there are, in the manifest's order; fewer than wanted are
        logged as a warning.

    Raises
    ------
    ValueError
        If there are fewer than three, or not two different ones to walk
        between.
    """
    dataset = make_dataset(manifest, data_folder, crop := KeyedCrop(samples))
    names, rows = dataset.data_ids, dataset.data
    length = {n: rows[n]["num_samples"] for n in names}
    if len(names) < 3:
        raise ValueError(
            f"{manifest} has {len(names)} recordings; an analysis needs 3."
        )
    if sorted(length.values())[-3] < samples:
        half = sorted(length.values())[-max(3, len(names) // 2)]
        most = f"{manifest}: most recordings are shorter than --clip_samples"
        logger.warning(f"{most} {samples}; clips have {half} samples instead.")
        crop.samples = samples = half
    long = [n for n in names if length[n] >= samples]
    found = f"{manifest} has {len(long)} recordings of {samples} samples"
    if len(long) < clips:
        shorter = f"{len(names) - len(long)} are shorter"
        logger.warning(f"{found}, fewer than the {clips} asked for; {shorter}.")
    ends = long[:2] if walk is None else _ends(long, walk)
    others = [item for item in long if item not in ends]
    generator = keyed_generator(seed, "clips")
    order = torch.randperm(len(others), generator=generator)
    drawn = {others[i] for i in order[: max(1, clips - 2)].tolist()}
    dataset.data_ids = [i for i in long if i in drawn or i in ends]
    wavs = torch.stack([item["sig"] for item in dataset])
    at = tuple(dataset.data_ids.index(end) for end in ends)
    return Clips(dataset.data_ids, wavs, at, rows)


def _ends(names, walk):
    """Finds two different recordings whose names begin as asked."""
    if len(walk) != 2:
        raise ValueError(f"--walk names {len(walk)} clips; it takes two.")
    ends = []
    for beginning in map(str, walk):
        fit = [n for n in names if n.startswith(beginning) and n not in ends]
        if not fit:
            begins = f"begins with '{beginning}' (--walk)"
            some = ", ".join(names[:5])
            raise ValueError(f"No further clip's name {begins}: {some}, ...")
        ends.append(fit[0])
    return ends


@torch.no_grad()
def encode_clips(encoder, wavs, layers, batch_size=8):
    """Encodes clips, (clips, samples); means travel upwards.

    Returns the `Latent` of each of the layers, on the clips' device, whose
    `sample` is the mean.
    """
    encode = partial(encoder, layers=layers, sample=False)
    parts = [encode(part) for part in wavs.split(batch_size)]
    latents = {n: Latent.stack([part[n] for part in parts]) for n in layers}
    names = [f"clip {number}" for number in range(1, len(wavs) + 1)]
    check_finite(latents, names)
    return latents


class Codes(NamedTuple):
    """Examples whose factors are known.

    Of each layer `x`, (examples, dimensions), float32; values of each of the
    `factors`, names or floats, and index of the `utterance`, (examples,).
    """

    x: dict
    factors: dict
    utterance: np.ndarray


@torch.no_grad()
def read_codes(encoder, layers, manifest, factors):
    """Encodes the recordings of a manifest whose factors are known.

    Arguments
    ---------
    encoder, layers :
        See `encode_clips`.
    manifest : str
        A csv from `speechbrain_sim.data`.
    factors : Factors
        With `segments`, an example is a recording: the means of its equal
        parts, side by side. Else ten frames of each recording are, with a
        further factor, their `label`.

    Returns
    -------
    Codes
    """
    x, rows, utterance = {layer: [] for layer in layers}, [], []
    dataset = make_dataset(manifest, factors.data_folder)
    segments, label = factors.segments, factors.label
    device = encoder.device
    items = Bar(dataset, desc="codes", unit="recording", disable=None)
    for at, item in enumerate(items):
        row = {"ID": item["id"], **dataset.data[item["id"]]}
        wavs, found = item["sig"][None].to(device), [factors.of(row)]
        latents = encoder(wavs, layers=layers, sample=False)
        check_finite(latents, [item["id"]])
        if segments:
            for layer, latent in latents.items():
                parts = torch.tensor_split(latent.mean[0], segments)
                x[layer].append(torch.cat([part.mean(0) for part in parts]))
        else:
            labels = row[label].split()
            generator = keyed_generator(0, row["ID"], "frames")
            drawn = torch.randperm(len(labels), generator=generator)[:10]
            for layer, latent in latents.items():
                geometry = encoder.frame_geometry(layer)
                frames = frames_of_labels(len(labels), *geometry)[drawn]
                frames = frames.clamp(max=int(latent.lengths[0]) - 1)
                x[layer] += latent.mean[0, frames.to(device)]
            found = [{**found[0], label: labels[i]} for i in drawn]
        rows += found
        utterance += [at] * len(found)
    return Codes(
        {layer: torch.stack(codes).cpu().numpy() for layer, codes in x.items()},
        {name: np.array([row[name] for row in rows]) for name in rows[0]},
        np.array(utterance),
    )
