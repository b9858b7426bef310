"""Stored tokens: equal to those in memory, written once, and whole or absent."""

from __future__ import annotations

import json
import multiprocessing
import os
import pickle
import shutil
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from longwave.data import Corpus, PackedRows, build_tokenizer, read_corpus, store, tokenize
from longwave.data import storage as storage_file

TOKENIZER = build_tokenizer("byte", [])
DOCUMENTS = tuple(f"text {index} " * (index % 7 + 1) for index in range(300))


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache"


@pytest.fixture
def encoded(monkeypatch):
    """Counts how many times documents have been tokenized."""
    calls = []
    original = storage_file.encode
    monkeypatch.setattr(storage_file, "encode", lambda *args: (calls.append(1), original(*args))[1])
    return calls


@pytest.fixture
def source(tmp_path):
    """A file that was written a while ago."""
    path = tmp_path / "text.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in DOCUMENTS))
    os.utime(path, (time.time() - 100,) * 2)
    return path


def folders(cache):
    return [path for path in cache.iterdir() if path.is_dir()]


def test_stored_tokens_equal_those_in_memory(cache):
    stored, contents = store(Corpus("x", DOCUMENTS), TOKENIZER, cache)
    memory = tokenize(DOCUMENTS, TOKENIZER)
    assert np.array_equal(stored.ids, memory.ids)
    assert np.array_equal(np.asarray(stored.starts), memory.starts)
    assert stored.num_bytes == memory.num_bytes
    assert contents == Corpus("x", DOCUMENTS).contents()


