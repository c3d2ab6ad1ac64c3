"""Reliability and security: what a fault may not cost.

Cases of sections B, G and H. Others in tests of their own: a kill at any moment
(`tests/brains/test_resume.py`), a cut download (`tests/data/test_download.py`).
"""

import csv
import json
import math
import os
import resource
import signal
import tarfile
import time
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import requests
import soundfile
import torch

from speechbrain_sim import convert, files
from speechbrain_sim.analysis.latents import encode_clips
from speechbrain_sim.brains import checkpointer as checkpoints
from speechbrain_sim.brains.base import ResumableBrain
from speechbrain_sim.brains.checkpointer import AtomicCheckpointer, not_finite
from speechbrain_sim.config import load_experiment
from speechbrain_sim.data import download
from speechbrain_sim.decoders import make_decoder
from speechbrain_sim.encoders.greedy import GreedyEncoder
from speechbrain_sim.encoders.logmel import LogMel
from speechbrain_sim.extraction import encode_manifest
from speechbrain_sim.features import encode_file
from speechbrain_sim.files import file_of, lock_folder, short_name
from speechbrain_sim.hub.publish import check_model, export_model
from speechbrain_sim.inference import SmoothInfoMax
from speechbrain_sim.models.fetch import HubRepository
from speechbrain_sim.models.format import (
    example_folder,
    load_parts,
    save_parts,
)
from speechbrain_sim.models.load import (
    check_folder,
    load_encoder,
    save_encoder,
)
from tests.brains.test_distributed import recipe as torchrun_pretrain
from tests.conftest import (
    HPARAMS,
    finish,
    make_brain,
    make_loader,
    same,
    weights,
)
from tests.loopback_hub import LoopbackHub

NAN = math.nan


def contents(folder):
    """The bytes of all files below a folder, but the lock and logs of runs."""
    return {
        path: path.read_bytes()
        for path in sorted(Path(folder).rglob("*"))
        if path.is_file() and path.name not in (".lock", "env.log", "log.txt")
    }


def fit(brain, loader, valid=None):
    valid = make_loader(1) if valid is None else valid
    brain.fit(brain.hparams.epoch_counter, loader, valid)
    return brain


def with_nan(loader, *batches):
    for batch in batches:
        loader.dataset[2 * batch]["sig"][100] = NAN
    return loader


def checkpoint_names(folder):
    return sorted(path.name for path in Path(folder, "save").glob("CKPT*"))


# --- checkpoints (G1, H12, H16) ----------------------------------------------


def checkpointer_in(folder, value=1.0):
    model = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.constant_(model.weight, value)
    return AtomicCheckpointer(folder, {"model": model}), model


