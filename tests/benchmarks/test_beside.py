"""The trials beside busy programs."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import psutil
import pytest

from longwave.benchmarks import beside
from longwave.process import SPINS, WAITING


@pytest.mark.parametrize(("arguments", "tuned"), [((), sys.platform.startswith("linux")), (("--untuned",), False)])
def test_a_trial_says_how_much_slower_each_mixer_was_in_a_process_tuned_or_not(arguments, tuned):
    command = (sys.executable, "-m", "longwave.benchmarks.beside", "--trials", "1", "--seconds", "0", "--threads", "1")
    environment = {name: value for name, value in os.environ.items() if name not in WAITING}
    environment["OMP_DISPLAY_ENV"] = "verbose"  # OpenMP says what it read when it was loaded
    done = subprocess.run((*command, *arguments), env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert any("GOMP_SPINCOUNT" in line and f"'{SPINS}'" in line for line in done.stderr.splitlines()) == tuned
    alone, trial, *lines = done.stdout.splitlines()
    assert json.loads(alone)["alone_seconds"].keys() == set(beside.MIXERS)
    assert {"trial": 0, "counting": 1, "multiplying": 0}.items() <= json.loads(trial).items()
    assert [line.split()[0] for line in lines] == list(beside.MIXERS)


def test_the_programs_end_with_the_trial(monkeypatch):
    monkeypatch.setattr(beside, "START_SECONDS", 0.0)
    children = psutil.Process().children
    before = len(children())
    with beside._busy([beside.COUNT, beside.COUNT]):
        assert len(children()) == before + 2
    assert len(children()) == before
