"""One model class for every mixer."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from longwave.mixers import available
from longwave.model import CACHE_NAME, LongwaveConfig, LongwaveForCausalLM
from longwave.verification import ModelSubject, certify
from longwave.verification.subjects import redraw

HYBRID = [["hale", "tests.toys:CumulativeMean"], "softmax", "tests.toys:RawMean"]
KINDS = {
    "hale": {"mixer_types": "hale", "mixer_kwargs": {"hale": {"window": 5, "num_levels": 3}}},
    "strong softmax": {"mixer_types": "softmax", "feed_forward": "swiglu", "norm": "rms_norm"},
    "published baseline": {
        "mixer_types": "softmax",
        "mixer_kwargs": {"softmax": {"rotary_base": None, "bias": True}},
        "positions": "learned",
    },
    "hybrid": {
        "mixer_types": HYBRID,
        "num_hidden_layers": 3,
        "positions": "sinusoidal",
        "norm_placement": "post",
    },
    "variants": {
        "mixer_types": ["softmax@near", "softmax"],
        "mixer_kwargs": {"softmax@near": {"window": 3}},
        "feed_forward": "none",
        "scale_embedding": True,
    },
    "a hybrid with pooling": {
        "mixer_types": [["dwarf", "cumulative_mean"], "softmax"],
        "mixer_kwargs": {"dwarf": {"offsets": [0, 1, 2, 5, 11]}, "softmax": {"gate_bias": 2.0}},
    },
    "a mixer that owns its norm": {
        "mixer_types": ["dwarf@inject", "dwarf_field"],
        "mixer_kwargs": {
            "dwarf@inject": {"condition": "U", "offsets": [0, 1, 4], "kv_inject": True},
            "dwarf_field": {"condition": "H", "n_scales": 3, "skip_offsets": [7]},
        },
    },
    "memory rows": {"mixer_types": "tests.toys:Summaries"},
    "memory rows at the start": {
        "mixer_types": "tests.toys:Summaries",
        "mixer_kwargs": {"tests.toys:Summaries": {"every": None, "count": 3}},
    },
}


def make(kind: str, **changes) -> LongwaveForCausalLM:
    settings = {"num_hidden_layers": 2, **KINDS[kind], **changes}
    torch.manual_seed(0)
    config = LongwaveConfig(vocab_size=31, hidden_size=16, num_heads=2, pad_token_id=0, **settings)
    model = LongwaveForCausalLM(config).double().eval()
    redraw(model)
    return model


@pytest.mark.parametrize("kind", KINDS)
def test_whole_models_obey_the_law(kind):
    certificate = certify(ModelSubject(kind, make(kind)), longest=33)
    assert certificate.passed, [line for line in certificate.lines if line.verdict != "PASS"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_model_loads_with_equal_logits(kind, tmp_path):
    model, ids = make(kind), torch.randint(1, 31, (2, 9))
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float64, trust_remote_code=True)
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor)
    # Equal weights at other addresses: the products may differ in the last bit.
    torch.testing.assert_close(loaded(ids).logits, model(ids).logits, rtol=0, atol=1e-13)
    assert loaded.get_input_embeddings().weight is loaded.lm_head.weight


@pytest.mark.parametrize("label", [*available(), "gated_linear@head", "dwarf@field"])
def test_loaded_weights_of_every_mixer_stay(label, tmp_path):
    """Whatever a mixer's reset_parameters does: transformers calls it after loading."""
    arguments = {"gated_linear@head": {"decay": "head"}, "dwarf@field": {"field": {"kind": "fir", "levels": 3}}}
    config = LongwaveConfig(
        vocab_size=31,
        hidden_size=16,
        num_heads=2,
        num_hidden_layers=2,
        mixer_types=label,
        mixer_kwargs={label: arguments[label]} if label in arguments else {},
    )
    model = LongwaveForCausalLM(config)
    redraw(model)
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path).state_dict()
    assert [name for name, tensor in model.state_dict().items() if not torch.equal(loaded[name], tensor)] == []


def test_a_fresh_process_loads_it_through_the_auto_classes_with_remote_code(tmp_path):
    model, ids = make("hale"), torch.arange(1, 12)[None]
    model.save_pretrained(tmp_path)
    script = (
        "import sys, torch; from transformers import AutoModelForCausalLM;"
        "assert 'longwave' not in sys.modules;"
        f"model = AutoModelForCausalLM.from_pretrained({str(tmp_path)!r}, trust_remote_code=True, dtype=torch.float64);"
        "torch.save(model(torch.arange(1, 12)[None]).logits, sys.argv[1])"
    )
    target = tmp_path / "logits.pt"
    subprocess.run([sys.executable, "-c", script, str(target)], check=True, capture_output=True)
    torch.testing.assert_close(torch.load(target), model(ids).logits, rtol=0, atol=1e-13)


