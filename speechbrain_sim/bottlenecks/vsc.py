"""Variational sparse coding of frames, with gates that agree within a class."""

import math
from numbers import Real
from statistics import NormalDist
from typing import NamedTuple

import torch
from torch import nn
from torch.nn.functional import normalize
from torch.special import ndtr

from speechbrain_sim.arguments import records_arguments
from speechbrain_sim.bottlenecks.base import (
    STANDARDISE,
    BottleneckLoss,
    CountingBottleneck,
    check_rows,
)
from speechbrain_sim.objectives.alignment import (
    DENOMINATORS,
    FORMS,
    OF_PAIRS,
    PAIRS,
    between_classes,
    class_alignment,
)
from speechbrain_sim.objectives.spike_slab import (
    bernoulli_kl,
    gaussian_kl,
    spike_slab_kl,
)

#: see `VariationalSparseCoder`
VARIANTS = VSC, VAE = "vsc", "vae"
GATES = CONCRETE, STRAIGHT_THROUGH, THRESHOLD = (
    "concrete",
    "straight_through",
    "threshold",
)
PRIORS = SIMPLE, PSEUDO_INPUTS = "simple", "pseudo_inputs"
CODES = HARD, SOFT = "hard", "soft"
CHOICES = {"variant": VARIANTS, "gate": GATES, "prior": PRIORS, "code": CODES}
CHOICES |= {"alignment_form": FORMS, "alignment_denominator": DENOMINATORS}
#: gates are not nearer to 0 and 1 than this; their logits, first and largest
NEAR = 1e-6
FIRST_LOGIT = -1.0
LARGEST_LOGIT = math.log((1 - NEAR) / NEAR)
#: of the log-variances
LARGEST_LOG_VAR = 10.0
#: a gate is open, or shut, beyond these; those of pseudo-inputs are sharpened
SHUT, OPEN, SHARPENED = 0.01, 0.99, 10.0


class Posterior(NamedTuple):
    """Of each unit: how likely its gate is open, and its slab; (..., units)."""

    gate: torch.Tensor
    mean: torch.Tensor
    std: torch.Tensor


