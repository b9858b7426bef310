"""A comparison: certify, make equal, try rates, train every arm from every seed, rank."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import mean

import torch
from rich.console import Console

from longwave.benchmarks.certificates import status
from longwave.benchmarks.machine import machine
from longwave.comparison.arms import Arm
from longwave.comparison.budget import operations_per_token, size_of, solve_size, state_bytes, with_training
from longwave.comparison.report import Cell, Entry, Report, Trial
from longwave.comparison.speeds import seconds_per_token
from longwave.comparison.store import Outcome, Store
from longwave.comparison.terms import Terms
from longwave.comparison.workers import train_all
from longwave.data import ScoredRows, chance, solve
from longwave.ops import use_backend
from longwave.training import Data, Run, prepare_data
from longwave.training.trainer import check_rows
from longwave.verification import MixerSubject, Verdict, certify, mixer_subject
from longwave.verification.provenance import commit
from longwave.verification.report import print_header, print_line

#: Channels of a head in certificates.
HEAD_DIM = 8
#: Lengths, in tokens, at which states are weighed.
STATE_LENGTHS = (256, 1024, 8192, 65536)
PASSED = "passed"


@dataclass(frozen=True)
class Entrant:
    """An arm under one budget: the size and the tokens of its run are what the budget makes them."""

    axis: str
    arm: str
    run: Run
    seconds_per_token: float


class Comparison:
    """Runs a comparison in a directory, where it finds again what an earlier sitting has done.

    Args:
        terms: what is compared, and how.
        directory: of runs, speeds and ``comparison.json``.
        console: where progress is shown.

    Raises:
        ValueError: sizes cannot be made equal.
    """

    def __init__(self, terms: Terms, directory: Path, console: Console | None = None) -> None:
        self.terms, self.store, self.console = terms, Store(directory), console or Console(quiet=True)
        self.sized = {(axis, arm.name): self._sized(axis, arm) for axis in terms.axes for arm in terms.arms}
        self.sources = {arm.name: arm.source for arm in terms.arms}
        self.runs: dict[Path, Run] = {}
        self.estimates: dict[Path, float] = {}

    def run(self, *, plan_only: bool = False) -> Report:
        """Do what is left to do, and rank.

        Args:
            plan_only: say what it will take, and train nothing.

        Raises:
            ValueError: the data cannot be read, a run cannot be trained, or a run here was trained on other data.
        """
        terms = self.terms
        data = prepare_data(terms.arms[0].run)
        for run in self.sized.values():
            check_rows(run, data.train)
        certificates = {arm.name: self._certificate(arm) for arm in terms.arms}
        entrants = self._entrants([arm.name for arm in terms.arms if certificates[arm.name] == PASSED], data)
        trials = [self._trials(entrant) for entrant in entrants]
        self._say_plan(entrants, trials)
        if plan_only:
            return self._report(certificates, [], [], data)
        self._train([path for found in trials for path in found.values()], data)
        entries = [self._entry(entrant, found) for entrant, found in zip(entrants, trials, strict=True)]
        files = [
            (entry, seed, self._run_file(entrant, seed, entry.rate, entry.tokens))
            for seed in terms.seeds
            for entrant, entry in zip(entrants, entries, strict=True)
        ]
        self._train([path for _, _, path in files], data)
        cells = [Cell(entry.axis, entry.arm, seed, path, self._outcome(path)) for entry, seed, path in files]
        report = self._report(certificates, entries, cells, data)
        self.store.write_report(report.as_dict())
        return report

    def _sized(self, axis: str, arm: Arm) -> Run:
        if axis == "tokens":
            return arm.run
        target = self.terms.parameters or size_of(self.terms.arms[0].run).body_parameters
        return solve_size(arm, target).run

    def _certificate(self, arm: Arm) -> str:
        """``passed``, or what the arm's mixers fail or declare to break, small and in the fast forms."""
        found = []
        for label, arguments in arm.mixers.items():
            subject = _small_subject(label, arguments, arm.run)
            print_header(self.console, subject)
            with use_backend("auto", any_rows=True):
                certificate = certify(subject, report=partial(print_line, self.console))
            if any(line.verdict is not Verdict.PASS for line in certificate.lines):
                found.append(f"{label} {status(certificate)}")
        return "; ".join(found) or PASSED

    def _entrants(self, arms: list[str], data: Data) -> list[Entrant]:
        """The arms under every budget; operations and seconds are those of the first arm."""
        if not arms:
            return []
        first, found = arms[0], []
        if first != self.terms.arms[0].name:
            self._say(
                f"{first} takes the place of {self.terms.arms[0].name} as the reference of operations and seconds"
            )
        for axis in self.terms.axes:
            seconds = seconds_per_token({arm: self.sized[axis, arm] for arm in arms}, data, self.store)
            operations = {arm: operations_per_token(self.sized[axis, arm]) for arm in arms}
            cost = {"operations": operations, "seconds": seconds}.get(axis, dict.fromkeys(arms, 1.0))
            for arm in arms:
                run = with_training(self.sized[axis, arm], tokens=cost[first] / cost[arm] * self.terms.tokens)
                found.append(Entrant(axis, arm, run, seconds[arm]))
        return found

    def _run_file(self, entrant: Entrant, seed: int, rate: float, tokens: int) -> Path:
        run = with_training(entrant.run, seed=seed, learning_rate=rate, tokens=tokens)
        path = self.store.run_file(entrant.arm, run, self.sources[entrant.arm])
        self.runs[path] = run
        self.estimates[path] = entrant.seconds_per_token * run.training.tokens
        return path

    def _trials(self, entrant: Entrant) -> dict[float, Path]:
        """A short run for each learning rate to be tried."""
        rates = self.terms.rates if len(self.terms.rates) > 1 else ()
        return {rate: self._run_file(entrant, self.terms.seeds[0], rate, self.terms.trial_tokens) for rate in rates}

    def _say_plan(self, entrants: list[Entrant], trials: list[dict[float, Path]]) -> None:
        for entrant in entrants:
            size = size_of(entrant.run)
            self._say(
                f"{entrant.arm} at equal {entrant.axis}: {size.body_parameters:,} parameters outside the embedding "
                f"(feed-forward {size.intermediate_size}), {entrant.run.training.tokens:,} tokens for each seed, "
                f"about {1 / entrant.seconds_per_token:,.0f} tokens/s"
            )
        paths = {path for found in trials for path in found.values()}
        minutes = sum(entrant.seconds_per_token * entrant.run.training.tokens for entrant in entrants) / 60
        self._say(
            f"in all {len(paths)} trials of rates, about {sum(self.estimates[path] for path in paths) / 60:,.1f} "
            f"minutes, and {len(entrants) * len(self.terms.seeds)} runs, about "
            f"{minutes * len(self.terms.seeds):,.1f}, one after another; what is done already is not done again"
        )

    def _train(self, paths: list[Path], data: Data) -> None:
        """Train what has not ended; what has must be of today's data."""
        left = {}
        for path in dict.fromkeys(paths):
            outcome = self.store.outcome(path, self.runs[path])
            if outcome is None:
                left[path] = self.runs[path]
            else:
                outcome.check(data)
                self.store.tidy(path)
        beside = min(self.terms.jobs, max(1, torch.cuda.device_count()))  # on a CPU they share the cores
        minutes = sum(self.estimates[path] for path in left) / 60 / beside
        if left:
            self._say(f"{len(left)} runs to train, about {minutes:,.1f} minutes")
            train_all(left, self.store, self.console, self.terms.jobs)

    def _entry(self, entrant: Entrant, trials: Mapping[float, Path]) -> Entry:
        """The entrant with the rate that did best; the one of its run if none was tried."""
        found = tuple(Trial(rate, self._outcome(path).loss) for rate, path in trials.items())
        fallback = self.terms.rates[0] if self.terms.rates else entrant.run.training.learning_rate
        return Entry(
            axis=entrant.axis,
            arm=entrant.arm,
            size=size_of(entrant.run),
            tokens=entrant.run.training.tokens,
            operations_per_token=operations_per_token(entrant.run),
            state_bytes={length: state_bytes(entrant.run, length) for length in STATE_LENGTHS},
            trials=found,
            rate=min(found, key=lambda trial: trial.loss).rate if found else fallback,
        )

    def _outcome(self, path: Path) -> Outcome:
        outcome = self.store.outcome(path, self.runs[path])
        assert outcome is not None
        return outcome

    def _report(self, certificates: dict[str, str], entries: list[Entry], cells: list[Cell], data: Data) -> Report:
        task, terms = isinstance(data.valid, ScoredRows), self.terms
        return Report(
            measure="error rate" if task else "bits per byte",
            certificates=certificates,
            entries=entries,
            cells=cells,
            references=_references(data.valid) if isinstance(data.valid, ScoredRows) else {},
            terms={
                "arms": [arm.name for arm in terms.arms],
                "budgets": list(terms.axes),
                "seeds": list(terms.seeds),
                "parameters": terms.parameters,
                "rates": list(terms.rates),
                "trial_tokens": terms.trial_tokens,
                "jobs": terms.jobs,
                "reference": terms.arms[0].run.model_dump(mode="json"),
            },
            machine=machine(),
            commit=commit(),
        )

    def _say(self, line: str) -> None:
        self.console.print(line, highlight=False, markup=False, soft_wrap=True)


def _small_subject(label: str, arguments: dict, run: Run) -> MixerSubject:
    """The arm's mixer with its heads, as few channels to a head as it can be built with."""
    heads, width = run.model.num_heads, run.model.hidden_size
    sizes = [HEAD_DIM << power for power in range(8) if HEAD_DIM << power < width // heads]
    for head_dim in sizes:
        try:
            return mixer_subject(label, arguments, hidden_size=head_dim * heads, num_heads=heads)
        except ValueError:  # such as a share of the channels that is no whole number
            continue
    return mixer_subject(label, arguments, hidden_size=width, num_heads=heads)


def _references(rows: ScoredRows) -> dict[str, float]:
    """Accuracy of guessing, and of perfect recall: what the rows themselves say."""
    right = []
    for index in range(len(rows)):
        row = rows[index]
        answers = row["labels"][row["labels"] != -100].tolist()
        right.append(mean(a == b for a, b in zip(solve(rows.task, row), answers, strict=True)))
    return {"chance": chance(rows.task), "oracle": mean(right)}
