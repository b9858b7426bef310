"""A comparison's directory: runs and speeds, each under a name made of all that it depends on.

So a comparison that is begun again, with more arms, seeds or budgets, finds what it has and does the rest. A name is
a hash of the whole resolved run: what changed is another run, and never mixed up with the old one.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from longwave.data.sealed import read_sealed, replace_text, write_sealed
from longwave.training import Data, Record, Run
from longwave.training.records import RECORD, dump, run_sha256

DIVERGED = "diverged.json"


@dataclass(frozen=True)
class Outcome:
    """A finished run: its record and the numbers of its scored rows, or why it stopped."""

    directory: Path
    record: Record | None
    rows: np.ndarray | None
    diverged: str | None = None

    @property
    def loss(self) -> float:
        """Mean of the rows; infinite if the run diverged."""
        return float("inf") if self.rows is None else float(self.rows.mean())

    def check(self, data: Data) -> None:
        """See that the run was trained and scored on ``data``.

        Raises:
            ValueError: it was not.
        """
        found = self.record and (self.record.data_sha256, self.record.scored_sha256)
        if found is not None and found != (data.sha256, data.scored_sha256):
            raise ValueError(f"{self.directory} was trained on other data than there is now; choose another --output")


class Store:
    """What lies in ``directory``."""

    def __init__(self, directory: Path) -> None:
        self.directory, self.runs = directory, directory / "runs"

    def run_file(self, name: str, run: Run, source: str = "") -> Path:
        """Where the run is a file of its own, ``runs/NAME-HASH.yaml``; its run directory is ``runs/NAME-HASH``.

        Args:
            source: of code that is not the package's and on which the run depends.
        """
        key = [run.model_dump(mode="json"), source] if source else run.model_dump(mode="json")
        return self.runs / f"{_slug(name)}-{_hash(key)}.yaml"

    @contextmanager
    def written(self, path: Path, run: Run) -> Iterator[None]:
        """Have a run's file in its place; it is removed again if the run is refused before it has begun."""
        replace_text(path, dump(run))
        try:
            yield
        finally:
            if not path.with_suffix("").exists():
                path.unlink()

    def outcome(self, run_file: Path, run: Run) -> Outcome | None:
        """What a run came to; ``None`` if it has not ended.

        Raises:
            ValueError: what is there is not as it was when the run ended.
        """
        directory = run_file.with_suffix("")
        if (directory / DIVERGED).exists():
            found = read_sealed(directory / DIVERGED)
            if found.get("run_sha256") != run_sha256(run):
                raise ValueError(f"{directory / DIVERGED}: belongs to another run; remove it to train this one")
            return Outcome(directory, None, None, found["reason"])
        if not (directory / RECORD).exists():
            return None
        return Outcome(directory, Record.read(directory, run), np.load(directory / "scored_rows.npy"))

    def diverged(self, run_file: Path, run: Run, reason: str) -> None:
        """Note that a run stopped because its gradient or score was not finite."""
        directory = run_file.with_suffix("")
        directory.mkdir(exist_ok=True)
        write_sealed(directory / DIVERGED, {"reason": reason, "run_sha256": run_sha256(run)})

    def tidy(self, run_file: Path) -> None:
        """Remove the checkpoints of a run that has ended."""
        for checkpoint in run_file.with_suffix("").glob("checkpoint-*"):
            shutil.rmtree(checkpoint)

    def speed(self, key: Any) -> float | None:
        """Seconds a token that were noted for a JSON key.

        Raises:
            ValueError: the note is damaged: another measurement would be another budget.
        """
        path = self._speed_file(key)
        try:
            found = read_sealed(path)
            if _hash(found["of"]) != _hash(key):
                raise ValueError(f"{path}: is of other models")
            return found["seconds_per_token"]
        except FileNotFoundError:
            return None
        except (ValueError, KeyError) as error:
            raise ValueError(f"{error}; remove it to measure again, which changes budgets of seconds") from None

    def note_speed(self, key: Any, seconds_per_token: float) -> None:
        """Keep seconds a token for a JSON key."""
        path = self._speed_file(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_sealed(path, {"seconds_per_token": seconds_per_token, "of": key})

    def write_report(self, values: dict[str, Any]) -> Path:
        """Replace ``comparison.json``."""
        path = self.directory / "comparison.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_text(path, json.dumps(values, indent=1, allow_nan=False) + "\n")
        return path

    def _speed_file(self, key: Any) -> Path:
        return self.directory / "speeds" / f"{_hash(key)}.json"


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:12]


def _slug(name: str) -> str:
    return re.sub(r"[^\w.-]+", "-", name)