@records_arguments
class VariationalSparseCoder(CountingBottleneck):
    """A variational sparse code of frames, aligned within classes.

    Of a frame u in units (see `Bottleneck`) a network computes for each unit a
    gate g = sigmoid(a), a mean m and a deviation s, the posterior

        q(z | u) = g N(z; m, s^2) + (1 - g) delta(z),

    and u^ = W_d z + b_d. With a prior of the same form, alpha N(0, 1) +
    (1 - alpha) delta, alpha being the share of units that are expected to be
    active [1, 2], the loss of a frame, in nats, is

        |u - u^|^2 / (2 v^2) + KL(q || prior) + alignment A(g),

    v being `observation_std`, and A the mean over classes of the
    Jensen-Shannon divergence of the gates of two frames of the class [1], see
    `class_alignment`.

    In training z = t (m + s e), e ~ N(0, 1), with t by `gate`:

    - "concrete": t = sigmoid(c (g - 1 + n)), n ~ U(0, 1), c = `sharpness` [2];
    - "straight_through": t = [n > 1 - g], with the gradient of "concrete";
    - "threshold": t = [|m + s e| > r], where r leaves the share alpha of N(0, 1),
      so that g = P(t = 1) follows from m and s, and KL is that of the
      Gaussians, an upper bound of that of z, as thresholds are the same [3].

    A Brain may raise `sharpness`; `alignment_scale`, which multiplies
    `alignment`; and `spike`, by which m and log s^2 are multiplied, from 0 (only
    gates tell frames apart) to 1 [2]. "threshold" has no use for the last.

    `variant` "vae" has all gates open, and no KL of gates: a plain VAE. `prior`
    "pseudo_inputs" is the mixture of posteriors of learned inputs, weighted by
    a classifier of u; the mean of their gates, which are sharpened, is drawn to
    alpha [2]. (Weights are a softmax here, so that KL is an upper bound of the
    mixture's; the authors' code has sigmoids of unit norm.)

    [1] Class-aligned variational sparse coding, equations 1-2 and its
    alignment loss; [2] Tonolini, Jensen, Murray-Smith 2020, Variational sparse
    coding; [3] Fallah, Rozell 2022, arXiv:2205.03665.

    Arguments
    ---------
    input_channels, num_units : int
        Channels of the layer; number of codes.
    variant, gate, prior : str
        See above.
    alpha : float
        Prior probability that a unit is active, in (0, 1).
    alignment : float
        Weight of A.
    alignment_form, alignment_denominator, alignment_distance :
        See `class_alignment`.
    observation_std : float
        v: the smaller, the more is kept of the frames.
    hidden, decoder_hidden : int
        Width of a ReLU layer of the encoder, and of the decoder; 0: linear.
    num_pseudo_inputs : int
        Of that prior.
    code : str
        What `encode` returns: "hard", m where g > 1/2, or "soft", g m.
    normalisation, dead_after : str, int
        See `CountingBottleneck`; a unit is active where its gate is above 1/2.
    generator : torch.Generator, optional
        Source of the initial weights.

    Raises
    ------
    ValueError
        If an argument is out of range.

    Example
    -------
    >>> coder, x = VariationalSparseCoder(8, 16), torch.randn(100, 8)
    >>> coder.set_units(x.mean(0), x.std(0))
    >>> gate, mean, std = coder.posterior(x)
    >>> gate.shape, bool((gate > 0).all() and (gate < 1).all())
    (torch.Size([100, 16]), True)
    >>> codes, decoded = coder.eval()(torch.randn(2, 50, 8))
    >>> codes.shape, decoded.shape
    (torch.Size([2, 50, 16]), torch.Size([2, 50, 8]))
    >>> loss, terms = coder.loss(x, classes=torch.arange(100) % 3)
    >>> [*terms]
    ['mse', 'l0', 'dead', 'kl', 'kl_gates', 'open', 'shut', 'varied', 'within',
     'between']
    """

    unrecorded = ("generator",)

    def __init__(
        self,
        input_channels,
        num_units,
        variant=VSC,
        gate=CONCRETE,
        prior=SIMPLE,
        alpha=0.1,
        alignment=0.0,
        alignment_form=PAIRS,
        alignment_denominator=OF_PAIRS,
        alignment_distance=False,
        observation_std=0.5,
        hidden=0,
        decoder_hidden=0,
        num_pseudo_inputs=10,
        code=HARD,
        normalisation=STANDARDISE,
        dead_after=1_000_000,
        generator=None,
    ):
        counts = normalisation, dead_after
        super().__init__(input_channels, num_units, *counts)
        _check({n: v for n, v in locals().items() if n != "generator"})
        self.variant, self.gate, self.prior = variant, gate, prior
        self.alpha, self.alignment, self.code = alpha, alignment, code
        self.how = alignment_form, alignment_denominator, alignment_distance
        self.observation_std = observation_std
        sizes = input_channels, hidden, 3 * num_units
        self.encoder = _network(*sizes, generator)
        sizes = num_units, decoder_hidden, input_channels
        self.decoder = _network(*sizes, generator)
        with torch.no_grad():
            self.encoder[-1].bias[:num_units] = FIRST_LOGIT
            # means begin as what the decoder would undo
            if not (hidden or decoder_hidden):
                means = slice(num_units, 2 * num_units)
                self.encoder[-1].weight[means] = self.decoder[-1].weight.T
        if prior == PSEUDO_INPUTS and variant == VSC:
            inputs = torch.empty(num_pseudo_inputs, input_channels)
            inputs.normal_(generator=generator)
            self.pseudo_inputs = nn.Parameter(inputs)
            sizes = input_channels, 0, num_pseudo_inputs
            self.weights = _network(*sizes, generator)
        self.alignment_scale = 1.0
        self.register_buffer("spike", torch.ones(()))
        self.register_buffer("sharpness", torch.tensor(50.0))
        #: beyond it, |z| ~ N(0, 1) is with the probability alpha
        self.threshold = -NormalDist().inv_cdf(alpha / 2)

    def posterior(self, x):
        """Returns the Posterior of frames, (..., channels), in layer's units."""
        return self._posterior(self.to_units(x))

    def _posterior(self, u):
        """The Posterior of frames in units."""
        logit, mean, log_var = self.encoder(u).chunk(3, -1)
        mean, std = mean * self._slabs(), log_var * self._slabs()
        std = torch.exp(0.5 * _within(std, LARGEST_LOG_VAR))
        if self.variant == VAE:
            return Posterior(torch.ones_like(mean), mean, std)
        if self.gate == THRESHOLD:
            tails = [(s * mean - self.threshold) / std for s in (1, -1)]
            gate = sum(map(ndtr, tails))
            return Posterior(_within(gate, 1 - NEAR, NEAR), mean, std)
        gate = torch.sigmoid(_within(logit, LARGEST_LOGIT))
        return Posterior(gate, mean, std)

    def _slabs(self):
        """How much slabs differ from the prior's: `spike`, where it is used."""
        alone = self.variant == VAE or self.gate == THRESHOLD
        return 1.0 if alone else self.spike

    def encode(self, x):
        """See `Bottleneck`: means where gates are open, or times gates."""
        return self._code(self.posterior(x))

    def _code(self, posterior):
        gate = posterior.gate
        if self.code == HARD:
            gate = (gate > 0.5).to(gate.dtype)
        return gate * posterior.mean

    def decode(self, codes):
        """See `Bottleneck`."""
        return self.from_units(self.decoder(codes))

    def sample(self, posterior, generator=None):
        """Draws codes from a Posterior, with gradients; see the class."""
        gate, mean, std = posterior
        draw = torch.empty_like(mean)
        slab = torch.addcmul(mean, std, draw.normal_(generator=generator))
        if self.variant == VAE:
            return slab
        if self.gate == THRESHOLD:
            margin = slab.abs() - self.threshold
            soft = torch.sigmoid(SHARPENED * margin)
        else:
            noise = torch.empty_like(gate).uniform_(generator=generator)
            margin = gate - 1 + noise
            soft = torch.sigmoid(self.sharpness * margin)
        if self.gate == CONCRETE:
            return soft * slab
        hard = (margin > 0).to(soft.dtype)
        return (hard + soft - soft.detach()) * slab

    def kl(self, posterior, u):
        """KL divergence from the prior, of gates and of slabs: (rows,) each.

        `u` are the frames in units, of which the pseudo-inputs' weights are.
        """
        gate, *slab = posterior
        if self.variant == VAE or self.gate == THRESHOLD:
            slabs = gaussian_kl(*slab).sum(-1)
            return torch.zeros_like(slabs), slabs
        alpha = gate.new_tensor(self.alpha)
        if self.prior == SIMPLE:
            pair = spike_slab_kl(posterior, (alpha, 0.0, 1.0))
            return tuple(kl.sum(-1) for kl in pair)
        inputs = self._posterior(self.pseudo_inputs)
        gates = torch.sigmoid(SHARPENED * (inputs.gate - 0.5))
        weights = self.weights(u).softmax(-1)  # (rows, inputs)
        each = Posterior(*(x[:, None] for x in posterior))
        pair = spike_slab_kl(each, inputs._replace(gate=gates))
        spikes, slabs = ((weights * kl.sum(-1)).sum(-1) for kl in pair)
        sparse = bernoulli_kl(gates.mean(), alpha) * self.num_units
        return spikes + sparse, slabs

    def loss(self, x, following=None, classes=None, generator=None):
        """See `Bottleneck`; in eval mode of codes, not of draws.

        Raises
        ------
        ValueError
            If a frame is NaN or infinite, or of another size.
        """
        check_rows(x, self.input_channels)
        u = self.to_units(x)
        posterior = self._posterior(u)
        if self.training:
            z = self.sample(posterior, generator)
        else:
            z = self._code(posterior)
        mse = (u - self.decoder(z)).square().mean()
        spikes, slabs = (part.mean() for part in self.kl(posterior, u))
        total = mse * self.input_channels / (2 * self.observation_std**2)
        total = total + spikes + slabs
        terms = {"mse": mse, **self._watched(posterior.gate.detach())}
        terms |= {"kl": spikes + slabs, "kl_gates": spikes}
        if self.variant == VSC:
            gate = posterior.gate.detach()
            terms["open"] = (gate > OPEN).float().mean()
            terms["shut"] = (gate < SHUT).float().mean()
            terms["varied"] = (gate.amax(0) - gate.amin(0) > 0.5).sum()
        if classes is not None:
            added, gates = self._aligned(posterior.gate, classes)
            total, terms = total + added, terms | gates
        return BottleneckLoss(total, {n: t.detach() for n, t in terms.items()})

    def _watched(self, gate):
        """Counts active units; returns how many are, and which never."""
        active = gate > 0.5
        if self.training:
            self.count(active.any(0), len(gate))
        dead = self.dead().float().mean()
        return {"l0": active.sum() / len(gate), "dead": dead}

    def _aligned(self, gate, classes):
        """The weighted alignment, and what it is within and between classes."""
        if self.variant == VAE:
            return 0.0, {}
        with torch.no_grad():  # of linear cost, whatever is trained
            within = class_alignment(gate, classes, "centroid")
            between = between_classes(gate, classes)
        terms, added = {"within": within, "between": between}, 0.0
        weight = self.alignment * self.alignment_scale
        if weight and self.training:
            added = weight * class_alignment(gate, classes, *self.how)
        return added, terms


