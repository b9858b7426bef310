"""Softmax attention, the mixer that all others claim to match: O(N²) time, a state linear in N.

Rotary positions, grouped key/value heads, an optional window, PyTorch's fused attention underneath. Packed
documents are attended one by one, which costs the sum of n² instead of N² and needs no mask.
Vaswani et al. 2017, https://arxiv.org/abs/1706.03762 (there ``rotary_base=None``, positions are added to the
embedding); rotary positions https://arxiv.org/abs/2104.09864 (there neighbouring channels are a pair, here m and
m + d/2: the rows of two projections in another order); grouped queries https://arxiv.org/abs/2305.13245. The gate is
that of DWARF's baseline.
"""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from longwave.mixers.base import SMALLEST_BUFFER, Declaration, TokenMixer, buffer_size
from longwave.modules import Linear, apply_rotary, rotary_angles
from longwave.ops import Ring, document_positions, offset_attention


class SoftmaxState(NamedTuple):
    """Keys (rotated) and values of the document, `rows`, and `tokens [B]`.

    Without a window, `rows` is `[B, 2, G, R, d]`, so that a head's keys lie together; row t is in slot t, and R
    doubles as it fills. With a window it is a ring `[B, R, 2, G, d]`, R the window, the slot t mod R.
    """

    rows: Tensor
    tokens: Tensor


