"""Attention over fixed causal offsets.

A row reads the rows of its own document at fixed distances behind it: a dense window 0..window-1, a list of offsets,
or both. The kinds of weights are those of DWARF, s_t being q_i · k_{i-δ_t}:

* ``softmax``: w = softmax_t(s / sqrt(d) + bias), exp(sink) being one more term of the denominator;
* ``elu``: w = a f(s + bias) / (sum_t |a| f(s + bias) + sink + 1e-6), f(z) = elu(z) + 1, a the weights given;
* ``dot``: w = a s;
* ``field``: w = a, without queries and keys.

Notation: B batch, N rows, H query heads, G key/value heads (query head h reads key/value head h // (H / G)),
d channels, T distances.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from longwave.ops._dispatch import select_form
from longwave.ops._distances import EPS, TAKES, Given, Kind, Reads, attend, known_rows, weigh
from longwave.ops._precision import widened
from longwave.ops.documents import Ring, document_positions, empty_ring
from longwave.ops.features import elu_plus_one


@widened("v", stored="rows")
def offset_attention(
    q: Tensor | None,
    k: Tensor | None,
    v: Tensor,
    *,
    window: int | None = None,
    offsets: Sequence[int] = (),
    kind: Kind = "softmax",
    weights: Tensor | None = None,
    bias: Tensor | None = None,
    sink: Tensor | None = None,
    initial_state: Ring | None = None,
    starts: Tensor | None = None,
    return_state: bool = False,
    backend: str = "auto",
) -> Tensor | tuple[Tensor, Ring]:
    """o_i = sum_t w_ti v_{i-δ_t} over the distances δ that stay in i's own document, s_ti = q_i·k_{i-δ_t}.

    The T distances are 0..window-1 and then ``offsets``. Weights w by ``kind``, see the file; a row that reads
    nothing is 0.

    Args:
        q: `[B, N, H, d]`.
        k, v: `[B, N, G, d]`, H a multiple of G.
        window: distances 0..window-1, at least 1; ``None`` for none. One longer than the document is full causal
            attention.
        offsets: more distances, at least 0; one may occur again.
        weights, bias: broadcastable to `[B, H, N, T]`.
        sink: broadcastable to `[B, H, N]`.
        initial_state: ring of R rows, R the largest distance + 1: `[B, R, 2, G, d]`, keys before values, or, of a
            ``field``, `[B, R, 1, G, d]`.
        starts: `[B, N]` bool, first row of each document.
        backend: ``auto``, ``naive``, ``torch`` or ``numba``.

    Returns:
        `[B, N, H, d]` in v's dtype; with ``return_state`` also the final ring, in the dtype of the initial one or of v.

    Raises:
        ValueError: no distance or a negative one, an argument against the kind, H no multiple of G, another ring,
            nothing to read.
        BackendUnavailable: the backend has no form of this op.
    """
    if window is not None and window < 1:
        raise ValueError(f"offset_attention: window must be at least 1, got {window}")
    reads = Reads((*range(window or 0), *offsets), kind, weights, bias, sink)
    _check(q, k, v, initial_state, reads)
    reach = max(reads.distances)
    form = select_form("offset_attention", backend, offset_attention_naive, offset_attention_torch, v)
    tokens = None if initial_state is None else initial_state.tokens
    positions = document_positions(*v.shape[:2], tokens=tokens, starts=starts, device=v.device)
    past = None if initial_state is None else initial_state.last(reach)
    out = form(q, k, v, past, positions, reads)
    if not return_state:
        return out
    new = torch.stack([x[:, -(reach + 1) :] for x in (k, v) if x is not None], dim=2)
    if initial_state is None:
        initial_state = empty_ring(v.shape[0], reach + 1, tuple(new.shape[2:]), new)
    return out, initial_state.extended(new, positions)


@torch.no_grad()
def offset_attention_step(
    q: Tensor | None,
    k: Tensor | None,
    v: Tensor,
    ring: Ring,
    *,
    offsets: Sequence[int],
    kind: Kind = "softmax",
    weights: Tensor | None = None,
    bias: Tensor | None = None,
    sink: Tensor | None = None,
) -> tuple[Tensor, Ring]:
    """:func:`offset_attention` on one row, which is written into ``ring``: T rows are read and no other.

    Args:
        q: `[B, H, d]`; k, v: `[B, G, d]`.
        weights, bias, sink: as of :func:`offset_attention`, with N = 1.

    Returns:
        `[B, H, d]` in v's dtype, and the ring.
    """
    reads = Reads(tuple(offsets), kind, weights, bias, sink)
    rows, tokens = ring
    batch = torch.arange(v.shape[0], device=v.device)
    rows[batch, tokens % rows.shape[1]] = torch.stack([x for x in (k, v) if x is not None], dim=1).to(rows.dtype)
    behind = tokens[:, None] - torch.tensor(reads.distances, device=v.device)
    found = rows[batch[:, None], behind % rows.shape[1]]
    return _attend_found(q, v, found, (behind < 0)[:, None, None], reads), Ring(rows, tokens + 1)


@widened("v")
def _attend_found(q: Given, v: Tensor, found: Tensor, hidden: Tensor, reads: Reads) -> Tensor:
    """`[B, H, d]` of a query and what lies at its distances, ``found`` `[B, T, 1 or 2, G, d]`."""
    heads, groups = (v if q is None else q).shape[1], v.shape[1]
    scores = None
    if q is not None:
        grouped = rearrange(q, "b (g r) d -> b g r d", g=groups)
        scores = torch.einsum("bgrd,btgd->bgrt", grouped, found[:, :, 0]).flatten(1, 2)[:, :, None]
    w = weigh(scores, hidden, reads, v.shape[2]).expand(v.shape[0], heads, -1, -1)
    w = rearrange(w, "b (g r) 1 t -> b g r t", g=groups)
    return torch.einsum("bgrt,btgd->bgrd", w, found[:, :, -1]).flatten(1, 2)


def offset_attention_naive(
    q: Given, k: Given, v: Tensor, past: Tensor | None, positions: Tensor, reads: Reads
) -> Tensor:
    """Row by row, as the formula says. ``past`` `[B, reach, 2, G, d]` are the rows before the piece, oldest first."""
    k, v = known_rows(past, k, v)
    batch_size, num_rows = positions.shape
    reach, heads = v.shape[1] - num_rows, (v if q is None else q).shape[2]
    count = len(reads.distances)
    v = v.repeat_interleave(heads // v.shape[2], dim=2)
    k = None if k is None else k.repeat_interleave(heads // k.shape[2], dim=2)
    shapes = ((batch_size, heads, num_rows, count), (batch_size, heads, num_rows, count), (batch_size, heads, num_rows))
    given: Given = (None if x is None else x.expand(shape) for x, shape in zip(reads[2:], shapes, strict=True))
    a, bias, sink = given
    out = []
    for b, i in ((b, i) for b in range(batch_size) for i in range(num_rows)):
        near = [t for t, distance in enumerate(reads.distances) if distance <= positions[b, i]]
        rows = [reach + i - reads.distances[t] for t in near]
        s: Given = None if q is None else torch.einsum("hd,thd->ht", q[b, i], k[b, rows])
        if reads.kind == "field":
            w = a[b, :, i, near]
        elif reads.kind == "dot":
            w = a[b, :, i, near] * s
        elif reads.kind == "elu":
            f = elu_plus_one(s if bias is None else s + bias[b, :, i, near])
            total = (a[b, :, i, near].abs() * f).sum(dim=1) + EPS + (0.0 if sink is None else sink[b, :, i])
            w = a[b, :, i, near] * f / total[:, None]
        else:
            logits = s / v.shape[-1] ** 0.5 + (0.0 if bias is None else bias[b, :, i, near])
            if sink is not None:
                logits = torch.cat([logits, sink[b, :, i, None]], dim=1)
            w = logits.softmax(dim=1)[:, : len(near)]
        out.append(torch.einsum("ht,thd->hd", w, v[b, rows]))
    return torch.stack(out).view(batch_size, num_rows, heads, -1)


def offset_attention_torch(
    q: Given, k: Given, v: Tensor, past: Tensor | None, positions: Tensor, reads: Reads
) -> Tensor:
    """A bare window by blocks; else distance by distance, each a shifted view of the keys and values."""
    if reads.window is not None:
        return _attend_window(q, k, v, past, reads.window, positions)
    return attend(q, k, v, past, positions, reads, _score, _mix)


def _score(rows: Tensor, known: Tensor, distances: list[int]) -> Tensor:
    rows = rearrange(rows, "b (g r) n d -> b g r n d", g=known.shape[1])
    parts = _behind(known, rows.shape[3], distances)
    return torch.stack([torch.einsum("bgrnd,bgnd->bgrn", rows, part).flatten(1, 2) for part in parts], dim=-1)


def _mix(weights: Tensor, known: Tensor, distances: list[int]) -> Tensor:
    weights = rearrange(weights, "b (g r) n t -> t b g r n 1", g=known.shape[1])
    total = weights.new_zeros(*weights.shape[1:5], known.shape[3])
    for w, part in zip(weights, _behind(known, weights.shape[4], distances), strict=True):
        total = torch.addcmul(total, w, part[:, :, None])
    return total.flatten(1, 2)


def _behind(known: Tensor, num_rows: int, distances: list[int]) -> list[Tensor]:
    """For each distance, what lies so far behind the last ``num_rows`` of the known rows; 0 before them."""
    missing = max(0, distances[-1] + num_rows - known.shape[2])
    known = F.pad(known, (0, 0, missing, 0))
    end = known.shape[2]
    return [known[:, :, end - num_rows - distance : end - distance] for distance in distances]


def _attend_window(q: Tensor, k: Tensor, v: Tensor, past: Tensor | None, window: int, positions: Tensor) -> Tensor:
    """Blocks of C <= window queries, each with the C + reach keys it can see, by PyTorch's fused attention."""
    num_rows = q.shape[1]
    reach = min(window, num_rows) - 1 if past is None else window - 1
    k, v = (F.pad(x, (0, 0, 0, 0, reach + num_rows - x.shape[1], 0)) for x in known_rows(past, k, v))
    block = min(window, num_rows)
    padding = -num_rows % block
    q = rearrange(F.pad(q, (0, 0, 0, 0, 0, padding)), "b (n c) h d -> (b n) h c d", c=block)
    k, v = (
        rearrange(F.pad(x, (0, 0, 0, 0, 0, padding)).unfold(1, block + reach, block), "b n g d j -> (b n) g j d")
        for x in (k, v)
    )
    # A padded row, at position 0, reads itself alone.
    depth = rearrange(F.pad(positions, (0, padding)), "b (n c) -> (b n) 1 c 1", c=block)
    columns = torch.arange(block + reach, device=q.device)
    distance = torch.arange(block, device=q.device)[:, None] + reach - columns
    visible = (distance >= 0) & (distance < window) & (distance <= depth)
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=visible, enable_gqa=True)
    return rearrange(out, "(b n) h c d -> b (n c) h d", b=positions.shape[0])[:, :num_rows]


