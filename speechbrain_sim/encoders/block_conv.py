"""Convolutions of (batch, time, channel) as plain matrix products.

In every convolution of the paper the kernel is a multiple of the stride. Lay
`stride` frames side by side, and the sequence is a matrix X with one row, a
block, per output frame; a kernel of m strides is cut into W_1 .. W_m, and

    Y = b + X[0:] W_1' + X[1:] W_2' + ... + X[m-1:] W_m'

is the whole convolution: m matrix products on views of its input, nothing
unfolded and nothing transposed.
"""

import torch
from torch import nn


def conv_lengths(lengths, kernel_size, stride, padding):
    """Computes the frames out of a convolution from the frames in.

    Both are int, or integer tensors; zero or less comes out where the input is
    too short.

    Example
    -------
    >>> conv_lengths(10240, kernel_size=10, stride=5, padding=2)
    2047
    """
    return (lengths + 2 * padding - kernel_size) // stride + 1


def conv_geometry(shapes):
    """Returns hop and center of convolutions: frame i is at center + hop * i.

    `shapes` are (kernel size, stride, padding), waveform first.

    Example
    -------
    >>> conv_geometry([(10, 5, 2), (8, 4, 2)])
    (20, 10.0)
    """
    hop, center = 1, 0.0
    for kernel_size, stride, padding in shapes:
        center += hop * ((kernel_size - 1) / 2 - padding)
        hop *= stride
    return hop, center


class BlockConv1d(nn.Conv1d):
    """A convolution over (batch, time, channel), with zeros as padding.

    Same parameters as `torch.nn.Conv1d`, same numbers up to rounding. The
    weight lies channels-last in memory, so that W_1 .. W_m are views.

    Example
    -------
    >>> conv = BlockConv1d(4, 8, kernel_size=8, stride=4, padding=2)
    >>> conv(torch.randn(2, 100, 4)).shape
    torch.Size([2, 25, 8])
    """

    #: whether torch's own convolution runs, which has a second derivative
    plain = False

    def __init__(self, in_channels, out_channels, kernel_size, stride, padding):
        #: kernel size, stride, padding
        self.shape = kernel_size, stride, padding
        super().__init__(in_channels, out_channels, *self.shape)
        weight = self.weight.data.transpose(1, 2).contiguous()
        self.weight.data = weight.transpose(1, 2)

    def output_lengths(self, lengths):
        """Computes frames out from frames in; see `conv_lengths`."""
        return conv_lengths(lengths, *self.shape)

    def forward(self, x, relu=False, padding=None):
        """Convolves (batch, time, in_channels), or its ReLU.

        With `relu`, backward stores one copy of the input, not two. `padding`
        zeros on both sides replace the convolution's own.
        """
        kernel_size, stride, own_padding = self.shape
        padding = own_padding if padding is None else padding
        weight, bias, device = self.weight, self.bias, x.device.type
        plain = self.plain or torch.jit.is_tracing() or kernel_size % stride
        # an autograd.Function as below takes no part in torch.func
        plain = plain or torch._C._are_functorch_transforms_active()
        if plain or (device != "cpu" and self.in_channels > 1):
            x = (torch.relu(x) if relu else x).transpose(1, 2)
            y = nn.functional.conv1d(x, weight, bias, stride, padding)
            return y.transpose(1, 2)
        weight = weight.transpose(1, 2).flatten(1)  # a view
        if self.in_channels == 1:  # unfolding a waveform costs nothing
            x = torch.relu(x) if relu else x
            x = nn.functional.pad(x[..., 0], (padding, padding))
            x = x.unfold(1, kernel_size, stride)
            # the bias is the weight of a further tap, which is always one
            x = nn.functional.pad(x, (0, 1), value=1.0)
            # row by row in memory: its gradient is then X' G, not (G' X)', slow
            weight = torch.cat([weight.t(), bias[None]])
            if device != "cpu":  # its products are fast for multiples of 8
                more = -len(weight) % 8
                x = nn.functional.pad(x, (0, more))
                weight = nn.functional.pad(weight, (0, 0, 0, more))
            return (x.flatten(0, 1) @ weight).unflatten(0, x.shape[:2])
        if torch.is_autocast_enabled(device):
            dtype = torch.get_autocast_dtype(device)
            x, weight, bias = x.to(dtype), weight.to(dtype), bias.to(dtype)
        return _SumOfProducts.apply(x, weight, bias, stride, padding, relu)


#: raised where the derivative of a gradient is wanted
ONCE = (
    b"BlockConv1d has no second derivative on the CPU: set BlockConv1d.plain = "
    b"True for torch's own convolution, which has."
)
#: rows of a matrix product: enough to be fast, few enough for the cache
ROWS = 2048


