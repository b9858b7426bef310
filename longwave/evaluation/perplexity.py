"""Perplexity and bits per byte."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader

from longwave.data import PackedRows, TokenStream


@dataclass(frozen=True)
class LikelihoodScore:
    """Negative log-likelihood of a text.

    Attributes:
        nats: summed over the predicted tokens, ends of documents included.
        num_tokens: predicted tokens: all but the first.
        num_bytes: UTF-8 bytes of the text, whatever the tokenizer.
    """

    nats: float
    num_tokens: int
    num_bytes: int

    @property
    def perplexity(self) -> float:
        """exp(nats per token): comparable between models of one tokenizer only."""
        mean = self.nats / self.num_tokens
        return math.exp(mean) if mean < 700 else math.inf

    @property
    def bits_per_byte(self) -> float:
        """nats / (ln 2 · bytes): comparable between any two models."""
        return self.nats / (math.log(2) * self.num_bytes)


@torch.no_grad()
def score(
    model: nn.Module,
    stream: TokenStream,
    sequence_length: int,
    *,
    batch_size: int = 16,
    progress: Callable[[int, int], None] | None = None,
) -> LikelihoodScore:
    """Score ``stream`` in rows of ``sequence_length`` tokens, each without what came before it.

    Every token is weighted alike, the short last row included. ``progress`` is called with rows done and
    rows in all.

    Raises:
        ValueError: the model cannot keep the documents of a row apart.
    """
    if "starts" not in inspect.signature(model.forward).parameters:
        raise ValueError(f"{type(model).__name__} does not keep documents apart (no argument `starts`)")
    rows = PackedRows(stream, sequence_length)
    device = next(model.parameters()).device
    training, nats, counted, done = model.training, 0.0, 0, 0
    model.eval()
    try:
        for batch in DataLoader(rows, batch_size=batch_size):
            batch = {name: tensor.to(device) for name, tensor in batch.items()}
            logits = model(input_ids=batch["input_ids"], starts=batch["starts"], use_cache=False).logits
            targets = batch["labels"][:, 1:].flatten()
            logits = logits.flatten(0, 1).to(torch.promote_types(logits.dtype, torch.float32))
            nats += float(F.cross_entropy(logits, targets, reduction="sum"))
            counted += int((targets != -100).sum())
            done += len(batch["labels"])
            if progress is not None:
                progress(done, len(rows))
    finally:
        model.train(training)
    return LikelihoodScore(nats, counted, stream.num_bytes)
