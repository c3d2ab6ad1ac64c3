"""Probes that are solved: multinomial logistic regression, to convergence.

Of N examples x of class y, each probe minimizes

    1/N Σ -log softmax(x W + b)[y] + λ/2 |W|²

which has one solution: no learning rate, batch, epochs or seed. λ is a strength
times the mean square of x, so that it means the same in any unit; scikit-learn's
C is 1 / (λ N). Many probes, of several λ or labels, share each pass over the
examples, which may lie on a disk.
"""

from collections import deque
from functools import partial
from typing import NamedTuple

import torch
from torch.nn.functional import cross_entropy

from speechbrain_sim.randomness import keyed_generator

#: share of its loss by which a solved probe is above the minimum (estimated)
TOLERANCE = 1e-5
#: rows for the correlations of channels, and the fewest to begin with
SAMPLE, FEWEST = 2**16, 2**12
#: logits that are computed at once, on a CPU and on a GPU
CHUNK = {"cpu": 2**18, "cuda": 2**25}


class Solved(NamedTuple):
    """Probes, side by side.

    Arguments
    ---------
    weights : tuple of torch.Tensor
        W (probes, channels, classes) and, unless bias-free, b (probes, 1,
        classes); before them those of a hidden layer, if there is one.
    converged : torch.Tensor
        Whether each is solved, (probes,).
    passes : int
        Times that all examples were read.
    """

    weights: tuple
    converged: torch.Tensor
    passes: int

    def logits(self, x):
        """(examples, channels) -> (probes, examples, classes)."""
        return logits_of(self.weights, x)

    @torch.no_grad()
    def predict(self, x):
        """Returns the class of each row of a tensor or Rows, (probes, rows)."""
        device, size = self.weights[0].device, _rows_at_once(self.weights)
        parts = (self.logits(part.to(device)) for part in x.split(size))
        return torch.cat([part.argmax(-1).cpu() for part in parts], 1)


def logits_of(weights, x):
    """Logits of probes side by side, from the weights of `Solved`.

    (examples, channels) -> (probes, examples, classes).
    """
    x = x.expand(len(weights[0]), -1, -1)
    if len(weights) == 1:
        return torch.bmm(x, weights[0])
    *below, weight, bias = weights
    if below:
        x = torch.baddbmm(below[1], x, below[0]).relu()
    return torch.baddbmm(bias, x, weight)


