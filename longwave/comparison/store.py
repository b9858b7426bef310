"""A comparison's directory: runs, certificates and speeds, each under a name made of all that it depends on.

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

from longwave.training import Record, Run
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


class Store:
    """What lies in ``directory``."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def run_file(self, name: str, run: Run) -> Path:
        """The run as a file of its own, ``runs/NAME-HASH.yaml``; its run directory is ``runs/NAME-HASH``."""
        values = run.model_dump(mode="json")
        path = self.directory / "runs" / f"{_slug(name)}-{_hash(values)}.yaml"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            replace_text(path, yaml.safe_dump(values, sort_keys=False, allow_unicode=True))
        return path

    def outcome(self, run_file: Path) -> Outcome | None:
        """What a run came to; ``None`` if it has not ended."""
        directory = run_file.with_suffix("")
        if (directory / "diverged.txt").exists():
            return Outcome(directory, None, None, (directory / "diverged.txt").read_text(encoding="utf-8"))
        if not (directory / "record.json").exists():
            return None
        record = Record(**json.loads((directory / "record.json").read_text(encoding="utf-8")))
        return Outcome(directory, record, np.load(directory / "scored_rows.npy"))

    def diverged(self, run_file: Path, reason: str) -> None:
        """Note that a run stopped because its gradient was not finite."""
        replace_text(run_file.with_suffix("") / "diverged.txt", reason)

    def tidy(self, run_file: Path) -> None:
        """Remove the checkpoints of a run that has ended."""
        for checkpoint in run_file.with_suffix("").glob("checkpoint-*"):
            shutil.rmtree(checkpoint)

    def recall(self, kind: str, key: Any) -> Any:
        """The JSON value noted for ``key``; ``None`` if there is none."""
        path = self._note(kind, key)
        return json.loads(path.read_text(encoding="utf-8"))["value"] if path.exists() else None

    def note(self, kind: str, key: Any, value: Any) -> None:
        """Keep a JSON value for a JSON key."""
        path = self._note(kind, key)
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_text(path, json.dumps({"key": key, "value": value}, indent=1))

    def write_report(self, values: dict[str, Any]) -> Path:
        """Replace ``comparison.json``."""
        path = self.directory / "comparison.json"
        replace_text(path, json.dumps(values, indent=1) + "\n")
        return path

    def _note(self, kind: str, key: Any) -> Path:
        return self.directory / kind / f"{_hash(key)}.json"


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:12]


def _slug(name: str) -> str:
    return re.sub(r"[^\w.-]+", "-", name)
