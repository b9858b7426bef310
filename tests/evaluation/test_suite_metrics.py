"""The numbers of the suite's protocols are what their definitions say."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from longwave.evaluation.distributions import entropy_bits, inverse_simpson, nucleus, top_mass
from longwave.evaluation.loss_by_position import band_excess, bucket_means, smooth
from longwave.evaluation.text_metrics import distinct, edit_distance, first_word, repetition_rate


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [("kitten", "sitting", 3), ("", "abc", 3), ("abc", "", 3), ("abc", "abc", 0), ("flaw", "lawn", 2)],
)
def test_edit_distance(a, b, expected):
    assert edit_distance(a, b) == edit_distance(b, a) == expected


@pytest.mark.parametrize(
    ("text", "word"), [("  QWRT. next", "QWRT"), ("\n", ""), ("", ""), ("847,", "847"), ("...", ""), ("a.b!", "a.b")]
)
def test_first_word(text, word):
    assert first_word(text) == word


def test_repetition_by_hand():
    words = ["a", "b", "a", "b", "a", "b"]  # five pairs of two kinds; aba, bab, aba, bab
    assert distinct(words, 2) == pytest.approx(2 / 5)
    assert repetition_rate(words, 3) == pytest.approx(2 / 4)
    assert (repetition_rate(words[:3], 4), distinct(words[:3], 4)) == (0, 0)


def test_entropy_and_effective_vocabulary_of_a_uniform_distribution_and_of_a_sure_one():
    uniform, sure = torch.full((8,), 1 / 8).double(), torch.eye(8).double()[0]
    assert float(entropy_bits(uniform)) == pytest.approx(3)
    assert float(inverse_simpson(uniform)) == pytest.approx(8)
    assert (float(entropy_bits(sure)), float(inverse_simpson(sure)), float(top_mass(sure, 5))) == (0, 1, 1)
    published = -(uniform * (uniform + 1e-10).log2()).sum()
    assert float(entropy_bits(uniform, epsilon=1e-10)) == pytest.approx(float(published), abs=1e-15)


@pytest.mark.parametrize(("top_p", "kept"), [(0.0, 1), (0.49, 1), (0.5, 2), (0.74, 2), (0.75, 3), (1.0, 4)])
def test_the_nucleus_ends_where_what_came_before_exceeds_it(top_p, kept):
    probabilities = torch.tensor([0.125, 0.5, 0.125, 0.25], dtype=torch.float64)
    found = nucleus(probabilities, top_p)
    assert int((found > 0).sum()) == kept
    assert float(found.sum()) == pytest.approx(1)
    largest = probabilities.sort(descending=True).values[:kept]
    assert float(found[1]) == pytest.approx(float(0.5 / largest.sum()))


def test_buckets_end_with_the_row_and_go_on_beyond_the_last_edge():
    losses = np.arange(10.0)
    assert bucket_means(losses, (0, 2, 6, 20)) == {"0-1": 0.5, "2-5": 3.5, "6-9": 7.5}
    assert bucket_means(losses, (0, 4)) == {"0-3": 1.5, "4-9": 6.5}
    assert bucket_means(np.stack([losses, losses + 2]), (0, 4)) == {"0-3": 2.5, "4-9": 7.5}


def test_smoothing_leaves_a_constant_alone_and_averages_sixteen():
    assert smooth(np.full(20, 3.0)) == pytest.approx(np.full(20, 3.0))
    losses = np.arange(40.0)
    assert smooth(losses)[20] == pytest.approx(losses[12:28].mean())
    assert len(smooth(losses)) == 40
    with pytest.raises(ValueError, match="needs at least 8 positions, got 7"):
        smooth(np.zeros(7))


def test_a_band_is_measured_against_both_neighbours_and_left_out_at_the_ends():
    losses = np.ones(100)
    losses[40:50] = 1.5
    losses[24:40] = 1.2
    excess = band_excess(losses, [(10, 20), (40, 50), (90, 100)])
    assert excess == {"40-50": pytest.approx(0.4)}
    assert math.isclose(band_excess(losses, [(50, 60)])["50-60"], 1 - ((1.5 * 10 + 1.2 * 6) / 16 + 1) / 2)
