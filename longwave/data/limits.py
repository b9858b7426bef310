"""What fits: the memory of this machine."""

from __future__ import annotations

from pathlib import Path

import psutil

GIB = 2**30
#: What the control group of this process may use, on Linux.
GROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")


def memory_bytes(device: str = "cpu") -> int:
    """Bytes of memory that this process can have at most: of the machine, or of the GPU if ``device`` is ``cuda``."""
    if device == "cuda":
        import torch

        return torch.cuda.get_device_properties(0).total_memory
    physical = psutil.virtual_memory().total
    limit = GROUP_LIMIT.read_text(encoding="utf-8").strip() if GROUP_LIMIT.is_file() else ""
    return min(physical, int(limit)) if limit.isdigit() else physical


def check_fits(num_bytes: int, what: str, device: str = "cpu") -> None:
    """See that something has room in memory, before any of it is allocated.

    Args:
        num_bytes: the least that it takes.
        what: name and numbers of the settings that make it so large.

    Raises:
        ValueError: it has no room.
    """
    available = memory_bytes(device)
    if num_bytes > available:
        place = "the GPU" if device == "cuda" else "this machine"
        raise ValueError(
            f"{what}: at least {num_bytes / GIB:,.1f} GiB, more than the {available / GIB:,.1f} GiB of {place}"
        )
