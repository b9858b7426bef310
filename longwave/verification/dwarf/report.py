"""Properties as lines in a terminal."""

from __future__ import annotations

import math

from rich.console import Console
from rich.text import Text

from longwave.verification.dwarf.properties import Line, Outcome, Report

COLOURS = {Outcome.PASS: "green", Outcome.FAIL: "red", Outcome.KNOWN_FAILURE: "yellow", Outcome.REPORT: "cyan"}


class PropertyPrinter:
    """Prints lines as they come, a heading before each group."""

    def __init__(self, console: Console, name: str) -> None:
        self.console, self.group = console, ""
        console.print(f"{name}: published properties, measured (and as published)")

    def line(self, line: Line) -> None:
        """Number, title, outcome, and each number found beside the published one."""
        if line.group != self.group:
            self.group = line.group
            self.console.print(f"\n{self.group}")
        text = Text(f"{line.number!s:>4}  {line.title:46}")
        text.append(f"{line.outcome:15}", style=COLOURS[line.outcome])
        names = [*line.measured, *(name for name in line.published if name not in line.measured)]
        text.append(line.error or ", ".join(_beside(name, line) for name in names))
        self.console.print(text, soft_wrap=True)

    def summary(self, report: Report) -> None:
        """One line for all."""
        self.console.print(f"\n{report.summary}", soft_wrap=True)


def _beside(name: str, line: Line) -> str:
    said = f"{name} {_number(line.measured[name])}" if name in line.measured else name
    return f"{said} ({_number(line.published[name])})" if name in line.published else said


def _number(x: float) -> str:
    if isinstance(x, int) or not math.isfinite(x):
        return str(x)
    return f"{x:.4g}" if x == 0 or abs(x) >= 1e-3 else f"{x:.1e}"