def _rows_at_once(weights):
    """Returns how many examples fill a chunk."""
    width = max(part.shape[-1] for part in weights) * len(weights[0])
    return max(64, CHUNK[weights[0].device.type] // width)


class Lbfgs:
    """Minimizes several functions side by side, by L-BFGS.

    Liu and Nocedal, *On the limited memory BFGS method for large scale
    optimization*, 1989, with steps that are halved until the function falls
    (Armijo). With B the inverse Hessian's approximation and g the gradient,
    g B g / 2 estimates how far a value is above its minimum.

    Arguments
    ---------
    precondition : callable
        First approximation: gradients -> steps, (functions, values) each.
    memory : int
        Steps that are remembered, also from one `minimize` to the next.
    """

    def __init__(self, precondition, memory=10):
        self.precondition, self.scale = precondition, 1.0
        self.pairs = deque(maxlen=memory)

    def direction(self, gradient):
        """Returns -B g, by two loops over the pairs."""
        step, shares = gradient, []
        for moved, turned, curvature in reversed(self.pairs):
            shares.append(curvature * _dot(moved, step))
            step = step - shares[-1] * turned
        step = self.scale * self.precondition(step)
        for moved, turned, curvature in self.pairs:
            share = shares.pop() - curvature * _dot(turned, step)
            step = step + share * moved
        return -step

    def remember(self, moved, turned):
        """Adds a step and the change of the gradient; 0 where there was none."""
        product, length = _dot(moved, turned), self.precondition(turned)
        curved = product > 0
        curvature = curved / product.where(curved, 1)
        self.pairs.append((moved, turned, curvature))
        scale = product / _dot(turned, length).where(curved, 1)
        self.scale = torch.where(curved, scale, self.scale)

    def minimize(self, function, x, tolerance, limit):
        """Minimizes; returns the points, whether each is one, and the calls.

        Arguments
        ---------
        function : callable
            (points, which) -> values (points, 1) and gradients, of those of
            the functions that an index selects.
        x : torch.Tensor
            Where to begin, (functions, values).
        tolerance, limit : float, int
            Distance to the minimum to reach, estimated, relative to the
            value; and most calls.
        """
        open_ = torch.arange(len(x), device=x.device)
        value, gradient = function(x, open_)
        length, calls = torch.ones_like(value), 1
        step = self.direction(gradient)
        while True:
            slope = _dot(gradient, step)
            solved = slope >= -2 * tolerance * value
            # as far as the precision goes
            open_ = (~solved & (length > 1e-4)).flatten().nonzero()[:, 0]
            if not len(open_) or calls == limit:
                return x, solved.flatten(), calls
            tried, new, turned = x.clone(), value.clone(), gradient.clone()
            tried[open_] += length[open_] * step[open_]
            new[open_], turned[open_] = function(tried[open_], open_)
            calls += 1
            expected = length * slope
            allowed = value + 1e-4 * expected + 1e-7 * (1 + value.abs())
            falls = torch.zeros_like(solved)
            falls[open_] = (new <= allowed)[open_]
            self.remember(
                torch.where(falls, tried - x, 0),
                torch.where(falls, turned - gradient, 0),
            )
            x, value = (
                torch.where(falls, tried, x),
                torch.where(falls, new, value),
            )
            gradient = torch.where(falls, turned, gradient)
            # the minimum of the parabola, where the step was too long
            best = -expected / (2 * (new - value - expected)).clamp(min=1e-30)
            length = torch.where(falls, 1.0, length * best.clamp(0.1, 0.5))
            step = torch.where(falls, self.direction(gradient), step)


def _dot(one, other):
    return (one * other).sum(1, keepdim=True)


class _Loss:
    """Loss and gradient of probes side by side, over rows with a stride."""

    def __init__(self, x, y, shapes, strengths):
        self.x, self.y, self.shapes, self.strengths = x, y, shapes, strengths

    def weights(self, points):
        """(probes, values) -> views, as in `Solved`."""
        sizes = [rows * columns for rows, columns in self.shapes]
        parts = zip(points.split(sizes, 1), self.shapes, strict=True)
        return tuple(part.unflatten(1, shape) for part, shape in parts)

    @torch.enable_grad()
    def __call__(self, stride, points, which):
        """Returns values (probes, 1) and gradients of some probes."""
        points = points.detach().requires_grad_()
        weights = self.weights(points)
        squares = sum(w.square().sum((1, 2)) for w in weights[::2])
        penalty = 0.5 * self.strengths[which] * squares
        penalty.sum().backward()
        values = penalty.detach().double()
        targets = (
            which.cpu() if len(self.y) > 1 else torch.zeros_like(which).cpu()
        )
        rows = torch.arange(0, len(self.x), stride)
        for chosen in rows.split(_rows_at_once(weights)):
            y = self.y[:, chosen][targets].to(points.device).long()
            x = self.x[chosen].to(points.device)
            logits = logits_of(self.weights(points), x).flatten(0, 1)
            losses = cross_entropy(logits, y.flatten(), reduction="none")
            losses = losses.view_as(y).sum(1) / len(rows)
            losses.sum().backward()
            values += losses.detach()
        return values[:, None].float(), points.grad


def _squares(x, device):
    """Returns the mean products of channels, (channels, channels), double."""
    rows = x[torch.arange(0, len(x), 1 + (len(x) - 1) // SAMPLE)].to(device)
    return (rows.T @ rows / len(rows)).double()


def _curvature(squares, shares, strengths, bias):
    """Returns a preconditioner: the inverse Hessian where W = 0.

    There, in the basis of the channels' correlations, it is diagonal but for
    the classes' sum: 1 / (variance p (1 - p) + λ), with p the `shares` of the
    classes, (probes, classes).
    """
    variances, basis = torch.linalg.eigh(squares)
    basis, spread = basis.float(), (shares * (1 - shares))[:, None]
    scale = variances.float().clamp(min=0)[:, None] * spread
    scale = 1 / (
        scale + strengths[:, None, None]
    )  # (probes, channels, classes)

    def precondition(gradients):
        gradients = gradients.unflatten(1, (-1, shares.shape[1]))
        steps = basis @ (scale * (basis.T @ gradients[:, : len(basis)]))
        parts = [steps, gradients[:, len(basis) :] / spread]
        return torch.cat(parts[: 1 + bias], 1).flatten(1)

    return precondition


@torch.no_grad()
def solve_logistic(
    x, y, classes, strengths=1e-3, bias=True, hidden=0, limit=500, device="cpu"
):
    """Solves logistic regressions side by side.

    It begins with every 64th or so of many rows, and goes on with more.

    Arguments
    ---------
    x : torch.Tensor or Rows
        Features, (examples, channels), best of mean 0.
    y : torch.Tensor
        Classes, (examples,), or of each probe, (probes, examples).
    classes : int
        How many.
    strengths : float or list of float
        λ, relative to the mean square of x; of a list, one probe each.
    bias : bool
        Whether probes have one.
    hidden : int
        Units of a hidden layer (ReLU), if any; such a loss has several minima.
    limit : int
        Most passes over the rows.
    device : str
        Where to compute; the rows are moved in chunks.

    Returns
    -------
    Solved

    Example
    -------
    >>> x = torch.randn(300, 4, generator=torch.Generator().manual_seed(0))
    >>> y = (x[:, 0] + x[:, 1] > 0).long()
    >>> solved = solve_logistic(x[:200], y[:200], 2, strengths=[1e-1, 1e-3])
    >>> solved.converged.tolist(), solved.weights[0].shape
    ([True, True], torch.Size([2, 4, 2]))
    >>> bool((solved.predict(x[200:]) == y[200:]).float().mean() > 0.9)
    True
    """
    y, strengths = (
        y.expand(1, -1) if y.dim() == 1 else y,
        torch.tensor(strengths),
    )
    probes = max(len(y), strengths.numel())
    squares = _squares(x, device)
    square = squares.diagonal().mean().clamp(min=1e-30).float()
    strengths = strengths.expand(probes).to(device) * square
    counts = [torch.bincount(row, minlength=classes) for row in y]
    shares = (torch.stack(counts) / y.shape[1]).clamp(min=1e-6)
    shares = shares.expand(probes, -1).to(device)
    channels = x.shape[1]
    layers = [(channels, hidden)] * bool(hidden) + [
        (hidden or channels, classes)
    ]
    shapes = [s for layer in layers for s in (layer, (1, layer[1]))]
    loss = _Loss(x, y, shapes[: len(shapes) - (not bias)], strengths)
    start = [torch.zeros(probes, rows * columns) for rows, columns in shapes]
    start[-1] = shares.log().cpu()
    precondition = _curvature(squares, shares, strengths, bias)
    if hidden:
        for part, (rows, _) in zip(start[::2], shapes[::2], strict=True):
            draws = keyed_generator("probe", rows)
            part[:] = rows**-0.5 * (
                2 * torch.rand(part.shape[1], generator=draws) - 1
            )
        precondition = torch.clone
    points = torch.cat(start[: len(loss.shapes)], 1).to(device)
    search, passes = Lbfgs(precondition), 0.0
    least = max(FEWEST, 2 * points.shape[1])
    for stride in (64, 16, 4, 1):
        last = stride == 1
        if last or len(x) // stride >= least:
            goal = TOLERANCE if last else 100 * TOLERANCE
            found = search.minimize(partial(loss, stride), points, goal, limit)
            points, converged, calls = found
            passes += calls / stride
    return Solved(loss.weights(points), converged, passes)
