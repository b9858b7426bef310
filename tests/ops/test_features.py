"""elu(x) + 1 without its cancellation."""

from __future__ import annotations

import math

import pytest
import torch

from longwave.ops import elu_plus_one

POINTS = [-80.0, -20.0, -8.0, -1.0, -1e-3, 0.0, 1e-3, 1.0, 30.0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_positive_where_elu_plus_one_as_written_is_zero(dtype):
    x = torch.tensor([-80.0, -40.0, -18.0, -8.0], dtype=dtype)
    assert (elu_plus_one(x) > 0).all()


def test_positive_far_out_in_float64():
    assert elu_plus_one(torch.tensor(-200.0, dtype=torch.float64)) > 0


@pytest.mark.parametrize("x", POINTS)
def test_value_is_exp_below_zero_and_x_plus_one_above(x):
    found = elu_plus_one(torch.tensor(x, dtype=torch.float64))
    assert float(found) == pytest.approx(math.exp(x) if x < 0 else x + 1, rel=1e-14)


@pytest.mark.parametrize("x", POINTS)
def test_gradient_is_the_value_capped_at_one(x):
    point = torch.tensor(x, dtype=torch.float64, requires_grad=True)
    value = elu_plus_one(point)
    value.backward()
    torch.testing.assert_close(point.grad, value.detach().clamp(max=1), rtol=1e-14, atol=0)


def test_features_are_float32_or_wider():
    assert elu_plus_one(torch.zeros(2, dtype=torch.bfloat16)).dtype == torch.float32
    assert elu_plus_one(torch.zeros(2, dtype=torch.float64)).dtype == torch.float64
