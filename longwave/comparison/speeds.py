"""How long a training step of each arm takes on this machine, measured in turns."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from statistics import median

import torch
from torch.utils.data import default_collate

from longwave.benchmarks.timing import interleave, stopwatch
from longwave.comparison.store import Store
from longwave.model import LongwaveForCausalLM
from longwave.training import Data, Run

#: Rounds in which every arm takes a step.
ROUNDS = 5


def seconds_per_token(runs: Mapping[str, Run], data: Data, store: Store) -> dict[str, float]:
    """Of training, by arm. What the store remembers is not measured again: budgets of seconds must not change.

    A new arm is measured in turns with the first one, and its time is taken relative to what is remembered of that.
    """
    first = next(iter(runs))
    keys = {arm: [_shape(runs[first]), _shape(run)] for arm, run in runs.items()}
    known = {arm: store.recall("speeds", key) for arm, key in keys.items()}
    missing = [arm for arm in runs if known[arm] is None]
    if missing:
        steps = {arm: _step(runs[arm], data) for arm in dict.fromkeys([first, *missing])}
        for step in steps.values():
            step()
        times = {arm: median(rounds) for arm, rounds in interleave(steps, ROUNDS).items()}
        tokens = runs[first].training.batch_size * runs[first].data.sequence_length
        scale = known[first] / times[first] if known[first] else 1 / tokens
        for arm in missing:
            known[arm] = times[arm] * scale
            store.note("speeds", keys[arm], known[arm])
    return known


def _step(run: Run, data: Data) -> Callable[[], float]:
    """A function that goes forward and backward with one batch and gives the seconds."""
    device = "cuda" if torch.cuda.is_available() and run.training.device != "cpu" else "cpu"
    model = LongwaveForCausalLM(run.model_configuration(len(data.tokenizer))).to(device)
    rows = iter(data.train)
    batch = default_collate([next(rows) for _ in range(run.training.batch_size // run.training.accumulation)])
    batch = {name: tensor.to(device) for name, tensor in batch.items()}
    precise = run.training.precision == "float32"

    def step() -> None:
        for _ in range(run.training.accumulation):
            with torch.autocast(device, torch.bfloat16, enabled=not precise):
                loss = model(**batch).loss
            loss.backward()
        model.zero_grad()

    return stopwatch(step, device)


def _shape(run: Run) -> dict:
    """What a step's time depends on."""
    values = run.model_dump(mode="json")
    training = {name: values["training"][name] for name in ("batch_size", "accumulation", "precision", "device")}
    return {"model": values["model"], "data": values["data"], "tokenizer": values["tokenizer"], **training}
