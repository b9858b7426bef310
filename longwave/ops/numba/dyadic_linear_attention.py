"""Linear attention over dyadic running means on a CPU, without ever writing the levels out for the whole text.

Maps and means commute: each segment's raw rows are multiplied by all level maps at once, one pass turns the
products into running means and features, laid out for the chunkwise form, and the backward pass makes them
again. Only the states at the segments' beginnings are kept.

phi(x) = exp(min(x, 0)) + max(x, 0), so phi'(x) = min(phi(x), 1): the features are all that it needs.
"""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor

from longwave.ops.documents import document_positions
from longwave.ops.linear import product
from longwave.ops.numba._adapter import exp, kernel, operator, prange
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

#: Rows (batch times tokens) from which this form was measured to beat torch's.
PAYS_FROM = 64


def dyadic_linear_attention_numba(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    key_maps: Tensor,
    value_maps: Tensor,
    weights: Tensor,
    eps: float,
    chunk_size: int,
    state,
    starts: Tensor | None,
):
    """See :func:`longwave.ops.dyadic_linear_attention.dyadic_linear_attention_torch`."""
    batch_size, _, heads, width = q.shape
    levels = key_maps.shape[0]
    tokens = None if state is None else state.tokens
    positions = document_positions(*q.shape[:2], tokens=tokens, starts=starts, device=q.device)
    if state is None:
        memory = q.new_zeros(batch_size, levels + 1, heads, width, width + 1)
        sums = blocks = q.new_zeros(batch_size, levels, 2, heads, width)
    else:
        memory = torch.where((positions[:, 0] == 0)[:, None, None, None, None], 0.0, state.memory)
        blocks = state.blocks
        sums = torch.einsum("blphd,pled->blphe", blocks, torch.stack([key_maps, value_maps]))
    mixture = torch.cat([weights.new_ones(1), weights])
    out, memory, *_ = _forward(q, k, v, key_maps, value_maps, mixture, memory, sums, positions, eps, chunk_size)
    return out, memory, _last_blocks(k, v, blocks, positions)


