"""Rows that are tokenized as they are read, from sources too large or too far to be stored."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from longwave.data.mixing import next_source, shares_of
from longwave.data.packing import encode, make_row

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Row = tuple[np.ndarray, np.ndarray]  # ids [N + 1] int32, starts [N + 1] bool


class StreamedRows(IterableDataset):
    """Endless rows, like those of :class:`PackedRows`, tokenized as they are read.

    Each source is read in its order, again and again, its last token followed by its first; its rows pass through a
    buffer from which they leave at random. Sources take turns by weight, see :func:`next_source`.
    An iteration begins where ``load_state_dict`` says, or at the beginning; ``state_dict`` is the position of the
    newest iteration. Randomness has generators of its own, made from ``seed``, the source and its epoch.

    Args:
        sources: documents of each source; can be read again and again.
        weights: of the sources, positive; only their proportions matter.
        shuffle_buffer: rows of each source among which the next one is drawn; 1 keeps their order.

    Raises:
        ValueError: a number is out of range; while reading: a source holds no text, or a loader uses workers.
    """

    def __init__(
        self,
        sources: Sequence[Iterable[str]],
        weights: Sequence[float],
        tokenizer: PreTrainedTokenizerBase,
        sequence_length: int,
        *,
        shuffle_buffer: int,
        seed: int,
    ) -> None:
        if sequence_length < 1 or shuffle_buffer < 1:
            raise ValueError(
                f"sequence_length and shuffle_buffer must be at least 1, got {sequence_length} and {shuffle_buffer}"
            )
        if len(sources) != len(weights):
            raise ValueError(f"{len(sources)} sources, but {len(weights)} weights")
        if seed < 0:
            raise ValueError(f"seed must not be negative, got {seed}")
        self.sources, self.shares, self.tokenizer = tuple(sources), shares_of(weights), tokenizer
        self.sequence_length, self.shuffle_buffer, self.seed = sequence_length, shuffle_buffer, seed
        self._begin: dict[str, Any] | None = None
        self._newest: _Mixture | None = None

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        if get_worker_info() is not None:
            raise ValueError("streamed rows are read in the main process: a loader must have num_workers=0")
        mixture = self._newest = _Mixture(self)
        if self._begin is not None:
            mixture.load(self._begin)
        while True:
            yield make_row(*mixture.next_row(), self.sequence_length)

    def state_dict(self) -> dict[str, Any]:
        """Where the newest iteration stands: numbers, text and tensors only."""
        if self._newest is not None:
            return self._newest.state()
        return self._begin if self._begin is not None else _Mixture(self).state()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Let the next iteration begin where ``state`` was taken.

        Raises:
            ValueError: the state is of other sources or of rows of another length.
        """
        if len(state["sources"]) != len(self.sources):
            raise ValueError(f"the state is of {len(state['sources'])} sources, not of {len(self.sources)}")
        length = state["sources"][0]["ids"].shape[1] - 1
        if length != self.sequence_length:
            raise ValueError(f"the state is of rows of {length} tokens, not of {self.sequence_length}")
        self._begin, self._newest = state, None


class _Mixture:
    """One iteration: its sources' positions, and the rows that each has given."""

    def __init__(self, rows: StreamedRows) -> None:
        self.shares, self.counts = rows.shares, [0] * len(rows.shares)
        readers = [
            _Reader(f"source {number}", documents, rows.tokenizer, rows.sequence_length)
            for number, documents in enumerate(rows.sources, 1)
        ]
        self.sources = [
            _Shuffled(reader, rows.shuffle_buffer, (rows.seed, index)) for index, reader in enumerate(readers)
        ]

    def next_row(self) -> Row:
        source = next_source(self.shares, self.counts)
        row = self.sources[source].next_row()
        self.counts[source] += 1
        return row

    def state(self) -> dict[str, Any]:
        return {"counts": list(self.counts), "sources": [source.state() for source in self.sources]}

    def load(self, state: dict[str, Any]) -> None:
        self.counts = list(state["counts"])
        for source, part in zip(self.sources, state["sources"], strict=True):
            source.load(part)