class _SumOfProducts(torch.autograd.Function):
    """b + sum_i X[i:] W_i', and its gradients, accumulated in place.

    X holds a few utterances at a time. The rows where one of them runs into
    the next are computed too, and dropped.
    """

    @staticmethod
    def forward(ctx, x, weight, bias, stride, padding, relu):
        ctx.layout = layout = _Layout(x, weight, stride, padding)
        ctx.relu, ctx.channels = relu, x.shape[2]
        y = x.new_empty(len(x), layout.frames, len(weight))
        saved = []
        parts = zip(layout.parts(x), layout.parts(y), strict=True)
        for x_part, y_part in parts:
            rows = layout.rows(x_part, relu)
            out = rows.new_empty(len(rows), len(weight))
            for i, shifted, w in layout.shifts(rows, weight):
                if i == 0:
                    torch.addmm(bias, shifted, w.t(), out=out[: len(shifted)])
                else:
                    out[: len(shifted)].addmm_(shifted, w.t())
            y_part.copy_(layout.frames_of(out))
            saved.append(rows)
        ctx.save_for_backward(weight, *saved)
        return y

    @staticmethod
    def backward(ctx, grad_y):
        with torch.no_grad():
            grads = _SumOfProducts.gradients(ctx, grad_y)
        if torch.is_grad_enabled():  # create_graph=True
            # as once_differentiable of torch, whose message has no remedy
            refuse = torch._C._functions.DelayedError(ONCE, len(grads))
            grads = refuse(
                *(g if g is None else g.requires_grad_() for g in grads)
            )
        return *grads, None, None, None

    @staticmethod
    def gradients(ctx, grad_y):
        """Returns those of x, weight and bias; None for x if not needed."""
        weight, *saved = ctx.saved_tensors
        layout, wants_x = ctx.layout, ctx.needs_input_grad[0]
        # in fp32 also where the products are not: it is summed over the parts
        dtype = torch.promote_types(weight.dtype, torch.float32)
        grad_weight = torch.zeros_like(weight, dtype=dtype)
        grad_x = None
        if wants_x:
            grad_x = grad_y.new_empty(len(grad_y), layout.time, ctx.channels)
        parts = zip(saved, layout.parts(grad_y), strict=True)
        for number, (rows, grad_part) in enumerate(parts):
            grad = rows.new_zeros(len(rows), len(weight))
            layout.frames_of(grad).copy_(grad_part)
            for _, shifted, w in layout.shifts(rows, grad_weight):
                if w.dtype == grad.dtype:
                    w.addmm_(grad[: len(shifted)].t(), shifted)
                else:
                    w += grad[: len(shifted)].t() @ shifted
            if not wants_x:
                continue
            grad_rows = torch.empty_like(rows)
            for i, shifted, w in layout.shifts(grad_rows, weight):
                if i == 0:
                    grad_rows[len(shifted) :] = 0
                    torch.mm(grad[: len(shifted)], w, out=shifted)
                else:
                    shifted.addmm_(grad[: len(shifted)], w)
            out = layout.parts(grad_x)[number]
            inside = layout.inside(grad_rows, ctx.channels)
            if ctx.relu:  # what the gradient of torch.relu calls
                torch.ops.aten.threshold_backward.grad_input(
                    inside, layout.inside(rows, ctx.channels), 0, grad_input=out
                )
            else:
                out.copy_(inside)
        grad_weight = grad_weight.to(weight.dtype)
        return grad_x, grad_weight, grad_y.sum((0, 1))


class _Layout:
    """How utterances are cut into blocks, with zeros at both ends."""

    def __init__(self, x, weight, stride, padding):
        self.time, channels = x.shape[1:]
        self.padding, self.width = padding, stride * channels  # of a block
        shifts = weight.shape[1] // self.width  # m
        self.frames = conv_lengths(self.time, shifts * stride, stride, padding)
        end = padding + self.time
        self.blocks = max(self.frames + shifts - 1, -(-end // stride))

    def parts(self, x):
        """Divides a batch into parts of about ROWS rows."""
        return x.split(-(-ROWS // self.blocks))

    def rows(self, x, relu):
        """(batch, time, channel) -> (batch * blocks, width)."""
        rows = x.new_empty(len(x) * self.blocks, self.width)
        padded = rows.view(len(x), -1, x.shape[2])
        end = self.padding + self.time
        padded[:, : self.padding] = 0
        padded[:, end:] = 0
        inside = padded[:, self.padding : end]
        torch.clamp_min(x, 0, out=inside) if relu else inside.copy_(x)
        return rows

    def inside(self, rows, channels):
        """The way back: (batch, time, channel), a view of `rows`."""
        padded = rows.view(len(rows) // self.blocks, -1, channels)
        return padded[:, self.padding : self.padding + self.time]

    def frames_of(self, rows):
        """(batch * blocks, channel) -> (batch, frames, channel), a view."""
        return rows.unflatten(0, (-1, self.blocks))[:, : self.frames]

    def shifts(self, rows, weight):
        """Yields i, X[i:] and W_i, cut to the same number of rows."""
        parts = weight.split(self.width, dim=1)
        for i, part in enumerate(parts):
            yield i, rows[i : len(rows) - len(parts) + 1 + i], part
