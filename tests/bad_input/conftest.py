"""A small run, its model, and the commands that are refused."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import yaml

from longwave import cli
from tests.training.kill import RUN


@pytest.fixture(scope="module")
def run_file(tmp_path_factory) -> Path:
    """A small legal run file."""
    folder = tmp_path_factory.mktemp("bad_input")
    (folder / "text.txt").write_text("".join(f"{i} * {i} = {i * i}\n" for i in range(500)))
    values = {**RUN, "data": {**RUN["data"], "train": str(folder / "text.txt")}}
    values["model"] = {**RUN["model"], "positions": "learned", "max_position_embeddings": 64}
    values["training"] = {**RUN["training"], "tokens": 256, "save_every_steps": 0}
    (folder / "run.yaml").write_text(yaml.safe_dump(values))
    return folder / "run.yaml"


@pytest.fixture(scope="module")
def model(run_file) -> Path:
    """The directory of a finished run."""
    from longwave.training import load_run, train

    train(load_run(str(run_file)), run_file.parent / "model")
    return run_file.parent / "model"


@pytest.fixture
def refused(monkeypatch, capsys, tmp_path):
    """Run a command that must be refused; give its sentence. Nothing may be written meanwhile."""

    def run(*arguments) -> str:
        before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
        monkeypatch.setattr(sys, "argv", ["longwave", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        error = capsys.readouterr().err
        assert ended.value.code == 2
        assert "Traceback" not in error
        assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before
        return error

    return run
