"""Where a Hugging Face model works: the stock Trainer, PEFT, copies of caches, autocast."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments

from longwave.data import PackedRows, build_tokenizer, tokenize
from longwave.mixers.base import select
from longwave.model import CACHE_NAME, LongwaveForCausalLM
from longwave.model.cache import TextState
from longwave.ops import elu_plus_one, linear_attention
from tests.model.test_modeling import make

IDS = torch.randint(1, 31, (2, 9), generator=torch.Generator().manual_seed(0))


def test_the_stock_trainer_trains_and_evaluates(tmp_path):
    tokenizer = build_tokenizer("byte", [])
    rows = PackedRows(tokenize(["some text, and more of it. " * 8], tokenizer), 16)
    model = make("hale")
    model.resize_token_embeddings(len(tokenizer))
    arguments = TrainingArguments(str(tmp_path), max_steps=2, report_to=[], use_cpu=True, disable_tqdm=True)
    trainer = Trainer(model=model.float(), args=arguments, train_dataset=rows, eval_dataset=rows)
    trainer.train()
    assert trainer.evaluate()["eval_loss"] > 0


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # PEFT's own call
@pytest.mark.parametrize("kind", ["hale", "strong softmax"])
def test_peft_adapts_the_projections(kind):
    model = get_peft_model(make(kind), LoraConfig(target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"))
    model(input_ids=IDS, labels=IDS).loss.backward()
    moved = [name for name, p in model.named_parameters() if p.grad is not None]
    assert moved
    assert all("lora_" in name for name in moved)
    assert model.generate(input_ids=IDS, max_new_tokens=3, pad_token_id=0).shape == (2, 12)


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # PEFT's own call
def test_a_saved_adapter_is_loaded_with_its_model(tmp_path):
    base = make("hale").float()
    base.save_pretrained(tmp_path / "base")
    adapted = get_peft_model(
        base, LoraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM", init_lora_weights=False)
    )
    adapted.save_pretrained(tmp_path / "adapter")
    settings = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    settings["base_model_name_or_path"] = str(tmp_path / "base")
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps(settings))
    expected = adapted(input_ids=IDS).logits
    torch.testing.assert_close(AutoModelForCausalLM.from_pretrained(tmp_path / "adapter")(IDS).logits, expected)
    loaded = LongwaveForCausalLM.from_pretrained(tmp_path / "base")
    torch.testing.assert_close(PeftModel.from_pretrained(loaded, tmp_path / "adapter")(input_ids=IDS).logits, expected)


def test_a_cache_can_be_copied_with_its_graph_alive():
    model = make("hale")
    cache = model(IDS, use_cache=True)[CACHE_NAME]
    kept = copy.deepcopy(cache)
    expected = model(IDS, cache=cache).logits
    torch.testing.assert_close(model(IDS, cache=kept).logits, expected)


def test_rows_of_a_state_can_be_chosen_by_a_mask():
    state = TextState(torch.tensor([5, 6, 7]))
    assert select(state, torch.tensor([True, False, True])).tokens.tolist() == [5, 7]


def test_autocast_does_not_round_the_sums():
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, 2048, *s, 16, generator=generator).bfloat16() for s in ((2,), (1, 2), (1, 2)))
    q, k = elu_plus_one(q), elu_plus_one(k)
    plain = linear_attention(q, k, v)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(linear_attention(q, k, v), plain)


def test_what_cannot_be_given_is_refused():
    model = make("hale")
    with pytest.raises(ValueError, match="give labels or logits_to_keep, not both"):
        model(IDS, labels=IDS, logits_to_keep=3)
    with pytest.raises(ValueError, match="attention maps"):
        model(IDS, output_attentions=True)
    with pytest.raises(ValueError, match="the cache holds 2 sequences, the input 1"):
        model(IDS[:1], cache=model(IDS, use_cache=True)[CACHE_NAME])
    with pytest.raises(ValueError, match="same memory rows"):
        make(
            "memory rows",
            mixer_types=["tests.toys:Summaries", "tests.toys:Summaries@more"],
            mixer_kwargs={"tests.toys:Summaries@more": {"count": 5}},
        )


def test_return_dict_is_the_default_and_can_be_turned_off():
    model = make("hale")
    assert torch.equal(model(IDS, return_dict=None).logits, model(IDS).logits)
    assert isinstance(model(IDS, return_dict=False), tuple)
