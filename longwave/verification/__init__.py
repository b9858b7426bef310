"""The certificate: anything that mixes tokens, held to the law."""

from longwave.verification.certificate import Certificate, Verdict, certify
from longwave.verification.subjects import MixerSubject, ModelSubject, Subject, mixer_subject, subject_of

__all__ = [
    "Certificate",
    "MixerSubject",
    "ModelSubject",
    "Subject",
    "Verdict",
    "certify",
    "mixer_subject",
    "subject_of",
]
