"""Sparse autoencoders: against loops, by hand, and step by step."""

import copy
import json

import pytest
import torch

from speechbrain_sim.bottlenecks import sae as module
from speechbrain_sim.bottlenecks.base import NORMALISATIONS, Bottleneck
from speechbrain_sim.bottlenecks.sae import (
    BATCHWISE,
    VARIANTS,
    SparseAutoencoder,
    geometric_median,
    temporal_contrast,
)
from speechbrain_sim.bottlenecks.sparse import (
    BANDWIDTH,
    JumpReLU,
    largest_of_batch,
)


def seeded(seed):
    """A generator."""
    return torch.Generator().manual_seed(seed)


def frames(rows, channels=6, seed=0):
    """Frames whose channels have means and deviations of their own."""
    x = torch.randn(rows, channels, generator=seeded(seed))
    return x * torch.linspace(0.5, 4, channels) + torch.arange(channels)


def made(variant="topk", channels=6, units=20, k=3, **options):
    """A sparse autoencoder in the units of `frames`."""
    sae = SparseAutoencoder(
        channels, units, k, variant, generator=seeded(1), **options
    )
    x = frames(500, channels)
    sae.set_units(x.mean(0), x.std(0), x.norm(dim=1).mean())
    sae.initialise(x)
    return sae


def following(variant, x):
    """What `loss` takes beside `x`."""
    return (x.flip(0),) if variant == "temporal" else ()


def train(sae, x, steps, lr=0.01, optimizer=None):
    """Makes steps on the same frames; returns the optimizer."""
    optimizer = optimizer or torch.optim.Adam(sae.parameters(), lr)
    for _ in range(steps):
        optimizer.zero_grad()
        sae.loss(x, *following(sae.variant, x)).total.backward()
        sae.before_step()
        optimizer.step()
        sae.after_step()
    return optimizer


# --- by hand, in two dimensions


@pytest.mark.parametrize(
    ("variant", "codes", "terms"),
    [
        # u - b_dec = (2, 1): a = (2, 1, -2)
        ("topk", [2, 0, 0], {"mse": 1 / 2, "l0": 1}),
        ("batchtopk", [2, 0, 0], {"mse": 1 / 2, "l0": 1}),
        ("l1", [2, 1, 0], {"mse": 0, "l1": 3 / 2, "l0": 2}),
        ("jumprelu", [2, 0, 0], {"mse": 1 / 2, "excess": 0, "l0": 1}),
        # the first unit alone, all three
        ("matryoshka", [2, 0, 0], {"mse_1": 1 / 2, "mse": 1 / 2}),
    ],
)
def test_two_dimensions(variant, codes, terms):
    """Codes, reconstruction and terms are those computed by hand."""
    widths = [1, 3] if variant == "matryoshka" else None
    sae = SparseAutoencoder(
        2, 3, 1, variant, "none", sparsity=0.5, widths=widths
    )
    directions = torch.tensor([[1.0, 0], [0, 1], [-1, 0]])
    with torch.no_grad():
        sae.encoder.weight.copy_(directions)
        sae.decoder.weight.copy_(directions.T)
        sae.b_dec.copy_(torch.tensor([1.0, 0]))
        if variant == "jumprelu":
            sae.threshold.fill_(1.5)
    x, codes = torch.tensor([[3.0, 1.0]]), torch.tensor([codes]).float()
    coded, loss = sae(x), sae.loss(x)
    for name, value in terms.items():
        assert loss.terms[name] == pytest.approx(value), name
    weights = {"mse": 1, "mse_1": 1, "l1": 0.5, "excess": 0.5}
    total = sum(weights.get(n, 0) * value for n, value in terms.items())
    assert loss.total.item() == pytest.approx(total)
    assert torch.equal(coded.codes, codes)
    expected = codes @ directions + torch.tensor([1.0, 0])
    assert torch.equal(coded.reconstruction, expected)


# --- one step against loops


def slow_codes(sae, a):
    """What of a matrix of products a variant keeps, entry by entry."""
    k, (rows, units) = int(sae.k), a.shape
    z = torch.zeros_like(a)
    entries = [
        (a[i, j].item(), i, j) for i in range(rows) for j in range(units)
    ]
    if sae.variant == "topk":
        kept = []
        for i in range(rows):
            mine = [entry for entry in entries if entry[1] == i]
            kept += sorted(mine, reverse=True)[:k]
    elif sae.variant in BATCHWISE:
        kept = sorted(entries, reverse=True)[: k * rows]
    elif sae.variant == "jumprelu":
        kept = [e for e in entries if e[0] > sae.threshold[e[2]]]
    else:
        kept = entries
    for value, i, j in kept:
        if value > 0:
            z[i, j] = a[i, j]
    return z


