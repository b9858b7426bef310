"""Golden files of DWARF's wave fields: a file's component and taps to ops."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import Tensor

from longwave.ops.fields import D4, UNIT_TAPS
from longwave.ops.wave_field import (
    FieldState,
    cascade_field,
    delta_field,
    fir_field,
    pyramid_field,
)
from tests.golden.core import Answers, Golden, Kind

TAPS = {"raw": D4, "normalised": UNIT_TAPS}


def whole(golden: Golden) -> Answers:
    """All rows at once."""
    return answers(golden, golden.config["N"])


def in_pieces(golden: Golden) -> Answers:
    """Pieces of nine rows, the state carried."""
    return answers(golden, 9)


def by_rows(golden: Golden) -> Answers:
    """One row after the other."""
    return answers(golden, 1)


def answers(golden: Golden, size: int) -> Answers:
    """What the file asks, computed in pieces of ``size`` rows."""
    leaves = {name: golden.leaf(name) for name in "qkv"}
    op, weights, options = field(golden)
    q, k, v = (rearrange(leaf, "b h n d -> b n h d") for leaf in leaves.values())
    o, state = run(op, [q, k, v, weights], size, options)
    o = rearrange(o, "b n h d -> b h n d")
    o.backward(golden.tensors["in.cotangent"])
    found = {"out.o": o, **{f"grad.{name}": leaf.grad for name, leaf in leaves.items()}}
    if op is delta_field:
        found["out.F_final"] = state.memory
    if "out.kernel" in golden.tensors:
        found["out.kernel"] = kernels(*golden.tensors["out.kernel"].shape, size)
    for name in golden.group("out.level"):
        found[f"out.level{name}"] = items(k.detach(), v.detach(), int(name), weights.shape[3], size)
    return found


def field(golden: Golden) -> tuple[Callable, Tensor, dict]:
    """The op, its fourth argument and its options."""
    component, given = golden.config["component"], golden.tensors
    if "delta" in component:
        return delta_field, given["in.beta_logit"].sigmoid(), {"taps": TAPS[golden.config["taps"]]}
    gains = rearrange(given["in.gains"], "b h n l -> b n h l")
    if "finite" in component:
        return fir_field, gains, {"taps": golden.config["taps"], "bypass": F.softplus(given["in.bypass"])}
    return (pyramid_field if "pyramid" in component else cascade_field), gains, {}


def kernels(levels: int, longest: int, size: int) -> Tensor:
    """What the cascade makes of an impulse, one head for each level."""
    impulse = torch.zeros(1, longest, levels, 1, dtype=torch.float64)
    impulse[:, 0] = 1
    gains = repeat(torch.eye(levels, dtype=torch.float64), "h l -> 1 n h l", n=longest)
    o, _ = run(cascade_field, [torch.ones_like(impulse), impulse, impulse, gains], size, {})
    return rearrange(o, "1 n h 1 -> h n")


def items(k: Tensor, v: Tensor, level: int, levels: int, size: int) -> Tensor:
    """Items of one level of a pyramid, read by the unit vectors."""
    q = repeat(torch.eye(k.shape[3], dtype=k.dtype), "i d -> (b i) n h d", b=len(k), n=k.shape[1], h=k.shape[2])
    k, v = (repeat(x, "b n h d -> (b i) n h d", i=x.shape[3]) for x in (k, v))
    gains = torch.zeros(*k.shape[:3], levels, dtype=k.dtype)
    gains[..., level] = 1
    o, _ = run(pyramid_field, [q, k, v, gains], size, {})
    return rearrange(o[:, :: 2**level], "(b i) m h e -> b h m i e", i=k.shape[3])


def run(op: Callable, inputs: list[Tensor], size: int, options: dict) -> tuple[Tensor, FieldState]:
    """An op in pieces; what is not `[B, N, ...]` is the same for all."""
    state, outs = None, []
    for begin in range(0, inputs[0].shape[1], size):
        piece = [x[:, begin : begin + size] if x.dim() > 1 else x for x in inputs]
        out, state = op(*piece, **options, initial_state=state, return_state=True)
        outs.append(out)
    return torch.cat(outs, dim=1), state


OPS = ("cascade_field", "delta_field", "offset_attention", "pyramid_field")
KINDS = {
    "wave_field": Kind([whole, in_pieces, by_rows], OPS, tolerance=1e-10, gradient_tolerance=1e-10),
}
