"""What a golden file is, how an answer is compared with it, and what adapters share.

An adapter is a module named after its system. Its ``KINDS`` maps the kinds of files to :class:`Kind`: functions
from a :class:`Golden` to answers by the file's own names (``out.y``, ``grad.x``, ``expected.40.vocab``).
"""

from __future__ import annotations

import importlib
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import safe_open
from torch import Tensor, nn

from longwave.ops import available_backends, use_backend

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT.parent / "shared" / "golden"
#: Backends that compute float64 on a CPU.
EXACT_BACKENDS = ("naive", "torch", "numba")

Answers = dict[str, Any]


@dataclass(frozen=True)
class Golden:
    """One file: ``config`` and tensors as given, ``expected`` by ``expected.<key>[.<key>]``."""

    path: Path
    system: str
    kind: str
    config: dict[str, Any]
    tensors: dict[str, Tensor]
    expected: dict[str, Any]

    @property
    def parameters(self) -> dict[str, Tensor]:
        """Tensors ``param.<symbol>`` by symbol."""
        return self.group("param.")

    @property
    def has_gradients(self) -> bool:
        """Whether any ``grad.*`` is given."""
        return bool(self.group("grad."))

    @property
    def references(self) -> dict[str, Any]:
        """Everything that must be answered."""
        asked = {name: value for name, value in self.tensors.items() if name.startswith(("out.", "grad."))}
        return {**asked, **self.expected}

    def group(self, prefix: str) -> dict[str, Tensor]:
        """Tensors whose name begins with ``prefix``, by the rest of it."""
        return {name[len(prefix) :]: t for name, t in self.tensors.items() if name.startswith(prefix)}

    def numbered(self, prefix: str) -> list[Tensor]:
        """Tensors ``<prefix>0``, ``<prefix>1``, ... in the order of their numbers."""
        found = self.group(prefix)
        return [found[number] for number in sorted(found, key=int)]

    def leaf(self, name: str) -> Tensor:
        """A copy of ``in.<name>`` that collects a gradient."""
        return self.tensors[f"in.{name}"].clone().requires_grad_()


class Kind(NamedTuple):
    """How one kind of file is answered: every form must meet it, under every backend that has all ``ops``."""

    forms: Sequence[Callable[[Golden], Answers]]
    ops: Sequence[str] = ()
    tolerance: float = 1e-9
    gradient_tolerance: float = 1e-8


class Verdict(NamedTuple):
    """``error`` is the largest |a - b| / (1 + |b|) over all answers, forms and backends."""

    status: str
    error: float | None
    path: Path
    detail: str = ""


def check(path: Path) -> Verdict:
    """Hold the library to one file."""
    try:
        golden = read(path)
        kind = kinds(golden.system).get(golden.kind)
    except Exception as error:
        return Verdict("FAIL", math.inf, path, f"{type(error).__name__}: {error}")
    if kind is None:
        return Verdict("UNSUPPORTED", None, path, f"{golden.system}: {golden.kind}")
    worst, failures = 0.0, {}
    for backend in _backends(kind.ops):
        for form in kind.forms:
            where = f"{form.__name__}, {backend}"
            try:
                with use_backend(backend):
                    answers = form(golden)
            except Exception as error:
                return Verdict("FAIL", math.inf, path, f"{where}: {type(error).__name__}: {error}")
            for name, reference in golden.references.items():
                error = distance(answers[name], reference) if name in answers else math.inf
                worst = max(worst, error)
                tolerance = kind.gradient_tolerance if name.startswith("grad.") else kind.tolerance
                if error > tolerance:
                    failures.setdefault(name, f"{name} ({where}): {error:.1e}" if name in answers else f"{name}: none")
    return Verdict("FAIL" if failures else "PASS", worst, path, "; ".join(failures.values()))


def read(path: Path) -> Golden:
    """Load a file.

    Raises:
        ValueError: its metadata lacks ``system``, ``kind`` or ``config``.
    """
    with safe_open(str(path), framework="pt") as file:
        metadata = file.metadata() or {}
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
    missing = {"system", "kind", "config"} - metadata.keys()
    if missing:
        raise ValueError(f"the metadata lacks {', '.join(sorted(missing))}")
    expected = dict(_flattened(json.loads(metadata.get("expected", "{}"))))
    config = json.loads(metadata["config"])
    return Golden(path, metadata["system"], metadata["kind"], config, tensors, expected)


