"""The linear layer: whichever library multiplies, the function is PyTorch's."""

from __future__ import annotations

import sys

import pytest
import torch
import torch.nn.functional as F

from longwave.modules import Linear
from longwave.ops import linear
from tests.ops.compare import assert_close, with_gradients

module = sys.modules["longwave.ops.linear"]


@pytest.fixture
def onednn(monkeypatch):
    """oneDNN multiplies, whatever the processor."""
    if not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        pytest.skip("this PyTorch lacks oneDNN")
    monkeypatch.setattr(module, "_mkl_is_slow", lambda: True)


@pytest.mark.usefixtures("onednn")
@pytest.mark.parametrize("shape", [(65, 8), (3, 40, 8), (2, 8), (0, 8)], ids=str)
@pytest.mark.parametrize("bias", [False, True])
def test_values_and_gradients_are_those_of_pytorch(shape, bias):
    inputs = {"x": torch.randn(shape), "weight": torch.randn(5, 8)} | ({"bias": torch.randn(5)} if bias else {})
    found = with_gradients(lambda given: {"out": linear(**given)}, inputs)
    assert_close(found, with_gradients(lambda given: {"out": F.linear(*given.values())}, inputs), relative=1e-6)


@pytest.mark.usefixtures("onednn")
def test_strided_operands_are_copied_first():
    wide, weight = torch.randn(100, 20), torch.randn(5, 20)
    found = linear(wide[:, ::2], weight[:, ::2])
    torch.testing.assert_close(found, F.linear(wide[:, ::2], weight[:, ::2]))


@pytest.mark.usefixtures("onednn")
def test_a_gradient_of_stride_zero_is_taken():
    layer, x = Linear(8, 5), torch.randn(70, 8, requires_grad=True)
    layer(x).sum().backward()
    torch.testing.assert_close(x.grad, layer.weight.detach().sum(dim=0).expand(70, 8))


@pytest.mark.usefixtures("onednn")
def test_a_layer_compiles_whole():
    layer, x = Linear(8, 5), torch.randn(70, 8)
    torch.testing.assert_close(torch.compile(layer, fullgraph=True, backend="aot_eager")(x), layer(x))


def test_float64_and_autocast_are_left_to_pytorch(monkeypatch):
    monkeypatch.setattr(module, "_mkl_is_slow", lambda: True)
    monkeypatch.setattr(module, "_product", lambda *_: pytest.fail("taken"))
    linear(torch.randn(70, 8).double(), torch.randn(5, 8).double())
    with torch.autocast("cpu", torch.bfloat16):
        assert linear(torch.randn(70, 8), torch.randn(5, 8)).dtype == torch.bfloat16
