"""Where text comes from.

``"embedded"`` is the Python standard library's own source and documentation text: real text that every
Python carries, with no download and no licence question. It differs between Python versions, so a run
records its hash.
"""

from __future__ import annotations

import hashlib
import json
import sysconfig
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Literal

from longwave.data.files import FileDocuments, find_files
from longwave.data.hub import PREFIX, open_dataset

EMBEDDED = "embedded"
LEGAL = f"{EMBEDDED}, {PREFIX}NAME, {PREFIX}NAME/CONFIG"
VALIDATION_SHARE = 20  # one document, or one part of a few documents' text, in this many
#: What tokenizers learn from, and what stands for a text that is never read whole.
SAMPLE_CHARACTERS = 64 * 2**20
NOT_TEXT = {"test", "tests", "idle_test", "site-packages", "dist-packages", "lib2to3", "encodings"}


@dataclass(frozen=True)
class Contents:
    """What one reading of a corpus found.

    Attributes:
        sha256: of every document's length and text.
        num_documents: documents.
        num_bytes: UTF-8 bytes.
    """

    sha256: str
    num_documents: int
    num_bytes: int


class Meter:
    """Counts and hashes documents as they pass."""

    def __init__(self) -> None:
        self._digest, self._num_documents, self._num_bytes = hashlib.sha256(), 0, 0

    def through(self, documents: Iterable[str]) -> Iterator[str]:
        """``documents``, each noted before it is handed on."""
        for document in documents:
            data = document.encode()
            self._digest.update(len(data).to_bytes(8, "little") + data)
            self._num_documents += 1
            self._num_bytes += len(data)
            yield document

    def contents(self) -> Contents:
        """What has passed so far."""
        return Contents(self._digest.hexdigest(), self._num_documents, self._num_bytes)


@dataclass(frozen=True)
class Corpus:
    """Documents in a fixed order, read as they are needed.

    Attributes:
        name: source, as the user gave it.
        documents: texts; each can be held in memory, all of them need not be. Can be read again and again.
        files: the local files that alone determine the documents; empty if something else does, too.
        view: what of the files is read, and how.
    """

    name: str
    documents: Iterable[str]
    files: tuple[Path, ...] = ()
    view: str = ""

    def contents(self) -> Contents:
        """Hash and sizes, by reading every document."""
        meter = Meter()
        for _ in meter.through(self.documents):
            pass
        return meter.contents()

    def signature(self) -> str | None:
        """Changes when a file has been written to; ``None`` if files alone do not determine the documents.

        Raises:
            ValueError: a file has gone.
        """
        if not self.files:
            return None
        try:
            states = [(str(path.resolve()), path.stat()) for path in self.files]
        except OSError as error:
            raise ValueError(f"{self.name}: cannot be read: {error}") from error
        known = [[name, state.st_size, state.st_mtime_ns, state.st_ctime_ns] for name, state in states]
        return hashlib.sha256(json.dumps([self.view, known]).encode()).hexdigest()

    def split(self, within: int | None = None) -> tuple[Corpus, Corpus]:
        """Training and validation part: every 20th document, or the last 20th of less than twenty documents' text.

        Args:
            within: validation takes none that begins after this many characters; ``None`` for no such limit.

        Raises:
            ValueError: there is too little text to split.
        """
        first = list(islice(self.documents, VALIDATION_SHARE))
        if len(first) == VALIDATION_SHARE:
            train, valid = (_Share(self.documents, chosen, within) for chosen in (False, True))
        else:
            train, valid = _cut(first)
            if not train or not valid:
                raise ValueError(f"{self.name}: too little text to set a validation part aside")
        return (
            Corpus(f"{self.name} (train)", train, self.files, f"{self.view} (train, {within})"),
            Corpus(f"{self.name} (validation)", valid, self.files, f"{self.view} (validation, {within})"),
        )


def read_corpus(
    source: str,
    *,
    split: Literal["train", "validation"] = "train",
    text_field: str = "text",
    streaming: bool = False,
) -> Corpus:
    """The documents of ``"embedded"``, of text files, or of a dataset of the hub.

    A ``.txt`` file is one document; ``.jsonl``, ``.jsonl.gz`` and ``.parquet`` hold one a record; a folder or glob
    stands for its files in the order of their paths; ``hf:NAME`` and ``hf:NAME/CONFIG`` are read by the `datasets`
    library. Text is read when the documents are. Blank documents are left out.

    Args:
        split: of a hub dataset.
        text_field: what holds the text of a record.
        streaming: do not bring a hub dataset here first.

    Raises:
        ValueError: there is no such source, or it is of an unknown kind; while reading: it is damaged or empty.
    """
    if source == EMBEDDED:
        return Corpus(EMBEDDED, _Library())
    if source.startswith(PREFIX):
        documents, files = open_dataset(source, split, text_field, streaming)
    elif not source:
        raise ValueError(f"a source is empty; legal: {LEGAL}, or a path")
    else:
        files = find_files(source, LEGAL)
        documents = FileDocuments(source, files, text_field)
    return Corpus(source, documents, files, f"{type(documents).__name__} {text_field!r}")


def join(name: str, corpora: Iterable[Corpus]) -> Corpus:
    """Several corpora, one behind the other."""
    corpora = tuple(corpora)
    if len(corpora) == 1:
        return corpora[0]
    all_are_files = all(corpus.files for corpus in corpora)
    files = tuple(path for corpus in corpora for path in corpus.files) if all_are_files else ()
    views = json.dumps([[corpus.view, len(corpus.files)] for corpus in corpora])
    return Corpus(name, _Chain(tuple(corpus.documents for corpus in corpora)), files, views)


def head(documents: Iterable[str], num_characters: int = SAMPLE_CHARACTERS) -> Iterator[str]:
    """Documents up to ``num_characters`` of text in all, the last one cut there."""
    for text in documents:
        yield text[:num_characters]
        num_characters -= len(text)
        if num_characters <= 0:
            return


@dataclass(frozen=True)
class _Chain:
    parts: tuple[Iterable[str], ...]

    def __iter__(self) -> Iterator[str]:
        return chain.from_iterable(self.parts)


@dataclass(frozen=True)
class _Share:
    """Every 20th document that begins within so many characters, or all others."""

    documents: Iterable[str]
    validation: bool
    within: int | None

    def __iter__(self) -> Iterator[str]:
        passed = 0
        for index, text in enumerate(self.documents):
            eligible = self.within is None or passed < self.within
            if self.validation and not eligible:
                return
            if self.validation == (eligible and index % VALIDATION_SHARE == 0):
                yield text
            passed += len(text)


def _cut(documents: list[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The text up to its last 20th, cut at the end of a line if one ends within the 20th before, and the rest."""
    total = sum(map(len, documents))
    share = total // VALIDATION_SHARE
    left = total - share
    for index, text in enumerate(documents):
        if left < len(text):
            cut = text.rfind("\n", max(0, left - share), left) + 1 or left
            before, after = ((text[:cut],) if cut else ()), (text[cut:],)
            return (*documents[:index], *before), (*after, *documents[index + 1 :])
        left -= len(text)
    return tuple(documents), ()


@dataclass(frozen=True)
class _Library:
    """Every module of the standard library but tests and tables of characters, in the order of its path."""

    def __iter__(self) -> Iterator[str]:
        root = Path(sysconfig.get_path("stdlib"))
        files = [path.relative_to(root) for path in root.rglob("*.py")]
        for path in sorted(path.as_posix() for path in files if not NOT_TEXT & set(path.parts)):
            text = (root / path).read_text(encoding="utf-8", errors="replace")
            if text.strip():
                yield text
