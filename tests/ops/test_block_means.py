"""Running block means: all forms are the mean of the block so far, in any pieces."""

from __future__ import annotations

import pytest
import torch
from torch.library import opcheck

from longwave.ops import BlockSums, available_backends, block_means
from tests.ops.compare import assert_close, documents, pieces, random_starts, with_gradients

BACKENDS = available_backends("block_means")
FAST = BACKENDS[1:]
LEVELS = [0, 1, 4]


def make(num_rows, *, dtype=torch.float64):
    return torch.randn(2, num_rows, 3, 2, dtype=dtype)


def run(x, num_levels, *, state=None, starts=None, backend="auto"):
    means, final = block_means(x, num_levels, initial_state=state, starts=starts, return_state=True, backend=backend)
    return {"means": means, "sums": final.sums, "tokens": final.tokens}


def past(num_levels, tokens, *, dtype=torch.float64):
    """The state after ``tokens`` rows of two documents."""
    longest = max(tokens)
    rows = make(longest, dtype=dtype)
    sums = torch.zeros(2, num_levels, 3, 2, dtype=dtype)
    for b, seen in enumerate(tokens):
        for level in range(num_levels):
            begin = (seen - 1) // 2 ** (level + 1) * 2 ** (level + 1)
            sums[b, level] = rows[b, begin:seen].sum(dim=0)
    return BlockSums(sums, torch.tensor(tokens))


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_row_holds_the_mean_of_its_block_so_far(backend):
    x = torch.tensor([1.0, 2.0, 4.0, 8.0, 16.0]).double()[None, :, None]
    means = block_means(x, 2, backend=backend)[0, :, :, 0]
    pairs = [1, 1.5, 4, 6, 16]
    fours = [1, 1.5, 7 / 3, 3.75, 16]
    torch.testing.assert_close(means, torch.tensor([pairs, fours]).double().T)


@pytest.mark.parametrize("num_levels", LEVELS)
@pytest.mark.parametrize("seen", [None, (1, 6), (8, 13)])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("num_rows", [1, 63, 100])
@pytest.mark.parametrize("backend", FAST)
def test_fast_equals_naive_in_values_and_gradients(num_levels, seen, packed, num_rows, backend):
    starts = random_starts(2, num_rows) if packed else None
    inputs = {"x": make(num_rows)}
    if seen is not None:
        state = past(num_levels, seen)
        inputs["sums"] = state.sums

    def form(given, name):
        initial = None if seen is None else BlockSums(given["sums"], state.tokens)
        return run(given["x"], num_levels, state=initial, starts=starts, backend=name)

    if num_levels == 0:
        naive, fast = (form(inputs, name) for name in ("naive", backend))
    else:
        naive, fast = (
            with_gradients(lambda given, name=name: form(given, name), inputs) for name in ("naive", backend)
        )
    assert_close(fast, naive)


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("packed", [False, True])
def test_fast_equals_naive_on_a_thousand_rows(packed, backend):
    x, starts = make(1000), random_starts(2, 1000) if packed else None
    assert_close(run(x, 6, starts=starts, backend=backend), run(x, 6, starts=starts, backend="naive"))


def test_numba_compiles_whole():
    inputs, starts = {"x": make(40)}, random_starts(2, 40)

    def compute(given):
        return run(given["x"], 3, starts=starts, backend="numba")

    compiled = torch.compile(compute, fullgraph=True, backend="aot_eager")
    assert_close(with_gradients(compiled, inputs), with_gradients(compute, inputs))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("num_levels", LEVELS)
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("cuts", [(50,), (1, 2, 3, 4), (7, 8, 9, 15, 16, 33)])
def test_pieces_with_the_state_carried_equal_the_whole(backend, num_levels, packed, cuts):
    x, starts = make(70), random_starts(2, 70) if packed else None
    whole = run(x, num_levels, starts=starts, backend=backend)
    state, means = None, []
    for piece in pieces(70, cuts):
        part = None if starts is None else starts[:, piece]
        found = run(x[:, piece], num_levels, state=state, starts=part, backend=backend)
        means.append(found["means"])
        state = BlockSums(found["sums"], found["tokens"])
    assert_close({"means": torch.cat(means, dim=1), "sums": state.sums, "tokens": state.tokens}, whole)


@pytest.mark.parametrize("backend", BACKENDS)
def test_each_document_equals_itself_alone(backend):
    x, starts = make(100), random_starts(2, 100)
    packed = run(x, 4, starts=starts, backend=backend)
    for b in range(2):
        for span in documents(starts[b]):
            alone = run(x[b : b + 1, span], 4, backend=backend)
            assert_close({"means": packed["means"][b : b + 1, span]}, {"means": alone["means"]})
        assert_close({"sums": packed["sums"][b : b + 1]}, {"sums": alone["sums"]})


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_document_after_one_that_overflowed_is_finite(backend):
    x, starts = make(40), torch.zeros(2, 40, dtype=torch.bool)
    x[:, 3], starts[:, 17] = torch.inf, True
    assert run(x, 4, starts=starts, backend=backend)["means"][:, 17:].isfinite().all()


def test_numba_is_a_well_formed_operator():
    x, sums = make(7).requires_grad_(), torch.randn(2, 3, 3, 2, dtype=torch.float64, requires_grad=True)
    positions = torch.tensor([[5, 6, 0, 1, 2, 3, 4], [0, 1, 2, 3, 4, 5, 6]])
    opcheck(torch.ops.longwave.block_means_numba.default, (x, sums, positions))


@pytest.mark.parametrize("backend", BACKENDS)
def test_bfloat16_inputs_are_summed_in_float32(backend):
    x = make(512, dtype=torch.bfloat16)
    exact = run(x.double(), 9, backend="naive")
    found = run(x, 9, backend=backend)
    assert found["means"].dtype == torch.bfloat16
    assert found["sums"].dtype == torch.float32
    torch.testing.assert_close(found["means"].double(), exact["means"], rtol=2**-8, atol=1e-6)
    torch.testing.assert_close(found["sums"].double(), exact["sums"], rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("backend", BACKENDS)
def test_sums_do_not_lose_precision_with_the_length(backend):
    x = torch.ones(1, 5000, 1)
    x[:, :2500] = 1e7
    means = block_means(x, 3, backend=backend)
    assert (means[:, 2504:] == 1).all()


@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("num_levels", LEVELS)
def test_uninitialised_memory_is_never_read(num_levels, backend):
    x, starts, state = make(63), random_starts(2, 63), past(num_levels, (3, 8))
    fast = run(x, num_levels, state=state, starts=starts, backend=backend)
    torch.use_deterministic_algorithms(False)
    assert_close(fast, run(x, num_levels, state=state, starts=starts, backend="naive"))
