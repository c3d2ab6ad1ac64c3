"""Variational sparse coders: loss, gates, gradients, what they find."""

import math

import pytest
import torch
from scipy.stats import norm
from torch.distributions import Normal, kl_divergence

from speechbrain_sim.bottlenecks.vsc import GATES, VariationalSparseCoder
from speechbrain_sim.models.format import load_parts, save_parts
from speechbrain_sim.objectives.alignment import class_alignment
from speechbrain_sim.objectives.spike_slab import spike_slab_kl
from tests.conftest import same

CHANNELS, UNITS = 6, 10


def noise(seed=0):
    return torch.Generator().manual_seed(seed)


def make(**options):
    coder = VariationalSparseCoder(
        CHANNELS, UNITS, generator=noise(), **options
    )
    x = 3 + 2 * torch.randn(200, CHANNELS, generator=noise(1))
    coder.set_units(x.mean(0), x.std(0))
    with torch.no_grad():
        coder.encoder[-1].weight.mul_(3)  # gates of all sizes
    return coder, x


# the loss -------------------------------------------------------------------


@pytest.mark.parametrize("prior", ["simple", "pseudo_inputs"])
def test_loss_against_the_equation(prior):
    options = {"alignment": 0.7, "alpha": 0.2, "observation_std": 0.3}
    coder, x = make(prior=prior, num_pseudo_inputs=3, **options)
    classes = torch.arange(200) % 7 - 1
    loss, terms = coder.loss(x, None, classes, noise(2))
    posterior = coder.posterior(x)
    u = (x - x.mean(0)) / x.std(0)
    z = coder.sample(posterior, noise(2))
    decoded = (coder.decode(z) - x.mean(0)) / x.std(0)
    error = (u - decoded).square().sum(1) / (2 * 0.3**2)
    kl = torch.zeros(200)
    if prior == "simple":
        given = torch.tensor(0.2), 0.0, 1.0
        kl = sum(spike_slab_kl(posterior, given)).sum(1)
    else:
        inputs = coder.posterior(coder.pseudo_inputs * x.std(0) + x.mean(0))
        gates = torch.sigmoid(10 * (inputs.gate - 0.5))
        weights = coder.weights(u).softmax(1)
        for i in range(3):
            one = gates[i], inputs.mean[i], inputs.std[i]
            kl += weights[:, i] * sum(spike_slab_kl(posterior, one)).sum(1)
        mean = gates.mean()
        away = mean * (mean / 0.2).log()
        kl += UNITS * (away + (1 - mean) * ((1 - mean) / 0.8).log())
    expected = (error + kl).mean()
    expected += 0.7 * class_alignment(posterior.gate, classes)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(terms["kl"], kl.mean())
    still = coder.eval().loss(x, None, classes)
    again = (coder(x).reconstruction - x) / x.std(0)
    torch.testing.assert_close(still.terms["mse"], again.square().mean())


def test_a_plain_vae_has_open_gates_and_no_cost_of_them():
    coder, x = make(variant="vae")
    gate, mean, std = coder.posterior(x)
    assert (gate == 1).all()
    loss, terms = coder.loss(x, generator=noise(2))
    kl = kl_divergence(Normal(mean, std), Normal(0.0, 1.0)).sum(1).mean()
    torch.testing.assert_close(terms["kl"], kl)
    torch.testing.assert_close(loss, terms["mse"] * CHANNELS / 0.5 + kl)
    assert torch.equal(coder.encode(x), mean)


def test_a_threshold_opens_as_often_as_its_gate_and_the_prior_as_alpha():
    coder, x = make(gate="threshold", alpha=0.3)
    assert coder.threshold == pytest.approx(norm.isf(0.15))
    posterior = coder.posterior(x[:5])
    many = [z.expand(20_000, 5, UNITS) for z in posterior]
    opened = (coder.sample(type(posterior)(*many), noise()) != 0).float()
    torch.testing.assert_close(
        opened.mean(0), posterior.gate, atol=0.015, rtol=0
    )
    mean, std = posterior.mean, posterior.std
    kl = kl_divergence(Normal(mean, std), Normal(0.0, 1.0)).sum(1)
    u = coder.to_units(x[:5])
    torch.testing.assert_close(sum(coder.kl(posterior, u)), kl)


def test_draws_open_as_often_as_their_gates():
    coder, x = make()
    posterior = coder.posterior(x[:5])
    many = type(posterior)(*(z.expand(20_000, 5, UNITS) for z in posterior))
    for gate, tolerance in (("straight_through", 0.015), ("concrete", 0.02)):
        coder.gate = gate
        z = coder.sample(many, noise())
        assert (z == 0).any() == (gate == "straight_through")
        mean = posterior.gate * posterior.mean
        spread = 0.02 * posterior.mean.abs().max().item()
        torch.testing.assert_close(
            z.mean(0), mean, atol=tolerance + 2 * spread, rtol=0
        )


