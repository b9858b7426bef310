"""Causal linear attention: weights are products of features, so the past fits into one matrix.

Katharopoulos et al. 2020, https://arxiv.org/abs/2006.16236; the chunkwise form is that of
https://arxiv.org/abs/2202.10447, decay by feature that of https://arxiv.org/abs/2312.06635. Notation: B batch,
N rows, M key/value streams that share one query, H heads, d features, e value channels, C rows of a chunk.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from longwave.ops._dispatch import select_form
from longwave.ops._precision import widened
from longwave.ops.documents import expand_mask


@widened("v")
def linear_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    log_decay: Tensor | None = None,
    normalize: bool = True,
    eps: float = 1e-6,
    chunk_size: int = 64,
    initial_state: Tensor | None = None,
    starts: Tensor | None = None,
    return_state: bool = False,
    backend: str = "auto",
) -> Tensor | tuple[Tensor, Tensor]:
    """o_i = sum_j w_ij v_j / max(sum_j w_ij, eps), w_ij = exp(sum of log_decay over (j, i]) q_i·k_j, j <= i.

    The sum runs over the rows of i's own document. A decay of its own for each feature stands inside the inner
    product. The result does not depend on ``chunk_size``.

    Args:
        q: `[B, N, H, d]`, features of the query (already mapped, positive if ``normalize``).
        k: `[B, N, M, H, d]`, features of M streams of keys.
        v: `[B, N, M, H, e]`, their values.
        log_decay: at most 0, broadcastable to `[B, N, H]` or, one for each feature, to `[B, N, H, d]`;
            ``None`` for no decay.
        normalize: divide by the sum of the weights, bounded below by ``eps``.
        initial_state: `[B, M, H, d, e + 1]` (`e` if not ``normalize``): sum of k vᵀ over the past, the
            last column being the sum of k.
        starts: `[B, N]` bool, first row of each document.
        backend: ``auto``, ``naive``, ``torch`` or ``numba``.

    Returns:
        `[B, N, M, H, e]` in v's dtype; with ``return_state`` also the final state, float32 or wider.

    Raises:
        ValueError: shapes disagree.
        BackendUnavailable: the backend has no form of this op.
    """
    _check_shapes(q, k, v)
    form = select_form("linear_attention", backend, linear_attention_naive, linear_attention_torch, q)
    if normalize:
        v = F.pad(v, (0, 1), value=1.0)
    if initial_state is None:
        initial_state = v.new_zeros(v.shape[0], *v.shape[2:4], k.shape[-1], v.shape[-1])
    if log_decay is not None:
        log_decay = log_decay.expand(q.shape[: max(3, log_decay.dim())])
    out, state = form(q, k, v, log_decay, initial_state, starts, chunk_size)
    if normalize:
        out = out[..., :-1] / out[..., -1:].clamp(min=eps)
    return (out, state) if return_state else out


def linear_attention_naive(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor | None,
    state: Tensor,
    starts: Tensor | None,
    chunk_size: int,
) -> tuple[Tensor, Tensor]:
    """Token by token, the recurrence itself; ``chunk_size`` has no meaning here."""
    outs = []
    for t in range(q.shape[1]):
        if starts is not None:
            state = torch.where(starts[:, t, None, None, None, None], 0.0, state)
        if log_decay is not None:
            rates = log_decay[:, t, None].exp()  # [B, 1, H] or [B, 1, H, d]
            state = expand_mask(rates, state) * state
        state = state + k[:, t, ..., :, None] * v[:, t, ..., None, :]
        outs.append(torch.einsum("bhd,bmhde->bmhe", q[:, t], state))
    return torch.stack(outs, dim=1), state


def linear_attention_torch(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor | None,
    state: Tensor,
    starts: Tensor | None,
    chunk_size: int,
) -> tuple[Tensor, Tensor]:
    """Chunks of C rows: masked products inside a chunk, one state matrix between chunks."""
    num_rows = q.shape[1]
    chunk = min(chunk_size, num_rows)
    if log_decay is not None and log_decay.dim() == 4:
        chunk = 1 << (chunk.bit_length() - 1)  # it will be halved
    padding = -num_rows % chunk
    if padding:
        q, k, v = (F.pad(x, (0, 0) * (x.dim() - 2) + (0, padding)) for x in (q, k, v))
        log_decay = None if log_decay is None else F.pad(log_decay, (0, 0) * (log_decay.dim() - 2) + (0, padding))
        starts = None if starts is None else F.pad(starts, (0, padding))
    q = rearrange(q, "b (n c) h d -> b n 1 h c d", c=chunk)
    k = rearrange(k, "b (n c) m h d -> b n m h c d", c=chunk)
    v = rearrange(v, "b (n c) m h e -> b n m h c e", c=chunk)
    if log_decay is not None and log_decay.dim() == 4:
        decay = rearrange(_with_starts(log_decay, starts), "b (n c) h d -> b n 1 h c d", c=chunk)
        out = _within_by_halves(q, k, v, decay)
        from_past, to_future, carry = _between_by_feature(decay)
    else:
        weights = _border_weights(starts, chunk, q) if log_decay is None else decay_weights(log_decay, starts, chunk)
        within, from_past, to_future, carry = weights
        out = ((q @ k.transpose(-1, -2)) * within) @ v  # [b, n, m, h, c, e]

    updates = (k if to_future is None else k * to_future).transpose(-1, -2) @ v
    past = []
    for n in range(updates.shape[1]):
        past.append(state)
        state = updates[:, n] + (state if carry is None else carry[:, n] * state)
    out = out + (q if from_past is None else q * from_past) @ torch.stack(past, dim=1)
    return rearrange(out, "b n m h c e -> b (n c) m h e")[:, :num_rows], state


def decay_weights(log_decay: Tensor, starts: Tensor | None, chunk: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What decay and document borders multiply: pairs, reads of the past, writes to the future, the state.

    Returns ``within`` broadcastable to `[b, n, m, h, c, c]`, ``from_past`` and ``to_future`` to
    `[b, n, m, h, c, 1]`, ``carry`` to `[b, n, m, h, 1, 1]`, from ``log_decay`` `[b, n c, h]`.
    """
    # Every exponent is a sum over its own rows; as a difference of running sums a strong decay would cancel.
    decay = rearrange(log_decay, "b (n c) h -> b n 1 h c", c=chunk)
    causal = _causal(chunk, decay)
    between = decay[..., :, None].expand(*decay.shape, chunk).masked_fill(~causal.tril(-1), 0.0).cumsum(dim=-2)
    from_past = decay.cumsum(dim=-1)[..., None]
    to_future = between[..., -1, :, None]
    if starts is None:
        within = between.masked_fill(~causal, -torch.inf)
    else:
        same, fresh, last = _documents(starts, chunk)
        within = between.masked_fill(~(causal & same), -torch.inf)
        from_past, to_future = from_past.masked_fill(~fresh, -torch.inf), to_future.masked_fill(~last, -torch.inf)
    return within.exp(), from_past.exp(), to_future.exp(), from_past[..., -1:, :].exp()


