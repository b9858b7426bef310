"""Linear attention over a stream and over its running means at dyadic scales.

Stream 0 holds the raw keys and values. Stream l = 1..L holds, at every row, the mean of the current block of
2^l rows as far as it has come, its keys mapped by one matrix and its values by another; the streams share the
query, are normalised one by one and then summed with weights. All heads share the matrices. It is the global
branch of HALE.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from longwave.ops._dispatch import select_form
from longwave.ops._precision import widened
from longwave.ops.block_means import BlockSums, block_means
from longwave.ops.documents import document_positions
from longwave.ops.features import elu_plus_one
from longwave.ops.linear_attention import linear_attention


class DyadicState(NamedTuple):
    """M = L + 1 streams: ``memory`` `[B, M, H, d, d + 1]` sums phi(key) [value, 1]ᵀ over the document;
    ``blocks`` `[B, L, 2, H, d]` sums k and v over each level's current block; ``tokens`` `[B]` int64.
    """

    memory: Tensor
    blocks: Tensor
    tokens: Tensor


@widened("v")
def dyadic_linear_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    key_maps: Tensor,
    value_maps: Tensor,
    weights: Tensor,
    *,
    eps: float = 1e-6,
    chunk_size: int = 64,
    initial_state: DyadicState | None = None,
    starts: Tensor | None = None,
    return_state: bool = False,
    backend: str = "auto",
) -> Tensor | tuple[Tensor, DyadicState]:
    """LA(k, v) + sum_l weights_l LA(key_maps_l mean_l(k), value_maps_l mean_l(v)).

    LA(K, V)_i = sum_{j<=i} (phi(q_i)·phi(K_j)) V_j / max(sum_{j<=i} phi(q_i)·phi(K_j), eps), phi = elu + 1.

    Args:
        q, k, v: `[B, N, H, d]`, before any feature map.
        key_maps, value_maps: `[L, d, d]`, applied as ``map @ row``; L may be 0.
        weights: `[L]`; the raw stream's is 1.
        chunk_size: rows of a chunk; never changes a result.
        initial_state: the state after the rows before this piece.
        starts: `[B, N]` bool, first row of each document; blocks are counted from it.
        backend: ``auto``, ``naive``, ``torch`` or ``numba``.

    Returns:
        `[B, N, H, d]` in v's dtype; with ``return_state`` also the final state, float32 or wider.

    Raises:
        ValueError: shapes disagree.
        BackendUnavailable: the backend has no form of this op.
    """
    levels, width = key_maps.shape[0], q.shape[-1]
    if q.dim() != 4 or not q.shape == k.shape == v.shape:
        raise ValueError(
            "dyadic_linear_attention takes q, k and v of one shape [B, N, H, d]; "
            f"got {tuple(q.shape)}, {tuple(k.shape)}, {tuple(v.shape)}"
        )
    if not key_maps.shape == value_maps.shape == (levels, width, width) or weights.shape != (levels,):
        raise ValueError(
            f"dyadic_linear_attention: maps must be [L, {width}, {width}] and weights [L]; "
            f"got {tuple(key_maps.shape)}, {tuple(value_maps.shape)}, {tuple(weights.shape)}"
        )
    naive, plain = dyadic_linear_attention_naive, dyadic_linear_attention_torch
    form = select_form("dyadic_linear_attention", backend, naive, plain, q)
    out, memory, blocks = form(q, k, v, key_maps, value_maps, weights, eps, chunk_size, initial_state, starts)
    if not return_state:
        return out
    tokens = None if initial_state is None else initial_state.tokens
    positions = document_positions(*q.shape[:2], tokens=tokens, starts=starts, device=q.device)
    return out, DyadicState(memory, blocks, positions[:, -1] + 1)


def dyadic_linear_attention_naive(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    key_maps: Tensor,
    value_maps: Tensor,
    weights: Tensor,
    eps: float,
    chunk_size: int,
    state: DyadicState | None,
    starts: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Token by token, the recurrence itself; ``chunk_size`` has no meaning here."""
    batch_size, num_rows, heads, width = q.shape
    levels = key_maps.shape[0]
    if state is None:
        tokens = torch.zeros(batch_size, dtype=torch.int64, device=q.device)
        memory = q.new_zeros(batch_size, levels + 1, heads, width, width + 1)
        state = DyadicState(memory, q.new_zeros(batch_size, levels, 2, heads, width), tokens)
    memory, blocks, tokens = state
    positions = document_positions(batch_size, num_rows, tokens=tokens, starts=starts, device=q.device)
    sizes = 2 ** torch.arange(1, levels + 1, device=q.device)
    mixture = torch.cat([weights.new_ones(1), weights])
    outs = []
    for t in range(num_rows):
        phase = positions[:, t, None] % sizes
        pair = torch.stack([k[:, t], v[:, t]], dim=1)
        blocks = torch.where((phase == 0)[..., None, None, None], 0.0, blocks) + pair[:, None]
        means = blocks / (phase + 1)[..., None, None, None]
        keys = torch.einsum("blhd,led->blhe", means[:, :, 0], key_maps)
        values = torch.einsum("blhd,led->blhe", means[:, :, 1], value_maps)
        keys = elu_plus_one(torch.cat([k[:, t, None], keys], dim=1))
        values = torch.nn.functional.pad(torch.cat([v[:, t, None], values], dim=1), (0, 1), value=1.0)
        memory = torch.where((positions[:, t] == 0)[:, None, None, None, None], 0.0, memory)
        memory = memory + keys[..., None] * values[..., None, :]
        read = torch.einsum("bhd,bmhde->bmhe", elu_plus_one(q[:, t]), memory)
        outs.append(torch.einsum("bmhe,m->bhe", read[..., :-1] / read[..., -1:].clamp(min=eps), mixture))
    return torch.stack(outs, dim=1), memory, blocks


def dyadic_linear_attention_torch(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    key_maps: Tensor,
    value_maps: Tensor,
    weights: Tensor,
    eps: float,
    chunk_size: int,
    state: DyadicState | None,
    starts: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The two ops that it is made of, one after the other."""
    shared = {"starts": starts, "return_state": True, "backend": "torch"}
    sums = None if state is None else BlockSums(state.blocks, state.tokens)
    pair = torch.stack([k, v], dim=2)
    means, sums = block_means(pair, key_maps.shape[0], initial_state=sums, **shared)  # [B, N, L, 2, H, d]
    keys = torch.einsum("bnlhd,led->bnlhe", means[:, :, :, 0], key_maps)
    values = torch.einsum("bnlhd,led->bnlhe", means[:, :, :, 1], value_maps)
    streams, memory = linear_attention(
        elu_plus_one(q),
        elu_plus_one(torch.cat([k[:, :, None], keys], dim=2)),
        torch.cat([v[:, :, None], values], dim=2),
        eps=eps,
        chunk_size=chunk_size,
        initial_state=None if state is None else state.memory,
        **shared,
    )
    out = streams[:, :, 0] + torch.einsum("bnlhd,l->bnhd", streams[:, :, 1:], weights)
    return out, memory, sums.sums
