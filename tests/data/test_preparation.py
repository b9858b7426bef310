"""From the data section of a run file to rows and a validation text."""

from __future__ import annotations

import json
from itertools import islice

import numpy as np
import pytest
from pydantic import ValidationError

from longwave.data import (
    Corpus,
    DataSection,
    MixedRows,
    PackedRows,
    StreamedRows,
    build_tokenizer,
    prepare_data,
    tokenize,
)

LETTERS = [f"letter {chr(97 + index % 26)} " * 3 for index in range(60)]
DIGITS = [f"{index} {index} {index}. " for index in range(45)]
BYTE = build_tokenizer("byte", [])


@pytest.fixture
def prepare(tmp_path):
    """Prepares data as settings say, with tokens stored in ``tmp_path``."""

    def of(kind="byte", **settings):
        settings = {"sequence_length": 16, "cache": str(tmp_path / "cache"), **settings}
        return prepare_data(DataSection(**settings), kind, seed=3)

    return of


@pytest.fixture
def source(tmp_path):
    def of(name, documents):
        path = tmp_path / name
        path.write_text("".join(json.dumps({"text": text}) + "\n" for text in documents))
        return str(path)

    return of


def parts(documents):
    return [text for index, text in enumerate(documents) if index % 20], documents[::20]


def test_every_twentieth_document_is_set_aside(prepare, source):
    data = prepare(train=source("a.jsonl", LETTERS))
    train, valid = parts(LETTERS)
    assert isinstance(data.train, PackedRows)
    assert np.array_equal(data.train.stream.ids, tokenize(train, BYTE).ids)
    assert np.array_equal(data.valid.ids, tokenize(valid, BYTE).ids)


def test_the_last_twentieth_of_a_lone_document_is_set_aside(prepare, tmp_path):
    text = "".join(f"line {index}\n" for index in range(400))
    (tmp_path / "a.txt").write_text(text)
    data = prepare(train=str(tmp_path / "a.txt"))
    assert BYTE.decode([*data.train.stream.ids[1:], *data.valid.ids[1:]]) == text
    assert len(data.valid.ids) < len(text) / 15


def test_a_validation_text_leaves_the_training_text_whole(prepare, source):
    data = prepare(train=source("a.jsonl", LETTERS), validation=source("b.jsonl", DIGITS))
    assert np.array_equal(data.train.stream.ids, tokenize(LETTERS, BYTE).ids)
    assert np.array_equal(data.valid.ids, tokenize(DIGITS, BYTE).ids)


def test_the_hash_is_of_the_training_documents(prepare, source):
    expected = Corpus("any", parts(LETTERS)[0]).contents().sha256
    assert prepare(train=source("a.jsonl", LETTERS)).sha256 == expected
    assert prepare(train=source("b.jsonl", LETTERS), streaming=True).sha256 == expected


@pytest.mark.parametrize("kind", ["char", "word", "bpe:300"])
def test_a_tokenizer_learns_from_the_training_text_alone(prepare, source, kind):
    train, valid = source("a.jsonl", LETTERS), source("b.jsonl", DIGITS)
    data = prepare(kind, train=train, validation=valid)
    assert data.tokenizer.get_vocab() == build_tokenizer(kind, LETTERS).get_vocab()


def test_a_tokenizer_learns_from_the_beginning_of_a_long_text(prepare, source, monkeypatch):
    monkeypatch.setattr("longwave.data.preparation.SAMPLE_CHARACTERS", 100)
    data = prepare("char", train=source("a.jsonl", ["ab" * 200, "c" * 100]), validation=source("b.jsonl", LETTERS))
    assert len(data.tokenizer) == 2 + 2


def test_the_field_of_the_text_can_be_named(prepare, tmp_path):
    (tmp_path / "a.jsonl").write_text("".join(f'{{"body": "{index} text"}}\n' for index in range(40)))
    assert len(prepare(train=str(tmp_path / "a.jsonl"), text_field="body").valid.ids) > 2


