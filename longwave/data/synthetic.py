"""Synthetic tasks that show what a mixer can recall: endless training rows, and scored rows that never change.

Row by row from counters (:mod:`longwave.data.splitmix`): a row is a function of the task, its length and its place.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator
from torch import Tensor
from torch.utils.data import Dataset

from longwave.data.splitmix import below, seeds_of, smallest, unit, words

TRAIN, SCORED = 0, 1  # splits, the first number of a row's place
ENDLESS = 2**31 - 1
SEPARATOR = 1
LARGEST_VOCABULARY = 2**20


class TaskSection(BaseModel):
    """A synthetic task.

    ``mqar``, multi-query associative recall (Arora et al. 2023, https://arxiv.org/abs/2312.04927). Token 0 begins a
    text, tokens 1 to V/2 - 1 are keys, V/2 to V - 1 values. A row of N tokens begins with D pairs of a key and its
    value, all different. Of the (N - 2D) / 2 slots of two tokens behind them, D begin with a query: every key once,
    in random order, where the next token to predict is the key's value. Slots are drawn one after the other,
    slot s = 1, 2, ... with a probability in proportion to s^(a - 1). All other tokens, those behind queries included,
    are random.

    ``copy`` (Jelassi et al. 2024, https://arxiv.org/abs/2402.01032): L random tokens from 2 to V - 1, the separator 1,
    the L tokens again, which are to be predicted, and zeros.

    Attributes:
        name: which task.
        sizes: pairs of a row, D, or tokens to copy, L; ascending.
        vocabulary: tokens, V.
        stage_rows: curriculum: the first so many training rows are of the first size, and after as many again the
            next size joins. A row's size is drawn evenly from those that have joined. 0: all from the beginning.
        power: exponent a of the places of queries (``mqar``): 1 for anywhere alike, near 0 for soon.
        evaluation_rows: rows of each size that are scored.
    """

    model_config = ConfigDict(extra="forbid")

    name: Literal["mqar", "copy"]
    sizes: list[Annotated[int, Field(ge=1)]] = Field([4, 8, 16], min_length=1)
    vocabulary: int = Field(256, ge=4, le=LARGEST_VOCABULARY, multiple_of=2)
    stage_rows: int = Field(0, ge=0, le=ENDLESS)
    power: float = Field(0.01, gt=0, le=1)
    evaluation_rows: int = Field(128, ge=1, le=2**20)

    @field_validator("sizes")
    @classmethod
    def _ascending(cls, sizes: list[int]) -> list[int]:
        if sizes != sorted(set(sizes)):
            raise ValueError(f"sizes must ascend, got {sizes}")
        return sizes

    @model_validator(mode="after")
    def _room_for_pairs(self) -> TaskSection:
        needed = 2 * self.sizes[-1] + 2
        if self.name == "mqar" and self.vocabulary < needed:
            raise ValueError(f"{self.sizes[-1]} pairs need a vocabulary of at least {needed}, got {self.vocabulary}")
        return self

    def check_length(self, sequence_length: int) -> None:
        """See that rows have room for the largest size.

        Raises:
            ValueError: they have not.
        """
        largest = self.sizes[-1]
        needed = 4 * largest if self.name == "mqar" else 2 * largest + 1
        if sequence_length < needed:
            raise ValueError(
                f"{self.name} of size {largest} needs a sequence_length of {needed}, got {sequence_length}"
            )

    def sha256(self, sequence_length: int) -> str:
        """Hash of the settings and the length of the rows."""
        settings = {**self.model_dump(mode="json"), "sequence_length": sequence_length}
        return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


class _Rows(Dataset):
    """Rows of a task, each a dict as of :class:`~longwave.data.PackedRows`: ``input_ids`` `[N]`, ``starts`` `[N]` and
    ``labels`` `[N + 1]`, -100 but where an answer is to be predicted."""

    def __init__(self, task: TaskSection, sequence_length: int) -> None:
        task.check_length(sequence_length)
        self.task, self.sequence_length = task, sequence_length

    def __len__(self) -> int:
        raise NotImplementedError

    def _places(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Sizes and seeds of rows."""
        raise NotImplementedError

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, Tensor]]:
        """Several rows at once, as a loader asks for a batch."""
        for index in indices:
            if not 0 <= index < len(self):
                raise IndexError(f"row {index} of {len(self)}")
        sizes, seeds = self._places(np.asarray(indices, dtype=np.int64))
        ids = np.empty((len(sizes), self.sequence_length), dtype=np.int64)
        labels = np.empty((len(sizes), self.sequence_length + 1), dtype=np.int64)
        make = {"mqar": _mqar, "copy": _copy}[self.task.name]
        for size in np.unique(sizes):
            rows = sizes == size
            ids[rows], labels[rows] = make(self.task, self.sequence_length, int(size), seeds[rows])
        starts = np.zeros(ids.shape, dtype=bool)
        starts[:, 0] = True
        columns = {"input_ids": ids, "labels": labels, "starts": starts}
        tensors = [torch.from_numpy(column).unbind() for column in columns.values()]
        return [dict(zip(columns, row, strict=True)) for row in zip(*tensors, strict=True)]


