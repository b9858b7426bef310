"""Intervals that hold the truth as often as they say, and ranks that follow from them."""

from __future__ import annotations

import math
import time

import numpy as np
import pytest

from longwave.comparison.statistics import Flip, Interval, difference, flips, rank, student_quantile


def noise(rng: np.random.Generator, num_seeds: int, num_rows: int, seeds: float, rows: float, cells: float = 0.0):
    """Scores of mean 0; ``seeds``, ``rows`` and ``cells`` are the standard errors that each noise gives the mean."""
    return (
        seeds * math.sqrt(num_seeds) * rng.standard_normal((num_seeds, 1))
        + rows * math.sqrt(num_rows) * rng.standard_normal((1, num_rows))
        + cells * math.sqrt(num_seeds * num_rows) * rng.standard_normal((num_seeds, num_rows))
    )


def trained(rng: np.random.Generator, texts: np.ndarray, ratio: float = 1.0) -> np.ndarray:
    """Bits per byte ``[3, R]`` of an arm on rows of difficulty ``texts``: 0.3 % between seeds, 1 % of a row's own."""
    seeds = 1 + 0.003 * rng.standard_normal((3, 1))
    return ratio * texts * seeds * (1 + 0.01 * rng.standard_normal((3, len(texts))))


def levels(*means: float) -> list[np.ndarray]:
    """Scores ``[3, 50]`` with the given means and next to no noise."""
    rng = np.random.default_rng(0)
    return [mean + 1e-4 * rng.standard_normal((3, 50)) for mean in means]


class TestStudentQuantile:
    @pytest.mark.parametrize(
        ("degrees", "value"), [(1, 12.706), (2, 4.303), (3, 3.182), (4, 2.776), (9, 2.262), (30, 2.042), (1000, 1.962)]
    )
    def test_agrees_with_the_printed_table(self, degrees, value):
        assert student_quantile(0.975, degrees) == pytest.approx(value, abs=6e-4)

    def test_other_levels_and_the_lower_half(self):
        np.testing.assert_allclose(student_quantile(np.array([0.01, 0.5, 0.95]), 5), [-3.365, 0, 2.015], atol=6e-4)


class TestCoverage:
    @pytest.mark.parametrize("num_seeds", [2, 3, 5, 10])
    @pytest.mark.parametrize(("seeds", "rows"), [(1.0, 0.1), (0.1, 1.0), (1.0, 1.0)], ids=["seeds", "rows", "alike"])
    def test_the_interval_holds_the_truth(self, num_seeds, seeds, rows):
        rng = np.random.default_rng(num_seeds)
        repeats, held = 400, 0
        for _ in range(repeats):
            scores = noise(rng, num_seeds, 60, seeds, rows, cells=0.1)
            held += difference(scores, np.zeros_like(scores), draws=500).tie
        simulation_error = math.sqrt(0.95 * 0.05 / repeats)
        assert held / repeats > 0.95 - 2.6 * simulation_error

    def test_neighbouring_rows_that_are_alike_do_not_make_it_too_narrow(self):
        rng = np.random.default_rng(0)
        repeats, held = 400, 0
        for _ in range(repeats):
            rows, last = np.empty(480), rng.standard_normal() / math.sqrt(1 - 0.3**2)
            for index in range(480):  # autoregressive, as differences of text rows were measured to be
                rows[index] = last = 0.3 * last + rng.standard_normal()
            scores = rows + 0.01 * rng.standard_normal((3, 1))
            held += difference(scores, np.zeros_like(scores), draws=500).tie
        assert held / repeats > 0.95 - 2.6 * math.sqrt(0.95 * 0.05 / repeats)

    @pytest.mark.parametrize(("num_seeds", "at_most"), [(2, 1.15), (3, 1.1), (10, 1.05)])
    def test_it_is_as_wide_as_students_when_only_seeds_differ(self, num_seeds, at_most):
        scores = noise(np.random.default_rng(1), num_seeds, 60, seeds=1.0, rows=0.1)
        runs = scores.mean(axis=1)
        student = float(student_quantile(0.975, num_seeds - 1)) * runs.std(ddof=1) / math.sqrt(num_seeds)
        found = difference(scores, np.zeros_like(scores))
        assert 0.98 < (found.high - found.low) / (2 * student) < at_most

    def test_a_higher_level_is_wider(self):
        scores = noise(np.random.default_rng(2), 3, 60, seeds=1.0, rows=1.0)
        narrow, wide = (difference(scores, 0 * scores, level=level) for level in (0.9, 0.99))
        assert wide.low < narrow.low < narrow.mean < narrow.high < wide.high


