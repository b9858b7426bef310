"""Whatever becomes of stored tokens: what is used is what the text says."""

from __future__ import annotations

import json
import os
import shutil
import time

import numpy as np
import pytest

from longwave.data import build_tokenizer, read_corpus, store, tokenize
from longwave.data.lease import lease
from longwave.data.sealed import fingerprint, read_sealed, write_sealed
from tests.damage import DAMAGE

TOKENIZER = build_tokenizer("byte", [])
DOCUMENTS = [f"text {index} " * (index % 7 + 1) for index in range(100)]
TOKENS = tokenize(DOCUMENTS, TOKENIZER)


def write(path, documents):
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in documents))
    os.utime(path, (time.time() - 100,) * 2)
    return read_corpus(str(path))


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache"


@pytest.fixture
def corpus(tmp_path, cache):
    """A text, and its tokens in the cache."""
    corpus = write(tmp_path / "text.jsonl", DOCUMENTS)
    store(corpus, TOKENIZER, cache)
    return corpus


@pytest.fixture
def folder(corpus, cache):
    (found,) = (path for path in cache.iterdir() if path.is_dir())
    return found


def is_right(corpus, cache) -> bool:
    found, contents = store(corpus, TOKENIZER, cache)
    same = np.array_equal(found.ids, TOKENS.ids) and np.array_equal(np.asarray(found.starts), TOKENS.starts)
    return same and (found.num_bytes, contents.num_documents) == (TOKENS.num_bytes, len(DOCUMENTS))


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("name", ["ids.bin", "offsets.bin", "about.json", "note"])
def test_damaged_tokens_are_written_again(corpus, cache, folder, name, damage):
    path = next(cache.glob("*.json")) if name == "note" else folder / name
    before = path.read_bytes()
    DAMAGE[damage](path)
    assert is_right(corpus, cache)
    assert path.read_bytes() == before
    assert len(list(cache.iterdir())) == 2


def reseal(folder, **changes):
    about = read_sealed(folder / "about.json")
    files = {name: fingerprint(folder / name) for name in about["files"]}
    write_sealed(folder / "about.json", {**about, "files": files, **changes})


def array(path, dtype, change):
    values = np.fromfile(path, dtype)
    change(values)
    values.tofile(path)


#: What carries a right seal, and is nonsense all the same.
NONSENSE = {
    "ids beyond the tokenizer": lambda folder: array(folder / "ids.bin", "<u2", lambda ids: ids.__setitem__(3, 257)),
    "offsets not in order": lambda f: array(f / "offsets.bin", "<u8", lambda of: of.__setitem__([1, 2], of[[2, 1]])),
    "offsets beyond the end": lambda f: array(f / "offsets.bin", "<u8", lambda of: of.__setitem__(-1, 2**60)),
    "a first document that begins late": lambda f: array(f / "offsets.bin", "<u8", lambda of: of.__setitem__(0, 1)),
    "no ids": lambda folder: (folder / "ids.bin").write_bytes(b""),
    "no offsets": lambda folder: (folder / "offsets.bin").write_bytes(b""),
}
ABOUT = [
    {"dtype": "<f8"},
    {"dtype": "|O"},
    {"dtype": 3},
    {"dtype": None},
    {"num_tokens": 1},
    {"num_tokens": "many"},
    {"contents": {}},
    {"contents": None},
    {"files": {}},
    {"files": []},
    {"files": {"../text.jsonl": "0"}},
]


@pytest.mark.parametrize("nonsense", NONSENSE)
def test_sealed_nonsense_is_written_again(corpus, cache, folder, nonsense):
    NONSENSE[nonsense](folder)
    reseal(folder)
    assert is_right(corpus, cache)


@pytest.mark.parametrize("change", ABOUT, ids=str)
def test_what_is_said_of_tokens_must_be_so(corpus, cache, folder, change):
    reseal(folder, **change)
    assert is_right(corpus, cache)


def test_tokens_and_notes_of_another_text_are_not_taken(corpus, cache, folder, tmp_path):
    (note,) = cache.glob("*.json")
    store(write(tmp_path / "other.jsonl", DOCUMENTS[1:]), TOKENIZER, cache)
    (other,) = (path for path in cache.iterdir() if path.is_dir() and path != folder)
    (other_note,) = (path for path in cache.glob("*.json") if path != note)
    shutil.copyfile(other_note, note)
    assert is_right(corpus, cache)
    shutil.rmtree(folder)
    shutil.copytree(other, folder)
    assert is_right(corpus, cache)


def test_an_id_that_the_tokenizer_cannot_have_is_refused(corpus, cache, monkeypatch, folder):
    shutil.rmtree(folder)
    monkeypatch.setattr(type(TOKENIZER), "__len__", lambda tokenizer: 100)
    with pytest.raises(ValueError, match=r"text\.jsonl: the tokenizer gives ids from \d+ to \d+, but .* 100 tokens"):
        store(corpus, TOKENIZER, cache)
    assert not [path for path in cache.iterdir() if path.is_dir()]


def test_parts_that_dead_processes_left_are_removed_and_no_others(corpus, cache, folder):
    shutil.rmtree(folder)
    for name in ("dead.abc.part", f"{folder.name}.def.part", "living.ghi.part"):
        (cache / name).mkdir()
    (cache / "note.json.part").write_text("{")
    with lease(cache / "living.lease"):
        store(corpus, TOKENIZER, cache)
        assert {path.name for path in cache.iterdir() if "part" in path.name} == {"living.ghi.part"}
