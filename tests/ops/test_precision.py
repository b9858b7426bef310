"""Every op computes in float32 or wider, whatever it is given and whatever autocast wants."""

from __future__ import annotations

import inspect
from functools import partial

import pytest
import torch
from torch import Tensor

from longwave import ops
from longwave.benchmarks.examples import EXAMPLES, Shape
from longwave.ops import available_backends
from longwave.ops.numba._adapter import kernel

#: Batch 2, and rows enough for every fast form to have several chunks.
SHAPE = Shape(2, 150, 2, 8)
NARROW = (torch.bfloat16, torch.float16)
OTHERS = {
    "offset_attention field": (
        ops.offset_attention,
        lambda randn: {"v": randn(*SHAPE), "weights": randn(1, 2, 1, 3)},
        {"q": None, "k": None, "offsets": (0, 1, 5), "kind": "field"},
    ),
    "offset_attention elu": (
        ops.offset_attention,
        lambda randn: {**{name: randn(*SHAPE) for name in "qkv"}, "weights": randn(1, 2, 1, 3)},
        {"offsets": (0, 1, 5), "kind": "elu"},
    ),
    "linear_attention by head": (
        ops.linear_attention,
        lambda randn: {
            **{name: randn(2, 150, 1, 2, 8) for name in "kv"},
            "q": randn(*SHAPE),
            "log_decay": -randn(2, 150, 2).exp(),
        },
        {"normalize": False},
    ),
}
CASES = {
    **{
        name: (example.function, lambda randn, example=example: example.tensors(SHAPE, randn), example.arguments)
        for name, example in EXAMPLES.items()
    },
    **OTHERS,
}
FORMS = [(name, backend) for name, (function, *_) in CASES.items() for backend in available_backends(function.__name__)]


def drawn(name) -> dict[str, Tensor]:
    """The op's tensors in float32, each one that bfloat16 and float16 hold as well."""
    generator = torch.Generator().manual_seed(1)
    tensors = CASES[name][1](lambda *shape: torch.randn(*shape, generator=generator))
    return {key: tensor.bfloat16().half().float().requires_grad_() for key, tensor in tensors.items()}


def outcome(name, backend, tensors, *, autocast=None, backward_inside=False):
    """Output, state and gradients."""
    function, _, arguments = CASES[name]
    with torch.autocast("cpu", autocast or torch.bfloat16, enabled=autocast is not None):
        out, state = function(**tensors, **arguments, return_state=True, backend=backend)
        parts = [out, *(state if isinstance(state, tuple) else (state,))]
        floats = [part for part in parts if part.is_floating_point() and part.requires_grad]
        if backward_inside:
            gradients = torch.autograd.grad(sum(part.float().sum() for part in floats), list(tensors.values()))
    if not backward_inside:
        gradients = torch.autograd.grad(sum(part.float().sum() for part in floats), list(tensors.values()))
    return parts, gradients


@pytest.mark.parametrize("dtype", NARROW, ids=str)
@pytest.mark.parametrize(("name", "backend"), FORMS)
def test_narrow_inputs_give_the_rounded_result_of_wide_ones(name, backend, dtype):
    wide = drawn(name)
    narrow = {key: tensor.detach().to(dtype).requires_grad_() for key, tensor in wide.items()}
    (out, *states), gradients = outcome(name, backend, wide)
    (narrow_out, *narrow_states), narrow_gradients = outcome(name, backend, narrow)
    assert narrow_out.dtype == dtype
    for found, expected in zip((narrow_out, *narrow_states), (out, *states), strict=True):
        torch.testing.assert_close(found, expected.to(found.dtype), rtol=2 * torch.finfo(dtype).eps, atol=1e-5)
    for found, expected in zip(narrow_gradients, gradients, strict=True):
        scale = float(expected.abs().max())
        torch.testing.assert_close(found.float(), expected, rtol=0, atol=2 * torch.finfo(dtype).eps * scale)


@pytest.mark.parametrize("backward_inside", [False, True])
@pytest.mark.parametrize("autocast", NARROW, ids=str)
@pytest.mark.parametrize(("name", "backend"), FORMS)
def test_autocast_changes_nothing(name, backend, autocast, backward_inside):
    parts, gradients = outcome(name, backend, drawn(name))
    found, slopes = outcome(name, backend, drawn(name), autocast=autocast, backward_inside=backward_inside)
    for mine, expected in zip(found, parts, strict=True):
        torch.testing.assert_close(mine, expected, rtol=0, atol=0)
    if backward_inside and backend != "numba":  # PyTorch's own backward passes do as autocast says
        return
    for mine, expected in zip(slopes, gradients, strict=True):
        torch.testing.assert_close(mine, expected, rtol=0, atol=0)


