"""Callbacks by themselves."""

from __future__ import annotations

import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from longwave.evaluation import LikelihoodScore, RecallScore
from longwave.training.callbacks import JsonLines, StopBeforeNonFinite, Validation
from longwave.training.checkpoints import restore_lines
from longwave.training.configuration import EvaluationSection


def at(step):
    return SimpleNamespace(global_step=step, is_world_process_zero=True)


class TestStopBeforeNonFinite:
    @pytest.fixture
    def model(self):
        model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2, bias=False))
        model(torch.ones(1, 2)).sum().backward()
        return model

    def test_finite_gradients_pass(self, model):
        StopBeforeNonFinite().on_pre_optimizer_step(None, at(3), None, model=model)

    @pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
    def test_the_step_is_named(self, model, value):
        model[1].weight.grad[0, 1] = value
        with pytest.raises(FloatingPointError, match="step 4: the gradient is not finite; the step is not taken"):
            StopBeforeNonFinite().on_pre_optimizer_step(None, at(3), None, model=model)

    def test_parameters_without_a_gradient_are_passed_over(self, model):
        model[0].bias.grad = None
        StopBeforeNonFinite().on_pre_optimizer_step(None, at(0), None, model=model)


class TestJsonLines:
    def test_every_record_is_a_line_with_step_and_tokens(self, tmp_path):
        path = tmp_path / "metrics.jsonl"
        callback = JsonLines(path, tokens_per_step=128)
        callback.on_log(None, at(1), None, logs={"loss": 2.5, "epoch": 0.1})
        callback.on_log(None, at(3), None, logs={"perplexity": 9.0})
        first, second = (json.loads(line) for line in path.read_text().splitlines())
        assert first.pop("seconds") <= second.pop("seconds")
        assert first == {"step": 1, "tokens": 128, "loss": 2.5}
        assert second == {"step": 3, "tokens": 384, "perplexity": 9.0}

    def test_a_resumed_run_forgets_what_lies_beyond_its_checkpoint(self, tmp_path):
        lines = [{"step": step, "tokens": step, "seconds": 10.0 * step} for step in (1, 2)]
        checkpoint = tmp_path / "checkpoint-2"
        checkpoint.mkdir()
        (checkpoint / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        (tmp_path / "metrics.jsonl").write_text('{"step": 3, "tok')
        callback = JsonLines(tmp_path / "metrics.jsonl", tokens_per_step=1)
        assert callback.begin(checkpoint) == lines
        assert callback.seconds >= 20.0
        restore_lines(tmp_path, checkpoint)
        assert [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()] == lines

    def test_a_run_that_begins_again_begins_its_lines_again(self, tmp_path):
        for name in ("metrics.jsonl", "samples.jsonl"):
            (tmp_path / name).write_text("{}\n")
        restore_lines(tmp_path, None)
        assert not list(tmp_path.iterdir())

    @pytest.mark.parametrize("value", [math.nan, math.inf])
    def test_holds_finite_numbers_only(self, tmp_path, value):
        callback = JsonLines(tmp_path / "metrics.jsonl", tokens_per_step=1)
        with pytest.raises(FloatingPointError, match="step 3: grad norm is not finite"):
            callback.write(3, {"loss": 1.0, "grad_norm": value})
        assert not callback.path.exists()


class TestValidation:
    @pytest.fixture
    def scored(self, tmp_path):
        """Feed a list of scores, one for every step, and give what is left to see."""

        def steps(bits, **settings):
            metrics = JsonLines(tmp_path / "metrics.jsonl", tokens_per_step=10)
            values = iter(bits)
            settings = EvaluationSection(**settings)
            callback = Validation(
                settings,
                lambda model: LikelihoodScore(np.array([next(values) * math.log(2) * 4]), 3, 4),
                lambda model, prompt: f"{prompt}!",
                metrics,
                tmp_path,
            )
            control, model = SimpleNamespace(should_training_stop=False), nn.Linear(1, 1)
            for step in range(1, len(bits) + 1):
                nn.init.constant_(model.weight, float(step))
                callback.on_step_end(None, at(step), control, model=model)
                if control.should_training_stop:
                    break
            records = metrics.path.read_text().splitlines() if metrics.path.exists() else []
            return SimpleNamespace(callback=callback, step=step, records=[json.loads(line) for line in records])

        return steps

    def test_scores_every_few_steps(self, scored):
        found = scored([3.0, 2.0, 9.0, 9.0, 9.0, 9.0, 9.0], every_steps=3).records
        assert [record["step"] for record in found] == [3, 6]
        assert [record["bits_per_byte"] for record in found] == pytest.approx([3.0, 2.0])

    def test_zero_means_never(self, scored):
        assert scored([1.0] * 4, every_steps=0).records == []

    def test_patience_stops_after_so_many_scores_without_a_better_one(self, scored):
        assert scored([3.0, 2.0, 2.5, 2.0, 1.0], every_steps=1, patience=2).step == 4

    def test_the_best_weights_are_kept(self, scored):
        found = scored([3.0, 1.0, 2.0], every_steps=1, keep_best=True)
        assert float(found.callback.best_weights["weight"]) == 2.0

    def test_the_best_weights_are_part_of_checkpoints(self, scored, tmp_path):
        found = scored([3.0, 1.0, 2.0], every_steps=1, keep_best=True).callback
        (tmp_path / "checkpoint-3").mkdir()
        found.on_save(None, at(3), None)
        resumed = scored([5.0], every_steps=9).callback
        resumed.begin([], tmp_path / "checkpoint-3")
        assert float(resumed.best_weights["weight"]) == 2.0

    @pytest.mark.parametrize("bits", [math.nan, math.inf, 3000.0])
    def test_a_score_that_is_not_finite_ends_the_run(self, scored, bits):
        with pytest.raises(FloatingPointError, match=r"step 2: .* is not finite"):
            scored([3.0, bits], every_steps=1)

    def test_samples_are_written_at_every_score(self, scored, tmp_path):
        scored([3.0, 1.0], every_steps=1, samples=["Once"])
        lines = [json.loads(line) for line in (tmp_path / "samples.jsonl").read_text().splitlines()]
        assert lines == [{"step": step, "prompt": "Once", "text": "Once!"} for step in (1, 2)]

    def test_a_resumed_run_knows_the_best_of_earlier_sittings(self, scored):
        callback = scored([5.0], every_steps=1).callback
        callback.begin([{"step": 1}, {"step": 2, "bits_per_byte": 1.5}, {"step": 3, "bits_per_byte": 1.7}], None)
        assert (callback.best, callback.since_best) == (1.5, 1)

    def test_of_recall_too_and_to_the_last_bit(self, scored):
        callback = scored([5.0], every_steps=1).callback
        found = RecallScore(np.array([0.1, 0.3, 0.7]), np.array([2, 2, 2]))
        callback.begin([{"step": 1, "loss": 0.01}, {"step": 1, **json.loads(json.dumps(found.values()))}], None)
        assert callback.best == found.loss
