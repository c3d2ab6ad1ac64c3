"""Probes that are solved: multinomial logistic regression, to convergence.

Of N examples x of class y, each probe minimizes

    1/N Σ -log softmax(x W + b)[y] + λ/2 |W|²

which has one solution: no learning rate, batch, epochs or seed. λ is a strength
times the mean square of x, so that it means the same in any unit; scikit-learn's
C is 1 / (λ N). Many probes, of several λ or labels, share each pass over the
examples, which may lie on a disk.
"""

from collections import deque
from contextlib import contextmanager
from functools import partial
from typing import NamedTuple

import torch
from torch.nn.functional import cross_entropy

from speechbrain_sim.randomness import keyed_generator

#: share of its loss by which a solved probe is above the minimum (estimated)
TOLERANCE = 3e-6
#: the same where only an accuracy on other examples is wanted: it differs by 0.15
#: points at most (phones of the demo), for half the passes
LOOSE = 3e-5
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
        Whether each is solved, (probes,): within the tolerance, before the limit
        of passes, or the precision of the steps, ended the search.
    passes : float
        Times that all examples were read; of shares of them, in fractions.
    """

    weights: tuple
    converged: torch.Tensor
    passes: int

    @torch.no_grad()
    def predict(self, x):
        """Returns the class of each row of a tensor or Rows, (probes, rows)."""
        device, size = self.weights[0].device, _rows_at_once(self.weights)
        parts = (part.to(device) for part in x.split(size))
        classes = [logits_of(self.weights, part).argmax(-1) for part in parts]
        return torch.cat(classes, 1).cpu()


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
    return max(64, CHUNK.get(weights[0].device.type, CHUNK["cpu"]) // width)


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
        Steps that are kept, also from one `minimize` to the next.
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

    def add_pair(self, moved, turned):
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
            kept = partial(torch.where, falls)
            self.add_pair(kept(tried - x, 0), kept(turned - gradient, 0))
            x, gradient = kept(tried, x), kept(turned, gradient)
            # the minimum of the parabola, where the step was too long
            best = -expected / (2 * (new - value - expected)).clamp(min=1e-30)
            length = kept(1.0, length * best.clamp(0.1, 0.5))
            value = kept(new, value)
            step = kept(self.direction(gradient), step)


def _dot(one, other):
    return (one * other).sum(1, keepdim=True)


class _Probes:
    """The loss of probes side by side, and where its minimum is looked for.

    Inside, features are divided by their root mean square, `scale`.
    """

    def __init__(self, x, y, classes, strengths, bias, hidden, device):
        probes = max(len(y), strengths.numel())
        self.x, self.y, self.hidden = x, y.expand(probes, -1), hidden
        self.strengths = strengths.expand(probes).to(device)
        counts = [torch.bincount(row, minlength=classes) for row in self.y]
        shares = torch.stack(counts) / y.shape[1]
        self.shares = shares.clamp(min=1e-6).to(device)[:, None]
        layers = [x.shape[1], *[hidden] * bool(hidden), classes]
        pairs = zip(layers, layers[1:], strict=False)
        shapes = [s for rows, n in pairs for s in ((rows, n), (1, n))]
        self.shapes = shapes if bias else shapes[:-1]
        rows = x[torch.arange(0, len(x), 1 + (len(x) - 1) // SAMPLE)]
        products = (rows.T @ rows / len(rows)).double()
        square = products.diagonal().mean().clamp(min=1e-30)
        self.scale = float(square.sqrt())
        variances, basis = torch.linalg.eigh(products / square)
        self.basis = basis.float().to(device)
        self.variances = variances.clamp(min=0)[:, None].float().to(device)

    def weights(self, points):
        """(probes, values) -> views, as in `Solved`."""
        sizes = [rows * columns for rows, columns in self.shapes]
        parts = zip(points.split(sizes, 1), self.shapes, strict=True)
        return tuple(part.unflatten(1, shape) for part, shape in parts)

    def start(self):
        """Returns points: W = 0 and b of the classes' shares, (probes, values).

        Those of hidden layers are drawn.
        """
        parts = []
        for rows, columns in self.shapes:
            drawn = torch.zeros(rows, columns)
            if self.hidden and rows > 1:
                drawn.uniform_(-1, 1, generator=keyed_generator("probe", rows))
            parts.append((drawn / rows**0.5).flatten().expand(len(self.y), -1))
        if self.shapes[-1][0] == 1:
            parts[-1] = self.shares[:, 0].log()
        return torch.cat([part.to(self.basis.device) for part in parts], 1)

    def precondition(self, gradients):
        """Returns the inverse Hessian at the start, times gradients.

        In the basis of the channels' correlations, it is diagonal but for the
        classes' sum: 1 / (variance p (1 - p) + λ), p a class's share.
        """
        if self.hidden:
            return gradients
        weight, *bias = self.weights(gradients)
        spread = self.shares * (1 - self.shares)  # (probes, 1, classes)
        curvature = self.variances * spread + self.strengths[:, None, None]
        weight = self.basis @ ((self.basis.T @ weight) / curvature)
        parts = [weight, *(part / spread for part in bias)]
        return torch.cat([part.flatten(1) for part in parts], 1)

    @torch.enable_grad()
    def loss(self, stride, points, which):
        """Returns values (probes, 1) and gradients, over every stride-th row.

        Of those of the probes that an index selects.
        """
        points = points.detach().requires_grad_()
        weights = self.weights(points)
        squares = sum(w.square().sum((1, 2)) for w in weights[::2])
        penalty = 0.5 * self.strengths[which] * squares
        penalty.sum().backward()
        values = penalty.detach().double()
        rows = torch.arange(0, len(self.x), stride)
        for chosen in rows.split(_rows_at_once(weights)):
            y = self.y[:, chosen][which.cpu()].to(points.device).long()
            x = self.x[chosen].to(points.device) / self.scale
            logits = logits_of(self.weights(points), x).flatten(0, 1)
            losses = cross_entropy(logits, y.flatten(), reduction="none")
            losses = losses.view_as(y).sum(1) / len(rows)
            losses.sum().backward()
            values += losses.detach()
        return values[:, None].float(), points.grad


@contextmanager
def _full_precision():
    """Keeps a GPU from TF32, whose gradients are too rough to converge."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


