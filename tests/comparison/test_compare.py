from __future__ import annotations

import json
import multiprocessing
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from rich.console import Console

from longwave.comparison import Comparison, compare, print_comparison, read_terms, workers
from longwave.evaluation import LikelihoodScore
from longwave.training import load_run, train


def scores(report):
    return {axis: {arm: rows.tolist() for arm, rows in arms.items()} for axis, arms in report.scores.items()}


def test_the_same_model_twice_is_an_exact_tie(race):
    report = race("softmax", "softmax@again")
    (best, other) = report.rankings["parameters"]
    assert (best.rank, other.rank) == (1, 1)
    assert (other.difference.low, other.difference.high) == (0.0, 0.0)


def test_an_uncertified_mixer_is_invalid_and_not_trained(base, tmp_path):
    leaky = "tests.verification.gallery:WindowIntoTheFuture"
    report = Comparison(read_terms(("softmax", leaky), base=str(base), seeds=1), tmp_path / "out").run()
    assert [place.name for place in report.rankings["parameters"]] == ["softmax"]
    assert report.invalid[leaky].startswith(f"{leaky} failed: P1")
    assert [path.name for path in (tmp_path / "out" / "runs").iterdir() if "gallery" in path.name] == []


def test_a_published_form_that_breaks_a_law_is_invalid(base, tmp_path):
    terms = read_terms(
        ("softmax", "hale"), [("hale.cache", "published"), ("hale.num_levels", 4)], base=str(base), seeds=1
    )
    assert Comparison(terms, tmp_path / "out").run().invalid == {"hale": "hale declared: P3, P9"}


def test_a_later_arm_is_added_without_doing_the_rest_again(race, monkeypatch):
    first = race("softmax", "hale")
    trained = []
    monkeypatch.setattr(workers, "train", lambda run, *args, **more: trained.append(run) or train(run, *args, **more))
    second = race("softmax", "hale", "gated_delta")
    assert [run.model.mixer_types for run in trained] == ["gated_delta"] * 2
    for arm in ("softmax", "hale"):
        assert np.array_equal(second.scores["parameters"][arm], first.scores["parameters"][arm])


def test_a_run_can_be_done_again_from_its_file(race, tmp_path):
    report = race("softmax", "hale")
    cell = report.cells[1]
    record = train(load_run(str(cell.run_file)), tmp_path / "replayed")
    assert record.scores == cell.outcome.record.scores
    assert cell.replay == f"longwave train {cell.run_file} --output replay-{cell.run_file.stem}"


def test_seeds_are_shared_and_change_data_order_and_weights(race):
    report = race("softmax", "hale")
    assert [(cell.arm, cell.seed) for cell in report.cells] == [
        ("softmax", 7), ("hale", 7), ("softmax", 8), ("hale", 8)
    ]  # fmt: skip
    assert {cell.outcome.record.seed for cell in report.cells} == {7, 8}
    rows = report.scores["parameters"]["softmax"]
    assert not np.array_equal(rows[0], rows[1])


def test_every_arm_has_the_same_trials_and_keeps_its_best_rate(race):
    report = race("softmax", "hale", rates="0.01,0.001,0.1", trial_tokens=400)
    for entry in report.entries:
        assert [trial.rate for trial in entry.trials] == [0.01, 0.001, 0.1]
        assert entry.rate == min(entry.trials, key=lambda trial: trial.loss).rate
        assert {load_run(str(c.run_file)).training.learning_rate for c in report.cells if c.arm == entry.arm} == {
            entry.rate
        }
        assert entry.at_the_edge == (entry.rate != 0.01)


def test_budgets_change_the_tokens_and_are_ranked_each(race):
    report = race("softmax", "hale", budget="parameters,operations,tokens")
    assert set(report.rankings) == {"parameters", "operations", "tokens"}
    entries = {(entry.axis, entry.arm): entry for entry in report.entries}
    same, fewer = entries["parameters", "hale"], entries["operations", "hale"]
    assert same.tokens == entries["parameters", "softmax"].tokens
    spent = fewer.tokens * fewer.operations_per_token
    reference = entries["operations", "softmax"]
    assert spent == pytest.approx(reference.tokens * reference.operations_per_token, rel=0.06)
    assert entries["tokens", "hale"].size.intermediate_size == 64


def test_seconds_measured_once_are_remembered(race):
    first, second = (race("softmax", "hale", budget="seconds", seeds=1) for _ in range(2))
    assert [entry.tokens for entry in first.entries] == [entry.tokens for entry in second.entries]


def test_a_diverged_arm_is_named_and_not_ranked(race, monkeypatch):
    def fail(run, *arguments, **more):
        if run.model.mixer_types == "hale":
            arguments[0].mkdir(parents=True)
            raise FloatingPointError("step 3: the gradient is not finite; the step is not taken")
        return train(run, *arguments, **more)

    monkeypatch.setattr(workers, "train", fail)
    report = race("softmax", "hale")
    assert [place.name for place in report.rankings["parameters"]] == ["softmax"]
    assert {cell.arm for cell in report.diverged} == {"hale"}


def test_runs_side_by_side_are_those_done_one_after_another(race):
    assert scores(race("softmax", "hale", jobs=2, output="beside")) == scores(race("softmax", "hale"))


