"""Smooth-InfoNCE by loops over batch, time, step and candidate."""

import math


def slow_info_nce(weights, c, z, lengths, start, frames, negatives):
    """weights[k-1] is W_k (z_channels, c_channels); everything in float64.

    negatives[b][t] holds N pairs (row, frame). Returns loss, accuracy.
    """
    losses, hits = [], []
    for k in range(1, len(weights) + 1):
        step_losses, step_hits = [], []
        for b in range(len(z)):
            end = min(start + frames, int(lengths[b]))
            for t in range(start, end):
                if t + k >= end:
                    continue
                predicted = weights[k - 1] @ c[b, t]
                positive = float(z[b, t + k] @ predicted)
                others = [
                    float(z[row, frame] @ predicted)
                    for row, frame in negatives[b][t - start]
                ]
                scores = [positive, *others]
                top = max(scores)
                total = sum(math.exp(score - top) for score in scores)
                step_losses.append(top + math.log(total) - positive)
                rivals = [
                    score
                    for score, at in zip(
                        others, negatives[b][t - start], strict=True
                    )
                    if at != [b, t + k]
                ]
                step_hits.append(all(positive > score for score in rivals))
        if step_losses:
            losses.append(sum(step_losses) / len(step_losses))
            hits.append(sum(step_hits) / len(step_hits))
    return sum(losses) / len(losses), sum(hits) / len(hits)


def slow_kl(mean, log_var, lengths, reduction):
    """Equation of section 3.2.1, one frame and one channel at a time."""
    batch, _, channels = mean.shape
    total, frames = 0.0, 0
    for b in range(batch):
        for t in range(int(lengths[b])):
            frames += 1
            for d in range(channels):
                variance = math.exp(float(log_var[b, t, d]))
                total += 0.5 * (
                    -math.log(variance)
                    - 1
                    + variance
                    + float(mean[b, t, d]) ** 2
                )
    return (
        total / frames if reduction == "channel" else total / batch / channels
    )
