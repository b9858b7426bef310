"""Linear attention on a CPU: every stream of every head is a sequence of its own for the chunkwise form.

The backward pass walks the segments from the last to the first, each from the state that the forward pass
saved at its beginning. A decay of its own for each feature takes the recurrence itself.
"""

from __future__ import annotations

import torch
from einops import rearrange, repeat
from torch import Tensor

from longwave.ops.documents import expand_mask
from longwave.ops.numba._adapter import operator
from longwave.ops.numba._chunkwise import (
    Rule,
    Scratch,
    Segment,
    Span,
    backward_segment,
    forward_segment,
    pack,
    spans,
    unpack,
)
from longwave.ops.numba._recurrence import recurrence

#: Rows (batch times tokens) from which this form was measured to beat torch's.
PAYS_FROM = 2048


def linear_attention_numba(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor | None,
    state: Tensor,
    starts: Tensor | None,
    chunk_size: int,
) -> tuple[Tensor, Tensor]:
    """See :func:`longwave.ops.linear_attention.linear_attention_torch`, whose shapes these are."""
    if starts is not None:  # a start is a decay to nothing
        like = q.new_zeros(q.shape[:3]) if log_decay is None else log_decay
        log_decay = like.masked_fill(expand_mask(starts, like), -torch.inf)
    if log_decay is not None and log_decay.dim() == 4:
        return _by_feature(q, k, v, log_decay, state)
    out, final, _ = _forward(q, k, v, log_decay, state, chunk_size)
    return out, final


