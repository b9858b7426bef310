"""Train the model that a run file describes, on the Hugging Face Trainer."""

from __future__ import annotations

import json
import platform
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path

import torch
import yaml
from rich.console import Console
from torch import nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR
from transformers import PreTrainedTokenizerFast, Trainer, TrainingArguments, set_seed
from transformers.trainer_callback import PrinterCallback
from transformers.utils import logging

from longwave.data import PackedRows, TokenStream, build_tokenizer, read_corpus, tokenize
from longwave.evaluation import LikelihoodScore, score
from longwave.model import LongwaveForCausalLM
from longwave.training.callbacks import JsonLines, ProgressBar, StopBeforeNonFinite, Validation
from longwave.training.configuration import Run, TrainingSection
from longwave.training.schedule import learning_rate

LOG_STEPS = 10


@dataclass(frozen=True)
class Record:
    """What a finished run writes into ``record.json``.

    ``parameters`` counts all, ``body_parameters`` those outside the embedding table and head; ``tokens``
    those trained on; ``seconds`` the training alone.
    """

    parameters: int
    body_parameters: int
    tokens: int
    seconds: float
    bits_per_byte: float
    perplexity: float
    data_sha256: str
    seed: int
    device: str
    num_threads: int
    versions: dict[str, str]


@dataclass(frozen=True)
class Data:
    """The texts of a run, tokenized."""

    tokenizer: PreTrainedTokenizerFast
    train: PackedRows
    valid: TokenStream
    sha256: str


