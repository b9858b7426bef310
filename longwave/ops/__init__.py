"""Numerical functions on tensors; each has a naive twin that is its only authority."""

from longwave.ops._dispatch import (
    BackendUnavailable,
    available_backends,
    describe_backends,
    preferred_backend,
    use_backend,
)
from longwave.ops._precision import without_autocast
from longwave.ops.block_means import BlockSums, block_means
from longwave.ops.causal_convolution import causal_convolution
from longwave.ops.documents import Ring, document_positions, empty_ring
from longwave.ops.dyadic_linear_attention import DyadicState, dyadic_linear_attention
from longwave.ops.features import elu_plus_one
from longwave.ops.fields import D4, FieldState, empty_field, field_shapes
from longwave.ops.gated_delta_rule import gated_delta_rule
from longwave.ops.grid_field import causal_filter, damped_wave
from longwave.ops.linear import cross_entropy, linear, linear_cross_entropy
from longwave.ops.linear_attention import linear_attention
from longwave.ops.offset_attention import offset_attention, offset_attention_step
from longwave.ops.running_mean import mean_flops, running_mean
from longwave.ops.wave_field import cascade_field, delta_field, fir_field, pyramid_field

__all__ = [
    "D4",
    "BackendUnavailable",
    "BlockSums",
    "DyadicState",
    "FieldState",
    "Ring",
    "available_backends",
    "block_means",
    "cascade_field",
    "causal_convolution",
    "causal_filter",
    "cross_entropy",
    "damped_wave",
    "delta_field",
    "describe_backends",
    "document_positions",
    "dyadic_linear_attention",
    "elu_plus_one",
    "empty_field",
    "empty_ring",
    "field_shapes",
    "fir_field",
    "gated_delta_rule",
    "linear",
    "linear_attention",
    "linear_cross_entropy",
    "mean_flops",
    "offset_attention",
    "offset_attention_step",
    "preferred_backend",
    "pyramid_field",
    "running_mean",
    "use_backend",
    "without_autocast",
]
