"""Properties a to g: what the README claims of the mixers themselves, and nobody tested. Corrected forms, float64."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from longwave.mixers.base import TokenMixer, collecting
from longwave.verification.dwarf.properties import Finding, Group, normals
from longwave.verification.dwarf.waves import EXACT_D4, delayed
from longwave.verification.measure import Worst, moved, relative
from longwave.verification.reachability import reachability
from longwave.verification.subjects import ModelSubject, mixer_subject

#: Every condition by the mixer that it is one of.
MIXERS = {"dwarf": ("J", "K", "L", "LRP", "N", "P", "U"), "dwarf_field": ("G", "H", "I"), "dwarf_grid": tuple("ABCD")}
#: Conditions whose every third layer adds a mean of the past.
POOLED = ("G", "H", "I", "J", "LRP", "N", "P", "M")
DISTINCT = {"J": 24, "K": 24, "L": 24, "LRP": 24, "N": 44, "P": 74, "U": 44}
#: Distances of 0..2046 that are reached in one to six layers.
REACHED = {
    "K": [22, 184, 744, 1584, 2016, 2047],
    "N": [44, 424, 1440, 2047, 2047, 2047],
    "P": [74, 664, 1800, 2047, 2047, 2047],
}
WIDTH, HEADS = 8, 2

GROUP = Group("The mixers themselves")


@GROUP.property("a", "each distance is read, and no other", part="added")
def coverage() -> Finding:
    """Moving the row at distance δ moves the output exactly for the distances listed: 24, 44 or 74 of them."""
    counts, exact = {}, True
    for condition, expected in DISTINCT.items():
        mixer: Any = _mixer("dwarf", condition)
        x = _rows(max(mixer.distances) + 8).requires_grad_()
        y, _ = mixer(x)
        (gradient,) = torch.autograd.grad((y[0, -1] * normals(1)(WIDTH)).sum(), x)
        read = {x.shape[1] - 1 - row for row in gradient[0].any(dim=1).nonzero().flatten().tolist()}
        counts[condition] = len(read)
        exact = exact and len(read) == expected and read == set(mixer.distances)
    return Finding(exact, counts)


@GROUP.property("b", "outputs do not depend on the length", part="added")
@torch.no_grad()
def prefixes() -> Finding:
    """f(x[:n]) = f(x)[:n] within 1e-12 of the largest output: n = 1, N, and δ and δ + 1 for every distance δ."""
    worst = {name: Worst() for name in MIXERS}
    for name, condition, mixer in _mixers():
        x = _rows(_length(mixer))
        whole, _ = mixer(x)
        for n in sorted({1, x.shape[1]} | {d + more for d in _distances(mixer) for more in (0, 1) if d}):
            y, _ = mixer(x[:, :n])
            worst[name].see(relative(y, whole[:, :n]), f"{condition}, {n}")
    return _below(1e-12, worst)


@GROUP.property("c", "decoding computes what training does", part="added")
@torch.no_grad()
def decoding() -> Finding:
    """Token by token, from nothing and after a prompt beyond the farthest distance: 1e-10 of the parallel outputs."""
    worst = {name: Worst() for name in MIXERS}
    for name, condition, mixer in _mixers():
        x = _rows(_length(mixer) + 40)
        whole, _ = mixer(x)
        for begin in (0, x.shape[1] - 40):
            state = mixer.init_state(1)
            if begin:
                _, state = mixer(x[:, :begin], return_state=True)
            rows = []
            for row in x[:, begin : begin + 40].unbind(dim=1):
                y, state = mixer(row, state)
                rows.append(y)
            worst[name].see(relative(torch.stack(rows, dim=1), whole[:, begin : begin + 40]), f"{condition}, {begin}")
    return _below(1e-10, worst)


@GROUP.property("d", "whole models are causal", part="added")
@torch.no_grad()
def causality() -> Finding:
    """Three layers of each condition, pooled where published, M with its attention: a new suffix moves nothing."""
    worst = {name: Worst() for name in MIXERS}
    for name, conditions in MIXERS.items():
        for condition in (*conditions, "M") if name == "dwarf" else conditions:
            subject = ModelSubject(condition, _model(name, condition))
            x, other = subject.sample(1, 131), subject.sample(1, 131, seed=1)
            base, _ = subject.run(x)
            for cut in (1, 64, 130):
                y, _ = subject.run(torch.cat([x[:, :cut], other[:, cut:]], dim=1))
                worst[name].see(moved(y[:, :cut], base[:, :cut]), f"{condition}, {cut}")
    return _below(0.0, worst)


@GROUP.property("e", "J is a K⊗V field, K is none", part="added")
@torch.no_grad()
def field_identity() -> Finding:
    """J reads F_n = b k vᵀ + Σ g h k vᵀ within 1e-12; (k, v) to (-k, -v) leaves J as it is, and moves K."""
    x, scales = _rows(64), 4
    lattice = {"offsets": {"n_scales": scales}}
    j: Any = _mixer("dwarf", "J", lattice)
    q, k, v = (part.unflatten(2, (HEADS, -1))[0] for part in j.qkv_proj(x).chunk(3, dim=2))
    deposits = torch.einsum("nhk,nhv->nhkv", k, v)
    gains = (j.gains.prior.T + q @ j.gains.weight.T).softmax(dim=-1)[..., None, None]
    field = F.softplus(j.bypass)[:, None, None] * deposits
    for scale in range(scales):
        for tap, coefficient in enumerate(EXACT_D4):
            field = field + coefficient * gains[:, :, scale] * delayed(deposits, tap << scale)
    error = relative(torch.einsum("nhk,nhkv->nhv", q, field), _heads(j, x)[0])
    changed = {condition: _negated(_mixer("dwarf", condition, lattice), x) for condition in ("J", "K")}
    holds = error < 1e-12 and changed["J"] == 0 and changed["K"] > 1e-3
    return Finding(holds, {"J to field": error, "J moved": changed["J"], "K moved": changed["K"]})


@GROUP.property("f", "averages return a constant value", part="added")
@torch.no_grad()
def constant_value() -> Finding:
    """All values equal: softmax returns them within 1e-12, K with |taps| within the 1e-6 of its normaliser.

    What K with signed taps returns of them is reported.
    """
    cases = {name: (name, {}) for name in ("L", "LRP", "N", "P")}
    cases |= {"K abs": ("K", {"offsets": {"tap_sign": "abs"}}), "K signed": ("K", {})}
    found = {}
    for name, (condition, arguments) in cases.items():
        mixer: Any = _mixer("dwarf", condition, arguments)
        mixer.qkv_proj.weight[2 * WIDTH :] = 0.0
        value = mixer.qkv_proj.bias[2 * WIDTH :].fill_(1.0).view(HEADS, -1)
        out = _heads(mixer, 0.1 * _rows(_length(mixer)))
        found[name] = float(out.mean()) if name == "K signed" else moved(out, value.expand_as(out))
    softmax = max(found[name] for name in ("L", "LRP", "N", "P"))
    return Finding(
        softmax < 1e-12 and found["K abs"] < 1e-5,
        {"softmax": softmax, "K abs": found["K abs"], "K signed returns": found["K signed"]},
    )


@GROUP.property("g", "layers reach what the table says", part="added")
def reach() -> Finding:
    """Distances 0..2046 reached in one to six layers are those of the table; N reaches all in four, not never."""
    found = {}
    for condition in REACHED:
        mixer: Any = _mixer("dwarf", condition)
        found[condition] = reachability(mixer.distances, 6, 2047).tolist()
    layers = {f"{condition} layers": counts.index(2047) + 1 for condition, counts in found.items() if 2047 in counts}
    return Finding(found == REACHED, layers)


def _mixer(name: str, condition: str, arguments: dict | None = None) -> TokenMixer:
    given = {"condition": condition, **(arguments or {})}
    return mixer_subject(name, given, hidden_size=WIDTH, num_heads=HEADS).mixer.eval()


def _mixers() -> Iterator[tuple[str, str, TokenMixer]]:
    """Every condition: the mixer's name, the condition, the mixer."""
    for name, conditions in MIXERS.items():
        yield from ((name, condition, _mixer(name, condition)) for condition in conditions)


