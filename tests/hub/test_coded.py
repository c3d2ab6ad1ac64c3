"""Models with codes, exported: they come back from their folder alone."""

import shutil

import pytest
import torch

from speechbrain_sim.hub.publish import check_model, export_model
from speechbrain_sim.inference import SmoothInfoMax
from speechbrain_sim.models.format import load_parts, read_config, save_parts
from speechbrain_sim.models.load import load_encoder
from speechbrain_sim.probes import LayerProbes
from tests.bottlenecks.test_coded import NAME, save_coded

SCORE = {"accuracy": 0.5, "deviation": 0.01, "interval": [0.4, 0.6]}
SCORE |= {"per_seed": [0.5], "chance": 0.3}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """What recipes leave: an encoder, codes, a decoder, a probe of codes."""
    folder = save_coded(tmp_path_factory.mktemp("run") / "run", decoder=True)
    widths = {"module3": 8, NAME: 24}
    about = {"classes": ["a", "b"], "kind": "frames", "best_layer": NAME}
    about |= {"settings": {}, "layers": dict.fromkeys(widths, SCORE)}
    probe = {"probe_phones": LayerProbes(widths, 2)}
    save_parts(folder, probe, {"probe_phones": about})
    return folder


@pytest.mark.parametrize("half", [False, True])
def test_an_exported_model_has_its_codes(run, tmp_path, half):
    export_model(run, tmp_path / "model", data="noise", half=half)
    folder = shutil.move(tmp_path / "model", tmp_path / "moved")
    assert len(list(check_model(folder))) == 4
    model, before = map(SmoothInfoMax.from_pretrained, (folder, run))
    yaml = SmoothInfoMax.from_hparams(str(folder), run_opts={"device": "cpu"})
    wav = torch.randn(1, 8000)
    latents, others = model.encode_batch(wav), yaml.encode_batch(wav)
    assert list(latents) == list(others) == before.layer_names
    for layer, latent in latents.items():
        assert torch.equal(latent.mean, others[layer].mean)
    assert (model.sha256 == before.sha256) == (not half)
    assert model.sha256 == load_encoder(folder)[1]["sha256"]
    layer = f"{NAME}.decoded"
    wanted = before.encode_batch(wav, layer=layer).mean
    gap = (latents[layer].mean - wanted).norm() / wanted.norm()
    assert gap < 0.05 if half else gap == 0
    for one in (model, yaml):
        assert one.decode(latents[NAME].mean, NAME).isfinite().all()
        assert len(one.classify(wav).names()[0]) == latents[NAME].lengths
        steered = one.steer(wav[0], NAME, {3: 1.0})
        assert steered.changed.shape == (8000,)
    assert model.top_features(model.examples[0])
    card = (tmp_path / "moved/README.md").read_text()
    assert f"`{NAME}`, each followed by" in card
    assert f"| `{NAME}` | `module3` | 24 | variant topk, k 4 |" in card
    size = read_config(tmp_path / "moved/config.json")["parts"]
    assert size[f"bottleneck_{NAME}"]["names"] == {"3": "AA"}


def test_a_probe_of_other_codes_is_refused(run, tmp_path):
    parts, config = load_parts(run, ["encoder"])
    save_parts(tmp_path / "plain", parts, training=config["training"])
    with pytest.raises(ValueError, match="probe_phones of codes of bottleneck"):
        export_model(tmp_path / "plain", tmp_path / "model", [run])


def test_codes_as_onnx(run, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    from speechbrain_sim.integrations.onnx import export_onnx

    encoder, description = load_encoder(run)
    path = tmp_path / "codes.onnx"
    metadata = export_onnx(encoder, NAME, path)
    assert metadata["encoder_sha256"] == description["sha256"]
    assert metadata["channels"] == "24"
    session = onnxruntime.InferenceSession(str(path))
    wavs, lengths = torch.randn(2, 6000), torch.tensor([6000, 4000])
    inputs = {"wavs": wavs.numpy(), "lengths": lengths.numpy()}
    mean, frames = session.run(None, inputs)
    wanted = encoder(wavs, lengths, [NAME])[NAME]
    torch.testing.assert_close(torch.from_numpy(mean), wanted.mean)
    assert frames.tolist() == wanted.lengths.tolist()
