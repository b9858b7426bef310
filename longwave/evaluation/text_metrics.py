"""Numbers about a piece of generated text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

PUNCTUATION = ".,;:!?"


def edit_distance(a: str, b: str) -> int:
    """Levenshtein: the fewest characters to insert, remove or replace to make ``a`` into ``b``."""
    row = list(range(len(b) + 1))
    for i, left in enumerate(a, start=1):
        diagonal, row[0] = row[0], i
        for j, right in enumerate(b, start=1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (left != right))
    return row[-1]


def first_word(text: str) -> str:
    """The first word between white space, without the marks ``. , ; : ! ?`` around it; empty if there is none."""
    return next(iter(text.split()), "").strip(PUNCTUATION)


def repetition_rate(words: Sequence[str], n: int = 4) -> float:
    """Share of n-grams that occurred before, Σ (count - 1) / number; 0 if there is none."""
    grams = _grams(words, n)
    return sum(count - 1 for count in Counter(grams).values()) / len(grams) if grams else 0.0


def distinct(words: Sequence[str], n: int) -> float:
    """Different n-grams / n-grams; 0 if there is none."""
    grams = _grams(words, n)
    return len(set(grams)) / len(grams) if grams else 0.0


def _grams(words: Sequence[str], n: int) -> list[tuple[str, ...]]:
    return [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
