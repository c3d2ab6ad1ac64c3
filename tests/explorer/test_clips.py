"""Recordings that are given, and uploads: what is decoded, and what is refused."""

import io

import numpy as np
import pytest
import soundfile as sf

from speechbrain_sim.data.audio import BadAudio, read_audio
from speechbrain_sim.explorer import clips
from speechbrain_sim.explorer.clips import Clips, decode_upload
from speechbrain_sim.explorer.jobs import Refused


def encoded(wav, rate=16000, kind="WAV", subtype=None):
    file = io.BytesIO()
    sf.write(file, wav, rate, subtype, format=kind)
    return file.getvalue()


def noise(*shape):
    return np.random.default_rng(0).uniform(-0.5, 0.5, shape)


@pytest.mark.parametrize("kind", ["WAV", "FLAC", "OGG", "AIFF"])
@pytest.mark.parametrize("rate", [8000, 16000, 44100, 48000])
def test_an_upload_is_what_is_read_from_the_same_file(kind, rate, tmp_path):
    data = encoded(noise(rate // 2, 2), rate, kind)
    path = tmp_path / "file"
    path.write_bytes(data)
    clip = decode_upload(data, "name")
    expected = read_audio(path).numpy()
    assert clip.read().shape == expected.shape == (8000,)
    np.testing.assert_allclose(clip.read(), expected, atol=1e-5)
    # a link to it holds, whether it is given or dropped
    assert [c.id for c in Clips([path])] == [clip.id]


@pytest.mark.parametrize(
    "data, status, sentence",
    [
        (b"", 415, "no sound"),
        (b"<html>" * 99, 415, "no sound"),
        (encoded(noise(0)), 400, "no samples"),
        (encoded(np.zeros(9000)), 400, "silent"),
        (encoded(np.full(900, np.nan), subtype="FLOAT"), 400, "not finite"),
        (encoded(np.full(900, 1e4), subtype="FLOAT"), 400, "beyond -1 and 1"),
        (encoded(noise(61 * 8000), 8000), 413, "61.0 s"),
        (encoded(noise(61 * 8000), 8000, "OGG"), 413, "61.0 s"),
        (encoded(noise(900), 500_000), 400, "500000 Hz"),
        (encoded(noise(9, 40)), 400, "40 channels"),
    ],
)
def test_what_is_no_recording_gets_a_sentence(data, status, sentence):
    with pytest.raises(Refused, match=sentence) as refused:
        decode_upload(data, "name")
    assert refused.value.status == status


def test_an_mp3_is_decoded_and_cut_off_where_it_is_too_long():
    wav = np.sin(np.arange(62 * 16000) / 9) / 2
    clip = decode_upload(encoded(wav[:16000], kind="MP3"), "name")
    assert clip.seconds == pytest.approx(1, abs=0.1)
    with pytest.raises(Refused, match="at most 60 s") as refused:
        decode_upload(encoded(wav, kind="MP3"), "name")
    assert refused.value.status == 413


def test_a_long_file_is_refused_before_it_is_decoded(monkeypatch):
    monkeypatch.setattr(clips, "decode_mono", None)
    with pytest.raises(Refused, match="100.0 s"):
        decode_upload(encoded(noise(800_000), 8000), "name")


def test_decoding_ends_in_time_and_when_it_is_stopped(monkeypatch):
    def stop():
        raise Refused(409, "stopped")

    data = encoded(noise(1000))
    with pytest.raises(Refused, match="stopped"):
        decode_upload(data, "name", stop)
    monkeypatch.setattr(clips, "PATIENCE", -1)
    with pytest.raises(Refused, match="takes longer"):
        decode_upload(data, "name")


def test_the_oldest_uploads_go_and_given_files_stay(recordings):
    kept = Clips(recordings, kept=3)
    given = [clip.id for clip in kept]
    ids = []
    for i in range(5):
        clip = decode_upload(encoded(noise(1000 + i)), f"{i}")
        kept.add(clip)
        ids.append(clip.id)
    assert [clip.id for clip in kept] == given + ids[2:]
    kept.add(decode_upload(recordings[0].read_bytes(), "again"))
    assert [clip.id for clip in kept] == given + ids[2:]
    with pytest.raises(Refused) as refused:
        kept[ids[0]]
    assert refused.value.status == 404


def test_given_files_of_the_same_name_are_told_apart(tmp_path):
    for i, folder in enumerate("abc"):
        (tmp_path / folder).mkdir()
        sf.write(tmp_path / folder / "1.wav", noise(99 + i // 2), 8000)
    given = Clips(sorted(tmp_path.glob("*/1.wav")))
    assert [clip.name for clip in given] == ["1.wav", "1.wav (2)"]


def test_of_a_given_file_the_first_minute_is_used(tmp_path):
    path = tmp_path / "long.wav"
    sf.write(path, noise(61 * 8000), 8000)
    (clip,) = Clips([path])
    assert clip.describe()["seconds"] == 60 and "first 60 s" in clip.name
    assert len(clip.read()) == 60 * 16000
    path.write_bytes(b"")
    with pytest.raises(BadAudio):
        Clips([path])
