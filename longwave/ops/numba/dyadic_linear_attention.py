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
from longwave.ops.numba._adapter import exp, kernel, prange
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


@torch.library.custom_op("longwave::dyadic_linear_attention_numba", mutates_args=())
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
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Outputs, the final memory, and memory and block sums at the segments' beginnings.

    ``sums`` `[B, L, 2, H, d]` are the mapped sums of the blocks that the piece continues.
    """
    q, k, v = q.contiguous(), k.contiguous(), v.contiguous()
    work = _Work(q, k, v, key_maps, value_maps, mixture, positions, eps, chunk_size)
    out, memory, sums = torch.empty_like(q), memory.clone(), rearrange(sums, "b l p h d -> b h l p d").clone()
    saved = q.new_empty(work.num_saved, *memory.shape)
    saved_sums = q.new_empty(work.num_saved, *sums.shape)
    for index, span in work.plan:
        rows = slice(span.batch, span.batch + span.num_sequences)
        saved[index, rows], saved_sums[index, rows] = memory[rows], sums[rows]
        S, z = work.load(memory, span)
        packed = forward_segment(work.segment(span, sums), work.rule, S, z, work.scratch)
        unpack(packed.view(span.num_sequences, -1, *packed.shape[1:]), span.batch, span.begin, span.end, out)
        work.store(S, z, memory, span)
    return out, memory, saved, saved_sums


@torch.library.custom_op("longwave::dyadic_linear_attention_numba_backward", mutates_args=())
def _backward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    key_maps: Tensor,
    value_maps: Tensor,
    mixture: Tensor,
    positions: Tensor,
    saved: Tensor,
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
    d_memory, d_sums, scratch = grad_memory.clone(), torch.zeros_like(saved_sums[0]), work.scratch
    for index, span in reversed(work.plan):
        b, (X, n, C, d) = span.num_sequences, work.shape(span)
        segment = work.segment(span, saved_sums[index].clone())
        packed_grad = scratch("grad", X, n, C, d)
        pack(grad, span.batch, span.begin, span.end, packed_grad.view(b, -1, n, C, d))
        S, z = work.load(saved[index], span)
        dS, dz = work.load(d_memory, span, prefix="d")
        gradients = backward_segment(segment, work.rule, S, z, packed_grad, dS, dz, scratch)
        work.store(dS, dz, d_memory, span)
        d_mixture += gradients[3]
        mapped = work.mapped(span)
        _unpack(
            *(segment.q, segment.k, *gradients[:3], positions, span.batch, span.begin, span.end),
            *(d_sums, dq, dk, dv, *mapped),
        )
        for side, (source, d_source) in enumerate(((k, dk), (v, dv))):
            rows = _slab(source, span)
            d_mapped = mapped[side].view(len(rows), work.levels * d)
            _slab(d_source, span).addmm_(d_mapped, work.maps[side])
            d_maps[side].addmm_(d_mapped.t(), rows)
    d_key_maps, d_value_maps = d_maps.view(2, *key_maps.shape).unbind()
    return (
        *(dq, dk, dv, d_key_maps.clone(), d_value_maps.clone(), d_mixture, d_memory),
        rearrange(d_sums, "b h l p d -> b l p h d").contiguous(),
    )


@_forward.register_fake
def _(q, k, v, key_maps, value_maps, mixture, memory, sums, positions, eps, chunk_size):
    work = _Work(q, k, v, key_maps, value_maps, mixture, positions, eps, chunk_size)
    batch_size, levels, pair, heads, width = sums.shape
    saved_sums = q.new_empty(work.num_saved, batch_size, heads, levels, pair, width)
    return torch.empty_like(q), torch.empty_like(memory), q.new_empty(work.num_saved, *memory.shape), saved_sums


@_backward.register_fake
def _(q, k, v, key_maps, value_maps, mixture, positions, saved, saved_sums, grad, grad_memory, eps, chunk_size):
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
        cuts = spans(batch_size, num_rows, heads, self.chunk)
        begins = sorted({span.begin for span in cuts})
        self.plan = [(begins.index(span.begin), span) for span in cuts]
        self.num_saved = len(begins)
        self.scratch = Scratch(q)

    def shape(self, span: Span) -> tuple[int, int, int, int]:
        """X, n, C and d of a segment."""
        return span.num_sequences * self.heads, -(-(span.end - span.begin) // self.chunk), self.chunk, self.width

    def mapped(self, span: Span) -> tuple[Tensor, Tensor]:
        """Room for a segment's mapped keys and values, `[b, rows, H, L, d]` each."""
        shape = (span.num_sequences, span.end - span.begin, self.heads, self.levels, self.width)
        return self.scratch("mapped_k", *shape), self.scratch("mapped_v", *shape)

    def segment(self, span: Span, sums: Tensor) -> Segment:
        """Features and values of all streams; ``sums`` `[B, H, L, 2, d]` are advanced in place."""
        X, n, C, d = self.shape(span)
        mapped = self.mapped(span)
        for side, source in enumerate((self.k, self.v)):
            rows = _slab(source, span)
            torch.mm(rows, self.maps[side].t(), out=mapped[side].view(len(rows), self.levels * d))
        streams = (X, n, self.levels + 1, C, d)
        packed = self.scratch("q", X, n, C, d), self.scratch("k", *streams), self.scratch("v", *streams)
        _pack(
            *(self.q, self.k, self.v, *mapped, self.positions, span.batch, span.begin, span.end),
            *(sums, *packed),
        )
        return Segment(*packed, self._decay(span))

    def load(self, memory: Tensor, span: Span, prefix: str = "") -> tuple[Tensor, Tensor]:
        """A copy of the span's memory `[B, M, H, d, d + 1]` as S and z."""
        rows = rearrange(memory[span.batch : span.batch + span.num_sequences], "b m h d e -> b h m d e")
        shape = (span.num_sequences * self.heads, self.levels + 1, self.width)
        S, z = self.scratch(f"{prefix}S", *shape, self.width), self.scratch(f"{prefix}z", *shape)
        S.view(rows[..., :-1].shape).copy_(rows[..., :-1])
        z.view(rows[..., -1].shape).copy_(rows[..., -1])
        return S, z

    def store(self, S: Tensor, z: Tensor, memory: Tensor, span: Span) -> None:
        """The way back of :meth:`load`."""
        rows = rearrange(memory[span.batch : span.batch + span.num_sequences], "b m h d e -> b h m d e")
        rows[..., :-1] = S.view(rows[..., :-1].shape)
        rows[..., -1] = z.view(rows[..., -1].shape)

    def _decay(self, span: Span) -> Tensor | None:
        """0 where a document begins, 1 elsewhere; ``None`` if none begins after the piece's first row."""
        begin = max(span.begin, 1)
        begins = self.positions[span.batch : span.batch + span.num_sequences, begin : span.end] == 0
        if not begins.any():
            return None
        X, n, C, _ = self.shape(span)
        decay = self.scratch("decay", X, n, C)
        marks = (self.positions == 0).to(decay.dtype)[..., None, None]
        pack(marks, span.batch, span.begin, span.end, decay.view(span.num_sequences, self.heads, n, C, 1))
        return decay.neg_().add_(1)


