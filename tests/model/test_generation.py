"""``generate()`` in every mode equals recomputation."""

from __future__ import annotations

import copy
import re
from threading import Thread

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import AutoTokenizer, TextIteratorStreamer

from longwave.data import build_tokenizer
from longwave.model import CACHE_NAME, LongwaveCache
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
    kept = copy.deepcopy(first[CACHE_NAME])
    longer = generate(model, first.sequences, mask, do_sample=False, **{CACHE_NAME: first[CACHE_NAME]})
    at_once = model.generate(PROMPT, attention_mask=MASK, max_new_tokens=20, pad_token_id=0, do_sample=False)
    assert torch.equal(longer, at_once)
    assert torch.equal(generate(model, first.sequences, mask, do_sample=False, **{CACHE_NAME: kept}), longer)


def test_forward_takes_the_cache_by_either_name_and_gives_it_by_that_of_transformers():
    model = make("hale")
    first = model(PROMPT[:, :8], use_cache=True)
    assert isinstance(first[CACHE_NAME], LongwaveCache)
    assert getattr(first, CACHE_NAME) is first[CACHE_NAME]
    by_name = [
        model(PROMPT[:, 8:], **{name: copy.deepcopy(first[CACHE_NAME])}) for name in ("cache", "past_key_values")
    ]
    assert torch.equal(by_name[0].logits, by_name[1].logits)
    with pytest.raises(ValueError, match="two names of one argument"):
        model(PROMPT[:, 8:], cache=first[CACHE_NAME], past_key_values=first[CACHE_NAME])


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
    cache = model(PROMPT, use_cache=True)[CACHE_NAME]
    with pytest.raises(ValueError, match="the cached positions included"):
        model(PROMPT[:, :2], attention_mask=MASK[:, :2], past_key_values=cache)


@pytest.mark.parametrize("kind", ["hale", "hybrid", "memory rows"])
def test_a_saved_cache_continues_tomorrow(kind, tmp_path):
    model = make(kind)
    first = generate(model, do_sample=False, return_dict_in_generate=True)
    first[CACHE_NAME].save(tmp_path / "session.safetensors", model.config)
    loaded = LongwaveCache.load(tmp_path / "session.safetensors", model)
    mask = torch.cat([MASK, MASK.new_ones(3, 10)], dim=1)
    again = generate(model, first.sequences, mask, do_sample=False, **{CACHE_NAME: loaded})
    at_once = model.generate(PROMPT, attention_mask=MASK, max_new_tokens=20, pad_token_id=0, do_sample=False)
    assert torch.equal(again, at_once)
    with pytest.raises(ValueError, match="another configuration"):
        LongwaveCache.load(tmp_path / "session.safetensors", make("strong softmax"))


def damage(path, change=lambda tensors: None, **metadata):
    """Write a cache file again with other tensors or metadata."""
    with safe_open(str(path), framework="pt") as file:
        tensors, kept = {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118
    change(tensors)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path, metadata={**kept, **metadata})


def replaced(name, change):
    return lambda path: damage(path, lambda tensors: tensors.update({name: change(tensors[name])}))


CACHES = {  # what is done to the file of a cache of [hale, softmax], and what is said of it
    "seen is negative": (lambda path: damage(path, seen="-1"), "has seen '-1' tokens"),
    "seen is nothing": (lambda path: damage(path, seen=""), "has seen '' tokens"),
    "seen is no number": (lambda path: damage(path, seen="many"), "has seen 'many' tokens"),
    "seen is without end": (lambda path: damage(path, seen="9" * 40), "has seen"),
    "truncated": (lambda path: path.write_bytes(path.read_bytes()[:-9]), "damaged, or no safetensors file"),
    "empty": (lambda path: path.write_bytes(b""), "damaged, or no safetensors file"),
    "a tensor is missing": (lambda path: damage(path, lambda tensors: tensors.pop("1.tokens")), "expected"),
    "a tensor too many": (lambda path: damage(path, lambda t: t.update({"1.more": torch.zeros(3)})), "expected"),
    "a layer too many": (
        lambda path: damage(path, lambda t: t.update({"9.tokens": torch.zeros(3)})),
        "holds '9.tokens'",
    ),
    "a wider window": (replaced("1.local", lambda x: torch.cat([x, x], dim=1)), "local has shape"),
    "a transposed window": (replaced("1.local", lambda x: x.transpose(1, 2)), "local has shape"),
    "a flat window": (replaced("1.local", lambda x: x.flatten(1)), "local has shape"),
    "a window of whole numbers": (replaced("1.local", lambda x: x.long()), "local is of type torch.int64"),
    "a complex window": (replaced("1.local", lambda x: x.to(torch.complex64)), "local holds complex numbers"),
    "a window of NaN": (replaced("1.local", lambda x: x * float("nan")), "local holds NaN"),
    "an infinite window": (replaced("1.local", lambda x: x + float("inf")), "local holds infinity"),
    "fewer sequences in a layer": (replaced("1.local", lambda x: x[:1]), "batch sizes"),
    "fewer sequences in all": (
        lambda path: damage(path, lambda t: t.update({k: v[:1] for k, v in t.items() if k[0] == "1"})),
        "batch sizes",
    ),
    "no sequences": (
        lambda path: damage(path, lambda t: t.update({k: v[:0] for k, v in t.items() if k[0] == "1"})),
        "batch sizes",
    ),
    "negative tokens": (replaced("2.tokens", lambda x: x - 99), "tokens is not a list of whole numbers"),
    "tokens that are fractions": (replaced("2.tokens", lambda x: x.float()), "tokens is not a list of whole numbers"),
    "text tokens that are fractions": (replaced("0.tokens", lambda x: x.float()), "tokens is not a list"),
    "more tokens than rows": (replaced("2.tokens", lambda x: x + 99), "rows has shape"),
    "fewer rows than tokens": (replaced("2.rows", lambda x: x[:, :, :, :3]), "rows has shape"),
    "wider heads": (replaced("2.rows", lambda x: torch.cat([x, x], dim=4)), "rows has shape"),
    "more heads": (replaced("2.rows", lambda x: torch.cat([x, x], dim=2)), "rows has shape"),
}


@pytest.fixture
def saved(tmp_path):
    """The cache of a model of [hale, softmax], after twelve tokens of three sequences, in a file."""
    kinds = {"mixer_types": ["hale", "softmax"], "mixer_kwargs": {"hale": {"window": 5, "num_levels": 3}}}
    model = make("hale", **kinds)
    model(PROMPT, use_cache=True)[CACHE_NAME].save(tmp_path / "cache.safetensors", model.config)
    return model, tmp_path / "cache.safetensors"


@pytest.mark.parametrize("kind", CACHES)
def test_a_damaged_cache_is_refused_in_one_line(kind, saved):
    model, path = saved
    change, sentence = CACHES[kind]
    change(path)
    with pytest.raises(ValueError, match=rf"\A{re.escape(str(path))}.*{re.escape(sentence)}.*\Z"):
        LongwaveCache.load(path, model)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_cache_of_another_precision_is_taken(kind, dtype, tmp_path):
    model = make(kind)
    model(PROMPT, use_cache=True)[CACHE_NAME].save(tmp_path / "cache", model.config)
    loaded = LongwaveCache.load(tmp_path / "cache", model.to(dtype))
    assert loaded.get_seq_length() == 12
