"""Text files: which of them a source names, and the documents that each holds, one by one."""

from __future__ import annotations

import glob
import gzip
import json
import os.path
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

#: Records, and as far as the file's own account tells, bytes of them in memory at a time.
PARQUET_BATCH, PARQUET_BYTES = 1024, 2**24
#: Bytes of a record, and of a file that is one document: each is held in memory as a whole.
LARGEST_RECORD, LARGEST_TEXT = 2**26, 2**30


@dataclass(frozen=True)
class FileDocuments:
    """Documents of ``files`` in their order, blank ones left out; can be read again and again.

    Raises:
        ValueError: while reading: a file is damaged, a record has no text, or no file holds any.
    """

    source: str
    files: tuple[Path, ...]
    text_field: str

    def __iter__(self) -> Iterator[str]:
        empty = True
        for path in self.files:
            for text in read_file(path, self.text_field):
                if text.strip():
                    empty = False
                    yield text
        if empty:
            raise ValueError(f"{self.source}: {'the file is' if len(self.files) == 1 else 'all files are'} empty")


def find_files(source: str, also_legal: str) -> tuple[Path, ...]:
    """Files of a file's, folder's or glob's name, in the order of their paths.

    A folder stands for every file of a legal kind in it and below, hidden ones left out.

    Raises:
        ValueError: there is no such file, or it is of an unknown kind.
    """
    path = Path(source)
    if os.path.isdir(source):  # which is false, not an error, for what no path can be
        inside = [file for file in path.rglob("*") if _kind_of(file) and file.is_file()]
        shown = [file for file in inside if not any(part.startswith(".") for part in file.relative_to(path).parts)]
        if not shown:
            raise ValueError(f"{source}: the folder holds no text; legal: {', '.join(READERS)}")
        return tuple(sorted(shown, key=Path.as_posix))
    if os.path.isfile(source):
        files = [path]
    elif any(mark in source for mark in "*?["):
        found = sorted(Path(name).as_posix() for name in glob.glob(source, recursive=True))
        files = [Path(name) for name in found if Path(name).is_file()]
        if not files:
            raise ValueError(f"{source}: no file has such a name")
    else:
        kinds = ", ".join(READERS)
        raise ValueError(
            f"{source}: no such file; legal: {also_legal}, or the path of a file ({kinds}), folder or glob"
        )
    for file in files:
        if not _kind_of(file):
            raise ValueError(f"{file}: unknown kind of file {file.suffix!r}; legal: {', '.join(READERS)}")
    return tuple(files)


def read_file(path: Path, text_field: str) -> Iterator[str]:
    """Texts of one file, in order.

    Raises:
        ValueError: the file is damaged, or a record has no text; with the place.
    """
    try:
        yield from READERS[_kind_of(path)](path, text_field)
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{path}: cannot be read: {error}") from error


def text_of(record: object, text_field: str, where: str) -> str:
    """The text of a record.

    Raises:
        ValueError: it has none, or what it has is no text.
    """
    if not isinstance(record, dict):
        raise ValueError(f"{where}: expected an object with the field {text_field!r}, got {type(record).__name__}")
    if text_field not in record:
        raise ValueError(f"{where}: no field {text_field!r}; there are: {', '.join(record) or 'none'}")
    text = record[text_field]
    if not isinstance(text, str):
        raise ValueError(f"{where}: field {text_field!r} is no text but {type(text).__name__}")
    if len(text) > LARGEST_RECORD:
        raise ValueError(f"{where}: {_too_large(len(text))}")
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise ValueError(f"{where}: character {error.start} of {text_field!r} is half a surrogate pair") from None
    return text


def _too_large(size: int) -> str:
    return f"{size:,} bytes or more, above the {LARGEST_RECORD:,} of a record; split it into several records"


def _kind_of(path: Path) -> str:
    """The ending that says how to read a file, ``""`` if none does."""
    return next((ending for ending in READERS if path.name.lower().endswith(ending)), "")


def _read_text(path: Path, text_field: str) -> Iterator[str]:
    size = path.stat().st_size
    if size > LARGEST_TEXT:
        raise ValueError(
            f"{path}: {size:,} bytes, above the {LARGEST_TEXT:,} of a text that is one document; split it into several "
            f"files (split --line-bytes=100M --additional-suffix=.txt) and name their folder"
        )
    try:
        yield path.read_bytes().decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: byte {error.start} is not UTF-8") from None


def _read_lines(path: Path, text_field: str) -> Iterator[str]:
    with path.open("rb") as file:
        yield from _records(file, path, text_field)


def _read_packed_lines(path: Path, text_field: str) -> Iterator[str]:
    with gzip.open(path) as file:
        yield from _records(file, path, text_field)


def _records(file: BinaryIO | gzip.GzipFile, path: Path, text_field: str) -> Iterator[str]:
    for number, line in enumerate(iter(lambda: file.readline(LARGEST_RECORD + 1), b""), 1):
        where = f"{path}:{number}"
        if len(line) > LARGEST_RECORD:
            raise ValueError(f"{where}: {_too_large(len(line))}")
        if not line.strip():
            continue
        try:
            record = json.loads(line.decode().rstrip())
        except UnicodeDecodeError as error:
            raise ValueError(f"{where}: byte {error.start} of the line is not UTF-8") from None
        except json.JSONDecodeError as error:
            raise ValueError(f"{where}: not JSON: {error.msg}, column {error.colno}") from None
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{where}: not JSON: {error}") from None
        yield text_of(record, text_field, where)


def _read_parquet(path: Path, text_field: str) -> Iterator[str]:
    from pyarrow import ArrowException
    from pyarrow.parquet import ParquetFile

    number = 0
    try:
        with ParquetFile(path) as file:
            names = file.schema_arrow.names
            if text_field not in names:
                raise ValueError(f"{path}: no field {text_field!r}; there are: {', '.join(names) or 'none'}")
            size = max(PARQUET_BYTES // max(_record_bytes(file, text_field), 1), 1)
            for batch in file.iter_batches(min(size, PARQUET_BATCH), columns=[text_field]):
                for scalar in batch.column(0):
                    number += 1
                    yield text_of({text_field: scalar.as_py()}, text_field, f"{path}: record {number}")
    except UnicodeDecodeError:
        raise ValueError(f"{path}: record {number} is not UTF-8") from None
    except ArrowException as error:
        raise ValueError(f"{path}: cannot be read: {str(error).splitlines()[0]}") from error


def _record_bytes(file: Any, column: str) -> int:
    """Bytes of a record in that column, as far as the file tells."""
    groups = [file.metadata.row_group(index) for index in range(file.num_row_groups)]
    chunks = [(group.num_rows, group.column(index)) for group in groups for index in range(group.num_columns)]
    sizes = [chunk.total_uncompressed_size // max(rows, 1) for rows, chunk in chunks if chunk.path_in_schema == column]
    return max(sizes, default=0)


READERS = {
    ".txt": _read_text,
    ".jsonl": _read_lines,
    ".jsonl.gz": _read_packed_lines,
    ".parquet": _read_parquet,
}
