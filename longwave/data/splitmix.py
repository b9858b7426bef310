"""Random numbers that are functions of their place, the same for ever: splitmix64 (https://doi.org/10.1145/2660193.2660195).

Integers throughout: no library's generator, whose stream may change with its version, takes part.
"""

from __future__ import annotations

import numpy as np

GAMMA = np.uint64(0x9E3779B97F4A7C15)


def words(seeds: np.ndarray, count: int) -> np.ndarray:
    """The first ``count`` words of a generator for each seed: `[R]` uint64 to `[R, count]` uint64."""
    z = seeds[:, None] + GAMMA * np.arange(1, count + 1, dtype=np.uint64)  # modulo 2^64
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def seeds_of(*place: int | np.ndarray) -> np.ndarray:
    """Seeds `[R]` uint64 of a place such as (split, seed, row), whole numbers or `[R]` arrays of them.

    Each number in turn is added to the seed so far, 0 at first; the first word of that seed is the next one.
    """
    seeds = np.zeros(1, dtype=np.uint64)
    for number in place:
        step = number % 2**64 if isinstance(number, int) else number
        seeds = words(seeds + np.asarray(step, dtype=np.uint64), 1)[:, 0]
    return seeds


def below(words: np.ndarray, limit: int | np.ndarray) -> np.ndarray:
    """Words as int64 from 0 to ``limit`` - 1, for limits up to 2^31: (upper 32 bits · limit) / 2^32, rounded down."""
    return ((words >> np.uint64(32)) * np.asarray(limit, dtype=np.uint64) >> np.uint64(32)).astype(np.int64)


def unit(words: np.ndarray) -> np.ndarray:
    """Words as float64 strictly between 0 and 1: (upper 52 bits + 1/2) / 2^52."""
    return ((words >> np.uint64(12)).astype(np.float64) + 0.5) * 2.0**-52


def smallest(numbers: np.ndarray, count: int) -> np.ndarray:
    """Places of the ``count`` smallest numbers of each row, `[R, n]` to `[R, count]`, the smallest first.

    Of random words: ``count`` different places drawn at random, in random order. (Words are taken to differ: two of
    64 bits hardly ever are equal, and a full sort that would say which comes first takes forty times as long.)
    """
    first = np.argpartition(numbers, count - 1, axis=1)[:, :count]
    order = np.argsort(np.take_along_axis(numbers, first, axis=1), axis=1)
    return np.take_along_axis(first, order, axis=1)
