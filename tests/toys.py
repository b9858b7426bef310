"""Small mixers that exercise one part of the interface each, and are all lawful."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from longwave.mixers import Declaration, MemoryRows, TokenMixer
from longwave.mixers.base import run_by_document
from longwave.modules import LayerNorm


class Toy(TokenMixer):
    """Runs ``advance`` row by row; documents one by one."""

    def __init__(self, hidden_size: int, num_heads: int) -> None:
        super().__init__(hidden_size, num_heads)
        self.proj = nn.Linear(hidden_size, hidden_size)

    def declaration(self):
        return Declaration(growth="constant")

    def advance(self, x: Tensor, state):
        raise NotImplementedError

    def forward(self, x, state=None, *, starts=None, return_state=False):
        if starts is not None:
            return run_by_document(self, x, state, starts, return_state)
        state = self.init_state(x.shape[0], device=x.device, dtype=x.dtype) if state is None else state
        rows = []
        for row in x.to(_wide(x.dtype)).unbind(dim=1):
            y, state = self.advance(row, state)
            rows.append(y)
        return self.proj(torch.stack(rows, dim=1).to(x.dtype)), state if return_state else None

    def state_bytes(self, num_tokens, dtype=torch.float32):
        return self.hidden_size * _wide(dtype).itemsize + 8

    def flops(self, num_tokens):
        return 2 * num_tokens * self.hidden_size**2


class SumState(NamedTuple):
    """`total [B, D]`, `tokens [B]`."""

    total: Tensor
    tokens: Tensor


class CumulativeMean(Toy):
    """Mean of the document so far."""

    def init_state(self, batch_size, *, max_tokens=None, device=None, dtype=None):
        total = torch.zeros(batch_size, self.hidden_size, device=device, dtype=_wide(dtype))
        return SumState(total, torch.zeros(batch_size, dtype=torch.int64, device=total.device))

    def advance(self, x, state):
        total, tokens = state.total + x, state.tokens + 1
        return total / tokens[:, None], SumState(total, tokens)


class RawMean(CumulativeMean):
    """Reads the raw residual stream and normalises it itself."""

    owns_norm = True

    def __init__(self, hidden_size: int, num_heads: int) -> None:
        super().__init__(hidden_size, num_heads)
        self.norm = LayerNorm(hidden_size)

    def forward(self, x, state=None, *, starts=None, return_state=False):
        if starts is not None:
            return run_by_document(self, x, state, starts, return_state)
        return super().forward(self.norm(x), state, return_state=return_state)


class SummaryState(NamedTuple):
    """`total [B, D]` of text rows, `summaries [B, count, D]` of the latest memory rows, `tokens [B]` rows."""

    total: Tensor
    summaries: Tensor
    tokens: Tensor


class Summaries(Toy):
    """Memory row g learns the sum of all text before it; text reads the latest memory rows."""

    def __init__(self, hidden_size: int, num_heads: int, *, count: int = 2, every: int | None = 4) -> None:
        super().__init__(hidden_size, num_heads)
        self.rows = MemoryRows(count, every)

    def declaration(self):
        edges = (self.rows.count,) if self.rows.every is None else (sum(self.rows),)
        return Declaration(growth="constant", memory_rows=self.rows, edges=edges)

    def init_state(self, batch_size, *, max_tokens=None, device=None, dtype=None):
        total = torch.zeros(batch_size, self.hidden_size, device=device, dtype=_wide(dtype))
        summaries = torch.zeros(batch_size, self.rows.count, self.hidden_size, device=device, dtype=_wide(dtype))
        return SummaryState(total, summaries, torch.zeros(batch_size, dtype=torch.int64, device=total.device))

    def advance(self, x, state):
        total, summaries, tokens = state
        place = tokens if self.rows.every is None else tokens % sum(self.rows)
        is_memory = (place < self.rows.count)[:, None]
        slot = torch.nn.functional.one_hot(place.clamp(max=self.rows.count - 1), self.rows.count).bool()
        written = torch.where(slot[..., None], (x + total)[:, None], summaries)
        summaries = torch.where(is_memory[..., None], written, summaries)
        y = torch.where(is_memory, x + total, x + summaries.mean(dim=1))
        return y, SummaryState(torch.where(is_memory, total, total + x), summaries, tokens + 1)

    def state_bytes(self, num_tokens, dtype=torch.float32):
        return (1 + self.rows.count) * self.hidden_size * _wide(dtype).itemsize + 8


class LevelState(NamedTuple):
    """`sums [B, L, D]`: level l holds the sum of a block of 2^l rows or zero; `tokens [B]`."""

    sums: Tensor
    tokens: Tensor


class BinaryCounter(Toy):
    """Blocks of the document's binary digits: a state that grows with the logarithm of the rows seen."""

    def declaration(self):
        return Declaration(growth="logarithmic", edges=(8, 32))

    def init_state(self, batch_size, *, max_tokens=None, device=None, dtype=None):
        levels = max(1, (max_tokens or 0).bit_length())
        sums = torch.zeros(batch_size, levels, self.hidden_size, device=device, dtype=_wide(dtype))
        return LevelState(sums, torch.zeros(batch_size, dtype=torch.int64, device=sums.device))

    def advance(self, x, state):
        sums, tokens = state
        needed = int(tokens.max() + 1).bit_length()
        if needed > sums.shape[1]:
            sums = torch.nn.functional.pad(sums, (0, 0, 0, needed - sums.shape[1]))
        levels, carry, carrying = [], x, torch.ones_like(tokens, dtype=torch.bool)
        for level in range(sums.shape[1]):
            full = (tokens >> level) % 2 == 1
            stays = torch.where((carrying & ~full)[:, None], carry, sums[:, level])
            levels.append(torch.where((carrying & full)[:, None], 0.0, stays))
            carry = torch.where((carrying & full)[:, None], carry + sums[:, level], carry)
            carrying = carrying & full
        sums = torch.stack(levels, dim=1)
        sizes = 2.0 ** torch.arange(sums.shape[1], device=x.device, dtype=x.dtype)
        return (sums / sizes[:, None]).sum(dim=1), LevelState(sums, tokens + 1)

    def state_bytes(self, num_tokens, dtype=torch.float32):
        return max(1, num_tokens.bit_length()) * self.hidden_size * _wide(dtype).itemsize + 8


