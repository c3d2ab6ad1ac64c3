"""Many files at once, from the command line: encode, kill, go on, decode."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from safetensors.torch import load_file

from speechbrain_sim import cli, convert, features
from speechbrain_sim.inference import SmoothInfoMax
from tests.brains.test_distributed import torchrun
from tests.conftest import ROOT, finish
from tests.encoders.test_huggingface import save_model


@pytest.fixture
def audio(tmp_path):
    """Four recordings in a folder, of several rates and lengths."""
    rng = np.random.default_rng(0)
    files = {"a": 16000, "ann/b": 22050, "ann/c": 16000, "bob/b": 44100}
    for i, (name, rate) in enumerate(files.items()):
        path = tmp_path / "audio" / f"{name}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        noise = rng.uniform(-0.5, 0.5, rate // 2 + 777 * i)
        soundfile.write(path, noise, rate)
    (tmp_path / "audio/notes.txt").write_text("no audio")
    return tmp_path / "audio"


def encode(source, *inputs, out, layer="module3", options=()):
    out = ["--layer", layer, "--out", str(out), *options]
    cli.main(["encode", str(source), *map(str, inputs), *out])


def files_in(folder):
    return {
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.is_file() and path.name != ".lock"
    }


NAMES = {"a", "ann/b", "ann/c", "bob/b"}


@pytest.mark.parametrize("kind", ["npy", "safetensors"])
def test_there_and_back(trained, audio, tmp_path, capsys, kind):
    latents, wavs = tmp_path / "latents", tmp_path / "wavs"
    encode(trained.decoder, audio, out=latents, options=["--format", kind])
    printed = capsys.readouterr().out
    assert "4 recordings" in printed and "(frames, 6)" in printed
    assert "every 160 samples" in printed
    assert files_in(latents) == {"encode.json", *(f"{n}.{kind}" for n in NAMES)}
    command = ["decode", str(trained.model), str(latents)]
    cli.main([*command, "--layer", "module3", "--out", str(wavs)])
    assert files_in(wavs) == {"decode.json", *(f"{n}.wav" for n in NAMES)}
    model = SmoothInfoMax.from_pretrained(trained.model)
    for name in NAMES:
        expected = model.encode_file(audio / f"{name}.wav", "module3").mean
        file = latents / f"{name}.{kind}"
        found = (
            torch.from_numpy(np.load(file))
            if kind == "npy"
            else load_file(file)["module3"]
        )
        assert found.dtype == torch.float32
        assert torch.equal(found, expected[0])
        samples = features.check_file(model.encoder, audio / f"{name}.wav")
        wav, rate = soundfile.read(wavs / f"{name}.wav", dtype="float32")
        assert rate == 16000 and len(wav) == samples
        decoded = model.decode(expected, "module3", samples)[0]
        assert torch.equal(torch.from_numpy(wav), decoded)


def test_samples_are_drawn_and_drawn_again(trained, audio, tmp_path):
    for out in ("one", "two"):
        encode(trained.run, audio, out=tmp_path / out, options=["--sample"])
    encode(trained.run, audio, out=tmp_path / "means")
    one, two, means = (
        np.load(tmp_path / out / "a.npy") for out in ("one", "two", "means")
    )
    assert np.array_equal(one, two) and not np.allclose(one, means)
    with pytest.raises(SystemExit, match="of the sample True, not False"):
        encode(trained.run, audio, out=tmp_path / "one")


KILLED = """
import os, signal, sys
from speechbrain_sim import cli, convert
write, count = convert.write_latents, 0
def write_some(encoder, path, targets, **options):
    global count
    count += 1
    if count == 3:
        target = targets["module3"]
        target.with_name(target.name + ".part").write_bytes(b"half")
        os.kill(os.getpid(), signal.SIGKILL)
    write(encoder, path, targets, **options)