def _network(channels, hidden, out, generator):
    """A linear map, or two with a ReLU between them; random directions."""
    widths = [channels, hidden, out] if hidden else [channels, out]
    layers = []
    for before, after in zip(widths, widths[1:], strict=False):
        layer = nn.Linear(before, after)
        with torch.no_grad():
            rows = torch.empty(after, before).normal_(generator=generator)
            layer.weight.copy_(normalize(rows))
            layer.bias.zero_()
        layers += [layer, nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def _within(x, largest, least=None):
    """Bounds values, not their gradients: what is beyond can come back."""
    least = -largest if least is None else least
    return x + (x.clamp(least, largest) - x).detach()


def _check(given):
    """Raises a ValueError for an argument out of range."""
    for name, choices in CHOICES.items():
        if given[name] not in choices:
            raise ValueError(
                f"{name} is {given[name]!r}: it must be one of "
                f"{', '.join(choices)}."
            )
    alpha = given["alpha"]
    if not (isinstance(alpha, Real) and 0 < alpha < 1):
        raise ValueError(
            f"alpha is {alpha!r}: the share of units that are expected to be "
            f"active must be above 0 and below 1, for instance 0.1."
        )
    for name in ("alignment", "observation_std", "hidden", "decoder_hidden"):
        value = given[name]
        if not (isinstance(value, Real) and 0 <= value < math.inf):
            raise ValueError(
                f"{name} is {value!r}: it must be a number from 0."
            )
    for name in ("observation_std", "num_units", "num_pseudo_inputs"):
        if not given[name] > 0:
            raise ValueError(f"{name} is {given[name]!r}: it must be above 0.")
    if given["alignment"] and given["variant"] == VAE:
        raise ValueError("A VAE has no gates to align: give alignment 0.")
    if (given["gate"], given["prior"]) == (THRESHOLD, PSEUDO_INPUTS):
        raise ValueError(
            "gate threshold has the prior N(0, 1) of its slabs: give prior simple."
        )