def test_every_op_widens():
    takers = [
        op for op in vars(ops).values() if inspect.isfunction(op) and "backend" in inspect.signature(op).parameters
    ]
    takers = [op for op in takers if "any_rows" not in inspect.signature(op).parameters]
    assert len(takers) >= len(EXAMPLES)
    assert {op.__name__ for op in takers if not hasattr(op, "__wrapped__")} == set()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.complex64, torch.int16, torch.uint8], ids=str)
def test_a_kernel_refuses_what_it_would_misread(dtype):
    double = kernel(_double)
    with pytest.raises(TypeError, match=f"got a tensor of {dtype}"):
        double(torch.ones(3, dtype=dtype), torch.ones(3))


def _double(x, out):
    for i in range(len(x)):
        out[i] = 2 * x[i]


@pytest.mark.parametrize(("name", "backend"), FORMS)
def test_what_is_empty_is_refused_in_one_sentence(name, backend):
    function, _, arguments = CASES[name]
    for place in range(2):
        tensors = {
            key: tensor.narrow(place, 0, 0) if tensor.dim() > 2 and tensor.shape[:2] == SHAPE[:2] else tensor
            for key, tensor in drawn(name).items()
        }
        with pytest.raises(ValueError, match=f"{function.__name__} needs at least one row, head and channel, got "):
            function(**tensors, **arguments, backend=backend)


def test_tensors_on_several_devices_are_refused():
    x = torch.randn(1, 5, 8)
    with pytest.raises(ValueError, match="causal_convolution needs all tensors on one device, got cpu, meta"):
        ops.causal_convolution(x, torch.randn(4, 8, device="meta"))


class TestRunningSums:
    """A document's numbers carry no rounding of what stands before it."""

    @pytest.mark.parametrize("size", [1e3, 1e6, 1e9])
    @pytest.mark.parametrize("name", ["running_mean", "linear_attention", "linear_attention by head", "block_means"])
    def test_the_document_before_does_not_matter(self, name, size):
        function, _, arguments = CASES[name]
        starts = torch.zeros(2, 150, dtype=torch.bool)
        starts[:, 70] = True
        for backend in available_backends(function.__name__):
            found = []
            for factor in (1.0, size):
                tensors = drawn(name)
                values = "v" if "v" in tensors else "x"
                loud = torch.where(starts.cumsum(dim=1) > 0, 1.0, factor)
                given = {**tensors, values: tensors[values] * loud.view(2, 150, *[1] * (tensors[values].dim() - 2))}
                out = function(**given, **arguments, starts=starts, backend=backend)[:, 70:]
                found.append([out, *torch.autograd.grad(out.sum(), list(tensors.values()))])
            for quiet, loud in zip(*found, strict=True):
                torch.testing.assert_close(quiet, loud, rtol=0, atol=0)

    @pytest.mark.parametrize("decay", [-0.05, -1.0, -6.0, -10.0, -20.0])
    @pytest.mark.parametrize("num_rows", [257, 2048])
    @pytest.mark.parametrize("backend", ["torch", "numba"])
    def test_the_gradient_of_a_decay_is_as_exact_as_float32(self, backend, num_rows, decay):
        slopes = []
        for dtype in (torch.float32, torch.float64):
            randn = partial(torch.randn, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
            q, k, v = randn(1, num_rows, 2, 8), randn(1, num_rows, 1, 2, 8), randn(1, num_rows, 1, 2, 8)
            log_decay = (decay + 0.1 * randn(1, num_rows, 2).clamp(max=0)).to(dtype).requires_grad_()
            out = ops.linear_attention(
                *(x.to(dtype) for x in (q, k, v)), log_decay=log_decay, normalize=False, backend=backend
            )
            slopes.append(torch.autograd.grad((out * randn(out.shape)).sum(), log_decay)[0].double())
        assert float((slopes[0] - slopes[1]).abs().max()) <= 5e-6 * float(slopes[1].abs().max())

    def test_a_document_does_not_hear_what_is_said_after_it(self):
        starts = torch.zeros(1, 257, dtype=torch.bool)
        starts[0, 128] = True
        slopes = []
        for size in (1.0, 1e6):
            generator = torch.Generator().manual_seed(2)
            q, k, v = (torch.randn(1, 257, *shape, generator=generator) for shape in ((2, 8), (1, 2, 8), (1, 2, 8)))
            log_decay = torch.full((1, 257, 2), -0.1).requires_grad_()
            v[:, 128:] *= size
            out = ops.linear_attention(q, k, v, log_decay=log_decay, normalize=False, starts=starts, backend="numba")
            slopes.append(torch.autograd.grad(out.sum(), log_decay)[0][:, :128])
        torch.testing.assert_close(*slopes, rtol=0, atol=0)
