"""Mean of a document's rows so far: the memory of all distances in DWARF's pooled layers."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from longwave.ops.documents import document_positions


def running_mean(
    x: Tensor,
    *,
    initial_state: tuple[Tensor, Tensor] | None = None,
    starts: Tensor | None = None,
    return_state: bool = False,
) -> Tensor | tuple[Tensor, tuple[Tensor, Tensor]]:
    """m_i = (x_s + ... + x_i) / (i - s + 1), s being the first row of i's document.

    Args:
        x: `[B, N, D]`.
        initial_state: sum `[B, D]`, float32 or wider, and number `[B]` int64 of the document's rows before the piece.
        starts: `[B, N]` bool, first row of each document.

    Returns:
        `[B, N, D]` in x's dtype; with ``return_state`` also the state after the piece.
    """
    tokens = None if initial_state is None else initial_state[1]
    positions = document_positions(*x.shape[:2], tokens=tokens, starts=starts, device=x.device)
    sums = x.to(torch.promote_types(x.dtype, torch.float32)).cumsum(dim=1)
    if starts is not None:
        first = torch.arange(x.shape[1], device=x.device) - positions  # negative: before the piece
        before = F.pad(sums, (0, 0, 1, -1))
        sums = sums - before.gather(1, first.clamp(min=0)[..., None].expand_as(before))
    if initial_state is not None:
        own = torch.arange(1, x.shape[1] + 1, device=x.device)
        continues = positions >= own if starts is not None else positions >= 0
        sums = torch.where(continues[..., None], sums + initial_state[0][:, None], sums)
    mean = (sums / (positions[..., None] + 1)).to(x.dtype)
    return (mean, (sums[:, -1], positions[:, -1] + 1)) if return_state else mean
