"""Every mixer runs, learns, goes on and decodes in half precision: right dtypes, nothing that is not a number."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch

from longwave.mixers.base import fork
from tests.mixers.variants import VARIANTS, WIDTH, drawn

HALVES = (torch.bfloat16, torch.float16)
#: Dtype of the weights and rows, and dtype of autocast or ``None``.
SETTINGS = [*((half, None) for half in HALVES), *((torch.float32, half) for half in HALVES)]
#: What HALE's published cache computes exceeds the range of float16: normalisers come near 0, see docs/hale.md.
CASES = [
    (name, arguments, weights, half)
    for name, arguments in VARIANTS
    for weights, half in SETTINGS
    if not (arguments.get("cache") == "published" and torch.float16 in (weights, half))
]


def rows(dtype):
    return torch.randn(2, 41, WIDTH, generator=torch.Generator().manual_seed(0)).to(dtype)


def casting(half):
    return nullcontext() if half is None else torch.autocast("cpu", dtype=half)


def dtypes(state):
    return {name: tensor.dtype for name, tensor in state._asdict().items()}


def assert_sound(tensor, dtype):
    assert tensor.dtype == dtype
    assert bool(tensor.isfinite().all())


everything = pytest.mark.parametrize(("name", "arguments", "weights", "half"), CASES, ids=str)


@everything
def test_it_learns(name, arguments, weights, half):
    mixer, x = drawn(name, arguments, weights).train(), rows(weights).requires_grad_()
    with casting(half):
        y, _ = mixer(x)
    assert_sound(y, half or weights)
    y.float().sum().backward()
    assert_sound(x.grad, weights)
    for parameter in mixer.parameters():
        if parameter.grad is not None:
            assert_sound(parameter.grad, weights)


@everything
def test_it_goes_on_and_learns_through_its_state(name, arguments, weights, half):
    mixer, x = drawn(name, arguments, weights), rows(weights).requires_grad_()
    with casting(half):
        _, past = mixer(x[:, :33], return_state=True)
        y, final = mixer(x[:, 33:], past, return_state=True)
    assert_sound(y, half or weights)
    assert dtypes(final) == dtypes(past)
    (y.float().sum() + sum(tensor.float().sum() for tensor in final if tensor.requires_grad)).backward()
    assert_sound(x.grad, weights)


@everything
@torch.no_grad()
def test_it_decodes(name, arguments, weights, half):
    mixer, x = drawn(name, arguments, weights), rows(weights)
    with casting(half):
        for state in (mixer.init_state(2, max_tokens=50), mixer(x[:, :33], return_state=True)[1]):
            kept = dtypes(state)
            for row in x[:, 33:36].unbind(dim=1):
                y, state = mixer(row, fork(state))
                assert_sound(y, half or weights)
                assert dtypes(state) == kept
