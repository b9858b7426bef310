"""Golden files of HALE: symbols of the method to parameters, kinds of files to public names of the library."""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor

from longwave.compat.hale import (
    AdaptiveReasoningGate,
    CausalHaarContext,
    HALEAttention,
    HALETransformer,
    StandardTransformer,
    causal_linear_attention,
    causal_linear_attention_chunked,
)
from longwave.compat.hale_parts import HALEInferenceCache
from longwave.compat.hale_training import published_optimizer, train_step
from longwave.mixers.base import collecting
from longwave.mixers.hale import Hale, HaleState
from longwave.ops import block_means
from tests.golden.core import Answers, Golden, Kind, collect, load, prefixed
from tests.golden.hale_text import TEXT_KINDS

OPS = ("block_means", "dyadic_linear_attention", "linear_attention", "offset_attention")
LEVELS = {"P": ("levels.keys",), "R": ("levels.values",), "w_scale": ("levels.logits",)}
GATE = {"G1": ("hidden.weight",), "g1": ("hidden.bias",), "G2": ("out.weight",), "g2": ("out.bias",)}
MIXER = {
    "W_q": ("q_proj.weight",),
    "W_k": ("k_proj.weight",),
    "W_v": ("v_proj.weight",),
    "W_kl": ("local_k_proj.weight",),
    "W_vl": ("local_v_proj.weight",),
    "W_o": ("o_proj.weight",),
    "b_o": ("o_proj.bias",),
    **LEVELS,
    **{symbol: (f"gate.{name}",) for symbol, (name,) in GATE.items()},
}
FUSED = {
    "W_qkv": ("q_proj.weight", "k_proj.weight", "v_proj.weight"),
    "b_qkv": ("q_proj.bias", "k_proj.bias", "v_proj.bias"),
    "W_o": ("o_proj.weight",),
    "b_o": ("o_proj.bias",),
}
BLOCK = {
    "ln1.g": ("mixer_norms.0.weight",),
    "ln1.b": ("mixer_norms.0.bias",),
    "ln2.g": ("feed_forward_norm.weight",),
    "ln2.b": ("feed_forward_norm.bias",),
    "F1": ("feed_forward.up_proj.weight",),
    "f1": ("feed_forward.up_proj.bias",),
    "F2": ("feed_forward.down_proj.weight",),
    "f2": ("feed_forward.down_proj.bias",),
}
MODEL = {
    "E": ("model.embeddings.tokens.weight",),
    "Epos": ("model.embeddings.positions.weight",),
    "lnf.g": ("model.final_norm.weight",),
    "lnf.b": ("model.final_norm.bias",),
}
#: A table that the model computes.
COMPUTED = {"PE"}


def model_symbols(num_layers: int, mixer: dict[str, tuple[str, ...]], prefix: str) -> dict[str, tuple[str, ...]]:
    """Symbols of a whole model; those of a mixer follow ``layers.<i>.<prefix>``."""
    symbols = dict(MODEL)
    for i in range(num_layers):
        for symbol, names in BLOCK.items():
            symbols[f"layers.{i}.{symbol}"] = tuple(f"model.blocks.{i}.{name}" for name in names)
        for symbol, names in mixer.items():
            symbols[f"layers.{i}.{prefix}{symbol}"] = tuple(f"model.blocks.{i}.mixers.0.{name}" for name in names)
    return symbols


def mixer(golden: Golden) -> Answers:
    """The mixer in parallel, with what it observes of its branches."""
    x, config = golden.leaf("x"), golden.config
    hale = Hale(
        config["d_model"],
        config["num_heads"],
        window=config["local_window"],
        num_levels=config["num_haar_levels"],
        chunk_size=config.get("chunk_size", 128),
    ).double()
    load(hale, MIXER, golden.parameters)
    with collecting() as observed:
        y, _ = hale(x)
    answers = {"out.y": y, **gradients(golden, y, {"x": x})}
    for name, key in (("local", "hale.local"), ("glob", "hale.global")):
        answers[f"out.{name}"] = rearrange(observed[key][0], "b n (h d) -> b h n d", h=hale.num_heads)
    return answers | prefixed("grad.", collect(hale, MIXER, lambda parameter: parameter.grad))


def published_attention(golden: Golden) -> HALEAttention:
    """The published mixer with a file's parameters."""
    names = ("num_heads", "local_window", "num_haar_levels")
    attention = HALEAttention(golden.config["d_model"], **{name: golden.config[name] for name in names}, dropout=0.0)
    load(attention.double().mixer, MIXER, golden.parameters)
    return attention


