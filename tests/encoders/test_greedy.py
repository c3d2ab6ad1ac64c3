"""Shapes, lengths, padding and modes of the encoders."""

import pytest
import torch

from speechbrain_sim.encoders.base import absolute_lengths, masked_mean
from speechbrain_sim.encoders.greedy import GreedyEncoder

SMALL = {"channels": 12, "context_channels": 6}


def encoder_with(dtype=torch.float32, **changes):
    torch.manual_seed(0)
    encoder = GreedyEncoder(**{**SMALL, **changes}).to(dtype)
    for module in encoder.modules():
        if isinstance(module, torch.nn.BatchNorm1d):
            module.running_mean.uniform_(-0.1, 0.1)
            module.running_var.uniform_(0.5, 2)
    return encoder.eval()


def slow_frames(samples, convolutions):
    """Counts the positions a kernel can take, one by one."""
    for kernel, stride, padding in convolutions:
        position, frames = -padding, 0
        while position + kernel <= samples + padding:
            frames, position = frames + 1, position + stride
        samples = frames
    return samples


CONVOLUTIONS = {
    "module1": [(10, 5, 2), (8, 4, 2)],
    "module2": [(10, 5, 2), (8, 4, 2), (4, 2, 2), (4, 2, 2)],
    "module3": [(10, 5, 2), (8, 4, 2), (4, 2, 2), (4, 2, 2), (4, 2, 1)],
}


@pytest.mark.parametrize("samples", [465, 1600, 8821, 10240, 20480])
@pytest.mark.parametrize("layer", ["module1", "module2", "module3"])
def test_lengths_equal_counting_and_the_tensors(samples, layer):
    encoder = encoder_with()
    expected = slow_frames(samples, CONVOLUTIONS[layer])
    assert encoder.output_lengths(samples, layer) == expected
    latent = encoder(torch.randn(1, samples))[layer]
    assert latent.mean.shape[1] == expected == latent.lengths.item()


def test_paper_shapes():
    encoder = encoder_with()
    lengths = [encoder.output_lengths(10240, n) for n in encoder.layer_names]
    assert lengths == [511, 129, 64, 64]
    assert encoder.output_lengths(20480, "context") == 128


@pytest.mark.parametrize("batch_norm", [False, True])
@pytest.mark.parametrize(
    "dtype, tolerance", [(torch.float32, 1e-5), (torch.float64, 1e-9)]
)
def test_padding_changes_nothing(batch_norm, dtype, tolerance):
    encoder = encoder_with(dtype, batch_norm=batch_norm)
    lengths = torch.tensor([6000, 4321, 1777, 500])
    wavs = torch.full((4, 7000), 1e3, dtype=dtype)
    for wav, length in zip(wavs, lengths, strict=True):
        wav[:length] = torch.randn(length, dtype=dtype)
    together = encoder(wavs, lengths / 7000)
    for row, length in enumerate(lengths):
        alone = encoder(wavs[row : row + 1, :length])
        for name, latent in alone.items():
            frames = int(together[name].lengths[row])
            assert frames == latent.mean.shape[1]
            for field in ("mean", "log_var", "sample"):
                expected = getattr(latent, field)
                if expected is None:
                    continue
                got = getattr(together[name], field)[row, :frames]
                bound = tolerance * max(1, expected.abs().max().item())
                assert (got - expected[0]).abs().max() <= bound
            pooled = masked_mean(together[name].mean, together[name].lengths)
            bound = tolerance * max(1, latent.mean.abs().max().item())
            assert (pooled[row] - latent.mean[0].mean(0)).abs().max() <= bound


def test_batch_norm_learns_from_valid_frames_only():
    wav = torch.randn(1, 3000)
    alone, padded = encoder_with(batch_norm=True), encoder_with(batch_norm=True)
    alone.train()(wav)
    longer = torch.cat([wav, torch.full((1, 2000), 1e3)], dim=1)
    padded.train()(longer, torch.tensor([3000]))
    for name, expected in alone.state_dict().items():
        if "running" in name and "module1" in name:
            got = padded.state_dict()[name]
            assert torch.allclose(got, expected, atol=1e-5), name


