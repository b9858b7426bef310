"""The gated delta rule: all forms compute the recurrence, in any pieces and any chunks."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from longwave.ops import available_backends, gated_delta_rule
from tests.ops.compare import assert_close, documents, pieces, random_starts, with_gradients

BACKENDS = available_backends("gated_delta_rule")
FAST = BACKENDS[1:]
OPTIONS = {
    "plain": {},
    "starts": {"starts": True},
    "state": {"state": True},
    "decay": {"decay": True},
    "everything": {"starts": True, "state": True, "decay": True},
}


def make(num_rows, *, starts=False, state=False, decay=False, dtype=torch.float64):
    """Differentiable inputs by name, and the remaining arguments."""
    B, H, d, e = 2, 2, 3, 4
    inputs = {
        "q": torch.randn(B, num_rows, H, d, dtype=dtype),
        "k": F.normalize(torch.randn(B, num_rows, H, d, dtype=dtype), dim=-1),
        "v": torch.randn(B, num_rows, H, e, dtype=dtype),
        "beta": torch.rand(B, num_rows, H, dtype=dtype),
    }
    if decay:
        inputs["log_decay"] = -torch.rand(B, num_rows, H, dtype=dtype)
    if state:
        inputs["initial_state"] = torch.randn(B, H, d, e, dtype=dtype)
    return inputs, {"starts": random_starts(B, num_rows) if starts else None}


def run(inputs, arguments, **more):
    out, state = gated_delta_rule(**inputs, **arguments, **more, return_state=True)
    return {"out": out, "state": state}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_naive_is_the_recurrence_as_published(options):
    """S_t = a_t S_{t-1} (I - beta_t k_t k_tᵀ) + beta_t v_t k_tᵀ with S from keys to values, `[e, d]`."""
    inputs, arguments = make(9, **options)
    found = run(inputs, arguments, backend="naive")
    for b, h in [(b, h) for b in range(2) for h in range(2)]:
        S = torch.zeros(4, 3, dtype=torch.float64)
        if "initial_state" in inputs:
            S = inputs["initial_state"][b, h].T
        for t in range(9):
            k, v, beta = inputs["k"][b, t, h], inputs["v"][b, t, h], inputs["beta"][b, t, h]
            a = inputs["log_decay"][b, t, h].exp() if "log_decay" in inputs else 1.0
            if arguments["starts"] is not None and arguments["starts"][b, t]:
                S = torch.zeros_like(S)
            S = a * S @ (torch.eye(3, dtype=torch.float64) - beta * torch.outer(k, k)) + beta * torch.outer(v, k)
            torch.testing.assert_close(found["out"][b, t, h], S @ inputs["q"][b, t, h], rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(found["state"][b, h], S.T, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("num_rows", [1, 31, 32, 33, 63, 100])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_fast_equals_naive_in_values_and_gradients(options, num_rows, backend):
    inputs, arguments = make(num_rows, **options)
    naive, fast = (
        with_gradients(lambda given, name=name: run(given, arguments, chunk_size=16, backend=name), inputs)
        for name in ("naive", backend)
    )
    assert_close(fast, naive)


@pytest.mark.parametrize("backend", FAST)
def test_fast_equals_naive_in_float32_over_a_thousand_rows(backend):
    inputs, arguments = make(1000, starts=True, state=True, decay=True)

    def rounded(given):
        found = run({name: x.float() for name, x in given.items()}, arguments, backend=backend)
        return {name: x.double() for name, x in found.items()}

    exact = with_gradients(lambda given: run(given, arguments, backend="naive"), inputs)
    assert_close(with_gradients(rounded, inputs), exact, relative=1e-5)


@pytest.mark.parametrize("chunk_size", [1, 7, 64, 99, 100, 5000])
@pytest.mark.parametrize("options", [OPTIONS["plain"], OPTIONS["everything"]], ids=["plain", "everything"])
def test_chunk_size_never_changes_a_result(options, chunk_size):
    inputs, arguments = make(100, **options)
    one, other = (run(inputs, arguments, chunk_size=size, backend="torch") for size in (32, chunk_size))
    assert_close(other, one)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("cuts", [(50,), (1, 2, 3, 4), (9, 16, 17, 63, 64, 65)])
def test_pieces_with_the_state_carried_equal_the_whole(backend, cuts):
    inputs, arguments = make(100, starts=True, state=True, decay=True)
    whole = run(inputs, arguments, chunk_size=16, backend=backend)
    state, outs = inputs.pop("initial_state"), []
    for piece in pieces(100, cuts):
        part = {name: tensor[:, piece] for name, tensor in inputs.items()} | {"initial_state": state}
        found = run(part, {"starts": arguments["starts"][:, piece]}, chunk_size=16, backend=backend)
        outs.append(found["out"])
        state = found["state"]
    assert_close({"out": torch.cat(outs, dim=1), "state": state}, whole)


@pytest.mark.parametrize("backend", BACKENDS)
def test_each_document_equals_itself_alone(backend):
    inputs, arguments = make(100, starts=True, decay=True)
    packed = run(inputs, arguments, backend=backend)
    for b in range(2):
        for span in documents(arguments["starts"][b]):
            lone = {name: tensor[b : b + 1, span] for name, tensor in inputs.items()}
            found = run(lone, {}, backend=backend)
            assert_close({"out": packed["out"][b : b + 1, span]}, {"out": found["out"]})
        assert_close({"state": packed["state"][b : b + 1]}, {"state": found["state"]})


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_key_written_twice_holds_its_last_value_alone(backend):
    inputs, _ = make(2)
    key = inputs["k"][:, :1]
    inputs |= {"k": key.expand(-1, 2, -1, -1), "q": key.expand(-1, 2, -1, -1), "beta": torch.ones(2, 2, 2).double()}
    torch.testing.assert_close(run(inputs, {}, backend=backend)["out"], inputs["v"])


def test_numba_compiles_whole():
    inputs, arguments = make(40, starts=True, state=True, decay=True)

    def compute(given):
        return run(given, arguments, backend="numba")

    compiled = torch.compile(compute, fullgraph=True, backend="aot_eager")
    assert_close(with_gradients(compiled, inputs), with_gradients(compute, inputs))


@pytest.mark.parametrize("backend", BACKENDS)
def test_bfloat16_inputs_accumulate_in_float32(backend):
    inputs, arguments = make(300, decay=True, dtype=torch.bfloat16)
    exact = run({name: tensor.double() for name, tensor in inputs.items()}, arguments, backend="naive")
    found = run(inputs, arguments, backend=backend)
    assert found["out"].dtype == torch.bfloat16
    assert found["state"].dtype == torch.float32
    torch.testing.assert_close(found["out"].double(), exact["out"], rtol=2**-8, atol=1e-5)
    torch.testing.assert_close(found["state"].double(), exact["state"], rtol=1e-5, atol=1e-4)


@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize("backend", FAST)
def test_uninitialised_memory_is_never_read(backend):
    inputs, arguments = make(63, starts=True, state=True, decay=True)
    fast = with_gradients(lambda given: run(given, arguments, chunk_size=16, backend=backend), inputs)
    torch.use_deterministic_algorithms(False)
    assert_close(fast, with_gradients(lambda given: run(given, arguments, backend="naive"), inputs))


def test_shapes_that_disagree_are_named():
    inputs, _ = make(5)
    with pytest.raises(ValueError, match=r"takes q and k \[B, N, H, d\].*\(2, 5, 2, 4\), \(2, 4, 2\)"):
        gated_delta_rule(**inputs | {"beta": inputs["beta"][:, :4]})
