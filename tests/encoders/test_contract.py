"""What every encoder has to keep to, whatever it is made of."""

import copy

import pytest
import torch

from speechbrain_sim.bottlenecks.coded import CodedEncoder
from speechbrain_sim.bottlenecks.sae import SparseAutoencoder
from speechbrain_sim.decoders import mirror
from speechbrain_sim.encoders.base import (
    Encoder,
    Latent,
    masked_mean,
)
from speechbrain_sim.encoders.greedy import GreedyEncoder
from speechbrain_sim.encoders.huggingface import load_hidden_states
from speechbrain_sim.encoders.logmel import LogMel, Mfcc, StackedLogMel
from speechbrain_sim.integrations import s3prl, speechbrain
from speechbrain_sim.integrations.s3prl import UpstreamExpert
from speechbrain_sim.integrations.speechbrain import LatentFeatures
from tests.encoders.test_greedy import encoder_with
from tests.encoders.test_huggingface import save_model

SIZES = {"channels": 12, "context_channels": 6}


def coded(encoder, layer, pooling="frame"):
    """An encoder and random codes of a layer."""
    generator = torch.Generator().manual_seed(0)
    channels = encoder.channels_of(layer)
    sae = SparseAutoencoder(channels, 24, k=5, generator=generator)
    name = f"{layer}.sae"
    entries = {name: {"pooling": pooling}}
    return CodedEncoder(encoder, {name: sae}, entries).eval()


KINDS = {
    "sim": lambda folder: encoder_with(),
    "gim": lambda folder: encoder_with(probabilistic=False),
    "batch norm": lambda folder: encoder_with(batch_norm=True),
    "no context": lambda folder: encoder_with(context_channels=0),
    "one module": lambda folder: encoder_with(
        kernel_sizes=[[10, 8, 4]], strides=[[5, 4, 2]], paddings=[[2, 2, 1]]
    ),
    "logmel": lambda folder: LogMel().eval(),
    "stacked": lambda folder: StackedLogMel(n_mels=8).eval(),
    "mfcc": lambda folder: Mfcc().eval(),
    "wavlm": lambda folder: load_hidden_states(
        save_model(folder, "wavlm", "large")
    )[0],
    "codes": lambda folder: coded(encoder_with(), "module2"),
    "codes of means": lambda folder: coded(LogMel().eval(), "logmel", "mean"),
}
FIELDS = ("mean", "log_var", "sample")


