"""What a process asks of its machine: in processes of their own, since each can be asked once."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from longwave import process

linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="other systems are left as they are")
COMMAND = (sys.executable, "-m", "longwave.cli")
#: Prints the pages that were touched for the first time while a block of 64 MiB was filled and freed twenty times.
PAGES = """
import resource, torch
from longwave import process
{tune}
def faults():
    for _ in range(20):
        torch.empty(2**24).fill_(1.0)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
faults()
print(-faults() + faults())
"""
ONE_BLOCK = 2**26 // os.sysconf("SC_PAGE_SIZE")


def run(command, **environment):
    """Standard output and error of a command that ends well."""
    kept = {name: value for name, value in os.environ.items() if name not in (*process.WAITING, *process.MEMORY)}
    done = subprocess.run(command, env={**kept, **environment}, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout, done.stderr


def spins(*arguments, **environment):
    """Turns of a waiting thread, as OpenMP's library read them when a command loaded it."""
    _, error = run((*COMMAND, *arguments, "list"), OMP_DISPLAY_ENV="verbose", **environment)
    return {line.split()[-1] for line in error.splitlines() if "GOMP_SPINCOUNT" in line}


def pages(tune="process.tune()", **environment):
    return int(run((sys.executable, "-c", PAGES.format(tune=tune)), **environment)[0])


@linux
def test_every_command_begins_with_it():
    assert spins() == {f"'{process.SPINS}'"}


@linux
@pytest.mark.parametrize(
    ("arguments", "environment"),
    [(("--untuned",), {}), (("--traceback", "--untuned"), {}), ((), {"GOMP_SPINCOUNT": "77"})],
    ids=["an option", "among others", "the environment"],
)
def test_it_can_be_switched_off(arguments, environment):
    found = spins(*arguments, **environment)
    assert f"'{process.SPINS}'" not in found
    assert not environment or found == {"'77'"}


@linux
def test_kept_memory_is_not_paged_in_again():
    assert pages() < ONE_BLOCK
    assert pages(tune="") > 10 * ONE_BLOCK


@linux
@pytest.mark.parametrize("name", process.MEMORY)
def test_what_the_user_set_for_memory_stays(name):
    value = "glibc.malloc.check=0" if name == "GLIBC_TUNABLES" else "1048576"
    assert run((sys.executable, "-c", "from longwave.process import tune; print(tune())"), **{name: value})[
        0
    ].strip() == str(process.Tuned(waiting=True, memory=False))


def test_importing_changes_nothing():
    code = "import os; before = dict(os.environ); import longwave.model; assert dict(os.environ) == before"
    run((sys.executable, "-c", code))


def test_another_system_and_another_library_are_left_alone(monkeypatch):
    def no_such_name(name):
        raise ValueError("unrecognized configuration name")

    monkeypatch.setattr(process, "_tuned", False)
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(os, "confstr", no_such_name)
    assert process.tune() == process.Tuned(waiting=False, memory=False)
    assert process.is_tuned()


@linux
def test_after_pytorch_only_memory_can_be_set():
    out, error = run((sys.executable, "-c", "import torch; from longwave.process import tune; print(tune().waiting)"))
    assert out.strip() == "False"
    assert "RuntimeWarning: PyTorch is imported already, so its threads wait as before" in error
