"""The KL term of Smooth-InfoNCE, pure, and the count of active units."""

import torch

from speechbrain_sim.encoders.base import zero_padding


def kl_per_channel(mean, log_var, lengths):
    """KL divergence from N(mean, exp(log_var)) to N(0, 1), nats per frame.

    1/2 (-log sigma^2 - 1 + sigma^2 + mu^2), averaged over the valid frames:
    (batch, time, channel) -> (channel,).

    Example
    -------
    >>> zeros, lengths = torch.zeros(2, 5, 3), torch.tensor([5, 2])
    >>> kl_per_channel(zeros + 1, zeros, lengths)
    tensor([0.5000, 0.5000, 0.5000])
    """
    dtype = torch.promote_types(mean.dtype, torch.float32)
    mean = zero_padding(mean.to(dtype), lengths)
    log_var = zero_padding(log_var.to(dtype), lengths)
    twice = torch.addcmul(torch.expm1(log_var) - log_var, mean, mean)
    return twice.sum((0, 1)) / (2 * lengths.sum())


def reduce_kl(per_channel, lengths, reduction):
    """Reduces the KL of each channel to the scalar that beta multiplies.

    `reduction` is "channel": sum over channels, mean over all valid frames (the
    paper's equation); or "time": sum over each utterance's frames, mean over
    utterances and channels (the authors' release).
    """
    if reduction == "channel":
        return per_channel.sum()
    if reduction == "time":
        return per_channel.mean() * lengths.sum() / len(lengths)
    raise ValueError(
        f"kl_reduction is '{reduction}'; it must be 'channel' or 'time'."
    )


#: least variance of an active unit (Burda et al. 2016, section 5)
ACTIVE = 0.01


def active_units(mean, lengths):
    """Counts the channels whose mean varies over the valid frames of a batch."""
    mean, total = mean.float(), lengths.sum()
    center = zero_padding(mean, lengths).sum((0, 1)) / total
    squares = (mean - center).square_()  # torch.var is slow over the first axis
    variance = zero_padding(squares, lengths).sum((0, 1)) / total
    return (variance > ACTIVE).sum().float()
