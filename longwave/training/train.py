"""Train the model that a run file describes, on the Hugging Face Trainer."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from safetensors.torch import load_model
from torch import nn
from transformers import PreTrainedTokenizerFast, set_seed
from transformers.utils import logging

from longwave.data import Data, ScoredRows, preparation
from longwave.data.lease import lease
from longwave.data.sealed import making, replace_text, replacing, saving
from longwave.evaluation import Score, recall, score
from longwave.model import LongwaveForCausalLM
from longwave.training.callbacks import JsonLines, ProgressBar, StopBeforeNonFinite, Validation, check_finite
from longwave.training.checkpoints import METRICS, clear, newest_whole, restore_lines, step_of
from longwave.training.configuration import Run, read_values
from longwave.training.records import RECORD, Record, dump, forecast, make_record
from longwave.training.trainer import RunTrainer

SAMPLE_TOKENS = 80
LEASE = "lease"


def train(
    run: Run, output: Path, *, resume: bool = False, console: Console | None = None, data: Data | None = None
) -> Record:
    """Train, score and save; ``output`` becomes a model directory with the run's records.

    Args:
        resume: continue the run in ``output`` from its newest whole checkpoint; a finished run stays as it is.
        console: where progress is shown; ``None`` for silence.
        data: the run's data if already prepared.

    Raises:
        ValueError: ``output`` is in use or holds another run, the data cannot be read, or a file cannot be written;
            a run that is refused leaves nothing behind.
        FloatingPointError: a gradient or a score is not finite; nothing of that step has been applied.
    """
    console = console or Console(quiet=True)
    if int(os.environ.get("RANK", "0")):  # the other processes of torchrun may come when the first has begun to write
        return _train(run, output, resume, console, data)
    _check_directory(run, output, resume)
    with making(output), lease(output / LEASE):
        _check_directory(run, output, resume)  # another process may have been at work until now
        return _train(run, output, resume, console, data)


def _train(run: Run, output: Path, resume: bool, console: Console, data: Data | None) -> Record:
    if resume and (output / RECORD).exists():
        return Record.read(output, run)
    data = data or prepare_data(run)
    set_seed(run.training.seed)
    model = LongwaveForCausalLM(run.model_configuration(len(data.tokenizer), data.tokenizer.bos_token_id))
    tokens_per_step = run.training.batch_size * run.data.sequence_length
    total_steps = -(-run.training.tokens // tokens_per_step)

    metrics, progress = JsonLines(output / METRICS, tokens_per_step), ProgressBar(console, tokens_per_step)
    evaluate = score_function(run, data)
    validation = Validation(run.evaluation, evaluate, partial(_continue, data.tokenizer), metrics, output)
    callbacks = [StopBeforeNonFinite(), metrics, validation, progress]
    identity = hashlib.sha256(f"{dump(run)}{data.sha256}{data.scored_sha256}".encode()).hexdigest()
    trainer = RunTrainer(run, identity, model, data.train, output, total_steps, callbacks)
    if first := trainer.is_world_process_zero():
        console.print(forecast(run, model, next(iter(data.train)), total_steps))
        replace_text(output / "run.yaml", dump(run))

    checkpoint = _checkpoint(trainer, output, identity, console) if resume else None
    step = 0 if checkpoint is None else step_of(checkpoint)
    validation.begin(metrics.begin(checkpoint), checkpoint)
    if checkpoint is not None and (step >= total_steps or validation.exhausted):
        load_model(model, str(checkpoint / "model.safetensors"))  # killed between its last step and its record
    else:
        with progress.bar, _no_bars():
            trainer.train() if checkpoint is None else trainer.resume(checkpoint)
        step = trainer.state.global_step
    seconds = metrics.seconds
    if validation.best_weights is not None:
        model.load_state_dict(validation.best_weights)

    result = evaluate(model)
    check_finite("the final score", result.values())
    record = make_record(run, model, data, step * tokens_per_step, seconds, result)
    if first:
        with saving(output), _no_bars():
            model.save_pretrained(output)
            data.tokenizer.save_pretrained(output)
            save_rows(result.rows, output / "scored_rows.npy")
            clear(output)
            record.write(output, run)
    return record


def prepare_data(run: Run) -> Data:
    """Read, split and tokenize the texts of a run, or make its task's rows; see :func:`longwave.data.prepare_data`."""
    return preparation.prepare_data(run.data, run.tokenizer, run.training.seed)


