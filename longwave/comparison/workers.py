"""Training the runs of a comparison: one after another in this process, or side by side in processes of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from pathlib import Path
from queue import SimpleQueue

import torch
from rich.console import Console

from longwave.comparison.store import Store
from longwave.training import Data, Run, load_run, prepare_data, train

#: Exit code of `longwave train`, and a part of its sentence, when a gradient is not finite.
DIVERGED, NOT_FINITE = 1, "not finite"


def train_all(run_files: Sequence[Path], store: Store, console: Console, jobs: int = 1) -> None:
    """Train every run that has not ended; one that was interrupted goes on from its newest checkpoint.

    Args:
        jobs: how many at a time; each has its share of the cores, or a GPU of its own while there are enough.

    Raises:
        ValueError: a run cannot be trained.
    """
    if jobs == 1:
        data = _LatestData()
        for number, path in enumerate(run_files, 1):
            console.print(f"[bold]{path.stem}[/bold] ({number} of {len(run_files)})", highlight=False)
            _train_here(path, store, console, data)
        return
    places: SimpleQueue[int] = SimpleQueue()
    for place in range(jobs):
        places.put(place)
    with ThreadPoolExecutor(jobs) as pool:
        tasks = [pool.submit(_train_apart, path, store, places, jobs) for path in run_files]
        try:
            for number, task in enumerate(as_completed(tasks), 1):
                stem = task.result().stem
                console.print(f"[bold]{stem}[/bold] has ended ({number} of {len(run_files)})", highlight=False)
        except BaseException:  # an interruption too: nothing more is begun
            pool.shutdown(wait=False, cancel_futures=True)
            raise


class _LatestData:
    """Data of the last run asked for: runs that follow each other mostly share it."""

    def __init__(self) -> None:
        self.key: tuple[str, str, int] | None = None
        self.data: Data | None = None

    def of(self, run: Run) -> Data:
        key = (run.data.model_dump_json(), run.tokenizer, run.training.seed)
        if self.data is None or key != self.key:
            self.key, self.data = key, prepare_data(run)
        return self.data


def _train_here(path: Path, store: Store, console: Console, data: _LatestData) -> None:
    run, directory = load_run(str(path)), path.with_suffix("")
    with _alone(path):
        if store.outcome(path) is not None:
            return
        try:
            train(run, directory, resume=_begun(directory), console=console, data=data.of(run))
        except FloatingPointError as error:
            store.diverged(path, str(error))
        store.tidy(path)


def _train_apart(path: Path, store: Store, places: SimpleQueue[int], jobs: int) -> Path:
    directory, place = path.with_suffix(""), places.get()
    environment = dict(os.environ)
    if torch.cuda.is_available():
        environment["CUDA_VISIBLE_DEVICES"] = str(place % torch.cuda.device_count())
    else:
        environment["OMP_NUM_THREADS"] = str(max(1, torch.get_num_threads() // jobs))
    command = [sys.executable, "-m", "longwave.cli", "train", str(path), "--output", str(directory)]
    try:
        with _alone(path) as lock:
            if store.outcome(path) is not None:
                return path
            command += ["--resume"] * _begun(directory)
            done = subprocess.run(command, env=environment, capture_output=True, text=True, pass_fds=lock, check=False)
            if done.returncode == DIVERGED and NOT_FINITE in done.stderr:
                store.diverged(path, done.stderr.strip().splitlines()[-1])
            elif done.returncode:
                raise ValueError(
                    f"{path}: the run stopped with exit code {done.returncode}: {done.stderr.strip()[-2000:]}"
                )
            store.tidy(path)
    finally:
        places.put(place)
    return path


@contextmanager
def _alone(path: Path) -> Iterator[tuple[int, ...]]:
    """Hold a run's file locked, so that no two processes train it; gives what a child process must inherit.

    The lock lives as long as any process that has it: a child whose parent was killed is waited for. Where the
    system has no such locks, nothing is locked.
    """
    try:
        import fcntl
    except ImportError:
        yield ()
        return
    with path.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield (file.fileno(),)


def _begun(directory: Path) -> bool:
    return (directory / "run.yaml").exists()
