"""Linear attention on a CPU: every stream of every head is a sequence of its own for the chunkwise form.

The backward pass walks the segments from the last to the first, each from the state that the forward pass
saved at its beginning. The decay's gradient needs no pass of its own: a row's decay scales every weight that
crosses it, so it collects what the queries after it and the keys before it have received,
d log a_t = sum_{i>=t} (q_i·dq_i - k_i·dk_i) + S·dS at the end (https://arxiv.org/abs/2312.06635).
A decay of its own for each feature takes the recurrence itself.
"""

from __future__ import annotations

import torch
from einops import rearrange, repeat
from torch import Tensor
from torch.library import custom_op

from longwave.ops.documents import expand_mask
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


@custom_op("longwave::linear_attention_numba", mutates_args=())
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


@custom_op("longwave::linear_attention_numba_backward", mutates_args=())
def _backward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor | None,
    saved: Tensor,
    final: Tensor,
    grad: Tensor,
    grad_state: Tensor,
    chunk_size: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of q, k, v, log_decay and the initial state."""
    q, k, v, log_decay = _contiguous(q, k, v, log_decay)
    grad, d_state = grad.contiguous(), grad_state.contiguous().clone()
    dq, dk, dv = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
    plan, chunk, scratch = _plan(k, chunk_size)
    rule = _rule(q)
    for span in reversed(plan):
        segment = _segment(q, k, v, log_decay, span, chunk, scratch)
        out_grad = scratch("grad", *segment.v.shape)
        _pack_streams(grad, span, out_grad)
        rows = span.sequences
        states, d_states = _sequences(saved[span.segment, rows].clone()), _sequences(d_state[rows])
        packed_q, packed_k, packed_v, _ = backward_segment(segment, rule, *states, out_grad, *d_states, scratch)
        heads = k.shape[2] * k.shape[3]
        b, length = span.num_sequences, segment.q.shape[1:]
        unpack(packed_q.view(b, heads, *length), span.batch, span.begin, span.end, dq)
        _unpack_streams(packed_k, span, dk)
        _unpack_streams(packed_v, span, dv)
    if log_decay is None:
        return dq, dk, dv, q.new_empty(0), d_state
    crossing = torch.einsum("bnhd,bnhd->bnh", q, dq) - torch.einsum("bnmhd,bnmhd->bnh", k, dk)
    crossing = crossing.double()
    crossing[:, -1] += torch.einsum("bmhde,bmhde->bh", final, grad_state)
    d_log_decay = crossing.flip(1).cumsum(dim=1).flip(1).to(q.dtype)
    return dq, dk, dv, d_log_decay, d_state


@_forward.register_fake
def _(q, k, v, log_decay, state, chunk_size):
    plan, _, _ = _plan(k, chunk_size)
    return torch.empty_like(v), torch.empty_like(state), q.new_empty(plan[-1].segment + 1, *state.shape)


@_backward.register_fake
def _(q, k, v, log_decay, saved, final, grad, grad_state, chunk_size):
    d_log_decay = q.new_empty(0) if log_decay is None else torch.empty_like(log_decay)
    return torch.empty_like(q), torch.empty_like(k), torch.empty_like(v), d_log_decay, torch.empty_like(final)


def _save(ctx, inputs, output):
    q, k, v, log_decay, _, chunk_size = inputs
    _, final, saved = output
    ctx.save_for_backward(q, k, v, log_decay, saved, final)
    ctx.chunk_size = chunk_size


def _differentiate(ctx, grad, grad_state, _):
    *inputs, log_decay, saved, final = ctx.saved_tensors
    dq, dk, dv, d_log_decay, d_state = _backward(*inputs, log_decay, saved, final, grad, grad_state, ctx.chunk_size)
    return dq, dk, dv, None if log_decay is None else d_log_decay, d_state, None


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
