"""The lattice of a dyadic wavelet filter: four taps at every scale 2^j, and a gain for each scale."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from longwave.ops import D4, without_autocast


class Lattice(NamedTuple):
    """T = J len(taps) taps, scale by scale: tap τ of scale j lies τ 2^j rows back."""

    distances: tuple[int, ...]
    scales: tuple[int, ...]
    coefficients: tuple[float, ...]

    @property
    def distinct(self) -> tuple[int, ...]:
        """Every distance once, sorted."""
        return tuple(sorted(set(self.distances)))

    def weights(self, gains: Tensor, *, merged: bool) -> Tensor:
        """Gain times coefficient of every tap, `[B, H, N, T]`, or their sum for every distinct distance.

        ``gains`` are `[B, H, N, J]`.
        """
        rows = [self.distinct.index(d) for d in self.distances] if merged else list(range(len(self.distances)))
        table = torch.zeros(gains.shape[3], max(rows) + 1, dtype=torch.float64)
        places, values = torch.tensor([self.scales, rows]), torch.tensor(self.coefficients, dtype=torch.float64)
        with without_autocast(gains.device.type):
            return gains @ table.index_put(tuple(places), values, accumulate=True).to(gains)


def lattice(n_scales: int, taps: Sequence[float] = D4) -> Lattice:
    """The taps of ``n_scales`` scales. Distances repeat: of the 44 of eleven scales, 24 are distinct.

    Raises:
        ValueError: ``n_scales`` is not in 1..20, or there is no tap.
    """
    if not 1 <= n_scales <= 20 or not taps:
        raise ValueError(f"a lattice has 1 to 20 scales and at least one tap, got {n_scales} and {len(taps)}")
    found = [(tau * 2**j, j, tap) for j in range(n_scales) for tau, tap in enumerate(taps)]
    return Lattice(*zip(*found, strict=True))


def tap_bias(net: Lattice, distances: Sequence[int]) -> Tensor:
    """Logarithm of the largest tap at each distance, |c| 2^(-j/2), centred and scaled to at most 0.3: `[T]` float64."""
    best: dict[int, float] = {}
    for distance, scale, tap in zip(*net, strict=True):
        best[distance] = max(best.get(distance, 0.0), abs(tap) * 2 ** (-scale / 2))
    taps = [best[distance] for distance in distances]
    logs = torch.tensor(taps, dtype=torch.float64, device="cpu").log()
    logs = logs - logs.mean()
    return logs * (0.3 / logs.abs().max())


class ScaleGains(nn.Module):
    """g_j = softmax_j(p_jh + (W q_h)_j): how much of each scale a head wants, or, without W, always takes.

    Args:
        num_scales: J.
        num_heads: H.
        head_dim: d of the queries that choose, W `[J, d]` being shared by all heads; ``None`` for no choice.
    """

    def __init__(self, num_scales: int, num_heads: int, head_dim: int | None) -> None:
        super().__init__()
        self.prior = nn.Parameter(torch.empty(num_scales, num_heads))
        self.weight = None if head_dim is None else nn.Parameter(torch.empty(num_scales, head_dim))
        self.reset_parameters()

    def reset_parameters(self, depth: float | None = None) -> None:
        """W of standard deviation 0.01 and no preference, or for near scales at depth 0 and far ones at depth 1."""
        nn.init.zeros_(self.prior)
        if depth is not None:
            scale = torch.arange(len(self.prior), device=self.prior.device)[:, None]
            with torch.no_grad():
                self.prior += 0.5 * ((1 - depth) * (scale <= 3).double() + depth * (scale >= 8).double())
        if self.weight is not None:
            nn.init.normal_(self.weight, std=0.01)

    def forward(self, q: Tensor) -> Tensor:
        """`[B, H, N, J]` of queries `[B, N, H, d]`, float32 or wider; `[1, H, 1, J]` if they do not choose."""
        wide = torch.promote_types(q.dtype, torch.float32)
        logits = self.prior.T[None, :, None].to(wide)
        if self.weight is not None:
            with without_autocast(q.device.type):
                logits = logits + torch.einsum("bnhd,jd->bhnj", q.to(wide), self.weight.to(wide))
        return logits.softmax(dim=-1)
