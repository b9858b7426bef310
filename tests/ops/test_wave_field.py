"""The wave fields: all forms compute the recursion, in any pieces, blocks and batches of streams of different age."""

from __future__ import annotations

import math

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from longwave.modules.wave_field import FieldMemory, WaveField
from longwave.ops import use_backend
from longwave.ops.fields import D4, UNIT_TAPS, FieldState, empty_field
from longwave.ops.wave_field import (
    cascade_field,
    delta_field,
    fir_field,
    pyramid_field,
)
from tests.ops.compare import assert_close, pieces, with_gradients

FIELDS = {"fir": fir_field, "cascade": cascade_field, "pyramid": pyramid_field, "delta": delta_field}
BLOCKWISE = ("cascade", "pyramid", "delta")
B, H, D = 2, 2, 3


def make(kind, num_rows, *, levels=4, ages=None, batch_size=B, width=D, dtype=torch.float64):
    """Differentiable inputs by name, those of a state of streams so many rows old included, and the ages."""
    inputs = {name: torch.randn(batch_size, num_rows, H, width, dtype=dtype) for name in "qkv"}
    if kind != "delta":
        inputs["gains"] = torch.randn(batch_size, num_rows, H, levels, dtype=dtype)
    if kind in ("fir", "delta"):
        inputs["bypass" if kind == "fir" else "beta"] = torch.rand(H, dtype=dtype)
    if ages is not None:
        past, state = make(kind, max(ages), levels=levels, width=width, dtype=dtype), []
        for row, age in enumerate(ages):
            lone = {name: x[row : row + 1, :age] if x.dim() > 1 else x for name, x in past.items()}
            state.append(FIELDS[kind](**lone, return_state=True)[1])
        joined = {name: torch.cat([getattr(part, name) for part in state]) for name in ("rows", "memory")}
        inputs |= {name: x for name, x in joined.items() if x.numel()}
    return inputs


def run(kind, inputs, ages=None, **more):
    given = dict(inputs)
    state = None
    if ages is not None:
        q, gains = given["q"], given.get("gains")
        state = empty_field(kind, 1 if gains is None else gains.shape[3], *q.shape[:1], *q.shape[2:], dtype=q.dtype)
        kept = {name: given.pop(name) for name in ("rows", "memory") if name in given}
        state = state._replace(**kept, tokens=torch.tensor(ages))
    out, state = FIELDS[kind](**given, initial_state=state, return_state=True, **more)
    return {"out": out, **state._asdict()}


@pytest.mark.parametrize("kind", BLOCKWISE)
@pytest.mark.parametrize("num_rows", [1, 7, 8, 9, 31, 33, 70])
@pytest.mark.parametrize("ages", [None, (5, 32), (37, 42)], ids=str)
@pytest.mark.parametrize(("levels", "chunk_size"), [(1, 4), (2, 2), (3, 64), (6, 8)])
def test_torch_equals_naive_in_values_and_gradients(kind, num_rows, ages, levels, chunk_size):
    inputs = make(kind, num_rows, levels=levels, ages=ages)
    naive, fast = (
        with_gradients(lambda given, name=name: run(kind, given, ages, backend=name, chunk_size=chunk_size), inputs)
        for name in ("naive", "torch")
    )
    assert_close(fast, naive)


@pytest.mark.parametrize("kind", BLOCKWISE)
def test_torch_equals_naive_over_many_blocks(kind):
    inputs = make(kind, 300, levels=9, ages=(131, 260))
    assert_close(run(kind, inputs, (131, 260), backend="torch"), run(kind, inputs, (131, 260), backend="naive"))


@pytest.mark.parametrize("kind", FIELDS)
@pytest.mark.parametrize("backend", ["naive", "torch"])
@pytest.mark.parametrize("cuts", [(50,), (1, 2, 3, 4), (7, 8, 9, 15, 16, 17, 40), range(1, 70)], ids=str)
def test_pieces_with_the_state_carried_equal_the_whole(kind, backend, cuts):
    inputs = make(kind, 70, levels=5)
    more = {"backend": backend} | ({} if kind == "fir" else {"chunk_size": 8})

    def in_pieces(given):
        state, outs = None, []
        for piece in pieces(70, cuts):
            part = {name: x[:, piece] if x.dim() > 1 else x for name, x in given.items()}
            out, state = FIELDS[kind](**part, initial_state=state, return_state=True, **more)
            outs.append(out)
        return {"out": torch.cat(outs, dim=1), **state._asdict()}

    assert_close(with_gradients(in_pieces, inputs), with_gradients(lambda given: run(kind, given, **more), inputs))


