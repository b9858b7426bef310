"""Learning rates by step, counted from 1."""

from __future__ import annotations

import json
import math

import pytest

from longwave.training.schedule import learning_rate

CASES = [(3e-4, 12, 60, 1e-5), (6e-4, 5, 20, 1e-5), (4e-4, 1, 10, 1e-6), (1e-3, 0, 7, 0.0), (1e-3, 10, 10, 1e-4)]


def rate(step, base, warmup, total, minimum, schedule="cosine"):
    return learning_rate(step, base=base, minimum=minimum, warmup_steps=warmup, total_steps=total, schedule=schedule)


@pytest.mark.parametrize(("base", "warmup", "total", "minimum"), CASES)
def test_cosine_is_the_published_formula(base, warmup, total, minimum):
    for n in range(1, total + 10):
        if n <= warmup:
            expected = base * n / warmup
        else:
            share = min(1, (n - warmup) / max(1, total - warmup))
            expected = minimum + 0.5 * (base - minimum) * (1 + math.cos(math.pi * share))
        assert rate(n, base, warmup, total, minimum) == pytest.approx(expected, rel=1e-12)


def test_cosine_meets_the_golden_numbers(shared):
    from safetensors import safe_open

    with safe_open(shared / "golden" / "hale" / "lr_schedule.safetensors", "pt") as file:
        for index, case in enumerate(json.loads(file.metadata()["config"])["cases"]):
            place = (case["base_lr"], case["warmup_steps"], case["total_steps"], case["min_lr"])
            found = [rate(n, *place) for n in range(1, case["num_updates"] + 1)]
            assert found == pytest.approx(file.get_tensor(f"out.lr_corrected_used.{index}").tolist(), rel=1e-9)


def test_linear_falls_by_the_same_amount_each_step():
    rates = [rate(n, 1.0, 4, 14, 0.5, "linear") for n in range(4, 15)]
    assert rates == pytest.approx([1.0 - 0.05 * n for n in range(11)])


def test_constant_stays():
    assert {rate(n, 0.1, 3, 10, 0.0, "constant") for n in range(4, 30)} == {0.1}


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant"])
def test_warm_up_grows_by_the_same_amount_to_the_peak(schedule):
    assert [rate(n, 0.8, 4, 20, 0.0, schedule) for n in (1, 2, 3, 4)] == pytest.approx([0.2, 0.4, 0.6, 0.8])


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_decay_never_rises_and_rests_at_the_minimum(schedule):
    rates = [rate(n, 1e-3, 5, 50, 1e-5, schedule) for n in range(5, 80)]
    assert rates == sorted(rates, reverse=True)
    assert rates[45:] == pytest.approx([1e-5] * 30)


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant"])
def test_without_warm_up_the_first_step_is_near_the_peak(schedule):
    assert 0.9 <= rate(1, 1.0, 0, 100, 0.0, schedule) <= 1.0


def test_a_run_shorter_than_its_warm_up_ends_on_the_way_up():
    assert rate(10, 1.0, 50, 10, 0.0) == pytest.approx(0.2)
