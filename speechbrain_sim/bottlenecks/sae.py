"""Sparse autoencoders of frames."""

import math
from collections.abc import Sequence
from numbers import Integral, Real
from typing import NamedTuple

import torch
from torch import nn
from torch.nn.functional import cross_entropy, linear, normalize

from speechbrain_sim.arguments import records_arguments
from speechbrain_sim.bottlenecks.base import (
    STANDARDISE,
    BottleneckLoss,
    CountingBottleneck,
    check_rows,
)
from speechbrain_sim.bottlenecks.sparse import (
    EntriesOfProduct,
    JumpReLU,
    geometric_median,
    largest_of_batch,
    largest_of_rows,
    weighted_sums,
)

#: see `SparseAutoencoder`
VARIANTS = TOPK, BATCHTOPK, JUMPRELU, L1, MATRYOSHKA, TEMPORAL = (
    "topk",
    "batchtopk",
    "jumprelu",
    "l1",
    "matryoshka",
    "temporal",
)
#: variants whose k holds on average over a batch
BATCHWISE = (BATCHTOPK, MATRYOSHKA, TEMPORAL)
#: shares of the units that decode by themselves
NESTED = {MATRYOSHKA: (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1), TEMPORAL: (1 / 5, 1)}
#: weight of the latest batch in the threshold, once there is one
MOMENTUM = 0.1
#: "jumprelu": active units at first, in units of k; fewer leave more dead ones
HEAD_START = 4
#: rows whose codes are contrasted with each other
CONTRASTED = 512


class _Codes(NamedTuple):
    """Codes of frames: a matrix; or, where there are `units`, its entries."""

    values: torch.Tensor
    rows: torch.Tensor = None
    units: torch.Tensor = None
    #: H(a - t) of "jumprelu"
    steps: torch.Tensor = None


