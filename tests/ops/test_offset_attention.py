"""Window attention: all forms are softmax over the last rows of the document, in any pieces."""

from __future__ import annotations

import pytest
import torch
from torch.library import opcheck

from longwave.ops import Ring, available_backends, empty_ring, offset_attention
from tests.ops.compare import assert_close, documents, pieces, random_starts, with_gradients

BACKENDS = available_backends("offset_attention")
FAST = BACKENDS[1:]
WINDOWS = [1, 5, 64, 150]
B, H, D = 2, 4, 4


def make(num_rows, *, groups=H, dtype=torch.float64):
    return {
        name: torch.randn(B, num_rows, heads, D, dtype=dtype)
        for name, heads in (("q", H), ("k", groups), ("v", groups))
    }


def run(inputs, window, *, state=None, starts=None, backend="auto"):
    out, ring = offset_attention(
        **inputs, window=window, initial_state=state, starts=starts, return_state=True, backend=backend
    )
    return {"out": out, "rows": ring.rows, "tokens": ring.tokens}


def past(window, seen, *, groups=H):
    """The ring after ``seen`` rows of a document."""
    rows = torch.zeros(B, window, 2, groups, D, dtype=torch.float64)
    for t in range(max(0, seen - window), seen):
        rows[:, t % window] = torch.randn(B, 2, groups, D, dtype=torch.float64)
    return Ring(rows, torch.full((B,), seen))


@pytest.mark.parametrize("window", WINDOWS)
def test_naive_is_masked_softmax_attention(window):
    inputs = make(100)
    starts = random_starts(B, 100)
    rows = torch.arange(100)
    document = starts.cumsum(dim=1)
    visible = (rows[:, None] - rows >= 0) & (rows[:, None] - rows < window)
    visible = visible & (document[:, :, None] == document[:, None, :])
    scores = torch.einsum("bihd,bjhd->bhij", inputs["q"], inputs["k"]) / 2  # sqrt(d) = 2
    weights = scores.masked_fill(~visible[:, None], -torch.inf).softmax(dim=-1)
    expected = torch.einsum("bhij,bjhd->bihd", weights, inputs["v"])
    out = run(inputs, window, starts=starts, backend="naive")["out"]
    assert_close({"out": out}, {"out": expected})


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("given", ["plain", "starts", "state", "both"])
@pytest.mark.parametrize("num_rows", [1, 63, 100])
@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("groups", [2, 4])
def test_fast_equals_naive_in_values_and_gradients(window, given, num_rows, backend, groups):
    starts = random_starts(B, num_rows) if given in ("starts", "both") else None
    inputs = make(num_rows, groups=groups)
    if given in ("state", "both"):
        ring = past(window, 7, groups=groups)
        inputs["rows"] = ring.rows

    def form(tensors, backend):
        tensors = dict(tensors)
        rows = tensors.pop("rows", None)
        state = None if rows is None else Ring(rows, ring.tokens)
        return run(tensors, window, state=state, starts=starts, backend=backend)

    naive, fast = (
        with_gradients(lambda tensors, name=name: form(tensors, name), inputs) for name in ("naive", backend)
    )
    assert_close(fast, naive)


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("window", [1, 64, 2000])
def test_fast_equals_naive_on_a_thousand_rows(window, backend):
    inputs, starts = make(1000), random_starts(B, 1000, share=0.01)
    forms = (run(inputs, window, starts=starts, backend=name) for name in (backend, "naive"))
    assert_close(*forms)


def test_numba_equals_torch_in_float32_over_many_segments():
    inputs, starts = make(5000), random_starts(B, 5000, share=0.001)

    def rounded(given):
        found = run({name: x.float() for name, x in given.items()}, 64, starts=starts, backend="numba")
        return {"out": found["out"].double()}

    exact = with_gradients(lambda given: {"out": run(given, 64, starts=starts, backend="torch")["out"]}, inputs)
    assert_close(with_gradients(rounded, inputs), exact, relative=1e-5)


def test_numba_takes_many_short_rows_together():
    inputs = {name: torch.cat([x] * 60) for name, x in make(9).items()}
    naive, fast = (
        with_gradients(lambda given, name=name: run(given, 5, backend=name), inputs) for name in ("naive", "numba")
    )
    assert_close(fast, naive)


def test_numba_is_a_well_formed_operator():
    q, k, v, past = (
        torch.randn(B, *shape, D, dtype=torch.float64, requires_grad=True)
        for shape in ((7, H), (7, 2), (7, 2), (2, 2, 2))
    )
    positions = torch.tensor([[5, 6, 0, 1, 2, 3, 4], [0, 1, 2, 3, 4, 5, 6]])
    opcheck(torch.ops.longwave.offset_attention_numba.default, (q, k, v, past, positions, 3))


