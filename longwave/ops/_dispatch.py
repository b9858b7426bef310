"""Which form of an op runs.

An op lives in ``longwave/ops/<op>.py``: its public function, ``<op>_naive`` (a loop, the authority) and
``<op>_torch``. Fast forms of the same name live in ``longwave/ops/<backend>/<op>.py`` as ``<op>_<backend>``,
beside ``PAYS_FROM``, the rows (batch times tokens) from which they were measured to be faster than torch's.
Importing them here costs nothing: a backend's own package is loaded when a form first runs.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import NamedTuple

from torch import Tensor

#: Backend and the kind of device on which ``auto`` considers it.
FAST_BACKENDS = {"numba": "cpu", "triton": "cuda"}
BACKENDS = ("naive", "torch", *FAST_BACKENDS)

# A plain global, which torch.compile can guard on; a ContextVar it cannot read.
_preferred = "auto"
_any_rows = False


class FastForm(NamedTuple):
    """A form that ``auto`` takes on ``device`` from ``pays_from`` rows on."""

    function: Callable
    device: str
    pays_from: int


class BackendUnavailable(ValueError):
    """The backend that was asked for has no form of this op."""


def available_backends(op: str) -> tuple[str, ...]:
    """Names of the backends that have a form of ``op``, slowest first."""
    return ("naive", "torch", *(backend for backend, name in _fast_forms if name == op))


def describe_backends() -> list[dict[str, str]]:
    """What ``auto`` picks for each op that has a choice, and why."""
    return [
        {
            "op": op,
            "backends": ", ".join(available_backends(op)),
            "auto": f"{backend} on {form.device} from {form.pays_from} rows on, else torch",
            "why": f"measured: {backend} is the faster one there (rows are batch times tokens)",
        }
        for (backend, op), form in sorted(_fast_forms.items())
    ]


def select_form(op: str, backend: str, naive: Callable, torch: Callable, x: Tensor) -> Callable:
    """Return the function that computes ``op`` on ``x`` `[B, N, ...]`` and its like.

    An explicit ``backend`` is obeyed or refused, never replaced. ``"auto"`` takes the backend of the
    enclosing :func:`use_backend`, else a fast form where one is made for x's device and x has rows enough,
    else the ``torch`` form.

    Raises:
        BackendUnavailable: ``backend`` is unknown, has no form of ``op``, or does not run on x's device.
    """
    if backend == "auto":
        backend = _preferred
    if backend == "auto":
        rows = x.shape[0] * x.shape[1]
        for name, device in FAST_BACKENDS.items():
            form = _fast_forms.get((name, op))
            if form is None or x.device.type != device:
                continue
            if _any_rows or rows >= form.pays_from:
                return form.function
        return torch
    if backend in ("naive", "torch"):
        return naive if backend == "naive" else torch
    form = _fast_forms.get((backend, op))
    if form is None:
        legal = ", ".join(("auto", *available_backends(op)))
        raise BackendUnavailable(f"{op} has no backend {backend!r}; legal: {legal}")
    if x.device.type not in (form.device, "meta"):
        raise BackendUnavailable(f"{op}: backend {backend!r} runs on {form.device}, the input is on {x.device.type}")
    return form.function


@contextmanager
def use_backend(backend: str, *, any_rows: bool = False) -> Iterator[None]:
    """Make ``backend`` the meaning of ``"auto"`` for every op called inside the ``with`` block, in all threads.

    Args:
        any_rows: where ``auto`` is left to choose, it takes a fast form for few rows too, as it does for many.

    Raises:
        BackendUnavailable: ``backend`` is not a backend's name.
    """
    if backend not in ("auto", *BACKENDS):
        raise BackendUnavailable(f"unknown backend {backend!r}; legal: {', '.join(('auto', *BACKENDS))}")
    global _preferred, _any_rows
    before = _preferred, _any_rows
    _preferred, _any_rows = backend, any_rows
    try:
        yield
    finally:
        _preferred, _any_rows = before


def preferred_backend() -> str:
    """What ``"auto"`` means now: the backend of the enclosing :func:`use_backend`, or ``"auto"`` itself."""
    return _preferred


def _load_fast_forms() -> Iterator[tuple[tuple[str, str], FastForm]]:
    for backend, device in FAST_BACKENDS.items():
        folder = find_spec(f"longwave.ops.{backend}")
        if folder is None:
            continue
        for module in pkgutil.iter_modules(folder.submodule_search_locations):
            if not module.name.startswith("_"):
                forms = importlib.import_module(f"longwave.ops.{backend}.{module.name}")
                function = getattr(forms, f"{module.name}_{backend}")
                yield (backend, module.name), FastForm(function, device, forms.PAYS_FROM)


# Filled here rather than at first use: torch.compile cannot trace an import.
_fast_forms = dict(_load_fast_forms())
