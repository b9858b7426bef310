"""The gated delta rule: a memory that overwrites what a key held instead of adding to it, and forgets.

    S_t = a_t S_{t-1} + beta_t k_t (v_t - a_t S_{t-1}ᵀ k_t)ᵀ;   o_t = S_tᵀ q_t / sqrt(d)
    y = W_o (RMSNorm(o) silu(W_g x))

The bracket is what the memory gets wrong about k_t: with beta_t = 1 it holds exactly v_t for k_t afterwards,
where linear attention would hold a sum. a_t = exp(-A step_t) forgets, one number for each head. Queries and keys
have unit length, so that nothing grows; they and the values pass a short causal convolution and SiLU.

Yang et al. 2024, https://arxiv.org/abs/2412.06464, sizes included; there A begins uniform in [0, 16], here in [1, 16].
Without a decay (``decay=False``) it is the rule of DeltaNet, https://arxiv.org/abs/2406.06484, which has no output gate
and keys and values as wide as the stream (``expand_k=1, expand_v=1``).

A key of unit length is an eigenvector of the step, its eigenvalue a_t (1 - beta_t). beta = sigmoid(x W_b) keeps it
positive; with ``negative_eigenvalues`` beta = 2 sigmoid(x W_b), and a memory can also turn over, hence count modulo 2
(Grazzi et al. 2024, https://arxiv.org/abs/2411.12537).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from longwave.mixers.base import Declaration, TokenMixer, observe
from longwave.modules import ConvolvedHeads, GatedOutput, HeadDecay, Linear, MemoryState, head_width
from longwave.ops import gated_delta_rule

EPS = 1e-6


class GatedDelta(TokenMixer):
    """Gated delta rule.

    Args:
        hidden_size: D.
        num_heads: H.
        decay: whether the memory forgets.
        expand_k: key channels of all heads over D.
        expand_v: value channels of all heads over D.
        negative_eigenvalues: beta from 0 to 2 instead of 0 to 1.
        conv_size: rows that the convolution reads, the present one included, at least 2.
        chunk_size: rows of a chunk of the chunkwise form; never changes a result.

    Raises:
        ValueError: an argument is outside its range, or heads would not have whole widths.
    """

    def __init__(
        self,
        hidden_size: int,
        num_heads: int,
        *,
        decay: bool = True,
        expand_k: float = 0.75,
        expand_v: float = 1.5,
        negative_eigenvalues: bool = False,
        conv_size: int = 4,
        chunk_size: int = 64,
    ) -> None:
        super().__init__(hidden_size, num_heads)
        if conv_size < 2 or chunk_size < 1:
            raise ValueError(
                f"gated_delta needs conv_size at least 2 and chunk_size at least 1, got {conv_size}, {chunk_size}"
            )
        self.key_dim = head_width("gated_delta: expand_k", expand_k, hidden_size, num_heads)
        self.value_dim = head_width("gated_delta: expand_v", expand_v, hidden_size, num_heads)
        self.conv_size, self.chunk_size = conv_size, chunk_size
        self.largest_strength = 2.0 if negative_eigenvalues else 1.0
        self.heads = ConvolvedHeads(hidden_size, num_heads, self.key_dim, self.value_dim, conv_size)
        self.decay = HeadDecay(hidden_size, num_heads) if decay else None
        self.strength_proj = Linear(hidden_size, num_heads, bias=False)
        self.output = GatedOutput(hidden_size, num_heads, self.value_dim)

    def reset_parameters(self) -> None:
        self.heads.reset_parameters()
        if self.decay is not None:
            self.decay.reset_parameters()

    def declaration(self) -> Declaration:
        return Declaration(growth="constant", edges=(self.conv_size, self.chunk_size))

    def forward(
        self,
        x: Tensor,
        state: MemoryState | None = None,
        *,
        starts: Tensor | None = None,
        return_state: bool = False,
    ) -> tuple[Tensor, MemoryState | None]:
        (q, k, v), ring = self.heads(x, state, starts=starts)  # [B, N, H, d] twice, [B, N, H, e]
        q, k = _unit(q), _unit(k)
        strength = self.largest_strength * torch.sigmoid(self.strength_proj(x))  # beta, [B, N, H]
        strength = observe("gated_delta.strength", strength)
        log_decay = None if self.decay is None else observe("gated_delta.log_decay", self.decay(x)[0])
        out: Any
        out, memory = gated_delta_rule(
            *(q * self.key_dim**-0.5, k, v, strength),
            log_decay=log_decay,
            chunk_size=self.chunk_size,
            initial_state=None if state is None else state.memory,
            starts=starts,
            return_state=True,
        )
        y = self.output(observe("gated_delta.heads", out), x)
        return y, MemoryState(memory, ring.rows, ring.tokens) if return_state else None

    def init_state(self, batch_size, *, max_tokens=None, device=None, dtype=None) -> MemoryState:
        return self.heads.init_state(batch_size, device=device, dtype=dtype)

    def state_bytes(self, num_tokens: int, dtype: torch.dtype = torch.float32) -> int:
        return self.heads.state_bytes(dtype)

    def flops(self, num_tokens: int) -> int:
        D, H, d, e = self.hidden_size, self.num_heads, self.key_dim, self.value_dim
        chunk = min(self.chunk_size, num_tokens)
        projections = 2 * D * H * (2 * d + 3 * e + 1 + (self.decay is not None))
        pairs = 2 * chunk * H * (2 * d + e)
        system = chunk * H * (d + e)
        return num_tokens * (projections + pairs + system + 6 * H * d * e)


def _unit(x: Tensor) -> Tensor:
    """``x`` with length 1 over the last axis, 0 for (nearly) 0."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    return (wide * torch.rsqrt(wide.square().sum(dim=-1, keepdim=True) + EPS)).to(x.dtype)
