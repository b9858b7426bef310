"""Where text comes from: a fixed order, a hash, a split, and clear errors."""

from __future__ import annotations

import hashlib

import pytest

from longwave.data import Corpus, read_corpus
from longwave.data.corpora import head, join


def texts(corpus):
    return list(corpus.documents)


@pytest.fixture(scope="module")
def embedded():
    return read_corpus("embedded")


@pytest.fixture(scope="module")
def contents(embedded):
    return embedded.contents()


def test_embedded_is_the_same_text_each_time(contents):
    assert read_corpus("embedded").contents() == contents


def test_embedded_is_real_text_of_some_size(embedded, contents):
    assert contents.num_bytes > 5_000_000
    assert all(document.strip() for document in embedded.documents)
    assert any("class JSONDecoder" in document for document in embedded.documents)


def test_embedded_holds_no_installed_package(embedded):
    assert not any("class LongwaveForCausalLM" in document for document in embedded.documents)


def test_embedded_does_not_depend_on_where_one_stands(contents, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert read_corpus("embedded").contents() == contents


def test_contents_count_documents_and_utf8_bytes():
    contents = Corpus("x", ("aé", "漢")).contents()
    assert (contents.num_documents, contents.num_bytes) == (2, 3 + 3)


def test_the_hash_knows_the_borders():
    parts = (("ab", "c"), ("a", "bc"), ("abc",), ("c", "ab"))
    assert len({Corpus("x", documents).contents().sha256 for documents in parts}) == 4


def test_the_hash_is_of_length_and_text():
    expected = hashlib.sha256((3).to_bytes(8, "little") + b"abc" + (0).to_bytes(8, "little")).hexdigest()
    assert Corpus("any name", ("abc", "")).contents().sha256 == expected


def test_every_twentieth_document_is_for_validation():
    train, valid = Corpus("x", tuple(f"text {index}" for index in range(45))).split()
    assert texts(valid) == ["text 0", "text 20", "text 40"]
    assert len(texts(train)) == 42


def test_a_split_is_disjoint_and_complete(embedded):
    train, valid = map(texts, embedded.split())
    assert sorted(train + valid) == sorted(embedded.documents)


def test_validation_takes_nothing_that_begins_beyond_a_limit():
    documents = tuple(f"{index:04}" for index in range(100))
    train, valid = Corpus("x", documents).split(within=4 * 40 + 1)
    assert texts(valid) == ["0000", "0020", "0040"]
    assert sorted(texts(train) + texts(valid)) == list(documents)


def test_a_lone_document_is_cut_once_at_a_line():
    text = "".join(f"line {index}\n" for index in range(1000))
    (head,), (tail,) = map(texts, Corpus("x", (text,)).split())
    assert head + tail == text
    assert head.endswith("\n")
    assert len(text) / 20 <= len(tail) <= len(text) / 20 + len("line 999\n")


def test_a_few_documents_keep_their_borders():
    train, valid = map(texts, Corpus("x", ("first\n" * 30, "second\n" * 30)).split())
    assert train[0] == "first\n" * 30
    assert train[1] + valid[0] == "second\n" * 30


def test_one_long_line_can_be_split():
    (head,), (tail,) = map(texts, Corpus("x", ("word " * 1000,)).split())
    assert head + tail == "word " * 1000
    assert len(tail) == 5000 / 20


def test_a_title_and_one_long_line_leave_most_of_it_for_training():
    (head,), (tail,) = map(texts, Corpus("x", ("title\n" + "word " * 1000,)).split())
    assert len(tail) < len(head) / 9


def test_parts_are_named_after_the_whole():
    train, valid = Corpus("novel", ("a\n" * 100,)).split()
    assert (train.name, valid.name) == ("novel (train)", "novel (validation)")


def test_too_little_text_to_split_is_refused_by_name():
    with pytest.raises(ValueError, match="tiny: too little text to set a validation part aside"):
        Corpus("tiny", ("a",)).split()


def test_joined_corpora_follow_each_other():
    whole = join("both", [Corpus("x", ("a", "b")), Corpus("y", ("c",))])
    assert texts(whole) == texts(whole) == ["a", "b", "c"]


def test_a_corpus_joined_with_none_is_itself():
    corpus = Corpus("x", ("a",))
    assert join("both", [corpus]) is corpus


def test_the_head_has_as_many_characters_as_asked_for():
    assert list(head(["abc", "def", "ghi"], 5)) == ["abc", "de"]
    assert list(head(["abc", "def"], 100)) == ["abc", "def"]


def test_the_head_reads_no_further():
    def documents():
        yield "abc"
        raise AssertionError("read on")

    assert list(head(documents(), 3)) == ["abc"]


def test_a_source_without_a_name_is_refused():
    with pytest.raises(ValueError, match="a source is empty; legal: embedded, hf:NAME"):
        read_corpus("")


def test_a_corpus_beside_the_checkout_is_read_whole(shared):
    path = shared / "data" / "shakespeare.txt"
    if not path.is_file():
        pytest.skip("needs shakespeare.txt of ../shared, which is not here")
    assert read_corpus(str(path)).contents().num_bytes == path.stat().st_size