@pytest.fixture(scope="module", params=KINDS)
def encoder(request, tmp_path_factory):
    return KINDS[request.param](tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def shortest(encoder):
    """The fewest samples that every layer gives a frame for."""
    return next(
        samples
        for samples in range(1, 10000)
        if all(
            encoder.output_lengths(samples, name) >= 1
            for name in encoder.layer_names
        )
    )


def padded_batch(lengths, dtype=torch.float32):
    """Noise, and 1e3 beyond each utterance."""
    torch.manual_seed(1)
    wavs = torch.full((len(lengths), max(lengths) + 500), 1e3, dtype=dtype)
    for wav, length in zip(wavs, lengths, strict=True):
        wav[:length] = torch.randn(length, dtype=dtype)
    return wavs


def test_layers_and_widths(encoder):
    assert isinstance(encoder, Encoder)
    latents = encoder(torch.randn(2, 8821))
    assert list(latents) == list(encoder.layer_names)
    for name, latent in latents.items():
        assert isinstance(latent, Latent) and not latent.sampled
        assert latent.mean.shape[2] == encoder.channels_of(name)
        assert encoder.has_posterior(name) == (latent.log_var is not None)
        assert torch.equal(latent.sample, latent.mean)
    assert encoder.conv_channels > 0


@pytest.mark.parametrize("more", [0, 1, 159, 160, 1600, 8821, 10240])
def test_lengths_follow_from_the_convolutions(encoder, shortest, more):
    samples = shortest + more
    latents = encoder(torch.randn(1, samples))
    for name, latent in latents.items():
        frames = samples
        for kernel, stride, padding in encoder.convolutions(name):
            frames = (frames + 2 * padding - kernel) // stride + 1
        assert latent.mean.shape[1] == latent.lengths.item() == frames
        assert encoder.output_lengths(samples, name) == frames
        both = encoder.output_lengths(torch.tensor([samples, 9999]), name)
        assert both.tolist() == [frames, encoder.output_lengths(9999, name)]


def test_geometry_follows_from_the_convolutions(encoder):
    for name in encoder.layer_names:
        hop, center = encoder.frame_geometry(name)
        product, middle = 1, 0.0
        for kernel, stride, padding in encoder.convolutions(name):
            middle += product * ((kernel - 1) / 2 - padding)
            product *= stride
        # half a sample: the spectrogram's window has its peak beside it
        assert hop == product and abs(center - middle) <= 0.5


@pytest.mark.parametrize(
    "dtype, tolerance", [(torch.float32, 1e-5), (torch.float64, 1e-9)]
)
def test_padding_changes_nothing(encoder, shortest, dtype, tolerance):
    lengths = [6000, 4321, 1777, shortest]
    wavs = padded_batch(lengths, dtype)
    encoder.to(dtype)
    try:
        together = encoder(wavs, torch.tensor(lengths))
        rows = [
            encoder(wavs[row : row + 1, :length])
            for row, length in enumerate(lengths)
        ]
    finally:
        encoder.float()
    for name, latent in together.items():
        padded = Latent.pad([row[name] for row in rows])
        assert torch.equal(latent.lengths, padded.lengths)
        for field in FIELDS:
            got, expected = getattr(latent, field), getattr(padded, field)
            if expected is None:
                assert got is None
                continue
            bound = tolerance * max(1, expected.abs().max().item())
            time = expected.shape[1]
            assert (got[:, :time] - expected).abs().max() <= bound
            for row, end in enumerate(latent.lengths):
                assert not got[row, end:].any(), (name, field)
        pooled = masked_mean(latent.mean, latent.lengths)
        for row, alone in enumerate(rows):
            expected = alone[name].mean[0].mean(0)
            bound = tolerance * max(1, alone[name].mean.abs().max().item())
            assert (pooled[row] - expected).abs().max() <= bound


def test_samples_are_zero_beyond_an_utterance(encoder):
    lengths = torch.tensor([5000, 1777])
    wavs = padded_batch(lengths.tolist())
    generator = torch.Generator().manual_seed(3)
    latents = encoder(wavs, lengths, sample=True, generator=generator)
    drawn = False
    for name, latent in latents.items():
        drawn = drawn or encoder.has_posterior(name)
        assert latent.sampled == drawn
        for row, end in enumerate(latent.lengths):
            assert latent.sample[row, :end].any()
            assert not latent.sample[row, end:].any()


def test_what_is_refused(encoder, shortest):
    names = ", ".join(encoder.layer_names)
    with pytest.raises(ValueError, match=f"no layer 'module9'.*has {names}"):
        encoder(torch.randn(1, 8000), layers=["module9"])
    for method in (
        encoder.channels_of,
        encoder.convolutions,
        encoder.frame_geometry,
        encoder.has_posterior,
        encoder.predicts_input,
    ):
        with pytest.raises(ValueError, match="no layer 'module9'"):
            method("module9")
    with pytest.raises(ValueError, match=f"{shortest - 1} samples is too shor"):
        encoder(torch.randn(1, shortest - 1))
    for shape in ((8000,), (1, 8000, 1)):
        with pytest.raises(ValueError, match=r"expected \(batch, samples\)"):
            encoder(torch.randn(shape))
    with pytest.raises(ValueError, match="wav_lens gives"):
        encoder(torch.randn(2, 8000), torch.tensor([1.0, 1.1]))


def test_only_the_layers_asked_for(encoder):
    wavs = torch.randn(2, 5000)
    everything = encoder(wavs)
    for name in encoder.layer_names:
        alone = encoder(wavs, layers=[name])
        assert list(alone) == [name]
        torch.testing.assert_close(alone[name].mean, everything[name].mean)


@pytest.mark.parametrize("size", [1, 160, 1601])
def test_a_stream_equals_the_batch_or_is_refused(encoder, size):
    wavs = torch.randn(2, 3000)
    chunks = wavs.split(size, dim=1)
    if not encoder.streams:
        with pytest.raises(ValueError, match="cannot encode in pieces"):
            list(encoder.stream(chunks))
        return
    with torch.no_grad():
        batch = encoder(wavs)
    pieces = list(encoder.stream(chunks))
    assert len(pieces) == len(chunks)
    for name, latent in batch.items():
        joined = Latent.cat([piece[name] for piece in pieces])
        assert torch.equal(joined.lengths, latent.lengths)
        torch.testing.assert_close(joined.mean, latent.mean)
        if latent.log_var is not None:
            torch.testing.assert_close(joined.log_var, latent.log_var)


@torch.no_grad()
def test_a_mirrored_decoder_gives_the_samples_back(encoder, shortest):
    for name in encoder.layer_names:
        decoder = mirror(encoder, name)
        again = type(decoder)(**decoder.arguments)
        again.load_state_dict(decoder.state_dict())
        for samples in (shortest + more for more in (8821, 1600, 1, 0)):
            z = encoder(torch.randn(2, samples))[name].mean
            decoded = decoder(z, samples)
            assert decoded.shape == (2, samples)
        assert torch.equal(again(z, samples), decoded)


def test_arguments_make_another(encoder):
    if not hasattr(encoder, "arguments"):
        # of a library's model, and of two parts
        assert type(encoder).__name__ in ("HiddenStates", "CodedEncoder")
        return
    again = type(encoder)(**encoder.arguments).eval()
    again.load_state_dict(encoder.state_dict())
    wavs = torch.randn(1, 5000)
    for name, latent in encoder(wavs).items():
        assert torch.equal(again(wavs)[name].mean, latent.mean)


def test_unused_weights_get_no_gradient(encoder):
    encoder = copy.deepcopy(encoder).requires_grad_(True)
    layer = encoder.layer_names[0]
    encoder.freeze_unused([layer])
    if isinstance(encoder, GreedyEncoder):  # of others, nothing is switched off
        encoder(torch.randn(1, 8000))[layer].mean.sum().backward()
    for name, weight in encoder.named_parameters():
        if isinstance(encoder, GreedyEncoder):
            used = name.startswith(f"layers.{layer}.") and "log_var" not in name
            assert weight.requires_grad == used == (weight.grad is not None)
        elif isinstance(encoder, CodedEncoder) and "coders." in name:
            assert not weight.requires_grad
        elif not isinstance(getattr(encoder, "encoder", None), GreedyEncoder):
            assert weight.requires_grad


def test_device_is_that_of_what_it_is_made_of(encoder):
    assert encoder.device == torch.device("cpu")
    assert copy.deepcopy(encoder).to("meta").device.type == "meta"


def test_every_encoder_gives_features(encoder, monkeypatch):
    def load(*args, **kwargs):
        return copy.deepcopy(encoder), {}

    monkeypatch.setattr(speechbrain, "load_encoder", load)
    monkeypatch.setattr(s3prl, "load_encoder", load)
    first, *_ = names = encoder.layer_names
    width = encoder.channels_of(first)
    layers = [name for name in names if encoder.channels_of(name) == width]
    wavs = torch.randn(2, 8000)
    for frozen in (True, False):
        for chosen in ([first], layers):
            features = LatentFeatures("model", chosen, frozen)(wavs)
            assert features.shape[::2] == (2, width)
    states = UpstreamExpert("model")(list(wavs))["hidden_states"]
    assert [state.shape[::2] for state in states] == [(2, width)] * len(layers)


def test_activation_checkpointing_is_no_part_of_the_identity():
    plain = GreedyEncoder(**SIZES)
    saving = GreedyEncoder(**SIZES, activation_checkpointing=["module1"])
    assert saving.layers["module1"].activation_checkpointing
    assert saving.arguments == plain.arguments
    assert "activation_checkpointing" not in plain.arguments


def test_only_the_context_predicts_its_input():
    encoder = encoder_with()
    predicts = [encoder.predicts_input(name) for name in encoder.layer_names]
    assert predicts == [False, False, False, True]


# latents put together -------------------------------------------------------


def latent_of(batch, time, sampled=True):
    mean, log_var, sample = torch.randn(3, batch, time, 4)
    lengths = torch.full((batch,), time)
    return Latent(mean, log_var, sample if sampled else mean, lengths, sampled)


@pytest.mark.parametrize("sampled", [False, True])
def test_pieces_rows_and_batches(sampled):
    one, two = latent_of(2, 5, sampled), latent_of(2, 3, sampled)
    joined = Latent.cat([one, two])
    assert joined.lengths.tolist() == [8, 8]
    batch = Latent.stack([one, latent_of(1, 5, sampled)])
    assert batch.lengths.tolist() == [5, 5, 5]
    row, shorter = latent_of(1, 5, sampled), latent_of(1, 3, sampled)
    padded = Latent.pad([row, shorter])
    assert padded.lengths.tolist() == [5, 3]
    assert joined.sampled == batch.sampled == padded.sampled == sampled
    for field in FIELDS:
        got = getattr(joined, field)
        assert torch.equal(got[:, :5], getattr(one, field))
        assert torch.equal(got[:, 5:], getattr(two, field))
        assert torch.equal(getattr(batch, field)[:2], getattr(one, field))
        assert torch.equal(
            getattr(padded, field)[1, :3], getattr(shorter, field)[0]
        )
        assert not getattr(padded, field)[1, 3:].any()
        assert torch.equal(getattr(padded, field)[:1], getattr(row, field))


def test_latents_without_a_posterior_stay_so():
    mean = torch.randn(1, 5, 4)
    latent = Latent(mean, None, mean, torch.tensor([5]), False)
    for joined in (
        Latent.cat([latent, latent]),
        Latent.pad([latent, latent]),
        Latent.stack([latent, latent]),
    ):
        assert joined.log_var is None
        assert joined.sample is joined.mean
