"""Seconds, compared fairly: contestants take turns, so that whatever else the machine does meets them all."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping

import torch

#: A row goes on for this long, if it has had its least rounds and not yet its most.
BUDGET_SECONDS = 6.0
LEAST_REPEATS, MOST_REPEATS = 3, 100


def interleave(
    measures: Mapping[str, Callable[[], float]], repeats: int | None = None, *, budget_seconds: float = BUDGET_SECONDS
) -> dict[str, list[float]]:
    """Seconds of every contestant, one for each round; in a round each contestant has its turn, in order.

    Args:
        measures: by contestant, a function that measures once and gives seconds.
        repeats: rounds; ``None`` for as many as the budget allows, at least 3 and at most 100.
    """
    found: dict[str, list[float]] = {name: [] for name in measures}
    least, most = (LEAST_REPEATS, MOST_REPEATS) if repeats is None else (repeats, repeats)
    gc.collect()
    began_at = time.monotonic()
    for done in range(most):
        if done >= least and time.monotonic() - began_at > budget_seconds:
            break
        for name, measure in measures.items():
            found[name].append(measure())
    return found


def stopwatch(function: Callable[[], object], device: str = "cpu") -> Callable[[], float]:
    """A function that runs ``function`` once and gives the seconds until the device has finished it."""

    def measure() -> float:
        synchronize(device)
        began_at = time.perf_counter()
        function()
        synchronize(device)
        return time.perf_counter() - began_at

    return measure


def synchronize(device: str) -> None:
    """Wait until a GPU has done what it was given."""
    if device == "cuda":
        torch.cuda.synchronize()
