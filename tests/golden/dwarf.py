"""Golden files of DWARF: symbols of the method to parameters, conditions to arguments of the library's mixers."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from longwave.mixers import TokenMixer, build
from longwave.mixers.dwarf import Lattice
from longwave.model import LongwaveConfig, LongwaveForCausalLM
from longwave.modules import LocalWindow, lattice
from longwave.ops import offset_attention
from longwave.training.schedule import learning_rate
from tests.golden import dwarf_evaluation, dwarf_grid, dwarf_verification, dwarf_wave_field
from tests.golden.core import Answers, Golden, Kind, collect, load, prefixed

OPS = ("offset_attention", "causal_filter", "damped_wave")
PROJECTIONS = {
    "W_qkv": ("qkv_proj.weight",),
    "b_qkv": ("qkv_proj.bias",),
    "W_o": ("o_proj.weight",),
    "b_o": ("o_proj.bias",),
    "W_g": ("gate_proj.weight",),
    "b_g": ("gate_proj.bias",),
}
GATHER = {
    **PROJECTIONS,
    "scale_prior": ("gains.prior",),
    "W_s": ("gains.weight",),
    "bypass": ("bypass",),
    "pos_bias": ("score_bias",),
    "scale_embed": ("scale_embed",),
    "if_gain": ("if_gain",),
    "coupling": ("coupling.weight",),
    "skip": ("skip",),
    "field_gain": ("field.gain",),
}
WITH_FIELD = GATHER | {"scale_prior": ("field.gains.prior",), "W_s": ("field.gains.weight",)}
FULL = PROJECTIONS | {
    f"{part}_qkv": tuple(f"{name}_proj.{kind}" for name in "qkv") for part, kind in (("W", "weight"), ("b", "bias"))
}
POOL = {
    "pool_gate.W": ("gate_proj.weight",),
    "pool_gate.b": ("gate_proj.bias",),
    "pool_proj.W": ("o_proj.weight",),
    "pool_proj.b": ("o_proj.bias",),
}
INJECTION = {
    f"{symbol}.{part}": (f"injection.{name}.{kind}",)
    for symbol, name in (("inject_k", "k_proj"), ("inject_v", "v_proj"), ("pool_gate", "gate_proj"))
    for part, kind in (("W", "weight"), ("b", "bias"))
}
NORM = {"w": "weight", "b": "bias"}
GELU = {"W1": "up_proj.weight", "b1": "up_proj.bias", "W2": "down_proj.weight", "b2": "down_proj.bias"}
SWIGLU = {"Wgate": "gate_proj.weight", "Wup": "up_proj.weight", "Wdown": "down_proj.weight"}
MODEL = {
    "tok_emb": ("embeddings.tokens.weight",),
    "pos_emb": ("embeddings.positions.weight",),
    **{f"final_norm.{part}": (f"final_norm.{name}",) for part, name in NORM.items()},
}
GRID = ("A", "B", "C", "D")
#: Conditions of the files to conditions of the library, where they are called otherwise.
CONDITIONS = {"K+RP": "K", "L+RP": "LRP", "M-v2": "M2", "N + pyramid wave field": "N"}


def arguments(config: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """The mixer's name and arguments that a file asks for."""
    condition = CONDITIONS.get(config["condition"], config["condition"])
    if condition in GRID:
        own = isinstance(config.get("stride"), int)  # the original's is words
        grid = {"grid": "token", "stride": config["stride"]} if own else {"grid": "original"}
        return "dwarf_grid", {"condition": condition, "field_size": config["field_size"], **grid}
    if condition in ("G", "H", "I"):
        skips = {"skip_offsets": config["skip_offsets"]} if "skip_offsets" in config else {}
        return "dwarf_field", {
            "condition": condition, "n_scales": config["J"], "taps": config.get("taps", lattice(1).coefficients),
            "tap_order": config["tap_order"], **skips,
        }  # fmt: skip
    given: dict[str, Any] = {"condition": condition, "phantom": config.get("phantom", "mask")}
    if condition in ("J", "K"):
        named = {"n_scales": "J", "taps": "taps", "tap_sign": "tap_sign"}
        given["offsets"] = Lattice(**{name: config[key] for name, key in named.items() if key in config})
    elif condition not in ("L", "LRP"):
        given["offsets"] = config["offsets"]
    if "field" in config:
        given["field"] = {"kind": config["field"], "levels": config["field_levels"]}
    return "dwarf", given


def is_full_attention(config: dict[str, Any]) -> bool:
    """Whether a file is of the one layer of M that reads everything."""
    return config["condition"] in ("M", "M-v2") and "offsets" not in config


