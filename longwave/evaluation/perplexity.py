"""Perplexity and bits per byte."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch.nn.functional as F
from torch import Tensor, nn

from longwave.data import PackedRows, TokenStream
from longwave.evaluation.scores import Progress, measure_rows


@dataclass(frozen=True, eq=False)
class LikelihoodScore:
    """Negative log-likelihood of a text.

    Attributes:
        row_nats: `[R]` float64, of each row, summed over the predicted tokens, ends of documents included.
        num_tokens: predicted tokens: all but the first.
        num_bytes: UTF-8 bytes of the text, whatever the tokenizer.
    """

    row_nats: np.ndarray
    num_tokens: int
    num_bytes: int

    @property
    def nats(self) -> float:
        """Of the whole text."""
        return float(self.row_nats.sum())

    @property
    def perplexity(self) -> float:
        """exp(nats per token): comparable between models of one tokenizer only."""
        mean = self.nats / self.num_tokens
        return math.exp(mean) if mean < 700 else math.inf

    @property
    def bits_per_byte(self) -> float:
        """nats / (ln 2 · bytes): comparable between any two models."""
        return self.nats / (math.log(2) * self.num_bytes)

    @property
    def loss(self) -> float:
        """Bits per byte."""
        return self.bits_per_byte

    @property
    def rows(self) -> np.ndarray:
        """`[R]` float64: nats of a row · R / (ln 2 · bytes), so that the mean is bits per byte."""
        return self.row_nats * (len(self.row_nats) / (math.log(2) * self.num_bytes))

    def values(self) -> dict[str, float]:
        """``bits_per_byte`` and ``perplexity``."""
        return {"bits_per_byte": self.bits_per_byte, "perplexity": self.perplexity}


def score(
    model: nn.Module,
    stream: TokenStream,
    sequence_length: int,
    *,
    batch_size: int = 16,
    progress: Progress | None = None,
) -> LikelihoodScore:
    """Score ``stream`` in rows of ``sequence_length`` tokens, each without what came before it.

    Every token is weighted alike, the short last row included. ``progress`` is called with rows done and
    rows in all.

    Raises:
        ValueError: the model cannot keep the documents of a row apart.
    """
    rows = PackedRows(stream, min(sequence_length, max(1, len(stream.ids) - 1)))
    nats = measure_rows(model, rows, _nats, batch_size=batch_size, progress=progress)
    return LikelihoodScore(nats, len(stream.ids) - 1, stream.num_bytes)


def _nats(logits: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none").view_as(targets).double().sum(1)
