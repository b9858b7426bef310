"""Recall is the share of answers whose token is the likeliest."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from longwave.data import ScoredRows, TaskSection, solve
from longwave.evaluation import RecallScore, recall, recorded_loss

TASK = TaskSection(name="mqar", sizes=[1, 2, 4], vocabulary=16, evaluation_rows=6)


@pytest.fixture
def rows():
    return ScoredRows(TASK, 24)


class Oracle(nn.Module):
    """Says what perfect recall would say, and token 0 wherever nothing is asked; wrong on rows that ``wrong`` names."""

    def __init__(self, rows, wrong=()):
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(1))
        self.rows, self.wrong, self.seen = list(rows), set(wrong), 0

    def forward(self, input_ids, starts=None, use_cache=None):
        assert not self.training
        assert not torch.is_grad_enabled()
        tokens = torch.zeros_like(input_ids)
        for said, ids in zip(tokens, input_ids, strict=True):
            row = self.rows[self.seen]
            assert torch.equal(ids, row["input_ids"])
            said[row["labels"][1:] != -100] = torch.tensor(solve(TASK, row)) - int(self.seen in self.wrong)
            self.seen += 1
        return SimpleNamespace(logits=F.one_hot(tokens, 16).double())


@pytest.mark.parametrize("batch_size", [1, 5, 100])
def test_perfect_recall_is_1(rows, batch_size):
    found = recall(Oracle(rows), rows, batch_size=batch_size)
    assert found.values() == {"accuracy": 1.0, "accuracy@1": 1.0, "accuracy@2": 1.0, "accuracy@4": 1.0}
    assert found.loss == 0


def test_wrong_rows_count_where_they_belong(rows):
    found = recall(Oracle(rows, wrong=[0, 6, 7, 17]), rows)
    assert np.flatnonzero(found.rows).tolist() == [0, 6, 7, 17]
    assert found.accuracy == pytest.approx(14 / 18)
    assert found.by_size == pytest.approx({1: 5 / 6, 2: 4 / 6, 4: 5 / 6})


def test_an_answer_of_a_row_is_a_share_of_it(rows):
    class Constant(nn.Module):
        def __init__(self):
            super().__init__()
            self.logits = nn.Parameter(torch.arange(16.0))

        def forward(self, input_ids, starts=None, use_cache=None):
            return SimpleNamespace(logits=self.logits.expand(*input_ids.shape, 16))

    found = recall(Constant(), rows)
    labels = [row["labels"][row["labels"] != -100] for row in rows]
    assert found.rows.tolist() == [float((answers != 15).double().mean()) for answers in labels]
    assert 0 < found.accuracy < 1


def test_the_mean_of_the_rows_is_the_loss():
    found = RecallScore(np.array([0.1, 0.3, 0.7, 0.0]), np.array([2, 2, 4, 4]))
    assert found.loss == pytest.approx(found.rows.mean(), abs=1e-15)
    assert recorded_loss(json.loads(json.dumps(found.values()))) == found.loss


def test_values_of_no_score_have_no_loss():
    assert recorded_loss({"step": 3, "loss": 2.5}) is None


@pytest.mark.parametrize("training", [True, False])
def test_the_model_is_left_in_the_mode_it_was_in(rows, training):
    model = Oracle(rows).train(training)
    recall(model, rows)
    assert model.training is training


def test_progress_counts_rows_up_to_all(rows):
    calls = []
    recall(Oracle(rows), rows, batch_size=7, progress=lambda done, total: calls.append((done, total)))
    assert calls == [(7, 18), (14, 18), (18, 18)]
