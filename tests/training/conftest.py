"""A finished run."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.training.tiny import write_run


@pytest.fixture(scope="session")
def finished(tmp_path_factory) -> Path:
    """The folder of a run file and of ``out``, the directory that its training wrote."""
    from longwave.training import load_run, train

    folder = tmp_path_factory.mktemp("finished")
    train(load_run(str(write_run(folder))), folder / "out")
    return folder