def slow_loss(sae, x, dead):
    """The loss of the docstring, frame by frame."""
    encoder, columns = sae.encoder, sae.decoder.weight
    channels = sae.input_channels
    us = [(row - sae.mean) / sae.std for row in x]
    a = torch.stack(
        [encoder.weight @ (u - sae.b_dec) + encoder.bias for u in us]
    )
    z, total = slow_codes(sae, a), 0
    for width in sae.widths:
        decoded = [columns[:, :width] @ row[:width] + sae.b_dec for row in z]
        pairs = zip(us, decoded, strict=True)
        errors = [u - hat for u, hat in pairs]
        total = total + sum(e.square().sum() for e in errors) / (
            channels * len(x)
        )
    if sae.variant == "l1":
        total = total + sae.sparsity * z.sum() / len(x) / channels
    if sae.variant == "temporal":
        half, high = len(x) // 2, z[:, : sae.widths[0]]
        contrast = slow_contrast(high[:half], high[half:])
        total = total + sae.temporal * contrast
    errors = torch.stack(errors).detach()
    wanted, count = channels // 2, int(dead.sum())
    left = 0
    for row, error in zip(a, errors, strict=True):
        mine = [j for j in range(len(dead)) if dead[j] and row[j] > 0]
        mine = sorted(mine, key=lambda j: -row[j].item())[:wanted]
        left = (
            left + (error - sum(row[j] * columns[:, j] for j in mine)).square()
        )
    whole = (errors - errors.mean(0)).square().sum()
    return total + sae.auxk * left.sum() / whole * min(count / wanted, 1)


def slow_contrast(h, after):
    """Two cross-entropies of cosines, row by row."""
    total = 0
    for first, second in (h, after), (after, h):
        for i, row in enumerate(first):
            cosines = []
            for other in second:
                norms = row.norm().clamp_min(1e-12) * other.norm().clamp_min(
                    1e-12
                )
                cosines.append(row @ other / norms)
            cosines = torch.stack(cosines)
            total = total - (cosines[i] - cosines.exp().sum().log()) / len(h)
    return total / 2


@pytest.mark.parametrize("variant", [v for v in VARIANTS if v != "jumprelu"])
def test_step_equals_loops(variant):
    """Loss, projected gradients and a step are those of slow loops."""
    sae = made(variant, auxk=0.5, dead_after=10, sparsity=0.3).double()
    dead = torch.arange(20) % 4 == 0
    sae.idle[dead] = 10
    with torch.no_grad():  # as after some training: nothing is symmetric
        for value in sae.encoder.parameters():
            value.add_(0.3 * torch.randn(value.shape, generator=seeded(2)))
    x = frames(12, seed=3).double()
    slow = copy.deepcopy(sae)
    seen = torch.cat([x, *following(variant, x)])
    expected = slow_loss(slow, seen, dead)
    loss = sae.loss(x, x.flip(0)).total  # of no meaning but for "temporal"
    assert loss.item() == pytest.approx(expected.item())
    loss.backward()
    expected.backward()
    sae.before_step()
    torch.optim.SGD(sae.parameters(), 0.1).step()
    sae.after_step()
    with torch.no_grad():
        weight = slow.decoder.weight
        for j in range(slow.num_units):
            column = weight[:, j].clone()
            grad = weight.grad[:, j]
            grad = grad - (grad @ column) / (column @ column) * column
            moved = column - 0.1 * grad
            weight[:, j] = moved / moved.norm()
        for value in slow.b_dec, slow.encoder.weight, slow.encoder.bias:
            value -= 0.1 * value.grad
    for (name, a), b in zip(
        sae.named_parameters(), slow.parameters(), strict=True
    ):
        torch.testing.assert_close(a, b, msg=name)


def test_gradient_of_jumprelu():
    """Gradients of a and t are those of the rectangle, entry by entry."""
    a = torch.randn(50, 4, generator=seeded(0)).double() * 0.2 + 0.2
    t = torch.tensor([0.1, 0.2, 0.3, 0.0]).double()
    a.requires_grad_()
    t.requires_grad_()
    of_z, of_steps = torch.randn(2, 50, 4, generator=seeded(1)).double()
    z, steps = JumpReLU.apply(a, t)
    assert torch.equal(z, a * (a > t)) and torch.equal(steps, (a > t).double())
    ((of_z * z).sum() + (of_steps * steps).sum()).backward()
    of_a, of_t, near = torch.zeros_like(a), torch.zeros_like(t), 0
    for i in range(50):
        for j in range(4):
            if a[i, j] > t[j]:
                of_a[i, j] = of_z[i, j]
            if abs(a[i, j] - t[j]) < BANDWIDTH / 2:
                of_t[j] -= t[j].item() / BANDWIDTH * of_z[i, j]
                of_t[j] -= 1 / BANDWIDTH * of_steps[i, j]
                near += 1
    assert 5 < near < 150
    torch.testing.assert_close(a.grad, of_a)
    torch.testing.assert_close(t.grad, of_t)


