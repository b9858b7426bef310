"""Windowed softmax attention on a CPU, by pairs of blocks and without a mask.

Queries and keys are cut into blocks of C rows, kept block-major: the keys `o` blocks before every query block are
then one slice of memory, and one product scores all query blocks of a segment against them. One pass turns the
scores of a query against the few blocks it can see into weights. The backward pass makes them again.

Notation: X key/value heads of all batch rows, r query heads to each of them, n query blocks, m earlier blocks.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from longwave.ops._distances import Given, Reads, attend
from longwave.ops.numba._adapter import exp, kernel, operator, prange
from longwave.ops.numba._chunkwise import Scratch, Span, spans
from longwave.ops.numba._distances import mix, score

#: Rows (batch times tokens) from which this form was measured to beat torch's.
PAYS_FROM = 128
LARGEST_BLOCK, SMALLEST_BLOCK = 32, 16
#: Elements of the keys that a segment's queries see.
SEGMENT_SIZE = 512 * 1024


def offset_attention_numba(
    q: Given, k: Given, v: Tensor, past: Tensor | None, positions: Tensor, reads: Reads
) -> Tensor:
    """See :func:`longwave.ops.offset_attention.offset_attention_torch`."""
    if reads.window is None:
        return attend(q, k, v, past, positions, reads, score, mix)
    if past is None:
        past = k.new_zeros(k.shape[0], 0, 2, *k.shape[2:])
    return _forward(q, k, v, past, positions, reads.window)


@operator("offset_attention_numba")
def _forward(q: Tensor, k: Tensor, v: Tensor, past: Tensor, positions: Tensor, window: int) -> Tensor:
    work = _Work(q, k, v, past, positions, window)
    out = torch.empty_like(work.q)
    for span in work.plan:
        _, _, values, weights = work.load(span)
        mixed = work.mix("mixed", weights, values)
        _unpack_queries(mixed.view(work.packed(span)), span.batch, span.begin, span.end, 1.0, out)
    return out


@operator("offset_attention_numba_backward")
def _backward(
    q: Tensor, k: Tensor, v: Tensor, past: Tensor, positions: Tensor, grad: Tensor, window: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of q, k, v and past."""
    work = _Work(q, k, v, past, positions, window)
    grad, dq = grad.contiguous(), torch.empty_like(work.q)
    dk, dv, d_past = torch.zeros_like(work.k), torch.zeros_like(work.v), torch.zeros_like(work.past)
    for span in work.plan:
        queries, keys, values, weights = work.load(span)
        outputs = work.scratch("grad", *work.packed(span))
        _pack_queries(grad, span.batch, span.begin, span.end, 1.0, outputs)
        outputs = outputs.view(queries.shape)
        d_weights = work.score("d_weights", outputs, values)
        _differentiate_softmax(weights, d_weights)
        d_queries = work.mix("d_queries", d_weights, keys)
        d_keys = work.scatter("d_keys", d_weights, queries, keys)
        d_values = work.scatter("d_values", weights, outputs, values)
        _unpack_queries(d_queries.view(work.packed(span)), span.batch, span.begin, span.end, work.scale, dq)
        _unpack_keys(d_keys, 0, span.batch, work.first(span), span.end, dk, d_past)
        _unpack_keys(d_values, 1, span.batch, work.first(span), span.end, dv, d_past)
    return dq, dk, dv, d_past


@_forward.register_fake
def _(q, k, v, past, positions, window):
    return torch.empty_like(q, memory_format=torch.contiguous_format)


@_backward.register_fake
def _(q, k, v, past, positions, grad, window):
    return tuple(torch.empty_like(x, memory_format=torch.contiguous_format) for x in (q, k, v, past))


def _save(ctx, inputs, output):
    *tensors, ctx.window = inputs
    ctx.save_for_backward(*tensors)


def _differentiate(ctx, grad):
    return *_backward(*ctx.saved_tensors, grad, ctx.window), None, None


_forward.register_autograd(_differentiate, setup_context=_save)