class TestMix:
    @pytest.fixture
    def mix(self, source):
        return [
            {"source": source("letters.jsonl", LETTERS), "weight": 3},
            {"source": source("digits.jsonl", DIGITS), "weight": 1},
        ]

    def test_rows_are_of_all_sources_by_weight(self, prepare, mix):
        data = prepare(train=mix)
        assert isinstance(data.train, MixedRows)
        assert data.train.shares == [3, 1]
        for rows, documents in zip(data.train.sources, (LETTERS, DIGITS), strict=True):
            assert np.array_equal(rows.stream.ids, tokenize(parts(documents)[0], BYTE).ids)

    def test_validation_is_of_all_sources(self, prepare, mix):
        valid = [*parts(LETTERS)[1], *parts(DIGITS)[1]]
        assert np.array_equal(prepare(train=mix).valid.ids, tokenize(valid, BYTE).ids)

    def test_a_tokenizer_learns_from_all_sources(self, prepare, mix):
        vocabulary = prepare("char", train=mix).tokenizer.get_vocab()
        assert {"a", "9"} <= vocabulary.keys()

    def test_the_hash_tells_the_sources_apart(self, prepare, mix):
        assert prepare(train=mix).sha256 == prepare(train=mix).sha256
        assert len({prepare(train=train).sha256 for train in (mix, mix[::-1], mix[:1], mix[1:])}) == 4

    def test_a_mix_of_one_is_its_source(self, prepare, mix):
        data = prepare(train=mix[:1])
        assert isinstance(data.train, PackedRows)
        assert data.sha256 == prepare(train=mix[0]["source"]).sha256

    def test_a_streamed_mix_has_the_same_sources(self, prepare, mix):
        data = prepare(train=mix, streaming=True, shuffle_buffer=4)
        assert isinstance(data.train, StreamedRows)
        assert data.train.shares == [3, 1]
        assert [list(documents) for documents in data.train.sources] == [parts(LETTERS)[0], parts(DIGITS)[0]]


class TestStreaming:
    def test_rows_are_those_of_the_stored_text(self, prepare, source):
        train = source("a.jsonl", LETTERS)
        streamed, stored = prepare(train=train, streaming=True, shuffle_buffer=1), prepare(train=train)
        for row, expected in zip(islice(streamed.train, len(stored.train) - 1), stored.train, strict=False):
            assert row["labels"].tolist() == expected["labels"].tolist()
        assert np.array_equal(streamed.valid.ids, stored.valid.ids)

    def test_the_training_text_is_not_stored(self, prepare, source, tmp_path):
        prepare(train=source("a.jsonl", LETTERS), streaming=True)
        abouts = [json.loads(path.read_text()) for path in (tmp_path / "cache").glob("*/about.json")]
        assert [about["name"] for about in abouts] == [str(tmp_path / "a.jsonl") + " (validation)"]

    def test_validation_is_of_the_beginning_of_a_long_text(self, prepare, source, monkeypatch):
        monkeypatch.setattr("longwave.data.preparation.SAMPLE_CHARACTERS", sum(map(len, LETTERS[:20])) + 1)
        data = prepare(train=source("a.jsonl", LETTERS), streaming=True)
        assert np.array_equal(data.valid.ids, tokenize([LETTERS[0], LETTERS[20]], BYTE).ids)
        assert len(list(data.train.sources[0])) == 58


class TestSection:
    def complaint(self, train):
        with pytest.raises(ValidationError) as error:
            DataSection(train=train)
        (item,) = error.value.errors()
        return str(item["ctx"]["error"])

    def test_it_is_written_and_read_without_loss(self):
        section = DataSection(train=[{"source": "a.txt", "weight": 2}, {"source": "embedded"}])
        assert DataSection(**section.model_dump(mode="json")) == section
        assert [part.weight for part in section.mix()] == [2, 1]

    @pytest.mark.parametrize("train", [3, [], {"source": "a"}, None], ids=str)
    def test_what_is_neither_source_nor_mix_is_refused(self, train):
        expected = f"expected a source, or a list of {{source: ..., weight: ...}}, got {train!r}"
        assert self.complaint(train) == expected

    @pytest.mark.parametrize(
        ("entry", "sentence"),
        [
            ({"source": "a", "weight": 0}, "entry 2.weight: input should be greater than 0, got 0"),
            ({"source": "a", "weight": -1.5}, "entry 2.weight: input should be greater than 0, got -1.5"),
            ({"source": "a", "weight": float("inf")}, "entry 2.weight: input should be a finite number, got inf"),
            ({"source": 3}, "entry 2.source: input should be a valid string, got 3"),
            ({"weight": 3}, "entry 2.source: field required, got {'weight': 3}"),
            ({"source": "a", "wait": 3}, "entry 2.wait: unknown key; legal: source, weight"),
        ],
        ids=str,
    )
    def test_a_bad_entry_is_refused_by_its_number(self, entry, sentence):
        assert self.complaint([{"source": "a"}, entry]) == sentence
