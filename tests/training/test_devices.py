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
    (Path(sys.argv[2]) / "kind").write_text(f"{trainer.accelerator.distributed_type} {trainer.args.world_size}")
    return original(trainer, *args, **kwargs)
Trainer.train = noted
train(load_run(sys.argv[1], sys.argv[3:]), Path(sys.argv[2]))
"""
FSDP = {
    "compute_environment": "LOCAL_MACHINE",
    "distributed_type": "FSDP",
    "fsdp_config": {
        "fsdp_version": 2,
        "fsdp_auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
        "fsdp_transformer_layer_cls_to_wrap": "Block",
        "fsdp_state_dict_type": "FULL_STATE_DICT",
    },
    "mixed_precision": "no",
    "num_machines": 1,
    "num_processes": 2,
    "use_cpu": True,
}
LAUNCHERS = {
    "one process": ["-c"],
    "two by torchrun": ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"],
    "two by accelerate, FSDP2": ["-m", "accelerate.commands.launch", "--config_file", "fsdp.yaml"],
}


@pytest.fixture(scope="module")
def losses(tmp_path_factory):
    """Per launcher and overrides: the scores of training and validation, and how the processes were joined."""
    folder = tmp_path_factory.mktemp("devices")
    (folder / "text.txt").write_text("".join(f"{i} * {i} = {i * i}\n" for i in range(1500)))
    (folder / "script.py").write_text(SCRIPT)
    (folder / "fsdp.yaml").write_text(yaml.safe_dump(FSDP))
    values = {**RUN, "data": {**RUN["data"], "train": str(folder / "text.txt")}}
    values["model"] = {**RUN["model"], "dropout": 0.0, "mixer_kwargs": {"hale": {"window": 8, "num_levels": 2}}}
    values["training"] = {**RUN["training"], "tokens": 10 * 8 * 32}
    (folder / "run.yaml").write_text(yaml.safe_dump(values))

    @cache
    def run(launcher: str, *overrides: str):
        output = folder / f"{launcher} {' '.join(overrides)}".replace("/", "_")
        start = [sys.executable, *LAUNCHERS[launcher]]
        start = [sys.executable, "script.py"] if launcher == "one process" else [*start, "script.py"]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        command = [*start, "run.yaml", str(output), *overrides]
        subprocess.run(command, cwd=folder, env=environment, check=True, capture_output=True, timeout=120)
        record = json.loads((output / "record.json").read_text())
        last = json.loads((output / "metrics.jsonl").read_text().splitlines()[-1])
        return record["bits_per_byte"], last["train_loss"], (output / "kind").read_text()

    return run


@pytest.mark.parametrize("overrides", [(), ("training.accumulation=2",), ("training.carry_state=true",)], ids=str)
def test_two_processes_equal_one(losses, overrides):
    one, two = losses("one process", *overrides), losses("two by torchrun", *overrides)
    assert two[2] == "DistributedType.MULTI_CPU 2"
    assert two[:2] == pytest.approx(one[:2], rel=1e-5)


def test_sharded_parameters_equal_one_process(losses):
    one, two = losses("one process"), losses("two by accelerate, FSDP2")
    assert two[2] == "DistributedType.FSDP 2"
    assert two[:2] == pytest.approx(one[:2], rel=1e-5)