DAMAGES = {
    "cut": lambda path: (path / "brain.ckpt").write_text("step"),
    "no meta": lambda path: (path / "CKPT.yaml").unlink(),
    "nothing hashed": lambda path: (path / checkpoints.HASHES).write_text("{}"),
    "hashes of no files": lambda path: (path / checkpoints.HASHES).write_text(
        "[1]"
    ),
    "emptied": lambda path: [file.unlink() for file in path.iterdir()],
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """What a tiny brain of two epochs leaves."""
    folder = tmp_path_factory.mktemp("finished")
    fit(make_brain(folder, epochs=2), make_loader(2))
    assert len(checkpoint_names(folder)) == 2
    return folder


@pytest.mark.parametrize("kind", DAMAGES)
def test_g1_without_a_whole_checkpoint_nothing_is_lost(
    finished, tmp_path, kind
):
    for path, content in contents(finished).items():
        files.write_bytes(tmp_path / path.relative_to(finished), content)
    for path in (tmp_path / "save").glob("CKPT*"):
        DAMAGES[kind](path)
    before, names = contents(tmp_path), checkpoint_names(tmp_path)
    with pytest.raises(ValueError, match="None of the checkpoints") as caught:
        fit(make_brain(tmp_path, epochs=3), make_loader(2))
    assert all(name in str(caught.value) for name in names)
    assert contents(tmp_path) == before


def test_g1_files_are_on_the_disk_before_a_name(tmp_path, monkeypatch):
    done, fsync, rename = [], os.fsync, os.replace

    def synced(descriptor):
        done.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        fsync(descriptor)

    def renamed(source, target):
        done.append(("renamed", Path(target).name))
        rename(source, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", renamed)
    saved = checkpointer_in(tmp_path)[0].save_checkpoint().path
    end = done.index(("renamed", saved.name))
    before = {Path(x).name for x in done[:end] if isinstance(x, str)}
    assert before >= {path.name for path in saved.iterdir()}
    assert str(tmp_path) in done[end:]
    files.write_json(tmp_path / "a.json", {})
    assert done[-2].endswith("a.json.part") and done[-1][1] == "a.json"


@pytest.mark.parametrize("clock", [-3600.0, -1e9, 0.0])
def test_h12_checkpoints_are_ordered_as_they_were_saved(
    tmp_path, monkeypatch, clock
):
    """Though the clock is set back, or stands still."""
    now = [time.time()]
    monkeypatch.setattr(time, "time", lambda: now[0])
    saver, model = checkpointer_in(tmp_path)
    for value in (1.0, 2.0, 3.0, 4.0):
        torch.nn.init.constant_(model.weight, value)
        saver.save_and_keep_only(num_to_keep=2, importance_keys=[])
        now[0] += clock
    assert len(list(tmp_path.iterdir())) == 2
    saver, model = checkpointer_in(tmp_path)
    saver.recover_if_possible()
    assert model.weight.item() == 4.0


def test_h16_a_name_is_not_shared_with_a_killed_run(tmp_path, monkeypatch):
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now)
    stamp = time.strftime("%Y-%m-%d+%H-%M-%S", time.localtime(now))
    for number in ("00", "01"):
        left = tmp_path / f"incomplete+CKPT+{stamp}+{number}"
        left.mkdir()
        (left / "other.ckpt").touch()
    saver, _ = checkpointer_in(tmp_path)
    first, second = saver.save_checkpoint(), saver.save_checkpoint()
    assert {first.path, second.path} == set(tmp_path.iterdir())
    assert not (first.path / "other.ckpt").exists()


# --- one run in a folder (G2, H9) --------------------------------------------


def start_holder(folder, worker=False):
    """Forks a process that holds a folder; its pid, and that of its worker."""
    reading, writing = os.pipe()
    if not (pid := os.fork()):
        try:
            lock_folder(folder)
            other = os.fork() if worker else 0
            if other or not worker:
                os.write(writing, f"{other}\n".encode())
            time.sleep(60)
        finally:
            os._exit(0)
    with os.fdopen(reading) as pipe:
        other = int(pipe.readline())
    os.close(writing)
    return pid, other


def kill(pid):
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def test_g2_a_second_run_is_told_of_the_first(recipes, tiny_yaml, tmp_path):
    pid, worker = start_holder(tmp_path, worker=True)
    try:
        with pytest.raises(BlockingIOError, match=rf"process {pid} on .*wait"):
            recipes["pretrain"].main(
                [str(tiny_yaml), "--output_folder", str(tmp_path)]
            )
        assert not (tmp_path / "hyperparams.yaml").exists()
    finally:
        kill(pid)
    lock_folder(tmp_path)  # though a worker of the other outlives it
    os.kill(worker, signal.SIGKILL)
    lock_folder(tmp_path)  # an inner run of a study
    lock_folder(tmp_path / "inner")


def test_g2_a_second_encode_decode_or_export_is_refused(tmp_path):
    model, out = example_folder(tmp_path / "model"), tmp_path / "out"
    wav = tmp_path / "a.wav"
    soundfile.write(wav, np.zeros(4000), 16000)
    convert.encode_files(model, [wav], tmp_path / "z", "module1")
    decoder = make_decoder(load_encoder(model)[0], "module1")
    save_parts(model, {"decoder_module1": decoder}, training={})
    new = tmp_path / "new"
    held = [out, tmp_path / "new.part"]
    pids = [start_holder(folder)[0] for folder in held]
    try:
        for start in (
            lambda: convert.encode_files(model, [wav], out, "module1"),
            lambda: convert.decode_files(
                model, [tmp_path / "z"], out, "module1"
            ),
            lambda: export_model(model, new),
        ):
            with pytest.raises(BlockingIOError, match="choose another folder"):
                start()
    finally:
        for pid in pids:
            kill(pid)
    assert [path.name for path in out.iterdir()] == [".lock"]
    export_model(model, new)
    assert not held[1].exists() and not (new / ".lock").exists()


def test_g2_no_locks_on_this_file_system(tmp_path, monkeypatch):
    def refuse(*args):
        raise OSError(37, "No locks available")

    monkeypatch.setattr(files.fcntl, "lockf", refuse)
    lock_folder(tmp_path)


@pytest.fixture(scope="module")
def pretrained(recipes, tiny_yaml, tmp_path_factory):
    """A run of one epoch, made by the recipe."""
    folder = tmp_path_factory.mktemp("pretrained")
    recipes["pretrain"].main(options(tiny_yaml, folder, epochs=1))
    return folder


def options(yaml, folder, epochs, *more):
    options = ["--output_folder", folder, "--number_of_epochs", epochs, *more]
    options += ["--device", "cpu", "--noprogressbar"]
    return list(map(str, [yaml, *options]))


def yaml_of(tmp_path, base, corpus, **keys):
    """A difference to a yaml of `hparams`, for the tiny corpus."""
    keys = {"corpus": "Tiny", "data_folder": corpus.folder, **keys}
    keys |= {"train_csv": corpus.train, "valid_csv": corpus.valid}
    lines = [f"{key}: {value}" for key, value in keys.items()]
    lines += [f"base: {HPARAMS}/{base}.yaml", "prepare: !name:builtins.dict"]
    (tmp_path / f"{base}.yaml").write_text("\n".join(lines) + "\n")
    return tmp_path / f"{base}.yaml"


@pytest.mark.parametrize("other", ["decode", "study", "gim", "random"])
def test_h9_no_recipe_replaces_the_record_of_another(
    pretrained, recipes, tiny_yaml, corpus, tmp_path, other
):
    before = contents(pretrained)
    with pytest.raises(ValueError, match="choose another --output_folder"):
        if other == "decode":
            yaml = yaml_of(tmp_path, "decode", corpus, crop_samples=4000)
            more = ["--encoder", pretrained]
            recipes["decode"].main(options(yaml, pretrained, 1, *more))
        elif other == "study":
            yaml = HPARAMS / "Synthetic/study.yaml"
            argv = [yaml, "--output_folder", pretrained]
            load_experiment([*map(str, argv), "--data_folder", corpus.folder])
        else:
            argv = options(tiny_yaml, pretrained, 2, "--model", other)
            recipes["pretrain"].main(argv)
    assert contents(pretrained) == before


def test_h9_a_run_is_probed_in_its_own_folder(
    pretrained, recipes, tiny_yaml, corpus, tmp_path
):
    folder = tmp_path / "run"
    recipes["pretrain"].main(options(tiny_yaml, folder, 1))
    before, encoder = contents(folder), load_encoder(folder)[1]["sha256"]
    yaml = yaml_of(
        tmp_path, "probe", corpus, label="pitch", test_csv=corpus.valid
    )
    probe = options(yaml, folder, 1, "--controls", "10", "--protocol", "paper")
    with pytest.raises(ValueError, match="a model of another encoder"):
        recipes["probe"].main([*probe, "--encoder", "logmel"])
    recipes["probe"].main([*probe, "--encoder", str(folder)])
    after = contents(folder)
    kept = [path for path in before if path.name != "config.json"]
    assert all(after[path] == before[path] for path in kept)
    assert load_encoder(folder)[1]["sha256"] == encoder
    assert set(load_parts(folder)[0]) == {"encoder", "probe_pitch"}
    recipes["pretrain"].main(options(tiny_yaml, folder, 2))
    assert load_encoder(folder)[1]["epochs"] == 2


def test_h9_a_folder_is_of_one_encoder(tmp_path):
    encoder = *load_encoder("logmel"), "logmel"
    check_folder(tmp_path, *encoder)
    save_encoder(tmp_path, *encoder)
    check_folder(tmp_path, *encoder)
    with pytest.raises(ValueError, match="another encoder"):
        check_folder(tmp_path, LogMel(n_mels=4), *encoder[1:])


@pytest.mark.parametrize("kind", ["an export", "probes"])
def test_h9_models_of_others_are_not_trained_over(
    model_folder, recipes, tiny_yaml, kind
):
    if kind == "probes":
        (model_folder / "hyperparams.yaml").unlink()
    before = contents(model_folder)
    with pytest.raises(ValueError, match="choose another --output_folder"):
        recipes["pretrain"].main(options(tiny_yaml, model_folder, 1))
    assert contents(model_folder) == before


# --- what is not finite (H3, H4, B4, B5) -------------------------------------


def diverging(parameters):
    return torch.optim.Adam(parameters, lr=1e30)


@pytest.mark.parametrize("steps", [1, 2, 3, 5])
def test_h3_divergence_saves_nothing(tmp_path, steps):
    brain = make_brain(tmp_path, epochs=4, opt_class=diverging)
    with pytest.raises(ValueError, match="lower the learning rate") as caught:
        fit(brain, make_loader(steps))
    assert "poch 1" in str(caught.value) and "module1" in str(caught.value)
    assert not (tmp_path / "config.json").exists()
    assert not checkpoint_names(tmp_path)


def test_h3_a_run_goes_on_from_the_last_finite_checkpoint(tmp_path):
    fit(make_brain(tmp_path), make_loader())
    good = weights(make_brain(tmp_path, epochs=1))
    before = contents(tmp_path)
    with pytest.raises(ValueError, match=r"module1.*epoch 2, step 3, .* nan"):
        fit(make_brain(tmp_path, epochs=2), with_nan(make_loader(), 2))
    assert contents(tmp_path) == before
    brain = fit(make_brain(tmp_path, epochs=2), make_loader())
    assert brain.hparams.epoch_counter.current == 2
    assert not same(weights(brain), good)


def test_h3_checkpoints_within_an_epoch_are_finite_too(tmp_path):
    brain = make_brain(tmp_path, run_opts={"ckpt_interval_steps": 1})
    with pytest.raises(ValueError, match="In epoch 1, after step 3, module1"):
        fit(brain, with_nan(make_loader(4), 2))
    assert len(checkpoint_names(tmp_path)) == 1


@pytest.mark.parametrize("model", ["sim", "supervised"])
def test_h3_a_skipped_batch_leaves_batch_norm_as_it_was(tmp_path, model):
    labels = {"target": [torch.tensor([i % 2]) for i in range(6)]}
    labels = labels if model == "supervised" else {}
    changes = {"classes": 2} if labels else {}
    brain = make_brain(
        tmp_path,
        model,
        batch_norm=True,
        run_opts={"skip_nonfinite_grads": True},
        **changes,
    )
    valid = make_loader(3, **labels)
    fit(brain, with_nan(make_loader(3, **labels), 1), valid)
    assert not_finite(brain.unwrapped) is None
    assert (tmp_path / "encoder.safetensors").exists()


def test_h3_a_checkpoint_of_before_that_is_not_finite(tmp_path, monkeypatch):
    saver, model = checkpointer_in(tmp_path, 1.0)
    saver.save_checkpoint()
    torch.nn.init.constant_(model.weight, NAN)
    with monkeypatch.context() as patch:
        patch.setattr(AtomicCheckpointer, "check_finite", lambda self: None)
        bad = saver.save_checkpoint().path
    saver, model = checkpointer_in(tmp_path)
    assert saver.recover_if_possible().path != bad
    assert model.weight.item() == 1.0
    saver.save_checkpoint()
    assert not bad.exists()
    for path in tmp_path.iterdir():
        saver._note(path, "damaged")
    torch.nn.init.constant_(model.weight, math.inf)
    with pytest.raises(ValueError, match="model has NaN or infinity in weight"):
        saver.save_checkpoint()


def test_h3_what_is_checked():
    model = torch.nn.BatchNorm1d(2)
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.randn(3, 2)).sum().backward()
    optimizer.step()
    objects = {"model": model, "optimizer": optimizer, "epoch": 1}
    assert not_finite(objects) is None
    optimizer.state[model.bias]["exp_avg"][0] = NAN
    found = "optimizer has NaN or infinity in exp_avg 1"
    assert not_finite(objects) == found
    model.running_var[1] = math.inf
    assert not_finite(objects) == "model has NaN or infinity in running_var"


