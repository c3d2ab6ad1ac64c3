"""Saved bottlenecks: layers of the encoder that is loaded, and its identity."""

import json

import pytest
import soundfile
import torch

from speechbrain_sim.analysis.code_report import REPEATED, repeat_scores
from speechbrain_sim.bottlenecks.coded import CodedEncoder
from speechbrain_sim.bottlenecks.sae import SparseAutoencoder
from speechbrain_sim.brains.probe import ProbeBatches, ProbeBrain, make_probes
from speechbrain_sim.cli import main
from speechbrain_sim.encoders.logmel import LogMel
from speechbrain_sim.inference import SmoothInfoMax
from speechbrain_sim.models.format import (
    load_parts,
    read_config,
    save_parts,
    sha256_of,
)
from speechbrain_sim.models.load import (
    add_metadata,
    check_folder,
    load_encoder,
    load_model,
    plain,
    save_encoder,
)
from speechbrain_sim.probes import LayerProbes
from tests.bottlenecks.test_coded import NAME, save_coded
from tests.conftest import edit_config, same
from tests.encoders.test_huggingface import save_model

PART = f"bottleneck_{NAME}"


@pytest.fixture
def folder(tmp_path):
    return save_coded(tmp_path / "model", decoder=True)


def test_an_encoder_is_loaded_with_its_codes(folder):
    encoder, description = load_encoder(folder)
    assert isinstance(encoder, CodedEncoder) and not encoder.training
    assert description["layers"] == encoder.layer_names
    assert not any(weight.requires_grad for weight in encoder.parameters())
    parts, config = load_parts(folder, ["encoder", PART])
    assert description["encoder"] == config["parts"]["encoder"]["sha256"]
    assert description["bottlenecks"] == {NAME: config["parts"][PART]["sha256"]}
    assert description["sha256"] == sha256_of(encoder)
    assert len({description["sha256"], description["encoder"]}) == 2
    inner, below = plain(encoder, description)
    assert below["sha256"] == sha256_of(inner) == description["encoder"]
    assert below["layers"] == inner.layer_names
    assert plain(inner, below) == (inner, below)
    assert same(inner.state_dict(), parts["encoder"].state_dict())
    assert SmoothInfoMax.from_pretrained(folder).sha256 == sha256_of(encoder)


def test_other_codes_are_another_encoder(folder, tmp_path):
    encoder, description = load_encoder(folder)
    save_encoder(tmp_path / "copy", encoder, description, folder)
    again, copied = load_encoder(tmp_path / "copy")
    assert copied == description and again.entries.keys() == {NAME}
    check_folder(tmp_path / "copy", encoder, description, folder)
    save_parts(tmp_path / "copy", {PART: SparseAutoencoder(8, 24, k=5)})
    assert load_encoder(tmp_path / "copy")[1]["sha256"] != copied["sha256"]
    with pytest.raises(ValueError, match=f"model of another {NAME} .*choose"):
        check_folder(tmp_path / "copy", encoder, description, folder)
    # the encoder alone is the same
    check_folder(tmp_path / "copy", *plain(encoder, description), folder)


def test_probes_of_other_codes_are_removed(folder):
    layers = {f"{NAME}.decoded": 8}
    kinds = {"codes": layers, "frames": {"module3": 8}}
    entry = {"classes": ["a", "b"], "kind": "utterance"}
    for label, widths in kinds.items():
        about = {"best_layer": [*widths][0], "layers": dict.fromkeys(widths)}
        probe = {f"probe_{label}": LayerProbes(widths, 2)}
        save_parts(folder, probe, {f"probe_{label}": entry | about})
    config = read_config(folder / "config.json")
    digest = config["parts"][PART]["sha256"]
    assert config["parts"]["probe_codes"]["bottlenecks"] == {NAME: digest}
    assert "bottlenecks" not in config["parts"]["probe_frames"]
    x = torch.randn(2, 8000)
    model = SmoothInfoMax.from_pretrained(folder)
    assert model.classify(x, label="codes").probabilities.shape[1:] == (1, 2)
    other = SparseAutoencoder(8, 24, k=5)
    save_parts(folder, {"bottleneck_module2.sae": other})
    assert "probe_codes" in load_parts(folder)[0]
    save_parts(folder, {PART: other})
    parts, _ = load_parts(folder)
    assert "probe_frames" in parts and "probe_codes" not in parts
    assert not (folder / "probe_codes.safetensors").exists()