@_full_precision()
@torch.no_grad()
def solve_logistic(
    x,
    y,
    classes,
    strengths=1e-3,
    bias=True,
    hidden=0,
    limit=1000,
    device="cpu",
    tolerance=TOLERANCE,
):
    """Solves logistic regressions side by side.

    It begins with every 64th or so of many rows, and goes on with more.

    Arguments
    ---------
    x : torch.Tensor or Rows
        Features, (examples, channels), best of mean 0.
    y : torch.Tensor
        Their `classes`, (examples,), or of each probe, (probes, examples).
    strengths : float, list of float
        λ, relative to the mean square of x; of a list, one probe each.
    bias, hidden : bool, int
        Whether probes have one; units of a hidden layer (ReLU), if any: such a
        loss has several minima.
    limit, tolerance : int, float
        Most passes over the rows of each stage: a share of them, then more;
        share of its loss by which a probe may be above the minimum.
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
    strengths = torch.as_tensor(strengths)
    options = classes, strengths, bias, hidden, device
    probes = _Probes(x, torch.atleast_2d(y), *options)
    points, search, passes = probes.start(), Lbfgs(probes.precondition), 0.0
    least = max(FEWEST, 2 * points.shape[1])
    for stride in (64, 16, 4, 1):
        if stride == 1 or len(x) // stride >= least:
            loss = partial(probes.loss, stride)
            goal = tolerance * (1 if stride == 1 else 100)
            points, done, calls = search.minimize(loss, points, goal, limit)
            passes += calls / stride
    first, *others = probes.weights(points)
    return Solved((first / probes.scale, *others), done, passes)
