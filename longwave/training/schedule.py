"""Learning rates, counted in optimizer steps from 1."""

from __future__ import annotations

import math


def learning_rate(
    step: int, *, base: float, minimum: float, warmup_steps: int, total_steps: int, schedule: str
) -> float:
    """Rate of optimizer step ``step``: linear growth to ``base``, then ``cosine``, ``linear`` or ``constant``.

    Decay reaches ``minimum`` at ``total_steps`` and stays there.
    """
    if step < warmup_steps:
        return base * step / warmup_steps
    share = min(1.0, (step - warmup_steps) / max(1, total_steps - warmup_steps))
    if schedule == "constant":
        return base
    left = (1 - share) if schedule == "linear" else (1 + math.cos(math.pi * share)) / 2
    return minimum + (base - minimum) * left