def test_sampling_is_a_mode():
    encoder, wavs = encoder_with(), torch.randn(2, 3000)

    def encode(**kwargs):
        generator = torch.Generator().manual_seed(1)
        return encoder(wavs, generator=generator, **kwargs)

    means = encode()
    assert not means["context"].sampled
    assert torch.equal(means["module3"].sample, means["module3"].mean)
    samples = encode(sample=True)
    assert samples["module1"].sampled and samples["context"].sampled
    assert not torch.equal(samples["module1"].sample, samples["module1"].mean)
    # the noise of a module reaches the modules above
    assert not torch.equal(samples["module2"].mean, means["module2"].mean)
    encoder.train()
    assert torch.equal(encode()["context"].mean, samples["context"].mean)
    assert torch.equal(
        encode(sample=False)["module3"].mean, means["module3"].mean
    )


def test_sample_has_the_posterior_moments():
    encoder = encoder_with()
    latent = encoder(torch.randn(1, 2000))["module2"]
    draws = torch.stack([latent.draw() for _ in range(4000)])
    sigma = (0.5 * latent.log_var).exp()
    error = (draws.mean(0) - latent.mean) / sigma
    assert error.abs().max() < 6 / 4000**0.5
    assert torch.allclose(draws.std(0) / sigma, torch.ones(1), atol=0.08)


def test_deterministic_encoder_has_no_posterior():
    encoder = encoder_with(probabilistic=False).train()
    latent = encoder(torch.randn(1, 2000), sample=True)["module1"]
    assert latent.log_var is None and not latent.sampled
    assert torch.equal(latent.sample, latent.mean)
    assert not any("log_var" in name for name in encoder.state_dict())


def test_unknown_layer_names_the_layers():
    encoder = encoder_with()
    with pytest.raises(ValueError, match="module1, module2, module3, context"):
        encoder(torch.randn(1, 2000), layers=["module4"])


def test_only_asked_layers_are_computed(monkeypatch):
    encoder = encoder_with()
    monkeypatch.setattr(
        encoder.layers["module3"], "forward", lambda *_: pytest.fail("computed")
    )
    assert list(encoder(torch.randn(1, 2000), layers=["module2"])) == [
        "module2"
    ]


def test_too_short_says_so():
    with pytest.raises(ValueError, match="too short"):
        encoder_with()(torch.randn(1, 20))


@pytest.mark.parametrize(
    "lengths", [[1.0], [1.0, 0.0], [1.0, 1.1], [10, 11], [0, 10]]
)
def test_impossible_lengths(lengths):
    with pytest.raises(ValueError, match="wav_lens gives"):
        absolute_lengths(torch.zeros(2, 10), torch.tensor(lengths))


def test_relative_lengths_round():
    time = 160000
    lengths = torch.arange(1, time, 77)
    relative = lengths.float() / time
    x = torch.zeros(1, 1).expand(len(lengths), time)
    assert torch.equal(absolute_lengths(x, relative), lengths)


def test_frame_geometry_is_where_the_receptive_field_is():
    encoder = encoder_with(context_channels=0, probabilistic=False)
    wav = torch.zeros(1, 8000, requires_grad=True)
    for layer in encoder.layer_names:
        frame = 12
        latent = encoder(wav + torch.randn(1, 8000), layers=[layer])[layer]
        (grad,) = torch.autograd.grad(latent.mean[0, frame].abs().sum(), wav)
        touched = grad[0].nonzero().flatten()
        hop, center = encoder.frame_geometry(layer)
        middle = (touched[0] + touched[-1]).item() / 2
        assert abs(middle - (center + hop * frame)) <= 8


# a long signal, piece by piece ------------------------------------------------


