"""The K⊗V wave field: deposits k vᵀ, propagated over dyadic scales by a four-tap filter, read by the query.

``fir`` filters the deposits once at each scale, ``cascade`` filters level upon level, ``pyramid`` also keeps but every
second item of each level, so that every distance is reached by a state that does not grow. ``delta`` is one matrix that
fades while the filter moves its value channels. They are the fields of DWARF: what its conditions J and O compute, and
what its texts describe. The filter is Daubechies' of 1988, https://doi.org/10.1002/cpa.3160410705. Notation: B batch,
N rows, H heads, d channels of a head, L levels, h the taps.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from longwave.ops._dispatch import select_form
from longwave.ops._precision import widened
from longwave.ops._pyramid import field_kernels, pyramid_by_blocks, pyramid_by_rows
from longwave.ops.documents import Ring
from longwave.ops.fields import D4, UNIT_TAPS, FieldState, Taps, check_arguments, filtered, run_form
from longwave.ops.offset_attention import offset_attention

#: Rows from which the blocks of the pyramid pay.
FEW_ROWS = 8


@widened("v", stored="rows")
def fir_field(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    gains: Tensor,
    bypass: Tensor,
    *,
    taps: Taps = D4,
    initial_state: FieldState | None = None,
    return_state: bool = False,
    backend: str = "auto",
) -> Tensor | tuple[Tensor, FieldState]:
    """o_n = F_nᵀ q_n, F_n = b k_n v_nᵀ + sum_j g_nj sum_s h_s (k vᵀ)_{n - s 2^j}, s = 0..3, j = 0..L-1.

    It is :func:`longwave.ops.offset_attention` of kind ``dot`` over the distinct distances s 2^j.

    Args:
        q, k, v: `[B, N, H, d]`.
        gains: g, `[B, N, H, L]`.
        bypass: b, `[H]`.

    Returns:
        `[B, N, H, d]` in v's dtype; with ``return_state`` also the final state.

    Raises:
        ValueError: shapes disagree.
        BackendUnavailable: the backend has no form of this op.
    """
    check_arguments("fir_field", q, k, v, taps, gains)
    if bypass.shape != q.shape[2:3]:
        raise ValueError(f"fir_field takes bypass [H] with H = {q.shape[2]}, got {tuple(bypass.shape)}")
    levels = range(gains.shape[3])
    offsets = sorted({s << j for j in levels for s in range(4)})
    merged = [[sum(tap for s, tap in enumerate(taps) if s << j == offset) for j in levels] for offset in offsets]
    weights = gains.transpose(1, 2) @ torch.tensor(merged, dtype=v.dtype, device=q.device).T  # [B, H, N, T]
    weights = torch.cat([weights[..., :1] + bypass[:, None, None], weights[..., 1:]], dim=3)
    state = initial_state
    ring = None if state is None else Ring(state.rows, state.tokens)
    found: Any = offset_attention(
        *(q, k, v), offsets=offsets, kind="dot", weights=weights, initial_state=ring, return_state=True, backend=backend
    )
    if not return_state:
        return found[0]
    memory = weights.new_zeros(len(q), 0) if state is None else state.memory
    return found[0], FieldState(found[1].rows, memory, found[1].tokens)


@widened("v", stored="rows")
def cascade_field(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    gains: Tensor,
    *,
    taps: Taps = UNIT_TAPS,
    chunk_size: int = 128,
    initial_state: FieldState | None = None,
    return_state: bool = False,
    backend: str = "auto",
) -> Tensor | tuple[Tensor, FieldState]:
    """o_n = (sum_j g_nj A^j_n)ᵀ q_n, A^0 = k vᵀ, A^{j+1}_n = sum_s h_s A^j_{n - s 2^j}, j = 0..L-1.

    Every distance up to 3 (2^{L-1} - 1) is read, and nothing beyond: attention without softmax over that window.

    Args:
        q, k, v: `[B, N, H, d]`.
        gains: g, `[B, N, H, L]`.
        chunk_size: rows of a block; never changes a result.

    Returns:
        `[B, N, H, d]` in v's dtype; with ``return_state`` also the final state.

    Raises:
        ValueError: shapes disagree.
        BackendUnavailable: the backend has no form of this op.
    """
    check_arguments("cascade_field", q, k, v, taps, gains)
    form = select_form("cascade_field", backend, cascade_field_naive, cascade_field_torch, q)
    return run_form(form, "cascade", (q, k, v), gains, taps, chunk_size, initial_state, return_state)


@widened("v", stored="rows")
def pyramid_field(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    gains: Tensor,
    *,
    taps: Taps = UNIT_TAPS,
    chunk_size: int = 64,
    initial_state: FieldState | None = None,
    return_state: bool = False,
    backend: str = "auto",
) -> Tensor | tuple[Tensor, FieldState]:
    """o_n = (sum_j g_nj b^j_{floor(n / 2^j)})ᵀ q_n, b^0 = k vᵀ, b^{j+1}_m = sum_s h_s b^j_{2m - s}, j = 0..L-1.

    Level j is the cascade's at every 2^j-th row, held until the next.

    Args:
        q, k, v: `[B, N, H, d]`.
        gains: g, `[B, N, H, L]`.
        chunk_size: rows of a block, a power of two; never changes a result.

    Returns:
        `[B, N, H, d]` in v's dtype; with ``return_state`` also the final state.

    Raises:
        ValueError: shapes disagree, or ``chunk_size`` is no power of two.
        BackendUnavailable: the backend has no form of this op.
    """
    check_arguments("pyramid_field", q, k, v, taps, gains, chunk_size=chunk_size)
    form = select_form("pyramid_field", backend, pyramid_field_naive, pyramid_field_torch, q)
    return run_form(form, "pyramid", (q, k, v), gains, taps, chunk_size, initial_state, return_state)


@widened("v", stored="rows")
def delta_field(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    *,
    taps: Taps = UNIT_TAPS,
    chunk_size: int = 64,
    initial_state: FieldState | None = None,
    return_state: bool = False,
    backend: str = "auto",
) -> Tensor | tuple[Tensor, FieldState]:
    """o_n = F_nᵀ q_n, F_n = (1 - beta) F_{n-1} Tᵀ + beta k_n v_nᵀ, T_ab = h_{a-b}: it moves the value channels.

    With taps of sum 1 it is stable for every beta; with :data:`D4` transients grow below 1 - 1 / sqrt(2).

    Args:
        q, k, v: `[B, N, H, d]`.
        beta: `[H]`, between 0 and 1.
        chunk_size: rows of a chunk, a power of two; never changes a result.

    Returns:
        `[B, N, H, d]` in v's dtype; with ``return_state`` also the final state.

    Raises:
        ValueError: shapes disagree, or ``chunk_size`` is no power of two.
        BackendUnavailable: the backend has no form of this op.
    """
    check_arguments("delta_field", q, k, v, taps, chunk_size=chunk_size)
    if beta.shape != q.shape[2:3]:
        raise ValueError(f"delta_field takes beta [H] with H = {q.shape[2]}, got {tuple(beta.shape)}")
    form = select_form("delta_field", backend, delta_field_naive, delta_field_torch, q)
    return run_form(form, "delta", (q, k, v), beta, taps, chunk_size, initial_state, return_state)


def cascade_field_naive(
    q: Tensor, k: Tensor, v: Tensor, gains: Tensor, taps: Taps, chunk_size: int, state: FieldState | None, keep: bool
) -> tuple[Tensor, None]:
    """Level by level over all rows that are known; ``chunk_size`` has no meaning here."""
    num_rows = q.shape[1]
    k, v = _known(k, v, state)
    level = k[..., :, None] * v[..., None, :]
    field = gains[..., 0, None, None] * level[:, -num_rows:]
    for j in range(gains.shape[3] - 1):
        level = filtered(taps, (_delayed(level, s << j) for s in range(4)))
        field = field + gains[..., j + 1, None, None] * level[:, -num_rows:]
    return torch.einsum("bnhd,bnhde->bnhe", q, field), None


def cascade_field_torch(
    q: Tensor, k: Tensor, v: Tensor, gains: Tensor, taps: Taps, chunk_size: int, state: FieldState | None, keep: bool
) -> tuple[Tensor, None]:
    """Blocks of queries, each with the keys that it reaches; weights are computed anew in the backward pass."""
    num_rows = q.shape[1]
    k, v = _known(k, v, state)
    q, k, v, gains = (rearrange(x, "b n h d -> b h n d") for x in (q, k, v, gains))
    kernels = field_kernels(gains.shape[3], taps, q).flip(-1)
    reach, past, outs = kernels.shape[1] - 1, k.shape[2] - num_rows, []
    for begin in range(0, num_rows, chunk_size):
        end = min(begin + chunk_size, num_rows)
        keys = slice(max(0, past + begin - reach), past + end)
        block = (q[:, :, begin:end], k[:, :, keys], v[:, :, keys], gains[:, :, begin:end], kernels)
        outs.append(checkpoint(_band, *block, use_reentrant=False, preserve_rng_state=False))
    return rearrange(torch.cat(outs, dim=2), "b h n d -> b n h d"), None


def _band(q: Tensor, k: Tensor, v: Tensor, gains: Tensor, kernels: Tensor) -> Tensor:
    """The last C of W rows read all W; ``kernels`` `[L, reach + 1]` by distance, the largest first."""
    rows, columns = q.shape[2], k.shape[2]
    reach = min(kernels.shape[1], columns) - 1
    by_distance = gains @ kernels[:, -(reach + 1) :]
    # Row r shifted right by r: a row of the padded matrix is one longer than one of the result.
    shifted = F.pad(by_distance, (0, rows)).flatten(2)[..., : rows * (reach + rows)]
    weights = shifted.unflatten(2, (rows, reach + rows))[..., -columns:]
    return ((q @ k.transpose(-1, -2)) * weights) @ v


def pyramid_field_naive(
    q: Tensor, k: Tensor, v: Tensor, gains: Tensor, taps: Taps, chunk_size: int, state: FieldState | None, keep: bool
) -> tuple[Tensor, Tensor | None]:
    """Row by row, item by item; ``chunk_size`` has no meaning here."""
    batch_size, num_rows, heads, width = q.shape
    levels, zero, outs, memories = gains.shape[3], q.new_zeros(heads, width, width), [], []
    for b in range(batch_size):
        items, begin = [{} for _ in range(levels)], 0
        if state is not None:
            begin = int(state.tokens[b])
            for age, (key, value) in enumerate(state.rows[b].flip(0), start=1):
                items[0][begin - age] = key[:, :, None] * value[:, None, :]
            for j in range(1, levels):
                latest = (begin - 1) >> j
                items[j] = {m: state.memory[b, j - 1, m % 4] for m in range(latest - 3, latest + 1)}
        for n in range(num_rows):
            t = begin + n
            items[0][t] = k[b, n, :, :, None] * v[b, n, :, None, :]
            for j in range(1, levels):
                if t % 2**j == 0:
                    m = t >> j
                    items[j][m] = filtered(taps, (items[j - 1].get(2 * m - s, zero) for s in range(4)))
            field = sum(gains[b, n, :, j, None, None] * items[j][t >> j] for j in range(levels))
            outs.append(torch.einsum("hd,hde->he", q[b, n], field))
        for j in range(1, levels):
            latest = (begin + num_rows - 1) >> j
            memories += [items[j].get(latest - (latest - slot) % 4, zero) for slot in range(4)]
    memory = torch.stack(memories) if memories else q.new_zeros(0)
    return torch.stack(outs).view_as(q), memory.view(batch_size, levels - 1, 4, heads, width, width)


def pyramid_field_torch(
    q: Tensor, k: Tensor, v: Tensor, gains: Tensor, taps: Taps, chunk_size: int, state: FieldState | None, keep: bool
) -> tuple[Tensor, Tensor | None]:
    """By blocks; few rows one by one."""
    form = pyramid_by_rows if q.shape[1] < FEW_ROWS else pyramid_by_blocks
    return form(q, k, v, gains, taps, chunk_size, state, keep)


def delta_field_naive(
    q: Tensor, k: Tensor, v: Tensor, beta: Tensor, taps: Taps, chunk_size: int, state: FieldState | None, keep: bool
) -> tuple[Tensor, Tensor]:
    """Row by row, the recurrence itself; ``chunk_size`` has no meaning here."""
    move = _shifts(q.shape[3], taps, q)
    field = q.new_zeros(*q.shape[:1], *q.shape[2:], q.shape[3]) if state is None else state.memory
    kept, outs = beta[:, None, None], []
    for t in range(q.shape[1]):
        field = (1 - kept) * field @ move + kept * k[:, t, :, :, None] * v[:, t, :, None, :]
        outs.append(torch.einsum("bhd,bhde->bhe", q[:, t], field))
    return torch.stack(outs, dim=1), field


def delta_field_torch(
    q: Tensor, k: Tensor, v: Tensor, beta: Tensor, taps: Taps, chunk_size: int, state: FieldState | None, keep: bool
) -> tuple[Tensor, Tensor]:
    """Chunks of C rows, one matrix between chunks; inside, later halves read earlier ones through their border."""
    num_rows, width = q.shape[1], q.shape[3]
    chunk = min(chunk_size, 1 << (num_rows - 1).bit_length())
    padding = -num_rows % chunk
    q, k, v = (F.pad(x, (0, 0, 0, 0, 0, padding)) for x in (q, k, v * beta[:, None]))
    q, k, v = (rearrange(x, "b (n c) h d -> b n h c d", c=chunk) for x in (q, k, v))
    # Moving by s rows multiplies by powers[:, s], one matrix for each head.
    powers = _shifts(width, taps, q)[None]
    for _ in range(chunk.bit_length() - 1):
        powers = torch.cat([powers, powers @ powers[-1]])
    powers = torch.cat([torch.eye(width, dtype=q.dtype, device=q.device)[None], powers])
    steps = torch.arange(chunk + 1, device=q.device)
    powers = (1 - beta)[:, None, None, None] ** steps[:, None, None] * powers  # [H, C + 1, d, d]

    out = (q * k).sum(dim=-1, keepdim=True) * v
    size = 1
    while size < chunk:
        late_q, early_k, early_v = (
            rearrange(x, "b n h (g two r) d -> two b n h g r d", two=2, r=size)[half]
            for x, half in ((q, 1), (k, 0), (v, 0))
        )
        crossing = (late_q @ early_k.transpose(-1, -2)) @ _moved(early_v, powers[:, :size].flip(1))
        crossing = _moved(crossing, powers[:, 1 : size + 1])
        later = torch.stack([torch.zeros_like(crossing), crossing])
        out = out + rearrange(later, "two b n h g r e -> b n h (g two r) e")
        size *= 2

    field = q.new_zeros(q.shape[0], q.shape[2], width, width) if state is None else state.memory
    updates = k.transpose(-1, -2) @ _moved(v[:, :, :, None], powers[:, :chunk].flip(1))[:, :, :, 0]
    past = []
    for n in range(q.shape[1] - 1):
        past.append(field)
        field = field @ powers[:, chunk] + updates[:, n]
    past.append(field)
    out = out + _moved((q @ torch.stack(past, dim=1))[:, :, :, None], powers[:, 1:])[:, :, :, 0]
    # The last chunk ends before its padding.
    last = chunk - padding
    moved = _moved(v[:, -1:, :, None, :last], powers[:, :last].flip(1))[:, 0, :, 0]
    field = field @ powers[:, last] + k[:, -1, :, :last].transpose(-1, -2) @ moved
    return rearrange(out, "b n h c e -> b (n c) h e")[:, :num_rows], field


def _known(k: Tensor, v: Tensor, state: FieldState | None) -> tuple[Tensor, Tensor]:
    """Keys and values of the state and of the piece."""
    if state is None:
        return k, v
    keys, values = state.rows.unbind(dim=2)
    return torch.cat([keys, k], dim=1), torch.cat([values, v], dim=1)


def _delayed(x: Tensor, distance: int) -> Tensor:
    """Every row what lay ``distance`` rows before it, 0 before the first."""
    return F.pad(x, (0, 0) * (x.dim() - 2) + (distance, 0))[:, : x.shape[1]]


def _shifts(width: int, taps: Taps, like: Tensor) -> Tensor:
    """Tᵀ, `[d, d]`: a row of channels times it is that row filtered."""
    diagonals = (tap * like.new_ones(width - s).diag(s) for s, tap in enumerate(taps[:width]))
    return sum(diagonals, like.new_zeros(width, width))


def _moved(x: Tensor, powers: Tensor) -> Tensor:
    """Row s of ``x`` `[B, n, H, g, r, d]` times ``powers[:, s]`` `[H, r, d, d]`."""
    return torch.einsum("bnhgrd,hrde->bnhgre", x, powers)
