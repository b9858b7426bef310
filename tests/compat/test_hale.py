"""HALE's published names behave as its users expect, corrected where the original was wrong."""

from __future__ import annotations

import re

import pytest
import torch
import torch.nn.functional as F
from einops import rearrange

from longwave.compat import hale
from longwave.compat.hale import (
    AdaptiveReasoningGate,
    CausalHaarContext,
    FieldInterferenceModule,
    HALEAttention,
    HALETransformer,
    HALETransformerLayer,
    StandardTransformer,
    WaveFieldAttention,
    WaveFieldTransformer,
    causal_linear_attention,
    causal_linear_attention_chunked,
)
from longwave.ops import offset_attention
from longwave.training import load_run

SIZES = {"embedding_dim": 16, "num_layers": 2, "num_heads": 2, "ffn_dim": 24}


def small(**arguments) -> HALETransformer:
    """A small model in float64 whose weights are large enough to matter."""
    model = HALETransformer(29, **{**SIZES, "local_window": 5, "num_haar_levels": 3, "dropout": 0.0, **arguments})
    return redrawn(model)


def redrawn(module):
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(0.4 * torch.randn_like(parameter))
    return module.double().eval()


def tokens(*shape: int) -> torch.Tensor:
    return torch.randint(0, 29, shape)


def test_published_names_are_importable():
    assert {
        "HALETransformer",
        "HALEAttention",
        "HALETransformerLayer",
        "HALEInferenceCache",
        "CausalHaarContext",
        "AdaptiveReasoningGate",
        "causal_linear_attention",
        "causal_linear_attention_chunked",
        "WaveFieldTransformer",
        "WaveFieldAttention",
        "WaveFieldAttentionHALE",
        "FieldInterferenceModule",
    } <= set(hale.__all__)
    assert all(hasattr(hale, name) for name in hale.__all__)


def test_a_script_of_the_original_runs():
    model = HALETransformer(vocab_size=29, **SIZES, max_seq_len=24, local_window=4, num_haar_levels=2, device="cpu")
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    ids = tokens(3, 17)
    losses = []
    for _ in range(8):
        optimizer.zero_grad()
        logits, loss = model(ids[:, :-1], labels=ids[:, 1:])
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert logits.shape == (3, 16, 29)
    assert losses[-1] < losses[0]
    out = model.generate(ids[:1, :5], max_new_tokens=7, temperature=0.8, top_k=10, top_p=0.9, repetition_penalty=1.2)
    assert out.shape == (1, 12)
    assert torch.equal(out[:, :5], ids[:1, :5])


@pytest.mark.parametrize(
    ("model", "arguments", "count"),
    [
        (HALETransformer, {"vocab_size": 1024}, 6_621_726),
        (HALETransformer, {"vocab_size": 8000}, 8_407_582),
        (StandardTransformer, {"vocab_size": 1024, "max_seq_len": 129}, 5_034_240),
        (StandardTransformer, {"vocab_size": 8000, "max_seq_len": 257}, 6_852_864),
        (
            HALETransformer,
            {"vocab_size": 32000, "embedding_dim": 768, "num_layers": 12, "num_heads": 12, "ffn_dim": 3072},
            138_327_612,
        ),
    ],
)
def test_models_have_the_published_number_of_parameters(model, arguments, count):
    with torch.device("meta"):
        assert sum(parameter.numel() for parameter in model(**arguments).parameters()) == count


def test_mixer_has_the_published_number_of_parameters():
    assert sum(parameter.numel() for parameter in HALEAttention().parameters()) == 533_253


def test_published_defaults():
    with torch.device("meta"):
        plain, older = HALETransformer(29), WaveFieldTransformer()
    (mixer, *_), (older_mixer, *_) = ([block.mixers[0] for block in model.model.blocks] for model in (plain, older))
    assert (mixer.window, mixer.num_levels, mixer.chunk_size, mixer.dropout.p) == (64, 4, 128, 0.1)
    assert (plain.model.config.max_position_embeddings, plain.model.config.num_hidden_layers) == (256, 6)
    assert (older_mixer.window, older.model.config.vocab_size) == (32, 50257)
    assert older.model.config.max_position_embeddings == 2048
    assert WaveFieldAttention(16, 2).mixer.window == 32
    assert WaveFieldAttention(16, 2, local_window=7).mixer.window == 7


