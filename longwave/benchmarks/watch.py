"""How a benchmark tells what it is doing while it runs: on standard error, so that the findings have the other."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from rich.console import Console
from rich.progress import Progress


@dataclass(frozen=True)
class Watch:
    """``say`` is given lines; ``advance`` what is measured now, the measurements done, and those in all."""

    say: Callable[[str], None] = lambda line: None
    advance: Callable[[str, int, int], None] = lambda title, done, total: None


@contextmanager
def watch_on_terminal() -> Iterator[Watch]:
    """Lines, and below them, on a terminal, a bar that disappears when the block ends."""
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("begin", total=1)

        def say(line: str) -> None:
            console.print(line, soft_wrap=True, highlight=False, markup=False)

        def advance(title: str, done: int, total: int) -> None:
            bar.update(task, description=title, completed=done, total=total)

        yield Watch(say, advance)