@pytest.mark.parametrize("late", [1, 6])
@pytest.mark.parametrize("patience", [0, 3])
def test_b4_a_batch_that_is_not_finite_names_its_utterances(
    tmp_path, patience, late, monkeypatch
):
    """Also if losses are read some steps later, as on a GPU."""
    read = ResumableBrain.read

    def read_late(brain):
        if len(brain._unread) == late:
            read(brain)

    monkeypatch.setattr(ResumableBrain, "read", read_late)
    names = [f"utterance{number}" for number in range(12)]
    loader = with_nan(make_loader(6, id=names), 1)
    brain = make_brain(tmp_path, run_opts={"nonfinite_patience": patience})
    match = "epoch 1, step 2, the loss of module1 is nan, of utterance2, whose"
    with pytest.raises(ValueError, match=match):
        fit(brain, loader)
    assert not (tmp_path / "config.json").exists()


def test_b4_validation_names_utterances_too(tmp_path, caplog):
    names = [f"utterance{number}" for number in range(4)]
    valid = with_nan(make_loader(2, id=names), 1)
    fit(make_brain(tmp_path), make_loader(1), valid)
    text = "is nan, of utterance2, whose samples are not finite, in the VALID"
    assert text in caplog.text
    assert math.isfinite(load_encoder(tmp_path)[1]["valid"]["module1_loss"])


