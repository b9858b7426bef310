"""One input for every op that has a choice of forms: what `benchmark ops` times and `warm_up` compiles."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor
from torch.nn.functional import normalize

from longwave import ops


class Shape(NamedTuple):
    """B, N, H, d."""

    batch_size: int
    num_tokens: int
    num_heads: int
    head_dim: int


class Example(NamedTuple):
    """An op, its tensors for a shape (from a source of normal ones), and its arguments unless others are given."""

    function: Callable[..., Any]
    tensors: Callable[[Shape, Callable[..., Tensor]], dict[str, Tensor]]
    arguments: dict[str, Any]


LEVELS = 4
TAPS = 4


def _attention(shape: Shape, randn: Callable[..., Tensor]) -> dict[str, Tensor]:
    return {name: randn(*shape) for name in "qkv"}


def _linear_attention(shape: Shape, randn: Callable[..., Tensor]) -> dict[str, Tensor]:
    b, n, h, d = shape
    q, k = ops.elu_plus_one(randn(*shape)), ops.elu_plus_one(randn(b, n, 1, h, d))
    return {"q": q, "k": k, "v": randn(b, n, 1, h, d)}


def _dyadic(shape: Shape, randn: Callable[..., Tensor]) -> dict[str, Tensor]:
    d = shape.head_dim
    maps = {name: randn(LEVELS, d, d) / d**0.5 for name in ("key_maps", "value_maps")}
    return {**_attention(shape, randn), **maps, "weights": randn(LEVELS).softmax(dim=0)}


def _convolution(shape: Shape, randn: Callable[..., Tensor]) -> dict[str, Tensor]:
    channels = shape.num_heads * shape.head_dim
    return {"x": randn(shape.batch_size, shape.num_tokens, channels), "weight": randn(TAPS, channels)}


def _delta_rule(shape: Shape, randn: Callable[..., Tensor]) -> dict[str, Tensor]:
    tensors = _attention(shape, randn)
    gates = {name: randn(*shape[:3]).sigmoid() for name in ("beta", "decay")}
    return {**tensors, "k": normalize(tensors["k"], dim=-1), "beta": gates["beta"], "log_decay": gates["decay"].log()}


EXAMPLES = {
    "block_means": Example(ops.block_means, lambda shape, randn: {"x": randn(*shape)}, {"num_levels": LEVELS}),
    "causal_convolution": Example(ops.causal_convolution, _convolution, {}),
    "dyadic_linear_attention": Example(ops.dyadic_linear_attention, _dyadic, {}),
    "gated_delta_rule": Example(ops.gated_delta_rule, _delta_rule, {}),
    "linear_attention": Example(ops.linear_attention, _linear_attention, {}),
    "offset_attention": Example(ops.offset_attention, _attention, {"window": 64}),
}
