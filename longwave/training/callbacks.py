"""What a run shows and writes while it trains."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from safetensors.torch import save_model
from torch import nn
from transformers import TrainerCallback

from longwave.evaluation import Score, recorded_loss
from longwave.training.configuration import EvaluationSection


class StopBeforeNonFinite(TrainerCallback):
    """Ends the run with an error when the gradient is not finite, before the optimizer applies it."""

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        """Called with gradients clipped and weights not yet changed."""
        gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
        if not torch.isfinite(torch.stack(torch._foreach_norm(gradients))).all():
            raise FloatingPointError(f"step {state.global_step + 1}: the gradient is not finite; the step is not taken")


class JsonLines(TrainerCallback):
    """Appends every logged record to a file, one JSON object a line, with the tokens and seconds so far.

    ``begin_at(step)`` forgets what lies beyond the step that a run resumes from.
    """

    def __init__(self, path: Path, tokens_per_step: int) -> None:
        self.path, self.tokens_per_step = path, tokens_per_step
        self.before_seconds, self.began_at = 0.0, time.monotonic()

    @property
    def seconds(self) -> float:
        """Training time so far, over all sittings."""
        return round(self.before_seconds + time.monotonic() - self.began_at, 3)

    def begin_at(self, step: int, *, rewrite: bool = True) -> list[dict]:
        """Start the clock and return the records up to ``step``; with ``rewrite`` only they stay in the file."""
        records = []
        if self.path.exists():
            lines = self.path.read_text(encoding="utf-8").splitlines(keepends=True)
            whole = (json.loads(line) for line in lines if line.endswith("\n"))
            records = [record for record in whole if record["step"] <= step]
            if rewrite:
                replace_text(self.path, "".join(json.dumps(record) + "\n" for record in records))
        self.before_seconds = records[-1]["seconds"] if records else 0.0
        self.began_at = time.monotonic()
        return records

    def on_log(self, args, state, control, logs=None, **kwargs):
        """Called with what the trainer logs."""
        if state.is_world_process_zero:
            self.write(state.global_step, {name: value for name, value in (logs or {}).items() if name != "epoch"})

    def write(self, step: int, values: dict[str, float]) -> None:
        """Append one record."""
        record = {"step": step, "tokens": step * self.tokens_per_step, "seconds": self.seconds, **values}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")


class Validation(TrainerCallback):
    """Scores the model every few steps, samples from it, keeps the best weights, and stops when none come.

    Args:
        settings: the run file's section.
        score: what measures the model.
        sample: what continues a prompt.
        metrics: where scores go; its past records tell a resumed run what the best was.
        output: the run directory.
    """

    def __init__(
        self,
        settings: EvaluationSection,
        score: Callable[[nn.Module], Score],
        sample: Callable[[nn.Module, str], str],
        metrics: JsonLines,
        output: Path,
    ) -> None:
        self.settings, self.score, self.sample, self.metrics, self.output = settings, score, sample, metrics, output
        self.best, self.since_best = math.inf, 0

    @property
    def exhausted(self) -> bool:
        """Whether ``patience`` scores have passed without a better one."""
        return self.settings.patience is not None and self.since_best >= self.settings.patience

    @property
    def best_weights(self) -> Path:
        """The best-scored weights, if ``keep_best``."""
        return self.output / "best.safetensors"

    def begin_at(self, records: list[dict]) -> None:
        """Learn from the records of earlier sittings."""
        for record in records:
            if (loss := recorded_loss(record)) is not None:
                self._remember(loss)

    def on_step_end(self, args, state, control, model=None, **kwargs):
        """Score, if this is the step for it; the metrics' clock stands still meanwhile."""
        if not self.settings.every_steps or state.global_step % self.settings.every_steps:
            return
        began_at = time.monotonic()
        result = self.score(model)
        better = self._remember(result.loss)
        if state.is_world_process_zero:
            self.metrics.write(state.global_step, result.values())
            if better and self.settings.keep_best:
                save_weights(model, self.best_weights)
            for prompt in self.settings.samples:
                line = {"step": state.global_step, "prompt": prompt, "text": self.sample(model, prompt)}
                with (self.output / "samples.jsonl").open("a", encoding="utf-8") as file:
                    file.write(json.dumps(line, ensure_ascii=False) + "\n")
        if self.exhausted:
            control.should_training_stop = True
        self.metrics.began_at += time.monotonic() - began_at

    def _remember(self, loss: float) -> bool:
        better = loss < self.best
        self.best, self.since_best = (loss, 0) if better else (self.best, self.since_best + 1)
        return better


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


def replace_text(path: Path, text: str) -> None:
    """Write a file beside its place, then rename: it is the old one or the new one, never half."""
    beside = path.with_name(f"{path.name}.part")
    beside.write_text(text, encoding="utf-8")
    beside.replace(path)


def save_rows(rows: np.ndarray, path: Path) -> None:
    """Write an array as ``.npy``, beside its place first."""
    beside = path.with_name(f"{path.name}.part")
    with beside.open("wb") as file:
        np.save(file, rows)
    beside.replace(path)


def save_weights(model: nn.Module, path: Path) -> None:
    """Write a model's parameters as safetensors, beside their place first."""
    beside = path.with_name(f"{path.name}.part")
    save_model(model, str(beside))
    beside.replace(path)
