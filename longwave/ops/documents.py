"""Where a row stands in its document, and the ring that keeps a document's last rows.

Every op and mixer reads ``starts`` through :func:`document_positions`, so that the document law has one
meaning: a row's document began at the latest start at or before it, or before this piece.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


def document_positions(
    batch_size: int,
    num_rows: int,
    *,
    tokens: Tensor | None = None,
    starts: Tensor | None = None,
    device: torch.device | None = None,
) -> Tensor:
    """Index of every row in its own document, from 0.

    Args:
        tokens: `[B]` int64, rows of the current document seen before this piece; ``None`` for none.
        starts: `[B, N]` bool, true on the first row of each document; ``None`` for no start in this piece.

    Returns:
        `[B, N]` int64.
    """
    rows = torch.arange(num_rows, device=device)
    offset = torch.zeros(batch_size, dtype=torch.int64, device=device) if tokens is None else tokens
    positions = rows + offset[:, None]
    if starts is None:
        return positions
    latest = torch.where(starts, rows, -1).cummax(dim=1).values
    return torch.where(latest >= 0, rows - latest, positions)


class Ring(NamedTuple):
    """The last R rows of a document: row t sits in slot t mod R, slots never written are zero.

    ``rows`` is `[B, R, ...]`; ``tokens`` `[B]` int64 counts the document's rows so far.
    """

    rows: Tensor
    tokens: Tensor

    def last(self, count: int) -> Tensor:
        """`[B, count, ...]`: the last ``count`` <= R rows, oldest first (missing ones, all zero, come before them)."""
        size = self.rows.shape[1]
        slots = torch.arange(size - count, size, device=self.rows.device)
        return _gather_rows(self.rows, (self.tokens[:, None] + slots) % size)

    def extended(self, new: Tensor, positions: Tensor) -> Ring:
        """The ring after a piece whose document indices are ``positions`` `[B, N]`.

        ``new`` `[B, n, ...]` are its rows; the last min(R, N) are enough.
        """
        size = self.rows.shape[1]
        tokens = positions[:, -1] + 1
        new = new[:, -size:]
        recent = torch.cat([self.last(size - new.shape[1]), new], dim=1)
        age = torch.arange(size - 1, -1, -1, device=new.device)
        recent = torch.where(expand_mask(age < tokens[:, None], recent), recent, 0.0)
        # Slot s holds document row t, the largest t < tokens with t mod size = s.
        slots = torch.arange(size, device=new.device)
        order = (slots - tokens[:, None]) % size
        return Ring(_gather_rows(recent, order), tokens)


def empty_ring(batch_size: int, size: int, shape: tuple[int, ...], like: Tensor) -> Ring:
    """A ring of ``size`` rows of ``shape`` that has seen nothing."""
    rows = like.new_zeros(batch_size, size, *shape)
    return Ring(rows, torch.zeros(batch_size, dtype=torch.int64, device=like.device))


def _gather_rows(rows: Tensor, index: Tensor) -> Tensor:
    return rows[torch.arange(rows.shape[0], device=rows.device)[:, None], index]


def expand_mask(mask: Tensor, like: Tensor) -> Tensor:
    """``mask`` with trailing axes of size 1, so that it broadcasts against ``like``."""
    return mask.reshape(*mask.shape, *[1] * (like.dim() - mask.dim()))
