"""The states of all mixers of a model, in the shape in which ``generate`` carries them around.

Everything here that touches the private side of transformers' cache is in this file.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, CacheLayerMixin
from transformers.modeling_outputs import CausalLMOutputWithPast

from longwave.mixers.base import (
    State,
    check_state,
    concatenate,
    configuration_hash,
    fork,
    nbytes,
    read_state,
    read_tensors,
    select,
)
from longwave.model.configuration import LongwaveConfig
from longwave.model.memory import Stream, batch_order

CACHE_FORMAT = "longwave-cache-1"

#: What `generate` and a model's output call the cache: `cache` from transformers 5.24 on, `past_key_values` before it.
CACHE_NAME = next(field.name for field in fields(CausalLMOutputWithPast) if field.name in ("cache", "past_key_values"))


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

    def __deepcopy__(self, memo: dict) -> MixerCacheLayer:
        copied = type(self)()
        if self.state is not None:
            copied.put(fork(self.state), self.seen)
        return copied

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

    Give it back to ``forward`` or ``generate`` to continue, as ``cache`` or ``past_key_values``, whichever the
    transformers at hand calls it (``forward`` takes both); ``copy.deepcopy`` keeps the old one. Beside the mixers'
    states, which count rows, it counts the text tokens of each current document: positions and memory rows depend
    on them.
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

    def detach(self) -> None:
        """Cut the states off from the graph that made them."""
        for layer in self.layers:
            if layer.state is not None:
                layer.state = type(layer.state)(*(tensor.detach() for tensor in layer.state))

    def save(self, path: str | Path, config: LongwaveConfig) -> None:
        """Write the states as one safetensors file, for :meth:`load` to continue from."""
        if self.tokens is None:
            raise ValueError("the cache has read nothing yet: there is no state to save")
        tensors = {
            f"{index}.{name}": tensor.clone(memory_format=torch.contiguous_format)
            for index, layer in enumerate(self.layers)
            for name, tensor in layer.state._asdict().items()
        }
        metadata = {"format": CACHE_FORMAT, "configuration": _identity(config), "seen": str(self.get_seq_length())}
        save_file(tensors, str(path), metadata=metadata)

    @classmethod
    def load(cls, path: str | Path, model: PreTrainedModel) -> LongwaveCache:
        """The cache that :meth:`save` wrote, for a model of the same configuration.

        Raises:
            ValueError: the file is damaged, is no such cache, belongs to another configuration, or holds tensors
                that are no states of the model.
        """
        cache = cls(model.config)
        tensors, metadata = read_tensors(path, model.device)
        if metadata.get("format") != CACHE_FORMAT:
            raise ValueError(f"{path}: not a cache file of format {CACHE_FORMAT!r}")
        if metadata.get("configuration") != _identity(model.config):
            raise ValueError(f"{path}: the cache was written by a model of another configuration")
        seen = metadata.get("seen", "")
        if not (seen.isascii() and seen.isdigit() and 0 < int(seen) < 1 << 62):
            raise ValueError(f"{path}: has seen {seen!r} tokens, expected a positive number")
        parts: list[dict[str, Tensor]] = [{} for _ in cache.layers]
        for name, tensor in tensors.items():
            index, _, field = name.partition(".")
            if index not in map(str, range(len(parts))):
                raise ValueError(f"{path}: holds {name!r}, expected states of layers 0 to {len(parts) - 1}")
            parts[int(index)][field] = tensor
        mixers = [mixer for block in model.blocks for mixer in block.mixers]
        states = [check_state(path, parts[0], TextState)]
        states += [read_state(path, part, mixer) for part, mixer in zip(parts[1:], mixers, strict=True)]
        if len({len(state.tokens) for state in states}) > 1:
            raise ValueError(f"{path}: the layers' states are of different batch sizes")
        for layer, state in zip(cache.layers, states, strict=True):
            layer.put(state, int(seen))
        return cache

    def nbytes(self) -> int:
        """Bytes of all mixers' states, all batch rows together."""
        return sum(nbytes(layer.state) for layer in self._flat() if layer.state is not None)

    def _flat(self) -> list[MixerCacheLayer]:
        return [layer for entry in self.mixers for layer in entry]


def _identity(config: LongwaveConfig) -> str:
    """Hash of what the states depend on."""
    names = ("hidden_size", "num_heads", "mixer_types", "mixer_kwargs")
    return configuration_hash({name: getattr(config, name) for name in names})
