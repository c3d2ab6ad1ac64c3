"""Decoders: the encoder's lengths retraced, padding without a trace."""

import pytest
import torch

from speechbrain_sim.decoders import SPECTROGRAM, make_decoder, mirror
from speechbrain_sim.encoders.greedy import GreedyEncoder
from speechbrain_sim.objectives.reconstruction import (
    SpectrogramLoss,
    explained,
)
from speechbrain_sim.spectrograms import log_power


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


# the audible kind ------------------------------------------------------------


def audible(encoder, layer):
    torch.manual_seed(0)
    return make_decoder(encoder, layer, SPECTROGRAM).double().eval()


@pytest.mark.parametrize("layer", ["module1", "module2", "module3"])
def test_an_audible_decoder_has_any_length_alone_as_in_a_batch(encoder, layer):
    torch.manual_seed(1)
    decoder, lengths = audible(encoder, layer), torch.tensor([3000, 2001])
    wavs = torch.randn(2, 3000).double()
    wavs[1, 2001:] = 1e3
    with torch.no_grad():
        batch = decoder(encoder(wavs, lengths)[layer].mean, 3000, lengths)
        alone = decoder(encoder(wavs[1:, :2001])[layer].mean, 2001)
    assert batch.shape == (2, 3000) and alone.any()
    torch.testing.assert_close(batch[1:, :2001], alone, atol=1e-8, rtol=0)
    assert (batch[1, 2001:] == 0).all()


@pytest.mark.parametrize("layer", ["module1", "module3"])
def test_pieces_of_a_long_sound_are_those_of_the_whole(
    encoder, layer, monkeypatch
):
    decoder, lengths = audible(encoder, layer), torch.tensor([28163, 15000])
    z = encoder(torch.randn(2, 28163).double(), lengths)[layer].mean
    with torch.no_grad():
        whole = decoder(z, 28163, lengths)
        monkeypatch.setattr("speechbrain_sim.decoders.LONG", 9000)
        pieces = decoder(z, 28163, lengths)
    torch.testing.assert_close(pieces, whole, atol=1e-8, rtol=0)


@pytest.mark.parametrize("layer", ["module1", "module3"])
def test_a_frame_is_made_of_the_latents_around_it(encoder, layer):
    """Against loops over the samples that frames are centred at."""
    decoder = audible(encoder, layer)
    frames = encoder.output_lengths(3200, layer)
    z = torch.arange(frames, dtype=torch.float64)[None, :, None] + 1
    found = decoder.around(z, 21)[0].tolist()
    hop, center = encoder.frame_geometry(layer)
    for frame, row in enumerate(found):
        nearest = round((160 * frame - center) / hop)
        reach = range(nearest - 160 // hop, nearest + 160 // hop + 1)
        assert row == [i + 1 if 0 <= i < frames else 0 for i in reach]


def test_latents_are_standardized_by_all_that_was_trained_on(encoder):
    torch.manual_seed(0)
    decoder, offset = audible(encoder, "module3"), 3.0
    scale = torch.logspace(-9, 0, decoder.mean.numel()).double()
    lengths, seen = torch.tensor([5, 9]), []
    before = {name: x.clone() for name, x in decoder.state_dict().items()}
    z = offset + scale * torch.randn(2, 9, len(scale)).double()
    assert torch.equal(decoder.standardize(z, lengths), z)  # in eval mode
    decoder.train()
    for _ in range(3):
        z = offset + scale * torch.randn(2, 9, len(scale)).double()
        z[0, 5:] = 99  # padding
        seen.append(torch.cat([z[0, :5], z[1]]))
        units = decoder.standardize(z, lengths)
    mean = torch.stack([x.mean(0) for x in seen]).mean(0)
    deviation = torch.stack([x.std(0) for x in seen]).mean(0)
    deviation = deviation.clamp(min=0.01 * deviation.max())
    torch.testing.assert_close(units, (z - mean) / deviation)
    assert (units[1].std(0) < 2).all() and units[1, :, 0].abs().max() < 1e-3
    torch.testing.assert_close(decoder.eval().standardize(z, lengths), units)
    silent = audible(encoder, "module3").train()
    assert (silent.standardize(0 * z, lengths) == 0).all()
    decoder.load_state_dict(before)
    torch.testing.assert_close(decoder.standardize(z, lengths), z)


def test_it_learns_more_than_the_mean_spectrogram():
    torch.manual_seed(0)
    encoder = GreedyEncoder(channels=32, context_channels=4).eval()
    pitches = torch.tensor([[0.1], [0.3], [0.5], [0.8]])
    wavs = torch.sin(torch.arange(3200) * pitches)
    z = 1e-6 * encoder(wavs)["module1"].mean.detach()  # almost silent
    decoder = make_decoder(encoder, "module1", SPECTROGRAM)
    loss, lengths = SpectrogramLoss(), torch.full((4,), 3200)
    optimizer = torch.optim.Adam(decoder.parameters(), lr=2e-3)
    for _ in range(150):
        optimizer.zero_grad()
        predicted = decoder(z, 3200, lengths, as_sound=False)
        loss(predicted, wavs, lengths).backward()
        optimizer.step()
    sums = loss.sums(predicted.detach(), wavs, lengths)
    assert explained(sums)["explained"] > 0.5
    with torch.no_grad():
        heard = log_power(decoder(z, 3200), lengths)
    loudest = heard[:, 10].argmax(-1) * 40
    torch.testing.assert_close(
        loudest.float(), pitches[:, 0] * 8000 / torch.pi, atol=41, rtol=0
    )
