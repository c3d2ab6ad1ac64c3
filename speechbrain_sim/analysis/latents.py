"""Test recordings of one length, and their latents in each layer."""

from typing import NamedTuple

import numpy as np
import torch
from speechbrain.utils.logger import get_logger
from tqdm import tqdm

from speechbrain_sim.data.batches import KeyedCrop, make_dataset
from speechbrain_sim.data.labels import frames_of_labels
from speechbrain_sim.encoders.base import Latent
from speechbrain_sim.randomness import keyed_generator

logger = get_logger(__name__)


class Clips(NamedTuple):
    """Recordings that are analysed.

    Arguments
    ---------
    ids : list of str
        Their names.
    wavs : torch.Tensor
        (clips, samples) at 16 kHz.
    walk : (int, int)
        The two clips between which the report interpolates.
    """

    ids: list
    wavs: torch.Tensor
    walk: tuple


def read_clips(manifest, data_folder, samples, clips=200, walk=None, seed=0):
    """Reads the beginning of some recordings.

    Arguments
    ---------
    manifest, data_folder : str
        A csv from `speechbrain_sim.data`, and its `$data_root`.
    samples : int
        Length of all clips at 16 kHz; shorter recordings are left out.
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
    dataset = make_dataset(manifest, data_folder, KeyedCrop(samples))
    long = [
        item
        for item in dataset.data_ids
        if int(dataset.data[item]["num_samples"]) >= samples
    ]
    if len(long) < 3:
        raise ValueError(
            f"{manifest} has {len(long)} recordings of {samples} samples or "
            f"more; an analysis needs three. Lower --clip_samples."
        )
    if len(long) < clips:
        logger.warning(
            f"{manifest} has {len(long)} recordings of {samples} samples, "
            f"fewer than the {clips} asked for; "
            f"{len(dataset.data_ids) - len(long)} are shorter."
        )
    ends = long[:2] if walk is None else _ends(long, walk)
    others = [item for item in long if item not in ends]
    generator = keyed_generator(seed, "clips")
    order = torch.randperm(len(others), generator=generator)
    drawn = {others[i] for i in order[: max(1, clips - 2)].tolist()}
    dataset.data_ids = [i for i in long if i in drawn or i in ends]
    wavs = torch.stack([item["sig"] for item in dataset])
    at = tuple(dataset.data_ids.index(end) for end in ends)
    return Clips(dataset.data_ids, wavs, at)


def _ends(names, walk):
    """Finds two different recordings whose names begin as asked."""
    if len(walk) != 2:
        raise ValueError(f"--walk names {len(walk)} clips; it takes two.")
    ends = []
    for beginning in map(str, walk):
        fit = [n for n in names if n.startswith(beginning) and n not in ends]
        if not fit:
            raise ValueError(
                f"No further clip's name begins with '{beginning}' (--walk); "
                f"they are {', '.join(names[:5])}, ..."
            )
        ends.append(fit[0])
    return ends


@torch.no_grad()
def encode_clips(encoder, wavs, layers, batch_size=8):
    """Encodes clips; means travel upwards.

    Arguments
    ---------
    encoder : Encoder
        From `speechbrain_sim.models.load.load_encoder`.
    wavs : torch.Tensor
        (clips, samples).
    layers : list of str
        The layers to keep.
    batch_size : int
        Clips at once.

    Returns
    -------
    dict of str to Latent
        On the clips' device; `sample` is the mean.
    """
    parts = [
        encoder(part, layers=layers, sample=False)
        for part in wavs.split(batch_size)
    ]
    return {
        layer: Latent.stack([part[layer] for part in parts]) for layer in layers
    }


class Codes(NamedTuple):
    """Examples whose factors are known.

    Arguments
    ---------
    x : dict of str to numpy.ndarray
        Code of each layer, (examples, dimensions), float32.
    factors : dict of str to numpy.ndarray
        Value of each factor, (examples,): names, or floats.
    utterance : numpy.ndarray
        Index of each example's recording, (examples,).
    """

    x: dict
    factors: dict
    utterance: np.ndarray


def segment_codes(encoder, manifest, data_folder, layers, factors_of, segments):
    """One example per recording: means of its first, second, ... part.

    Arguments
    ---------
    encoder, layers :
        See `encode_clips`.
    manifest, data_folder : str
        See `read_clips`.
    factors_of : callable
        Row of the manifest -> dict of factors.
    segments : int
        Into how many equal parts each recording is divided; the code is their
        means side by side.

    Returns
    -------
    Codes
    """
    x, rows = {layer: [] for layer in layers}, []
    for row, latents in _encode_rows(encoder, manifest, data_folder, layers):
        for layer, latent in latents.items():
            parts = torch.tensor_split(latent.mean[0], segments)
            x[layer].append(torch.cat([part.mean(0) for part in parts]))
        rows.append(factors_of(row))
    return _codes(x, rows, np.arange(len(rows)))


def frame_codes(encoder, manifest, data_folder, layers, factors_of):
    """Ten examples per recording: frames whose phone is known.

    Arguments
    ---------
    encoder, manifest, data_folder, layers, factors_of :
        See `segment_codes`; the manifest has a column `phones`.

    Returns
    -------
    Codes
        With the further factor `phone`.
    """
    x, rows, utterance = {layer: [] for layer in layers}, [], []
    encoded = _encode_rows(encoder, manifest, data_folder, layers)
    for at, (row, latents) in enumerate(encoded):
        phones = row["phones"].split()
        generator = keyed_generator(0, row["ID"], "frames")
        drawn = torch.randperm(len(phones), generator=generator)[:10]
        for layer, latent in latents.items():
            geometry = encoder.frame_geometry(layer)
            frames = frames_of_labels(len(phones), *geometry)[drawn]
            frames = frames.clamp(max=int(latent.lengths[0]) - 1)
            x[layer] += latent.mean[0, frames.to(latent.mean.device)]
        rows += [{**factors_of(row), "phone": phones[i]} for i in drawn]
        utterance += [at] * len(drawn)
    return _codes(x, rows, np.array(utterance))


@torch.no_grad()
def _encode_rows(encoder, manifest, data_folder, layers):
    dataset = make_dataset(manifest, data_folder)
    device = next(encoder.parameters()).device
    for item in tqdm(dataset, desc="codes", unit="recording", disable=None):
        row = {"ID": item["id"], **dataset.data[item["id"]]}
        wavs = item["sig"][None].to(device)
        yield row, encoder(wavs, layers=layers, sample=False)


def _codes(x, rows, utterance):
    return Codes(
        {layer: torch.stack(codes).cpu().numpy() for layer, codes in x.items()},
        {name: np.array([row[name] for row in rows]) for name in rows[0]},
        utterance,
    )
