"""Kill a run again and again, resume it, and compare its weights with an undisturbed run's.

python -m tests.training.kill --times 20
python -m tests.training.kill --times 20 --set training.carry_state=true
python -m tests.training.kill --times 20 --set training.accumulation=2
python -m tests.training.kill --times 20 --set data.train=embedded --set 'data.task={name: mqar, sizes: [2, 4]}'
"""

from __future__ import annotations

import argparse
import hashlib
import multiprocessing
import random
import shutil
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import yaml

RUN = {
    "model": {
        "mixer_types": ["hale", "softmax"],
        "mixer_kwargs": {"hale": {"window": 8, "num_levels": 2, "dropout": 0.1}},
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_heads": 2,
        "intermediate_size": 64,
        "dropout": 0.1,
    },
    "data": {"sequence_length": 32},
    "tokenizer": "byte",
    "training": {"tokens": 60 * 8 * 32, "batch_size": 8, "warmup_steps": 5, "save_every_steps": 3, "device": "cpu"},
}


def run_once(run_file: str, overrides: list[str], output: str) -> None:
    """Start the run, or resume it if there is something to resume."""
    import torch
    from transformers.utils import logging

    from longwave.training import load_run, train

    torch.set_num_threads(1)
    logging.set_verbosity_error()
    begun = (Path(output) / "run.yaml").exists()
    train(load_run(run_file, overrides), Path(output), resume=begun)


def weights_after(run_file: Path, overrides: Sequence[str], output: Path, kills: Sequence[float]) -> tuple[str, int]:
    """Hash of the final weights, and how many of the kills, each so many seconds after a start, hit a living run."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["longwave.training"])
    hits = 0
    for delay in [*kills, None]:
        process = context.Process(target=run_once, args=(str(run_file), list(overrides), str(output)))
        process.start()
        process.join(delay)
        if process.is_alive():
            process.kill()
            process.join()
            hits += 1
        elif process.exitcode:
            raise RuntimeError(f"the run ended with code {process.exitcode}")
    return hashlib.sha256((output / "model.safetensors").read_bytes()).hexdigest(), hits


def compare(times: int, overrides: Sequence[str] = (), seed: int = 0) -> tuple[bool, int]:
    """Whether a run killed up to ``times`` times ends in the weights of an undisturbed one, and the hits."""
    chance = random.Random(seed)
    with tempfile.TemporaryDirectory() as folder:
        run_file = Path(folder) / "run.yaml"
        text = Path(folder) / "text.txt"
        text.write_text("".join(f"{index}: {chance.random()}\n" for index in range(4000)))
        run_file.write_text(yaml.safe_dump({**RUN, "data": {**RUN["data"], "train": str(text)}}))
        weights_after(run_file, overrides, Path(folder) / "first", [])  # also starts the server
        began_at = time.monotonic()
        undisturbed, _ = weights_after(run_file, overrides, Path(folder) / "whole", [])
        seconds = time.monotonic() - began_at
        shutil.rmtree(Path(folder) / "first")
        kills = [chance.uniform(0.05, 0.35) * seconds for _ in range(times)]
        killed, hits = weights_after(run_file, overrides, Path(folder) / "killed", kills)
    return killed == undisturbed, hits


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--set", action="append", default=[], dest="overrides")
    given = parser.parse_args()
    equal, alive = compare(given.times, given.overrides, given.seed)
    print(f"killed {alive} times: final weights {'equal, bit for bit' if equal else 'DIFFER'}")
    raise SystemExit(0 if equal else 1)
