"""The model in the box: whole, small, and opened without a network."""

import hashlib
import json
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from safetensors.torch import load_file
from speechbrain.utils.fetching import FetchFrom, FetchSource

from speechbrain_sim import LatentFeatures, SmoothInfoMax, cli, load_encoder
from speechbrain_sim.data.espeak import PHONES
from speechbrain_sim.hub.publish import check_model, export_model
from speechbrain_sim.models.fetch import BOX, BUILT_IN, open_source
from speechbrain_sim.models.format import example_folder, parts_of
from speechbrain_sim.models.load import save_encoder
from tests.conftest import ROOT

NAME = "sim-small"
FOLDER = BOX / NAME
CONFIG = json.loads((FOLDER / "config.json").read_text())


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def refuse(*args, **kwargs):
        pytest.fail("asked the network")

    for name in ("connect", "connect_ex", "sendto"):
        monkeypatch.setattr(socket.socket, name, refuse)
    for name in ("create_connection", "getaddrinfo"):
        monkeypatch.setattr(socket, name, refuse)
    place = "speechbrain_sim.models.fetch"
    monkeypatch.setattr(f"{place}.hf_hub_download", refuse)
    monkeypatch.setattr(f"{place}.HubRepository.__init__", refuse)


# what is in it --------------------------------------------------------------


def test_its_files_have_their_hashes():
    found = {
        f"{NAME}/{path.name}": hashlib.sha256(path.read_bytes()).hexdigest()
        for path in FOLDER.iterdir()
    }
    lines = (BOX / f"{NAME}.sha256").read_text().splitlines()
    assert found == {name: h for h, name in (x.split("  ") for x in lines)}
    for name, part in CONFIG["parts"].items():
        assert found[f"{NAME}/{name}.safetensors"] == part["sha256"]


def test_it_is_small_and_in_half_precision(tmp_path):
    wheel = shutil.make_archive(tmp_path / "wheel", "zip", FOLDER)
    assert Path(wheel).stat().st_size <= 3_000_000
    assert len([*FOLDER.glob("*.wav")]) == 2
    weights = load_file(FOLDER / "encoder.safetensors")
    matrices = {x.dtype for x in weights.values() if x.ndim > 1}
    assert matrices == {torch.float16}


def test_it_has_decoders_probes_and_names():
    layers = ["module1", "module2", "module3"]
    assert list(parts_of(CONFIG["parts"], "decoder")) == layers
    probes = parts_of(CONFIG["parts"], "probe")
    assert set(probes) == {"phones", "speaker"}
    assert probes["phones"]["classes"] == PHONES
    assert len(list(check_model(NAME))) >= 4
    card = (FOLDER / "README.md").read_text()
    for stated in ("espeak-ng", "GPL-3.0", "people's speech", "apache-2.0"):
        assert stated in card
    assert all(text in card for text in CONFIG["examples"].values())


def test_numbers_of_the_readme_are_its_own():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    (table,) = re.findall(r"<!-- make box -->(.*?)<!-- end", text, re.S)
    rows = [re.split(r" *\| *", row) for row in table.strip().splitlines()[2:]]
    stated = {(row[1].split(":")[0], row[2]): row[3] for row in rows}
    for label, probe in parts_of(CONFIG["parts"], "probe").items():
        layer, classes = probe["best_layer"], len(probe["classes"])
        score = probe["layers"][layer]
        low, high = (f"{100 * x:.1f}" for x in score["interval"])
        number = f"{100 * score['accuracy']:.1f} [{low}, {high}]"
        assert stated.pop((f"{label}, {classes} classes", layer)) == number
    decoders = parts_of(CONFIG["parts"], "decoder")
    shares = [100 * x["valid"]["explained"] for x in decoders.values()]
    found = stated.pop(("decoders", " / ".join(decoders))).split(" / ")
    np.testing.assert_allclose([int(x) for x in found], shares, atol=0.5)
    assert not stated


# how it is opened -----------------------------------------------------------


def test_every_door_opens_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = SmoothInfoMax.from_pretrained(NAME)
    wavs = torch.randn(2, 8000).clamp(-3, 3) / 9
    expected = model.encode_batch(wavs, layer="module3")
    assert expected.mean.dtype == torch.float32
    by_yaml = SmoothInfoMax.from_hparams(NAME)
    assert torch.equal(by_yaml.encode_batch(wavs)["module3"][0], expected.mean)
    encoder, about = load_encoder(NAME)
    assert torch.equal(encoder(wavs)["module3"].mean, expected.mean)
    assert about["sha256"] == CONFIG["parts"]["encoder"]["sha256"]
    features = LatentFeatures(NAME, "module3")
    assert torch.equal(features(wavs), expected.mean)
    wav = str(model.examples[0])
    cli.main(["encode", NAME, wav, "--layer", "module3", "--out", "made"])
    (made,) = Path("made").rglob("*.npy")
    latent = model.encode_file(wav, "module3").mean[0]
    np.testing.assert_allclose(np.load(made), latent, atol=1e-5)


