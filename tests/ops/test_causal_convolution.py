"""Causal convolution: all forms compute the sum over the taps, in any pieces."""

from __future__ import annotations

import pytest
import torch

from longwave.ops import Ring, available_backends, causal_convolution
from tests.ops.compare import assert_close, documents, pieces, random_starts, with_gradients

BACKENDS = available_backends("causal_convolution")
FAST = BACKENDS[1:]
OPTIONS = {"plain": {}, "starts": {"starts": True}, "state": {"state": True}, "both": {"starts": True, "state": True}}


def make(num_rows, *, width=4, starts=False, state=False, dtype=torch.float64):
    inputs = {"x": torch.randn(2, num_rows, 5, dtype=dtype), "weight": torch.randn(width, 5, dtype=dtype)}
    arguments = {"starts": random_starts(2, num_rows) if starts else None, "tokens": None}
    if state:
        inputs["rows"] = torch.randn(2, width - 1, 5, dtype=dtype)
        arguments["tokens"] = torch.tensor([7, width - 2])
        inputs["rows"][1, width - 2 :] = 0.0
    return inputs, arguments


def run(inputs, arguments, **more):
    inputs, arguments = dict(inputs), dict(arguments)
    rows, tokens = inputs.pop("rows", None), arguments.pop("tokens", None)
    ring = None if rows is None else Ring(rows, tokens)
    out, final = causal_convolution(**inputs, **arguments, initial_state=ring, **more, return_state=True)
    return {"out": out, "rows": final.rows, "tokens": final.tokens}


@pytest.mark.parametrize("width", [2, 4, 7])
def test_naive_is_pytorchs_depthwise_convolution(width):
    inputs, arguments = make(20, width=width)
    x, weight = inputs["x"].transpose(1, 2), inputs["weight"].flip(0).T[:, None]
    expected = torch.nn.functional.conv1d(torch.nn.functional.pad(x, (width - 1, 0)), weight, groups=5)
    found = run(inputs, arguments, backend="naive")["out"]
    torch.testing.assert_close(found, expected.transpose(1, 2), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("num_rows", [1, 2, 3, 63, 64, 65, 200])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_fast_equals_naive_in_values_and_gradients(options, num_rows, backend):
    inputs, arguments = make(num_rows, **options)
    naive, fast = (
        with_gradients(lambda given, name=name: run(given, arguments, backend=name), inputs)
        for name in ("naive", backend)
    )
    assert_close(fast, naive)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("cuts", [(50,), (1, 2, 3, 4), (63, 64, 65)])
def test_pieces_with_the_state_carried_equal_the_whole(backend, cuts):
    inputs, arguments = make(100, starts=True)
    whole = run(inputs, arguments, backend=backend)
    state, outs = {}, []
    for piece in pieces(100, cuts):
        part = {"x": inputs["x"][:, piece], "weight": inputs["weight"]} | {
            k: v for k, v in state.items() if k == "rows"
        }
        found = run(part, {"starts": arguments["starts"][:, piece], "tokens": state.get("tokens")}, backend=backend)
        outs.append(found.pop("out"))
        state = found
    assert_close({"out": torch.cat(outs, dim=1), **state}, whole)


@pytest.mark.parametrize("backend", BACKENDS)
def test_each_document_equals_itself_alone(backend):
    inputs, arguments = make(100, starts=True)
    packed = run(inputs, arguments, backend=backend)["out"]
    for b in range(2):
        for span in documents(arguments["starts"][b]):
            lone = run({"x": inputs["x"][b : b + 1, span], "weight": inputs["weight"]}, {}, backend=backend)
            assert_close({"out": packed[b : b + 1, span]}, {"out": lone["out"]})


def test_numba_compiles_whole():
    inputs, arguments = make(40, starts=True, state=True)

    def compute(given):
        return run(given, arguments, backend="numba")

    compiled = torch.compile(compute, fullgraph=True, backend="aot_eager")
    assert_close(with_gradients(compiled, inputs), with_gradients(compute, inputs))


@pytest.mark.parametrize("backend", BACKENDS)
def test_bfloat16_rows_are_summed_in_float32(backend):
    inputs, arguments = make(30, dtype=torch.bfloat16)
    found = run(inputs, arguments, backend=backend)
    exact = run({name: tensor.double() for name, tensor in inputs.items()}, arguments, backend="naive")
    assert found["out"].dtype == torch.bfloat16
    assert found["rows"].dtype == torch.float32
    torch.testing.assert_close(found["out"].double(), exact["out"], rtol=2**-8, atol=1e-6)


@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize("backend", FAST)
def test_uninitialised_memory_is_never_read(backend):
    inputs, arguments = make(63, starts=True, state=True)
    fast = with_gradients(lambda given: run(given, arguments, backend=backend), inputs)
    torch.use_deterministic_algorithms(False)
    assert_close(fast, with_gradients(lambda given: run(given, arguments, backend="naive"), inputs))


def test_shapes_that_disagree_are_named():
    with pytest.raises(ValueError, match=r"W >= 2; got \(1, 3, 5\), \(1, 5\)"):
        causal_convolution(torch.zeros(1, 3, 5), torch.zeros(1, 5))
