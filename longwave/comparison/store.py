"""A comparison's directory: runs and speeds, each under a name made of all that it depends on.

So a comparison that is begun again, with more arms, seeds or budgets, finds what it has and does the rest. A name is
a hash of the whole resolved run: what changed is another run, and never mixed up with the old one.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from longwave.training import Data, Record, Run
from longwave.training.callbacks import replace_text


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
        self.directory = directory

    def run_file(self, name: str, run: Run, source: str = "") -> Path:
        """Where the run is a file of its own, ``runs/NAME-HASH.yaml``; its run directory is ``runs/NAME-HASH``.

        Args:
            source: of code that is not the package's and on which the run depends.
        """
        key = [run.model_dump(mode="json"), source] if source else run.model_dump(mode="json")
        return self.directory / "runs" / f"{_slug(name)}-{_hash(key)}.yaml"

    def write_run(self, path: Path, run: Run) -> None:
        """Write a run's file; one that is there with another text is replaced, whoever wrote it."""
        text = yaml.safe_dump(run.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
        if not path.exists() or path.read_bytes() != text.encode():
            path.parent.mkdir(parents=True, exist_ok=True)
            replace_text(path, text)

    def outcome(self, run_file: Path) -> Outcome | None:
        """What a run came to; ``None`` if it has not ended."""
        directory = run_file.with_suffix("")
        if (directory / "diverged.txt").exists():
            return Outcome(directory, None, None, (directory / "diverged.txt").read_text(encoding="utf-8"))
        if not (directory / "record.json").exists():
            return None
        record = Record.read(directory / "record.json")
        rows = np.load(directory / "scored_rows.npy")
        if not np.isfinite(rows).all():
            return Outcome(directory, record, None, "the score is not finite")
        return Outcome(directory, record, rows)

    def diverged(self, run_file: Path, reason: str) -> None:
        """Note that a run stopped because its gradient was not finite."""
        replace_text(run_file.with_suffix("") / "diverged.txt", reason)

    def tidy(self, run_file: Path) -> None:
        """Remove the checkpoints of a run that has ended."""
        for checkpoint in run_file.with_suffix("").glob("checkpoint-*"):
            shutil.rmtree(checkpoint)

    def speed(self, key: Any) -> float | None:
        """Seconds a token that were noted for a JSON key."""
        path = self._speed_file(key)
        return json.loads(path.read_text(encoding="utf-8"))["seconds_per_token"] if path.exists() else None

    def note_speed(self, key: Any, seconds_per_token: float) -> None:
        """Keep seconds a token for a JSON key."""
        path = self._speed_file(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_text(path, json.dumps({"seconds_per_token": seconds_per_token, "of": key}, indent=1))

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
