"""A benchmark from settings to report."""

from __future__ import annotations

from longwave.benchmarks.breakdown import take_apart
from longwave.benchmarks.machine import machine
from longwave.benchmarks.mixers import certified, time_mixers
from longwave.benchmarks.ops import time_ops
from longwave.benchmarks.rows import Report
from longwave.benchmarks.settings import Settings
from longwave.benchmarks.watch import Watch
from longwave.ops import use_backend
from longwave.verification.provenance import commit


def run_benchmark(settings: Settings, watch: Watch | None = None) -> Report:
    """Measure what ``settings`` ask for.

    A mixer whose certificate is red is named in the report and not timed; if it is softmax, nothing is.

    Raises:
        ValueError: a mixer, an argument or a backend is not what it can be.
    """
    watch = watch or Watch()
    with settings.threading():
        report = Report(machine(settings.device), commit())
        if settings.subject == "ops":
            report.rows += time_ops(settings, watch)
            return report
        with use_backend(settings.backend):
            contestants = certified(settings, report, watch)
            if settings.breakdown:
                take_apart(contestants, settings, report, watch)
            elif contestants:
                time_mixers(contestants, settings, report, watch)
    return report
