"""A run that was stopped continues as if it had not been; what cannot be continued exactly is refused."""

from __future__ import annotations

import json
from functools import wraps

import pytest
import torch
import yaml

from longwave.data import PackedRows, TokenStream
from longwave.model import LongwaveForCausalLM
from longwave.training import load_run, train
from longwave.training.trainer import Lanes
from tests.training.kill import RUN, compare

TASK = ["data.train=embedded", "data.task={name: mqar, sizes: [2, 4], vocabulary: 32, stage_rows: 100}"]
VARIANTS = {
    "plain": [],
    "carried states": ["training.carry_state=true"],
    "inside a step": ["training.accumulation=2"],
    "carried states inside a step": ["training.carry_state=true", "training.accumulation=2"],
    "a task": TASK,
}


@pytest.fixture
def run(tmp_path):
    """A run file's settings, changed by overrides."""
    (tmp_path / "text.txt").write_text("".join(f"{index} * {index} = {index * index}\n" for index in range(1500)))
    values = {**RUN, "data": {**RUN["data"], "train": str(tmp_path / "text.txt")}}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(values))
    return lambda *overrides: load_run(
        str(tmp_path / "run.yaml"), ["training.tokens=2048", "training.save_every_steps=2", *overrides]
    )


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_killed_run_ends_in_the_weights_of_an_undisturbed_one(variant):
    equal, hits = compare(3, VARIANTS[variant])
    assert hits
    assert equal


@pytest.mark.parametrize(
    "change",
    ["training.learning_rate=0.5", "training.batch_size=4", "training.accumulation=2", "data.sequence_length=16"],
)
def test_a_changed_setting_is_refused_by_name_with_both_values(run, tmp_path, change):
    train(run(), tmp_path / "out")
    (tmp_path / "out" / "record.json").unlink()
    name, value = change.split("=")
    with pytest.raises(ValueError, match=rf"out: {name} is .* in the run begun, {value} now"):
        train(run(change), tmp_path / "out", resume=True)


def test_a_finished_run_stays_as_it_is(run, tmp_path):
    first = train(run(), tmp_path / "out")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")}
    assert train(run(), tmp_path / "out", resume=True) == first
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")} == before


def test_nothing_to_resume_is_said(run, tmp_path):
    with pytest.raises(ValueError, match="out: there is no run to resume"):
        train(run(), tmp_path / "out", resume=True)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"holds no run\.yaml: not a run directory"):
        train(run(), tmp_path / "out", resume=True)


def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(run, tmp_path):
    train(run(), tmp_path / "whole")
    train(run(), tmp_path / "out")
    (tmp_path / "out" / "record.json").unlink()
    weights = tmp_path / "out" / "checkpoint-8" / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(bytes(data))
    train(run(), tmp_path / "out", resume=True)
    final = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "out")]
    assert final[0] == final[1]
    steps = [json.loads(line)["step"] for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    assert steps == sorted(steps)


def test_lanes_are_contiguous_and_begin_with_a_start():
    ids = torch.arange(101).numpy()
    rows = PackedRows(TokenStream(ids, ids < 0, 101), 5)
    lanes = Lanes(rows, 3)
    assert len(lanes) == 18
    for lane in range(3):
        mine = [lanes[lane + 3 * step] for step in range(6)]
        tokens = torch.cat([row["input_ids"] for row in mine])
        assert torch.equal(tokens, torch.arange(tokens[0], tokens[0] + 30))
        assert torch.cat([row["starts"] for row in mine]).nonzero().flatten().tolist() == [0]


@pytest.mark.parametrize("accumulation", [1, 2, 4])
def test_carried_states_are_those_of_the_text_so_far(run, tmp_path, monkeypatch, accumulation):
    seen = []
    original = LongwaveForCausalLM.forward

    @wraps(original)
    def forward(model, *args, **kwargs):
        out = original(model, *args, **{**kwargs, "skip_logits": False})
        if kwargs.get("cache") is not None or kwargs.get("use_cache"):
            seen.append((kwargs, out.logits.detach()))
        return out

    monkeypatch.setattr(LongwaveForCausalLM, "forward", forward)
    still = [
        "training.carry_state=true",
        "training.learning_rate=1e-30",
        "training.minimum_learning_rate=0.0",
        "model.dropout=0.0",
    ]
    still += ["model.mixer_kwargs.hale.dropout=0.0", "training.weight_decay=0.0"]
    train(run(*still, f"training.accumulation={accumulation}"), tmp_path / "out")
    monkeypatch.undo()
    model = LongwaveForCausalLM.from_pretrained(tmp_path / "out")
    for part in range(accumulation):
        mine = seen[part::accumulation]
        ids = torch.cat([kwargs["input_ids"] for kwargs, _ in mine], dim=1)
        starts = torch.cat([kwargs["starts"] for kwargs, _ in mine], dim=1)
        assert len(ids) == 8 // accumulation
        whole = model(ids, starts=starts, use_cache=False).logits
        torch.testing.assert_close(torch.cat([logits for _, logits in mine], dim=1), whole, rtol=1e-4, atol=1e-4)


def test_a_run_killed_before_its_record_trains_no_further(run, tmp_path):
    first = train(run(), tmp_path / "out")
    for name in ("record.json", "model.safetensors", "config.json"):
        (tmp_path / "out" / name).unlink()
    again = train(run(), tmp_path / "out", resume=True)
    assert (again.tokens, again.scores) == (first.tokens, first.scores)


@pytest.mark.parametrize(
    "change", ["{name: copy, sizes: [2, 4]}", "{name: mqar, sizes: [2], vocabulary: 32, stage_rows: 100}"]
)
def test_another_task_is_refused_by_name(run, tmp_path, change):
    train(run(*TASK), tmp_path / "out")
    (tmp_path / "out" / "record.json").unlink()
    with pytest.raises(ValueError, match=r"out: data\.task\.(name|sizes) is .* in the run begun, .* now"):
        train(run(TASK[0], f"data.task={change}"), tmp_path / "out", resume=True)


def test_a_run_that_stopped_early_stays_stopped(run, tmp_path):
    still = ["training.learning_rate=1e-12", "training.minimum_learning_rate=0.0", "evaluation.every_steps=2"]
    first = train(run(*still, "evaluation.patience=1"), tmp_path / "out")
    assert first.tokens < 2048
    (tmp_path / "out" / "record.json").unlink()
    assert train(run(*still, "evaluation.patience=1"), tmp_path / "out", resume=True).tokens == first.tokens


def test_states_are_carried_through_one_stored_source_only(run, tmp_path):
    with pytest.raises(ValueError, match="reads one stored source in order"):
        train(run("training.carry_state=true", "data.streaming=true"), tmp_path / "out")
