"""Which code produced a number."""

from __future__ import annotations

import subprocess
from importlib.metadata import version
from pathlib import Path


def commit() -> str:
    """Commit of the source checkout, ``-dirty`` where files differ from it; an installed package's version."""
    root = Path(__file__).parents[2]
    if (root / ".git").exists():
        command = ["git", "-C", str(root), "describe", "--always", "--dirty"]
        found = subprocess.run(command, capture_output=True, text=True).stdout.strip()
        if found:
            return found
    return version("longwave")
