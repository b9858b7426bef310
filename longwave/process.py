"""What a process asks of its machine: the only file that knows the C library's memory and OpenMP's waiting.

Two defaults of Linux cost a process that trains a model on a CPU much of its time.

* Waiting. PyTorch and the kernels divide their loops among the threads of one OpenMP library, GNU's. A thread that is
  done with its share waits for the others by spinning: it asks up to 300,000 times, for 5 to 20 ms, before it sleeps.
  Where other programs use the cores too, the thread that it waits for may have no core, and spinning keeps it from
  getting one. Every loop then lasts as long as the spinning, and a training step has hundreds of loops. Here a thread
  asks ``SPINS`` times, then sleeps.
* Memory. GNU's C library asks the system for each block above 32 MiB and returns it as soon as it is free. The system
  hands out pages one by one, filled with zeros, when they are first touched, so every use of such a block pays for all
  its pages again. A process that keeps freed blocks pays once.

What the user has set in the environment stays.
"""

from __future__ import annotations

import ctypes
import os
import sys
import warnings
from typing import NamedTuple

#: How often a waiting thread asks before it sleeps: for a quarter to half a millisecond.
SPINS = 10_000

#: Names of ``mallopt``'s parameters in <malloc.h>, and the most free memory, in bytes, that stays the process's own.
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
KEPT_BYTES = 2**31 - 1

WAITING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
MEMORY = ("MALLOC_MMAP_MAX_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES")


_tuned = False


class Tuned(NamedTuple):
    """What :func:`tune` has set: that ``waiting`` threads soon sleep, and that freed ``memory`` is kept."""

    waiting: bool
    memory: bool


def tune() -> Tuned:
    """Let threads that wait soon sleep, and keep memory that is freed, from now on and in this process.

    Every command of ``longwave`` begins with it, unless told ``longwave --untuned VERB``. In a program of your own call
    it before PyTorch is imported: OpenMP reads the environment when it is loaded. Threads wait as before if the system
    is not Linux, PyTorch is imported already, or the environment sets one of ``WAITING``; memory is freed as before if
    the C library is not GNU's or the environment sets one of ``MEMORY``. Processes that this one starts inherit how
    threads wait, but not that memory is kept.

    Warns:
        RuntimeWarning: PyTorch is imported already, and nothing else keeps ``waiting`` as it is.
    """
    global _tuned
    _tuned = True
    return Tuned(waiting=_sleep_soon(), memory=_keep_memory())


def is_tuned() -> bool:
    """Whether :func:`tune` has been called, so that a process started from here is to be tuned as well."""
    return _tuned


def _sleep_soon() -> bool:
    if not sys.platform.startswith("linux") or any(name in os.environ for name in WAITING):
        return False
    if "torch" in sys.modules:
        sentence = "PyTorch is imported already, so its threads wait as before: call longwave.process.tune() first"
        warnings.warn(sentence, RuntimeWarning, stacklevel=3)
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
