"""Features of an encoder in a recipe that has never heard of it."""

import re
import sys

import pytest
import torch
from safetensors.torch import load_file

from speechbrain_sim.encoders.base import (
    Latent,
    all_hidden_states,
    at_frames_of,
)
from speechbrain_sim.integrations.s3prl import UpstreamExpert
from speechbrain_sim.integrations.speechbrain import LatentFeatures
from tests.conftest import ROOT, finish, start_process

MODULES = ["module1", "module2", "module3"]


@pytest.mark.parametrize("layer", [*MODULES, "context"])
@pytest.mark.parametrize("frozen", [True, False])
def test_one_layer_gives_its_means(trained, layer, frozen):
    features = LatentFeatures(trained.model, [layer], frozen)
    wavs, lens = torch.randn(2, 4000), torch.tensor([1.0, 0.5])
    latent = trained.encoder(wavs, lens)[layer]
    for mode in (True, False):
        found = features.train(mode)(wavs, lens)
        for row, frames in enumerate(latent.lengths):
            torch.testing.assert_close(
                found[row, :frames], latent.mean[row, :frames]
            )
            assert not found[row, frames:].any()
    assert found.shape[2] == features.out_channels


def test_only_the_encoder_is_fetched(model_folder):
    for name in ("decoder_module3", "probe_phones"):
        (model_folder / f"{name}.safetensors").unlink()
    LatentFeatures(model_folder, ["module3"])
    UpstreamExpert(model_folder)


def test_frozen_stays_frozen(trained):
    modules = torch.nn.ModuleDict(
        {"compute_features": LatentFeatures(trained.model, MODULES)}
    )
    modules.train()
    features = modules["compute_features"]
    assert features.training and not features.encoder.training
    features(torch.randn(2, 3000)).square().sum().backward()
    assert features.weights.grad.abs().sum() > 0
    learns = [n for n, p in features.named_parameters() if p.requires_grad]
    assert learns == ["weights"]
    assert all(p.grad is None for p in features.encoder.parameters())
    single = LatentFeatures(trained.model, ["context"]).train()
    assert not single(torch.randn(1, 3000)).requires_grad


def test_fine_tuning_reaches_the_encoder(trained):
    features = LatentFeatures(trained.model, ["module3"], frozen=False).train()
    assert features.encoder.training
    wavs = torch.randn(2, 3000)
    assert torch.equal(features(wavs), features(wavs))  # means
    features(wavs).square().sum().backward()
    first = features.encoder.layers["module1"].convs[0].weight
    assert first.grad.abs().sum() > 0
    with torch.no_grad():
        assert not features(wavs).requires_grad


@pytest.mark.parametrize(
    "layers", [["module3"], ["context"], ["module1", "module3"]]
)
def test_whatever_may_learn_gets_a_gradient(trained, layers):
    features = LatentFeatures(trained.model, layers, frozen=False).train()
    features(torch.randn(2, 3000)).square().sum().backward()
    learns = {n: p for n, p in features.named_parameters() if p.requires_grad}
    # else DistributedDataParallel waits for it in vain
    assert [name for name, p in learns.items() if p.grad is None] == []
    assert all(f"encoder.layers.{x}." in str(list(learns)) for x in layers)
    assert features.state_dict().keys() >= {
        f"encoder.{name}" for name in trained.encoder.state_dict()
    }


def test_weights_mix_the_layers(trained):
    features = LatentFeatures(trained.model, MODULES)
    wavs, lens = torch.randn(2, 4000), torch.tensor([4000, 2600])
    with torch.no_grad():
        features.weights.copy_(torch.tensor([0.0, 0.0, 50.0]))
    only = LatentFeatures(trained.model, ["module3"])(wavs, lens)
    norm = torch.nn.functional.layer_norm(only, only.shape[-1:])
    found = features(wavs, lens)
    frames = trained.encoder.output_lengths(2600, "module3")
    torch.testing.assert_close(found[1, :frames], norm[1, :frames])
    assert not found[1, frames:].any()
    with torch.no_grad():
        features.weights.zero_()
    assert not torch.allclose(features(wavs, lens)[0], norm[0])


def test_layers_are_the_same_alone_and_padded(trained):
    features = LatentFeatures(trained.model, MODULES)
    wavs = torch.randn(2, 4000)
    wavs[1, 2600:] = 1e3
    batch = features(wavs, torch.tensor([1.0, 0.65]))
    alone = features(wavs[1:, :2600])
    torch.testing.assert_close(batch[1:, : alone.shape[1]], alone)