class Softmax(TokenMixer):
    """Causal softmax attention.

    Args:
        hidden_size: D.
        num_heads: H, a divisor of D.
        num_kv_heads: G, a divisor of H; ``None`` for H.
        window: tokens that are read, the present one included; ``None`` for all.
        rotary_base: base of the rotary positions; ``None`` for no positions at all.
        bias: whether the four projections have one.
        gate_bias: heads are multiplied by sigmoid(x W_g + b_g), which begins at this b_g; ``None`` for no gate.
        dropout: probability, after the output projection.

    Raises:
        ValueError: an argument is outside its range, or sizes do not divide.
    """

    def __init__(
        self,
        hidden_size: int,
        num_heads: int,
        *,
        num_kv_heads: int | None = None,
        window: int | None = None,
        rotary_base: float | None = 10000.0,
        bias: bool = False,
        gate_bias: float | None = None,
        dropout: float = 0.0,
    ) -> None:
        super().__init__(hidden_size, num_heads)
        self.num_kv_heads = num_heads if num_kv_heads is None else num_kv_heads
        if self.num_kv_heads < 1 or num_heads % self.num_kv_heads:
            raise ValueError(f"softmax: num_heads {num_heads} is not a multiple of num_kv_heads {num_kv_heads}")
        if window is not None and window < 1:
            raise ValueError(f"softmax: window must be at least 1, got {window}")
        if rotary_base is not None and rotary_base <= 0:
            raise ValueError(f"softmax: rotary_base must be above 0, got {rotary_base}")
        if rotary_base is not None and self.head_dim % 2:
            raise ValueError(f"softmax: rotary positions need an even head width, got {self.head_dim}")
        self.window, self.rotary_base = window, rotary_base
        kv_size = self.num_kv_heads * self.head_dim
        self.q_proj = Linear(hidden_size, hidden_size, bias=bias)
        self.k_proj = Linear(hidden_size, kv_size, bias=bias)
        self.v_proj = Linear(hidden_size, kv_size, bias=bias)
        self.o_proj = Linear(hidden_size, hidden_size, bias=bias)
        self.gate_bias = gate_bias
        self.gate_proj = Linear(hidden_size, hidden_size) if gate_bias is not None else None
        self.dropout = nn.Dropout(dropout)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        if self.gate_proj is not None and self.gate_bias is not None:
            nn.init.constant_(self.gate_proj.bias, self.gate_bias)

    def declaration(self) -> Declaration:
        if self.window is None:
            return Declaration(growth="linear", cost="quadratic", edges=(SMALLEST_BUFFER, 2 * SMALLEST_BUFFER))
        return Declaration(growth="constant", edges=(self.window,))

    def forward(
        self,
        x: Tensor,
        state: SoftmaxState | None = None,
        *,
        starts: Tensor | None = None,
        return_state: bool = False,
    ) -> tuple[Tensor, SoftmaxState | None]:
        tokens = None if state is None else state.tokens
        positions = document_positions(*x.shape[:2], tokens=tokens, starts=starts, device=x.device)
        q, k, v = self._project(x, positions)  # [B, N, H, d], [B, N, G, d] twice
        if self.window is not None:
            ring = None if state is None else Ring(*state)
            shared = {"initial_state": ring, "starts": starts, "return_state": True}
            out, ring = offset_attention(q, k, v, window=self.window, **shared)
            final = SoftmaxState(*ring)
        else:
            out = _attend_documents(q, k, v, starts) if state is None else _attend_past(q, k, v, state, positions)
            state = state or self.init_state(x.shape[0], device=x.device, dtype=k.dtype)
            final = self._written(state, k, v, positions) if return_state else None
        return self._output(out, x), final if return_state else None

    def step(self, x: Tensor, state: SoftmaxState) -> tuple[Tensor, SoftmaxState]:
        q, k, v = self._project(x[:, None], state.tokens[:, None])
        rows, tokens = state
        batch = torch.arange(x.shape[0], device=x.device)
        pair = torch.stack([k, v], dim=2)[:, 0].to(rows.dtype)  # [B, 2, G, d]
        if self.window is None:
            length = int(tokens.max()) + 1
            rows = _grown(rows, length)
            rows[batch, :, :, tokens] = pair
            keys, values = _keys_and_values(rows[:, :, :, :length], q.dtype)
        else:
            length = self.window
            rows[batch, tokens % length] = pair
            keys, values = rows[:, :, 0].to(q.dtype), rows[:, :, 1].to(q.dtype)
        visible = None
        if len(batch) > 1 or self.window is not None:
            visible = (torch.arange(length, device=x.device) <= tokens[:, None])[:, None, None]
        out = _fused(q, keys, values, visible)
        return self._output(out, x[:, None])[:, 0], SoftmaxState(rows, tokens + 1)

    def init_state(self, batch_size, *, max_tokens=None, device=None, dtype=None) -> SoftmaxState:
        pair = (2, self.num_kv_heads)
        shape = (self.window, *pair) if self.window is not None else (*pair, buffer_size(max_tokens or 0))
        rows = torch.zeros(batch_size, *shape, self.head_dim, device=device, dtype=dtype)
        return SoftmaxState(rows, torch.zeros(batch_size, dtype=torch.int64, device=device))

    def state_bytes(self, num_tokens: int, dtype: torch.dtype = torch.float32) -> int:
        size = buffer_size(num_tokens) if self.window is None else self.window
        return 2 * size * self.num_kv_heads * self.head_dim * dtype.itemsize + 8

    def flops(self, num_tokens: int) -> int:
        D, kv = self.hidden_size, self.num_kv_heads * self.head_dim
        projections = num_tokens * (4 * D * (D + kv) + (2 * D * D if self.gate_proj is not None else 0))
        if self.window is None:
            return projections + 2 * D * num_tokens * (num_tokens + 1)
        return projections + 4 * D * num_tokens * (2 * min(self.window, num_tokens) - 1)

    def _project(self, x: Tensor, positions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = (
            rearrange(projection(x), "b n (h d) -> b n h d", d=self.head_dim)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        if self.rotary_base is not None:
            angles = rotary_angles(positions, self.head_dim, base=self.rotary_base, dtype=q.dtype)
            q, k = apply_rotary(q, *angles), apply_rotary(k, *angles)
        return q, k, v

    def _output(self, heads: Tensor, x: Tensor) -> Tensor:
        """`[B, N, D]` of heads `[B, N, H, d]` and the mixer's input."""
        heads = rearrange(heads, "b n h d -> b n (h d)")
        if self.gate_proj is not None:
            heads = heads * self.gate_proj(x).sigmoid()
        return self.dropout(self.o_proj(heads))

    def _written(self, state: SoftmaxState, k: Tensor, v: Tensor, positions: Tensor) -> SoftmaxState:
        """The state after the rows k, v: those of each batch row's last document, each in its slot."""
        batch_size, num_rows = positions.shape
        tokens = positions[:, -1] + 1
        continues = tokens == state.tokens + num_rows
        rows = _grown(torch.where(continues[:, None, None, None, None], state.rows, 0.0), int(tokens.max()))
        # Rows of earlier documents go to a slot beyond the buffer, which is cut off again.
        offsets = positions - torch.arange(num_rows, device=k.device)
        slots = torch.where(offsets == offsets[:, -1:], positions, rows.shape[3])
        batch = torch.arange(batch_size, device=k.device)[:, None]
        new = torch.stack([k, v], dim=2).to(rows.dtype)
        rows = F.pad(rows, (0, 0, 0, 1)).movedim(3, 1).index_put((batch, slots), new)
        return SoftmaxState(rows[:, :-1].movedim(1, 3).contiguous(), tokens)


def _attend_documents(q: Tensor, k: Tensor, v: Tensor, starts: Tensor | None) -> Tensor:
    """Causal attention without a past: one fused call, or one for each document."""
    if starts is None:
        return _fused(q, k, v)
    outputs = []
    for row in range(q.shape[0]):
        borders = starts[row].nonzero().flatten().tolist()
        spans = pairwise(sorted({0, *borders, q.shape[1]}))
        outputs.append(torch.cat([_fused(*(x[row : row + 1, a:b] for x in (q, k, v))) for a, b in spans], dim=1))
    return torch.cat(outputs)


def _attend_past(q: Tensor, k: Tensor, v: Tensor, state: SoftmaxState, positions: Tensor) -> Tensor:
    """Causal attention over the state's rows and then the piece's own."""
    rows = torch.arange(q.shape[1], device=q.device)
    continues = positions - rows == state.tokens[:, None]
    past = torch.arange(state.rows.shape[3], device=q.device) < state.tokens[:, None]
    distance = rows[:, None] - rows
    own = (distance >= 0) & (distance <= positions[..., None])
    visible = torch.cat([continues[..., None] & past[:, None], own], dim=2)
    old_keys, old_values = _keys_and_values(state.rows, k.dtype)
    keys, values = torch.cat([old_keys, k], dim=1), torch.cat([old_values, v], dim=1)
    return _fused(q, keys, values, visible[:, None])


def _keys_and_values(rows: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Of `[B, 2, G, R, d]`, as `[B, R, G, d]`."""
    keys, values = rows.to(dtype).transpose(2, 3).unbind(dim=1)
    return keys, values


def _fused(q: Tensor, k: Tensor, v: Tensor, visible: Tensor | None = None) -> Tensor:
    """PyTorch's attention on `[B, N, H, d]`; ``visible`` `[B, 1, N, K]` bool, or causal (one query sees all keys)."""
    q, k, v = (rearrange(x, "b n h d -> b h n d") for x in (q, k, v))
    grouped = q.shape[1] != k.shape[1]
    causal = visible is None and q.shape[2] > 1
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=visible, is_causal=causal, enable_gqa=grouped)
    return rearrange(out, "b h n d -> b n h d")


def _grown(rows: Tensor, num_tokens: int) -> Tensor:
    missing = buffer_size(num_tokens) - rows.shape[3]
    return F.pad(rows, (0, 0, 0, missing)) if missing > 0 else rows
