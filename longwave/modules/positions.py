"""Rotary and sinusoidal positions.

Tables are functions of their arguments, remembered by :func:`functools.lru_cache`; no module holds one, so
no loader can leave one uninitialised.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from einops import rearrange
from torch import Tensor


def rotary_angles(
    positions: Tensor, head_dim: int, *, base: float = 10000.0, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Cosines and sines of p base^(-2m / head_dim), m < head_dim / 2, for :func:`apply_rotary`.

    ``positions`` `[B, N]` int64 -> two `[B, N, 1, head_dim / 2]`, computed in float64.
    Su et al. 2021, https://arxiv.org/abs/2104.09864.

    Raises:
        ValueError: ``head_dim`` is odd.
    """
    if head_dim % 2:
        raise ValueError(f"rotary positions need an even head width, got {head_dim}")
    exponents = torch.arange(0, head_dim, 2, dtype=torch.float64, device=positions.device) / head_dim
    angles = positions[..., None, None] * base**-exponents
    return angles.cos().to(dtype), angles.sin().to(dtype)


def apply_rotary(x: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    """Rotate `x [B, N, H, d]`; channels m and m + d/2 form a pair (half-split layout)."""
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cosines - second * sines, second * cosines + first * sines], dim=-1)


@lru_cache(maxsize=8)
def sinusoidal_table(length: int, hidden_size: int) -> Tensor:
    """`[length, hidden_size]` float32: sin and cos of p 10000^(-2c / D) interleaved, c < D / 2.

    Vaswani et al. 2017, https://arxiv.org/abs/1706.03762.

    Raises:
        ValueError: ``hidden_size`` is odd.
    """
    if hidden_size % 2:
        raise ValueError(f"sinusoidal positions need an even hidden_size, got {hidden_size}")
    exponents = torch.arange(0, hidden_size, 2).float()
    frequencies = torch.exp(exponents * (-torch.log(torch.tensor(10000.0)) / hidden_size))
    angles = torch.arange(length).float()[:, None] * frequencies
    return rearrange([angles.sin(), angles.cos()], "two p c -> p (c two)")
