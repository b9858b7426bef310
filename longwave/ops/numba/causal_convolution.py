"""Causal depthwise convolution on a CPU: one pass over the rows, all taps at once."""

from __future__ import annotations

from torch import Tensor

from longwave.ops.numba._adapter import kernel, operator, prange

#: Rows (batch times tokens) from which this form was measured to beat torch's.
PAYS_FROM = 1
#: Rows of a task.
BLOCK = 64


def causal_convolution_numba(x: Tensor, weight: Tensor, past: Tensor | None, positions: Tensor) -> Tensor:
    """See :func:`longwave.ops.causal_convolution.causal_convolution_torch`."""
    if past is None:
        past = x.new_zeros(x.shape[0], weight.shape[0] - 1, x.shape[2])
    return _forward(x, weight, past, positions)


@operator("causal_convolution_numba")
def _forward(x: Tensor, weight: Tensor, past: Tensor, positions: Tensor) -> Tensor:
    out = x.new_empty(x.shape)
    _filter(x.contiguous(), weight.contiguous(), past.contiguous(), positions, out, BLOCK)
    return out


@operator("causal_convolution_numba_backward")
def _backward(
    x: Tensor, weight: Tensor, past: Tensor, positions: Tensor, grad: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, weight and past."""
    dx, d_past = x.new_empty(x.shape), past.new_empty(past.shape)
    parts = weight.new_zeros(x.shape[0], -(-x.shape[1] // BLOCK), *weight.shape)
    inputs = (x.contiguous(), weight.contiguous(), past.contiguous(), positions, grad.contiguous())
    _filter_back(*inputs, dx, d_past, parts, BLOCK)
    return dx, parts.sum(dim=(0, 1)), d_past


@_forward.register_fake
def _(x, weight, past, positions):
    return x.new_empty(x.shape)


@_backward.register_fake
def _(x, weight, past, positions, grad):
    return x.new_empty(x.shape), weight.new_empty(weight.shape), past.new_empty(past.shape)


def _save(ctx, inputs, output):
    ctx.save_for_backward(*inputs)


def _differentiate(ctx, grad):
    return *_backward(*ctx.saved_tensors, grad), None


_forward.register_autograd(_differentiate, setup_context=_save)


@kernel
def _filter(x, weight, past, positions, out, block):
    """Each task computes ``block`` rows of one sequence."""
    B, N, C = x.shape
    reach = weight.shape[0] - 1
    blocks = (N + block - 1) // block
    for task in prange(B * blocks):
        b, begin = task // blocks, task % blocks * block
        for t in range(begin, min(begin + block, N)):
            row, present, tap = out[b, t], x[b, t], weight[0]
            for c in range(C):
                row[c] = tap[c] * present[c]
            for s in range(1, min(reach, positions[b, t]) + 1):
                tap = weight[s]
                source = x[b, t - s] if t >= s else past[b, reach + t - s]
                for c in range(C):
                    row[c] += tap[c] * source[c]


@kernel
def _filter_back(x, weight, past, positions, grad, dx, d_past, d_weight, block):
    """Each task collects the gradients of ``block`` rows, and what its own upstream rows say of the weight."""
    B, N, C = x.shape
    reach = weight.shape[0] - 1
    blocks = (N + block - 1) // block
    for task in prange(B * blocks):
        b, begin = task // blocks, task % blocks * block
        if begin == 0:
            for r in range(reach):  # past row r is row r - reach
                row = d_past[b, r]
                row[:] = 0
                for t in range(min(r + 1, N)):
                    s = t + reach - r
                    if positions[b, t] >= s:
                        tap, upstream = weight[s], grad[b, t]
                        for c in range(C):
                            row[c] += tap[c] * upstream[c]
        for t in range(begin, min(begin + block, N)):
            row, tap, upstream = dx[b, t], weight[0], grad[b, t]
            for c in range(C):
                row[c] = tap[c] * upstream[c]
            for s in range(1, min(reach, N - 1 - t) + 1):
                if positions[b, t + s] >= s:
                    tap, later = weight[s], grad[b, t + s]
                    for c in range(C):
                        row[c] += tap[c] * later[c]
            for s in range(min(reach, positions[b, t]) + 1):
                source = x[b, t - s] if t >= s else past[b, reach + t - s]
                total = d_weight[b, begin // block, s]
                for c in range(C):
                    total[c] += upstream[c] * source[c]
