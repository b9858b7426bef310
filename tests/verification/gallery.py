"""Mixers broken on purpose, one defect each, and the property that has to catch it."""

from __future__ import annotations

import torch
from torch import nn

from longwave.mixers import Declaration
from longwave.mixers.base import run_by_document
from longwave.ops import offset_attention
from tests.toys import CumulativeMean, SumState, Toy


class Honest(CumulativeMean):
    """The control: nothing is wrong with it."""


class Boastful(CumulativeMean):
    """Declares a defect that it does not have."""

    def declaration(self):
        return Declaration(growth="constant", breaks={"P3": "nothing, really"})


class WindowIntoTheFuture(CumulativeMean):
    """P1: attends to a window that is one token too wide, on the wrong side."""

    def forward(self, x, state=None, *, starts=None, return_state=False):
        _, final = super().forward(x, state, starts=starts, return_state=return_state)
        ahead = torch.cat([x[:, 1:], x[:, -1:]], dim=1)[:, :, None]
        return self.proj(offset_attention(ahead, ahead, ahead, window=4)[:, :, 0]), final


class WholeBlockMean(CumulativeMean):
    """P1: the mean of the whole block of four, its later tokens included."""

    def forward(self, x, state=None, *, starts=None, return_state=False):
        _, final = super().forward(x, state, starts=starts, return_state=return_state)
        blocks = nn.functional.pad(x, (0, 0, 0, -x.shape[1] % 4)).unflatten(1, (-1, 4))
        return self.proj(blocks.mean(dim=2).repeat_interleave(4, dim=1)[:, : x.shape[1]]), final


class TrainingLeak(CumulativeMean):
    """P1: mixes in the sequence's mean, in training mode only."""

    def forward(self, x, state=None, *, starts=None, return_state=False):
        y, final = super().forward(x, state, starts=starts, return_state=return_state)
        return (y + 1e-6 * x.mean(dim=1, keepdim=True) if self.training else y), final


class LengthScaled(CumulativeMean):
    """P2: divides by the length of the piece instead of the tokens seen."""

    def forward(self, x, state=None, *, starts=None, return_state=False):
        y, final = super().forward(x, state, starts=starts, return_state=return_state)
        return y / x.shape[1], final


class DroppedState(CumulativeMean):
    """P3: forgets the state between pieces."""

    def forward(self, x, state=None, *, starts=None, return_state=False):
        return super().forward(x, None, starts=starts, return_state=return_state)


class DetachedState(CumulativeMean):
    """P3: right numbers, but no gradient flows through the state."""

    def forward(self, x, state=None, *, starts=None, return_state=False):
        state = None if state is None else SumState(state.total.detach(), state.tokens)
        return super().forward(x, state, starts=starts, return_state=return_state)


class OtherStep(CumulativeMean):
    """P3: decodes another function than it trains."""

    def step(self, x, state):
        y, state = super().step(x, state)
        return 1.000001 * y, state


class IgnoredStarts(CumulativeMean):
    """P4: documents run into each other."""

    def forward(self, x, state=None, *, starts=None, return_state=False):
        return super().forward(x, state, return_state=return_state)


class StartsButKeptCount(CumulativeMean):
    """P4: resets the sum at a start but not the count."""

    def forward(self, x, state=None, *, starts=None, return_state=False):
        if starts is None:
            return super().forward(x, state, return_state=return_state)
        y, final = run_by_document(self, x, state, starts, return_state)
        if final is not None:
            final = SumState(final.total, torch.full_like(final.tokens, x.shape[1]))
        return y, final


class UndeclaredGrowth(Toy):
    """P5: keeps every row and declares a constant state."""

    def init_state(self, batch_size, *, max_tokens=None, device=None, dtype=None):
        rows = torch.zeros(batch_size, 1, self.hidden_size, device=device, dtype=dtype)
        return SumState(rows, torch.zeros(batch_size, dtype=torch.int64, device=rows.device))

    def advance(self, x, state):
        rows = torch.cat([state.total, x[:, None]], dim=1)
        return rows.mean(dim=1), SumState(rows, state.tokens + 1)

    def declaration(self):
        return Declaration(growth="constant")


class BatchMean(CumulativeMean):
    """P7: centres each token by the batch's mean."""

    def forward(self, x, state=None, *, starts=None, return_state=False):
        y, final = super().forward(x, state, starts=starts, return_state=return_state)
        return y - 1e-6 * y.mean(dim=0, keepdim=True), final


class HalfGradient(CumulativeMean):
    """P8: right numbers, half of the gradient."""

    def forward(self, x, state=None, *, starts=None, return_state=False):
        half = 0.5 * x + 0.5 * x.detach()
        return super().forward(half, state, starts=starts, return_state=return_state)


class BitsForNumbers(CumulativeMean):
    """P9: takes the bits of a bfloat16 for a number, as a kernel does that does not know the type."""

    def forward(self, x, state=None, *, starts=None, return_state=False):
        if x.dtype != torch.bfloat16:
            return super().forward(x, state, starts=starts, return_state=return_state)
        misread = 1e-4 * x.view(torch.int16).to(x.dtype)
        return super().forward(x + misread, state, starts=starts, return_state=return_state)


class NarrowTotal(CumulativeMean):
    """P9: adds up in bfloat16 between pieces, with bfloat16 weights."""

    def forward(self, x, state=None, *, starts=None, return_state=False):
        y, final = super().forward(x, state, starts=starts, return_state=return_state)
        return y, final and SumState(final.total.to(x.dtype), final.tokens)


class InsideAutocast(CumulativeMean):
    """P9: lets autocast multiply a large sum that is then subtracted again."""

    def forward(self, x, state=None, *, starts=None, return_state=False):
        y, final = super().forward(x, state, starts=starts, return_state=return_state)
        large = x + 30.0
        identity = torch.eye(x.shape[-1], dtype=x.dtype)
        return y + large @ identity - large, final


class WritesIntoItsState(CumulativeMean):
    """P12: forward changes the state that it was given."""

    def forward(self, x, state=None, *, starts=None, return_state=False):
        y, final = super().forward(x, state, starts=starts, return_state=return_state)
        if state is not None and not state.total.requires_grad and not x.requires_grad:
            state.total.add_(1.0)
        return y, final


BROKEN = {
    WindowIntoTheFuture: "P1",
    WholeBlockMean: "P1",
    TrainingLeak: "P1",
    LengthScaled: "P2",
    DroppedState: "P3",
    DetachedState: "P3",
    OtherStep: "P3",
    IgnoredStarts: "P4",
    StartsButKeptCount: "P4",
    UndeclaredGrowth: "P5",
    BatchMean: "P7",
    HalfGradient: "P8",
    BitsForNumbers: "P9",
    NarrowTotal: "P9",
    InsideAutocast: "P9",
    WritesIntoItsState: "P12",
}
