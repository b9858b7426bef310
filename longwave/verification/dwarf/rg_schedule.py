"""Properties 16 and 21 to 31: a schedule of scale gains that wanders from fine to coarse with depth."""

from __future__ import annotations

import torch
from torch import Tensor

from longwave.verification.dwarf.properties import Finding, Group, normals
from longwave.verification.dwarf.waves import SCALES

BASE = 0.458
#: From 0.458 in the first of twelve layers to 0.092 in the last.
DECAY = (0.092 / 0.458) ** (1 / 11)

PERSISTENCE = Group("Persistence of the RG schedule")
SCHEDULE = Group("RG schedule")


def rg_schedule(
    layers: int, scales: int = SCALES, base: float = BASE, decay: float = DECAY, width: float | None = None
) -> Tensor:
    """base decay^l exp(-(s - t (S - 1))² / 2 width²), t = l / (L - 1): `[layers, scales]`; width S / 3 unless given.

    Raises:
        ValueError: fewer than 1 layer or scale.
    """
    if layers < 1 or scales < 1:
        raise ValueError(f"rg_schedule: layers and scales must be at least 1, got {layers} and {scales}")
    width = scales / 3 if width is None else width
    layer = torch.arange(layers, dtype=torch.float64)[:, None]
    distance = torch.arange(scales, dtype=torch.float64) - layer / max(layers - 1, 1) * (scales - 1)
    return base * decay**layer * torch.exp(-(distance**2) / (2 * width**2))


def mean_scale(gains: Tensor) -> Tensor:
    """Centre of mass over scales, of each layer."""
    return (gains * torch.arange(gains.shape[1])).sum(dim=1) / gains.sum(dim=1)


@PERSISTENCE.property(16, "the order outlasts noise", {"schedule": 4.822, "random": -0.488, "steps": 27})
def persistence() -> Finding:
    """Separation last - first of 6 layers is above 2 and above random gains'; 10 % noise keeps the order.

    Gradient descent on the squared distance, rate 0.05, from random gains to 90 % of the separation takes ``steps``.
    """
    gains, generator = rg_schedule(6), torch.Generator().manual_seed(16)
    mean = gains.mean()
    learned = 2 * mean * torch.rand(gains.shape, generator=generator, dtype=gains.dtype)
    separation, at_random = _separation(gains), _separation(learned)
    noisy = (gains + 0.1 * mean * normals(16)(gains.shape)).clamp(min=0)
    ordered = bool((mean_scale(noisy).diff() >= -0.5).all())
    steps = 0
    while _separation(learned) < 0.9 * separation and steps < 10_000:
        learned, steps = learned - 0.05 * 2 * (learned - gains), steps + 1
    holds = separation > 2 and separation > at_random and ordered
    return Finding(holds, {"schedule": separation, "random": at_random, "steps": steps})


@SCHEDULE.property(21, "scales coarsen with depth", {"first": 2.589, "last": 7.411})
def coarsening() -> Finding:
    """The mean scale of 12 layers never falls by more than 1e-5, and rises by more than 1."""
    means = mean_scale(rg_schedule(12))
    first, last = float(means[0]), float(means[-1])
    return Finding(bool((means.diff() >= -1e-5).all()) and last > first + 1, {"first": first, "last": last})


@SCHEDULE.property(22, "peaks fall with depth", {"ratio": 4.98})
def falling_peaks() -> Finding:
    """The largest gain of a layer never rises by more than 1e-6; the first is more than twice the last."""
    peaks = rg_schedule(12).amax(dim=1)
    ratio = float(peaks[0] / peaks[-1])
    return Finding(bool((peaks.diff() <= 1e-6).all()) and ratio > 2, {"ratio": ratio})


@SCHEDULE.property(23, "the first layer is fine", {"mean scale": 2.589})
def fine_first() -> Finding:
    """Its mean scale is below 5."""
    first = float(mean_scale(rg_schedule(12))[0])
    return Finding(first < 5, {"mean scale": first})


@SCHEDULE.property(24, "the last layer is coarse", {"mean scale": 7.411})
def coarse_last() -> Finding:
    """Its mean scale is above 5."""
    last = float(mean_scale(rg_schedule(12))[-1])
    return Finding(last > 5, {"mean scale": last})


@SCHEDULE.property(25, "the peaks' ratio is as observed", {"ratio": 4.98})
def peak_ratio() -> Finding:
    """First over last peak lies in 2.5..10."""
    peaks = rg_schedule(12).amax(dim=1)
    ratio = float(peaks[0] / peaks[-1])
    return Finding(2.5 <= ratio <= 10, {"ratio": ratio})


@SCHEDULE.property(26, "gains are finite and not negative")
def finite_gains() -> Finding:
    """Every gain is finite and at least 0."""
    gains = rg_schedule(12)
    return Finding(bool((gains.isfinite() & (gains >= 0)).all()), {"least": float(gains.min())})


@SCHEDULE.property(27, "depth spans the scales", {"range": 4.822})
def span() -> Finding:
    """Mean scales of 12 layers differ by more than 4."""
    means = mean_scale(rg_schedule(12))
    found = float(means.max() - means.min())
    return Finding(found > 4, {"range": found})


@SCHEDULE.property(28, "one layer is enough")
def one_layer() -> Finding:
    """A schedule of one layer is finite, not negative, and peaks at the base."""
    gains = rg_schedule(1)
    return Finding(bool(gains.isfinite().all()) and bool((gains >= 0).all()), {"peak": float(gains.max())})


@SCHEDULE.property(29, "one scale is enough")
def one_scale() -> Finding:
    """A schedule of one scale has the mean scale 0 in every layer."""
    means = mean_scale(rg_schedule(12, 1))
    return Finding(bool((means == 0).all()), {"mean scale": float(means.max())})


@SCHEDULE.property(30, "a schedule without decay is valid")
def no_decay() -> Finding:
    """Decay 1: finite, not negative, and every layer whose centre is a scale peaks at the base."""
    gains = rg_schedule(12, decay=1.0)
    valid = bool(gains.isfinite().all()) and bool((gains >= 0).all())
    return Finding(valid, {"first peak": float(gains[0].max()), "last peak": float(gains[-1].max())})


@SCHEDULE.property(31, "table of the schedule", {"first peak": 0.458, "last peak": 0.092})
def table() -> Finding:
    """Peaks of the first and last of 12 layers, and the mean scale between; nothing is asserted."""
    gains = rg_schedule(12)
    first, last = float(gains[0].max()), float(gains[-1].max())
    return Finding(None, {"first peak": first, "last peak": last, "middle scale": float(mean_scale(gains).mean())})


def _separation(gains: Tensor) -> float:
    means = mean_scale(gains)
    return float(means[-1] - means[0])
