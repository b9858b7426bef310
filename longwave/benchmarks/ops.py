"""Ops beside PyTorch's fused causal attention of the same heads, every op in each of its fast forms."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Iterator, Sequence
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F

from longwave.benchmarks.examples import EXAMPLES, Shape
from longwave.benchmarks.memory import peak_bytes
from longwave.benchmarks.passes import Pass
from longwave.benchmarks.rows import OpRow
from longwave.benchmarks.settings import Settings
from longwave.benchmarks.timing import interleave, stopwatch
from longwave.benchmarks.watch import Watch
from longwave.ops import BackendUnavailable, available_backends

ATTENTION = "fused attention"
#: Types of arguments that `--set` can give, and what they are called.
SETTABLE: dict[Any, str] = {
    int: "int",
    float: "float",
    bool: "bool",
    int | None: "int or null",
    Sequence[int]: "list of int",
}


def time_ops(settings: Settings, watch: Watch) -> Iterator[OpRow]:
    """Rows of every length, pass, op and backend.

    Raises:
        ValueError: an op has no such argument, or lacks the backend that was asked for.
    """
    entries = [
        (op, backend, _arguments(op, settings.arguments.get(op, {})))
        for op in settings.labels
        for backend in _backends(op, settings.backend)
    ]
    races = [(kind, num_tokens) for kind in settings.passes for num_tokens in settings.lengths]
    for done, (kind, num_tokens) in enumerate(races):
        watch.advance(f"{kind} of {num_tokens} tokens", done, len(races))
        yield from _race(entries, kind, num_tokens, settings)
    watch.advance("done", len(races), len(races))


def op_pass(op: str, backend: str, arguments: dict[str, Any], kind: str, shape: Shape, settings: Settings) -> Pass:
    """One pass of an op on its example."""
    example = EXAMPLES[op]
    tensors = {name: tensor.requires_grad_() for name, tensor in example.tensors(shape, _source(settings)).items()}
    arguments = {**example.arguments, **arguments}
    return Pass(lambda: example.function(**tensors, **arguments, backend=backend), tensors.values(), kind, settings)


def _race(entries: list[tuple[str, str, dict]], kind: str, num_tokens: int, settings: Settings) -> Iterator[OpRow]:
    shape = Shape(settings.batch_size, num_tokens, settings.num_heads, settings.head_dim)
    heads = [_source(settings)(*shape).transpose(1, 2).contiguous().requires_grad_() for _ in range(3)]
    passes = {f"{op} {backend}": op_pass(op, backend, given, kind, shape, settings) for op, backend, given in entries}
    passes[ATTENTION] = Pass(lambda: F.scaled_dot_product_attention(*heads, is_causal=True), heads, kind, settings)
    for run in passes.values():
        run()  # compiles, and allocates the gradients that every pass is given
    peaks = {name: peak_bytes(run, settings.device) for name, run in passes.items()}
    found = interleave({name: stopwatch(run, settings.device) for name, run in passes.items()}, settings.repeats)
    seconds = {name: median(times) for name, times in found.items()}
    for op, backend, given in entries:
        name = f"{op} {backend}"
        yield OpRow(
            op=op,
            backend=backend,
            num_tokens=num_tokens,
            pass_name=kind,
            dtype=settings.dtype,
            seconds=seconds[name],
            softmax_seconds=seconds[ATTENTION],
            ratio=seconds[ATTENTION] / seconds[name],
            peak_bytes=peaks[name],
            batch_size=settings.batch_size,
            hidden_size=settings.hidden_size,
            num_heads=settings.num_heads,
            arguments={**EXAMPLES[op].arguments, **given},
            repeats=len(found[name]),
        )


def _backends(op: str, wanted: str) -> tuple[str, ...]:
    if wanted == "auto":
        return tuple(backend for backend in available_backends(op) if backend != "naive")
    if wanted not in available_backends(op):
        legal = ", ".join(("auto", *available_backends(op)))
        raise BackendUnavailable(f"{op} has no backend {wanted!r}; legal: {legal}")
    return (wanted,)


def _arguments(op: str, given: Any) -> dict[str, Any]:
    """``given``, checked against the op's numbers and lists of numbers."""
    from pydantic import TypeAdapter, ValidationError

    hints = typing.get_type_hints(EXAMPLES[op].function)
    parameters = inspect.signature(EXAMPLES[op].function).parameters
    legal = [name for name in parameters if hints[name] in SETTABLE and name != "return_state"]
    checked = {}
    for name, value in given.items():
        if name not in legal:
            raise ValueError(f"--set {op}.{name}: no such argument; legal: {', '.join(legal)}")
        try:
            checked[name] = TypeAdapter(hints[name]).validate_python(value)
        except ValidationError:
            raise ValueError(f"--set {op}.{name}: expected {SETTABLE[hints[name]]}, got {value!r}") from None
    return checked


def _source(settings: Settings):
    """Normal random tensors, the same for every op."""
    generator = torch.Generator().manual_seed(0)
    dtype = settings.row_dtype

    def randn(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator).to(settings.device, dtype)

    return randn
