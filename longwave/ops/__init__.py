"""Numerical functions on tensors; each has a naive twin that is its only authority."""

from longwave.ops._dispatch import BackendUnavailable, available_backends, describe_backends, use_backend
from longwave.ops.block_means import BlockSums, block_means
from longwave.ops.causal_convolution import causal_convolution
from longwave.ops.documents import Ring, document_positions, empty_ring
from longwave.ops.dyadic_linear_attention import DyadicState, dyadic_linear_attention
from longwave.ops.features import elu_plus_one
from longwave.ops.gated_delta_rule import gated_delta_rule
from longwave.ops.linear import linear
from longwave.ops.linear_attention import linear_attention
from longwave.ops.offset_attention import offset_attention

__all__ = [
    "BackendUnavailable",
    "BlockSums",
    "DyadicState",
    "Ring",
    "available_backends",
    "block_means",
    "causal_convolution",
    "describe_backends",
    "document_positions",
    "dyadic_linear_attention",
    "elu_plus_one",
    "empty_ring",
    "gated_delta_rule",
    "linear",
    "linear_attention",
    "offset_attention",
    "use_backend",
]
