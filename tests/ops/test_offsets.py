"""Offset attention over lists of distances, in all kinds of weights: all forms are the formula, in any pieces."""

from __future__ import annotations

import pytest
import torch
from torch.library import opcheck

from longwave.ops import Ring, available_backends, offset_attention
from tests.ops.compare import assert_close, documents, pieces, random_starts, with_gradients

BACKENDS = available_backends("offset_attention")
FAST = BACKENDS[1:]
KINDS = ("softmax", "elu", "dot", "field")
READS = {
    "lattice": {"offsets": (0, 1, 2, 3, 4, 6, 8, 12, 16, 24)},
    "repeats": {"offsets": (0, 0, 0, 2, 2, 5)},
    "window and far": {"window": 5, "offsets": (9, 17)},
    "beyond the piece": {"offsets": (0, 40, 300)},
}
B, H, D = 2, 4, 5


def make(kind, num_rows, reads, *, groups=2, state=False, starts=False, dtype=torch.float64):
    """Differentiable inputs by name, and the remaining arguments."""
    heads, count = H if kind != "field" else groups, reads.get("window", 0) + len(reads["offsets"])
    inputs = {"v": torch.randn(B, num_rows, groups, D, dtype=dtype)}
    if kind != "field":
        inputs["q"] = torch.randn(B, num_rows, H, D, dtype=dtype)
        inputs["k"] = torch.randn(B, num_rows, groups, D, dtype=dtype)
    if kind != "softmax":
        inputs["weights"] = torch.randn(B, heads, num_rows, count, dtype=dtype)
    if kind in ("softmax", "elu"):
        inputs["bias"] = torch.randn(heads, 1, count, dtype=dtype)
        inputs["sink"] = torch.rand(B, heads, num_rows, dtype=dtype)
    reach = max(reads["offsets"])
    arguments = {**reads, "kind": kind, "starts": random_starts(B, num_rows) if starts else None}
    if state:
        inputs["rows"] = torch.randn(B, reach + 1, 1 if kind == "field" else 2, groups, D, dtype=dtype)
        arguments["tokens"] = torch.full((B,), reach + 7)
    return inputs, arguments


def run(inputs, arguments, **more):
    inputs, arguments = dict(inputs), dict(arguments)
    rows, tokens = inputs.pop("rows", None), arguments.pop("tokens", None)
    state = None if rows is None else Ring(rows, tokens)
    q, k, v = (inputs.pop(name, None) for name in "qkv")
    out, ring = offset_attention(q, k, v, **inputs, **arguments, initial_state=state, return_state=True, **more)
    return {"out": out, "rows": ring.rows, "tokens": ring.tokens}


def rows_of(name, tensor, span):
    """The rows ``span`` of an input."""
    return tensor[:, :, span] if name in ("weights", "sink") else tensor[:, span]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("reads", READS.values(), ids=READS)
def test_naive_is_the_formula_over_all_pairs(kind, reads):
    """With a matrix of distances instead of a list: every pair of rows, weighed as often as its distance is listed."""
    N = 30
    inputs, arguments = make(kind, N, reads, groups=H, starts=True)
    distances = (*range(reads.get("window", 0)), *reads["offsets"])
    document = arguments["starts"].cumsum(dim=1)
    rows = torch.arange(N)
    near = (rows[:, None] >= rows) & (document[:, :, None] == document[:, None, :])  # [B, i, j]
    total, mass = torch.zeros(B, N, H, D).double(), torch.zeros(B, N, H).double()
    for t, distance in enumerate(distances):
        hit = (near & (rows[:, None] - rows == distance)).double()[:, None]  # [B, 1, i, j]
        if kind == "field":
            w = inputs["weights"][..., t, None] * hit
        else:
            s = torch.einsum("bihd,bjhd->bhij", inputs["q"], inputs["k"])
            if kind == "dot":
                w = inputs["weights"][..., t, None] * s * hit
            elif kind == "elu":
                f = torch.nn.functional.elu(s + inputs["bias"][..., t, None]) + 1
                a = inputs["weights"][..., t, None]
                w, mass = a * f * hit, mass + (a.abs() * f * hit).sum(dim=-1).transpose(1, 2)
            else:
                w = (s / D**0.5 + inputs["bias"][..., t, None]).exp() * hit
                mass = mass + w.sum(dim=-1).transpose(1, 2)
        total = total + torch.einsum("bhij,bjhd->bihd", w, inputs["v"])
    if kind == "softmax":
        total = total / (mass + inputs["sink"].transpose(1, 2).exp())[..., None]
    if kind == "elu":
        total = total / (mass + inputs["sink"].transpose(1, 2) + 1e-6)[..., None]
    assert_close({"out": run(inputs, arguments, backend="naive")["out"]}, {"out": total})


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("reads", READS.values(), ids=READS)
@pytest.mark.parametrize("given", [{}, {"starts": True}, {"state": True}, {"starts": True, "state": True}], ids=str)
@pytest.mark.parametrize("num_rows", [1, 33])
@pytest.mark.parametrize("groups", [2, 4])
@pytest.mark.parametrize("backend", FAST)
def test_fast_equals_naive_in_values_and_gradients(kind, reads, given, num_rows, groups, backend):
    inputs, arguments = make(kind, num_rows, reads, groups=groups, **given)
    naive, fast = (
        with_gradients(lambda tensors, name=name: run(tensors, arguments, backend=name), inputs)
        for name in ("naive", backend)
    )
    assert_close(fast, naive)


