"""A report in a terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import groupby
from typing import Any

from rich.box import SIMPLE
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table

from longwave.benchmarks.rows import OpRow, PartRow, Report, Row

KIB, MIB = 2**10, 2**20
WIDEST = 1000  # columns of a table

#: A table's columns: head and what a row shows below it.
Columns = dict[str, Callable[[Any], str]]

WORDS = ("mixer", "op", "backend", "part")
TOKENS: Columns = {"tokens": lambda row: f"{row.num_tokens:,}"}
TIME: Columns = {"ms": lambda row: f"{1e3 * row.seconds:,.2f}", "ratio": lambda row: f"{row.ratio:.2f}"}
PEAK: Columns = {"peak MiB": lambda row: f"{row.peak_bytes / MIB:,.2f}"}
BASE: Columns = {"over floor": lambda row: f"{row.softmax_seconds / row.softmax_floor_seconds:.2f}"}
STATE: Columns = {"state KiB": lambda row: f"{row.state_bytes / KIB:,.1f}"}
RATE: Columns = {"tokens/s": lambda row: f"{row.batch_size / row.seconds:,.0f}"}
PARTS: Columns = {
    "part": lambda row: row.part,
    "ms": lambda row: f"{1e3 * row.seconds:,.2f}",
    "%": lambda row: f"{100 * row.share:.1f}",
    "Gflop": lambda row: _shown(row.flops, 1e9),
    "MiB": lambda row: _shown(row.bytes, MIB),
    "floor": lambda row: _shown(row.floor_seconds, 1e-3),
    "over": lambda row: f"{row.seconds / row.floor_seconds:.1f}" if row.floor_seconds else "",
}


def print_report(console: Console, report: Report) -> None:
    """A table for each pass, the fitted exponents, and where all this was measured."""
    mixer: Columns = {"mixer": lambda row: _marked(row.mixer, report.certificates.get(row.mixer, ""))}
    op: Columns = {"op": lambda row: row.op, "backend": lambda row: row.backend}
    for pass_name, rows in groupby(report.rows, lambda row: row.pass_name):
        rows = list(rows)
        if isinstance(rows[0], OpRow):
            columns = {**TOKENS, **op, **TIME, **PEAK}
        else:
            columns = {**TOKENS, **mixer, **TIME, **BASE, **(RATE if pass_name == "decode" else PEAK), **STATE}
        _print(console, pass_name, columns, rows)
    for (pass_name, num_tokens), parts in groupby(report.parts, lambda part: (part.pass_name, part.num_tokens)):
        parts = list(parts)
        _print(console, f"{parts[0].mixer}, {pass_name} of {num_tokens:,} tokens", PARTS, parts)
    for line in _notes(report):
        console.print(line, soft_wrap=True, highlight=False)


def _print(console: Console, title: str, columns: Columns, rows: Iterable[Row | OpRow | PartRow]) -> None:
    table = Table(title=title, title_justify="left", box=SIMPLE, pad_edge=False)
    for head in columns:
        table.add_column(head, justify="left" if head in WORDS else "right", no_wrap=True)
    for _, group in groupby(rows, lambda row: row.num_tokens):
        for row in group:
            table.add_row(*(shown(row) for shown in columns.values()))
        table.add_section()
    print_whole(console, table)


def print_whole(console: Console, table: Table) -> None:
    """Print a table as wide as it is: no column is cut, and a narrower terminal wraps the lines."""
    table.width = Measurement.get(console, console.options.update(max_width=WIDEST), table).maximum
    console.print(table, crop=False)


def _notes(report: Report) -> Iterator[str]:
    """What the columns mean, how memory and time grow, and where all this was measured."""
    if any(isinstance(row, OpRow) for row in report.rows):
        yield "ratio: time of PyTorch's fused causal attention over the op's; above 1 the op is faster"
    elif report.rows:
        yield "ratio: time of softmax over the mixer's, measured in turns; above 1 the mixer is faster"
        yield "over floor: time of softmax over that of bare projections and PyTorch's attention"
    if report.rates:
        flops, moved = report.rates["flops_per_second"] / 1e9, report.rates["bytes_per_second"] / 2**30
        yield f"floor: ms at {flops:,.0f} Gflop/s of matrix products or {moved:,.1f} GiB/s of copies, measured here"
        yield "over: time as a multiple of the floor; parts are timed alone, rest is what they leave of the whole"
    for found in report.exponents():
        yield (
            f"{found['mixer']}, {found['pass']}: peak memory grows as tokens^{found['peak_bytes']:.2f}, "
            f"time as tokens^{found['seconds']:.2f}"
        )
    place = report.machine
    yield (
        f"{place['cpu']}, {place['cores']} cores, {place['threads']} threads, {place['device']}; "
        f"torch {place['torch']}, python {place['python']}; commit {report.commit}"
    )


def _marked(mixer: str, status: str) -> str:
    return f"{mixer} (declared)" if status.startswith("declared") else mixer


def _shown(value: float | None, unit: float) -> str:
    return "" if value is None else f"{value / unit:,.2f}"
