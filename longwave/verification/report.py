"""A certificate as lines in a terminal."""

from __future__ import annotations

from rich.console import Console
from rich.text import Text

from longwave.verification.certificate import Line, Verdict
from longwave.verification.subjects import Subject

COLOURS = {Verdict.PASS: "green", Verdict.FAIL: "red", Verdict.DECLARED_FAIL: "yellow"}


def print_header(console: Console, subject: Subject) -> None:
    """Name the subject and explain the columns."""
    size = sum(parameter.numel() for parameter in subject.module.parameters())
    console.print(
        f"{subject.name}: {type(subject.module).__name__}, {subject.width} channels, {size:,} parameters, "
        "float64 (P9: narrower), weights redrawn"
    )
    console.print(f"{'':4}{'property':22}{'verdict':15}{'worst':>8} {'limit':>8}  where")


def print_line(console: Console, line: Line) -> None:
    """One property: verdict, the worst number found, the largest that passes, and where."""
    text = Text(f"{line.key:4}{line.title:22}")
    text.append(f"{line.verdict:15}", style=COLOURS[line.verdict])
    text.append(f"{line.worst:8.1e} {line.limit:8.0e}  {line.where}")
    console.print(text, soft_wrap=True)
