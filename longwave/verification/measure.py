"""How a check keeps the worst number it has found."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor


@dataclass
class Worst:
    """The largest deviation seen so far and where it was seen."""

    value: float = 0.0
    where: str = ""

    def see(self, value: float, where: str) -> None:
        """Keep ``value`` if it is the worst; NaN is worse than anything."""
        value = math.inf if math.isnan(value) else value
        if value > self.value or not self.where:
            self.value, self.where = value, where


def moved(new: Tensor, old: Tensor) -> float:
    """Largest absolute difference; infinite if shapes differ."""
    if new.shape != old.shape:
        return math.inf
    return float((new - old).detach().abs().max()) if old.numel() else 0.0


def relative(new: Tensor, old: Tensor) -> float:
    """Largest difference over the largest magnitude of ``old``."""
    if not old.numel():
        return moved(new, old)
    return moved(new, old) / max(float(old.detach().abs().max()), 1e-30)


def relative_gradients(found: Sequence[Tensor], expected: Sequence[Tensor]) -> Iterator[float]:
    """:func:`relative` of each gradient; one that should vanish counts as a ten-thousandth of the largest."""
    sizes = [float(slope.detach().abs().max()) if slope.numel() else 0.0 for slope in expected]
    for new, old, size in zip(found, expected, sizes, strict=True):
        yield moved(new, old) / max(size, 1e-4 * max(sizes), 1e-30)


def relative_state(new: Tensor, old: Tensor) -> float:
    """:func:`relative`, for tensors whose capacity may differ: what one lacks is zero in the other."""
    return math.inf if new.dim() != old.dim() else relative(*same_size(new, old))


def same_size(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Both padded with zeros to the larger of their sizes along each axis."""
    sizes = [max(pair) for pair in zip(a.shape, b.shape, strict=True)]
    return _padded(a, sizes), _padded(b, sizes)


def _padded(tensor: Tensor, sizes: list[int]) -> Tensor:
    missing = [size - have for size, have in zip(sizes, tensor.shape, strict=True)]
    return F.pad(tensor, [amount for size in reversed(missing) for amount in (0, size)])
