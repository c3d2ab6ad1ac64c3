"""Long files, piece by piece."""

import numpy as np
import pytest
import soundfile
import torch

from speechbrain_sim.data.audio import AudioFile, BadAudio, read_audio
from speechbrain_sim.encoders.greedy import GreedyEncoder
from speechbrain_sim.features import encode_file, stream_file


@pytest.fixture
def encoder():
    torch.manual_seed(0)
    return GreedyEncoder(channels=12, context_channels=6).eval()


def write_noise(path, seconds, rate=16000, channels=1):
    generator = np.random.default_rng(0)
    noise = 0.1 * generator.standard_normal((round(seconds * rate), channels))
    soundfile.write(path, noise, rate)
    return path


@pytest.mark.parametrize("rate, channels", [(16000, 1), (44100, 2), (8000, 1)])
@pytest.mark.parametrize("chunk_seconds", [0.013, 0.5, 60])
def test_a_streamed_file_is_the_whole_file(
    tmp_path, encoder, rate, channels, chunk_seconds
):
    path = write_noise(tmp_path / "a.wav", 2.3, rate, channels)
    with torch.no_grad():
        whole = encoder(read_audio(path)[None])
    arrays = encode_file(
        encoder, path, tmp_path / "out", chunk_seconds=chunk_seconds
    )
    assert list(arrays) == encoder.layer_names
    for name, array in arrays.items():
        assert isinstance(array, np.memmap) and array.dtype == np.float32
        np.testing.assert_allclose(
            array, whole[name].mean[0].numpy(), atol=1e-5
        )
    assert not list((tmp_path / "out").glob("*.part.npy"))


def test_only_the_layers_asked_for(tmp_path, encoder):
    path = write_noise(tmp_path / "a.wav", 1)
    arrays = encode_file(encoder, path, tmp_path / "out", ["module2"])
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["module2.npy"]
    assert arrays["module2"].shape == (
        encoder.output_lengths(16000, "module2"),
        12,
    )


def test_a_file_too_short_is_named(tmp_path, encoder):
    path = write_noise(tmp_path / "blip.wav", 0.00125)
    with pytest.raises(BadAudio, match="blip.wav: 20 samples are too few"):
        list(stream_file(encoder, path))
    with pytest.raises(BadAudio, match="missing.wav: The file is missing"):
        encode_file(encoder, tmp_path / "missing.wav", tmp_path / "out")


def test_a_run_that_was_stopped_leaves_no_finished_array(
    tmp_path, encoder, monkeypatch
):
    path = write_noise(tmp_path / "a.wav", 3)
    calls, read = [], AudioFile.samples

    def stops(*args):
        calls.append(args)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return read(*args)

    monkeypatch.setattr(AudioFile, "samples", stops)
    with pytest.raises(KeyboardInterrupt):
        encode_file(encoder, path, tmp_path / "out", chunk_seconds=0.5)
    assert not (tmp_path / "out" / "context.npy").exists()


def test_gradients_are_not_kept(tmp_path, encoder):
    path = write_noise(tmp_path / "a.wav", 1)
    for means in stream_file(encoder, path, ["context"], 0.3):
        assert not means["context"].requires_grad
