"""The past of all distances, added to keys and values."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from longwave.modules.linear import Linear
from longwave.modules.norms import LayerNorm
from longwave.ops import running_mean


class Injection(nn.Module):
    """What a mean of the whole past adds to keys and values: (sigmoid(z W_g + b_g) mean(z)) W + b, z = LayerNorm(x)."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.norm = LayerNorm(hidden_size)
        self.gate_proj = Linear(hidden_size, hidden_size)
        self.k_proj = Linear(hidden_size, hidden_size)
        self.v_proj = Linear(hidden_size, hidden_size)

    def forward(
        self, x: Tensor, past: tuple[Tensor, Tensor] | None, starts: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Additions to keys and values `[B, N, D]`, and the sum `[B, D]` after ``x``."""
        z = self.norm(x)
        found: Any = running_mean(z, initial_state=past, starts=starts, return_state=True)
        z = self.gate_proj(z).sigmoid() * found[0]
        return self.k_proj(z), self.v_proj(z), found[1][0]
