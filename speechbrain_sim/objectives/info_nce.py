"""The contrastive term of Smooth-InfoNCE, pure, and its random choices.

Reference: Denoodt, de Boer, Oramas: Smooth InfoMax (2025), section 3.2,
https://arxiv.org/abs/2408.12936
"""

from typing import NamedTuple

import torch
from torch import nn
from torch.autograd.function import once_differentiable

from speechbrain_sim.encoders.base import to_device


class Choices(NamedTuple):
    """What is scored: a window of the batch, and negatives of its frames.

    `negatives`, (batch, frames, N), indexes the (batch * time) sequence.
    """

    start: int
    frames: int
    negatives: torch.Tensor


class NCE(NamedTuple):
    """Contrastive loss (nats) and the share of positives that scored highest."""

    loss: torch.Tensor
    accuracy: torch.Tensor


def draw_window(longest, window_frames, generator=None):
    """Draws start and frames of the scored window, the same for a batch.

    It is the whole of the longest utterance if that fits `window_frames`.
    """
    if longest <= window_frames:
        return 0, longest
    starts = longest - window_frames + 1
    start = torch.randint(starts, (), generator=generator)
    return int(start), window_frames


def draw_negatives(
    lengths, time, frames, num_negatives, within=0, generator=None
):
    """Draws the negatives of each scored frame, never from the padding.

    They are i.i.d. uniform over all valid frames of the batch, so one of them
    may be the positive itself; the last `within` of the `num_negatives` are
    uniform over the frame's own utterance instead.

    Arguments
    ---------
    lengths : torch.Tensor
        Valid frames per utterance, (batch,).
    time, frames : int
        Padded frames of the sequence that is indexed, and of the window.
    generator : torch.Generator, optional
        On the CPU.

    Returns
    -------
    torch.Tensor
        (batch, frames, N), int64, on the CPU: indices into the (batch * time)
        sequence.

    Example
    -------
    >>> draw_negatives(torch.tensor([5, 3]), 5, 4, 10).shape
    torch.Size([2, 4, 10])
    """
    if not 0 <= within <= num_negatives:
        raise ValueError(
            f"within_utterance_negatives is {within}; it must be "
            f"0..{num_negatives}, the number of negatives."
        )
    counts = lengths.cpu()
    ends = counts.cumsum(0)
    shape = (len(counts), frames, num_negatives - within)
    position = torch.randint(int(ends[-1]), shape, generator=generator)
    drawn = [position]
    if counts.min() < time:  # else no padding has to be stepped over
        row = torch.searchsorted(ends, position, right=True)
        drawn = [row * time + position - (ends - counts)[row]]
    if within:
        shape, dtype = (len(counts), frames, within), torch.float64
        uniform = torch.rand(shape, generator=generator, dtype=dtype)
        position = (uniform * counts[:, None, None]).long()
        drawn.append(torch.arange(len(counts))[:, None, None] * time + position)
    return torch.cat(drawn, dim=-1)


def info_nce(predicted, z, lengths, start, negatives):
    """Scores each predicted frame against its positive and its negatives.

    f_k(t, j) = z_j . W_k c_t, and the loss is the cross-entropy of j = t + k
    among itself and the negatives (the paper's equation 3), averaged over the
    valid frames t for each k, then over k. c and the positives stay inside the
    window, and inside the utterance; a ValueError if there is no such pair.

    Arguments
    ---------
    predicted : torch.Tensor
        W_k c_t for the window, (batch, frames, K, channel).
    z, lengths : torch.Tensor
        The full sequence, (batch, time, channel); its valid frames, (batch,).
    start, negatives :
        See `Choices`.

    Returns
    -------
    NCE
    """
    frames, steps = predicted.shape[1:3]
    ahead = torch.arange(1, steps + 1, device=z.device)
    row = torch.arange(len(z), device=z.device)[:, None, None] * z.shape[1]
    at = start + torch.arange(frames, device=z.device)[:, None] + ahead
    same = z.to(predicted.dtype)
    if z.device.type == "cpu":
        scores = _Scores.apply(predicted, same, start, negatives)
    else:
        inside = row + at.clamp(max=z.shape[1] - 1)
        scores = scores_in_one_product(predicted, same, inside, negatives)
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32))

    last = (lengths.cpu() - start).clamp(0, frames)[:, None]
    last = (last - torch.arange(1, steps + 1)).clamp(min=0)  # (batch, K)
    counts = last.sum(0)  # pairs of each k
    if counts.max() == 0:
        raise ValueError(
            f"No frame of the window {start}..{start + frames - 1} has a "
            f"successor: the utterances have {lengths.tolist()} frames."
        )
    counted, counts = (counts > 0).sum(), to_device(counts, z.device)
    last = to_device(last, z.device)[:, None]
    valid = torch.arange(frames, device=z.device)[:, None] < last
    loss = scores.logsumexp(-1) - scores[..., 0]
    # a negative that is the positive itself does not count as a mistake
    own = negatives[:, :, None] == (row + at)[..., None]
    with torch.no_grad():
        rival = scores[..., 1:].masked_fill(own, -torch.inf).amax(-1)
        correct = (scores[..., 0] > rival).to(loss.dtype)

    def mean(values):
        per_step = values.masked_fill(~valid, 0).sum((0, 1))
        return (per_step / counts.clamp(min=1)).sum() / counted

    return NCE(mean(loss), mean(correct))


