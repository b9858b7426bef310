"""The certificate: every property of the law, the worst number found, and a verdict."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from enum import StrEnum

import torch

from longwave.ops import BackendUnavailable
from longwave.verification import precision, state, stream
from longwave.verification.measure import Worst
from longwave.verification.subjects import LONGEST, MixerSubject, Subject

RELATIVE = 1e-10


class Verdict(StrEnum):
    """PASS and FAIL are what they say; DECLARED_FAIL is a published defect that shows as declared."""

    PASS = "PASS"
    FAIL = "FAIL"
    DECLARED_FAIL = "DECLARED-FAIL"


@dataclass(frozen=True)
class Property:
    """A law, the check that measures it and the largest number that passes.

    ``whole_models``: applies to whole models as well as to mixers. ``in_training``: checked in training mode too.
    """

    key: str
    title: str
    check: Callable[[Subject, int], Worst]
    limit: float
    whole_models: bool = True
    in_training: bool = True


PROPERTIES = (
    Property("P1", "causality", stream.causality, 0.0),
    Property("P2", "length independence", stream.length_independence, RELATIVE),
    Property("P3", "split law", stream.split_law, RELATIVE),
    Property("P4", "document law", stream.document_law, RELATIVE),
    Property("P5", "bounded state", state.bounded_state, 1.0, whole_models=False, in_training=False),
    Property("P7", "batch independence", stream.batch_independence, 0.0),
    Property("P8", "gradients", state.gradients, RELATIVE, whole_models=False),
    Property("P9", "precision", precision.precision, 8.0, whole_models=False, in_training=False),
    Property("P12", "state round trip", state.round_trip, RELATIVE, whole_models=False, in_training=False),
)


@dataclass(frozen=True)
class Line:
    """One property's outcome; ``worst`` is the largest number found, ``limit`` the largest that passes."""

    key: str
    title: str
    verdict: Verdict
    worst: float
    limit: float
    where: str
    seconds: float


@dataclass(frozen=True)
class Certificate:
    """What :func:`certify` found about ``name``."""

    name: str
    lines: tuple[Line, ...]

    @property
    def passed(self) -> bool:
        """Exactly the declared properties fail."""
        return all(line.verdict is not Verdict.FAIL for line in self.lines)

    def as_dict(self) -> dict:
        """JSON-able record."""
        return {"name": self.name, "passed": self.passed, "lines": [asdict(line) for line in self.lines]}


def certify(subject: Subject, *, longest: int = LONGEST, report: Callable[[Line], None] | None = None) -> Certificate:
    """Hold ``subject`` to every property that applies to it.

    Args:
        longest: tokens of the longest sequence that is tried.
        report: called with each line as it is found.

    Raises:
        BackendUnavailable: the backend that was asked for cannot run an op of the subject.
    """
    lines = []
    for rule in PROPERTIES:
        if not (rule.whole_models or isinstance(subject, MixerSubject)):
            continue
        began = time.monotonic()
        worst = _measure(rule, subject, longest)
        verdict = _judge(rule, worst, subject.declaration.breaks)
        where = worst.where
        if rule.key in subject.declaration.breaks:
            reason = subject.declaration.breaks[rule.key]
            where += f" [declared: {reason}]"
            if verdict is Verdict.FAIL:
                where += " but the property held"
        line = Line(rule.key, rule.title, verdict, worst.value, rule.limit, where, time.monotonic() - began)
        lines.append(line)
        if report is not None:
            report(line)
    return Certificate(subject.name, tuple(lines))


def _measure(rule: Property, subject: Subject, longest: int) -> Worst:
    worst = Worst()
    for training in (True, False) if rule.in_training else (False,):
        subject.module.train(training)
        mode = "train" if training else "eval"
        try:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                found = rule.check(subject, longest)
        except (KeyboardInterrupt, BackendUnavailable):
            raise
        except BaseException as error:  # code of others, which may also call sys.exit
            found = Worst(float("inf"), f"raised {type(error).__name__}: {error}")
        worst.see(found.value, f"{found.where} ({mode})")
    return worst


def _judge(rule: Property, worst: Worst, breaks) -> Verdict:
    holds = worst.value <= rule.limit
    if rule.key in breaks:
        return Verdict.FAIL if holds else Verdict.DECLARED_FAIL
    return Verdict.PASS if holds else Verdict.FAIL
