"""Reading audio: slices, resampling, and every reason to refuse a file."""

import numpy as np
import pytest
import soundfile as sf
import torch

from speechbrain_sim.data.audio import (
    BadAudio,
    audio_info,
    inspect_audio,
    num_samples_at,
    read_audio,
)


def noise(frames, channels=1, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.uniform(-0.5, 0.5, (frames, channels)).astype("float32")
    return x[:, 0] if channels == 1 else x


def cut(path, keep):
    """Keep a share of a file's bytes."""
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep)])


@pytest.mark.parametrize("ending", ["wav", "flac"])
@pytest.mark.parametrize(
    "part", [(0, None), (0, 1), (777, 9001), (15999, None)]
)
def test_slice_equals_whole_at_native_rate(tmp_path, ending, part):
    path = tmp_path / f"a.{ending}"
    sf.write(path, noise(16000), 16000)
    whole = read_audio(path)
    expected, _ = sf.read(path, dtype="float32")
    assert whole.dtype == torch.float32
    assert torch.equal(whole, torch.from_numpy(expected))
    assert torch.equal(read_audio(path, *part), whole[slice(*part)])


def test_ogg_slice_is_close_to_whole(tmp_path):
    path = tmp_path / "a.ogg"
    sf.write(path, noise(16000), 16000)
    whole = read_audio(path)
    torch.testing.assert_close(read_audio(path, 5000, 6000), whole[5000:6000])


@pytest.mark.parametrize("rate", [8000, 11025, 22050, 44100, 48000])
def test_resampled_slices_and_length(tmp_path, rate):
    path = tmp_path / "a.wav"
    for frames in (1, 441, 12156, rate):
        sf.write(path, noise(frames), rate, subtype="FLOAT")
        whole = read_audio(path)
        assert len(whole) == num_samples_at(frames, rate)
        assert inspect_audio(path).num_samples == len(whole)
    rng = np.random.default_rng(1)
    for _ in range(20):
        start, stop = sorted(rng.integers(0, len(whole), 2).tolist())
        part = read_audio(path, start, stop)
        torch.testing.assert_close(part, whole[start:stop], atol=1e-6, rtol=0)


@pytest.mark.parametrize("rate", [8000, 44100])
def test_resampling_keeps_a_tone(tmp_path, rate):
    path = tmp_path / "a.wav"
    sf.write(path, np.sin(2 * np.pi * 440 * np.arange(rate) / rate), rate)
    expected = torch.sin(2 * torch.pi * 440 * torch.arange(16000) / 16000)
    found = read_audio(path)
    assert (found - expected)[200:-200].abs().max() < 2e-3


def test_only_the_wanted_part_is_read(tmp_path, monkeypatch):
    path = tmp_path / "a.wav"
    sf.write(path, noise(441000), 44100)
    read = sf.SoundFile.read
    sizes = []

    def spy(self, frames=-1, *args, **kwargs):
        sizes.append(frames)
        return read(self, frames, *args, **kwargs)

    monkeypatch.setattr(sf.SoundFile, "read", spy)
    assert len(read_audio(path, 80000, 80160)) == 160
    assert 441 <= sum(sizes) < 4000


def test_beyond_the_end_is_a_slice(tmp_path):
    for rate in (16000, 8000):
        path = tmp_path / f"{rate}.wav"
        sf.write(path, noise(rate), rate)
        assert len(read_audio(path, 15000, 99999)) == 1000
        assert len(read_audio(path, 20000, 30000)) == 0
    for part in ((-1, 5), (6, 5)):
        with pytest.raises(ValueError, match="0 <= start <= stop"):
            read_audio(path, *part)


@pytest.mark.parametrize("rate", [16000, 44100])
def test_channels_are_averaged(tmp_path, rate):
    left, right = noise(4410, seed=1), noise(4410, seed=2)
    for name, data in (
        ("stereo", np.stack([left, right], 1)),
        ("mono", (left + right) / 2),
    ):
        sf.write(tmp_path / f"{name}.wav", data, rate, subtype="FLOAT")
    torch.testing.assert_close(
        read_audio(tmp_path / "stereo.wav"), read_audio(tmp_path / "mono.wav")
    )