def mixer(golden: Golden) -> Answers:
    """The mixer in parallel."""
    config = golden.config
    if is_full_attention(config):
        base = 10000.0 if "rope_base" in config else None
        given = {"rotary_base": base, "bias": "b_qkv" in golden.parameters, "gate_bias": 2.0}
        return _answers(golden, build("softmax", config["D"], config["H"], given), FULL)
    if config["condition"] in GRID:
        return dwarf_grid.mixer(golden)
    name, given = arguments(config)
    if "in.k_inject" in golden.tensors:
        return injected(golden, given)
    if "out.y_original" in golden.tensors:
        return both_forms(golden, given)
    return _answers(golden, build(name, config["D"], config["H"], given), WITH_FIELD if "field" in config else GATHER)


def mixer_in_pieces(golden: Golden) -> Answers:
    """Forms that have a state, in pieces and token by token; the others in parallel."""
    config = golden.config
    if config["condition"] in GRID:
        return dwarf_grid.mixer_in_pieces(golden)
    lawful = config.get("phantom") != "original" and "in.rows" not in golden.tensors and config["condition"] != "U"
    if not lawful or is_full_attention(config):
        return mixer(golden)
    name, given = arguments(config)
    built = build(name, config["D"], config["H"], given).double()
    symbols = WITH_FIELD if "field" in config else GATHER
    load(built, symbols, golden.parameters)
    x = golden.leaf("x")
    half = (x.shape[1] + 1) // 2
    rows, state = [], None
    for piece in x.split([half, *[1] * (x.shape[1] - half)], dim=1):
        y, state = built(piece, state, return_state=True)
        rows.append(y)
    y = torch.cat(rows, dim=1)
    y.backward(golden.tensors["in.cotangent"])
    return {"out.y": y, "grad.x": x.grad, **prefixed("grad.", collect(built, symbols, lambda p: p.grad))}


def both_forms(golden: Golden, given: dict[str, Any]) -> Answers:
    """K with and without keys before the beginning, at the file's rows."""
    answers = {}
    for phantom, name in (("original", "original"), ("mask", "corrected")):
        built = build("dwarf", golden.config["D"], golden.config["H"], given | {"phantom": phantom}).double()
        load(built, GATHER, golden.parameters)
        with torch.no_grad():
            y, _ = built(golden.tensors["in.x"].double())
        answers[f"out.y_{name}"] = y[:, golden.tensors["in.rows"]]
    return answers


class Given(nn.Module):
    """An injection that is given."""

    def __init__(self, k: Tensor, v: Tensor) -> None:
        super().__init__()
        self.k, self.v = (rearrange(part, "b h n d -> b n (h d)") for part in (k, v))

    def forward(self, x: Tensor, past: Any, starts: Any) -> tuple[Tensor, Tensor, Tensor]:
        """What the file adds."""
        return self.k, self.v, x[:, 0]


def injected(golden: Golden, given: dict[str, Any]) -> Answers:
    """U, whose file gives what is added to keys and values."""
    built = build("dwarf", golden.config["D"], golden.config["H"], given | {"kv_inject": True}).double()
    leaves = {name: golden.leaf(name) for name in ("k_inject", "v_inject")}
    built.norm, built.injection = nn.Identity(), Given(**{name[0]: leaf for name, leaf in leaves.items()})
    answers = _answers(golden, built, GATHER, leaves)
    plain = build("dwarf", golden.config["D"], golden.config["H"], given).double()
    load(plain, GATHER, golden.parameters)
    answers["out.y_no_inject"] = plain(golden.tensors["in.x"])[0]
    return answers


def pool(golden: Golden) -> Answers:
    """A pooled residual: the norm before and the sum after are the block's."""
    built = build("cumulative_mean", golden.config["D"], 1).double()
    norm = nn.LayerNorm(golden.config["D"]).double()
    module = nn.ModuleDict({"norm": norm, "mixer": built})
    symbols = {symbol: tuple(f"mixer.{name}" for name in names) for symbol, names in POOL.items()}
    symbols |= {f"pool_norm.{part}": (f"norm.{name}",) for part, name in NORM.items()}
    load(module, symbols, golden.parameters)
    x = golden.leaf("x")
    y = x + built(norm(x))[0]
    y.backward(golden.tensors["in.cotangent"])
    return {"out.y": y, "grad.x": x.grad, **prefixed("grad.", collect(module, symbols, lambda p: p.grad))}


