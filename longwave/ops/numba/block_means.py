"""Running sums of dyadic blocks on a CPU: one pass down the rows, every level at once.

A level's sum starts anew where the position is a multiple of its block's size. Backwards it is the same walk
up the rows: a row's gradient is the sum of those of its block from the row on.
"""

from __future__ import annotations

from torch import Tensor

from longwave.ops.numba._adapter import kernel, operator, prange

#: Rows (batch times tokens) from which this form was measured to beat torch's.
PAYS_FROM = 64
#: Channels that one task walks down.
CHANNELS = 128


def block_means_numba(x: Tensor, num_levels: int, positions: Tensor, past: Tensor | None) -> Tensor:
    """See :func:`longwave.ops.block_means.block_means_torch`: sums, not means."""
    if past is None:
        past = x.new_zeros(x.shape[0], num_levels, *x.shape[2:])
    return _forward(x, past, positions)


@operator("block_means_numba")
def _forward(x: Tensor, past: Tensor, positions: Tensor) -> Tensor:
    sums = x.new_empty(*x.shape[:2], past.shape[1], *x.shape[2:])
    if sums.numel():
        _sum_down(_rows(x, 2), _rows(past, 2), positions, _rows(sums, 3), CHANNELS)
    return sums


@operator("block_means_numba_backward")
def _backward(grad: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of x and of the past sums."""
    dx, d_past = grad.new_zeros(*grad.shape[:2], *grad.shape[3:]), grad.new_zeros(grad.shape[0], *grad.shape[2:])
    if grad.numel():
        _sum_up(_rows(grad, 3), positions, _rows(dx, 2), _rows(d_past, 2), CHANNELS)
    return dx, d_past


@_forward.register_fake
def _(x, past, positions):
    return x.new_empty(*x.shape[:2], past.shape[1], *x.shape[2:])


@_backward.register_fake
def _(grad, positions):
    return grad.new_empty(*grad.shape[:2], *grad.shape[3:]), grad.new_empty(grad.shape[0], *grad.shape[2:])


def _save(ctx, inputs, output):
    ctx.save_for_backward(inputs[2])


def _differentiate(ctx, grad):
    return *_backward(grad, *ctx.saved_tensors), None


_forward.register_autograd(_differentiate, setup_context=_save)


def _rows(x: Tensor, leading: int) -> Tensor:
    """The axes after ``leading`` as one."""
    return x.contiguous().view(*x.shape[:leading], -1)


@kernel
def _sum_down(x, past, positions, sums, width):
    num_sequences, num_rows, channels = x.shape
    blocks = (channels + width - 1) // width
    zero = x.dtype.type(0)
    for task in prange(num_sequences * blocks):
        b, first = task // blocks, task % blocks * width
        last = min(first + width, channels)
        for row in range(num_rows):  # level by level, the rows of x would be read anew for each
            own = x[b, row, first:last]
            for level in range(past.shape[1]):
                begins = positions[b, row] & ((2 << level) - 1) == 0
                before = sums[b, row - 1, level, first:last] if row else past[b, level, first:last]
                total = sums[b, row, level, first:last]
                for a in range(last - first):
                    total[a] = own[a] + (zero if begins else before[a])


@kernel
def _sum_up(grad, positions, dx, d_past, width):
    num_sequences, num_rows, levels, channels = grad.shape
    blocks = (channels + width - 1) // width
    zero = dx.dtype.type(0)
    for task in prange(num_sequences * blocks):
        b, first = task // blocks, task % blocks * width
        last = min(first + width, channels)
        for back in range(num_rows):
            row = num_rows - 1 - back
            own = dx[b, row, first:last]
            for level in range(levels):
                begins = positions[b, row] & ((2 << level) - 1) == 0
                part, carried = grad[b, row, level, first:last], d_past[b, level, first:last]
                for a in range(last - first):
                    total = carried[a] + part[a]
                    own[a] += total
                    carried[a] = zero if begins else total
