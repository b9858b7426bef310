"""What a run shows and writes while it trains."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import TrainerCallback

from longwave.data.sealed import saving
from longwave.evaluation import Score, recorded_loss
from longwave.training.checkpoints import SAMPLES, writing
from longwave.training.configuration import EvaluationSection

BEST = "best.safetensors"


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
        self.before_seconds, self.began_at = 0.0, time.monotonic()

    @property
    def seconds(self) -> float:
        """Training time so far, over all sittings."""
        return round(self.before_seconds + time.monotonic() - self.began_at, 3)

    def begin(self, checkpoint: Path | None) -> list[dict]:
        """Start the clock where a whole checkpoint, if there is one, left it; the records up to there."""
        past = checkpoint / self.path.name if checkpoint else None
        lines = past.read_text(encoding="utf-8").splitlines() if past and past.exists() else []
        records = [json.loads(line) for line in lines]
        self.before_seconds = records[-1]["seconds"] if records else 0.0
        self.began_at = time.monotonic()
        return records

    def on_log(self, args, state, control, logs=None, **kwargs):
        """Called with what the trainer logs."""
        if state.is_world_process_zero:
            self.write(state.global_step, {name: value for name, value in (logs or {}).items() if name != "epoch"})

    def write(self, step: int, values: dict[str, float]) -> None:
        """Append one record.

        Raises:
            FloatingPointError: a value is not finite.
        """
        check_finite(f"step {step}", values)
        append(self.path, {"step": step, "tokens": step * self.tokens_per_step, "seconds": self.seconds, **values})


class Validation(TrainerCallback):
    """Scores the model every few steps, samples from it, keeps the best weights, and stops when none come.

    The best weights (``best_weights``, if ``keep_best``) stay in memory and are part of every checkpoint.

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
        self.best_weights: dict[str, Tensor] | None = None

    @property
    def exhausted(self) -> bool:
        """Whether ``patience`` scores have passed without a better one."""
        return self.settings.patience is not None and self.since_best >= self.settings.patience

    def begin(self, records: list[dict], checkpoint: Path | None) -> None:
        """Learn from the records of earlier sittings, and take the best weights from their checkpoint."""
        for record in records:
            if (loss := recorded_loss(record)) is not None:
                self._remember(loss)
        if checkpoint is not None and (checkpoint / BEST).exists():
            self.best_weights = load_file(checkpoint / BEST)

    def on_step_end(self, args, state, control, model=None, **kwargs):
        """Score, if this is the step for it; the metrics' clock stands still meanwhile."""
        if not self.settings.every_steps or state.global_step % self.settings.every_steps:
            return
        began_at = time.monotonic()
        result = self.score(model)
        check_finite(f"step {state.global_step}", result.values())
        if self._remember(result.loss) and self.settings.keep_best:
            how = {"device": "cpu", "copy": True, "memory_format": torch.contiguous_format}
            self.best_weights = {name: tensor.to(**how) for name, tensor in model.state_dict().items()}
        if state.is_world_process_zero:
            self.metrics.write(state.global_step, result.values())
            for prompt in self.settings.samples:
                line = {"step": state.global_step, "prompt": prompt, "text": self.sample(model, prompt)}
                append(self.output / SAMPLES, line)
        if self.exhausted:
            control.should_training_stop = True
        self.metrics.began_at += time.monotonic() - began_at

    def on_save(self, args, state, control, **kwargs):
        """Put the best weights into the checkpoint, before it is sealed."""
        if self.best_weights is not None and state.is_world_process_zero:
            checkpoint = self.output / f"checkpoint-{state.global_step}"
            with writing(checkpoint):
                save_file(self.best_weights, checkpoint / BEST)

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


def check_finite(where: str, values: Mapping[str, float]) -> None:
    """See that every value is a finite number.

    Raises:
        FloatingPointError: one is not.
    """
    for name, value in values.items():
        if not math.isfinite(value):
            raise FloatingPointError(f"{where}: {name.replace('_', ' ')} is not finite: {value}")


def append(path: Path, values: Mapping[str, Any]) -> None:
    """Add a line of JSON to a file."""
    with saving(path), path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(values, ensure_ascii=False, allow_nan=False) + "\n")
