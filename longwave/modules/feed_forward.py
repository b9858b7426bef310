"""Feed-forward layers of a block."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from longwave.modules.linear import Linear


class GeluFeedForward(nn.Module):
    """down(dropout(gelu(up(x)))), exact (erf) GELU, with biases; then dropout."""

    def __init__(self, hidden_size: int, intermediate_size: int, dropout: float) -> None:
        super().__init__()
        self.up_proj = Linear(hidden_size, intermediate_size)
        self.down_proj = Linear(intermediate_size, hidden_size)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """`[..., D] -> [..., D]`."""
        return self.dropout(self.down_proj(self.dropout(F.gelu(self.up_proj(x)))))


class SwigluFeedForward(nn.Module):
    """down(silu(gate(x)) * up(x)), no biases; then dropout. Shazeer 2020, https://arxiv.org/abs/2002.05202."""

    def __init__(self, hidden_size: int, intermediate_size: int, dropout: float) -> None:
        super().__init__()
        self.gate_proj = Linear(hidden_size, intermediate_size, bias=False)
        self.up_proj = Linear(hidden_size, intermediate_size, bias=False)
        self.down_proj = Linear(intermediate_size, hidden_size, bias=False)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """`[..., D] -> [..., D]`."""
        return self.dropout(self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x)))


FEED_FORWARDS = {"gelu": GeluFeedForward, "swiglu": SwigluFeedForward}


def feed_forward(kind: str, hidden_size: int, intermediate_size: int, dropout: float) -> nn.Module:
    """``"gelu"`` or ``"swiglu"``."""
    return FEED_FORWARDS[kind](hidden_size, intermediate_size, dropout)
