"""What a benchmark found: rows, each with what identifies it, and the document that holds them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from longwave.benchmarks.memory import growth_exponent

FEWEST_LENGTHS = 3


@dataclass(frozen=True)
class Row:
    """One mixer, length and pass.

    Attributes:
        pass_name: ``pass`` in the document.
        seconds: median, of a pass; of one token where the pass is ``decode``.
        softmax_seconds: the same of softmax, in the same rounds.
        softmax_floor_seconds: the same of bare projections and attention; see :class:`Floor`.
        ratio: ``softmax_seconds`` over ``seconds``: above 1, the mixer is faster.
        peak_bytes: most bytes that the pass held at once beyond those it found.
        state_bytes: of the batch's state after ``num_tokens`` tokens.
        arguments: of the mixer's constructor, where they are not its defaults.
        repeats: rounds that the medians are over.
    """

    mixer: str
    num_tokens: int
    pass_name: str
    dtype: str
    seconds: float
    softmax_seconds: float
    softmax_floor_seconds: float
    ratio: float
    peak_bytes: int
    state_bytes: int
    batch_size: int
    hidden_size: int
    num_heads: int
    backend: str
    arguments: Mapping[str, Any]
    repeats: int


@dataclass(frozen=True)
class OpRow:
    """One op, backend, length and pass; ``softmax_seconds`` is PyTorch's fused causal attention of the same heads."""

    op: str
    backend: str
    num_tokens: int
    pass_name: str
    dtype: str
    seconds: float
    softmax_seconds: float
    ratio: float
    peak_bytes: int
    batch_size: int
    hidden_size: int
    num_heads: int
    arguments: Mapping[str, Any]
    repeats: int


@dataclass(frozen=True)
class PartRow:
    """A part of one mixer's pass, timed alone: what it takes and what it would take at this machine's rates.

    ``kind`` is ``whole``, ``linear`` or ``module`` (a call of a child module), ``op``, or ``rest`` (the whole less
    its parts, which alone has no floor). ``floor_seconds`` is the larger of flops over the measured rate of
    matrix products and bytes over that of copies; ``share`` is of the whole.
    """

    mixer: str
    num_tokens: int
    pass_name: str
    part: str
    kind: str
    seconds: float
    share: float
    flops: int | None = None
    bytes: int | None = None
    floor_seconds: float | None = None


@dataclass(frozen=True)
class Failure:
    """A certified mixer that could not run a pass: out of memory, or not made for the dtype."""

    mixer: str
    num_tokens: int
    pass_name: str
    reason: str


@dataclass
class Report:
    """A benchmark's findings; ``certificates`` says of each mixer ``passed``, ``declared: ...`` or ``failed: ...``."""

    machine: dict[str, Any]
    commit: str
    certificates: dict[str, str] = field(default_factory=dict)
    rows: list[Row | OpRow] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    parts: list[PartRow] = field(default_factory=list)
    rates: dict[str, float] = field(default_factory=dict)

    @property
    def passed(self) -> bool:
        """Every contestant could be timed."""
        return not self.failures and not any(status.startswith("failed") for status in self.certificates.values())

    def exponents(self) -> list[dict[str, Any]]:
        """Fitted growth of peak bytes and seconds with length, of every mixer and pass with three lengths or more."""
        series: dict[tuple[str, str], list[Row]] = {}
        for row in self.rows:
            if isinstance(row, Row):
                series.setdefault((row.mixer, row.pass_name), []).append(row)
        return [
            {
                "mixer": mixer,
                "pass": pass_name,
                "peak_bytes": _exponent(found, "peak_bytes"),
                "seconds": _exponent(found, "seconds"),
            }
            for (mixer, pass_name), found in series.items()
            if len(found) >= FEWEST_LENGTHS
        ]

    def as_dict(self) -> dict[str, Any]:
        """The document that ``--json`` prints."""
        document = {
            "machine": self.machine,
            "commit": self.commit,
            "certificates": self.certificates,
            "rows": [row_as_dict(row) for row in self.rows],
            "failures": [row_as_dict(failure) for failure in self.failures],
            "exponents": self.exponents(),
        }
        if self.parts:
            document["rates"] = self.rates
            document["parts"] = [row_as_dict(part) for part in self.parts]
        return document


def row_as_dict(row: Row | OpRow | PartRow | Failure) -> dict[str, Any]:
    """A row as JSON names it."""
    return {"pass" if name == "pass_name" else name: value for name, value in asdict(row).items()}


def _exponent(rows: Sequence[Row], name: str) -> float:
    return growth_exponent([row.num_tokens for row in rows], [getattr(row, name) for row in rows])
