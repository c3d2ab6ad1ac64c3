"""Decoders: the encoder's lengths retraced, padding without a trace."""

import pytest
import torch

from speechbrain_sim.decoders import mirror
from speechbrain_sim.encoders.greedy import GreedyEncoder


@pytest.fixture
def encoder():
    torch.manual_seed(0)
    return GreedyEncoder(channels=12, context_channels=6).double().eval()


@pytest.mark.parametrize("samples", [465, 8821, 10240, 10243, 20480])
@pytest.mark.parametrize("layer", ["module1", "module2", "module3", "context"])
def test_any_length_comes_back(encoder, layer, samples):
    z = encoder(torch.randn(2, samples).double())[layer].mean
    decoder = mirror(encoder, layer).double()
    assert decoder(z, samples).shape == (2, samples)


@pytest.mark.parametrize("samples", [10240, 20480])
@pytest.mark.parametrize(
    "layer, paddings",
    [
        ("module1", [3, 4]),
        ("module2", [0, 1, 3, 4]),
        ("module3", [1, 0, 1, 3, 4]),
    ],
)
def test_output_paddings_are_the_releases(encoder, layer, paddings, samples):
    decoder = mirror(encoder, layer)
    lengths = decoder.frames(samples)
    missing = [
        below - ((above - 1) * stride - 2 * padding + kernel)
        for below, above, (kernel, stride, padding) in zip(
            lengths, lengths[1:], decoder.shapes, strict=False
        )
    ]
    assert missing[::-1] == paddings


def test_the_first_modules_decoder_has_the_releases_layers(encoder):
    kernels = [
        [conv.kernel_size[0] for conv in stage]
        for stage in mirror(encoder, "module1").stages
    ]
    assert kernels == [[8, 3, 3], [10, 3, 3]]
    kernels = [
        [conv.kernel_size[0] for conv in stage]
        for stage in mirror(encoder, "module3").stages
    ]
    assert kernels == [[4], [4], [4], [8], [10]]


@pytest.mark.parametrize("layer", ["module1", "module3", "context"])
def test_an_utterance_sounds_alone_as_in_a_batch(encoder, layer):
    torch.manual_seed(1)
    wavs = torch.randn(2, 3000).double()
    wavs[1, 2000:] = 1e3
    lengths = torch.tensor([3000, 2000])
    decoder = mirror(encoder, layer).double()
    z = encoder(wavs, lengths)[layer].mean
    batch = decoder(z, 3000, lengths)
    alone = encoder(wavs[1:, :2000])[layer].mean
    alone = decoder(alone, 2000)
    torch.testing.assert_close(batch[1:, :2000], alone, atol=1e-9, rtol=0)
    assert (batch[1, 2000:] == 0).all()


def test_frames_that_do_not_fit_are_refused(encoder):
    z = encoder(torch.randn(1, 3000).double())["module2"].mean
    with pytest.raises(ValueError, match="3500 samples encode to"):
        mirror(encoder, "module2").double()(z, 3500)