@pytest.mark.parametrize("changed", ["text.txt", "valid.txt"])
def test_other_data_under_the_same_name_is_refused_before_anything_is_trained(race, tmp_path, changed, monkeypatch):
    (tmp_path / "valid.txt").write_text("the lazy dog jumps\n" * 50)
    overrides = [("data.validation", str(tmp_path / "valid.txt"))]
    race("softmax", "hale", overrides=overrides)
    (tmp_path / changed).write_text("something else entirely\n" * 500)
    monkeypatch.setattr(workers, "train", None)
    with pytest.raises(ValueError, match=r"was trained on other data than there is now; choose another --output"):
        race("softmax", "hale", "gated_delta", overrides=overrides)


def test_a_run_whose_score_is_not_finite_has_diverged(race, monkeypatch, tmp_path):
    monkeypatch.setattr(LikelihoodScore, "perplexity", float("inf"))
    report = race("softmax", "hale", seeds=1, overrides=[("evaluation.every_steps", 0)])
    assert report.rankings["parameters"] == []
    assert {cell.outcome.diverged for cell in report.diverged} == {"the final score: perplexity is not finite: inf"}
    assert not list((tmp_path / "compared" / "runs").rglob("record.json"))


def test_without_a_certified_arm_there_is_a_report_and_no_run(base, tmp_path):
    terms = read_terms(
        ("tests.verification.gallery:BatchMean", "tests.verification.gallery:WholeBlockMean"), base=str(base)
    )
    report = Comparison(terms, tmp_path / "out").run()
    assert len(report.invalid) == 2
    assert json.loads((tmp_path / "out" / "comparison.json").read_text())["rankings"] == {}


def test_a_mixer_of_the_users_own_is_trained_anew_when_its_code_changes(race, tmp_path, monkeypatch):
    source = Path(__file__).parents[1] / "toys.py"
    for number, name in enumerate(("one", "two")):
        (tmp_path / "my_mixers.py").write_text(f"{source.read_text()}\n# version {number}\n")
        monkeypatch.syspath_prepend(str(tmp_path))
        sys.modules.pop("my_mixers", None)
        report = race("softmax", "my_mixers:CumulativeMean", seeds=1)
        (cell,) = report.cells_of("parameters", "my_mixers:CumulativeMean")
        assert cell.run_file.exists(), name
    assert len(list((tmp_path / "compared" / "runs").glob("my_mixers*.yaml"))) == 2


def _compare(base: str, output: Path, jobs: int) -> None:
    torch.set_num_threads(1)
    compare.Comparison._certificate = lambda self, arm: "passed"
    compare.Comparison(read_terms(("softmax", "hale"), base=base, seeds=2, jobs=jobs), output).run()


@pytest.mark.parametrize(("jobs", "delays"), [(1, (1.5, 2.5, 3.5)), (2, (4.0,))], ids=["in turn", "side by side"])
def test_killed_and_continued_it_is_the_undisturbed_one(race, base, tmp_path, jobs, delays):
    undisturbed = race("softmax", "hale", output="undisturbed")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["longwave.comparison"])
    hits = 0
    for delay in delays:
        process = context.Process(target=_compare, args=(str(base), tmp_path / "killed", jobs))
        process.start()
        process.join(delay)
        hits += process.is_alive()
        process.kill()
        process.join()
    assert hits
    assert scores(race("softmax", "hale", output="killed", jobs=jobs)) == scores(undisturbed)


class TestTask:
    @pytest.fixture
    def base(self, base):
        values = yaml.safe_load(base.read_text())
        values["data"] = {"sequence_length": 32, "task": {"name": "mqar", "sizes": [2, 4], "vocabulary": 16}}
        base.write_text(yaml.safe_dump(values))
        return base

    def test_is_ranked_by_its_errors_beside_chance_and_oracle(self, race):
        report = race("softmax", "gated_delta")
        assert report.measure == "error rate"
        assert report.references == {"chance": 1 / 8, "oracle": 1.0}
        cell = report.cells[0]
        assert cell.outcome.loss == pytest.approx(1 - cell.outcome.record.scores["accuracy"])
        assert "accuracy@2" in cell.outcome.record.scores


class TestReport:
    @pytest.fixture
    def report(self, race):
        return race("softmax", "hale", rates="0.01,0.1", trial_tokens=400, budget="parameters,operations")

    def test_is_written_whole_as_json(self, report, tmp_path):
        values = json.loads((tmp_path / "compared" / "comparison.json").read_text())
        assert values == json.loads(json.dumps(report.as_dict()))
        assert len(values["runs"]) == 8
        assert values["runs"][0]["record"]["scores"]["bits_per_byte"] > 0
        assert values["rankings"]["parameters"][0]["verdict"] == "tie"
        assert len(values["entries"][0]["trials"]) == 2

    def test_is_printed_within_eighty_columns(self, report):
        console = Console(width=80, record=True)
        print_comparison(console, report)
        text = console.export_text()
        assert "Equal parameters, 2 seeds" in text
        assert "Equal operations, 2 seeds" in text
        assert "…" not in text
        assert "any run again: longwave train " in text

    def test_one_seed_decides_nothing(self, race):
        report = race("softmax", "hale", seeds=1)
        assert [place.rank for place in report.rankings["parameters"]] == [1, 1]
        assert json.loads(json.dumps(report.as_dict()))["rankings"]["parameters"][1]["difference"]["low"] is None


def test_checkpoints_are_removed_when_a_run_has_ended(race, tmp_path):
    race("softmax", "hale")
    assert list((tmp_path / "compared" / "runs").rglob("checkpoint-*")) == []
