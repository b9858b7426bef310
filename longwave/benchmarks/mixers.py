"""Mixers beside softmax: every length and pass is a race in which all of them, and softmax's floor, take turns."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from statistics import median
from typing import NamedTuple

from longwave.benchmarks.certificates import hold, status
from longwave.benchmarks.contestants import Contestant, Floor
from longwave.benchmarks.decode import Decoder, floor_measure
from longwave.benchmarks.memory import peak_bytes
from longwave.benchmarks.rows import Failure, Report, Row
from longwave.benchmarks.settings import BASELINE, Settings, with_baseline
from longwave.benchmarks.timing import interleave, stopwatch
from longwave.benchmarks.watch import Watch
from longwave.mixers.base import nbytes

FLOOR = "softmax floor"


def certified(settings: Settings, report: Report, watch: Watch) -> list[Contestant]:
    """The mixers that may be timed, softmax first; none if softmax's own certificate is red.

    What every certificate said is entered into ``report``.

    Raises:
        ValueError: a mixer or an argument is unknown or refused, or an op lacks the backend.
    """
    labels = settings.labels if settings.breakdown else with_baseline(settings.labels)
    contestants = [Contestant(label, settings) for label in labels]
    for contestant in contestants:
        contestant.compile()
    sound = []
    for contestant in contestants:
        certificate = hold(contestant, watch)
        report.certificates[contestant.label] = status(certificate)
        if certificate.passed:
            sound.append(contestant)
        elif contestant.label == BASELINE:
            return []
    return sound


def time_mixers(contestants: Sequence[Contestant], settings: Settings, report: Report, watch: Watch) -> None:
    """Enter rows of every length and pass, softmax (the first contestant) and the others in their order.

    A mixer that stops with an error, out of memory say, is entered as a failure and the race goes on without it.
    """
    races = [(kind, num_tokens) for kind in settings.passes for num_tokens in settings.lengths]
    for done, (kind, num_tokens) in enumerate(races):
        watch.advance(f"{kind} of {num_tokens} tokens", done, len(races))
        entries = {}
        for contestant in contestants:
            try:
                entries[contestant.label] = _enter(contestant, kind, num_tokens)
            except (RuntimeError, MemoryError) as error:
                reason = f"{type(error).__name__}: {str(error).splitlines()[0]}"
                watch.say(f"{contestant.label}: NOT TIMED, {kind} of {num_tokens} tokens in {settings.dtype}: {reason}")
                report.failures.append(Failure(contestant.label, num_tokens, kind, reason))
        if BASELINE in entries:
            report.rows += _race(entries, _floor_measure(contestants[0], kind, num_tokens), kind, num_tokens)
    watch.advance("done", len(races), len(races))


class _Entry(NamedTuple):
    """A contestant that has run once: what measures it, and its bytes."""

    contestant: Contestant
    measure: Callable[[], float]
    peak_bytes: int
    state_bytes: int


def _enter(contestant: Contestant, kind: str, num_tokens: int) -> _Entry:
    settings = contestant.settings
    if kind == "decode":
        decoder = Decoder(contestant, num_tokens)
        return _Entry(contestant, decoder.measure, decoder.peak_bytes(), nbytes(decoder.state))
    run = contestant.make_pass(kind, num_tokens)
    state_bytes = settings.batch_size * contestant.mixer.state_bytes(num_tokens, settings.row_dtype)
    return _Entry(contestant, stopwatch(run, settings.device), peak_bytes(run, settings.device), state_bytes)


def _floor_measure(baseline: Contestant, kind: str, num_tokens: int) -> Callable[[], float]:
    floor = Floor(baseline)
    if kind == "decode":
        return floor_measure(floor, num_tokens)
    return stopwatch(floor.make_pass(kind, num_tokens), baseline.settings.device)


def _race(entries: dict[str, _Entry], floor: Callable[[], float], kind: str, num_tokens: int) -> Iterator[Row]:
    settings = entries[BASELINE].contestant.settings
    measures = {label: entry.measure for label, entry in entries.items()} | {FLOOR: floor}
    found = interleave(measures, settings.repeats)
    seconds = {name: median(times) for name, times in found.items()}
    for label, entry in entries.items():
        yield Row(
            mixer=label,
            num_tokens=num_tokens,
            pass_name=kind,
            dtype=settings.dtype,
            seconds=seconds[label],
            softmax_seconds=seconds[BASELINE],
            softmax_floor_seconds=seconds[FLOOR],
            ratio=seconds[BASELINE] / seconds[label],
            peak_bytes=entry.peak_bytes,
            state_bytes=entry.state_bytes,
            batch_size=settings.batch_size,
            hidden_size=settings.hidden_size,
            num_heads=settings.num_heads,
            backend=settings.backend,
            arguments=entry.contestant.arguments,
            repeats=len(found[label]),
        )
