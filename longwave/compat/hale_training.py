"""How HALE was trained and scored: learning rates, windows and batches, metrics, one update.

Two functions carry ``published`` in their name or fields: they are the original's, beside the corrected
ones.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from torch.optim import AdamW, Optimizer
from torch.utils.data import DataLoader

from longwave.training.schedule import learning_rate

Batch = tuple[Tensor, Tensor]


def warmup_cosine(update: int, *, base_lr: float, warmup_steps: int, total_steps: int, min_lr: float = 1e-5) -> float:
    """Rate of optimizer update ``update`` = 1, 2, ...: linear to ``base_lr``, cosine to ``min_lr``, then constant."""
    sizes = {"warmup_steps": warmup_steps, "total_steps": total_steps}
    return learning_rate(update, base=base_lr, minimum=min_lr, **sizes, schedule="cosine")


def published_warmup_cosine(
    update: int, *, base_lr: float, warmup_steps: int, total_steps: int, min_lr: float = 1e-5
) -> float:
    """The original's rate: the peak at the first update, then one update late; it rises again after the end."""
    done = update - 1
    if done == 0:
        return base_lr
    if done <= warmup_steps:
        return base_lr * done / warmup_steps
    progress = (done - warmup_steps) / max(1, total_steps - warmup_steps)
    return min_lr + (base_lr - min_lr) * (1 + math.cos(math.pi * progress)) / 2


def cut_windows(lines: Iterable[Sequence[int]], max_seq_len: int) -> list[Tensor]:
    """Cut encoded lines into windows of at most ``max_seq_len`` + 1 ids; neighbours overlap by one.

    No window crosses a line, and every id but a line's first is the last or a later id of one window.
    """
    windows = []
    for line in lines:
        ids = torch.as_tensor(line, dtype=torch.int64)
        windows += [ids[begin : begin + max_seq_len + 1] for begin in range(0, len(ids) - 1, max_seq_len)]
    return windows


def collate(windows: Sequence[Tensor], pad_id: int = 0, label_pad: int = -100) -> Batch:
    """Inputs and targets of windows, `[B, n]` int64 each, padded on the right to the longest."""
    inputs = pad_sequence([window[:-1] for window in windows], batch_first=True, padding_value=pad_id)
    targets = pad_sequence([window[1:] for window in windows], batch_first=True, padding_value=label_pad)
    return inputs, targets


def batches(
    windows: Sequence[Tensor],
    batch_size: int,
    *,
    shuffle: bool = False,
    pad_id: int = 0,
    label_pad: int = -100,
    generator: torch.Generator | None = None,
) -> DataLoader:
    """Batches of ``batch_size`` windows, in order or in a fresh random order each time it is iterated."""
    return DataLoader(
        windows,  # type: ignore[arg-type]
        batch_size=batch_size,
        shuffle=shuffle,
        generator=generator,
        collate_fn=lambda chosen: collate(chosen, pad_id, label_pad),
    )


@dataclass(frozen=True)
class Metrics:
    """Scores of a text.

    Attributes:
        loss: nats per counted token.
        published_loss: the original's: mean over batches of each batch's mean.
        accuracy_percent: counted tokens whose largest logit is theirs.
        num_tokens: targets other than -100.
        num_bytes: UTF-8 bytes of the text; ``None`` if not told.
    """

    loss: float
    published_loss: float
    accuracy_percent: float
    num_tokens: int
    num_bytes: int | None = None

    @property
    def perplexity(self) -> float:
        """exp(loss): comparable between models of one tokenizer only."""
        return math.exp(self.loss)

    @property
    def bits_per_byte(self) -> float:
        """Bits per UTF-8 byte of the text: comparable between any two models.

        Raises:
            ValueError: ``num_bytes`` is not known.
        """
        if self.num_bytes is None:
            raise ValueError("bits per byte need the number of bytes of the text; give num_bytes")
        return self.loss * self.num_tokens / (math.log(2) * self.num_bytes)

    def published_perplexity(self, cap: float = 20.0) -> float:
        """exp(min(published_loss, cap)); the original's comparison of three models caps at 10."""
        return math.exp(min(self.published_loss, cap))


def measure(scored: Iterable[tuple[Tensor, Tensor]], num_bytes: int | None = None) -> Metrics:
    """Metrics of batches of logits `[B, N, V]` and targets `[B, N]`, -100 where not counted.

    Raises:
        ValueError: no target is counted.
    """
    nats, batch_means, correct, counted = 0.0, [], 0, 0
    for logits, targets in scored:
        losses = F.cross_entropy(logits.flatten(0, 1).double(), targets.flatten(), reduction="sum")
        num_tokens = int((targets != -100).sum())
        nats += float(losses)
        counted += num_tokens
        correct += int((logits.argmax(dim=-1) == targets).sum())
        batch_means.append(float(losses) / max(1, num_tokens))
    if not counted:
        raise ValueError("no target is counted: nothing to measure")
    return Metrics(nats / counted, sum(batch_means) / len(batch_means), 100 * correct / counted, counted, num_bytes)


@torch.no_grad()
def evaluate(model: nn.Module, loader: Iterable[Batch], num_bytes: int | None = None) -> Metrics:
    """:func:`measure` a published model on batches of inputs and targets, in evaluation mode."""
    device, training = next(model.parameters()).device, model.training
    model.eval()
    try:
        return measure(((model(x.to(device))[0], y.to(device)) for x, y in loader), num_bytes)
    finally:
        model.train(training)


def published_optimizer(
    model: nn.Module,
    *,
    weight_decay: float = 0.01,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
) -> AdamW:
    """AdamW that decays every parameter alike, biases, gains and embeddings included."""
    return AdamW(model.parameters(), betas=betas, eps=eps, weight_decay=weight_decay)


def train_step(
    model: nn.Module, optimizer: Optimizer, ids: Tensor, labels: Tensor, *, rate: float, clip_norm: float
) -> tuple[float, float]:
    """One update at learning rate ``rate``; loss in nats, and the gradient's global norm before clipping.

    Raises:
        RuntimeError: the gradient is not finite; the weights are then as before.
    """
    optimizer.zero_grad()
    _, loss = model(ids, labels=labels)
    loss.backward()
    norm = nn.utils.clip_grad_norm_(model.parameters(), clip_norm, error_if_nonfinite=True)
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.step()
    return loss.item(), norm.item()