def test_temporal_contrast(monkeypatch):
    """It is the loop's, within blocks of rows; best where frames agree."""
    h = torch.rand(7, 5, generator=seeded(0))
    h[2] = 0
    after = torch.rand(7, 5, generator=seeded(1))
    torch.testing.assert_close(
        temporal_contrast(h, after), slow_contrast(h, after)
    )
    monkeypatch.setattr(module, "CONTRASTED", 4)
    blocks = [
        len(h[part]) * slow_contrast(h[part], after[part])
        for part in (slice(4), slice(4, 7))
    ]
    torch.testing.assert_close(temporal_contrast(h, after), sum(blocks) / 7)
    eye = torch.eye(4)
    same, others = (temporal_contrast(eye, x) for x in (eye, eye.roll(1, 0)))
    assert same < temporal_contrast(h[:4], after[:4]) < others


# --- how many are active


def test_at_most_k():
    """TopK leaves at most k after the ReLU, fewer where fewer are positive."""
    sae, x = made(k=5), frames(40)
    l0 = (sae.encode(x) > 0).sum(1)
    assert l0.max() == 5 and sae.loss(x).terms["l0"] == l0.float().mean()
    with torch.no_grad():
        sae.encoder.bias -= 1.5
    l0 = (sae.encode(x) > 0).sum(1)
    assert l0.min() < 5 and sae.loss(x).terms["l0"] == l0.float().mean()
    assert (sae.encode(x) >= 0).all()


@pytest.mark.parametrize("threshold", [-1, 0, 0.5, 0.9, 3])
def test_largest_of_batch(threshold):
    """The largest are those of a sort, whatever is sorted first."""
    acts = torch.randn(30, 11, generator=seeded(0))
    positive = sorted(acts[acts > 0].tolist(), reverse=True)
    for count in 1, 40, len(positive), 330:
        rows, units = largest_of_batch(acts, count, threshold)
        chosen = sorted(acts[rows, units].tolist(), reverse=True)
        assert chosen == positive[:count]
        assert rows.tolist() == sorted(rows.tolist())


@pytest.mark.parametrize("variant", BATCHWISE)
def test_k_on_average(variant):
    """Of a batch k are active on average, and of new frames about as many."""
    sae, x = made(variant), frames(400)
    assert (sae.encode(x) > 0).sum(1).max() == 3  # before a first batch
    train(sae, x, 60)
    terms = sae.loss(x, *following(variant, x)).terms
    assert terms["l0"] == 3
    fresh = (sae.eval().encode(frames(400, seed=9)) > 0).sum(1).float()
    assert 2.4 < fresh.mean() < 3.6 and fresh.min() < 3 < fresh.max()
    evaluated = sae.loss(frames(400, seed=9)).terms["l0"]
    assert evaluated == fresh.mean()


def test_k_of_jumprelu():
    """It begins with some times k active, and is drawn to k."""
    sae, x = made("jumprelu", k=2), frames(500)
    assert sae.loss(x).terms["l0"] == pytest.approx(8, abs=0.01)
    train(sae, x, 150)
    assert sae.loss(x).terms["l0"] == pytest.approx(2, abs=0.4)


# --- dead units


def test_idle_frames_are_counted():
    """A unit is dead after so many frames without activity, not batches."""
    sae, x = made(dead_after=25), frames(10)
    with torch.no_grad():
        sae.encoder.bias[7] = -100
    for idle in 10, 20, 30:
        train(sae, x, 1, lr=0)
        active = (sae.encode(x) > 0).any(0)
        assert sae.idle[7] == idle and (sae.idle[active] == 0).all()
        assert sae.dead()[7] == (idle >= 25)
    sae.eval().loss(x)
    sae.after_step()
    assert sae.idle[7] == 30


def test_frames_of_pairs_are_counted_once():
    """The next frames are rows of their own in an epoch."""
    sae, x = made("temporal", dead_after=25), frames(10)
    with torch.no_grad():
        sae.encoder.bias[7] = -100
    train(sae, x, 2, lr=0)
    assert sae.idle[7] == 20 and not sae.dead()[7]


