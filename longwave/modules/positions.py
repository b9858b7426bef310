"""Rotary and sinusoidal positions.

Functions of their arguments: no module holds a table, so no loader can leave one uninitialised.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def rotary_angles(
    positions: Tensor, head_dim: int, *, base: float = 10000.0, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Cosines and sines of p base^(-2m / head_dim), m < head_dim / 2, for :func:`apply_rotary` on rows of ``dtype``.

    ``positions`` `[B, N]` int64 -> two `[B, N, 1, head_dim / 2]`, computed in float64, given in float32 or wider.
    Su et al. 2021, https://arxiv.org/abs/2104.09864.

    Raises:
        ValueError: ``head_dim`` is odd.
    """
    if head_dim % 2:
        raise ValueError(f"rotary positions need an even head width, got {head_dim}")
    exponents = torch.arange(0, head_dim, 2, dtype=torch.float64, device=positions.device) / head_dim
    angles = positions[..., None, None] * base**-exponents
    wide = torch.promote_types(dtype, torch.float32)
    return angles.cos().to(wide), angles.sin().to(wide)


def apply_rotary(x: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    """Rotate `x [B, N, H, d]`, in its dtype; channels m and m + d/2 form a pair (half-split layout)."""
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cosines - second * sines, second * cosines + first * sines], dim=-1).to(x.dtype)


def sinusoidal(positions: Tensor, hidden_size: int) -> Tensor:
    """`[..., hidden_size]` float32: sin and cos of p 10000^(-2c / D) interleaved, c < D / 2.

    Vaswani et al. 2017, https://arxiv.org/abs/1706.03762.

    Raises:
        ValueError: ``hidden_size`` is odd.
    """
    if hidden_size % 2:
        raise ValueError(f"sinusoidal positions need an even hidden_size, got {hidden_size}")
    exponents = torch.arange(0, hidden_size, 2, device=positions.device).float()
    frequencies = torch.exp(exponents * (-math.log(10000.0) / hidden_size))
    angles = positions[..., None].float() * frequencies
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(-2)