def test_arguments_of_related_models_are_accepted_and_others_refused():
    legacy = {"k_max": 8, "tree_mode": "fast", "field_size": 512, "interference_interval": 3, "jacobi_iters": 1}
    model = HALETransformer(29, d_model=16, n_layers=1, n_heads=2, ffn_dim=8, **legacy)
    assert model.model.config.hidden_size == 16
    assert model(tokens(1, 3), jacobi_iters=2)[0].shape == (1, 3, 29)
    with pytest.raises(TypeError, match="HALETransformer has no argument 'windows'"):
        HALETransformer(29, windows=3)
    with pytest.raises(TypeError, match="HALEAttention has no argument 'kv'"):
        HALEAttention(16, 2, kv=1)
    with pytest.raises(ValueError, match="not divisible by num_heads 3"):
        HALETransformer(29, embedding_dim=16, num_heads=3)


def test_chunk_size_reaches_the_mixer_and_changes_nothing():
    first, second = small(chunk_size=7), small(chunk_size=128)
    second.load_state_dict(first.state_dict())
    assert first.model.blocks[0].mixers[0].chunk_size == 7
    ids = tokens(2, 23)
    torch.testing.assert_close(first(ids)[0], second(ids)[0], rtol=1e-12, atol=1e-12)


def test_start_of_the_gate_and_of_the_baseline():
    zero, normal = HALEAttention(16, 2), HALEAttention(16, 2, mixer_kwargs={"gate_init": "normal"})
    assert not zero.mixer.gate.out.weight.any()
    assert normal.mixer.gate.out.weight.std() > 0
    q_proj = StandardTransformer(29, embedding_dim=64).model.blocks[0].mixers[0].q_proj.weight
    bound = (6 / 256) ** 0.5
    assert 0.95 * bound < q_proj.abs().max() <= bound


def test_dropout_acts_in_the_mixer_and_again_in_the_block():
    block = HALETransformer(29, **SIZES, dropout=0.2).model.blocks[0]
    assert block.mixers[0].dropout.p == block.dropout.p == block.feed_forward.dropout.p == 0.2


def test_labels_are_shifted_by_the_caller():
    model, ids, labels = small(), tokens(2, 9), tokens(2, 9)
    labels[0, 4:] = -100
    logits, loss = model(ids, labels=labels)
    torch.testing.assert_close(loss, F.cross_entropy(logits.flatten(0, 1), labels.flatten()))
    assert model(ids, targets=labels)[1] == loss
    assert model(ids)[1] is None
    with pytest.raises(ValueError, match="labels and targets are one argument"):
        model(ids, labels=labels, targets=labels)


def test_a_lone_sequence_is_a_batch_of_one():
    model, ids = small(), tokens(9)
    logits, loss = model(ids, labels=ids)
    assert logits.shape == (1, 9, 29)
    assert torch.equal(logits, model(ids[None])[0])
    assert loss.dim() == 0
    attention, x = HALEAttention(16, 2).eval(), torch.randn(9, 16)
    assert torch.equal(attention(x), attention(x[None])[0])


def test_right_padding_is_accepted_and_changes_no_real_row():
    model, ids = small(), tokens(2, 9)
    mask = torch.ones(2, 9, dtype=torch.bool)
    mask[1, 6:] = False
    other = ids.masked_fill(~mask, 0)
    assert torch.equal(model(ids, mask=mask)[0][mask], model(other, mask=mask.long())[0][mask])


@pytest.mark.parametrize(
    ("mask", "sentence"),
    [
        ([[0, 1, 1]], "hides a token before a real one"),
        ([[1, 0, 1]], "hides a token before a real one"),
        ([[1, 1]], r"must have the shape \(1, 3\)"),
        ([[1, 1, 2]], "got other values"),
        ([[0.0, 0.0, float("-inf")]], "got other values"),
    ],
)
def test_other_masks_are_refused(mask, sentence):
    for module, x in ((small(), tokens(1, 3)), (HALEAttention(16, 2), torch.randn(1, 3, 16))):
        with pytest.raises(ValueError, match=sentence):
            module(x, mask=torch.tensor(mask))


