"""Tiny transformers of each kind from a folder, never the network."""

import json
import socket
import sys

import pytest
import torch
import torchaudio

from speechbrain_sim.decoders import mirror
from speechbrain_sim.encoders.huggingface import (
    HiddenStates,
    load_hidden_states,
)
from speechbrain_sim.extraction import encode_manifest
from speechbrain_sim.models.load import load_encoder
from tests.conftest import ROOT, finish, start_recipe

KINDS = {"wav2vec2": "Wav2Vec2", "hubert": "Hubert", "wavlm": "WavLM"}
#: the norm of a "base" model, and of a "large" one
NORMS = {"base": ("group", False), "large": ("layer", True)}
CONVS = [(10, 5, 0), (8, 4, 0), (4, 2, 0), (4, 2, 0)]


def save_model(folder, kind, size):
    import transformers

    norm, stable = NORMS[size]
    kernels, strides, _ = zip(*CONVS, strict=True)
    torch.manual_seed(0)
    config = getattr(transformers, f"{KINDS[kind]}Config")(
        vocab_size=4,
        hidden_size=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=12,
        conv_dim=[6] * len(CONVS),
        conv_kernel=kernels,
        conv_stride=strides,
        num_conv_pos_embeddings=4,
        num_conv_pos_embedding_groups=2,
        feat_extract_norm=norm,
        do_stable_layer_norm=stable,
        initializer_range=0.5,
    )
    getattr(transformers, f"{KINDS[kind]}Model")(config).save_pretrained(folder)
    transformers.Wav2Vec2FeatureExtractor().save_pretrained(folder)
    return folder


