from __future__ import annotations

import math

import pytest

from longwave.benchmarks import timing
from longwave.benchmarks.timing import interleave, stopwatch


class TestInterleave:
    def test_every_contestant_has_its_turn_in_every_round(self):
        order = []
        measures = {name: lambda name=name: order.append(name) or float(len(order)) for name in ("a", "b", "c")}
        found = interleave(measures, repeats=2)
        assert order == ["a", "b", "c", "a", "b", "c"]
        assert found == {"a": [1.0, 4.0], "b": [2.0, 5.0], "c": [3.0, 6.0]}

    def test_without_a_number_three_rounds_are_the_least(self):
        assert len(interleave({"a": lambda: 0.0}, budget_seconds=0.0)["a"]) == timing.LEAST_REPEATS == 3

    def test_short_runs_are_repeated_more(self):
        assert len(interleave({"a": lambda: 0.0}, budget_seconds=math.inf)["a"]) == timing.MOST_REPEATS

    def test_the_budget_ends_a_row(self, monkeypatch):
        clock = iter(range(1000))
        monkeypatch.setattr(timing.time, "monotonic", lambda: next(clock))
        assert len(interleave({"a": lambda: 0.0}, budget_seconds=10)["a"]) in range(5, 20)

    def test_a_given_number_is_obeyed_whatever_it_takes(self):
        assert len(interleave({"a": lambda: 0.0}, repeats=1, budget_seconds=0.0)["a"]) == 1
        assert len(interleave({"a": lambda: 0.0}, repeats=7, budget_seconds=0.0)["a"]) == 7


def test_a_stopwatch_runs_the_function_once_and_gives_its_seconds(monkeypatch):
    clock = iter([10.0, 12.5])
    monkeypatch.setattr(timing.time, "perf_counter", lambda: next(clock))
    ran = []
    assert stopwatch(lambda: ran.append(1))() == pytest.approx(2.5)
    assert ran == [1]