@pytest.fixture(scope="module")
def silent(corpus, tmp_path_factory):
    """The corpus with silent beginnings; long and odd ids in validation."""
    folder = tmp_path_factory.mktemp("silent")
    for path in Path(corpus.folder).glob("*.wav"):
        wav, rate = soundfile.read(path)
        wav[:4000] = 0
        soundfile.write(folder / path.name, wav, rate)
    for part in ("train", "valid"):
        rows = list(csv.DictReader(open(getattr(corpus, part))))
        if part == "valid":
            for row, name in zip(rows, LONG_IDS, strict=False):
                row["ID"] = name
        with open(folder / f"{part}.csv", "w", newline="") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)
    return SimpleNamespace(
        folder=str(folder),
        train=str(folder / "train.csv"),
        valid=str(folder / "valid.csv"),
    )


LONG_IDS = ["ä" * 200, "../../outside/" + "x" * 300]


def refuse_constant(name):
    raise AssertionError(f"{name} in json")


@pytest.mark.parametrize("crop", [4000, 8000])
def test_b5_h10_silence_and_long_names_in_decode(
    silent, pretrained, recipes, tmp_path, crop
):
    """All of a crop is silent, or half of it; ids are longer than names."""
    keys = {"crop_samples": crop, "batch_size": 2, "encoder": pretrained}
    yaml = yaml_of(tmp_path, "decode", silent, **keys, layer="module1")
    folder = tmp_path / "a/b/out"
    recipes["decode"].main(options(yaml, folder, 1))
    log = (folder / "train_log.txt").read_text()
    assert "inf" not in log and "nan" not in log
    text = (folder / "config.json").read_text()
    config = json.loads(text, parse_constant=refuse_constant)
    valid = config["parts"]["decoder_module1"]["valid"]
    assert ("explained" in valid) == (crop > 4000)
    assert valid["mse"] > 0 and "power" not in valid
    wavs = list((folder / "audio").rglob("*.wav"))
    assert len(wavs) == 4 and not list(tmp_path.rglob("outside/../../outside"))
    assert all(folder in wav.parents for wav in tmp_path.rglob("*.wav"))


