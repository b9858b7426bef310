"""The forms of the pyramid field: by blocks for many rows, one by one for few.

A block of C = 2^c rows shares its item of every level from c on, `[d, d]` each, read by one product. Items below are
never built: a row reads the keys and values that they are made of. Notation: G = B H streams, which have seen t rows
before the piece; item i of a level's frame is its item floor(t / 2^j) + i, i = 0 being the one held at row t.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from longwave.ops.fields import Taps, filtered

SLOTS = 4


class Before(NamedTuple):
    """What streams have seen.

    ``deposits`` `[G, 3, d, d]` are those of the last rows, oldest first; ``items`` `[G, L - 1, 4, d, d]` those of the
    levels above, item m in slot m mod 4; ``tokens`` `[G]` int64 counts the rows.
    """

    deposits: Tensor
    items: Tensor
    tokens: Tensor

    def item(self, level: int, behind: Sequence[int]) -> Tensor:
        """Items before the frame by so many, `[G, K, d, d]`."""
        if level == 0:
            return self.deposits[:, [-back for back in behind]]
        back = torch.tensor(behind, device=self.tokens.device)
        return take(self.items[:, level - 1], ((self.tokens >> level)[:, None] - back) % SLOTS)


def pyramid_by_blocks(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    gains: Tensor,
    taps: Taps,
    chunk_size: int,
    state: tuple[Tensor, Tensor, Tensor] | None,
    keep: bool,
) -> tuple[Tensor, Tensor | None]:
    """Output and, to ``keep``, the final items `[B, L - 1, 4, H, d, d]`.

    ``state`` holds the last rows `[B, 3, 2, H, d]`, oldest first, the items and the tokens `[B]`.
    """
    num_rows, heads, levels = gains.shape[1:]
    q, k, v, gains = (rearrange(x, "b n h d -> (b h) n d") for x in (q, k, v, gains))
    before = None
    if state is not None:
        last_k, last_v = rearrange(state[0], "b n s h d -> s (b h) n d").unbind()
        items = rearrange(state[1], "b l s h d e -> (b h) l s d e")
        before = Before(last_k[..., :, None] * last_v[..., None, :], items, state[2].repeat_interleave(heads))
    low = min(chunk_size.bit_length() - 1, levels)
    kernels = field_kernels(low + 1, taps, q)
    start, (queries, keys, values, shares) = _blocks((q, k, v, gains), 1 << low, before)
    out = _read_near(queries, keys, values, shares, kernels[:-1])
    carried = [] if before is None else _carried(min(low, levels - 1), taps, before)
    far = []
    if levels > low:
        base = _block_items(keys, values, kernels[-1])
        if carried:  # three of them reach beyond the piece's begin
            base = base + F.pad(carried.pop(), (0, 0, 0, 0, 0, base.shape[1] - SLOTS))
        far.append(base)
        for level in range(low, levels - 1):
            far.append(_above(far[-1], level, taps, before))
        out = out + _read_far(queries, shares[..., low:], far, low, before)
    out = out.flatten(1, 2)
    if before is None:
        out = out[:, :num_rows]
    else:
        out = take(out, start + torch.arange(num_rows, device=q.device))
        out = out + _read_carried(q, gains, carried, before.tokens)
    items = _final_items(k, v, kernels, carried, far, levels, before) if keep else None
    if items is not None:
        items = rearrange(items, "(b h) l s d e -> b l s h d e", h=heads)
    return rearrange(out, "(b h) n d -> b n h d", h=heads), items


def pyramid_by_rows(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    gains: Tensor,
    taps: Taps,
    chunk_size: int,
    state: tuple[Tensor, Tensor, Tensor] | None,
    keep: bool,
) -> tuple[Tensor, Tensor]:
    """The recurrence, all levels at once; ``chunk_size`` and ``keep`` have no meaning here."""
    batch_size, num_rows, heads, width = q.shape
    above, outs = gains.shape[3] - 1, []
    if state is None:
        rows, items = (
            q.new_zeros(batch_size, 3, 2, heads, width),
            q.new_zeros(batch_size, above, SLOTS, heads, width, width),
        )
        state = rows, items, torch.zeros(batch_size, dtype=torch.int64, device=q.device)
    rows, items, tokens = state
    deposits = [key[..., :, None] * value[..., None, :] for key, value in (row.unbind(1) for row in rows.unbind(1))]
    level, slots = torch.arange(1, above + 1, device=q.device), torch.arange(SLOTS, device=q.device)
    past_taps = torch.tensor([0.0, *taps[1:]], dtype=q.dtype, device=q.device)
    for n in range(num_rows):
        latest = (tokens + n)[:, None] >> level  # [B, L - 1]
        deposits.append(k[:, n, :, :, None] * v[:, n, :, None, :])
        # What the present item of every level but the highest adds to its earlier ones.
        ages = (latest[:, :-1, None] - slots) % SLOTS
        sums = torch.einsum("bls,blshde->lbhde", past_taps[ages], items[:, :-1])
        sums = [filtered(taps[1:], deposits[-2:-5:-1]), *sums]
        made = [deposits[-1]]
        for earlier in sums[:above]:
            made.append(taps[0] * made[-1] + earlier)
        if above:
            written = ((tokens + n)[:, None] % 2**level == 0)[..., None] & (latest[..., None] % SLOTS == slots)
            items = torch.where(written[..., None, None, None], torch.stack(made[1:], dim=1)[:, :, None], items)
        held = take(items.flatten(1, 2), SLOTS * (level - 1) + latest % SLOTS)
        reads = gains[:, n, :, :, None] * q[:, n, :, None]  # [B, H, L, d]
        outs.append(torch.einsum("bhld,blhde->bhe", reads, torch.cat([deposits[-1][:, None], held], dim=1)))
    return torch.stack(outs, dim=1), items


def field_kernels(levels: int, taps: Taps, like: Tensor) -> Tensor:
    """c^j by distance, `[L, 3 (2^{L-1} - 1) + 1]`: the cascade's level j is sum_m c^j_m (k vᵀ)_{n-m}."""
    kernels = [like.new_ones(1)]
    for j in range(levels - 1):
        kernels.append(filtered(taps, (F.pad(kernels[-1], (s << j, (3 - s) << j)) for s in range(4))))
    longest = len(kernels[-1])
    return torch.stack([F.pad(kernel, (0, longest - len(kernel))) for kernel in kernels])


