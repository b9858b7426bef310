"""Kernels and fields of the verification crate: pulses, causal convolution, one KdV step, and where a field lies.

A field lies along its first axis: `[positions]` or `[positions, entries]`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from longwave import ops

#: Daubechies' four low-pass taps as the crate writes them.
D4 = torch.tensor([0.4829629, 0.8365163, 0.2241439, -0.1294095], dtype=torch.float64)
#: The same, exact.
EXACT_D4 = torch.tensor(ops.D4, dtype=torch.float64)
SCALES = 11


def tap_weights(scales: int = SCALES) -> Tensor:
    """|h_τ| 2^(-j/2) of all taps of the lattice, scale by scale, summing to 1: `[4 scales]`."""
    decay = 2.0 ** (-torch.arange(scales, dtype=torch.float64) / 2)
    weights = (decay[:, None] * EXACT_D4.abs()).flatten()
    return weights / weights.sum()


def gaussian(width: float, taps: int) -> Tensor:
    """exp(-t² / 2 width²), t = 0..taps-1, of sum 1."""
    t = torch.arange(taps, dtype=torch.float64)
    kernel = torch.exp(-(t**2) / (2 * width**2))
    return kernel / kernel.sum()


def morlet(width: float, taps: int) -> Tensor:
    """exp(-t² / 2 width²) cos(2π t / width), t = 0..taps-1, of norm 1."""
    t = torch.arange(taps, dtype=torch.float64)
    kernel = torch.exp(-(t**2) / (2 * width**2)) * torch.cos(2 * math.pi * t / width)
    return kernel / kernel.norm()


def unit_gain(kernel: Tensor) -> Tensor:
    """The kernel over its largest gain max|H(ω)|, so that no wave grows."""
    return kernel / torch.fft.rfft(kernel, 4096).abs().max()


def pulse(positions: int, centre: int, width: float) -> Tensor:
    """exp(-(n - centre)² / 2 width²)."""
    n = torch.arange(positions, dtype=torch.float64)
    return torch.exp(-((n - centre) ** 2) / (2 * width**2))


def impulse(positions: int, at: int, entries: int | None = None) -> Tensor:
    """1 at one position, in every entry, and 0 elsewhere."""
    field = torch.zeros((positions,) if entries is None else (positions, entries), dtype=torch.float64)
    field[at] = 1.0
    return field


def delayed(field: Tensor, by: int) -> Tensor:
    """The field ``by`` positions later, zeros before it."""
    padding = (0, 0) * (field.dim() - 1)
    return F.pad(field, (*padding, by, 0))[: len(field)]


def convolve(field: Tensor, kernel: Tensor) -> Tensor:
    """Causal: position n is sum_t kernel[t] field[n - t]."""
    return torch.tensordot(kernel, torch.stack([delayed(field, t) for t in range(len(kernel))]), dims=1)


def difference(field: Tensor) -> Tensor:
    """field[n] - field[n-1], 0 at the first position."""
    return torch.cat([torch.zeros_like(field[:1]), field[1:] - field[:-1]])


def kdv_step(field: Tensor, alpha: float) -> Tensor:
    """f + alpha f (f_n - f_{n-1}), each entry by itself."""
    return field + alpha * field * difference(field)


def kdv_norm_step(field: Tensor, alpha: float) -> Tensor:
    """f + alpha f (|f_n| - |f_{n-1}|) of `[positions, entries]`: the norms drive all entries alike."""
    return field + alpha * field * difference(field.norm(dim=1, keepdim=True))


def evolve(field: Tensor, kernel: Tensor, alpha: float, steps: int) -> Tensor:
    """``steps`` times convolved, each time followed by a :func:`kdv_step`."""
    for _ in range(steps):
        field = kdv_step(convolve(field, kernel), alpha)
    return field


def centroid(field: Tensor) -> float:
    """Mean position by absolute value, of `[positions]`."""
    return float((field.abs() * torch.arange(len(field))).sum() / field.abs().sum())


def taps_for_energy(kernel: Tensor, share: float) -> int:
    """How many first taps hold this share of the energy."""
    held = (kernel**2).cumsum(0) / (kernel**2).sum()
    return int((held < share).sum()) + 1


def largest_before(fields: Sequence[Tensor], position: int) -> float:
    """The largest magnitude of any of the fields before a position."""
    return max(float(field[:position].abs().max()) for field in fields)
