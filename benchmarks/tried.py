"""What else a SIM step was tried with: parts of 8 x 10,240, in alternating pairs.

    python -m benchmarks.tried

Each pair computes the same, forward and backward, as the step does and in another
way; both are checked against each other. CPU seconds of one thread, since that is
what a busy machine leaves comparable.
"""

import argparse

import torch
from torch import nn
from torch.autograd import Function

from benchmarks.measure import in_turn, quotient
from speechbrain_sim.encoders.block_conv import BlockConv1d
from speechbrain_sim.objectives.kl import kl_per_channel
from speechbrain_sim.report.tables import markdown_table

BATCH, CHANNELS, CONTEXT = 8, 512, 256
#: frames of module 1, and of the context
LONG, SHORT = 511, 64


class Recurrence(Function):
    """The hidden half of a GRU, with one product for its weights' gradient.

    Time first: what the input gives the gates, (time, batch, 3 * hidden), ->
    states, (time, batch, hidden). r, u, n are reset, update and new gate.
    """

    @staticmethod
    def forward(ctx, gates, weight, bias):
        """The states of all steps."""
        time, batch, size = *gates.shape[:2], weight.shape[1]
        states = gates.new_zeros(time + 1, batch, size)
        ru = gates.new_empty(time, batch, 2 * size)
        new, own = (gates.new_empty(time, batch, size) for _ in range(2))
        for t in range(time):
            hidden = torch.addmm(bias, states[t], weight.t())
            torch.add(gates[t, :, : 2 * size], hidden[:, : 2 * size], out=ru[t])
            ru[t].sigmoid_()
            own[t] = hidden[:, 2 * size :]
            r, u = ru[t].chunk(2, -1)
            torch.addcmul(gates[t, :, 2 * size :], r, own[t], out=new[t])
            torch.lerp(new[t].tanh_(), states[t], u, out=states[t + 1])
        ctx.save_for_backward(states, ru, new, own, weight)
        return states[1:]

    @staticmethod
    def backward(ctx, grad):
        """Gradients of what the input gives, weight and bias."""
        states, ru, new, own, weight = ctx.saved_tensors
        time, batch, size = new.shape
        r, u = ru.chunk(2, -1)
        # factors of the state's gradient, of all steps at once
        of_new = (1 - u) * (1 - new * new)
        of_u = (states[:-1] - new) * u * (1 - u)
        of_r = own * r * (1 - r)
        outer, inner = (grad.new_empty(time, batch, 3 * size) for _ in range(2))
        state = torch.zeros_like(new[0])
        for t in reversed(range(time)):
            state = state + grad[t]
            n = torch.mul(state, of_new[t], out=outer[t, :, 2 * size :])
            torch.mul(n, of_r[t], out=outer[t, :, :size])
            torch.mul(state, of_u[t], out=outer[t, :, size : 2 * size])
            inner[t, :, : 2 * size] = outer[t, :, : 2 * size]
            torch.mul(n, r[t], out=inner[t, :, 2 * size :])
            state = torch.addmm(state * u[t], inner[t], weight)
        rows = inner.flatten(0, 1)
        return outer, rows.t() @ states[:-1].flatten(0, 1), rows.sum(0)


class Posterior(Function):
    """Draw, standard deviation and KL of each channel, in one pass."""

    @staticmethod
    def forward(ctx, mean, log_var, noise):
        """A draw, and twice the summed KL of each channel."""
        std = torch.exp(0.5 * log_var)
        kl = torch.addcmul(std * std - 1 - log_var, mean, mean).sum((0, 1))
        ctx.save_for_backward(mean, std, noise)
        return torch.addcmul(mean, std, noise), kl

    @staticmethod
    def backward(ctx, of_draw, of_kl):
        """Gradients of mean and log-variance."""
        mean, std, noise = ctx.saved_tensors
        of_log_var = (std * std - 1).mul_(of_kl)
        of_log_var.addcmul_(of_draw * std, noise, value=0.5)
        return torch.addcmul(of_draw, mean, of_kl, value=2), of_log_var, None


