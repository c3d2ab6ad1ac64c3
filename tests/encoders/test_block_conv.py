"""Convolutions as matrix products, against torch's own."""

import pytest
import torch

from speechbrain_sim.encoders import block_conv as convolution
from speechbrain_sim.encoders.block_conv import BlockConv1d

SHAPES = [  # in_channels, kernel, stride, padding, time
    (4, 8, 4, 2, 37),
    (4, 4, 2, 2, 21),
    (4, 4, 2, 1, 64),
    (3, 3, 1, 1, 20),
    (1, 10, 5, 2, 97),
    (2, 3, 2, 1, 11),  # no multiple of the stride
    (2, 4, 2, 0, 9),
    (2, 6, 2, 5, 3),  # more padding than signal
    (2, 8, 4, 2, 4),  # a single frame
    (3, 2, 2, 0, 7),  # one block per kernel, a frame left over
]


def torchs_own(conv, x, relu):
    x = x.relu() if relu else x
    y = torch.nn.functional.conv1d(
        x.transpose(1, 2), conv.weight, conv.bias, conv.stride, conv.padding
    )
    return y.transpose(1, 2)


@pytest.mark.parametrize("rows", [1, 20, 2048])
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_values_and_gradients_are_torchs(shape, relu, rows, monkeypatch):
    monkeypatch.setattr(convolution, "ROWS", rows)
    torch.manual_seed(0)
    in_channels, kernel, stride, padding, time = shape
    conv = BlockConv1d(in_channels, 5, kernel, stride, padding).double()
    x = torch.randn(3, time, in_channels).double().requires_grad_()
    expected, got = torchs_own(conv, x, relu), conv(x, relu)
    assert got.shape[1] == conv.output_lengths(time)
    torch.testing.assert_close(got, expected)
    inputs, grad = [x, conv.weight, conv.bias], torch.randn_like(expected)
    for mine, theirs in zip(
        torch.autograd.grad(got, inputs, grad),
        torch.autograd.grad(expected, inputs, grad),
        strict=True,
    ):
        torch.testing.assert_close(mine, theirs)


def test_a_given_padding_replaces_the_convolutions_own():
    conv = BlockConv1d(3, 5, 4, 2, 1)
    x = torch.randn(2, 20, 3)
    padded = torch.nn.functional.pad(x, (0, 0, 1, 1))
    torch.testing.assert_close(conv(padded, padding=0), conv(x))


def test_parameters_are_those_of_torchs_convolution():
    torch.manual_seed(0)
    conv = BlockConv1d(6, 5, 8, 4, 2)
    torch.manual_seed(0)
    plain = torch.nn.Conv1d(6, 5, 8, 4, 2)
    assert torch.equal(conv.weight, plain.weight)
    conv.load_state_dict(torch.nn.Conv1d(6, 5, 8, 4, 2).state_dict())
    # the blocks of the kernel stay views through loading and copying
    for module in (conv, torch.nn.ModuleList([conv]).double()[0]):
        assert module.weight.transpose(1, 2).is_contiguous()


def test_fused_adam_takes_the_steps_of_plain_adam():
    torch.manual_seed(0)
    convs = [BlockConv1d(4, 5, 4, 2, 1) for _ in range(2)]
    convs[1].load_state_dict(convs[0].state_dict())
    optimizers = [
        torch.optim.Adam(conv.parameters(), lr=0.01, fused=fused)
        for conv, fused in zip(convs, (True, False), strict=True)
    ]
    x = torch.randn(2, 30, 4)
    for _ in range(5):
        for conv, optimizer in zip(convs, optimizers, strict=True):
            conv(x).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()
    torch.testing.assert_close(convs[0].weight, convs[1].weight)


def test_bf16_autocast_is_close(monkeypatch):
    monkeypatch.setattr(convolution, "ROWS", 1)  # gradients of 16 parts
    torch.manual_seed(0)
    conv, x = BlockConv1d(16, 8, 4, 2, 1), torch.randn(16, 40, 16)
    with torch.autocast("cpu", torch.bfloat16):
        y = conv(x, relu=True)
    assert y.dtype == torch.bfloat16
    grad = torch.randn(y.shape)
    y.backward(grad.bfloat16())
    assert conv.weight.grad.dtype == torch.float32
    exact = conv(x, relu=True)
    torch.testing.assert_close(y.float(), exact, atol=0.05, rtol=0.05)
    (gradient,) = torch.autograd.grad(exact, conv.weight, grad)
    error = (conv.weight.grad - gradient).norm() / gradient.norm()
    assert error < 0.01  # bf16 resolves 0.004