def test_numba_compiles_whole():
    inputs, starts = make(40), random_starts(B, 40)

    def compute(given):
        return {"out": offset_attention(**given, window=5, starts=starts, backend="numba")}

    compiled = torch.compile(compute, fullgraph=True, backend="aot_eager")
    assert_close(with_gradients(compiled, inputs), with_gradients(compute, inputs))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("groups", [1, 2])
def test_grouped_heads_share_keys_and_values(backend, groups):
    inputs = make(63, groups=groups)
    repeated = {name: tensor.repeat_interleave(H // tensor.shape[2], dim=2) for name, tensor in inputs.items()}
    state = past(5, 3, groups=groups)
    wide = Ring(state.rows.repeat_interleave(H // groups, dim=3), state.tokens)
    found = run(inputs, 5, state=state, backend=backend)["out"]
    assert_close({"out": found}, {"out": run(repeated, 5, state=wide, backend=backend)["out"]})


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_window_of_one_returns_the_value_of_the_row(backend):
    inputs = make(20)
    assert_close({"out": run(inputs, 1, backend=backend)["out"]}, {"out": inputs["v"]})


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("cuts", [(50,), (1, 2, 3, 4), (9, 16, 17, 63, 64, 65)])
def test_pieces_with_the_state_carried_equal_the_whole(window, backend, packed, cuts):
    inputs, starts = make(70), random_starts(B, 70) if packed else None
    whole = run(inputs, window, starts=starts, backend=backend)
    state, outs = None, []
    for piece in pieces(70, cuts):
        part = {name: tensor[:, piece] for name, tensor in inputs.items()}
        found = run(part, window, state=state, starts=None if starts is None else starts[:, piece], backend=backend)
        outs.append(found["out"])
        state = Ring(found["rows"], found["tokens"])
    assert_close({"out": torch.cat(outs, dim=1), "rows": state.rows, "tokens": state.tokens}, whole)


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_empty_ring_is_no_past(backend):
    inputs = make(30)
    ring = empty_ring(B, 5, (2, H, D), inputs["k"])
    assert_close(run(inputs, 5, state=ring, backend=backend), run(inputs, 5, backend=backend))


@pytest.mark.parametrize("window", [5, 150])
@pytest.mark.parametrize("backend", BACKENDS)
def test_each_document_equals_itself_alone(window, backend):
    inputs, starts = make(100), random_starts(B, 100)
    packed = run(inputs, window, starts=starts, backend=backend)
    for b in range(B):
        for span in documents(starts[b]):
            lone = {name: tensor[b : b + 1, span] for name, tensor in inputs.items()}
            alone = run(lone, window, backend=backend)
            assert_close({"out": packed["out"][b : b + 1, span]}, {"out": alone["out"]})
        assert_close({"rows": packed["rows"][b : b + 1]}, {"rows": alone["rows"]})


@pytest.mark.parametrize("backend", BACKENDS)
def test_bfloat16_scores_are_not_rounded(backend):
    inputs = make(64, dtype=torch.bfloat16)
    inputs["q"] *= 16  # scores near 50, which bfloat16 knows to within 0.25
    exact = run({name: tensor.double() for name, tensor in inputs.items()}, 64, backend="naive")["out"]
    found = run(inputs, 64, backend=backend)["out"]
    assert found.dtype == torch.bfloat16
    # Weights and output are rounded to 8 bits once each.
    largest = float(inputs["v"].abs().max())
    torch.testing.assert_close(found.double(), exact, rtol=0, atol=2**-7 * largest)


@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("window", WINDOWS)
def test_uninitialised_memory_is_never_read(window, backend):
    inputs, starts, state = make(63), random_starts(B, 63), past(window, 3)
    fast = run(inputs, window, state=state, starts=starts, backend=backend)
    torch.use_deterministic_algorithms(False)
    assert_close(fast, run(inputs, window, state=state, starts=starts, backend="naive"))


def test_a_window_below_one_is_refused():
    with pytest.raises(ValueError, match="window must be at least 1, got 0"):
        offset_attention(**make(3), window=0)


def test_heads_that_do_not_divide_are_refused():
    with pytest.raises(ValueError, match="4 query heads are no multiple of 3 key/value heads"):
        offset_attention(**make(3, groups=3), window=2)


def test_a_ring_of_another_size_is_refused():
    with pytest.raises(ValueError, match="distances up to 4 need a ring of 5 rows, got 4"):
        offset_attention(**make(3), window=5, initial_state=past(4, 2))