def _check(q: Tensor | None, k: Tensor | None, v: Tensor, ring: Ring | None, reads: Reads) -> None:
    if not reads.distances or min(reads.distances) < 0:
        raise ValueError(f"offset_attention: give a window or offsets of at least 0, got {list(reads.distances)}")
    if reads.kind not in TAKES:
        raise ValueError(f"offset_attention: unknown kind {reads.kind!r}; legal: {', '.join(TAKES)}")
    if (q is None or k is None) != (reads.kind == "field"):
        raise ValueError("offset_attention: q and k belong to every kind but field, which has neither")
    given = {name for name in ("weights", "bias", "sink") if getattr(reads, name) is not None}
    takes = TAKES[reads.kind]
    if given - takes or ("weights" in takes) != ("weights" in given):
        raise ValueError(f"offset_attention: {reads.kind} takes {', '.join(sorted(takes))}, got {sorted(given)}")
    if q is not None and q.shape[2] % v.shape[2]:
        raise ValueError(f"offset_attention: {q.shape[2]} query heads are no multiple of {v.shape[2]} key/value heads")
    size = max(reads.distances) + 1
    if ring is not None and ring.rows.shape[1] != size:
        raise ValueError(
            f"offset_attention: distances up to {size - 1} need a ring of {size} rows, got {ring.rows.shape[1]}"
        )