@pytest.mark.parametrize("build", [HALEAttention, HALETransformerLayer])
def test_incremental_decoding_equals_the_parallel_form(build):
    module = redrawn(build(16, 2, local_window=5, num_haar_levels=3, dropout=0.0))
    x = torch.randn(3, 21, 16, dtype=torch.float64)
    cache = module.init_inference_cache(3, "cpu", torch.float64)
    rows = [module.forward_incremental(row, cache) for row in x.split(1, dim=1)]
    torch.testing.assert_close(torch.cat(rows, dim=1), module(x), rtol=1e-11, atol=1e-11)
    assert cache.state.tokens.tolist() == [21, 21, 21]


@pytest.mark.parametrize("build", [HALEAttention, HALETransformerLayer])
@pytest.mark.parametrize("shape", [(2, 2, 16), (2, 16), (1, 1, 16), (2, 1, 8)])
def test_wrong_shape_is_an_error(build, shape):
    module = build(16, 2)
    cache = module.init_inference_cache(2)
    with pytest.raises(ValueError, match=r"takes one token for each sequence, \(2, 1, 16\); got"):
        module.forward_incremental(torch.randn(shape), cache)
    assert not cache.state.tokens.any()


def test_the_published_cache_decodes_another_function():
    published = redrawn(HALEAttention(16, 2, 5, 3, dropout=0.0, mixer_kwargs={"cache": "published"}))
    x = torch.randn(1, 12, 16, dtype=torch.float64)
    cache = published.init_inference_cache(1)
    decoded = torch.cat([published.forward_incremental(row, cache) for row in x.split(1, dim=1)], dim=1)
    assert (decoded - published(x)).abs().max() > 1e-3


def test_the_parts_make_up_the_mixer():
    attention = redrawn(HALEAttention(16, 2, local_window=5, num_haar_levels=3, dropout=0.0))
    mixer, x = attention.mixer, torch.randn(2, 19, 16, dtype=torch.float64)
    gate, context = AdaptiveReasoningGate(16).double(), CausalHaarContext(8, 3).double()
    weights = mixer.state_dict()
    gate.load_state_dict({name: weights[f"gate.{name}"] for name in gate.state_dict()})
    context.load_state_dict({name: weights[name] for name in context.state_dict()})
    names = ("q_proj", "k_proj", "v_proj", "local_k_proj", "local_v_proj")
    q, k, v, local_k, local_v = (rearrange(mixer.get_submodule(n)(x), "b n (h d) -> b n h d", h=2) for n in names)
    local = rearrange(offset_attention(q, local_k, local_v, window=5), "b n h d -> b n (h d)")
    heads = [rearrange(part, "b n h d -> b h n d") for part in (q, k, v)]
    glob = rearrange(causal_linear_attention(*heads) + context(*heads), "b h n d -> b n (h d)")
    torch.testing.assert_close(mixer.o_proj(gate(x, local, glob)), attention(x), rtol=1e-12, atol=1e-12)


def test_parts_at_their_start_and_edges():
    x, local, glob = torch.randn(3, 2, 5, 6)
    torch.testing.assert_close(AdaptiveReasoningGate(6)(x, local, glob), (local + glob) / 2)
    q, k, v = torch.randn(3, 2, 2, 11, 4)
    assert not CausalHaarContext(4, 0)(q, k, v).any()
    torch.testing.assert_close(causal_linear_attention_chunked(q, k, v, 3), causal_linear_attention(q, k, v))
    assert causal_linear_attention(q.bfloat16(), k.bfloat16(), v.bfloat16()).dtype == torch.bfloat16
    assert FieldInterferenceModule(6, dropout=0.5, initial_temperature=2.0)(x) is x


def test_checkpointing_leaves_gradients_unchanged():
    plain, sparing = small(num_layers=3), small(num_layers=3, use_checkpoint=True)
    sparing.load_state_dict(plain.state_dict())
    ids = tokens(2, 15)
    for model in (plain, sparing):
        model.train()
        model(ids[:, :-1], labels=ids[:, 1:])[1].backward()
    assert sparing.model.is_activation_checkpointing
    for (name, first), second in zip(plain.named_parameters(), sparing.parameters(), strict=True):
        torch.testing.assert_close(first.grad, second.grad, rtol=1e-12, atol=1e-14, msg=name)


@pytest.mark.parametrize("override", re.findall(r"--set (\S+)", hale.__doc__))
def test_documented_overrides_are_legal(override):
    path, value = override.split("=")
    node = load_run("hale-small", [override]).model_dump()
    for key in path.split("."):
        node = node[key]
    assert value in str(node)
