"""Products of rows with rows at fixed distances behind them, rows side by side.

Of a head, rows lie along the vectors, `[d, N]`: the rows at one distance behind n consecutive ones are then n
consecutive columns, and every product is a sum of products of columns, whatever the distances are. `score` and
`mix` are each other's gradients, with `scatter` for what lies behind.

Notation: T distances, R the largest; the known rows `[B, P + N, G, d]` begin P rows before the others `[B, N, H, d]`;
head h looks at group h // (H / G); weights are `[B, H, T, N]`. What lies before the known rows is zero.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.library import custom_op

from longwave.ops.numba._adapter import kernel, prange

#: Rows of a block: a block of one head and its weights should stay in the second-level cache.
LANES = 128


@custom_op("longwave::distances_score_numba", mutates_args=())
def score(rows: Tensor, known: Tensor, distances: list[int]) -> Tensor:
    """s_{t,i} = rows_i · known_{i - distance_t}: `[B, H, T, N]`."""
    batch_size, num_rows, heads, _ = rows.shape
    out = rows.new_empty(batch_size, heads, len(distances), num_rows)
    _score(rows.contiguous(), _columns(known, num_rows, distances), torch.tensor(distances), out, LANES)
    return out


@custom_op("longwave::distances_mix_numba", mutates_args=())
def mix(weights: Tensor, known: Tensor, distances: list[int]) -> Tensor:
    """o_i = sum_t weights_{t,i} known_{i - distance_t}: `[B, N, H, d]`."""
    batch_size, heads, _, num_rows = weights.shape
    out = known.new_empty(batch_size, num_rows, heads, known.shape[3])
    _mix(weights.contiguous(), _columns(known, num_rows, distances), torch.tensor(distances), out, LANES)
    return out


@custom_op("longwave::distances_scatter_numba", mutates_args=())
def scatter(weights: Tensor, rows: Tensor, distances: list[int], num_known: int, groups: int) -> Tensor:
    """What each known row receives, sum of weights_{t,i} rows_i over the i that look at it: `[B, P + N, G, d]`."""
    batch_size, num_rows, _, width = rows.shape
    columns = rows.new_zeros(batch_size, groups, width, max(distances) + num_rows)
    _scatter(weights.contiguous(), rows.contiguous(), torch.tensor(distances), columns, LANES)
    out = rows.new_empty(batch_size, num_known, groups, width)
    _to_rows(columns, out)
    return out


@score.register_fake
def _(rows, known, distances):
    return rows.new_empty(rows.shape[0], rows.shape[2], len(distances), rows.shape[1])


@mix.register_fake
def _(weights, known, distances):
    return known.new_empty(weights.shape[0], weights.shape[3], weights.shape[1], known.shape[3])


@scatter.register_fake
def _(weights, rows, distances, num_known, groups):
    return rows.new_empty(rows.shape[0], num_known, groups, rows.shape[3])


def _save(ctx, inputs, output):
    *tensors, ctx.distances = inputs
    ctx.save_for_backward(*tensors)


def _differentiate_score(ctx, grad):
    rows, known = ctx.saved_tensors
    d_known = scatter(grad, rows, ctx.distances, known.shape[1], known.shape[2])
    return mix(grad, known, ctx.distances), d_known, None


def _differentiate_mix(ctx, grad):
    weights, known = ctx.saved_tensors
    d_known = scatter(weights, grad, ctx.distances, known.shape[1], known.shape[2])
    return score(grad, known, ctx.distances), d_known, None


score.register_autograd(_differentiate_score, setup_context=_save)
mix.register_autograd(_differentiate_mix, setup_context=_save)


def _columns(known: Tensor, num_rows: int, distances: list[int]) -> Tensor:
    """`[B, G, d, R + N]`, the last columns being the known rows, 0 before them."""
    batch_size, _, groups, width = known.shape
    columns = known.new_empty(batch_size, groups, width, max(distances) + num_rows)
    _to_columns(known.contiguous(), columns)
    return columns


@kernel
def _to_columns(rows, columns):
    """`[B, M, G, d]` to the last of the columns `[B, G, d, C]`; or the first columns are left out, or zero."""
    B, M, G, d = rows.shape
    C = columns.shape[3]
    tiles = (C + 15) // 16  # so few rows at a time, because they lie a power of two apart
    for task in prange(B * G):
        b, g = task // G, task % G
        for tile in range(tiles):
            begin, end = tile * 16, min(tile * 16 + 16, C)
            first = begin + M - C
            for a in range(d):
                column = columns[b, g, a]
                for i in range(end - begin):
                    row = first + i
                    column[begin + i] = rows[b, row, g, a] if row >= 0 else 0


@kernel
def _to_rows(columns, rows):
    """The way back."""
    B, M, G, d = rows.shape
    C = columns.shape[3]
    for task in prange(B * G):
        b, g = task // G, task % G
        for i in range(M):
            column = i + C - M
            for a in range(d):
                rows[b, i, g, a] = columns[b, g, a, column] if column >= 0 else 0


@kernel
def _score(rows, columns, distances, out, lanes):
    B, N, H, d = rows.shape
    T, reach, group = distances.shape[0], columns.shape[3] - N, H // columns.shape[1]
    blocks = (N + lanes - 1) // lanes
    for task in prange(B * H * blocks):
        b, h, begin = task // (H * blocks), task // blocks % H, task % blocks * lanes
        n = min(lanes, N - begin)
        side = np.empty((d, lanes), rows.dtype)
        for i in range(n):
            for a in range(d):
                side[a, i] = rows[b, begin + i, h, a]
        known = columns[b, h // group]
        for t in range(T):
            first = reach + begin - distances[t]
            target = out[b, h, t, begin : begin + n]
            target[:] = 0
            whole = d // 8 * 8
            for a in range(0, whole, 8):
                q0, q1, q2, q3 = side[a], side[a + 1], side[a + 2], side[a + 3]
                q4, q5, q6, q7 = side[a + 4], side[a + 5], side[a + 6], side[a + 7]
                k0, k1 = known[a, first : first + n], known[a + 1, first : first + n]
                k2, k3 = known[a + 2, first : first + n], known[a + 3, first : first + n]
                k4, k5 = known[a + 4, first : first + n], known[a + 5, first : first + n]
                k6, k7 = known[a + 6, first : first + n], known[a + 7, first : first + n]
                for i in range(n):
                    half = q0[i] * k0[i] + q1[i] * k1[i] + q2[i] * k2[i] + q3[i] * k3[i]
                    target[i] += half + (q4[i] * k4[i] + q5[i] * k5[i] + q6[i] * k6[i] + q7[i] * k7[i])
            for a in range(whole, d):
                q0, k0 = side[a], known[a, first : first + n]
                for i in range(n):
                    target[i] += q0[i] * k0[i]


@kernel
def _mix(weights, columns, distances, out, lanes):
    B, N, H, d = out.shape
    T, reach, group = distances.shape[0], columns.shape[3] - N, H // columns.shape[1]
    blocks = (N + lanes - 1) // lanes
    whole = T // 4 * 4
    for task in prange(B * H * blocks):
        b, h, begin = task // (H * blocks), task // blocks % H, task % blocks * lanes
        n = min(lanes, N - begin)
        side = np.empty((d, lanes), out.dtype)
        known, w = columns[b, h // group], weights[b, h]
        start = reach + begin
        for a in range(d):
            target, row = side[a], known[a]
            target[:] = 0
            for t in range(0, whole, 4):
                w0, w1 = w[t, begin : begin + n], w[t + 1, begin : begin + n]
                w2, w3 = w[t + 2, begin : begin + n], w[t + 3, begin : begin + n]
                k0, k1 = row[start - distances[t] :], row[start - distances[t + 1] :]
                k2, k3 = row[start - distances[t + 2] :], row[start - distances[t + 3] :]
                for i in range(n):
                    target[i] += w0[i] * k0[i] + w1[i] * k1[i] + w2[i] * k2[i] + w3[i] * k3[i]
            for t in range(whole, T):
                w0, k0 = w[t, begin : begin + n], row[start - distances[t] :]
                for i in range(n):
                    target[i] += w0[i] * k0[i]
        for i in range(n):
            for a in range(d):
                out[b, begin + i, h, a] = side[a, i]


@kernel
def _scatter(weights, rows, distances, columns, lanes):
    """Each task owns one group's columns."""
    B, N, H, d = rows.shape
    G = columns.shape[1]
    T, reach, group = distances.shape[0], columns.shape[3] - N, H // G
    blocks = (N + lanes - 1) // lanes
    for task in prange(B * G):
        b, g = task // G, task % G
        side = np.empty((d, lanes), rows.dtype)
        for c in range(blocks):
            begin = c * lanes
            n = min(lanes, N - begin)
            for h in range(g * group, (g + 1) * group):
                for i in range(n):
                    for a in range(d):
                        side[a, i] = rows[b, begin + i, h, a]
                for t in range(T):
                    first = reach + begin - distances[t]
                    w = weights[b, h, t, begin : begin + n]
                    for a in range(d):
                        target, row = columns[b, g, a, first : first + n], side[a]
                        for i in range(n):
                            target[i] += w[i] * row[i]
