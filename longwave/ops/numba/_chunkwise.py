"""Linear attention by chunks, for streams of keys that share a query: the products and what lies between.

    o_i = sum_m c_im (sum_{j<=i} w_ij (q_i·k_mj) v_mj + w_i0 q_iᵀ S_m),   w_ij = prod of a_t, j < t <= i
    c_im = weight_m / max(the same sum without v, eps), or weight_m if not normalised

a_t in [0, 1] is the decay of row t; at the first row of a document it is 0, which is all that a document
border is. The keys of the M streams lie side by side, so that one product scores a chunk's queries against
all of them and one more mixes their values. PyTorch multiplies; the kernels here weigh what comes out.

Notation: X sequences (batch times heads), n chunks of C rows, d features, e value channels; ``S``
`[X, M, d, e]` and ``z`` `[X, M, d]` sum k vᵀ and k over the past. Everything is contiguous.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from longwave.ops.numba._adapter import kernel, prange

#: Elements of a segment's keys: its temporaries should stay in the cache.
SEGMENT_SIZE = 320 * 1024


class Scratch:
    """Named buffers that are reused from segment to segment, because fresh memory is slow to touch."""

    def __init__(self, like: Tensor) -> None:
        self.like = like
        self.buffers: dict[str, Tensor] = {}

    def __call__(self, name: str, *shape: int) -> Tensor:
        """An uninitialised tensor; the buffer of the same name grows when it must."""
        size = torch.Size(shape).numel()
        buffer = self.buffers.get(name)
        if buffer is None or buffer.numel() < size:
            buffer = self.buffers[name] = self.like.new_empty(size)
        return buffer[:size].view(shape)


class Span(NamedTuple):
    """Rows ``begin`` to ``end`` of ``num_sequences`` batch rows from ``batch`` on: their ``segment``-th piece."""

    segment: int
    batch: int
    num_sequences: int
    begin: int
    end: int

    @property
    def sequences(self) -> slice:
        """The batch rows."""
        return slice(self.batch, self.batch + self.num_sequences)


def spans(batch_size: int, num_rows: int, width: int, chunk: int, size: int = SEGMENT_SIZE) -> list[Span]:
    """The pieces that are worked on at a time, in order: parts of a long sequence, or several short ones.

    A piece has about ``size`` elements, ``width`` to a row, and a multiple of ``chunk`` rows.
    """
    length = max(1, size // (max(1, width) * chunk)) * chunk
    together = max(1, length // num_rows)
    return [
        Span(segment, batch, min(together, batch_size - batch), begin, min(begin + length, num_rows))
        for batch in range(0, batch_size, together)
        for segment, begin in enumerate(range(0, num_rows, length))
    ]


@dataclass(frozen=True)
class Segment:
    """Some chunks of every sequence, packed.

    ``q`` `[X, n, C, d]`, ``k`` `[X, n, M, C, d]`, ``v`` `[X, n, M, C, e]`; rows beyond the end are zero.
    ``decay`` `[X, n, C]`, or ``None`` if it is 1 throughout.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    decay: Tensor | None


@dataclass(frozen=True)
class Rule:
    """What turns scores into weights: ``weights`` `[M]` of the streams, and whether to normalise."""

    weights: Tensor
    normalize: bool
    eps: float


def forward_segment(segment: Segment, rule: Rule, S: Tensor, z: Tensor, scratch: Scratch) -> Tensor:
    """Outputs `[X, n, C, e]`; ``S`` and ``z`` are advanced in place."""
    X, n, C, d = segment.q.shape
    M, e = segment.k.shape[2], segment.v.shape[-1]
    decay, past, past_z, scores, _, _ = _recompute(segment, S, z, scratch)
    reads = scratch("reads", X * n, C, M * d)
    _weigh(scores, reads, segment.q.view(X * n, C, d), past_z, decay, rule.weights, rule.normalize, rule.eps)
    out = scratch("out", X * n, C, e)
    torch.bmm(scores, segment.v.view(X * n, M * C, e), out=out)
    torch.baddbmm(out, reads, past.view(X * n, M * d, e), out=out)
    return out.view(X, n, C, e)


