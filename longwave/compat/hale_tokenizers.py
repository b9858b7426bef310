"""The three word tokenizers of HALE's published runs, kept bit for bit. All of them lose text.

:class:`FieldTokenizerV2` knows frequent words, pairs and triples and falls back to characters;
:class:`FieldTokenizerV3` adds prefixes and suffixes; :class:`FieldAwareTokenizer`, the first of them,
chooses by a score and falls back to ``<UNK>``. Perplexities under them compare with nothing else: report
``coverage_report`` beside them, or bits per byte under a lossless tokenizer instead.
"""

from __future__ import annotations

import json
import math
import re
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from types import MappingProxyType
from typing import Self

PUNCTUATION = ".,!?;:'\"-()[]"
ALPHANUMERIC = "abcdefghijklmnopqrstuvwxyz0123456789"
SUFFIXES = (
    *("tion", "sion", "ness", "ment", "able", "ible", "ious", "eous", "ling", "ful", "ous", "ing", "ity"),
    *("ism", "ist", "ive", "ant", "ent", "ard", "dom", "ure", "age", "ly", "er", "ed", "es", "en", "al"),
    *("le", "ty", "th", "st", "nd", "rd", "s", "d"),
)
PREFIXES = ("over", "under", "fore", "with", "mis", "out", "dis", "pre", "un", "re")
MOST_SUFFIXES, MOST_PREFIXES, LEAST_AFFIX_COUNT = 25, 10, 3
LEAST_NGRAM_COUNT = 2


def words_of(text: str) -> list[str]:
    """Lower-case words and single punctuation marks of ``text``."""
    return re.findall(r"\w+|[^\w\s]", text.lower().strip())