def test_good_file_is_described(tmp_path):
    path = tmp_path / "a.wav"
    sf.write(path, noise(22050, channels=2), 22050)
    assert inspect_audio(path, 16000) == (22050, 22050, 2, 16000)
    assert audio_info(path) == inspect_audio(path)


def test_missing_empty_and_text(tmp_path):
    path = tmp_path / "a.wav"
    for content, reason in (
        (None, "missing"),
        (b"", "empty"),
        (b"not audio at all" * 99, "no audio"),
    ):
        if content is not None:
            path.write_bytes(content)
        for function in (inspect_audio, read_audio):
            with pytest.raises(BadAudio, match=reason) as caught:
                function(path)
            assert str(path) in str(caught.value)
            assert str(path) not in caught.value.reason


def test_no_samples(tmp_path):
    path = tmp_path / "a.wav"
    sf.write(path, noise(0), 16000)
    with pytest.raises(BadAudio, match="holds no samples"):
        inspect_audio(path)


def test_too_short_says_both_numbers(tmp_path):
    path = tmp_path / "a.wav"
    sf.write(path, noise(4000), 8000)
    assert inspect_audio(path, 8000).num_samples == 8000
    with pytest.raises(
        BadAudio, match="8000 samples .* the 8001 of --min_samples"
    ):
        inspect_audio(path, 8001)


@pytest.mark.parametrize("keep", [0.02, 0.5, 0.95, 0.999])
@pytest.mark.parametrize("ending", ["wav", "flac", "ogg"])
def test_truncated(tmp_path, ending, keep):
    path = tmp_path / f"a.{ending}"
    sf.write(path, noise(48000), 16000)
    inspect_audio(path)
    cut(path, keep)
    with pytest.raises(BadAudio, match="truncated|malformed"):
        inspect_audio(path)


def test_truncated_wav_is_seen_without_decoding(tmp_path):
    path = tmp_path / "a.wav"
    sf.write(path, noise(16000), 16000)
    cut(path, 0.5)
    with pytest.raises(BadAudio, match="truncated: 16022 bytes"):
        audio_info(path)


def test_truncated_wav_with_other_chunks(tmp_path):
    path = tmp_path / "a.wav"
    sf.write(path, noise(16000), 16000)
    data = path.read_bytes()
    odd = b"note" + (3).to_bytes(4, "little") + b"abc\0"
    path.write_bytes(data[:36] + odd + data[36:])
    assert inspect_audio(path).num_samples == 16000
    path.write_bytes(data[:36] + odd + data[36:-100])
    with pytest.raises(BadAudio, match="truncated: 100 bytes"):
        inspect_audio(path)


def test_truncated_flac_is_an_error_in_reading(tmp_path):
    path = tmp_path / "a.flac"
    sf.write(path, noise(48000), 16000)
    cut(path, 0.5)
    with pytest.raises(BadAudio, match="truncated"):
        read_audio(path)


def test_a_decoder_that_stops_early_is_noticed(tmp_path, monkeypatch):
    path = tmp_path / "a.wav"
    sf.write(path, noise(16000), 16000)
    read = sf.SoundFile.read
    monkeypatch.setattr(
        sf.SoundFile, "read", lambda self, *a, **k: read(self, *a, **k)[:-1]
    )
    for function in (inspect_audio, read_audio):
        with pytest.raises(BadAudio, match="15999 of 16000 frames"):
            function(path)


#: containers that announce no length, so that nothing shows a cut; raw has no
#: header, and sds cannot be decoded by libsndfile 1.2.2
NO_LENGTH = {"IRCAM", "PAF", "PVF", "SD2", "XI", "RAW", "SDS"}
CONTAINERS = {name: None for name in sf.available_formats()}
CONTAINERS |= {"OGG": "VORBIS", "OPUS": "OPUS"}


