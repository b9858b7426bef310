"""Mixed rows keep to their weights at every row, and leave no row of a source out."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from longwave.data import MixedRows, PackedRows, TokenStream
from longwave.data.mixing import next_source, shares_of


def rows(num_rows, first=0):
    """Rows of four tokens that tell their source and place."""
    ids = np.arange(first, first + 4 * num_rows + 1, dtype=np.int32)
    return PackedRows(TokenStream(ids, np.zeros(len(ids), dtype=bool), len(ids)), 4)


def places(mixed):
    return [mixed.place(index) for index in range(len(mixed))]


WEIGHTS = st.lists(st.integers(1, 40), min_size=1, max_size=6)
MIXES = given(weights=WEIGHTS, sizes=st.lists(st.integers(1, 20), min_size=6, max_size=6))
lawful = settings(max_examples=60, deadline=None, derandomize=True)


@lawful
@given(weights=WEIGHTS)
def test_after_every_row_each_source_is_within_one_row_of_its_weight(weights):
    counts = [0] * len(weights)
    for turn in range(1, 2 * sum(weights) + 2):
        counts[next_source(weights, counts)] += 1
        for count, weight in zip(counts, weights, strict=True):
            assert abs(count * sum(weights) - turn * weight) < sum(weights)


@lawful
@MIXES
def test_mixed_rows_take_turns_by_weight(weights, sizes):
    mixed = MixedRows([rows(size) for size in sizes[: len(weights)]], weights)
    counts = [0] * len(weights)
    for source, _ in places(mixed):
        assert source == next_source(mixed.shares, counts)
        counts[source] += 1


@lawful
@MIXES
def test_each_source_is_read_in_order_again_and_again(weights, sizes):
    mixed = MixedRows([rows(size) for size in sizes[: len(weights)]], weights)
    for source in range(len(weights)):
        found = [row for place, row in places(mixed) if place == source]
        assert found == [index % sizes[source] for index in range(len(found))]


@lawful
@MIXES
def test_the_length_is_the_rows_that_every_source_needs_to_be_read_whole(weights, sizes):
    sizes = sizes[: len(weights)]
    mixed = MixedRows([rows(size) for size in sizes], weights)
    assert set(places(mixed)) == {(source, row) for source, size in enumerate(sizes) for row in range(size)}
    assert len(mixed) == max(
        math.ceil(size * sum(weights) / weight) for size, weight in zip(sizes, weights, strict=True)
    )


def test_a_row_is_its_source_s_own():
    sources = [rows(5), rows(3, first=1000)]
    mixed = MixedRows(sources, [0.75, 0.25])
    for index, row in enumerate(mixed):
        source, place = mixed.place(index)
        assert all(torch.equal(row[name], sources[source][place][name]) for name in row)
    assert index == len(mixed) - 1


def test_weights_are_proportions():
    assert shares_of([0.7, 0.2, 0.1]) == shares_of([7, 2, 1]) == shares_of([70.0, 20, 10]) == [7, 2, 1]


def test_weights_of_many_digits_need_no_more_turns_than_rows():
    mixed = MixedRows([rows(10), rows(10)], [0.3333333333, 0.6666666667])
    assert len(places(mixed)) == 31


@pytest.mark.parametrize("weights", [[], [0.0], [1, -1], [math.nan], [math.inf, 1]], ids=str)
def test_weights_that_are_not_positive_are_refused(weights):
    with pytest.raises(ValueError, match=r"(weights must be positive and finite, got|at least one source)"):
        MixedRows([rows(2)] * len(weights), weights)


def test_each_source_needs_a_weight():
    with pytest.raises(ValueError, match="2 sources, but 1 weights"):
        MixedRows([rows(2), rows(2)], [1])
