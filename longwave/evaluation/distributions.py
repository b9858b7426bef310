"""What a distribution over the vocabulary says of itself, and the part of it that is sampled from."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def entropy_bits(probabilities: Tensor, epsilon: float = 0.0) -> Tensor:
    """-Σ p log2(p + epsilon) over the last axis; the published last-position protocol adds 1e-10."""
    return -torch.special.xlogy(probabilities, probabilities + epsilon).sum(dim=-1) / math.log(2)


def inverse_simpson(probabilities: Tensor) -> Tensor:
    """Effective vocabulary 1 / Σ p² over the last axis."""
    return 1 / probabilities.square().sum(dim=-1)


def top_mass(probabilities: Tensor, k: int) -> Tensor:
    """Total of the ``k`` likeliest, over the last axis."""
    return probabilities.topk(min(k, probabilities.shape[-1]), dim=-1).values.sum(dim=-1)


def nucleus(probabilities: Tensor, top_p: float) -> Tensor:
    """The likeliest tokens whose forerunners hold at most ``top_p`` together, scaled to 1; the others are 0.

    Tokens `[..., V]` are kept, likeliest first, while (cumulative - own) ≤ ``top_p``: the first always is.
    """
    ordered, index = probabilities.sort(dim=-1, descending=True, stable=True)
    kept = torch.where(ordered.cumsum(dim=-1) - ordered <= top_p, ordered, 0.0)
    return torch.zeros_like(kept).scatter(-1, index, kept / kept.sum(dim=-1, keepdim=True))
