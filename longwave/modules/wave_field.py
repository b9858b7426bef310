"""The wave field as a part of a mixer: learned gains of its levels, read by every head's query."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from longwave.modules.lattice import ScaleGains
from longwave.ops import FieldState, empty_field, field_shapes
from longwave.ops.wave_field import FEW_ROWS, cascade_field, delta_field, fir_field, pyramid_field

FieldKind = Literal["fir", "cascade", "pyramid", "delta"]
MOST_LEVELS = 20
#: Rows of a block of each kind.
CHUNKS = {"cascade": 128, "pyramid": 64, "delta": 64}
BYPASS = -4.0
FADING = 0.4


@dataclass(frozen=True)
class FieldMemory:
    """Which field a mixer adds to what it reads.

    Attributes:
        kind: ``fir`` (2 levels + 2 distances), ``cascade`` (every distance up to 3 (2^(levels - 1) - 1), which its
            state must hold), ``pyramid`` (every distance, a small state) or ``delta`` (one fading matrix, no levels).
        levels: levels that are read, 1 to 20.
        gain_init: the field is added softplus(gain) times; the gain's initial value.
    """

    kind: FieldKind
    levels: int = 12
    gain_init: float = -4.0

    def __post_init__(self) -> None:
        if self.kind not in get_args(FieldKind):
            raise ValueError(f"a field's kind must be one of {', '.join(get_args(FieldKind))}, got {self.kind!r}")
        if self.levels not in range(1, MOST_LEVELS + 1):
            raise ValueError(f"a field's levels must be 1 to {MOST_LEVELS}, got {self.levels}")
        if not math.isfinite(self.gain_init):
            raise ValueError(f"a field's gain_init must be a finite number, got {self.gain_init}")


class WaveField(nn.Module):
    """o = softplus(gain_h) F_nᵀ q_n / sqrt(d), F the field of keys and values in :mod:`longwave.ops.wave_field`.

    The levels' gains are chosen by the query: :class:`longwave.modules.ScaleGains`. ``delta`` has no levels; its field
    fades by 1 - sigmoid(decay_logit_h) a row.

    Args:
        num_heads: H.
        head_dim: d.
        memory: kind, levels and initial gain.
    """

    def __init__(self, num_heads: int, head_dim: int, memory: FieldMemory) -> None:
        super().__init__()
        self.num_heads, self.head_dim, self.memory = num_heads, head_dim, memory
        self.gain = nn.Parameter(torch.empty(num_heads))
        if memory.kind == "delta":
            self.decay_logit = nn.Parameter(torch.empty(num_heads))
        else:
            self.gains = ScaleGains(memory.levels, num_heads, head_dim)
        if memory.kind == "fir":
            self.bypass = nn.Parameter(torch.empty(num_heads))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Levels nearly alike, the field faint; ``delta`` keeps 0.6 of itself a row."""
        with torch.no_grad():
            self.gain.fill_(self.memory.gain_init)
            if self.memory.kind == "delta":
                self.decay_logit.fill_(math.log(FADING / (1 - FADING)))
            else:
                self.gains.reset_parameters()
            if self.memory.kind == "fir":
                self.bypass.fill_(BYPASS)

    def forward(
        self, q: Tensor, k: Tensor, v: Tensor, state: FieldState | None = None, *, return_state: bool = False
    ) -> tuple[Tensor, FieldState | None]:
        """What the queries `[B, N, H, d]` read of the field, `[B, N, H, d]`; the state only on request."""
        kind, scaled, wide = self.memory.kind, q * self.head_dim**-0.5, torch.promote_types(q.dtype, torch.float32)
        options: dict[str, Any] = {"initial_state": state, "return_state": return_state}
        if kind == "delta":
            beta = torch.sigmoid(self.decay_logit.to(wide))
            found: Any = delta_field(scaled, k, v, beta, chunk_size=CHUNKS[kind], **options)
        elif kind == "fir":
            bypass = F.softplus(self.bypass.to(wide))
            found = fir_field(scaled, k, v, self.gains(q).transpose(1, 2), bypass, **options)
        else:
            op = cascade_field if kind == "cascade" else pyramid_field
            found = op(scaled, k, v, self.gains(q).transpose(1, 2), chunk_size=CHUNKS[kind], **options)
        o, final = found if return_state else (found, None)
        return F.softplus(self.gain.to(wide)).to(o.dtype)[:, None] * o, final

    def init_state(
        self, batch_size: int, *, device: torch.device | None = None, dtype: torch.dtype | None = None
    ) -> FieldState:
        """The state that has seen nothing: keys and values in ``dtype``, the rest in float32 or wider."""
        shape = self.memory.kind, self.memory.levels, batch_size, self.num_heads, self.head_dim
        return empty_field(*shape, dtype=dtype or self.gain.dtype, device=device or self.gain.device)

    def state_bytes(self, dtype: torch.dtype = torch.float32) -> int:
        """Bytes of the state of one sequence, whatever it has seen."""
        rows, memory = field_shapes(self.memory.kind, self.memory.levels, self.num_heads, self.head_dim)
        wide = torch.promote_types(dtype, torch.float32)
        return math.prod(rows) * dtype.itemsize + math.prod(memory) * wide.itemsize + 8

    def flops(self, num_tokens: int) -> int:
        """Floating-point operations of the contractions of ``forward`` on one sequence (2 a multiply-add)."""
        kind, levels, width = self.memory.kind, self.memory.levels, self.head_dim
        if kind == "delta":
            return _delta_flops(num_tokens, self.num_heads, width)
        count = {"fir": _fir_flops, "cascade": _cascade_flops, "pyramid": _pyramid_flops}[kind]
        return self.num_heads * (2 * num_tokens * width * levels + count(num_tokens, width, levels))


