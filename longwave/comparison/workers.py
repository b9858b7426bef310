"""Training the runs of a comparison: one after another in this process, or side by side in processes of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import torch
from rich.console import Console

from longwave.comparison.store import Store
from longwave.data.lease import lease
from longwave.data.sealed import making
from longwave.process import is_tuned
from longwave.training import Data, Run, prepare_data, train

#: Exit code of `longwave train`, and a part of its sentence, when a gradient or score is not finite.
FAILED, NOT_FINITE = 1, "not finite"
_CAPTURED: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}


def train_all(runs: Mapping[Path, Run], store: Store, console: Console, jobs: int = 1) -> None:
    """Train every run that has not ended; one that was interrupted goes on from its newest checkpoint.

    Args:
        runs: by their files, see :meth:`Store.run_file`.
        jobs: how many at a time; each has its share of the cores, or a GPU of its own while there are enough.

    Raises:
        ValueError: a run cannot be trained; what has not begun leaves nothing behind.
    """
    with making(store.runs):
        if jobs == 1:
            data = _LatestData()
            for number, (path, run) in enumerate(runs.items(), 1):
                console.print(f"[bold]{path.stem}[/bold] ({number} of {len(runs)})", highlight=False)
                _train_here(path, run, store, console, data)
            return
        places: SimpleQueue[int] = SimpleQueue()
        for place in range(jobs):
            places.put(place)
        with ThreadPoolExecutor(jobs) as pool:
            tasks = [pool.submit(_train_apart, path, run, store, places, jobs) for path, run in runs.items()]
            try:
                for number, task in enumerate(as_completed(tasks), 1):
                    stem = task.result().stem
                    console.print(f"[bold]{stem}[/bold] has ended ({number} of {len(runs)})", highlight=False)
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


def _train_here(path: Path, run: Run, store: Store, console: Console, data: _LatestData) -> None:
    directory = path.with_suffix("")
    with lease(path.with_suffix(".lease"), wait=True):
        if store.outcome(path, run) is not None:
            return
        try:
            with store.written(path, run):
                train(run, directory, resume=_begun(directory), console=console, data=data.of(run))
        except FloatingPointError as error:
            store.diverged(path, run, str(error))
        store.tidy(path)


def _train_apart(path: Path, run: Run, store: Store, places: SimpleQueue[int], jobs: int) -> Path:
    directory, place = path.with_suffix(""), places.get()
    environment = dict(os.environ)
    if torch.cuda.is_available():
        environment["CUDA_VISIBLE_DEVICES"] = str(place % torch.cuda.device_count())
    else:
        environment["OMP_NUM_THREADS"] = str(max(1, torch.get_num_threads() // jobs))
    untuned = () if is_tuned() else ("--untuned",)
    command = [sys.executable, "-m", "longwave.cli", *untuned, "train", str(path), "--output", str(directory)]
    try:
        # The child holds the lease too: one whose parent was killed is waited for.
        with lease(path.with_suffix(".lease"), wait=True) as share:
            if store.outcome(path, run) is not None:
                return path
            command += ["--resume"] * _begun(directory)
            with store.written(path, run), subprocess.Popen(command, env=environment, **_CAPTURED) as child:
                share(child.pid)
                _, error = child.communicate()
            if child.returncode == FAILED and NOT_FINITE in error:
                store.diverged(path, run, error.strip().splitlines()[-1])
            elif child.returncode:
                raise ValueError(f"{path}: the run stopped with exit code {child.returncode}: {error.strip()[-2000:]}")
            store.tidy(path)
    finally:
        places.put(place)
    return path


def _begun(directory: Path) -> bool:
    return (directory / "run.yaml").exists()
