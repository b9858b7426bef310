"""What a benchmark measures: sizes, passes, precision, arguments. Read from the command line, checked as a whole."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch

from longwave.benchmarks.examples import EXAMPLES
from longwave.data.limits import check_fits
from longwave.mixers import available
from longwave.ops import use_backend

BASELINE = "softmax"
SUBJECTS = ("mixers", "ops", "decode")
TRAINING_PASSES = ("forward", "forward_backward")
PASSES = (*TRAINING_PASSES, "decode")
DTYPES = ("float32", "bfloat16", "float64")
OPS = tuple(EXAMPLES)
#: Sizes that no machine holds, and threads that none starts, are refused by name.
MOST = {
    "hidden_size": 2**20,
    "num_heads": 2**20,
    "num_kv_heads": 2**20,
    "batch_size": 2**31 - 1,
    "repeats": 2**20,
    "threads": 16 * (os.cpu_count() or 1),
}


@dataclass(frozen=True)
class Settings:
    """Everything that a benchmark is told.

    Attributes:
        subject: ``mixers``, ``ops`` or ``decode``.
        labels: mixers or ops that are measured; softmax, the baseline, always is.
        lengths: tokens of a sequence.
        passes: ``forward`` (without gradient, evaluation mode), ``forward_backward`` (training mode, gradients
            of the input and of all parameters), ``decode`` (one token after ``lengths`` tokens).
        hidden_size: channels.
        num_heads: heads of every contestant.
        num_kv_heads: key/value heads of every mixer that has the argument; ``None`` leaves it alone.
        batch_size: sequences.
        dtype: of weights and rows; ``bfloat16`` is autocast on float32 weights.
        backend: what ``auto`` means to every op.
        repeats: rounds in which every contestant runs once; ``None`` decides by the time they take.
        threads: of PyTorch; ``None`` leaves them alone.
        device: ``cpu`` or ``cuda``.
        breakdown: take one mixer's pass apart.
        arguments: constructor's arguments by label.
    """

    subject: str = "mixers"
    labels: tuple[str, ...] = ()
    lengths: tuple[int, ...] = (1024, 8192)
    passes: tuple[str, ...] = TRAINING_PASSES
    hidden_size: int = 512
    num_heads: int = 8
    num_kv_heads: int | None = None
    batch_size: int = 1
    dtype: str = "float32"
    backend: str = "auto"
    repeats: int | None = None
    threads: int | None = None
    device: str = "cpu"
    breakdown: bool = False
    arguments: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, most in MOST.items():
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
            if value is not None and value > most:
                raise ValueError(f"{name} must be at most {most:,}, got {value:,}")
        if self.hidden_size % self.num_heads:
            raise ValueError(f"hidden_size {self.hidden_size} is not divisible by num_heads {self.num_heads}")
        if not self.lengths or min(self.lengths) < 1:
            raise ValueError(f"lengths must be at least 1 token, got {', '.join(map(str, self.lengths)) or 'none'}")
        if self.dtype not in DTYPES:
            raise ValueError(f"unknown dtype {self.dtype!r}; legal: {', '.join(DTYPES)}")
        legal = TRAINING_PASSES if self.subject == "ops" else PASSES
        for name in self.passes:
            if name not in legal:
                raise ValueError(f"unknown pass {name!r} of {self.subject}; legal: {', '.join(legal)}")
        with use_backend(self.backend):  # which refuses a name that is no backend's
            pass
        if self.device == "cuda" and not torch.cuda.is_available():
            raise ValueError("cuda was asked for, but PyTorch finds no CUDA device; legal here: cpu")
        if self.device not in ("cpu", "cuda"):
            raise ValueError(f"unknown device {self.device!r}; legal: cpu, cuda")
        if self.subject == "ops" and self.num_kv_heads is not None:
            raise ValueError("num_kv_heads is an argument of mixers; ops are timed with num_heads alone")
        if self.breakdown and (self.subject != "mixers" or len(self.labels) != 1 or "decode" in self.passes):
            raise ValueError("a breakdown takes one mixer apart: benchmark mixers --mixers NAME, without decode")
        size, width = self.weight_dtype.itemsize, self.hidden_size
        check_fits(4 * size * width**2, f"hidden_size {width:,}: the projections of softmax", self.device)
        rows = f"batch_size {self.batch_size:,} times lengths {max(self.lengths):,}: rows of {width:,} channels"
        check_fits(2 * size * self.batch_size * max(self.lengths) * width, rows, self.device)  # of input and output

    @property
    def head_dim(self) -> int:
        """Channels of a head."""
        return self.hidden_size // self.num_heads

    @property
    def weight_dtype(self) -> torch.dtype:
        """Of parameters and rows: float32 under autocast."""
        return torch.float64 if self.dtype == "float64" else torch.float32

    @property
    def row_dtype(self) -> torch.dtype:
        """Of what is multiplied."""
        return getattr(torch, self.dtype)

    def precision(self) -> Any:
        """A context in which both sides compute in ``dtype``."""
        return torch.autocast(self.device, torch.bfloat16) if self.dtype == "bfloat16" else nullcontext()

    @contextmanager
    def threading(self) -> Iterator[None]:
        """PyTorch's threads as asked for, and as before when the block ends."""
        before = torch.get_num_threads()
        torch.set_num_threads(self.threads or before)
        try:
            yield
        finally:
            torch.set_num_threads(before)