def in_pieces(encoder, wavs, sizes, **kwargs):
    pieces = list(encoder.stream(wavs.split(sizes, dim=1), **kwargs))
    assert len(pieces) == len(wavs.split(sizes, dim=1))
    return {
        name: torch.cat([piece[name].mean for piece in pieces], dim=1)
        for name in pieces[0]
    }


@pytest.mark.parametrize("batch_norm", [False, True])
@pytest.mark.parametrize("size", [1, 7, 159, 160, 465, 1601, 4000])
def test_pieces_make_the_whole(size, batch_norm):
    encoder = encoder_with(torch.float64, batch_norm=batch_norm)
    wavs = torch.randn(2, 3000, dtype=torch.float64)
    whole, pieces = encoder(wavs), in_pieces(encoder, wavs, size)
    assert list(pieces) == encoder.layer_names
    for name, latent in whole.items():
        torch.testing.assert_close(
            pieces[name], latent.mean, atol=1e-12, rtol=0
        )


def test_a_minute_in_odd_pieces():
    encoder = encoder_with()
    wavs = torch.randn(1, 60 * 16000)
    sizes = [1, 479, 16001, 3, 100003, 0, 77777]
    sizes.append(wavs.shape[1] - sum(sizes))
    with torch.no_grad():
        whole, pieces = encoder(wavs), in_pieces(encoder, wavs, sizes)
    for name, latent in whole.items():
        tolerance = 1e-5 * max(1, latent.mean.abs().max())
        assert (pieces[name] - latent.mean).abs().max() <= tolerance


def test_no_frame_comes_before_its_samples_and_none_is_missing():
    encoder = encoder_with()
    wavs = torch.randn(1, 1600)
    counts = [
        piece["module3"].mean.shape[1] for piece in encoder.stream([wavs, wavs])
    ]
    complete = 1600  # frames for which no zero is needed on the right
    for kernel, stride, padding in CONVOLUTIONS["module3"]:
        complete = (complete + padding - kernel) // stride + 1
    assert counts[0] == complete < encoder.output_lengths(1600, "module3")
    assert sum(counts) == encoder.output_lengths(3200, "module3")


def test_a_stream_keeps_no_graph():
    for piece in encoder_with().stream([torch.randn(1, 2000)] * 2):
        assert not any(z.mean.requires_grad for z in piece.values())


@pytest.mark.parametrize("part", [1, 1000, 1 << 30])
def test_parts_of_a_batch_are_the_batch(monkeypatch, part):
    monkeypatch.setattr("speechbrain_sim.encoders.layers.PART", part)
    encoder = encoder_with(torch.float64)
    wavs = torch.randn(5, 3000, dtype=torch.float64)
    lengths = torch.tensor([3000, 1000, 2999, 700, 3000])
    with_graph = encoder(wavs, lengths)
    with torch.no_grad():
        without = encoder(wavs, lengths)
    for name, latent in without.items():
        for row, length in enumerate(latent.lengths):
            torch.testing.assert_close(
                latent.mean[row, :length],
                with_graph[name].mean[row, :length],
                atol=1e-12,
                rtol=0,
            )


def test_a_stream_can_be_asked_for_samples_and_for_some_layers():
    encoder = encoder_with()
    wavs = torch.randn(1, 3000)
    (piece,) = encoder.stream([wavs], ["module1"], sample=True)
    assert list(piece) == ["module1"] and piece["module1"].sampled
    assert not torch.equal(piece["module1"].sample, piece["module1"].mean)


def test_what_cannot_stream():
    encoder = encoder_with()
    with pytest.raises(ValueError, match="too short for a frame of context"):
        list(encoder.stream([torch.randn(1, 20)]))
    with pytest.raises(ValueError, match="no layer 'module9'"):
        list(encoder.stream([torch.randn(1, 2000)], ["module9"]))
    with pytest.raises(ValueError, match="call eval"):
        list(encoder.train().stream([torch.randn(1, 2000)]))
