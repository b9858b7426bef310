"""The states of all mixers of a model, in the shape in which ``generate`` carries them around.

Everything here that touches the private side of transformers' cache is in this file.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

from longwave.mixers.base import State, concatenate, nbytes, select
from longwave.model.configuration import LongwaveConfig
from longwave.model.memory import Stream, batch_order


class TextState(NamedTuple):
    """`tokens [B]` int64: text tokens of the current document."""

    tokens: Tensor


class MixerCacheLayer(CacheLayerMixin):
    """One mixer's state."""

    is_compileable = False

    def __init__(self) -> None:
        super().__init__()
        self.state: State | None = None
        self.seen = 0

    def put(self, state: State, num_tokens: int) -> None:
        """Replace the state after ``num_tokens`` more positions."""
        self.state, self.seen, self.is_initialized = state, self.seen + num_tokens, True

    def lazy_initialization(self, key_states, value_states):
        raise NotImplementedError("a mixer's state is not made of keys and values")

    def update(self, key_states, value_states, *args, **kwargs):
        raise NotImplementedError("a mixer's state is not made of keys and values")

    def get_seq_length(self) -> int:
        """Positions seen, padding and all documents included."""
        return self.seen

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.seen + query_length, 0

    def get_max_length(self) -> int:
        return -1

    def reset(self) -> None:
        self.state, self.seen, self.is_initialized = None, 0, False

    def reorder_cache(self, beam_idx: Tensor) -> None:
        self._keep(lambda size: beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        self._keep(lambda size: torch.arange(size).repeat_interleave(repeats))

    def batch_select_indices(self, indices: Tensor) -> None:
        self._keep(lambda size: torch.arange(size)[indices.cpu()])

    def _keep(self, rows: Callable[[int], Tensor]) -> None:
        if self.state is not None:
            self.state = select(self.state, rows(self.state[0].shape[0]))


class LongwaveCache(Cache):
    """State of a :class:`~longwave.model.LongwaveForCausalLM` after the tokens it has read.

    Give it back to ``forward`` or ``generate`` as ``past_key_values`` to continue; ``copy.deepcopy`` keeps
    the old one. Beside the mixers' states, which count rows, it counts the text tokens of each current
    document: positions and memory rows depend on them.
    """

    def __init__(self, config: LongwaveConfig) -> None:
        self.text = MixerCacheLayer()
        self.mixers = [[MixerCacheLayer() for _ in entry] for entry in config.labels()]
        super().__init__(layers=[self.text, *self._flat()])

    @property
    def tokens(self) -> Tensor | None:
        """`[B]` int64, text tokens of each row's current document; ``None`` before the first."""
        return None if self.text.state is None else self.text.state.tokens

    def read(self, batch: Tensor | None) -> list[list[State | None]]:
        """The states of each block's mixers, for the batch rows ``batch`` (``None``: all)."""
        return [
            [layer.state if layer.state is None or batch is None else select(layer.state, batch) for layer in entry]
            for entry in self.mixers
        ]

    def write(self, streams: Sequence[Stream], states: Sequence[list[list[State]]], positions: Tensor) -> None:
        """Take the states that the streams ended in, after text tokens at ``positions`` `[B, N]`."""
        order = batch_order(streams)
        for index, entry in enumerate(self.mixers):
            for place, layer in enumerate(entry):
                parts = [state[index][place] for state in states]
                merged = parts[0] if order is None else select(concatenate(parts), order)
                layer.put(merged, positions.shape[1])
        self.text.put(TextState(positions[:, -1] + 1), positions.shape[1])

    def nbytes(self) -> int:
        """Bytes of all mixers' states, all batch rows together."""
        return sum(nbytes(layer.state) for layer in self._flat() if layer.state is not None)

    def _flat(self) -> list[MixerCacheLayer]:
        return [layer for entry in self.mixers for layer in entry]
