"""Convolutions and GRUs over a signal that comes in pieces."""

import torch
from torch import nn

from speechbrain_sim.encoders.block_conv import conv_lengths


class StreamState:
    """What layers keep between pieces; `last` is set before the last one."""

    def __init__(self):
        #: module -> the frames that it has to read again, or its hidden state
        self.kept = {}
        self.last = False

    def convolve(self, conv, x, relu):
        """Convolves the next piece, as `BlockConv1d`: the complete frames."""
        kernel_size, stride, padding = conv.shape
        if kernel_size < stride:
            raise ValueError("A kernel below its stride cannot stream.")
        if conv not in self.kept:
            self.kept[conv] = x.new_zeros(len(x), padding, x.shape[2])
        x = torch.cat([self.kept[conv], x], dim=1)
        if self.last:
            x = nn.functional.pad(x, (0, 0, 0, padding))
        frames = max(0, conv_lengths(x.shape[1], kernel_size, stride, 0))
        self.kept[conv] = x[:, frames * stride :].clone()
        if not frames:
            return x.new_zeros(len(x), 0, conv.out_channels)
        return conv(x, relu, padding=0)

    def recur(self, gru, x):
        """Continues a GRU: (batch, time, in) -> (batch, time, channels)."""
        if not x.shape[1]:
            return x.new_zeros(len(x), 0, gru.hidden_size)
        y, self.kept[gru] = gru(x, self.kept.get(gru))
        return y