@pytest.mark.parametrize("kind", FIELDS)
@pytest.mark.parametrize("num_rows", [1, 30])
def test_streams_of_different_age_do_not_disturb_each_other(kind, num_rows):
    ages = (1, 6, 23, 64)
    past = make(kind, 64, levels=5, batch_size=4)
    after = make(kind, num_rows, levels=5, batch_size=4)
    lone = []
    for row, age in enumerate(ages):
        joined = {
            name: torch.cat([x[row : row + 1, :age], after[name][row : row + 1]], dim=1) if x.dim() > 1 else x
            for name, x in past.items()
        }
        found = run(kind, joined)
        lone.append(found | {"out": found["out"][:, age:]})
    states = [
        FIELDS[kind](**{n: x[r : r + 1, :age] if x.dim() > 1 else x for n, x in past.items()}, return_state=True)[1]
        for r, age in enumerate(ages)
    ]
    state = FieldState(*(torch.cat(parts) for parts in zip(*states, strict=True)))
    together = {name: past[name] if x.dim() == 1 else x for name, x in after.items()}
    out, final = FIELDS[kind](**together, initial_state=state, return_state=True)
    assert_close(
        {"out": out, **final._asdict()}, {name: torch.cat([found[name] for found in lone]) for name in lone[0]}
    )


@pytest.mark.parametrize("kind", FIELDS)
def test_state_that_has_seen_nothing_changes_nothing(kind):
    inputs = make(kind, 40)
    empty = empty_field(kind, 4, B, H, D, dtype=torch.float64)
    out, state = FIELDS[kind](**inputs, initial_state=empty, return_state=True)
    assert_close({"out": out, **state._asdict()}, run(kind, inputs))


@pytest.mark.parametrize("kind", FIELDS)
@pytest.mark.parametrize("backend", ["naive", "torch"])
def test_finite_differences(kind, backend):
    inputs = make(kind, 9, levels=3, ages=(3, 6))

    def compute(*values):
        found = run(kind, dict(zip(inputs, values, strict=True)), (3, 6), backend=backend)
        return found["out"], found["memory"]

    leaves = [x.requires_grad_() for x in inputs.values()]
    assert torch.autograd.gradcheck(compute, leaves, fast_mode=True)


def test_pyramid_is_the_cascade_at_every_last_item():
    inputs = make("pyramid", 65, levels=4)
    del inputs["gains"]
    for level in range(4):
        gains = torch.zeros(B, 65, H, 4, dtype=torch.float64)
        gains[..., level] = 1
        dense, held = cascade_field(**inputs, gains=gains), pyramid_field(**inputs, gains=gains)
        torch.testing.assert_close(held[:, :: 2**level], dense[:, :: 2**level], rtol=0, atol=1e-13)


@pytest.mark.parametrize("taps", [D4, UNIT_TAPS], ids=["raw", "unit"])
def test_delta_is_its_closed_form(taps):
    """o_n = beta sum_m (1 - beta)^{n-m} (q_n·k_m) T^{n-m} v_m."""
    inputs = make("delta", 20, width=6)
    q, k, v, beta = inputs.values()
    shift = torch.zeros(6, 6, dtype=torch.float64)
    for a, b in ((a, b) for a in range(6) for b in range(6) if 0 <= a - b <= 3):
        shift[a, b] = taps[a - b]
    expected = torch.zeros_like(v)
    for n, m in torch.tril_indices(20, 20).T.tolist():
        weight = beta * (1 - beta) ** (n - m) * (q[:, n] * k[:, m]).sum(dim=-1)
        expected[:, n] += weight[..., None] * (v[:, m] @ torch.linalg.matrix_power(shift, n - m).T)
    torch.testing.assert_close(delta_field(**inputs, taps=taps, chunk_size=8), expected, rtol=1e-12, atol=1e-12)


def test_every_distance_is_reached_and_none_beyond_the_cascade():
    reach = 3 * (2**3 - 1)
    k = torch.zeros(1, reach + 9, 1, 1, dtype=torch.float64)
    k[:, 0] = 1
    gains = torch.full((1, reach + 9, 1, 4), 0.25, dtype=torch.float64)
    dense = cascade_field(torch.ones_like(k), k, k, gains).flatten()
    assert (dense[: reach + 1] != 0).all()
    assert not dense[reach + 1 :].any()
    torch.testing.assert_close(dense.sum(), torch.tensor(1.0, dtype=torch.float64))


@pytest.mark.parametrize("kind", FIELDS)
def test_it_compiles_whole(kind):
    ages = (11, 30)
    inputs = make(kind, 40, ages=ages)

    def compute(given):
        return run(kind, given, ages, backend="torch")

    compiled = torch.compile(compute, fullgraph=True, backend="aot_eager")
    assert_close(with_gradients(compiled, inputs), with_gradients(compute, inputs))


