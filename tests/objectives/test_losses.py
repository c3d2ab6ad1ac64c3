"""Smooth-InfoNCE against loops, then its properties."""

import math

import pytest
import torch

from speechbrain_sim.encoders.base import Latent
from speechbrain_sim.family import build_model
from speechbrain_sim.objectives.greedy import SmoothInfoNCE
from speechbrain_sim.objectives.info_nce import (
    draw_negatives,
    draw_window,
    info_nce,
)
from speechbrain_sim.objectives.kl import (
    active_units,
    kl_per_channel,
    reduce_kl,
)
from speechbrain_sim.objectives.supervised import SupervisedModule
from tests.reference.smooth_info_nce import slow_info_nce, slow_kl


def pairs_of(indices, time):
    return [
        [[list(divmod(int(i), time)) for i in frame] for frame in row]
        for row in indices
    ]


@pytest.mark.parametrize(
    "lengths, start, frames",
    [
        ([9, 9, 9], 0, 9),
        ([9, 4, 1], 0, 9),
        ([9, 6, 3], 2, 5),
        ([9, 2, 2], 3, 6),  # rows without any pair contribute nothing
        ([3, 2, 1], 0, 3),  # no pair at all for the largest k
    ],
)
def test_info_nce_equals_loops(lengths, start, frames):
    torch.manual_seed(len(lengths) + start)
    steps, channels, c_channels, time = 4, 5, 3, 9
    z = torch.randn(3, time, channels, dtype=torch.float64)
    c = torch.randn(3, time, c_channels, dtype=torch.float64)
    weights = torch.randn(steps, channels, c_channels, dtype=torch.float64)
    lengths = torch.tensor(lengths)
    negatives = draw_negatives(lengths, time, frames, 6)
    predicted = torch.einsum(
        "kdc,btc->btkd", weights, c[:, start : start + frames]
    )
    fast = info_nce(predicted, z, lengths, start, negatives)
    loss, accuracy = slow_info_nce(
        weights, c, z, lengths, start, frames, pairs_of(negatives, time)
    )
    assert fast.loss.item() == pytest.approx(loss, abs=1e-9)
    assert fast.accuracy.item() == pytest.approx(accuracy, abs=1e-9)


@pytest.mark.parametrize(
    "lengths, start, frames", [([9, 9, 9], 0, 9), ([9, 6, 3], 2, 5)]
)
def test_gradients_of_the_scores_are_those_of_differences(
    lengths, start, frames
):
    torch.manual_seed(0)
    lengths = torch.tensor(lengths)
    z = torch.randn(3, 9, 4, dtype=torch.float64, requires_grad=True)
    predicted = torch.randn(3, frames, 6, 4, dtype=torch.float64)
    negatives = draw_negatives(lengths, 9, frames, 5)
    torch.autograd.gradcheck(
        lambda p, z: info_nce(p, z, lengths, start, negatives).loss,
        (predicted.requires_grad_(), z),
    )


def gaussian_kl(mean, log_var, lengths, reduction):
    return reduce_kl(kl_per_channel(mean, log_var, lengths), lengths, reduction)


@pytest.mark.parametrize("reduction", ["channel", "time"])
def test_kl_equals_loops_and_torch(reduction):
    torch.manual_seed(0)
    mean = torch.randn(3, 7, 4, dtype=torch.float64)
    log_var = torch.randn(3, 7, 4, dtype=torch.float64)
    lengths = torch.tensor([7, 4, 1])
    fast = gaussian_kl(mean, log_var, lengths, reduction).item()
    slow = slow_kl(mean, log_var, lengths, reduction)
    assert fast == pytest.approx(slow, abs=1e-9)
    full = torch.tensor([7, 7, 7])
    posterior = torch.distributions.Normal(mean, (0.5 * log_var).exp())
    prior = torch.distributions.Normal(0.0, 1.0)
    kl = torch.distributions.kl_divergence(posterior, prior)
    expected = kl.sum(-1).mean() if reduction == "channel" else kl.sum(1).mean()
    got = gaussian_kl(mean, log_var, full, reduction)
    assert got.item() == pytest.approx(expected.item(), abs=1e-9)


def test_release_reduction_is_frames_over_channels_times_the_paper():
    mean, log_var = torch.randn(2, 64, 512), torch.randn(2, 64, 512)
    lengths = torch.tensor([64, 64])
    paper = gaussian_kl(mean, log_var, lengths, "channel")
    release = gaussian_kl(mean, log_var, lengths, "time")
    assert release / paper == pytest.approx(0.125, rel=1e-4)


@pytest.mark.parametrize("padding", [0.0, 1e3])
def test_padding_changes_no_term(padding):
    torch.manual_seed(1)
    lengths = torch.tensor([30, 20])
    mean, log_var = torch.randn(2, 30, 6), torch.randn(2, 30, 6)
    objective = SmoothInfoNCE(6, 6, prediction_steps=3)

    def score(pad):
        padded_mean = torch.nn.functional.pad(mean, (0, 0, 0, pad))
        padded_var = torch.nn.functional.pad(log_var, (0, 0, 0, pad))
        for row, length in enumerate(lengths):
            padded_mean[row, length:] = padding
            padded_var[row, length:] = padding
        z = Latent(padded_mean, padded_var, padded_mean, lengths, False)
        generator = torch.Generator().manual_seed(3)
        drawn = objective.draw(lengths, padded_mean.shape[1], generator)
        c = z.window(drawn.start, drawn.frames).mean
        return objective([(c, padded_mean)], lengths, drawn, [(z, 0.1)])

    tight, loose = score(0), score(12)
    assert loose.nce.item() == pytest.approx(tight.nce.item(), rel=1e-5)
    assert torch.allclose(loose.kl[0], tight.kl[0], rtol=1e-5)
    assert loose.total.item() == pytest.approx(tight.total.item(), rel=1e-5)


