"""How much Bernoulli gates differ within classes, and between them, pure.

Of a product of Bernoullis the Jensen-Shannon divergences of its dimensions are
added: an upper bound of the joint divergence. All are in nats.
"""

import torch

#: see `class_alignment`
FORMS = PAIRS, CENTROID = "pairs", "centroid"
DENOMINATORS = OF_PAIRS, OF_SAMPLES = "pairs", "samples"
#: under the root of a distance, whose slope at 0 is infinite
TINY = 1e-12
#: pairs of each class whose entropies are in memory together
PAIRS_AT_ONCE = 128
#: gates are not less, nor nearer to 1, in logarithms
SMALLEST = 1e-30


class _Entropy(torch.autograd.Function):
    """Entropy of Bernoulli(gate): few passes, as it is most of the time."""

    @staticmethod
    def forward(ctx, gates):
        opened = gates.clamp_min(SMALLEST).log()
        shut = (1 - gates).clamp_min(SMALLEST).log_()
        slope = shut - opened
        ctx.save_for_backward(slope)
        return torch.addcmul(-shut, gates, slope)

    @staticmethod
    def backward(ctx, gradient):
        (slope,) = ctx.saved_tensors
        return gradient * slope


def bernoulli_entropy(gates):
    """Entropy of Bernoulli(gate), nats, elementwise."""
    return _Entropy.apply(gates)


def jensen_shannon(gates, others):
    """Jensen-Shannon divergence of Bernoullis, elementwise, at most ln 2.

    H((p + q) / 2) - (H(p) + H(q)) / 2.

    Example
    -------
    >>> jensen_shannon(torch.tensor([1.0, 0.3]), torch.tensor([0.0, 0.3]))
    tensor([0.6931, 0.0000])
    """
    middle = bernoulli_entropy((gates + others) / 2)
    mean = (bernoulli_entropy(gates) + bernoulli_entropy(others)) / 2
    return (middle - mean).clamp_min(0)


def spread(gates, dim=0):
    """Generalised Jensen-Shannon divergence along a dimension.

    H(mean of gates) - mean of H(gates): of two, `jensen_shannon`.
    """
    entropies = bernoulli_entropy(gates).mean(dim)
    return (bernoulli_entropy(gates.mean(dim)) - entropies).clamp_min(0)


def by_class(gates, classes):
    """Yields the gates of classes with so many samples: (classes, n, units).

    Rows of no class (below 0) are left out.
    """
    kept = classes >= 0
    gates, order = gates[kept], classes[kept].sort(stable=True)
    _, counts = order.values.unique_consecutive(return_counts=True)
    rows = gates[order.indices].split(counts.tolist())
    for count in counts.unique().tolist():
        same = [part for part in rows if len(part) == count]
        yield torch.stack(same)


def class_alignment(
    gates, classes, form=PAIRS, denominator=OF_PAIRS, distance=False
):
    """Computes how much gates differ within classes: a scalar, nats.

    The mean over classes of 1 / N sum_{j < k} JSD(gates_j || gates_k), the
    second term of the loss of class-aligned variational sparse coding. Classes
    with fewer than two samples contribute nothing, and are not counted.

    Arguments
    ---------
    gates : torch.Tensor
        (rows, units), in [0, 1].
    classes : torch.Tensor
        (rows,), int64; rows of no class have one below 0.
    form : str
        "pairs", or "centroid", the `spread` of each class: of linear cost, and
        equal to the other where a class has two samples.
    denominator : str
        N of "pairs": the number of "pairs", or of "samples".
    distance : bool
        The root of each divergence (a metric) in its place.

    Example
    -------
    >>> gates = torch.tensor([[1.0], [0.0], [0.5], [0.5], [0.9]])
    >>> class_alignment(gates, torch.tensor([0, 0, 1, 1, 2]))
    tensor(0.3466)
    """
    total, counted = gates.new_zeros(()), 0
    for group in by_class(gates, classes):
        if group.shape[1] < 2:
            continue
        counted += len(group)
        if form == CENTROID:
            total = total + _root(spread(group, 1).sum(-1), distance).sum()
        else:
            total = total + _pairs(group, denominator, distance).sum()
    return total / max(counted, 1)


def _pairs(group, denominator, distance):
    """Sums over unordered pairs, of (classes, n, units): (classes,)."""
    n, total = group.shape[1], 0.0
    entropies = bernoulli_entropy(group).sum(-1)
    pairs = torch.triu_indices(n, n, 1, device=group.device)
    for one, other in pairs.split(PAIRS_AT_ONCE, 1):
        middle = bernoulli_entropy((group[:, one] + group[:, other]) / 2)
        mean = (entropies[:, one] + entropies[:, other]) / 2
        each = (middle.sum(-1) - mean).clamp_min(0)
        total = total + _root(each, distance).sum(1)
    return total / (n * (n - 1) / 2 if denominator == OF_PAIRS else n)


def _root(divergence, distance):
    """The root of divergences, if distances are wanted."""
    return (divergence + TINY).sqrt() if distance else divergence


def between_classes(gates, classes):
    """Computes how much the mean gates of classes differ: a scalar, nats.

    The `spread` of the means of all classes: 0 where gates are constant, the
    trivial minimum of `class_alignment`.

    Example
    -------
    >>> gates, classes = torch.tensor([[1.0], [1.0], [0.0]]), [0, 0, 1]
    >>> between_classes(gates, torch.tensor(classes))
    tensor(0.6931)
    """
    means = [group.mean(1) for group in by_class(gates, classes)]
    if not means:
        return gates.new_zeros(())
    return spread(torch.cat(means)).sum()
