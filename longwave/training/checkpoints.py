"""Checkpoints that can be trusted: a manifest of every file, written last, and a resolver that believes nothing else.

The Trainer writes straight into ``checkpoint-N``. A kill leaves a torn directory, and a flipped bit or a file of
another checkpoint would be accepted in silence; so a directory counts only if every file is as its manifest says.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path

MANIFEST = "manifest.json"
BLOCK_BYTES = 1 << 20


def seal(directory: Path, identity: str) -> None:
    """Make a finished checkpoint count: sync its files, then write size and SHA-256 of each in one rename.

    ``identity`` names the run that may resume from it.
    """
    entries = {}
    for path in sorted(directory.rglob("*")):
        if path.is_file() and path.name != MANIFEST:
            with path.open("rb") as file:
                os.fsync(file.fileno())
            entries[path.relative_to(directory).as_posix()] = _fingerprint(path)
    beside = directory / f"{MANIFEST}.part"
    with beside.open("w", encoding="utf-8") as file:
        json.dump({"identity": identity, "files": entries}, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    beside.replace(directory / MANIFEST)


def complaint(directory: Path, identity: str) -> str | None:
    """Why this checkpoint must not be resumed from; ``None`` if it is whole and of this run."""
    try:
        manifest = json.loads((directory / MANIFEST).read_text(encoding="utf-8"))
        listed = {str(name): tuple(entry) for name, entry in manifest["files"].items()}
        owner = manifest["identity"]
    except FileNotFoundError:
        return "was not finished"
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return "has an unreadable manifest"
    if owner != identity:
        return "belongs to another run"
    present = {path.relative_to(directory).as_posix() for path in directory.rglob("*") if path.is_file()}
    if present - {MANIFEST} != set(listed):
        odd = sorted((present - {MANIFEST}) ^ set(listed))
        return f"has files missing or added: {odd[0]}"
    for name, entry in listed.items():
        if _fingerprint(directory / name) != entry:
            return f"was altered: {name}"
    return None


def newest_whole(output: Path, identity: str) -> tuple[Path | None, list[str]]:
    """The newest checkpoint of a run directory that is whole, and a sentence for each newer one that is not.

    What is not whole is renamed to ``checkpoint-N.broken``, so that the run can write ``checkpoint-N`` again.
    """
    sentences = []
    for directory in _checkpoints(output)[::-1]:
        reason = complaint(directory, identity)
        if reason is None:
            return directory, sentences
        sentences.append(f"{directory} {reason}; not used")
        broken = directory.with_name(f"{directory.name}.broken")
        shutil.rmtree(broken, ignore_errors=True)
        directory.rename(broken)
    return None, sentences


def rotate(output: Path, keep: int) -> None:
    """Delete all but the ``keep`` newest checkpoints."""
    for directory in _checkpoints(output)[:-keep]:
        (directory / MANIFEST).unlink(missing_ok=True)
        shutil.rmtree(directory)


def _checkpoints(output: Path) -> list[Path]:
    found = [path for path in output.glob("checkpoint-*") if path.name.removeprefix("checkpoint-").isdigit()]
    return sorted(found, key=lambda path: int(path.name.removeprefix("checkpoint-")))


def _fingerprint(path: Path) -> tuple[int, str]:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(BLOCK_BYTES):
            digest.update(block)
    return path.stat().st_size, digest.hexdigest()
