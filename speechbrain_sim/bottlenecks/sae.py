"""Sparse autoencoders of frames."""

import torch
from torch import nn
from torch.nn.functional import linear

from speechbrain_sim.arguments import records_arguments
from speechbrain_sim.bottlenecks.base import (
    STANDARDISE,
    Bottleneck,
    BottleneckLoss,
    check_rows,
)

#: see `SparseAutoencoder`
VARIANTS = ("topk", "batchtopk", "jumprelu", "l1", "matryoshka", "temporal")


@records_arguments
class SparseAutoencoder(Bottleneck):
    """A sparse autoencoder of frames.

    Example
    -------
    >>> sae = SparseAutoencoder(8, 32, k=4).eval()
    >>> codes, decoded = sae(torch.randn(2, 50, 8))
    >>> codes.shape, decoded.shape, int((codes != 0).sum(-1).max()) <= 4
    (torch.Size([2, 50, 32]), torch.Size([2, 50, 8]), True)
    """

    unrecorded = ("generator",)

    def __init__(
        self,
        input_channels,
        num_units,
        k=32,
        variant="topk",
        normalisation=STANDARDISE,
        auxk=1 / 32,
        dead_after=1_000_000,
        generator=None,
    ):
        super().__init__(input_channels, num_units, normalisation)
        if variant not in VARIANTS:
            raise ValueError(
                f"variant is '{variant}': it must be one of "
                f"{', '.join(VARIANTS)}."
            )
        if not 1 <= k <= num_units:
            raise ValueError(
                f"k is {k}: it must be at least 1 and at most num_units, "
                f"which is {num_units}."
            )
        self.variant, self.auxk, self.dead_after = variant, auxk, dead_after
        #: factor of the penalty of "l1" and "jumprelu"; a Brain warms it up
        self.sparsity_scale = 1.0
        self.encoder = nn.Linear(input_channels, num_units)
        self.decoder = nn.Linear(num_units, input_channels, bias=False)
        self.b_dec = nn.Parameter(torch.zeros(input_channels))
        self.register_buffer("k", torch.tensor(k))
        self.register_buffer("idle", torch.zeros(num_units, dtype=torch.long))
        directions = torch.empty(num_units, input_channels)
        directions = nn.functional.normalize(
            directions.normal_(generator=generator)
        )
        with torch.no_grad():
            self.encoder.bias.zero_()
            self.encoder.weight.copy_(directions)
            self.decoder.weight.copy_(directions.T)
        self._seen, self._fired = 0, None

    def _pre(self, u):
        """Units' activations, before any is set to zero."""
        weight = self.encoder.weight
        return linear(u, weight, self.encoder.bias - weight @ self.b_dec)

    def encode(self, x):
        """See `Bottleneck`."""
        return self._sparse(self._pre(self.to_units(x)).relu())

    def _sparse(self, acts):
        top = acts.topk(int(self.k), -1, sorted=False)
        return torch.zeros_like(acts).scatter(-1, top.indices, top.values)

    def decode(self, codes):
        """See `Bottleneck`."""
        return self.from_units(self.decoder(codes) + self.b_dec)

    def loss(self, x, following=None):
        """See `Bottleneck`."""
        check_rows(x, self.input_channels)
        u = self.to_units(x)
        codes = self._sparse(self._pre(u).relu())
        error = self.decoder(codes) + self.b_dec - u
        mse = error.square().mean()
        if self.training:
            fired = (codes.detach() > 0).any(0)
            self._seen += len(x)
            self._fired = fired if self._fired is None else self._fired | fired
        with torch.no_grad():
            fvu = mse / (u - u.mean(0)).square().mean()
            l0 = (codes > 0).sum() / len(x)
        terms = {"mse": mse.detach(), "fvu": fvu, "l0": l0}
        terms["dead"] = self.dead().float().mean()
        return BottleneckLoss(mse, terms)

    def dead(self):
        """Which units have not been active for `dead_after` frames, (units,)."""
        return self.idle >= self.dead_after

    @torch.no_grad()
    def initialise(self, x):
        """Sets b_dec to the geometric median of frames, (rows, channels)."""
        check_rows(x, self.input_channels)
        self.b_dec.copy_(geometric_median(self.to_units(x)))

    @torch.no_grad()
    def before_step(self):
        """Removes the gradients' components parallel to the columns of W_d."""
        weight = self.decoder.weight
        if weight.grad is not None:
            columns = nn.functional.normalize(weight, dim=0)
            weight.grad -= (weight.grad * columns).sum(0) * columns

    @torch.no_grad()
    def after_step(self):
        """Brings the columns of W_d to unit norm; counts idle frames."""
        weight = self.decoder.weight
        weight.copy_(nn.functional.normalize(weight, dim=0))
        if self._fired is not None:
            self.idle += self._seen
            self.idle[self._fired] = 0
            self._seen, self._fired = 0, None


def geometric_median(x, iterations=100, tolerance=1e-5):
    """Computes the point of least mean distance to rows, by Weiszfeld's steps.

    Example
    -------
    >>> geometric_median(torch.tensor([[0.0], [1.0], [100.0]])).round()
    tensor([1.])
    """
    median = x.mean(0)
    for _ in range(iterations):
        weights = 1 / (x - median).norm(dim=1).clamp_min(1e-12)
        former, median = median, weights @ x / weights.sum()
        if (median - former).norm() < tolerance:
            break
    return median
