"""Where the time of a pass goes: the parts that one forward pass calls, each run alone on the shapes it saw.

A part is the outermost call of a child module (a projection, a gate), of an op of :mod:`longwave.ops` by the
mixer's own code, or of PyTorch's fused attention. What the mixer does between them is ``rest``: the whole less
the sum of the parts, small negative numbers being noise.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from inspect import isfunction
from statistics import median
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from longwave import ops
from longwave.benchmarks.contestants import Contestant
from longwave.benchmarks.counting import count_flops
from longwave.benchmarks.machine import measure_rates
from longwave.benchmarks.passes import Pass
from longwave.benchmarks.rows import PartRow, Report
from longwave.benchmarks.settings import Settings
from longwave.benchmarks.timing import interleave, stopwatch
from longwave.benchmarks.watch import Watch

DISPATCH = ops.use_backend.__module__
OPS = [item for item in vars(ops).values() if isfunction(item) and item.__module__ != DISPATCH]
WHOLE, REST = "whole", "rest"


class Part(NamedTuple):
    """One call: its name, whether it is a ``linear``, a ``module`` or an ``op``, what was called, and with what."""

    name: str
    kind: str
    function: Callable[..., Any]
    args: tuple
    kwargs: dict[str, Any]

    def make_pass(self, kind: str, settings: Settings) -> Pass:
        """The same call as a pass of its own, on copies of what it was given."""
        args, kwargs = tree_map(_leaf, (self.args, self.kwargs))
        parameters = list(self.function.parameters()) if isinstance(self.function, nn.Module) else []
        inputs = [item for item in tree_leaves((args, kwargs)) if isinstance(item, Tensor)]
        return Pass(lambda: self.function(*args, **kwargs), [*inputs, *parameters], kind, settings)


def take_apart(contestants: Sequence[Contestant], settings: Settings, report: Report, watch: Watch) -> None:
    """Enter the parts of every contestant, length and pass into ``report``, and the rates they are held against."""
    watch.advance("rates of this machine", 0, 1)
    report.rates = measure_rates(settings.row_dtype, settings.device)
    for contestant in contestants:
        for kind in settings.passes:
            for num_tokens in settings.lengths:
                watch.advance(f"{contestant.label}: {kind} of {num_tokens} tokens", 0, 1)
                report.parts += _part_rows(contestant, kind, num_tokens, settings, report.rates)


def record(contestant: Contestant, num_tokens: int, kind: str = "forward") -> list[Part]:
    """The parts of one pass, in the order of their calls."""
    parts: list[Part] = []
    run = contestant.make_pass(kind, num_tokens)
    with _recording(contestant.mixer, parts):
        run()
    seen: Counter[str] = Counter()
    named = []
    for part in parts:
        seen[part.name] += 1
        named.append(part._replace(name=f"{part.name} ({seen[part.name]})") if seen[part.name] > 1 else part)
    return named


def _part_rows(
    contestant: Contestant, kind: str, num_tokens: int, settings: Settings, rates: dict[str, float]
) -> Iterator[PartRow]:
    parts = record(contestant, num_tokens, kind)
    passes = {WHOLE: contestant.make_pass(kind, num_tokens)}
    passes |= {part.name: part.make_pass(kind, settings) for part in parts}
    for run in passes.values():
        run()
    found = interleave({name: stopwatch(run, settings.device) for name, run in passes.items()}, settings.repeats)
    seconds = {name: median(times) for name, times in found.items()}
    whole = seconds[WHOLE]
    about = {"mixer": contestant.label, "num_tokens": num_tokens, "pass_name": kind}
    for name, part_kind in [(WHOLE, WHOLE), *((part.name, part.kind) for part in parts)]:
        flops, moved = count_flops(passes[name]), _bytes_moved(passes[name])
        floor = max(flops / rates["flops_per_second"], moved / rates["bytes_per_second"])
        share = seconds[name] / whole
        yield PartRow(
            **about,
            part=name,
            kind=part_kind,
            seconds=seconds[name],
            share=share,
            flops=flops,
            bytes=moved,
            floor_seconds=floor,
        )
    rest = whole - sum(seconds[part.name] for part in parts)
    yield PartRow(**about, part=REST, kind=REST, seconds=rest, share=rest / whole)


def _bytes_moved(run: Pass) -> int:
    """Inputs, weights and outputs, once; three times with the backward pass, which reads them and writes gradients."""
    with torch.no_grad(), run.settings.precision():
        outputs = [item for item in tree_leaves(run.function()) if isinstance(item, Tensor)]
    size = sum(item.numel() * item.element_size() for item in (*run.leaves, *outputs))
    return (3 if run.backward else 1) * size


def _leaf(item: Any) -> Any:
    """A tensor as a leaf of its own graph; anything else as it is."""
    if not isinstance(item, Tensor):
        return item
    return item.detach().clone().requires_grad_(item.requires_grad or item.is_floating_point())


@contextmanager
def _recording(mixer: nn.Module, parts: list[Part]) -> Iterator[None]:
    """Collect outermost calls of child modules and of ops while the block runs."""
    depth = 0

    def watched(name: str, kind: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal depth
            if not depth:
                target = function.__self__ if kind != "op" else function
                parts.append(Part(name, kind, target, args, kwargs))
            depth += 1
            try:
                return function(*args, **kwargs)
            finally:
                depth -= 1

        return call

    children = [(name, child) for name, child in mixer.named_modules() if child is not mixer]
    patched: list[tuple[dict, str, Any]] = []
    try:
        for name, child in children:
            kind = "linear" if isinstance(child, nn.Linear) else "module"
            patched.append((vars(child), "forward", None))
            vars(child)["forward"] = watched(name, kind, child.forward)
        attention = F.scaled_dot_product_attention
        for space in (*_namespaces(mixer), vars(F)):
            for name, item in list(space.items()):
                if item is attention or (isfunction(item) and item in OPS):
                    patched.append((space, name, item))
                    space[name] = watched("fused attention" if item is attention else name, "op", item)
        yield
    finally:
        for space, name, item in reversed(patched):
            if item is None:
                del space[name]
            else:
                space[name] = item


def _namespaces(mixer: nn.Module) -> list[dict[str, Any]]:
    """Of the files in which the mixer and its parts are written, those of linear layers excepted."""
    types = {kind for part in mixer.modules() if not isinstance(part, nn.Linear) for kind in type(part).__mro__}
    names = {kind.__module__ for kind in types} - {"builtins", "abc"}
    return [vars(sys.modules[name]) for name in sorted(names) if not name.startswith("torch.")]
