"""Encoders as ONNX files, read by another runtime."""

import sys

import onnxruntime
import pytest
import torch

from speechbrain_sim.encoders.greedy import GreedyEncoder
from speechbrain_sim.integrations.onnx import PlainEncoder, export_onnx


def make_encoder(**changes):
    torch.manual_seed(0)
    encoder = GreedyEncoder(channels=6, context_channels=4, **changes)
    encoder(torch.randn(2, 4000))  # moves the batch norms' statistics
    return encoder.eval().requires_grad_(False)


@pytest.mark.parametrize("batch_norm", [False, True])
@pytest.mark.parametrize("layer", ["module1", "module3", "context"])
def test_another_runtime_gives_the_same(tmp_path, layer, batch_norm):
    encoder = make_encoder(batch_norm=batch_norm)
    export_onnx(encoder, layer, tmp_path / "encoder.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "encoder.onnx")
    # none of which was traced: that was a batch of 2 x 4000
    for batch, samples in ((1, 1600), (3, 5003), (5, 20480)):
        wavs = torch.randn(batch, samples)
        lengths = torch.randint(samples // 2, samples + 1, (batch,))
        wavs[lengths[:, None] <= torch.arange(samples)] = 1e3
        expected = encoder(wavs, lengths, [layer])[layer]
        mean, frames = session.run(
            None, {"wavs": wavs.numpy(), "lengths": lengths.numpy()}
        )
        assert frames.tolist() == expected.lengths.tolist()
        assert mean.shape == expected.mean.shape
        for row, end in enumerate(frames):
            torch.testing.assert_close(
                torch.from_numpy(mean[row, :end]),
                expected.mean[row, :end],
                atol=1e-4,
                rtol=0,
            )
            assert not mean[row, end:].any()


@pytest.mark.parametrize("layer", ["module1", "context"])
def test_torchscript_gives_the_same(tmp_path, layer):
    encoder = make_encoder()
    example = torch.randn(2, 4000), torch.tensor([4000, 3000])
    plain = PlainEncoder(encoder, layer).eval()
    torch.jit.trace(plain, example).save(tmp_path / "encoder.pt")
    traced = torch.jit.load(tmp_path / "encoder.pt")
    for batch, samples in ((1, 1600), (3, 5003), (5, 20480)):
        wavs = torch.randn(batch, samples)
        lengths = torch.randint(samples // 2, samples + 1, (batch,))
        for found, expected in zip(
            traced(wavs, lengths), plain(wavs, lengths), strict=True
        ):
            torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


def test_only_what_is_trained_is_exported(tmp_path):
    with pytest.raises(ValueError, match="in eval mode"):
        PlainEncoder(make_encoder().train(), "module1")
    with pytest.raises(ValueError, match="no layer 'module9'"):
        PlainEncoder(make_encoder(), "module9")


def test_the_extra_is_asked_for(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(ImportError, match=r"speechbrain-sim\[onnx\]"):
        export_onnx(make_encoder(), "module1", tmp_path / "encoder.onnx")
