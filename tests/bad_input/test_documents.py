"""Long documents: memory follows the piece that is read, tokens are those of the whole, and there is a stated limit."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys

import numpy as np
import pytest

from longwave.data import build_tokenizer, cutting, encode, files, read_corpus
from longwave.data.cutting import ANYWHERE, BEFORE_SPACE, border_of, cut

NASTY = (
    "It's  the\n\n\nend,  isn't it?\t\tYes \u00a0\u2003 no\r\n 12 345abc_def ...!!!  \n  x'll we've\u0085\u2028\u3000\n"
    "naïve Ω☃ 𝄞𝄞 日本語 テキスト <|endoftext|> <|unknown|> \x0b\x0c\x1c a  b   c    d \n\n\t\n end"
)
KINDS = {"byte": ANYWHERE, "char": ANYWHERE, "word": BEFORE_SPACE, "bpe:270": BEFORE_SPACE, "bpe:400": BEFORE_SPACE}
#: Peak bytes of tokenizing for each byte of one document of 2 MB, what one batch takes included.
MULTIPLE = 75


@pytest.mark.parametrize("size", [1, 2, 3, 5, 8, 13, 40])
@pytest.mark.parametrize("kind", KINDS)
def test_the_tokens_of_pieces_are_those_of_the_whole(monkeypatch, kind, size):
    texts = [NASTY, "", "a", NASTY[::-1], "x" * 50, " " * 50, "\n".join(NASTY), NASTY * 3]
    tokenizer = build_tokenizer(kind, texts)
    assert border_of(tokenizer) is KINDS[kind]
    whole = [tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"] for text in texts]
    monkeypatch.setattr(cutting, "PIECE", size)
    assert len(list(cut(NASTY, KINDS[kind]))) > 1
    assert [ids.tolist() for ids in encode(texts, tokenizer)] == [[tokenizer.bos_token_id, *ids] for ids in whole]


@pytest.mark.parametrize("kind", ["word", "bpe:300", "bpe:400"])
def test_what_is_learned_from_pieces_is_what_is_learned_from_the_whole(monkeypatch, kind):
    whole = build_tokenizer(kind, [NASTY * 20]).backend_tokenizer.to_str()
    monkeypatch.setattr(cutting, "PIECE", 5)
    assert build_tokenizer(kind, [NASTY * 20]).backend_tokenizer.to_str() == whole


@pytest.mark.parametrize("change", ["a normalizer", "a prefix", "an added word", "no splitter", "another splitter"])
def test_a_tokenizer_that_is_not_known_reads_whole_documents(change):
    from tokenizers import normalizers, pre_tokenizers

    tokenizer = build_tokenizer("bpe:300", [NASTY])
    backend = tokenizer.backend_tokenizer
    if change == "a normalizer":
        backend.normalizer = normalizers.NFC()
    elif change == "a prefix":
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    elif change == "an added word":
        tokenizer.add_tokens(["it \n"])
    else:
        backend.pre_tokenizer = None if change == "no splitter" else pre_tokenizers.Whitespace()
    assert border_of(tokenizer) is None
    assert list(cut(NASTY, None)) == [NASTY]


def test_ids_are_of_the_dtype_that_is_promised():
    assert {ids.dtype for ids in encode(["a", ""], build_tokenizer("byte", []))} == {np.dtype(np.int32)}


MEASURE = """
import resource, sys
from longwave.data import build_tokenizer, encode, read_corpus
def peak():
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
tokenizer = build_tokenizer("byte", [])
list(encode(["warm up"], tokenizer))
before = peak()
for ids in encode(read_corpus(sys.argv[1]).documents, tokenizer):
    print(len(ids), peak() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in KiB on Linux only")
def test_memory_follows_the_piece(tmp_path):
    size = 2_000_000
    (tmp_path / "one.jsonl").write_text(json.dumps({"text": "the quick brown fox\n" * (size // 20)}) + "\n")
    line = [sys.executable, "-c", MEASURE, str(tmp_path / "one.jsonl")]
    found = subprocess.run(line, capture_output=True, text=True, check=True).stdout
    num_tokens, num_bytes = map(int, found.split())
    assert num_tokens == size + 1
    assert num_bytes < MULTIPLE * size


@pytest.fixture
def small_limits(monkeypatch):
    monkeypatch.setattr(files, "LARGEST_RECORD", 1000)
    monkeypatch.setattr(files, "LARGEST_TEXT", 5000)


def read(path) -> list[str]:
    return list(read_corpus(str(path)).documents)


@pytest.mark.parametrize("ending", [".jsonl", ".jsonl.gz"])
@pytest.mark.parametrize(
    "line", ["x" * 2000, json.dumps({"text": "x" * 2000}), " " * 2000, "[" * 2000], ids=lambda x: x[:9]
)
def test_a_line_that_is_too_long_is_refused_by_its_number(tmp_path, small_limits, ending, line):
    path = tmp_path / f"text{ending}"
    content = f'{{"text": "first"}}\n{line}\n'.encode()
    path.write_bytes(gzip.compress(content) if ending.endswith("gz") else content)
    with pytest.raises(
        ValueError, match=r"text\.jsonl(\.gz)?:2: 1,001 bytes or more, above the 1,000 of a record; split"
    ):
        read(path)


def test_a_line_as_long_as_may_be_is_read(tmp_path, small_limits):
    line = json.dumps({"text": "x" * (1000 - len('{"text": ""}\n'))}) + "\n"
    (tmp_path / "text.jsonl").write_text(line * 2)
    assert [len(text) for text in read(tmp_path / "text.jsonl")] == [987, 987]


def test_a_bomb_in_a_small_file_is_refused_before_it_is_whole(tmp_path):
    path = tmp_path / "bomb.jsonl.gz"
    with gzip.open(path, "wb", compresslevel=1) as file:
        for _ in range(80):
            file.write(b"a" * 2**20)
    with pytest.raises(
        ValueError, match=r"bomb\.jsonl\.gz:1: 67,108,865 bytes or more, above the 67,108,864 of a record"
    ):
        read(path)


def test_a_record_that_is_too_long_is_refused_by_its_number(tmp_path, small_limits):
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.table({"text": ["a", "x" * 2000]}), tmp_path / "text.parquet")
    with pytest.raises(ValueError, match=r"text\.parquet: record 2: 2,000 bytes or more, above the 1,000 of a record"):
        read(tmp_path / "text.parquet")


def test_long_records_are_read_few_at_a_time(tmp_path, monkeypatch):
    import pyarrow
    import pyarrow.parquet

    texts = [str(i) * 500 for i in range(40)]
    pyarrow.parquet.write_table(
        pyarrow.table({"text": texts, "other": [1] * 40}), tmp_path / "text.parquet", use_dictionary=False
    )
    monkeypatch.setattr(files, "PARQUET_BYTES", 2000)
    sizes = []
    iterate = pyarrow.parquet.ParquetFile.iter_batches

    def noted(self, size, **how):
        sizes.append(size)
        return iterate(self, size, **how)

    monkeypatch.setattr(pyarrow.parquet.ParquetFile, "iter_batches", noted)
    assert read(tmp_path / "text.parquet") == texts
    assert sizes[0] < 10


@pytest.mark.parametrize("size", [5001, 2 * 2**30])
def test_a_text_that_is_too_long_is_refused_with_a_way_out(tmp_path, small_limits, size):
    with (tmp_path / "text.txt").open("wb") as file:
        file.truncate(size)
    with pytest.raises(
        ValueError, match=rf"text\.txt: {size:,} bytes, above the 5,000 of a text .*split --line-bytes=100M"
    ):
        read(tmp_path / "text.txt")


@pytest.mark.parametrize("source", ["a\0b.txt", "x" * 5000, "hf:\0", "x" * 300 + ".txt"], ids=lambda source: source[:5])
def test_a_name_that_no_path_can_have_is_refused(source):
    with pytest.raises(ValueError, match=r"no such file|cannot be loaded"):
        read(source)
