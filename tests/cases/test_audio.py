"""Cases of audio files: what a file holds, and which files are read."""

import csv
import logging
import os
import shutil
import struct

import numpy as np
import pytest
import soundfile as sf
import torch
import torchaudio

from speechbrain_sim.analysis.latents import read_clips
from speechbrain_sim.convert import decode_files, encode_files, find_files
from speechbrain_sim.data import audio
from speechbrain_sim.data.audio import (
    AudioFile,
    BadAudio,
    audio_info,
    inspect_audio,
    num_samples_at,
    ratio_of,
    read_audio,
)
from speechbrain_sim.data.corpora.folder import prepare_folder
from speechbrain_sim.data.corpora.librispeech import prepare_librispeech
from speechbrain_sim.data.search import AUDIO, list_files
from speechbrain_sim.decoders import mirror
from speechbrain_sim.encoders.greedy import GreedyEncoder
from speechbrain_sim.extraction import encode_manifest
from speechbrain_sim.features import encode_file, stream_file
from tests.conftest import HPARAMS


def noise(frames, channels=1, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.uniform(-0.5, 0.5, (frames, channels))
    return x[:, 0] if channels == 1 else x


def swell(frames):
    """A tone that differs from place to place, as noise alone may not."""
    time = np.arange(frames)
    return 0.3 * np.sin(time / 20) * (1 + np.sin(time / 5000))


def write(path, x, rate=16000, subtype=None, kind=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    sf.write(path, x, rate, subtype, format=kind)
    return path


def check_parts(path, whole, atol=2e-6):
    """Compares parts, in any order and in a row, with slices of the whole."""
    rng = np.random.default_rng(1)
    starts = [*rng.integers(0, max(1, len(whole) - 200), 6), len(whole) - 60]
    with AudioFile(path) as file:
        for start in map(int, starts):
            expected = whole[start : start + 200]
            for part in (
                read_audio(path, start, start + 200),
                file.samples(start, start + 200),
            ):
                torch.testing.assert_close(part, expected, atol=atol, rtol=0)
    with AudioFile(path) as file:
        joined = torch.cat(list(file.pieces(0.7)), dim=1)[0]
    torch.testing.assert_close(joined, whole, atol=atol, rtol=0)


@pytest.fixture(scope="module")
def encoder():
    torch.manual_seed(0)
    encoder = GreedyEncoder(channels=8, context_channels=4)
    return encoder.eval().requires_grad_(False)


# B1: lengths of mp3 -----------------------------------------------------------

#: kbit/s of layer III by bits of the header, MPEG 1 and others; and Hz
BITRATES = (
    [0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320],
    [0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160],
)
RATES = {3: [44100, 48000, 32000], 2: [22050, 24000, 16000]}
RATES[0] = [11025, 12000, 8000]


def mpeg_frames(data):
    """Cuts an mp3 without tags into its frames."""
    frames = []
    while data:
        version, rest = data[1] >> 3 & 3, data[2]
        bitrate = BITRATES[version != 3][rest >> 4]
        rate, padding = RATES[version][rest >> 2 & 3], rest >> 1 & 1
        size = (144 if version == 3 else 72) * bitrate * 1000 // rate + padding
        frames.append(data[:size])
        data = data[size:]
    return frames


def untagged(path, frames=None):
    """Deletes the frame that states the length; returns how many are left."""
    kept = mpeg_frames(path.read_bytes())[1:][:frames]
    path.write_bytes(b"".join(kept))
    return len(kept)


@pytest.mark.parametrize("mode", ["CONSTANT", "VARIABLE", "AVERAGE"])
@pytest.mark.parametrize("rate", [8000, 16000, 44100, 48000])
def test_b1_mp3_without_a_length_is_counted(tmp_path, rate, mode):
    path = tmp_path / "a.mp3"
    options = {"bitrate_mode": mode, "compression_level": 0.5}
    sf.write(path, swell(20 * rate), rate, **options)
    stated = read_audio(path)
    assert len(stated) == 20 * 16000
    check_parts(path, stated)
    frames = untagged(path) * (1152 if rate > 24000 else 576)
    info = inspect_audio(path)
    assert info == (rate, frames, 1, num_samples_at(frames, rate))
    assert audio_info(path) == info
    whole = read_audio(path)
    assert len(whole) == info.num_samples
    assert whole[-5000:-3000].abs().max() > 0.05  # decoded to its end
    check_parts(path, whole)


def test_b1_tags_around_an_mp3_are_no_audio(tmp_path):
    path = tmp_path / "a.mp3"
    sf.write(path, swell(40000), 16000)
    untagged(path)
    info, data = inspect_audio(path), path.read_bytes()
    before = b"ID3\x04\0\0\0\0\x10\0" + bytes(2048)
    path.write_bytes(before + data + b"TAG" + b"x" * 125)
    assert inspect_audio(path) == info == audio_info(path)


def test_b1_a_clip_of_common_voice(tmp_path):
    path = tmp_path / "clips/common_voice_en_1.mp3"
    write(path, swell(120000), 48000)
    assert untagged(path, 99) == 99
    splits = {"valid_share": 0, "test_share": 0}
    prepare_folder(tmp_path / "clips", tmp_path / "save", 400, **splits)
    (row,) = csv.DictReader((tmp_path / "save/train.csv").open())
    assert row["num_samples"] == "38016" and row["duration"] == "2.376"
    assert inspect_audio(path).frames == 114048
    assert len(read_audio(path)) == 38016


# parts of a file: what libsndfile's own seeking does not give


@pytest.mark.parametrize(
    "kind, subtype, rate",
    [
        ("OGG", "VORBIS", 16000),
        ("OGG", "OPUS", 48000),
        ("OGG", "OPUS", 16000),
        ("CAF", "ALAC_20", 16000),
        ("FLAC", "PCM_24", 44100),
    ],
)
@pytest.mark.parametrize("frames", [48001, 700001])
def test_b1_parts_are_slices_of_the_whole(
    tmp_path, kind, subtype, rate, frames
):
    path = tmp_path / "a.audio"
    write(path, swell(frames) + 0.1 * noise(frames), rate, subtype, kind)
    assert inspect_audio(path).frames == frames
    check_parts(path, read_audio(path))


# B2 ---------------------------------------------------------------------------
# every container: tests/data/test_audio.py::test_half_a_file_of_any_container


@pytest.mark.parametrize("keep", [0.5, 0.9, 0.999])
@pytest.mark.parametrize("mode", ["CONSTANT", "VARIABLE"])
def test_b2_a_cut_mp3_that_states_its_length(tmp_path, mode, keep):
    path = tmp_path / "a.mp3"
    sf.write(path, swell(80000), 16000, bitrate_mode=mode)
    data = path.read_bytes()
    path.write_bytes(data[: int(keep * len(data))])
    with pytest.raises(BadAudio, match="truncated"):
        inspect_audio(path)


# B3: silence ------------------------------------------------------------------


def cancelling(order):
    pair = noise(16000, 2).T
    return np.stack([[1, -1][i % 2] * pair[i // 2] for i in order], 1)


@pytest.mark.parametrize(
    "x",
    [
        cancelling([0, 1]),
        cancelling([0, 1, 2, 3]),
        cancelling([0, 2, 1, 3]),  # their sum is rounded, not 0
        np.zeros((16000, 2)),
        np.full(16000, 0.25),
        np.full((16000, 2), -1.0),
    ],
    ids=["stereo", "four", "four, crossed", "zeros", "constant", "u8 of zeros"],
)
def test_b3_silence_is_of_the_mix(tmp_path, x):
    path = write(tmp_path / "a.wav", x, subtype="FLOAT")
    with pytest.raises(BadAudio, match="Every sample is (zero|the same)"):
        inspect_audio(path)


def test_b3_quiet_is_no_silence(tmp_path):
    click = np.zeros(16000)
    click[777] = 1e-4
    for x in (click, 1e-6 * noise(16000), noise(16000, 2) * [1, 1e-3]):
        inspect_audio(write(tmp_path / "a.wav", x, subtype="FLOAT"))
    inspect_audio(write(tmp_path / "a.wav", noise(1)))


# B4, H4: values that are no audio ---------------------------------------------


@pytest.mark.parametrize("kind", ["WAV", "W64", "CAF", "AIFF", "AU"])
@pytest.mark.parametrize("subtype", ["FLOAT", "DOUBLE"])
def test_b4_samples_far_beyond_one(tmp_path, encoder, kind, subtype):
    path = tmp_path / "loud.wav"
    write(path, 32768 * noise(16000), 16000, subtype, kind)
    match = "loud.wav: Its samples reach 163.*, far beyond -1 and 1"
    for function in (inspect_audio, read_audio):
        with pytest.raises(BadAudio, match=match):
            function(path)
    with pytest.raises(BadAudio, match=match):
        encode_file(encoder, path, tmp_path)
    inspect_audio(write(path, 3 * noise(16000), 16000, subtype, kind))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_h4_a_file_with_nan_is_named(tmp_path, encoder, value):
    x = noise(40000)
    x[30000] = value
    path = write(tmp_path / "nan.wav", x, subtype="FLOAT")
    match = "nan.wav: It holds NaN or infinite samples"
    with pytest.raises(BadAudio, match=match):
        encode_file(encoder, path, tmp_path / "out")
    assert not list((tmp_path / "out").glob("*.npy"))
    with pytest.raises(BadAudio, match=match):
        list(stream_file(encoder, path, chunk_seconds=1))


# B6: rates --------------------------------------------------------------------

ODD = [22254, 22255, 11127, 44056, 47952, 44099, 15999, 16001, 262, 263]
ODD += [999983, 1000000, 192000, 7, 655350, 5512]


@pytest.mark.parametrize("rate", ODD)
def test_b6_odd_rates_are_resampled(tmp_path, monkeypatch, rate):
    made, resample = [], torchaudio.transforms.Resample

    def spy(*rates):
        made.append(resample(*rates))
        return made[-1]

    monkeypatch.setattr(torchaudio.transforms, "Resample", spy)
    audio._resampler.cache_clear()
    assert abs(ratio_of(rate) * rate / 16000 - 1) < 3e-4
    frames = 3 * rate + 1 if rate > 1000 else 40
    cycles = min(440, rate / 30)  # Hz
    time = np.arange(frames) / rate
    path = tmp_path / "a.wav"
    write(path, 0.5 * np.sin(2 * np.pi * cycles * time), rate, "FLOAT")
    whole = read_audio(path)
    assert len(whole) == num_samples_at(frames, rate)
    assert inspect_audio(path).num_samples == len(whole)
    check_parts(path, whole)
    assert sum(resampler.kernel.numel() for resampler in made) < 6e6
    assert len(made) == (ratio_of(rate) != 1)
    time = np.arange(len(whole)) / 16000 * (ratio_of(rate) * rate / 16000) ** -1
    expected = 0.5 * np.sin(2 * np.pi * cycles * time.astype(float))
    middle = slice(len(whole) // 4, -len(whole) // 4)
    assert np.abs(whole.numpy() - expected)[middle].max() < 5e-3


def test_b6_usual_rates_are_as_before(tmp_path):
    for rate in (8000, 11025, 22050, 24000, 32000, 44100, 48000, 96000):
        path = write(tmp_path / "a.wav", noise(rate), rate, "FLOAT")
        x = torch.from_numpy(sf.read(path, dtype="float32")[0])
        expected = torchaudio.transforms.Resample(rate, 16000)(x)
        assert torch.equal(read_audio(path), expected)


def test_b6_a_rate_that_is_none(tmp_path):
    path = write(tmp_path / "a.wav", noise(16000))
    data = bytearray(path.read_bytes())
    data[24:28] = struct.pack("<I", 2_000_000_000)
    path.write_bytes(data)
    with pytest.raises(BadAudio, match="a rate of 2000000000 Hz"):
        inspect_audio(path)


# B7-B10: which files are read -------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    for speaker in ("ann", "bob"):
        for number in range(3):
            write(tmp_path / f"data/{speaker}/{number}.wav", noise(8000))
    return tmp_path / "data"


def prepared(folder, save, **options):
    """IDs and speakers of all that `prepare_folder` writes."""
    prepare_folder(folder, save, 400, **{"speakers": "folder", **options})
    rows = {}
    for split in save.glob("*.csv"):
        if split.stem in ("train", "valid", "test"):
            for row in csv.DictReader(split.open()):
                rows[row["ID"]] = row["speaker"]
    return rows


def test_b7_links_are_followed_once(folder, tmp_path, caplog):
    for number in range(3):
        write(tmp_path / f"elsewhere/eve/{number}.flac", noise(8000))
    (tmp_path / "elsewhere/eve/up").symlink_to(tmp_path / "elsewhere")
    (folder / "eve").symlink_to(tmp_path / "elsewhere/eve")
    (folder / "ann/loop").symlink_to(folder)
    (folder / "bob/above").symlink_to("../..")
    (folder / "copy").symlink_to(folder / "ann")
    (folder / "knot").symlink_to(folder / "knot")
    (folder / "ann/lost.wav").symlink_to("nowhere.wav")
    (folder / "bob/9.wav").symlink_to(tmp_path / "elsewhere/eve/0.flac")
    with caplog.at_level(logging.INFO):
        rows = prepared(folder, tmp_path / "save")
    expected = {f"{name}-{n}": name for name in ("ann", "bob") for n in "012"}
    expected |= {f"eve-{n}": "eve" for n in "012"} | {"bob-9": "bob"}
    assert rows.items() >= expected.items()
    assert len(rows) == len(expected)
    assert "10 files are read; left out: 4 links to folders" in caplog.text
    assert "2 broken links" in caplog.text
    assert find_files([folder], AUDIO).keys() == {
        path.relative_to(folder).with_suffix("").as_posix()
        for path in list_files(folder)
    }


def test_b7_a_link_shows_what_is_hidden(folder, tmp_path, caplog):
    (folder / "ann").rename(folder / ".store")
    (folder / "ann").symlink_to(".store")
    with caplog.at_level(logging.INFO):
        assert len(prepared(folder, tmp_path / "save")) == 6
    assert "left out" not in caplog.text


def hide(folder):
    """Adds a waste-paper basket, and what macOS writes beside a file."""
    write(folder / ".Trash-1000/files/u1.wav", noise(8000))
    write(folder / ".Trash-1000/files/u2.flac", noise(8000))
    beside = next(folder.glob("[!.]*/**/*.*"))
    beside.with_name(f"._{beside.name}").write_bytes(b"\0\5\x16\7")
    (folder / ".DS_Store").touch()


def test_b8_hidden_files_are_left_out_and_counted(
    folder, tmp_path, caplog, trained
):
    hide(folder)
    with caplog.at_level(logging.INFO):
        rows = prepared(folder, tmp_path / "save")
        record, bad = encode_files(
            trained.run, [folder], tmp_path / "out", "module3"
        )
    assert set(rows.values()) == {"ann", "bob"} and len(rows) == 6
    assert len(record["files"]) == 6 and not bad
    assert caplog.text.count("6 files are read; left out: 4 hidden") == 2


def test_b8_hidden_files_beside_librispeech(corpora, tmp_path, caplog):
    subset = next((corpora / "Synthetic/LibriSpeech").glob("*-*"))
    copy = tmp_path / "data/LibriSpeech" / subset.name
    shutil.copytree(subset, copy)
    shutil.copy(subset.parent / "SPEAKERS.TXT", copy.parent)
    options = {"subset": subset.name, "min_samples": 16000}
    prepare_librispeech(tmp_path / "data", tmp_path / "a", **options)
    hide(copy)
    write(copy / ".Trash-1000/files/1.flac", noise(8000))
    with caplog.at_level(logging.INFO):
        prepare_librispeech(tmp_path / "data", tmp_path / "b", **options)
    assert "5 hidden" in caplog.text
    for split in ("train", "valid", "test"):
        before, after = ((tmp_path / x / f"{split}.csv") for x in "ab")
        assert before.read_bytes() == after.read_bytes()


def test_b9_other_kinds_are_read_or_counted(folder, tmp_path, caplog):
    for number in range(16):
        write(
            folder / f"ann/o{number}.opus", noise(48000), 48000, "OPUS", "OGG"
        )
    for ending in ("mp3", "aif", "au", "caf", "w64", "rf64", "ogg"):
        kind = {"aif": "AIFF"}.get(ending, ending.upper())
        write(folder / f"bob/{ending}.{ending}", noise(16000), kind=kind)
    for name in ("m.m4a", "n.m4a", "README", "list.txt"):
        (folder / "ann" / name).touch()
    with caplog.at_level(logging.INFO):
        rows = prepared(folder, tmp_path / "save")
    assert len(rows) == 6 + 16 + 7
    assert "29 files are read; left out: 2 *.m4a, 1 " in caplog.text
    assert "1 *.txt" in caplog.text


def test_b9_folders_without_permission_are_counted(
    folder, tmp_path, caplog, monkeypatch
):
    listed = type(folder).iterdir

    def iterdir(path):
        if path.name == "bob":
            raise PermissionError(path)
        return listed(path)

    monkeypatch.setattr(type(folder), "iterdir", iterdir)
    with caplog.at_level(logging.INFO):
        assert len(list_files(folder)) == 3
    assert "1 folders without permission" in caplog.text
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(BadAudio, match="permissions do not allow"):
        inspect_audio(folder / "ann/0.wav")


def test_b10_names_that_are_not_utf8_are_encoded(folder, tmp_path, trained):
    (folder / "ann/0.wav").rename(folder / "ann/caf\udce9.wav")
    latents, wavs = tmp_path / "latents", tmp_path / "wavs"
    encode_files(trained.run, [folder], latents, "module3")
    decoded = decode_files(trained.decoder, [latents], wavs, "module3")
    assert len(decoded) == 6 and wavs / "ann/caf\udce9.wav" in decoded
    assert len(read_audio(wavs / "ann/caf\udce9.wav")) == 8000


@pytest.mark.parametrize("place", ["ann/caf\udce9.wav", "caf\udce9/0.wav"])
def test_b10_names_that_are_not_utf8(folder, tmp_path, place, encoder):
    path = folder / place
    path.parent.mkdir(exist_ok=True)
    (folder / "ann/0.wav").rename(path)
    with pytest.raises(ValueError, match=r"caf\\xe9.*: Its name is not UTF-8"):
        prepared(folder, tmp_path / "save")
    skip = {"on_bad_audio": "skip", "valid_share": 0, "test_share": 0}
    assert len(prepared(folder, tmp_path / "save", **skip)) == 5
    bad = (tmp_path / "save/bad_audio.csv").read_text(encoding="utf-8")
    assert bad.count("caf\\xe9") == 2  # ID and path
    assert len(encode_file(encoder, path, tmp_path)["module3"]) == 50


# B11: headers that announce a few bytes too many ------------------------------

#: container, subtype: what stands before its size, and how that is written
SIZES = {
    ("WAV", "PCM_16"): (b"data", 4, "<I"),
    ("WAV", "PCM_24"): (b"data", 4, "<I"),
    ("WAV", "FLOAT"): (b"data", 4, "<I"),
    ("WAVEX", "PCM_16"): (b"data", 4, "<I"),
    ("AIFF", "PCM_16"): (b"SSND", 4, ">I"),
    ("AU", "PCM_16"): (b".snd", 8, ">I"),
    ("W64", "PCM_16"): (b"data", 16, "<Q"),
    ("RF64", "PCM_16"): (b"ds64", 16, "<Q"),
}


@pytest.mark.parametrize("kind, subtype", SIZES)
@pytest.mark.parametrize("more", [8, 36, 44, 46])
def test_b11_a_few_bytes_too_many_are_a_warning(
    tmp_path, kind, subtype, more, caplog
):
    path = tmp_path / "a.wav"
    write(path, noise(16000, 2), 16000, subtype, kind)
    name, offset, code = SIZES[kind, subtype]
    data = bytearray(path.read_bytes())
    at = data.index(name) + offset
    (size,) = struct.unpack_from(code, data, at)
    struct.pack_into(code, data, at, size + more)
    path.write_bytes(data)
    assert inspect_audio(path).frames == len(read_audio(path)) == 16000
    expected = kind not in ("W64", "RF64")  # libsndfile mends these itself
    assert (f"announces {more} bytes more" in caplog.text) == expected
    if expected:  # half a frame is missing, or more than a header
        for cut in (1, 200):
            path.write_bytes(data[:-cut])
            with pytest.raises(BadAudio, match="truncated"):
                inspect_audio(path)


# E4: clips shorter than a crop ------------------------------------------------


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """Short clips of three speakers, from 0.025 to 0.5 s."""
    folder = tmp_path_factory.mktemp("digits")
    lengths = np.linspace(400, 8000, 10).astype(int)
    for seed, speaker in enumerate(("ann", "bob", "eve")):
        for number, samples in enumerate(lengths):
            x = noise(samples, seed=10 * seed + number)
            write(folder / f"{speaker}/{number}.wav", x)
    return folder


def test_e4_short_clips_are_padded_and_masked(recipes, digits, tmp_path):
    options = ["--data_folder", str(digits), "--device", "cpu"]
    options += ["--num_workers", "0", "--number_of_epochs", "1"]
    options += ["--batch_size", "4"]
    small = ["--channels", "8", "--context_channels", "4"]
    run, decoder = tmp_path / "run", tmp_path / "decoder"
    recipes["pretrain"].main(
        [str(HPARAMS / "Folder/pretrain.yaml"), *options, *small]
        + ["--output_folder", str(run), "--num_negatives", "3"]
    )
    assert (run / "encoder.safetensors").exists()
    rows = list(csv.DictReader((run / "save/train.csv").open()))
    assert len(rows) == 24 and {r["num_samples"] for r in rows} >= {"400"}
    recipes["decode"].main(
        [str(HPARAMS / "Folder/decode.yaml"), *options]
        + ["--encoder", str(run), "--output_folder", str(decoder)]
    )
    assert (decoder / "decoder_module3.safetensors").exists()


def test_e4_what_is_too_short_names_the_option(digits, tmp_path):
    with pytest.raises(ValueError, match="fewer than the 500 of --min_samples"):
        prepare_folder(digits, tmp_path, 500)


def test_e4_clips_of_a_study_are_as_long_as_most_are(digits, tmp_path, caplog):
    prepare_folder(digits, tmp_path, 400, valid_share=0, test_share=0)
    clips = read_clips(str(tmp_path / "train.csv"), str(digits), 10240)
    assert clips.wavs.shape == (15, 4622)
    assert "shorter than --clip_samples 10240" in caplog.text


# H7: files that cannot seek ---------------------------------------------------

UNSEEKABLE = [("WAV", "GSM610"), ("AIFF", "GSM610"), ("WAV", "G721_32")]
UNSEEKABLE += [("WAV", f"NMS_ADPCM_{bits}") for bits in (16, 24, 32)]
UNSEEKABLE += [("AU", "G723_40"), ("XI", "DPCM_16"), ("W64", "GSM610")]


@pytest.mark.parametrize("kind, subtype", UNSEEKABLE)
@pytest.mark.parametrize("rate", [8000, 16000])
def test_h7_files_that_cannot_seek_are_read(tmp_path, kind, subtype, rate):
    path = write(tmp_path / "a.wav", swell(70000), rate, subtype, kind)
    info, whole = inspect_audio(path), read_audio(path)
    assert len(whole) == info.num_samples and info.frames >= 70000
    check_parts(path, whole)


# H14: long recordings ---------------------------------------------------------


@pytest.mark.parametrize("rows", ["mean", "labels", "all"])
def test_h14_long_recordings_are_encoded_in_pieces(
    tmp_path, encoder, rows, monkeypatch
):
    lines = ["ID,duration,wav,sample_rate,num_samples"]
    for number, samples in enumerate((400077, 9000, 200000)):
        write(tmp_path / f"{number}.wav", noise(samples))
        start = f"u{number},{samples / 16000},$data_root/{number}.wav"
        lines.append(f"{start},16000,{samples}")
    (tmp_path / "train.csv").write_text("\n".join(lines))
    encode, largest = GreedyEncoder.encode, []

    def spy(self, wavs, *args):
        largest.append(wavs.numel())
        return encode(self, wavs, *args)

    def encoded(seconds):
        largest.clear()
        place = tmp_path / "train.csv", tmp_path, tmp_path / str(seconds)
        options = {"rows": rows, "log_var": True, "max_seconds": seconds}
        return encode_manifest(encoder, {"sha256": "x"}, *place, **options)

    monkeypatch.setattr(GreedyEncoder, "encode", spy)
    whole, pieces = encoded(100), encoded(11)
    assert max(largest) <= 11 * 16000
    assert whole.ids == pieces.ids and whole.arrays == pieces.arrays
    for name in whole.arrays:
        expected = whole[name][:]
        atol = 1e-3 * expected.abs().max().item()  # half precision
        torch.testing.assert_close(
            pieces[name][:], expected, atol=atol, rtol=1e-3
        )


@pytest.mark.parametrize("layer", ["module1", "module3", "context"])
def test_h14_long_latents_are_decoded_in_pieces(encoder, layer, monkeypatch):
    decoder, samples = mirror(encoder, layer).eval(), 40163
    wavs = torch.randn(3, samples)
    z = encoder(wavs, layers=[layer])[layer].mean
    monkeypatch.setattr("speechbrain_sim.decoders.LONG", 3000)
    decode, most = decoder._decode, []

    def spy(z, *args):
        most.append(z.shape[1] * decoder.hop)
        return decode(z, *args)

    for lengths in (None, torch.tensor([samples, 20000, 700])):
        expected = decoder(z, samples, lengths).detach()  # with gradients
        monkeypatch.setattr(decoder, "_decode", spy)
        with torch.no_grad():
            found = decoder(z, samples, lengths)
        monkeypatch.setattr(decoder, "_decode", decode)
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)
    assert max(most) < 3000 + 2 * 5 * decoder.hop
