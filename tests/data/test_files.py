"""Files of text: every kind gives the same documents, in order and lazily, and what is wrong is said with its place."""

from __future__ import annotations

import gzip
import json
from itertools import islice

import pyarrow
import pytest
from pyarrow import parquet

from longwave.data import read_corpus

TEXTS = ["naïve\n漢字\n", "second", "third\r\nline"]


def texts(source, **how):
    return list(read_corpus(str(source), **how).documents)


def lines(records):
    return "".join(json.dumps(record) + "\n" for record in records).encode()


def write(path, documents, field="text"):
    """``documents`` as a file of the kind that the path's ending names."""
    if path.name.endswith(".parquet"):
        parquet.write_table(pyarrow.table({"id": list(range(len(documents))), field: documents}), path)
    elif path.name.endswith(".gz"):
        path.write_bytes(gzip.compress(lines({field: text} for text in documents)))
    elif path.name.endswith(".jsonl"):
        path.write_bytes(lines({"id": 1, field: text} for text in documents))
    else:
        (text,) = documents
        path.write_bytes(text.encode())
    return path


RECORDS = ["a.jsonl", "a.jsonl.gz", "a.parquet"]


def test_a_text_file_is_one_document_as_it_is(tmp_path):
    path = write(tmp_path / "a.txt", ["one\r\ntwo\rthrée\n"])
    assert texts(path) == ["one\r\ntwo\rthrée\n"]
    assert read_corpus(str(path)).name == str(path)


@pytest.mark.parametrize("name", RECORDS)
def test_a_record_is_a_document(tmp_path, name):
    assert texts(write(tmp_path / name, TEXTS)) == TEXTS


@pytest.mark.parametrize("name", RECORDS)
def test_the_field_of_the_text_can_be_named(tmp_path, name):
    assert texts(write(tmp_path / name, TEXTS, field="body"), text_field="body") == TEXTS


@pytest.mark.parametrize("name", RECORDS)
def test_documents_can_be_read_again(tmp_path, name):
    documents = read_corpus(str(write(tmp_path / name, TEXTS))).documents
    assert list(documents) == list(documents)


@pytest.mark.parametrize("name", RECORDS)
def test_blank_documents_are_left_out(tmp_path, name):
    assert texts(write(tmp_path / name, ["", "a", " \n", "b"])) == ["a", "b"]


def test_records_are_read_as_they_are_needed(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(lines([{"text": "good"}]) + b"broken")
    assert list(islice(read_corpus(str(path)).documents, 1)) == ["good"]


def test_a_parquet_file_of_several_batches_stays_in_order(tmp_path):
    documents = [f"text {index}" for index in range(2500)]
    assert texts(write(tmp_path / "a.parquet", documents)) == documents


def test_a_folder_stands_for_its_files_in_the_order_of_their_paths(tmp_path):
    (tmp_path / "b").mkdir()
    for name, text in (("c.txt", "3"), ("a.jsonl", "1"), ("b/x.parquet", "2")):
        write(tmp_path / name, [text])
    (tmp_path / "README.md").write_text("not text to train on")
    (tmp_path / ".hidden.txt").write_text("neither")
    assert texts(tmp_path) == ["1", "2", "3"]


def test_a_glob_stands_for_its_files_in_the_order_of_their_paths(tmp_path):
    for name in ("2.txt", "1.txt", "3.jsonl"):
        write(tmp_path / name, [name])
    assert texts(tmp_path / "*.txt") == ["1.txt", "2.txt"]


def test_an_empty_file_among_others_is_no_error(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b"")
    write(tmp_path / "b.jsonl", ["text"])
    assert texts(tmp_path) == ["text"]


@pytest.fixture
def refused(tmp_path):
    """The sentence with which a source in ``tmp_path`` is refused, without the folder's name."""

    def of(name, content=None, **how):
        if content is not None:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=r".") as error:
            texts(tmp_path / name, **how)
        assert type(error.value) is ValueError
        assert "\n" not in str(error.value)
        return str(error.value).replace(f"{tmp_path}/", "")

    return of


def test_a_missing_file_is_refused_with_what_is_legal(refused):
    sentence = refused("none.txt")
    assert sentence.startswith(
        "none.txt: no such file; legal: embedded, hf:NAME, hf:NAME/CONFIG, or the path of a file"
    )
    assert "(.txt, .jsonl, .jsonl.gz, .parquet)" in sentence


