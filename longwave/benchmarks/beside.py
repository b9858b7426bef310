"""``python -m longwave.benchmarks.beside``: training steps while other programs keep the cores busy.

A trial starts one to four programs, which count or multiply matrices with PyTorch, and times the steps of each mixer's
small model; the time over that alone is its slowdown. What no mixer can help, softmax suffers in the same trial.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from statistics import median
from typing import Annotated

import typer

from longwave.process import WAITING

MIXERS = ("softmax", "hale", "dwarf", "gated_delta", "gated_linear")
COUNT = "i = 0\nwhile True: i += 1"
MULTIPLY = "import torch\nx = torch.randn(700, 700)\nwhile True: (x @ x).tanh().sum()"
#: The programs of a trial are the first few of one of these.
PROGRAMS = ((COUNT,) * 4, (MULTIPLY,) * 4, (COUNT, MULTIPLY) * 2)
START_SECONDS, ALONE_ROUNDS, MOST_STEPS = 3.0, 3, 200


def main(
    trials: Annotated[int, typer.Option(help="How many, each with another set of programs.", min=1)] = 40,
    seconds: Annotated[float, typer.Option(help="Of steps, for each mixer in each trial.", min=0.0)] = 1.0,
    threads: Annotated[int, typer.Option(help="Of PyTorch, in this program.", min=1)] = 2,
    untuned: Annotated[bool, typer.Option("--untuned", help="Leave the process as the system made it.")] = False,
) -> None:
    """Print each trial as a line of JSON, then the median and the worst slowdown of each mixer."""
    tune = "" if untuned else "from longwave.process import tune; tune(); "  # in a process without PyTorch as yet
    code = f"{tune}from longwave.benchmarks.beside import run_trials; run_trials({trials}, {seconds}, {threads})"
    raise typer.Exit(subprocess.run([sys.executable, "-c", code]).returncode)


def run_trials(trials: int, seconds: float, threads: int) -> None:
    """What :func:`main` says, in a process as it is."""
    steps = {name: _training_step(name, threads) for name in MIXERS}
    alone = {name: min(_seconds(step, seconds) for _ in range(ALONE_ROUNDS)) for name, step in steps.items()}
    print(json.dumps({"alone_seconds": alone}), flush=True)
    found: dict[str, list[float]] = {name: [] for name in MIXERS}
    for trial in range(trials):
        programs = PROGRAMS[trial // 4 % len(PROGRAMS)][: trial % 4 + 1]
        with _busy(programs):
            for name, step in steps.items():
                found[name].append(_seconds(step, seconds) / alone[name])
        counting = sum(program is COUNT for program in programs)
        line = {"trial": trial, "counting": counting, "multiplying": len(programs) - counting}
        print(json.dumps(line | {name: round(found[name][-1], 2) for name in MIXERS}), flush=True)
    for name, slowdowns in found.items():
        beside = [own / base for own, base in zip(slowdowns, found[MIXERS[0]], strict=True)]
        print(
            f"{name:12}  slower than alone: median {median(slowdowns):.1f}, worst {max(slowdowns):.1f};  "
            f"over {MIXERS[0]}'s of the trial: median {median(beside):.2f}, worst {max(beside):.2f}"
        )


def _training_step(name: str, threads: int) -> Callable[[], None]:
    """A step of 8 rows of 256 tokens, 4 layers, 128 channels; kernels are compiled already."""
    import torch

    from longwave.model import LongwaveConfig, LongwaveForCausalLM

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    sizes = {"vocab_size": 512, "hidden_size": 128, "num_hidden_layers": 4, "num_heads": 4}
    model = LongwaveForCausalLM(LongwaveConfig(mixer_types=name, **sizes))
    optimizer = torch.optim.AdamW(model.parameters())
    ids = torch.randint(0, 512, (8, 256))

    def step() -> None:
        optimizer.zero_grad()
        model(input_ids=ids, labels=ids, use_cache=False, skip_logits=True).loss.backward()
        optimizer.step()

    step()
    return step


def _seconds(step: Callable[[], None], budget_seconds: float) -> float:
    """Of a step, the median of those that begin within the budget."""
    times: list[float] = []
    began_at = time.perf_counter()
    while not times or (time.perf_counter() - began_at < budget_seconds and len(times) < MOST_STEPS):
        start_at = time.perf_counter()
        step()
        times.append(time.perf_counter() - start_at)
    return median(times)


@contextmanager
def _busy(programs: Sequence[str]) -> Iterator[None]:
    """While the block runs, so do these Python programs."""
    environment = {name: value for name, value in os.environ.items() if name not in WAITING}  # theirs is untuned
    running = [subprocess.Popen([sys.executable, "-c", program], env=environment) for program in programs]
    try:
        time.sleep(START_SECONDS)
        yield
    finally:
        for program in running:
            program.kill()
            program.wait()


if __name__ == "__main__":
    typer.run(main)
