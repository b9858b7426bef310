from __future__ import annotations

import pytest
import torch
from torch import nn

from longwave.benchmarks.contestants import Contestant, Floor, rows
from longwave.benchmarks.decode import BURST, Decoder, floor_measure, state_after
from longwave.benchmarks.passes import Pass
from longwave.mixers.base import fork, nbytes


def positionless(tiny, **changes) -> Contestant:
    """Softmax without rotary positions, which is what its floor computes."""
    return Contestant("softmax", tiny(mixers="softmax", overrides=[("softmax.rotary_base", None)], **changes))


class TestContestant:
    def test_arguments_are_its_own_and_the_key_value_heads_of_all(self, tiny):
        settings = tiny(num_kv_heads=1, overrides=[("hale.window", 5)])
        hale, softmax = Contestant("hale", settings), Contestant("softmax", settings)
        assert (hale.mixer.window, softmax.mixer.num_kv_heads) == (5, 1)
        assert softmax.arguments == {"num_kv_heads": 1}

    def test_an_argument_of_its_own_goes_before_that_of_all(self, tiny):
        settings = tiny(num_kv_heads=1, overrides=[("softmax.num_kv_heads", 2)])
        assert Contestant("softmax", settings).mixer.num_kv_heads == 2

    @pytest.mark.parametrize(
        ("dtype", "weights", "outputs"),
        [
            ("float32", torch.float32, torch.float32),
            ("float64", torch.float64, torch.float64),
            ("bfloat16", torch.float32, torch.bfloat16),
        ],
    )
    def test_precision(self, tiny, dtype, weights, outputs):
        contestant = Contestant("softmax", tiny(dtype=dtype))
        assert contestant.mixer.q_proj.weight.dtype == weights
        assert contestant.make_pass("forward", 5)().dtype == outputs
        assert Floor(contestant).make_pass("forward", 5)().dtype == outputs

    def test_training_and_evaluation_mode(self, tiny):
        contestant = Contestant("hale", tiny())
        contestant.make_pass("forward", 5)
        assert not contestant.mixer.training
        contestant.make_pass("forward_backward", 5)
        assert contestant.mixer.training


class TestPass:
    def test_backward_differentiates_by_the_input_and_all_parameters(self, tiny):
        layer, x = nn.Linear(16, 16), torch.randn(3, 16, requires_grad=True)
        run = Pass(lambda: layer(x), (x, *layer.parameters()), "forward_backward", tiny())
        for_x, for_weight, for_bias = run()
        assert torch.equal(for_x, torch.ones(3, 16) @ layer.weight)
        assert torch.allclose(for_weight, torch.ones(16, 3) @ x)
        assert torch.equal(for_bias, torch.full((16,), 3.0))
        assert x.grad is None

    def test_forward_keeps_no_graph(self, tiny):
        layer, x = nn.Linear(16, 16), torch.randn(3, 16, requires_grad=True)
        assert not Pass(lambda: layer(x), (x,), "forward", tiny())().requires_grad

    def test_of_indices_has_no_backward(self, tiny):
        assert Pass(lambda: torch.arange(3), (), "forward_backward", tiny())() == ()


class TestFloor:
    @pytest.mark.parametrize("num_kv_heads", [1, 2])
    def test_computes_softmax_attention_without_positions(self, tiny, num_kv_heads):
        softmax = positionless(tiny, num_kv_heads=num_kv_heads, dtype="float64")
        torch.testing.assert_close(
            Floor(softmax).make_pass("forward", 24)(), softmax.make_pass("forward", 24)(), rtol=0, atol=1e-12
        )

    def test_has_the_same_gradients(self, tiny):
        softmax = positionless(tiny, dtype="float64")
        mine, others = (each.make_pass("forward_backward", 24)() for each in (Floor(softmax), softmax))
        for a, b in zip(mine, others, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-10)

    def test_a_step_attends_to_the_cached_rows_and_its_own(self, tiny):
        step = Floor(positionless(tiny)).make_step(num_tokens=6)
        keys, values = (cell.cell_contents for cell in step.__closure__ if isinstance(cell.cell_contents, torch.Tensor))
        assert keys.shape == values.shape == (1, 2, 7, 8)
        before = keys.clone()
        assert step(torch.randn(1, 16)).shape == (1, 16)
        changed = (keys != before).any(dim=-1)[0, 0]
        assert changed.tolist() == [False] * 6 + [True]

    @pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
    def test_its_steps_are_timed(self, tiny, dtype):
        assert floor_measure(Floor(positionless(tiny, dtype=dtype)), 6)() > 0


class TestDecode:
    @pytest.mark.parametrize("label", ["hale", "softmax"])
    def test_the_state_is_after_so_many_tokens_and_stays(self, tiny, label):
        contestant = Contestant(label, tiny(batch_size=2))
        decoder = Decoder(contestant, 24)
        assert decoder.state.tokens.tolist() == [24, 24]
        before = fork(decoder.state)
        assert decoder.measure() > 0
        assert decoder.peak_bytes() > 0
        assert all(torch.equal(a, b) for a, b in zip(decoder.state, before, strict=True))
        assert nbytes(decoder.state) <= 2 * contestant.mixer.state_bytes(24)

    def test_a_burst_is_timed_from_the_state_on(self, tiny, monkeypatch):
        contestant = Contestant("hale", tiny())
        decoder, seen, step = Decoder(contestant, 24), [], contestant.mixer.step
        monkeypatch.setattr(contestant.mixer, "step", lambda x, state: seen.append(int(state.tokens)) or step(x, state))
        decoder.measure()
        decoder.measure()
        assert seen == 2 * list(range(24, 24 + 1 + BURST))

    def test_rows_are_fed_in_pieces(self, tiny, monkeypatch):
        monkeypatch.setattr("longwave.benchmarks.decode.PIECE", 10)
        for label, sizes in (("hale", [10, 10, 5]), ("softmax", [25])):
            contestant, fed = Contestant(label, tiny()), []
            contestant.mixer.register_forward_pre_hook(lambda module, args, fed=fed: fed.append(args[0].shape[1]))
            assert state_after(contestant, 25).tokens.tolist() == [25]
            assert fed == sizes


def test_every_contestant_is_given_the_same_rows(tiny):
    assert torch.equal(rows(tiny(), 5), rows(tiny(), 5))
    assert rows(tiny(batch_size=3), 5).shape == (3, 5, 16)
