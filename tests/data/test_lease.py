"""A lease is held by one process, and by no dead one."""

from __future__ import annotations

import json
import multiprocessing
import os
import time

import pytest

from longwave.data import lease as lease_file
from longwave.data.lease import STALE_SECONDS, lease

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["longwave.data.lease"])


@pytest.fixture
def path(tmp_path):
    return tmp_path / "lease"


def _hold(path, held, seconds):
    with lease(path):
        held.set()
        time.sleep(seconds)


@pytest.fixture
def holder(path):
    """Another process that holds the lease."""
    held = CONTEXT.Event()
    process = CONTEXT.Process(target=_hold, args=(path, held, 60))
    process.start()
    assert held.wait(60)
    yield process
    process.kill()
    process.join()


def holders(path):
    return [json.loads(file.read_text()) for file in path.glob("*.json")]


def age(path, seconds):
    for file in path.glob("*.json"):
        os.utime(file, (time.time() - seconds,) * 2)


def test_another_process_is_refused_at_once_and_told_by_whom(path, holder, tmp_path):
    before = {file: file.stat().st_mtime_ns for file in [tmp_path, *tmp_path.rglob("*")]}
    began_at = time.monotonic()
    with pytest.raises(ValueError, match=rf"in use by process {holder.pid} on "), lease(path):
        pass
    assert time.monotonic() - began_at < 1
    assert {file: file.stat().st_mtime_ns for file in [tmp_path, *tmp_path.rglob("*")]} == before


def test_it_is_free_at_once_when_its_holder_is_killed(path, holder):
    holder.kill()
    while lease_file._started(holder.pid) is not None:  # a zombie is dead
        time.sleep(0.01)
    with lease(path):
        assert len(holders(path)) == 1


def test_a_number_that_another_process_has_now_is_not_its_holder(path, holder):
    (file,) = path.glob("*.json")
    found = json.loads(file.read_text())
    file.write_text(json.dumps({**found, "started": {str(holder.pid): found["started"][str(holder.pid)] + 1}}))
    with lease(path):
        pass


def test_who_waits_gets_it_when_the_holder_lets_go(path):
    held = CONTEXT.Event()
    process = CONTEXT.Process(target=_hold, args=(path, held, 0.5))
    process.start()
    assert held.wait(60)
    with lease(path, wait=True):
        assert list(holders(path)[0]["started"]) == [str(os.getpid())]
    process.join()


def test_nothing_stays_behind(path, tmp_path):
    with pytest.raises(KeyError), lease(path):
        raise KeyError
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "content",
    [
        json.dumps({"host": "elsewhere", "place": "elsewhere 1 2", "started": {"1": 5}}),
        json.dumps({"host": "elsewhere", "place": "", "started": {"1": None}}),
        "",
        "{",
        "[1]",
        "[" * 100_000,
        '{"place": 3}',
        "\\udcff",
    ],
)
def test_a_holder_of_whom_nothing_can_be_known_is_alive_while_its_heart_beats(path, content):
    path.mkdir()
    (path / "x.json").write_text(content)
    age(path, STALE_SECONDS / 2)
    with pytest.raises(ValueError, match=r"in use by"), lease(path):
        pass
    age(path, 2 * STALE_SECONDS)
    with lease(path):
        assert not (path / "x.json").exists()


def test_its_heart_beats(path, monkeypatch):
    monkeypatch.setattr(lease_file, "HEARTBEAT_SECONDS", 0.01)
    with lease(path):
        age(path, 1000)
        time.sleep(0.2)
        (file,) = path.glob("*.json")
        assert time.time() - file.stat().st_mtime < 100


def test_a_child_that_shares_it_keeps_it(path):
    child = CONTEXT.Process(target=time.sleep, args=(60,))
    child.start()
    with lease(path) as share:
        share(child.pid)
        (file,) = path.glob("*.json")
        found = json.loads(file.read_text())
        del found["started"][str(os.getpid())]  # as if this process had been killed
        file.write_text(json.dumps(found))
        with pytest.raises(ValueError, match=f"in use by process {child.pid} on "), lease(path):
            pass
        child.kill()
        child.join()
        with lease(path):
            pass


def _count(path, counter, times):
    for _ in range(times):
        with lease(path, wait=True):
            value = int(counter.read_text())
            time.sleep(0.001)
            counter.write_text(str(value + 1))


def test_of_many_one_at_a_time_has_it(path, tmp_path, monkeypatch):
    counter = tmp_path / "counter"
    counter.write_text("0")
    path.mkdir()
    (path / "dead.json").write_text(json.dumps({**lease_file._this_process(), "started": {"1": -1}}))
    processes = [CONTEXT.Process(target=_count, args=(path, counter, 4)) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert counter.read_text() == "16"
    assert [file.name for file in tmp_path.iterdir()] == ["counter"]


@pytest.mark.parametrize("written", [True, False])
def test_what_a_process_left_that_was_killed_while_it_tried_is_removed(path, tmp_path, written):
    left = tmp_path / "lease.abc.candidate"
    left.mkdir()
    if written:
        (left / "x.json").write_text(json.dumps({**lease_file._this_process(), "started": {"1": -1}}))
    else:
        os.utime(left, (time.time() - 2 * STALE_SECONDS,) * 2)
    with lease(path):
        assert [file.name for file in tmp_path.iterdir()] == ["lease"]