def kinds(system: str) -> Mapping[str, Kind]:
    """The kinds that the adapter of ``system`` answers; none if there is no adapter."""
    if not system.isidentifier() or find_spec(f".{system}", __package__) is None:
        return {}
    return getattr(importlib.import_module(f".{system}", __package__), "KINDS", {})


def implemented_folders() -> list[Path]:
    """Folders beside the checkout whose system has an adapter."""
    if not GOLDEN.is_dir():
        return []
    return sorted(folder for folder in GOLDEN.iterdir() if folder.is_dir() and kinds(folder.name))


def files_in(folder: Path) -> list[Path]:
    """Golden files in a folder and its folders, sorted."""
    return sorted(folder.rglob("*.safetensors"))


def distance(answer: Any, reference: Any) -> float:
    """Largest |a - b| / (1 + |b|); infinite where shapes, integers, strings or keys differ."""
    if isinstance(reference, Tensor):
        if isinstance(answer, float):
            answer = torch.tensor(answer, dtype=torch.float64)
        return _tensor_distance(torch.as_tensor(answer), reference)
    if isinstance(reference, Mapping):
        if not isinstance(answer, Mapping) or answer.keys() != reference.keys():
            return math.inf
        return max((distance(answer[key], reference[key]) for key in reference), default=0.0)
    if isinstance(reference, list):
        if not isinstance(answer, list | tuple) or len(answer) != len(reference):
            return math.inf
        return max((distance(a, b) for a, b in zip(answer, reference, strict=True)), default=0.0)
    if isinstance(reference, float):
        return abs(answer - reference) / (1 + abs(reference))
    return 0.0 if answer == reference else math.inf


def load(module: nn.Module, names: Mapping[str, Sequence[str]], values: Mapping[str, Tensor]) -> None:
    """Copy each value into the parameters that its symbol names, laid end to end along the first axis.

    Raises:
        ValueError: a symbol is unknown, or a parameter is given no value.
    """
    parameters = dict(module.named_parameters())
    unknown = values.keys() - names.keys()
    given = {name for symbol in values.keys() - unknown for name in names[symbol]}
    if unknown or given != parameters.keys():
        raise ValueError(f"unknown symbols {sorted(unknown)}, no values for {sorted(parameters.keys() - given)}")
    with torch.no_grad():
        for symbol, value in values.items():
            targets = [parameters[name] for name in names[symbol]]
            for target, part in zip(targets, value.split([len(t) for t in targets]), strict=True):
                if part.shape != target.shape:
                    raise ValueError(f"{symbol} has shape {tuple(part.shape)}, expected {tuple(target.shape)}")
                target.copy_(part)


def collect(
    module: nn.Module, names: Mapping[str, Sequence[str]], pick: Callable[[nn.Parameter], Tensor | None]
) -> dict[str, Tensor]:
    """What ``pick`` takes from the parameters of each symbol, laid end to end; without what it finds ``None``."""
    parameters = dict(module.named_parameters())
    found = {}
    for symbol, parts in names.items():
        picked = [pick(parameters[name]) for name in parts if name in parameters]
        if len(picked) == len(parts) and all(part is not None for part in picked):
            found[symbol] = torch.cat([part.detach() for part in picked])
    return found


def prefixed(prefix: str, values: Mapping[str, Any]) -> Answers:
    """The values under ``prefix`` + name."""
    return {f"{prefix}{name}": value for name, value in values.items()}


def _backends(ops: Sequence[str]) -> tuple[str, ...]:
    if not ops:
        return ("auto",)
    return ("auto", *(name for name in EXACT_BACKENDS if all(name in available_backends(op) for op in ops)))


def _flattened(expected: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for outer, value in expected.items():
        if isinstance(value, Mapping):
            yield from ((f"expected.{outer}.{inner}", item) for inner, item in value.items())
        else:
            yield f"expected.{outer}", value


def _tensor_distance(answer: Tensor, reference: Tensor) -> float:
    if answer.shape != reference.shape:
        return math.inf
    if not reference.numel():
        return 0.0
    if not reference.is_floating_point():
        return 0.0 if not answer.is_floating_point() and torch.equal(answer.to(reference), reference) else math.inf
    a, b = answer.detach().double(), reference.double()
    same = (a == b) | (a.isnan() & b.isnan())
    error = torch.where(same, 0.0, (a - b).abs() / (1 + b.abs()))
    return error.nan_to_num(nan=math.inf).max().item()
