"""Grid filters: both forms compute the recurrence and the sum over the taps, in any pieces."""

from __future__ import annotations

import pytest
import torch

from longwave.ops import Ring
from longwave.ops.grid_field import causal_filter, damped_wave
from tests.ops.compare import assert_close, documents, pieces, random_starts, with_gradients

BACKENDS = ("naive", "torch")
OPS = ("damped_wave", "causal_filter", "sparse")
LENGTHS = [1, 2, 3, 63, 64, 65, 127, 128, 129, 300]
OPTIONS = {"plain": {}, "starts": {"starts": True}, "state": {"state": True}, "both": {"starts": True, "state": True}}
OFFSETS = (0, 1, 4, 6, 140)
NUM_TAPS = 141
SEEN = (150, 5)


def make(op, num_rows, *, starts=False, state=False, dtype=torch.float64):
    """Two sequences of three heads; with a state, of 150 and 5 rows seen."""
    inputs = {"u": torch.randn(2, num_rows, 3, 4, dtype=dtype)}
    if op == "damped_wave":
        inputs["pole"] = torch.stack([torch.rand(3, dtype=dtype) / 10, torch.randn(3, dtype=dtype)])
        inputs["read"] = torch.randn(2, 3, dtype=dtype)
    else:
        inputs["taps"] = torch.randn(3, len(OFFSETS) if op == "sparse" else NUM_TAPS, dtype=dtype)
    arguments = {"starts": random_starts(2, num_rows, share=0.03) if starts else None, "tokens": None}
    if state:
        arguments["tokens"] = torch.tensor(SEEN)
        shape = (2, 3, 2, 4) if op == "damped_wave" else (2, NUM_TAPS, 3, 4)
        inputs["state"] = torch.randn(shape, dtype=dtype)
        if op != "damped_wave":
            inputs["state"][1, SEEN[1] :] = 0.0
    return inputs, arguments


def run(op, inputs, arguments, **more):
    inputs, arguments = dict(inputs), dict(arguments)
    state, tokens = inputs.pop("state", None), arguments.pop("tokens", None)
    if op == "damped_wave":
        out, final = damped_wave(**inputs, **arguments, initial_state=state, **more, return_state=True)
        return {"out": out, "state": final}
    ring = None if state is None else Ring(state, tokens)
    offsets = OFFSETS if op == "sparse" else None
    out, final = causal_filter(**inputs, **arguments, offsets=offsets, initial_state=ring, **more, return_state=True)
    return {"out": out, "state": final.rows, "tokens": final.tokens}


def test_naive_wave_is_the_recurrence_of_complex_numbers():
    inputs, arguments = make("damped_wave", 50)
    pole, read = torch.complex(-inputs["pole"][0], inputs["pole"][1]).exp(), torch.complex(*inputs["read"])
    state, rows = torch.zeros(2, 3, 4, dtype=torch.complex128), []
    for u in inputs["u"].unbind(dim=1):
        state = pole[:, None] * state + u
        rows.append((read[:, None] * state).real)
    found = run("damped_wave", inputs, arguments, backend="naive")
    expected = {"out": torch.stack(rows, dim=1), "state": torch.view_as_real(state).movedim(-1, 2)}
    assert_close(found, expected)


def test_naive_filter_is_pytorchs_convolution():
    inputs, arguments = make("causal_filter", 200)
    channels = inputs["u"].flatten(2).transpose(1, 2)
    weight = inputs["taps"].flip(1).repeat_interleave(4, dim=0)[:, None]
    padded = torch.nn.functional.pad(channels, (NUM_TAPS - 1, 0))
    expected = torch.nn.functional.conv1d(padded, weight, groups=12).transpose(1, 2).unflatten(2, (3, 4))
    assert_close({"out": run("causal_filter", inputs, arguments, backend="naive")["out"]}, {"out": expected})


