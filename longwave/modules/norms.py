"""Normalisation of the residual stream."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class LayerNorm(nn.LayerNorm):
    """:class:`torch.nn.LayerNorm` in float32 or wider, its result in the input's dtype.

    PyTorch's adds up the gradients of a bfloat16 gain and bias in bfloat16.
    """

    def forward(self, input: Tensor) -> Tensor:
        wide = torch.promote_types(input.dtype, torch.float32)
        weight, bias = (None if part is None else part.to(wide) for part in (self.weight, self.bias))
        return F.layer_norm(input.to(wide), self.normalized_shape, weight, bias, self.eps).to(input.dtype)


NORMS = {"layer_norm": LayerNorm, "rms_norm": nn.RMSNorm}


def norm(kind: str, hidden_size: int, eps: float) -> nn.Module:
    """``"layer_norm"`` (gain and bias) or ``"rms_norm"`` (gain), over the last axis."""
    return NORMS[kind](hidden_size, eps=eps)
