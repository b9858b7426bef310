"""How far layers of fixed offsets see together.

One layer reads its offsets; the residual stream passes a token by. So after h layers a row depends on the rows whose
distance is a sum of at most h offsets (DWARF's claims about two and six hops, computed instead of argued).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def reachability(offsets: Sequence[int], layers: int, num_tokens: int) -> Tensor:
    """How many of the distances 0..num_tokens-1 are reached after 1, 2, ..., ``layers`` layers: `[layers]` int64.

    Raises:
        ValueError: there is no offset or a negative one, or fewer than 1 layer or token.
    """
    return reachable(offsets, layers, num_tokens).sum(dim=1)


def reachable(offsets: Sequence[int], layers: int, num_tokens: int) -> Tensor:
    """Whether each distance is a sum of at most h offsets, h = 1..layers: `[layers, num_tokens]` bool.

    Raises:
        ValueError: there is no offset or a negative one, or fewer than 1 layer or token.
    """
    if not offsets or min(offsets) < 0:
        raise ValueError(f"reachability: give offsets of at least 0, got {list(offsets)}")
    if layers < 1 or num_tokens < 1:
        raise ValueError(f"reachability: layers and num_tokens must be at least 1, got {layers} and {num_tokens}")
    reached = torch.zeros(num_tokens, dtype=torch.bool)
    reached[0] = True
    hops = []
    for _ in range(layers):
        farther = reached.clone()
        for offset in {offset for offset in offsets if offset < num_tokens}:
            farther[offset:] |= reached[: num_tokens - offset]
        reached = farther
        hops.append(reached)
    return torch.stack(hops)
