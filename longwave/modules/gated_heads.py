"""What surrounds a gated recurrence: heads behind a short convolution, a decay for each head, a gated output."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from longwave.modules.linear import Linear
from longwave.ops import Ring, causal_convolution, document_positions

STEPS = (1e-3, 1e-1)
RATES = (1.0, 16.0)


class MemoryState(NamedTuple):
    """State of a gated recurrence.

    ``memory`` `[B, H, d, e]` leads from keys to values; ``rows`` `[B, R, C]` is the convolution's ring, empty
    without one; ``tokens`` `[B]` counts the document's rows.
    """

    memory: Tensor
    rows: Tensor
    tokens: Tensor


class ConvolvedHeads(nn.Module):
    """silu(causal convolution(x W)) for queries, keys and values, cut into heads; x W alone without a convolution.

    Fu et al. 2023, https://arxiv.org/abs/2212.14052; with SiLU as in https://arxiv.org/abs/2312.00752.

    Args:
        hidden_size: D.
        num_heads: H.
        key_dim: d, channels of a head's query and key.
        value_dim: e, channels of its value.
        conv_size: rows that the convolution reads, the present one included; 0 for none.
    """

    def __init__(self, hidden_size: int, num_heads: int, key_dim: int, value_dim: int, conv_size: int) -> None:
        super().__init__()
        self.num_heads, self.key_dim, self.value_dim, self.conv_size = num_heads, key_dim, value_dim, conv_size
        self.sizes = [num_heads * width for width in (key_dim, key_dim, value_dim)]
        self.q_proj, self.k_proj, self.v_proj = (Linear(hidden_size, size, bias=False) for size in self.sizes)
        if conv_size:
            self.taps = nn.Parameter(torch.empty(sum(self.sizes), 1, conv_size))  # as PyTorch's depthwise ones
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Taps uniform within 1 / sqrt(conv_size), as PyTorch's convolutions."""
        if self.conv_size:
            nn.init.uniform_(self.taps, -(self.conv_size**-0.5), self.conv_size**-0.5)

    def forward(
        self, x: Tensor, state: MemoryState | None, *, starts: Tensor | None = None
    ) -> tuple[list[Tensor], Ring]:
        """q, k `[B, N, H, d]` and v `[B, N, H, e]` of ``x`` `[B, N, D]`, and the ring after it."""
        rows = torch.cat([self.q_proj(x), self.k_proj(x), self.v_proj(x)], dim=-1)
        past = None if state is None else Ring(state.rows, state.tokens)
        if self.conv_size:
            taps = self.taps[:, 0].flip(-1).T  # the present row's first
            found: Any = causal_convolution(rows, taps, initial_state=past, starts=starts, return_state=True)
            rows, ring = F.silu(found[0]), found[1]
        else:
            tokens = None if state is None else state.tokens
            positions = document_positions(*x.shape[:2], tokens=tokens, starts=starts, device=x.device)
            wide = torch.promote_types(rows.dtype, torch.float32)
            nothing = rows.new_zeros(x.shape[0], 0, 0, dtype=wide) if past is None else past.rows
            ring = Ring(nothing, positions[:, -1] + 1)
        heads = [rearrange(part, "b n (h c) -> b n h c", h=self.num_heads) for part in rows.split(self.sizes, dim=-1)]
        return heads, ring

    def init_state(self, batch_size: int, *, device: torch.device | None, dtype: torch.dtype) -> MemoryState:
        """The state that has seen nothing, float32 or wider."""
        wide = torch.promote_types(dtype, torch.float32)
        return MemoryState(
            torch.zeros(batch_size, self.num_heads, self.key_dim, self.value_dim, device=device, dtype=wide),
            torch.zeros(batch_size, *self._ring_shape(), device=device, dtype=wide),
            torch.zeros(batch_size, dtype=torch.int64, device=device),
        )

    def state_bytes(self, dtype: torch.dtype) -> int:
        """Bytes of the state of one sequence."""
        size, channels = self._ring_shape()
        memory = self.num_heads * self.key_dim * self.value_dim
        return torch.promote_types(dtype, torch.float32).itemsize * (memory + size * channels) + 8

    def _ring_shape(self) -> tuple[int, int]:
        return (self.conv_size - 1, sum(self.sizes)) if self.conv_size else (0, 0)


class HeadDecay(nn.Module):
    """exp(-A step) with step = softplus(x W + b), one of each for each head, A > 0 learned.

    Dao and Gu 2024, https://arxiv.org/abs/2405.21060, whose draws are kept: A begins uniform in [1, 16], the step
    log-uniform between 0.001 and 0.1.
    """

    def __init__(self, hidden_size: int, num_heads: int) -> None:
        super().__init__()
        self.step_proj = Linear(hidden_size, num_heads, bias=False)
        self.step_bias = nn.Parameter(torch.empty(num_heads))
        self.log_rate = nn.Parameter(torch.empty(num_heads))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Steps log-uniform, rates uniform."""
        low, high = (math.log(step) for step in STEPS)
        with torch.no_grad():
            steps = torch.empty_like(self.step_bias).uniform_(low, high).exp()
            self.step_bias.copy_(steps.expm1().log())  # softplus of it is the step
            self.log_rate.uniform_(*RATES).log_()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Logarithm of the decay, and the step, `[B, N, H]` each, float32 or wider."""
        logits = self.step_proj(x)
        wide = torch.promote_types(logits.dtype, torch.float32)
        step = F.softplus(logits.to(wide) + self.step_bias)
        return -self.log_rate.to(wide).exp() * step, step


class GatedOutput(nn.Module):
    """o_proj(RMSNorm(heads) silu(x W)), the norm over the channels of each head."""

    def __init__(self, hidden_size: int, num_heads: int, head_dim: int) -> None:
        super().__init__()
        self.g_proj = Linear(hidden_size, num_heads * head_dim, bias=False)
        self.norm = nn.RMSNorm(head_dim, eps=1e-5)
        self.o_proj = Linear(num_heads * head_dim, hidden_size, bias=False)

    def forward(self, heads: Tensor, x: Tensor) -> Tensor:
        """``heads`` `[B, N, H, e]` and the mixer's input ``x`` `[B, N, D]` to `[B, N, D]`."""
        normed = rearrange(self.norm(heads.to(self.norm.weight.dtype)), "b n h e -> b n (h e)")
        return self.o_proj(normed * F.silu(self.g_proj(x)))


def head_width(argument: str, ratio: float, hidden_size: int, num_heads: int) -> int:
    """Channels of a head if all heads together have ``ratio`` times ``hidden_size``.

    Raises:
        ValueError: that is no whole number of at least 1.
    """
    width = ratio * hidden_size / num_heads
    if width < 1 or width != int(width):
        raise ValueError(
            f"{argument} {ratio} gives {width} channels to each of {num_heads} heads, expected a whole number"
        )
    return int(width)
