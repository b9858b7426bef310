"""Documents laid end to end, cut into rows of equal length that know where documents start."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset

from longwave.data.corpora import Meter
from longwave.data.cutting import border_of, cut

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

BATCH_OF_DOCUMENTS = 256
BATCH_OF_CHARACTERS = 2**18


@dataclass(frozen=True)
class TokenStream:
    """Tokens of a corpus; each document begins with ``<|endoftext|>``, or its tokenizer's own token for that.

    Attributes:
        ids: `[T]` integers.
        starts: `[T]` bool, true on each document's first token.
        num_bytes: UTF-8 bytes of the text.
    """

    ids: np.ndarray
    starts: np.ndarray | DocumentStarts
    num_bytes: int


class DocumentStarts:
    """`[T]` bool, true at ``offsets``; slices are computed when they are asked for."""

    def __init__(self, offsets: np.ndarray, num_tokens: int) -> None:
        self.offsets, self.num_tokens = offsets, num_tokens

    def __len__(self) -> int:
        return self.num_tokens

    def __getitem__(self, part: slice) -> np.ndarray:
        begin, end, step = part.indices(self.num_tokens)
        starts = np.zeros(max(0, end - begin), dtype=bool)
        first, last = np.searchsorted(self.offsets, (begin, end))
        starts[self.offsets[first:last].astype(np.int64) - begin] = True
        return starts[::step]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return self[:].astype(dtype or bool)


def encode(documents: Iterable[str], tokenizer: PreTrainedTokenizerBase) -> Iterator[np.ndarray]:
    """Ids of each document, `[1 + its tokens]` int32, behind the token that begins a document.

    A long document is encoded in pieces where that makes no difference to its tokens.
    """
    border = border_of(tokenizer)
    pieces = ((piece, number) for number, document in enumerate(documents) for piece in cut(document, border))
    begin = np.array([tokenizer.bos_token_id], dtype=np.int32)
    parts, current = [begin], 0
    for batch in _batches(pieces):
        encoded = tokenizer(
            [text for text, _ in batch],
            add_special_tokens=False,
            split_special_tokens=True,
            return_attention_mask=False,
            verbose=False,
        )
        for (_, number), ids in zip(batch, encoded["input_ids"], strict=True):
            if number != current:
                yield np.concatenate(parts)
                parts, current = [begin], number
            parts.append(np.array(ids, dtype=np.int32))
        del encoded  # as large as the text a hundred times
    if len(parts) > 1:
        yield np.concatenate(parts)


def tokenize(documents: Iterable[str], tokenizer: PreTrainedTokenizerBase) -> TokenStream:
    """Encode ``documents`` in order, in memory; ids are int32."""
    meter = Meter()
    pieces = [ids.astype(np.int32) for ids in encode(meter.through(documents), tokenizer)]
    starts = np.zeros(sum(map(len, pieces)), dtype=bool)
    starts[np.cumsum([0, *map(len, pieces[:-1])])] = True
    return TokenStream(np.concatenate(pieces), starts, meter.contents().num_bytes)


class PackedRows(Dataset):
    """Rows of ``sequence_length`` tokens; every token but the first is a target exactly once.

    A row is a dict of ``input_ids`` `[N]` int64, ``starts`` `[N]` bool and ``labels`` `[N + 1]` int64: the
    ids and the one that follows them (the model shifts), -100 where the last row is filled up.

    Raises:
        ValueError: the stream, called ``name``, has less than two tokens, or a row none.
    """

    def __init__(self, stream: TokenStream, sequence_length: int, name: str = "the data") -> None:
        if sequence_length < 1:
            raise ValueError(f"sequence_length must be at least 1, got {sequence_length}")
        if len(stream.ids) < 2:
            raise ValueError(f"{name}: holds less than two tokens")
        self.stream, self.sequence_length = stream, sequence_length

    def __len__(self) -> int:
        return -(-(len(self.stream.ids) - 1) // self.sequence_length)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        if not 0 <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        begin, length = index * self.sequence_length, self.sequence_length
        return make_row(self.stream.ids[begin : begin + length + 1], self.stream.starts[begin : begin + length], length)


def make_row(ids: np.ndarray, starts: np.ndarray, length: int) -> dict[str, Tensor]:
    """A row of ``length`` tokens from at most ``length + 1`` ids and their starts; see :class:`PackedRows`."""
    window = torch.from_numpy(ids.astype(np.int64))
    begins = torch.from_numpy(starts[:length].astype(bool))
    return {
        "input_ids": F.pad(window[:length], (0, length - len(window[:length]))),
        "labels": F.pad(window, (0, length + 1 - len(window)), value=-100),
        "starts": F.pad(begins, (0, length - len(begins))),
    }


def _batches(pieces: Iterable[tuple[str, int]]) -> Iterator[list[tuple[str, int]]]:
    """Numbered texts in lists, bounded in number and characters but for a single long one."""
    batch, num_characters = [], 0
    for text, number in pieces:
        batch.append((text, number))
        num_characters += len(text)
        if len(batch) == BATCH_OF_DOCUMENTS or num_characters >= BATCH_OF_CHARACTERS:
            yield batch
            batch, num_characters = [], 0
    if batch:
        yield batch
