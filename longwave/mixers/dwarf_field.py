"""DWARF G, H and I: a field of values, each as loud as its key, filtered by dyadic wavelets.

    u_n = |k_n| v_n;   f_n = sum_t g_{s(t)} c_t u_{n - d(t)}
    o_h = sum_h' softmax_h'(C_hh') f_h';   y = W_o (o sigmoid(gate))

Queries never meet keys: what a row reads depends on where it stands. The taps t are those of the D4 wavelet at the
scales 2^j, distance d(t) = tau 2^j, coefficient c_t = h_tau, and g are gains of the scales, which sum to 1.

* ``G``: gains fixed for each head.
* ``H``: G, then f_n += sum_r sigmoid(a_r) f_{n - m_r} at two far distances m, and a gate that reads the query.
* ``I``: gains chosen by the query.

The published code applied the filter backwards, the oldest tap h_0 first: ``tap_order="reversed"``.
Source: DWARF, conditions G, H and I.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import torch
from einops import rearrange
from torch import Tensor, nn

from longwave.mixers.base import Declaration, TokenMixer, observe
from longwave.modules import HeadCoupling, Linear, ScaleGains, lattice
from longwave.ops import D4, Ring, offset_attention, offset_attention_step

SKIPS = (512, 1024)
NO_SKIP = -4.0


class DwarfFieldState(NamedTuple):
    """Last rows of u, and with skips of f, as rings of one value a head; ``tokens`` `[B]` counts the document's rows.

    ``sources`` `[B, R, 1, H, d]`, R the farthest tap + 1; ``fields`` `[B, S, 1, H, d]`, S the farthest skip + 1 or 0.
    """

    sources: Tensor
    fields: Tensor
    tokens: Tensor


class DwarfField(TokenMixer):
    """A field of values under a dyadic filter.

    Args:
        hidden_size: D.
        num_heads: H.
        condition: ``"G"``, ``"H"`` or ``"I"``; see the file. It decides what the arguments left at ``None`` are.
        n_scales: J, scales of the filter, 1..20.
        taps: coefficients of one scale, nearest first.
        tap_order: ``"forward"``, or ``"reversed"`` as published.
        scale_gain: ``"static"`` or ``"query"``.
        skip_offsets: distances m, at least 1.
        gate: what the gate reads, ``"x"`` or ``"q"``.
        gate_bias: of the gate at the start.

    Raises:
        ValueError: an argument is outside its range.
    """

    def __init__(
        self,
        hidden_size: int,
        num_heads: int,
        *,
        condition: Literal["G", "H", "I"] = "G",
        n_scales: int = 11,
        taps: Sequence[float] = D4,
        tap_order: Literal["forward", "reversed"] = "forward",
        scale_gain: Literal["static", "query"] | None = None,
        skip_offsets: Sequence[int] | None = None,
        gate: Literal["x", "q"] | None = None,
        gate_bias: float = 2.0,
    ) -> None:
        super().__init__(hidden_size, num_heads)
        if condition not in ("G", "H", "I"):
            raise ValueError(f"dwarf_field: condition must be 'G', 'H' or 'I', got {condition!r}")
        if skip_offsets is None:
            skip_offsets = SKIPS if condition == "H" else ()
        if any(offset < 1 for offset in skip_offsets):
            raise ValueError(f"dwarf_field: skip_offsets must be at least 1, got {list(skip_offsets)}")
        scale_gain = scale_gain or ("query" if condition == "I" else "static")
        self.gate_reads_query = (gate or ("q" if condition == "H" else "x")) == "q"
        self.gate_bias, self.skip_offsets = gate_bias, tuple(skip_offsets)
        self.lattice = lattice(n_scales, taps if tap_order == "forward" else taps[::-1])
        self.distances = self.lattice.distinct
        self.qkv_proj = Linear(hidden_size, 3 * hidden_size)
        self.gate_proj = Linear(hidden_size, hidden_size)
        self.o_proj = Linear(hidden_size, hidden_size)
        self.gains = ScaleGains(n_scales, num_heads, self.head_dim if scale_gain == "query" else None)
        self.coupling = HeadCoupling(num_heads)
        self.skip = nn.Parameter(torch.empty(len(skip_offsets))) if skip_offsets else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        self.gains.reset_parameters()
        self.coupling.reset_parameters()
        nn.init.constant_(self.gate_proj.bias, self.gate_bias)
        if self.skip is not None:
            nn.init.constant_(self.skip, NO_SKIP)

    def declaration(self) -> Declaration:
        return Declaration(growth="constant", edges=(*self.distances[-2:], *self.skip_offsets))

    def forward(
        self,
        x: Tensor,
        state: DwarfFieldState | None = None,
        *,
        starts: Tensor | None = None,
        return_state: bool = False,
    ) -> tuple[Tensor, DwarfFieldState | None]:
        q, source = self._project(x)
        state = self.init_state(x.shape[0], device=x.device, dtype=x.dtype) if state is None else state
        shared: dict[str, Any] = {"kind": "field", "starts": starts, "return_state": True}
        past = Ring(state.sources, state.tokens)
        field, ring = offset_attention(
            None, None, source, offsets=self.distances, weights=self._filter(q), initial_state=past, **shared
        )
        fields = state.fields
        if self.skip is not None:
            past = Ring(state.fields, state.tokens)
            offsets, weights = (0, *self.skip_offsets), self._skips(q)
            field, (fields, _) = offset_attention(
                None, None, field, offsets=offsets, weights=weights, initial_state=past, **shared
            )
        return self._output(x, q, field), DwarfFieldState(ring.rows, fields, ring.tokens) if return_state else None

    def step(self, x: Tensor, state: DwarfFieldState) -> tuple[Tensor, DwarfFieldState]:
        q, source = self._project(x[:, None])
        ring = Ring(state.sources, state.tokens)
        field, after = offset_attention_step(
            None, None, source[:, 0], ring, offsets=self.distances, kind="field", weights=self._filter(q)
        )
        if self.skip is not None:
            ring = Ring(state.fields, state.tokens)
            offsets = (0, *self.skip_offsets)
            field, _ = offset_attention_step(
                None, None, field, ring, offsets=offsets, kind="field", weights=self._skips(q)
            )
        return self._output(x[:, None], q, field[:, None])[:, 0], DwarfFieldState(
            after.rows, state.fields, after.tokens
        )

    def init_state(self, batch_size, *, max_tokens=None, device=None, dtype=None) -> DwarfFieldState:
        shape = (1, self.num_heads, self.head_dim)
        sources, fields = (torch.zeros(batch_size, size, *shape, device=device, dtype=dtype) for size in self._sizes())
        return DwarfFieldState(sources, fields, torch.zeros(batch_size, dtype=torch.int64, device=device))

    def state_bytes(self, num_tokens: int, dtype: torch.dtype = torch.float32) -> int:
        return sum(self._sizes()) * self.hidden_size * dtype.itemsize + 8

    def flops(self, num_tokens: int) -> int:
        D, skips = self.hidden_size, (0, *self.skip_offsets) if self.skip_offsets else ()
        reads = sum(distance < num_tokens for distance in (*self.distances, *skips))
        gains = 2 * len(self.gains.prior) * (D + self.num_heads * len(self.distances))
        gains *= num_tokens if self.gains.weight is not None else 0
        return num_tokens * (10 * D * D + 2 * reads * D + 2 * self.num_heads * D) + gains

    def _sizes(self) -> tuple[int, int]:
        return self.distances[-1] + 1, max(self.skip_offsets) + 1 if self.skip_offsets else 0

    def _project(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Queries and u, `[B, N, H, d]` each."""
        q, k, v = rearrange(self.qkv_proj(x), "b n (s h d) -> s b n h d", s=3, h=self.num_heads)
        wide = torch.promote_types(v.dtype, torch.float32)
        return q, (torch.linalg.vector_norm(k.to(wide), dim=-1, keepdim=True) * v.to(wide)).to(v.dtype)

    def _filter(self, q: Tensor) -> Tensor:
        """Coefficient of each distance, `[B, H, N, T]`: over the taps that share it, sum of gain times coefficient."""
        gains = observe("dwarf_field.gains", self.gains(q))
        return self.lattice.weights(gains, merged=True)

    def _skips(self, like: Tensor) -> Tensor:
        """Weights of the row itself and of the skips, float32 or wider."""
        assert self.skip is not None
        shares = self.skip.to(torch.promote_types(like.dtype, torch.float32)).sigmoid()
        weights = torch.cat([shares.new_ones(1), shares])
        return weights[None, None, None]

    def _output(self, x: Tensor, q: Tensor, field: Tensor) -> Tensor:
        out = self.coupling(field).flatten(2)
        return self.o_proj(out * self.gate_proj(q.flatten(2) if self.gate_reads_query else x).sigmoid())
