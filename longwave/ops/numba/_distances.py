"""Products of rows with rows at fixed distances behind them.

A row is d numbers side by side and a head's rows follow one another, so that a product loads whole rows, four at a
time, and nothing is gathered. `score` and `mix` are each other's gradients, with `scatter` for the rows behind.

Notation: T distances, sorted; the known rows `[B, G, P + N, d]` begin P rows before the others `[B, H, N, d]`; head h
looks at group h // (H / G); weights are `[B, H, N, T]`. What lies before the known rows is zero.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from longwave.ops.numba._adapter import kernel, operator, prange

#: Rows of a task.
BLOCK = 64


@operator("distances_score_numba")
def score(rows: Tensor, known: Tensor, distances: list[int]) -> Tensor:
    """s_{i,t} = rows_i · known_{i - distance_t}: `[B, H, N, T]`."""
    out = rows.new_empty(*rows.shape[:3], len(distances))
    _score(rows.contiguous(), known.contiguous(), torch.tensor(distances), out, BLOCK)
    return out


@operator("distances_mix_numba")
def mix(weights: Tensor, known: Tensor, distances: list[int]) -> Tensor:
    """o_i = sum_t weights_{i,t} known_{i - distance_t}: `[B, H, N, d]`."""
    out = known.new_empty(*weights.shape[:3], known.shape[3])
    _mix(weights.contiguous(), known.contiguous(), torch.tensor(distances), out, BLOCK)
    return out


@operator("distances_scatter_numba")
def scatter(weights: Tensor, rows: Tensor, distances: list[int], groups: int, num_known: int) -> Tensor:
    """What each known row receives, sum of weights_{i,t} rows_i over the i that look at it: `[B, G, P + N, d]`."""
    out = rows.new_empty(rows.shape[0], groups, num_known, rows.shape[3])
    _scatter(weights.contiguous(), rows.contiguous(), torch.tensor(distances), out, BLOCK)
    return out


@score.register_fake
def _(rows, known, distances):
    return rows.new_empty(*rows.shape[:3], len(distances))


@mix.register_fake
def _(weights, known, distances):
    return known.new_empty(*weights.shape[:3], known.shape[3])


@scatter.register_fake
def _(weights, rows, distances, groups, num_known):
    return rows.new_empty(rows.shape[0], groups, num_known, rows.shape[3])


def _save(ctx, inputs, output):
    *tensors, ctx.distances = inputs
    ctx.save_for_backward(*tensors)


def _differentiate_score(ctx, grad):
    rows, known = ctx.saved_tensors
    grad = grad.contiguous()  # once for both
    return mix(grad, known, ctx.distances), scatter(grad, rows, ctx.distances, *known.shape[1:3]), None


def _differentiate_mix(ctx, grad):
    weights, known = ctx.saved_tensors
    grad = grad.contiguous()
    return score(grad, known, ctx.distances), scatter(weights, grad, ctx.distances, *known.shape[1:3]), None


score.register_autograd(_differentiate_score, setup_context=_save)
mix.register_autograd(_differentiate_mix, setup_context=_save)


@kernel
def _score(rows, known, distances, out, block):
    """Four rows at a time share what is loaded of the one that looks."""
    B, H, N, d = rows.shape
    M, T, group = known.shape[2], distances.shape[0], H // known.shape[1]
    blocks = (N + block - 1) // block
    for task in prange(B * H * blocks):
        b, h, begin = task // (H * blocks), task // blocks % H, task % blocks * block
        k = known[b, h // group]
        for i in range(begin, min(begin + block, N)):
            place = i + M - N
            near = np.searchsorted(distances, place, side="right")
            row, target = rows[b, h, i], out[b, h, i]
            whole = near // 4 * 4
            for t in range(0, whole, 4):
                k0, k1 = k[place - distances[t]], k[place - distances[t + 1]]
                k2, k3 = k[place - distances[t + 2]], k[place - distances[t + 3]]
                s0 = s1 = s2 = s3 = row[0] * 0
                for a in range(d):
                    s0 += row[a] * k0[a]
                    s1 += row[a] * k1[a]
                    s2 += row[a] * k2[a]
                    s3 += row[a] * k3[a]
                target[t], target[t + 1], target[t + 2], target[t + 3] = s0, s1, s2, s3
            for t in range(whole, near):
                k0 = k[place - distances[t]]
                s0 = row[0] * 0
                for a in range(d):
                    s0 += row[a] * k0[a]
                target[t] = s0
            for t in range(near, T):
                target[t] = 0


@kernel
def _mix(weights, known, distances, out, block):
    B, H, N, d = out.shape
    M, group = known.shape[2], H // known.shape[1]
    blocks = (N + block - 1) // block
    for task in prange(B * H * blocks):
        b, h, begin = task // (H * blocks), task // blocks % H, task % blocks * block
        k = known[b, h // group]
        for i in range(begin, min(begin + block, N)):
            place = i + M - N
            near = np.searchsorted(distances, place, side="right")
            w, target = weights[b, h, i], out[b, h, i]
            target[:] = 0
            whole = near // 4 * 4
            for t in range(0, whole, 4):
                k0, k1 = k[place - distances[t]], k[place - distances[t + 1]]
                k2, k3 = k[place - distances[t + 2]], k[place - distances[t + 3]]
                w0, w1, w2, w3 = w[t], w[t + 1], w[t + 2], w[t + 3]
                for a in range(d):
                    target[a] += (w0 * k0[a] + w1 * k1[a]) + (w2 * k2[a] + w3 * k3[a])
            for t in range(whole, near):
                k0, w0 = k[place - distances[t]], w[t]
                for a in range(d):
                    target[a] += w0 * k0[a]


@kernel
def _scatter(weights, rows, distances, out, block):
    """Every known row looks at those that look at it."""
    B, H, N, d = rows.shape
    G, M = out.shape[1:3]
    group = H // G
    blocks = (M + block - 1) // block
    for task in prange(B * G * blocks):
        b, g, begin = task // (G * blocks), task // blocks % G, task % blocks * block
        for m in range(begin, min(begin + block, M)):
            target = out[b, g, m]
            target[:] = 0
            place = m - (M - N)
            first = np.searchsorted(distances, -place)
            last = np.searchsorted(distances, N - place)
            whole = first + (last - first) // 4 * 4
            for h in range(g * group, (g + 1) * group):
                w, q = weights[b, h], rows[b, h]
                for t in range(first, whole, 4):
                    i0, i1 = place + distances[t], place + distances[t + 1]
                    i2, i3 = place + distances[t + 2], place + distances[t + 3]
                    q0, q1, q2, q3 = q[i0], q[i1], q[i2], q[i3]
                    w0, w1, w2, w3 = w[i0, t], w[i1, t + 1], w[i2, t + 2], w[i3, t + 3]
                    for a in range(d):
                        target[a] += (w0 * q0[a] + w1 * q1[a]) + (w2 * q2[a] + w3 * q3[a])
                for t in range(whole, last):
                    i0 = place + distances[t]
                    q0, w0 = q[i0], w[i0, t]
                    for a in range(d):
                        target[a] += w0 * q0[a]
