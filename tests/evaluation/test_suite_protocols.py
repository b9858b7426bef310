"""Losses by position, copying, calibration and the sweep, on models whose answers are known."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel

from longwave.data import TokenStream, build_tokenizer
from longwave.evaluation import calibration, copying, distance_loss, position_loss, temperature_sweep
from longwave.evaluation.generation import Sampling, continue_prompt
from longwave.evaluation.sweep import SWEEP
from longwave.model import LongwaveConfig, LongwaveForCausalLM


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer("byte", [])


@pytest.fixture(params=["gpt2", "longwave"])
def model(request):
    torch.manual_seed(1)
    if request.param == "gpt2":
        config = GPT2Config(vocab_size=257, n_positions=256, n_embd=16, n_layer=1, n_head=2, initializer_range=0.5)
        return GPT2LMHeadModel(config).eval()
    config = LongwaveConfig(vocab_size=257, hidden_size=16, num_hidden_layers=1, num_heads=2, mixer_types="hale")
    model = LongwaveForCausalLM(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.5)
    return model.eval()


class Planned(nn.Module):
    """On a text of zeros, loses ``losses[i]`` nats at position i."""

    def __init__(self, losses):
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(1))
        right = torch.tensor(losses, dtype=torch.float64).neg().exp()
        self.logits = torch.stack([right.log(), (1 - right).log()], dim=-1)

    def forward(self, input_ids, use_cache=None):
        return SimpleNamespace(logits=self.logits[: input_ids.shape[1]].expand(len(input_ids), -1, -1))


def zeros(length):
    return TokenStream(np.zeros(length, dtype=np.int32), np.zeros(length, dtype=bool), num_bytes=length)


class TestLosses:
    def test_a_planned_loss_is_found_at_its_position_and_in_its_bucket(self, tokenizer):
        losses = 2 - np.arange(799) / 1000
        losses[673:687] += 0.1
        found = position_loss(Planned(losses), tokenizer, zeros(2500), row_length=800)
        assert found.settings["rows"] == 3
        assert [record["loss"] for record in found.records] == pytest.approx(losses.tolist())
        values = found.values()
        assert values["coarse@0-16"] == pytest.approx(losses[:17].mean())
        assert values["fine@768-798"] == pytest.approx(losses[768:].mean())
        assert values["excess@673-687"] == pytest.approx(0.1, abs=1e-3)
        assert values["holes"] == 1
        assert found.settings["bands"] == ["673-687", "689-703", "737-751", "753-767"]

    def test_buckets_of_distance_hold_loss_perplexity_and_tokens(self, tokenizer):
        losses = np.linspace(1, 3, 99)
        found = distance_loss(Planned(losses), tokenizer, zeros(250), row_length=100, batch_size=1)
        assert [record["positions"] for record in found.records] == ["0-16", "17-64", "65-98"]
        assert [record["tokens"] for record in found.records] == [34, 96, 68]
        assert found.records[1]["loss"] == pytest.approx(losses[17:65].mean())
        assert found.values()["perplexity@17-64"] == pytest.approx(math.exp(losses[17:65].mean()))
        assert found.values()["loss"] == pytest.approx(losses.mean())

    def test_losses_equal_a_direct_computation(self, model, tokenizer):
        text = "the quick brown fox jumps over the lazy dog, and so on; " * 4
        ids = torch.tensor(tokenizer(text, add_special_tokens=False)["input_ids"])
        found = position_loss(model, tokenizer, text, row_length=40, batch_size=2)
        rows = ids[: len(ids) // 40 * 40].view(-1, 40)
        with torch.no_grad():
            table = model(rows, use_cache=False).logits[:, :-1].double().log_softmax(dim=-1)
        direct = -table.gather(-1, rows[:, 1:, None])[..., 0].mean(dim=0)
        assert [record["loss"] for record in found.records] == pytest.approx(direct.tolist(), rel=1e-5)
        assert len(rows) == 5

    def test_no_row_is_lost_whatever_the_batch(self, model, tokenizer):
        for batch_size in (1, 8, 100):
            found = distance_loss(model, tokenizer, "ab" * 40, row_length=10, batch_size=batch_size)
            assert found.settings["rows"] == 8

    def test_rows_are_limited_and_a_short_text_is_refused(self, model, tokenizer):
        calls = []
        found = position_loss(
            model, tokenizer, "ab" * 40, row_length=10, num_rows=3, batch_size=2, progress=lambda *c: calls.append(c)
        )
        assert found.settings["rows"] == 3
        assert calls == [(2, 3), (3, 3)]
        with pytest.raises(ValueError, match="the text has 5 tokens, less than one row of 10; give more text"):
            position_loss(model, tokenizer, "abcde", row_length=10)
        with pytest.raises(ValueError, match="a row needs at least 2 tokens, got 1"):
            distance_loss(model, tokenizer, "abcde", row_length=1)


class TestGeneration:
    def test_greedy_takes_the_likeliest(self, model, tokenizer):
        written = continue_prompt(model, tokenizer, "abc", Sampling(temperature=0), max_new_tokens=6, keep_logits=True)
        ids = [tokenizer.bos_token_id, *tokenizer("abc", add_special_tokens=False)["input_ids"]]
        for step in range(written.num_tokens):
            with torch.no_grad():
                logits = model(torch.tensor([ids]), use_cache=False).logits[0, -1]
            torch.testing.assert_close(written.logits[step], logits, rtol=1e-4, atol=1e-4)
            ids.append(int(logits.argmax()))
        assert written.text == tokenizer.decode(ids[4:], skip_special_tokens=True)

    def test_a_seed_says_the_same_and_disturbs_nobody(self, model, tokenizer):
        def say(seed):
            return continue_prompt(model, tokenizer, "abc", Sampling(), max_new_tokens=20, seed=seed)

        before = torch.random.get_rng_state()
        assert say(1) == say(1) != say(2)
        assert torch.equal(torch.random.get_rng_state(), before)

    @pytest.mark.parametrize("sampling", [Sampling(top_k=1), Sampling(top_p=0.0), Sampling(temperature=1e-4)], ids=str)
    def test_a_narrow_choice_is_greedy(self, model, tokenizer, sampling):
        greedy = continue_prompt(model, tokenizer, "abc", Sampling(temperature=0), max_new_tokens=8)
        assert continue_prompt(model, tokenizer, "abc", sampling, max_new_tokens=8) == greedy

    def test_a_model_of_no_numbers_is_not_sampled_from(self, tokenizer):
        model = GPT2LMHeadModel(GPT2Config(vocab_size=257, n_positions=10, n_embd=8, n_layer=1, n_head=1))
        nn.init.constant_(model.transformer.ln_f.weight, torch.nan)
        with pytest.raises(FloatingPointError, match="logits are not numbers"):
            continue_prompt(model, tokenizer, "abc", Sampling(), max_new_tokens=3)

    def test_the_positions_of_a_model_are_its_limit(self, tokenizer):
        model = GPT2LMHeadModel(GPT2Config(vocab_size=257, n_positions=10, n_embd=8, n_layer=1, n_head=1))
        written = continue_prompt(model, tokenizer, "abcdef", Sampling(temperature=0), max_new_tokens=50)
        assert written.num_tokens <= 3
        with pytest.raises(ValueError, match="a prompt of 10 tokens leaves no room in the model's 10 positions"):
            continue_prompt(model, tokenizer, "abcdefghi", Sampling(), max_new_tokens=5)
        with pytest.raises(ValueError, match="max_new_tokens must be at least 1, got 0"):
            continue_prompt(model, tokenizer, "a", Sampling(), max_new_tokens=0)


class TestCopying:
    class Parrot(nn.Module):
        """Continues a prompt with the answer that a table knows."""

        def __init__(self, tokenizer, answers):
            super().__init__()
            self.unused = nn.Parameter(torch.zeros(1))
            self.tokenizer, self.answers = tokenizer, answers

        def generate(self, ids, **settings):
            prompt = self.tokenizer.decode(ids[0], skip_special_tokens=True)
            new = self.tokenizer(self.answers[prompt], add_special_tokens=False)["input_ids"]
            return SimpleNamespace(sequences=torch.cat([ids, torch.tensor([new])], dim=1))

    def test_copies_and_answers_are_scored_as_published(self, tokenizer):
        answers = {"say ab:": " AB, and more", "say cd:": "ce", "1": " x. y", "2": "yes!", "3": "n"}
        found = copying(
            self.Parrot(tokenizer, answers),
            tokenizer,
            templates=["say {word}:"],
            words=["ab", "cd"],
            prompts=[("1", "x"), ("2", "ye"), ("3", "no")],
        )
        few, asked = found.records[:2], found.records[2:]
        assert [(record["exact"], record["edit_distance"]) for record in few] == [(True, 5), (False, 1)]
        assert [(record["exact"], record["prefix"], record["edit_distance"]) for record in asked] == [
            (True, True, 0),
            (False, True, 1),
            (False, False, 1),
        ]
        assert found.values() == pytest.approx(
            {
                "exact@few_shot": 0.5,
                "edit_distance@few_shot": 3,
                "exact@prompts": 1 / 3,
                "prefix@prompts": 2 / 3,
                "edit_distance@prompts": 2 / 3,
            }
        )

    def test_the_published_counts(self, model, tokenizer):
        found = copying(model, tokenizer, max_new_tokens=2)
        forms = [record["form"] for record in found.records]
        assert (forms.count("few_shot"), forms.count("prompts")) == (15, 10)


class TestCalibration:
    def test_a_uniform_model_is_as_unsure_as_can_be(self, tokenizer):
        model = GPT2LMHeadModel(GPT2Config(vocab_size=257, n_positions=128, n_embd=8, n_layer=1, n_head=1))
        nn.init.zeros_(model.transformer.wte.weight)
        found = calibration(model, tokenizer, max_new_tokens=5).values()
        assert found["entropy_bits@last_position"] == pytest.approx(math.log2(257), rel=1e-5)
        assert found["effective_vocabulary@last_position"] == pytest.approx(257, rel=1e-5)
        assert found["entropy_bits@mean"] == pytest.approx(math.log2(257), rel=1e-6)
        assert found["top5@p90"] == pytest.approx(5 / 257)
        assert found["effective_vocabulary@std"] == pytest.approx(0, abs=1e-3)

    def test_summaries_are_over_all_tokens(self, model, tokenizer):
        found = calibration(model, tokenizer, max_new_tokens=6)
        steps = np.concatenate([record["top1"] for record in found.records if record["form"] == "sampled"])
        assert 8 < len(steps) <= 8 * 6
        assert found.values()["top1@mean"] == pytest.approx(steps.mean())
        assert found.values()["top1@p25"] == pytest.approx(np.percentile(steps, 25))
        assert sum(record["form"] == "last_position" for record in found.records) == 10


class TestSweep:
    def test_every_opening_is_continued_in_every_way(self, model, tokenizer):
        calls = []
        found = temperature_sweep(model, tokenizer, max_new_tokens=4, progress=lambda *c: calls.append(c))
        assert len(found.records) == 8 * 5
        assert calls[-1] == (40, 40)
        assert [str(sampling) for sampling in SWEEP] == [
            "greedy",
            "T 0.5, top-p 0.9",
            "T 0.7, top-p 0.9",
            "T 1.0, top-p 0.9",
            "T 0.7, top-k 50",
        ]
        assert {f"{key}@{sampling}" for key in ("repeated4", "distinct2", "distinct4") for sampling in SWEEP} == {
            *found.values()
        }

    def test_the_means_are_of_the_texts(self, model, tokenizer):
        found = temperature_sweep(model, tokenizer, max_new_tokens=20, samplings=[Sampling(), Sampling(top_k=3)])
        rates = [record["distinct2"] for record in found.records if record["sampling"] == "T 1.0, top-k 3"]
        assert len(rates) == 8
        assert found.values()["distinct2@T 1.0, top-k 3"] == pytest.approx(np.mean(rates))
        assert (
            temperature_sweep(model, tokenizer, max_new_tokens=20, samplings=[Sampling()]).records == found.records[:8]
        )
