"""``longwave VERB``: what the package does, from a shell.

Nothing is imported before :func:`main` runs, so that whatever escapes a verb, an interruption while libraries are
still being imported included, ends in one line on standard error and an exit code.
"""

from __future__ import annotations

import os
import signal
import sys
from itertools import takewhile

STOPPED = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated"}
PIPE_CLOSED = 128 + 13  # what a shell says of a program that SIGPIPE ended
#: Columns between which tables are laid out, whatever the terminal or COLUMNS says.
NARROWEST, WIDEST = 60, 500
#: How PyTorch words that memory ran out, or could never hold so much.
NO_MEMORY = ("allocate memory", "out of memory", "Storage size calculation overflowed", "multiplication overflow")


def main() -> None:
    """Entry point. Exit code 0; 1: a check or a run failed; 2: bad input; 130, 143: interrupted, terminated.

    Before the verb, ``--traceback`` shows where an error came from, and ``--untuned`` leaves the process as the
    system made it, see :mod:`longwave.process`.
    """
    before = {number: signal.getsignal(number) for number in STOPPED}
    for number in STOPPED:
        if before[number] is not signal.SIG_IGN:
            signal.signal(number, _stop)
    try:
        code = _run(sys.argv[1:])
        if sys.stdout is not None:
            sys.stdout.flush()
    except BaseException as error:
        code = _explain(error, sys.argv[1:])
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    sys.exit(code)


def _run(arguments: list[str]) -> int:
    """Run the verb that is asked for; its exit code."""
    _lay_out()
    if "" not in sys.path:
        sys.path.append("")  # module.path:ClassName is looked up in the working directory too
    if "torch" not in sys.modules and "--untuned" not in _before_verb(arguments):  # else the process is a program's
        from longwave.process import tune

        tune()
    from longwave.cli.verbs import invoke

    return invoke(arguments)


def _before_verb(arguments: list[str]) -> list[str]:
    """The options that come before the verb."""
    return list(takewhile(lambda word: word.startswith("-"), arguments))


def _lay_out() -> None:
    """Give COLUMNS, which every table follows, a value that tables can be read in."""
    import shutil

    columns, lines = shutil.get_terminal_size()
    if "COLUMNS" in os.environ or not NARROWEST <= columns <= WIDEST:
        os.environ["COLUMNS"] = str(min(max(columns, NARROWEST), WIDEST))
    if "LINES" in os.environ:
        os.environ["LINES"] = str(max(lines, 1))


class _Stopped(BaseException):
    """A signal asked the process to end: no library takes this for an error of its own."""


def _stop(number: int, frame: object) -> None:
    signal.signal(number, signal.SIG_DFL)  # a second one ends the process at once
    raise _Stopped(number)


def _explain(error: BaseException, arguments: list[str]) -> int:
    """Say in one line why the verb ended; the exit code."""
    origins = [error]
    while origins[-1].__context__ is not None:
        origins.append(origins[-1].__context__)
    if isinstance(error, SystemExit | BrokenPipeError) and isinstance(origins[-1], BrokenPipeError):  # rich's, print's
        _abandon_output()
        return PIPE_CLOSED
    error = next((origin for origin in origins if isinstance(origin, _Stopped)), error)
    if "--traceback" in _before_verb(arguments):
        import traceback

        traceback.print_exception(error)
    verb = next((word for word in arguments if not word.startswith("-")), "")
    code, sentence = _sentence(error, f"{verb}: " if verb else "")
    print(f"longwave: {sentence}", file=sys.stderr)
    _abandon_output()
    return code


def _sentence(error: BaseException, verb: str) -> tuple[int, str]:
    """Exit code and sentence for what escaped a verb."""
    first = next(iter(str(error).splitlines()), "")
    named = f"{type(error).__name__}: {first}" if first else type(error).__name__
    where = "`longwave --traceback VERB ...` shows where"
    match error:
        case _Stopped():
            return 128 + error.args[0], STOPPED[error.args[0]]
        case KeyboardInterrupt():
            return 128 + signal.SIGINT, STOPPED[signal.SIGINT]
        case FloatingPointError():
            return 1, str(error)
        case MemoryError():
            return 2, f"{verb}not enough memory: {named}; {where}"
        case RuntimeError() if any(words in str(error) for words in NO_MEMORY):
            return 2, f"{verb}not enough memory: {named}; {where}"
        case OSError() if first:
            return 2, str(error)
        case ValueError() if first and (type(error) is ValueError or type(error).__module__.startswith("longwave.")):
            return 2, str(error)
        case OSError() | ValueError() | RecursionError() | OverflowError() | ImportError() | EOFError():
            return 2, f"{verb}{named}; {where}"
    return 2, f"{verb}internal error, the fault of longwave or of a library rather than yours: {named}; {where}"


def _abandon_output() -> None:
    """Let what standard output still holds go nowhere if it cannot be written."""
    try:
        sys.stdout.flush()
    except (OSError, AttributeError):
        if sys.stdout is not None:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