def _border_weights(
    starts: Tensor | None, chunk: int, like: Tensor
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """The same without decay; ``None`` where the factor is 1 everywhere."""
    causal = _causal(chunk, like)
    if starts is None:
        return causal.to(like.dtype), None, None, None
    same, fresh, last = _documents(starts, chunk)
    fresh = fresh.to(like.dtype)
    return (causal & same).to(like.dtype), fresh, last.to(like.dtype), fresh[..., -1:, :]


def _causal(chunk: int, like: Tensor) -> Tensor:
    return torch.ones(chunk, chunk, dtype=torch.bool, device=like.device).tril()


def _documents(starts: Tensor, chunk: int) -> tuple[Tensor, Tensor, Tensor]:
    """In each chunk: pairs of one document `[b, n, 1, 1, c, c]`, rows of the first and of the last `[..., c, 1]`."""
    document = rearrange(starts, "b (n c) -> b n 1 1 c 1", c=chunk).cumsum(dim=-2)
    return document == document.transpose(-1, -2), document == 0, document == document[..., -1:, :]


def _with_starts(log_decay: Tensor, starts: Tensor | None) -> Tensor:
    """A start is a decay to nothing."""
    return log_decay if starts is None else log_decay.masked_fill(expand_mask(starts, log_decay), -torch.inf)


def _within_by_halves(q: Tensor, k: Tensor, v: Tensor, decay: Tensor) -> Tensor:
    """Attention inside chunks of 2^s rows, `decay` `[b, n, 1, h, c, d]` in logarithms.

    Rows of the second half of a block read those of its first half through the border between them, for
    blocks of 2, 4, ..., 2^s rows: products of matrices, and no exponent is ever positive.
    """
    out = (q * k).sum(dim=-1, keepdim=True) * v
    size = 2
    while size <= q.shape[-2]:
        (_, late_q), (early_k, _), (early_v, _), (early, late) = (
            rearrange(x, "... (g two r) d -> two ... g r d", two=2, r=size // 2) for x in (q, k, v, decay)
        )
        reads = late_q * late.cumsum(dim=-2).exp()
        crossing = (reads @ (early_k * _following(early).exp()).transpose(-1, -2)) @ early_v
        later = torch.stack([torch.zeros_like(crossing), crossing])
        out = out + rearrange(later, "two ... g r e -> ... (g two r) e")
        size *= 2
    return out


def _between_by_feature(decay: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """``from_past`` and ``to_future`` `[b, n, 1, h, c, d]` and ``carry`` `[b, n, 1, h, d, 1]` of a chunk's decay."""
    from_past = decay.cumsum(dim=-2).exp()
    return from_past, _following(decay).exp(), from_past[..., -1, :, None]


def _following(decay: Tensor) -> Tensor:
    """For each row, the sum over the rows after it."""
    after = F.pad(decay[..., 1:, :], (0, 0, 0, 1))
    return after.flip(-2).cumsum(dim=-2).flip(-2)


def _check_shapes(q: Tensor, k: Tensor, v: Tensor) -> None:
    if q.dim() != 4 or k.dim() != 5 or v.dim() != 5:
        raise ValueError(
            "linear_attention takes q [B, N, H, d], k [B, N, M, H, d] and v [B, N, M, H, e]; "
            f"got {tuple(q.shape)}, {tuple(k.shape)}, {tuple(v.shape)}"
        )
    if (*k.shape[:2], *k.shape[3:]) != tuple(q.shape) or k.shape[:4] != v.shape[:4]:
        raise ValueError(
            "linear_attention: batch, rows, heads and features must agree; "
            f"got q {tuple(q.shape)}, k {tuple(k.shape)}, v {tuple(v.shape)}"
        )
