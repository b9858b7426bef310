"""What the tests of the benchmarks share: tiny settings, and certificates that are taken for granted."""

from __future__ import annotations

import pytest

from longwave.benchmarks import certificates
from longwave.benchmarks.settings import Settings, read_settings
from longwave.verification import Certificate


@pytest.fixture
def trusted(monkeypatch):
    """Every certificate passes at once: for tests of what comes after it."""
    monkeypatch.setattr(certificates, "certify", lambda subject, longest: Certificate(subject.name, ()))


@pytest.fixture
def tiny():
    """Settings as the command line would read them, small unless told otherwise."""

    def read(subject="mixers", **changes) -> Settings:
        sizes = {"hidden_size": 16, "num_heads": 2, "repeats": 2, "lengths": "24,40"}
        if subject != "ops":
            sizes["mixers"] = "hale"
        return read_settings(subject, **{**sizes, **changes})

    return read
