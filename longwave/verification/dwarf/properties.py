"""A published property: a sentence, the number its authors measured, and a function that measures it again."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from functools import partial
from typing import Literal

import torch

#: ``crate``: one of the 58. ``twin``: the corrected form of one that fails. ``added``: claimed, but tested by nobody.
Part = Literal["crate", "twin", "added"]


class Outcome(StrEnum):
    """KNOWN_FAILURE is a published statement that is false, and shows as false; REPORT asserts nothing."""

    PASS = "PASS"
    FAIL = "FAIL"
    KNOWN_FAILURE = "KNOWN-FAILURE"
    REPORT = "REPORT"


@dataclass(frozen=True)
class Finding:
    """Whether a property holds (``None``: nothing is asserted), and the numbers that say so, by name."""

    holds: bool | None
    measured: Mapping[str, float]


@dataclass(frozen=True)
class Property:
    """One statement and how it is measured.

    Attributes:
        number: as published; of a twin with a ``c`` behind it, of an added one a letter.
        group: what it belongs to.
        title: a few words.
        statement: what must hold; the measurement's docstring.
        published: what the authors measured, by the names of the finding.
        measure: seeded; takes nothing.
        known_failure: the published statement is false.
    """

    number: int | str
    group: str
    title: str
    statement: str
    published: Mapping[str, float]
    measure: Callable[[], Finding]
    part: Part = "crate"
    known_failure: bool = False


@dataclass(frozen=True)
class Group:
    """Properties of one topic, in the order in which they are declared."""

    title: str
    properties: list[Property] = field(default_factory=list)

    def property(
        self,
        number: int | str,
        title: str,
        published: Mapping[str, float] | None = None,
        *,
        part: Part = "crate",
        known_failure: bool = False,
    ) -> Callable[[Callable[[], Finding]], Callable[[], Finding]]:
        """Declare the function under it; its docstring is the statement."""

        def declare(measure: Callable[[], Finding]) -> Callable[[], Finding]:
            statement = " ".join((measure.__doc__ or "").split())
            given = Property(number, self.title, title, statement, published or {}, measure, part, known_failure)
            self.properties.append(given)
            return measure

        return declare


@dataclass(frozen=True)
class Line:
    """One property's outcome; ``error`` is what its measurement raised."""

    number: int | str
    part: Part
    group: str
    title: str
    statement: str
    outcome: Outcome
    measured: dict[str, float]
    published: dict[str, float]
    error: str
    seconds: float


@dataclass(frozen=True)
class Report:
    """What :func:`measure_properties` found."""

    name: str
    lines: tuple[Line, ...]

    @property
    def passed(self) -> bool:
        """The outcome is the documented one: exactly the known failures fail."""
        return all(line.outcome is not Outcome.FAIL for line in self.lines)

    @property
    def summary(self) -> str:
        """Counts, and the numbers of what came out otherwise than documented."""
        crate, twins, added = (
            [line.outcome for line in self.lines if line.part == part] for part in ("crate", "twin", "added")
        )
        known = crate.count(Outcome.KNOWN_FAILURE)
        hold = len(crate) - known - crate.count(Outcome.FAIL)
        told = (
            f"{len(crate)} properties: {hold} hold, {known} known failures, "
            f"{twins.count(Outcome.PASS)} corrected twins hold; {added.count(Outcome.PASS)} added properties hold"
        )
        failed = [str(line.number) for line in self.lines if line.outcome is Outcome.FAIL]
        return f"{told}; not as documented: {', '.join(failed)}" if failed else told

    def as_dict(self) -> dict:
        """JSON-able record; a number that is not finite becomes its name."""
        lines = [asdict(line) for line in self.lines]
        for line in lines:
            line |= {key: {name: _jsonable(x) for name, x in line[key].items()} for key in ("measured", "published")}
        return {"name": self.name, "passed": self.passed, "summary": self.summary, "lines": lines}


def measure_properties(
    name: str, properties: Iterable[Property], *, report: Callable[[Line], None] | None = None
) -> Report:
    """Measure every property; what raises fails.

    Args:
        name: of the mixer that they are about.
        report: called with each line as it is found.
    """
    lines = []
    for given in properties:
        began, finding, error = time.monotonic(), Finding(False, {}), ""
        try:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                finding = given.measure()
        except Exception as raised:
            error = f"raised {type(raised).__name__}: {raised}"
        seconds = time.monotonic() - began
        outcome = Outcome.FAIL if error else _judge(given, finding)
        measured, published = dict(finding.measured), dict(given.published)
        said = (given.number, given.part, given.group, given.title, given.statement)
        lines.append(Line(*said, outcome, measured, published, error, seconds))
        if report is not None:
            report(lines[-1])
    return Report(name, tuple(lines))


def normals(seed: int, dtype: torch.dtype = torch.float64) -> Callable[..., torch.Tensor]:
    """A function from a shape to standard normal numbers, from its own generator."""
    return partial(torch.randn, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def _judge(given: Property, finding: Finding) -> Outcome:
    if finding.holds is None:
        return Outcome.REPORT
    if given.known_failure:
        return Outcome.FAIL if finding.holds else Outcome.KNOWN_FAILURE
    return Outcome.PASS if finding.holds else Outcome.FAIL


def _jsonable(x: float) -> float | str:
    return x if math.isfinite(x) else str(float(x))