@operator("dyadic_linear_attention_numba")
def _forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    key_maps: Tensor,
    value_maps: Tensor,
    mixture: Tensor,
    memory: Tensor,
    sums: Tensor,
    positions: Tensor,
    eps: float,
    chunk_size: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Outputs, the final memory, and what the segments begin with: S, z and block sums.

    ``sums`` `[B, L, 2, H, d]` are the mapped sums of the blocks that the piece continues.
    """
    q, k, v = q.contiguous(), k.contiguous(), v.contiguous()
    work = _Work(q, k, v, key_maps, value_maps, mixture, positions, eps, chunk_size)
    out, carried = torch.empty_like(q), (*_split(memory), rearrange(sums, "b l p h d -> b h l p d").clone())
    saved = [x.new_empty(work.num_saved, *x.shape) for x in carried]
    for span in work.plan:
        rows = span.sequences
        for kept, current in zip(saved, carried, strict=True):
            kept[span.segment, rows] = current[rows]
        S, z, sums = (x[rows] for x in carried)
        segment = work.segment(span, sums)
        packed = forward_segment(segment, work.rule, S.flatten(0, 1), z.flatten(0, 1), work.scratch)
        unpack(packed.view(len(S), -1, *packed.shape[1:]), span.batch, span.begin, span.end, out)
    return out, _joined(*carried[:2]), *saved


@operator("dyadic_linear_attention_numba_backward")
def _backward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    key_maps: Tensor,
    value_maps: Tensor,
    mixture: Tensor,
    positions: Tensor,
    saved_S: Tensor,
    saved_z: Tensor,
    saved_sums: Tensor,
    grad: Tensor,
    grad_memory: Tensor,
    eps: float,
    chunk_size: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of the first eight arguments of the forward operator."""
    q, k, v, grad = q.contiguous(), k.contiguous(), v.contiguous(), grad.contiguous()
    work = _Work(q, k, v, key_maps, value_maps, mixture, positions, eps, chunk_size)
    dq, dk, dv = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
    d_maps, d_mixture = torch.zeros_like(work.maps), torch.zeros_like(mixture)
    d_carried, scratch = (*_split(grad_memory), torch.zeros_like(saved_sums[0])), work.scratch
    for span in reversed(work.plan):
        rows = span.sequences
        S, z, sums = (x[span.segment, rows].clone() for x in (saved_S, saved_z, saved_sums))
        dS, dz, d_sums = (x[rows] for x in d_carried)
        segment = work.segment(span, sums)
        packed_grad = scratch("grad", *segment.q.shape)
        pack(grad, span.batch, span.begin, span.end, packed_grad.view(len(S), -1, *packed_grad.shape[1:]))
        states = (x.flatten(0, 1) for x in (S, z))
        d_states = (x.flatten(0, 1) for x in (dS, dz))
        gradients = backward_segment(segment, work.rule, *states, packed_grad, *d_states, scratch)
        d_mixture += gradients[3]
        shape = (2, span.num_sequences, span.end - span.begin, work.heads, work.levels, work.width)
        d_mapped = scratch("d_mapped", *shape)
        _unpack(
            *(segment.q, segment.k, *gradients[:3], positions, span.batch, span.begin, span.end),
            *(d_sums, dq, dk, dv, *d_mapped),
        )
        for side, (source, d_source) in enumerate(((k, dk), (v, dv))):
            rows = _slab(source, span)
            d_rows = d_mapped[side].view(len(rows), work.levels * work.width)
            _slab(d_source, span).add_(product(d_rows, work.maps[side].t()))
            d_maps[side].addmm_(d_rows.t(), rows)
    d_key_maps, d_value_maps = d_maps.view(2, *key_maps.shape).unbind()
    return (
        *(dq, dk, dv, d_key_maps.clone(), d_value_maps.clone(), d_mixture, _joined(*d_carried[:2])),
        rearrange(d_carried[2], "b h l p d -> b l p h d").contiguous(),
    )


@_forward.register_fake
def _(q, k, v, key_maps, value_maps, mixture, memory, sums, positions, eps, chunk_size):
    work = _Work(q, k, v, key_maps, value_maps, mixture, positions, eps, chunk_size)
    kept = (*_split(memory), rearrange(sums, "b l p h d -> b h l p d"))
    return torch.empty_like(q), torch.empty_like(memory), *(x.new_empty(work.num_saved, *x.shape) for x in kept)


@_backward.register_fake
def _(
    q, k, v, key_maps, value_maps, mixture, positions, saved_S, saved_z, saved_sums, grad, grad_memory, eps, chunk_size
):
    likes = (q, k, v, key_maps, value_maps, mixture, grad_memory)
    d_sums = rearrange(saved_sums[0], "b h l p d -> b l p h d").contiguous()
    return *(torch.empty_like(x) for x in likes), torch.empty_like(d_sums)


def _save(ctx, inputs, output):
    *rows, _, _, positions, eps, chunk_size = inputs
    ctx.save_for_backward(*rows, positions, *output[2:])
    ctx.rule = eps, chunk_size


def _differentiate(ctx, grad, grad_memory, *_):
    return *_backward(*ctx.saved_tensors, grad, grad_memory, *ctx.rule), None, None, None


_forward.register_autograd(_differentiate, setup_context=_save)


