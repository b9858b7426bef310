"""How long a training step of each arm takes on this machine, measured in turns."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from statistics import median

import torch
from torch.utils.data import default_collate

from longwave.benchmarks.machine import machine
from longwave.benchmarks.timing import interleave, stopwatch
from longwave.comparison.store import Store
from longwave.model import LongwaveForCausalLM
from longwave.training import Data, Run
from longwave.training.optimizers import build_optimizer
from longwave.verification.provenance import commit

#: Rounds in which every arm takes a step.
ROUNDS = 5


def seconds_per_token(runs: Mapping[str, Run], data: Data, store: Store) -> dict[str, float]:
    """Of training, by arm. What the store remembers is not measured again: budgets of seconds must not change.

    A new arm is measured in turns with the first one, and its time is taken relative to what is remembered of that.
    """
    first = next(iter(runs))
    keys = {arm: [_shape(runs[first]), _shape(run)] for arm, run in runs.items()}
    known = {arm: store.speed(key) for arm, key in keys.items()}
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
            store.note_speed(keys[arm], known[arm])
    return known


def _step(run: Run, data: Data) -> Callable[[], float]:
    """A function that takes one step of the optimizer with one batch and gives the seconds."""
    device = "cuda" if torch.cuda.is_available() and run.training.device != "cpu" else "cpu"
    model = LongwaveForCausalLM(run.model_configuration(len(data.tokenizer))).to(device)
    rows = iter(data.train)
    batch = default_collate([next(rows) for _ in range(run.training.batch_size // run.training.accumulation)])
    batch = {name: tensor.to(device) for name, tensor in batch.items()}
    settings = run.training
    if settings.gradient_checkpointing:
        model.activation_checkpointing_enable({"use_reentrant": False})
    optimizer = build_optimizer(model, settings.optimizer, weight_decay=settings.weight_decay, betas=settings.betas)
    for group in optimizer.param_groups:
        group["lr"] = 0.0  # what a step takes does not depend on where it goes

    def step() -> None:
        for _ in range(settings.accumulation):
            with torch.autocast(device, torch.bfloat16, enabled=settings.precision == "bfloat16"):
                loss = model(**batch).loss
            loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), settings.clip or torch.inf)
        optimizer.step()
        optimizer.zero_grad()

    return stopwatch(step, device)


def _shape(run: Run) -> dict:
    """What a step's time depends on."""
    values = run.model_dump(mode="json")
    for name in ("tokens", "seed", "learning_rate"):
        del values["training"][name]
    return {**values, "machine": machine("cuda" if torch.cuda.is_available() else "cpu"), "commit": commit()}
