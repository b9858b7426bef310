"""What a protocol of the evaluation suite finds, and how it asks any causal language model."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import groupby
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from longwave.data import TokenStream
from longwave.evaluation.scores import Progress

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

T = TypeVar("T")

#: Rows whose logits are held together have at most this many tokens, but for a single longer one.
TOKENS_AT_A_TIME = 4096


@dataclass(frozen=True)
class ProtocolResult:
    """What a protocol found; all of it is fit for JSON.

    Attributes:
        aggregates: numbers over all items, by name.
        records: one mapping for each item.
        settings: what was asked, and what could not be.
    """

    aggregates: dict[str, float]
    records: tuple[dict[str, Any], ...]
    settings: dict[str, Any] = field(default_factory=dict)

    def values(self) -> dict[str, float]:
        """The aggregates."""
        return dict(self.aggregates)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[torch.device]:
    """Evaluation mode without gradients; gives the model's device, and leaves the mode as it was."""
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield next(model.parameters()).device
    finally:
        model.train(training)


def encode_text(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Ids of ``text`` alone, without a token that begins or ends a document."""
    return list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])  # type: ignore[arg-type]


def beginning(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The token that begins a document, if the tokenizer has one."""
    return [] if tokenizer.bos_token_id is None else [int(tokenizer.bos_token_id)]  # type: ignore[arg-type]


def longest_input(model: nn.Module) -> int | None:
    """Most tokens for which the model has positions; ``None`` if it has no limit or does not say."""
    config = getattr(model, "config", None)
    if getattr(config, "positions", "learned") != "learned":
        return None
    return getattr(config, "max_position_embeddings", None)


def ask_last(
    model: nn.Module,
    sequences: Sequence[Sequence[int]],
    measure: Callable[[int, Tensor], T],
    *,
    batch_size: int = 16,
    progress: Progress | None = None,
) -> list[T]:
    """``measure(index, logits)`` of each sequence, its logits `[V]` float64 being those after its last token.

    Sequences of one length share a batch, so nothing is padded. ``progress`` is called with sequences done and all.
    """
    kept = {"logits_to_keep": 1} if "logits_to_keep" in inspect.signature(model.forward).parameters else {}
    order = sorted(range(len(sequences)), key=lambda index: len(sequences[index]))
    found: dict[int, T] = {}
    with evaluating(model) as device:
        for _, group in groupby(order, key=lambda index: len(sequences[index])):
            alike = list(group)
            for first in range(0, len(alike), batch_size):
                batch = alike[first : first + batch_size]
                ids = torch.tensor([list(sequences[index]) for index in batch], device=device)
                logits = model(input_ids=ids, use_cache=False, **kept).logits[:, -1].double()
                found |= {index: measure(index, row) for index, row in zip(batch, logits, strict=True)}
                if progress is not None:
                    progress(len(found), len(sequences))
    return [found[index] for index in range(len(sequences))]


def row_losses(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    text: TokenStream | str,
    row_length: int,
    *,
    num_rows: int | None = None,
    batch_size: int = 16,
    progress: Progress | None = None,
) -> np.ndarray:
    """Nats of each predicted token, `[R, row_length - 1]` float64, in whole rows of ``row_length`` tokens.

    Documents are not kept apart within a row, so that a position is the number of tokens read before it. Every whole
    row is used, at most ``num_rows`` from the beginning; what is left at the end is no row.

    Raises:
        ValueError: a row has less than two tokens, or the text less than a row.
    """
    if row_length < 2:
        raise ValueError(f"a row needs at least 2 tokens, got {row_length}")
    ids = np.asarray(encode_text(tokenizer, text)) if isinstance(text, str) else text.ids
    total = len(ids) // row_length if num_rows is None else min(num_rows, len(ids) // row_length)
    if total < 1:
        raise ValueError(f"the text has {len(ids)} tokens, less than one row of {row_length}; give more text")
    at_once = max(1, min(batch_size, TOKENS_AT_A_TIME // row_length))
    found = []
    with evaluating(model) as device:
        for first in range(0, total, at_once):
            last = min(first + at_once, total)
            rows = np.asarray(ids[first * row_length : last * row_length]).astype(np.int64).reshape(-1, row_length)
            batch = torch.from_numpy(rows).to(device)
            logits = model(input_ids=batch[:, :-1], use_cache=False).logits
            logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
            nats = F.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten(), reduction="none")
            found.append(nats.view(len(rows), -1).double().cpu().numpy())
            if progress is not None:
                progress(last, total)
    return np.concatenate(found)
