"""Codes as layers, and codes that are changed."""

import itertools
import math

import pytest
import torch

from speechbrain_sim.analysis.listening import activations
from speechbrain_sim.bottlenecks.coded import (
    CodedEncoder,
    change_codes,
    draw_codes,
    move,
)
from speechbrain_sim.bottlenecks.sae import VARIANTS, SparseAutoencoder
from speechbrain_sim.decoders import mirror
from speechbrain_sim.encoders.base import masked_mean
from speechbrain_sim.encoders.greedy import GreedyEncoder
from speechbrain_sim.encoders.logmel import LogMel
from speechbrain_sim.models.format import save_parts
from speechbrain_sim.steering import frames_of_span, rank_features

NAME = "module3.sae"


def save_coded(folder, pooling="frame", decoder=False, **arguments):
    """Saves a small encoder and random codes of its third module."""
    torch.manual_seed(0)
    sizes = {"channels": 8, "context_channels": 6, **arguments}
    parts = {"encoder": GreedyEncoder(**sizes)}
    parts[f"bottleneck_{NAME}"] = SparseAutoencoder(8, 24, k=4)
    if decoder:
        parts["decoder_module3"] = mirror(parts["encoder"], "module3")
    entry = {"layer": "module3", "pooling": pooling, "names": {"3": "AA"}}
    entries = {f"bottleneck_{NAME}": entry}
    save_parts(folder, parts, entries, training={"model": "sim"})
    return folder


@pytest.fixture(scope="module")
def plain():
    torch.manual_seed(1)
    return GreedyEncoder(channels=8, context_channels=6).eval()


def coded(plain, **entry):
    torch.manual_seed(2)
    sae = SparseAutoencoder(8, 24, k=4)
    sae.set_units(torch.randn(8), torch.rand(8) + 0.5)
    return CodedEncoder(plain, {NAME: sae}, {NAME: entry}).eval()


def test_codes_are_those_of_the_means(plain):
    encoder, wavs = coded(plain), torch.randn(2, 8000)
    lengths = torch.tensor([8000, 5000])
    (sae,) = encoder.bottlenecks.values()
    below, found = plain(wavs, lengths), encoder(wavs, lengths)
    names = ["module1", "module2", "module3", NAME, f"{NAME}.decoded"]
    assert list(found) == [*names, "context"]
    for layer, latent in below.items():
        assert torch.equal(latent.mean, found[layer].mean)
    codes, decoded = sae(below["module3"].mean)
    for row, end in enumerate(found[NAME].lengths):
        assert end == below["module3"].lengths[row]
        for layer, wanted in (NAME, codes), (f"{NAME}.decoded", decoded):
            x = found[layer].mean[row]
            assert torch.equal(x[:end], wanted[row, :end])
            assert not x[end:].any()
    drawn = encoder(wavs, lengths, sample=True)
    assert torch.equal(
        drawn[NAME].sample[0], sae.encode(drawn["module3"].sample)[0]
    )
    assert drawn[NAME].log_var is None and drawn[NAME].sampled


def test_a_pooled_code_is_that_of_the_mean(plain):
    encoder, wavs = coded(plain, pooling="mean"), torch.randn(2, 8000)
    lengths = torch.tensor([8000, 5000])
    found = encoder(wavs, lengths)
    mean = masked_mean(found["module3"].mean, found["module3"].lengths)
    wanted = encoder.bottlenecks[NAME].encode(mean)
    for row, end in enumerate(found[NAME].lengths):
        x = found[NAME].mean[row]
        assert torch.equal(x[:end], wanted[row].expand(end, -1))
    pooled = masked_mean(found[NAME].mean, found[NAME].lengths)
    torch.testing.assert_close(pooled, wanted)
    assert encoder.pools(NAME) and not encoder.pools("module3")
    assert plain.streams and not encoder.streams and coded(plain).streams


def test_bottlenecks_of_other_layers_are_refused(plain):
    sae = SparseAutoencoder(8, 24, k=4)
    for name in ("sae", "module9.sae", "module3", f"{NAME}.decoded"):
        with pytest.raises(ValueError, match=f"named '{name}': .* module3"):
            CodedEncoder(plain, {name: sae})
    with pytest.raises(ValueError, match="logmel.sae is of 8 channels.* 80"):
        CodedEncoder(LogMel(), {"logmel.sae": sae})


def test_bottlenecks_stay_in_eval_mode(plain):
    encoder = coded(plain).train()
    assert plain.training and not encoder.bottlenecks[NAME].training
    encoder.eval()


def test_only_what_was_changed_moves(plain):
    sae = coded(plain).bottlenecks[NAME]
    x = torch.randn(2, 9, 8)
    codes = sae.encode(x)
    assert torch.equal(move(sae, x, codes, {})[0], x)
    feature = int(codes[0, 4].argmax())
    moved, changed = move(sae, x, codes, {feature: 0.0}, slice(3, 6))
    wanted = change_codes(codes, {feature: 0.0}, slice(3, 6))
    assert torch.equal(changed, wanted)
    assert torch.equal(moved[:, :3], x[:, :3])
    assert torch.equal(moved[:, 6:], x[:, 6:])
    column = sae.decoder.weight[:, feature] * sae.std
    for row, frame in itertools.product(range(2), range(3, 6)):
        gap = moved[row, frame] - x[row, frame]
        wanted = -codes[row, frame, feature] * column
        torch.testing.assert_close(gap, wanted, atol=1e-5, rtol=1e-4)
    assert (moved - x).any()


