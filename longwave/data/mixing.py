"""Several sources in one order of rows, each in proportion to its weight."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction

import numpy as np
from torch import Tensor
from torch.utils.data import Dataset

from longwave.data.packing import PackedRows

#: Rows after which the order of a mix must have repeated, or ended.
MOST_TURNS = 2**22


def shares_of(weights: Sequence[float]) -> list[int]:
    """Weights as the smallest whole numbers of the same proportions, decimals taken as they are written.

    Raises:
        ValueError: there is no weight, or one that is not positive and finite.
    """
    if not weights:
        raise ValueError("a mix needs at least one source with a weight, got none")
    for number, weight in enumerate(weights, 1):
        if not (math.isfinite(weight) and weight > 0):
            raise ValueError(f"weight {number} of {len(weights)}: weights must be positive and finite, got {weight}")
    exact = [Fraction(str(weight)) for weight in weights]
    common = math.lcm(*(fraction.denominator for fraction in exact))
    whole = [int(fraction * common) for fraction in exact]
    divisor = math.gcd(*whole)
    return [number // divisor for number in whole]


def next_source(shares: Sequence[int], counts: Sequence[int]) -> int:
    """Whose turn it is after each source has given ``counts`` rows.

    Row k of a source may come in turn floor(k · total / share) or later, and is due before turn
    ceil((k + 1) · total / share); of those that may come, the one that is due first does. So after n rows every
    source has given less than one row more or less than n · share / total (https://doi.org/10.1007/BF01940883).
    """
    total, turn = sum(shares), sum(counts)
    ready = [source for source, share in enumerate(shares) if counts[source] * total < (turn + 1) * share]
    return min(ready, key=lambda source: (-(-(counts[source] + 1) * total // shares[source]), source))


class MixedRows(Dataset):
    """Rows of several sources, interleaved by weight; :func:`next_source` says whose turn it is.

    Its length is the least number of rows, ceil(max(rows of a source / its share)), in which every source is
    certain to be read whole; sources with fewer rows for their weight begin again.
    """

    def __init__(self, sources: Sequence[PackedRows], weights: Sequence[float]) -> None:
        self.sources, self.shares = tuple(sources), shares_of(weights)
        if len(self.sources) != len(self.shares):
            raise ValueError(f"{len(self.sources)} sources, but {len(self.shares)} weights")
        total = sum(self.shares)
        needed = (-(-len(rows) * total // share) for rows, share in zip(self.sources, self.shares, strict=True))
        self.num_rows = max(needed)
        if min(total, self.num_rows) > MOST_TURNS:
            raise ValueError(
                f"the weights {', '.join(map(str, weights))} of a mix need more than {MOST_TURNS:,} rows "
                f"until their order repeats; write them with fewer digits, or nearer to each other"
            )
        # The order repeats every `total` rows.
        self._turns = np.empty(min(total, self.num_rows), dtype=np.int32)
        self._counts = np.empty(len(self._turns), dtype=np.int64)
        counts = [0] * len(self.shares)
        for turn in range(len(self._turns)):
            source = next_source(self.shares, counts)
            self._turns[turn], self._counts[turn] = source, counts[source]
            counts[source] += 1

    def __len__(self) -> int:
        return self.num_rows

    def place(self, index: int) -> tuple[int, int]:
        """Source and row in it of row ``index``."""
        period, turn = divmod(index, len(self._turns))
        source = int(self._turns[turn])
        row = period * self.shares[source] + int(self._counts[turn])
        return source, row % len(self.sources[source])

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        if not 0 <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        source, row = self.place(index)
        return self.sources[source][row]