def test_an_unknown_kind_is_refused_with_what_is_legal(refused):
    sentence = "text.pdf: unknown kind of file '.pdf'; legal: .txt, .jsonl, .jsonl.gz, .parquet"
    assert refused("text.pdf", b"x") == sentence


def test_a_glob_that_nothing_matches_is_refused(refused):
    assert refused("*.txt") == "*.txt: no file has such a name"


def test_a_folder_without_text_is_refused(refused, tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "notes.md").write_text("x")
    assert refused("folder") == "folder: the folder holds no text; legal: .txt, .jsonl, .jsonl.gz, .parquet"


@pytest.mark.parametrize(("name", "content"), [("a.txt", b""), ("a.txt", b" \n\t"), ("a.jsonl", b"\n")])
def test_an_empty_file_is_refused(refused, name, content):
    assert refused(name, content) == f"{name}: the file is empty"


def test_a_folder_of_empty_files_is_refused(refused, tmp_path):
    (tmp_path / "folder").mkdir()
    for name in ("a.txt", "b.txt"):
        (tmp_path / "folder" / name).write_text("")
    assert refused("folder") == "folder: all files are empty"


def test_text_that_is_not_utf8_is_refused_with_the_byte(refused):
    assert refused("a.txt", b"good \xff bad") == "a.txt: byte 5 is not UTF-8"


GOOD = lines([{"text": "good"}])


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        (b'{"text": "bad}', "not JSON: Unterminated string starting at, column 10"),
        (b'{"text": "\xff"}', "byte 10 of the line is not UTF-8"),
        (b'{"body": "x", "id": 1}', "no field 'text'; there are: body, id"),
        (b"{}", "no field 'text'; there are: none"),
        (b'{"text": 3}', "field 'text' is no text but int"),
        (b'{"text": null}', "field 'text' is no text but NoneType"),
        (b'["text"]', "expected an object with the field 'text', got list"),
        (b'{"text": "x\\ud800"}', "character 1 of 'text' is half a surrogate pair"),
    ],
)
def test_a_bad_record_is_refused_with_file_and_line(refused, line, sentence):
    assert refused("a.jsonl", GOOD + b"\n" + line + b"\n" + GOOD) == f"a.jsonl:3: {sentence}"
    assert refused("a.jsonl.gz", gzip.compress(GOOD + line)) == f"a.jsonl.gz:2: {sentence}"


def test_what_is_no_gzip_is_refused(refused):
    assert refused("a.jsonl.gz", GOOD).startswith("a.jsonl.gz: cannot be read: Not a gzipped file")


def test_a_torn_gzip_is_refused(refused):
    torn = gzip.compress(lines({"text": f"{index * index}"} for index in range(500)))[:-20]
    assert refused("a.jsonl.gz", torn).startswith("a.jsonl.gz: cannot be read: Compressed file ended")


def test_damage_within_a_gzip_is_refused(refused):
    packed = bytearray(gzip.compress(GOOD * 100))
    packed[15] ^= 0xFF
    assert refused("a.jsonl.gz", bytes(packed)).startswith("a.jsonl.gz")


@pytest.mark.parametrize("keep", [0, 10, 200])
def test_a_torn_parquet_is_refused(refused, tmp_path, keep):
    whole = write(tmp_path / "a.parquet", TEXTS).read_bytes()
    assert refused("a.parquet", whole[:keep]).startswith("a.parquet: cannot be read: ")


def test_a_parquet_without_the_field_is_refused_with_its_fields(refused, tmp_path):
    write(tmp_path / "a.parquet", TEXTS, field="body")
    assert refused("a.parquet") == "a.parquet: no field 'text'; there are: id, body"


def test_a_parquet_field_that_is_no_text_is_refused_with_its_record(refused, tmp_path):
    write(tmp_path / "a.parquet", ["good", None])
    assert refused("a.parquet") == "a.parquet: record 2: field 'text' is no text but NoneType"


def test_parquet_text_that_is_not_utf8_is_refused_with_its_record(refused, tmp_path):
    column = pyarrow.array([b"good", b"\xff"]).view(pyarrow.string())
    parquet.write_table(pyarrow.table({"text": column}), tmp_path / "a.parquet")
    assert refused("a.parquet") == "a.parquet: record 2 is not UTF-8"
