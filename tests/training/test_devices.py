"""The same run file on two processes: the loss of one process at the same global batch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
import yaml

from tests.training.kill import RUN

ROOT = Path(__file__).parents[2]
SCRIPT = """
import sys
from pathlib import Path
from transformers import Trainer
from longwave.training import load_run, train
original = Trainer.train
def noted(trainer, *args, **kwargs):
    if trainer.is_world_process_zero():
        kind = f"{trainer.accelerator.distributed_type} {trainer.args.world_size}"
        (Path(sys.argv[2]) / "kind").write_text(kind)
    return original(trainer, *args, **kwargs)
Trainer.train = noted
train(load_run(sys.argv[1], sys.argv[3:]), Path(sys.argv[2]))
"""
SHARDED = """
import os
import sys
import torch
import torch.distributed as dist
from torch.distributed.fsdp import fully_shard
from longwave.model import LongwaveConfig, LongwaveForCausalLM
if int(sys.argv[1]) > 1:
    dist.init_process_group("gloo")
rank = dist.get_rank() if dist.is_initialized() else 0
torch.manual_seed(0)
config = LongwaveConfig(mixer_types=["hale", "softmax"], num_hidden_layers=2, hidden_size=32, num_heads=2)
model = LongwaveForCausalLM(config)
ids = torch.randint(0, 257, (4, 33))
if dist.is_initialized():
    mesh = dist.init_device_mesh("cpu", (2,))
    for block in model.blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    assert all(type(p).__name__ == "DTensor" for p in model.parameters())
    ids = ids[2 * rank : 2 * rank + 2]
optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
for _ in range(5):
    loss = model(ids, labels=ids).loss
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    total = loss.detach().clone()
    if dist.is_initialized():
        dist.all_reduce(total)
        total /= 2
if rank == 0:
    print(float(total))
sys.stdout.flush()
if dist.is_initialized():
    dist.barrier()
    os._exit(0)  # gloo's threads sometimes abort while the interpreter shuts down
"""
TWO = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


def start(folder: Path, *command: str) -> str:
    """Run Python in ``folder`` and give what it prints."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, *command], cwd=folder, env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def losses(tmp_path_factory):
    """Per number of processes and overrides: scores of training and validation, and how the processes were joined."""
    folder = tmp_path_factory.mktemp("devices")
    (folder / "text.txt").write_text("".join(f"{i} * {i} = {i * i}\n" for i in range(1500)))
    (folder / "script.py").write_text(SCRIPT)
    values = {**RUN, "data": {**RUN["data"], "train": str(folder / "text.txt")}}
    values["model"] = {**RUN["model"], "dropout": 0.0, "mixer_kwargs": {"hale": {"window": 8, "num_levels": 2}}}
    values["training"] = {**RUN["training"], "tokens": 10 * 8 * 32}
    (folder / "run.yaml").write_text(yaml.safe_dump(values))

    @cache
    def run(processes: int, *overrides: str):
        output = folder / f"{processes} {' '.join(overrides)}"
        start(folder, *(TWO if processes == 2 else []), "script.py", "run.yaml", str(output), *overrides)
        record = json.loads((output / "record.json").read_text())
        last = json.loads((output / "metrics.jsonl").read_text().splitlines()[-1])
        return record["scores"]["bits_per_byte"], last["train_loss"], (output / "kind").read_text()

    return run


@pytest.mark.parametrize(
    "overrides",
    [
        (),
        ("training.accumulation=2",),
        ("training.carry_state=true",),
        ("training.carry_state=true", "training.accumulation=2"),
    ],
    ids=str,
)
def test_two_processes_equal_one(losses, overrides):
    one, two = losses(1, *overrides), losses(2, *overrides)
    assert two[2] == "DistributedType.MULTI_CPU 2"
    assert two[:2] == pytest.approx(one[:2], rel=1e-5)


def test_sharded_parameters_equal_whole_ones(tmp_path):
    (tmp_path / "sharded.py").write_text(SHARDED)
    one, two = (float(start(tmp_path, *launch, "sharded.py", n)) for launch, n in (([], "1"), (TWO, "2")))
    assert two == pytest.approx(one, rel=1e-5)
