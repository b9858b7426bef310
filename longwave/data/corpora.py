"""Where text comes from.

``"embedded"`` is the Python standard library's own source and documentation text: real text that every
Python carries, with no download and no licence question. It differs between Python versions, so a run
records its hash.
"""

from __future__ import annotations

import hashlib
import sysconfig
from dataclasses import dataclass
from pathlib import Path

EMBEDDED = "embedded"
VALIDATION_SHARE = 20  # one document, or one part of a document's text, in this many
NOT_TEXT = {"test", "tests", "idle_test", "site-packages", "dist-packages", "lib2to3", "encodings"}


@dataclass(frozen=True)
class Corpus:
    """Documents in a fixed order.

    Attributes:
        name: source, as the user gave it.
        documents: texts.
    """

    name: str
    documents: tuple[str, ...]

    @property
    def num_bytes(self) -> int:
        """UTF-8 bytes of all documents."""
        return sum(len(document.encode()) for document in self.documents)

    def sha256(self) -> str:
        """Hash of the documents and of their borders."""
        digest = hashlib.sha256()
        for document in self.documents:
            data = document.encode()
            digest.update(len(data).to_bytes(8, "little") + data)
        return digest.hexdigest()

    def split(self) -> tuple[Corpus, Corpus]:
        """Training and validation part: every 20th document, or the last 20th of a lone document.

        Raises:
            ValueError: there is too little text to split.
        """
        if len(self.documents) >= VALIDATION_SHARE:
            train = [text for index, text in enumerate(self.documents) if index % VALIDATION_SHARE]
            valid = self.documents[::VALIDATION_SHARE]
        else:
            text = "".join(self.documents)
            cut = text.rfind("\n", 0, len(text) - len(text) // VALIDATION_SHARE) + 1
            if not 0 < cut < len(text):
                raise ValueError(f"{self.name}: too little text to set a validation part aside")
            train, valid = [text[:cut]], [text[cut:]]
        return Corpus(f"{self.name} (train)", tuple(train)), Corpus(f"{self.name} (validation)", tuple(valid))


def read_corpus(source: str) -> Corpus:
    """The documents of ``"embedded"`` or of a UTF-8 text file (one document).

    Raises:
        ValueError: the file is missing, empty, not UTF-8 or of an unknown kind.
    """
    if source == EMBEDDED:
        return Corpus(EMBEDDED, tuple(_read_library()))
    path = Path(source)
    if not path.is_file():
        raise ValueError(f"{source}: no such file; legal: {EMBEDDED}, or the path of a .txt file")
    if path.suffix != ".txt":
        raise ValueError(f"{source}: unknown kind of file {path.suffix!r}; legal: .txt")
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{source}: byte {error.start} is not UTF-8") from error
    if not text.strip():
        raise ValueError(f"{source}: the file is empty")
    return Corpus(source, (text,))


def _read_library() -> list[str]:
    """Every module of the standard library but tests and tables of characters, in the order of its path."""
    root = Path(sysconfig.get_path("stdlib"))
    files = [path.relative_to(root) for path in root.rglob("*.py")]
    kept = sorted(path.as_posix() for path in files if not NOT_TEXT & set(path.parts))
    texts = ((root / path).read_text(encoding="utf-8", errors="replace") for path in kept)
    return [text for text in texts if text.strip()]
