"""Ways in which a file comes to be another than was written."""

from __future__ import annotations

import os
import shutil
from pathlib import Path


def flip(path: Path) -> None:
    """One bit in the middle."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


def garbage(path: Path) -> None:
    """As long as before, and nonsense."""
    path.write_bytes(bytes(range(255, 0, -1)) * (path.stat().st_size // 255 + 1))


def folder(path: Path) -> None:
    """A folder in its place."""
    path.unlink()
    path.mkdir()


DAMAGE = {
    "a bit flipped": flip,
    "cut short": lambda path: os.truncate(path, path.stat().st_size - 1),
    "half": lambda path: os.truncate(path, path.stat().st_size // 2),
    "empty": lambda path: path.write_bytes(b""),
    "zeros": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "garbage": garbage,
    "longer": lambda path: path.write_bytes(path.read_bytes() + b"\n"),
    "deep JSON": lambda path: path.write_text('{"step": ' + "[" * 200_000 + "]" * 200_000 + "}"),
    "NaN": lambda path: path.write_text('{"step": NaN, "seconds_per_token": NaN, "files": {}}'),
    "other types": lambda path: path.write_text("[[1, 2], null]"),
    "gone": Path.unlink,
    "a folder": folder,
}


def copy(source: Path, target: Path) -> Path:
    """``source`` once more, to be damaged."""
    shutil.copytree(source, target)
    return target
