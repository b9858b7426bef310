"""Normalisation of the residual stream."""

from __future__ import annotations

from torch import nn

NORMS = {"layer_norm": nn.LayerNorm, "rms_norm": nn.RMSNorm}


def norm(kind: str, hidden_size: int, eps: float) -> nn.Module:
    """``"layer_norm"`` (gain and bias) or ``"rms_norm"`` (gain), over the last axis."""
    return NORMS[kind](hidden_size, eps=eps)
