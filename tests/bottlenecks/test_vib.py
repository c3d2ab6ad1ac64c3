"""Textual and acoustic halves: terms, masks, gradients, planted factors."""

import itertools
import math

import pytest
import torch
from torch.distributions import Normal, kl_divergence
from torch.nn.functional import cross_entropy, one_hot

from speechbrain_sim.bottlenecks.coded import CodedEncoder
from speechbrain_sim.bottlenecks.vib import (
    AttentionPool,
    TextHalf,
    UtteranceHalf,
    ctc_per_label,
)
from speechbrain_sim.data.labels import NO_LABEL
from speechbrain_sim.data.targets import Labels, error_rates
from speechbrain_sim.encoders.base import Latent, at_frames_of
from speechbrain_sim.encoders.greedy import GreedyEncoder
from speechbrain_sim.encoders.mixed import MixedEncoder
from speechbrain_sim.models.format import save_parts, sha256_of
from speechbrain_sim.models.load import load_encoder, plain


def seeded(*key):
    return torch.Generator().manual_seed(*key)


@pytest.fixture
def text():
    torch.manual_seed(0)
    half = TextHalf(8, 4, labels=5)
    half.set_units(torch.randn(8), torch.rand(8) + 0.5)
    return half


@pytest.fixture
def label():
    torch.manual_seed(1)
    return UtteranceHalf(8, 3, classes=2, text_units=4)


X = torch.randn(3, 12, 8, generator=seeded(0))
LENGTHS = torch.tensor([12, 7, 9])
TEXTS = torch.tensor([[1, 2, 2, 4], [3, 1, 0, 0], [4, 4, 4, 0]])
SIZES = torch.tensor([4, 2, 3])


def test_kl_is_that_of_torch_and_of_draws(text):
    _, kl = text.draw(X, LENGTHS)
    mean, var = text.posterior(X)
    posterior, prior = Normal(mean, var.sqrt()), Normal(0.0, 1.0)
    each = kl_divergence(posterior, prior).sum(-1)
    wanted = sum(each[i, :n].sum() for i, n in enumerate(LENGTHS)) / 28
    torch.testing.assert_close(kl, wanted)
    torch.manual_seed(0)
    z = posterior.sample((4000,))
    gap = posterior.log_prob(z) - prior.log_prob(z)
    drawn = gap.sum(-1).mean(0)
    drawn = sum(drawn[i, :n].sum() for i, n in enumerate(LENGTHS)) / 28
    assert drawn.item() == pytest.approx(kl.item(), rel=0.02)


def test_noise_has_the_variance_not_its_square(text):
    """The paper prints mean + var * noise; the reference takes the root."""
    many = X[:1].expand(2000, -1, -1), torch.full((2000,), 12)
    mean, var = (x.detach() for x in text.posterior(many[0]))
    z = text.draw(*many, seeded(0))[0].detach()
    assert float((z.var(0) / var[0]).mean()) == pytest.approx(1, abs=0.02)
    assert float((var - 1).abs().mean()) > 0.2  # or roots would not differ
    noise = torch.empty_like(mean).normal_(generator=seeded(0))
    torch.testing.assert_close(z, mean + var.sqrt() * noise)
    assert torch.equal(text.eval().draw(X, LENGTHS)[0], text.encode(X))


def brute_ctc(log_probs, labels):
    """Sums over every path of every length: -log p."""
    total, (time, symbols) = 0.0, log_probs.shape
    for path in itertools.product(range(symbols), repeat=time):
        kept = [s for s, _ in itertools.groupby(path) if s]
        if kept == labels:
            total += math.exp(sum(log_probs[t, s] for t, s in enumerate(path)))
    return -math.log(total) if total else math.inf


def test_ctc_is_that_of_all_paths_and_infinities_are_left_out():
    logits = torch.randn(4, 5, 3, generator=seeded(1)).requires_grad_()
    log_probs, lengths = logits.log_softmax(-1), torch.tensor([5, 4, 2, 3])
    texts = torch.tensor([[1, 2], [2, 2], [1, 1], [1, 0]])
    sizes = torch.tensor([2, 2, 2, 1])
    found, infinite = ctc_per_label(log_probs, lengths, texts, sizes)
    each = [
        brute_ctc(row[:n].detach(), labels[:size].tolist()) / size
        for row, n, labels, size in zip(
            log_probs, lengths, texts, sizes, strict=False
        )
    ]
    assert infinite == 1 and each[2] == math.inf
    each = [float(x) for x in each if x != math.inf]
    assert float(found.detach()) == pytest.approx(sum(each) / 3, rel=1e-5)
    found.backward()
    assert logits.grad.isfinite().all() and not logits.grad[2].any()
    only = ctc_per_label(log_probs[2:3], lengths[2:3], texts[2:3], sizes[2:3])
    assert [float(x.detach()) for x in only] == [0.0, 1.0]


