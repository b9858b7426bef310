"""The ``data`` section of a run file, and the rows that it describes."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator

from longwave.data.corpora import EMBEDDED, SAMPLE_CHARACTERS, Contents, Corpus, Meter, head, join, read_corpus
from longwave.data.mixing import MixedRows
from longwave.data.packing import PackedRows, TokenStream
from longwave.data.storage import store, tokenizer_sha256
from longwave.data.streaming import StreamedRows
from longwave.data.synthetic import ScoredRows, TaskRows, TaskSection
from longwave.data.tokenizers import build_tokenizer, number_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class WeightedSource(BaseModel):
    """One source of a mix.

    Attributes:
        source: what ``data.train`` may name.
        weight: rows of it, in proportion to the other sources' weights.
    """

    model_config = ConfigDict(extra="forbid")

    source: str
    weight: float = Field(1.0, gt=0, allow_inf_nan=False)


class DataSection(BaseModel):
    """Text, or a task.

    Attributes:
        train: ``embedded``; the path of a ``.txt`` (one document), ``.jsonl``, ``.jsonl.gz`` or ``.parquet`` file, of a
            folder of them, or a glob; ``hf:NAME`` or ``hf:NAME/CONFIG`` (a dataset of the hub or a local folder, its
            split ``train``); or a list of ``{source: ..., weight: ...}``.
        validation: likewise one source (of ``hf:``, the split ``validation``); ``null`` sets every 20th document (the
            last 20th of less than twenty documents' text) of each source of ``train`` aside.
        sequence_length: tokens of a row.
        text_field: what holds the text of a record.
        cache: folder in which tokens are stored; ``null`` for ``~/.cache/longwave/tokens``.
        streaming: tokenize the training text as it is read instead of storing its tokens first. ``validation: null``
            then takes nothing that begins after the first 64 Mi characters.
        shuffle_buffer: rows of each source among which the next one is drawn; of streaming only.
        task: a synthetic task instead of text; ``train``, ``validation`` and ``streaming`` stay at their defaults.
    """

    model_config = ConfigDict(extra="forbid", validate_default=True)

    train: str | list[WeightedSource] = EMBEDDED
    validation: str | None = None
    sequence_length: int = Field(256, ge=2)
    text_field: str = "text"
    cache: str | None = None
    streaming: bool = False
    shuffle_buffer: int = Field(1024, ge=1)
    task: TaskSection | None = None

    @field_validator("train", mode="before")
    @classmethod
    def _is_source_or_mix(cls, value: Any) -> Any:
        if isinstance(value, str):
            return value
        if not isinstance(value, list) or not value:
            raise ValueError(f"expected a source, or a list of {{source: ..., weight: ...}}, got {value!r}")
        return [_weighted_source(number, entry) for number, entry in enumerate(value, 1)]

    @field_validator("task")
    @classmethod
    def _instead_of_text(cls, task: TaskSection | None, info: ValidationInfo) -> TaskSection | None:
        if task is None:
            return None
        for name in ("train", "validation", "streaming"):
            default = cls.model_fields[name].default
            if info.data.get(name, default) != default:
                raise ValueError(f"a task makes its own rows: leave data.{name} at {default}, got {info.data[name]!r}")
        if "sequence_length" in info.data:
            task.check_length(info.data["sequence_length"])
        return task

    def mix(self) -> list[WeightedSource]:
        """The sources of ``train``, one of weight 1 if it is no list."""
        return [WeightedSource(source=self.train, weight=1.0)] if isinstance(self.train, str) else self.train


@dataclass(frozen=True)
class Data:
    """The texts of a run, tokenized, or the rows of its task.

    Attributes:
        tokenizer: of both texts; of a task, numbers in words.
        train: rows; endless ones if they are streamed or a task's.
        valid: tokens of the validation text; of a task, the rows that are scored.
        sha256: of the training documents; of a mix, of its sources' hashes; of a task, of its settings. A streamed
            source is hashed up to its first 64 Mi characters.
        scored_sha256: of the validation documents and the tokenizer; of a task, of its settings.
    """

    tokenizer: PreTrainedTokenizerBase
    train: PackedRows | MixedRows | StreamedRows | TaskRows
    valid: TokenStream | ScoredRows
    sha256: str
    scored_sha256: str


def prepare_data(settings: DataSection, tokenizer_kind: str, seed: int) -> Data:
    """Read, split and tokenize the texts, or make the rows of a task.

    A tokenizer that learns from text learns from the training text's first 64 Mi characters, of a mix those of each
    source in proportion to its weight.

    Args:
        tokenizer_kind: of text; a task has its own.
        seed: of the order in which streamed rows leave their buffer, and of a task's training rows.

    Raises:
        ValueError: a text cannot be read or is too short.
    """
    task, length = settings.task, settings.sequence_length
    if task is not None:
        tokenizer, digest = number_tokenizer(task.vocabulary), task.sha256(length)
        return Data(tokenizer, TaskRows(task, length, seed), ScoredRows(task, length), digest, digest)
    mix = settings.mix()
    train, valid = _read(settings, mix)
    weights = [part.weight for part in mix]
    sample = chain.from_iterable(
        head(corpus.documents, max(1, int(SAMPLE_CHARACTERS * weight / sum(weights))))
        for corpus, weight in zip(train, weights, strict=True)
    )
    tokenizer = build_tokenizer(tokenizer_kind, sample)
    rows: PackedRows | MixedRows | StreamedRows
    if settings.streaming:
        sources = [corpus.documents for corpus in train]
        shuffle = {"shuffle_buffer": settings.shuffle_buffer, "seed": seed}
        rows = StreamedRows(sources, weights, tokenizer, length, **shuffle)
        contents = [_contents_of_head(corpus) for corpus in train]
    else:
        stored = [store(corpus, tokenizer, settings.cache) for corpus in train]
        packed = [PackedRows(stream, length, corpus.name) for (stream, _), corpus in zip(stored, train, strict=True)]
        rows = packed[0] if len(packed) == 1 else MixedRows(packed, weights)
        contents = [found for _, found in stored]
    scored, found = store(valid, tokenizer, settings.cache)
    digest = hashlib.sha256(f"{found.sha256} {tokenizer_sha256(tokenizer)}".encode()).hexdigest()
    return Data(tokenizer, rows, scored, _sha256(contents), digest)


def _read(settings: DataSection, mix: list[WeightedSource]) -> tuple[list[Corpus], Corpus]:
    """Training texts of a mix, and the validation text."""
    how: dict[str, Any] = {"text_field": settings.text_field, "streaming": settings.streaming}
    train = [read_corpus(part.source, **how) for part in mix]
    if settings.validation is not None:
        return train, read_corpus(settings.validation, split="validation", **how)
    parts = [corpus.split(SAMPLE_CHARACTERS if settings.streaming else None) for corpus in train]
    return [part for part, _ in parts], join("validation", (part for _, part in parts))


def _contents_of_head(corpus: Corpus) -> Contents:
    meter = Meter()
    for _ in meter.through(head(corpus.documents)):
        pass
    return meter.contents()


def _sha256(contents: list[Contents]) -> str:
    hashes = [found.sha256 for found in contents]
    return hashes[0] if len(hashes) == 1 else hashlib.sha256(" ".join(hashes).encode()).hexdigest()


def _weighted_source(number: int, entry: Any) -> WeightedSource:
    """One entry of a mix.

    Raises:
        ValueError: it is none, in one sentence.
    """
    try:
        return WeightedSource.model_validate(entry)
    except ValidationError as error:
        (item, *_) = error.errors()
        where = ".".join((f"entry {number}", *map(str, item["loc"])))
        if item["type"] == "extra_forbidden":
            raise ValueError(f"{where}: unknown key; legal: source, weight") from None
        raise ValueError(f"{where}: {item['msg'][0].lower()}{item['msg'][1:]}, got {item['input']!r}") from None