def scores_in_one_product(predicted, z, positives, negatives):
    """As `_Scores`, in few calls: a GPU waits for each longer than it computes.

    `positives` indexes the (batch * time) sequence, (batch, frames, K).
    """
    steps, count = predicted.shape[2], negatives.shape[-1]
    indices = torch.cat([positives, negatives], dim=-1)
    # some twice: products are fast for multiples of 8
    indices = torch.cat([indices, indices[..., : -(steps + count) % 8]], -1)
    # index_select adds its gradients one by one
    candidates = nn.functional.embedding(indices, z.flatten(0, 1))
    scores = predicted @ candidates.transpose(-1, -2)
    positive = scores[..., :steps].diagonal(dim1=-2, dim2=-1)
    negative = scores[..., steps : steps + count]
    return torch.cat([positive[..., None], negative], dim=-1)


class _Scores(torch.autograd.Function):
    """z_{t+k} . W_k c_t, then z_j . W_k c_t for each negative j.

    (batch, frames, K, 1 + N), zero for positives beyond the window. All k share
    one copy of the negatives, made again for the gradient.
    """

    @staticmethod
    def forward(ctx, predicted, z, start, negatives):
        ctx.save_for_backward(predicted, z, negatives)
        ctx.start = start
        batch, frames, steps, _ = predicted.shape
        window = z[:, start : start + frames]
        scores = z.new_zeros(batch, frames, steps, 1 + negatives.shape[-1])
        for k in range(1, min(steps, frames - 1) + 1):
            product = predicted[:, :-k, k - 1] * window[:, k:]
            scores[:, :-k, k - 1, 0] = product.sum(-1)
        candidates = _gather(z, negatives)
        scores[..., 1:] = predicted @ candidates.transpose(-1, -2)
        return scores

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        predicted, z, negatives = ctx.saved_tensors
        frames, steps = predicted.shape[1:3]
        grad_positive, grad_negative = grad[..., :1], grad[..., 1:]
        grad_predicted = grad_negative @ _gather(z, negatives)
        positives = range(1, min(steps, frames - 1) + 1)
        window = z[:, ctx.start : ctx.start + frames]
        for k in positives:
            grad_k = grad_positive[:, :-k, k - 1]
            grad_predicted[:, :-k, k - 1].addcmul_(grad_k, window[:, k:])
        if not ctx.needs_input_grad[1]:
            return grad_predicted, None, None, None
        grad_candidates = grad_negative.transpose(-1, -2) @ predicted
        grad_z = torch.zeros_like(z)
        drawn = negatives.flatten(), grad_candidates.flatten(0, 2)
        grad_z.flatten(0, 1).index_add_(0, *drawn)
        grad_window = grad_z[:, ctx.start : ctx.start + frames]
        for k in positives:
            grad_k = grad_positive[:, :-k, k - 1]
            grad_window[:, k:].addcmul_(grad_k, predicted[:, :-k, k - 1])
        return grad_predicted, grad_z, None, None


def _gather(z, indices):
    """Rows of the (batch * time) sequence: (*indices.shape, channel)."""
    rows = z.flatten(0, 1).index_select(0, indices.flatten())
    return rows.unflatten(0, indices.shape)