def _slab(x: Tensor, span: Span) -> Tensor:
    """A span's rows of `[B, N, H, d]` as a matrix `[rows, d]`, which they are in memory too."""
    return x[span.batch : span.batch + span.num_sequences, span.begin : span.end].view(-1, x.shape[-1])


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
    """Features of queries and of all streams' keys, and all streams' values, chunk by chunk."""
    heads = q.shape[2]
    n, M, C, d = packed_k.shape[1:]
    one, zero = q.dtype.type(1), q.dtype.type(0)
    for x in prange(packed_q.shape[0]):
        b, h = x // heads, x % heads
        for c in range(n):
            for i in range(C):
                row = begin + c * C + i
                to_q = packed_q[x, c, i]
                if row >= end:
                    to_q[:] = zero
                    for m in range(M):
                        packed_k[x, c, m, i] = zero
                        packed_v[x, c, m, i] = zero
                    continue
                from_q, from_k, from_v = q[batch + b, row, h], k[batch + b, row, h], v[batch + b, row, h]
                to_k, to_v = packed_k[x, c, 0, i], packed_v[x, c, 0, i]
                for a in range(d):
                    to_q[a] = exp(min(from_q[a], zero)) + max(from_q[a], zero)
                    to_k[a] = exp(min(from_k[a], zero)) + max(from_k[a], zero)
                    to_v[a] = from_v[a]
                position = positions[batch + b, row]
                for level in range(M - 1):
                    phase = position & ((2 << level) - 1)
                    keep = zero if phase == 0 else one
                    share = one / q.dtype.type(phase + 1)
                    sum_k, sum_v = sums[batch + b, h, level, 0], sums[batch + b, h, level, 1]
                    from_k, from_v = mapped_k[b, row - begin, h, level], mapped_v[b, row - begin, h, level]
                    to_k, to_v = packed_k[x, c, level + 1, i], packed_v[x, c, level + 1, i]
                    for a in range(d):
                        sum_k[a] = keep * sum_k[a] + from_k[a]
                        sum_v[a] = keep * sum_v[a] + from_v[a]
                        mean = sum_k[a] * share
                        to_k[a] = exp(min(mean, zero)) + max(mean, zero)
                        to_v[a] = sum_v[a] * share


@kernel
def _unpack(
    packed_q, packed_k, grad_q, grad_k, grad_v, positions, batch, begin, end, d_sums, dq, dk, dv, d_mapped_k, d_mapped_v
):
    """The gradient of :func:`_pack`, last row first; ``d_sums`` goes on into the segment before."""
    heads = dq.shape[2]
    M, C, d = packed_k.shape[2:]
    one, zero = dq.dtype.type(1), dq.dtype.type(0)
    for x in prange(packed_q.shape[0]):
        b, h = x // heads, x % heads
        for back in range(end - begin):
            row = end - 1 - back
            c, i = (row - begin) // C, (row - begin) % C
            to_q, to_k, to_v = dq[batch + b, row, h], dk[batch + b, row, h], dv[batch + b, row, h]
            query, key = packed_q[x, c, i], packed_k[x, c, 0, i]
            from_q, from_k, from_v = grad_q[x, c, i], grad_k[x, c, 0, i], grad_v[x, c, 0, i]
            for a in range(d):
                to_q[a] = from_q[a] * min(query[a], one)
                to_k[a] = from_k[a] * min(key[a], one)
                to_v[a] = from_v[a]
            position = positions[batch + b, row]
            for level in range(M - 1):
                phase = position & ((2 << level) - 1)
                keep = zero if phase == 0 else one
                share = one / dq.dtype.type(phase + 1)
                sum_k, sum_v = d_sums[batch + b, h, level, 0], d_sums[batch + b, h, level, 1]
                key, from_k = packed_k[x, c, level + 1, i], grad_k[x, c, level + 1, i]
                from_v = grad_v[x, c, level + 1, i]
                to_k, to_v = d_mapped_k[b, row - begin, h, level], d_mapped_v[b, row - begin, h, level]
                for a in range(d):
                    to_k[a] = sum_k[a] + from_k[a] * min(key[a], one) * share
                    to_v[a] = sum_v[a] + from_v[a] * share
                    sum_k[a] = keep * to_k[a]
                    sum_v[a] = keep * to_v[a]
