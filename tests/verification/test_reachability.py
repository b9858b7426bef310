"""Distances that stacked layers of fixed offsets reach, against sums tried one by one."""

from __future__ import annotations

from itertools import product

import pytest

from longwave.verification import reachability, reachable

DYADIC = sorted({0} | {tau * 2**j for j in range(11) for tau in range(4)})


def by_trying(offsets, layers, num_tokens):
    """Every choice of an offset, or of staying, in each layer."""
    sums = {sum(choice) for choice in product({0, *offsets}, repeat=layers)}
    return sorted(total for total in sums if total < num_tokens)


@pytest.mark.parametrize("offsets", [[0, 1, 2, 4], [3], [2, 7, 7], [0, 40], [0]], ids=str)
@pytest.mark.parametrize("num_tokens", [1, 12, 30])
def test_agrees_with_trying_all_sums(offsets, num_tokens):
    found = reachable(offsets, 4, num_tokens)
    for layers in range(1, 5):
        assert found[layers - 1].nonzero().flatten().tolist() == by_trying(offsets, layers, num_tokens)
    assert reachability(offsets, 4, num_tokens).tolist() == found.sum(dim=1).tolist()


@pytest.mark.parametrize(
    ("offsets", "counts"),
    [
        (DYADIC, [22, 184, 744, 1584, 2016, 2047]),
        ([*range(33), 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536], [44, 424, 1440, 2047, 2047, 2047]),
        ([*range(65), 96, 128, 192, 256, 384, 512, 768, 1024, 1536], [74, 664, 1800, 2047, 2047, 2047]),
    ],
    ids=["lattice", "N", "P"],
)
def test_dwarfs_lists_reach_what_the_table_says(offsets, counts):
    assert reachability(offsets, 6, 2047).tolist() == counts


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (([], 1, 8), "offsets of at least 0"),
        (([0, -1], 1, 8), "offsets of at least 0"),
        (([1], 0, 8), "at least 1, got 0 and 8"),
        (([1], 2, 0), "at least 1, got 2 and 0"),
    ],
)
def test_bad_input_is_refused(arguments, complaint):
    with pytest.raises(ValueError, match=complaint):
        reachability(*arguments)
