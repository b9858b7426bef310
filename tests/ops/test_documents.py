"""Positions in documents, and the ring's canonical form, against Python lists."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from longwave.ops import Ring, document_positions, empty_ring

FEW = settings(max_examples=60, deadline=None, derandomize=True)


@st.composite
def streams(draw):
    """Pieces of a batch of two, each with its starts (or none at all), and the rows seen before."""
    lengths = draw(st.lists(st.integers(1, 9), min_size=1, max_size=5))
    marked = [
        draw(st.none() | st.lists(st.lists(st.booleans(), min_size=n, max_size=n), min_size=2, max_size=2))
        for n in lengths
    ]
    return list(zip(lengths, marked, strict=True))


@FEW
@given(streams(), st.lists(st.integers(0, 20), min_size=2, max_size=2) | st.none())
def test_positions_count_from_the_latest_start(pieces, seen):
    tokens = None if seen is None else torch.tensor(seen)
    counts = [0, 0] if seen is None else list(seen)
    for length, marked in pieces:
        starts = None if marked is None else torch.tensor(marked)
        found = document_positions(2, length, tokens=tokens, starts=starts)
        for b in range(2):
            for t in range(length):
                if marked is not None and marked[b][t]:
                    counts[b] = 0
                assert found[b, t] == counts[b]
                counts[b] += 1
        assert found.dtype == torch.int64
        tokens = torch.tensor(counts)


@FEW
@given(streams(), st.integers(1, 7))
def test_ring_keeps_row_t_in_slot_t_mod_size_and_zeros_elsewhere(pieces, size):
    ring = empty_ring(2, size, (1,), torch.zeros((), dtype=torch.float64))
    documents: list[list[float]] = [[], []]
    label = 0
    for length, marked in pieces:
        new = torch.arange(label + 1, label + 1 + 2 * length, dtype=torch.float64).view(2, length, 1)
        label += 2 * length
        starts = None if marked is None else torch.tensor(marked)
        positions = document_positions(2, length, tokens=ring.tokens, starts=starts)
        ring = ring.extended(new, positions)
        for b in range(2):
            for t in range(length):
                if marked is not None and marked[b][t]:
                    documents[b] = []
                documents[b].append(float(new[b, t, 0]))
            slots = [0.0] * size
            for t, row in enumerate(documents[b]):
                slots[t % size] = row
            assert ring.rows[b, :, 0].tolist() == slots
            assert int(ring.tokens[b]) == len(documents[b])


@FEW
@given(st.integers(1, 7), st.integers(0, 20))
def test_the_last_rows_come_oldest_first_behind_zeros(size, seen):
    ring = empty_ring(1, size, (1,), torch.zeros(()))
    if seen:
        ring = ring.extended(torch.arange(1.0, seen + 1)[None, :, None], torch.arange(seen)[None])
    expected = ([0.0] * size + [float(t + 1) for t in range(seen)])[-size:]
    for count in range(1, size + 1):
        assert ring.last(count)[0, :, 0].tolist() == expected[-count:]
    assert ring.last(0).shape == (1, 0, 1)


def test_extending_a_ring_leaves_the_old_one_alone():
    ring = Ring(torch.arange(1.0, 5.0).view(1, 4, 1), torch.tensor([4]))
    before = ring.rows.clone()
    ring.extended(torch.full((1, 2, 1), 9.0), torch.tensor([[4, 5]]))
    assert torch.equal(ring.rows, before)