class _Work:
    """The plan of one call, and the products between blocks."""

    def __init__(self, q: Tensor, k: Tensor, v: Tensor, past: Tensor, positions: Tensor, window: int) -> None:
        self.q, self.k, self.v, self.past = (x.contiguous() for x in (q, k, v, past))
        self.positions, self.window = positions, window
        batch_size, num_rows, heads, self.width = q.shape
        self.kv_heads, self.group = k.shape[2], heads // k.shape[2]
        self.scale = self.width**-0.5
        fitting = 1 << (window - 1).bit_length()
        self.block = min(LARGEST_BLOCK, max(SMALLEST_BLOCK, fitting), num_rows)
        self.earlier = -(-(window - 1) // self.block)
        self.plan = spans(batch_size, num_rows, (self.earlier + 1) * heads * self.width, self.block, SEGMENT_SIZE)
        self.scratch = Scratch(self.q)

    def first(self, span: Span) -> int:
        """The first key row that the span's blocks reach, below 0 for the past."""
        return span.begin - self.earlier * self.block

    def packed(self, span: Span) -> tuple[int, ...]:
        """n, b, G, r, C, d of the span's queries."""
        blocks = -(-(span.end - span.begin) // self.block)
        return blocks, span.num_sequences, self.kv_heads, self.group, self.block, self.width

    def load(self, span: Span) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Queries `[n X, r C, d]`, keys and values `[m + n, X, C, d]`, weights `[m + 1, n X, r C, C]`."""
        n, b, kv_heads, group, block, width = shape = self.packed(span)
        queries = self.scratch("queries", *shape)
        _pack_queries(self.q, span.batch, span.begin, span.end, self.scale, queries)
        queries = queries.view(n * b * kv_heads, group * block, width)
        sides = []
        for side, (name, rows) in enumerate((("keys", self.k), ("values", self.v))):
            packed = self.scratch(name, self.earlier + n, b * kv_heads, block, width)
            _pack_keys(rows, self.past, side, span.batch, self.first(span), span.end, packed)
            sides.append(packed)
        weights = self.score("weights", queries, sides[0])
        _softmax(weights, self.positions, span.batch, span.begin, self.window, kv_heads, b * kv_heads)
        return queries, *sides, weights

    def score(self, name: str, queries: Tensor, keys: Tensor) -> Tensor:
        """Each query block times the keys of its own block and of the m before it: `[m + 1, n X, r C, C]`."""
        scores = self.scratch(name, self.earlier + 1, *queries.shape[:2], self.block)
        for offset, target in enumerate(scores):
            torch.bmm(queries, self._beside(keys, offset).transpose(1, 2), out=target)
        return scores

    def mix(self, name: str, weights: Tensor, values: Tensor) -> Tensor:
        """Sum of weights times values over the blocks: `[n X, r C, d]`."""
        out = self.scratch(name, *weights.shape[1:3], self.width)
        for offset, part in enumerate(weights):
            if offset:
                torch.baddbmm(out, part, self._beside(values, offset), out=out)
            else:
                torch.bmm(part, self._beside(values, 0), out=out)
        return out

    def scatter(self, name: str, weights: Tensor, rows: Tensor, like: Tensor) -> Tensor:
        """What each key block receives from the queries that see it: `[m + n, X, C, d]`."""
        total = self.scratch(name, *like.shape).zero_()
        for offset, part in enumerate(weights):
            target = self._beside(total, offset)
            torch.baddbmm(target, part.transpose(1, 2), rows, out=target)
        return total

    def _beside(self, keys: Tensor, offset: int) -> Tensor:
        n = keys.shape[0] - self.earlier
        return keys[offset : offset + n].view(-1, self.block, self.width)


@kernel
def _pack_queries(source, batch, begin, end, scale, packed):
    """`[B, N, G r, d]` to `[n, b, G, r, C, d]` times ``scale``; zeros past the end."""
    n, num_sequences, heads, group, C, d = packed.shape
    factor = packed.dtype.type(scale)
    for task in prange(n * num_sequences * heads):
        c, b, g = task // (num_sequences * heads), task // heads % num_sequences, task % heads
        first = begin + c * C
        rows = min(C, end - first)
        for r in range(group):
            packed[c, b, g, r, rows:] = 0
            for i in range(rows):
                for a in range(d):
                    packed[c, b, g, r, i, a] = factor * source[batch + b, first + i, g * group + r, a]


@kernel
def _unpack_queries(packed, batch, begin, end, scale, out):
    """The way back."""
    n, num_sequences, heads, group, C, d = packed.shape
    factor = packed.dtype.type(scale)
    for task in prange(n * num_sequences * heads):
        c, b, g = task // (num_sequences * heads), task // heads % num_sequences, task % heads
        first = begin + c * C
        for r in range(group):
            for i in range(min(C, end - first)):
                for a in range(d):
                    out[batch + b, first + i, g * group + r, a] = factor * packed[c, b, g, r, i, a]


@kernel
def _pack_keys(source, past, side, batch, begin, end, packed):
    """Rows from ``begin``, below 0 out of the past, into `[m + n, X, C, d]`; zeros where there are none."""
    blocks, X, C, d = packed.shape
    heads, reach = source.shape[2], past.shape[1]
    for task in prange(blocks * X):
        c, x = task // X, task % X
        b, g = batch + x // heads, x % heads
        for i in range(C):
            row = begin + c * C + i
            if 0 <= row < end:
                for a in range(d):
                    packed[c, x, i, a] = source[b, row, g, a]
            elif -reach <= row < 0:
                for a in range(d):
                    packed[c, x, i, a] = past[b, reach + row, side, g, a]
            else:
                packed[c, x, i] = 0


@kernel
def _unpack_keys(packed, side, batch, begin, end, out, past):
    """Add to the rows that :func:`_pack_keys` took; neighbouring segments share some."""
    blocks, X, C, d = packed.shape
    heads, reach = out.shape[2], past.shape[1]
    for x in prange(X):
        b, g = batch + x // heads, x % heads
        for c in range(blocks):
            for i in range(C):
                row = begin + c * C + i
                if 0 <= row < end:
                    for a in range(d):
                        out[b, row, g, a] += packed[c, x, i, a]
                elif -reach <= row < 0:
                    for a in range(d):
                        past[b, reach + row, side, g, a] += packed[c, x, i, a]


@kernel
def _softmax(weights, positions, batch, begin, window, heads, X):
    """Scores become weights in place: 0 outside the window and the document."""
    parts, tasks, rows, C = weights.shape
    kind = weights.dtype.type
    zero, lowest = kind(0), kind(-np.inf)
    for task in prange(tasks):
        c, b = task // X, batch + task % X // heads
        columns = np.arange(C).astype(weights.dtype)  # distances in the weights' own type stay in its vectors
        for i in range(rows):
            row = begin + c * C + i % C
            depth = kind(min(window - 1, positions[b, row])) if row < positions.shape[1] else zero
            largest, total = lowest, zero
            for part in range(parts):
                shift = kind(i % C + (parts - 1 - part) * C)
                for j in range(C):
                    distance = shift - columns[j]
                    visible = (distance >= zero) & (distance <= depth)
                    largest = max(largest, weights[part, task, i, j] if visible else lowest)
            for part in range(parts):
                shift = kind(i % C + (parts - 1 - part) * C)
                for j in range(C):
                    distance = shift - columns[j]
                    visible = (distance >= zero) & (distance <= depth)
                    weight = exp(weights[part, task, i, j] - largest) if visible else zero
                    weights[part, task, i, j] = weight
                    total += weight
            share = kind(1) / total
            for part in range(parts):
                for j in range(C):
                    weights[part, task, i, j] *= share


@kernel
def _differentiate_softmax(weights, d_weights):
    """The gradient of the weights becomes that of the scores, in place."""
    parts, tasks, rows, C = weights.shape
    for task in prange(tasks):
        for i in range(rows):
            agreement = weights.dtype.type(0)
            for part in range(parts):
                for j in range(C):
                    agreement += weights[part, task, i, j] * d_weights[part, task, i, j]
            for part in range(parts):
                for j in range(C):
                    d_weights[part, task, i, j] = weights[part, task, i, j] * (d_weights[part, task, i, j] - agreement)
