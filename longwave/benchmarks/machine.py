"""Where a number was measured: the machine, the versions, and what its arithmetic and its memory can do."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from statistics import median
from typing import Any

import torch

from longwave.benchmarks.timing import interleave, stopwatch
from longwave.ops import linear

#: Rows and columns of the matrices, and bytes of the copy, by which rates are measured.
MATRIX, COPY_BYTES = 1024, 2**27


def machine(device: str = "cpu") -> dict[str, Any]:
    """Processor, cores, threads, versions and device of this process."""
    return {
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
    }


@torch.no_grad()
def measure_rates(dtype: torch.dtype, device: str) -> dict[str, float]:
    """``flops_per_second`` of the best matrix product at hand, ``bytes_per_second`` read and written by a copy."""
    a, b = (torch.randn(MATRIX, MATRIX, device=device).to(dtype) for _ in range(2))
    source = torch.zeros(COPY_BYTES // 4, dtype=torch.float32, device=device)
    target = torch.empty_like(source)
    tasks = {"mm": lambda: a @ b.t(), "linear": lambda: linear(a, b), "copy": lambda: target.copy_(source)}
    for task in tasks.values():
        task()
    found = interleave({name: stopwatch(task, device) for name, task in tasks.items()}, budget_seconds=1.0)
    seconds = {name: median(times) for name, times in found.items()}
    return {
        "flops_per_second": 2 * MATRIX**3 / min(seconds["mm"], seconds["linear"]),
        "bytes_per_second": 2 * COPY_BYTES / seconds["copy"],
    }


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())