@pytest.mark.parametrize("name", sorted(CONTAINERS.keys() - NO_LENGTH))
def test_half_a_file_of_any_container(tmp_path, name):
    path = tmp_path / f"a.{name.lower()}"
    container = "OGG" if name == "OPUS" else name
    rate = 8000 if name == "WVE" else 16000
    sf.write(path, noise(48000), rate, CONTAINERS[name], format=container)
    info = inspect_audio(path)
    assert info.num_samples == 48000 * 16000 // rate
    assert audio_info(path) == info and len(read_audio(path)) == info[3]
    cut(path, 0.5)
    with pytest.raises(BadAudio, match="truncated|no audio libsndfile reads"):
        inspect_audio(path)


@pytest.mark.parametrize("ending", ["wav", "aiff", "ogg"])
def test_a_cut_behind_long_comments(tmp_path, ending):
    """libsndfile's log ends before it comes to the audio."""
    path = tmp_path / f"a.{ending}"
    with sf.SoundFile(path, "w", 16000, 1) as file:
        file.comment = 5000 * "c"
        file.write(noise(48000))
    if ending == "wav":  # libsndfile puts them behind the audio
        data, text = path.read_bytes(), 5000 * b"c"
        note = b"INFOICMT" + len(text).to_bytes(4, "little") + text
        data = data[:36] + b"LIST" + len(note).to_bytes(4, "little") + note
        data += (
            b"data" + (96000).to_bytes(4, "little") + bytes(range(96)) * 1000
        )
        path.write_bytes(
            b"RIFF" + (len(data) - 8).to_bytes(4, "little") + data[8:]
        )
    inspect_audio(path)
    cut(path, 0.9)
    with pytest.raises(BadAudio, match="truncated"):
        inspect_audio(path)


@pytest.mark.parametrize("size", [0xFFFFFFFF, 0x7FFFFFFF, 0x7FFFF000])
def test_wav_from_a_pipe_is_whole(tmp_path, size):
    path = tmp_path / "a.wav"
    sf.write(path, noise(16000), 16000)
    data = bytearray(path.read_bytes())
    data[4:8] = data[40:44] = size.to_bytes(4, "little")
    path.write_bytes(data)
    assert inspect_audio(path).num_samples == 16000


def test_a_wav_whose_outer_size_is_that_of_the_file(tmp_path):
    """Eight bytes too many, as some programs write it."""
    path = tmp_path / "a.wav"
    sf.write(path, noise(16000), 16000)
    data = bytearray(path.read_bytes())
    data[4:8] = len(data).to_bytes(4, "little")
    path.write_bytes(data)
    assert inspect_audio(path).num_samples == 16000


def test_flac_of_unknown_length(tmp_path):
    path = tmp_path / "a.flac"
    sf.write(path, noise(16000), 16000)
    data = bytearray(path.read_bytes())
    data[21] &= 0xF0
    data[22:26] = b"\0" * 4
    path.write_bytes(data)
    with pytest.raises(BadAudio, match="states no length"):
        inspect_audio(path)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_nan_and_infinity(tmp_path, value):
    path = tmp_path / "a.wav"
    x = noise(200000)
    x[150000] = value
    sf.write(path, x, 16000, subtype="FLOAT")
    audio_info(path)
    with pytest.raises(BadAudio, match="NaN or infinite"):
        inspect_audio(path)


def test_all_zeros_but_not_a_long_silence(tmp_path):
    path = tmp_path / "a.wav"
    x = np.zeros(200000, "float32")
    sf.write(path, x, 16000)
    with pytest.raises(BadAudio, match="Every sample is zero"):
        inspect_audio(path)
    for place in (0, -1):
        x[:] = 0
        x[place] = 0.5
        sf.write(path, x, 16000)
        inspect_audio(path)


def test_channels_that_cancel_are_silence(tmp_path):
    path = tmp_path / "a.wav"
    x = noise(16000)
    sf.write(path, np.stack([x, -x], 1), 16000, "FLOAT")
    with pytest.raises(BadAudio, match="Every sample is zero"):
        inspect_audio(path)
