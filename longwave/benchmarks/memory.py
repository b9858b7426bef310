"""Bytes: the most that a pass holds beyond what was there before it, and how that grows with length.

On a CPU every allocation of PyTorch's is an event of its profiler, so the peak is exact: the largest running
sum. What a library allocates behind PyTorch's back is not seen. A profiled pass is slower, so it is never
the pass that is timed.
"""

from __future__ import annotations

import gc
import math
import os
from collections.abc import Callable, Sequence
from itertools import accumulate

import torch


def peak_bytes(function: Callable[[], object], device: str = "cpu") -> int:
    """Most bytes of tensors alive at once while ``function`` runs, above those alive before it.

    Its result counts; so do gradients that it leaves behind.
    """
    collecting = gc.isenabled()
    gc.disable()  # garbage from before would be freed meanwhile, and counted against the pass
    try:
        return _peak_on_cuda(function) if device == "cuda" else _peak_on_cpu(function)
    finally:
        if collecting:
            gc.enable()


def growth_exponent(lengths: Sequence[int], values: Sequence[float]) -> float:
    """p of the law value ~ length^p that fits best: the least-squares slope between their logarithms.

    Raises:
        ValueError: fewer than two lengths, or they are all the same.
    """
    x, y = [math.log(length) for length in lengths], [math.log(value) for value in values]
    middle_x, middle_y = sum(x) / max(len(x), 1), sum(y) / max(len(y), 1)
    spread = sum((a - middle_x) ** 2 for a in x)
    if not spread:
        raise ValueError(f"an exponent needs two different lengths, got {list(lengths)}")
    return sum((a - middle_x) * (b - middle_y) for a, b in zip(x, y, strict=True)) / spread


def _peak_on_cuda(function: Callable[[], object]) -> int:
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    function()
    return torch.cuda.max_memory_allocated() - before


def _peak_on_cpu(function: Callable[[], object]) -> int:
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # else the profiler talks on standard error
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiler:
        function()
    recorded = profiler.profiler.kineto_results.events()
    events = sorted((event.start_ns(), event.nbytes()) for event in recorded if event.name() == "[memory]")
    return max(accumulate((size for _, size in events), initial=0))
