"""A learned mixture of the heads, as DWARF's field conditions put after their sums."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from longwave.ops import without_autocast

COUPLING_STD = 0.01


class HeadCoupling(nn.Module):
    """o_h <- sum_g softmax_g(C_hg) o_g.

    The softmax is of C itself: C = identity, as it starts, gives each head e / (e + H - 1) of its own output.

    Args:
        num_heads: H.
    """

    def __init__(self, num_heads: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_heads, num_heads))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """C the identity + N(0, 0.01²)."""
        nn.init.normal_(self.weight, std=COUPLING_STD)
        with torch.no_grad():
            self.weight.diagonal().add_(1.0)

    def forward(self, heads: Tensor) -> Tensor:
        """`[..., H, d] -> [..., H, d]`, in the heads' dtype; computed in float32 or wider."""
        wide = torch.promote_types(heads.dtype, torch.float32)
        with without_autocast(heads.device.type):
            shares = self.weight.to(wide).softmax(dim=-1)
            return torch.einsum("hg,...gd->...hd", shares, heads.to(wide)).to(heads.dtype)