@pytest.mark.parametrize("length", [2, 7, 64, 10**6])
def test_rows_of_stored_tokens_equal_those_in_memory(cache, length):
    stored = PackedRows(store(Corpus("x", DOCUMENTS), TOKENIZER, cache)[0], length)
    memory = PackedRows(tokenize(DOCUMENTS, TOKENIZER), length)
    assert len(stored) == len(memory)
    for index in {0, len(memory) // 2, len(memory) - 1}:
        assert all(torch.equal(stored[index][name], memory[index][name]) for name in memory[index])


def test_tokens_are_mapped_and_cannot_be_written_to(cache):
    stored, _ = store(Corpus("x", DOCUMENTS), TOKENIZER, cache)
    assert isinstance(stored.ids, np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        stored.ids[0] = 1


@pytest.mark.parametrize(("size", "dtype"), [(256, "u1"), (257, "u2"), (65536, "u2"), (65537, "u4")])
def test_ids_take_the_smallest_kind_of_number(cache, size, dtype, monkeypatch):
    monkeypatch.setattr(type(TOKENIZER), "__len__", lambda tokenizer: size)
    stored, _ = store(Corpus("x", ("\x00\x01",)), TOKENIZER, cache)
    assert stored.ids.dtype == np.dtype(dtype)


def test_tokens_are_written_once(cache, encoded):
    for _ in range(2):
        store(Corpus("x", DOCUMENTS), TOKENIZER, cache)
    assert len(encoded) == len(folders(cache)) == 1


def test_the_same_documents_are_the_same_wherever_they_come_from(cache, encoded, source):
    store(Corpus("x", DOCUMENTS), TOKENIZER, cache)
    store(read_corpus(str(source)), TOKENIZER, cache)
    assert len(encoded) == 1


def test_other_documents_or_another_tokenizer_are_written_apart(cache):
    sources = [(DOCUMENTS, "byte"), (DOCUMENTS[1:], "byte"), (DOCUMENTS, "bpe:300")]
    for documents, kind in sources:
        store(Corpus("x", documents), build_tokenizer(kind, DOCUMENTS), cache)
    assert len(folders(cache)) == 3


def test_a_file_that_has_not_changed_is_not_read_again(cache, source, monkeypatch):
    first, contents = store(read_corpus(str(source)), TOKENIZER, cache)
    monkeypatch.setattr("longwave.data.files.read_file", lambda *_: pytest.fail("read again"))
    second, again = store(read_corpus(str(source)), TOKENIZER, cache)
    assert again == contents
    assert np.array_equal(first.ids, second.ids)


def test_a_change_of_the_content_is_noticed(cache, source):
    before = source.stat()
    store(read_corpus(str(source)), TOKENIZER, cache)
    source.write_text(source.read_text().replace("text 299", "TEXT 299"))
    os.utime(source, ns=(before.st_atime_ns, before.st_mtime_ns))
    stored, _ = store(read_corpus(str(source)), TOKENIZER, cache)
    assert "TEXT 299" in TOKENIZER.decode(stored.ids[-20:])


def test_a_file_just_written_is_read_again_for_its_clock_may_be_coarse(cache, source):
    os.utime(source)
    store(read_corpus(str(source)), TOKENIZER, cache)
    assert not list(cache.glob("*.json"))


def test_parts_of_one_file_are_told_apart(cache, source):
    train, valid = read_corpus(str(source)).split()
    sizes = [len(store(part, TOKENIZER, cache)[0].ids) for part in (train, valid, train, valid)]
    assert sizes[:2] == sizes[2:]
    assert sum(sizes[:2]) == len(tokenize(DOCUMENTS, TOKENIZER).ids)


@pytest.mark.parametrize("name", ["ids.bin", "offsets.bin", "about.json"])
@pytest.mark.parametrize("damage", ["torn", "gone"])
def test_torn_tokens_are_written_again(cache, encoded, name, damage):
    store(Corpus("x", DOCUMENTS), TOKENIZER, cache)
    (folder,) = folders(cache)
    if damage == "gone":
        (folder / name).unlink()
    else:
        os.truncate(folder / name, (folder / name).stat().st_size - 3)
    stored, _ = store(Corpus("x", DOCUMENTS), TOKENIZER, cache)
    assert len(encoded) == 2
    assert np.array_equal(stored.ids, tokenize(DOCUMENTS, TOKENIZER).ids)
    assert folders(cache) == [folder]


def test_an_interrupted_writing_leaves_nothing(cache, monkeypatch):
    def interrupted(*_):
        yield np.array([0])
        raise KeyboardInterrupt

    monkeypatch.setattr(storage_file, "encode", interrupted)
    with pytest.raises(KeyboardInterrupt):
        store(Corpus("x", DOCUMENTS), TOKENIZER, cache)
    assert not list(cache.iterdir())


def test_what_a_killed_process_left_is_not_used(cache, encoded):
    store(Corpus("x", DOCUMENTS), TOKENIZER, cache)
    (folder,) = folders(cache)
    shutil.copytree(folder, cache / f"{folder.name}.abc.part")
    shutil.rmtree(folder)
    store(Corpus("x", DOCUMENTS), TOKENIZER, cache)
    assert len(encoded) == 2


def test_a_second_writer_waits_for_the_first_and_uses_what_it_wrote(cache, encoded, monkeypatch):
    original, others = storage_file.encode, []

    def accompanied(documents, tokenizer):
        monkeypatch.setattr(storage_file, "encode", original)
        others.append(ThreadPoolExecutor(1).submit(store, Corpus("x", DOCUMENTS), TOKENIZER, cache))
        yield from original(documents, tokenizer)
        assert not others[0].done()

    monkeypatch.setattr(storage_file, "encode", accompanied)
    stored, _ = store(Corpus("x", DOCUMENTS), TOKENIZER, cache)
    assert np.array_equal(stored.ids, others[0].result(timeout=60)[0].ids)
    assert len(encoded) == len(list(cache.iterdir())) == 1


def _store_in_a_process(cache, barrier, results):
    barrier.wait()
    results.put(int(store(Corpus("x", DOCUMENTS), TOKENIZER, cache)[0].ids.astype(int).sum()))


def test_processes_that_write_at_once_all_get_the_tokens(cache):
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(2), context.Queue()
    processes = [context.Process(target=_store_in_a_process, args=(cache, barrier, results)) for _ in range(2)]
    for process in processes:
        process.start()
    sums = {results.get(timeout=60) for _ in processes}
    for process in processes:
        process.join()
    assert sums == {int(tokenize(DOCUMENTS, TOKENIZER).ids.sum())}
    assert len(list(cache.iterdir())) == 1


def test_text_that_changes_between_its_two_readings_is_refused(cache):
    class Unsteady:
        readings = 0

        def __iter__(self):
            self.readings += 1
            yield f"reading {self.readings}"

    with pytest.raises(ValueError, match="x: the text changed while it was read"):
        store(Corpus("x", Unsteady()), TOKENIZER, cache)
    assert not list(cache.iterdir())


def test_no_documents_are_refused(cache):
    with pytest.raises(ValueError, match="nothing: holds no text"):
        store(Corpus("nothing", ()), TOKENIZER, cache)


def test_a_folder_that_cannot_be_written_to_is_refused(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ValueError, match=r"file: tokens cannot be stored: .*; data\.cache names another folder"):
        store(Corpus("x", DOCUMENTS), TOKENIZER, tmp_path / "file")


def test_the_default_folder_is_of_the_user(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    store(Corpus("x", DOCUMENTS), TOKENIZER)
    assert len(folders(tmp_path / ".cache" / "longwave" / "tokens")) == 1


def test_another_process_gets_the_place_and_not_the_tokens(cache):
    stored, _ = store(Corpus("x", DOCUMENTS), TOKENIZER, cache)
    sent = pickle.dumps(stored)
    assert len(sent) < 1000
    assert np.array_equal(pickle.loads(sent).ids, stored.ids)