@pytest.mark.parametrize("name", [*LONG_IDS, "a" * 255, "/etc/x", "a//b", ".."])
def test_h10_names_of_files(tmp_path, name):
    path = file_of(tmp_path, name, ".wav")
    with files.atomic(path) as partial:
        partial.write_bytes(b"x")
    assert path.resolve().is_relative_to(tmp_path)
    others = {file_of(tmp_path, name + x, ".wav") for x in ("1", "2")}
    assert len(others | {path}) == 3


def test_h10_long_file_names_are_encoded(tmp_path):
    wav = tmp_path / ("x" * 251 + ".wav")
    soundfile.write(wav, np.random.default_rng(0).normal(0, 0.1, 4000), 16000)
    encoder = GreedyEncoder(channels=2, context_channels=0).eval()
    target = tmp_path / ("x" * 251 + ".npy")
    with files.atomic(target) as partial:
        partial.touch()
    assert encode_file(encoder, wav, tmp_path, ["module1"])["module1"].any()
    assert (
        short_name("x" * 251) == short_name("x" * 251) != short_name("x" * 250)
    )


@pytest.fixture(scope="module")
def broken():
    """An encoder whose second module gives NaN; it could not be saved."""
    torch.manual_seed(0)
    encoder = GreedyEncoder(channels=4, context_channels=2).eval()
    encoder.layers["module2"].mean.bias.data[1] = NAN
    return encoder.requires_grad_(False)


@pytest.mark.parametrize("rows", ["mean", "all", "labels"])
def test_h4_a_store_of_nan_is_not_made(broken, corpus, tmp_path, rows):
    source = {"sha256": "0"}, corpus.valid, corpus.folder, tmp_path / "store"
    for seconds in (120.0, 0.1):  # in one piece, in several
        with pytest.raises(ValueError, match=r"module2 of utterance2\d holds"):
            encode_manifest(broken, *source, rows=rows, max_seconds=seconds)
    assert not (tmp_path / "store/statistics.npz").exists()
    encode_manifest(broken, *source, rows=rows, layers=["module1"])


