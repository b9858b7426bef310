"""The certificate: anything that mixes tokens, held to the law; and what was published of some of them, measured."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from longwave.verification.certificate import Certificate, Verdict, certify
from longwave.verification.reachability import reachability, reachable
from longwave.verification.subjects import MixerSubject, ModelSubject, Subject, mixer_subject, subject_of

if TYPE_CHECKING:
    from longwave.verification.dwarf import Property

__all__ = [
    "Certificate",
    "MixerSubject",
    "ModelSubject",
    "Subject",
    "Verdict",
    "certify",
    "mixer_subject",
    "properties_of",
    "reachability",
    "reachable",
    "subject_of",
]

#: Mixers of which properties were published, and the package of this folder that measures them.
PUBLISHED = {"dwarf": "dwarf", "dwarf_field": "dwarf", "dwarf_grid": "dwarf"}


def properties_of(label: str) -> tuple[Property, ...]:
    """The published properties of the mixer that ``label`` names.

    Raises:
        ValueError: none were published.
    """
    name = label.split("@")[0]
    if name not in PUBLISHED:
        raise ValueError(f"no properties were published of {label!r}; of these there were: {', '.join(PUBLISHED)}")
    return importlib.import_module(f"{__name__}.{PUBLISHED[name]}").PROPERTIES
