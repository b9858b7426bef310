"""How a kernel reaches Numba: the only file that knows Numba's habits.

A kernel is a plain function over arrays and numbers, marked :func:`kernel` and called with tensors. It is
compiled at its first call, so that importing a kernel costs nothing and loads no Numba. What is handled here:

* Threads. A kernel runs on as many threads as PyTorch uses, through OpenMP, which many Python threads may
  enter at once. Where there is one thread, or no OpenMP, the serial form runs; it holds no lock. On Linux the
  threads are PyTorch's own: it has loaded its OpenMP for all to see. So Numba must not decide how many they are.
* Forks. OpenMP's threads do not survive a fork: a forked process uses the serial form.
* Cache. Compiled code is kept beside the file, else in the user's cache folder, else nowhere; what cannot be
  written, or read back as it was written, is compiled again. Numba notices a change of the kernel's own file only,
  so a kernel calls nothing from other files but what is here.
* Precision. A kernel computes in the dtype of its arrays. Numba lacks bfloat16 and float16: they are refused, since
  :mod:`longwave.ops._precision` has widened what reaches a form. Autocast must not narrow it again on the way, in the
  backward pass neither: see :func:`operator`.
"""

from __future__ import annotations

import hashlib
import math
import os
import pickle
from collections.abc import Callable
from contextlib import suppress
from functools import cache, cached_property, wraps
from pathlib import Path
from types import FunctionType
from typing import Any

import torch
from torch import Tensor
from torch.library import CustomOpDef, custom_op

from longwave.ops._precision import without_autocast

# What these names mean inside a kernel is decided when it is compiled; uncompiled, a kernel is plain Python.
prange = range
exp = math.exp

#: Sums may be reordered and fused; infinities and NaN keep their meaning.
FAST_MATH = {"reassoc", "contract", "nsz", "arcp"}

#: What a kernel's arrays may hold.
DTYPES = (torch.float32, torch.float64, torch.int64, torch.bool)

_forked = False


def _note_fork() -> None:
    global _forked
    _forked = True


os.register_at_fork(after_in_child=_note_fork)


class Kernel:
    """A compiled loop; tensors go in, results are written into those given for it."""

    def __init__(self, function: FunctionType) -> None:
        self.function = function
        self.__doc__ = function.__doc__

    def __call__(self, *arguments: Any) -> None:
        arrays = [_array(argument) if isinstance(argument, Tensor) else argument for argument in arguments]
        threads = torch.get_num_threads()
        if threads == 1 or _forked or not _has_openmp():
            self._serial(*arrays)
        else:
            _use_threads(threads)
            self._parallel(*arrays)

    @cached_property
    def _serial(self) -> Callable:
        return _compiled(self.function, parallel=False)

    @cached_property
    def _parallel(self) -> Callable:
        return _compiled(self.function, parallel=True)


def kernel(function: FunctionType) -> Kernel:
    """Mark a function as a kernel: loops over ``prange`` run in parallel, ``exp`` is vectorised."""
    return Kernel(function)


def operator(name: str) -> Callable[[Callable], CustomOpDef]:
    """Make a function of tensors an operator of PyTorch, ``longwave::name``, whose own products autocast lets alone."""

    def declare(function: Callable) -> CustomOpDef:
        @wraps(function)
        def run(*arguments):
            with without_autocast("cpu"):
                return function(*arguments)

        return custom_op(f"longwave::{name}", run, mutates_args=())

    return declare


def _array(tensor: Tensor):
    if tensor.dtype not in DTYPES:
        legal = ", ".join(str(dtype).removeprefix("torch.") for dtype in DTYPES)
        raise TypeError(f"a Numba kernel reads {legal}; got a tensor of {tensor.dtype}, which must be widened before")
    return tensor.detach().numpy()


def _compiled(function: FunctionType, parallel: bool) -> Callable:
    import numba

    names = {**function.__globals__, "prange": numba.prange, "exp": _vectorised_exp()}
    bound = FunctionType(function.__code__, names, function.__name__, function.__defaults__)
    bound.__module__, bound.__qualname__ = function.__module__, f"{function.__name__}_{'many' if parallel else 'one'}"
    options = {"parallel": parallel, "nogil": True, "fastmath": FAST_MATH, "error_model": "numpy", "boundscheck": False}
    compiled = numba.njit(**options)(bound)
    with suppress(RuntimeError):  # there may be no folder to keep compiled code in
        compiled._cache = _checked_cache()(bound)
    return compiled


