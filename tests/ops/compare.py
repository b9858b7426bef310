"""Two forms of an op beside each other: values, states and gradients."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise

import torch
from torch import Tensor

RELATIVE = 1e-10

Outputs = Mapping[str, Tensor]


def assert_close(found: Outputs, expected: Outputs, relative: float = RELATIVE) -> None:
    """Every tensor within ``relative`` of the largest magnitude of the expected one."""
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(
            found[name],
            value,
            rtol=0,
            atol=relative * max(1.0, float(value.detach().abs().max()) if value.numel() else 0.0),
            msg=lambda text, name=name: f"{name}: {text}",
        )


def with_gradients(function: Callable[[Outputs], Outputs], inputs: Outputs) -> Outputs:
    """The outputs, and the gradient of their random projection with respect to each input."""
    leaves = {name: tensor.detach().clone().requires_grad_() for name, tensor in inputs.items()}
    outputs = {name: value for name, value in function(leaves).items() if value.is_floating_point()}
    generator = torch.Generator().manual_seed(11)
    total = torch.stack(
        [(value * torch.randn(value.shape, generator=generator, dtype=value.dtype)).sum() for value in outputs.values()]
    ).sum()
    gradients = torch.autograd.grad(total, list(leaves.values()))
    named = {f"gradient of {name}": gradient for name, gradient in zip(leaves, gradients, strict=True)}
    return {name: value.detach() for name, value in outputs.items()} | named


def pieces(num_rows: int, cuts: Sequence[int]) -> list[slice]:
    """Slices between the cuts."""
    return [slice(begin, end) for begin, end in pairwise([0, *cuts, num_rows])]


def random_starts(batch_size: int, num_rows: int, share: float = 0.1, seed: int = 5) -> Tensor:
    """`[B, N]` bool, documents of about 1 / share rows."""
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(batch_size, num_rows, generator=generator) < share


def documents(starts: Tensor) -> list[slice]:
    """The documents of one row's ``starts`` `[N]`."""
    borders = sorted({0, *starts.nonzero().flatten().tolist()})
    return pieces(len(starts), borders[1:])
