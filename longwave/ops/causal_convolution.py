"""Causal depthwise convolution: each channel is filtered over the last few rows of its document."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from longwave.ops._dispatch import select_form
from longwave.ops._precision import widened
from longwave.ops.documents import Ring, document_positions, empty_ring


@widened("x")
def causal_convolution(
    x: Tensor,
    weight: Tensor,
    *,
    initial_state: Ring | None = None,
    starts: Tensor | None = None,
    return_state: bool = False,
    backend: str = "auto",
) -> Tensor | tuple[Tensor, Ring]:
    """y_t = sum_s weight_s x_{t-s}, s = 0..W-1, over the rows of t's own document.

    Args:
        x: `[B, N, C]`.
        weight: `[W, C]`, W at least 2; the present row's first.
        initial_state: the document's last W - 1 rows `[B, W - 1, C]` before this piece.
        starts: `[B, N]` bool, first row of each document.
        backend: ``auto``, ``naive``, ``torch`` or ``numba``.

    Returns:
        `[B, N, C]` in x's dtype; with ``return_state`` also the final ring, float32 or wider.

    Raises:
        ValueError: shapes disagree, or W is below 2.
        BackendUnavailable: the backend has no form of this op.
    """
    if x.dim() != 3 or weight.dim() != 2 or weight.shape[1] != x.shape[2] or weight.shape[0] < 2:
        raise ValueError(
            "causal_convolution takes x [B, N, C] and weight [W, C] with W >= 2; "
            f"got {tuple(x.shape)}, {tuple(weight.shape)}"
        )
    form = select_form("causal_convolution", backend, causal_convolution_naive, causal_convolution_torch, x)
    reach = weight.shape[0] - 1
    tokens = None if initial_state is None else initial_state.tokens
    positions = document_positions(*x.shape[:2], tokens=tokens, starts=starts, device=x.device)
    past = None if initial_state is None else initial_state.last(reach)
    out = form(x, weight, past, positions)
    if not return_state:
        return out
    if initial_state is None:
        initial_state = empty_ring(x.shape[0], reach, x.shape[2:], x)
    return out, initial_state.extended(x[:, -reach:], positions)


def causal_convolution_naive(x: Tensor, weight: Tensor, past: Tensor | None, positions: Tensor) -> Tensor:
    """Row by row, tap by tap; ``past`` `[B, W - 1, C]`, ``positions`` `[B, N]` in the document."""
    reach = weight.shape[0] - 1
    known = torch.cat([x.new_zeros(x.shape[0], reach, x.shape[2]) if past is None else past, x], dim=1)
    outs = []
    for t in range(x.shape[1]):
        taps = [
            torch.where(positions[:, t, None] >= s, weight[s] * known[:, reach + t - s], 0.0) for s in range(reach + 1)
        ]
        outs.append(torch.stack(taps).sum(dim=0))
    return torch.stack(outs, dim=1)


def causal_convolution_torch(x: Tensor, weight: Tensor, past: Tensor | None, positions: Tensor) -> Tensor:
    """Tap by tap, each a shifted copy of the rows."""
    num_rows, reach = x.shape[1], weight.shape[0] - 1
    known = F.pad(x, (0, 0, reach, 0)) if past is None else torch.cat([past, x], dim=1)
    out = weight[0] * x
    for s in range(1, reach + 1):
        inside = (positions >= s)[..., None].to(x.dtype)
        out = torch.addcmul(out, weight[s] * inside, known[:, reach - s : reach - s + num_rows])
    return out
