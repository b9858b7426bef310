"""Feature maps of linear attention."""

from __future__ import annotations

import torch
from torch import Tensor


def elu_plus_one(x: Tensor) -> Tensor:
    """elu(x) + 1 without its cancellation: exp(min(x, 0)) + max(x, 0), in float32 or wider.

    Written as ``elu(x) + 1`` it is exactly 0 from x = -18 in float32 and from x = -8 in bfloat16, and a
    head whose weights are all 0 returns 0 instead of an average; this one is positive down to x = -103.
    Katharopoulos et al. 2020, https://arxiv.org/abs/2006.16236.
    """
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    return torch.exp(x.clamp(max=0)) + torch.relu(x)
