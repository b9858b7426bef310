"""Tokens on disk: written once for a text and a tokenizer, then mapped into memory.

The folder of tokens is named after the hash of the documents and that of the tokenizer. It is written beside its
place and renamed when it is whole, so that it is whole or absent, however many processes write at once.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from longwave.data.corpora import Contents, Corpus, Meter
from longwave.data.packing import DocumentStarts, TokenStream, encode

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

DEFAULT_FOLDER = "~/.cache/longwave/tokens"
FORMAT = 1
OFFSET = "<u8"
#: A file may be written to twice within the resolution of its time stamp; one that is older has a new stamp by then.
SETTLED_SECONDS = 2.0


@dataclass(frozen=True)
class StoredTokens(TokenStream):
    """A stream that is mapped from ``folder``; a copy for another process maps it anew."""

    folder: Path

    def __reduce__(self) -> tuple[Any, ...]:
        return open_tokens, (self.folder,)


def store(
    corpus: Corpus, tokenizer: PreTrainedTokenizerBase, cache: str | Path | None = None
) -> tuple[StoredTokens, Contents]:
    """The tokens of ``corpus``, and what it holds; tokenized only if ``cache`` lacks them.

    Args:
        cache: folder for tokens; ``None`` for ``~/.cache/longwave/tokens``.

    Raises:
        ValueError: the text cannot be read, changes meanwhile, or the folder cannot be written to.
    """
    root = Path(cache or DEFAULT_FOLDER).expanduser()
    try:
        root.mkdir(parents=True, exist_ok=True)
        contents = measure(corpus, root)
        key = f"{FORMAT} {contents.sha256} {tokenizer_sha256(tokenizer)}"
        folder = root / hashlib.sha256(key.encode()).hexdigest()
        if not _is_whole(folder):
            _build(corpus, tokenizer, contents, folder)
    except OSError as error:
        raise ValueError(f"{root}: tokens cannot be stored: {error}; data.cache names another folder") from error
    return open_tokens(folder), contents


def open_tokens(folder: Path) -> StoredTokens:
    """Map the tokens in ``folder``, which must be whole."""
    about = json.loads((folder / "about.json").read_text(encoding="utf-8"))
    ids = np.memmap(folder / "ids.bin", dtype=about["dtype"], mode="r")
    offsets = np.memmap(folder / "offsets.bin", dtype=OFFSET, mode="r")
    return StoredTokens(ids, DocumentStarts(offsets, len(ids)), about["contents"]["num_bytes"], folder)


def measure(corpus: Corpus, root: Path) -> Contents:
    """Hash and sizes of ``corpus``; noted in ``root`` for files, which are read again only when they have changed.

    Raises:
        ValueError: the text cannot be read, changes meanwhile, or there is none.
    """
    signature = corpus.signature()
    note = root / f"{signature}.json"
    if signature and note.is_file():
        return Contents(**json.loads(note.read_text(encoding="utf-8")))
    contents = corpus.contents()
    if not contents.num_documents:
        raise ValueError(f"{corpus.name}: holds no text")
    if corpus.signature() != signature:
        raise ValueError(f"{corpus.name}: the text changed while it was read")
    if signature and time.time() - max(path.stat().st_mtime for path in corpus.files) > SETTLED_SECONDS:
        part = note.with_suffix(f".{os.getpid()}.part")
        part.write_text(json.dumps(asdict(contents)), encoding="utf-8")
        part.replace(note)
    return contents


def _build(corpus: Corpus, tokenizer: PreTrainedTokenizerBase, expected: Contents, folder: Path) -> None:
    part = Path(tempfile.mkdtemp(prefix=f"{folder.name}.", suffix=".part", dir=folder.parent))
    try:
        if _write(corpus, tokenizer, part) != expected:
            raise ValueError(f"{corpus.name}: the text changed while it was read")
        if folder.exists() and not _is_whole(folder):
            shutil.rmtree(folder)
        try:
            part.rename(folder)
        except OSError:
            if not _is_whole(folder):  # else another process was first
                raise
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _write(corpus: Corpus, tokenizer: PreTrainedTokenizerBase, part: Path) -> Contents:
    """Write the tokens of ``corpus`` into ``part``, a batch of documents at a time; what was read."""
    largest = len(tokenizer) - 1
    dtype = next(dtype for dtype in ("|u1", "<u2", "<u4") if largest <= np.iinfo(dtype).max)
    meter, num_tokens = Meter(), 0
    with (part / "ids.bin").open("wb") as ids_file, (part / "offsets.bin").open("wb") as offsets_file:
        for ids in encode(meter.through(corpus.documents), tokenizer):
            ids_file.write(ids.astype(dtype).tobytes())
            offsets_file.write(np.array(num_tokens, dtype=OFFSET).tobytes())
            num_tokens += len(ids)
        for file in (ids_file, offsets_file):
            file.flush()
            os.fsync(file.fileno())
    contents = meter.contents()
    about = {"name": corpus.name, "dtype": dtype, "num_tokens": num_tokens, "contents": asdict(contents)}
    with (part / "about.json").open("w", encoding="utf-8") as file:
        json.dump(about, file, indent=2)
        file.flush()
        os.fsync(file.fileno())
    return contents


def _is_whole(folder: Path) -> bool:
    """Whether ``folder`` holds as many bytes as it says it does."""
    try:
        about = json.loads((folder / "about.json").read_text(encoding="utf-8"))
        expected = about["num_tokens"] * np.dtype(about["dtype"]).itemsize
        documents = about["contents"]["num_documents"] * np.dtype(OFFSET).itemsize
        return ((folder / "ids.bin").stat().st_size, (folder / "offsets.bin").stat().st_size) == (expected, documents)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def tokenizer_sha256(tokenizer: PreTrainedTokenizerBase) -> str:
    """Hash of the files that a tokenizer saves."""
    digest = hashlib.sha256()
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        for path in sorted(Path(folder).rglob("*")):
            if path.is_file():
                digest.update(f"{path.name} {path.stat().st_size} ".encode() + path.read_bytes())
    return digest.hexdigest()