@pytest.mark.parametrize("kind", KINDS)
def test_numba_equals_torch_in_float32_over_many_blocks(kind):
    inputs, arguments = make(kind, 1500, {"offsets": (*range(9), 16, 300, 1024)}, starts=True)

    def rounded(given):
        found = run({name: x.float() for name, x in given.items()}, arguments, backend="numba")
        return {"out": found["out"].double()}

    exact = with_gradients(lambda given: {"out": run(given, arguments, backend="torch")["out"]}, inputs)
    assert_close(with_gradients(rounded, inputs), exact, relative=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("cuts", [(35,), (1, 2, 3), (8, 9, 17, 18)])
@pytest.mark.parametrize("backend", BACKENDS)
def test_pieces_with_the_state_carried_equal_the_whole(kind, cuts, backend):
    inputs, arguments = make(kind, 50, READS["window and far"], starts=True)
    whole = run(inputs, arguments, backend=backend)
    state, outs = {}, []
    for piece in pieces(50, cuts):
        part = {name: x if name == "bias" else rows_of(name, x, piece) for name, x in inputs.items()}
        more = {**arguments, "starts": arguments["starts"][:, piece], "tokens": state.get("tokens")}
        found = run({**part, "rows": state.get("rows")}, more, backend=backend)
        outs.append(found.pop("out"))
        state = found
    assert_close({"out": torch.cat(outs, dim=1), **state}, whole)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_each_document_equals_itself_alone(kind, backend):
    inputs, arguments = make(kind, 60, READS["lattice"], starts=True)
    packed = run(inputs, arguments, backend=backend)["out"]
    for b in range(B):
        for span in documents(arguments["starts"][b]):
            lone = {n: x if n == "bias" else rows_of(n, x, span)[b : b + 1] for n, x in inputs.items()}
            found = run(lone, {**arguments, "starts": None}, backend=backend)["out"]
            assert_close({"out": packed[b : b + 1, span]}, {"out": found})


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_list_of_all_distances_is_the_window(backend):
    inputs, _ = make("softmax", 40, {"offsets": tuple(range(7))})
    inputs = {name: inputs[name] for name in "qkv"}
    window = run(inputs, {"window": 7}, backend=backend)["out"]
    assert_close({"out": run(inputs, {"offsets": tuple(range(7))}, backend=backend)["out"]}, {"out": window})
    zero = {**inputs, "bias": torch.zeros(H, 1, 7, dtype=torch.float64)}
    assert_close({"out": run(zero, {"offsets": tuple(range(7))}, backend=backend)["out"]}, {"out": window})


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_repeated_distance_counts_as_often(backend):
    inputs, _ = make("softmax", 20, {"offsets": (0, 3)})
    inputs = {name: inputs[name] for name in "qkv"}
    twice = run(inputs, {"offsets": (0, 3, 3)}, backend=backend)["out"]
    weighted = {**inputs, "bias": torch.tensor([0.0, 2.0]).log().clamp(min=0).expand(H, 1, 2).double()}
    assert_close({"out": twice}, {"out": run(weighted, {"offsets": (0, 3)}, backend=backend)["out"]}, relative=1e-7)


@pytest.mark.parametrize("kind", KINDS)
def test_numba_compiles_whole(kind):
    inputs, arguments = make(kind, 40, READS["repeats"], starts=True)

    def compute(given):
        return {"out": run(given, arguments, backend="numba")["out"]}

    compiled = torch.compile(compute, fullgraph=True, backend="aot_eager")
    assert_close(with_gradients(compiled, inputs), with_gradients(compute, inputs))


def test_numba_products_are_well_formed_operators():
    rows, known = (torch.randn(B, 2, n, D, dtype=torch.float64, requires_grad=True) for n in (7, 9))
    weights = torch.randn(B, 2, 7, 3, dtype=torch.float64, requires_grad=True)
    opcheck(torch.ops.longwave.distances_score_numba.default, (rows, known, [0, 2, 5]))
    opcheck(torch.ops.longwave.distances_mix_numba.default, (weights, known, [0, 2, 5]))


@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("backend", FAST)
def test_uninitialised_memory_is_never_read(kind, backend):
    inputs, arguments = make(kind, 33, READS["beyond the piece"], starts=True)
    fast = with_gradients(lambda given: run(given, arguments, backend=backend), inputs)
    torch.use_deterministic_algorithms(False)
    assert_close(fast, with_gradients(lambda given: run(given, arguments, backend="naive"), inputs))


@pytest.mark.parametrize(
    ("kind", "drop", "add", "sentence"),
    [
        ("softmax", (), {"weights": torch.ones(1)}, r"softmax takes bias, sink, got \['bias', 'sink', 'weights'\]"),
        ("dot", ("weights",), {}, r"dot takes weights, got \[\]"),
        ("dot", (), {"bias": torch.ones(1)}, r"dot takes weights, got \['bias', 'weights'\]"),
        ("dot", ("k",), {}, "q and k belong to every kind but field"),
        ("mean", (), {}, "unknown kind 'mean'; legal: softmax, elu, dot, field"),
    ],
)
def test_arguments_that_do_not_go_together_are_refused(kind, drop, add, sentence):
    inputs, arguments = make(kind if kind in KINDS else "dot", 3, {"offsets": (0, 1)})
    inputs = {name: x for name, x in inputs.items() if name not in drop} | add
    with pytest.raises(ValueError, match=sentence):
        run(inputs, {**arguments, "kind": kind})


@pytest.mark.parametrize("offsets", [(), (-1, 0)])
def test_offsets_must_be_there_and_not_negative(offsets):
    inputs, _ = make("dot", 3, {"offsets": (0, 1)})
    with pytest.raises(ValueError, match="give a window or offsets of at least 0"):
        run(inputs, {"offsets": offsets, "kind": "dot"})
