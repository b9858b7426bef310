"""What a step of the optimizer reads does not depend on how it is split."""

from __future__ import annotations

import json
import shutil
from functools import wraps

import pytest
import torch
import yaml

from longwave.model import LongwaveForCausalLM
from longwave.training import load_run, train
from longwave.training.callbacks import StopBeforeNonFinite
from tests.training.kill import RUN

BATCH, LENGTH, STEPS = 8, 32, 7
VARIANTS = {
    "plain": [],
    "whole epochs": ["data.train=whole.txt"],
    "streaming": ["data.streaming=true", "data.shuffle_buffer=4"],
    "mix": ["data.train=[{source: text.txt, weight: 2}, {source: whole.txt}]"],
    "task": [
        "data.train=embedded",
        "data.validation=null",
        "data.task={name: mqar, sizes: [2, 4], vocabulary: 32, stage_rows: 20}",
    ],
    "carried states": ["training.carry_state=true"],
}


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A run whose text has 27 rows, three steps and a bit; its settings are changed by overrides."""
    monkeypatch.chdir(tmp_path)
    for name, rows in (("text.txt", 27), ("whole.txt", 24)):
        text = "".join(f"{index} * {index} = {index * index}\n" for index in range(300))
        (tmp_path / name).write_text(text[: rows * LENGTH - (rows == 24)])
    training = {**RUN["training"], "tokens": STEPS * BATCH * LENGTH, "batch_size": BATCH}
    data = {"train": "text.txt", "validation": "whole.txt", "sequence_length": LENGTH}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump({**RUN, "data": data, "training": training}))
    return lambda *overrides: load_run("run.yaml", overrides)


@pytest.fixture
def steps(monkeypatch):
    """The rows that the model sees in training, by optimizer step; those of the last train."""
    found: list[list[tuple[int, ...]]] = [[]]
    forward, before_step = LongwaveForCausalLM.forward, StopBeforeNonFinite.on_pre_optimizer_step

    @wraps(forward)
    def seen(model, *args, **kwargs):
        if model.training and len(kwargs["input_ids"]) > 1:  # one row is what the forecast times
            found[-1] += map(tuple, kwargs["input_ids"].tolist())
        return forward(model, *args, **kwargs)

    def stepped(*args, **kwargs):
        before_step(*args, **kwargs)
        found.append([])

    monkeypatch.setattr(LongwaveForCausalLM, "forward", seen)
    monkeypatch.setattr(StopBeforeNonFinite, "on_pre_optimizer_step", stepped)

    def of(run, output):
        found[:] = [[]]
        train(run, output)
        return found[:-1]

    return of


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_step_reads_the_same_rows_and_all_that_are_recorded(run, steps, tmp_path, variant):
    by_parts = {}
    for parts in (1, 2, 4):
        output = tmp_path / f"{parts} parts"
        by_parts[parts] = steps(run(*VARIANTS[variant], f"training.accumulation={parts}"), output)
        recorded = json.loads((output / "record.json").read_text())["tokens"]
        assert recorded == sum(map(len, by_parts[parts])) * LENGTH == STEPS * BATCH * LENGTH
        assert [len(rows) for rows in by_parts[parts]] == [BATCH] * STEPS
    assert by_parts[1] == by_parts[2] == by_parts[4]


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_run_resumed_within_an_epoch_ends_in_the_same_weights(run, tmp_path, variant):
    settings = [*VARIANTS[variant], "training.accumulation=4", "training.save_every_steps=4"]
    train(run(*settings), tmp_path / "out")
    whole = (tmp_path / "out" / "model.safetensors").read_bytes()
    for name in ("record.json", "model.safetensors"):
        (tmp_path / "out" / name).unlink()
    for later in (tmp_path / "out").glob("checkpoint-[5-9]"):
        shutil.rmtree(later)
    assert (tmp_path / "out" / "checkpoint-4").is_dir()
    train(run(*settings), tmp_path / "out", resume=True)
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == whole


def test_the_gradient_does_not_depend_on_the_parts(run, tmp_path):
    still = ["model.dropout=0.0", "model.mixer_kwargs.hale.dropout=0.0", "training.precision=float32"]
    losses = {}
    for parts in (1, 2, 4):
        train(run(*still, f"training.accumulation={parts}", "training.carry_state=true"), tmp_path / str(parts))
        losses[parts] = json.loads((tmp_path / str(parts) / "record.json").read_text())["scores"]["bits_per_byte"]
    assert torch.tensor([losses[2], losses[4]]) == pytest.approx(losses[1], rel=1e-4)
