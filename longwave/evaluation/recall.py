"""Recall: the share of answers that a model gets right."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor, nn

from longwave.data import ScoredRows
from longwave.evaluation.scores import Progress, measure_rows


@dataclass(frozen=True, eq=False)
class RecallScore:
    """Answers right and wrong, an answer being the likeliest token.

    Attributes:
        rows: `[R]` float64, share of each row's answers that are wrong.
        sizes: `[R]`, size of each row: its pairs, or its tokens to copy.
    """

    rows: np.ndarray
    sizes: np.ndarray

    @property
    def accuracy(self) -> float:
        """Share of right answers, every row weighted alike."""
        return float(1 - self.rows.mean())

    @property
    def by_size(self) -> dict[int, float]:
        """Accuracy on the rows of each size."""
        return {int(size): float(1 - self.rows[self.sizes == size].mean()) for size in np.unique(self.sizes)}

    @property
    def loss(self) -> float:
        """1 - accuracy."""
        return 1 - self.accuracy

    def values(self) -> dict[str, float]:
        """``accuracy``, and ``accuracy@SIZE`` for each size."""
        return {"accuracy": self.accuracy, **{f"accuracy@{size}": value for size, value in self.by_size.items()}}


def recall(
    model: nn.Module, rows: ScoredRows, *, batch_size: int = 16, progress: Progress | None = None
) -> RecallScore:
    """Score a model on the rows of a task. ``progress`` is called with rows done and rows in all.

    Raises:
        ValueError: the model cannot keep the documents of a row apart.
    """
    return RecallScore(measure_rows(model, rows, _wrong, batch_size=batch_size, progress=progress), rows.sizes)


def _wrong(logits: Tensor, targets: Tensor) -> Tensor:
    asked = targets != -100
    return ((logits.argmax(dim=-1) != targets) & asked).sum(1).double() / asked.sum(1)
