"""What an import costs: nothing that was not asked for."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

HEAVY = ("transformers", "numba", "matplotlib", "datasets", "accelerate")


def loaded_by(statement: str) -> set[str]:
    """Top-level modules that are loaded after ``statement`` in a fresh interpreter."""
    code = f"{statement}\nimport json, sys\nprint(json.dumps(sorted({{name.split('.')[0] for name in sys.modules}})))"
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    return set(json.loads(output))


def test_the_package_loads_nothing_heavy():
    assert not loaded_by("import longwave") & {*HEAVY, "torch"}


def test_mixers_and_ops_load_no_transformers():
    assert not loaded_by("import longwave.mixers, longwave.ops; longwave.mixers.resolve('softmax')") & set(HEAVY)


def test_the_command_line_loads_nothing_heavy():
    assert not loaded_by("import longwave.cli") & {*HEAVY, "torch"}


@pytest.mark.parametrize("arguments", [["--help"], ["train", "--help"]], ids=" ".join)
def test_help_is_shown_in_under_a_second(arguments):
    command = Path(sys.executable).with_name("longwave")
    if not command.is_file():
        pytest.skip("needs the installed command `longwave`, which is not beside this interpreter")
    seconds = []
    for _ in range(3):
        began_at = time.monotonic()
        shown = subprocess.run([command, *arguments], capture_output=True, text=True, check=True).stdout
        seconds.append(time.monotonic() - began_at)
        assert "Usage" in shown
        if seconds[-1] < 1:
            break
    assert min(seconds) < 1
