"""Which model is better, when each was trained from a few seeds and scored on a sample of text.

Scores are arrays ``[K, R]``: K runs from different seeds, R validation rows, small is better, and the mean over rows
is the run's metric (bits per byte, or an error rate). Seed s has the same order of data in every arm and row r is the
same text in every arm, so two arms are compared by ``a - b``, in which whatever they share cancels. Neighbouring rows
are of one text and alike, so rows are resampled in blocks.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from itertools import combinations, permutations
from statistics import NormalDist
from typing import Literal, NamedTuple

import numpy as np

#: Rows of a block that is resampled as a whole; fewer if there would be less than so many blocks.
BLOCK, LEAST_BLOCKS = 16, 8


@dataclass(frozen=True)
class Interval:
    """Mean of ``a - b`` and its confidence limits, infinite where the noise is unknown; in the unit of the scores."""

    mean: float
    low: float
    high: float

    @property
    def tie(self) -> bool:
        """Whether the interval holds 0: the scores do not tell a and b apart."""
        return self.low <= 0 <= self.high

    @property
    def verdict(self) -> Literal["better", "worse", "tie"]:
        """What a is against b; a smaller score is better."""
        return "tie" if self.tie else "better" if self.high < 0 else "worse"


@dataclass(frozen=True)
class Place:
    """Where an arm stands: its mean score, its difference to the arm of the best mean, and its rank from 1."""

    name: str
    mean: float
    difference: Interval
    rank: int


class Flip(NamedTuple):
    """``first`` is better than ``second`` on the axis ``better_on`` and worse on ``worse_on``."""

    first: str
    second: str
    better_on: str
    worse_on: str


def difference(a: np.ndarray, b: np.ndarray, *, level: float = 0.95, draws: int = 4000, seed: int = 0) -> Interval:
    """Mean of ``a - b`` and a confidence interval that covers both the training noise and the choice of rows.

    The ends are percentiles of the sum of two deviations. Rows: a circular block bootstrap of the differences averaged
    over seeds (Politis and Romano 1992), n = R / 16 blocks drawn with replacement, times √(n/(n-1)) · t/z with n - 1
    degrees of freedom, because a bootstrap of few is too narrow (Hesterberg 2015, expanded percentile interval,
    https://doi.org/10.1080/00031305.2015.1089789).
    Seeds: the standard error over seeds times a Student deviate with K - 1 degrees of freedom, because two or three
    seeds have too few resamples to take a percentile of. For normal noise the sum has the Behrens-Fisher distribution,
    whose interval is conservative where Welch's holds the truth too seldom (https://arxiv.org/abs/2606.07847). Noise
    of single (seed, row) cells counts in both parts, which makes an interval up to √2 wider than it need be.

    The level is that of one comparison, however many are made. ``difference(b, a)`` is the mirror image.

    Args:
        a: scores ``[K, R]``.
        b: scores ``[K, R]`` of the same seeds and rows.
        level: confidence, between 0 and 1.
        draws: resamples of the rows.
        seed: of the resampling.

    Returns:
        The interval, from -inf to inf if K or R is 1: one run does not show how much runs differ.

    Raises:
        ValueError: the arrays are not ``[K, R]`` of one shape, are empty, or hold a value that is not finite.
    """
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if a.shape != b.shape or a.ndim != 2 or a.size == 0:
        raise ValueError(f"scores must be two arrays [seeds, rows] of one shape, not {list(a.shape)}, {list(b.shape)}")
    unfit = [int((~np.isfinite(scores)).sum()) for scores in (a, b)]
    if any(unfit):
        raise ValueError(f"scores must be finite: {unfit[0]} of a and {unfit[1]} of b, of {a.size} each, are not")
    cells = a - b  # [K, R]
    (num_seeds, num_rows), mean = cells.shape, float(cells.mean())
    if min(num_seeds, num_rows) == 1:
        return Interval(mean, -math.inf, math.inf)

    rng = np.random.default_rng(seed)
    length = max(1, min(BLOCK, num_rows // LEAST_BLOCKS))
    num_blocks = round(num_rows / length)
    rows = _block_means(cells.mean(axis=0) - mean, length)[rng.integers(num_rows, size=(draws, num_blocks))].mean(
        axis=1
    )
    rows = _expansion(num_blocks, level) * rows  # [draws]
    standard_error = cells.mean(axis=1).std(ddof=1) / math.sqrt(num_seeds)
    upper_half = 0.5 + (np.arange(draws) + 0.5) / (2 * draws)
    seeds = standard_error * rng.permutation(student_quantile(upper_half, num_seeds - 1))  # [draws], either sign
    low, high = np.quantile(np.concatenate([rows - seeds, rows + seeds]), [(1 - level) / 2, (1 + level) / 2])
    return Interval(mean, mean + float(low), mean + float(high))


def rank(scores: Mapping[str, np.ndarray], *, level: float = 0.95) -> list[Place]:
    """Arms in order of their mean; those that cannot be told apart share a rank.

    Ties are not transitive: a may tie with b, and b with c, though a is better than c. So a rank is a leader and all
    that tie with it. The best mean leads rank 1; of the arms left over, the best mean leads rank 2; and so on. Arms of
    different ranks may still tie with each other (ask ``difference``), and a noisy arm can share the rank of a
    leader though a less noisy arm before it does not.

    Args:
        scores: by arm ``[K, R]``, of the same seeds and rows.
        level: confidence of each comparison.

    Raises:
        ValueError: as ``difference``.
    """
    means = {name: float(np.mean(values)) for name, values in scores.items()}
    left = ordered = sorted(means, key=means.__getitem__)
    to_best: dict[str, Interval] = {}
    ranks: dict[str, int] = {}
    number = 0
    while left:
        number += 1
        to_leader = {name: difference(scores[name], scores[left[0]], level=level) for name in left}
        to_best = to_best or to_leader
        ranks |= {name: number for name in left if to_leader[name].tie}
        left = [name for name in left if name not in ranks]
    return [Place(name, means[name], to_best[name], ranks[name]) for name in ordered]


def flips(scores: Mapping[str, Mapping[str, np.ndarray]], *, level: float = 0.95) -> list[Flip]:
    """Pairs whose order depends on the budget: the better arm on one axis is the worse one on another.

    Both verdicts come from ``difference``, not from ranks. Each pair is compared on the axes that hold both arms, and
    named in the order in which its arms first appear.

    Args:
        scores: by budget axis (parameters, seconds, ...), by arm: ``[K, R]``; axes may differ in K and R.
        level: confidence of each comparison.

    Raises:
        ValueError: as ``difference``.
    """
    found = []
    for first, second in combinations(dict.fromkeys(name for arms in scores.values() for name in arms), 2):
        verdicts = {
            axis: difference(arms[first], arms[second], level=level).verdict
            for axis, arms in scores.items()
            if first in arms and second in arms
        }
        for better_on, worse_on in permutations(verdicts, 2):
            if verdicts[better_on] == "better" and verdicts[worse_on] == "worse":
                found.append(Flip(first, second, better_on, worse_on))
    return found


def student_quantile(probability: float | np.ndarray, degrees: int) -> np.ndarray:
    """Quantiles of Student's t with ``degrees`` degrees of freedom, an integer from 1; of the shape of ``probability``.

    The distribution is a finite sum in the angle arctan(t / √degrees), which is bisected (Abramowitz and Stegun 26.7.3
    and 26.7.4, https://personal.math.ubc.ca/~cbm/aands/page_948.htm).
    """
    low, high = np.full(np.shape(probability), -math.pi / 2), np.full(np.shape(probability), math.pi / 2)
    for _ in range(60):
        angle = (low + high) / 2
        cosine, series = np.cos(angle), np.ones_like(angle)
        for i in range(degrees - 2, 1, -2):
            series = 1 + series * cosine**2 * ((i - 1) / i)
        central = np.sin(angle) * series  # P(|T| < t), signed
        if degrees % 2:
            central = (angle + central * cosine * (degrees > 1)) * (2 / math.pi)
        below = (1 + central) / 2 < probability
        low, high = np.where(below, angle, low), np.where(below, high, angle)
    return math.sqrt(degrees) * np.tan((low + high) / 2)


@cache
def _expansion(count: int, level: float) -> float:
    """What makes the bootstrap interval of ``count`` values as wide as Student's."""
    upper = (1 + level) / 2
    student = float(student_quantile(upper, count - 1))
    return math.sqrt(count / (count - 1)) * student / NormalDist().inv_cdf(upper)


def _block_means(values: np.ndarray, length: int) -> np.ndarray:
    """Mean of the ``length`` values from each on, `[R]`, the first ones following the last."""
    around = np.concatenate([[0.0], np.cumsum(np.concatenate([values, values[: length - 1]]))])
    return (around[length:] - around[:-length]) / length
