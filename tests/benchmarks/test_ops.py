from __future__ import annotations

import inspect
import re

import pytest
import torch

from longwave import ops
from longwave.benchmarks import run_benchmark, warm_up
from longwave.benchmarks.examples import EXAMPLES, Shape
from longwave.benchmarks.ops import op_pass
from longwave.ops import BackendUnavailable, available_backends

KEYS = {
    "op", "backend", "num_tokens", "pass", "dtype", "seconds", "softmax_seconds", "ratio", "peak_bytes",
    "batch_size", "hidden_size", "num_heads", "arguments", "repeats",
}  # fmt: skip


def test_every_op_with_a_choice_of_forms_has_an_example():
    functions = {name: inspect.signature(item) for name, item in vars(ops).items() if inspect.isfunction(item)}
    chosen = {name for name, signature in functions.items() if {"initial_state", "backend"} <= {*signature.parameters}}
    assert chosen == set(EXAMPLES), "add the op to longwave/benchmarks/examples.py"


@pytest.mark.parametrize("op", EXAMPLES)
def test_an_example_runs_forward_and_backward(tiny, op):
    run = op_pass(op, "torch", {}, "forward_backward", Shape(2, 9, 2, 4), tiny("ops"))
    gradients = run()
    assert len(gradients) == len(run.leaves)
    assert all(torch.isfinite(gradient).all() for gradient in gradients)


class TestRows:
    def test_of_every_op_and_fast_form_with_exactly_these_keys(self, tiny):
        document = run_benchmark(tiny("ops", lengths="24", backend="torch")).as_dict()
        assert [(row["pass"], row["op"]) for row in document["rows"]] == [
            (kind, op) for kind in ("forward", "forward_backward") for op in EXAMPLES
        ]
        for row in document["rows"]:
            assert set(row) == KEYS
            assert row["ratio"] == row["softmax_seconds"] / row["seconds"]

    def test_the_naive_form_is_timed_only_if_asked_for(self, tiny):
        chosen = {"ops": "linear_attention", "lengths": "24", "passes": "forward"}
        backends = [row.backend for row in run_benchmark(tiny("ops", **chosen)).rows]
        assert backends == [name for name in available_backends("linear_attention") if name != "naive"]
        assert [row.backend for row in run_benchmark(tiny("ops", backend="naive", **chosen)).rows] == ["naive"]

    def test_arguments_are_set_by_op(self, tiny):
        settings = tiny("ops", ops="offset_attention", lengths="24", overrides=[("offset_attention.window", 3)])
        assert run_benchmark(settings).rows[0].arguments == {"window": 3}


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"overrides": [("block_means.window", 3)]}, "--set block_means.window: no such argument; legal: num_levels"),
        ({"overrides": [("block_means.num_levels", "two")]}, "expected int, got 'two'"),
        ({"overrides": [("offset_attention.window", 0)]}, "window must be at least 1, got 0"),
    ],
)
def test_a_bad_argument_is_refused(tiny, changes, sentence):
    with pytest.raises(ValueError, match=re.escape(sentence)):
        run_benchmark(tiny("ops", **changes))


def test_a_backend_that_an_op_lacks_is_refused(tiny):
    with pytest.raises(BackendUnavailable, match="has no backend 'triton'; legal: auto, naive, torch"):
        run_benchmark(tiny("ops", backend="triton"))


def test_warming_up_says_what_it_compiled(monkeypatch):
    ran = []
    monkeypatch.setattr(warm_up, "available_backends", lambda op: ("naive", "torch", "numba")[: 3 - ("block" in op)])
    monkeypatch.setattr(warm_up, "op_pass", lambda *given: lambda: ran.append((given[0], given[2].keys(), given[-1])))
    said = warm_up.warm_up()
    compiled = [op for op in EXAMPLES if "block" not in op]
    assert said.startswith(f"numba: {len(compiled)} ops compiled ({', '.join(compiled)}) in ")
    assert {(op, settings.dtype, settings.threads) for op, _, settings in ran} == {
        (op, dtype, threads) for op in compiled for dtype in ("float32", "float64") for threads in (1, 2)
    }
    assert any("starts" in given for _, given, _ in ran)
