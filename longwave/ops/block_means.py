"""Running means of dyadic blocks: at every row, the mean of what its block has seen so far.

Level l cuts each document into blocks of 2^l rows. Sums stay inside their block: as differences of
prefix sums over the whole sequence they would lose precision with N.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from longwave.ops._dispatch import select_form
from longwave.ops._precision import widened
from longwave.ops.documents import document_positions, expand_mask


class BlockSums(NamedTuple):
    """Sum of the current block of each level; a block just completed is still there.

    ``sums`` is `[B, L, ...]`, float32 or wider; ``tokens`` `[B]` int64 counts the document's rows so far.
    """

    sums: Tensor
    tokens: Tensor


@widened("x")
def block_means(
    x: Tensor,
    num_levels: int,
    *,
    initial_state: BlockSums | None = None,
    starts: Tensor | None = None,
    return_state: bool = False,
    backend: str = "auto",
) -> Tensor | tuple[Tensor, BlockSums]:
    """Mean of x over rows s..i, s the first row of i's block of 2^l rows, for l = 1..num_levels.

    Args:
        x: `[B, N, ...]`.
        num_levels: L, at least 0.
        initial_state: the state after the rows before this piece.
        starts: `[B, N]` bool, first row of each document; blocks are counted from it.
        backend: ``auto``, ``naive``, ``torch`` or ``numba``.

    Returns:
        `[B, N, L, ...]` in x's dtype; with ``return_state`` also the final :class:`BlockSums`.

    Raises:
        BackendUnavailable: the backend has no form of this op.
    """
    form = select_form("block_means", backend, block_means_naive, block_means_torch, x)
    tokens = None if initial_state is None else initial_state.tokens
    positions = document_positions(*x.shape[:2], tokens=tokens, starts=starts, device=x.device)
    sums = form(x, num_levels, positions, None if initial_state is None else initial_state.sums)
    sizes = 2 ** torch.arange(1, num_levels + 1, device=x.device)
    counts = positions[..., None] % sizes + 1
    means = sums / expand_mask(counts, sums).to(sums.dtype)
    return (means, BlockSums(sums[:, -1], positions[:, -1] + 1)) if return_state else means


def block_means_naive(x: Tensor, num_levels: int, positions: Tensor, past: Tensor | None) -> Tensor:
    """Sums, not means: one row, one level at a time."""
    batch_size, num_rows = positions.shape
    sums = x.new_zeros(batch_size, num_levels, *x.shape[2:]) if past is None else past
    outs = []
    for t in range(num_rows):
        begins = positions[:, t, None] % (2 ** torch.arange(1, num_levels + 1, device=x.device)) == 0
        sums = torch.where(expand_mask(begins, sums), 0.0, sums) + x[:, t, None]
        outs.append(sums)
    return torch.stack(outs, dim=1)


def block_means_torch(x: Tensor, num_levels: int, positions: Tensor, past: Tensor | None) -> Tensor:
    """Level by level: a row in the second half of its block adds the sum of the completed first half."""
    batch = torch.arange(x.shape[0], device=x.device)[:, None]
    rows = torch.arange(x.shape[1], device=x.device)
    levels, level = [x[:, :, None][:, :, :0]], x
    for index in range(num_levels):
        half = 2**index
        partner = rows - positions % half - 1  # last row of the first half
        joins = (positions % (2 * half) >= half) & (partner >= 0)
        # A row that joins nothing reads itself and adds nothing.
        partner = torch.where(joins, partner, rows)
        level = level + expand_mask(joins, level).to(x.dtype) * level[batch, partner]
        levels.append(level[:, :, None])
    sums = torch.cat(levels, dim=2)
    if past is None:
        return sums
    # Rows whose block began before this piece carry the sum that the state holds of it.
    sizes = 2 ** torch.arange(1, num_levels + 1, device=x.device)
    continues = positions[..., None] % sizes > rows[:, None]
    return sums + expand_mask(continues, sums).to(x.dtype) * past[:, None]
