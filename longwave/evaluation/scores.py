"""What scores of every kind can say, and the walk over rows that makes them."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

Progress = Callable[[int, int], None]


class Score(Protocol):
    """What a model is worth on some rows."""

    @property
    def loss(self) -> float:
        """The one number that training wants small."""
        ...

    @property
    def rows(self) -> np.ndarray:
        """`[R]` float64, a number for each scored row; their mean is the loss."""
        ...

    def values(self) -> dict[str, float]:
        """What is shown and recorded, by name; :func:`recorded_loss` finds the loss in it."""
        ...


def recorded_loss(values: Mapping[str, float]) -> float | None:
    """The loss of recorded values: ``bits_per_byte``, or 1 - ``accuracy``; ``None`` if they are of no score."""
    if "bits_per_byte" in values:
        return values["bits_per_byte"]
    return 1 - values["accuracy"] if "accuracy" in values else None


def finite(value: Any) -> Any:
    """``value`` with ``None`` for every number within it that is not finite, which JSON cannot say."""
    if isinstance(value, Mapping):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


@torch.no_grad()
def measure_rows(
    model: nn.Module,
    rows: Dataset,
    measure: Callable[[Tensor, Tensor], Tensor],
    *,
    batch_size: int = 16,
    progress: Progress | None = None,
) -> np.ndarray:
    """One number for each row, `[R]` float64, from a model in evaluation mode, which is left in the mode it was in.

    Args:
        rows: dicts as of :class:`longwave.data.PackedRows`.
        measure: from logits `[B, N, V]`, float32 or wider, and targets `[B, N]`, -100 where there is none, to `[B]`.
        progress: called with rows done and rows in all.

    Raises:
        ValueError: the model cannot keep the documents of a row apart.
    """
    if "starts" not in inspect.signature(model.forward).parameters:
        raise ValueError(f"{type(model).__name__} does not keep documents apart (no argument `starts`)")
    device, training = next(model.parameters()).device, model.training
    found: list[np.ndarray] = []
    done, total = 0, len(rows)  # type: ignore[arg-type]
    model.eval()
    try:
        for batch in DataLoader(rows, batch_size=max(1, min(batch_size, total))):
            batch = {name: tensor.to(device) for name, tensor in batch.items()}
            logits = model(input_ids=batch["input_ids"], starts=batch["starts"], use_cache=False).logits
            logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
            found.append(measure(logits, batch["labels"][:, 1:]).double().cpu().numpy())
            done += len(found[-1])
            if progress is not None:
                progress(done, total)
    finally:
        model.train(training)
    return np.concatenate(found)
