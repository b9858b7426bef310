"""Checkpoints that can be trusted: a manifest of every file, written last, and a resolver that believes nothing else.

The Trainer writes straight into ``checkpoint-N``. A kill leaves a torn directory, and a flipped bit or a file of
another checkpoint would be accepted in silence; so a directory counts only if every file is as its manifest says.
What a run appends to as it goes is kept in its checkpoints too, and comes from there when it is resumed.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from longwave.data.sealed import altered, fingerprint, read_sealed, remove, replacing, saving, sync, write_sealed

MANIFEST = "manifest.json"
METRICS, SAMPLES = "metrics.jsonl", "samples.jsonl"
NAME = re.compile(r"checkpoint-(0|[1-9][0-9]*)", re.ASCII)


def seal(directory: Path, identity: str) -> None:
    """Make a finished checkpoint count: sync its files, then write the SHA-256 of each, and the step, in one rename.

    ``identity`` names the run that may resume from it.
    """
    files = {}
    for name in sorted(_files(directory) - {MANIFEST}):
        sync(directory / name)
        files[name] = fingerprint(directory / name)
    write_sealed(directory / MANIFEST, {"identity": identity, "step": step_of(directory), "files": files})


def complaint(directory: Path, identity: str) -> str | None:
    """Why this checkpoint must not be resumed from; ``None`` if it is whole, of this run and of its name's step."""
    try:
        manifest = read_sealed(directory / MANIFEST)
        owner, step, listed = manifest["identity"], manifest["step"], manifest["files"]
    except FileNotFoundError:
        return "was not finished"
    except (OSError, ValueError, KeyError):
        return "has an unreadable manifest"
    if owner != identity:
        return "belongs to another run"
    if step != step_of(directory):
        return f"is of step {step}"
    if odd := sorted((_files(directory) - {MANIFEST}) ^ set(listed)):
        return f"has files missing or added: {odd[0]}"
    changed = altered(directory, listed)
    return None if changed is None else f"was altered: {changed}"


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
        directory.rename(directory.with_name(f"{directory.name}.broken"))
    return None, sentences


@contextmanager
def writing(checkpoint: Path) -> Iterator[None]:
    """Write a part of a checkpoint, all of which is removed if it cannot be written: the disk may be full.

    Raises:
        ValueError: it cannot.
    """
    try:
        with saving(checkpoint):
            yield
    except ValueError:
        shutil.rmtree(checkpoint, ignore_errors=True)
        raise


def rotate(output: Path, keep: int) -> None:
    """Delete all but the ``keep`` newest checkpoints."""
    for directory in _checkpoints(output)[:-keep]:
        (directory / MANIFEST).unlink(missing_ok=True)
        shutil.rmtree(directory)


def clear(output: Path) -> None:
    """Delete what earlier sittings left half written, or set aside."""
    for pattern in ("*.part", "checkpoint-*.broken"):
        remove(output, pattern)


def keep_lines(output: Path, checkpoint: Path) -> None:
    """Put the metrics and samples so far into a checkpoint that is not sealed yet."""
    for name in (METRICS, SAMPLES):
        if (output / name).exists():
            shutil.copyfile(output / name, checkpoint / name)


def restore_lines(output: Path, checkpoint: Path | None) -> None:
    """Make metrics and samples what they were at a whole checkpoint; without one, nothing."""
    for name in (METRICS, SAMPLES):
        remove(output, name)
        if checkpoint is not None and (checkpoint / name).exists():
            with replacing(output / name) as beside:
                shutil.copyfile(checkpoint / name, beside)


def step_of(checkpoint: Path) -> int:
    """The step that a checkpoint's name says."""
    return int(checkpoint.name.rpartition("-")[2])


def _files(directory: Path) -> set[str]:
    return {path.relative_to(directory).as_posix() for path in directory.rglob("*") if path.is_file()}


def _checkpoints(output: Path) -> list[Path]:
    return sorted((path for path in output.glob("checkpoint-*") if NAME.fullmatch(path.name)), key=step_of)
