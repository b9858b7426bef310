"""Decoding: seconds of one token after many."""

from __future__ import annotations

from collections.abc import Callable
from statistics import median
from typing import Any

import torch
from torch import Tensor

from longwave.benchmarks.contestants import Contestant, Floor, rows
from longwave.benchmarks.memory import peak_bytes
from longwave.benchmarks.timing import stopwatch
from longwave.mixers.base import State, fork

#: Rows that are fed at a time.
PIECE = 4096
#: Tokens that are timed in a turn, after one that is not: there a growing state may double.
BURST = 16


@torch.no_grad()
def state_after(contestant: Contestant, num_tokens: int) -> State:
    """The state after ``num_tokens`` random rows, fed in pieces of 4096.

    A mixer of quadratic cost is fed all at once: after a state, its attention would need a mask as large as
    the piece times everything before it.
    """
    settings, mixer = contestant.settings, contestant.mixer.eval()
    piece = num_tokens if mixer.declaration().cost == "quadratic" else PIECE
    state, fed = None, 0
    while fed < num_tokens:
        size = min(piece, num_tokens - fed)
        with settings.precision():
            _, state = mixer(rows(settings, size, seed=fed), state, return_state=True)
        fed += size
    return state


class Decoder:
    """A contestant that stands after ``num_tokens`` tokens and is timed from there, again and again."""

    def __init__(self, contestant: Contestant, num_tokens: int) -> None:
        self.contestant, self.settings = contestant, contestant.settings
        self.state = state_after(contestant, num_tokens)
        self.x = rows(self.settings, 1)[:, 0]

    @torch.no_grad()
    def measure(self) -> float:
        """Median seconds of a token, over a burst that begins at the state; the state itself stays."""
        step = _Stream(self.contestant, self.x, fork(self.state))
        step()
        measure = stopwatch(step, self.settings.device)
        return median(measure() for _ in range(BURST))

    @torch.no_grad()
    def peak_bytes(self) -> int:
        """Most bytes beyond the state itself while a token is decoded."""
        step = _Stream(self.contestant, self.x, fork(self.state))
        step()
        found = step.state  # held, so that the profiler never meets the end of what it has not seen begin
        size = peak_bytes(step, self.settings.device)
        del found
        return size


class _Stream:
    """Steps, each after the last."""

    def __init__(self, contestant: Contestant, x: Tensor, state: State) -> None:
        self.contestant, self.x, self.state = contestant, x, state

    def __call__(self) -> Any:
        with self.contestant.settings.precision():
            y, self.state = self.contestant.mixer(self.x, self.state)
        return y


def floor_measure(floor: Floor, num_tokens: int) -> Callable[[], float]:
    """Median seconds of a burst of the floor's steps over ``num_tokens`` cached keys and values."""
    with torch.no_grad():
        step, x = floor.make_step(num_tokens), rows(floor.settings, 1)[:, 0]

    def once() -> Tensor:
        with floor.settings.precision():
            return step(x)

    measure = stopwatch(once, floor.settings.device)

    @torch.no_grad()
    def burst() -> float:
        once()
        return median(measure() for _ in range(BURST))

    return burst