def local_mixture(golden: Golden) -> Answers:
    """Local attention, its gate, and the mixture of the two."""
    config, tensors = golden.config, golden.tensors
    window = LocalWindow(tensors["in.x"].shape[2], config["window"]).double()
    load(window, {"w": ("gate_proj.weight",), "b": ("gate_proj.bias",)},
         {"w": tensors["param.w_mix"][None], "b": tensors["param.b_mix"]})  # fmt: skip
    q, k, v, far = (rearrange(tensors[f"in.{name}"], "b h n d -> b n h d") for name in ("q", "k", "v", "gather"))
    local = offset_attention(q, k, v, offsets=window.distances)
    mix = window(local, far, tensors["in.x"])
    return {
        "out.local": rearrange(local, "b n h d -> b h n d"),
        "out.mix": rearrange(mix, "b n h d -> b h n d"),
        "out.gate": window.gate_proj(tensors["in.x"])[..., 0].sigmoid(),
    }


def language_model(config: dict[str, Any]) -> tuple[LongwaveForCausalLM, dict[str, tuple[str, ...]]]:
    """A whole model and its symbols."""
    modern, grid = config["condition"] == "M-v2", config["condition"] in GRID
    name, given = arguments(config)
    last = {"rotary_base": 10000.0 if modern else None, "bias": not modern, "gate_bias": 2.0}
    pooled, full = config.get("pool_every", 0), config.get("full_attn_layers", [])
    kinds, symbols = [], dict(MODEL)
    for i in range(config["layers"]):
        marked = bool(config.get("inject_every")) and i % config["inject_every"] == config["inject_every"] - 1
        kind = ["softmax"] if i in full else [f"{name}@inject"] if marked else [name]
        names = FULL if i in full else dwarf_grid.MIXER if grid else GATHER | (INJECTION if marked else {})
        block = {symbol: tuple(f"mixers.0.{part}" for part in parts) for symbol, parts in names.items()}
        norms = {"norm1": "mixers.0.norm" if marked else "mixer_norms.0", "norm2": "feed_forward_norm"}
        if marked:
            norms["pool_norm"] = "mixers.0.injection.norm"
        if pooled and i % pooled == pooled - 1 and i not in full:
            kind.append("cumulative_mean")
            block |= {symbol: tuple(f"mixers.1.{part}" for part in parts) for symbol, parts in POOL.items()}
            norms["pool_norm"] = "mixer_norms.1"
        block |= {f"{n}.{part}": (f"{where}.{p}",) for n, where in norms.items() for part, p in NORM.items()}
        block |= {f"ffn.{part}": (f"feed_forward.{p}",) for part, p in (SWIGLU if modern else GELU).items()}
        symbols |= {
            f"layers.{i}.{symbol}": tuple(f"blocks.{i}.{part}" for part in parts) for symbol, parts in block.items()
        }
        kinds.append(kind)
    used = {label for kind in kinds for label in kind}
    given_to = {name: given, f"{name}@inject": given | {"kv_inject": True}, "softmax": last}
    return LongwaveForCausalLM(
        LongwaveConfig(
            vocab_size=config["V"], hidden_size=config["D"], num_heads=config["H"], num_hidden_layers=config["layers"],
            intermediate_size=config["ffn"], mixer_types=kinds,
            mixer_kwargs={label: value for label, value in given_to.items() if label in used},
            positions="none" if modern or grid else "learned", max_position_embeddings=config["max_seq_len"] + 2,
            norm="rms_norm" if modern else "layer_norm", norm_eps=1e-6 if modern else 1e-5,
            feed_forward="swiglu" if modern else "gelu", scale_embedding=modern,
        )
    ).double(), symbols  # fmt: skip


def model(golden: Golden) -> Answers:
    """Logits, loss and every gradient of a whole model."""
    built, symbols = language_model(golden.config)
    load(built, symbols, golden.parameters)
    ids = golden.tensors["in.ids"]
    logits = built(ids[:, :-1], use_cache=False).logits
    loss = F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
    loss.backward()
    answers = {"out.logits": logits, "out.loss": loss[None]}
    return answers | prefixed("grad.", collect(built, symbols, lambda parameter: parameter.grad))


def train_steps(golden: Golden) -> Answers:
    """Three updates of two micro-batches each, every parameter decayed."""
    config = golden.config
    built, symbols = language_model(config)
    load(built, symbols, golden.parameters)
    optimizer = torch.optim.AdamW(
        built.parameters(), betas=tuple(config["betas"]), eps=config["eps"], weight_decay=config["weight_decay"]
    )
    losses, norms, rates = [], [], []
    for step, batches in enumerate(golden.tensors["in.data"]):
        optimizer.zero_grad()
        total = torch.zeros((), dtype=torch.float64)
        for ids in batches:
            logits = built(ids[:, :-1], use_cache=False).logits
            loss = F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten()) / len(batches)
            loss.backward()
            total += loss.detach()
        norms.append(nn.utils.clip_grad_norm_(built.parameters(), config["clip"]))
        rates.append(cosine_to_zero(step, config["lr"], config["steps"]))
        for group in optimizer.param_groups:
            group["lr"] = rates[-1]
        optimizer.step()
        losses.append(total)
    after = prefixed("out.after.", collect(built, symbols, lambda parameter: parameter))
    rates = torch.tensor(rates, dtype=torch.float64)
    return {"out.loss": torch.stack(losses), "out.grad_norm_before_clip": torch.stack(norms), "out.lr": rates, **after}