convert.write_latents = write_some
cli.main(sys.argv[1:])
"""


def test_killed_it_goes_on(trained, audio, tmp_path, monkeypatch):
    out = tmp_path / "out"
    argv = ["encode", str(trained.run), str(audio)]
    argv += ["--layer", "module3", "--out", str(out)]
    done = subprocess.run(
        [sys.executable, "-c", KILLED, *argv],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == -9
    whole = {path: path.stat().st_mtime_ns for path in out.rglob("*.npy")}
    assert len(whole) == 2
    encoded, write = [], convert.write_latents
    monkeypatch.setattr(
        convert,
        "write_latents",
        lambda *args, **kw: (encoded.append(args[1]), write(*args, **kw)),
    )
    cli.main(argv)
    assert len(encoded) == 2
    assert all(path.stat().st_mtime_ns == at for path, at in whole.items())
    assert files_in(out) == {"encode.json", *(f"{n}.npy" for n in NAMES)}
    encode(trained.run, audio, out=tmp_path / "once")
    for name in NAMES:
        a, b = (
            (f / f"{name}.npy").read_bytes() for f in (out, tmp_path / "once")
        )
        assert a == b


def test_more_files_join_but_nothing_else(trained, audio, tmp_path):
    out = tmp_path / "out"
    encode(trained.run, audio / "a.wav", out=out)
    encode(trained.run, audio, out=out)
    assert len(list(out.rglob("*.npy"))) == 4
    with pytest.raises(SystemExit, match="the layer module3, not context"):
        encode(trained.run, audio, out=out, layer="context")
    with pytest.raises(SystemExit, match="the encoder .* another --out"):
        encode(other_model(tmp_path), audio, out=out)
    shutil.copy(audio / "ann/c.wav", audio / "a.wav")
    with pytest.raises(SystemExit, match="of the a .*another --out"):
        encode(trained.run, audio, out=out)
    wav, rate = soundfile.read(audio / "ann/b.wav")
    soundfile.write(audio / "ann/b.wav", wav / 2, rate)
    with pytest.raises(SystemExit, match="of the b .*another --out"):
        encode(trained.run, audio / "ann/b.wav", out=tmp_path / "b")
        soundfile.write(audio / "ann/b.wav", wav / 3, rate)
        encode(trained.run, audio / "ann/b.wav", out=tmp_path / "b")
    with pytest.raises(SystemExit, match="no layer 'module9'; .*module1"):
        encode(trained.run, audio, out=out, layer="module9")


def other_model(folder):
    from speechbrain_sim.models.format import example_folder

    return example_folder(folder / "other")


def test_a_long_name_is_shortened(trained, audio, tmp_path):
    """A file system takes 255 bytes, also of `.safetensors.part`."""
    os.rename(audio / "a.wav", audio / f"{'ä' * 125}.wav")
    out = tmp_path / "out"
    encode(trained.run, audio, out=out, options=["--format", "safetensors"])
    command = ["decode", str(trained.model), str(out), "--layer", "module3"]
    cli.main([*command, "--out", str(tmp_path / "wavs")])
    (wav,) = (tmp_path / "wavs").glob("ä*.wav")
    expected = soundfile.info(audio / f"{'ä' * 125}.wav").frames
    assert soundfile.info(wav).frames == expected


def test_names_that_clash_are_refused(trained, audio, tmp_path):
    for inputs in ([audio / "ann/b.wav", audio / "bob/b.wav"], [audio]):
        if inputs == [audio]:
            shutil.copy(audio / "a.wav", audio / "a.flac")
        with pytest.raises(SystemExit, match="would both become '(a|b)'"):
            encode(trained.run, *inputs, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(
        SystemExit, match="is no file, and no folder with .*.wav"
    ):
        encode(trained.run, tmp_path / "nowhere", out=tmp_path / "out")


def test_bad_files_are_named(trained, audio, tmp_path, capsys):
    (audio / "bad.wav").write_bytes(b"no audio")
    soundfile.write(audio / "short.wav", np.zeros(20), 16000)
    out = tmp_path / "out"
    with pytest.raises(SystemExit, match="(?s)2 bad files.*bad.wav.*short.wav"):
        encode(trained.run, audio, out=out)
    assert not out.exists()
    skip = ["--on-bad-audio", "skip"]
    encode(trained.run, audio, out=out, options=skip)
    printed = capsys.readouterr().out
    assert printed.count("Left out: ") == 2 and "2 left out" in printed
    assert len(list(out.rglob("*.npy"))) == 4


def test_a_file_that_is_bad_inside_stops_no_other(
    trained, audio, tmp_path, capsys
):
    path = audio / "ann/aa.flac"
    soundfile.write(path, np.random.default_rng(0).uniform(-1, 1, 99999), 16000)
    path.write_bytes(path.read_bytes()[:-30000])
    out = tmp_path / "out"
    with pytest.raises(SystemExit, match="(?s)All others were .*aa.flac"):
        encode(trained.run, audio, out=out)
    assert {f for f in files_in(out) if f.endswith(".npy")} == {
        f"{name}.npy" for name in NAMES
    }
    encode(trained.run, audio, out=out, options=["--on-bad-audio", "skip"])
    assert "1 left out" in capsys.readouterr().out
    soundfile.write(path, np.random.default_rng(0).uniform(-1, 1, 99999), 16000)
    encode(trained.run, audio, out=out)
    assert "ann/aa.npy" in files_in(out)


def test_other_latents_are_not_decoded(trained, audio, tmp_path):
    def decode(source, *inputs, layer="module3"):
        out = ["--layer", layer, "--out", str(tmp_path / "wavs")]
        cli.main(["decode", str(source), *map(str, inputs), *out])

    encode(trained.run, audio, out=tmp_path / "x", layer="module2")
    with pytest.raises(
        SystemExit, match="is of the layer module2, not module3"
    ):
        decode(trained.model, tmp_path / "x")
    with pytest.raises(SystemExit, match="no decoder of 'module2'; it has mod"):
        decode(trained.model, tmp_path / "x", layer="module2")
    (tmp_path / "x/encode.json").unlink()
    z = np.load(tmp_path / "x/a.npy")[:20]
    np.save(tmp_path / "alone.npy", z)
    decode(trained.model, tmp_path / "alone.npy")
    frames = soundfile.info(tmp_path / "wavs/alone.wav").frames
    assert trained.encoder.output_lengths(frames, "module3") == 20
    np.save(tmp_path / "alone.npy", z + 1)
    with pytest.raises(SystemExit, match="of the alone .*another --out"):
        decode(trained.model, tmp_path / "alone.npy")


@pytest.mark.parametrize("kind", ["logmel", "hubert"])
def test_encoders_that_read_whole_files(audio, tmp_path, kind):
    source, layer = kind, kind
    if kind == "hubert":
        source = save_model(tmp_path / "model", "hubert", "base")
        layer = "hidden1"
    encode(source, audio, out=tmp_path / "out", layer=layer)
    record = json.loads((tmp_path / "out/encode.json").read_text())
    encoder, _ = convert.load_encoder(source)
    for name in NAMES:
        found = np.load(tmp_path / "out" / f"{name}.npy")
        samples = record["files"][name]["samples"]
        assert len(found) == encoder.output_lengths(samples, layer)


def test_a_long_file_takes_little_memory(trained, tmp_path):
    code = (
        "import resource, sys\nfrom speechbrain_sim import cli\n"
        "for n in sys.argv[2:]:\n"
        "    cli.main(['encode', sys.argv[1], n, '--layer', 'module3',\n"
        "              '--out', 'out'])\n"
        "    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)\n"
    )
    minute = np.random.default_rng(0).uniform(-0.1, 0.1, 60 * 16000)
    for name, minutes in {"short.wav": 1, "long.wav": 21}.items():
        with soundfile.SoundFile(tmp_path / name, "w", 16000, 1) as file:
            for _ in range(minutes):
                file.write(minute)
    done = subprocess.run(
        [sys.executable, "-c", code, trained.run, "short.wav", "long.wav"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    short, long = (
        int(x) for x in done.stdout.split() if x.isdigit() and len(x) > 4
    )
    assert long - short < 20_000  # kB; the waveform alone has 80,000
    assert len(np.load(tmp_path / "out/long.npy", mmap_mode="r")) == 126000


def test_the_record_knows_relative_folders(
    trained, audio, tmp_path, monkeypatch
):
    monkeypatch.chdir(audio)
    encode(trained.run, "ann", out=Path("../out"))
    encode(trained.run, audio / "ann", out=tmp_path / "out")  # the same
    assert len(list((tmp_path / "out").rglob("*.npy"))) == 2


#: of two ranks, the second dies in its second file, once
DEAD_RANK = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv.pop(1))
from speechbrain_sim import cli, convert
write, count, marker = convert.write_latents, 0, Path(sys.argv.pop(1))
def write_some(encoder, path, targets, **options):
    global count
    count += 1
    if os.environ["RANK"] == "1" and count == 2 and not marker.exists():
        target = targets["module2"]
        target.parent.mkdir(exist_ok=True)
        target.with_name(target.name + ".part").write_bytes(b"half")
        marker.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    write(encoder, path, targets, **options)
convert.write_latents = write_some
cli.main(sys.argv[1:])
"""


