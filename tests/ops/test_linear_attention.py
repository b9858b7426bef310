"""Linear attention: all forms compute the formula, in any pieces and any chunks."""

from __future__ import annotations

import pytest
import torch

from longwave.ops import available_backends, linear_attention
from tests.ops.compare import assert_close, documents, pieces, random_starts, with_gradients

BACKENDS = available_backends("linear_attention")
FAST = BACKENDS[1:]

OPTIONS = {
    "plain": {},
    "one stream": {"streams": 1},
    "starts": {"starts": True},
    "state": {"state": True},
    "decay": {"decay": True},
    "decay by feature": {"decay": "feature"},
    "unnormalised": {"normalize": False},
    "everything": {"starts": True, "state": True, "decay": True},
    "everything by feature": {"starts": True, "state": True, "decay": "feature", "normalize": False},
    "everything unnormalised": {"starts": True, "state": True, "decay": True, "normalize": False},
}
CASES = ("plain", "everything", "everything by feature")


def make(num_rows, *, streams=3, starts=False, state=False, decay=False, normalize=True, dtype=torch.float64):
    """Differentiable inputs by name, and the remaining arguments."""
    B, H, d, e = 2, 2, 3, 4
    inputs = {
        "q": torch.rand(B, num_rows, H, d, dtype=dtype) + 0.1,
        "k": torch.rand(B, num_rows, streams, H, d, dtype=dtype) + 0.1,
        "v": torch.randn(B, num_rows, streams, H, e, dtype=dtype),
    }
    if decay:
        shape = (B, num_rows, H, d) if decay == "feature" else (B, num_rows, H)
        inputs["log_decay"] = -torch.rand(shape, dtype=dtype)
    if state:
        inputs["initial_state"] = torch.rand(B, streams, H, d, e + normalize, dtype=dtype)
    return inputs, {"normalize": normalize, "starts": random_starts(B, num_rows) if starts else None}