def test_perfect_scores_best_and_noise_at_chance():
    torch.manual_seed(0)
    time, channels, steps = 200, 32, 2
    z = torch.randn(4, time, channels)
    lengths = torch.full((4,), time)
    negatives = draw_negatives(lengths, time, time, 10)
    ahead = [torch.roll(z, -k, dims=1) for k in range(1, steps + 1)]
    perfect = 100 * torch.stack(ahead, dim=2)
    best = info_nce(perfect, z, lengths, 0, negatives)
    # a negative may be the positive itself: 1 in batch * time, 10 times
    assert best.loss < 0.02 and best.accuracy > 0.98
    silent = info_nce(0 * perfect, z, lengths, 0, negatives)
    assert silent.loss.item() == pytest.approx(math.log(11), rel=1e-5)
    noise = info_nce(torch.randn_like(perfect), z, lengths, 0, negatives)
    assert noise.loss > math.log(11)
    assert noise.accuracy.item() == pytest.approx(1 / 11, abs=0.03)


def test_negatives_are_uniform_over_valid_frames():
    lengths, time = torch.tensor([6, 1, 3]), 8
    drawn = draw_negatives(lengths, time, 100, 300).flatten()
    counts = torch.bincount(drawn, minlength=3 * time).reshape(3, time)
    valid = torch.arange(time) < lengths[:, None]
    assert (counts[~valid] == 0).all()
    share = counts[valid] / drawn.numel()
    assert torch.allclose(share, torch.full((10,), 0.1), atol=0.005)


def test_negatives_within_an_utterance_stay_in_their_utterance():
    lengths, time = torch.tensor([6, 1, 3]), 8
    drawn = draw_negatives(lengths, time, 50, 10, within=4)
    rows, frames = drawn // time, drawn % time
    assert (rows[..., 6:] == torch.arange(3)[:, None, None]).all()
    assert (frames < lengths[rows]).all()
    assert (rows[..., :6] != torch.arange(3)[:, None, None]).any()
    with pytest.raises(ValueError, match="within_utterance_negatives is 11"):
        draw_negatives(lengths, time, 50, 10, within=11)


def test_window_covers_every_start():
    starts = {draw_window(131, 128)[0] for _ in range(200)}
    assert starts == {0, 1, 2, 3}


def test_no_pair_names_the_lengths():
    z = torch.randn(2, 4, 3)
    lengths = torch.tensor([1, 1])
    negatives = draw_negatives(lengths, 4, 1, 2)
    with pytest.raises(ValueError, match=r"\[1, 1\]"):
        info_nce(torch.randn(2, 1, 2, 3), z, lengths, 0, negatives)


def test_unknown_reduction_names_the_two():
    x = torch.zeros(1, 2, 3)
    with pytest.raises(ValueError, match="'channel' or 'time'"):
        gaussian_kl(x, x, torch.tensor([2]), "sum")


def test_gradient_descent_lowers_the_loss():
    torch.manual_seed(0)
    steps = torch.randn(4, 60, 8).cumsum(1) / 5  # slow features
    mean = steps.requires_grad_()
    lengths = torch.full((4,), 60)
    objective = SmoothInfoNCE(8, 8, prediction_steps=3)
    optimizer = torch.optim.Adam([mean, *objective.parameters()], lr=1e-2)
    history = []
    for _ in range(40):
        drawn = objective.draw(lengths, 60)
        loss = objective([(mean, mean)], lengths, drawn).total
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        history.append(loss.item())
    assert sum(history[-5:]) < 0.7 * sum(history[:5])


def test_active_units_ignore_padding():
    mean = torch.zeros(1, 20, 3)
    mean[0, :10, 0] = torch.randn(10)
    mean[0, 10:] = torch.randn(10, 3)
    assert active_units(mean, torch.tensor([10])) == 1


def test_labels_per_frame_are_scored_in_double_precision():
    """No step in between is rounded: equal to cross-entropy, written out."""
    torch.manual_seed(0)
    layers = build_model("gim", channels=4, context_channels=0).encoder.layers
    module = SupervisedModule("all", layers, 4, 3, (160, 200.0)).double()
    x, targets = torch.randn(2, 10, 4).double(), torch.randint(3, (2, 10))
    latent = Latent(x, None, x, torch.tensor([10, 7]))
    loss, _ = module.objective({"top": latent}, None, None, None, targets)
    scores = x @ module.classifier.weight.T + module.classifier.bias
    shares = (scores.exp() / scores.exp().sum(-1, keepdim=True)).log()
    picked = [
        shares[row, frame, targets[row, frame]]
        for row, frames in ((0, 10), (1, 7))
        for frame in range(frames)
    ]
    torch.testing.assert_close(loss, -sum(picked) / 17, rtol=1e-14, atol=0)