class WordTokenizer(ABC):
    """A vocabulary of words and groups of words, matched greedily, longest group first.

    Attributes:
        field_size: tokens that were asked for.
        vocab: token to id.
        token_type: token to ``char``, ``word``, ``bigram``, ``trigram``, ``prefix`` or ``suffix``; special
            tokens have none.
    """

    #: Special tokens in the order of their ids.
    specials: tuple[str, ...] = ("<PAD>", "<BOS>", "<EOS>")
    #: Most words of a group.
    longest_group = 3
    #: What a report calls words that are no token.
    fallback = "char_fallback"
    #: Where a file keeps the types, and what else marks it as this class's.
    types_key = "token_type"
    file_mark: Mapping[str, int] = MappingProxyType({})

    def __init__(self, field_size: int, vocab: dict[str, int], token_type: dict[str, str]) -> None:
        self.field_size, self.vocab, self.token_type = field_size, vocab, token_type
        self.tokens = {index: token for token, index in vocab.items()}

    @classmethod
    @abstractmethod
    def build(cls, lines: Iterable[str], field_size: int = 1024) -> Self:
        """Learn a vocabulary of ``field_size`` tokens from ``lines``, one document each."""

    @abstractmethod
    def _spell(self, word: str) -> list[str]:
        """Tokens of a word that is not one itself."""

    @abstractmethod
    def _join(self, tokens: Iterable[str]) -> str:
        """Text of tokens that are not special."""

    @property
    def vocab_size(self) -> int:
        """Tokens, special ones included."""
        return len(self.vocab)

    def tokenize(self, text: str) -> list[str]:
        """Tokens of ``text``."""
        words, tokens, place = words_of(text), [], 0
        while place < len(words):
            longest = min(self.longest_group, len(words) - place)
            groups = [" ".join(words[place : place + size]) for size in range(longest, 0, -1)]
            group = next((group for group in groups if group in self.vocab), None)
            tokens += self._spell(words[place]) if group is None else [group]
            place += 1 if group is None else longest - groups.index(group)
        return tokens

    def encode(self, text: str, add_special_tokens: bool = False) -> list[int]:
        """Ids of ``text``, with ``add_special_tokens`` between ``<BOS>`` and ``<EOS>``."""
        ids = [self.vocab[token] for token in self.tokenize(text)]
        return [self.vocab["<BOS>"], *ids, self.vocab["<EOS>"]] if add_special_tokens else ids

    def decode(self, ids: Iterable[int]) -> str:
        """Text of ``ids``; special tokens and unknown ids are left out."""
        tokens = (self.tokens.get(int(index)) for index in ids)
        return self._join(token for token in tokens if token in self.token_type)

    def coverage_report(self, lines: Iterable[str]) -> dict[str, int | float]:
        """Counts of the words of ``lines``, each taken by itself, and the share that is a token, in percent."""
        words = [word for line in lines for word in words_of(line)]
        direct = sum(word in self.vocab for word in words)
        report = {"total_words": len(words), "direct_matches": direct, self.fallback: len(words) - direct}
        return {**report, "coverage_pct": 100 * direct / max(1, len(words))}

    def save(self, path: str | Path) -> None:
        """Write a JSON file."""
        content = {"field_size": self.field_size, "vocab": self.vocab, self.types_key: self.token_type}
        text = json.dumps({**content, **self.file_mark}, ensure_ascii=False, indent=2)
        Path(path).write_text(text, encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read what :meth:`save` wrote.

        Raises:
            ValueError: the file belongs to another tokenizer.
        """
        content = json.loads(Path(path).read_text(encoding="utf-8"))
        marks = {key: value for key, value in content.items() if key in cls.file_mark}
        if marks != cls.file_mark or set(content) != {"field_size", "vocab", cls.types_key, *marks}:
            raise ValueError(f"{path}: not a file of {cls.__name__}; it holds {', '.join(content)}")
        return cls(content["field_size"], content["vocab"], content[cls.types_key])

    @classmethod
    def _of_types(cls, field_size: int, token_type: dict[str, str]) -> Self:
        vocab = {token: index for index, token in enumerate((*cls.specials, *token_type))}
        return cls(field_size, vocab, token_type)


class FieldTokenizerV2(WordTokenizer):
    """Characters, then the most frequent words, pairs and triples; the rest is spelled."""

    @classmethod
    def build(cls, lines: Iterable[str], field_size: int = 1024) -> FieldTokenizerV2:
        words, bigrams, trigrams = count_groups(lines)
        seen = _count_characters(words)
        room = max(0, field_size - len(cls.specials))
        characters = sorted({*seen, *ALPHANUMERIC, *PUNCTUATION, " "})
        if len(characters) > room:
            characters = sorted(character for character, _ in seen.most_common(room))
        room -= len(characters)
        chosen = {}
        for kind, candidates in (
            ("word", [word for word, _ in words.most_common() if len(word) > 1]),
            ("bigram", _frequent(bigrams)),
            ("trigram", _frequent(trigrams)),
        ):
            chosen[kind] = candidates[:room]
            room -= len(chosen[kind])
        kinds = {"char": characters, **{kind: chosen[kind] for kind in ("trigram", "bigram", "word")}}
        return cls._of_types(field_size, _types(kinds))

    def _spell(self, word: str) -> list[str]:
        return [character for character in word if character in self.vocab]

    def _join(self, tokens: Iterable[str]) -> str:
        text, before = "", ""
        for token in tokens:
            kind = self.token_type[token]
            text += token if kind == before == "char" else f" {token}"
            before = kind
        return _tidy(text)


class FieldTokenizerV3(WordTokenizer):
    """Characters, prefixes and suffixes, then frequent words and pairs; a word may be spelled by its parts."""

    longest_group = 2
    file_mark = MappingProxyType({"version": 3})

    def __init__(self, field_size: int, vocab: dict[str, int], token_type: dict[str, str]) -> None:
        super().__init__(field_size, vocab, token_type)
        self.prefixes = [token for token, kind in token_type.items() if kind == "prefix"]
        self.suffixes = [token for token, kind in token_type.items() if kind == "suffix"]

    @classmethod
    def build(cls, lines: Iterable[str], field_size: int = 1024) -> FieldTokenizerV3:
        words, bigrams, _ = count_groups(lines)
        kinds = {"char": sorted({*_count_characters(words), *PUNCTUATION, " "})}
        room = max(0, field_size - len(cls.specials) - len(kinds["char"]))
        for kind, affixes in _valuable_affixes(words).items():
            kinds[kind] = affixes[:room]
            room -= len(kinds[kind])
        frequent = [word for word, _ in words.most_common() if len(word) > 1][:room]
        kinds["bigram"] = _frequent(bigrams)[: room - len(frequent)]
        kinds["word"] = frequent
        return cls._of_types(field_size, _types(kinds))

    def coverage_report(self, lines: Iterable[str]) -> dict[str, int | float]:
        """As in the other tokenizers, and words that their parts spell: ``subword_matches``."""
        words = [word for line in lines for word in words_of(line)]
        report = super().coverage_report([" ".join(words)])
        subwords = sum(word not in self.vocab and self.decompose(word) is not None for word in words)
        covered = report["direct_matches"] + subwords
        return {
            **report,
            "subword_matches": subwords,
            "char_fallback": len(words) - covered,
            "effective_coverage_pct": 100 * covered / max(1, len(words)),
        }

    def decompose(self, word: str) -> list[str] | None:
        """Prefix, stem and suffix (at least two of them), all tokens; ``None`` if there is no such way.

        The first way wins: no prefix before any prefix, no suffix before any suffix, the stem itself before
        its spelling variants.
        """
        if len(word) <= 2:
            return None
        for prefix in ("", *self.prefixes):
            if not word.startswith(prefix[:-1]) or (prefix and len(word) - len(prefix[:-1]) <= 1):
                continue
            rest = word[len(prefix[:-1]) :]
            for suffix in ("", *self.suffixes):
                if not rest.endswith(suffix[1:]) or len(rest) <= len(suffix[1:]) or not prefix + suffix:
                    continue
                for stem in _stems(rest[: len(rest) - len(suffix[1:])]):
                    if stem in self.vocab:
                        return [part for part in (prefix, stem, suffix) if part]
        return None

    def _spell(self, word: str) -> list[str]:
        parts = self.decompose(word)
        return [character for character in word if character in self.vocab] if parts is None else parts

    def _join(self, tokens: Iterable[str]) -> str:
        text, before = "", ""
        for token in tokens:
            kind = self.token_type[token]
            glued = kind == "suffix" or kind == before == "char" or (before == "prefix" and kind in ("char", "word"))
            shown = {"suffix": token[1:], "prefix": token[:-1]}.get(kind, token)
            text += shown if glued else f" {shown}"
            before = kind
        return _tidy(text)


class FieldAwareTokenizer(WordTokenizer):
    """Triples, pairs and words chosen by a score; a word that no group covers becomes ``<UNK>``."""

    specials = ("<PAD>", "<UNK>", "<BOS>", "<EOS>")
    fallback = "unknown"
    types_key = "token_clusters"

    @classmethod
    def build(cls, lines: Iterable[str], field_size: int = 1024, min_freq: int = 1) -> FieldAwareTokenizer:
        """As in the other tokenizers; ``min_freq`` has no effect."""
        words, bigrams, trigrams = count_groups(lines)
        scored = _scores(words, bigrams, trigrams)
        chosen, covered = {}, set()
        for kind, group, score in sorted(scored, key=lambda item: item[2], reverse=True):
            if len(chosen) >= field_size - len(cls.specials):
                break
            parts = {group} if kind == "word" else set(group.split(" "))
            if parts <= covered and (kind == "word" or score <= 5):
                continue
            chosen[group] = kind
            covered |= parts
        kinds = {kind: [g for g, k in chosen.items() if k == kind] for kind in ("trigram", "bigram", "word")}
        return cls._of_types(field_size, _types(kinds))

    def _spell(self, word: str) -> list[str]:
        return ["<UNK>"]

    def _join(self, tokens: Iterable[str]) -> str:
        text = re.sub(r"\s+([.,!?;:])", r"\1", " ".join(tokens))
        return re.sub(r"([.,!?;:])\s+", r"\1 ", text)


def count_groups(lines: Iterable[str]) -> tuple[Counter[str], Counter[str], Counter[str]]:
    """Counts of words, pairs and triples within lines, in order of their first occurrence."""
    words, bigrams, trigrams = Counter(), Counter(), Counter()
    for line in lines:
        row = words_of(line)
        words.update(row)
        bigrams.update(map(" ".join, pairwise(row)))
        trigrams.update(map(" ".join, zip(row, row[1:], row[2:], strict=False)))
    return words, bigrams, trigrams


def _count_characters(words: Counter[str]) -> Counter[str]:
    counts = Counter()
    for word, count in words.items():
        for character in word:
            counts[character] += count
    return counts


def _frequent(groups: Counter[str]) -> list[str]:
    return [group for group, count in groups.most_common() if count >= LEAST_NGRAM_COUNT]


def _types(kinds: Mapping[str, Iterable[str]]) -> dict[str, str]:
    return {token: kind for kind, tokens in kinds.items() for token in tokens}


def _tidy(text: str) -> str:
    """White space before punctuation goes, runs of it become one space."""
    return re.sub(r"\s+", " ", re.sub(r"\s+([.,!?;:'\"])", r"\1", text)).strip()


def _valuable_affixes(words: Counter[str]) -> dict[str, list[str]]:
    """Prefixes and suffixes by the number of words that they are the first to fit, written ``un-``, ``-ing``."""
    prefixes, suffixes = Counter(), Counter()
    for word, count in words.items():
        if len(word) <= 3:
            continue
        suffix = next((s for s in SUFFIXES if word.endswith(s) and len(word) - len(s) > 1), None)
        prefix = next((p for p in PREFIXES if word.startswith(p) and len(word) - len(p) > 2), None)
        if suffix is not None:
            suffixes[f"-{suffix}"] += count
        if prefix is not None:
            prefixes[f"{prefix}-"] += count
    best = {"prefix": prefixes.most_common(MOST_PREFIXES), "suffix": suffixes.most_common(MOST_SUFFIXES)}
    return {kind: [a for a, value in ranked if value >= LEAST_AFFIX_COUNT] for kind, ranked in best.items()}


def _stems(stem: str) -> Iterator[str]:
    """A stem and its spelling variants: mak, make, makk; stopp, stop; happi, happy."""
    yield stem
    if len(stem) >= 2:
        yield stem + "e"
        yield stem + stem[-1]
    if len(stem) >= 3:
        if stem[-1] == stem[-2]:
            yield stem[:-1]
        if stem[-1] == "i":
            yield stem[:-1] + "y"


def _scores(words: Counter[str], bigrams: Counter[str], trigrams: Counter[str]) -> Iterator[tuple[str, str, float]]:
    """Kind, group and score: frequent groups that hold together, and short ones, score high."""
    followers = Counter(pair.split(" ")[0] for pair in bigrams)
    for group, count in trigrams.items():
        first, second, third = group.split(" ")
        pairs = bigrams[f"{first} {second}"] + bigrams[f"{second} {third}"]
        yield "trigram", group, (2 * math.log(count + 1) + 3 * math.log(pairs + 1) + 4.5) / (len(group) + 1)
    for group, count in bigrams.items():
        yield "bigram", group, (2 * math.log(count + 1) + 3 * math.log(count + 1) + 3) / (len(group) + 1)
    for word, count in words.items():
        score = (1.5 * math.log(count + 1) + math.log(followers[word] + 1) + 1) / (len(word) + 1)
        yield "word", word, score
