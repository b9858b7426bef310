"""The certificate passes what is lawful and rejects what is not."""

from __future__ import annotations

import pytest

from longwave.mixers import available
from longwave.ops import use_backend
from longwave.verification import Verdict, certify, mixer_subject
from longwave.verification.precision import precision
from tests.verification.gallery import BROKEN, Boastful, Honest

VARIANTS = [
    ("hale", {"window": 5, "num_levels": 3, "chunk_size": 8}),
    ("hale", {"window": 1, "num_levels": 0, "gate": 0.5}),
    ("hale", {"num_levels": 0, "cache": "published"}),
    ("hale", {"window": 9, "share_local": True, "learn_level_logits": False}),
    ("softmax", {"window": 7, "num_kv_heads": 1}),
    ("softmax", {"rotary_base": None, "bias": True}),
    ("tests.toys:CumulativeMean", {}),
    ("tests.toys:RawMean", {}),
    ("tests.toys:Summaries", {}),
    ("tests.toys:Summaries", {"count": 3, "every": None}),
    ("tests.toys:BinaryCounter", {}),
    ("tests.toys:WholeHistory", {}),
    ("tests.toys:WeightedMean", {"mixture": {"present": 0.25}}),
]


def failures(certificate):
    return {line.key: line for line in certificate.lines if line.verdict is Verdict.FAIL}


@pytest.mark.parametrize("name", available())
def test_every_mixer_is_certified_as_it_comes(name):
    assert not failures(certify(mixer_subject(name)))


@pytest.mark.parametrize("name", available())
def test_the_naive_twins_are_as_precise(name):
    with use_backend("naive"):
        found = precision(mixer_subject(name), 257)
    assert found.value <= 8, found


@pytest.mark.parametrize(("name", "arguments"), VARIANTS, ids=str)
def test_variants_and_toys_are_certified(name, arguments):
    assert not failures(certify(mixer_subject(name, arguments), longest=65))


def test_the_published_hale_cache_fails_the_split_law_as_declared():
    certificate = certify(mixer_subject("hale", {"cache": "published", "window": 5, "num_levels": 3}), longest=33)
    assert certificate.passed
    verdicts = {line.key: line for line in certificate.lines}
    assert verdicts["P3"].verdict is Verdict.DECLARED_FAIL
    assert "output 0" in verdicts["P3"].where
    assert [line.key for line in certificate.lines if line.verdict is not Verdict.PASS] == ["P3", "P9"]


def test_a_declared_failure_that_does_not_show_is_a_failure():
    certificate = certify(mixer_subject(f"{Boastful.__module__}:Boastful"), longest=33)
    assert failures(certificate)["P3"].where.endswith("but the property held")


def test_the_gallery_starts_from_something_lawful():
    assert not failures(certify(mixer_subject(f"{Honest.__module__}:Honest"), longest=33))


@pytest.mark.parametrize("broken", BROKEN, ids=lambda broken: broken.__name__)
def test_every_broken_mixer_is_rejected_for_its_defect(broken):
    certificate = certify(mixer_subject(f"{broken.__module__}:{broken.__name__}"), longest=33)
    assert not certificate.passed
    assert BROKEN[broken] in failures(certificate)
