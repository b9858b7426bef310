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
    """An op, its tensors for a shape (from a source of normal ones), and its arguments unless others are given.

    ``other_kernels`` are arguments that take other fast forms than those do.
    """

    function: Callable[..., Any]
    tensors: Callable[[Shape, Callable[..., Tensor]], dict[str, Tensor]]
    arguments: dict[str, Any]
    other_kernels: tuple[dict[str, Any], ...] = ()


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


def _field(shape: Shape, randn: Callable[..., Tensor]) -> dict[str, Tensor]:
    return {**_attention(shape, randn), "gains": randn(*shape[:3], LEVELS).softmax(dim=-1)}


def _fir(shape: Shape, randn: Callable[..., Tensor]) -> dict[str, Tensor]:
    return {**_field(shape, randn), "bypass": randn(shape.num_heads)}


def _delta_field(shape: Shape, randn: Callable[..., Tensor]) -> dict[str, Tensor]:
    return {**_attention(shape, randn), "beta": randn(shape.num_heads).sigmoid()}


def _filter(shape: Shape, randn: Callable[..., Tensor]) -> dict[str, Tensor]:
    return {"u": randn(*shape), "taps": randn(shape.num_heads, TAPS)}


def _wave(shape: Shape, randn: Callable[..., Tensor]) -> dict[str, Tensor]:
    return {"u": randn(*shape), "pole": randn(2, shape.num_heads).exp(), "read": randn(2, shape.num_heads)}


EXAMPLES = {
    "block_means": Example(ops.block_means, lambda shape, randn: {"x": randn(*shape)}, {"num_levels": LEVELS}),
    "cascade_field": Example(ops.cascade_field, _field, {}),
    "causal_convolution": Example(ops.causal_convolution, _convolution, {}),
    "causal_filter": Example(ops.causal_filter, _filter, {}),
    "damped_wave": Example(ops.damped_wave, _wave, {}),
    "delta_field": Example(ops.delta_field, _delta_field, {}),
    "dyadic_linear_attention": Example(ops.dyadic_linear_attention, _dyadic, {}),
    "fir_field": Example(ops.fir_field, _fir, {}),
    "gated_delta_rule": Example(ops.gated_delta_rule, _delta_rule, {}),
    "linear_attention": Example(ops.linear_attention, _linear_attention, {}),
    "offset_attention": Example(ops.offset_attention, _attention, {"window": 64}, ({"offsets": (96,)},)),
    "pyramid_field": Example(ops.pyramid_field, _field, {}),
    "running_mean": Example(ops.running_mean, lambda shape, randn: {"x": randn(*shape).flatten(2)}, {}),
}
