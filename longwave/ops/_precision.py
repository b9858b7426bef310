"""The precision in which every op computes, whatever it is given.

float16 and bfloat16 hold values; sums of many of them need more. So an op widens all that comes in to float32, or to
float64 where anything is float64, leaves autocast, and casts its output back. Its forms see wide tensors alone.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import reduce, wraps
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor

P = ParamSpec("P")
R = TypeVar("R")


def widened(values: str, *, stored: str | None = None) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Make a function compute in float32 or wider, outside autocast, and return its output in ``values``' dtype.

    A final state stays wide. Only its field ``stored``, which holds inputs as they came, keeps the dtype that it had in
    the initial state, or else that of ``values``.

    Args:
        values: the argument whose dtype the output takes, `[B, N, ...]`.
        stored: field of the state, or the argument ``initial_state``'s, that merely stores inputs.

    The function raises:
        ValueError: the first tensor is empty, or the tensors lie on different devices.
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        name = function.__name__.lstrip("_")
        place = list(inspect.signature(function).parameters).index(values)

        @wraps(function)
        def run(*args: P.args, **kwargs: P.kwargs) -> R:
            given: Any = kwargs[values] if values in kwargs else args[place]
            tensors = list(_tensors((args, tuple(kwargs.values()))))
            _check(name, tensors)
            kinds = [tensor.dtype for tensor in tensors if tensor.is_floating_point()]
            wide = reduce(torch.promote_types, kinds, torch.float32)
            with without_autocast(given.device.type):
                found: Any = function(*_cast(args, wide), **{key: _cast(item, wide) for key, item in kwargs.items()})
            if isinstance(found, Tensor):
                return found.to(given.dtype)  # type: ignore[return-value]
            out, state = found
            before: Any = kwargs.get("initial_state")
            if stored is not None and state is not None:
                kind = given.dtype if before is None else getattr(before, stored).dtype
                state = state._replace(**{stored: getattr(state, stored).to(kind)})
            return out.to(given.dtype), state  # type: ignore[return-value]

        return run

    return decorate


def _check(name: str, tensors: list[Tensor]) -> None:
    if not tensors[0].numel():
        raise ValueError(f"{name} needs at least one row, head and channel, got {tuple(tensors[0].shape)}")
    devices = {str(tensor.device) for tensor in tensors}
    if len(devices) > 1:
        raise ValueError(f"{name} needs all tensors on one device, got {', '.join(sorted(devices))}")


def without_autocast(device_type: str) -> AbstractContextManager:
    """Switch autocast off for a kind of device, where it is on."""
    if device_type == "meta" or not torch.is_autocast_enabled(device_type):
        return nullcontext()
    return torch.autocast(device_type, enabled=False)


def _tensors(value: Any) -> Any:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, tuple):
        for item in value:
            yield from _tensors(item)


def _cast(value: Any, dtype: torch.dtype) -> Any:
    """``value`` with the floating-point tensors in it, and in tuples and states, in ``dtype``."""
    if isinstance(value, Tensor):
        return value.to(dtype) if value.is_floating_point() else value
    if isinstance(value, tuple):
        items = [_cast(item, dtype) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else tuple(items)
    return value
