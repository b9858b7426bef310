"""Properties 10 to 12: M-gate, a gated mixture of a window of attention and the gather."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from longwave.modules import LocalWindow
from longwave.ops import offset_attention
from longwave.verification.dwarf.properties import Finding, Group, normals

WIDTH = 32

GROUP = Group("Local mixture (M-gate)")


@GROUP.property(
    10, "the window ends where it says", {"outside": 0.0, "inside 64": 0.064, "inside 128": 7.4, "inside 256": 20.5}
)
@torch.no_grad()
def window_edges() -> Finding:
    """W = 64, 128, 256: keys and values at t + 1 and t - W - 1 do not move the output at t, those at t - 1 do.

    The first is the largest of 16 draws, the last their mean.
    """
    inside, outside = {}, 0.0
    for window in (64, 128, 256):
        randn, t = normals(window), min(window + 10, 254)
        q, k, v = randn(3, 16, 256, 1, WIDTH)
        base = _attend(q, k, v, window)[:, t]
        moved = {
            at: (_attend(q, _raised(k, at), _raised(v, at), window)[:, t] - base).norm(dim=-1)
            for at in (t + 1, t - window - 1, t - 1)
            if at >= 0
        }
        inside[f"inside {window}"] = float(moved.pop(t - 1).mean())
        outside = max(outside, *(float(norms.max()) for norms in moved.values()))
    return Finding(outside < 1e-5 and min(inside.values()) > 1e-3, {"outside": outside} | inside)


@GROUP.property(11, "the gate starts open", {"0.02": 0.0, "2": 0.263})
def gate_saturation() -> Finding:
    """P(|σ(w·x) - ½| > 0.4) is below 5 % for weights of deviation 0.02, and above 10 % for deviation 2."""
    randn, saturated = normals(11), {}
    for deviation in (0.02, 2):
        logits = (deviation * randn(10_000, WIDTH) * randn(10_000, WIDTH) / WIDTH**0.5).sum(dim=1)
        saturated[str(deviation)] = float(((logits.sigmoid() - 0.5).abs() > 0.4).double().mean())
    return Finding(saturated["0.02"] < 0.05 and saturated["2"] > 0.10, saturated)


@GROUP.property(12, "gradients divide as the gate says")
def gradient_balance() -> Finding:
    """The branches' gradients are in the ratio g / (1 - g), within 0.1 % on average, for seven g."""
    randn, worst = normals(12), 0.0
    mixture = LocalWindow(WIDTH, 1).double()
    for gate in (0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95):
        local, gather, target, x = randn(4, 1, 2000, 1, WIDTH)
        with torch.no_grad():
            mixture.gate_proj.weight.zero_()
            mixture.gate_proj.bias.fill_(gate).logit_()
        branches = (local.requires_grad_(), gather.requires_grad_())
        loss = (mixture(*branches, x[:, :, 0]) - target).square().sum()
        norms = [gradient.norm(dim=-1) for gradient in torch.autograd.grad(loss, branches)]
        worst = max(worst, float((norms[0] / norms[1] * (1 - gate) / gate - 1).abs().mean()))
    return Finding(worst < 1e-3, {"relative error": worst})


def _attend(q: Tensor, k: Tensor, v: Tensor, window: int) -> Tensor:
    """Softmax attention over the ``window`` rows before each row, `[B, N, 1, d]`."""
    out: Any = offset_attention(q, k, v, offsets=LocalWindow(WIDTH, window).distances)
    return out


def _raised(x: Tensor, at: int) -> Tensor:
    return x + 5 * (torch.arange(x.shape[1]) == at)[:, None, None]
