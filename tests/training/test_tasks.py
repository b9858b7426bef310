"""A run on a task: from its file to its directory, like one on text."""

from __future__ import annotations

import json

import numpy as np
import pytest
import yaml
from transformers import AutoModelForCausalLM

from longwave import cli
from longwave.data import ScoredRows, TaskRows
from longwave.evaluation import recall
from longwave.training import load_run, train
from tests.training.kill import RUN

TASK = {"name": "copy", "sizes": [1, 2], "vocabulary": 16, "evaluation_rows": 8}


@pytest.fixture(scope="module")
def run_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("tasks") / "copy.yaml"
    training = {"tokens": 25 * 8 * 8, "batch_size": 8, "device": "cpu", "learning_rate": 0.01, "warmup_steps": 3}
    values = {"model": RUN["model"], "data": {"task": TASK, "sequence_length": 8}, "training": training}
    path.write_text(yaml.safe_dump({**values, "evaluation": {"every_steps": 10, "samples": ["5 6 1"]}}))
    return path


@pytest.fixture(scope="module")
def out(run_file):
    train(load_run(str(run_file)), run_file.parent / "out")
    return run_file.parent / "out"


@pytest.fixture
def record(out):
    return json.loads((out / "record.json").read_text())


def test_the_record_has_the_accuracy_of_every_size(record):
    assert list(record["scores"]) == ["accuracy", "accuracy@1", "accuracy@2"]


def test_the_recorded_score_is_that_of_the_saved_model(out, run_file, record):
    run = load_run(str(run_file))
    found = recall(AutoModelForCausalLM.from_pretrained(out), ScoredRows(run.data.task, 8))
    assert record["scores"] == found.values()
    assert np.load(out / "scored_rows.npy").tolist() == found.rows.tolist()
    assert record["data_sha256"] == run.data.task.sha256(8)


def test_metrics_hold_accuracies_by_step(out, record):
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "accuracy" in line] == [10, 20]
    assert all(record["scores"].keys() <= line.keys() for line in lines if "accuracy" in line)


def test_the_resolved_run_is_a_run_file(out, run_file):
    assert load_run(str(out / "run.yaml")) == load_run(str(run_file))


def test_samples_are_numbers(out):
    (line, *_) = (out / "samples.jsonl").read_text().splitlines()
    assert all(0 <= int(word) < 16 for word in json.loads(line)["text"].split())


def test_rows_are_read_in_order(run_file, tmp_path, monkeypatch):
    read = []
    original = TaskRows.__getitems__
    monkeypatch.setattr(TaskRows, "__getitems__", lambda rows, some: (read.extend(some), original(rows, some))[1])
    train(load_run(str(run_file), ["training.accumulation=2"]), tmp_path / "out")
    assert read[: 1 + 25 * 8] == [0, *range(25 * 8)]  # the forecast times the first row


def test_evaluate_and_generate_know_the_task(out, record, monkeypatch, capsys):
    def longwave(*arguments):
        monkeypatch.setattr("sys.argv", ["longwave", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        assert not ended.value.code
        return capsys.readouterr().out

    found = json.loads(longwave("evaluate", out, "--json"))
    assert found == {**record["scores"], "rows": 16}
    shown = longwave("evaluate", out)
    assert shown.startswith(f"accuracy {found['accuracy']:.4f}, accuracy@1 {found['accuracy@1']:.4f}, ")
    assert shown.endswith("(16 rows)\n")
    said = longwave("generate", out, "--prompt", "7 8 1", "--max-new-tokens", 3, "--temperature", 0)
    assert said.startswith("7 8 1")
    assert all(0 <= int(word) < 16 for word in said.split())