class TaskRows(_Rows):
    """Training rows of a task, to be read in order; there is no end to them.

    Raises:
        ValueError: ``sequence_length`` is too short for the task's largest size.
    """

    def __init__(self, task: TaskSection, sequence_length: int, seed: int) -> None:
        super().__init__(task, sequence_length)
        self.seed = seed

    def __len__(self) -> int:
        return ENDLESS

    def _places(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        seeds = seeds_of(TRAIN, self.seed, indices)
        joined = np.full(len(indices), len(self.task.sizes))
        if self.task.stage_rows:
            joined = np.minimum(joined, 1 + indices // self.task.stage_rows)
        return np.array(self.task.sizes)[below(words(seeds, 1)[:, 0], joined)], seeds


class ScoredRows(_Rows):
    """The rows that a task is scored on: ``evaluation_rows`` of each size, sizes in order, whatever the run's seed.

    A row of a size does not depend on which other sizes there are, nor on how many rows.

    Attributes:
        sizes: `[R]` int64, size of each row.

    Raises:
        ValueError: ``sequence_length`` is too short for the task's largest size.
    """

    def __init__(self, task: TaskSection, sequence_length: int) -> None:
        super().__init__(task, sequence_length)
        self.sizes = np.repeat(task.sizes, task.evaluation_rows)

    def __len__(self) -> int:
        return len(self.sizes)

    def _places(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        sizes = self.sizes[indices]
        return sizes, seeds_of(SCORED, sizes, indices % self.task.evaluation_rows)


def solve(task: TaskSection, row: Mapping[str, Tensor]) -> list[int]:
    """Answers to a row's queries in their order, read from the row itself: what perfect recall would say."""
    ids, labels = row["input_ids"].tolist(), row["labels"].tolist()
    asked = [place - 1 for place, label in enumerate(labels) if label != -100]
    if task.name == "copy":
        return ids[: ids.index(SEPARATOR)]
    pairs = {}
    for place in range(0, 2 * len(asked), 2):
        pairs[ids[place]] = ids[place + 1]
    return [pairs[ids[place]] for place in asked]


def chance(task: TaskSection) -> float:
    """Accuracy of guessing: 1 / tokens that may be an answer. Of an ``mqar`` row's own D values: 1 / D."""
    return 1 / (task.vocabulary // 2 if task.name == "mqar" else task.vocabulary - 2)


def _mqar(task: TaskSection, length: int, size: int, seeds: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Ids `[R, N]` and labels `[R, N + 1]` of rows with ``size`` pairs."""
    half, num_pair_tokens = task.vocabulary // 2, 2 * size
    num_others = length - num_pair_tokens
    num_slots = num_others // 2
    counts = (1, half - 1, half, num_slots, size, num_others)  # the first word has drawn the size
    parts = np.split(words(seeds, sum(counts)), np.cumsum(counts)[:-1], axis=1)
    keys, values = 1 + smallest(parts[1], size), half + smallest(parts[2], size)  # [R, D]
    slots, order = smallest(_arrivals(parts[3], task.power), size), smallest(parts[4], size)  # [R, D]

    ids = np.empty((len(seeds), length), dtype=np.int64)
    ids[:, 0:num_pair_tokens:2], ids[:, 1:num_pair_tokens:2] = keys, values
    ids[:, num_pair_tokens:] = below(parts[5], task.vocabulary)
    labels = np.full((len(seeds), length + 1), -100)
    places = num_pair_tokens + 2 * slots
    np.put_along_axis(ids, places, np.take_along_axis(keys, order, axis=1), axis=1)
    np.put_along_axis(labels, places + 1, np.take_along_axis(values, order, axis=1), axis=1)
    return ids, labels


def _arrivals(words: np.ndarray, power: float) -> np.ndarray:
    """Logarithms `[R, n]` of exponential waiting times, the rate of slot s being s^(power - 1).

    The first to arrive are a sample without replacement by these rates (https://doi.org/10.1016/j.ipl.2005.11.003).
    Only their order matters, so that the last bit of a logarithm, which differs between libraries, does not.
    """
    slots = np.arange(1, words.shape[1] + 1)
    return np.log(-np.log(unit(words))) + (1 - power) * np.log(slots)


def _copy(task: TaskSection, length: int, size: int, seeds: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Ids `[R, N]` and labels `[R, N + 1]` of rows with ``size`` tokens to copy."""
    content = 2 + below(words(seeds, 1 + size)[:, 1:], task.vocabulary - 2)  # the first word has drawn the size
    ids = np.zeros((len(seeds), length), dtype=np.int64)
    labels = np.full((len(seeds), length + 1), -100)
    ids[:, :size], ids[:, size] = content, SEPARATOR
    ids[:, size + 1 : 2 * size + 1] = labels[:, size + 1 : 2 * size + 1] = content
    return ids, labels