class TestDifference:
    @pytest.mark.parametrize(("ratio", "expected"), [(1.0, "tie"), (0.98, "better")], ids=["A/A", "2 %"])
    def test_equal_arms_tie_and_two_percent_are_found(self, ratio, expected):
        rng = np.random.default_rng(0)
        repeats, right = 400, 0
        for _ in range(repeats):
            texts = 2.2 * (1 + 0.1 * rng.standard_normal(500))
            right += difference(trained(rng, texts, ratio), trained(rng, texts), draws=500).verdict == expected
        simulation_error = math.sqrt(0.95 * 0.05 / repeats)
        assert right / repeats >= 0.95 - simulation_error

    @pytest.mark.parametrize("shared", [(1.0, 0.0), (0.0, 1.0)], ids=["seeds", "rows"])
    def test_what_the_arms_share_cancels(self, shared):
        rng = np.random.default_rng(3)
        common = noise(rng, 3, 100, *shared)
        a, b = (common + mean + noise(rng, 3, 100, 0.001, 0.001) for mean in (0.0, 0.05))
        assert difference(a, b).verdict == "better"
        shuffled = b[[1, 2, 0]][:, rng.permutation(100)]
        assert difference(a, shuffled).verdict == "tie"

    def test_the_other_way_round_is_the_mirror_image(self):
        rng = np.random.default_rng(4)
        a, b = rng.exponential(size=(2, 3, 40))
        there, back = difference(a, b), difference(b, a)
        assert (back.mean, back.low, back.high) == pytest.approx((-there.mean, -there.high, -there.low), rel=1e-12)

    @pytest.mark.parametrize("shape", [(1, 50), (3, 1)])
    def test_one_run_or_one_row_shows_no_noise(self, shape):
        found = difference(np.zeros(shape), np.ones(shape))
        assert found == Interval(-1.0, -math.inf, math.inf)
        assert found.tie

    def test_identical_arms(self):
        scores = np.random.default_rng(5).random((3, 50))
        assert difference(scores, scores) == Interval(0.0, 0.0, 0.0)
        assert difference(scores, scores).verdict == "tie"

    def test_a_constant_difference_is_certain(self):
        right, wrong = np.zeros((3, 20)), np.ones((3, 20))
        assert difference(right, wrong) == Interval(-1.0, -1.0, -1.0)
        assert difference(right, wrong).verdict == "better"
        assert difference(wrong, right).verdict == "worse"

    def test_five_thousand_rows_take_less_than_a_second(self):
        a, b = np.random.default_rng(6).random((2, 5, 5000))
        began_at = time.monotonic()
        difference(a, b)
        assert time.monotonic() - began_at < 1

    @pytest.mark.parametrize("shapes", [((3, 50), (3, 40)), ((3, 50), (2, 50)), ((50,), (50,)), ((0, 50), (0, 50))])
    def test_shapes_that_cannot_be_paired(self, shapes):
        one, other = (np.zeros(shape) for shape in shapes)
        with pytest.raises(ValueError, match=r"two arrays \[seeds, rows\] of one shape, not \[.*\], \[.*\]$"):
            difference(one, other)

    @pytest.mark.parametrize("value", [math.nan, math.inf])
    def test_scores_that_are_not_finite(self, value):
        scores = np.zeros((3, 50))
        broken = scores.copy()
        broken[1, :2] = value
        with pytest.raises(ValueError, match="must be finite: 0 of a and 2 of b, of 150 each, are not"):
            difference(scores, broken)


class TestRank:
    def test_clear_differences(self):
        worst, best, middle = levels(3.0, 1.0, 2.0)
        places = rank({"worst": worst, "best": best, "middle": middle})
        assert [(place.name, place.rank) for place in places] == [("best", 1), ("middle", 2), ("worst", 3)]
        assert [place.mean for place in places] == pytest.approx([1, 2, 3], abs=1e-3)
        assert places[0].difference == Interval(0.0, 0.0, 0.0)
        assert places[2].difference == difference(worst, best)

    def test_ties_that_are_not_transitive(self):
        swing = np.array([[-1.0], [0.0], [1.0]])
        scores = {"a": np.zeros((3, 50)), "b": 0.4 + 0.2 * swing, "c": 0.6 + 0.0 * swing, "d": 0.7 + 0.35 * swing}
        scores = {name: np.broadcast_to(values, (3, 50)) for name, values in scores.items()}
        verdicts = {pair: difference(scores[pair[0]], scores[pair[1]]).verdict for pair in ("ab", "bc", "ac", "ad")}
        assert verdicts == {"ab": "tie", "bc": "tie", "ac": "better", "ad": "tie"}
        assert [(place.name, place.rank) for place in rank(scores)] == [("a", 1), ("b", 1), ("c", 2), ("d", 1)]

    def test_of_one_seed_all_tie(self):
        places = rank({"b": np.ones((1, 50)), "a": np.zeros((1, 50))})
        assert [(place.name, place.rank) for place in places] == [("a", 1), ("b", 1)]

    def test_a_lone_arm_is_checked_too(self):
        assert [place.rank for place in rank({"a": np.ones((3, 50))})] == [1]
        with pytest.raises(ValueError, match="must be finite"):
            rank({"a": np.full((3, 50), np.nan)})

    def test_nothing_to_rank(self):
        assert rank({}) == []


class TestFlips:
    def test_an_order_that_depends_on_the_axis(self):
        low, middle, high = levels(1.0, 2.0, 3.0)
        scores = {
            "parameters": {"hale": low, "softmax": middle, "dwarf": high},
            "seconds": {"softmax": low, "hale": middle, "dwarf": high},
        }
        assert flips(scores) == [Flip("hale", "softmax", better_on="parameters", worse_on="seconds")]

    def test_a_tie_is_no_flip(self):
        low, high = levels(1.0, 2.0)
        assert flips({"parameters": {"a": low, "b": high}, "seconds": {"a": low, "b": low}}) == []

    def test_axes_may_differ_in_arms_rows_and_seeds(self):
        low, high = levels(1.0, 2.0)
        scores = {
            "parameters": {"a": high, "b": low, "c": low},
            "recall": {"a": np.zeros((2, 9)), "b": np.ones((2, 9))},
            "operations": {"c": high},
        }
        assert flips(scores) == [Flip("a", "b", better_on="recall", worse_on="parameters")]
