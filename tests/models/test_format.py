"""Saved parts: they come back whole, or with a reason why not."""

import json
import shutil

import pytest
import torch
from safetensors import safe_open

from speechbrain_sim import files
from speechbrain_sim.decoders import SPECTROGRAM, make_decoder, mirror
from speechbrain_sim.encoders.greedy import GreedyEncoder
from speechbrain_sim.encoders.logmel import LogMel
from speechbrain_sim.models.format import load_parts, save_parts
from speechbrain_sim.models.load import (
    check_folder,
    load_decoder,
    load_encoder,
    save_encoder,
)
from tests.conftest import edit_config, same


@pytest.fixture
def encoder():
    torch.manual_seed(0)
    return GreedyEncoder(channels=4, context_channels=2, batch_norm=True)


def save(encoder, folder, **training):
    return save_parts(folder, {"encoder": encoder}, training=training)


def nudge(encoder):
    with torch.no_grad():
        encoder.layers["module1"].mean.bias += 1


def test_an_encoder_comes_back(tmp_path, encoder):
    encoder(torch.randn(2, 2000))  # moves the batch norms' statistics
    config = save(encoder, tmp_path / "a/b", epochs=3, valid={"loss": 1.5})
    loaded, description = load_encoder(tmp_path / "a/b")
    assert same(loaded.state_dict(), encoder.state_dict())
    assert not loaded.training
    assert not any(weight.requires_grad for weight in loaded.parameters())
    assert loaded.arguments == encoder.arguments == description["arguments"]
    assert description["layers"] == encoder.layer_names
    assert description["epochs"] == 3
    assert description["valid"] == {"loss": 1.5}
    weights = tmp_path / "a/b/encoder.safetensors"
    assert description["sha256"] == files.sha256(weights)
    assert torch.__version__.startswith(config["versions"]["torch"])
    found = {path.name for path in (tmp_path / "a/b").iterdir()}
    assert found == {"encoder.safetensors", "config.json"}
    with safe_open(weights, "pt") as file:
        assert file.metadata() == {"format": "pt"}


def test_a_copied_encoder_is_the_same(tmp_path, encoder):
    save(encoder, tmp_path / "run", epochs=3, model="sim")
    loaded, description = load_encoder(tmp_path / "run")
    save_encoder(tmp_path / "copy", loaded, description, tmp_path / "run")
    again, copied = load_encoder(tmp_path / "copy")
    assert copied == description and same(
        again.state_dict(), loaded.state_dict()
    )
    a, b = (tmp_path / n / "encoder.safetensors" for n in ("run", "copy"))
    assert a.read_bytes() == b.read_bytes()


def test_parts_join_those_of_the_same_encoder(tmp_path, encoder):
    digest = save(encoder, tmp_path, model="sim")["parts"]["encoder"]["sha256"]
    for layer in ("module1", "module2"):
        name = f"decoder_{layer}"
        save_parts(
            tmp_path, {name: mirror(encoder, layer)}, {name: {"seed": 1}}
        )
    parts, config = load_parts(tmp_path)
    assert list(parts) == ["encoder", "decoder_module1", "decoder_module2"]
    assert config["training"] == {"model": "sim"}
    decoder, about = load_decoder(tmp_path, "module2", digest)
    assert about["seed"] == 1 and about["encoder"] == digest
    with pytest.raises(ValueError, match="decodes the encoder .*, not 0000"):
        load_decoder(tmp_path, "module2", "0000")
    # the same once more: they stay; trained on: they go
    save(encoder, tmp_path)
    assert list(load_parts(tmp_path)[0]) == list(parts)
    nudge(encoder)
    save(encoder, tmp_path)
    assert list(load_parts(tmp_path)[0]) == ["encoder"]
    assert len(list(tmp_path.iterdir())) == 2


def test_decoders_of_log_mel_belong_to_it_by_name(tmp_path):
    encoder, description = load_encoder("logmel")
    save_encoder(tmp_path, encoder, description, "logmel")
    made = make_decoder(encoder, "logmel", SPECTROGRAM)
    save_parts(tmp_path, {"decoder_logmel": made})
    decoder, _ = load_decoder(tmp_path, "logmel", description["sha256"])
    assert torch.equal(decoder.last.weight, made.last.weight)
    with pytest.raises(ValueError, match="decodes the encoder"):
        load_decoder(tmp_path, "logmel", "f" * 64)


