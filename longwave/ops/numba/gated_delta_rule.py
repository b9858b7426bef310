"""The gated delta rule on a CPU: the recurrence itself."""

from __future__ import annotations

import torch
from torch import Tensor

from longwave.ops.numba._recurrence import recurrence

#: Rows (batch times tokens) from which this form was measured to beat torch's.
PAYS_FROM = 1


def gated_delta_rule_numba(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    log_decay: Tensor | None,
    state: Tensor,
    starts: Tensor | None,
    chunk_size: int,
) -> tuple[Tensor, Tensor]:
    """See :func:`longwave.ops.gated_delta_rule.gated_delta_rule_torch`; ``chunk_size`` has no meaning here."""
    log_decay = q.new_zeros(q.shape[:3]) if log_decay is None else log_decay
    if starts is not None:  # a start is a decay to nothing
        log_decay = log_decay.masked_fill(starts[..., None], -torch.inf)
    out, final, _ = recurrence(q, k, v, log_decay.exp()[..., None], beta, state)
    return out, final