def read_settings(
    subject: str,
    *,
    mixers: str | None = None,
    ops: str | None = None,
    lengths: str = "1024,8192",
    passes: str | None = None,
    overrides: Sequence[tuple[str, Any]] = (),
    **sizes: Any,
) -> Settings:
    """Settings from lists as they are written on the command line, ``"1024,8192"``.

    Args:
        overrides: pairs of ``label.argument`` and value.
        sizes: the other fields of :class:`Settings`.

    Raises:
        ValueError: anything is unknown, outside its range, or does not fit together.
    """
    if subject not in SUBJECTS:
        raise ValueError(f"unknown subject {subject!r}; legal: {', '.join(SUBJECTS)}")
    if mixers is not None and subject == "ops":
        raise ValueError("--mixers goes with mixers and decode; ops are chosen by --ops")
    if ops is not None and subject != "ops":
        raise ValueError(f"--ops goes with ops; {subject} takes --mixers")
    if passes is not None and subject == "decode":
        raise ValueError("--passes goes with mixers and ops; decode is a pass of its own")
    if subject == "ops":
        labels = OPS if ops is None else _words("ops", ops)
        for label in labels:
            if label not in OPS:
                raise ValueError(f"unknown op {label!r}; legal: {', '.join(OPS)}")
    else:
        labels = available() if mixers is None else _words("mixers", mixers)
    default = ("decode",) if subject == "decode" else TRAINING_PASSES
    return Settings(
        subject=subject,
        labels=labels,
        lengths=tuple(_tokens(word) for word in _words("lengths", lengths)),
        passes=default if passes is None else _words("passes", passes),
        arguments=_grouped(overrides, labels if subject == "ops" else with_baseline(labels)),
        **sizes,
    )


def with_baseline(labels: Sequence[str]) -> tuple[str, ...]:
    """Softmax, then the other labels in their order."""
    return tuple(dict.fromkeys((BASELINE, *labels)))


def _words(name: str, text: str) -> tuple[str, ...]:
    words = tuple(word.strip() for word in text.split(",") if word.strip())
    if not words:
        raise ValueError(f"--{name} is empty; expected a list such as a,b")
    for word in words:
        if words.count(word) > 1:
            raise ValueError(f"--{name} names {word!r} twice")
    return words


def _tokens(word: str) -> int:
    if len(word) > 18:
        raise ValueError(f"--lengths holds {word[:40]!r}; no machine holds so many tokens")
    if not word.isascii() or not word.isdigit() or int(word) < 1:
        raise ValueError(f"--lengths holds {word!r}; expected whole numbers of tokens, at least 1")
    return int(word)


def _grouped(overrides: Sequence[tuple[str, Any]], labels: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Arguments by label; a label may have dots of its own, so the longest that fits is meant."""
    grouped: dict[str, dict[str, Any]] = {}
    for path, value in overrides:
        fits = [label for label in labels if path.startswith(f"{label}.")]
        if not fits:
            raise ValueError(f"--set {path}: expected label.argument=value with a label of {', '.join(labels)}")
        label = max(fits, key=len)
        *parents, last = path.removeprefix(f"{label}.").split(".")
        node = grouped.setdefault(label, {})
        for parent in parents:
            node = node.setdefault(parent, {})
            if not isinstance(node, dict):
                raise ValueError(f"--set {path}: {parent!r} has a value already and cannot have parts")
        node[last] = value
    return grouped
