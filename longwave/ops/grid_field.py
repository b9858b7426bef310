"""Fixed causal filters, one for each head: a damped wave by its recurrence, any kernel by its taps.

    damped_wave:    S_t = e^(-a + iw) S_{t-1} + u_t,   y_t = Re(c S_t)
    causal_filter:  y_t = sum_s taps_s u_{t-s}

Both work in time, not by Fourier transforms, whose rounding would carry the future into the past. Notation: B batch,
N rows, H heads, d channels, R taps, C rows of a chunk.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from longwave.ops._dispatch import select_form
from longwave.ops._precision import widened
from longwave.ops.documents import Ring, document_positions, empty_ring, expand_mask

#: Rows of a chunk of either op; never changes a result.
WAVE_CHUNK, FILTER_CHUNK = 64, 128


@widened("u")
def damped_wave(
    u: Tensor,
    pole: Tensor,
    read: Tensor,
    *,
    initial_state: Tensor | None = None,
    starts: Tensor | None = None,
    return_state: bool = False,
    backend: str = "auto",
) -> Tensor | tuple[Tensor, Tensor]:
    """y_t = Re(c S_t), S_t = e^(-a + iw) S_{t-1} + u_t, over the rows of t's own document.

    Args:
        u: `[B, N, H, d]`.
        pole: `[2, H]`, a (at least 0) and w, in radians a row.
        read: `[2, H]`, real and imaginary part of c.
        initial_state: `[B, H, 2, d]`, real and imaginary part of S before this piece.
        starts: `[B, N]` bool, first row of each document.
        backend: ``auto``, ``naive`` or ``torch``.

    Returns:
        `[B, N, H, d]` in u's dtype; with ``return_state`` also the final S, float32 or wider.

    Raises:
        ValueError: shapes disagree.
        BackendUnavailable: the backend has no form of this op.
    """
    if u.dim() != 4 or not pole.shape == read.shape == (2, u.shape[2]):
        raise ValueError(
            "damped_wave takes u [B, N, H, d] and pole and read [2, H]; "
            f"got {tuple(u.shape)}, {tuple(pole.shape)}, {tuple(read.shape)}"
        )
    form = select_form("damped_wave", backend, damped_wave_naive, damped_wave_torch, u)
    if initial_state is None:
        initial_state = u.new_zeros(u.shape[0], u.shape[2], 2, u.shape[3])
    out, state = form(u, pole, read, initial_state, starts)
    return (out, state) if return_state else out


def damped_wave_naive(
    u: Tensor, pole: Tensor, read: Tensor, state: Tensor, starts: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Row by row, the recurrence itself."""
    size, angle = torch.exp(-pole[0]), pole[1]
    turn = torch.stack([size * angle.cos(), size * angle.sin()])[..., None]  # [2, H, 1]
    outs = []
    for t in range(u.shape[1]):
        if starts is not None:
            state = torch.where(starts[:, t, None, None, None], 0.0, state)
        real, imaginary = state.unbind(dim=2)
        real, imaginary = turn[0] * real - turn[1] * imaginary + u[:, t], turn[0] * imaginary + turn[1] * real
        state = torch.stack([real, imaginary], dim=2)
        outs.append(read[0, :, None] * real - read[1, :, None] * imaginary)
    return torch.stack(outs, dim=1), state


