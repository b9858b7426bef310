"""Streamed rows: those of packed rows, endless, shuffled by a generator of their own, resumed at any moment."""

from __future__ import annotations

import io
import random
from itertools import islice

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from longwave.data import PackedRows, StreamedRows, build_tokenizer, read_corpus, tokenize

TOKENIZER = build_tokenizer("byte", [])
LETTERS = tuple(letter * (index % 9 + 1) for index, letter in enumerate("abcdefghijklmnopqrst"))
DIGITS = tuple(digit * 5 for digit in "0123456789")


def streamed(sources=(LETTERS,), weights=None, length=8, buffer=1, seed=0):
    weights = weights or [1] * len(sources)
    return StreamedRows(sources, weights, TOKENIZER, length, shuffle_buffer=buffer, seed=seed)


def take(rows, count):
    return list(islice(rows, count))


def same(first, second):
    assert len(first) == len(second)
    return all(torch.equal(a[name], b[name]) for a, b in zip(first, second, strict=True) for name in a)


def key(row):
    return tuple(row["labels"].tolist())


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    documents=st.lists(st.text("abc", max_size=20), min_size=1, max_size=8),
    length=st.integers(1, 30),
    epochs=st.integers(1, 3),
)
def test_rows_are_those_of_the_packed_source_repeated(documents, length, epochs):
    packed = PackedRows(tokenize(documents * epochs + ["x" * 40], TOKENIZER), length)
    full = (len(tokenize(documents * epochs, TOKENIZER).ids) - 1) // length
    rows = streamed([documents], length=length)
    assert same(take(rows, full), [packed[index] for index in range(full)])


def test_a_row_is_of_the_kind_of_a_packed_row():
    (row,) = take(streamed(), 1)
    packed = PackedRows(tokenize(LETTERS, TOKENIZER), 8)[0]
    assert {name: (t.dtype, t.shape) for name, t in row.items()} == {n: (t.dtype, t.shape) for n, t in packed.items()}


def test_the_buffer_gives_every_row_once():
    count = 500
    inside = take(streamed(buffer=32), count)
    drawn, ordered = map(key, inside), list(map(key, take(streamed(), count + 32)))
    for row in drawn:
        ordered.remove(row)
    assert len(ordered) == 32


def test_the_buffer_changes_the_order():
    assert list(map(key, take(streamed(buffer=8), 20))) != list(map(key, take(streamed(), 20)))


def test_a_row_waits_for_no_more_rows_than_the_buffer_holds():
    numbered = [f"{index:03}" for index in range(1000)]
    tokens_of_row = [key(row) for row in take(streamed([numbered], length=4), 300)]
    for place, row in enumerate(take(streamed([numbered], length=4, buffer=10), 250)):
        assert tokens_of_row.index(key(row)) < place + 10


def test_the_order_is_that_of_the_seed():
    first, second = (take(streamed(buffer=8, seed=3), 60) for _ in range(2))
    assert same(first, second)
    assert not same(first, take(streamed(buffer=8, seed=4), 60))


def test_epochs_are_shuffled_differently():
    rows = take(streamed([DIGITS], length=6, buffer=10), 60)  # a row for each document
    epochs = [tuple(map(key, rows[index : index + 10])) for index in range(0, 60, 10)]
    assert len(set(epochs)) == 6


def test_iterating_again_begins_again():
    rows = streamed(buffer=4)
    assert same(take(rows, 9), take(rows, 9))


def test_the_global_generators_are_left_alone():
    random.seed(5), np.random.seed(5), torch.manual_seed(5)
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    rows = streamed([LETTERS, DIGITS], buffer=8)
    take(rows, 50)
    rows.state_dict()
    assert before[:2] == (random.getstate(), np.random.get_state()[1].tolist())
    assert torch.equal(before[2], torch.get_rng_state())
    random.seed(6), np.random.seed(6), torch.manual_seed(6)
    assert same(take(streamed(buffer=8), 50), take(streamed(buffer=8), 50))


