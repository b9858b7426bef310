"""What a process asks of its machine: the only file that knows the C library's memory and OpenMP's waiting.

Two defaults of Linux cost a process that trains a model on a CPU much of its time.

* Waiting. PyTorch and the kernels divide their loops among the threads of one OpenMP library, GNU's. A thread that is
  done waits for the others by spinning, 300,000 turns, some milliseconds. Where other programs use the cores too, the
  thread that is waited for often has no core, and the one that spins keeps it from getting one: every loop then lasts
  as long as the spinning, and a training step has hundreds of loops. After ``SPINS`` turns a thread sleeps instead.
* Memory. GNU's C library maps each block above 32 MiB anew and gives it back as soon as it is free, so that its pages
  are zeroed again at every use. A process that keeps its blocks reuses them as they are.

What the user has set in the environment stays.
"""

from __future__ import annotations

import ctypes
import os
import sys
from typing import NamedTuple

#: Turns of a waiting thread, about half a millisecond: longer than nearly every wait for a thread that has a core.
SPINS = 10_000

#: Names of ``mallopt``'s parameters in <malloc.h>, and the most free memory, in bytes, that stays the process's own.
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
KEPT_BYTES = 2**31 - 1

WAITING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
MEMORY = ("MALLOC_MMAP_MAX_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES")


_tuned = False


class Tuned(NamedTuple):
    """What :func:`tune` has set: how threads ``waiting`` for others wait, and that freed ``memory`` is kept."""

    waiting: bool
    memory: bool


def tune() -> Tuned:
    """Let threads that wait soon sleep, and keep memory that is freed, from now on and in this process.

    Every command of ``longwave`` begins with it, unless told ``longwave --untuned VERB``. In a program of your own call
    it before PyTorch is imported: OpenMP reads the environment when it is loaded. Where the system is not Linux or the
    C library not GNU's, or the environment sets any of ``WAITING`` or ``MEMORY``, that part stays as it is. Processes
    that this one starts wait as it does; their memory is their own affair.
    """
    global _tuned
    _tuned = True
    return Tuned(waiting=_sleep_soon(), memory=_keep_memory())


def is_tuned() -> bool:
    """Whether :func:`tune` has been called, so that a process started from here is to be tuned as well."""
    return _tuned


def _sleep_soon() -> bool:
    if not sys.platform.startswith("linux") or "torch" in sys.modules or any(name in os.environ for name in WAITING):
        return False
    os.environ["GOMP_SPINCOUNT"] = str(SPINS)
    return True


def _keep_memory() -> bool:
    if not _is_gnu() or any(name in os.environ for name in MEMORY):
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return bool(mallopt(M_MMAP_MAX, 0) and mallopt(M_TRIM_THRESHOLD, KEPT_BYTES))


def _is_gnu() -> bool:
    """Whether the C library is GNU's."""
    try:
        return (os.confstr("CS_GNU_LIBC_VERSION") or "").startswith("glibc")
    except (AttributeError, ValueError, OSError):
        return False