class _Work:
    """What forward and backward share: the plan, the maps side by side, and how a segment is made."""

    def __init__(self, q, k, v, key_maps, value_maps, mixture, positions, eps, chunk_size) -> None:
        batch_size, num_rows, heads, width = q.shape
        self.q, self.k, self.v, self.positions = q, k, v, positions
        self.heads, self.width, self.levels = heads, width, key_maps.shape[0]
        self.maps = torch.stack([key_maps, value_maps]).view(2, self.levels * width, width)
        self.rule = Rule(mixture, normalize=True, eps=eps)
        self.chunk = min(chunk_size, num_rows)
        self.plan = spans(batch_size, num_rows, (self.levels + 1) * heads * width, self.chunk)
        self.num_saved = self.plan[-1].segment + 1
        self.scratch = Scratch(q)

    def shape(self, span: Span) -> tuple[int, int, int, int]:
        """X, n, C and d of a segment."""
        return span.num_sequences * self.heads, -(-(span.end - span.begin) // self.chunk), self.chunk, self.width

    def segment(self, span: Span, sums: Tensor) -> Segment:
        """Features and values of all streams; ``sums`` `[B, H, L, 2, d]` are advanced in place."""
        X, n, C, d = self.shape(span)
        shape = (span.num_sequences, span.end - span.begin, self.heads, self.levels, d)
        mapped = [product(_slab(x, span), self.maps[side]).view(shape) for side, x in enumerate((self.k, self.v))]
        streams = (X, n, self.levels + 1, C, d)
        packed = self.scratch("q", X, n, C, d), self.scratch("k", *streams), self.scratch("v", *streams)
        _pack(
            *(self.q, self.k, self.v, *mapped, self.positions, span.batch, span.begin, span.end),
            *(sums, *packed),
        )
        return Segment(*packed, self._decay(span))

    def _decay(self, span: Span) -> Tensor | None:
        """0 where a document begins, 1 elsewhere; ``None`` if none begins after the piece's first row."""
        begin = max(span.begin, 1)
        begins = self.positions[span.sequences, begin : span.end] == 0
        if not begins.any():
            return None
        X, n, C, _ = self.shape(span)
        decay = self.scratch("decay", X, n, C)
        marks = (self.positions == 0).to(decay.dtype)[..., None, None]
        pack(marks, span.batch, span.begin, span.end, decay.view(span.num_sequences, self.heads, n, C, 1))
        return decay.neg_().add_(1)


def _split(memory: Tensor) -> tuple[Tensor, Tensor]:
    """Memory `[B, M, H, d, d + 1]` as S `[B, H, M, d, d]` and z `[B, H, M, d]`, both copies."""
    rows = rearrange(memory, "b m h d e -> b h m d e")
    return rows[..., :-1].clone(memory_format=torch.contiguous_format), rows[..., -1].contiguous()


def _joined(S: Tensor, z: Tensor) -> Tensor:
    """The way back of :func:`_split`."""
    return rearrange(torch.cat([S, z[..., None]], dim=-1), "b h m d e -> b m h d e").contiguous()


def _slab(x: Tensor, span: Span) -> Tensor:
    """A span's rows of `[B, N, H, d]` as a matrix `[rows, d]`, which they are in memory too."""
    return x[span.sequences, span.begin : span.end].view(-1, x.shape[-1])


def _last_blocks(k: Tensor, v: Tensor, blocks: Tensor, positions: Tensor) -> Tensor:
    """Sums `[B, L, 2, H, d]` of k and v over the block of each level that the last row is in."""
    levels, num_rows = blocks.shape[1], positions.shape[1]
    reach = min(num_rows, 2**levels)
    sizes = 2 ** torch.arange(1, levels + 1, device=k.device)
    last, recent = positions[:, -1:], positions[:, -reach:]
    same_document = last - recent == torch.arange(reach - 1, -1, -1, device=k.device)
    same_block = recent[..., None] // sizes == last[..., None] // sizes
    members = (same_document[..., None] & same_block).to(k.dtype)
    pair = torch.stack([k[:, -reach:], v[:, -reach:]], dim=2)
    sums = torch.einsum("brl,brphd->blphd", members, pair)
    continued = (last % sizes >= num_rows).to(k.dtype)
    return sums + continued[..., None, None, None] * blocks


@kernel
def _pack(q, k, v, mapped_k, mapped_v, positions, batch, begin, end, sums, packed_q, packed_k, packed_v):
    """Features of queries and of all streams' keys, and all streams' values, chunk by chunk; zeros past the end."""
    heads = q.shape[2]
    n, M, C, d = packed_k.shape[1:]
    one, zero = q.dtype.type(1), q.dtype.type(0)
    for x in prange(packed_q.shape[0]):
        b, h = x // heads, x % heads
        for c in range(n):
            first = begin + c * C
            rows = min(C, end - first)
            packed_q[x, c, rows:] = zero
            packed_k[x, c, :, rows:] = zero
            packed_v[x, c, :, rows:] = zero
            for i in range(rows):
                for a in range(d):
                    u = q[batch + b, first + i, h, a]
                    packed_q[x, c, i, a] = exp(min(u, zero)) + max(u, zero)
                for a in range(d):
                    u = k[batch + b, first + i, h, a]
                    packed_k[x, c, 0, i, a] = exp(min(u, zero)) + max(u, zero)
                for a in range(d):
                    packed_v[x, c, 0, i, a] = v[batch + b, first + i, h, a]
            for level in range(M - 1):
                for i in range(rows):
                    phase = positions[batch + b, first + i] & ((2 << level) - 1)
                    keep = zero if phase == 0 else one
                    share = one / q.dtype.type(phase + 1)
                    for a in range(d):
                        u = keep * sums[b, h, level, 0, a] + mapped_k[b, first - begin + i, h, level, a]
                        sums[b, h, level, 0, a] = u
                        u *= share
                        packed_k[x, c, level + 1, i, a] = exp(min(u, zero)) + max(u, zero)
                    for a in range(d):
                        u = keep * sums[b, h, level, 1, a] + mapped_v[b, first - begin + i, h, level, a]
                        sums[b, h, level, 1, a] = u
                        packed_v[x, c, level + 1, i, a] = u * share


@kernel
def _unpack(
    packed_q, packed_k, grad_q, grad_k, grad_v, positions, batch, begin, end, d_sums, dq, dk, dv, d_mapped_k, d_mapped_v
):
    """The gradient of :func:`_pack`, last row first; ``d_sums`` goes on into the segment before."""
    heads = dq.shape[2]
    n, M, C, d = packed_k.shape[1:]
    one, zero = dq.dtype.type(1), dq.dtype.type(0)
    for x in prange(packed_q.shape[0]):
        b, h = x // heads, x % heads
        for back in range(n):
            c = n - 1 - back
            first = begin + c * C
            rows = min(C, end - first)
            for i in range(rows):
                for a in range(d):
                    dq[batch + b, first + i, h, a] = grad_q[x, c, i, a] * min(packed_q[x, c, i, a], one)
                for a in range(d):
                    dk[batch + b, first + i, h, a] = grad_k[x, c, 0, i, a] * min(packed_k[x, c, 0, i, a], one)
                for a in range(d):
                    dv[batch + b, first + i, h, a] = grad_v[x, c, 0, i, a]
            for level in range(M - 1):
                for after in range(rows):
                    i = rows - 1 - after
                    phase = positions[batch + b, first + i] & ((2 << level) - 1)
                    keep = zero if phase == 0 else one
                    share = one / dq.dtype.type(phase + 1)
                    for a in range(d):
                        slope = min(packed_k[x, c, level + 1, i, a], one) * share
                        u = d_sums[b, h, level, 0, a] + grad_k[x, c, level + 1, i, a] * slope
                        d_mapped_k[b, first - begin + i, h, level, a] = u
                        d_sums[b, h, level, 0, a] = keep * u
                    for a in range(d):
                        u = d_sums[b, h, level, 1, a] + grad_v[x, c, level + 1, i, a] * share
                        d_mapped_v[b, first - begin + i, h, level, a] = u
                        d_sums[b, h, level, 1, a] = keep * u
