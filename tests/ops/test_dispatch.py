"""Backends: an explicit one is obeyed or refused; ``use_backend`` says what ``auto`` means."""

from __future__ import annotations

import sys

import pytest
import torch

from longwave.ops import (
    BackendUnavailable,
    available_backends,
    block_means,
    linear_attention,
    offset_attention,
    use_backend,
)

BACKENDS = ("naive", "torch", "numba", "triton")


def call(op, backend="auto"):
    x = torch.rand(1, 3, 1, 2)
    if op == "linear_attention":
        return linear_attention(x, x[:, :, None], x[:, :, None], backend=backend)
    if op == "offset_attention":
        return offset_attention(x, x, x, window=2, backend=backend)
    return block_means(x, 1, backend=backend)


OPS = ("block_means", "linear_attention", "offset_attention")
MISSING = [(op, name) for op in OPS for name in BACKENDS if name not in available_backends(op)]


@pytest.fixture
def chosen(monkeypatch):
    """Which of its two plain forms an op takes."""

    def of(op, backend="auto"):
        taken = []
        module = sys.modules[f"longwave.ops.{op}"]
        with monkeypatch.context() as patch:
            for name in ("naive", "torch"):
                form = getattr(module, f"{op}_{name}")
                patch.setattr(
                    module, form.__name__, lambda *args, form=form, name=name: (taken.append(name), form(*args))[1]
                )
            call(op, backend)
        return taken

    return of


@pytest.mark.parametrize("op", OPS)
def test_every_op_has_its_naive_twin_and_a_torch_form(op):
    assert available_backends(op)[:2] == ("naive", "torch")


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("backend", ["naive", "torch"])
def test_an_explicit_backend_is_obeyed(chosen, op, backend):
    assert chosen(op, backend) == [backend]


@pytest.mark.parametrize(("op", "backend"), [*MISSING, *((op, "cuda") for op in OPS)])
def test_a_missing_backend_is_refused_with_the_legal_ones(op, backend):
    legal = ", ".join(("auto", *available_backends(op)))
    with pytest.raises(BackendUnavailable, match=f"^{op} has no backend '{backend}'; legal: {legal}$"):
        call(op, backend)


def test_a_refusal_is_a_value_error():
    assert issubclass(BackendUnavailable, ValueError)


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("backend", ["naive", "torch"])
def test_use_backend_is_what_auto_means(chosen, op, backend):
    with use_backend(backend):
        assert chosen(op) == [backend]


def test_an_explicit_backend_wins_over_use_backend(chosen):
    with use_backend("naive"):
        assert chosen("linear_attention", "torch") == ["torch"]


@pytest.mark.parametrize(("op", "backend"), MISSING)
def test_use_backend_does_not_fall_back_either(op, backend):
    with use_backend(backend), pytest.raises(BackendUnavailable, match=f"{op} has no backend '{backend}'"):
        call(op)


def test_use_backend_is_undone_after_an_exception(chosen):
    before = chosen("linear_attention")
    with pytest.raises(KeyError), use_backend("naive"):
        raise KeyError
    assert chosen("linear_attention") == before != ["naive"]


def test_use_backend_nests(chosen):
    with use_backend("naive"):
        with use_backend("torch"):
            assert chosen("linear_attention") == ["torch"]
        assert chosen("linear_attention") == ["naive"]


def test_use_backend_refuses_a_name_that_no_backend_has():
    with (
        pytest.raises(BackendUnavailable, match="unknown backend 'cuda'; legal: auto, naive, torch, numba, triton"),
        use_backend("cuda"),
    ):
        pass
