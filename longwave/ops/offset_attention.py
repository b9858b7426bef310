"""Softmax attention over fixed causal offsets.

The offsets are a dense window, 0..window-1 rows back, the row itself included. Notation: B batch,
N rows, H query heads, G key/value heads (query head h reads key/value head h // (H / G)), d channels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from longwave.ops._dispatch import select_form
from longwave.ops.documents import Ring, document_positions, empty_ring


def offset_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    window: int,
    initial_state: Ring | None = None,
    starts: Tensor | None = None,
    return_state: bool = False,
    backend: str = "auto",
) -> Tensor | tuple[Tensor, Ring]:
    """o_i = sum_j softmax_j(q_i·k_j / sqrt(d)) v_j over j = i-window+1..i of i's own document.

    Args:
        q: `[B, N, H, d]`.
        k, v: `[B, N, G, d]`, H a multiple of G.
        window: at least 1; a window longer than the document is full causal attention.
        initial_state: ring of ``window`` rows `[B, window, 2, G, d]`, keys before values.
        starts: `[B, N]` bool, first row of each document.
        backend: ``auto``, ``naive``, ``torch`` or ``numba``.

    Returns:
        `[B, N, H, d]` in q's dtype; with ``return_state`` also the final ring.

    Raises:
        ValueError: ``window`` is below 1, H is no multiple of G, or the ring has another size.
        BackendUnavailable: the backend has no form of this op.
    """
    if window < 1:
        raise ValueError(f"offset_attention: window must be at least 1, got {window}")
    if q.shape[2] % k.shape[2]:
        raise ValueError(f"offset_attention: {q.shape[2]} query heads are no multiple of {k.shape[2]} key/value heads")
    if initial_state is not None and initial_state.rows.shape[1] != window:
        raise ValueError(
            f"offset_attention: window {window} needs a ring of {window} rows, got {initial_state.rows.shape[1]}"
        )
    form = select_form("offset_attention", backend, offset_attention_naive, offset_attention_torch, q)
    tokens = None if initial_state is None else initial_state.tokens
    positions = document_positions(*q.shape[:2], tokens=tokens, starts=starts, device=q.device)
    reach = window - 1
    past = None if initial_state is None else initial_state.last(reach).to(k.dtype)
    out = form(q, k, v, past, window, positions)
    if not return_state:
        return out
    new = torch.stack([k[:, -window:], v[:, -window:]], dim=2)
    if initial_state is None:
        initial_state = empty_ring(q.shape[0], window, tuple(new.shape[2:]), new)
    return out, initial_state.extended(new.to(initial_state.rows.dtype), positions)


def offset_attention_naive(
    q: Tensor, k: Tensor, v: Tensor, past: Tensor | None, window: int, positions: Tensor
) -> Tensor:
    """Row by row. ``past`` `[B, window - 1, 2, G, d]` holds the keys and values before the piece, oldest first."""
    k, v = _after(past, k, v, window)
    num_rows, num_heads = q.shape[1:3]
    reach, group = k.shape[1] - num_rows, num_heads // k.shape[2]
    wide = torch.promote_types(q.dtype, torch.float32)
    dtype, q = q.dtype, q.to(wide)
    k, v = (x.to(wide).repeat_interleave(group, dim=2) for x in (k, v))
    out = []
    for b in range(q.shape[0]):
        for t in range(num_rows):
            oldest = reach + t - min(window - 1, int(positions[b, t]))
            keys, values = k[b, oldest : reach + t + 1], v[b, oldest : reach + t + 1]
            scores = torch.einsum("hd,jhd->hj", q[b, t], keys) / q.shape[-1] ** 0.5
            out.append(torch.einsum("hj,jhd->hd", scores.softmax(dim=-1), values))
    return torch.stack(out).view_as(q).to(dtype)


def offset_attention_torch(
    q: Tensor, k: Tensor, v: Tensor, past: Tensor | None, window: int, positions: Tensor
) -> Tensor:
    """Blocks of C <= window queries, each with the C + reach keys it can see, by PyTorch's fused attention."""
    k, v = _after(past, k, v, window)
    num_rows = q.shape[1]
    reach, block = k.shape[1] - num_rows, min(window, num_rows)
    padding = -num_rows % block
    q = rearrange(F.pad(q, (0, 0, 0, 0, 0, padding)), "b (n c) h d -> (b n) h c d", c=block)
    k, v = (
        rearrange(F.pad(x, (0, 0, 0, 0, 0, padding)).unfold(1, block + reach, block), "b n g d j -> (b n) g j d")
        for x in (k, v)
    )
    # A padded row, at position 0, reads itself alone.
    depth = rearrange(F.pad(positions, (0, padding)), "b (n c) -> (b n) 1 c 1", c=block)
    columns = torch.arange(block + reach, device=q.device)
    distance = torch.arange(block, device=q.device)[:, None] + reach - columns
    visible = (distance >= 0) & (distance < window) & (distance <= depth)
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=visible, enable_gqa=True)
    return rearrange(out, "(b n) h c d -> b (n c) h d", b=positions.shape[0])[:, :num_rows]


def _after(past: Tensor | None, k: Tensor, v: Tensor, window: int) -> tuple[Tensor, Tensor]:
    """Keys and values `[B, reach + N, G, d]` that begin ``reach`` rows, at most window - 1, before the piece."""
    if past is None:
        missing = (0, 0, 0, 0, min(window, k.shape[1]) - 1, 0)
        return F.pad(k, missing), F.pad(v, missing)
    return torch.cat([past[:, :, 0], k], dim=1), torch.cat([past[:, :, 1], v], dim=1)