class RowsState(NamedTuple):
    """`rows [B, R, D]`, R doubling; `tokens [B]`."""

    rows: Tensor
    tokens: Tensor


class WholeHistory(Toy):
    """Keeps every row: a state that grows linearly, by doubling."""

    def declaration(self):
        return Declaration(growth="linear", cost="quadratic", edges=(4, 16))

    def init_state(self, batch_size, *, max_tokens=None, device=None, dtype=None):
        rows = torch.zeros(batch_size, _capacity(max_tokens or 0), self.hidden_size, device=device, dtype=_wide(dtype))
        return RowsState(rows, torch.zeros(batch_size, dtype=torch.int64, device=rows.device))

    def advance(self, x, state):
        rows, tokens = state
        missing = _capacity(int(tokens.max()) + 1) - rows.shape[1]
        rows = torch.nn.functional.pad(rows, (0, 0, 0, max(0, missing)))
        rows = rows.index_put((torch.arange(len(x), device=x.device), tokens), x)
        age = (tokens[:, None] - torch.arange(rows.shape[1], device=x.device)).clamp(min=0)
        return (rows / (1 + age[..., None])).sum(dim=1), RowsState(rows, tokens + 1)

    def state_bytes(self, num_tokens, dtype=torch.float32):
        return _capacity(num_tokens) * self.hidden_size * _wide(dtype).itemsize + 8


@dataclass(frozen=True)
class Mixture:
    """Shares of the present row and of the mean."""

    present: float = 0.5
    mean: float = 0.5


class WeightedMean(CumulativeMean):
    """A mixer with a dataclass for an argument, and a place in the model."""

    def __init__(
        self,
        hidden_size: int,
        num_heads: int,
        *,
        mixture: Mixture | None = None,
        layer_index: int = 0,
        num_layers: int = 1,
    ) -> None:
        super().__init__(hidden_size, num_heads)
        self.mixture = mixture or Mixture()
        self.place = (layer_index, num_layers)

    def advance(self, x, state):
        mean, state = super().advance(x, state)
        return self.mixture.present * x + self.mixture.mean * mean, state


def _capacity(num_tokens: int) -> int:
    return max(4, 1 << max(num_tokens - 1, 0).bit_length())


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)
