"""What a comparison found: every run, and a ranking for each budget axis."""

from __future__ import annotations

import shlex
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from longwave.comparison.budget import Size
from longwave.comparison.statistics import Flip, Place, flips, rank
from longwave.comparison.store import Outcome
from longwave.evaluation import finite


@dataclass(frozen=True)
class Trial:
    """A learning rate that was tried, and the loss on the scored rows; infinite if the run diverged."""

    rate: float
    loss: float


@dataclass(frozen=True)
class Entry:
    """An arm under one budget.

    Attributes:
        axis: what was made equal.
        arm: its name.
        size: as solved for.
        tokens: of training, for each seed.
        operations_per_token: of training.
        state_bytes: of one sequence, by the tokens seen.
        trials: rates tried; empty if there was one only.
        rate: the one that was taken.
    """

    axis: str
    arm: str
    size: Size
    tokens: int
    operations_per_token: float
    state_bytes: dict[int, int]
    trials: tuple[Trial, ...]
    rate: float

    @property
    def at_the_edge(self) -> bool:
        """Whether the rate taken is the lowest or the highest of several tried: a better one may lie beyond."""
        tried = [trial.rate for trial in self.trials]
        return len(tried) > 1 and self.rate in (min(tried), max(tried))


@dataclass(frozen=True)
class Cell:
    """One run: an entry from one seed."""

    axis: str
    arm: str
    seed: int
    run_file: Path
    outcome: Outcome

    @property
    def replay(self) -> str:
        """The command that does this run again, elsewhere."""
        return shlex.join(["longwave", "train", str(self.run_file), "--output", f"replay-{self.run_file.stem}"])


@dataclass(frozen=True)
class Report:
    """A whole comparison.

    Attributes:
        measure: what is small in a good model: ``bits per byte`` or ``error rate``.
        certificates: by arm, ``passed`` or why it is invalid.
        entries: arms that were trained, by axis.
        cells: their runs.
        references: of a task, accuracies to hold the others against: ``chance`` and ``oracle``.
        terms: what was asked for.
        machine, commit: where and by which code the report was made; a run's record says it of the run.
    """

    measure: str
    certificates: dict[str, str]
    entries: list[Entry]
    cells: list[Cell]
    references: dict[str, float] = field(default_factory=dict)
    terms: dict[str, Any] = field(default_factory=dict)
    machine: dict[str, Any] = field(default_factory=dict)
    commit: str = ""

    @property
    def axes(self) -> list[str]:
        """Budgets, in the order asked for."""
        return list(dict.fromkeys(entry.axis for entry in self.entries))

    @property
    def invalid(self) -> dict[str, str]:
        """Arms that are not ranked because their mixers are not certified."""
        return {arm: status for arm, status in self.certificates.items() if status != "passed"}

    @property
    def other_commits(self) -> list[str]:
        """Code that trained some of the runs and is not today's."""
        records = [cell.outcome.record for cell in self.cells if cell.outcome.record is not None]
        return sorted({record.versions["commit"] for record in records} - {self.commit})

    @property
    def diverged(self) -> list[Cell]:
        """Runs that stopped before their end; their arms are not ranked on that axis."""
        return [cell for cell in self.cells if cell.outcome.rows is None]

    def cells_of(self, axis: str, arm: str) -> list[Cell]:
        """The runs of one arm under one budget, by seed."""
        return [cell for cell in self.cells if (cell.axis, cell.arm) == (axis, arm)]

    @cached_property
    def scores(self) -> dict[str, dict[str, np.ndarray]]:
        """By axis and arm, `[seeds, rows]`; arms with a diverged run are left out."""
        found: dict[str, dict[str, np.ndarray]] = {axis: {} for axis in self.axes}
        for entry in self.entries:
            rows = [cell.outcome.rows for cell in self.cells_of(entry.axis, entry.arm)]
            if all(part is not None for part in rows):
                found[entry.axis][entry.arm] = np.stack(rows)
        return found

    @cached_property
    def rankings(self) -> dict[str, list[Place]]:
        """By axis, best first."""
        return {axis: rank(scores) for axis, scores in self.scores.items()}

    @cached_property
    def flips(self) -> list[Flip]:
        """Pairs whose order depends on the budget."""
        return flips(self.scores)

    def as_dict(self) -> dict[str, Any]:
        """JSON-able, with every run's full record."""
        return {
            "measure": self.measure,
            "terms": self.terms,
            "certificates": self.certificates,
            "rankings": {axis: [_place(place) for place in places] for axis, places in self.rankings.items()},
            "flips": [flip._asdict() for flip in self.flips],
            "references": self.references,
            "entries": [finite(asdict(entry)) for entry in self.entries],
            "runs": [_cell(cell) for cell in self.cells],
            "machine": self.machine,
            "commit": self.commit,
        }


def _place(place: Place) -> dict[str, Any]:
    verdict = place.difference.verdict
    return finite({**asdict(place), "verdict": verdict})


def _cell(cell: Cell) -> dict[str, Any]:
    record = None if cell.outcome.record is None else asdict(cell.outcome.record)
    return {
        "axis": cell.axis,
        "arm": cell.arm,
        "seed": cell.seed,
        "directory": str(cell.outcome.directory),
        "record": finite(record),
        "diverged": cell.outcome.diverged,
        "replay": cell.replay,
    }