def test_what_is_raised_over_a_run():
    coder, x = make()
    coder.anneal("spike", 0.0)
    gate, mean, std = coder.posterior(x)
    assert (mean == 0).all() and (std == 1).all() and gate.std() > 0.1
    coder.anneal("spike", 1.0)
    soft = []
    for sharpness in (1.0, 500.0):
        coder.anneal("sharpness", sharpness)
        unit = coder.posterior(x)._replace(
            mean=torch.ones(200, UNITS), std=torch.zeros(200, UNITS)
        )
        gates = coder.sample(unit, noise())
        soft.append(((gates > 0.01) & (gates < 0.99)).float().mean())
    assert soft[0] > 0.9 and soft[1] < 0.05
    coder.alignment, coder.alignment_scale = 5.0, 0.0
    classes = torch.arange(200) % 4
    loss = coder.loss(x, None, classes, noise()).total
    torch.testing.assert_close(loss, coder.loss(x, None, None, noise()).total)


def test_codes_are_of_means():
    hard, x = make()
    gate, mean, _ = hard.posterior(x)
    torch.testing.assert_close(hard.encode(x), (gate > 0.5) * mean)
    hard.code = "soft"
    torch.testing.assert_close(hard.encode(x), gate * mean)


# gradients ------------------------------------------------------------------


@pytest.mark.parametrize("logit", [-40.0, -8.0, 0.0, 8.0, 40.0])
@pytest.mark.parametrize("gate", GATES[:2])
def test_gates_near_0_and_1_have_finite_gradients_that_are_not_0(logit, gate):
    coder, x = make(gate=gate, observation_std=1e3)
    last = coder.encoder[-1]
    with torch.no_grad():
        last.weight.zero_()  # slabs as the prior's
        last.bias[:UNITS] = logit
    coder.loss(x, generator=noise()).total.backward()
    gradient = last.bias.grad[:UNITS]
    assert gradient.isfinite().all() and (gradient != 0).all()
    if abs(logit) > 5:  # drawn away from the end, to alpha
        assert (gradient.sign() == math.copysign(1, logit)).all()


def test_gradient_of_concrete_gates_is_that_of_differences():
    coder, x = make(alignment=1.0)
    coder, x, classes = coder.double(), x.double(), torch.arange(200) % 3
    bias = coder.encoder[-1].bias
    loss = coder.loss(x, None, classes, noise()).total
    (gradient,) = torch.autograd.grad(loss, bias)
    for at in (0, UNITS + 1, 2 * UNITS + 2):  # a gate, a mean, a variance
        ends = []
        for step in (1e-5, -1e-5):
            with torch.no_grad():
                bias[at] += step
                ends.append(coder.loss(x, None, classes, noise()).total)
                bias[at] -= step
        found = (ends[0] - ends[1]) / 2e-5
        assert found.item() == pytest.approx(gradient[at].item(), rel=1e-3)


# bookkeeping ----------------------------------------------------------------


def test_units_that_stay_shut_are_dead():
    coder, x = make(dead_after=400)
    with torch.no_grad():
        coder.encoder[-1].bias[3] = -100.0
    for _ in range(2):
        coder.loss(x, generator=noise())
        coder.after_step()
    terms = coder.loss(x, generator=noise()).terms
    assert coder.dead().tolist() == [i == 3 for i in range(UNITS)]
    assert terms["dead"] == pytest.approx(1 / UNITS)
    gate = coder.posterior(x).gate
    assert terms["l0"] == pytest.approx((gate > 0.5).sum().item() / 200)
    assert terms["open"] == pytest.approx((gate > 0.99).float().mean().item())


def test_saved_and_loaded(tmp_path):
    options = {"prior": "pseudo_inputs", "hidden": 8, "decoder_hidden": 7}
    coder, x = make(gate="straight_through", **options)
    save_parts(tmp_path, {"bottleneck_a.vsc": coder})
    parts, _ = load_parts(tmp_path, ["bottleneck_a.vsc"])
    other = parts["bottleneck_a.vsc"]
    assert same(dict(other.state_dict()), dict(coder.state_dict()))
    assert other.arguments == coder.arguments
    assert torch.equal(other.eval()(x).codes, coder.eval()(x).codes)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"alpha": 0.0}, "alpha is 0.0: .* above 0 and below 1"),
        ({"alpha": 1}, "alpha is 1: .* above 0 and below 1"),
        ({"gate": "relu"}, "gate is 'relu': .*concrete, straight_through"),
        ({"alignment": -1}, "alignment is -1: it must be a number from 0"),
        ({"observation_std": 0}, "observation_std is 0: it must be above 0"),
        ({"variant": "vae", "alignment": 1}, "A VAE has no gates to align"),
        ({"alignment_form": "all"}, "must be one of pairs, centroid"),
        ({"gate": "threshold", "prior": "pseudo_inputs"}, "give prior simple"),
    ],
)
def test_arguments_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        VariationalSparseCoder(CHANNELS, UNITS, **options)


def test_frames_that_are_not_finite():
    coder, x = make()
    x[7, 2] = math.nan
    with pytest.raises(ValueError, match="1 of 200 frames .* row 7"):
        coder.loss(x, generator=noise())