def train(run: Run, output: Path, *, console: Console | None = None, data: Data | None = None) -> Record:
    """Train, score and save; ``output`` becomes a model directory with the run's records.

    Args:
        console: where progress is shown; ``None`` for silence.
        data: the run's data if already prepared.

    Raises:
        ValueError: ``output`` is not empty, or the data cannot be read.
        FloatingPointError: a gradient is not finite; nothing of that step has been applied.
    """
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ValueError(f"{output}: the run directory is in use; choose another or remove it")
    console = console or Console(quiet=True)
    data = data or prepare_data(run)
    set_seed(run.training.seed)
    model = LongwaveForCausalLM(run.model_configuration(len(data.tokenizer), data.tokenizer.bos_token_id))
    tokens_per_step = run.training.batch_size * run.data.sequence_length
    total_steps = -(-run.training.tokens // tokens_per_step)
    console.print(forecast(run, model, data, total_steps))

    output.mkdir(parents=True, exist_ok=True)
    (output / "run.yaml").write_text(yaml.safe_dump(run.model_dump(mode="json"), sort_keys=False))
    trainer = Trainer(
        model=model,
        args=_arguments(run, output, total_steps),
        train_dataset=data.train,
        optimizers=_optimizer(model, run.training, total_steps),
    )
    evaluate = partial(
        score,
        stream=data.valid,
        sequence_length=run.data.sequence_length,
        batch_size=run.evaluation.batch_size,
    )
    trainer.remove_callback(PrinterCallback)
    metrics, progress = JsonLines(output / "metrics.jsonl", tokens_per_step), ProgressBar(console, tokens_per_step)
    validation = Validation(run.evaluation.every_steps, evaluate, metrics)
    for callback in (StopBeforeNonFinite(), metrics, validation, progress):
        trainer.add_callback(callback)
    began_at = time.monotonic()
    with progress.bar:
        trainer.train()
    seconds = time.monotonic() - began_at

    result = evaluate(model)
    with _no_bars():
        model.save_pretrained(output)
    data.tokenizer.save_pretrained(output)
    record = _record(run, model, data, total_steps * tokens_per_step, seconds, result)
    (output / "record.json").write_text(json.dumps(asdict(record), indent=2) + "\n")
    return record


def prepare_data(run: Run) -> Data:
    """Read, split and tokenize the texts; a ``bpe`` tokenizer is trained on the training text.

    Raises:
        ValueError: a text cannot be read or is too short.
    """
    train_text = read_corpus(run.data.train)
    if run.data.validation is None:
        train_text, valid_text = train_text.split()
    else:
        valid_text = read_corpus(run.data.validation)
    tokenizer = build_tokenizer(run.tokenizer, train_text.documents)
    rows = PackedRows(tokenize(train_text.documents, tokenizer), run.data.sequence_length)
    return Data(tokenizer, rows, tokenize(valid_text.documents, tokenizer), train_text.sha256())


def body_parameters(model: LongwaveForCausalLM) -> int:
    """Parameters outside the embedding table and the head."""
    outside = {id(model.get_input_embeddings().weight), id(model.lm_head.weight)}
    return sum(parameter.numel() for parameter in model.parameters() if id(parameter) not in outside)


def forecast(run: Run, model: LongwaveForCausalLM, data: Data, total_steps: int) -> str:
    """What the run will take, from the sizes and from timing one row forward and backward."""
    batch = {name: tensor[None] for name, tensor in data.train[0].items()}
    with torch.random.fork_rng():
        for _ in range(2):
            began_at = time.monotonic()
            model(**batch).loss.backward()
            seconds = time.monotonic() - began_at
    model.zero_grad()
    minutes = seconds * run.training.batch_size * total_steps / 60
    size = sum(parameter.numel() for parameter in model.parameters())
    return (
        f"{size:,} parameters ({body_parameters(model):,} outside the embedding, {16 * size / 2**20:,.0f} MiB with "
        f"gradients and optimizer), {run.training.tokens:,} of {len(data.train.stream.ids):,} training tokens in "
        f"{total_steps:,} steps, at most {minutes:,.1f} minutes"
    )


def _arguments(run: Run, output: Path, total_steps: int) -> TrainingArguments:
    return TrainingArguments(
        output_dir=str(output),
        max_steps=total_steps,
        per_device_train_batch_size=run.training.batch_size,
        max_grad_norm=run.training.clip or 0.0,
        bf16=run.training.precision == "bfloat16",
        seed=run.training.seed,
        data_seed=run.training.seed,
        logging_steps=LOG_STEPS,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        dataloader_pin_memory=torch.cuda.is_available(),
    )


def _optimizer(model: nn.Module, settings: TrainingSection, total_steps: int) -> tuple[AdamW, LambdaLR]:
    """AdamW without decay on vectors, and its rate for each step."""
    matrices = [p for p in model.parameters() if p.requires_grad and p.dim() > 1]
    vectors = [p for p in model.parameters() if p.requires_grad and p.dim() <= 1]
    groups = [
        {"params": matrices, "weight_decay": settings.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    optimizer = AdamW(groups, lr=1.0, betas=settings.betas)
    rate = partial(
        learning_rate,
        base=settings.learning_rate,
        minimum=min(settings.minimum_learning_rate, settings.learning_rate),
        warmup_steps=settings.warmup_steps,
        total_steps=total_steps,
        schedule=settings.schedule,
    )
    return optimizer, LambdaLR(optimizer, lambda done: rate(done + 1))


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


def _record(
    run: Run, model: LongwaveForCausalLM, data: Data, tokens: int, seconds: float, result: LikelihoodScore
) -> Record:
    return Record(
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        body_parameters=body_parameters(model),
        tokens=tokens,
        seconds=round(seconds, 3),
        bits_per_byte=result.bits_per_byte,
        perplexity=result.perplexity,
        data_sha256=data.sha256,
        seed=run.training.seed,
        device=str(model.device),
        num_threads=torch.get_num_threads(),
        versions={
            "longwave": version("longwave"),
            "commit": _commit(),
            "torch": torch.__version__,
            "transformers": version("transformers"),
            "python": platform.python_version(),
        },
    )


def _commit() -> str:
    """The commit of the source checkout, or ``"unknown"`` for an installed package."""
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        return "unknown"
    command = ["git", "-C", str(root), "describe", "--always", "--dirty"]
    return subprocess.run(command, capture_output=True, text=True).stdout.strip() or "unknown"