@pytest.mark.parametrize("value", [None, NAN, math.inf])
def test_h4_latents_of_a_file_are_finite(broken, corpus, tmp_path, value):
    """Whether the encoder (None) or the audio is to blame."""
    path = Path(corpus.folder, "utterance00.wav")
    encoder = broken
    if value is not None:
        encoder = GreedyEncoder(channels=4, context_channels=2).eval()
        wav, path = soundfile.read(path)[0], tmp_path / "odd.wav"
        wav[5000] = value
        soundfile.write(path, wav, 16000, subtype="FLOAT")
    with pytest.raises(ValueError, match=path.name):
        encode_file(encoder, path, tmp_path / "out")
    assert not list((tmp_path / "out").glob("*"))


def test_h4_no_answer_from_nan(trained, broken):
    model = SmoothInfoMax.from_pretrained(trained.model)
    wavs = torch.randn(2, 8000) / 10
    assert model.classify(wavs, label="speaker").names()
    wavs[1] *= NAN
    for use in (model.encode_batch, model.classify):
        more = {"label": "speaker"} if use == model.classify else {}
        with pytest.raises(ValueError, match="Utterance 1 of wavs reaches nan"):
            use(wavs, **more)
    with pytest.raises(ValueError, match="module2 of clip 1 holds NaN"):
        encode_clips(broken, wavs[:1], broken.layer_names)


# --- archives and downloads (G4, H13) ----------------------------------------

INSIDE = "L/sub/1/a.flac"


def member(name, kind=tarfile.REGTYPE, link="", size=0):
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.size = kind, link, size
    return info