def schedules(golden: Golden) -> Answers:
    """Learning rates as meant, and as published, where the epochs of the warm-up were counted in micro-batches."""
    config = golden.config
    steps, base = range(config["steps"]), config["base_lr"]
    answers: Answers = {"out.cosine_to_zero": [cosine_to_zero(step, base, len(steps)) for step in steps]}
    epochs = {"as_run": config["microbatches_per_epoch"], "corrected": len(steps) // config["epochs"]}
    for name, epoch in epochs.items():
        shape = {"warmup_steps": epoch, "total_steps": config["epochs"] * epoch, "schedule": "cosine"}
        answers[f"out.warmup_cosine_{name}"] = [
            learning_rate(step + 1, base=base, minimum=config["min_lr"], **shape) for step in steps
        ]
    return {name: torch.tensor(values, dtype=torch.float64) for name, values in answers.items()}


def cosine_to_zero(step: int, base: float, total_steps: int) -> float:
    """The rate in force at step ``step``, counted from 0."""
    return learning_rate(step, base=base, minimum=0.0, warmup_steps=0, total_steps=total_steps, schedule="cosine")


def initial_values(golden: Golden) -> Answers:
    """Values that modules begin with."""
    config = golden.config
    heads = config["H"]

    def begun(condition: str, layer: int = 0, layers: int = 1) -> Any:
        given: dict[str, Any] = {"condition": condition}
        if condition in ("K", "LRP"):
            given["offsets"] = Lattice(config["J"], rg_init=condition == "K", distinct=condition == "LRP")
        mixer = build("dwarf", 4 * heads, heads, given, layer_index=layer, num_layers=layers)
        mixer.double().reset_parameters()
        return mixer

    def bias(condition: str) -> Tensor:
        return begun(condition).score_bias.detach()

    def prior(layer: int, layers: int) -> Tensor:
        return begun("K", layer, layers).gains.prior.detach()[:, 0]

    return {
        "out.alibi_N": bias("N"),
        "out.alibi_P": bias("P"),
        "out.alibi_M2": bias("M2"),
        "out.d4_warmstart": bias("LRP")[:, 0],
        "out.d4_warmstart_offsets": torch.tensor(begun("LRP").distances),
        "out.tap_offsets_44": torch.tensor(lattice(config["J"]).distances),
        "out.rg_scale_prior": torch.stack([prior(layer, config["layers"]) for layer in range(config["layers"])]),
        "out.rg_scale_prior_single_layer": prior(0, 1),
        **dwarf_grid.initial_values(golden),
        **dwarf_verification.rg_schedules(golden),
    }


def _answers(
    golden: Golden, built: TokenMixer, symbols: dict[str, tuple[str, ...]], leaves: dict[str, Tensor] | None = None
) -> Answers:
    """The output of a mixer with a file's parameters, and all gradients."""
    built = built.double()
    load(built, symbols, golden.parameters)
    rows = golden.tensors.get("in.rows")
    x = golden.leaf("x").detach().double().requires_grad_()
    y = built(x)[0]
    if rows is not None:
        return {"out.y": y[:, rows]}
    y.backward(golden.tensors["in.cotangent"])
    inputs = {"x": x, **(leaves or {})}
    answers = {"out.y": y, **prefixed("grad.", {name: leaf.grad for name, leaf in inputs.items()})}
    return answers | prefixed("grad.", collect(built, symbols, lambda parameter: parameter.grad))


EXACT = {"tolerance": 1e-10, "gradient_tolerance": 1e-10}
KINDS = {
    **dwarf_evaluation.KINDS,
    **dwarf_verification.KINDS,
    **dwarf_wave_field.KINDS,
    "cumulative_mean": Kind([pool], **EXACT),
    "init_values": Kind([initial_values], **EXACT),
    "local_mixture": Kind([local_mixture], OPS, **EXACT),
    "mixer": Kind([mixer, mixer_in_pieces], OPS, **EXACT),
    "model": Kind([model], OPS, **EXACT),
    "schedules": Kind([schedules], **EXACT),
    "train_steps": Kind([train_steps], OPS, **EXACT),
}
