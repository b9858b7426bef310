"""Generation with the published sampler: batches, prompts of any lengths, any length of text."""

from __future__ import annotations

import pytest
import torch

from longwave.compat.hale import StandardTransformer, next_token_probabilities
from tests.compat.test_hale import SIZES, redrawn, small, tokens

GREEDY = {"temperature": 0.0, "repetition_penalty": 1.3}


@pytest.mark.parametrize("model", [small, lambda: redrawn(StandardTransformer(29, **SIZES))], ids=["hale", "standard"])
def test_prompts_of_any_lengths_are_continued_as_if_alone(model):
    model = model()
    prompts = [tokens(length) for length in (1, 8, 3, 11)]
    together = model.generate(prompts, 30, **GREEDY)
    for prompt, text in zip(prompts, together, strict=True):
        assert torch.equal(text, model.generate(prompt, 30, **GREEDY)[0])
        assert torch.equal(text[: len(prompt)], prompt)


def test_decoding_equals_teacher_forcing():
    model = small(max_seq_len=8)
    text = model.generate(tokens(2, 4), 40, temperature=0.0, repetition_penalty=1.0)
    likeliest = model(text)[0].argmax(dim=-1)
    assert text.shape == (2, 44)
    assert torch.equal(likeliest[:, 3:-1], text[:, 4:])


def test_the_prompt_is_read_at_once_and_each_token_costs_one_step():
    model, lengths = small(), []
    hook = model.model.register_forward_pre_hook(
        lambda _, args, kwargs: lengths.append(kwargs["input_ids"].shape[1]), with_kwargs=True
    )
    model.generate(tokens(2, 9), 5)
    hook.remove()
    assert lengths == [9, 1, 1, 1, 1]


def test_a_row_ends_with_its_stop_token():
    model, ids = small(), tokens(3, 6)
    free = model.generate(ids, 20, **GREEDY)
    stop = int(free[0, 10])
    rows = model.generate(list(ids), 20, **GREEDY, stop_tokens=[stop])
    for row, whole in zip(rows, free, strict=True):
        drawn = whole[6:].tolist()
        end = drawn.index(stop) + 1 if stop in drawn else 20
        assert torch.equal(row, whole[: 6 + end])
    filled = model.generate(ids[:1], 20, **GREEDY, stop_tokens=[stop])
    assert torch.equal(filled[0], rows[0])
    batch = model.generate(ids, 20, **GREEDY, stop_tokens=[stop])
    for row, cut in zip(batch, rows, strict=True):
        assert torch.equal(row[: len(cut)], cut)
        assert (row[len(cut) :] == stop).all()


def test_a_generator_makes_the_draws_repeatable():
    model, ids = small(), tokens(2, 5)
    first, second = (model.generate(ids, 12, generator=torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(first, second)
    assert not torch.equal(first, model.generate(ids, 12, generator=torch.Generator().manual_seed(4)))


def test_training_mode_is_restored_and_dropout_silent():
    model, ids = small(dropout=0.5).train(), tokens(1, 5)
    assert torch.equal(model.generate(ids, 8, **GREEDY), model.generate(ids, 8, **GREEDY))
    assert model.model.training


def test_the_published_cache_can_be_generated_with():
    ids = [tokens(4), tokens(2)]
    rows = small(mixer_kwargs={"cache": "published"}).generate(ids, 3)
    assert [len(row) for row in rows] == [7, 5]


def test_edges_of_the_input():
    model, ids = small(), tokens(2, 3)
    assert torch.equal(model.generate(ids, 0), ids)
    assert [len(row) for row in model.generate([[1, 2], [3]], 2)] == [4, 3]
    with pytest.raises(ValueError, match="prompt 1 must be a row of at least one token id"):
        model.generate([[1], []])
    with pytest.raises(ValueError, match="at least one prompt"):
        model.generate([])
    with pytest.raises(ValueError, match="prompt 0 must hold token ids"):
        model.generate([[-1, 2]])
    with pytest.raises(ValueError, match="max_new_tokens must be at least 0, got -1"):
        model.generate(ids, -1)
    with pytest.raises(ValueError, match="exceeds the 8 learned positions"):
        StandardTransformer(29, **SIZES, max_seq_len=8).generate(ids, 10)


def probabilities(logits, history=(), **changes):
    plain = {"temperature": 1.0, "top_k": None, "top_p": None, "repetition_penalty": 1.0}
    history = torch.tensor([list(history)], dtype=torch.int64)
    return next_token_probabilities(torch.tensor([logits]), history, **{**plain, **changes})[0]


def test_sampler_keeps_what_ties_with_the_kth():
    kept = probabilities([3.0, 2.0, 2.0, 1.0], top_k=2) > 0
    assert kept.tolist() == [True, True, True, False]
    assert (probabilities([3.0, 2.0], top_k=9) > 0).all()
    assert (probabilities([3.0, 2.0], top_k=0) > 0).all()


def test_sampler_keeps_a_token_while_those_before_it_hold_at_most_top_p():
    logits = torch.tensor([0.1, 0.5, 0.4]).log().tolist()
    assert (probabilities(logits, top_p=0.45) > 0).tolist() == [False, True, False]
    assert (probabilities(logits, top_p=0.6) > 0).tolist() == [False, True, True]
    assert (probabilities(logits, top_p=0.0) > 0).tolist() == [False, True, False]


def test_sampler_penalises_each_recent_token_once_after_the_temperature():
    logits = [1.0, -1.0, 0.5, 0.2]
    found = probabilities(logits, [3, 0, 0, 1, -1], temperature=0.5, repetition_penalty=2.0, repetition_window=4)
    torch.testing.assert_close(found, torch.tensor([1.0, -4.0, 1.0, 0.4]).softmax(dim=-1))
    assert probabilities([1.0, 2.0], temperature=0.0).tolist() == [0.0, 1.0]
    assert probabilities([1.0, 2.0]).dtype == torch.float32
