"""Classes of users that are no mixers, or cannot run: one sentence and exit code 2, not a failure of the law."""

from __future__ import annotations

import sys

import pytest
import torch
from torch import nn

from longwave import cli
from longwave.mixers import Declaration, TokenMixer
from longwave.verification import Verdict, certify, mixer_subject
from tests.toys import CumulativeMean, SumState

not_a_class = CumulativeMean.forward


class NoMixer(nn.Module):
    """A module like any other."""


class Abstract(TokenMixer):
    """Lacks every method."""


class Undefined(CumulativeMean):
    """Has an annotation that names nothing."""

    def __init__(self, hidden_size: int, num_heads: int, *, size: Nothing = 3) -> None:  # noqa: F821
        super().__init__(hidden_size, num_heads)


class Raising(CumulativeMean):
    """Raises in its constructor."""

    def __init__(self, hidden_size: int, num_heads: int) -> None:
        raise KeyError("scale")


class Refusing(CumulativeMean):
    """Refuses its sizes in its constructor."""

    def __init__(self, hidden_size: int, num_heads: int) -> None:
        raise ValueError("no size is right")


class Leaving(CumulativeMean):
    """Ends the program in its constructor."""

    def __init__(self, hidden_size: int, num_heads: int) -> None:
        sys.exit(0)


class Interruptible(BaseException):
    """No Exception."""


def returning(**methods):
    """A mixer of which some methods return, or raise, what is given."""

    def method(value):
        def called(self, *args, **kwargs):
            if isinstance(value, BaseException):
                raise value
            return value

        return called

    return type("Odd", (CumulativeMean,), {name: method(value) for name, value in methods.items()})


ROWS = torch.zeros(2, 5, 16, dtype=torch.float64)
STATE = SumState(torch.zeros(2, 16, dtype=torch.float64), torch.full((2,), 5))
ODD = {
    "RaisingForward": (returning(forward=RuntimeError("no such kernel")), "no such kernel"),
    "LeavingForward": (returning(forward=SystemExit(0)), "it called sys.exit(0)"),
    "InterruptibleForward": (returning(forward=Interruptible()), "Interruptible"),
    "NothingForward": (returning(forward=None), "forward returned NoneType, expected a pair"),
    "TextForward": (returning(forward="rows"), "forward returned str, expected a pair"),
    "RowsAlone": (returning(forward=ROWS), "forward returned Tensor, expected a pair"),
    "NoRows": (returning(forward=(None, STATE)), "forward returned NoneType for x of shape [2, 5, 16]"),
    "OtherRows": (returning(forward=(ROWS[:, :3], STATE)), "forward returned [2, 3, 16] for x of shape [2, 5, 16]"),
    "NoState": (returning(forward=(ROWS, None)), "forward returned a state of class NoneType"),
    "StateOfTextParts": (returning(forward=(ROWS, SumState("a", "b"))), "of tensors of 2 batch rows"),
    "StateOfOtherBatch": (returning(forward=(ROWS, SumState(*(t[:1] for t in STATE)))), "of tensors of 2 batch rows"),
    "NoInitialState": (returning(init_state=None), "init_state returned NoneType"),
    "RaisingStep": (returning(step=IndexError("7")), "IndexError 7"),
    "NothingStep": (returning(step=None), "step returned NoneType"),
    "RaisingDeclaration": (returning(declaration=ZeroDivisionError("division by zero")), "division by zero"),
    "NoDeclaration": (returning(declaration=None), "declaration() returned None, expected a Declaration"),
    "OtherGrowth": (returning(declaration=Declaration(growth="fast")), "declared growth 'fast'; legal: constant"),
    "OtherCost": (returning(declaration=Declaration("constant", cost="high")), "declared cost 'high'; legal: linear"),
    "OtherEdges": (returning(declaration=Declaration("constant", edges=("a",))), "declared edges ('a',)"),
    "OtherBreaks": (returning(declaration=Declaration("constant", breaks=["P1"])), "declared breaks ['P1']"),
    "NoBytes": (returning(state_bytes=None), "a state of None bytes"),
    "NegativeBytes": (returning(state_bytes=-1), "a state of -1 bytes"),
    "RaisingBytes": (returning(state_bytes=OverflowError("too large")), "too large"),
    "NoOperations": (returning(flops="many"), "flops(5) returned 'many', expected a whole number"),
}
globals().update({name: kind for name, (kind, _) in ODD.items()})
SENTENCES = {
    "NoMixer": "is not a subclass of longwave.mixers.TokenMixer",
    "not_a_class": "is not a subclass of longwave.mixers.TokenMixer",
    "Missing": "cannot be imported: module 'tests.verification.test_users_classes' has no attribute 'Missing'",
    "Abstract": "cannot be built: Can't instantiate abstract class Abstract",
    "Undefined": "cannot be built: name 'Nothing' is not defined",
    "Raising": "cannot be built: KeyError 'scale'",
    "Refusing": "cannot be built: no size is right",
    "Leaving": "cannot be built: it called sys.exit(0)",
    **{name: sentence for name, (_, sentence) in ODD.items()},
}


@pytest.fixture
def refused(monkeypatch, capsys):
    """The one line with which ``longwave verify`` refuses its arguments."""

    def run(*arguments) -> str:
        monkeypatch.setattr(sys, "argv", ["longwave", "verify", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        out, error = capsys.readouterr()
        assert (ended.value.code, out) == (2, "")
        (line,) = error.splitlines()
        return line

    return run


@pytest.mark.parametrize("name", SENTENCES)
def test_a_class_that_cannot_be_run_is_refused_by_name(name, refused):
    label = f"{__name__}:{name}"
    line = refused(label)
    assert label in line
    assert SENTENCES[name] in line


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("hale", "--backend", "triton"), "has no backend 'triton'; legal: auto, naive, torch, numba"),
        (("hale", "--set", "window=0"), "hale needs window >= 1"),
        (("hale", "--set", f"window={10**18}"), "expected a number that a machine can hold"),
        (("softmax", "--set", f"window={10**18}"), "expected a number that a machine can hold"),
        (("dwarf", "--set", f"offsets=[0, {10**18}]"), "expected a number that a machine can hold"),
        (("softmax", "--set", "window=true"), "window: expected a number or text, got True"),
        (("softmax", "--set", "rotary_base=.nan"), "rotary_base: expected a finite number, got nan"),
        (("hale", "--set", "gate=.inf"), "gate"),
    ],
    ids=str,
)
def test_bad_arguments_are_no_failure_of_the_law(arguments, sentence, refused):
    assert sentence in refused(*arguments)


class LateExit(CumulativeMean):
    """Ends the program once a sequence is longer than six tokens."""

    def forward(self, x, state=None, *, starts=None, return_state=False):
        if x.shape[1] > 6:
            sys.exit(0)
        return super().forward(x, state, starts=starts, return_state=return_state)


def test_what_runs_at_some_lengths_only_breaks_the_law():
    certificate = certify(mixer_subject(f"{__name__}:LateExit"), longest=9)
    assert not certificate.passed
    assert "raised SystemExit" in next(line for line in certificate.lines if line.verdict is Verdict.FAIL).where
