"""What verbs print: JSON and tables."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of a table.")]


def as_json_text(value: Any) -> str:
    """``value`` as JSON: strict, so that a number that is not finite is ``null``."""
    from longwave.evaluation import finite

    return json.dumps(finite(value), allow_nan=False)


def print_json(value: Any) -> None:
    """One JSON document on standard output."""
    print(as_json_text(value))


def print_records(title: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """A table of records that have the same keys."""
    table = Table(title=title, title_justify="left")
    for column in rows[0]:
        table.add_column(column)
    for row in rows:
        table.add_row(*(str(value) for value in row.values()))
    Console().print(table)
