"""Smooth-InfoNCE: L = NCE + beta * KL(posterior || N(0, I)), per module.

One equation, one function: `info_nce` and `gaussian_kl` are pure,
`draw_window` and `draw_negatives` make their random choices, and
`SmoothInfoNCE` adds them up as in equation 7 of the paper.

Reference: Denoodt, de Boer, Oramas: Smooth InfoMax (2025), section 3.2,
https://arxiv.org/abs/2408.12936
"""

from typing import NamedTuple

import torch
from torch import nn
from torch.autograd.function import once_differentiable

from speechbrain_sim.encoders import zero_padding


class Choices(NamedTuple):
    """What is scored: a window, and the negatives of each of its frames.

    `start` and `frames` give the window, the same for the whole batch;
    `negatives`, (batch, frames, N), indexes the (batch * time) sequence.
    """

    start: int
    frames: int
    negatives: torch.Tensor


class NCE(NamedTuple):
    """Contrastive loss (nats) and the share of positives that scored highest."""

    loss: torch.Tensor
    accuracy: torch.Tensor


def draw_window(longest, window, generator=None):
    """Draws where the scored window begins, the same for a whole batch.

    Arguments
    ---------
    longest : int
        Frames of the longest utterance in the batch.
    window : int
        Frames of the window.
    generator : torch.Generator, optional
        On the CPU.

    Returns
    -------
    start, frames : (int, int)
        The window is `start : start + frames`; the whole utterance if that is
        not longer than the window.

    Example
    -------
    >>> draw_window(64, 128)
    (0, 64)
    """
    if longest <= window:
        return 0, longest
    start = torch.randint(longest - window + 1, (), generator=generator)
    return int(start), window


def draw_negatives(
    lengths, time, frames, negatives, own_negatives=0, generator=None
):
    """Draws the negatives of each scored frame, never from the padding.

    Negatives are i.i.d. uniform over all valid frames of the batch, so one of
    them may be the positive itself. The last `own_negatives` of them are
    uniform over the frame's own utterance instead: they ask for content, where
    the others can be told apart by speaker.

    Arguments
    ---------
    lengths : torch.Tensor
        Valid frames per utterance, (batch,).
    time : int
        Padded frames of the sequence that is indexed.
    frames : int
        Frames of the scored window.
    negatives : int
        How many per frame, N.
    own_negatives : int
        How many of these from the frame's own utterance.
    generator : torch.Generator, optional
        On the CPU.

    Returns
    -------
    torch.Tensor
        (batch, frames, N), int64: indices into the (batch * time) sequence.

    Example
    -------
    >>> draw_negatives(torch.tensor([5, 3]), 5, 4, 10).shape
    torch.Size([2, 4, 10])
    """
    if not 0 <= own_negatives <= negatives:
        raise ValueError(
            f"own_negatives is {own_negatives}; it must be 0..{negatives}, the "
            f"number of negatives."
        )
    counts = lengths.cpu()
    batch = len(counts)
    ends = counts.cumsum(0)
    shape = (batch, frames, negatives - own_negatives)
    position = torch.randint(int(ends[-1]), shape, generator=generator)
    row = torch.searchsorted(ends, position, right=True)
    drawn = [row * time + position - (ends - counts)[row]]
    if own_negatives:
        uniform = torch.rand(
            (batch, frames, own_negatives),
            generator=generator,
            dtype=torch.float64,
        )
        position = (uniform * counts[:, None, None]).long()
        drawn.append(torch.arange(batch)[:, None, None] * time + position)
    return torch.cat(drawn, dim=-1).to(lengths.device)


def info_nce(predicted, z, lengths, start, negatives):
    """Scores each predicted frame against its positive and its negatives.

    f_k(t, j) = z_j . W_k c_t, and the loss is the cross-entropy of j = t + k
    among itself and the negatives (the paper's equation 3), averaged over the
    valid frames t for each k, then over k. c and the positives stay inside the
    window; a frame whose positive lies beyond its utterance counts nowhere.

    Arguments
    ---------
    predicted : torch.Tensor
        W_k c_t for the window, (batch, frames, K, channel).
    z : torch.Tensor
        The full sequence, (batch, time, channel).
    lengths : torch.Tensor
        Valid frames of `z`, (batch,).
    start : int
        First frame of the window.
    negatives : torch.Tensor
        Indices into the (batch * time) sequence, (batch, frames, N).

    Returns
    -------
    NCE

    Raises
    ------
    ValueError
        If no utterance has a frame and its successor inside the window.
    """
    frames, steps = predicted.shape[1:3]
    scores = _Scores.apply(predicted, z.to(predicted.dtype), start, negatives)
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32))

    ahead = torch.arange(1, steps + 1, device=z.device)
    last = (lengths - start).clamp(0, frames)[:, None] - ahead  # (batch, K)
    valid = torch.arange(frames, device=z.device)[:, None] < last[:, None]
    counts = valid.sum((0, 1))  # pairs of each k
    if counts.max() == 0:
        raise ValueError(
            f"No frame has a successor inside the scored window "
            f"{start}..{start + frames - 1}: the utterances have "
            f"{lengths.tolist()} frames."
        )
    loss = scores.logsumexp(-1) - scores[..., 0]
    # a negative that is the positive itself does not count as a mistake
    row = torch.arange(len(z), device=z.device)[:, None, None] * z.shape[1]
    at = row + start + torch.arange(frames, device=z.device)[:, None] + ahead
    own = negatives[:, :, None] == at[..., None]  # (batch, frames, K, N)
    with torch.no_grad():
        rival = scores[..., 1:].masked_fill(own, -torch.inf).amax(-1)
        correct = (scores[..., 0] > rival).to(loss.dtype)

    def mean(values):
        per_step = values.masked_fill(~valid, 0).sum((0, 1))
        return (per_step / counts.clamp(min=1)).sum() / (counts > 0).sum()

    return NCE(mean(loss), mean(correct))