def run(inputs, arguments, **more):
    out, state = linear_attention(**inputs, **arguments, **more, return_state=True)
    return {"out": out, "state": state}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_naive_is_the_formula(options):
    N = 7
    inputs, arguments = make(N, **options)
    q, k, v = inputs["q"], inputs["k"], inputs["v"]
    starts, normalize = arguments["starts"], arguments["normalize"]
    out = run(inputs, arguments, backend="naive")["out"]
    for b, i, m, h in [(b, i, m, h) for b in range(2) for i in range(N) for m in range(k.shape[2]) for h in range(2)]:
        spans = [slice(0, N)] if starts is None else documents(starts[b])
        document = next(span for span in spans if span.start <= i < span.stop)
        decays = inputs.get("log_decay", torch.zeros(2, N, 2, dtype=q.dtype))[b, :, h]
        values, total = torch.zeros(v.shape[-1], dtype=q.dtype), torch.zeros((), dtype=q.dtype)
        for j in range(document.start, i + 1):
            weight = (decays[j + 1 : i + 1].sum(dim=0).exp() * q[b, i, h]) @ k[b, j, m, h]
            values, total = values + weight * v[b, j, m, h], total + weight
        if "initial_state" in inputs and (starts is None or not starts[b, : i + 1].any()):
            past = (decays[: i + 1].sum(dim=0).exp() * q[b, i, h]) @ inputs["initial_state"][b, m, h]
            values = values + past[: v.shape[-1]]
            total = total + (past[-1] if normalize else 0.0)
        expected = values / total.clamp(min=1e-6) if normalize else values
        torch.testing.assert_close(out[b, i, m, h], expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("num_rows", [1, 63, 100])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_fast_equals_naive_in_values_and_gradients(options, num_rows, backend):
    inputs, arguments = make(num_rows, **options)
    naive, fast = (
        with_gradients(lambda given, name=name: run(given, arguments, chunk_size=16, backend=name), inputs)
        for name in ("naive", backend)
    )
    assert_close(fast, naive)


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("options", [OPTIONS[case] for case in CASES], ids=CASES)
def test_fast_equals_naive_on_a_thousand_rows(options, backend):
    inputs, arguments = make(1000, **options)
    assert_close(run(inputs, arguments, backend=backend), run(inputs, arguments, backend="naive"))


@pytest.mark.parametrize("decay", [True, "feature"])
def test_numba_equals_naive_in_float32_over_many_segments(decay):
    inputs, arguments = make(3000, streams=2, starts=True, state=True, decay=decay)

    def rounded(given):
        found = run({name: x.float() for name, x in given.items()}, arguments, backend="numba")
        return {name: x.double() for name, x in found.items()}

    exact = with_gradients(lambda given: run(given, arguments, backend="torch"), inputs)
    assert_close(with_gradients(rounded, inputs), exact, relative=1e-5)


@pytest.mark.parametrize("decay", [True, "feature"])
def test_numba_compiles_whole(decay):
    inputs, arguments = make(40, starts=True, state=True, decay=decay)

    def compute(given):
        return run(given, arguments, chunk_size=16, backend="numba")

    compiled = torch.compile(compute, fullgraph=True, backend="aot_eager")
    assert_close(with_gradients(compiled, inputs), with_gradients(compute, inputs))


@pytest.mark.parametrize("options", [OPTIONS[case] for case in CASES], ids=CASES)
@pytest.mark.parametrize("chunk_size", [1, 7, 64, 99, 100, 5000])
@pytest.mark.parametrize("backend", FAST)
def test_chunk_size_never_changes_a_result(options, chunk_size, backend):
    inputs, arguments = make(100, **options)
    one, other = (run(inputs, arguments, chunk_size=size, backend=backend) for size in (32, chunk_size))
    assert_close(other, one)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("options", [OPTIONS[case] for case in CASES], ids=CASES)
@pytest.mark.parametrize("cuts", [(50,), (1, 2, 3, 4), (9, 16, 17, 63, 64, 65)])
def test_pieces_with_the_state_carried_equal_the_whole(backend, options, cuts):
    inputs, arguments = make(100, **options)
    whole = run(inputs, arguments, chunk_size=16, backend=backend)
    state, outs = inputs.pop("initial_state", None), []
    for piece in pieces(100, cuts):
        part = {name: tensor[:, piece] for name, tensor in inputs.items()} | {"initial_state": state}
        starts = None if arguments["starts"] is None else arguments["starts"][:, piece]
        found = run(part, {**arguments, "starts": starts}, chunk_size=16, backend=backend)
        outs.append(found["out"])
        state = found["state"]
    assert_close({"out": torch.cat(outs, dim=1), "state": state}, whole)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("decay", [False, True, "feature"])
def test_each_document_equals_itself_alone(backend, decay):
    inputs, arguments = make(100, starts=True, decay=decay)
    packed = run(inputs, arguments, chunk_size=16, backend=backend)
    for b in range(2):
        for span in documents(arguments["starts"][b]):
            lone = {name: tensor[b : b + 1, span] for name, tensor in inputs.items()}
            found = run(lone, {}, chunk_size=16, backend=backend)
            assert_close({"out": packed["out"][b : b + 1, span]}, {"out": found["out"]})
        assert_close({"state": packed["state"][b : b + 1]}, {"state": found["state"]})


def test_log_decay_is_broadcast_over_heads():
    inputs, arguments = make(20, decay=True)
    one = inputs | {"log_decay": inputs["log_decay"][..., :1]}
    all_heads = inputs | {"log_decay": inputs["log_decay"][..., :1].repeat(1, 1, 2)}
    assert_close(run(one, arguments), run(all_heads, arguments))


def test_an_average_of_equal_values_is_that_value():
    inputs, arguments = make(50)
    inputs["v"] = torch.full_like(inputs["v"], 2.5)
    out = run(inputs, arguments)["out"]
    torch.testing.assert_close(out, torch.full_like(out, 2.5))


def test_weights_that_are_all_zero_give_zero_not_nan():
    inputs, arguments = make(5)
    inputs["q"] = torch.zeros_like(inputs["q"])
    assert (run(inputs, arguments)["out"] == 0).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_bfloat16_inputs_accumulate_in_float32(backend):
    inputs, arguments = make(1000, streams=1, dtype=torch.bfloat16)
    exact = run({name: tensor.double() for name, tensor in inputs.items()}, arguments, backend="naive")
    found = run(inputs, arguments, backend=backend)
    assert found["out"].dtype == torch.bfloat16
    assert found["state"].dtype == torch.float32
    # What remains is the rounding of the output itself (8 bits) and of float32 sums.
    torch.testing.assert_close(found["out"].double(), exact["out"], rtol=2**-8, atol=1e-5)
    torch.testing.assert_close(found["state"].double(), exact["state"], rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("backend", BACKENDS)
def test_float64_inputs_stay_float64(backend):
    inputs, arguments = make(10)
    found = run(inputs, arguments, backend=backend)
    assert {tensor.dtype for tensor in found.values()} == {torch.float64}


@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("backend", FAST)
def test_uninitialised_memory_is_never_read(options, backend):
    inputs, arguments = make(63, **options)
    fast = with_gradients(lambda given: run(given, arguments, chunk_size=16, backend=backend), inputs)
    torch.use_deterministic_algorithms(False)
    assert_close(fast, with_gradients(lambda given: run(given, arguments, backend="naive"), inputs))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("decay", [True, "feature"])
def test_a_decay_of_zero_forgets_everything_before_its_row(backend, decay):
    inputs, arguments = make(40, decay=decay)
    inputs["log_decay"][:, 13] = -torch.inf
    later = {name: tensor[:, 13:] for name, tensor in inputs.items()}
    found = run(inputs, arguments, chunk_size=16, backend=backend)
    expected = run(later, arguments, backend="naive")
    assert_close({"out": found["out"][:, 13:], "state": found["state"]}, expected)


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("decay", [True, "feature"])
def test_a_strong_decay_leaves_later_weights_their_precision(backend, decay):
    inputs, arguments = make(40, decay=decay, dtype=torch.float32)
    inputs["log_decay"] *= 0.1
    inputs["log_decay"][:, 5] = -1e6
    exact = run({name: tensor.double() for name, tensor in inputs.items()}, arguments, backend="naive")
    found = run(inputs, arguments, chunk_size=64, backend=backend)
    assert_close({name: tensor.double() for name, tensor in found.items()}, exact, relative=1e-4)


def test_missing_axes_are_named_with_the_shapes_got():
    inputs, _ = make(5)
    with pytest.raises(ValueError, match=r"takes q \[B, N, H, d\].*got \(2, 5, 2, 3\), \(2, 5, 2, 3\)"):
        linear_attention(inputs["q"], inputs["k"][:, :, 0], inputs["v"])


@pytest.mark.parametrize("wrong", ["rows", "heads", "features", "streams"])
def test_sizes_that_disagree_are_named_with_the_shapes_got(wrong):
    inputs, _ = make(5)
    q, k, v = inputs.values()
    if wrong == "rows":
        k = k[:, :4]
    elif wrong == "heads":
        k = k[:, :, :, :1]
    elif wrong == "features":
        k = k[..., :2]
    else:
        v = v[:, :, :2]
    shapes = rf"got q .*, k \({', '.join(map(str, k.shape))}\), v \({', '.join(map(str, v.shape))}\)"
    with pytest.raises(ValueError, match=f"batch, rows, heads and features must agree; {shapes}"):
        linear_attention(q, k, v)
