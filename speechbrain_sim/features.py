"""Latents of files of any length, in bounded memory.

Encoders that stream read a file piece by piece; others (transformers, log-mel)
read it in one piece.
"""

import json
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import torch

from speechbrain_sim.console import Bar
from speechbrain_sim.data.audio import (
    SAMPLE_RATE,
    AudioFile,
    BadAudio,
    audio_info,
)
from speechbrain_sim.encoders.base import Latent, check_finite
from speechbrain_sim.files import allocate, atomic

#: seconds of audio that are read at a time
CHUNK_SECONDS = 10.0


def check_file(encoder, path, layers=None):
    """Returns the samples of a file at 16 kHz, undecoded.

    Raises BadAudio if it cannot be read, or is too short for a frame of
    `layers` of `encoder` (all by default).
    """
    samples = audio_info(path).num_samples
    for layer in encoder.layer_names if layers is None else layers:
        if encoder.output_lengths(samples, layer) < 1:
            few = f"{samples} samples are too few for a frame."
            raise BadAudio(path, few)
    return samples


@torch.no_grad()
def stream_latents(
    encoder, path, layers=None, chunk_seconds=CHUNK_SECONDS, *args, **options
):
    """Encodes a file piece by piece, as `stream_file`, into dicts of Latents."""
    check_file(encoder, path, layers)
    with AudioFile(path) as file:
        if encoder.streams:
            wavs = (x.to(encoder.device) for x in file.pieces(chunk_seconds))
            pieces = encoder.stream(wavs, layers, *args, **options)
        else:
            wavs = file.samples()[None].to(encoder.device)
            pieces = [encoder(wavs, None, layers, *args, **options)]
        for latents in pieces:
            check_finite(latents, [path])
            yield latents


def stream_file(
    encoder,
    path,
    layers=None,
    chunk_seconds=CHUNK_SECONDS,
    sample=None,
    generator=None,
):
    """Encodes a file of any length in bounded memory.

    Arguments
    ---------
    encoder, path : Encoder, str or Path
        In eval mode; any audio file that libsndfile reads.
    layers : list of str, optional
        All by default.
    chunk_seconds : float
        How much is read at a time; no mean depends on it.
    sample, generator : bool, torch.Generator, optional
        Draws rather than means: see `speechbrain_sim.encoders.base.Encoder`.

    Yields
    ------
    dict of str to torch.Tensor
        The next frames of each layer, (frames, channels); there may be none.
        A BadAudio if the file cannot be read, is too short for a frame, or
        holds NaN or samples far beyond 1.

    Example
    -------
    >>> import soundfile
    >>> from speechbrain_sim.encoders.greedy import GreedyEncoder
    >>> path = getfixture("tmp_path") / "noise.wav"
    >>> soundfile.write(path, np.random.randn(16000) / 10, 16000)
    >>> encoder = GreedyEncoder(channels=4, context_channels=2).eval()
    >>> [len(z["module3"]) for z in stream_file(encoder, path, None, 0.4)]
    [39, 40, 21]
    """
    options = layers, chunk_seconds, sample, generator
    for latents in stream_latents(encoder, path, *options):
        yield {name: latent.sample[0] for name, latent in latents.items()}


def encode_in_pieces(encoder, wavs, lengths, *options):
    """Encodes each utterance of a batch with `stream`; see `Encoder.encode`."""
    step, rows = round(CHUNK_SECONDS * SAMPLE_RATE), []
    for wav, end in zip(wavs, lengths.tolist(), strict=True):
        chunks = wav[None, :end].split(step, dim=1)
        rows.append(join_pieces(encoder.stream(chunks, *options)))
    return {n: Latent.pad([row[n] for row in rows]) for n in rows[0]}


def join_pieces(pieces):
    """Joins the pieces of a stream: dict of str to Latent."""
    pieces = list(pieces)
    return {name: Latent.cat([p[name] for p in pieces]) for name in pieces[0]}


def pool_latents(pieces, layers, pool=True):
    """Joins the means of a stream's pieces, or averages them over all frames.

    Returns, of each layer, (frames, channels), or (channels,): float32.
    """
    kept = {name: [] for name in layers}
    for latents in pieces:
        for name, latent in latents.items():
            x = latent.mean[0].double().cpu()  # (frames, channels)
            # with a last column of ones, whose sum counts the frames
            x = torch.nn.functional.pad(x, (0, 1), value=1.0)
            kept[name].append(x.sum(0, True) if pool else x)
    joined = {name: torch.cat(parts) for name, parts in kept.items()}
    if pool:
        joined = {n: x.sum(0) / x[:, -1].sum() for n, x in joined.items()}
    return {n: x[..., :-1].float().numpy() for n, x in joined.items()}


def encode_file(encoder, path, folder, layers=None, *args, **options):
    """Encodes a file of any length into memory-mapped arrays.

    Arguments as in `stream_file`; `<layer>.npy` are written into `folder`.
    Returns a dict of str to numpy.memmap, (frames, channels), float32.

    Example
    -------
    >>> import soundfile
    >>> from speechbrain_sim.encoders.greedy import GreedyEncoder
    >>> path = getfixture("tmp_path") / "noise.wav"
    >>> soundfile.write(path, np.random.randn(16000) / 10, 16000)
    >>> encoder = GreedyEncoder(channels=4, context_channels=2).eval()
    >>> encode_file(encoder, path, path.parent)["context"].shape
    (100, 2)
    """
    names = encoder.layer_names if layers is None else layers
    targets = {layer: Path(folder, f"{layer}.npy") for layer in names}
    write_latents(encoder, path, targets, *args, **options)
    return {n: np.load(file, mmap_mode="r") for n, file in targets.items()}


def write_latents(encoder, path, targets, *args, **options):
    """Encodes a file into files, each written as a whole or not at all.

    Arguments as in `stream_file`; `targets` holds for each layer a file that
    ends in `.npy` or `.safetensors` (of one tensor, named as the layer):
    (frames, channels), float32. Raises a BadAudio if the file is too short, or
    cannot be read as a whole.
    """
    samples = check_file(encoder, path, targets)
    frames = {n: encoder.output_lengths(samples, n) for n in targets}
    missing = dict(frames)
    pieces = stream_file(encoder, path, list(targets), *args, **options)
    with ExitStack() as stack:
        files = {}
        for layer, target in targets.items():
            partial = stack.enter_context(atomic(target))
            files[layer] = stack.enter_context(open(partial, "wb"))
            shape = (frames[layer], encoder.channels_of(layer))
            allocate(files[layer], 4 * shape[0] * shape[1])
            _write_header(files[layer], target.suffix, layer, shape)
        for piece in Bar(pieces, Path(path).name, unit="chunk", leave=False):
            for layer, x in piece.items():
                x = x.float().cpu().numpy()
                files[layer].write(x.astype("<f4").tobytes())
                missing[layer] -= len(x)
        for layer, count in missing.items():
            if count:
                ends = f"It ends {count} frames of {layer} early."
                raise BadAudio(path, ends)


def _write_header(file, suffix, layer, shape):
    """Writes what a file with one tensor of float32 begins with."""
    if suffix == ".npy":
        header = {"descr": "<f4", "fortran_order": False, "shape": shape}
        return np.lib.format.write_array_header_1_0(file, header)
    ends = [0, 4 * shape[0] * shape[1]]
    tensor = {"dtype": "F32", "shape": shape, "data_offsets": ends}
    header = json.dumps({"__metadata__": {"format": "pt"}, layer: tensor})
    header += " " * (-len(header) % 8)
    file.write(len(header).to_bytes(8, "little") + header.encode())
