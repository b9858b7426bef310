"""splitmix64 gives the published numbers, and what is made of them is even."""

from __future__ import annotations

import numpy as np
import pytest

from longwave.data.splitmix import below, seeds_of, smallest, unit, words

PUBLISHED = [
    6457827717110365317,
    3203168211198807973,
    9817491932198370423,
    4593380528125082431,
    16408922859458223821,
]


def of(*numbers):
    return np.array(numbers, dtype=np.uint64)


def test_the_words_of_a_seed_are_the_published_ones():
    assert words(of(1234567, 0), 5)[0].tolist() == PUBLISHED


def test_the_first_words_do_not_depend_on_how_many_there_are():
    assert words(of(1234567), 3)[0].tolist() == PUBLISHED[:3]


def test_a_place_is_folded_number_by_number():
    first = int(words(of(5), 1)[0, 0])
    second = int(words(of((first + 7) % 2**64), 1)[0, 0])
    assert seeds_of(5, 7).tolist() == [second]


def test_places_differ_in_any_number_and_order():
    places = [(0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 1, 2), (0, 1, 3), (0, 3), (0, 0, 3)]
    assert len({int(seeds_of(*place)[0]) for place in places}) == len(places)


def test_an_array_stands_for_many_places():
    rows = np.arange(4)
    assert seeds_of(1, rows, 3).tolist() == [int(seeds_of(1, row, 3)[0]) for row in range(4)]


def test_numbers_are_taken_modulo_two_to_the_64():
    assert seeds_of(2**64 + 3).tolist() == seeds_of(3).tolist()


@pytest.mark.parametrize("limit", [1, 2, 3, 7, 1000, 2**31])
def test_integers_are_below_their_limit_and_reach_both_ends(limit):
    ends = below(of(0, 2**64 - 1), limit)
    assert ends.dtype == np.int64
    assert ends.tolist() == [0, limit - 1]


def test_integers_are_even():
    counts = np.bincount(below(words(of(9), 60_000)[0], 6), minlength=6)
    assert np.abs(counts - 10_000).max() < 5 * np.sqrt(10_000 * 5 / 6)


def test_fractions_are_strictly_between_0_and_1():
    found = unit(of(0, 2**63, 2**64 - 1))
    assert found.tolist() == [2.0**-53, 0.5 + 2.0**-53, 1 - 2.0**-53]


def test_the_smallest_come_first_and_in_order():
    assert smallest(of(5, 1, 9, 3)[None], 3).tolist() == [[1, 3, 0]]
    assert smallest(of(5, 1)[None], 2).tolist() == [[1, 0]]


def test_every_order_of_places_is_as_likely_as_another():
    found = smallest(words(seeds_of(np.arange(24_000)), 4), 3)
    _, counts = np.unique(found @ [16, 4, 1], return_counts=True)
    assert len(counts) == 24
    assert np.abs(counts - 1000).max() < 5 * np.sqrt(1000)
