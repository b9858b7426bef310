"""No timing on a red certificate: every contestant is held to the law first, small, in the form that is timed."""

from __future__ import annotations

from longwave.benchmarks.contestants import Contestant
from longwave.benchmarks.watch import Watch
from longwave.ops import use_backend
from longwave.verification import Certificate, Verdict, certify, mixer_subject

#: Tokens of the longest sequence that is tried; `longwave verify` tries longer ones.
LONGEST = 65
NARROWEST_HEAD = 4


def hold(contestant: Contestant, watch: Watch) -> Certificate:
    """The certificate of a contestant's mixer with its arguments and heads, 4 channels a head, on a CPU."""
    settings = contestant.settings
    watch.advance(f"certificate of {contestant.label}", 0, 1)
    on_cpu = settings.device == "cpu" or settings.backend in ("naive", "torch")
    with use_backend(settings.backend if on_cpu else "auto", any_rows=True):
        subject = mixer_subject(
            contestant.label,
            contestant.arguments,
            hidden_size=NARROWEST_HEAD * settings.num_heads,
            num_heads=settings.num_heads,
        )
        certificate = certify(subject, longest=LONGEST)
    watch.say(f"{contestant.label}: {sentence(certificate)} (longest {LONGEST} tokens)")
    return certificate


def sentence(certificate: Certificate) -> str:
    """What came out, in a line."""
    red = [line for line in certificate.lines if line.verdict is Verdict.FAIL]
    if red:
        found = "; ".join(f"{line.key} {line.title}: {line.worst:.1e} at {line.where}" for line in red)
        return f"NOT TIMED, its certificate is red: {found}"
    declared = [line.key for line in certificate.lines if line.verdict is Verdict.DECLARED_FAIL]
    if declared:
        return f"certificate passed but for the declared {', '.join(declared)}"
    return "certificate passed"


def status(certificate: Certificate) -> str:
    """``passed``, ``declared: P3`` or ``failed: P1, P2``."""
    for verdict, word in ((Verdict.FAIL, "failed"), (Verdict.DECLARED_FAIL, "declared")):
        keys = [line.key for line in certificate.lines if line.verdict is verdict]
        if keys:
            return f"{word}: {', '.join(keys)}"
    return "passed"
