"""What offset attention does between its two products: distances, weights by kind, the rows before the piece."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from longwave.ops.features import elu_plus_one

Kind = Literal["softmax", "elu", "dot", "field"]
#: Arguments that each kind of weights takes.
TAKES = {"softmax": {"bias", "sink"}, "elu": {"weights", "bias", "sink"}, "dot": {"weights"}, "field": {"weights"}}
EPS = 1e-6


class Reads(NamedTuple):
    """What every row reads and how it weighs it: see :func:`longwave.ops.offset_attention.offset_attention`.

    ``weights`` and ``bias`` are broadcastable to `[B, H, T, N]`, ``sink`` to `[B, H, N]`.
    """

    distances: tuple[int, ...]
    kind: Kind
    weights: Tensor | None = None
    bias: Tensor | None = None
    sink: Tensor | None = None

    @property
    def window(self) -> int | None:
        """W if this is softmax over the distances 0..W-1 and nothing else."""
        bare = self.kind == "softmax" and self.bias is None and self.sink is None
        return len(self.distances) if bare and self.distances == tuple(range(len(self.distances))) else None


def attend(
    q: Tensor | None,
    k: Tensor | None,
    v: Tensor,
    past: Tensor | None,
    positions: Tensor,
    reads: Reads,
    score: Callable[[Tensor, Tensor, list[int]], Tensor],
    mix: Callable[[Tensor, Tensor, list[int]], Tensor],
) -> Tensor:
    """Weights `[B, H, T, N]` between two products that a backend brings.

    Args:
        score: from queries `[B, N, H, d]`, keys `[B, P + N, G, d]` and D distinct distances to `[B, H, D, N]`, 0 where
            a distance leads to before the keys.
        mix: from weights `[B, H, D, N]`, values and distances to `[B, N, H, d]`.
    """
    k, v = known_rows(past, k, v)
    wide = torch.promote_types(v.dtype, torch.float32)
    # What lies further back than anything known is read by no row.
    kept = [t for t, distance in enumerate(reads.distances) if distance < v.shape[1]]
    distances = torch.tensor([reads.distances[t] for t in kept], device=v.device)
    distinct = sorted({reads.distances[t] for t in kept})
    index = torch.tensor([distinct.index(reads.distances[t]) for t in kept], device=v.device)
    repeated = len(kept) > len(distinct)
    scores = None
    if q is not None:
        scores = score(q.to(wide), k.to(wide), distinct)
        scores = scores[:, :, index] if repeated else scores
    hidden = (distances[:, None] > positions[:, None])[:, None]  # [B, 1, T, N]
    a, bias = (x if x is None or x.shape[-2] == 1 else x[..., kept, :] for x in (reads.weights, reads.bias))
    w = _weigh(scores, hidden, reads._replace(weights=a, bias=bias), 0 if q is None else q.shape[3])
    if repeated:
        w = w.new_zeros(*w.shape[:2], len(distinct), w.shape[3]).index_add(2, index, w)
    return mix(w, v.to(wide), distinct).to(v.dtype)


def _weigh(scores: Tensor | None, hidden: Tensor, reads: Reads, head_dim: int) -> Tensor:
    """The weights of values."""
    a, bias, sink = reads[2:]
    if reads.kind == "field":
        return a.expand(*a.shape[:3], hidden.shape[3]).masked_fill(hidden, 0.0)
    if reads.kind == "dot":
        return (a * scores).masked_fill(hidden, 0.0)
    if reads.kind == "elu":
        f = elu_plus_one(scores if bias is None else scores + bias).masked_fill(hidden, 0.0)
        total = (a.abs() * f).sum(dim=2, keepdim=True) + EPS
        return a * f / (total if sink is None else total + sink[:, :, None])
    logits = scores * head_dim**-0.5
    logits = (logits if bias is None else logits + bias).masked_fill(hidden, -torch.inf)
    if sink is None:
        return logits.softmax(dim=2)
    sink = sink[:, :, None].expand(*logits.shape[:2], 1, logits.shape[3])
    return torch.cat([logits, sink], dim=2).softmax(dim=2)[:, :, :-1]


def known_rows(past: Tensor | None, k: Tensor | None, v: Tensor) -> tuple[Tensor | None, Tensor]:
    """Keys and values `[B, P + N, G, d]`: those of the P rows before the piece, if any, and its own."""
    if past is None:
        return k, v
    sides = past.unbind(dim=2)
    return None if k is None else torch.cat([sides[0], k], dim=1), torch.cat([sides[-1], v], dim=1)
