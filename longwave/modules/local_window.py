"""A local attention beside a far one."""

from __future__ import annotations

from torch import Tensor, nn


class LocalWindow(nn.Module):
    """g local + (1 - g) far, g = sigmoid(w x + b): softmax over the W rows before the present one, or nothing.

    DWARF's M-gate.

    Args:
        hidden_size: D.
        window: W.
    """

    def __init__(self, hidden_size: int, window: int) -> None:
        super().__init__()
        self.distances = tuple(range(1, window + 1))
        self.gate_proj = nn.Linear(hidden_size, 1)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """The gate half open, w of standard deviation 0.02."""
        nn.init.normal_(self.gate_proj.weight, std=0.02)
        nn.init.zeros_(self.gate_proj.bias)

    def forward(self, local: Tensor, far: Tensor, x: Tensor) -> Tensor:
        """`[B, N, H, d]` of the two and ``x`` `[B, N, D]`."""
        gate = self.gate_proj(x).sigmoid()[..., None]
        return gate * local + (1 - gate) * far