def test_metadata_are_added(folder):
    before = sorted(path.name for path in folder.iterdir())
    add_metadata(folder, {PART: {"scores": {"explained": 0.5}}})
    entry = load_encoder(folder)[0].entries[NAME]
    assert entry["scores"] == {"explained": 0.5}
    assert entry["names"] == {"3": "AA"}
    assert before == sorted(path.name for path in folder.iterdir())


def test_features_are_named_by_their_best_class(folder):
    learned = dict.fromkeys(REPEATED, {"value": 0.5})
    learned["concept"] = {"label": "phones"}
    known = {"class": [1, None, 0], "f1": [0.714, 0.0, 0.0]}
    scores = {"codes": {NAME: {"learned": learned}}, "units": {NAME: known}}
    repeat_scores(folder, scores, {"phones": ["AA", "B"]})
    entry = load_encoder(folder)[0].entries[NAME]
    assert entry["names"] == {"0": "B (F1 0.71)"}
    assert entry["scores"] == dict.fromkeys(REPEATED, {"value": 0.5})
    scores["units"][NAME] = {}
    repeat_scores(folder, scores, {})
    assert load_encoder(folder)[0].entries[NAME]["names"] == {}


def test_codes_of_spectra_and_of_a_transformer(tmp_path):
    sae = SparseAutoencoder(80, 160, k=4)
    save_parts(
        tmp_path / "mel", {"encoder": LogMel(), "bottleneck_logmel.a": sae}
    )
    encoder, description = load_encoder(tmp_path / "mel")
    assert encoder.layer_names == ["logmel", "logmel.a", "logmel.a.decoded"]
    model = SmoothInfoMax.from_pretrained(tmp_path / "mel")
    assert len(model.encode_batch(torch.randn(1, 170000))["logmel.a"].mean[0])
    source = save_model(tmp_path / "hubert", "hubert", "base")
    inner, about = load_encoder(source)
    save_encoder(tmp_path / "run", inner, about, source)
    sae = SparseAutoencoder(8, 16, k=4)
    save_parts(tmp_path / "run", {"bottleneck_hidden1.sae": sae})
    encoder, description = load_encoder(tmp_path / "run")
    assert encoder.layer_names[2:4] == ["hidden1.sae", "hidden1.sae.decoded"]
    assert description["encoder"] == about["sha256"]
    assert description["arguments"] == about["arguments"]
    # a copy refers to the transformer itself
    save_encoder(tmp_path / "copy", encoder, description, tmp_path / "run")
    assert load_encoder(tmp_path / "copy")[1] == description
    assert "encoder" in load_model(tmp_path / "copy")[0]
    edit_config(tmp_path / "copy", lambda c: c["encoder"].update(sha256="0"))
    with pytest.raises(ValueError, match="no longer the encoder that the bott"):
        load_encoder(tmp_path / "copy")


@pytest.mark.parametrize(
    "change, message",
    [
        ({"num_units": 10**9}, "num_units 1000000000"),
        ({"input_channels": 0}, "input_channels 0"),
        ({"k": 25}, "describes no bottleneck_module3.sae.*k is 25"),
        ({"variant": "gated"}, "variant is 'gated'"),
        ({"num_units": 12}, "does not fit"),
    ],
)
def test_damaged_descriptions_are_refused(folder, change, message):
    def damage(config):
        config["parts"][PART]["arguments"].update(change)

    edit_config(folder, damage)
    with pytest.raises(ValueError, match=message):
        load_encoder(folder)