@pytest.mark.parametrize("kind", FIELDS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2**-8)])
def test_narrow_inputs_accumulate_in_float32(kind, dtype, tolerance):
    inputs = make(kind, 300, levels=8, width=16)
    inputs = {name: x.softmax(dim=-1) if name == "gains" else x for name, x in inputs.items()}
    inputs = {name: x.to(dtype) for name, x in inputs.items()}
    exact = run(kind, {name: x.double() for name, x in inputs.items()})
    with torch.autocast("cpu", enabled=dtype == torch.bfloat16):
        found = run(kind, inputs)
    assert (found["out"].dtype, found["rows"].dtype, found["memory"].dtype) == (dtype, dtype, torch.float32)
    for name in ("out", "memory"):
        scale = max(1.0, float(exact[name].abs().max())) if exact[name].numel() else 1.0
        limit = 1e-5 if name == "memory" else tolerance
        torch.testing.assert_close(found[name].double(), exact[name], rtol=0, atol=limit * scale)


@pytest.mark.parametrize("kind", FIELDS)
def test_bad_arguments_are_named(kind):
    inputs = make(kind, 5)
    op = FIELDS[kind]
    with pytest.raises(ValueError, match=rf"{kind}_field takes q, k and v of one shape .* \(2, 4, 2, 3\)"):
        op(**inputs | {"k": inputs["k"][:, :4]})
    with pytest.raises(ValueError, match="4 taps, got 2"):
        op(**inputs, taps=(1.0, 2.0))
    if kind != "delta":
        with pytest.raises(ValueError, match=r"gains \[B, N, H, L\].*got \(2, 5, 2\)"):
            op(**inputs | {"gains": inputs["gains"][..., 0]})
    for name in {"bypass", "beta"} & inputs.keys():
        with pytest.raises(ValueError, match=rf"{name} \[H\] with H = 2, got \(1,\)"):
            op(**inputs | {name: inputs[name][:1]})
    if kind in ("pyramid", "delta"):
        with pytest.raises(ValueError, match="power of two"):
            op(**inputs, chunk_size=6)
    other = empty_field(kind, 7, B, H, D + 1, dtype=torch.float64)
    with pytest.raises(ValueError, match="rows"):
        op(**inputs, initial_state=other)


@pytest.mark.parametrize("kind", FIELDS)
@pytest.mark.parametrize("num_rows", [1, 7, 8, 65, 200])
def test_module_declares_what_it_holds_and_computes(kind, num_rows):
    field = WaveField(H, 5, FieldMemory(kind, levels=8))
    x = torch.randn(1, num_rows, H, 5)
    with torch.no_grad(), use_backend("torch"), FlopCounterMode(display=False) as counter:
        _, state = field(x, x, x, return_state=True)
    assert abs(counter.get_total_flops() - field.flops(num_rows)) <= 0.1 * field.flops(num_rows)
    assert sum(tensor.numel() * tensor.element_size() for tensor in state) == field.state_bytes()
    empty = field.init_state(1)
    assert [tensor.shape for tensor in empty] == [tensor.shape for tensor in state]
    assert not any(tensor.any() for tensor in empty)


@pytest.mark.parametrize("kind", FIELDS)
def test_module_in_pieces_equals_the_whole(kind):
    field = WaveField(H, 4, FieldMemory(kind, levels=5)).double()
    with torch.no_grad():
        for parameter in field.parameters():
            parameter.normal_()
    q, k, v = torch.randn(3, B, 40, H, 4, dtype=torch.float64)
    whole, none = field(q, k, v)
    assert none is None
    state, outs = field.init_state(B), []
    for piece in pieces(40, (1, 2, 20)):
        out, state = field(q[:, piece], k[:, piece], v[:, piece], state, return_state=True)
        outs.append(out)
    torch.testing.assert_close(torch.cat(outs, dim=1), whole, rtol=0, atol=1e-12)
    assert state.tokens.tolist() == [40, 40]


def test_module_begins_faint_with_levels_alike():
    field = WaveField(H, 4, FieldMemory("delta", gain_init=-3.0))
    assert torch.allclose(torch.sigmoid(field.decay_logit), torch.tensor(0.4))
    assert (field.gain == -3).all()
    field = WaveField(H, 64, FieldMemory("fir", levels=20))
    assert not field.gains.prior.any()
    assert 0.008 < field.gains.weight.detach().std() < 0.012
    assert (field.bypass == -4).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "dense"}, "one of fir, cascade, pyramid, delta, got 'dense'"),
        ({"kind": "fir", "levels": 0}, "levels must be 1 to 20, got 0"),
        ({"kind": "pyramid", "levels": 21}, "levels must be 1 to 20, got 21"),
        ({"kind": "delta", "gain_init": math.inf}, "gain_init must be a finite number, got inf"),
    ],
)
def test_bad_memories_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        FieldMemory(**options)
