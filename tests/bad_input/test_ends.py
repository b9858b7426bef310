"""How a command ends: one line and an exit code whatever escapes it, in every terminal, from the first moment on."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from rich.console import Console

from longwave import cli
from longwave.benchmarks.table import print_whole
from longwave.cli.output import as_json_text, print_records
from longwave.evaluation import finite


def library_error() -> Exception:
    """What pydantic raises: several lines, a ValueError by inheritance."""
    from longwave.data import WeightedSource

    try:
        WeightedSource.model_validate({"weight": -1})
    except ValueError as error:
        return error
    raise AssertionError


def no_room() -> Exception:
    try:
        torch.empty(10**13)
    except RuntimeError as error:
        return error
    raise AssertionError


ENDS = {  # what escapes a verb: exit code and how the line goes on
    "a sentence of ours": (ValueError("run.yaml: seed: what is legal"), 2, "run.yaml: seed: what is legal"),
    "a file": (FileNotFoundError(2, "No such file", "x.txt"), 2, "[Errno 2] No such file: 'x.txt'"),
    "a full disk": (OSError(28, "No space left on device"), 2, "[Errno 28] No space left on device"),
    "a gradient": (FloatingPointError("step 3: not finite"), 1, "step 3: not finite"),
    "an empty ValueError": (ValueError(), 2, "train: ValueError; `longwave --traceback"),
    "an empty OSError": (OSError(), 2, "train: OSError"),
    "text": (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid"), 2, "train: UnicodeDecodeError: 'utf-8' codec"),
    "JSON": (json.JSONDecodeError("Expecting value", "", 0), 2, "train: JSONDecodeError: Expecting value"),
    "pydantic": (library_error(), 2, "train: ValidationError: 2 validation errors for WeightedSource; `longwave"),
    "recursion": (RecursionError("maximum recursion depth exceeded"), 2, "train: RecursionError: maximum"),
    "overflow": (OverflowError("int too large"), 2, "train: OverflowError: int too large"),
    "memory": (MemoryError(), 2, "train: not enough memory: MemoryError"),
    "memory of torch": (no_room(), 2, "train: not enough memory: RuntimeError: "),
    "an extra": (ModuleNotFoundError("No module named 'lm_eval'"), 2, "train: ModuleNotFoundError: No module named"),
    "an end of file": (EOFError("Ran out of input"), 2, "train: EOFError: Ran out of input"),
    "an assertion": (AssertionError(), 2, "train: internal error, the fault of longwave or of a library"),
    "a type": (TypeError("'int' is not iterable"), 2, "train: internal error, the fault of"),
    "a key": (KeyError("sources"), 2, "train: internal error, the fault of"),
    "an attribute": (AttributeError("x"), 2, "train: internal error, the fault of"),
    "a runtime error": (RuntimeError("shapes\ncannot be multiplied"), 2, "train: internal error, the fault of"),
    "not implemented": (NotImplementedError(), 2, "train: internal error, the fault of"),
    "an exit": (SystemExit(0), 2, "train: internal error, the fault of"),
    "an interruption": (KeyboardInterrupt(), 130, "interrupted"),
}


@pytest.fixture
def ends(monkeypatch, capsys):
    """Exit code, output and error of a command that raises what it is given as it begins."""

    def run(error: BaseException, *arguments: str):
        def raises(*args, **kwargs):
            raise error

        monkeypatch.setattr("longwave.training.load_run", raises)
        monkeypatch.setattr(sys, "argv", ["longwave", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return (ended.value.code, *capsys.readouterr())

    return run


@pytest.mark.parametrize("what", ENDS)
def test_whatever_escapes_is_one_line(ends, what):
    error, code, sentence = ENDS[what]
    assert ends(error, "train", "x")[:2] == (code, "")
    found, _, err = ends(error, "train", "x")
    assert found == code
    (line,) = err.splitlines()
    assert line.startswith(f"longwave: {sentence}")
    if sentence.startswith("train: "):
        assert "`longwave --traceback VERB ...` shows where" in line


@pytest.mark.parametrize("what", ENDS)
def test_traceback_shows_where_and_ends_alike(ends, what):
    error, code, sentence = ENDS[what]
    found, _, err = ends(error, "--traceback", "train", "x")
    assert found == code
    assert "Traceback (most recent call last)" in err
    assert "in raises" in err
    assert err.splitlines()[-1].startswith(f"longwave: {sentence}")


def test_handlers_of_signals_are_left_as_they_were(ends):
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    ends(ValueError("x"), "train", "x")
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


@pytest.fixture
def not_ignored():
    """Signals end the processes that a test starts, also where a shell runs the tests in the background."""
    before = {number: signal.signal(number, signal.default_int_handler) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


STOPS = [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")]


@pytest.mark.usefixtures("not_ignored")
@pytest.mark.parametrize("module", ["typer", "torch"])
@pytest.mark.parametrize(("number", "code", "word"), STOPS)
def test_a_signal_ends_in_one_line_from_the_first_import_on(tmp_path, number, code, word, module):
    (tmp_path / "sitecustomize.py").write_text(
        "import os, sys, time\n"
        "class Slow:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name == {module!r}:\n"
        "            print('begun', flush=True)\n"
        "            time.sleep(60)\n"
        "sys.meta_path.insert(0, Slow())\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-m", "longwave.cli", "train", "hale-small"],
        env={**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "begun\n"
    process.send_signal(number)
    _, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (code, f"longwave: {word}\n")


@pytest.mark.parametrize("command", ["--help", "verify --help", "benchmark --help"])
def test_a_reader_that_leaves_is_no_error(command):
    reader, writer = os.pipe()
    os.close(reader)
    line = [sys.executable, "-m", "longwave.cli", *command.split()]
    done = subprocess.run(line, stdout=writer, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writer)
    assert (done.returncode, done.stderr) == (cli.PIPE_CLOSED, "")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a device that is always full")
def test_output_that_cannot_be_written_is_one_line():
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "longwave.cli", "--help"], stdout=full, stderr=-1, text=True, check=False
        )
    assert done.returncode == 2
    assert done.stderr.startswith("longwave: [Errno 28]")
    assert len(done.stderr.splitlines()) == 1


WIDTHS = ["0", "1", "20", "59", "-5", "abc", "", "²", "1e3", "10000000000", "9" * 5000]
WORDS = {"cost": "O(N log N)", "state": "logarithmic", "title": "Words that fill a line " * 3}
ROWS = [{"name": f"mixer_{i}", **WORDS} for i in range(3)]
TERMINALS = [*({"COLUMNS": width} for width in WIDTHS), {"TERM": "dumb"}, {"NO_COLOR": "1"}, {"LINES": "0"}]


@pytest.fixture(params=TERMINALS, ids=lambda value: str(value)[:30])
def terminal(request, monkeypatch):
    """An odd terminal, once the command line has begun."""
    for name, value in request.param.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("COLUMNS", request.param.get("COLUMNS", "20"))
    cli._lay_out()


def test_a_table_is_readable_in_every_terminal(terminal, capsys):
    print_records("Mixers", ROWS)
    out = capsys.readouterr().out
    for word in ("Mixers", *ROWS[0], *(row["name"] for row in ROWS), "O(N log N)", "logarithmic"):
        assert word in out
    assert max(map(len, out.splitlines())) <= cli.WIDEST


def test_a_wide_table_is_never_cut(terminal, capsys):
    from rich.table import Table

    table = Table(title="Equal parameters")
    cells = [f"column number {i}" for i in range(12)]
    for cell in cells:
        table.add_column(cell, no_wrap=True)
    table.add_row(*(cell.upper() for cell in cells))
    print_whole(Console(), table)
    out = capsys.readouterr().out
    assert all(cell in out and cell.upper() in out for cell in cells)


def test_wrong_usage_is_readable_in_a_narrow_terminal(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "0")
    monkeypatch.setattr(sys, "argv", ["longwave", "verify", "softmax", "--longest", "many"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    err = capsys.readouterr().err
    assert ended.value.code == 2
    assert err.startswith("Usage: longwave verify [OPTIONS]")
    assert "Error: Invalid value for '--longest'" in err


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf], ids=str)
def test_json_says_null_where_a_number_is_not_finite(number):
    value = {"score": number, "rows": [1.5, number, {"x": (number, "NaN", None, True, 3)}]}
    text = as_json_text(value)
    found = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert found == {"score": None, "rows": [1.5, None, {"x": [None, "NaN", None, True, 3]}]}
    assert finite(value) == found


def test_nothing_is_printed_as_json_elsewhere():
    from pathlib import Path

    for path in Path(cli.__file__).parent.glob("*.py"):
        assert ("json.dumps" in path.read_text()) == (path.name == "output.py")


def test_the_command_line_starts_before_anything_heavy():
    began_at = time.monotonic()
    code = "import longwave.cli, sys; print(*{n.split('.')[0] for n in sys.modules})"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"typer", "rich", "torch", "importlib.metadata", "email", "json"} & set(loaded)
    assert time.monotonic() - began_at < 10