def test_what_was_loaded_with_remote_code_is_saved_with_the_shim_alone(tmp_path):
    make("hale").save_pretrained(tmp_path / "first")
    script = (
        "import sys; from transformers import AutoModelForCausalLM;"
        "model = AutoModelForCausalLM.from_pretrained(sys.argv[1], trust_remote_code=True);"
        "model.save_pretrained(sys.argv[2]); model.config.save_pretrained(sys.argv[3]);"
        "from longwave.model import LongwaveConfig, LongwaveForCausalLM;"
        "assert isinstance(model.config, LongwaveConfig) and isinstance(model, LongwaveForCausalLM)"
    )
    folders = [tmp_path / name for name in ("first", "second", "third")]
    subprocess.run([sys.executable, "-c", script, *map(str, folders)], check=True, capture_output=True)
    for folder in folders:
        (shim,) = folder.glob("*.py")
        assert shim.name == "longwave_shim.py"
        assert shim.read_text().splitlines()[2:] == [
            "from longwave.model import LongwaveConfig, LongwaveForCausalLM  # noqa: F401"
        ]
        assert json.loads((folder / "config.json").read_text())["auto_map"] == {
            "AutoConfig": "longwave_shim.LongwaveConfig",
            "AutoModelForCausalLM": "longwave_shim.LongwaveForCausalLM",
        }


def test_the_configuration_survives_its_file(tmp_path):
    config = make("hybrid").config
    config.save_pretrained(tmp_path)
    loaded = AutoConfig.from_pretrained(tmp_path)
    assert loaded.labels() == config.labels()
    assert loaded.mixer_kwargs == config.mixer_kwargs
    assert loaded.num_attention_heads == config.num_heads


def test_mixers_have_the_last_word_on_their_initial_values():
    model = LongwaveForCausalLM(LongwaveConfig(num_hidden_layers=1, hidden_size=16, num_heads=2))
    gate = model.blocks[0].mixers[0].gate.out
    assert not gate.weight.any()
    assert not gate.bias.any()