def test_a_dead_rank_s_share_is_taken_up(audio, tmp_path, trained):
    """By the next launch; one index, and the files of one process."""
    options = ["--layer", "module2", "--out"]
    words = ["encode", str(trained.model), str(audio), *options]
    whole, shared = tmp_path / "whole", tmp_path / "shared"
    script, marker = tmp_path / "rank.py", tmp_path / "killed"
    script.write_text(DEAD_RANK)
    cli.main([*words, str(whole)])
    words = [script, ROOT, marker, *words, shared]
    first = torchrun(*words)
    output, _ = first.communicate(timeout=300)
    # whichever is noticed first: the death, or what the other rank misses
    signs = "SIGKILL", "exitcode: -9", "by peer"
    assert first.returncode and any(x in output for x in signs), output
    assert marker.exists()
    assert files_in(shared) != files_in(whole)
    finish(torchrun(*words))
    assert files_in(shared) == files_in(whole)
    for name in files_in(whole):
        assert (shared / name).read_bytes() == (whole / name).read_bytes()
    # what rank 1 had written before stays as it is
    kept = [p for p in shared.rglob("*.npy") if older(p, marker)]
    assert 1 <= len(kept) < 4


def test_ranks_share_what_is_decoded_and_wait_for_days(
    trained, audio, tmp_path, monkeypatch, capsys
):
    latents, wavs, order, timeouts = tmp_path / "z", tmp_path / "w", [], []
    write = convert.write_latents
    monkeypatch.setattr(
        convert,
        "write_latents",
        lambda encoder, path, *args, **options: (
            order.append(soundfile.info(path).duration)
            or write(encoder, path, *args, **options)
        ),
    )
    encode(trained.model, audio, out=latents)
    assert order == sorted(order, reverse=True) and order[0] > order[-1]
    groups = torch.distributed.distributed_c10d
    monkeypatch.setattr(
        groups, "_set_pg_timeout", lambda time, group: timeouts.append(time)
    )
    monkeypatch.setattr(torch.distributed, "init_process_group", str)
    words = ["decode", str(trained.model), str(latents), "--out", str(wavs)]
    capsys.readouterr()
    for rank, count in (1, 2), (0, 4):
        monkeypatch.setattr(
            convert, "_share", lambda names, rank=rank: [*names][rank::2]
        )
        for name in "RANK", "LOCAL_RANK":
            monkeypatch.setenv(name, str(rank))
        cli.main([*words, "--layer", "module3"])
        assert len([*wavs.rglob("*.wav")]) == count
        assert ("wav files" in capsys.readouterr().out) == (rank == 0)
    assert len(timeouts) == 2 and min(timeouts).days >= 1


def older(path, other):
    return path.stat().st_mtime_ns <= other.stat().st_mtime_ns
