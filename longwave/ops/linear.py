"""x Wᵀ + b by the faster of the two matrix libraries inside PyTorch, and the loss of such logits.

PyTorch multiplies float32 matrices with MKL, which keeps its AVX-512 kernels for Intel's processors; oneDNN,
which PyTorch takes for bfloat16, has them for all. On an AMD EPYC (Zen 5) it is 2.2 times as fast.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.library import custom_op
from torch.nn import LinearCrossEntropyOptions

#: Rows from which oneDNN was measured to be faster.
PAYS_FROM = 64
#: Rows whose logits are held at once.
LOSS_ROWS = 512


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``x @ weight.T + bias``.

    Args:
        x: `[..., K]`.
        weight: `[M, K]`.
        bias: `[M]`.

    Returns:
        `[..., M]`.
    """
    rows = x.numel() // max(x.shape[-1], 1)
    if torch.is_autocast_enabled(x.device.type) or not _onednn_pays(x, weight, rows):
        return F.linear(x, weight, bias)
    return _product(x.reshape(rows, -1), weight, bias).view(*x.shape[:-1], -1)


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Sum of the cross-entropies of ``labels`` `[N]` int64 (-100 ignored), a scalar in float32 or wider.

    Args:
        logits: `[N, V]`.
    """
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return F.cross_entropy(wide, labels, reduction="sum")


def linear_cross_entropy(x: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    """:func:`cross_entropy` of the logits ``x @ weight.T``.

    PyTorch's function of this name takes ``LOSS_ROWS`` rows at a time and computes their gradients with their loss, so
    the logits of all rows are never held together. Logits `[N, V]` are held in two cases: where oneDNN is the faster
    library, since that function multiplies with MKL, and in float16, bfloat16 or autocast, since it returns the sum in
    the dtype of ``x``.

    Args:
        x: `[N, K]`.
        weight: `[V, K]`.
        labels: `[N]` int64.

    Returns:
        a scalar.
    """
    narrow = x.dtype not in (torch.float32, torch.float64) or torch.is_autocast_enabled(x.device.type)
    if narrow or not len(x) or _onednn_pays(x, weight, len(x)):
        return cross_entropy(linear(x, weight), labels)
    options = LinearCrossEntropyOptions(batch_chunk_size=LOSS_ROWS)
    return F.linear_cross_entropy(x, weight, labels, reduction="sum", options=options)


def product(a: Tensor, b: Tensor) -> Tensor:
    """``a @ b.T`` of two matrices, without gradients."""
    return _by_onednn(a, b) if _onednn_pays(a, b, len(a)) else a @ b.t()


def _onednn_pays(x: Tensor, weight: Tensor, rows: int) -> bool:
    if x.dtype != torch.float32 or x.device.type != "cpu" or rows < PAYS_FROM:
        return False
    return x.numel() > 0 and weight.numel() > 0 and _mkl_is_slow()  # oneDNN refuses what is empty


def _by_onednn(a: Tensor, b: Tensor, bias: Tensor | None = None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(_plain(a), _plain(b), bias, "none", [], "")


def _plain(matrix: Tensor) -> Tensor:
    """``matrix`` with rows or columns in one piece: for other strides oneDNN is thousands of times slower."""
    return matrix if matrix.is_contiguous() or matrix.t().is_contiguous() else matrix.contiguous()


@custom_op("longwave::linear_onednn", mutates_args=())
def _product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return _by_onednn(x, weight, bias)


@_product.register_fake
def _(x, weight, bias):
    return x.new_empty(x.shape[0], weight.shape[0])


def _save(ctx, inputs, output):
    ctx.save_for_backward(*inputs[:2])


def _differentiate(ctx, grad):
    x, weight = ctx.saved_tensors
    for_x, for_weight, for_bias = ctx.needs_input_grad
    return (
        _product(grad, weight.t(), None) if for_x else None,
        _product(grad.t(), x.t(), None) if for_weight else None,
        grad.sum(dim=0) if for_bias else None,
    )


_product.register_autograd(_differentiate, setup_context=_save)


@cache
def _mkl_is_slow() -> bool:
    """PyTorch has both libraries, and the processor has AVX-512 but is not Intel's."""
    if not (torch.backends.mkl.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")):
        return False
    try:
        processor = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return False
    return "AuthenticAMD" in processor and torch.backends.cpu.get_cpu_capability() == "AVX512"
