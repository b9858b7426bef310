"""Memory rows: learned rows that the model inserts into each document's stream, and takes out again."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from longwave.mixers.base import MemoryRows, TokenMixer


class Stream(NamedTuple):
    """Batch rows `batch [b]` (``None``: all) that run through the blocks together.

    ``hidden`` `[b, R, D]`, ``starts`` `[b, R]` bool or ``None``; ``text`` `[b, N]`: where the text rows are
    (``None``: every row is text).
    """

    batch: Tensor | None
    hidden: Tensor
    starts: Tensor | None
    text: Tensor | None


def requested_memory(mixers: Iterable[TokenMixer]) -> MemoryRows | None:
    """The memory rows that the mixers of a model ask for.

    Raises:
        ValueError: two mixers ask for different ones.
    """
    requests = {(type(mixer).__name__, mixer.declaration().memory_rows) for mixer in mixers}
    wanted = {rows for _, rows in requests}
    if len(wanted) > 1:
        raise ValueError(f"all mixers of a model must ask for the same memory rows; got {sorted(requests, key=str)}")
    return wanted.pop() if wanted else None


def insert_memory(
    hidden: Tensor,
    starts: Tensor | None,
    positions: Tensor,
    memory: Tensor,
    every: int | None,
    *,
    exact_end: bool,
) -> list[Stream]:
    """Put ``memory`` `[count, D]` before every ``every`` text tokens of each document.

    Batch rows may need different numbers of insertions. If ``exact_end`` (a state is carried out of the
    last row), rows of equal length form one stream each; else one stream is padded on the right, where
    no real row reads.

    Args:
        hidden: `[B, N, D]`, text rows.
        positions: `[B, N]`, index of each text token in its document.
    """
    count = memory.shape[0]
    begins = positions == 0 if every is None else positions % every == 0
    text = torch.arange(hidden.shape[1], device=hidden.device) + count * begins.cumsum(dim=1)
    lengths = text[:, -1] + 1
    longest = int(lengths.max())

    batch, column = begins.nonzero(as_tuple=True)
    slots = text[batch, column][:, None] + torch.arange(-count, 0, device=hidden.device)
    rows = torch.arange(hidden.shape[0], device=hidden.device)[:, None]
    stream = hidden.new_zeros(hidden.shape[0], longest, hidden.shape[2])
    stream = stream.index_put((rows, text), hidden)
    stream = stream.index_put((batch[:, None], slots), memory.to(hidden.dtype).expand(len(batch), -1, -1))
    borders = None
    if starts is not None:
        borders = torch.zeros(stream.shape[:2], dtype=torch.bool, device=hidden.device)
        borders = borders.index_put((rows, text - count * begins), starts)

    if not exact_end:
        return [Stream(None, stream, borders, text)]
    streams = []
    for length in lengths.unique().tolist():
        members = (lengths == length).nonzero().flatten()
        some = None if borders is None else borders[members, :length]
        streams.append(Stream(members, stream[members, :length], some, text[members]))
    return streams


def text_rows(stream: Stream, hidden: Tensor) -> Tensor:
    """`[b, R, D] -> [b, N, D]`: the rows of ``hidden`` that are text."""
    if stream.text is None:
        return hidden
    return hidden.gather(1, stream.text[..., None].expand(-1, -1, hidden.shape[2]))


def in_batch_order(streams: Sequence[Stream], parts: Sequence[Tensor]) -> Tensor:
    """`[B, ...]` from one part `[b, ...]` of each stream."""
    order = batch_order(streams)
    return parts[0] if order is None else torch.cat(list(parts))[order]


def batch_order(streams: Sequence[Stream]) -> Tensor | None:
    """Where each batch row stands once the streams are laid end to end; ``None``: in its own place."""
    if len(streams) == 1:
        return None
    return torch.cat([stream.batch for stream in streams]).argsort()
