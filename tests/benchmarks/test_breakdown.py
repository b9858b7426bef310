from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from longwave.benchmarks import run_benchmark
from longwave.benchmarks.breakdown import record
from longwave.benchmarks.contestants import Contestant
from longwave.benchmarks.counting import count_flops
from longwave.benchmarks.machine import measure_rates
from longwave.benchmarks.passes import Pass
from longwave.mixers import available, hale
from longwave.ops import offset_attention


class TestRecording:
    def test_finds_projections_ops_and_the_gate_of_hale(self, tiny):
        parts = {part.name: part.kind for part in record(Contestant("hale", tiny()), 24)}
        projections = {"q_proj", "k_proj", "v_proj", "local_k_proj", "local_v_proj", "o_proj"}
        assert {name for name, kind in parts.items() if kind == "linear"} == projections
        assert parts["gate"] == "module"
        assert parts["offset_attention"] == "op"
        assert not {"gate.hidden", "gate.out"} & set(parts), "what a part calls is inside it"

    def test_finds_the_fused_attention_of_softmax(self, tiny):
        parts = {part.name: part.kind for part in record(Contestant("softmax", tiny()), 24)}
        assert {"q_proj", "k_proj", "v_proj", "o_proj", "fused attention"} <= set(parts)

    def test_numbers_calls_of_the_same_name(self, tiny):
        parts = [part.name for part in record(Contestant(f"{__name__}:Twice", tiny()), 24)]
        assert parts == ["offset_attention", "offset_attention (2)", "proj"]

    def test_leaves_everything_as_it_was(self, tiny):
        contestant, attention = Contestant("hale", tiny()), F.scaled_dot_product_attention
        record(contestant, 24)
        assert hale.offset_attention is offset_attention
        assert F.scaled_dot_product_attention is attention
        assert all("forward" not in vars(part) for part in contestant.mixer.modules())

    def test_a_part_alone_computes_what_it_did(self, tiny):
        contestant = Contestant("softmax", tiny(dtype="float64"))
        part = next(part for part in record(contestant, 24) if part.name == "q_proj")
        alone = part.make_pass("forward", contestant.settings)()
        assert torch.equal(alone, contestant.mixer.q_proj(part.args[0]))


class TestCounting:
    def test_a_linear_layer(self, tiny):
        layer, x = nn.Linear(16, 32), torch.randn(5, 16, requires_grad=True)
        leaves = (x, *layer.parameters())
        assert count_flops(Pass(lambda: layer(x), leaves, "forward", tiny())) == 2 * 5 * 16 * 32
        assert count_flops(Pass(lambda: layer(x), leaves, "forward_backward", tiny())) == 3 * 2 * 5 * 16 * 32

    def test_fused_attention_reads_half_of_the_pairs(self, tiny):
        q = torch.randn(1, 2, 8, 4, requires_grad=True)
        run = Pass(lambda: F.scaled_dot_product_attention(q, q, q, is_causal=True), (q,), "forward", tiny())
        assert count_flops(run) == 2 * 2 * 2 * 4 * (8 * 9 // 2)  # scores and sums of 36 pairs, 4 channels, 2 heads
        run = Pass(lambda: F.scaled_dot_product_attention(q, q, q), (q,), "forward", tiny())
        assert count_flops(run) == 2 * 2 * 2 * 4 * 64

    @pytest.mark.parametrize("label", available())
    def test_a_mixer_does_what_it_declares(self, tiny, label):
        contestant = Contestant(label, tiny(overrides=[("hale.window", 16), ("hale.chunk_size", 16)]))
        counted = count_flops(contestant.make_pass("forward", 256))
        assert counted == pytest.approx(contestant.mixer.flops(256), rel=0.1)


class TestReport:
    def test_parts_and_the_rest_are_the_whole(self, tiny, trusted):
        report = run_benchmark(tiny(breakdown=True, lengths="24", passes="forward_backward"))
        assert list(report.certificates) == ["hale"]
        whole, *parts, rest = report.parts
        assert (whole.part, rest.part) == ("whole", "rest")
        assert sum(part.seconds for part in (*parts, rest)) == pytest.approx(whole.seconds)
        assert sum(part.share for part in (*parts, rest)) == pytest.approx(1.0)
        assert whole.flops == sum(part.flops for part in parts)
        assert report.as_dict()["parts"][-1]["flops"] is None

    def test_a_floor_is_the_slower_of_arithmetic_and_copies(self, tiny, trusted):
        report = run_benchmark(tiny(mixers="softmax", breakdown=True, lengths="24", passes="forward"))
        part = next(part for part in report.parts if part.part == "q_proj")
        assert part.flops == 2 * 24 * 16 * 16
        assert part.bytes == 4 * (24 * 16 + 16 * 16 + 24 * 16)
        rates = report.rates
        assert part.floor_seconds == max(part.flops / rates["flops_per_second"], part.bytes / rates["bytes_per_second"])


def test_rates_are_of_this_process(monkeypatch):
    monkeypatch.setattr("longwave.benchmarks.machine.MATRIX", 64)
    monkeypatch.setattr("longwave.benchmarks.machine.COPY_BYTES", 4096)
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        assert all(rate > 0 for rate in measure_rates(dtype, "cpu").values())


def _twice():
    from tests.toys import CumulativeMean

    class Twice(CumulativeMean):
        """Calls one op twice."""

        def forward(self, x, state=None, *, starts=None, return_state=False):
            heads = x[:, :, None]
            once = offset_attention(heads, heads, heads, window=3)
            return self.proj(offset_attention(once, heads, heads, window=5)[:, :, 0]), state

    return Twice


Twice = _twice()