def damped_wave_torch(
    u: Tensor, pole: Tensor, read: Tensor, state: Tensor, starts: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Chunk by chunk, one product of a matrix with the state and the chunk's rows."""
    rows = rearrange(u, "b n h d -> b h n d")
    starts_of = [None] * rows.shape[2] if starts is None else starts.split(WAVE_CHUNK, dim=1)
    outs, matrix = [], None
    for chunk, fresh in zip(rows.split(WAVE_CHUNK, dim=2), starts_of, strict=False):
        if matrix is None or matrix.shape[1] != chunk.shape[2] + 2:
            matrix = _wave_matrix(pole, read, chunk.shape[2])
        weights = matrix
        if fresh is not None:
            document = F.pad(fresh.long().cumsum(dim=1), (2, 0))  # the state's two rows come from document 0
            after = document.clone()
            after[:, :2] = document[:, -1:]  # and go to the last one
            weights = matrix * (after[..., None] == document[:, None]).to(matrix.dtype)[:, None]
        state, out = (weights @ torch.cat([state, chunk], dim=2)).split([2, chunk.shape[2]], dim=2)
        outs.append(out)
    return rearrange(torch.cat(outs, dim=2), "b h n d -> b n h d"), state


def _wave_matrix(pole: Tensor, read: Tensor, num_rows: int) -> Tensor:
    """`[H, 2 + C, 2 + C]`: from the state before (real, imaginary) and C rows to the state after and C outputs."""
    ages = torch.arange(num_rows + 1, device=pole.device, dtype=pole.dtype)
    size, angle = torch.exp(-pole[0, :, None] * ages), pole[1, :, None] * ages
    real, imaginary = size * angle.cos(), size * angle.sin()  # of the pole's powers, [H, C + 1]
    response = read[0, :, None] * real - read[1, :, None] * imaginary
    quadrature = -read[0, :, None] * imaginary - read[1, :, None] * real
    latest = torch.stack([real, imaginary], dim=1)[..., :-1].flip(-1)
    turn = torch.stack([real[:, -1], -imaginary[:, -1], imaginary[:, -1], real[:, -1]], dim=-1).unflatten(-1, (2, 2))
    from_state = torch.stack([response[:, 1:], quadrature[:, 1:]], dim=-1)
    within = _shifted(response[:, :-1], num_rows, num_rows)
    return torch.cat([torch.cat([turn, latest], dim=2), torch.cat([from_state, within], dim=2)], dim=1)


@widened("u")
def causal_filter(
    u: Tensor,
    taps: Tensor,
    *,
    offsets: Sequence[int] | None = None,
    initial_state: Ring | None = None,
    starts: Tensor | None = None,
    return_state: bool = False,
    backend: str = "auto",
) -> Tensor | tuple[Tensor, Ring]:
    """y_t = sum_r taps_r u_{t - offset_r} over the rows of t's own document.

    Args:
        u: `[B, N, H, d]`.
        taps: `[H, R]`.
        offsets: R distinct numbers of rows, at least 0; ``None`` for 0..R-1.
        initial_state: the document's last rows before this piece, at least as many as the largest offset.
        starts: `[B, N]` bool, first row of each document.
        backend: ``auto``, ``naive`` or ``torch``.

    Returns:
        `[B, N, H, d]` in u's dtype; with ``return_state`` also the final ring, float32 or wider, without an
        ``initial_state`` of one row more than the largest offset.

    Raises:
        ValueError: shapes disagree.
        BackendUnavailable: the backend has no form of this op.
    """
    if u.dim() != 4 or taps.dim() != 2 or taps.shape[0] != u.shape[2]:
        raise ValueError(
            f"causal_filter takes u [B, N, H, d] and taps [H, R]; got {tuple(u.shape)}, {tuple(taps.shape)}"
        )
    if offsets is not None and (len(offsets) != taps.shape[1] or min(offsets, default=0) < 0):
        raise ValueError(f"causal_filter needs an offset of at least 0 for each of {taps.shape[1]} taps, got {offsets}")
    form = select_form("causal_filter", backend, causal_filter_naive, causal_filter_torch, u)
    reach = max(offsets, default=0) if offsets is not None else taps.shape[1] - 1
    tokens = None if initial_state is None else initial_state.tokens
    positions = document_positions(*u.shape[:2], tokens=tokens, starts=starts, device=u.device)
    past = None
    if initial_state is not None:
        written = torch.arange(reach, 0, -1, device=u.device) <= initial_state.tokens[:, None]
        past = initial_state.last(reach)
        past = torch.where(expand_mask(written, past), past, 0.0)
    borders = None if starts is None else positions
    out = form(u, taps, offsets, past, borders)
    if not return_state:
        return out
    ring = empty_ring(u.shape[0], reach + 1, u.shape[2:], u) if initial_state is None else initial_state
    return out, ring.extended(u[:, -ring.rows.shape[1] :], positions)


def causal_filter_naive(
    u: Tensor, taps: Tensor, offsets: Sequence[int] | None, past: Tensor | None, positions: Tensor | None
) -> Tensor:
    """Row by row; taps that are not given are 0. ``past`` `[B, reach, H, d]`; ``positions`` where documents start."""
    if offsets is not None:
        index = torch.tensor(offsets, dtype=torch.int64, device=taps.device)
        taps = taps.new_zeros(taps.shape[0], max(offsets, default=0) + 1).index_copy(1, index, taps)
    reach = taps.shape[1] - 1
    known = F.pad(u, (0, 0, 0, 0, reach, 0)) if past is None else torch.cat([past, u], dim=1)
    oldest_first, age = rearrange(taps.flip(1), "h r -> r h 1"), torch.arange(reach, -1, -1, device=u.device)
    outs = []
    for t in range(u.shape[1]):
        window = known[:, t : t + reach + 1]
        if positions is not None:
            window = torch.where(expand_mask(age <= positions[:, t, None], window), window, 0.0)
        outs.append((oldest_first * window).sum(dim=1))
    return torch.stack(outs, dim=1)


def causal_filter_torch(
    u: Tensor, taps: Tensor, offsets: Sequence[int] | None, past: Tensor | None, positions: Tensor | None
) -> Tensor:
    """Chunk by chunk for a dense kernel, tap by tap for a sparse one."""
    if offsets is None:
        return _filter_by_chunks(u, taps, past, positions)
    num_rows, reach = u.shape[1], max(offsets, default=0)
    known = F.pad(u, (0, 0, 0, 0, reach, 0)) if past is None else torch.cat([past, u], dim=1)
    out = torch.zeros_like(u)
    for weight, offset in zip(taps.unbind(dim=1), offsets, strict=True):
        if past is None and offset >= num_rows:
            continue
        weight = weight[:, None]
        if positions is not None:
            weight = weight * expand_mask(positions >= offset, u).to(u.dtype)
        out = torch.addcmul(out, weight, known[:, reach - offset : reach - offset + num_rows])
    return out


def _filter_by_chunks(u: Tensor, taps: Tensor, past: Tensor | None, positions: Tensor | None) -> Tensor:
    """The Toeplitz matrix, one diagonal of blocks after the other: a block meets all its chunks in one product."""
    num_rows, reach = u.shape[1], taps.shape[1] - 1
    chunk = min(FILTER_CHUNK, num_rows) if past is None else FILTER_CHUNK
    count, behind = -(-num_rows // chunk), -(-reach // chunk)
    before = 0 if past is None else behind  # chunks of the past
    known = u if past is None else torch.cat([past, u], dim=1)
    padding = (before * chunk - known.shape[1] + num_rows, count * chunk - num_rows)
    sources = rearrange(F.pad(known, (0, 0, 0, 0, *padding)), "b (n c) h d -> h c n b d", c=chunk)
    blocks = _shifted(taps, (behind + 1) * chunk, chunk).unflatten(1, (behind + 1, chunk))
    if positions is None:
        document, out = None, _product(blocks[:, 0], sources[:, :, before:])
    else:
        document = (positions == 0).long().cumsum(dim=1)  # that of the past is 0
        document = F.pad(document, (before * chunk, padding[1]), value=-1)
        document[:, : before * chunk] = 0
        document = rearrange(document, "b (n c) -> c n b 1", c=chunk)
        own = rearrange(document[:, before:], "c n b 1 -> n b c 1")
        weights = blocks[:, 0, None, None] * (own == own.transpose(-1, -2)).to(u.dtype)
        out = torch.einsum("hnbcm,hmnbd->hcnbd", weights, sources[:, :, before:])
        sources = sources * (document == document[-1:]).to(u.dtype)  # only a chunk's last document is read later
    for back in range(1, min(behind, before + count - 1) + 1):
        first = max(0, back - before)
        span = slice(before + first - back, before + count - back)
        found = _product(blocks[:, back], sources[:, :, span])
        if document is not None:
            found = found * (document[:, before + first :] == document[-1:, span]).to(u.dtype)
        out = out + F.pad(found, (0, 0, 0, 0, first, 0))
    return rearrange(out, "h c n b d -> b (n c) h d")[:, :num_rows]


def _product(block: Tensor, rows: Tensor) -> Tensor:
    """`[H, C, C]` times each chunk of `[H, C, n, B, d]`."""
    return (block @ rows.flatten(2)).view(rows.shape)


def _shifted(taps: Tensor, num_rows: int, num_columns: int) -> Tensor:
    """`[H, rows, columns]`, entry (t, m) the tap t - m; 0 where there is none."""
    padded = F.pad(taps, (num_columns - 1, num_rows - taps.shape[1]))
    return padded.unfold(1, num_columns, 1).flip(2)