@pytest.mark.parametrize("auxk", [0, 1 / 32])
def test_auxk_revives(auxk):
    """A unit that is never among the k largest comes back, by AuxK alone."""
    x = torch.eye(6).repeat(40, 1) * 3 + 0.5
    sae = SparseAutoencoder(6, 6, 1, auxk=auxk, dead_after=600)
    with torch.no_grad():
        for weight in sae.encoder.weight, sae.decoder.weight:
            weight.copy_(torch.eye(6))
        sae.encoder.weight[4] *= 0.01
    optimizer = train(sae, x, 3)
    assert sae.dead().nonzero().tolist() == [[4]]
    train(sae, x, 150, optimizer=optimizer)
    assert bool(sae.dead()[4]) == (auxk == 0)


def test_auxk_of_no_error():
    """Where nothing is left to explain, nothing becomes NaN."""
    sae = made(dead_after=0)
    x = sae.mean.expand(4, -1).clone()
    with torch.no_grad():
        sae.b_dec.zero_()
    loss = sae.loss(x)
    loss.total.backward()
    assert loss.terms["auxk"] == 0 and loss.total == 0
    assert all(p.grad.isfinite().all() for p in sae.parameters())


# --- units


class Identity(Bottleneck):
    """The frame in units is the code."""

    encode, decode = Bottleneck.to_units, Bottleneck.from_units

    def loss(self, x, following=None):
        """No loss."""


@pytest.mark.parametrize("normalisation", NORMALISATIONS)
def test_units_are_undone(normalisation):
    """Units are what they claim, undone by decode, and kept in the weights."""
    x = frames(300)
    x[:, 2] = 7  # does not vary
    own = Identity(6, 6, normalisation)
    own.set_units(x.mean(0), x.std(0), x.norm(dim=1).mean())
    bottleneck = Identity(6, 6, normalisation)
    bottleneck.load_state_dict(own.state_dict())
    u, decoded = bottleneck(x)
    torch.testing.assert_close(decoded, x)
    if normalisation == "standardise":
        assert u.mean(0).abs().max() < 1e-5 and (u[:, 2] == 0).all()
        varying = torch.arange(6) != 2
        torch.testing.assert_close(u.std(0)[varying], torch.ones(5))
    elif normalisation == "unit_norm":
        torch.testing.assert_close(u.norm(dim=1).mean() ** 2, torch.tensor(6.0))
        own.set_units(x.mean(0), x.std(0, correction=0))
        squares = own.to_units(x).square().sum(1).mean()
        torch.testing.assert_close(squares, torch.tensor(6.0))
    else:
        assert torch.equal(u, x)


def test_scale_of_the_layer():
    """In another unit, frames have the same codes and the same loss."""
    x, scale, shift = frames(100), torch.linspace(0.1, 9, 6), torch.arange(6)
    one, other = made(), made()
    y = x * scale + shift
    other.set_units(one.mean * scale + shift, one.std * scale)
    torch.testing.assert_close(other.encode(y), one.encode(x))
    torch.testing.assert_close(other.loss(y).total, one.loss(x).total)
    decoded = one(x).reconstruction * scale + shift
    torch.testing.assert_close(other(y).reconstruction, decoded)


def test_geometric_median():
    """Less mean distance than from points around it; outliers do not count."""
    x = frames(101)
    x[:20] += 1000
    median = geometric_median(x)

    def distance(point):
        return (x - point).norm(dim=1).mean()

    around = [median + step for step in 0.1 * torch.cat([torch.eye(6)] * 2)]
    assert all(distance(median) < distance(point) for point in around)
    assert (median - x[20:].mean(0)).norm() < 3


# --- checkpoints and errors