HOSTILE = {
    "symbolic link": [member("L/link", tarfile.SYMTYPE, "/etc")],
    "through a link": [
        member("L/link", tarfile.SYMTYPE, "../.."),
        member("L/link/evil"),
    ],
    "hard link": [member("L/link", tarfile.LNKTYPE, "../../secret")],
    "pipe": [member("L/pipe", tarfile.FIFOTYPE)],
    "device": [member("L/null", tarfile.CHRTYPE)],
    "absolute": [member("/tmp/evil")],
    "parent": [member("L/../../evil")],
    "parent folder": [member("../evil", tarfile.DIRTYPE)],
    "twice": [member(INSIDE), member(INSIDE)],
    "file and folder": [member("L/sub"), member(INSIDE)],
    "folder and file": [member(INSIDE), member("L/sub")],
    "null byte": [member("L/\udc80\0x")],
    "much": [member(INSIDE, size=1 << 20)],
    "many": [member(f"L/{number}") for number in range(300)],
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_g4_a_hostile_archive_leaves_nothing(tmp_path, monkeypatch, kind):
    monkeypatch.setattr(download, "SLACK", 1 << 19)
    archive, out = tmp_path / "deep/sub.tar.gz", tmp_path / "deep/er/out"
    out.mkdir(parents=True)
    (tmp_path / "secret").write_text("mine")
    with tarfile.open(archive, "w:gz", format=tarfile.PAX_FORMAT) as tar:
        for info in HOSTILE[kind]:
            data = open("/dev/zero", "rb") if info.size else None
            tar.addfile(info, data)
    before = contents(tmp_path)
    with pytest.raises(ValueError, match="cannot be unpacked"):
        download.unpack(archive, out)
    assert contents(tmp_path) == before and not list(out.iterdir())


@pytest.mark.parametrize("content", [b"", b"PK", b"<html>", b"\xfd7zXZ\0"])
def test_g4_what_is_no_archive(tmp_path, content):
    (tmp_path / "a.tar.gz").write_bytes(content * 500)
    with pytest.raises(ValueError, match="cannot be unpacked"):
        download.unpack(tmp_path / "a.tar.gz", tmp_path / "out")


def test_g4_modes_and_owners_are_not_obeyed(tmp_path):
    info = member(INSIDE)
    info.mode, info.uid = 0o6777, 12345
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        tar.addfile(info)
    download.unpack(tmp_path / "a.tar", tmp_path / "out")
    status = (tmp_path / "out" / INSIDE).stat()
    assert not status.st_mode & 0o6111 and status.st_uid == os.getuid()


def test_g4_https_is_kept(tmp_path, monkeypatch):
    @contextmanager
    def get(url, **options):
        hops = [SimpleNamespace(url=url), SimpleNamespace(url="http://evil/a")]
        yield SimpleNamespace(url="https://good/a", history=hops)

    monkeypatch.setattr(requests, "get", get)
    with pytest.raises(ValueError, match="http://evil/a, which is not safe"):
        download.fetch("https://good/a", tmp_path / "a")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("file", ["encoder.safetensors", "config.json"])
def test_h13_a_damaged_download_is_fetched_again(trained, tmp_path, file):
    names = {path.name: path.read_bytes() for path in trained.model.iterdir()}
    expected, _ = load_parts(trained.model)
    with LoopbackHub() as hub:
        hub.add("user/model", names)
        place = {"endpoint": hub.url, "cache_dir": tmp_path}
        hub.fail(f"GET .*{file}", "flip")
        for _ in range(2):  # then from the cache
            parts, config = load_parts(HubRepository("user/model", **place))
        assert parts.keys() == expected.keys()
        state = parts["encoder"].state_dict()
        assert same(state, expected["encoder"].state_dict())
        hub.fail("GET .*encoder.safetensors", "flip", times=9)
        (tmp_path / "other").mkdir()
        place["cache_dir"] = tmp_path / "other"
        with pytest.raises(ValueError, match="does not have the hash"):
            load_parts(HubRepository("user/model", **place))


# --- models of strangers (G5) ------------------------------------------------


def change_arguments(part="encoder", **changes):
    return lambda config: config["parts"][part]["arguments"].update(changes)


def rename_part(name):
    def rename(config):
        config["parts"][name] = config["parts"].pop("probe_speaker")

    return rename


PROBE = "probe_speaker"
STRANGE = {
    "wide": change_arguments(channels=30000),
    "wider": change_arguments(channels=1 << 60),
    "text": change_arguments(channels="6"),
    "fraction": change_arguments(channels=6.5),
    "nothing": change_arguments(channels=None),
    "negative": change_arguments(context_channels=-4),
    "stride 0": change_arguments(strides=[[0, 4], [2, 2], [2]]),
    "kernel 0": change_arguments(kernel_sizes=[[10, 0], [4, 4], [4]]),
    "padding": change_arguments(paddings=[[2, 2], [2, -2], [1]]),
    "deep": change_arguments(strides=[[[5], 4], [2, 2], [2]]),
    "long": change_arguments(strides=[[1] * 5000]),
    "no number": change_arguments(initial_log_var=NAN),
    "infinite": change_arguments(initial_log_var=math.inf),
    "unknown": change_arguments(code="import os"),
    "many probes": change_arguments(PROBE, probes=10**6),
    "many classes": change_arguments(PROBE, classes=10**12),
    "no layers": change_arguments(PROBE, channels=[1, 2]),
    "refined": change_arguments("decoder_module3", refinements=10**6),
    "spectrogram": lambda config: config["parts"]["encoder"].update(
        {"class": "LogMel", "arguments": {"n_fft": 10**6, "n_mels": 10**6}}
    ),
    "other code": lambda config: config["parts"]["encoder"].update(
        {"class": "os.system"}
    ),
    "path": rename_part("probe_../../x"),
    "class of a list": lambda config: config["parts"]["encoder"].update(
        {"class": ["GreedyEncoder"]}
    ),
    "training": lambda config: config.update(training="much"),
    "layer": lambda config: config["parts"][PROBE].update(best_layer=[1]),
    "kind": lambda config: config["parts"][PROBE].update(kind={"a": 1}),
}


@pytest.mark.parametrize("kind", STRANGE)
def test_g5_a_strange_config_is_refused_in_a_sentence(model_folder, kind):
    path = model_folder / "config.json"
    config = json.loads(path.read_text())
    STRANGE[kind](config)
    path.write_text(json.dumps(config))
    with pytest.raises(ValueError, match="config.json") as caught:
        load_parts(model_folder)
    assert len(str(caught.value)) < 500 + len(str(model_folder))


@pytest.mark.parametrize("kind", ["nested", "nested dicts", "large", "list"])
def test_g5_strange_json(model_folder, kind):
    text = {
        "nested": "[" * 100_000 + "]" * 100_000,
        "nested dicts": '{"a":' * 100_000 + "1" + "}" * 100_000,
        "large": " " * (1 << 24) + "{}",
        "list": "[1, 2]",
    }[kind]
    (model_folder / "config.json").write_text(text)
    with pytest.raises(ValueError, match="config.json"):
        load_parts(model_folder)


def test_g5_weights_larger_than_the_model_are_not_read(
    model_folder, monkeypatch
):
    with open(model_folder / "encoder.safetensors", "r+b") as file:
        file.truncate(1 << 40)  # sparse
    monkeypatch.setattr(Path, "read_bytes", None)
    with pytest.raises(ValueError, match="larger than the architecture"):
        load_parts(model_folder)


def test_g5_an_example_of_hours_is_not_encoded(model_folder, tmp_path, trained):
    hours = tmp_path / "hours.flac"
    soundfile.write(hours, np.zeros(70 * 16000), 16000)
    wav = soundfile.read(hours)[0]
    soundfile.write(model_folder / "example.wav", wav, 16000)
    with pytest.raises(ValueError, match="lasts 70 s, more than the 60 s"):
        list(check_model(model_folder))
    export_model(trained.run, tmp_path / "new", examples=[hours])
    assert soundfile.info(tmp_path / "new/example.wav").duration == 60


# --- a full disk (H6) --------------------------------------------------------


@contextmanager
def largest_file(size):
    """Lets every longer file fail, as a full disk or a quota does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_h6_space_is_allocated_before_a_file_is_encoded(
    corpus, tmp_path, monkeypatch
):
    encoder = GreedyEncoder(channels=64, context_channels=2).eval()
    path = Path(corpus.folder, "utterance00.wav")
    monkeypatch.setattr(GreedyEncoder, "stream", None)  # would fail otherwise
    match = "module1.npy.* cannot be written.* GB. Make room in .*/out"
    with largest_file(10_000), pytest.raises(OSError, match=match):
        encode_file(encoder, path, tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())


def test_h6_space_is_allocated_before_a_corpus_is_encoded(corpus, tmp_path):
    torch.manual_seed(0)
    encoder = GreedyEncoder(channels=64, context_channels=2).eval()
    source = {"sha256": "0"}, corpus.valid, corpus.folder, tmp_path / "store"
    with largest_file(10_000), pytest.raises(OSError, match="Make room in"):
        encode_manifest(encoder, *source, rows="all")
    encode_manifest(encoder, *source, rows="all")


@pytest.mark.parametrize("size", [0, 500, 3000, 12_000])
def test_h6_an_export_leaves_the_model_before(trained, tmp_path, size):
    folder = tmp_path / "model"
    with largest_file(size), pytest.raises(OSError):
        export_model(trained.run, folder)
    assert not folder.exists() or not list(folder.iterdir())
    export_model(trained.run, folder)
    before = contents(folder)
    with largest_file(size), pytest.raises(OSError):
        export_model(trained.run, folder, [trained.probe])
    assert contents(folder) == before
    assert os.listdir(tmp_path) == ["model"]


@pytest.mark.parametrize("size", [20, 1000, 2000])
def test_h6_a_checkpoint_that_does_not_fit(tmp_path, size):
    saver, model = checkpointer_in(tmp_path)
    saver.add_recoverable("large", torch.nn.Linear(50, 50))
    first = saver.save_checkpoint().path
    with largest_file(size):
        with pytest.raises(OSError, match=f"(?i)make room in {tmp_path}"):
            saver.save_checkpoint()
    assert list(tmp_path.iterdir()) == [first]


def test_h6_weights_replace_nothing_until_all_are_written(tmp_path):
    small = GreedyEncoder(channels=2, context_channels=0)
    large = GreedyEncoder(channels=40, context_channels=0)
    save_parts(tmp_path, {"encoder": small}, training={})
    before = contents(tmp_path)
    with largest_file(3000), pytest.raises(OSError, match="Make room"):
        save_parts(tmp_path, {"encoder": large}, training={})
    assert contents(tmp_path) == before


# --- two processes (G8) ------------------------------------------------------


def test_g8_supervised_and_probabilistic_under_ddp(tiny_yaml, tmp_path):
    more = ["--model", "supervised", "--label", "pitch", "--classes", "2"]
    more += ["--probabilistic", "True", "--context_channels", "0"]
    more += ["--number_of_epochs", "1"]
    finish(torchrun_pretrain(tiny_yaml, tmp_path, *more))
    assert load_encoder(tmp_path)[1]["epochs"] == 1