def decode_by_tokens(golden: Golden) -> Answers:
    """One token after the other through the published cache."""
    attention, x = published_attention(golden), golden.tensors["in.x"]
    cache = attention.init_inference_cache(x.shape[0], x.device, x.dtype)
    rows, answers = [], {}
    for token, row in enumerate(x.split(1, dim=1), start=1):
        rows.append(attention.forward_incremental(row, cache))
        if token in snapshots(golden):
            answers |= snapshot(cache.state, token)
    return {"out.y": torch.cat(rows, dim=1), **answers}


def decode_in_pieces(golden: Golden) -> Answers:
    """Prompts read in parallel, cut at the snapshots."""
    attention, x = published_attention(golden), golden.tensors["in.x"]
    rows, answers, state, begin = [], {}, None, 0
    for end in sorted({*snapshots(golden), x.shape[1]}):
        y, state = attention.mixer(x[:, begin:end], state, return_state=True)
        rows.append(y)
        answers |= snapshot(state, end)
        begin = end
    return {"out.y": torch.cat(rows, dim=1), **answers}


def decode_after_prompt(golden: Golden) -> Answers:
    """A prompt up to the first snapshot in parallel, the rest token by token."""
    attention, x = published_attention(golden), golden.tensors["in.x"]
    prompt = min(snapshots(golden), default=1)
    y, state = attention.mixer(x[:, :prompt], return_state=True)
    cache, rows, answers = HALEInferenceCache(state), [y], snapshot(state, prompt)
    for token in range(prompt, x.shape[1]):
        rows.append(attention.forward_incremental(x[:, token : token + 1], cache))
        if token + 1 in snapshots(golden):
            answers |= snapshot(cache.state, token + 1)
    return {"out.y": torch.cat(rows, dim=1), **answers}


def snapshots(golden: Golden) -> set[int]:
    """Token counts after which the file looks at the state."""
    return {int(name.split("@")[1]) for name in golden.group("out.") if "@" in name}


def snapshot(state: HaleState, token: int) -> Answers:
    """A state by the method's symbols."""
    memory = rearrange(state.memory, "b m h d e -> b h m d e")
    sums = rearrange(state.blocks, "b l two h d -> two b h l d")
    named = {"S": memory[..., :-1], "z": memory[..., -1], "ak": sums[0], "av": sums[1]}
    return {f"out.{symbol}@{token}": value.clone() for symbol, value in named.items()}


def linear_attention(golden: Golden) -> Answers:
    """The published function."""
    leaves = {name: golden.leaf(name) for name in ("q", "k", "v")}
    o = causal_linear_attention(**leaves, eps=golden.config["eps"])
    return {"out.o": o, **gradients(golden, o, leaves)}


def linear_attention_in_chunks(golden: Golden) -> Answers:
    """The published chunked function."""
    leaves = {name: golden.leaf(name) for name in ("q", "k", "v")}
    o = causal_linear_attention_chunked(**leaves, chunk_size=4, eps=golden.config["eps"])
    return {"out.o": o, **gradients(golden, o, leaves)}


def haar_context(golden: Golden) -> Answers:
    """The multi-scale part of the global branch."""
    config = golden.config
    context = CausalHaarContext(config["head_dim"], config["num_haar_levels"], eps=config["eps"]).double()
    load(context, LEVELS, golden.parameters)
    leaves = {name: golden.leaf(name) for name in ("q", "k", "v")}
    o = context(**leaves)
    means = block_means(rearrange(leaves["k"], "b h n d -> b n h d"), config["num_haar_levels"])
    answers = {"out.o": o, "out.k_mean": rearrange(means, "b n l h d -> l b h n d")}
    answers |= gradients(golden, o, leaves)
    return answers | prefixed("grad.", collect(context, LEVELS, lambda parameter: parameter.grad))


def adaptive_gate(golden: Golden) -> Answers:
    """The gate between two branches."""
    gate = AdaptiveReasoningGate(golden.config["d_model"]).double()
    load(gate, GATE, golden.parameters)
    leaves = {name: golden.leaf(name) for name in ("x", "local", "glob")}
    y = gate(**leaves)
    answers = {"out.y": y, **gradients(golden, y, leaves)}
    return answers | prefixed("grad.", collect(gate, GATE, lambda parameter: parameter.grad))