def _model(name: str, condition: str):
    from longwave.model import LongwaveConfig, LongwaveForCausalLM  # transformers takes seconds to import

    layers: list = [name] * 3
    if condition == "M":
        layers[1] = "softmax"
    if condition in POOLED:
        layers[2] = [name, "cumulative_mean"]
    arguments = {name: {"condition": condition}, "softmax": {"rotary_base": None, "gate_bias": 2.0}}
    config = LongwaveConfig(
        vocab_size=31,
        hidden_size=WIDTH,
        num_hidden_layers=3,
        num_heads=HEADS,
        mixer_types=layers,
        mixer_kwargs={label: given for label, given in arguments.items() if label in layers},
    )
    return LongwaveForCausalLM(config).eval()


def _rows(count: int) -> Tensor:
    return normals(0)(1, count, WIDTH)


def _distances(mixer: Any) -> tuple[int, ...]:
    """What the mixer reads; of a grid, lengths around its kernel's end."""
    return tuple(sorted(set(getattr(mixer, "distances", (1, 2, 63, 64, 1000, 2047, 2048)))))


def _length(mixer: TokenMixer) -> int:
    return max(_distances(mixer)) + 2


def _heads(mixer: TokenMixer, x: Tensor) -> Tensor:
    """What the heads read, before gate and projection: `[B, N, H, d]`."""
    with collecting() as observed:
        mixer(x)
    return observed["dwarf.heads"][0]


def _negated(mixer: Any, x: Tensor) -> float:
    """How far the heads move when all keys and values change sign."""
    before = _heads(mixer, x)
    for parameter in (mixer.qkv_proj.weight, mixer.qkv_proj.bias):
        parameter[WIDTH:] *= -1
    return moved(_heads(mixer, x), before)


def _below(limit: float, worst: dict[str, Worst]) -> Finding:
    return Finding(all(seen.value <= limit for seen in worst.values()), {name: w.value for name, w in worst.items()})