def test_padding_changes_nothing(text, label):
    text.eval(), label.eval()
    junk = torch.full((3, 6, 8), 1e4)
    longer = torch.cat([X, junk], 1)
    for row, n in enumerate(LENGTHS):
        longer[row, n:] = 1e4
    more = torch.cat([TEXTS, torch.full((3, 2), 3)], 1)
    y = torch.tensor([0, 1, NO_LABEL])
    for half, one, other in (
        (text, (TEXTS, SIZES), (more, SIZES)),
        (label, (y, text.encode(X)), (y, text.encode(longer))),
    ):
        found = half.loss(X, LENGTHS, *one)
        padded = half.loss(longer, LENGTHS, *other)
        torch.testing.assert_close(found.terms, padded.terms)
    logits, attention = label(label.encode(X), LENGTHS, text.encode(X))
    codes = label.encode(longer), LENGTHS, text.encode(longer)
    torch.testing.assert_close(logits, label(*codes)[0])
    for weights, others in zip(attention, label(*codes)[1], strict=True):
        torch.testing.assert_close(weights, others[:, :12])
        torch.testing.assert_close(weights.sum(1), torch.ones(3))
        assert not others[0, 12:].any() and not weights[1, 7:].any()


def test_loss_is_the_sum_of_its_terms(text, label):
    beta = 0.3
    for half, more in (
        (text, (TEXTS, SIZES)),
        (label, (torch.tensor([1, NO_LABEL, 0]), torch.randn(3, 12, 4))),
    ):
        total, terms = half.eval().loss(X, LENGTHS, *more, beta=beta)
        task = terms["ctc"] if half is text else terms["nll"]
        torch.testing.assert_close(total, task + beta * terms["kl"])
    logits, _ = label(label.encode(X), LENGTHS, more[1])
    log_p = logits.log_softmax(-1)
    torch.testing.assert_close(task, -(log_p[0, 1] + log_p[2, 0]) / 2)
    none = torch.full((3,), NO_LABEL), more[1]
    assert label.loss(X, LENGTHS, *none).terms["nll"] == 0


def test_attention_begins_with_sums_of_channels():
    z = torch.randn(2, 5, 3, generator=seeded(2))
    pooled, weights = AttentionPool(3)(z, torch.tensor([5, 2]))
    assert torch.equal(weights[0], z[0].sum(-1).softmax(0))
    torch.testing.assert_close(pooled[1], weights[1, :2] @ z[1, :2])


def test_no_gradient_reaches_the_textual_half(text, label):
    codes = text.encode(X)
    assert codes.requires_grad
    y = torch.tensor([0, 1, 1])
    label.loss(X, LENGTHS, y, codes, generator=seeded(0)).total.backward()
    assert all(p.grad is None for p in text.parameters())
    assert all(p.grad is not None for p in label.parameters())
    for given in (None, codes):
        other = UtteranceHalf(8, 3, 2, text_units=0 if given is codes else 4)
        with pytest.raises(ValueError, match="conditioned on . units of text"):
            other(other.encode(X), LENGTHS, given)


def test_an_oracle_has_no_errors():
    labels = Labels("words", ["A", "B", "C"])
    half = TextHalf(4, 4, labels=4, coded=False)
    torch.nn.init.eye_(half.decoder.weight)
    torch.nn.init.zeros_(half.decoder.bias)
    path = torch.tensor([[0, 1, 1, 0, 1, 2, 3, 3, 0]])
    z = half.encode(one_hot(path, 4).float())
    found = labels.decode(half.logits(z), torch.tensor([9]))
    true = {"a": torch.tensor([1, 1, 2, 3])}
    rates = error_rates(dict(zip("a", found, strict=True)), true, labels)
    assert rates["WER"].percent == 0
    assert (
        half.loss(X[..., :4], LENGTHS, TEXTS.clamp(max=3), SIZES).terms["kl"]
        == 0
    )


def test_layers_are_mixed_by_learned_weights():
    half = TextHalf(24, 4, labels=5, layers=3)
    layers = X.repeat(1, 1, 3).unflatten(-1, (3, 8)).clone()
    layers[..., 1, :] *= -1
    found = half.mixed(layers.flatten(-2))
    torch.testing.assert_close(found, X / 3)
    loss = half.loss(layers.flatten(-2), LENGTHS, TEXTS, SIZES)
    loss.total.backward()
    assert half.mixer.weights.grad.abs().min() > 0
    with torch.no_grad():
        half.mixer.weights[1] = 50.0
    torch.testing.assert_close(half.mixed(layers.flatten(-2)), -X)
    for sizes in (25, 4), (24, 4):
        with pytest.raises(ValueError, match="layers are of equal width"):
            TextHalf(*sizes, labels=5, layers=3, coded=sizes[0] == 25)


