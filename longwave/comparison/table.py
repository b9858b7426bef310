"""A comparison in a terminal."""

from __future__ import annotations

import math
from statistics import fmean

from rich.console import Console
from rich.table import Table

from longwave.benchmarks.table import print_whole
from longwave.comparison.report import Entry, Report
from longwave.comparison.statistics import Interval, Place

KIB = 2**10
#: Values of a score that have a column, and its head.
SHOWN = {"bits_per_byte": "bits/byte", "accuracy": "right"}


def print_comparison(console: Console, report: Report) -> None:
    """A ranking for each budget, then what is not ranked, what flips, and how to do a run again."""
    for axis in report.axes:
        print_whole(console, _ranking(report, axis))
    for line in _notes(report):
        console.print(line, soft_wrap=True, highlight=False, markup=False)


def _ranking(report: Report, axis: str) -> Table:
    places = report.rankings[axis]
    seeds = len({cell.seed for cell in report.cells})
    table = Table(title=f"Equal {axis}, {_count(seeds, 'seed')}", title_justify="left", box=None, padding=(0, 1, 0, 0))
    entries = {entry.arm: entry for entry in report.entries if entry.axis == axis}
    rows = [_row(report, entries[place.name], place) for place in places]
    for head in rows[0] if rows else ():
        table.add_column(head, justify="left" if head == "arm" else "right", no_wrap=True)
    for place, row, before in zip(places, rows, [None, *places], strict=False):
        if before is not None and place.rank != before.rank:
            table.add_row()
        table.add_row(*row.values())
    return table


def _row(report: Report, entry: Entry, place: Place) -> dict[str, str]:
    """A line of the table, by head; columns that would say the same of every arm are left out."""
    records = [cell.outcome.record for cell in report.cells_of(entry.axis, entry.arm)]
    whole = [record for record in records if record is not None]
    scores = {name: fmean(record.scores[name] for record in whole) for name in whole[0].scores if name in SHOWN}
    sizes = {name: fmean(record.scores[name] for record in whole) for name in whole[0].scores if "@" in name}
    seconds = fmean(record.seconds for record in whole)
    row = {"": str(place.rank), "arm": entry.arm}
    row |= {SHOWN[name]: f"{value:.4f}" for name, value in scores.items()}
    row["behind the best"] = _interval(place)
    row |= {f"@{name.partition('@')[2]}": f"{value:.2f}" for name, value in sizes.items()}
    if entry.axis in ("operations", "seconds"):
        row["tokens"] = f"{entry.tokens / 1e6:.2f}M"
    if entry.trials:
        row["rate"] = f"{entry.rate:g}{'*' if entry.at_the_edge else ''}"
    if entry.axis == "seconds":
        row["s"] = f"{seconds:,.0f}"
    row["tok/s"] = f"{fmean(record.tokens for record in whole) / seconds:,.0f}"
    row["KiB"] = f"{next(iter(entry.state_bytes.values())) / KIB:,.0f}"
    return row


def _interval(place: Place) -> str:
    found: Interval = place.difference
    if found.mean == found.low == found.high == 0:
        return ""
    if not math.isfinite(found.low):
        return f"{found.mean:.3f} [unknown]"
    return f"{found.mean:.3f} [{found.low:.3f}, {found.high:.3f}]"


def _notes(report: Report) -> list[str]:
    lines = []
    if report.references:
        lines.append("accuracy of " + ", ".join(f"{name} {value:.4f}" for name, value in report.references.items()))
    lines += [f"INVALID, not ranked: {arm}: {status}" for arm, status in report.invalid.items()]
    lines += [
        f"diverged, {cell.arm} not ranked at equal {cell.axis}: seed {cell.seed}: {cell.outcome.diverged}"
        for cell in report.diverged
    ]
    lines += [
        f"the order depends on the budget: {flip.first} is better than {flip.second} at equal {flip.better_on}, "
        f"worse at equal {flip.worse_on}"
        for flip in report.flips
    ]
    if report.other_commits:
        lines.append(f"some runs were trained by other code than {report.commit}: {', '.join(report.other_commits)}")
    if any(entry.at_the_edge for entry in report.entries):
        lines.append("* the lowest or the highest rate tried: a better one may lie beyond")
    if report.cells:
        lines.append("arms of one rank tie: the 95 % interval of their difference, paired by seed and row, holds 0")
        lines.append(f"KiB: state of one sequence after {next(iter(report.entries[0].state_bytes))} tokens")
        lines.append(f"any run again: {report.cells[0].replay}")
    return lines


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}{'' if number == 1 else 's'}"
