"""DWARF J to U: each head reads the past at a fixed list of distances, and nowhere else.

    o_n = sum_t w_t v_{n - d(t)} over the distances d(t) <= n;   y = W_o (o sigmoid(W_g x + b_g))

A list that is dense nearby and ever sparser further out costs O(N), and a few layers reach every distance. The
conditions differ in the list and in the weights w, which depend on s_t = q_n . k_{n - d(t)}:

* ``J`` w_t = g c_t s_t, with c the four taps of the D4 wavelet at each scale 2^j, g gains of the scales that the query
  chooses, and a further weight b on the row itself.
* ``K`` w_t = g c_t f(s_t + bias_t) / (sum_t g |c_t| f(s_t + bias_t) + 1e-6), f(z) = elu(z) + 1. A negative tap
  subtracts what it finds, whatever it is: ``offsets={"tap_sign": "abs"}`` averages instead.
* ``L``, ``LRP`` w = softmax_t(s_t / sqrt(d) + bias_t) at the taps of J; a distance counts as often as taps share it,
  or once.
* ``N``, ``M`` softmax at 0..32 and eleven farther distances; M is N in all layers but one, which is ``softmax``.
* ``P`` softmax at 0..64 and nine farther distances.
* ``U`` N with q . e_t / sqrt(d) added to the logits and a gain for each head. A layer with ``kv_inject`` adds a gated
  mean of the whole past to keys and values.
* ``M2`` N without biases in the projections.

Beside the list a layer may have a second memory: a softmax over the last rows, mixed in by a gate (``local_window``),
or a wave field of all distances (``field``). The published K and L let keys before the beginning, which are zero, take
part in the sums: ``phantom="original"``. Source: DWARF, conditions J to U.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from longwave.mixers.base import Declaration, TokenMixer, observe, run_by_document
from longwave.modules import FieldMemory, Injection, Linear, LocalWindow, ScaleGains, WaveField, lattice, tap_bias
from longwave.modules.norms import LayerNorm
from longwave.ops import (
    D4,
    FieldState,
    Ring,
    document_positions,
    elu_plus_one,
    mean_flops,
    offset_attention,
    offset_attention_step,
    without_autocast,
)

FAR = (96, 128, 192, 256, 384, 512, 768, 1024, 1536)
NO_BYPASS = -4.0


@dataclass(frozen=True)
class Lattice:
    """Distances tau 2^j of a wavelet filter with four taps, scale by scale.

    Attributes:
        n_scales: J, 1..20.
        taps: coefficients of one scale.
        tap_sign: ``"abs"`` takes their magnitudes.
        scale_gain: gains ``"static"`` or chosen by the ``"query"``.
        bypass: a learned weight on the row itself.
        rg_init: gains begin with near scales in the first layers and far scales in the last.
        distinct: each distance once. Softmax alone distinguishes; ``dot`` merges by itself.
    """

    n_scales: int = 11
    taps: Sequence[float] = D4
    tap_sign: Literal["signed", "abs"] = "signed"
    scale_gain: Literal["static", "query"] = "query"
    bypass: bool = True
    rg_init: bool = False
    distinct: bool = False


DEFAULTS = {"scale_embed": False, "if_gain": False, "gate_bias": 2.0, "projection_bias": True}
N = {"kind": "softmax", "offsets": (*range(33), 48, 64, *FAR), "score_bias": "alibi_log"}
CONDITIONS: dict[str, dict[str, Any]] = {
    "J": {"kind": "dot", "offsets": Lattice(), "score_bias": "none"},
    "K": {"kind": "elu", "offsets": Lattice(rg_init=True), "score_bias": "zero"},
    "L": {"kind": "softmax", "offsets": Lattice(), "score_bias": "zero"},
    "LRP": {"kind": "softmax", "offsets": Lattice(distinct=True), "score_bias": "d4_warm"},
    "M": N,
    "M2": N | {"score_bias": "alibi_log02", "projection_bias": False},
    "N": N,
    "P": N | {"offsets": (*range(65), *FAR)},
    "U": N | {"scale_embed": True, "if_gain": True, "gate_bias": 0.0},
}


class DwarfState(NamedTuple):
    """What a document leaves behind; a part that the configuration does not have is empty.

    ``rows`` `[B, R, 2, H, d]` and ``local`` are rings of keys and values, R the farthest distance + 1 and the local
    window + 1; ``total`` `[B, D]` is the sum of its normalised rows; ``field_rows`` and ``field`` are the wave field's,
    as in :class:`longwave.ops.wave_field.FieldState`; ``tokens`` `[B]` counts its rows.
    """

    rows: Tensor
    local: Tensor
    total: Tensor
    field_rows: Tensor
    field: Tensor
    tokens: Tensor


class Dwarf(TokenMixer):
    """Attention over fixed distances.

    Args:
        hidden_size: D.
        num_heads: H.
        condition: a row of the file's table; it decides what the arguments left at ``None`` are.
        kind: weights as of :func:`longwave.ops.offset_attention`: ``"softmax"``, ``"elu"`` or ``"dot"``.
        offsets: distances, 0 among them, or a :class:`Lattice`.
        phantom: ``"original"`` lets the keys before the beginning take part, as published (K, L, LRP).
        score_bias: the start of the bias at distance d: ``"zero"``, ``"alibi_log"`` -a_h ln(1 + d), a from 0.2 to 2
            over the heads, ``"alibi_log02"`` the same with max(d, 0.2), ``"d4_warm"`` the taps' logarithm; ``"none"``
            for no bias.
        scale_embed: logits get q . e_t / sqrt(d), e learned.
        if_gain: a learned gain for each head.
        kv_inject: keys and values get a gated mean of the past; the mixer then norms its input itself.
        gate: what gates the output, ``"x"`` or ``"none"``.
        gate_bias: of the gate at the start; ``None`` for 2, in U for 0.
        local_window: rows of a second, local attention (M-gate); ``None`` for none.
        field: a second memory of all distances; ``None`` for none.
        layer_index, num_layers: the place in the model, for ``rg_init``.

    Raises:
        ValueError: an argument is outside its range, or arguments do not go together.
    """

    def __init__(
        self,
        hidden_size: int,
        num_heads: int,
        *,
        condition: Literal["J", "K", "L", "LRP", "M", "M2", "N", "P", "U"] = "P",
        kind: Literal["softmax", "elu", "dot"] | None = None,
        offsets: Sequence[int] | Lattice | None = None,
        phantom: Literal["mask", "original"] = "mask",
        score_bias: Literal["none", "zero", "alibi_log", "alibi_log02", "d4_warm"] | None = None,
        scale_embed: bool | None = None,
        if_gain: bool | None = None,
        kv_inject: bool = False,
        gate: Literal["x", "none"] = "x",
        gate_bias: float | None = None,
        local_window: int | None = None,
        field: FieldMemory | None = None,
        layer_index: int = 0,
        num_layers: int = 1,
    ) -> None:
        super().__init__(hidden_size, num_heads)
        if condition not in CONDITIONS:
            raise ValueError(f"dwarf: unknown condition {condition!r}; legal: {', '.join(CONDITIONS)}")
        given = {"kind": kind, "offsets": offsets, "score_bias": score_bias}
        given |= {"scale_embed": scale_embed, "if_gain": if_gain}
        chosen = DEFAULTS | CONDITIONS[condition] | {name: value for name, value in given.items() if value is not None}
        self.kind, self.phantom, self.owns_norm = chosen["kind"], phantom, kv_inject
        self.gate_bias = chosen["gate_bias"] if gate_bias is None else gate_bias
        self.bias_start, self.depth = chosen["score_bias"], layer_index / max(num_layers - 1, 1)
        self._lay_out(chosen["offsets"])
        if phantom == "original" and (self.lattice is None or self.kind == "dot"):
            raise ValueError("dwarf: phantom 'original' needs a lattice and a normaliser: it belongs to K, L and LRP")
        if self.kind == "dot" and (chosen["score_bias"] != "none" or chosen["scale_embed"]):
            raise ValueError(f"dwarf: kind dot takes no score_bias, got {chosen['score_bias']!r}, and no scale_embed")
        if local_window is not None and local_window < 1:
            raise ValueError(f"dwarf: local_window must be at least 1, got {local_window}")
        if chosen["score_bias"] == "d4_warm" and self.lattice is None:
            raise ValueError("dwarf: score_bias 'd4_warm' needs a lattice, got a list of distances")
        bias, taps, width = chosen["projection_bias"], len(self.distances), self.head_dim
        self.qkv_proj = Linear(hidden_size, 3 * hidden_size, bias=bias)
        self.o_proj = Linear(hidden_size, hidden_size, bias=bias)
        self.gate_proj = Linear(hidden_size, hidden_size) if gate == "x" else None
        self.score_bias = _parameter(taps, num_heads) if chosen["score_bias"] != "none" else None
        self.scale_embed = _parameter(taps, width) if chosen["scale_embed"] else None
        self.if_gain = _parameter(num_heads) if chosen["if_gain"] else None
        self.norm = LayerNorm(hidden_size) if kv_inject else None
        self.injection = Injection(hidden_size) if kv_inject else None
        self.local = LocalWindow(hidden_size, local_window) if local_window is not None else None
        self.field = WaveField(num_heads, width, field) if field is not None else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        with torch.no_grad():
            if self.score_bias is not None:
                self.score_bias.copy_(self._score_bias_at_start())
            if self.gate_proj is not None:
                self.gate_proj.bias.fill_(self.gate_bias)
            for parameter, value in ((self.scale_embed, 0.0), (self.if_gain, 1.0), (self.bypass, NO_BYPASS)):
                if parameter is not None:
                    parameter.fill_(value)
            if self.gains is not None:
                self.gains.reset_parameters(self.depth if self.rg_init else None)
        for part in (self.local, self.field):
            if part is not None:
                part.reset_parameters()

    def declaration(self) -> Declaration:
        breaks = {}
        if self.phantom == "original" and self.kind == "elu":
            phantoms = "keys before the beginning weigh in the normaliser, as many as the piece is long"
            breaks = {"P2": phantoms, "P3": phantoms, "P4": phantoms}
        dense = next(i for i in range(len(self.distances) + 1) if i not in self.distances)
        return Declaration(growth="constant", edges=(dense, *filter(None, self._ring_sizes())), breaks=breaks)

    def forward(
        self,
        x: Tensor,
        state: DwarfState | None = None,
        *,
        starts: Tensor | None = None,
        return_state: bool = False,
    ) -> tuple[Tensor, DwarfState | None]:
        if starts is not None and (self.field is not None or self.phantom == "original"):
            return run_by_document(self, x, state, starts, return_state)
        past: Any = state
        if state is None and return_state:
            past = self.init_state(x.shape[0], device=x.device, dtype=x.dtype)
        positions = document_positions(*x.shape[:2], tokens=past and past.tokens, starts=starts, device=x.device)
        x, heads, total = self._project(x, past, starts)

        def attend(rows: Tensor | None, **reads: Any) -> tuple[Tensor, Any]:
            ring = None if rows is None else Ring(rows, past.tokens)
            found: Any = offset_attention(*heads, **reads, initial_state=ring, starts=starts, return_state=return_state)
            return found if return_state else (found, None)

        out, ring = attend(past and past.rows, **self._reads(heads[0], positions))
        local = past and past.local
        if self.local is not None:
            near, local_ring = attend(local, offsets=self.local.distances)
            out, local = self.local(near, out, x), local_ring and local_ring.rows
        out, field = self._with_field(out, heads, past, return_state)
        final = None
        if return_state:
            final = DwarfState(ring.rows, local, total, field.rows, field.memory, ring.tokens)
        return self._output(out, x), final

    def step(self, x: Tensor, state: DwarfState) -> tuple[Tensor, DwarfState]:
        x, heads, total = self._project(x[:, None], state, None)
        q, k, v = (part[:, 0] for part in heads)
        reads = self._reads(heads[0], state.tokens[:, None])
        out = offset_attention_step(q, k, v, Ring(state.rows, state.tokens), **reads)[0][:, None]
        if self.local is not None:
            ring = Ring(state.local, state.tokens)
            local, _ = offset_attention_step(q, k, v, ring, offsets=self.local.distances)
            out = self.local(local[:, None], out, x)
        out, field = self._with_field(out, heads, state, True)
        final = DwarfState(state.rows, state.local, total, field.rows, field.memory, state.tokens + 1)
        return self._output(out, x)[:, 0], final

    def init_state(self, batch_size, *, max_tokens=None, device=None, dtype=None) -> DwarfState:
        wide = torch.promote_types(dtype, torch.float32)
        far, near = ((size, 2, self.num_heads, self.head_dim) for size in self._ring_sizes())
        shapes = ((far, dtype), (near, dtype), ((self._total_size(),), wide))
        rows, local, total = (torch.zeros(batch_size, *shape, device=device, dtype=kind) for shape, kind in shapes)
        tokens = torch.zeros(batch_size, dtype=torch.int64, device=device)
        field = (total[:, :0], total[:, :0])
        if self.field is not None:
            field = self.field.init_state(batch_size, device=device, dtype=dtype)[:2]
        return DwarfState(rows, local, total, *field, tokens)

    def state_bytes(self, num_tokens: int, dtype: torch.dtype = torch.float32) -> int:
        rows = 2 * sum(self._ring_sizes()) * self.hidden_size * dtype.itemsize
        total = self._total_size() * torch.promote_types(dtype, torch.float32).itemsize
        return rows + total + (0 if self.field is None else self.field.state_bytes(dtype)) + 8

    def flops(self, num_tokens: int) -> int:
        D, reads = self.hidden_size, len({distance for distance in self.distances if distance < num_tokens})
        row = 8 * D * D + 4 * reads * D
        row += 2 * D * D if self.gate_proj is not None else 0
        if self.gains is not None:
            scales = len(self.gains.prior)
            query = 2 * scales * D if self.gains.weight is not None else 0
            row += query + 2 * len(self.distances) * scales * self.num_heads
        row += 2 * len(self.distances) * D if self.scale_embed is not None else 0
        row += 6 * D * D + mean_flops(num_tokens, D) // num_tokens if self.injection is not None else 0
        row += 4 * len(self.local.distances) * D + 2 * D if self.local is not None else 0
        return num_tokens * row + (0 if self.field is None else self.field.flops(num_tokens))

    def _ring_sizes(self) -> tuple[int, int]:
        return max(self.distances) + 1, 0 if self.local is None else len(self.local.distances) + 1

    def _total_size(self) -> int:
        return 0 if self.injection is None else self.hidden_size

    def _project(
        self, x: Tensor, past: DwarfState | None, starts: Tensor | None
    ) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor], Any]:
        """The normalised input, queries, keys and values `[B, N, H, d]`, and the sum of the past after it."""
        total = None if past is None else past.total
        added: list[Tensor] = []
        if self.injection is not None and self.norm is not None:
            memory = None if past is None else (past.total, past.tokens)
            *added, total = self.injection(x, memory, starts)
            x = self.norm(x)
        q, k, v = self.qkv_proj(x).chunk(3, dim=-1)
        if added:
            k, v = k + added[0], v + added[1]
        q, k, v = (rearrange(part, "b n (h d) -> b n h d", h=self.num_heads) for part in (q, k, v))
        return x, (q, k, v), total

    def _with_field(
        self, out: Tensor, heads: tuple[Tensor, Tensor, Tensor], past: DwarfState | None, return_state: bool
    ) -> tuple[Tensor, Any]:
        """What the wave field adds to the heads, and its state after them."""
        state = None if past is None else FieldState(past.field_rows, past.field, past.tokens)
        if self.field is None:
            return out, state
        wave, state = self.field(*heads, state, return_state=return_state)
        return out + wave, state

    def _score_bias_at_start(self) -> Tensor:
        if self.bias_start == "zero":
            return torch.zeros(1, 1, device="cpu")
        if self.bias_start == "d4_warm":
            return tap_bias(self.lattice, self.distances)[:, None]
        return _log_bias(self.distances, self.num_heads, 0.2 if self.bias_start == "alibi_log02" else 0.0)

    def _reads(self, q: Tensor, positions: Tensor) -> dict[str, Any]:
        """Arguments of the op for queries `[B, N, H, d]` at ``positions`` `[B, N]`, float32 or wider."""
        offsets, q = self.distances, q.to(torch.promote_types(q.dtype, torch.float32))
        weights: Any = None
        bias: Any = None
        sink: Any = None
        if self.score_bias is not None:
            bias = self.score_bias.T[None, :, None].to(q.dtype)
        if self.scale_embed is not None:
            with without_autocast(q.device.type):
                dynamic = torch.einsum("bnhd,td->bhnt", q, self.scale_embed.to(q.dtype)) * self.head_dim**-0.5
            bias = dynamic if bias is None else bias + dynamic
        if self.gains is not None:
            gains = observe("dwarf.gains", self.gains(q))
            weights = self.lattice.weights(gains, merged=self.merged)
        elif self.kind != "softmax":
            weights = q.new_ones(1, 1, 1, len(offsets))
        if self.phantom == "original":
            sink = self._phantoms(weights, q, positions)
        if self.bypass is not None:
            own = F.softplus(self.bypass.to(q.dtype))[None, :, None, None]
            if self.kind == "dot":
                weights = weights + F.pad(own, (0, len(offsets) - 1))  # distance 0 comes first
            else:
                offsets = (*offsets, 0)
                weights = torch.cat([weights, own.expand(len(weights), -1, weights.shape[2], 1)], dim=-1)
                bias = None if bias is None else F.pad(bias, (0, 1))
        return {"offsets": offsets, "kind": self.kind, "weights": weights, "bias": bias, "sink": sink}

    def _phantoms(self, weights: Any, q: Tensor, positions: Tensor) -> Tensor:
        """What keys before the beginning, all zero, add to the sums, as a sink `[B, H, N]`.

        In ``elu`` only those count that lie less far back than the piece is long.
        """
        distances, places = torch.tensor(self.distances, device=positions.device), positions[:, None, :, None]
        absent, bias = places < distances, q.new_zeros(1, 1, 1, len(distances))
        if self.score_bias is not None:
            bias = self.score_bias.T[None, :, None].to(q.dtype)
        if self.kind == "softmax":
            return torch.where(absent, bias, torch.finfo(bias.dtype).min / 2).logsumexp(dim=-1)
        absent = absent & (distances <= places[:, :, -1:])
        return torch.where(absent, weights.abs() * elu_plus_one(bias), 0.0).sum(dim=-1)

    def _output(self, out: Tensor, x: Tensor) -> Tensor:
        out = out if self.if_gain is None else out * self.if_gain[:, None].to(out.dtype)
        out = observe("dwarf.heads", out).flatten(2)
        return self.o_proj(out if self.gate_proj is None else out * self.gate_proj(x).sigmoid())

    def _lay_out(self, offsets: Sequence[int] | Lattice) -> None:
        """Distances, and, of a lattice, gains of its scales and the weight of the row itself."""
        self.lattice: Any = None
        self.gains: Any = None
        self.bypass, self.rg_init, self.merged = None, False, False
        if not isinstance(offsets, Lattice):
            self.distances = tuple(offsets)
            if not 0 < len(set(self.distances)) == len(self.distances) or min(self.distances) != 0:
                raise ValueError(f"dwarf: offsets must be distinct, at least 0, and hold 0, got {list(offsets)}")
            return
        taps = offsets.taps if offsets.tap_sign == "signed" else [abs(tap) for tap in offsets.taps]
        self.lattice = lattice(offsets.n_scales, taps)
        self.merged = self.kind == "dot" or offsets.distinct
        self.distances = self.lattice.distinct if self.merged else self.lattice.distances
        if self.kind != "softmax":
            query = self.head_dim if offsets.scale_gain == "query" else None
            self.gains, self.rg_init = ScaleGains(offsets.n_scales, self.num_heads, query), offsets.rg_init
            self.bypass = _parameter(self.num_heads) if offsets.bypass else None


def _parameter(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.empty(shape))


def _log_bias(distances: Sequence[int], num_heads: int, nearest: float) -> Tensor:
    """-a_h ln(1 + d), a from 0.2 to 2, d at least ``nearest``: `[T, H]` float64."""
    exact = {"dtype": torch.float64, "device": "cpu"}
    far = torch.tensor(distances, **exact)[:, None].clamp(min=nearest)
    return -torch.linspace(0.2, 2.0, num_heads, **exact) * far.log1p()
