"""``generate()`` in every mode equals recomputation."""

from __future__ import annotations

import copy
from threading import Thread

import pytest
import torch
from transformers import AutoTokenizer, TextIteratorStreamer

from longwave.data import build_tokenizer
from longwave.model import LongwaveCache
from tests.model.test_modeling import KINDS, make

PROMPT = torch.randint(1, 31, (3, 12), generator=torch.Generator().manual_seed(0))
MASK = torch.ones_like(PROMPT)
MASK[0, :4] = 0
MASK[1, :1] = 0
MODES = {
    "greedy": {"do_sample": False},
    "top-k": {"do_sample": True, "top_k": 5},
    "top-p": {"do_sample": True, "top_p": 0.8, "top_k": 0},
    "temperature": {"do_sample": True, "temperature": 0.5, "top_k": 0},
    "beams": {"do_sample": False, "num_beams": 3},
    "several": {"do_sample": True, "num_return_sequences": 2},
}


def generate(model, ids=PROMPT, mask=MASK, **settings):
    torch.manual_seed(7)
    return model.generate(ids, attention_mask=mask, max_new_tokens=10, pad_token_id=0, **settings)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", KINDS)
def test_the_cache_changes_nothing(kind, mode):
    model = make(kind)
    assert torch.equal(generate(model, **MODES[mode]), generate(model, use_cache=False, **MODES[mode]))


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_of_different_lengths_equals_each_prompt_alone(kind):
    model = make(kind)
    batch = generate(model, do_sample=False)
    for row, padding in enumerate((4, 1, 0)):
        alone = generate(model, PROMPT[row : row + 1, padding:], MASK[row : row + 1, padding:], do_sample=False)
        assert torch.equal(batch[row, padding:], alone[0])


@pytest.mark.parametrize("kind", KINDS)
def test_chunked_prefill_equals_prefill_at_once(kind):
    model = make(kind)
    assert torch.equal(generate(model, do_sample=False, prefill_chunk_size=5), generate(model, do_sample=False))


@pytest.mark.parametrize("kind", KINDS)
def test_a_returned_cache_continues(kind):
    model = make(kind)
    first = generate(model, do_sample=False, return_dict_in_generate=True)
    mask = torch.cat([MASK, MASK.new_ones(3, 10)], dim=1)
    kept = copy.deepcopy(first.past_key_values)
    longer = generate(model, first.sequences, mask, do_sample=False, past_key_values=first.past_key_values)
    at_once = model.generate(PROMPT, attention_mask=MASK, max_new_tokens=20, pad_token_id=0, do_sample=False)
    assert torch.equal(longer, at_once)
    assert torch.equal(generate(model, first.sequences, mask, do_sample=False, past_key_values=kept), longer)


def test_streaming_gives_the_same_text(tmp_path):
    tokenizer = build_tokenizer("byte", [])
    tokenizer.save_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    model = make("hale")
    model.resize_token_embeddings(len(tokenizer))
    ids = tokenizer("Once", return_tensors="pt")["input_ids"]
    streamer = TextIteratorStreamer(tokenizer, timeout=60, skip_prompt=True)
    settings = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0}
    thread = Thread(target=model.generate, args=(ids,), kwargs={**settings, "streamer": streamer})
    thread.start()
    streamed = "".join(streamer)
    thread.join()
    assert streamed == tokenizer.decode(model.generate(ids, **settings)[0, ids.shape[1] :])


def test_assisted_decoding_is_refused_not_wrong():
    model = make("hale")
    with pytest.raises(ValueError, match="assisted"):
        generate(model, PROMPT[2:], MASK[2:], assistant_model=make("hale"), do_sample=False)


def test_a_mask_of_the_new_tokens_alone_is_refused():
    model = make("hale")
    cache = model(PROMPT, use_cache=True).past_key_values
    with pytest.raises(ValueError, match="the cached positions included"):
        model(PROMPT[:, :2], attention_mask=MASK[:, :2], past_key_values=cache)


@pytest.mark.parametrize("kind", ["hale", "hybrid", "memory rows"])
def test_a_saved_cache_continues_tomorrow(kind, tmp_path):
    model = make(kind)
    first = generate(model, do_sample=False, return_dict_in_generate=True)
    first.past_key_values.save(tmp_path / "session.safetensors", model.config)
    loaded = LongwaveCache.load(tmp_path / "session.safetensors", model)
    mask = torch.cat([MASK, MASK.new_ones(3, 10)], dim=1)
    again = generate(model, first.sequences, mask, do_sample=False, past_key_values=loaded)
    at_once = model.generate(PROMPT, attention_mask=MASK, max_new_tokens=20, pad_token_id=0, do_sample=False)
    assert torch.equal(again, at_once)
    with pytest.raises(ValueError, match="another configuration"):
        LongwaveCache.load(tmp_path / "session.safetensors", make("strong softmax"))
