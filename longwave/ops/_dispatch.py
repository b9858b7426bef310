"""Which form of an op runs.

An op lives in ``longwave/ops/<op>.py``: its public function, ``<op>_naive`` (a loop, the authority) and
``<op>_torch``. Fast forms of the same name live in ``longwave/ops/<backend>/<op>.py`` and are imported here,
when first chosen, and nowhere else.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec

FAST_BACKENDS = ("numba", "triton")
BACKENDS = ("naive", "torch", *FAST_BACKENDS)

# A plain global, which torch.compile can guard on; a ContextVar it cannot read.
_preferred = "auto"


class BackendUnavailable(ValueError):
    """The backend that was asked for has no form of this op."""


def available_backends(op: str) -> tuple[str, ...]:
    """Names of the backends that have a form of ``op``, slowest first."""
    return ("naive", "torch", *(name for name in FAST_BACKENDS if _module_of(op, name) is not None))


def select_form(op: str, backend: str, naive: Callable, torch: Callable) -> Callable:
    """Return the function that computes ``op``: ``naive``, ``torch``, or a fast form loaded when first chosen.

    An explicit ``backend`` is obeyed or refused, never replaced. ``"auto"`` takes the backend of the
    enclosing :func:`use_backend`, else the ``torch`` form.

    Raises:
        BackendUnavailable: ``backend`` is unknown or has no form of ``op``.
    """
    if backend == "auto":
        backend = _preferred
    if backend in ("auto", "torch"):
        return torch
    if backend == "naive":
        return naive
    module = _module_of(op, backend)
    if module is None:
        legal = ", ".join(("auto", *available_backends(op)))
        raise BackendUnavailable(f"{op} has no backend {backend!r}; legal: {legal}")
    return getattr(importlib.import_module(module), f"{op}_{backend}")


@contextmanager
def use_backend(backend: str) -> Iterator[None]:
    """Make ``backend`` the meaning of ``"auto"`` for every op called inside the ``with`` block, in all threads.

    Raises:
        BackendUnavailable: ``backend`` is not a backend's name.
    """
    if backend not in ("auto", *BACKENDS):
        raise BackendUnavailable(f"unknown backend {backend!r}; legal: {', '.join(('auto', *BACKENDS))}")
    global _preferred
    before, _preferred = _preferred, backend
    try:
        yield
    finally:
        _preferred = before


def _module_of(op: str, backend: str) -> str | None:
    if backend not in FAST_BACKENDS or find_spec(f"longwave.ops.{backend}") is None:
        return None
    name = f"longwave.ops.{backend}.{op}"
    return name if find_spec(name) is not None else None