class _Scores(torch.autograd.Function):
    """z_{t+k} . W_k c_t, then z_j . W_k c_t for each negative j.

    (batch, frames, K, 1 + N); the positives beyond the window are left zero.
    All k share one copy of the negatives, made again for the gradient, and all
    gradients are summed in place.
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
            grad_predicted[:, :-k, k - 1].addcmul_(
                grad_positive[:, :-k, k - 1], window[:, k:]
            )
        if not ctx.needs_input_grad[1]:
            return grad_predicted, None, None, None
        grad_candidates = grad_negative.transpose(-1, -2) @ predicted
        grad_z = torch.zeros_like(z)
        grad_z.flatten(0, 1).index_add_(
            0, negatives.flatten(), grad_candidates.flatten(0, 2)
        )
        grad_window = grad_z[:, ctx.start : ctx.start + frames]
        for k in positives:
            grad_window[:, k:].addcmul_(
                grad_positive[:, :-k, k - 1], predicted[:, :-k, k - 1]
            )
        return grad_predicted, grad_z, None, None


def _gather(z, indices):
    """Rows of the (batch * time) sequence: (*indices.shape, channel)."""
    rows = z.flatten(0, 1).index_select(0, indices.flatten())
    return rows.unflatten(0, indices.shape)


def kl_per_channel(mean, log_var, lengths):
    """KL divergence from N(mean, exp(log_var)) to N(0, 1) of each channel.

    1/2 (-log sigma^2 - 1 + sigma^2 + mu^2), averaged over the valid frames.

    Arguments
    ---------
    mean, log_var : torch.Tensor
        (batch, time, channel).
    lengths : torch.Tensor
        Valid frames, (batch,).

    Returns
    -------
    torch.Tensor
        (channel,), nats per frame.
    """
    dtype = torch.promote_types(mean.dtype, torch.float32)
    mean = zero_padding(mean.to(dtype), lengths)
    log_var = zero_padding(log_var.to(dtype), lengths)
    twice = torch.addcmul(torch.expm1(log_var) - log_var, mean, mean)
    return twice.sum((0, 1)) / (2 * lengths.sum())


def reduce_kl(per_channel, lengths, reduction):
    """Brings the KL of each channel to the scalar that beta multiplies.

    Arguments
    ---------
    per_channel : torch.Tensor
        (channel,), nats per frame, from `kl_per_channel`.
    lengths : torch.Tensor
        Valid frames, (batch,).
    reduction : str
        "channel": sum over channels, mean over all valid frames (the paper's
        equation). "time": sum over each utterance's frames, mean over
        utterances and channels (the authors' release; its beta so depends on
        clip length and width).

    Returns
    -------
    torch.Tensor
        A scalar.

    Raises
    ------
    ValueError
        If the reduction is neither.
    """
    if reduction == "channel":
        return per_channel.sum()
    if reduction == "time":
        return per_channel.mean() * lengths.sum() / len(lengths)
    raise ValueError(
        f"kl_reduction is '{reduction}'; it must be 'channel' or 'time'."
    )


def gaussian_kl(mean, log_var, lengths, reduction="channel"):
    """KL divergence from N(mean, exp(log_var)) to N(0, I), over valid frames.

    Arguments
    ---------
    mean, log_var : torch.Tensor
        (batch, time, channel).
    lengths : torch.Tensor
        Valid frames, (batch,).
    reduction : str
        "channel" or "time", see `reduce_kl`.

    Returns
    -------
    torch.Tensor
        A scalar, in nats.

    Example
    -------
    >>> zeros, lengths = torch.zeros(2, 5, 3), torch.tensor([5, 2])
    >>> gaussian_kl(zeros, zeros, lengths)
    tensor(0.)
    >>> gaussian_kl(zeros + 1, zeros, lengths)
    tensor(1.5000)
    """
    return reduce_kl(kl_per_channel(mean, log_var, lengths), lengths, reduction)


def active_units(mean, lengths, threshold=0.01):
    """Counts the channels whose mean varies over the valid frames of a batch.

    Arguments
    ---------
    mean : torch.Tensor
        (batch, time, channel).
    lengths : torch.Tensor
        Valid frames, (batch,).
    threshold : float
        Least variance of an active unit (Burda et al. 2016, section 5).

    Returns
    -------
    torch.Tensor
        A scalar between 0 and the number of channels.

    Example
    -------
    >>> mean = torch.stack([torch.zeros(50), torch.randn(50)], dim=-1)
    >>> active_units(mean[None], torch.tensor([50]))
    tensor(1.)
    """
    mean, total = mean.float(), lengths.sum()
    center = zero_padding(mean, lengths).sum((0, 1)) / total
    squares = (mean - center).square_()  # torch.var is slow over the first axis
    variance = zero_padding(squares, lengths).sum((0, 1)) / total
    return (variance > threshold).sum().float()


class SmoothInfoNCE(nn.Module):
    """The objective of one greedily trained module.

    L = NCE(c, z) + sum_l beta_l * KL(posterior_l || N(0, I))   (equation 7)

    A module trained greedily has one posterior; a stack trained end to end has
    one at every depth; a deterministic one has none.

    Arguments
    ---------
    z_channels, c_channels : int
        Channels of the predicted latents z and of the predictor's input c.
    prediction_steps : int
        K, how many frames ahead are predicted; one matrix W_k for each.
    negatives : int
        N, negatives of each frame.
    own_negatives : int
        How many of these are drawn from the same utterance.
    window : int
        Longest window of scored frames; negatives come from everywhere.
    kl_reduction : str
        "channel" or "time", see `gaussian_kl`.

    Example
    -------
    >>> from speechbrain_sim.encoders import Latent
    >>> objective = SmoothInfoNCE(z_channels=8, c_channels=8)
    >>> lengths = torch.tensor([64, 40])
    >>> mean, log_var = torch.randn(2, 64, 8), torch.zeros(2, 64, 8)
    >>> z = Latent(mean, log_var, mean, lengths, False)
    >>> drawn = objective.draw(lengths, time=64)
    >>> c = z.window(drawn.start, drawn.frames)
    >>> loss = objective([(c.draw(), z.draw())], lengths, drawn, [(z, 0.01)])
    >>> loss.total.ndim, loss.kl[0].shape
    (0, torch.Size([8]))
    """

    def __init__(
        self,
        z_channels,
        c_channels,
        prediction_steps=10,
        negatives=10,
        own_negatives=0,
        window=128,
        kl_reduction="time",
    ):
        super().__init__()
        if window < 2:
            raise ValueError(
                f"window is {window}; it must be 2 or more frames."
            )
        self.prediction_steps = prediction_steps
        self.negatives = negatives
        self.own_negatives = own_negatives
        self.window = window
        self.kl_reduction = kl_reduction
        # W_1 .. W_K, one below the other
        self.predictor = nn.Linear(
            c_channels, prediction_steps * z_channels, bias=False
        )

    def draw(self, lengths, time, generator=None):
        """Makes the random choices of a step.

        Arguments
        ---------
        lengths : torch.Tensor
            Valid frames, (batch,).
        time : int
            Padded frames.
        generator : torch.Generator, optional
            On the CPU.

        Returns
        -------
        Choices
        """
        start, frames = draw_window(int(lengths.max()), self.window, generator)
        negatives = draw_negatives(
            lengths,
            time,
            frames,
            self.negatives,
            self.own_negatives,
            generator,
        )
        return Choices(start, frames, negatives)

    def forward(self, pairs, lengths, choices, posteriors=()):
        """Adds the terms up.

        Arguments
        ---------
        pairs : list of (torch.Tensor, torch.Tensor)
            L Monte-Carlo draws of c inside the window, (batch, frames,
            channel), and z, (batch, time, channel); the NCE is their mean.
        lengths : torch.Tensor
            Valid frames, (batch,).
        choices : Choices
            From `draw`, shared by all L draws.
        posteriors : list of (Latent, float)
            What the KL regularises, with its weight beta.

        Returns
        -------
        SmoothInfoNCELoss
        """
        draws = []
        for c, z in pairs:
            predicted = self.predictor(c)
            predicted = predicted.unflatten(-1, (self.prediction_steps, -1))
            draws.append(
                info_nce(
                    predicted, z, lengths, choices.start, choices.negatives
                )
            )
        nce = sum(draw.loss for draw in draws) / len(draws)
        accuracy = sum(draw.accuracy for draw in draws) / len(draws)
        total, kl = nce, []
        for latent, kl_weight in posteriors:
            per_channel = kl_per_channel(
                latent.mean, latent.log_var, latent.lengths
            )
            total = total + kl_weight * reduce_kl(
                per_channel, latent.lengths, self.kl_reduction
            )
            kl.append(per_channel.detach())
        return SmoothInfoNCELoss(total, nce, kl, accuracy)


class SmoothInfoNCELoss(NamedTuple):
    """The sum (with a gradient) and its terms.

    `nce` is in nats, `kl` holds the KL of each posterior per channel in nats
    per frame, whatever the reduction, and `accuracy` is the share of positives
    that scored above all their negatives.
    """

    total: torch.Tensor
    nce: torch.Tensor
    kl: list
    accuracy: torch.Tensor
