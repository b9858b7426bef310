"""What a run shows and writes while it trains."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import nn
from transformers import TrainerCallback

from longwave.evaluation import LikelihoodScore


class StopBeforeNonFinite(TrainerCallback):
    """Ends the run with an error when the gradient is not finite, before the optimizer applies it."""

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        """Called with gradients clipped and weights not yet changed."""
        gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
        if not torch.isfinite(torch.stack(torch._foreach_norm(gradients))).all():
            raise FloatingPointError(f"step {state.global_step + 1}: the gradient is not finite; the step is not taken")


class JsonLines(TrainerCallback):
    """Appends every logged record to a file, one JSON object a line, with the tokens and seconds so far."""

    def __init__(self, path: Path, tokens_per_step: int) -> None:
        self.path, self.tokens_per_step = path, tokens_per_step
        self.began_at = time.monotonic()

    def on_log(self, args, state, control, logs=None, **kwargs):
        """Called with what the trainer logs."""
        self.write(state.global_step, {name: value for name, value in (logs or {}).items() if name != "epoch"})

    def write(self, step: int, values: dict[str, float]) -> None:
        """Append one record."""
        seconds = round(time.monotonic() - self.began_at, 3)
        record = {"step": step, "tokens": step * self.tokens_per_step, "seconds": seconds, **values}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")


class Validation(TrainerCallback):
    """Scores the model every few steps; the numbers go into the metrics."""

    def __init__(self, every_steps: int, score: Callable[[nn.Module], LikelihoodScore], metrics: JsonLines):
        self.every_steps, self.score, self.metrics = every_steps, score, metrics

    def on_step_end(self, args, state, control, model=None, **kwargs):
        """Score, if this is the step for it."""
        if self.every_steps and state.global_step % self.every_steps == 0:
            result = self.score(model)
            values = {"bits_per_byte": result.bits_per_byte, "perplexity": result.perplexity}
            self.metrics.write(state.global_step, values)


class ProgressBar(TrainerCallback):
    """A bar with tokens a second, loss and time left; shown inside ``with progress.bar``."""

    def __init__(self, console: Console, tokens_per_step: int) -> None:
        self.tokens_per_step = tokens_per_step
        self.bar = Progress(
            BarColumn(),
            TextColumn("{task.completed}/{task.total} steps"),
            TextColumn("{task.fields[speed]} tokens/s, loss {task.fields[loss]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
        )

    def on_train_begin(self, args, state, control, **kwargs):
        """Begin at step 0."""
        self.began_at = time.monotonic()
        self.task = self.bar.add_task("train", total=state.max_steps, speed="-", loss="-")

    def on_step_end(self, args, state, control, **kwargs):
        """Advance by one step."""
        seconds = time.monotonic() - self.began_at
        speed = f"{state.global_step * self.tokens_per_step / seconds:,.0f}"
        self.bar.update(self.task, completed=state.global_step, speed=speed)

    def on_log(self, args, state, control, logs=None, **kwargs):
        """Show the latest loss."""
        if logs and "loss" in logs:
            self.bar.update(self.task, loss=f"{logs['loss']:.3f}")