class TestMix:
    def test_sources_keep_to_their_weights(self):
        rows = take(streamed([LETTERS, DIGITS], [3, 1], length=4, buffer=2), 80)
        digits = [any(TOKENIZER.decode(token).isdigit() for token in row["input_ids"]) for row in rows]
        for count in range(1, 81):
            assert abs(sum(digits[:count]) - count / 4) < 1

    def test_each_source_is_as_if_alone(self):
        rows = take(streamed([LETTERS, DIGITS], [3, 1], length=4, buffer=5), 80)
        letters = [row for row in rows if not any(TOKENIZER.decode(token).isdigit() for token in row["input_ids"])]
        assert same(letters, take(streamed([LETTERS], length=4, buffer=5), 60))


class TestResume:
    @settings(max_examples=60, deadline=None, derandomize=True)
    @given(
        taken=st.integers(0, 120),
        again=st.integers(0, 60),
        length=st.integers(1, 20),
        buffer=st.integers(1, 12),
        weight=st.integers(1, 5),
    )
    def test_rows_go_on_as_if_undisturbed(self, taken, again, length, buffer, weight):
        def make():
            return streamed([LETTERS, DIGITS], [weight, 2], length=length, buffer=buffer, seed=9)

        undisturbed = take(make(), taken + again + 30)
        first = make()
        take(first, taken)
        second = make()
        second.load_state_dict(first.state_dict())
        assert same(take(second, again), undisturbed[taken : taken + again])
        third = make()
        third.load_state_dict(second.state_dict())
        assert same(take(third, 30), undisturbed[taken + again :])

    def test_a_state_can_be_saved_without_code(self):
        rows = streamed(buffer=5)
        take(rows, 33)
        file = io.BytesIO()
        torch.save(rows.state_dict(), file)
        file.seek(0)
        loaded = streamed(buffer=5)
        loaded.load_state_dict(torch.load(file, weights_only=True))
        assert same(take(loaded, 20), take(streamed(buffer=5), 53)[33:])

    def test_a_state_is_not_changed_by_what_follows(self):
        rows = streamed(buffer=5)
        iterator = iter(rows)
        take(iterator, 10)
        state = rows.state_dict()
        expected = take(iterator, 20)
        rows.load_state_dict(state)
        assert same(take(rows, 20), expected)
        assert same(take(rows, 20), expected)

    def test_the_state_before_the_first_row_is_the_beginning(self):
        rows = streamed(buffer=5)
        other = streamed(buffer=5)
        other.load_state_dict(rows.state_dict())
        assert same(take(other, 10), take(rows, 10))

    def test_a_file_is_resumed_too(self, tmp_path):
        (tmp_path / "a.jsonl").write_text("".join(f'{{"text": "{text}"}}\n' for text in LETTERS))
        documents = read_corpus(str(tmp_path / "a.jsonl")).documents
        rows = streamed([documents], buffer=3)
        take(rows, 40)
        again = streamed([documents], buffer=3)
        again.load_state_dict(rows.state_dict())
        assert same(take(again, 20), take(streamed(buffer=3), 60)[40:])

    def test_a_state_of_other_sources_is_refused(self):
        with pytest.raises(ValueError, match="the state is of 1 sources, not of 2"):
            streamed([LETTERS, DIGITS]).load_state_dict(streamed().state_dict())

    def test_a_state_of_other_rows_is_refused(self):
        with pytest.raises(ValueError, match="the state is of rows of 8 tokens, not of 9"):
            streamed(length=9).load_state_dict(streamed(length=8).state_dict())


def test_a_loader_gives_batches_in_order():
    loader = DataLoader(streamed(), batch_size=3)
    batch = next(iter(loader))
    assert same([{name: tensor[i] for name, tensor in batch.items()} for i in range(3)], take(streamed(), 3))


def test_workers_are_refused(monkeypatch):
    monkeypatch.setattr("longwave.data.streaming.get_worker_info", lambda: "a worker's")
    with pytest.raises(ValueError, match="a loader must have num_workers=0"):
        take(streamed(), 1)


def test_a_source_without_text_is_refused():
    with pytest.raises(ValueError, match="source 1 of those that are streamed holds no text"):
        take(streamed([()]), 1)


@pytest.mark.parametrize(("length", "buffer"), [(0, 1), (1, 0)])
def test_sizes_are_at_least_one(length, buffer):
    with pytest.raises(ValueError, match=f"must be at least 1, got {length} and {buffer}"):
        streamed(length=length, buffer=buffer)


def test_each_source_needs_a_weight():
    with pytest.raises(ValueError, match="1 sources, but 2 weights"):
        streamed(weights=[1, 2])