@pytest.mark.parametrize("num_rows", LENGTHS)
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("op", OPS)
def test_torch_equals_naive_in_values_and_gradients(op, options, num_rows):
    inputs, arguments = make(op, num_rows, **options)
    naive, fast = (
        with_gradients(lambda given, name=name: run(op, given, arguments, backend=name), inputs) for name in BACKENDS
    )
    assert_close(fast, naive)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("cuts", [(50,), (1, 2, 3, 4), (63, 64, 65, 129)])
@pytest.mark.parametrize("op", OPS)
def test_pieces_with_the_state_carried_equal_the_whole(op, cuts, backend):
    inputs, arguments = make(op, 200, starts=True)
    whole = run(op, inputs, arguments, backend=backend)
    found, outs = {}, []
    for piece in pieces(200, cuts):
        part = inputs | {"u": inputs["u"][:, piece]} | ({"state": found["state"]} if found else {})
        given = {"starts": arguments["starts"][:, piece], "tokens": found.get("tokens")}
        found = run(op, part, given, backend=backend)
        outs.append(found["out"])
    assert_close({**found, "out": torch.cat(outs, dim=1)}, whole)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("op", OPS)
def test_each_document_equals_itself_alone(op, backend):
    inputs, arguments = make(op, 300, starts=True)
    packed = run(op, inputs, arguments, backend=backend)["out"]
    for b in range(2):
        for span in documents(arguments["starts"][b]):
            lone = run(op, inputs | {"u": inputs["u"][b : b + 1, span]}, {}, backend=backend)
            assert_close({"out": packed[b : b + 1, span]}, {"out": lone["out"]})


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("op", OPS)
def test_the_future_moves_nothing_at_all(op, backend):
    inputs, arguments = make(op, 200)
    before = run(op, inputs, arguments, backend=backend)["out"]
    changed = inputs["u"].clone()
    changed[:, 90:] *= -7
    after = run(op, inputs | {"u": changed}, arguments, backend=backend)["out"]
    assert torch.equal(after[:, :90], before[:, :90])


@pytest.mark.parametrize("op", OPS)
def test_bfloat16_rows_are_summed_in_float32(op):
    inputs, arguments = make(op, 150, dtype=torch.bfloat16)
    found = run(op, inputs, arguments, backend="torch")
    exact = run(op, {name: tensor.double() for name, tensor in inputs.items()}, arguments, backend="naive")
    assert found["out"].dtype == torch.bfloat16
    assert found["state"].dtype == torch.float32
    torch.testing.assert_close(found["out"].double(), exact["out"], rtol=2**-7, atol=1e-4)


@pytest.mark.parametrize("op", OPS)
def test_compiles_whole(op):
    inputs, arguments = make(op, 140, starts=True, state=True)

    def compute(given):
        return run(op, given, arguments, backend="torch")

    compiled = torch.compile(compute, fullgraph=True, backend="aot_eager")
    assert_close(with_gradients(compiled, inputs), with_gradients(compute, inputs))


def test_no_taps_give_nothing():
    out = causal_filter(torch.randn(1, 3, 2, 4), torch.zeros(2, 0), offsets=())
    assert torch.equal(out, torch.zeros(1, 3, 2, 4))


def test_what_disagrees_is_named():
    u = torch.zeros(1, 3, 2, 4)
    with pytest.raises(ValueError, match=r"pole and read \[2, H\]; got \(1, 3, 2, 4\), \(2, 3\), \(2, 2\)"):
        damped_wave(u, torch.zeros(2, 3), torch.zeros(2, 2))
    with pytest.raises(ValueError, match=r"taps \[H, R\]; got \(1, 3, 2, 4\), \(3, 5\)"):
        causal_filter(u, torch.zeros(3, 5))
    with pytest.raises(ValueError, match=r"for each of 2 taps, got \(0,\)"):
        causal_filter(u, torch.zeros(2, 2), offsets=(0,))
