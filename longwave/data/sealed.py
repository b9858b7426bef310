"""Files that can be trusted: never half written, and known again by their SHA-256.

A file is written beside its place and renamed. A sealed one is JSON that carries its own hash, and often those of
other files. Whoever reads it believes nothing that is not exactly as it was written.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

SEAL = "seal"
BLOCK_BYTES = 1 << 20


def fingerprint(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def altered(folder: Path, files: Mapping[str, str]) -> str | None:
    """The first of ``files``, names and fingerprints, that is not as it was in ``folder``; ``None`` if all are."""
    for name, expected in files.items():
        if not (folder / name).is_file() or fingerprint(folder / name) != expected:
            return name
    return None


def write_sealed(path: Path, values: Mapping[str, Any]) -> None:
    """Replace ``path`` by a JSON object that carries a hash of itself; its numbers are finite."""
    replace_text(path, _sealed(values))


def read_sealed(path: Path) -> dict[str, Any]:
    """What :func:`write_sealed` wrote.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it holds anything else.
    """
    try:
        text = path.read_bytes().decode()
        values = json.loads(text)
        del values[SEAL]
        whole = text == _sealed(values)
    except (IsADirectoryError, ValueError, KeyError, TypeError, RecursionError):
        raise ValueError(f"{path}: expected a file of JSON with a seal of its own") from None
    if not whole:
        raise ValueError(f"{path}: was altered after it was written")
    return values


def replace_text(path: Path, text: str) -> None:
    """Replace a file by UTF-8 text: it is the old one or the new one, never half."""
    with replacing(path) as beside:
        beside.write_text(text, encoding="utf-8")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A path to write to instead of ``path``, whose file takes that place when it is whole and on the disk.

    Raises:
        ValueError: it cannot be written, as on a full disk.
    """
    beside = path.with_name(f"{path.name}.part")
    try:
        with saving(path):
            yield beside
            sync(beside)
            beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Wait until a file's bytes are on the disk."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


@contextmanager
def saving(path: Path) -> Iterator[None]:
    """Turn every library's way of failing to write into a sentence that names ``path``.

    Raises:
        ValueError: the sentence.
    """
    try:
        yield
    except Exception as error:
        # PyTorch raises RuntimeError, tokenizers Exception itself.
        if not isinstance(error, (OSError, RuntimeError, SafetensorError)) and type(error) is not Exception:
            raise
        raise ValueError(f"{path}: cannot be written: {' '.join(str(error).split())}") from error


@contextmanager
def making(folder: Path) -> Iterator[None]:
    """Make ``folder`` and what it lies in; of these, what is still empty at the end is removed."""
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield
    finally:
        for path in made:
            if path.is_dir() and not any(path.iterdir()):
                path.rmdir()


def remove(folder: Path, pattern: str, when: Callable[[Path], bool] = lambda path: True) -> None:
    """Delete the files and folders directly in ``folder`` whose names match a glob, if ``when`` says so."""
    for path in folder.glob(pattern):
        if when(path):
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def _sealed(values: Mapping[str, Any]) -> str:
    seal = hashlib.sha256(json.dumps(values).encode()).hexdigest()
    return json.dumps({**values, SEAL: seal}, indent=1, allow_nan=False) + "\n"
