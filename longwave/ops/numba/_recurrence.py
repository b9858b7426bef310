"""A matrix state walked token by token: where the rows are short, a CPU needs no chunks.

    S~ = a_t S_{t-1};   u_t = beta_t (v_t - S~ᵀ k_t), or v_t without beta;   S_t = S~ + k_t u_tᵀ;   o_t = S_tᵀ q_t

The state `[d, e]` of a head stays in the first-level cache, and each token passes over it twice. The backward
pass walks segments from the last to the first: it repeats a segment's states from the one saved at its
beginning, then goes back through them. a_t in [0, 1] is one number for each of the state's d rows or for all of
them; at the first row of a document it is 0.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from longwave.ops.numba._adapter import kernel, operator, prange

#: Tokens between saved states: their states should stay in the second-level cache.
SEGMENT = 32


@operator("recurrence_numba")
def recurrence(
    q: Tensor, k: Tensor, v: Tensor, decay: Tensor, beta: Tensor | None, state: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Outputs `[B, N, H, e]`, the final state, and the states `[segments, B, H, d, e]` at the segments' beginnings.

    ``q``, ``k`` `[B, N, H, d]`, ``v`` `[B, N, H, e]`, ``decay`` `[B, N, H, d]` or `[B, N, H, 1]`, ``beta``
    `[B, N, H]`, ``state`` `[B, H, d, e]`, all of one dtype, float32 or float64.
    """
    out, final = v.new_empty(v.shape), state.contiguous().clone()
    saved = state.new_empty(-(-q.shape[1] // SEGMENT), *state.shape)
    _walk(*_contiguous(q, k, v, decay), *_strength(beta, q), final, out, saved, SEGMENT)
    return out, final, saved


@operator("recurrence_numba_backward")
def _backward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    decay: Tensor,
    beta: Tensor | None,
    saved: Tensor,
    grad: Tensor,
    grad_state: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of q, k, v, decay, beta (empty without) and the initial state."""
    dq, dk, dv, d_decay = (torch.zeros(x.shape, dtype=x.dtype) for x in (q, k, v, decay))
    strength, corrected = _strength(beta, q)
    d_strength, d_state = torch.zeros_like(strength), grad_state.contiguous().clone()
    inputs = _contiguous(q, k, v, decay)
    _walk_back(
        *(*inputs, strength, corrected, saved.contiguous(), grad.contiguous()),
        *(d_state, dq, dk, dv, d_decay, d_strength, SEGMENT),
    )
    return dq, dk, dv, d_decay, d_strength, d_state


@recurrence.register_fake
def _(q, k, v, decay, beta, state):
    saved = state.new_empty(-(-q.shape[1] // SEGMENT), *state.shape)
    return v.new_empty(v.shape), state.new_empty(state.shape), saved


@_backward.register_fake
def _(q, k, v, decay, beta, saved, grad, grad_state):
    d_beta = q.new_empty(q.shape[:3] if beta is not None else (1, 1, 1))
    return *(x.new_empty(x.shape) for x in (q, k, v, decay)), d_beta, saved.new_empty(grad_state.shape)


def _save(ctx, inputs, output):
    *tensors, _ = inputs
    ctx.save_for_backward(*tensors, output[2])


def _differentiate(ctx, grad, grad_state, _):
    *inputs, beta, saved = ctx.saved_tensors
    *gradients, d_beta, d_state = _backward(*inputs, beta, saved, grad, grad_state)
    return *gradients, None if beta is None else d_beta, d_state


recurrence.register_autograd(_differentiate, setup_context=_save)


def _contiguous(*tensors: Tensor) -> list[Tensor]:
    return [tensor.contiguous() for tensor in tensors]


def _strength(beta: Tensor | None, like: Tensor) -> tuple[Tensor, bool]:
    """What a kernel is told of ``beta``: an array of it, and whether values are corrected at all."""
    return (like.new_ones(1, 1, 1), False) if beta is None else (beta.contiguous(), True)


@kernel
def _walk(q, k, v, decay, beta, corrected, state, out, saved, segment):
    """Forwards; ``state`` is advanced in place."""
    _, N, H, d = q.shape
    e, rates = v.shape[3], decay.shape[3]
    for task in prange(q.shape[0] * H):
        b, h = task // H, task % H
        S = state[b, h]
        value = np.empty(e, q.dtype)
        for t in range(N):
            if t % segment == 0:
                saved[t // segment, b, h] = S
            rate, query, key, result = decay[b, t, h], q[b, t, h], k[b, t, h], out[b, t, h]
            value[:] = v[b, t, h]
            for i in range(d):
                a, row = rate[i % rates], S[i]
                for j in range(e):
                    row[j] *= a
            if corrected:
                for i in range(d):
                    key_i, row = key[i], S[i]
                    for j in range(e):
                        value[j] -= key_i * row[j]
                strength = beta[b, t, h]
                for j in range(e):
                    value[j] *= strength
            result[:] = 0
            for i in range(d):
                key_i, query_i, row = key[i], query[i], S[i]
                for j in range(e):
                    row[j] += key_i * value[j]
                    result[j] += query_i * row[j]


@kernel
def _walk_back(q, k, v, decay, beta, corrected, saved, grad, d_state, dq, dk, dv, d_decay, d_beta, segment):
    """Backwards; ``d_state`` is the final state's gradient and becomes the initial one's."""
    _, N, H, d = q.shape
    e, rates = v.shape[3], decay.shape[3]
    zero = q.dtype.type(0)
    for task in prange(q.shape[0] * H):
        b, h = task // H, task % H
        dS = d_state[b, h]
        states, values, errors = (
            np.empty((segment + 1, d, e), q.dtype),
            np.empty((segment, e), q.dtype),
            np.empty((segment, e), q.dtype),
        )
        d_value = np.empty(e, q.dtype)
        for back in range(saved.shape[0]):
            begin = (saved.shape[0] - 1 - back) * segment
            rows = min(segment, N - begin)
            states[0] = saved[saved.shape[0] - 1 - back, b, h]
            for s in range(rows):
                t = begin + s
                rate, key, value, error = decay[b, t, h], k[b, t, h], values[s], errors[s]
                error[:] = v[b, t, h]
                value[:] = error
                if corrected:
                    for i in range(d):
                        scaled, row = key[i] * rate[i % rates], states[s, i]
                        for j in range(e):
                            error[j] -= scaled * row[j]
                    strength = beta[b, t, h]
                    for j in range(e):
                        value[j] = strength * error[j]
                for i in range(d):
                    a, key_i, row, following = rate[i % rates], key[i], states[s, i], states[s + 1, i]
                    for j in range(e):
                        following[j] = a * row[j] + key_i * value[j]
            for past in range(rows):
                s = rows - 1 - past
                t = begin + s
                rate, query, key, value, upstream = decay[b, t, h], q[b, t, h], k[b, t, h], values[s], grad[b, t, h]
                d_query, d_key, d_rate = dq[b, t, h], dk[b, t, h], d_decay[b, t, h]
                d_value[:] = zero
                for i in range(d):
                    query_i, key_i, d_row, row = query[i], key[i], dS[i], states[s + 1, i]
                    to_query, to_key = zero, zero
                    for j in range(e):
                        total = d_row[j] + query_i * upstream[j]
                        d_row[j] = total
                        to_query += row[j] * upstream[j]
                        to_key += total * value[j]
                        d_value[j] += total * key_i
                    d_query[i] = to_query
                    d_key[i] = to_key
                if corrected:
                    error, strength, agreement = errors[s], beta[b, t, h], zero
                    for j in range(e):
                        agreement += d_value[j] * error[j]
                        d_value[j] *= strength
                    d_beta[b, t, h] = agreement
                    for i in range(d):
                        a, key_i, d_row, row = rate[i % rates], key[i], dS[i], states[s, i]
                        to_key = zero
                        for j in range(e):
                            d_row[j] -= key_i * d_value[j]
                            to_key += row[j] * d_value[j]
                        d_key[i] -= a * to_key
                dv[b, t, h] = d_value
                for i in range(d):
                    a, d_row, row = rate[i % rates], dS[i], states[s, i]
                    to_rate = zero
                    for j in range(e):
                        to_rate += d_row[j] * row[j]
                        d_row[j] *= a
                    d_rate[i % rates] += to_rate
