"""Where text comes from: a fixed order, a hash, a split, and clear errors."""

from __future__ import annotations

import hashlib

import pytest

from longwave.data import Corpus, read_corpus


@pytest.fixture(scope="module")
def embedded():
    return read_corpus("embedded")


def test_embedded_is_the_same_text_each_time(embedded):
    again = read_corpus("embedded")
    assert again.documents == embedded.documents
    assert again.sha256() == embedded.sha256()


def test_embedded_is_real_text_of_some_size(embedded):
    assert embedded.num_bytes > 5_000_000
    assert all(document.strip() for document in embedded.documents)
    assert any("class JSONDecoder" in document for document in embedded.documents)


def test_embedded_holds_no_installed_package(embedded):
    assert not any("class LongwaveForCausalLM" in document for document in embedded.documents)


def test_embedded_does_not_depend_on_where_one_stands(embedded, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert read_corpus("embedded").sha256() == embedded.sha256()


def test_bytes_are_utf8_bytes():
    assert Corpus("x", ("aé", "漢")).num_bytes == 3 + 3


def test_the_hash_knows_the_borders():
    hashes = {Corpus("x", documents).sha256() for documents in (("ab", "c"), ("a", "bc"), ("abc",), ("c", "ab"))}
    assert len(hashes) == 4


def test_the_hash_is_of_length_and_text():
    expected = hashlib.sha256((3).to_bytes(8, "little") + b"abc" + (0).to_bytes(8, "little")).hexdigest()
    assert Corpus("any name", ("abc", "")).sha256() == expected


def test_every_twentieth_document_is_for_validation():
    train, valid = Corpus("x", tuple(f"text {index}" for index in range(45))).split()
    assert valid.documents == ("text 0", "text 20", "text 40")
    assert len(train.documents) == 42


def test_a_split_is_disjoint_and_complete(embedded):
    train, valid = embedded.split()
    assert len(train.documents) + len(valid.documents) == len(embedded.documents)
    assert sorted(train.documents + valid.documents) == sorted(embedded.documents)
    assert train.num_bytes + valid.num_bytes == embedded.num_bytes


def test_a_lone_document_is_cut_once_at_a_line():
    text = "".join(f"line {index}\n" for index in range(1000))
    (head,), (tail,) = (part.documents for part in Corpus("x", (text,)).split())
    assert head + tail == text
    assert head.endswith("\n")
    assert len(text) / 20 <= len(tail) <= len(text) / 20 + len("line 999\n")


@pytest.mark.xfail(strict=True, reason="fewer than twenty documents are glued together")
def test_a_few_documents_keep_their_borders():
    train, valid = Corpus("x", ("first\n" * 30, "second\n" * 30)).split()
    assert not any("first" in text and "second" in text for text in train.documents + valid.documents)


@pytest.mark.xfail(strict=True, reason="a text without line ends is called too little")
def test_one_long_line_can_be_split():
    (head,), (tail,) = (part.documents for part in Corpus("x", ("word " * 1000,)).split())
    assert head + tail == "word " * 1000


def test_parts_are_named_after_the_whole():
    train, valid = Corpus("novel", ("a\n" * 100,)).split()
    assert (train.name, valid.name) == ("novel (train)", "novel (validation)")


def test_too_little_text_to_split_is_refused_by_name():
    with pytest.raises(ValueError, match="tiny: too little text to set a validation part aside"):
        Corpus("tiny", ("a",)).split()


def test_a_text_file_is_one_document(tmp_path):
    path = tmp_path / "text.txt"
    path.write_bytes("naïve\n漢字\n".encode())
    corpus = read_corpus(str(path))
    assert corpus.documents == ("naïve\n漢字\n",)
    assert corpus.name == str(path)


@pytest.mark.xfail(strict=True, reason="line ends are translated, so bytes are miscounted")
def test_a_text_file_is_read_as_it_is(tmp_path):
    path = tmp_path / "text.txt"
    path.write_bytes(b"one\r\ntwo\rthree\n")
    assert read_corpus(str(path)).num_bytes == len(path.read_bytes())


def test_a_missing_file_is_refused_with_what_is_legal(tmp_path):
    with pytest.raises(ValueError, match=r"none\.txt: no such file; legal: embedded, or the path of a \.txt file"):
        read_corpus(str(tmp_path / "none.txt"))


def test_a_directory_is_no_file(tmp_path):
    with pytest.raises(ValueError, match="no such file"):
        read_corpus(str(tmp_path))


def test_another_kind_of_file_is_refused_with_what_is_legal(tmp_path):
    (tmp_path / "text.pdf").write_text("x")
    with pytest.raises(ValueError, match=r"unknown kind of file '\.pdf'; legal: \.txt"):
        read_corpus(str(tmp_path / "text.pdf"))


@pytest.mark.parametrize("text", ["", " \n\t"])
def test_an_empty_file_is_refused(tmp_path, text):
    (tmp_path / "text.txt").write_text(text)
    with pytest.raises(ValueError, match=r"text\.txt: the file is empty"):
        read_corpus(str(tmp_path / "text.txt"))


def test_a_file_that_is_not_utf8_is_refused_with_the_place(tmp_path):
    (tmp_path / "text.txt").write_bytes(b"good \xff bad")
    with pytest.raises(ValueError, match=r"text\.txt: byte 5 is not UTF-8"):
        read_corpus(str(tmp_path / "text.txt"))


def test_a_corpus_beside_the_checkout_is_read_whole(shared):
    path = shared / "data" / "shakespeare.txt"
    if not path.is_file():
        pytest.skip("needs shakespeare.txt of ../shared, which is not here")
    assert read_corpus(str(path)).num_bytes == path.stat().st_size
