from __future__ import annotations

import pytest
import torch
from torch import nn

from longwave.benchmarks.memory import growth_exponent, peak_bytes

KILO = 1000 * 4  # bytes of 1000 numbers in float32


class TestPeak:
    def test_is_the_most_that_is_alive_at_once(self):
        def work():
            a = torch.ones(1000)
            b = torch.ones(2000)  # 3000 numbers
            del a
            c = torch.ones(500)  # 2500
            return b, c

        assert peak_bytes(work) == 3 * KILO

    def test_what_is_dropped_at_once_counts_while_it_lives(self):
        def work():
            for _ in range(5):
                torch.ones(1000)

        assert peak_bytes(work) == KILO

    def test_what_was_there_before_does_not_count(self):
        before = torch.ones(5000)
        assert peak_bytes(lambda: before.exp()) == 5 * KILO
        assert peak_bytes(lambda: before.view(50, 100)) == 0

    def test_temporaries_inside_an_operation_count(self):
        x = torch.ones(10, 100)
        assert peak_bytes(lambda: x.t().contiguous().view(-1).sort()) >= 2 * KILO

    def test_a_linear_layer_and_its_backward_pass(self):
        x, layer = torch.randn(30, 10, requires_grad=True), nn.Linear(10, 20, bias=False)
        upstream = torch.ones(30, 20)

        def work():
            return torch.autograd.grad(layer(x), [x, layer.weight], upstream)

        # 30 x 20 outputs, gradients 30 x 10 of x and 20 x 10 of the weight
        assert peak_bytes(work) == 4 * (600 + 300 + 200)

    def test_the_same_every_time(self):
        x = torch.randn(64, 64)
        assert len({peak_bytes(lambda: (x @ x).softmax(dim=-1)) for _ in range(3)}) == 1


class TestExponent:
    @pytest.mark.parametrize("power", [0.0, 1.0, 1.5, 2.0])
    def test_of_a_power_is_that_power(self, power):
        lengths = [100, 300, 1000, 5000]
        assert growth_exponent(lengths, [7.0 * n**power for n in lengths]) == pytest.approx(power)

    def test_is_the_least_squares_slope_of_what_lies_beside_a_power(self):
        # logarithms (0, 0), (1, 2), (2, 1) to base 2: the slope through them is 1/2
        assert growth_exponent([1, 2, 4], [1, 4, 2]) == pytest.approx(0.5)

    @pytest.mark.parametrize("lengths", [[], [5], [5, 5]])
    def test_needs_two_lengths(self, lengths):
        with pytest.raises(ValueError, match="two different lengths"):
            growth_exponent(lengths, [1.0] * len(lengths))