def gradients(golden: Golden, output: Tensor, leaves: dict[str, Tensor]) -> Answers:
    """Gradients of sum(output * cotangent) with respect to the inputs; fills those of parameters."""
    if not golden.has_gradients:
        return {}
    output.backward(golden.tensors["in.cotangent"])
    return {f"grad.{name}": leaf.grad for name, leaf in leaves.items()}


def language_model(golden: Golden) -> tuple[HALETransformer, dict[str, tuple[str, ...]]]:
    """The published model with a file's parameters, and its symbols."""
    config = golden.config
    names = ("num_layers", "num_heads", "ffn_dim", "max_seq_len", "local_window", "num_haar_levels")
    sizes = {name: config[name] for name in names}
    chunk = config.get("chunk_size", 128)
    model = HALETransformer(config["vocab_size"], config["d_model"], **sizes, chunk_size=chunk, dropout=0.0).double()
    symbols = model_symbols(config["num_layers"], MIXER, "mix.")
    load(model, symbols, {s: value for s, value in golden.parameters.items() if s not in COMPUTED})
    return model, symbols


def baseline(golden: Golden) -> tuple[StandardTransformer, dict[str, tuple[str, ...]]]:
    """The published baseline with a file's parameters, and its symbols."""
    config = golden.config
    sizes = {name: config[name] for name in ("num_layers", "num_heads", "ffn_dim", "max_seq_len")}
    model = StandardTransformer(config["vocab_size"], config["d_model"], **sizes, dropout=0.0).double()
    symbols = model_symbols(config["num_layers"], FUSED, "")
    load(model, symbols, golden.parameters)
    return model, symbols


def scored(golden: Golden, model, symbols) -> Answers:
    """Logits, loss and gradients of the mean loss."""
    logits, loss = model(golden.tensors["in.ids"], labels=golden.tensors.get("in.labels"))
    answers = {"out.logits": logits, "out.loss": loss}
    if golden.has_gradients:
        loss.backward()
    return answers | prefixed("grad.", collect(model, symbols, lambda parameter: parameter.grad))


def score_model(golden: Golden) -> Answers:
    """The published model."""
    return scored(golden, *language_model(golden))


def score_baseline(golden: Golden) -> Answers:
    """The published baseline."""
    return scored(golden, *baseline(golden))


def generate_greedy(golden: Golden) -> Answers:
    """The likeliest token each time: a draw among the one largest logit."""
    model, _ = language_model(golden)
    ids, config, answers = golden.tensors["in.ids"], golden.config, {}
    for name in {"greedy", *(name for name in golden.group("out.") if name.startswith("greedy_rep"))}:
        penalty = float(name.removeprefix("greedy_rep")) if name != "greedy" else 1.0
        sampling = {"top_k": 1, "repetition_penalty": penalty, "repetition_window": config["rep_window"]}
        answers[f"out.{name}"] = model.generate(ids, config["new_tokens"], **sampling)
    with torch.no_grad():
        logits, _ = model(answers["out.greedy"])
    return {**answers, "out.last_logits": logits[:, -1]}


def train_steps(golden: Golden) -> Answers:
    """Updates with the published optimizer."""
    model, symbols = language_model(golden)
    config = golden.config
    optimizer = published_optimizer(
        model, weight_decay=config["weight_decay"], betas=tuple(config["betas"]), eps=config["adam_eps"]
    )
    updates = zip(golden.tensors["in.ids"], golden.tensors["in.labels"], config["lr"], strict=True)
    results = [
        train_step(model, optimizer, ids, labels, rate=rate, clip_norm=config["clip_norm"])
        for ids, labels, rate in updates
    ]
    losses, norms = torch.tensor(results, dtype=torch.float64).unbind(dim=1)
    after = prefixed("out.after.", collect(model, symbols, lambda parameter: parameter))
    return {"out.loss": losses, "out.grad_norm_before_clip": norms, **after}


KINDS = {
    **TEXT_KINDS,
    "adaptive_gate": Kind([adaptive_gate]),
    "causal_linear_attention": Kind([linear_attention, linear_attention_in_chunks], ["linear_attention"]),
    "haar_context": Kind([haar_context], ["block_means", "linear_attention"]),
    "hale_decode": Kind([decode_by_tokens, decode_in_pieces, decode_after_prompt], OPS),
    "hale_generate": Kind([generate_greedy], OPS),
    "hale_lm": Kind([score_model], OPS),
    "hale_mixer": Kind([mixer], OPS),
    "hale_train_steps": Kind([train_steps], OPS),
    "standard_transformer_baseline": Kind([score_baseline]),
}