def backward_segment(
    segment: Segment,
    rule: Rule,
    S: Tensor,
    z: Tensor,
    grad: Tensor,
    dS: Tensor,
    dz: Tensor,
    scratch: Scratch,
    d_log_decay: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of q, k, v (packed alike) and of the streams' weights `[M]`.

    ``grad`` `[X, n, C, e]` is that of the outputs. ``S``, ``z`` are the state before the segment and are
    advanced in place; ``dS``, ``dz`` are the gradients of the state after it and become those before it.
    ``d_log_decay`` `[X, n, C]`, if given, becomes the gradient of log a; for one stream that is not normalised.
    """
    X, n, C, d = segment.q.shape
    M, e = segment.k.shape[2], segment.v.shape[-1]
    q, grad = segment.q.view(X * n, C, d), grad.view(X * n, C, e)
    k, v = segment.k.view(X * n, M * C, d), segment.v.view(X * n, M * C, e)
    decay, past, past_z, scores, kept_k, kept_v = _recompute(segment, S, z, scratch)
    past = past.view(X * n, M * d, e)
    grad_scores = torch.bmm(grad, v.transpose(1, 2), out=scratch("grad_scores", X * n, C, M * C))
    reads = torch.bmm(grad, past.transpose(1, 2), out=scratch("reads", X * n, C, M * d))
    if d_log_decay is not None:
        assert M == 1
        assert not rule.normalize
        _differentiate_decay_within(scores, grad_scores, reads, q, decay, d_log_decay)
    dq, dz_chunk = scratch("dq", X * n, C, d), scratch("dz_chunk", X * n, M, d)
    d_weights = scratch("d_weights", X * n, M)
    _unweigh(
        *(scores, grad_scores, reads, q, past_z, decay, rule.weights, rule.normalize, rule.eps),
        *(dq, dz_chunk, d_weights),
    )
    dv = torch.bmm(scores.transpose(1, 2), grad, out=scratch("dv", X * n, M * C, e)).view(X * n * M, C, e)
    dk = torch.bmm(grad_scores.transpose(1, 2), q, out=scratch("dk", X * n, M * C, d)).view(X * n * M, C, d)
    torch.baddbmm(dq, grad_scores, k, out=dq)
    dS_chunk = torch.bmm(reads.transpose(1, 2), grad, out=scratch("dS_chunk", X * n, M * d, e))
    _carry_back(dS_chunk.view(X, n, M, d, e), dz_chunk.view(X, n, M, d), decay, dS, dz)
    dS_chunk = dS_chunk.view(X * n * M, d, e)
    torch.baddbmm(dv, kept_k.view(X * n * M, C, d), dS_chunk, out=dv)
    kept_v, dS_chunk_t = kept_v.view(X * n * M, C, e), dS_chunk.transpose(1, 2)
    if d_log_decay is None:
        torch.baddbmm(dk, kept_v, dS_chunk_t, out=dk)
    else:
        later = torch.bmm(kept_v, dS_chunk_t, out=scratch("later", *dk.shape))
        _differentiate_decay_between(k, later, past, dS_chunk, decay, d_log_decay)
        dk.add_(later)
    _add_normaliser(dk.view(X, n, M, C, d), dz_chunk.view(X, n, M, d), decay)
    return (
        dq.view(X, n, C, d),
        dk.view(X, n, M, C, d),
        dv.view(X, n, M, C, e),
        d_weights.sum(dim=0),
    )


def _recompute(segment: Segment, S: Tensor, z: Tensor, scratch: Scratch) -> tuple[Tensor, ...]:
    """Decay, each chunk's past, the raw scores, and keys and values as the next chunk will see them."""
    X, n, C, d = segment.q.shape
    M, e = segment.k.shape[2], segment.v.shape[-1]
    kept_k, kept_v, decay = segment.k, segment.v, segment.decay
    if decay is None:
        decay = scratch("ones", X, n, C).fill_(1)
    else:
        kept_k, kept_v = scratch("kept_k", X, n, M, C, d), scratch("kept_v", X, n, M, C, e)
        _keep(segment.k, segment.v, decay, kept_k, kept_v)
    past, past_z = scratch("past", X, n, M, d, e), scratch("past_z", X, n, M, d)
    keys = segment.k.view(X * n * M, C, d).transpose(1, 2)
    torch.bmm(keys, kept_v.view(X * n * M, C, e), out=past.view(X * n * M, d, e))
    _carry(past, past_z, kept_k, decay, S, z)
    scores = scratch("scores", X * n, C, M * C)
    torch.bmm(segment.q.view(X * n, C, d), segment.k.view(X * n, M * C, d).transpose(1, 2), out=scores)
    return decay, past, past_z.view(X * n, M, d), scores, kept_k, kept_v


@kernel
def pack(source, batch, begin, end, out):
    """Rows ``begin`` to ``end`` of ``source`` `[B, N, H', c]` into ``out`` `[b, H, n, C, c]`, zeros after them.

    With fewer heads in the source than in ``out``, they repeat.
    """
    num_sequences, heads, n, C, _ = out.shape
    for task in prange(num_sequences * heads):
        b, h = task // heads, task % heads
        for c in range(n):
            for i in range(C):
                row = begin + c * C + i
                target = out[b, h, c, i]
                if row < end:
                    target[:] = source[batch + b, row, h % source.shape[2]]
                else:
                    target[:] = 0


@kernel
def unpack(packed, batch, begin, end, out):
    """The way back of :func:`pack`: repeated heads add up."""
    num_sequences, heads, _, C, _ = packed.shape
    targets = out.shape[2]
    for task in prange(num_sequences * targets):
        b, target = task // targets, task % targets
        for row in range(begin, end):
            c, i = (row - begin) // C, (row - begin) % C
            out[batch + b, row, target] = packed[b, target, c, i]
            for h in range(target + targets, heads, targets):
                out[batch + b, row, target] += packed[b, h, c, i]


@kernel
def _keep(k, v, decay, kept_k, kept_v):
    """Weigh each key and value by the decay that follows it in its chunk."""
    X, n, M, C, _ = k.shape
    for x in prange(X):
        for c in range(n):
            keep = decay.dtype.type(1)
            for back in range(C):
                i = C - 1 - back
                for m in range(M):
                    kept_k[x, c, m, i] = k[x, c, m, i] * keep
                    kept_v[x, c, m, i] = v[x, c, m, i] * keep
                keep *= decay[x, c, i]


@kernel
def _carry(past, past_z, kept_k, decay, S, z):
    """From each chunk's own sums to the sums before it; the state ends after the last chunk."""
    X, n, M, d, e = past.shape
    C = kept_k.shape[3]
    for task in prange(X * M):
        x, m = task // M, task % M
        state, normaliser = S[x, m], z[x, m]
        for c in range(n):
            through = decay.dtype.type(1)
            for i in range(C):
                through *= decay[x, c, i]
            own = past[x, c, m]
            for a in range(d):
                row, total = own[a], state[a]
                for b in range(e):
                    before = total[b]
                    total[b] = before * through + row[b]
                    row[b] = before
            before_z = past_z[x, c, m]
            for a in range(d):
                before_z[a] = normaliser[a]
                normaliser[a] *= through
            for i in range(C):
                key = kept_k[x, c, m, i]
                for a in range(d):
                    normaliser[a] += key[a]


@kernel
def _carry_back(dS_chunk, dz_chunk, decay, dS, dz):
    """The same backwards: from the gradients of what each chunk read to those of what it leaves behind."""
    X, n, M, d, e = dS_chunk.shape
    C = decay.shape[2]
    for task in prange(X * M):
        x, m = task // M, task % M
        state, normaliser = dS[x, m], dz[x, m]
        for back in range(n):
            c = n - 1 - back
            through = decay.dtype.type(1)
            for i in range(C):
                through *= decay[x, c, i]
            own = dS_chunk[x, c, m]
            for a in range(d):
                row, total = own[a], state[a]
                for b in range(e):
                    after = total[b]
                    total[b] = after * through + row[b]
                    row[b] = after
            own_z = dz_chunk[x, c, m]
            for a in range(d):
                after = normaliser[a]
                normaliser[a] = after * through + own_z[a]
                own_z[a] = after


@kernel
def _weigh(scores, reads, q, past_z, decay, weights, normalize, eps):
    """Scores become weights, and ``reads`` the queries that the past's states are multiplied by."""
    tasks, C, d = q.shape
    M = weights.shape[0]
    one, zero, floor = q.dtype.type(1), q.dtype.type(0), q.dtype.type(eps)
    for task in prange(tasks):
        decays = decay.reshape(tasks, C)[task]
        within = np.zeros(C, q.dtype)
        read = one
        for i in range(C):
            for j in range(C):
                within[j] *= decays[i]
            within[i] = one
            read *= decays[i]
            query = q[task, i]
            for m in range(M):
                row = scores[task, i, m * C : (m + 1) * C]
                out = reads[task, i, m * d : (m + 1) * d]
                key = past_z[task, m]
                total, old = zero, zero
                for j in range(C):
                    row[j] *= within[j]
                    total += row[j]
                for a in range(d):
                    old += query[a] * key[a]
                scale = weights[m]
                if normalize:
                    scale /= max(total + read * old, floor)
                for j in range(C):
                    row[j] *= scale
                scale *= read
                for a in range(d):
                    out[a] = scale * query[a]


@kernel
def _unweigh(scores, grad_scores, reads, q, past_z, decay, weights, normalize, eps, dq, dz_chunk, d_weights):
    """The gradient of :func:`_weigh`, whose results it recomputes in place.

    ``grad_scores`` comes in as the gradient of the weights and leaves as that of the scores; ``reads`` comes
    in as grad·Sᵀ and leaves as the weighted queries.
    """
    tasks, C, d = q.shape
    M = weights.shape[0]
    one, zero, floor = q.dtype.type(1), q.dtype.type(0), q.dtype.type(eps)
    for task in prange(tasks):
        decays = decay.reshape(tasks, C)[task]
        within = np.zeros(C, q.dtype)
        read = one
        dz_chunk[task] = zero
        d_weights[task] = zero
        dq[task] = zero
        for i in range(C):
            for j in range(C):
                within[j] *= decays[i]
            within[i] = one
            read *= decays[i]
            query, d_query = q[task, i], dq[task, i]
            for m in range(M):
                row = scores[task, i, m * C : (m + 1) * C]
                grad = grad_scores[task, i, m * C : (m + 1) * C]
                through_past = reads[task, i, m * d : (m + 1) * d]
                key, d_key = past_z[task, m], dz_chunk[task, m]
                total, agreement = zero, zero
                for j in range(C):
                    row[j] *= within[j]
                    total += row[j]
                    agreement += row[j] * grad[j]
                old, agreement_old = zero, zero
                for a in range(d):
                    old += query[a] * key[a]
                    agreement_old += query[a] * through_past[a]
                total += read * old
                agreement += read * agreement_old
                scale, d_total = weights[m], zero
                if normalize:
                    inverse = one / max(total, floor)
                    scale *= inverse
                    agreement *= inverse
                    if total > floor:
                        d_total = -scale * agreement
                d_weights[task, m] += agreement
                for j in range(C):
                    grad[j] = within[j] * (scale * grad[j] + d_total)
                    row[j] *= scale
                scale *= read
                d_total *= read
                for a in range(d):
                    d_query[a] += scale * through_past[a] + d_total * key[a]
                    d_key[a] += d_total * query[a]
                    through_past[a] = scale * query[a]


@kernel
def _differentiate_decay_within(scores, grad_scores, reads, q, decay, d_log_decay):
    """Row t's decay scales what rows i >= t of its chunk read of rows j < t and of the past.

    So its gradient sums these products, and no others: sums over all rows, subtracted, would leave only their
    rounding where a decay is strong or another document is large. ``scores`` and ``reads`` are still raw.
    """
    tasks, C, d = q.shape
    one, zero = q.dtype.type(1), q.dtype.type(0)
    for task in prange(tasks):
        decays, target = decay.reshape(tasks, C)[task], d_log_decay.reshape(tasks, C)[task]
        within, pairs, from_past = np.zeros(C, q.dtype), np.empty((C, C), q.dtype), np.empty(C, q.dtype)
        read = one
        for i in range(C):
            for j in range(C):
                within[j] *= decays[i]
            within[i] = one
            read *= decays[i]
            row, score, grad, query, old = pairs[i], scores[task, i], grad_scores[task, i], q[task, i], reads[task, i]
            for j in range(C):
                row[j] = within[j] * score[j] * grad[j]
            total = zero
            for a in range(d):
                total += query[a] * old[a]
            from_past[i] = read * total
        column, past = np.zeros(C, q.dtype), zero
        for back in range(C):
            t = C - 1 - back
            row = pairs[t]
            past += from_past[t]
            total = past
            for j in range(C):
                column[j] += row[j]
            for j in range(t):
                total += column[j]
            target[t] = total


@kernel
def _differentiate_decay_between(k, later, past, dS, decay, d_log_decay):
    """It also scales what rows j < t of its chunk and the past leave behind for later chunks."""
    tasks, C, d = k.shape
    e = past.shape[2]
    one, zero = k.dtype.type(1), k.dtype.type(0)
    for task in prange(tasks):
        decays, target = decay.reshape(tasks, C)[task], d_log_decay.reshape(tasks, C)[task]
        through, total = one, zero
        for i in range(C):
            through *= decays[i]
        for a in range(d):
            old, gradient = past[task, a], dS[task, a]
            for b in range(e):
                total += old[b] * gradient[b]
        total *= through
        for t in range(C):
            target[t] += total
            key, gradient = k[task, t], later[task, t]
            for a in range(d):
                total += key[a] * gradient[a]


@kernel
def _add_normaliser(dk, dz_chunk, decay):
    """Every key went into z too."""
    X, n, M, C, d = dk.shape
    for x in prange(X):
        for c in range(n):
            keep = decay.dtype.type(1)
            for back in range(C):
                i = C - 1 - back
                for m in range(M):
                    row, normaliser = dk[x, c, m, i], dz_chunk[x, c, m]
                    for a in range(d):
                        row[a] += keep * normaliser[a]
                keep *= decay[x, c, i]
