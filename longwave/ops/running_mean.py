"""Mean of a document's rows so far: the memory of all distances in DWARF's pooled layers.

A sum of rows is linear attention whose queries and keys are the number 1. So sums begin anew with each document; as
differences of sums over all documents they would carry the rounding of whatever came before.
"""

from __future__ import annotations

from torch import Tensor

from longwave.ops._dispatch import select_form
from longwave.ops._precision import widened
from longwave.ops.documents import document_positions
from longwave.ops.linear_attention import linear_attention_naive, linear_attention_torch

#: Rows that one product sums.
MEAN_CHUNK = 64


@widened("x")
def running_mean(
    x: Tensor,
    *,
    initial_state: tuple[Tensor, Tensor] | None = None,
    starts: Tensor | None = None,
    return_state: bool = False,
    backend: str = "auto",
) -> Tensor | tuple[Tensor, tuple[Tensor, Tensor]]:
    """m_i = (x_s + ... + x_i) / (i - s + 1), s being the first row of i's document.

    Args:
        x: `[B, N, D]`.
        initial_state: sum `[B, D]` and number `[B]` int64 of the document's rows before the piece.
        starts: `[B, N]` bool, first row of each document.
        backend: ``auto``, ``naive`` or ``torch``.

    Returns:
        `[B, N, D]` in x's dtype; with ``return_state`` also the state after the piece, its sum float32 or wider.

    Raises:
        ValueError: ``x`` is empty.
        BackendUnavailable: the backend has no form of this op.
    """
    form = select_form("running_mean", backend, linear_attention_naive, linear_attention_torch, x)
    total, tokens = (x.new_zeros(x.shape[0], x.shape[2]), None) if initial_state is None else initial_state
    positions = document_positions(*x.shape[:2], tokens=tokens, starts=starts, device=x.device)
    one = x.new_ones(*x.shape[:2], 1, 1)
    past = total[:, None, None, None]
    sums, state = form(one, one[:, :, None], x[:, :, None, None], None, past, starts, MEAN_CHUNK)
    mean = sums[:, :, 0, 0] / (positions[..., None] + 1)
    return (mean, (state[:, 0, 0, 0], positions[:, -1] + 1)) if return_state else mean


def mean_flops(num_tokens: int, width: int) -> int:
    """Floating-point operations of the products that sum ``width`` channels of one sequence (2 a multiply-add)."""
    return num_tokens * (2 * min(MEAN_CHUNK, num_tokens) * (width + 1) + 4 * width)