def test_a_folder_of_its_name_is_a_path(tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    example_folder(tmp_path / NAME)
    channels = CONFIG["parts"]["encoder"]["arguments"]["channels"]
    with caplog.at_level("WARNING"):
        assert load_encoder(NAME)[0].channels_of("module1") == channels
    assert f"the folder of this name is ./{NAME}" in caplog.text
    local = FetchSource(FetchFrom.LOCAL, NAME)
    for source in (f"./{NAME}", Path(NAME), tmp_path / NAME):
        assert load_encoder(source)[0].channels_of("module1") == 4
    assert open_source(local).folder == Path(NAME)
    # nor is a transformer's folder of this name looked at
    (tmp_path / NAME / "config.json").write_text('{"model_type": "wav2vec2"}')
    assert load_encoder(NAME)[0].channels_of("module1") == channels


@pytest.mark.parametrize(
    "open_it", [SmoothInfoMax.from_pretrained, load_encoder, open_source]
)
def test_a_misspelt_name_is_told_the_right_ones(open_it):
    assert NAME in BUILT_IN
    with pytest.raises(FileNotFoundError, match=f"built in: .*{NAME}"):
        open_it("sim-smal")


def test_it_has_no_revisions():
    with pytest.raises(ValueError, match="built in, without revisions"):
        open_source(NAME, revision="v1")


def test_loading_it_imports_no_compiler():
    # torch's takes longer than all the rest
    code = (
        "import sys\nfrom speechbrain_sim import SmoothInfoMax\n"
        f"model = SmoothInfoMax.from_pretrained('{NAME}')\n"
        "model.classify_file(model.examples[0], 'phones')\n"
        "assert 'torch._dynamo' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


# half precision -------------------------------------------------------------


def test_parts_of_others_belong_to_it(tmp_path):
    encoder, about = load_encoder(NAME)
    saved = save_encoder(tmp_path, encoder, about, NAME)
    assert saved["parts"]["encoder"]["sha256"] == about["sha256"]


def test_an_export_in_half_precision(trained, tmp_path):
    config = export_model(
        trained.run, tmp_path / "a", [trained.probe], half=True
    )
    weights = load_file(tmp_path / "a/encoder.safetensors")
    encoder, about = load_encoder(tmp_path / "a")
    assert about["sha256"] != load_encoder(trained.run)[1]["sha256"]
    assert config["parts"]["probe_phones"]["encoder"] == about["sha256"]
    before = trained.encoder.state_dict()
    for name, x in encoder.state_dict().items():
        assert x.dtype == before[name].dtype
        if x.ndim > 1:
            assert weights[name].dtype == torch.float16
            assert torch.equal(x, before[name].half().float())
        else:
            assert torch.equal(x, before[name])
    shutil.copytree(tmp_path / "a", tmp_path / "b/a")
    export_model(tmp_path / "b/a", tmp_path / "a", half=True)  # rounds no more
    assert load_encoder(tmp_path / "a")[1]["sha256"] == about["sha256"]


# its examples ---------------------------------------------------------------


def test_the_examples_are_recognised_and_walked_between():
    model = SmoothInfoMax.from_pretrained(NAME)
    one, two = model.examples
    assert [path.parent for path in (one, two)] == [FOLDER, FOLDER]
    assert list(CONFIG["examples"]) == [one.name, two.name]
    found = model.classify_file(one, "phones")
    wav = torch.from_numpy(soundfile.read(one, dtype="float32")[0])
    whole = model.classify(wav[None], label="phones")
    assert found.names() == whole.names()
    (sequence,) = found.sequences()
    assert 5 < len(sequence) < len(set(PHONES)) + 20
    assert all(a != b for a, b in zip(sequence, sequence[1:], strict=False))
    walk = model.interpolate_files(one, two, "module1", steps=3)
    ends = [model.encode_file(p, "module1").mean for p in (one, two)]
    frames = min(z.shape[1] for z in ends)
    for z, sound in zip(ends, walk[::2], strict=True):
        torch.testing.assert_close(
            sound, model.decode(z[:, :frames], "module1")[0]
        )
    assert walk[1].std() > 1e-4


def test_a_model_without_examples_has_none(trained):
    assert SmoothInfoMax.from_pretrained(trained.run).examples == []
    assert SmoothInfoMax.from_hparams(trained.model).examples == []
    (path,) = SmoothInfoMax.from_pretrained(trained.model).examples
    assert path == trained.model / "example.wav"
