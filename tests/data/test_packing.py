"""Packed rows: every token but the first is predicted once, and documents keep their starts."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from longwave.data import PackedRows, TokenStream, build_tokenizer, tokenize
from longwave.data.packing import DocumentStarts

TOKENIZER = build_tokenizer("byte", [])


def stream(num_tokens):
    """Tokens that tell their place."""
    starts = np.zeros(num_tokens, dtype=bool)
    starts[::7] = True
    return TokenStream(np.arange(num_tokens, dtype=np.int32), starts, num_bytes=num_tokens)


def rows_of(num_tokens, sequence_length):
    rows = PackedRows(stream(num_tokens), sequence_length)
    return [rows[index] for index in range(len(rows))]


SIZES = given(num_tokens=st.integers(2, 60), sequence_length=st.integers(2, 70))


@settings(max_examples=80, deadline=None, derandomize=True)
@SIZES
def test_every_token_but_the_first_is_a_target_once(num_tokens, sequence_length):
    targets = torch.cat([row["labels"][1:] for row in rows_of(num_tokens, sequence_length)])
    assert targets[targets != -100].tolist() == list(range(1, num_tokens))


@settings(max_examples=80, deadline=None, derandomize=True)
@SIZES
def test_a_target_follows_its_predecessor(num_tokens, sequence_length):
    for row in rows_of(num_tokens, sequence_length):
        before, after = row["input_ids"], row["labels"][1:]
        assert (after[after != -100] == before[after != -100] + 1).all()


@settings(max_examples=80, deadline=None, derandomize=True)
@SIZES
def test_rows_are_full_but_the_last_which_is_filled_with_no_label(num_tokens, sequence_length):
    *full, last = rows_of(num_tokens, sequence_length)
    for row in full:
        assert (row["labels"] != -100).all()
        assert (row["labels"][:-1] == row["input_ids"]).all()
    real = int((last["labels"] != -100).sum())
    assert real >= 2
    assert not last["starts"][real:].any()
    for row in (*full, last):
        sizes = {name: len(tensor) for name, tensor in row.items()}
        assert sizes == {"input_ids": sequence_length, "labels": sequence_length + 1, "starts": sequence_length}


@settings(max_examples=80, deadline=None, derandomize=True)
@SIZES
def test_starts_are_the_first_tokens_of_documents(num_tokens, sequence_length):
    for row in rows_of(num_tokens, sequence_length):
        real = row["labels"][:-1] != -100
        assert torch.equal(row["starts"][real], row["labels"][:-1][real] % 7 == 0)


def test_rows_are_ids_labels_and_starts():
    row = rows_of(10, 5)[0]
    kinds = {name: tensor.dtype for name, tensor in row.items()}
    assert kinds == {"input_ids": torch.int64, "labels": torch.int64, "starts": torch.bool}


def test_a_row_may_be_written_to_without_changing_the_data():
    rows = PackedRows(stream(20), 5)
    for tensor in rows[0].values():
        tensor.zero_()
    assert rows[0]["input_ids"].tolist() == [0, 1, 2, 3, 4]
    assert rows[0]["starts"].tolist() == [True, False, False, False, False]


def test_each_document_stands_behind_its_end_of_text():
    tokens = tokenize(["ab", "", "c"], TOKENIZER)
    a, b, c = (TOKENIZER(letter, add_special_tokens=False)["input_ids"][0] for letter in "abc")
    assert tokens.ids.tolist() == [0, a, b, 0, 0, c]
    assert tokens.starts.tolist() == [True, False, False, True, True, False]


def test_bytes_of_a_stream_are_those_of_the_text():
    assert tokenize(["aé", "漢"], TOKENIZER).num_bytes == 6


def test_many_documents_stay_in_order():
    documents = [f"{index} " for index in range(600)]
    tokens = tokenize(iter(documents), TOKENIZER)
    assert TOKENIZER.decode(tokens.ids[tokens.ids != 0]) == "".join(documents)
    assert int(tokens.starts.sum()) == 600


def test_long_documents_stay_in_order(monkeypatch):
    monkeypatch.setattr("longwave.data.packing.BATCH_OF_CHARACTERS", 10)
    documents = [f"{index} " * index for index in range(20)]
    assert TOKENIZER.decode(tokenize(documents, TOKENIZER).ids).split("<|endoftext|>")[1:] == documents


def test_text_that_spells_the_end_of_a_document_ends_none():
    assert tokenize(["a<|endoftext|>b"], TOKENIZER).ids.tolist().count(0) == 1


def test_the_rows_come_to_an_end():
    assert len(list(PackedRows(stream(10), 4))) == 3


@settings(max_examples=80, deadline=None, derandomize=True)
@given(
    starts=st.lists(st.booleans(), min_size=1, max_size=30),
    begin=st.integers(0, 35),
    length=st.integers(0, 35),
)
def test_starts_by_offset_are_those_by_token(starts, begin, length):
    starts = np.array(starts)
    lazy = DocumentStarts(np.flatnonzero(starts).astype(np.uint64), len(starts))
    assert lazy[begin : begin + length].tolist() == starts[begin : begin + length].tolist()
    assert np.array_equal(np.asarray(lazy), starts)
    assert len(lazy) == len(starts)


def test_a_row_needs_a_token():
    with pytest.raises(ValueError, match="sequence_length must be at least 1, got 0"):
        PackedRows(stream(10), 0)


def test_data_needs_two_tokens():
    with pytest.raises(ValueError, match="the data: holds less than two tokens"):
        PackedRows(stream(1), 8)
