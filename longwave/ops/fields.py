"""What the wave fields share: the state, and how a form runs between its rings."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import reduce
from typing import NamedTuple

import torch
from torch import Tensor

from longwave.ops.documents import Ring

Taps = Sequence[float]
ROOT = 3**0.5
#: Daubechies' four low-pass taps, the present row's first: their sum is the root of 2, that of their squares 1.
D4 = tuple(numerator / (4 * 2**0.5) for numerator in (1 + ROOT, 3 + ROOT, 3 - ROOT, 1 - ROOT))
#: The same with sum 1: no frequency is amplified.
UNIT_TAPS = tuple(tap / 2**0.5 for tap in D4)


class FieldState(NamedTuple):
    """State of a field after some rows of a document; what a kind does not keep has size 0.

    ``rows`` `[B, R, 2, H, d]`, the ring of the last keys and values; ``memory``, float32 or wider: the last four items
    of each level but the lowest `[B, L - 1, 4, H, d, d]` of a pyramid, item m in slot m mod 4, or the field itself
    `[B, H, d, d]` of ``delta``; ``tokens`` `[B]` int64 counts the rows.
    """

    rows: Tensor
    memory: Tensor
    tokens: Tensor


def field_shapes(kind: str, levels: int, heads: int, head_dim: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Shapes of ``rows`` and ``memory`` of one sequence's :class:`FieldState`."""
    matrix, step = (heads, head_dim, head_dim), 2 ** (levels - 1)
    size = {"fir": 3 * step + 1, "cascade": 3 * (step - 1) + 1, "pyramid": 3, "delta": 0}[kind]
    memory = {"pyramid": (levels - 1, 4, *matrix), "delta": matrix}.get(kind, (0,))
    return (size, 2, heads, head_dim), memory


def empty_field(
    kind: str,
    levels: int,
    batch_size: int,
    heads: int,
    head_dim: int,
    *,
    dtype: torch.dtype,
    device: torch.device | None = None,
) -> FieldState:
    """The state that has seen nothing: rows in ``dtype``, memory in float32 or wider."""
    rows, memory = field_shapes(kind, levels, heads, head_dim)
    wide = torch.promote_types(dtype, torch.float32)
    return FieldState(
        torch.zeros(batch_size, *rows, dtype=dtype, device=device),
        torch.zeros(batch_size, *memory, dtype=wide, device=device),
        torch.zeros(batch_size, dtype=torch.int64, device=device),
    )


def filtered(taps: Taps, parts: Iterable[Tensor]) -> Tensor:
    """Sum of the parts, each times its tap."""
    return reduce(torch.add, (tap * part for tap, part in zip(taps, parts, strict=True)))


def run_form(
    form: Callable,
    kind: str,
    streams: tuple[Tensor, Tensor, Tensor],
    weights: Tensor,
    taps: Taps,
    chunk_size: int,
    initial_state: FieldState | None,
    return_state: bool,
) -> Tensor | tuple[Tensor, FieldState]:
    """A form is given the rows of the state oldest first, and returns the memory."""
    q, k, v = streams
    batch_size, num_rows, heads, width = q.shape
    levels = weights.shape[3] if weights.dim() == 4 else 1
    state, given = None, initial_state
    if given is None:
        given = empty_field(kind, levels, batch_size, heads, width, dtype=k.dtype, device=k.device)
    else:
        check_state(kind, given, field_shapes(kind, levels, heads, width))
    ring, size = Ring(given.rows, given.tokens), given.rows.shape[1]
    if initial_state is not None:
        rows = ring.last(size) if size else given.rows
        state = FieldState(rows, given.memory, given.tokens)
    out, memory = form(*streams, weights, taps, chunk_size, state, return_state)
    if not return_state:
        return out
    rows, tokens = given.rows, given.tokens + num_rows
    if size:
        new = torch.stack([k[:, -size:], v[:, -size:]], dim=2)
        rows = ring.extended(new, tokens[:, None] - 1).rows
    return out, FieldState(rows, given.memory if memory is None else memory, tokens)


def check_arguments(
    op: str, q: Tensor, k: Tensor, v: Tensor, taps: Taps, gains: Tensor | None = None, *, chunk_size: int = 2
) -> None:
    """Refuse what no field takes."""
    if q.dim() != 4 or not q.shape == k.shape == v.shape:
        raise ValueError(
            f"{op} takes q, k and v of one shape [B, N, H, d]; got {tuple(q.shape)}, {tuple(k.shape)}, {tuple(v.shape)}"
        )
    if gains is not None and (gains.dim() != 4 or gains.shape[:3] != q.shape[:3] or not gains.shape[3]):
        raise ValueError(
            f"{op} takes gains [B, N, H, L] = {(*q.shape[:3], 'L')} with L at least 1, got {tuple(gains.shape)}"
        )
    if len(taps) != 4:
        raise ValueError(f"{op} takes 4 taps, got {len(taps)}")
    if chunk_size < 2 or chunk_size & (chunk_size - 1):
        raise ValueError(f"{op}: chunk_size must be a power of two from 2 on, got {chunk_size}")


def check_state(kind: str, state: FieldState, expected: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    """Refuse the state of another field."""
    found = tuple(state.rows.shape[1:]), tuple(state.memory.shape[1:])
    if found != expected:
        raise ValueError(f"{kind}_field: the state's rows and memory must be {expected}, got {found}")
