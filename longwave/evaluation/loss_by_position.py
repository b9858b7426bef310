"""Loss by position in a row: how much reading more helps, and where it does not."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
from torch import nn

from longwave.data import TokenStream
from longwave.evaluation.protocol import ProtocolResult, row_losses
from longwave.evaluation.scores import Progress

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

#: First positions of the buckets, and the end of the last one.
COARSE = (0, 17, 65, 257, 513, 1025, 2047)
FINE = (0, 16, 33, 48, 64, 128, 256, 512, 768, 1024, 1536, 2047)
#: Where DWARF's offsets were predicted to leave a hole: first position, and the one after the last.
BANDS = ((673, 687), (689, 703), (737, 751), (753, 767), (929, 943), (945, 959), (1985, 2015), (2017, 2047))
WINDOW = 16
#: Nats above its neighbourhood from which on a band is a hole.
HOLE = 0.02


def bucket_means(losses: np.ndarray, edges: Sequence[int]) -> dict[str, float]:
    """Mean of ``losses`` `[..., N]` over the positions of each bucket, by ``"FIRST-LAST"``.

    Buckets end with the row; what a longer row has beyond the last edge is one more.
    """
    spans = _spans(edges, losses.shape[-1])
    return {f"{first}-{end - 1}": float(losses[..., first:end].mean()) for first, end in spans}


def smooth(losses: np.ndarray, window: int = WINDOW) -> np.ndarray:
    """Moving average of ``losses`` `[N]`, whose first and last ``window / 2`` values are repeated at its ends.

    Entry i is the mean of the ``window`` entries that begin at i - window / 2.

    Raises:
        ValueError: there are less than ``window / 2`` losses.
    """
    half = window // 2
    if len(losses) < half:
        raise ValueError(f"a moving average of {window} needs at least {half} positions, got {len(losses)}")
    padded = np.concatenate([losses[:half], losses, losses[-half:]])
    return np.convolve(padded, np.full(window, 1 / window), mode="valid")[: len(losses)]


def band_excess(losses: np.ndarray, bands: Sequence[tuple[int, int]] = BANDS, window: int = WINDOW) -> dict[str, float]:
    """Mean of ``losses`` `[N]` in each band less that of the ``window`` positions on either side, by ``"FIRST-END"``.

    A band that lacks a whole neighbour is left out.
    """
    excess = {}
    for first, end in bands:
        if first >= window and end + window <= len(losses):
            beside = losses[first - window : first].mean(), losses[end : end + window].mean()
            excess[f"{first}-{end}"] = float(losses[first:end].mean() - np.mean(beside))
    return excess


def position_loss(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    text: TokenStream | str,
    *,
    row_length: int = 2048,
    num_rows: int | None = 50,
    bands: Sequence[tuple[int, int]] = BANDS,
    batch_size: int = 16,
    progress: Progress | None = None,
) -> ProtocolResult:
    """Mean loss, in nats, at each of the ``row_length - 1`` positions of a row, smoothed, in buckets and in bands.

    A record is a position. ``holes`` counts the bands of more than 0.02 nats above their neighbours (``excess@``).

    Raises:
        ValueError: a row has less than 9 tokens, or the text less than a row.
    """
    losses = row_losses(model, tokenizer, text, row_length, num_rows=num_rows, batch_size=batch_size, progress=progress)
    mean = losses.mean(axis=0)
    excess = band_excess(mean, bands)
    aggregates = {
        "loss": float(mean.mean()),
        **{f"coarse@{name}": value for name, value in bucket_means(mean, COARSE).items()},
        **{f"fine@{name}": value for name, value in bucket_means(mean, FINE).items()},
        **{f"excess@{name}": value for name, value in excess.items()},
        "holes": float(sum(value > HOLE for value in excess.values())),
    }
    curve = zip(mean.tolist(), smooth(mean).tolist(), strict=True)
    records = tuple({"position": i, "loss": loss, "smoothed": calm} for i, (loss, calm) in enumerate(curve))
    settings = {"row_length": row_length, "rows": len(losses), "bands": sorted(excess), "hole_above": HOLE}
    return ProtocolResult(aggregates, records, settings)


def distance_loss(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    text: TokenStream | str,
    *,
    row_length: int = 2048,
    num_rows: int | None = 17,
    edges: Sequence[int] = COARSE,
    batch_size: int = 16,
    progress: Progress | None = None,
) -> ProtocolResult:
    """Mean loss, in nats, perplexity and number of tokens in buckets 0-16, 17-64, ... of positions in a row.

    The name is the published one. What it measures is the position in the row, that is how much could be read, and not
    the distance from which anything was.

    Raises:
        ValueError: a row has less than two tokens, or the text less than a row.
    """
    losses = row_losses(model, tokenizer, text, row_length, num_rows=num_rows, batch_size=batch_size, progress=progress)
    spans = _spans(edges, losses.shape[1])
    records = tuple(
        {"positions": name, "loss": loss, "perplexity": _perplexity(loss), "tokens": len(losses) * (end - first)}
        for (name, loss), (first, end) in zip(bucket_means(losses, edges).items(), spans, strict=True)
    )
    aggregates = {"loss": float(losses.mean()), "perplexity": _perplexity(float(losses.mean()))}
    for record in records:
        aggregates |= {f"{key}@{record['positions']}": record[key] for key in ("loss", "perplexity")}
    return ProtocolResult(aggregates, records, {"row_length": row_length, "rows": len(losses)})


def _spans(edges: Sequence[int], length: int) -> list[tuple[int, int]]:
    """First position and end of each bucket in a row of ``length``."""
    ends = [min(edge, length) for edge in edges] + [length]
    return [(first, end) for first, end in pairwise(ends) if first < end]


def _perplexity(nats: float) -> float:
    return math.exp(nats) if nats < 700 else math.inf