@records_arguments
class SparseAutoencoder(CountingBottleneck):
    """A sparse autoencoder of frames.

    With u the frame in units (see `Bottleneck`) and D its channels,

        a = W_e (u - b_dec) + b_e,  z = sparse(a),  u^ = W_d z + b_dec,
        loss = |u - u^|^2 / D + auxk L_aux + ...

    where columns of W_d have unit norm. The variants differ in what is sparse:

    - "topk": z = TopK(ReLU(a)), the k largest of each frame [1].
    - "batchtopk": the k B largest of a batch of B frames; `threshold`, a running
      mean of the least of them, decides in `encode`: z = a where a > threshold
      [2]. Before a first batch, `encode` takes the k largest of each frame.
    - "jumprelu": z = a H(a - t) with a threshold t for each unit, and a term
      sparsity (L0 / k - 1)^2, L0 the mean number of active units. The gradient
      for t takes H' as a rectangle of width e: dz / dt = -t / e and
      dH / dt = -1 / e where |a - t| < e / 2 [3].
    - "l1": z = ReLU(a) and a term sparsity sum_i z_i / D; |W_d,i| is 1 [4].
    - "matryoshka": as "batchtopk", with the sum of |u - u^|^2 / D over nested
      `widths`: the first units alone, more of them, all [5].
    - "temporal": as "matryoshka", and a contrastive term on the codes h of the
      first width, the fifth of the units that may become high-level: with h'
      those of the next frames, and s their cosine similarity,
      temporal (C(h, h') + C(h', h)) / 2,
      C(h, h') = -mean_i log(exp s(h_i, h'_i) / sum_j exp s(h_i, h'_j)),
      j within 512 rows [6]. Both frames of a pair are decoded. (The authors'
      code has scalar products in place of s.)

    With `num_classes`, a linear classifier reads z, and its cross-entropy is
    added, `classifier_weight` times: in the manner of ClassifSAE [7].

    L_aux revives dead units, which `dead_after` frames did not activate: of the
    error e = u - u^, no gradient through it, the dead units decode
    e^ = W_d TopK(ReLU(a), D / 2), without b_dec, and
    L_aux = |e - e^|^2 / |e - mean e|^2 min(dead / (D / 2), 1) [1]. It does
    little for "l1", whose dead units have ReLU(a) = 0, and for "jumprelu" it
    depends on the layer: try both.

    [1] Gao et al. 2024, arXiv:2406.04093; [2] Bussmann et al. 2024,
    arXiv:2412.06410; [3] Rajamanoharan et al. 2024, arXiv:2407.14435;
    [4] Bricken et al. 2023, Towards monosemanticity; [5] Bussmann et al. 2025,
    arXiv:2503.17547; [6] Bhalla et al. 2025, arXiv:2511.05541;
    [7] arXiv:2506.23951.

    Weights have the names of `AutoEncoderTopK` of the library
    dictionary_learning.

    Arguments
    ---------
    input_channels, num_units : int
        Channels of the layer; number of codes.
    k : int
        Active units of a frame; of "jumprelu", what L0 is drawn to; of no
        meaning for "l1".
    variant : str
        One of `VARIANTS`.
    normalisation : str
        See `Bottleneck`.
    auxk : float
        Weight of L_aux; 0 for none.
    dead_after : int
        Frames without activity after which a unit is dead; about an epoch.
    sparsity : float
        Weight of the terms of "jumprelu" and "l1"; `sparsity_scale`, an
        attribute, multiplies it: a Brain may raise it from 0 to 1.
    temporal : float
        Weight of the contrastive term.
    widths : list of int, optional
        Nested widths, the last is `num_units`; see `NESTED` for the default.
    num_classes, classifier_weight : int, float
        Of the classifier; 0: none.
    generator : torch.Generator, optional
        Source of the initial W_d, whose columns are random directions;
        W_e is its transpose.

    Raises
    ------
    ValueError
        If an argument is out of range.

    Example
    -------
    >>> sae, x = SparseAutoencoder(8, 32, k=4), torch.randn(100, 8)
    >>> sae.set_units(x.mean(0), x.std(0))
    >>> sae.initialise(x)
    >>> codes, decoded = sae(torch.randn(2, 50, 8))
    >>> codes.shape, decoded.shape, int((codes != 0).sum(-1).max()) <= 4
    (torch.Size([2, 50, 32]), torch.Size([2, 50, 8]), True)
    >>> total, terms = sae.loss(x)
    >>> sorted(terms)
    ['auxk', 'dead', 'fvu', 'l0', 'mse']
    """

    unrecorded = ("generator",)

    def __init__(
        self,
        input_channels,
        num_units,
        k=32,
        variant=TOPK,
        normalisation=STANDARDISE,
        auxk=1 / 32,
        dead_after=1_000_000,
        sparsity=2.0,
        temporal=1.0,
        widths=None,
        num_classes=0,
        classifier_weight=1.0,
        generator=None,
    ):
        counts = normalisation, dead_after
        super().__init__(input_channels, num_units, *counts)
        shares = NESTED.get(variant, (1,))
        weights = {"auxk": auxk, "sparsity": sparsity, "temporal": temporal}
        weights["classifier_weight"] = classifier_weight
        _check_numbers(Real, weights)
        _check_numbers(Integral, {"k": k, "dead_after": dead_after})
        widths = widths or sorted({-int(-s * num_units // 1) for s in shares})
        _check(num_units, k, variant, widths)
        self.variant, self.widths = variant, list(widths)
        self.auxk = auxk
        self.sparsity, self.temporal = sparsity, temporal
        self.sparsity_scale = 1.0
        self.encoder = nn.Linear(input_channels, num_units)
        self.decoder = nn.Linear(num_units, input_channels, bias=False)
        self.b_dec = nn.Parameter(torch.zeros(input_channels))
        directions = torch.empty(num_units, input_channels)
        directions = normalize(directions.normal_(generator=generator))
        with torch.no_grad():
            self.encoder.bias.zero_()
            self.encoder.weight.copy_(directions)
            # its memory is that of W_d^T: the columns are what is summed
            self.decoder.weight = nn.Parameter(directions.T)
        self.classifier_weight = classifier_weight
        if num_classes:
            self.classifier = nn.Linear(num_units, num_classes)
            nn.init.zeros_(self.classifier.weight)
            nn.init.zeros_(self.classifier.bias)
        self.register_buffer("k", torch.tensor(k))
        if variant == JUMPRELU:
            self.threshold = nn.Parameter(torch.zeros(num_units))
        elif variant in BATCHWISE:
            self.register_buffer("threshold", torch.tensor(-1.0))

    def _bias(self):
        """The bias of a, (units,): b_e - W_e b_dec."""
        return self.encoder.bias - self.encoder.weight @ self.b_dec

    def encode(self, x):
        """See `Bottleneck`."""
        a = linear(self.to_units(x), self.encoder.weight, self._bias())
        if self.variant == L1:
            return a.relu()
        if self.variant == JUMPRELU or (
            self.variant in BATCHWISE and self.threshold >= 0
        ):
            return a.relu() * (a > self.threshold)
        top = a.relu().topk(int(self.k), dim=-1, sorted=False)
        return torch.zeros_like(a).scatter(-1, top.indices, top.values)

    def decode(self, codes):
        """See `Bottleneck`."""
        return self.from_units(self.decoder(codes) + self.b_dec)

    def loss(self, x, following=None, classes=None, generator=None):
        """See `Bottleneck`; "temporal" needs `following` in training.

        Raises
        ------
        ValueError
            If a frame is NaN or infinite, or of another size.
        """
        check_rows(x, self.input_channels)
        paired = self.variant == TEMPORAL and following is not None
        if paired:
            check_rows(following, self.input_channels)
            x = torch.cat([x, following])
        elif self.variant == TEMPORAL and self.training:
            raise ValueError(
                "The next frame of each row is needed to train a temporal "
                "autoencoder: train on frames, not on means."
            )
        u, bias = self.to_units(x), self._bias()
        codes = self._codes(u, bias)
        error = u[:, None] - self.b_dec - self._nested(codes, len(u))
        each = error.square().mean((0, 2))
        error = error[:, -1].detach()
        total, terms = each.sum(), {"mse": each[-1]}
        for width, mse in zip(self.widths[:-1], each, strict=False):
            terms[f"mse_{width}"] = mse
        variance = (u - u.mean(0)).square().mean()
        terms["fvu"] = each[-1] / variance.clamp_min(1e-12)
        active = codes.values > 0
        terms["l0"] = active.sum() / len(u)
        terms["dead"] = self.dead().float().mean()
        if self.training:
            self._count(codes, active, len(u) // (1 + paired))
        added = self._added(codes, len(u), paired)
        if classes is not None and hasattr(self, "classifier"):
            added["class"] = self._classified(codes, len(u), classes)
        added["auxk"] = self.auxk, self._auxiliary(u, bias, error)
        for name, (weight, term) in added.items():
            total, terms[name] = total + weight * term, term
        return BottleneckLoss(total, {n: t.detach() for n, t in terms.items()})

    def _codes(self, u, bias):
        """Codes of frames in units, in training."""
        weight = self.encoder.weight
        if self.variant == L1:
            return _Codes(linear(u, weight, bias).relu())
        if self.variant == JUMPRELU:
            a = linear(u, weight, bias)
            values, steps = JumpReLU.apply(a, self.threshold)
            return _Codes(values, steps=steps)
        with torch.no_grad():
            a = linear(u, weight, bias)
            k = int(self.k)
            if self.variant == TOPK:
                rows, units = largest_of_rows(a, k)
            elif self.training or self.threshold < 0:
                rows, units = largest_of_batch(a, k * len(a), self.threshold)
            else:
                rows, units = (a > self.threshold).nonzero().T
            values = a[rows, units].to(u.dtype)  # of autocast
        values = EntriesOfProduct.apply(u, weight, bias, values, rows, units)
        return _Codes(values.relu(), rows, units)

    def _nested(self, codes, length):
        """Decodes with each of the widths, (rows, widths, D), without b_dec."""
        if codes.units is None:
            return self.decoder(codes.values)[:, None]
        rows, units, values = codes.rows, codes.units, codes.values
        columns, bags, count = self.decoder.weight.T, rows, len(self.widths)
        if count > 1:
            ends = torch.tensor(self.widths, device=units.device)
            bags = rows * count + torch.bucketize(units, ends, right=True)
            bags, order = bags.sort(stable=True)
            units, values = units[order], values[order]
        sums = weighted_sums(values, units, columns, bags, length * count)
        return sums.view(length, count, -1).cumsum(1)

    def _added(self, codes, length, paired):
        """Terms that a variant adds: their weights and values, by name."""
        scale = self.sparsity * self.sparsity_scale
        if self.variant == L1:
            return {
                "l1": (scale, codes.values.sum(1).mean() / self.input_channels)
            }
        if self.variant == JUMPRELU:
            excess = codes.steps.sum(1).mean() / self.k - 1
            return {"excess": (scale, excess.square())}
        if not paired:
            return {}
        high = codes.units < self.widths[0]
        at, values = (codes.rows[high], codes.units[high]), codes.values[high]
        h = values.new_zeros(length, self.widths[0]).index_put(at, values)
        return {"temporal": (self.temporal, temporal_contrast(*h.chunk(2)))}

    def _classified(self, codes, length, classes):
        """Cross-entropy of the classifier, of rows that have a class."""
        z, known = codes.values, classes >= 0
        if codes.units is not None:
            at, z = (
                (codes.rows, codes.units),
                z.new_zeros(length, self.num_units),
            )
            z = z.index_put(at, codes.values)
        logits = self.classifier(z[: len(classes)])[known]
        loss = cross_entropy(logits, classes[known], reduction="sum")
        return self.classifier_weight, loss / known.sum().clamp_min(1)

    def _auxiliary(self, u, bias, error):
        """What the dead units do not explain of the error, a share."""
        dead, wanted = self.dead(), max(self.input_channels // 2, 1)
        count = int(dead.sum()) if self.auxk else 0
        if not count:
            return u.new_zeros(())
        a = linear(u, self.encoder.weight[dead], bias[dead]).relu()
        top = a.topk(min(wanted, count), dim=1, sorted=False)
        z = torch.zeros_like(a).scatter(1, top.indices, top.values)
        left = error - linear(z, self.decoder.weight[:, dead])
        whole = (error - error.mean(0)).square().sum()
        share = left.square().sum() * (1 / whole).nan_to_num(0, 0)
        return share * min(count / wanted, 1)

    @torch.no_grad()
    def _count(self, codes, active, length):
        """Notes which units were active, and the least of what is."""
        if codes.units is None:
            fired = active.any(0)
        else:
            units = codes.units[active]
            fired = torch.bincount(units, minlength=self.num_units) > 0
        self.count(fired, length)
        if self.variant in BATCHWISE and active.any():
            least, first = codes.values[active].min(), self.threshold < 0
            self.threshold.lerp_(least, 1.0 if first else MOMENTUM)

    @torch.no_grad()
    def initialise(self, x):
        """Sets b_dec to the geometric median of frames, (rows, channels).

        The thresholds of "jumprelu" begin where `HEAD_START` k are active.
        """
        check_rows(x, self.input_channels)
        u = self.to_units(x)
        self.b_dec.copy_(geometric_median(u))
        if self.variant == JUMPRELU:
            a = linear(u, self.encoder.weight, self._bias())
            count = HEAD_START * int(self.k) * len(a)
            entries = largest_of_batch(a, count, 0)
            if len(entries[0]):
                self.threshold.fill_(a[entries].min())

    @torch.no_grad()
    def before_step(self):
        """Removes the gradient's component parallel to each column of W_d."""
        weight = self.decoder.weight
        if weight.grad is not None:
            columns = normalize(weight, dim=0)
            weight.grad -= (weight.grad * columns).sum(0) * columns

    @torch.no_grad()
    def after_step(self):
        """Brings the columns of W_d to unit norm; counts idle frames."""
        weight = self.decoder.weight
        weight.copy_(normalize(weight, dim=0))
        if self.variant == JUMPRELU:
            self.threshold.clamp_min_(0)
        super().after_step()


def _check_numbers(kind, numbers):
    """Raises a ValueError unless numbers are of a kind, and not negative."""
    for name, value in numbers.items():
        if not (isinstance(value, kind) and 0 <= value < math.inf):
            whole = "whole " * (kind is Integral)
            raise ValueError(
                f"{name} is {value!r}: it must be a {whole}number from 0."
            )


def _check(num_units, k, variant, widths):
    """Raises a ValueError if arguments do not fit each other."""
    if variant not in VARIANTS:
        raise ValueError(
            f"variant is '{variant}': it must be one of {', '.join(VARIANTS)}."
        )
    if not 1 <= k <= num_units:
        raise ValueError(
            f"k is {k}, of {num_units} units: it must be from 1 to num_units."
        )
    whole = isinstance(widths, Sequence) and {*map(type, widths)} == {int}
    grows = whole and [0, *widths] == sorted({0, *widths})
    if not grows or widths[-1] != num_units:
        raise ValueError(
            f"widths are {widths}: they must be a list of whole numbers that "
            f"grow, and end with num_units, which is {num_units}."
        )
    if len(widths) > 1 and variant not in NESTED:
        raise ValueError(
            f"'{variant}' has no nested widths, only {', '.join(NESTED)} have: "
            f"leave widths out."
        )


def temporal_contrast(h, following):
    """Contrasts codes with those of the next frames, (rows, units): a scalar.

    The mean of C(h, h') and C(h', h), see `SparseAutoencoder`.
    """
    total = 0.0
    for a, b in zip(
        normalize(h).split(CONTRASTED),
        normalize(following).split(CONTRASTED),
        strict=True,
    ):
        logits, target = a @ b.T, torch.arange(len(a), device=a.device)
        total = total + cross_entropy(logits, target, reduction="sum")
        total = total + cross_entropy(logits.T, target, reduction="sum")
    return total / (2 * len(h))
