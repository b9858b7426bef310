"""One process at a time, on any file system, and never longer than the process lives.

A lease is a folder with one file in it, its holder's, which says where and since when that process runs and is touched
every few seconds. The folder is made elsewhere and renamed to its place, which a file system grants only while the
place is free. The file of a dead holder may be removed by whoever finds it: no name comes twice, so nobody can take a
new holder's file for an old one's, and of several that find the place free one succeeds.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

from longwave.data.sealed import replace_text

HEARTBEAT_SECONDS = 10.0
#: A holder on another machine counts as dead so long after its last heartbeat.
STALE_SECONDS = 120.0
POLL_SECONDS = 0.05


@contextmanager
def lease(path: Path, *, wait: bool = False) -> Iterator[Callable[[int], None]]:
    """Hold ``path``, which no other process can meanwhile; its parent must exist.

    Gives a function that lets a child process, by its number, hold it too: it is free when both have ended.

    A holder on this machine whose process has ended counts for nothing; where that cannot be known (another machine or
    container, or a system without ``/proc``), one whose last heartbeat is ``STALE_SECONDS`` old.

    Args:
        wait: for the holder to let go, or to die.

    Raises:
        ValueError: another process holds it, and ``wait`` is false.
    """
    holder = _acquire(path, wait)
    ended = threading.Event()
    heart = threading.Thread(target=_beat, args=(holder, ended), daemon=True)
    heart.start()
    try:
        yield partial(_share, holder)
    finally:
        ended.set()
        heart.join()
        holder.unlink(missing_ok=True)
        _remove_if_empty(path)


def _acquire(path: Path, wait: bool) -> Path:
    """The holder's file of this process, in its place."""
    if not wait:
        _refuse(path, _living(path, time.time()))
    candidate = Path(tempfile.mkdtemp(prefix=f"{path.name}.", suffix=".candidate", dir=path.parent))
    mine = candidate / f"{uuid4().hex}.json"
    try:
        mine.write_text(json.dumps(_this_process()), encoding="utf-8")
        while True:
            os.utime(mine)
            now = mine.stat().st_mtime  # by the clock of the file system, which all machines share
            for other in path.parent.glob(f"{path.name}.*.candidate"):
                _remove_if_left(other, now)
            if not (living := _living(path, now)):
                _remove_if_empty(path)  # not every system renames over an empty folder
                try:
                    candidate.rename(path)
                    return path / mine.name
                except OSError as error:  # another process was quicker
                    if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
                        raise
            elif wait:
                time.sleep(POLL_SECONDS)
            else:
                _refuse(path, living)
    finally:
        shutil.rmtree(candidate, ignore_errors=True)


def _refuse(path: Path, living: list[Path]) -> None:
    for holder in living:
        with suppress(OSError, ValueError, TypeError, KeyError, StopIteration, RecursionError):
            found = json.loads(holder.read_text(encoding="utf-8"))
            where = f"process {next(iter(found['started']))} on {found['host']}"
            break
    else:
        where = "another process"
    if living:
        raise ValueError(
            f"{path.parent}: in use by {where}; wait until it has ended (on another machine: until {STALE_SECONDS:.0f} "
            f"seconds after its last sign of life)"
        )


def _living(folder: Path, now: float) -> list[Path]:
    """The files in ``folder`` of holders that may be alive at the instant ``now``; those of dead ones are removed."""
    living = []
    for holder in folder.glob("*.json"):
        if _is_alive(holder, now):
            living.append(holder)
        else:
            holder.unlink(missing_ok=True)
    return living


def _remove_if_left(candidate: Path, now: float) -> None:
    """Remove what a process made that was killed while it tried; it may be about to write its holder's file."""
    with suppress(OSError):
        made_at, files = candidate.stat().st_mtime, list(candidate.glob("*.json"))
        if not _living(candidate, now) and (files or now - made_at > STALE_SECONDS):
            candidate.rmdir()


def _is_alive(holder: Path, now: float) -> bool:
    try:
        beat_at = holder.stat().st_mtime
        found, here = json.loads(holder.read_text(encoding="utf-8")), _this_process()
        if here["place"] and found["place"] == here["place"]:
            return any(tick is not None and tick == _started(process) for process, tick in found["started"].items())
    except FileNotFoundError:
        return False
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        pass  # nothing can be known of it but its age
    return now - beat_at < STALE_SECONDS


def _share(holder: Path, process: int) -> None:
    found = json.loads(holder.read_text(encoding="utf-8"))
    found["started"][str(process)] = _started(process)
    replace_text(holder, json.dumps(found))


def _beat(holder: Path, ended: threading.Event) -> None:
    while not ended.wait(HEARTBEAT_SECONDS):
        with suppress(OSError):
            os.utime(holder)


def _this_process() -> dict[str, Any]:
    """What a holder's file says: the machine, since it was started, with the processes it sees, and who holds."""
    here = {"host": socket.gethostname(), "place": "", "started": {str(os.getpid()): _started(os.getpid())}}
    with suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        here["place"] = f"{here['host']} {boot} {os.readlink('/proc/self/ns/pid')}"
    return here


def _started(process: int | str) -> int | None:
    """When a process began, in ticks since the machine was started; ``None`` if it does not run, or cannot be seen."""
    try:
        state, *fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except (OSError, ValueError):
        return None
    return None if state in "ZX" else int(fields[18])


def _remove_if_empty(folder: Path) -> None:
    with suppress(OSError):
        folder.rmdir()
