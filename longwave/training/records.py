"""What a run says before it starts and writes when it has ended."""

from __future__ import annotations

import json
import platform
import time
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import torch

from longwave.data import Data
from longwave.evaluation import Score
from longwave.model import LongwaveForCausalLM
from longwave.training.configuration import Run
from longwave.verification.provenance import commit


@dataclass(frozen=True)
class Record:
    """What a finished run writes into ``record.json``.

    ``parameters`` counts all, ``body_parameters`` those outside the embedding table and head; ``tokens``
    those trained on; ``seconds`` the training alone, over all its sittings; ``scores`` are the final score's values.
    """

    parameters: int
    body_parameters: int
    tokens: int
    seconds: float
    scores: dict[str, float]
    data_sha256: str
    scored_sha256: str
    seed: int
    device: str
    num_threads: int
    versions: dict[str, str]

    @classmethod
    def read(cls, path: Path) -> Record:
        """What ``path`` holds.

        Raises:
            ValueError: it is no record, or one of another version of the package.
        """
        try:
            return cls(**json.loads(path.read_text(encoding="utf-8")))
        except (TypeError, ValueError) as error:
            raise ValueError(f"{path}: not a record that this version writes: {error}") from None


def body_parameters(model: LongwaveForCausalLM) -> int:
    """Parameters outside the embedding table and the head."""
    outside = {id(model.get_input_embeddings().weight), id(model.lm_head.weight)}
    return sum(parameter.numel() for parameter in model.parameters() if id(parameter) not in outside)


def make_record(run: Run, model: LongwaveForCausalLM, data: Data, tokens: int, seconds: float, result: Score) -> Record:
    """The record of a run that ended with ``result``."""
    return Record(
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        body_parameters=body_parameters(model),
        tokens=tokens,
        seconds=seconds,
        scores=result.values(),
        data_sha256=data.sha256,
        scored_sha256=data.scored_sha256,
        seed=run.training.seed,
        device=str(model.device),
        num_threads=torch.get_num_threads(),
        versions={
            "longwave": version("longwave"),
            "commit": commit(),
            "torch": torch.__version__,
            "transformers": version("transformers"),
            "python": platform.python_version(),
        },
    )


def forecast(run: Run, model: LongwaveForCausalLM, row: dict[str, torch.Tensor], total_steps: int) -> str:
    """What the run will take, from the sizes and from timing one row forward and backward."""
    batch = {name: tensor[None].to(model.device) for name, tensor in row.items()}
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
        f"gradients and optimizer), {run.training.tokens:,} tokens in {total_steps:,} steps, "
        f"about {minutes:,.1f} minutes"
    )
