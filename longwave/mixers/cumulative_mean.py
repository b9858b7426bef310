"""Interference pooling: a gated mean of everything that the document has said so far.

    m_n = (x_0 + ... + x_n) / (n + 1);   y_n = sigmoid(x_n W_g + b_g) (m_n W_o + b_o)

The only memory without a horizon in DWARF's published models: every third layer is ``[dwarf, cumulative_mean]``.
One running sum is the state; every distance has the same weight, and none more than 1 / (n + 1).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from longwave.mixers.base import Declaration, TokenMixer, observe
from longwave.modules import Linear
from longwave.ops import mean_flops, running_mean


class CumulativeMeanState(NamedTuple):
    """``total`` `[B, D]`, float32 or wider, is the sum of the document's rows; ``tokens`` `[B]` counts them."""

    total: Tensor
    tokens: Tensor


class CumulativeMean(TokenMixer):
    """Gated mean of the past.

    Args:
        hidden_size: D.
        num_heads: has no effect.
    """

    def __init__(self, hidden_size: int, num_heads: int) -> None:
        super().__init__(hidden_size, num_heads)
        self.gate_proj = Linear(hidden_size, hidden_size)
        self.o_proj = Linear(hidden_size, hidden_size)

    def declaration(self) -> Declaration:
        return Declaration(growth="constant")

    def forward(
        self,
        x: Tensor,
        state: CumulativeMeanState | None = None,
        *,
        starts: Tensor | None = None,
        return_state: bool = False,
    ) -> tuple[Tensor, CumulativeMeanState | None]:
        found: Any = running_mean(x, initial_state=state, starts=starts, return_state=True)
        gate = observe("cumulative_mean.gate", self.gate_proj(x).sigmoid())
        return gate * self.o_proj(found[0]), CumulativeMeanState(*found[1]) if return_state else None

    def init_state(self, batch_size, *, max_tokens=None, device=None, dtype=None) -> CumulativeMeanState:
        wide = torch.promote_types(dtype, torch.float32)
        total = torch.zeros(batch_size, self.hidden_size, device=device, dtype=wide)
        return CumulativeMeanState(total, torch.zeros(batch_size, dtype=torch.int64, device=device))

    def state_bytes(self, num_tokens: int, dtype: torch.dtype = torch.float32) -> int:
        return self.hidden_size * torch.promote_types(dtype, torch.float32).itemsize + 8

    def flops(self, num_tokens: int) -> int:
        return 4 * num_tokens * self.hidden_size**2 + mean_flops(num_tokens, self.hidden_size)