def test_a_recording_is_steered(folder, tmp_path):
    """The first and the last part of it stay; files and arrays are one."""
    model = SmoothInfoMax.from_pretrained(folder)
    torch.manual_seed(0)
    wav = 0.1 * torch.randn(12345)
    soundfile.write(tmp_path / "a.wav", wav.numpy(), 16000, subtype="FLOAT")
    found = model.top_features(tmp_path / "a.wav", count=3)
    assert [x.mean for x in found] == sorted(x.mean for x in found)[::-1]
    feature = found[0].feature
    assert 0 <= found[0].start <= found[0].at <= found[0].stop <= 12345 / 16000
    assert all(x.deviation > 0 for x in found)
    names = {
        x.feature: x.name
        for x in model.top_features(tmp_path / "a.wav", NAME, 24)
    }
    assert names.get(3, "AA") == "AA" and names[feature] in (None, "AA")
    change = {feature: 50.0}
    one = model.steer(wav, NAME, change, (0.3, 0.4))
    assert one.original.shape == one.changed.shape == (12345,)
    x = model.encode_batch(wav[None], layer="module3").mean
    decoded = model.decode(x, "module3", 12345)[0]
    torch.testing.assert_close(one.original, decoded)
    moved = (one.changed - one.original).abs()
    inside = moved[4800:6400].max()
    assert inside > 0 and moved[:4000].max() < 1e-6 * inside
    assert moved[7300:].max() < 1e-6 * inside
    where = (one.changed_codes != one.codes).nonzero()
    assert set(where[:, 1].tolist()) == {feature} and len(where) == 10
    from_file = model.steer(tmp_path / "a.wav", NAME, change, (0.3, 0.4))
    for a, b in zip(one, from_file, strict=True):
        torch.testing.assert_close(a, b)
    codes = model.encode_file(tmp_path / "a.wav", NAME).mean
    wanted = model.encode_file(tmp_path / "a.wav", f"{NAME}.decoded").mean
    both = model.decode(codes, NAME), model.decode(wanted, f"{NAME}.decoded")
    assert torch.equal(*both)
    with pytest.raises(
        ValueError, match="'module3' holds no codes.*module3.sae"
    ):
        model.steer(wav, "module3", change)
    with pytest.raises(ValueError, match="2 waveforms: steer one"):
        model.steer(torch.randn(2, 8000), NAME, change)
    with pytest.raises(ValueError, match="No frame lies between 3 and 4 s"):
        model.steer(wav, NAME, change, (3, 4))


def test_features_of_means(tmp_path):
    model = SmoothInfoMax.from_pretrained(save_coded(tmp_path / "m", "mean"))
    soundfile.write(tmp_path / "a.wav", torch.randn(8000).numpy() / 9, 16000)
    found = model.top_features(tmp_path / "a.wav")
    assert 0 < len(found) <= 4
    for x in found:
        assert (x.share, x.start, x.stop, x.deviation) == (1, 0, 0.5, None)
        assert x.mean == x.peak
    with pytest.raises(ValueError, match="none, train one with recipes/bott"):
        SmoothInfoMax.from_pretrained("sim-small").top_features("a.wav")


def test_the_command_lists_features(folder, tmp_path, capsys):
    soundfile.write(tmp_path / "a.wav", torch.randn(8000).numpy() / 9, 16000)
    argv = ["features", str(folder), str(tmp_path / "a.wav"), "--top", "3"]
    main([*argv, "--json"])
    listed = json.loads(capsys.readouterr().out)
    assert len(listed) == 3 and listed[0]["mean"] >= listed[1]["mean"]
    main([*argv, "--layer", NAME])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 5 and lines[2].startswith(
        f"| {listed[0]['feature']} |"
    )
    for more, message in (
        (["--top", "0"], "--top is 0"),
        (["--layer", "module3"], "'module3' holds no codes"),
    ):
        with pytest.raises(SystemExit, match=message):
            main([*argv, *more])


def test_codes_are_encoded_and_decoded_as_files(folder, tmp_path, capsys):
    soundfile.write(tmp_path / "a.wav", torch.randn(8000).numpy() / 9, 16000)
    save_parts(tmp_path / "plain", load_parts(folder, ["encoder"])[0])
    for source, layer in (folder, NAME), (tmp_path / "plain", "module3"):
        out = str(tmp_path / layer)
        options = ["--layer", layer, "--out"]
        main(["encode", str(source), str(tmp_path / "a.wav"), *options, out])
        main(["decode", str(folder), out, *options, f"{out}_wav"])
        assert soundfile.info(f"{out}_wav/a.wav").frames == 8000
    assert "float32 (frames, 24)" in capsys.readouterr().out
    assert (tmp_path / f"{NAME}/a.npy").exists()


def test_the_papers_probes_take_codes():
    probes = make_probes({NAME: 24}, 2, [("probe", 1)], True)
    assert list(probes) == ["module3/sae"]
    brain = ProbeBrain(probes, run_opts={"device": "cpu"})
    batches = ProbeBatches(
        {NAME: torch.randn(6, 24)}, torch.arange(6) % 2, [1], 0, 3
    )
    brain.batches, brain.layers = batches, [NAME]
    for batch in batches:
        assert list(brain.compute_forward(batch, None)) == [NAME]
    trained = brain.trained(1)
    assert torch.equal(
        trained.probes["module3/sae"].weight, probes["module3/sae"].weight
    )
    x = torch.randn(1, 6, 24)
    best = trained(x, NAME).argmax(-1)
    assert torch.equal(brain.predict({NAME: x[0]})[NAME], best)
