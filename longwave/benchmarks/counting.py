"""Arithmetic of a pass, counted on the torch form of every op."""

from __future__ import annotations

from typing import Any

import torch
from torch import Size
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count, shape_wrapper

from longwave.benchmarks.passes import Pass
from longwave.ops import use_backend


def count_flops(run: Pass) -> int:
    """Floating-point operations of the contractions of one pass (2 a multiply-add), forward and backward as it is.

    What the torch form of an op multiplies in vain (the masked half of a block) counts; the half that causal
    attention leaves out does not.
    """
    with use_backend("torch"), _Counter() as counter:
        run()
    return counter.total


class _Counter(TorchDispatchMode):
    """PyTorch's own ``FlopCounterMode`` tracks modules too, which ``torch.autograd.grad`` does not go with."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None) -> Any:
        kwargs = kwargs or {}
        out = function(*args, **kwargs)
        formula = _FORMULAS.get(function.overloadpacket)
        if formula is not None:
            self.total += formula(*args, **kwargs, out_val=out)
        return out


def _linear(x: Size, weight: Size, *rest, **options) -> int:
    return 2 * x[0] * weight[0] * weight[1]


def _attention(q: Size, k: Size, v: Size, dropout: float = 0.0, causal: bool = False, **options) -> int:
    return _visible(q, k, causal) * sdpa_flop_count(q, k, v) // (q[-2] * k[-2])


def _attention_backward(grad: Size, q: Size, k: Size, v: Size, out: Size, sums: Size, *rest, **options) -> int:
    return _visible(q, k, rest[1]) * sdpa_backward_flop_count(grad, q, k, v) // (q[-2] * k[-2])


def _triangular(matrix: Size, right: Size, *rest, **options) -> int:
    return matrix[-1] * right.numel()


def _multiply_add(*arguments, out_shape: Size, **options) -> int:
    return 2 * out_shape.numel()


def _visible(q: Size, k: Size, causal: bool) -> int:
    """Pairs of a query and a key that it reads."""
    return q[-2] * (q[-2] + 1) // 2 if causal else q[-2] * k[-2]


#: PyTorch's table and what it lacks: its CPU attention, triangular systems, and products by oneDNN, ours and its own.
_FORMULAS = {
    **flop_registry,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: shape_wrapper(_attention),
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: shape_wrapper(_attention_backward),
    torch.ops.aten.addcmul: shape_wrapper(_multiply_add),
    torch.ops.aten.linalg_solve_triangular: shape_wrapper(_triangular),
    torch.ops.longwave.linear_onednn: shape_wrapper(_linear),
    torch.ops.mkldnn._linear_pointwise: shape_wrapper(_linear),
}
