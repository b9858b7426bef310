"""The trials beside busy programs."""

from __future__ import annotations

import json
import subprocess
import sys

import psutil

from longwave.benchmarks import beside


def test_a_trial_says_what_ran_and_how_much_slower_each_mixer_was():
    command = (sys.executable, "-m", "longwave.benchmarks.beside", "--trials", "1", "--seconds", "0", "--threads", "1")
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
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