def test_an_encoder_that_cannot_be_saved_is_referred_to(tmp_path, encoder):
    class Foreign(GreedyEncoder):
        pass

    description = {"sha256": "f" * 64, "model": "hubert", "layers": []}
    save_encoder(tmp_path, Foreign(channels=4), description, "models/hubert")
    check_folder(tmp_path, None, {"sha256": "f" * 64}, "here")
    with pytest.raises(ValueError, match="another encoder .ffff.* than here"):
        check_folder(tmp_path, None, {"sha256": "e" * 64}, "here")
    save_parts(tmp_path, {"decoder_module1": mirror(encoder, "module1")})
    decoder, about = load_decoder(tmp_path, "module1", "f" * 64)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["encoder"]["source"] == "models/hubert"
    with pytest.raises(FileNotFoundError, match="no encoder, only decoder_mod"):
        load_encoder(tmp_path)
    check_folder(tmp_path / "nowhere", None, {"sha256": "e" * 64}, "here")


def test_any_class_of_the_registry(tmp_path):
    save_parts(tmp_path, {"encoder": LogMel()})
    wavs = torch.randn(1, 4000)
    found = load_encoder(tmp_path)[0](wavs)["logmel"].mean
    assert torch.equal(found, load_encoder("logmel")[0](wavs)["logmel"].mean)
    edit_config(
        tmp_path, lambda c: c["parts"]["encoder"].update({"class": "X"})
    )
    with pytest.raises(ValueError, match="a class 'X' for encoder.*LogMel"):
        load_encoder(tmp_path)


def test_weights_of_another_run_are_refused(tmp_path, encoder):
    save(encoder, tmp_path / "one")
    nudge(encoder)
    save(encoder, tmp_path / "two")
    name = "encoder.safetensors"
    shutil.copy(tmp_path / "one" / name, tmp_path / "two" / name)
    with pytest.raises(ValueError, match="does not have the hash"):
        load_encoder(tmp_path / "two")


class Killed(BaseException):
    """Ends a saver as a kill would: nobody catches it."""


@pytest.mark.parametrize("when", ["weights", "config.json"])
def test_a_kill_while_saving_is_survived(tmp_path, encoder, monkeypatch, when):
    save(encoder, tmp_path, epochs=1)
    before = load_encoder(tmp_path)[1]
    nudge(encoder)
    rename = files.os.replace

    def kill(source, target):
        if (target.name == "config.json") == (when == "config.json"):
            raise Killed
        rename(source, target)

    monkeypatch.setattr(files.os, "replace", kill)
    with pytest.raises(Killed):
        save(encoder, tmp_path, epochs=2)
    monkeypatch.undo()
    if when == "weights":
        assert load_encoder(tmp_path)[1] == before
    else:
        with pytest.raises(ValueError, match="Start that run again"):
            load_encoder(tmp_path)
    save(encoder, tmp_path, epochs=2)  # as the run does, started again
    assert load_encoder(tmp_path)[1]["epochs"] == 2
    assert same(load_encoder(tmp_path)[0].state_dict(), encoder.state_dict())


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_not_saved(tmp_path, encoder, value):
    save(encoder, tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    with torch.no_grad():
        encoder.layers["module2"].mean.bias[1] = value
    with pytest.raises(ValueError, match="module2.mean.bias of encoder holds"):
        save(encoder, tmp_path)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize(
    "change",
    [{"channels": 8}, {"batch_norm": False}, {"probabilistic": False}],
)
def test_weights_must_fit_the_architecture(tmp_path, encoder, change):
    save(encoder, tmp_path)
    edit_config(
        tmp_path, lambda c: c["parts"]["encoder"]["arguments"].update(change)
    )
    with pytest.raises(ValueError, match="does not fit the architecture"):
        load_encoder(tmp_path)


def test_a_small_file_cannot_take_much_memory(tmp_path, encoder):
    save(encoder, tmp_path)
    huge = {"channels": 1_000_000}  # 4 TB a kernel
    edit_config(
        tmp_path, lambda c: c["parts"]["encoder"]["arguments"].update(huge)
    )
    with pytest.raises(ValueError, match="does not fit the architecture"):
        load_encoder(tmp_path)


@pytest.mark.parametrize("missing", ["encoder.safetensors", "config.json"])
def test_a_missing_file_is_named(tmp_path, encoder, missing):
    save(encoder, tmp_path)
    (tmp_path / missing).unlink()
    with pytest.raises(FileNotFoundError, match=f"holds no {missing}"):
        load_encoder(tmp_path)


def test_layouts_of_before_are_named(tmp_path, encoder):
    save(encoder, tmp_path / "run")
    with pytest.raises(FileNotFoundError, match="a model is .*/run itself"):
        load_encoder(tmp_path / "run/encoder")
    for folder in (tmp_path / "old", tmp_path / "old/encoder"):
        (tmp_path / "old/encoder").mkdir(parents=True, exist_ok=True)
        (tmp_path / "old/encoder/encoder.ckpt").write_bytes(b"")
        with pytest.raises(
            FileNotFoundError, match="older version of .*: train again"
        ):
            load_encoder(folder)
    edit_config(tmp_path / "run", lambda c: c.update(format=1))
    with pytest.raises(ValueError, match="format 1; .* reads 2: train and exp"):
        load_encoder(tmp_path / "run")
