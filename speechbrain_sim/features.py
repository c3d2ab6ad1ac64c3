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

from speechbrain_sim.checkpoints import (
    ENCODER,
    load_encoder,
    sha256,
    write_json,
)
from speechbrain_sim.data.audio import (
    SAMPLE_RATE,
    BadAudio,
    inspect_audio,
    read_audio,
)
from speechbrain_sim.data.pipeline import make_dataset
from speechbrain_sim.encoders import (
    Latent,
    absolute_lengths,
    masked_mean,
    valid_frames,
)
from speechbrain_sim.hidden_states import (
    MODEL_TYPES,
    load_hidden_states,
    model_type,
)
from speechbrain_sim.model_folder import MODEL_TYPE, load_parts
from speechbrain_sim.probes import frames_of_labels
from speechbrain_sim.sources import HUB, open_source

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
        The folder `encoder` of a pretraining run, a model folder that
        `speechbrain-sim export` wrote, or its name on the Hub as
        `hf://user/model`; the folder of a Hugging Face model (see
        `load_hidden_states`); or "logmel".

    Returns
    -------
    front_end, description : (nn.Module, dict)
        Frozen, in eval mode; what it is, for the results.

    Raises
    ------
    FileNotFoundError
        If the folder holds neither.
    """
    source = str(source)
    if source == LOGMEL:
        front_end, description = LogMel(), {"model": LOGMEL, "sha256": LOGMEL}
    elif source.startswith(HUB) or model_type(source) == MODEL_TYPE:
        parts, config = load_parts(open_source(source))
        front_end, about = parts[ENCODER], config["encoder"]
        description = {
            **config["training"],
            "architecture": about["architecture"],
            "layers": about["layers"],
            "sha256": about["checkpoint_sha256"],  # what decoders refer to
        }
    elif model_type(source) in MODEL_TYPES:
        front_end, description = load_hidden_states(source)
    else:
        try:
            front_end, description = load_encoder(source)
        except FileNotFoundError as error:
            raise FileNotFoundError(
                f"{error} Or give the folder of a Hugging Face model, whose "
                f"config.json has the model_type wav2vec2, hubert or wavlm."
            ) from error
    return front_end.eval().requires_grad_(False), description


def read_chunks(encoder, path, layers=None, chunk_seconds=10.0):
    """Reads a file of any length for `encoder.stream`.

    Arguments
    ---------
    encoder, path, layers, chunk_seconds :
        See `stream_file`.

    Returns
    -------
    iterator of torch.Tensor
        (1, samples) at 16 kHz, on the encoder's device.

    Raises
    ------
    BadAudio
        If the file cannot be read, or is too short for a frame.
    """
    samples = inspect_audio(path, check_content=False).num_samples
    top = list(encoder.layers_up_to(layers))[-1]
    if encoder.output_lengths(samples, top) < 1:
        raise BadAudio(path, f"{samples} samples are too few for a frame.")
    device = next(encoder.parameters()).device
    step = max(1, round(chunk_seconds * SAMPLE_RATE))
    return (
        read_audio(path, start, start + step)[None].to(device)
        for start in range(0, samples, step)
    )


def stream_file(encoder, path, layers=None, chunk_seconds=10.0):
    """Encodes a file of any length in bounded memory.

    Arguments
    ---------
    encoder : GreedyEncoder
        In eval mode.
    path : str or Path
        Any audio file that `speechbrain_sim.data.audio.read_audio` reads.
    layers : list of str, optional
        All by default.
    chunk_seconds : float
        How much is read at a time; the result does not depend on it.

    Yields
    ------
    dict of str to torch.Tensor
        The next means of each layer, (frames, channels); there may be none.

    Raises
    ------
    BadAudio
        If the file cannot be read, or is too short for a frame.

    Example
    -------
    >>> import soundfile
    >>> from speechbrain_sim.encoders import GreedyEncoder
    >>> path = getfixture("tmp_path") / "noise.wav"
    >>> soundfile.write(path, np.random.randn(16000) / 10, 16000)
    >>> encoder = GreedyEncoder(channels=4, context_channels=2).eval()
    >>> [len(z["module3"]) for z in stream_file(encoder, path, None, 0.4)]
    [39, 40, 21]
    """
    chunks = read_chunks(encoder, path, layers, chunk_seconds)
    for latents in encoder.stream(chunks, layers):
        yield {name: latent.mean[0] for name, latent in latents.items()}


def encode_file(encoder, path, folder, layers=None, chunk_seconds=10.0):
    """Encodes a file of any length into memory-mapped arrays.

    Arguments
    ---------
    encoder, path, layers, chunk_seconds :
        See `stream_file`.
    folder : str or Path
        Where `<layer>.npy` are written.

    Returns
    -------
    dict of str to numpy.memmap
        Means of each layer, (frames, channels), float32.

    Example
    -------
    >>> import soundfile
    >>> from speechbrain_sim.encoders import GreedyEncoder
    >>> path = getfixture("tmp_path") / "noise.wav"
    >>> soundfile.write(path, np.random.randn(16000) / 10, 16000)
    >>> encoder = GreedyEncoder(channels=4, context_channels=2).eval()
    >>> encode_file(encoder, path, path.parent)["context"].shape
    (100, 2)
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    samples = inspect_audio(path, check_content=False).num_samples
    arrays, done = {}, {}
    pieces = stream_file(encoder, path, layers, chunk_seconds)
    for piece in tqdm(pieces, desc=Path(path).name, unit="chunk"):
        for layer, x in piece.items():
            if layer not in arrays:
                frames = encoder.output_lengths(samples, layer)
                arrays[layer] = np.lib.format.open_memmap(
                    folder / f"{layer}.part.npy",
                    mode="w+",
                    dtype=np.float32,
                    shape=(frames, x.shape[1]),
                )
                done[layer] = 0
            arrays[layer][done[layer] : done[layer] + len(x)] = x.cpu().numpy()
            done[layer] += len(x)
    for layer, array in arrays.items():
        if done[layer] < len(array):
            raise BadAudio(
                path,
                f"It ends early: {done[layer]} of {len(array)} frames of "
                f"{layer} could be encoded.",
            )
        array.flush()
        os.replace(folder / f"{layer}.part.npy", folder / f"{layer}.npy")
    return {
        layer: np.load(folder / f"{layer}.npy", mmap_mode="r")
        for layer in arrays
    }


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
    return read_features(folder, layers)


def read_features(folder, layers):
    """Opens what `compute_features` left in its cache.

    Arguments
    ---------
    folder, layers :
        See `compute_features`.

    Returns
    -------
    dict of str to Features
    """
    labels = np.load(Path(folder, "labels.npz"))
    return {
        layer: Features(
            np.load(Path(folder, f"{layer}.npy"), mmap_mode="r"),
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
