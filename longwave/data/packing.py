"""Documents laid end to end, cut into rows of equal length that know where documents start."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

BATCH_OF_DOCUMENTS = 256


@dataclass(frozen=True)
class TokenStream:
    """Tokens of a corpus; each document begins with ``<|endoftext|>``.

    Attributes:
        ids: `[T]` int32.
        starts: `[T]` bool, true on each document's first token.
        num_bytes: UTF-8 bytes of the text.
    """

    ids: np.ndarray
    starts: np.ndarray
    num_bytes: int


def tokenize(documents: Iterable[str], tokenizer: PreTrainedTokenizerBase) -> TokenStream:
    """Encode ``documents`` in order, each behind its ``<|endoftext|>``."""
    documents = list(documents)
    pieces, lengths = [], []
    for begin in range(0, len(documents), BATCH_OF_DOCUMENTS):
        for ids in tokenizer(documents[begin : begin + BATCH_OF_DOCUMENTS], add_special_tokens=False)["input_ids"]:
            pieces.append(np.array([tokenizer.bos_token_id, *ids], dtype=np.int32))
            lengths.append(len(ids) + 1)
    ids = np.concatenate(pieces)
    starts = np.zeros(len(ids), dtype=bool)
    starts[np.cumsum([0, *lengths[:-1]])] = True
    return TokenStream(ids, starts, sum(len(document.encode()) for document in documents))


class PackedRows(Dataset):
    """Rows of ``sequence_length`` tokens; every token but the first is a target exactly once.

    A row is a dict of ``input_ids`` `[N]` int64, ``starts`` `[N]` bool and ``labels`` `[N + 1]` int64: the
    ids and the one that follows them (the model shifts), -100 where the last row is filled up.
    """

    def __init__(self, stream: TokenStream, sequence_length: int) -> None:
        if sequence_length < 1:
            raise ValueError(f"sequence_length must be at least 1, got {sequence_length}")
        if len(stream.ids) < 2:
            raise ValueError("the data holds less than two tokens")
        self.stream, self.sequence_length = stream, sequence_length

    def __len__(self) -> int:
        return -(-(len(self.stream.ids) - 1) // self.sequence_length)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        begin, length = index * self.sequence_length, self.sequence_length
        window = torch.from_numpy(self.stream.ids[begin : begin + length + 1].astype(np.int64))
        starts = torch.from_numpy(self.stream.starts[begin : begin + length].astype(bool))
        return {
            "input_ids": F.pad(window[:length], (0, length - len(window[:length]))),
            "labels": F.pad(window, (0, length + 1 - len(window)), value=-100),
            "starts": F.pad(starts, (0, length - len(starts))),
        }