@cache
def _checked_cache() -> type:
    """Numba's cache, where each file ends in its own hash; one that is not as it was written counts as missing."""
    from numba.core.caching import FunctionCache, IndexDataCacheFile

    class CheckedFile(IndexDataCacheFile):
        def _dump(self, item):
            content = super()._dump(item)
            return content + hashlib.sha256(content).digest()  # unpickling stops before it

        def _load_index(self):
            version = pickle.dumps(self._version, protocol=-1)
            return super()._load_index() if _is_whole(self._index_path, version) else {}

        def _load_data(self, name):
            return super()._load_data(name) if _is_whole(self._data_path(name)) else None

    class CheckedCache(FunctionCache):
        def __init__(self, function):
            super().__init__(function)
            file = self._cache_file
            self._cache_file = CheckedFile(self._cache_path, self._impl.filename_base, file._source_stamp)

        def save_overload(self, signature, compiled):
            with suppress(OSError):  # the disk is full, or no longer writable
                super().save_overload(signature, compiled)

    return CheckedCache


def _is_whole(path: str, head: bytes = b"") -> bool:
    """Whether what follows ``head`` in the file ends in its SHA-256."""
    try:
        content = Path(path).read_bytes()
    except OSError:
        return False
    size = hashlib.sha256().digest_size
    body, digest = content[len(head) : -size], content[-size:]
    return content.startswith(head) and hashlib.sha256(body).digest() == digest


@cache
def _has_openmp() -> bool:
    """OpenMP is there and nobody has chosen another threading layer."""
    import numba

    try:
        from numba.np.ufunc import omppool  # noqa: F401
    except ImportError:
        return False
    if numba.config.THREADING_LAYER == "default":
        numba.config.THREADING_LAYER = "omp"
    return numba.config.THREADING_LAYER == "omp"


def _use_threads(threads: int) -> None:
    import numba

    _launch_threads()
    numba.set_num_threads(min(threads, numba.config.NUMBA_NUM_THREADS))


@cache
def _launch_threads() -> None:
    """Let Numba begin, which sets OpenMP's number of threads, PyTorch's too, to the machine's; then set it back."""
    import numba

    threads = torch.get_num_threads()
    numba.get_num_threads()
    torch.set_num_threads(threads)


@cache
def _vectorised_exp() -> Callable:
    """exp that LLVM can vectorise in float32 (relative error 1e-7; 1.2e-38 from -87.3 down); libm's in float64."""
    import numpy as np
    from llvmlite import ir
    from numba import types
    from numba.extending import intrinsic, overload

    @intrinsic
    def float_of_bits(context, bits):
        def emit(context, builder, signature, arguments):
            return builder.bitcast(arguments[0], ir.FloatType())

        return types.float32(types.int32), emit

    f32 = np.float32
    scale, high, low = f32(1.44269504), f32(0.693359375), f32(-2.12194440e-4)
    c0, c1, c2 = f32(1.9875691500e-4), f32(1.3981999507e-3), f32(8.3334519073e-3)
    c3, c4, c5 = f32(4.1665795894e-2), f32(1.6666665459e-1), f32(5.0000001201e-1)
    smallest, largest, half, one = f32(-87.3), f32(88.3), f32(0.5), f32(1.0)

    def exponential(x):
        return math.exp(x)

    @overload(exponential, inline="always")
    def typed(x):
        if x != types.float32:
            return lambda x: math.exp(x)

        def polynomial(x):  # Cephes: exp(r) on |r| <= ln(2) / 2, times a power of two
            x = min(max(x, smallest), largest)
            n = np.floor(x * scale + half)
            r = x - n * high - n * low
            p = ((((c0 * r + c1) * r + c2) * r + c3) * r + c4) * r + c5
            return (p * r * r + r + one) * float_of_bits((np.int32(n) + np.int32(127)) << np.int32(23))

        return polynomial

    return exponential
