"""Gated linear attention: linear attention that forgets, at a rate that the token decides.

    S_t = diag(a_t) S_{t-1} + k_t v_tᵀ;   o_t = S_tᵀ q_t / sqrt(d);   y = W_o (RMSNorm(o) silu(W_g x))

Three published mixers differ in the decay a_t, and come out of one set of arguments:

* ``decay="channel"``, gated linear attention (GLA): a_t = sigmoid(x W_1 W_2 + b)^(1/16), one for each key
  channel, W_1 W_2 of rank 16. Yang et al. 2023, https://arxiv.org/abs/2312.06635 (there without a convolution and
  SiLU, ``conv_size=0``, and with LayerNorm and a bias in the gate).
* ``decay="head"``, the state space dual (SSD, Mamba-2): a_t = exp(-A step_t), one for each head, and values are
  multiplied by the step. Dao and Gu 2024, https://arxiv.org/abs/2405.21060 (there queries and keys are shared by
  all heads, and queries are not divided by sqrt(d); values have twice the width, ``expand_v=2``, a multiple of them is
  added to the output, the gate acts before the norm, which runs over all heads, and the convolution has a bias).
* ``decay="fixed"``, retention (RetNet): a = 1 - 2^(-5-h) for head h, and rotary positions,
  ``rotary_base=10000``. Sun et al. 2023, https://arxiv.org/abs/2307.08621 (there ``conv_size=0, expand_k=1,
  expand_v=2``, and the norm of a head is GroupNorm, which subtracts the mean and has no gain; the scores' further
  normalisation by rows, which that norm undoes, is left out here).

Queries, keys and values pass a short causal convolution and SiLU unless ``conv_size=0``.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from longwave.mixers.base import Declaration, TokenMixer, observe
from longwave.modules import (
    ConvolvedHeads,
    GatedOutput,
    HeadDecay,
    Linear,
    MemoryState,
    apply_rotary,
    head_width,
    rotary_angles,
)
from longwave.ops import document_positions, linear_attention

RANK = 16
SOFTENING = 16


class ChannelDecay(nn.Module):
    """log a = logsigmoid(x W_1 W_2 + b) / 16, `[B, N, D] -> [B, N, H, d]`, float32 or wider."""

    def __init__(self, hidden_size: int, num_heads: int, key_dim: int) -> None:
        super().__init__()
        self.shape = (num_heads, key_dim)
        self.down_proj = Linear(hidden_size, RANK, bias=False)
        self.up_proj = Linear(RANK, num_heads * key_dim)

    def forward(self, x: Tensor) -> Tensor:
        logits = self.up_proj(self.down_proj(x)).unflatten(-1, self.shape)
        return F.logsigmoid(logits.to(torch.promote_types(logits.dtype, torch.float32))) / SOFTENING


class GatedLinear(TokenMixer):
    """Gated linear attention.

    Args:
        hidden_size: D.
        num_heads: H.
        decay: ``"channel"``, ``"head"`` or ``"fixed"``; see the file.
        expand_k: key channels of all heads over D.
        expand_v: value channels of all heads over D.
        conv_size: rows that the convolution reads, the present one included; 0 for no convolution, else at least 2.
        rotary_base: base of rotary positions on queries and keys; ``None`` for none.
        chunk_size: rows of a chunk of the chunkwise form; never changes a result.

    Raises:
        ValueError: an argument is outside its range, or heads would not have whole widths.
    """

    def __init__(
        self,
        hidden_size: int,
        num_heads: int,
        *,
        decay: Literal["channel", "head", "fixed"] = "channel",
        expand_k: float = 0.5,
        expand_v: float = 1.0,
        conv_size: int = 4,
        rotary_base: float | None = None,
        chunk_size: int = 64,
    ) -> None:
        super().__init__(hidden_size, num_heads)
        if decay not in ("channel", "head", "fixed"):
            raise ValueError(f"gated_linear: decay must be 'channel', 'head' or 'fixed', got {decay!r}")
        if conv_size < 0 or conv_size == 1 or chunk_size < 1:
            raise ValueError(
                f"gated_linear needs conv_size 0 or at least 2, chunk_size at least 1; got {conv_size}, {chunk_size}"
            )
        self.key_dim = head_width("gated_linear: expand_k", expand_k, hidden_size, num_heads)
        self.value_dim = head_width("gated_linear: expand_v", expand_v, hidden_size, num_heads)
        if rotary_base is not None and (rotary_base <= 0 or self.key_dim % 2):
            raise ValueError(
                "gated_linear: rotary positions need a rotary_base above 0 and an even key width, "
                f"got {rotary_base} and {self.key_dim}"
            )
        self.rotary_base, self.conv_size, self.chunk_size = rotary_base, conv_size, chunk_size
        self.heads = ConvolvedHeads(hidden_size, num_heads, self.key_dim, self.value_dim, conv_size)
        self.decay = None
        if decay == "channel":
            self.decay = ChannelDecay(hidden_size, num_heads, self.key_dim)
        elif decay == "head":
            self.decay = HeadDecay(hidden_size, num_heads)
        self.output = GatedOutput(hidden_size, num_heads, self.value_dim)

    def reset_parameters(self) -> None:
        self.heads.reset_parameters()
        if isinstance(self.decay, HeadDecay):
            self.decay.reset_parameters()

    def declaration(self) -> Declaration:
        edges = (self.conv_size, self.chunk_size) if self.conv_size else (self.chunk_size,)
        return Declaration(growth="constant", edges=edges)

    def forward(
        self,
        x: Tensor,
        state: MemoryState | None = None,
        *,
        starts: Tensor | None = None,
        return_state: bool = False,
    ) -> tuple[Tensor, MemoryState | None]:
        (q, k, v), ring = self.heads(x, state, starts=starts)  # [B, N, H, d] twice, [B, N, H, e]
        if self.rotary_base is not None:
            tokens = None if state is None else state.tokens
            positions = document_positions(*x.shape[:2], tokens=tokens, starts=starts, device=x.device)
            angles = rotary_angles(positions, self.key_dim, base=self.rotary_base, dtype=q.dtype)
            q, k = apply_rotary(q, *angles), apply_rotary(k, *angles)
        log_decay, v = self._decay(x, v)
        out: Any
        out, memory = linear_attention(
            *(q * self.key_dim**-0.5, k[:, :, None], v[:, :, None]),
            log_decay=log_decay,
            normalize=False,
            chunk_size=self.chunk_size,
            initial_state=None if state is None else state.memory[:, None],
            starts=starts,
            return_state=True,
        )
        y = self.output(observe("gated_linear.heads", out[:, :, 0]), x)
        return y, MemoryState(memory[:, 0], ring.rows, ring.tokens) if return_state else None

    def init_state(self, batch_size, *, max_tokens=None, device=None, dtype=None) -> MemoryState:
        return self.heads.init_state(batch_size, device=device, dtype=dtype)

    def state_bytes(self, num_tokens: int, dtype: torch.dtype = torch.float32) -> int:
        return self.heads.state_bytes(dtype)

    def flops(self, num_tokens: int) -> int:
        D, H, d, e = self.hidden_size, self.num_heads, self.key_dim, self.value_dim
        chunk = min(self.chunk_size, num_tokens)
        projections = 2 * D * H * (2 * d + 3 * e)
        pairs = 2 * chunk * H * (d + e)
        if isinstance(self.decay, ChannelDecay):
            projections += 2 * RANK * (D + H * d)
            pairs = (2 ** (chunk.bit_length() - 1) - 1) * H * (d + e)
        elif isinstance(self.decay, HeadDecay):
            projections += 2 * D * H
        return num_tokens * (projections + pairs + 4 * H * d * e)

    def _decay(self, x: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Logarithm of the decay, `[B, N, H, d]` or broadcastable to `[B, N, H]`, and the values that go in."""
        if isinstance(self.decay, ChannelDecay):
            return observe("gated_linear.log_decay", self.decay(x)), v
        if isinstance(self.decay, HeadDecay):
            log_decay, step = self.decay(x)
            return observe("gated_linear.log_decay", log_decay), (v * step[..., None]).to(v.dtype)
        heads = torch.arange(self.num_heads, device=x.device, dtype=torch.promote_types(x.dtype, torch.float32))
        return torch.log1p(-(2.0 ** (-5 - heads)))[None, None], v