def score_function(run: Run, data: Data) -> Callable[..., Score]:
    """What scores a model of this run: its validation text by likelihood, or its task by recall.

    It takes the model, and ``progress`` and ``batch_size`` if they are wanted.
    """
    if isinstance(data.valid, ScoredRows):
        return partial(recall, rows=data.valid, batch_size=run.evaluation.batch_size)
    return partial(
        score, stream=data.valid, sequence_length=run.data.sequence_length, batch_size=run.evaluation.batch_size
    )


def _check_directory(run: Run, output: Path, resume: bool) -> None:
    """Refuse a directory that this run must not write to, and a resumed run that is not the one begun."""
    if not output.exists() or (output.is_dir() and all(_is_left_over(path) for path in output.iterdir())):
        if resume:
            raise ValueError(f"{output}: there is no run to resume")
        return
    if not resume:
        raise ValueError(f"{output}: the run directory is in use; choose another, remove it, or --resume")
    if not (output / "run.yaml").is_file():
        raise ValueError(f"{output}: holds no run.yaml: not a run directory")
    begun, now = _flat(read_values(str(output / "run.yaml"))), _flat(run.model_dump(mode="json"))
    changed = [
        f"{output}: {name} is {begun.get(name)!r} in the run begun, {now.get(name)!r} now"
        for name in sorted(begun.keys() | now.keys())
        if begun.get(name) != now.get(name)
    ]
    if changed:
        raise ValueError("\n".join(changed))


def _is_left_over(path: Path) -> bool:
    """Whether a file in a run directory may be there before the run has begun."""
    return path.suffix == ".part" or path.name.startswith(LEASE)


def _checkpoint(trainer: RunTrainer, output: Path, identity: str, console: Console) -> Path | None:
    """The newest whole checkpoint; one process looks and tidies, so that all take the same."""
    found: list[Path | None] = [None]
    if trainer.is_world_process_zero():
        clear(output)
        found[0], sentences = newest_whole(output, identity)
        for sentence in sentences:
            console.print(sentence, style="yellow", soft_wrap=True)
        console.print(
            f"resuming from {found[0]}" if found[0] else "no whole checkpoint: starting again", soft_wrap=True
        )
        restore_lines(output, found[0])
    if trainer.args.world_size > 1:
        torch.distributed.broadcast_object_list(found)
    return found[0]


def save_rows(rows: np.ndarray, path: Path) -> None:
    """Write an array as ``.npy``."""
    with replacing(path) as beside, beside.open("wb") as file:
        np.save(file, rows)


def _flat(values: object, path: str = "") -> dict[str, object]:
    """Nested mappings by dotted path."""
    if not isinstance(values, dict):
        return {path: values}
    pairs = (_flat(value, f"{path}.{key}" if path else str(key)) for key, value in values.items())
    return {name: value for part in pairs for name, value in part.items()}


def _continue(tokenizer: PreTrainedTokenizerFast, model: nn.Module, prompt: str) -> str:
    """A sampled continuation; the run's own random numbers are left alone."""
    ids = [tokenizer.bos_token_id, *tokenizer(prompt, add_special_tokens=False)["input_ids"]]
    training = model.training
    with torch.random.fork_rng():
        torch.manual_seed(0)
        out = model.eval().generate(
            torch.tensor([ids], device=model.device),
            max_new_tokens=SAMPLE_TOKENS,
            do_sample=True,
            temperature=0.8,
            top_k=50,
            pad_token_id=tokenizer.pad_token_id,
        )
    model.train(training)
    return tokenizer.decode(out[0, len(ids) :], skip_special_tokens=True)


@contextmanager
def _no_bars() -> Iterator[None]:
    """Without the bars that transformers draws by itself."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
