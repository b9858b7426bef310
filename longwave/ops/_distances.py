"""What offset attention does between its two products: distances, weights by kind, the rows before the piece."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from longwave.ops.features import elu_plus_one

Kind = Literal["softmax", "elu", "dot", "field"]
#: A tensor, or ``None`` where the kind of weights has none.
Given = Any
#: Arguments that each kind of weights takes.
TAKES = {"softmax": {"bias", "sink"}, "elu": {"weights", "bias", "sink"}, "dot": {"weights"}, "field": {"weights"}}
EPS = 1e-6


class Reads(NamedTuple):
    """What every row reads and how it weighs it: see :func:`longwave.ops.offset_attention.offset_attention`.

    ``weights`` and ``bias`` are broadcastable to `[B, H, N, T]`, ``sink`` to `[B, H, N]`.
    """

    distances: tuple[int, ...]
    kind: Kind
    weights: Given = None
    bias: Given = None
    sink: Given = None

    @property
    def window(self) -> int | None:
        """W if this is softmax over the distances 0..W-1 and nothing else."""
        bare = self.kind == "softmax" and self.bias is None and self.sink is None
        return len(self.distances) if bare and self.distances == tuple(range(len(self.distances))) else None


def attend(
    q: Given,
    k: Given,
    v: Tensor,
    past: Tensor | None,
    positions: Tensor,
    reads: Reads,
    score: Callable[[Tensor, Tensor, list[int]], Tensor],
    mix: Callable[[Tensor, Tensor, list[int]], Tensor],
) -> Tensor:
    """Weights `[B, H, N, T]` between two products that a backend brings; heads lie before rows in both.

    Args:
        score: from queries `[B, H, N, d]`, keys `[B, G, P + N, d]` and D distinct distances, sorted, to
            `[B, H, N, D]`, 0 where a distance leads to before the keys.
        mix: from weights `[B, H, N, D]`, values and distances to `[B, H, N, d]`.
    """
    k, v = known_rows(past, k, v)
    values, heads = _by_heads(v), v.shape[2] if q is None else q.shape[2]
    # What lies further back than anything known is read by no row.
    kept = [t for t, distance in enumerate(reads.distances) if distance < values.shape[2]] or [0]
    distances = [reads.distances[t] for t in kept]
    distinct = sorted(set(distances))
    spread = None
    if distances != distinct:
        spread = torch.zeros(len(distinct), len(kept), dtype=v.dtype, device=v.device)
        spread[[distinct.index(distance) for distance in distances], range(len(kept))] = 1.0
    scores: Given = None
    if q is not None and k is not None:
        scores = score(_by_heads(q), _by_heads(k), distinct)
        scores = scores if spread is None else scores @ spread
    hidden = positions[:, None, :, None] < torch.tensor(distances, device=v.device)  # [B, 1, N, T]
    a, bias = reads.weights, reads.bias
    if len(kept) < len(reads.distances):
        a, bias = (x if x is None or x.shape[-1] == 1 else x[..., kept] for x in (a, bias))
    w = weigh(scores, hidden, reads._replace(weights=a, bias=bias), v.shape[3])
    w = w.expand(-1, heads, -1, -1)
    return mix(w if spread is None else w @ spread.T, values, distinct).transpose(1, 2)


def _by_heads(rows: Tensor) -> Tensor:
    """`[B, N, H, d]` as `[B, H, N, d]`."""
    return rows.transpose(1, 2).contiguous()


def weigh(scores: Given, hidden: Tensor, reads: Reads, head_dim: int) -> Tensor:
    """The weights of values, `[B, H, N, T]`."""
    a, bias, sink = reads[2:]
    if reads.kind == "field":
        return a.expand(*a.shape[:2], *hidden.shape[2:]).masked_fill(hidden, 0.0)
    if reads.kind == "dot":
        return (a * scores).masked_fill(hidden, 0.0)
    if reads.kind == "elu":
        f = elu_plus_one(scores if bias is None else scores + bias).masked_fill(hidden, 0.0)
        total = (a.abs() * f).sum(dim=-1, keepdim=True) + EPS
        return a * f / (total if sink is None else total + sink[..., None])
    logits = scores.mul_(head_dim**-0.5)  # in place: large new memory costs more than arithmetic
    if bias is not None:
        logits = logits.add_(bias)
    logits = logits.masked_fill_(hidden, -torch.inf)
    if sink is None and min(reads.distances):  # a row that reads nothing has no weights
        sink = torch.where(hidden.all(dim=-1), 0.0, -torch.inf).to(logits)
    if sink is None:
        return logits.softmax(dim=-1)
    sink = sink[..., None].expand(*logits.shape[:3], 1)
    return torch.cat([logits, sink], dim=-1).softmax(dim=-1)[..., :-1]


def known_rows(past: Tensor | None, k: Given, v: Tensor) -> tuple[Given, Tensor]:
    """Keys and values `[B, P + N, G, d]`: those of the P rows before the piece, if any, and its own."""
    if past is None:
        return k, v
    sides = past.unbind(dim=2)
    return None if k is None else torch.cat([sides[0], k], dim=1), torch.cat([sides[-1], v], dim=1)
