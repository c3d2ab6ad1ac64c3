"""features."""

import os
from pathlib import Path

import numpy as np
from speechbrain.utils.logger import get_logger
from tqdm import tqdm

from speechbrain_sim.data.audio import (
    SAMPLE_RATE,
    BadAudio,
    audio_info,
    read_audio,
)

logger = get_logger(__name__)


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
    samples = audio_info(path).num_samples
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
    >>> from speechbrain_sim.encoders.greedy import GreedyEncoder
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
    >>> from speechbrain_sim.encoders.greedy import GreedyEncoder
    >>> path = getfixture("tmp_path") / "noise.wav"
    >>> soundfile.write(path, np.random.randn(16000) / 10, 16000)
    >>> encoder = GreedyEncoder(channels=4, context_channels=2).eval()
    >>> encode_file(encoder, path, path.parent)["context"].shape
    (100, 2)
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    samples = audio_info(path).num_samples
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