@pytest.mark.parametrize("variant", VARIANTS)
def test_resumed_bit_for_bit(variant):
    """Arguments and state dicts are all that a training depends on."""
    x = frames(64)
    sae = made(variant, dead_after=100)
    optimizer = train(sae, x, 5)
    arguments = json.loads(json.dumps(sae.arguments))
    resumed = SparseAutoencoder(**arguments)
    resumed.load_state_dict(sae.state_dict())
    again = torch.optim.Adam(resumed.parameters(), 0.01)
    again.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    train(sae, x, 5, optimizer=optimizer)
    train(resumed, x, 5, optimizer=again)
    for name, value in sae.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], value), name
    columns = sae.decoder.weight.norm(dim=0)
    torch.testing.assert_close(columns, torch.ones(20))
    names = {"encoder.weight", "encoder.bias", "decoder.weight", "b_dec", "k"}
    assert names < set(sae.state_dict())
    with torch.device("meta"):  # how saved parts are compared with their file
        shapes = SparseAutoencoder(**arguments).state_dict()
    assert {n: x.shape for n, x in shapes.items()} == {
        n: x.shape for n, x in sae.state_dict().items()
    }


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"k": 21}, "k is 21, of 20 units"),
        ({"k": 0}, "k is 0"),
        ({"k": 2.5}, "k is 2.5: it must be a whole number"),
        ({"dead_after": -1}, "dead_after is -1: it must be a whole number"),
        ({"dead_after": None}, "dead_after is None"),
        ({"auxk": -1}, "auxk is -1: it must be a number from 0"),
        ({"sparsity": float("nan")}, "sparsity is nan"),
        ({"temporal": "1"}, "temporal is '1'"),
        ({"variant": "temporal", "widths": 20}, "widths are 20: .* a list"),
        ({"variant": "temporal", "widths": [2.5, 20]}, "whole numbers"),
        ({"variant": "gated"}, "variant is 'gated'.*topk, batchtopk"),
        ({"normalisation": "layer"}, "normalisation is 'layer'.*standardise"),
        ({"variant": "matryoshka", "widths": [10, 5, 20]}, "widths are"),
        ({"variant": "matryoshka", "widths": [5, 10]}, "which is 20"),
        ({"widths": [5, 20]}, "'topk' has no nested widths"),
    ],
)
def test_bad_arguments(arguments, message):
    """An argument out of range is named, with its range."""
    with pytest.raises(ValueError, match=message):
        SparseAutoencoder(6, 20, **{"k": 3, **arguments})


def test_thresholds_of_frames_that_are_all_alike():
    """Where nothing is positive at first, thresholds stay 0."""
    sae = made("jumprelu")
    sae.threshold.data.zero_()
    sae.initialise(sae.mean.expand(20, -1))
    assert (sae.threshold == 0).all()


def test_bad_frames():
    """What is no frame of the layer is refused before anything changes."""
    sae, x = made("temporal"), frames(10)
    bad = x.clone()
    bad[3, 2], bad[7, 0] = torch.nan, torch.inf
    for args in ((bad, x), (x, bad)):
        with pytest.raises(ValueError, match="2 of 10 frames.*row 3"):
            sae.loss(*args)
    with pytest.raises(ValueError, match=r"\(10, 5\).*\(rows, 6\)"):
        sae.loss(x[:, :5], x[:, :5])
    with pytest.raises(ValueError, match="at least one row"):
        sae.initialise(x[:0])
    with pytest.raises(ValueError, match="next frame of each row"):
        sae.loss(x)
    with pytest.raises(ValueError, match="6 channels varies"):
        sae.set_units(x.mean(0), torch.zeros(6))
    with pytest.raises(ValueError, match="NaN or infinite"):
        sae.set_units(bad.mean(0), bad.std(0))


@pytest.mark.parametrize("variant", VARIANTS)
def test_other_precisions(variant):
    """Half-precision rows and autocast give about the same loss."""
    sae, x = made(variant, dead_after=0), frames(200)
    expected = sae.loss(x, *following(variant, x)).total.item()
    half = sae.loss(x.half(), *following(variant, x.half())).total.item()
    with torch.autocast("cpu", torch.bfloat16):
        loss = sae.loss(x, *following(variant, x)).total
    loss.backward()
    assert half == pytest.approx(expected, rel=1e-2)
    assert loss.item() == pytest.approx(expected, rel=5e-2)


@pytest.mark.parametrize("variant", ["topk", "jumprelu"])
def test_a_classifier_reads_the_codes(variant):
    sae = SparseAutoencoder(
        *(6, 12, 3, variant), num_classes=3, classifier_weight=0.7
    ).eval()
    torch.nn.init.normal_(sae.classifier.weight)
    x, classes = torch.randn(40, 6), torch.arange(40) % 4 - 1
    total, terms = sae.loss(x, classes=classes)
    logits = sae.classifier(sae.encode(x))[classes >= 0]
    loss = torch.nn.functional.cross_entropy(logits, classes[classes >= 0])
    torch.testing.assert_close(terms["class"], loss)
    plain = sae.loss(x).total
    torch.testing.assert_close(total, plain + 0.7 * loss)
    total.backward()
    assert sae.encoder.weight.grad.abs().max() > 0
    none = sae.loss(x, classes=torch.full((40,), -1)).terms["class"]
    assert none == 0