class _Shuffled:
    """A reader's rows, each drawn from a buffer; the generator is made anew when the reader begins a new epoch."""

    def __init__(self, reader: _Reader, num_rows: int, seed: tuple[int, ...]) -> None:
        self.reader, self.num_rows, self.seed, self.buffer = reader, num_rows, seed, list[Row]()
        self._begin_epoch()

    def _begin_epoch(self) -> None:
        self.epoch = self.reader.epoch
        self.generator = np.random.Generator(np.random.PCG64((*self.seed, self.epoch)))

    def next_row(self) -> Row:
        while len(self.buffer) < self.num_rows:
            self.buffer.append(self.reader.next_row())
        if self.reader.epoch != self.epoch:
            self._begin_epoch()
        drawn = int(self.generator.integers(len(self.buffer)))
        self.buffer[drawn], self.buffer[-1] = self.buffer[-1], self.buffer[drawn]
        return self.buffer.pop()

    def state(self) -> dict[str, Any]:
        width = self.reader.sequence_length + 1
        ids = np.array([ids for ids, _ in self.buffer], dtype=np.int32).reshape(-1, width)
        starts = np.array([starts for _, starts in self.buffer], dtype=bool).reshape(-1, width)
        return {
            "epoch": self.reader.epoch,
            "document": self.reader.document,
            "offset": self.reader.offset,
            "ids": torch.from_numpy(ids),
            "starts": torch.from_numpy(starts),
            "generator": self.generator.bit_generator.state,
        }

    def load(self, state: dict[str, Any]) -> None:
        self.reader.seek(state["epoch"], state["document"], state["offset"])
        self._begin_epoch()
        self.generator.bit_generator.state = state["generator"]
        ids, starts = state["ids"].numpy().copy(), state["starts"].numpy().copy()
        self.buffer = list(zip(ids, starts, strict=True))


class _Reader:
    """Rows of one source in order. The next row begins at token ``offset`` of document ``document`` of ``epoch``."""

    def __init__(
        self, name: str, documents: Iterable[str], tokenizer: PreTrainedTokenizerBase, sequence_length: int
    ) -> None:
        self.name, self.documents, self.tokenizer, self.sequence_length = name, documents, tokenizer, sequence_length
        self.epoch, self.document, self.offset = 0, 0, 0
        self._texts: Iterator[str] | None = None
        self._tokens = np.empty(0, dtype=np.int64)

    def seek(self, epoch: int, document: int, offset: int) -> None:
        """Go to a place; it is read up to when the next row is asked for."""
        self.epoch, self.document, self.offset, self._texts = epoch, document, offset, None

    def next_row(self) -> Row:
        width = self.sequence_length + 1
        ids, starts, filled = np.empty(width, dtype=np.int32), np.zeros(width, dtype=bool), 0
        if self._texts is None:
            self._open(self.document)
        while True:
            piece = self._tokens[self.offset : self.offset + width - filled]
            starts[filled] = self.offset == 0
            ids[filled : filled + len(piece)] = piece
            filled += len(piece)
            if filled == width:
                break
            self.document, self.offset = self.document + 1, 0
            self._load()
        self.offset += len(piece) - 1  # the last token begins the next row
        return ids, starts

    def _open(self, document: int) -> None:
        """Begin to read the source at ``document``."""
        self._texts = iter(self.documents)
        for _ in range(document):
            next(self._texts, None)
        self._load()

    def _load(self) -> None:
        """Tokenize the next document, the first of a new epoch if the source has come to its end."""
        assert self._texts is not None
        text = next(self._texts, None)
        if text is None:
            self.epoch, self.document = self.epoch + 1, 0
            self._texts = iter(self.documents)
            text = next(self._texts, None)
            if text is None:
                raise ValueError(f"{self.name} of those that are streamed holds no text")
        (self._tokens,) = encode([text], self.tokenizer)
