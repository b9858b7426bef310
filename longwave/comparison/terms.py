"""What a comparison is told, checked as a whole."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from longwave.comparison.arms import Arm, read_arms
from longwave.comparison.budget import AXES
from longwave.data.limits import check_fits
from longwave.training import check_memory
from longwave.training.configuration import LARGEST_SEED, MOST_TOKENS

#: The preset that says what a comparison does not.
BASE = "comparison"
#: Tasks, each with a preset of its name.
TASKS = ("mqar", "copy")
MOST_SEEDS, MOST_JOBS, SMALLEST_RATE = 1000, 1024, 1e-12


@dataclass(frozen=True)
class Terms:
    """Everything that a comparison is told.

    Attributes:
        arms: the contestants; the first is the reference from which budgets are taken.
        axes: what is made equal, one ranking for each: ``parameters`` (outside the embedding, and the same tokens),
            ``operations`` or ``seconds`` (the same parameters, and as many tokens as cost what the reference's do), or
            ``tokens`` (sizes as they are given, the same tokens).
        seeds: one run of each arm for each.
        parameters: outside the embedding; ``None`` for the reference's as given.
        rates: peak learning rates, of which each arm is tried at all and keeps its best; one is not tried.
        trial_tokens: training tokens of a trial.
        jobs: runs that are trained side by side.
    """

    arms: tuple[Arm, ...]
    axes: tuple[str, ...] = ("parameters",)
    seeds: tuple[int, ...] = (0, 1, 2)
    parameters: int | None = None
    rates: tuple[float, ...] = ()
    trial_tokens: int = 0
    jobs: int = 1

    def __post_init__(self) -> None:
        if max(self.seeds) > LARGEST_SEED:
            raise ValueError(
                f"--seeds counts from training.seed {self.seeds[0]} beyond {LARGEST_SEED}; make it smaller"
            )
        if not 1 <= self.jobs <= MOST_JOBS:
            raise ValueError(f"--jobs must be from 1 to {MOST_JOBS:,}, got {self.jobs:,}")
        for axis in self.axes:
            if axis not in AXES:
                raise ValueError(f"unknown budget {axis!r}; legal: {', '.join(AXES)}")
        if "seconds" in self.axes and self.jobs > 1:
            raise ValueError("seconds are measured one run at a time: --budget seconds needs --jobs 1")
        run = self.arms[0].run
        lowest = run.training.minimum_learning_rate
        for rate in self.rates:
            if not max(lowest, SMALLEST_RATE) <= rate < float("inf"):
                raise ValueError(
                    f"--rates: {rate} is not above 0, below training.minimum_learning_rate {lowest}, or not finite"
                )
        if run.evaluation.patience is not None:
            raise ValueError("evaluation.patience ends runs early, which is no equal budget; set null")
        if self.parameters is not None and self.axes == ("tokens",):
            raise ValueError("--budget tokens takes sizes as they are: no --parameters beside it")
        if self.parameters is not None:
            check_fits(4 * self.parameters, f"--parameters {self.parameters:,}")
        if self.trial_tokens > MOST_TOKENS:
            raise ValueError(f"--trial-tokens must be at most {MOST_TOKENS:,}, got {self.trial_tokens:,}")
        for arm in self.arms:
            try:
                check_memory(arm.run)
            except ValueError as error:
                raise ValueError(f"{arm.name}: {error}") from None

    @property
    def tokens(self) -> int:
        """Training tokens of the reference."""
        return self.arms[0].run.training.tokens


def read_terms(
    names: Sequence[str],
    overrides: Sequence[tuple[str, Any]] = (),
    *,
    base: str | None = None,
    task: str | None = None,
    data: str | None = None,
    validation: str | None = None,
    tokens: int | None = None,
    budget: str = "parameters",
    parameters: int | None = None,
    seeds: int = 3,
    rates: str = "",
    trial_tokens: int | None = None,
    jobs: int = 1,
) -> Terms:
    """Terms from words as they are written on the command line.

    Args:
        names, overrides: of :func:`~longwave.comparison.arms.read_arms`.
        base: run file or preset of what all arms share; ``None`` for the preset ``comparison``.
        task: ``mqar`` or ``copy``, whose preset is the base then.
        data, validation, tokens: in place of the base run's.
        budget: axes, as ``"parameters,seconds"``.
        parameters: of :class:`Terms`.
        seeds: how many, counted from the base run's own.
        rates: learning rates to try, as ``"0.001,0.002"``; empty for the base run's alone.
        trial_tokens: of a trial; ``None`` for a quarter of the training tokens, or all of a task's, whose later
            rows are of other sizes.
        jobs: of :class:`Terms`.

    Raises:
        ValueError: anything is unknown, outside its range, or does not fit together.
    """
    if task not in (None, *TASKS):
        raise ValueError(f"unknown task {task!r}; legal: {', '.join(TASKS)}")
    if task is not None and (base or data or validation):
        raise ValueError("--task has data of its own: no --base, --data or --validation beside it")
    if not 1 <= seeds <= MOST_SEEDS:
        raise ValueError(f"--seeds must be from 1 to {MOST_SEEDS:,} runs of each arm, got {seeds:,}")
    given = {"data.train": data, "data.validation": validation, "training.tokens": tokens}
    shared = [(path, value) for path, value in given.items() if value is not None]
    if trial_tokens is not None and len(_rates(rates)) < 2:
        raise ValueError("--trial-tokens goes with at least two --rates")
    arms = tuple(read_arms(names, task or base or BASE, [*shared, *overrides]))
    training = arms[0].run.training
    return Terms(
        arms,
        axes=tuple(dict.fromkeys(word.strip() for word in budget.split(","))),
        seeds=tuple(range(training.seed, training.seed + seeds)),
        parameters=parameters,
        rates=_rates(rates),
        trial_tokens=trial_tokens or (training.tokens if arms[0].run.data.task else training.tokens // 4),
        jobs=jobs,
    )


def _rates(words: str) -> tuple[float, ...]:
    found = []
    for word in filter(str.strip, words.split(",")):
        try:
            found.append(float(word))
        except ValueError:
            raise ValueError(f"--rates holds {word.strip()!r}; expected numbers such as 0.001,0.002") from None
    return tuple(dict.fromkeys(found))
