"""Callbacks by themselves."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from longwave.evaluation import LikelihoodScore
from longwave.training.callbacks import JsonLines, StopBeforeNonFinite, Validation


def at(step):
    return SimpleNamespace(global_step=step)


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


class TestValidation:
    @pytest.fixture
    def scored(self, tmp_path):
        """The records of seven steps."""

        def steps(every_steps):
            metrics = JsonLines(tmp_path / "metrics.jsonl", tokens_per_step=10)
            callback = Validation(every_steps, lambda model: LikelihoodScore(6.0, 3, 4), metrics)
            for step in range(1, 8):
                callback.on_step_end(None, at(step), None, model=None)
            return [json.loads(line) for line in metrics.path.read_text().splitlines()] if metrics.path.exists() else []

        return steps

    def test_scores_every_few_steps(self, scored):
        expected = LikelihoodScore(6.0, 3, 4)
        found = scored(3)
        assert [record["step"] for record in found] == [3, 6]
        assert {record["bits_per_byte"] for record in found} == {expected.bits_per_byte}
        assert {record["perplexity"] for record in found} == {expected.perplexity}

    def test_zero_means_never(self, scored):
        assert scored(0) == []