def take(x: Tensor, index: Tensor) -> Tensor:
    """Rows ``index`` `[G, M]` of ``x`` `[G, N, ...]`: `[G, M, ...]`."""
    first = x.shape[1] * torch.arange(x.shape[0], device=x.device)[:, None]
    return x.flatten(0, 1).index_select(0, (first + index).flatten()).unflatten(0, index.shape)


def _blocks(streams: Sequence[Tensor], chunk: int, before: Before | None) -> tuple[Tensor | int, list[Tensor]]:
    """Where each stream's first row stands in its block, and the streams in blocks `[G, n, C, d]`, zero outside."""
    num_rows = streams[0].shape[1]
    if before is None:
        padded = [F.pad(x, (0, 0, 0, -num_rows % chunk)) for x in streams]
        return 0, [x.unflatten(1, (-1, chunk)) for x in padded]
    start = (before.tokens % chunk)[:, None]
    length = -(-(num_rows + chunk - 1) // chunk) * chunk
    rows = torch.arange(length, device=start.device) - start
    rows = torch.where((rows >= 0) & (rows < num_rows), rows, num_rows)  # the row of zeros
    return start, [take(F.pad(x, (0, 0, 0, 1)), rows).unflatten(1, (-1, chunk)) for x in streams]


def _read_near(q: Tensor, k: Tensor, v: Tensor, gains: Tensor, kernels: Tensor) -> Tensor:
    """Levels below c, through the keys: at most 2 C - 4 rows lie between a row and what it reads."""
    levels, chunk = len(kernels), q.shape[2]
    reach = 3 * (chunk // 2 - 1)
    rows = torch.arange(chunk, device=q.device)
    level = torch.arange(levels, device=q.device)[:, None]
    begins = (rows[:, None] >> level.T << level.T)[..., None]  # of the items that a row reads, `[C, c, 1]`
    distance = begins - torch.arange(-reach, chunk, device=q.device)
    table = kernels[level, distance.clamp(0, reach)] * ((distance >= 0) & (distance <= reach))
    weights = torch.einsum("gnrl,rlw->gnrw", gains[..., :levels], table)
    k, v = (F.pad(x.flatten(1, 2), (0, 0, reach, 0)).unfold(1, chunk + reach, chunk) for x in (k, v))
    return ((q @ k) * weights) @ v.transpose(-1, -2)


def _block_items(k: Tensor, v: Tensor, kernel: Tensor) -> Tensor:
    """Items of level c made of the rows at hand, `[G, n, d, d]`: sums over the 3 C rows up to a block's first."""
    num_blocks, chunk, width = k.shape[1:]
    k, v = (F.pad(x.flatten(1, 2), (0, 0, chunk - 1, 1 - chunk)).unflatten(1, (-1, chunk)) for x in (k, v))
    lags = F.pad(kernel, (0, 2)).view(3, chunk).flip(1).T
    weighted = (k[..., None, :] * lags[..., None]).flatten(3)
    parts = (weighted.transpose(-1, -2) @ v).unflatten(2, (3, width))
    return reduce(torch.add, (F.pad(parts[:, :, i], (0, 0, 0, 0, i, 0))[:, :num_blocks] for i in range(3)))


def _above(below: Tensor, level: int, taps: Taps, before: Before | None, count: int | None = None) -> Tensor:
    """The frame of level + 1 from that of ``level``, ``count`` items or all that the piece can make."""
    size = below.shape[1]
    if before is None:
        count = (size + 1) // 2
        known = F.pad(below, (0, 0, 0, 0, 4, 0))
    else:
        count = count or size // 2 + 1
        known = torch.cat([F.pad(before.item(level, (3, 2, 1)), (0, 0, 0, 0, 1, 0)), below], dim=1)
    known = F.pad(known, (0, 0, 0, 0, 0, 2 * count + 3 - known.shape[1]))
    parts = [known[:, s::2][:, :count] for s in range(5)]
    items = filtered(taps, parts[:0:-1])
    if before is None:
        return items
    odd = filtered(taps, parts[-2::-1])
    items = torch.where((before.tokens >> level & 1 > 0)[:, None, None, None], odd, items)
    held = (before.tokens % 2 ** (level + 1) > 0)[:, None, None, None]
    return torch.cat([torch.where(held, before.item(level + 1, (0,)), items[:, :1]), items[:, 1:]], dim=1)


def _carried(highest: int, taps: Taps, before: Before) -> list[Tensor]:
    """Levels 1.. if nothing followed, `[G, 4, d, d]`: beyond the item held, what came before makes three more."""
    levels = [before.deposits[:, :0]]
    for level in range(highest):
        levels.append(_above(levels[-1], level, taps, before, SLOTS))
    return levels[1:]


def _read_far(q: Tensor, gains: Tensor, far: Sequence[Tensor], low: int, before: Before | None) -> Tensor:
    """Levels from c on: of each a block has one item."""
    blocks = torch.arange(q.shape[1], device=q.device).expand(len(q), -1)
    if before is not None:
        blocks = blocks + (before.tokens >> low)[:, None]
    index, first = [], 0
    for s, items in enumerate(far):
        frame = blocks >> s
        index.append(frame - frame[:, :1] + first)
        first += items.shape[1]
    items = take(torch.cat(list(far), dim=1), torch.stack(index, dim=2).flatten(1))
    items = items.unflatten(1, (-1, len(far))).flatten(2, 3)  # [G, n, (l d), d]
    return (gains[..., None] * q[..., None, :]).flatten(3) @ items


def _read_carried(q: Tensor, gains: Tensor, carried: Sequence[Tensor], tokens: Tensor) -> Tensor:
    """Levels 1..c-1 of what came before the piece, which end within 2 C rows."""
    num_rows, levels = q.shape[1], len(carried)
    if not levels:
        return torch.zeros_like(q)
    count = min(num_rows, SLOTS << levels)
    level = torch.arange(1, levels + 1, device=q.device)
    frame = (tokens[:, None] + torch.arange(count, device=q.device))[..., None] >> level
    read = frame - (tokens[:, None, None] >> level)
    read = (read[..., None] == torch.arange(SLOTS, device=q.device)).to(q.dtype)
    weights = (gains[:, :count, 1 : levels + 1, None] * read).flatten(2)
    out = (weights[..., None] * q[:, :count, None]).flatten(2) @ torch.cat(list(carried), dim=1).flatten(1, 2)
    return F.pad(out, (0, 0, 0, num_rows - count))


def _final_items(
    k: Tensor,
    v: Tensor,
    kernels: Tensor,
    carried: Sequence[Tensor],
    far: Sequence[Tensor],
    levels: int,
    before: Before | None,
) -> Tensor:
    """The last four items of each level from 1 on, item m in slot m mod 4."""
    streams, num_rows, width = k.shape
    low, slots, final = levels - len(far), torch.arange(SLOTS, device=k.device), []
    begin = k.new_zeros(streams, dtype=torch.int64) if before is None else before.tokens
    for level in range(1, levels):
        latest = (begin + num_rows - 1 >> level)[:, None]
        item = latest - (latest - slots) % SLOTS
        frame = item - (begin >> level)[:, None]
        if level < low:
            rows = min(num_rows, 7 << level)
            distance = ((item << level) - begin[:, None])[..., None] - torch.arange(
                num_rows - rows, num_rows, device=k.device
            )
            reach = 3 * ((1 << level) - 1)
            weights = kernels[level, distance.clamp(0, reach)] * ((distance >= 0) & (distance <= reach))
            weighted = weights[..., None] * k[:, None, num_rows - rows :]
            found = weighted.transpose(-1, -2) @ v[:, None, num_rows - rows :]
            if carried:
                found = found + _framed(carried[level - 1], frame)
        else:
            found = _framed(far[level - low], frame)
        if before is not None:
            found = torch.where((frame < 0)[..., None, None], before.items[:, level - 1], found)
        final.append(found)
    return torch.stack(final, dim=1) if final else k.new_zeros(streams, 0, SLOTS, width, width)


def _framed(items: Tensor, frame: Tensor) -> Tensor:
    """The items of a frame that are in it, else 0."""
    inside = (frame >= 0) & (frame < items.shape[1])
    return take(items, frame.clamp(0, items.shape[1] - 1)) * inside[..., None, None]
