"""The linear layer: whichever library multiplies, the function is PyTorch's."""

from __future__ import annotations

import sys

import pytest
import torch
import torch.nn.functional as F

from longwave.benchmarks.memory import peak_bytes
from longwave.modules import Linear
from longwave.ops import linear, linear_cross_entropy
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


class TestLoss:
    """The loss of logits that are not held is that of logits that are."""

    @pytest.fixture(params=["PyTorch's library", "oneDNN"])
    def library(self, request):
        if request.param == "oneDNN":
            request.getfixturevalue("onednn")

    @pytest.mark.usefixtures("library")
    @pytest.mark.parametrize(
        ("dtype", "relative"), [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 3e-2)]
    )
    @pytest.mark.parametrize("rows", [1, 63, 512, 1100])
    def test_values_and_gradients(self, rows, dtype, relative):
        labels = torch.randint(0, 37, (rows,))
        labels[1::7] = -100
        narrow = [torch.randn(rows, 16).to(dtype).requires_grad_(), torch.randn(37, 16).to(dtype).requires_grad_()]
        exact = [tensor.detach().double().requires_grad_() for tensor in narrow]
        found = linear_cross_entropy(*narrow, labels)
        expected = F.cross_entropy(F.linear(*exact), labels, reduction="sum")
        assert found.dtype == torch.promote_types(dtype, torch.float32)
        names = ("loss", "x", "weight")
        found = (found, *torch.autograd.grad(found, narrow))
        expected = (expected, *torch.autograd.grad(expected, exact))
        found, expected = ({n: t.double() for n, t in zip(names, part, strict=True)} for part in (found, expected))
        assert_close(found, expected, relative=relative)

    @pytest.mark.usefixtures("library")
    def test_autocast_multiplies_in_its_own_precision_and_sums_in_float32(self):
        inputs = {"x": torch.randn(600, 16), "weight": torch.randn(37, 16)}
        labels = torch.randint(0, 37, (600,))
        exact = {name: tensor.bfloat16().double() for name, tensor in inputs.items()}
        expected = F.cross_entropy(F.linear(*exact.values()), labels, reduction="sum")
        with torch.autocast("cpu", torch.bfloat16):
            found = linear_cross_entropy(**inputs, labels=labels)
        assert found.dtype == torch.float32
        torch.testing.assert_close(found.double(), expected, rtol=3e-4, atol=0)

    def test_the_logits_of_all_rows_are_never_held(self):
        if module._mkl_is_slow():
            pytest.skip("oneDNN is the faster library here, and it holds them")
        x, weight = torch.randn(4096, 16, requires_grad=True), torch.randn(512, 16, requires_grad=True)
        labels = torch.randint(0, 512, (4096,))
        held = peak_bytes(lambda: linear_cross_entropy(x, weight, labels).backward())
        assert held < 4096 * 512 * 4 / 2
