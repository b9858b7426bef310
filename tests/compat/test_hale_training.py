"""Schedules, windows, metrics and updates as published, and their corrections."""

from __future__ import annotations

import math

import pytest
import torch

from longwave.compat.hale import StandardTransformer
from longwave.compat.hale_training import (
    batches,
    collate,
    cut_windows,
    evaluate,
    measure,
    published_optimizer,
    published_warmup_cosine,
    train_step,
    warmup_cosine,
)
from tests.compat.test_hale import small, tokens


def test_corrected_rate_starts_low_and_stays_down():
    plan = {"base_lr": 1.0, "warmup_steps": 4, "total_steps": 10, "min_lr": 0.1}
    rates = [warmup_cosine(update, **plan) for update in range(1, 14)]
    assert rates[0] == 0.25
    assert max(rates) == rates[3] == 1.0
    assert rates[9:] == pytest.approx([0.1] * 4)


def test_published_rate_starts_at_the_peak_and_rises_again():
    plan = {"base_lr": 1.0, "warmup_steps": 4, "total_steps": 10, "min_lr": 0.1}
    rates = [published_warmup_cosine(update, **plan) for update in range(1, 18)]
    assert rates[0] == 1.0
    assert rates[1:11] == pytest.approx([warmup_cosine(update, **plan) for update in range(1, 11)])
    assert rates[-1] == pytest.approx(1.0)


def test_every_id_but_a_lines_first_is_a_target_once():
    lines = [list(range(1000 * i, 1000 * i + length)) for i, length in enumerate((0, 1, 2, 8, 9, 10, 17, 40))]
    windows = cut_windows(lines, 8)
    targets = [int(i) for window in windows for i in window[1:]]
    assert targets == [i for line in lines for i in line[1:]]
    assert all(2 <= len(window) <= 9 for window in windows)


def test_padding_is_on_the_right_and_not_counted():
    x, y = collate([torch.tensor([5, 6, 7]), torch.tensor([8, 9])])
    assert x.tolist() == [[5, 6], [8, 0]]
    assert y.tolist() == [[6, 7], [9, -100]]


def test_training_batches_come_in_a_fresh_order():
    windows = cut_windows([list(range(65))], 2)
    ordered = batches(windows, 4)
    assert torch.equal(torch.cat([y for _, y in ordered]).flatten(), torch.arange(1, 65))
    shuffled = batches(windows, 4, shuffle=True, generator=torch.Generator().manual_seed(0))
    first, second = (torch.cat([y for _, y in shuffled]).flatten() for _ in range(2))
    assert not torch.equal(first, second)
    assert torch.equal(first.sort().values, torch.arange(1, 65))


def test_metrics_weigh_tokens_and_remember_the_published_mean():
    logits = torch.zeros(1, 4, 2)
    logits[..., 1] = math.log(3)
    right, wrong = torch.tensor([[1, 1, 1, -100]]), torch.tensor([[0, -100, -100, -100]])
    found = measure([(logits, right), (logits, wrong)], num_bytes=2)
    low, high = math.log(4 / 3), math.log(4)
    assert found.loss == pytest.approx((3 * low + high) / 4)
    assert found.published_loss == pytest.approx((low + high) / 2)
    assert found.accuracy_percent == 75.0
    assert found.num_tokens == 4
    assert found.perplexity == pytest.approx(math.exp(found.loss))
    assert found.bits_per_byte == pytest.approx((3 * low + high) / (2 * math.log(2)))
    assert found.published_perplexity(cap=0.1) == pytest.approx(math.exp(0.1))
    with pytest.raises(ValueError, match="give num_bytes"):
        _ = measure([(logits, right)]).bits_per_byte
    with pytest.raises(ValueError, match="nothing to measure"):
        measure([(logits, torch.full((1, 4), -100))])


def test_evaluation_is_in_evaluation_mode():
    model = small(dropout=0.5).train()
    loader = batches(cut_windows([tokens(30).tolist(), tokens(7).tolist()], 8), 2)
    found = evaluate(model, loader)
    assert found == evaluate(model, loader)
    assert found.num_tokens == 35
    assert model.training


def test_updates_lower_the_loss_and_decay_every_parameter():
    model = StandardTransformer(29, 16, 1, 2, 24, 16, dropout=0.0)
    optimizer = published_optimizer(model, weight_decay=0.1)
    assert len(optimizer.param_groups) == 1
    ids = tokens(2, 13)
    steps = [train_step(model, optimizer, ids[:, :-1], ids[:, 1:], rate=3e-3, clip_norm=0.5) for _ in range(12)]
    assert steps[-1][0] < steps[0][0]
    assert steps[0][1] > 0


def test_a_gradient_that_is_not_finite_reaches_no_weight():
    model = small()
    optimizer = published_optimizer(model)
    with torch.no_grad():
        model.model.embeddings.tokens.weight[3] = torch.inf
    before = [parameter.clone() for parameter in model.parameters()]
    ids = torch.full((1, 4), 3)
    with pytest.raises(RuntimeError, match="non-finite"):
        train_step(model, optimizer, ids, ids, rate=1e-3, clip_norm=0.5)
    assert all(torch.equal(old, new) for old, new in zip(before, model.parameters(), strict=True))