@pytest.mark.parametrize("layer", MODULES)
def test_frames_lie_where_the_slower_ones_do(trained, layer):
    encoder = trained.encoder
    fast, slow = (encoder.frame_geometry(n) for n in (layer, "module3"))
    frames = encoder.output_lengths(8000, layer)
    time = encoder.output_lengths(8000, "module3")
    # each frame says where its centre is
    x = (fast[1] + fast[0] * torch.arange(frames * 1.0)).view(1, -1, 1)
    latent = Latent(x, None, x, torch.tensor([frames]), False)
    found = at_frames_of(latent, fast, slow, time)[0, :, 0]
    expected = slow[1] + slow[0] * torch.arange(time * 1.0)
    torch.testing.assert_close(found[1:-1], expected[1:-1])


def test_widths_must_agree(trained):
    with pytest.raises(ValueError, match="'module3': 6, 'context': 4"):
        LatentFeatures(trained.model, ["module3", "context"])
    with pytest.raises(ValueError, match="no layer 'module9'"):
        LatentFeatures(trained.model, ["module9"])


@pytest.mark.parametrize(
    "layers, frozen",
    [("module3", True), ("module1, module3", True), ("module3", False)],
)
def test_a_recipe_trains_with_them_by_yaml_alone(
    trained, corpus, tmp_path, layers, frozen
):
    # as a list, for an override of the keys would keep Fbank
    ours = f"[{trained.model}, [{layers}], {frozen}]"
    ours = f"!new:speechbrain_sim.LatentFeatures {ours}"
    options = ["--data_folder", corpus.folder, "--device", "cpu"]
    options += ["--output_folder", tmp_path / "out"]
    options += ["--compute_features", ours, "--emb_dim", "6"]
    recipe = ROOT / "tests/speaker_id.py"
    command = [sys.executable, recipe, ROOT / "tests/speaker_id.yaml", *options]
    finish(start_process(command))
    log = (tmp_path / "out/train_log.txt").read_text().splitlines()
    losses = [float(re.search(r"train loss: ([\d.e+-]+)", x)[1]) for x in log]
    assert len(losses) == 3 and losses[-1] < losses[0]
    (saved,) = (tmp_path / "out/save").glob("CKPT*/compute_features.ckpt")
    state = torch.load(saved, weights_only=True)
    before = load_file(trained.model / "encoder.safetensors")
    kept = {name for name in state if name.startswith("encoder.")}
    assert kept == (set() if frozen else {f"encoder.{name}" for name in before})
    moved = [not torch.equal(state[n], before[n[8:]]) for n in kept]
    assert any(moved) != frozen
    if "," in layers:
        assert state["weights"].abs().sum() > 0


def test_hidden_states_are_all_layers_at_one_rate(trained):
    wavs, lens = torch.randn(2, 4000), torch.tensor([4000, 2600])
    states, lengths = all_hidden_states(trained.encoder, wavs, lens)
    latents = trained.encoder(wavs, lens)
    assert len(states) == len(latents) == 4
    assert {x.shape[:2] for x in states} == {(2, 25)}
    assert torch.equal(lengths, latents["context"].lengths)
    frames = lengths[1]
    for layer, x in zip(latents, states, strict=True):
        assert not x[1, frames:].any()
        if layer in ("module3", "context"):
            assert torch.equal(x[1, :frames], latents[layer].mean[1, :frames])


def test_an_upstream_of_s3prl(trained):
    upstream = UpstreamExpert(ckpt=str(trained.model), refresh=False)
    wavs = [torch.randn(4000), torch.randn(2600)]
    out = upstream(wavs)
    rate = upstream.get_downsample_rates("hidden_states")
    assert rate == 160 and len(out["hidden_states"]) == 3
    assert {x.shape for x in out["hidden_states"]} == {(2, 25, 6)}
    alone = upstream(wavs[1:])["last_hidden_state"]
    torch.testing.assert_close(out["last_hidden_state"][1:, :16], alone[:, :16])
    out["last_hidden_state"].sum().backward()  # s3prl may fine-tune
    learns = [p for p in upstream.parameters() if p.requires_grad]
    assert learns and all(p.grad is not None for p in learns)
