"""Comparisons small enough for a test."""

from __future__ import annotations

from pathlib import Path

import pytest

from longwave.comparison import Comparison, compare, read_terms
from tests.training.tiny import write_run

SEEDS = 2


@pytest.fixture
def base(tmp_path) -> Path:
    """A run of ten steps on a small text."""
    return write_run(tmp_path, save_every_steps=3, device="cpu")


@pytest.fixture
def all_pass(monkeypatch):
    """Every certificate passes at once: for tests of what comes after it."""
    monkeypatch.setattr(compare.Comparison, "_certificate", lambda self, arm: "passed")


@pytest.fixture
def race(base, tmp_path, all_pass):
    """Run a comparison of tiny models; give its report."""

    def run(*names, output="compared", overrides=(), **more):
        terms = read_terms(names, overrides, **{"base": str(base), "seeds": SEEDS, **more})
        return Comparison(terms, tmp_path / output).run()

    return run