def pair(weights, *ways):
    """Makes functions that run ways forward and backward, and compares them.

    Each way returns a tensor; gradients are those of `weights`.
    """

    def run(way):
        for weight in weights:
            weight.grad = None
        y = way()
        y.backward(torch.ones_like(y))
        return [weight.grad for weight in weights]

    for a, b in zip(*map(run, ways), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3 * a.abs().max())
    named = zip("ab", ways, strict=True)
    return {name: lambda w=way: run(w) for name, way in named}


def heads():
    """Mean and log-variance by two products, or by one."""
    x = torch.randn(BATCH * LONG, CHANNELS, requires_grad=True)
    mean, log_var = (nn.Linear(CHANNELS, CHANNELS) for _ in range(2))

    def one():
        weight = torch.cat([mean.weight, log_var.weight])
        bias = torch.cat([mean.bias, log_var.bias])
        return nn.functional.linear(x, weight, bias)

    weights = [x, *mean.parameters(), *log_var.parameters()]
    return pair(weights, lambda: torch.cat([mean(x), log_var(x)], -1), one)


def gru():
    """The GRU of torch, or a loop of our own."""
    x, layer = torch.randn(BATCH, SHORT, CHANNELS), nn.GRU(CHANNELS, CONTEXT)
    x = x.transpose(0, 1)

    def own():
        gates = x @ layer.weight_ih_l0.t() + layer.bias_ih_l0
        return Recurrence.apply(gates, layer.weight_hh_l0, layer.bias_hh_l0)

    return pair([*layer.parameters()], lambda: layer(x)[0], own)


def posterior():
    """Draw and KL of module 1, each by autograd, or in one pass."""
    shape = BATCH, LONG, CHANNELS
    mean, log_var, noise = (torch.randn(shape) for _ in range(3))
    mean.requires_grad_(), log_var.requires_grad_()
    lengths, count = torch.full((BATCH,), LONG), 2 * BATCH * LONG

    def apart():
        draw = torch.addcmul(mean, torch.exp(0.5 * log_var), noise)
        return draw.sum() + kl_per_channel(mean, log_var, lengths).sum()

    def joint():
        draw, kl = Posterior.apply(mean, log_var, noise)
        return draw.sum() + kl.sum() / count

    return pair([mean, log_var], apart, joint)


def first_convolution():
    """Its weight's gradient as (G' X)', as it was, or X' G, as it is."""
    conv = BlockConv1d(1, CHANNELS, 10, 5, 2)
    x = torch.randn(BATCH, 10240, 1)

    def before():
        rows = nn.functional.pad(x[..., 0], (2, 2)).unfold(1, 10, 5)
        rows = nn.functional.pad(rows, (0, 1), value=1.0)
        weight = torch.cat([conv.weight[:, 0], conv.bias[:, None]], 1)
        return (rows.flatten(0, 1) @ weight.t()).unflatten(0, rows.shape[:2])

    return pair([*conv.parameters()], before, lambda: conv(x))


TRIED = {
    "first convolution's gradient in the other order": first_convolution,
    "both heads in one product": heads,
    "the GRU's own loop": gru,
    "posterior, draw and KL in one pass": posterior,
}


def tried(repetitions=15):
    """Returns the table."""
    torch.set_num_threads(1)
    rows = []
    for name, make in TRIED.items():
        torch.manual_seed(0)
        timings = in_turn(make(), repetitions, warm_up=2)
        before, after = (
            1e3 * sorted(timings[way].cpu)[repetitions // 2] for way in "ab"
        )
        ratio = quotient(timings, "a", "b", "cpu")
        rows.append([name, f"{before:.1f}", f"{after:.1f}", f"{ratio:.2f}"])
    header = ["tried", "ms before", "ms after", "times faster"]
    return markdown_table(header, rows)


def make_parser():
    """Makes the parser of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repetitions", type=int, default=15)
    return parser


if __name__ == "__main__":
    print(tried(make_parser().parse_args().repetitions))