def _fir_flops(num_tokens: int, width: int, levels: int) -> int:
    """Scores at the distances that occur; weights of all. Of one head, like the next two."""
    offsets = {s << j for j in range(levels) for s in range(4)}
    read = sum(offset < num_tokens for offset in offsets)
    return 2 * num_tokens * (read * width + len(offsets) * levels)


def _cascade_flops(num_tokens: int, width: int, levels: int) -> int:
    """Block by block, the keys that one of its rows reaches."""
    total, chunk, reach = 0, CHUNKS["cascade"], 3 * (2 ** (levels - 1) - 1)
    for begin in range(0, num_tokens, chunk):
        rows = min(chunk, num_tokens - begin)
        columns = min(begin, reach) + rows
        total += 2 * rows * (2 * width * columns + levels * min(reach + 1, columns))
    return total


def _pyramid_flops(num_tokens: int, width: int, levels: int) -> int:
    """Keys within a block and the reach of its low levels, items of the high ones; row by row where rows are few."""
    square = width * width
    if num_tokens < FEW_ROWS:
        return 2 * num_tokens * square * (levels + 4 * max(levels - 2, 0))
    low = min(CHUNKS["pyramid"].bit_length() - 1, levels)
    chunk, high = 1 << low, levels - low
    near = (chunk + 3 * (chunk // 2 - 1)) * (2 * width + low)
    far = (high + 3) * square if high else 0
    return 2 * -(-num_tokens // chunk) * chunk * (near + far)


def _delta_flops(num_tokens: int, heads: int, width: int) -> int:
    """Of all heads: powers of the shift, halves within chunks, matrices between them."""
    square = width * width
    chunk = min(CHUNKS["delta"], 1 << (num_tokens - 1).bit_length())
    chunks, halvings = -(-num_tokens // chunk), chunk.bit_length() - 1
    last = num_tokens - (chunks - 1) * chunk
    within = 2 * chunk * (halvings * square + (chunk - 1) * width)
    between = 8 * chunk * square
    return 2 * (chunk - 1) * width**3 + heads * (chunks * (within + between + 2 * width**3) + 4 * last * square)
