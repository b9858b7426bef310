"""What a run says before it starts and writes when it has ended."""

from __future__ import annotations

import hashlib
import platform
import time
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

import torch
import yaml

from longwave.data import Data
from longwave.data.sealed import altered, fingerprint, read_sealed, write_sealed
from longwave.evaluation import Score
from longwave.model import LongwaveForCausalLM
from longwave.training.checkpoints import METRICS, SAMPLES
from longwave.training.configuration import Run
from longwave.verification.provenance import commit

RECORD = "record.json"
#: Names of the files that a record vouches for.
VOUCHED = ("run.yaml", METRICS, SAMPLES, "scored_rows.npy", "*config.json", "model*.safetensors*", "tokenizer.json")


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

    def write(self, output: Path, run: Run) -> None:
        """End a run: seal ``record.json`` over the files in its directory that it vouches for."""
        names = sorted({path.name for pattern in VOUCHED for path in output.glob(pattern)})
        files = {name: fingerprint(output / name) for name in names}
        write_sealed(output / RECORD, {**asdict(self), "run_sha256": run_sha256(run), "files": files})

    @classmethod
    def read(cls, output: Path, run: Run) -> Record:
        """The record of a run that has ended, if all is as it was then.

        Raises:
            ValueError: ``record.json`` is no record, one of another run or of another version of the package, or a
                file that it vouches for is not as it was.
        """
        path = output / RECORD
        remedy = "remove record.json to go on from the newest checkpoint, or the directory to begin again"
        try:
            values = read_sealed(path)
            of, files = values.pop("run_sha256"), values.pop("files")
            record = cls(**values)
        except (TypeError, ValueError, KeyError) as error:
            raise ValueError(f"{path}: not a record that this version writes: {error}; {remedy}") from None
        if of != run_sha256(run):
            raise ValueError(f"{path}: belongs to another run; {remedy}")
        if name := altered(output, files):
            raise ValueError(f"{output / name}: is not as it was when the run ended; {remedy}")
        return record


def run_sha256(run: Run) -> str:
    """What a run is known by: the hash of its run file, every default filled in."""
    return hashlib.sha256(dump(run).encode()).hexdigest()


def dump(run: Run) -> str:
    """The run file with every default filled in."""
    return yaml.safe_dump(run.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


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
