"""Linear attention over dyadic means: all forms compute the recurrence, in any pieces and any chunks."""

from __future__ import annotations

import pytest
import torch

from longwave.ops import DyadicState, available_backends, dyadic_linear_attention
from tests.ops.compare import assert_close, documents, pieces, random_starts, with_gradients

BACKENDS = available_backends("dyadic_linear_attention")
FAST = BACKENDS[1:]
H, D = 2, 4
OPTIONS = {
    "plain": {},
    "no levels": {"levels": 0},
    "starts": {"starts": True},
    "state": {"state": True},
    "everything": {"starts": True, "state": True},
    "many short rows": {"starts": True, "state": True, "batch_size": 150},
}


def make(num_rows, *, levels=3, starts=False, state=False, batch_size=2, dtype=torch.float64):
    """Differentiable inputs by name, and the remaining arguments."""
    inputs = {name: torch.randn(batch_size, num_rows, H, D, dtype=dtype) for name in "qkv"}
    inputs |= {name: torch.randn(levels, D, D, dtype=dtype) for name in ("key_maps", "value_maps")}
    inputs["weights"] = torch.rand(levels, dtype=dtype)
    arguments = {"starts": random_starts(batch_size, num_rows) if starts else None, "tokens": None}
    if state:
        inputs["memory"] = torch.rand(batch_size, levels + 1, H, D, D + 1, dtype=dtype)
        inputs["blocks"] = torch.randn(batch_size, levels, 2, H, D, dtype=dtype)
        arguments["tokens"] = torch.arange(5, 5 + batch_size)
    return inputs, arguments


def run(inputs, arguments, chunk_size=16, **more):
    given = dict(inputs)
    state = None
    if arguments["tokens"] is not None:
        state = DyadicState(given.pop("memory"), given.pop("blocks"), arguments["tokens"])
    more |= {"starts": arguments["starts"], "initial_state": state, "chunk_size": chunk_size}
    out, state = dyadic_linear_attention(**given, **more, return_state=True)
    return {"out": out, **state._asdict()}


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("num_rows", [1, 2, 7, 63, 100])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_fast_equals_naive_in_values_and_gradients(options, num_rows, backend):
    inputs, arguments = make(num_rows, **options)
    naive, fast = (
        with_gradients(lambda given, name=name: run(given, arguments, backend=name), inputs)
        for name in ("naive", backend)
    )
    assert_close(fast, naive)


@pytest.mark.parametrize("backend", FAST)
def test_fast_equals_naive_over_many_segments(backend):
    inputs, arguments = make(2500, starts=False, state=True)
    assert_close(run(inputs, arguments, backend=backend), run(inputs, arguments, backend="naive"))


def test_numba_equals_torch_in_float32_gradients():
    inputs, arguments = make(3000, levels=4, state=True)

    def rounded(given):
        found = run({name: x.float() for name, x in given.items()}, arguments, backend="numba")
        return {name: x.double() for name, x in found.items() if name != "tokens"}

    exact = with_gradients(lambda given: run(given, arguments, backend="torch"), inputs)
    assert_close(with_gradients(rounded, inputs), exact, relative=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("starts", [False, True])
@pytest.mark.parametrize("cuts", [(50,), (1, 2, 3, 4), (7, 8, 9, 15, 16, 17)])
def test_pieces_with_the_state_carried_equal_the_whole(backend, starts, cuts):
    inputs, arguments = make(60, starts=starts)
    whole = run(inputs, arguments, backend=backend)
    state, outs = None, []
    for piece in pieces(60, cuts):
        part = {name: tensor[:, piece] if name in "qkv" else tensor for name, tensor in inputs.items()}
        more = {"starts": None if not starts else arguments["starts"][:, piece], "backend": backend}
        out, state = dyadic_linear_attention(**part, initial_state=state, chunk_size=16, return_state=True, **more)
        outs.append(out)
    assert_close({"out": torch.cat(outs, dim=1), **state._asdict()}, whole)


@pytest.mark.parametrize("backend", BACKENDS)
def test_each_document_equals_itself_alone(backend):
    inputs, arguments = make(60, starts=True)
    packed = run(inputs, arguments, backend=backend)
    for b in range(2):
        for span in documents(arguments["starts"][b]):
            lone = {name: x[b : b + 1, span] if name in "qkv" else x for name, x in inputs.items()}
            found = run(lone, {"starts": None, "tokens": None}, backend=backend)
            assert_close({"out": packed["out"][b : b + 1, span]}, {"out": found["out"]})


@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_uninitialised_memory_is_never_read(options, backend):
    inputs, arguments = make(63, **options)
    fast = with_gradients(lambda given: run(given, arguments, backend=backend), inputs)
    torch.use_deterministic_algorithms(False)
    assert_close(fast, with_gradients(lambda given: run(given, arguments, backend="naive"), inputs))


@pytest.mark.parametrize("backend", FAST)
def test_it_compiles_whole(backend):
    inputs, arguments = make(40, starts=True, state=True)

    def compute(given):
        return run(given, arguments, backend=backend)

    compiled = torch.compile(compute, fullgraph=True, backend="aot_eager")
    assert_close(with_gradients(compiled, inputs), with_gradients(compute, inputs))


@pytest.mark.parametrize("backend", BACKENDS)
def test_bfloat16_inputs_accumulate_in_float32(backend):
    inputs, arguments = make(200, dtype=torch.bfloat16)
    exact = run({name: tensor.double() for name, tensor in inputs.items()}, arguments, backend="naive")
    found = run(inputs, arguments, backend=backend)
    assert found["out"].dtype == torch.bfloat16
    assert found["memory"].dtype == torch.float32
    torch.testing.assert_close(found["out"].double(), exact["out"], rtol=2**-8, atol=1e-4)


def test_shapes_that_disagree_are_named():
    inputs, arguments = make(5)
    with pytest.raises(ValueError, match=r"of one shape \[B, N, H, d\].*got \(2, 5, 2, 4\), \(2, 4, 2, 4\)"):
        run(inputs | {"k": inputs["k"][:, :4]}, arguments)
    with pytest.raises(ValueError, match=r"maps must be \[L, 4, 4\] and weights \[L\]; got .* \(2,\)"):
        run(inputs | {"weights": inputs["weights"][:2]}, arguments)