@pytest.mark.parametrize("kind", ["hale", "hybrid", "memory rows"])
def test_checkpointing_leaves_gradients_unchanged(kind):
    model, ids = make(kind).train(), torch.randint(1, 31, (2, 9))
    found = []
    for checkpointed in (False, True):
        if checkpointed:
            model.activation_checkpointing_enable()
        model.zero_grad()
        model(ids, labels=ids).loss.backward()
        found.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    for plain, again in zip(*found, strict=True):
        torch.testing.assert_close(again, plain, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("extra", [0, 1], ids=["labels as long as the input", "one label more"])
@pytest.mark.parametrize("num_items", [None, 5])
def test_the_loss_without_logits_is_the_loss(extra, num_items):
    model, ids = make("hale"), torch.randint(1, 31, (2, 9))
    labels = torch.randint(1, 31, (2, 9 + extra))
    labels[0, 3:5] = -100
    found = []
    for skip in (False, True):
        model.zero_grad()
        out = model(ids, labels=labels, num_items_in_batch=num_items, skip_logits=skip)
        out.loss.backward()
        assert (out.logits is None) == skip
        found.append([out.loss, *(p.grad for p in model.parameters())])
    torch.testing.assert_close(*found)


def test_a_head_that_was_replaced_gives_its_logits():
    model, ids = make("strong softmax"), torch.randint(1, 31, (2, 9))
    model.lm_head = torch.nn.Linear(16, 31, dtype=torch.float64)
    out = model(ids, labels=ids, skip_logits=True)
    assert out.logits.shape == (2, 9, 31)
    torch.testing.assert_close(out.loss, model(ids, labels=ids).loss)


def test_loss_is_the_mean_over_labels_that_count():
    model, ids = make("hale"), torch.randint(1, 31, (2, 9))
    labels = ids.clone()
    labels[0, 3:5] = -100
    logits = model(ids).logits.log_softmax(dim=-1)
    kept = [(b, t) for b in range(2) for t in range(1, 9) if labels[b, t] != -100]
    expected = -sum(logits[b, t - 1, labels[b, t]] for b, t in kept) / len(kept)
    torch.testing.assert_close(model(ids, labels=labels).loss, expected)
    total = model(ids, labels=labels, num_items_in_batch=5).loss
    torch.testing.assert_close(total, expected * len(kept) / 5)


@pytest.mark.parametrize("kind", ["hale", "strong softmax", "memory rows"])
def test_right_padding_changes_nothing_and_leaves_no_cache(kind):
    model, ids = make(kind), torch.randint(1, 31, (2, 9))
    mask = torch.ones(2, 9, dtype=torch.int64)
    mask[0, 6:] = 0
    out = model(ids, attention_mask=mask)
    torch.testing.assert_close(out.logits[0, :6], model(ids[:1, :6]).logits[0])
    assert getattr(out, CACHE_NAME) is None
    with pytest.raises(ValueError, match="pad on the left"):
        model(ids, attention_mask=mask, use_cache=True)


def test_masks_that_are_no_padding_are_refused():
    model, ids = make("hale"), torch.randint(1, 31, (1, 6))
    with pytest.raises(ValueError, match="has a hole"):
        model(ids, attention_mask=torch.tensor([[1, 1, 0, 0, 1, 1]]))
    with pytest.raises(ValueError, match=r"must be \[batch, 6\]"):
        model(ids, attention_mask=torch.ones(1, 5))
    with pytest.raises(ValueError, match="not both"):
        model(ids, attention_mask=torch.ones(1, 6), starts=torch.zeros(1, 6, dtype=torch.bool))
    with pytest.raises(ValueError, match="exactly one"):
        model()


def test_learned_positions_end_and_others_do_not():
    ids = torch.randint(1, 31, (1, 12))
    with pytest.raises(ValueError, match="12 tokens exceeds the 8 learned positions"):
        make("published baseline", max_position_embeddings=8)(ids)
    packed = torch.arange(12)[None] % 6 == 0
    make("published baseline", max_position_embeddings=8)(ids, starts=packed)


def test_hidden_states_are_the_residual_streams_of_the_text():
    model, ids = make("memory rows"), torch.randint(1, 31, (2, 9))
    out = model(ids, output_hidden_states=True)
    assert [tuple(x.shape) for x in out.hidden_states] == [(2, 9, 16)] * 3
    torch.testing.assert_close(model.lm_head(model.final_norm(out.hidden_states[-1])), out.logits)


def test_memory_rows_with_ragged_documents_equal_each_document_alone():
    model = make("memory rows")
    ids = torch.randint(1, 31, (2, 11))
    starts = torch.zeros(2, 11, dtype=torch.bool)
    starts[0, [0, 4, 9]] = True
    starts[1, [0, 1]] = True
    whole = model(ids, starts=starts, use_cache=True)
    first = model(ids[:, :5], starts=starts[:, :5], use_cache=True)
    rest = model(ids[:, 5:], starts=starts[:, 5:], cache=first[CACHE_NAME])
    torch.testing.assert_close(torch.cat([first.logits, rest.logits], dim=1), whole.logits)
    for row, begin, end in ((0, 0, 4), (0, 4, 9), (0, 9, 11), (1, 0, 1), (1, 1, 11)):
        torch.testing.assert_close(whole.logits[row, begin:end], model(ids[row : row + 1, begin:end]).logits[0])


def test_mixers_that_want_different_memory_rows_do_not_mix():
    with pytest.raises(ValueError, match="same memory rows"):
        make("memory rows", mixer_types=["tests.toys:Summaries", "softmax"])


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"hidden_size": 10**12}, "hidden_size must be a whole number of at most 16777216"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers must be a whole number of at most 4096"),
        ({"norm_eps": float("nan")}, "norm_eps must be a finite number, got nan"),
        ({"eos_token_id": 999}, "eos_token_id must be below vocab_size 257 and not negative, got 999"),
        ({"mixer_kwargs": {3: {}}}, "mixer_kwargs names 3, which no layer uses"),
        ({"num_heads": 3}, "hidden_size 16 is not divisible by num_heads 3"),
        ({"mixer_types": ["hale"], "num_hidden_layers": 2}, "1 entries for num_hidden_layers 2"),
        ({"mixer_kwargs": {"softmax": {}}}, "names 'softmax', which no layer uses; used: hale"),
        ({"positions": "rope"}, "unknown positions 'rope'; legal: none, learned, sinusoidal"),
        ({"norm_placement": "sandwich"}, "unknown norm_placement 'sandwich'; legal: pre, post"),
    ],
)
def test_configuration_errors_say_what_is_legal(changes, sentence):
    with pytest.raises(ValueError, match=re.escape(sentence)):
        LongwaveConfig(**{"hidden_size": 16, "num_heads": 2, **changes})
