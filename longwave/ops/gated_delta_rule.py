"""The gated delta rule: a matrix memory that replaces what a key held before instead of adding to it.

Yang et al. 2024, https://arxiv.org/abs/2412.06464; the chunkwise form is that of https://arxiv.org/abs/2406.06484.
Notation: B batch, N rows, H heads, d key channels, e value channels, C rows of a chunk.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from longwave.ops._dispatch import select_form
from longwave.ops._precision import widened
from longwave.ops.linear_attention import decay_weights


@widened("v")
def gated_delta_rule(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    *,
    log_decay: Tensor | None = None,
    chunk_size: int = 64,
    initial_state: Tensor | None = None,
    starts: Tensor | None = None,
    return_state: bool = False,
    backend: str = "auto",
) -> Tensor | tuple[Tensor, Tensor]:
    """S_t = a_t S_{t-1} + beta_t k_t (v_t - a_t S_{t-1}ᵀ k_t)ᵀ, o_t = S_tᵀ q_t, a_t = exp(log_decay_t).

    S is zero before the first row of each document. The state stays bounded if keys have unit length and
    0 <= beta <= 2. The result does not depend on ``chunk_size``.

    Args:
        q, k: `[B, N, H, d]`.
        v: `[B, N, H, e]`.
        beta: `[B, N, H]`, the share of the old value that the new one replaces.
        log_decay: at most 0, broadcastable to `[B, N, H]`; ``None`` for no decay.
        initial_state: `[B, H, d, e]`.
        starts: `[B, N]` bool, first row of each document.
        backend: ``auto``, ``naive``, ``torch`` or ``numba``.

    Returns:
        `[B, N, H, e]` in v's dtype; with ``return_state`` also the final state, float32 or wider.

    Raises:
        ValueError: shapes disagree.
        BackendUnavailable: the backend has no form of this op.
    """
    _check_shapes(q, k, v, beta)
    form = select_form("gated_delta_rule", backend, gated_delta_rule_naive, gated_delta_rule_torch, q)
    if initial_state is None:
        initial_state = v.new_zeros(v.shape[0], v.shape[2], k.shape[-1], v.shape[-1])
    if log_decay is not None:
        log_decay = log_decay.expand(q.shape[:3])
    out, state = form(q, k, v, beta, log_decay, initial_state, starts, chunk_size)
    return (out, state) if return_state else out


def gated_delta_rule_naive(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    log_decay: Tensor | None,
    state: Tensor,
    starts: Tensor | None,
    chunk_size: int,
) -> tuple[Tensor, Tensor]:
    """Token by token, the recurrence itself; ``chunk_size`` has no meaning here."""
    outs = []
    for t in range(q.shape[1]):
        if starts is not None:
            state = torch.where(starts[:, t, None, None, None], 0.0, state)
        if log_decay is not None:
            state = log_decay[:, t, :, None, None].exp() * state
        held = torch.einsum("bhde,bhd->bhe", state, k[:, t])
        written = beta[:, t, :, None] * (v[:, t] - held)
        state = state + k[:, t, :, :, None] * written[:, :, None, :]
        outs.append(torch.einsum("bhde,bhd->bhe", state, q[:, t]))
    return torch.stack(outs, dim=1), state


def gated_delta_rule_torch(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    log_decay: Tensor | None,
    state: Tensor,
    starts: Tensor | None,
    chunk_size: int,
) -> tuple[Tensor, Tensor]:
    """Chunks of C rows: what a chunk writes solves a triangular system, one state matrix between chunks.

    With w_ij the decay over (j, i], row i writes u_i = beta_i (v_i - w_i0 S_0ᵀ k_i - sum_{j<i} w_ij (k_i·k_j) u_j),
    so (I + L) U = beta V - beta w_0 K S_0 with L strictly lower triangular, the same for every S_0.
    """
    num_rows = q.shape[1]
    chunk = min(chunk_size, num_rows)
    log_decay = q.new_zeros(q.shape[:3]) if log_decay is None else log_decay
    padding = -num_rows % chunk
    if padding:
        q, k, v = (F.pad(x, (0, 0, 0, 0, 0, padding)) for x in (q, k, v))
        beta, log_decay = (F.pad(x, (0, 0, 0, padding)) for x in (beta, log_decay))
        starts = None if starts is None else F.pad(starts, (0, padding))
    q, k, v = (rearrange(x, "b (n c) h d -> b n 1 h c d", c=chunk) for x in (q, k, v))
    beta = rearrange(beta, "b (n c) h -> b n 1 h c 1", c=chunk)
    within, from_past, to_future, carry = decay_weights(log_decay, starts, chunk)

    system = (k @ k.transpose(-1, -2) * within * beta).tril(-1)
    known = torch.cat([v, k * from_past], dim=-1) * beta
    solved = torch.linalg.solve_triangular(system, known, upper=False, unitriangular=True)
    from_values, from_state = solved.split([v.shape[-1], k.shape[-1]], dim=-1)
    kept = (k * to_future).transpose(-1, -2)
    state, past, written = state[:, None], [], []
    for n in range(q.shape[1]):
        past.append(state)
        written.append(from_values[:, n] - from_state[:, n] @ state)
        state = carry[:, n] * state + kept[:, n] @ written[-1]
    out = (q @ k.transpose(-1, -2) * within) @ torch.stack(written, dim=1)
    out = out + (q * from_past) @ torch.stack(past, dim=1)
    return rearrange(out, "b n 1 h c e -> b (n c) h e")[:, :num_rows], state[:, 0]


def _check_shapes(q: Tensor, k: Tensor, v: Tensor, beta: Tensor) -> None:
    if q.dim() != 4 or k.shape != q.shape or v.dim() != 4 or v.shape[:3] != q.shape[:3] or beta.shape != q.shape[:3]:
        raise ValueError(
            "gated_delta_rule takes q and k [B, N, H, d], v [B, N, H, e] and beta [B, N, H]; "
            f"got {tuple(q.shape)}, {tuple(k.shape)}, {tuple(v.shape)}, {tuple(beta.shape)}"
        )