def save_mert(folder, size, **changes):
    """A MERT as it is published: weights of a HuBERT, a class of its own."""
    model = load_hidden_states(save_model(folder, "hubert", size))[0].model
    old = {"original0": "weight_g", "original1": "weight_v"}
    weights = {}
    for name, value in model.state_dict().items():
        for new, former in old.items():
            name = name.replace(f"parametrizations.weight.{new}", former)
        weights[name] = value
    torch.save(weights, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    config = json.loads((folder / "config.json").read_text())
    own = "configuration_MERT.MERTConfig", "modeling_MERT.MERTModel"
    config |= {
        "model_type": "mert_model",
        "architectures": ["MERTModel"],
        "auto_map": dict(zip(("AutoConfig", "AutoModel"), own, strict=True)),
        "sample_rate": 24000,
        "attention_relax": 32.0,
        "deepnorm": False,
        "feature_extractor_cqt": False,
        "feature_extractor_cqt_bins": 336,
    }
    (folder / "config.json").write_text(json.dumps(config | changes))
    inputs = folder / "preprocessor_config.json"
    read = json.loads(inputs.read_text())
    inputs.write_text(json.dumps({**read, "sampling_rate": 24000}))
    for name in own:  # run, they would leave a mark
        path = folder / f"{name.partition('.')[0]}.py"
        path.write_text(f"open({str(folder / 'run')!r}, 'w')")
    return model


@pytest.mark.parametrize("size", NORMS)
def test_mert_is_read_as_a_hubert_of_24_khz(tmp_path, size):
    model = save_mert(tmp_path / "mert", size)
    encoder, description = load_encoder(str(tmp_path / "mert"))
    assert not (tmp_path / "mert/run").exists()
    assert description["model"] == "mert_model"
    time = torch.arange(6000) / 48000  # 0.125 s, of a tone that all rates have
    tones = [torch.sin(2 * torch.pi * 441 * time[::step]) for step in (3, 2)]
    latents = encoder(tones[0][None])
    resampled = torchaudio.functional.resample(tones[0], 16000, 24000)
    middle = slice(100, 2900)
    torch.testing.assert_close(
        resampled[middle], tones[1][middle], atol=1e-2, rtol=0
    )
    normed = torch.nn.functional.layer_norm(resampled, resampled.shape)[None]
    with torch.no_grad():
        expected = model(normed).last_hidden_state
    torch.testing.assert_close(latents["hidden2"].mean, expected)


def test_frames_of_24_khz_lie_where_they_are_read(tmp_path):
    save_mert(tmp_path / "mert", "base")
    encoder, _ = load_hidden_states(tmp_path / "mert")
    for count in (160, 999, 1000, 3001):
        frames = encoder(torch.randn(1, count))["hidden1"].mean.shape[1]
        assert frames == encoder.output_lengths(count, "hidden1")
        counts = torch.tensor([count])
        assert encoder.output_lengths(counts, "hidden1").tolist() == [frames]
    hop, center = encoder.frame_geometry("hidden1")
    plain, _ = load_hidden_states(
        save_model(tmp_path / "at16", "hubert", "base")
    )
    own = plain.frame_geometry("hidden1")
    assert (hop, center) == pytest.approx([2 / 3 * x for x in own])
    with pytest.raises(ValueError, match="reads 24000 Hz.* no decoders"):
        mirror(encoder, "hidden1")


@pytest.mark.parametrize(
    "change", [{"feature_extractor_cqt": True}, {"deepnorm": True}], ids=str
)
def test_a_mert_that_is_no_hubert_is_refused(tmp_path, change):
    save_mert(tmp_path / "mert", "base", **change)
    (name,) = change
    with pytest.raises(
        ValueError, match=f"MERT with {name} = True, .* not run"
    ):
        load_encoder(str(tmp_path / "mert"))
    assert not (tmp_path / "mert/run").exists()


@pytest.fixture
def folder(tmp_path):
    return save_model(tmp_path / "model", "hubert", "base")


@pytest.fixture(
    scope="module", params=[(k, s) for k in KINDS for s in NORMS], ids=str
)
def loaded(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    return load_hidden_states(save_model(folder, *request.param))


def test_loading_asks_nobody(folder, monkeypatch):
    asked = []

    def refuse(*args):
        asked.append(args)
        raise OSError("no network")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    files = {path.name for path in folder.iterdir()}
    encoder, description = load_encoder(str(folder))
    assert isinstance(encoder, HiddenStates) and not asked
    assert {path.name for path in folder.iterdir()} == files
    assert description["model"] == "hubert"
    assert description["arguments"]["conv_dim"] == [6] * 4
    assert description == json.loads(json.dumps(description))
    assert len(description["sha256"]) == 64


def test_layers_are_the_models_own(loaded):
    encoder, _ = loaded
    assert encoder.layer_names == ["hidden0", "hidden1", "hidden2"]
    assert encoder.normalize_wav
    wavs = torch.randn(2, 3000)
    latents = encoder(wavs)
    model = encoder.model
    normed = torch.nn.functional.layer_norm(wavs, (3000,))
    with torch.no_grad():
        expected = model(normed, output_hidden_states=True)
    expected = [*expected.hidden_states[:2], expected.last_hidden_state]
    for name, states in zip(encoder.layer_names, expected, strict=True):
        latent = latents[name]
        torch.testing.assert_close(latent.mean, states, atol=1e-4, rtol=1e-4)
        assert latent.log_var is None and not latent.sampled
        assert not latent.mean.requires_grad
        assert latent.mean.shape[2] == encoder.channels_of(name)


def test_lengths_are_the_models_own(loaded):
    encoder, _ = loaded
    samples = torch.arange(225, 3000, 7)
    own = encoder.model._get_feat_extract_output_lengths(samples)
    assert torch.equal(encoder.output_lengths(samples, "hidden2"), own)
    for count in (225, 1000, 2999):
        got = encoder(torch.randn(1, count))["hidden1"]
        assert got.mean.shape[1] == got.lengths[0]
        assert got.lengths[0] == encoder.output_lengths(count, "hidden1")


def test_an_utterance_is_the_same_alone_and_padded(loaded):
    encoder, _ = loaded
    wavs = torch.randn(3, 3000)
    wavs[1, 2000:], wavs[2, 1501:] = 99.0, -7.0
    batch = encoder(wavs, torch.tensor([3000, 2000, 1501]) / 3000)
    for row, count in enumerate([3000, 2000, 1501]):
        alone = encoder(wavs[row : row + 1, :count])
        for name, latent in batch.items():
            frames = int(latent.lengths[row])
            assert torch.equal(latent.mean[row, :frames], alone[name].mean[0])
            assert not latent.mean[row, frames:].any()


def test_training_makes_nothing_random(loaded):
    encoder, _ = loaded
    wavs = torch.randn(1, 1000)
    before = encoder(wavs, layers=["hidden2"])["hidden2"].mean
    encoder.train()
    after = encoder(wavs, layers=["hidden2"], sample=True)
    assert list(after) == ["hidden2"]
    assert torch.equal(before, after["hidden2"].mean)


def test_gradients_reach_the_waveform(loaded):
    encoder, _ = loaded
    assert not any(weight.requires_grad for weight in encoder.parameters())
    wavs = torch.randn(2, 1000, requires_grad=True)
    latents = encoder(wavs, torch.tensor([1000, 600]))
    latents["hidden2"].mean[1, :4].square().sum().backward()
    assert wavs.grad[1, :600].any() and not wavs.grad[0].any()
    assert not wavs.grad[1, 600:].any()


def test_frames_lie_where_their_convolutions_read(folder):
    encoder, _ = load_hidden_states(folder)
    hop, center = encoder.frame_geometry("hidden1")
    assert (hop, center) == (80, 4.5 + 5 * 3.5 + 20 * 1.5 + 40 * 1.5)
    convs = encoder.model.feature_extractor.conv_layers
    for frame in (0, 3, 11):
        wav = torch.randn(1, 3000, requires_grad=True)
        x = wav[:, None]
        for layer in convs:
            x = layer.conv(x)
        x[0, :, frame].sum().backward()
        reads = wav.grad[0].nonzero().double()
        assert reads.min() + reads.max() == 2 * (center + hop * frame)


@pytest.mark.parametrize("rows, atol", [("mean", 1e-5), ("labels", 5e-3)])
def test_features_for_a_probe(folder, corpus, tmp_path, rows, atol):
    encoder, description = load_encoder(str(folder))
    alone, batch = (
        encode_manifest(
            encoder,
            description,
            corpus.valid,
            corpus.folder,
            tmp_path / str(max_seconds),
            ["hidden0", "hidden2"],
            rows,
            max_seconds=max_seconds,
        )["hidden2"]
        for max_seconds in (0.1, 4)
    )
    assert alone.shape == (len(alone.utterance), 8)
    # labels: half precision
    torch.testing.assert_close(alone[:], batch[:], atol=atol, rtol=1e-5)


@pytest.mark.parametrize("samples", [225, 226, 1000, 2999, 3004])
def test_a_mirrored_decoder_gives_any_length_back(loaded, samples):
    encoder, _ = loaded
    decoder = mirror(encoder, "hidden1")
    assert decoder.shapes == encoder.convolutions("hidden1") == CONVS
    assert [len(stage) for stage in decoder.stages] == [1] * len(CONVS)
    z = encoder(torch.randn(2, samples))["hidden1"].mean
    assert decoder(z, samples).shape == (2, samples)


def test_what_cannot_be_encoded_is_refused(folder):
    encoder, _ = load_hidden_states(folder)
    with pytest.raises(ValueError, match="224 samples is too short"):
        encoder(torch.randn(1, 224))
    with pytest.raises(ValueError, match="has hidden0, hidden1, hidden2"):
        encoder(torch.randn(1, 1000), layers=["module1"])
    with pytest.raises(ValueError, match=r"expected \(batch, samples\)"):
        encoder(torch.randn(1000))


def test_half_precision_weights_are_read_in_float32(folder):
    model = load_hidden_states(folder)[0].model
    model.half().save_pretrained(folder)
    encoder, _ = load_hidden_states(folder)
    latents = encoder(torch.randn(1, 1000))
    assert latents["hidden2"].mean.dtype == torch.float32


@pytest.mark.parametrize(
    "name", ["model.safetensors", "preprocessor_config.json"]
)
def test_a_missing_file_is_named(folder, name):
    (folder / name).unlink()
    with pytest.raises(FileNotFoundError, match=f"holds no {name}"):
        load_encoder(str(folder))


@pytest.mark.parametrize(
    "change, message",
    [
        ({"num_hidden_layers": 3}, "lack 16 parameters of the model"),
        ({"hidden_size": 16}, "cannot be loaded"),
        ({"model_type": "whisper"}, "has the model_type 'whisper'"),
    ],
)
def test_a_config_that_does_not_fit_is_refused(folder, change, message):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(ValueError, match=message):
        load_hidden_states(folder)


def test_damaged_files_are_refused(folder):
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ValueError, match="cannot be loaded"):
        load_hidden_states(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(ValueError, match="config.json is not json"):
        load_encoder(str(folder))


def test_a_folder_of_neither_kind_names_both(tmp_path):
    with pytest.raises(FileNotFoundError, match="config.json: .*of a run"):
        load_encoder(str(tmp_path))
    (tmp_path / "config.json").write_text('{"model_type": "whisper"}')
    with pytest.raises(ValueError, match="whisper.*smooth_infomax, wav2vec2"):
        load_encoder(str(tmp_path))


def test_without_transformers_the_extra_is_named(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ImportError, match=r"speechbrain-sim\[huggingface\]"):
        load_hidden_states(folder)


def test_the_probe_recipe_reads_hidden_states(
    folder, corpus, tmp_path, monkeypatch
):
    yaml = tmp_path / "probe.yaml"
    yaml.write_text(
        f"base: {ROOT}/hparams/probe.yaml\n"
        "corpus: Tiny\nlabel: pitch\nprepare: !name:builtins.dict\n"
        f"data_folder: {corpus.folder}\ntrain_csv: {corpus.train}\n"
        f"valid_csv: {corpus.valid}\ntest_csv: {corpus.valid}\n"
    )
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    options = ["--encoder", folder, "--output_folder", tmp_path / "out"]
    finish(start_recipe("probe.py", yaml, *options))
    result = json.loads((tmp_path / "out/probe_pitch.json").read_text())
    assert list(result["layers"]) == ["hidden0", "hidden1", "hidden2"]
    assert result["encoder"]["model"] == "hubert"
