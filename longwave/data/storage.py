"""Tokens on disk: written once for a text and a tokenizer, then mapped into memory.

The folder of tokens is named after the hash of the documents and that of the tokenizer. It is written beside its
place, by one process at a time, and renamed when it is whole. Its ``about.json`` seals it: tokens that are not what was
written are written again, never used.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from longwave.data.corpora import Contents, Corpus, Meter
from longwave.data.lease import lease
from longwave.data.packing import DocumentStarts, TokenStream, encode
from longwave.data.sealed import altered, fingerprint, read_sealed, remove, saving, sync, write_sealed

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

DEFAULT_FOLDER = "~/.cache/longwave/tokens"
FORMAT = 2
DTYPES = ("|u1", "<u2", "<u4")
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
    """The tokens of ``corpus``, and what it holds; tokenized only if ``cache`` lacks them, or holds them damaged.

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
        if not _is_whole(folder, contents, len(tokenizer)):
            _build(corpus, tokenizer, contents, folder)
    except OSError as error:
        raise ValueError(f"{root}: tokens cannot be stored: {error}; data.cache names another folder") from error
    return open_tokens(folder), contents


def open_tokens(folder: Path) -> StoredTokens:
    """Map the tokens in ``folder``, which must be whole."""
    about = read_sealed(folder / "about.json")
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
    with suppress(OSError, ValueError, TypeError, KeyError):  # no note, or none that can be believed: read the text
        found = read_sealed(note)
        if found["signature"] == signature:
            return Contents(**found["contents"])
    contents = corpus.contents()
    if not contents.num_documents:
        raise ValueError(f"{corpus.name}: holds no text")
    if corpus.signature() != signature:
        raise ValueError(f"{corpus.name}: the text changed while it was read")
    if signature and time.time() - max(path.stat().st_mtime for path in corpus.files) > SETTLED_SECONDS:
        with lease(note.with_suffix(".lease"), wait=True):
            remove(root, note.name)
            write_sealed(note, {"signature": signature, "contents": asdict(contents)})
    return contents


def _build(corpus: Corpus, tokenizer: PreTrainedTokenizerBase, expected: Contents, folder: Path) -> None:
    """Write the tokens of ``corpus`` in place of ``folder``, unless another process has done so meanwhile."""
    with lease(folder.with_suffix(".lease"), wait=True):
        remove(folder.parent, "*.part", when=lambda part: part.name.startswith(folder.name) or _is_left_over(part))
        if _is_whole(folder, expected, len(tokenizer)):
            return
        part = Path(tempfile.mkdtemp(prefix=f"{folder.name}.", suffix=".part", dir=folder.parent))
        try:
            if _write(corpus, tokenizer, part) != expected:
                raise ValueError(f"{corpus.name}: the text changed while it was read")
            remove(folder.parent, folder.name)
            part.rename(folder)
        finally:
            shutil.rmtree(part, ignore_errors=True)


def _is_left_over(part: Path) -> bool:
    """Whether nobody writes to ``part``: a writer holds the lease of what it is a part of."""
    try:
        with lease(part.with_name(f"{part.name.partition('.')[0]}.lease")):
            return True
    except ValueError:
        return False


def _write(corpus: Corpus, tokenizer: PreTrainedTokenizerBase, part: Path) -> Contents:
    """Write the tokens of ``corpus`` into ``part``, a batch of documents at a time; what was read."""
    largest = len(tokenizer) - 1
    dtype = next(dtype for dtype in DTYPES if largest <= np.iinfo(dtype).max)
    meter, num_tokens = Meter(), 0
    with (part / "ids.bin").open("wb") as ids_file, (part / "offsets.bin").open("wb") as offsets_file:
        for ids in encode(meter.through(corpus.documents), tokenizer):
            if not 0 <= ids.min() <= ids.max() <= largest:
                raise ValueError(
                    f"{corpus.name}: the tokenizer gives ids from {ids.min()} to {ids.max()}, but says that it has "
                    f"{len(tokenizer)} tokens"
                )
            ids_file.write(ids.astype(dtype).tobytes())
            offsets_file.write(np.array(num_tokens, dtype=OFFSET).tobytes())
            num_tokens += len(ids)
    contents, files = meter.contents(), {}
    for name in ("ids.bin", "offsets.bin"):
        sync(part / name)
        files[name] = fingerprint(part / name)
    about = {"name": corpus.name, "dtype": dtype, "num_tokens": num_tokens, "contents": asdict(contents)}
    write_sealed(part / "about.json", {**about, "files": files})
    return contents


def _is_whole(folder: Path, contents: Contents, num_ids: int) -> bool:
    """Whether ``folder`` holds what was written of a text of ``contents``, in ids below ``num_ids``."""
    try:
        about = read_sealed(folder / "about.json")
        if about["contents"] != asdict(contents) or about["dtype"] not in DTYPES:
            return False
        if set(about["files"]) != {"ids.bin", "offsets.bin"} or altered(folder, about["files"]):
            return False
        tokens = open_tokens(folder)
        offsets = tokens.starts.offsets
        found = (len(tokens.ids), len(offsets), offsets[0], bool((offsets[1:] > offsets[:-1]).all()))
        expected = (about["num_tokens"], contents.num_documents, 0, True)
        return found == expected and offsets[-1] < len(tokens.ids) and tokens.ids.max() < num_ids
    except (OSError, ValueError, KeyError, TypeError):
        return False


def tokenizer_sha256(tokenizer: PreTrainedTokenizerBase) -> str:
    """Hash of the files that a tokenizer saves."""
    digest = hashlib.sha256()
    with tempfile.TemporaryDirectory() as folder:
        with saving(Path(folder)):
            tokenizer.save_pretrained(folder)
        for path in sorted(Path(folder).rglob("*")):
            if path.is_file():
                digest.update(f"{path.name} {path.stat().st_size} ".encode() + path.read_bytes())
    return digest.hexdigest()