def test_a_mixture_is_a_layer_that_is_saved(tmp_path):
    torch.manual_seed(0)
    encoder = GreedyEncoder(channels=4, context_channels=6).eval()
    with pytest.raises(ValueError, match="several widths cannot be mixed"):
        MixedEncoder(encoder, ["module1", "context"])
    names = ["module1", "module3"]
    half = TextHalf(8, 3, labels=5, layers=2)
    entry = {"layer": "mix", "mixed": names}
    parts = {"encoder": encoder, "bottleneck_mix.vib.text": half}
    save_parts(tmp_path, parts, {"bottleneck_mix.vib.text": entry})
    coded, about = load_encoder(tmp_path)
    wavs, lens = torch.randn(2, 10240), torch.tensor([1.0, 0.6])
    latents, below = coded(wavs, lens), encoder(wavs, lens)
    assert list(latents) == [*below, "mix", "mix.vib.text"]
    for row, n in enumerate(below["module3"].lengths):
        x = below["module1"].mean[row : row + 1]
        one = Latent(x, None, x, below["module1"].lengths[row : row + 1])
        at = at_frames_of(one, (20, 10.0), (160, 20.0), int(n))[0]
        wanted = torch.cat([at, below["module3"].mean[row, :n]], -1)
        torch.testing.assert_close(latents["mix"].mean[row, :n], wanted)
        z = half.eval().encode(wanted)
        torch.testing.assert_close(latents["mix.vib.text"].mean[row, :n], z)
    assert coded.origin("mix.vib.text") == coded.origin("mix") == "mix"
    assert coded.frame_geometry("mix") == encoder.frame_geometry("module3")
    assert not coded.streams and sha256_of(coded) == about["sha256"]
    assert sha256_of(plain(coded, about)[0]) == about["encoder"]


def test_halves_do_not_decode():
    encoder = GreedyEncoder(channels=8, context_channels=6).eval()
    half = TextHalf(8, 3, labels=5)
    coded = CodedEncoder(encoder, {"module3.vib.text": half})
    assert "module3.vib.text.decoded" not in coded.layer_names
    with pytest.raises(ValueError, match="do not decode to frames"):
        half.decode(torch.zeros(1, 3))


def planted(count, generator):
    """Sequences of symbols (A) in a room of their own (B): x, lengths, A, B.

    A frame holds its symbol, or a pause, and everywhere the louder room.
    """
    a = torch.randint(1, 4, (count, 5), generator=generator)
    b = torch.randint(0, 4, (count,), generator=generator)
    frames = torch.stack([a, torch.zeros_like(a)], -1).flatten(1)
    rooms = 3 * one_hot(b, 4)[:, None].expand(-1, 10, -1)
    x = torch.cat([one_hot(frames, 4), rooms], -1).float()
    turn = torch.linalg.qr(torch.randn(8, 8, generator=seeded(5)))[0]
    noise = torch.randn(count, 10, 8, generator=generator)
    return x @ turn + 0.1 * noise, torch.full((count,), 10), a, b


def probed(codes, classes):
    """Returns the accuracy of a linear probe on the second half."""
    codes, split = (codes - codes.mean(0)) / codes.std(0), len(codes) // 2
    probe = torch.nn.Linear(codes.shape[1], 4)
    optimizer = torch.optim.Adam(probe.parameters(), lr=0.05)
    for _ in range(100):
        cross_entropy(probe(codes[:split]), classes[:split]).backward()
        optimizer.step()
        optimizer.zero_grad()
    found = probe(codes[split:]).argmax(1)
    return float((found == classes[split:]).float().mean())


@pytest.mark.parametrize("beta", [0.3, 0.0])
def test_what_the_text_does_not_need_is_lost_by_the_information_loss(beta):
    """A probe finds B in draws of z_text if, and only if, beta is 0; A is kept.

    The noise stays without the loss: it is not what makes the difference.
    """
    torch.manual_seed(0)
    x, lengths, a, b = planted(128, seeded(3))
    half, sizes = TextHalf(8, 8, labels=4), torch.full((800,), 5)
    half.set_units(x.mean((0, 1)), x.std((0, 1)))
    optimizer = torch.optim.AdamW(half.parameters(), lr=0.005)
    for step in range(200):
        at = torch.arange(32) + 32 * (step % 4)
        options = {"beta": beta * min(1.0, 0.1 + step / 140)}
        batch = x[at], lengths[at], a[at], sizes[at]
        loss = half.loss(*batch, **options, generator=seeded(step))
        loss.total.backward()
        optimizer.step()
        optimizer.zero_grad()
    x, lengths, a, b = planted(800, seeded(4))
    with torch.no_grad():
        z, _ = half.draw(x, lengths, seeded(9))
        terms = half.eval().loss(x, lengths, a, sizes).terms
    assert terms["ctc"] < 0.7  # of log 3 + log 2, if A were lost
    found = probed(z.mean(1), b)
    assert found < 0.34 if beta else found > 0.45  # 0.25 + 4 deviations