def _by_feature(q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    streams = k.shape[2]
    q, decay = (repeat(x, "b n h d -> b n (m h) d", m=streams) for x in (q, log_decay.exp()))
    k, v = (rearrange(x, "b n m h c -> b n (m h) c") for x in (k, v))
    out, final, _ = recurrence(q, k, v, decay, None, rearrange(state, "b m h d e -> b (m h) d e"))
    return rearrange(out, "b n (m h) e -> b n m h e", m=streams), rearrange(
        final, "b (m h) d e -> b m h d e", m=streams
    )


@operator("linear_attention_numba")
def _forward(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor | None, state: Tensor, chunk_size: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Outputs, the final state, and the states `[segments, B, M, H, d, e]` at the segments' beginnings."""
    q, k, v, log_decay = _contiguous(q, k, v, log_decay)
    out, final = torch.empty_like(v), state.contiguous().clone()
    plan, chunk, scratch = _plan(k, chunk_size)
    saved = q.new_empty(plan[-1].segment + 1, *state.shape)
    rule = _rule(q)
    for span in plan:
        rows = span.sequences
        saved[span.segment, rows] = final[rows]
        segment = _segment(q, k, v, log_decay, span, chunk, scratch)
        _unpack_streams(forward_segment(segment, rule, *_sequences(final[rows]), scratch), span, out)
    return out, final, saved


@operator("linear_attention_numba_backward")
def _backward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor | None,
    saved: Tensor,
    grad: Tensor,
    grad_state: Tensor,
    chunk_size: int,
    for_decay: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of q, k, v, log_decay (empty unless ``for_decay``) and the initial state."""
    q, k, v, log_decay = _contiguous(q, k, v, log_decay)
    grad, d_state = grad.contiguous(), grad_state.contiguous().clone()
    dq, dk, dv = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
    d_log_decay = q.new_empty(q.shape[:3] if for_decay else 0)
    plan, chunk, scratch = _plan(k, chunk_size)
    rule = _rule(q)
    for span in reversed(plan):
        segment = _segment(q, k, v, log_decay, span, chunk, scratch)
        out_grad = scratch("grad", *segment.v.shape)
        _pack_streams(grad, span, out_grad)
        rows = span.sequences
        states, d_states = _sequences(saved[span.segment, rows].clone()), _sequences(d_state[rows])
        d_decay = scratch("d_decay", *segment.q.shape[:3]) if for_decay else None
        packed_q, packed_k, packed_v, _ = backward_segment(
            segment, rule, *states, out_grad, *d_states, scratch, d_decay
        )
        shape = span.num_sequences, k.shape[2] * k.shape[3], *segment.q.shape[1:3], -1
        unpack(packed_q.view(shape), span.batch, span.begin, span.end, dq)
        if d_decay is not None:
            unpack(d_decay.view(shape), span.batch, span.begin, span.end, d_log_decay[..., None])
        _unpack_streams(packed_k, span, dk)
        _unpack_streams(packed_v, span, dv)
    return dq, dk, dv, d_log_decay, d_state


@_forward.register_fake
def _(q, k, v, log_decay, state, chunk_size):
    plan, _, _ = _plan(k, chunk_size)
    return torch.empty_like(v), torch.empty_like(state), q.new_empty(plan[-1].segment + 1, *state.shape)


@_backward.register_fake
def _(q, k, v, log_decay, saved, grad, grad_state, chunk_size, for_decay):
    d_log_decay = q.new_empty(q.shape[:3] if for_decay else 0)
    return torch.empty_like(q), torch.empty_like(k), torch.empty_like(v), d_log_decay, torch.empty_like(grad_state)


def _save(ctx, inputs, output):
    q, k, v, log_decay, _, ctx.chunk_size = inputs
    ctx.save_for_backward(q, k, v, log_decay, output[2])


def _differentiate(ctx, grad, grad_state, _):
    for_decay = ctx.needs_input_grad[3]
    dq, dk, dv, d_log_decay, d_state = _backward(*ctx.saved_tensors, grad, grad_state, ctx.chunk_size, for_decay)
    return dq, dk, dv, d_log_decay if for_decay else None, d_state, None


_forward.register_autograd(_differentiate, setup_context=_save)


def _contiguous(*tensors: Tensor | None) -> list[Tensor | None]:
    return [None if tensor is None else tensor.contiguous() for tensor in tensors]


def _rule(like: Tensor) -> Rule:
    return Rule(like.new_ones(1), normalize=False, eps=0.0)


def _plan(k: Tensor, chunk_size: int) -> tuple[list[Span], int, Scratch]:
    """Spans, the rows of a chunk, fresh scratch."""
    batch_size, num_rows, M, heads, width = k.shape
    chunk = min(chunk_size, num_rows)
    return spans(batch_size, num_rows, M * heads * width, chunk), chunk, Scratch(k)


def _segment(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor | None, span: Span, chunk: int, scratch: Scratch
) -> Segment:
    b, heads = span.num_sequences, k.shape[2] * k.shape[3]
    n = -(-(span.end - span.begin) // chunk)
    packed_q = scratch("q", b * heads, n, chunk, q.shape[-1])
    pack(q, span.batch, span.begin, span.end, packed_q.view(b, heads, n, chunk, -1))
    packed_k = scratch("k", b * heads, n, 1, chunk, k.shape[-1])
    packed_v = scratch("v", b * heads, n, 1, chunk, v.shape[-1])
    _pack_streams(k, span, packed_k)
    _pack_streams(v, span, packed_v)
    decay = None
    if log_decay is not None:
        decay = scratch("decay", b * heads, n, chunk)
        pack(log_decay[..., None], span.batch, span.begin, span.end, decay.view(b, heads, n, chunk, 1))
        decay.exp_()
    return Segment(packed_q, packed_k, packed_v, decay)


def _pack_streams(x: Tensor, span: Span, out: Tensor) -> None:
    """`[B, N, M, H, c]` to `[X, n, 1, C, c]`."""
    shape = (span.num_sequences, -1, out.shape[1], *out.shape[3:])
    pack(x.flatten(2, 3), span.batch, span.begin, span.end, out.view(shape))


def _unpack_streams(packed: Tensor, span: Span, out: Tensor) -> None:
    """`[X, n, (1,) C, c]` to `[B, N, M, H, c]`."""
    shape = (span.num_sequences, -1, packed.shape[1], *packed.shape[-2:])
    unpack(packed.view(shape), span.batch, span.begin, span.end, out.flatten(2, 3))


def _sequences(state: Tensor) -> tuple[Tensor, Tensor]:
    """A view of states `[b, M, H, d, e]` as `[X, 1, d, e]`, and zeros for the normaliser that this op lacks."""
    S = state.view(-1, 1, *state.shape[-2:])
    return S, S.new_zeros(S.shape[:-1])