def test_ways_of_changing_agree(plain):
    codes = torch.rand(5, 6)
    silent = change_codes(codes, {2: 0.0})
    assert torch.equal(silent, change_codes(codes, {2: 0}, how="scale"))
    assert not silent[:, 2].any() and torch.equal(silent[:, 3], codes[:, 3])
    added = change_codes(codes, {0: 1.5, 1: -1.0}, how="add")
    torch.testing.assert_close(added[:, 0], codes[:, 0] + 1.5)
    torch.testing.assert_close(added[:, 1], codes[:, 1] - 1)
    for features, how, message in (
        ({6: 1.0}, "set", "no feature 6: they are 0 to 5"),
        ({"a": 1.0}, "set", "no feature 'a'"),
        ({1: math.nan}, "set", "Feature 1 is given nan"),
        ({1: "loud"}, "set", "Feature 1 is given 'loud'"),
        ({1: 1.0}, "put", "how is 'put': give one of set, scale, add"),
    ):
        with pytest.raises(ValueError, match=message):
            change_codes(codes, features, how=how)


def test_spans_are_where_frames_are():
    hop, center = 160, 20.0
    times = [(center + hop * i) / 16000 for i in range(50)]
    for start, stop in ((0, 0.1), (0.00125, 0.01), (0.2, 99), (0.011, 0.02)):
        inside = [i for i, t in enumerate(times) if start <= t < stop]
        found = frames_of_span((start, stop), hop, center, 50)
        assert list(range(50))[found] == inside
    for span in ((0.3, 0.3), (0.5, 0.4), (9, 10), 3, ("a", 1), (0, math.nan)):
        with pytest.raises(ValueError, match="span is|No frame lies between"):
            frames_of_span(span, hop, center, 50)


def test_deviation_of_activations():
    """A code without sparsity has that of its weights; certainty has none."""
    torch.manual_seed(0)
    sae = SparseAutoencoder(4, 6, k=6)
    with torch.no_grad():
        sae.encoder.bias += 100  # nothing is cut off
    mean, log_var = torch.randn(3, 4), torch.randn(3, 4)
    generator = torch.Generator().manual_seed(0)
    found = draw_codes(sae, mean, log_var, 4000, generator).deviation
    wanted = log_var.exp() @ sae.encoder.weight.square().T
    torch.testing.assert_close(found, wanted.sqrt(), rtol=0.06, atol=0)
    few = [
        draw_codes(sae, mean, log_var, 3, g.manual_seed(1))
        for g in (generator, torch.Generator())
    ]
    noise = torch.Generator().manual_seed(1)
    draws = [torch.empty(3, 4).normal_(generator=noise) for _ in range(3)]
    draws = [sae.encode(mean + (log_var / 2).exp() * x) for x in draws]
    draws = torch.stack(draws)
    wanted = (draws != 0).float().mean(0), draws.mean(0), draws.std(0)
    torch.testing.assert_close(tuple(few[0]), wanted)
    assert all(map(torch.equal, *few))
    sure = draw_codes(sae, mean, torch.full((3, 4), -60.0))
    assert sure.deviation.max() < 1e-3
    with pytest.raises(ValueError, match="1 draws"):
        draw_codes(sae, mean, log_var, 1)


def test_moments_are_where_features_are_largest():
    generator = torch.Generator().manual_seed(0)
    codes = torch.rand(60, 12, generator=generator)
    codes *= torch.rand(60, 12, generator=generator) > 0.4
    codes[:, 5] = 0
    found = rank_features(codes, 20)
    assert found == rank_features(codes.to_sparse(), 20)
    assert len(found) == 11
    means = codes.mean(0)
    assert [m.feature for m in found] == means.argsort(descending=True)[
        :11
    ].tolist()
    for moment in found:
        row = codes[:, moment.feature]
        assert moment.at == int(row.argmax())
        assert moment.peak == pytest.approx(float(row.max()))
        assert moment.share == pytest.approx(float((row > 0).float().mean()))
        assert moment.mean == pytest.approx(float(row.mean()))
        start = stop = moment.at
        while start > 0 and row[start - 1] > 0:
            start -= 1
        while stop < 60 and row[stop] > 0:
            stop += 1
        assert (moment.start, moment.stop) == (start, stop)
    assert rank_features(torch.zeros(4, 3)) == []


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_is_a_layer(plain, variant):
    sae = SparseAutoencoder(8, 24, k=4, variant=variant)
    encoder = CodedEncoder(plain, {NAME: sae})
    z = encoder(torch.randn(1, 4000), layers=[f"{NAME}.decoded"])
    assert z[f"{NAME}.decoded"].mean.isfinite().all()


def test_features_are_heard_from_silent_to_their_largest(plain):
    latent = coded(plain)(torch.randn(3, 8000))[NAME]
    codes = latent.mean.flatten(0, 1)
    first = int(codes.var(0).argmax())
    largest = float(codes[:, first].max())
    found = list(activations(latent, latent.mean[0]))
    title, caption, labels, z = found[0]
    assert f"Feature {first}, number 1" in caption
    assert labels[0] == "0.00" and labels[-1] == f"{largest:.2f}"
    assert len(labels) == len(z) and len(found) == 2
    wanted = torch.linspace(0, largest, len(z))
    assert torch.equal(z[..., first], wanted[:, None].expand(-1, z.shape[1]))
    others = torch.arange(24) != first
    assert torch.equal(z[3][:, others], latent.mean[0][:, others])
