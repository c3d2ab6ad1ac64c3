"""Features of a frozen front end, computed once and kept on disk."""

import json
import os
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torchaudio
from speechbrain.dataio.dataloader import make_dataloader
from torch import nn
from tqdm import tqdm

from speechbrain_sim.checkpoints import load_encoder, sha256, write_json
from speechbrain_sim.data.audio import SAMPLE_RATE
from speechbrain_sim.data.pipeline import make_dataset
from speechbrain_sim.encoders import (
    Latent,
    absolute_lengths,
    masked_mean,
    valid_frames,
)
from speechbrain_sim.probes import frames_of_labels

LOGMEL = "logmel"


class LogMel(nn.Module):
    """Log-mel spectrogram with the interface of an encoder: the baseline.

    Natural logarithm of 80 mel energies, 25 ms windows every 10 ms, zeros
    beyond the edges.

    Example
    -------
    >>> LogMel()(torch.randn(2, 10240))["logmel"].mean.shape
    torch.Size([2, 65, 80])
    """

    layer_names = [LOGMEL]
    config = {"n_fft": 400, "hop_length": 160, "n_mels": 80}

    def __init__(self):
        super().__init__()
        self.mel = torchaudio.transforms.MelSpectrogram(
            SAMPLE_RATE, pad_mode="constant", **self.config
        )

    def frame_geometry(self, layer):
        """Frame i is centred at sample 160 i; see `GreedyEncoder`."""
        return self.config["hop_length"], 0.0

    def forward(self, wavs, wav_lens=None, layers=None, sample=None):
        """Computes the spectrogram; see `GreedyEncoder.forward`."""
        if layers is not None and list(layers) != [LOGMEL]:
            raise ValueError(f"There is no layer {layers}, only {LOGMEL}.")
        lengths = absolute_lengths(wavs, wav_lens)
        wavs = wavs.masked_fill(~valid_frames(lengths, wavs.shape[1]), 0)
        mel = torch.log(self.mel(wavs) + 1e-6).transpose(1, 2)
        frames = 1 + lengths // self.config["hop_length"]
        mel = mel.masked_fill(~valid_frames(frames, mel.shape[1])[..., None], 0)
        return {LOGMEL: Latent(mel, None, mel, frames, False)}


def load_front_end(source):
    """Loads what features are taken from.

    Arguments
    ---------
    source : str
        The folder `encoder` of a pretraining run, or "logmel".

    Returns
    -------
    front_end, description : (nn.Module, dict)
        Frozen, in eval mode; what it is, for the results.
    """
    if source == LOGMEL:
        front_end, description = LogMel(), {"model": LOGMEL, "sha256": LOGMEL}
    else:
        front_end, description = load_encoder(source)
    return front_end.eval().requires_grad_(False), description


class Features(NamedTuple):
    """Examples for a probe.

    Arguments
    ---------
    x : numpy.ndarray
        (examples, channels), float32.
    y : numpy.ndarray
        Class of each example, int64.
    utterance : numpy.ndarray
        Index into `ids` of each example, int64.
    ids : list of str
        What is resampled for an interval: utterances, or, where the manifest
        has a column `recording`, the recordings they were cut from.
    """

    x: np.ndarray
    y: np.ndarray
    utterance: np.ndarray
    ids: list


def compute_features(
    front_end,
    description,
    manifest,
    data_folder,
    label,
    classes,
    layers,
    folder,
    batch_size=8,
    device="cpu",
):
    """Encodes a manifest once, or finds that it was done.

    Utterance labels: one example each, the mean over time. Phones: one example
    per label, the frame whose centre is nearest. Always means of posteriors.

    Arguments
    ---------
    front_end, description : nn.Module, dict
        From `load_front_end`.
    manifest, data_folder : str
        A csv from `speechbrain_sim.data`, and its `$data_root`.
    label : str
        A column of the manifest.
    classes : list of str
        The classes, from `speechbrain_sim.data.pipeline.classes_of`.
    layers : list of str
        Layers to keep.
    folder : str or Path
        The cache: `<layer>.npy`, `labels.npz` and, last, `features.json`.
    batch_size : int
        Utterances encoded at once; they are sorted by length.
    device : str
        Where.

    Returns
    -------
    dict of str to Features

    Raises
    ------
    ValueError
        If a label is not among the classes, or no utterance has a label.
    """
    folder = Path(folder)
    made_of = {
        "front_end": description["sha256"],
        "manifest": sha256(manifest),
        "label": label,
        "classes": list(classes),
        "sampled": False,
    }
    done = folder / "features.json"
    known = json.loads(done.read_text()) if done.exists() else {}
    if {**known, "layers": None} != {**made_of, "layers": None} or (
        not set(layers) <= set(known["layers"])
    ):
        folder.mkdir(parents=True, exist_ok=True)
        done.unlink(missing_ok=True)
        dataset = make_dataset(
            manifest, data_folder, label=label, classes=classes
        )
        _encode(front_end, dataset, label, layers, folder, batch_size, device)
        write_json(done, {**made_of, "layers": list(layers)})
    labels = np.load(folder / "labels.npz")
    return {
        layer: Features(
            np.load(folder / f"{layer}.npy", mmap_mode="r"),
            labels["y"],
            labels["utterance"],
            labels["ids"].tolist(),
        )
        for layer in layers
    }


def _encode(front_end, dataset, label, layers, folder, batch_size, device):
    front_end = front_end.to(device)
    x, y, utterance, ids = {layer: [] for layer in layers}, [], [], {}
    loader = make_dataloader(
        dataset.filtered_sorted(sort_key="duration"), batch_size=batch_size
    )
    for batch in tqdm(loader, desc="encoding", unit="batch"):
        wavs, wav_lens = batch.sig
        with torch.no_grad():
            latents = front_end(
                wavs.to(device), wav_lens.to(device), layers, sample=False
            )
        targets, lens = batch.target
        counts = absolute_lengths(targets, lens)
        if label != "phones":
            for layer, latent in latents.items():
                x[layer].append(masked_mean(latent.mean, latent.lengths).cpu())
        for row, count in enumerate(counts.tolist()):
            if label == "phones":
                for layer, latent in latents.items():
                    hop, center = front_end.frame_geometry(layer)
                    frames = frames_of_labels(count, hop, center)
                    last = int(latent.lengths[row]) - 1
                    frames = frames.clamp(max=last).to(device)
                    x[layer].append(latent.mean[row, frames].cpu())
            y.append(targets[row, :count])
            item = batch.id[row]
            name = dataset.data[item].get("recording", item)
            number = ids.setdefault(name, len(ids))
            utterance.append(torch.full((count,), number))
    for layer in layers:
        partial = folder / f"{layer}.part.npy"
        np.save(partial, torch.cat(x[layer]).numpy())
        os.replace(partial, folder / f"{layer}.npy")
    np.savez(
        folder / "labels.npz",
        y=torch.cat(y).numpy(),
        utterance=torch.cat(utterance).numpy(),
        ids=np.array(list(ids)),
    )
