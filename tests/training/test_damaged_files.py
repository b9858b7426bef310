"""Whatever becomes of a file that a run keeps: nothing that is not as it was written is believed."""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
import sys
from pathlib import Path

import pytest

from longwave import cli
from longwave.data.lease import lease
from longwave.data.sealed import read_sealed, write_sealed
from longwave.training import load_run, train
from longwave.training.checkpoints import MANIFEST, complaint, newest_whole, restore_lines
from longwave.training.records import RECORD, Record
from longwave.training.train import LEASE
from tests.damage import DAMAGE, copy, flip
from tests.training.tiny import write_run

SETTINGS = ["evaluation.every_steps=3", "evaluation.keep_best=true", "evaluation.samples=[the]"]
SETTINGS += ["training.carry_state=true", "training.accumulation=2", "model.mixer_types=[softmax, softmax]"]
SETTINGS += ["model.mixer_kwargs=null", "training.keep_checkpoints=3"]
CHECKPOINT = [
    "best.safetensors", "carried-0-0.safetensors", "carried-0-1.safetensors", "config.json", "generation_config.json",
    "longwave_shim.py", "manifest.json", "metrics.jsonl", "model.safetensors", "optimizer.pt", "rng_state.pth",
    "samples.jsonl", "scheduler.pt", "trainer_state.json", "training_args.bin",
]  # fmt: skip
FINISHED = [
    "config.json", "generation_config.json", "metrics.jsonl", "model.safetensors", "record.json", "run.yaml",
    "samples.jsonl", "scored_rows.npy", "tokenizer.json", "tokenizer_config.json",
]  # fmt: skip


class Whole:
    """A finished run, its file, and another run that differs in its seed only."""

    def __init__(self, folder: Path) -> None:
        self.file = write_run(folder, save_every_steps=3, device="cpu", tokens=8 * 4 * 32)
        self.run = load_run(str(self.file), SETTINGS)
        self.out, self.other = folder / "out", folder / "other"
        train(self.run, self.out)
        train(load_run(str(self.file), [*SETTINGS, "training.seed=8"]), self.other)
        self.identity = read_sealed(self.out / "checkpoint-6" / MANIFEST)["identity"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Whole:
    return Whole(tmp_path_factory.mktemp("whole"))


@pytest.fixture
def resume(whole, monkeypatch, capsys):
    """Resume a run directory from the command line; its exit code and what it says."""

    def run(output: Path, *more: str) -> tuple[int, str]:
        changes = [word for setting in SETTINGS for word in ("--set", setting)]
        words = ["longwave", "train", str(whole.file), "--output", str(output), *changes, *more]
        monkeypatch.setattr(sys, "argv", words)
        try:
            cli.main()
            code = 0
        except SystemExit as ended:
            code = ended.code or 0
        return code, capsys.readouterr().err

    return run


def unfinished(whole, target: Path) -> Path:
    """The run directory as a kill before its record leaves it."""
    copy(whole.out, target)
    for name in (RECORD, "model.safetensors", "scored_rows.npy"):
        (target / name).unlink()
    shutil.rmtree(target / "checkpoint-8")
    return target


def test_all_files_are_damaged_here(whole):
    assert {path.name for path in (whole.out / "checkpoint-6").iterdir()} == set(CHECKPOINT)
    assert {path.name for path in whole.out.iterdir() if path.is_file()} == {*FINISHED, "longwave_shim.py"}
    assert complaint(whole.out / "checkpoint-6", whole.identity) is None
    assert Record.read(whole.out, whole.run)


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("name", CHECKPOINT)
def test_a_damaged_checkpoint_is_not_resumed_from(whole, tmp_path, name, damage):
    checkpoint = copy(whole.out / "checkpoint-6", tmp_path / "checkpoint-6")
    DAMAGE[damage](checkpoint / name)
    assert newest_whole(tmp_path, whole.identity)[0] is None


@pytest.mark.parametrize("name", CHECKPOINT)
@pytest.mark.parametrize("source", ["other/checkpoint-6", "out/checkpoint-3"])
def test_a_file_of_another_run_or_step_makes_no_checkpoint(whole, tmp_path, name, source):
    checkpoint, other = copy(whole.out / "checkpoint-6", tmp_path / "checkpoint-6"), whole.out.parent / source / name
    same = other.read_bytes() == (checkpoint / name).read_bytes()
    shutil.copyfile(other, checkpoint / name)
    assert (complaint(checkpoint, whole.identity) is None) == same


@pytest.mark.parametrize("name", ["checkpoint-8", "checkpoint-1", "checkpoint-06", "checkpoint-²", "checkpoint-6.old"])
def test_a_renamed_checkpoint_is_none(whole, tmp_path, name):
    copy(whole.out / "checkpoint-6", tmp_path / name)
    assert newest_whole(tmp_path, whole.identity)[0] is None


def test_states_of_another_part_are_not_taken_for_ones_own(whole, tmp_path):
    checkpoint = copy(whole.out / "checkpoint-6", tmp_path / "checkpoint-6")
    (checkpoint / "carried-0-0.safetensors").replace(checkpoint / "carried-0-1.safetensors")
    assert complaint(checkpoint, whole.identity)


def test_a_run_goes_on_from_what_is_whole_and_ends_as_it_would_have(whole, tmp_path, resume):
    output = unfinished(whole, tmp_path / "out")
    flip(output / "checkpoint-6" / "best.safetensors")
    for name in ("metrics.jsonl", "samples.jsonl"):
        (output / name).write_bytes(b"\xff\x00 no JSON")
    (output / "record.json.part").write_text("half")
    (output / "checkpoint-9.broken").mkdir()
    code, said = resume(output, "--resume")
    assert code == 0
    assert "checkpoint-6 was altered: best.safetensors; not used" in " ".join(said.split())
    for name in ("model.safetensors", "scored_rows.npy", "samples.jsonl"):
        assert (output / name).read_bytes() == (whole.out / name).read_bytes(), name
    lines, expected = (
        [json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
        for folder in (output, whole.out)
    )
    assert lines == expected
    assert {path.name for path in output.iterdir()} == {path.name for path in whole.out.iterdir()}
    assert complaint(output / "checkpoint-6", whole.identity) is None


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("name", ["metrics.jsonl", "samples.jsonl"])
def test_lines_come_from_the_checkpoint(whole, tmp_path, name, damage):
    output = unfinished(whole, tmp_path / "out")
    DAMAGE[damage](output / name)
    restore_lines(output, output / "checkpoint-6")
    assert (output / name).read_bytes() == (output / "checkpoint-6" / name).read_bytes()


@pytest.mark.parametrize("damage", [damage for damage in DAMAGE if damage != "gone"])
@pytest.mark.parametrize("name", FINISHED)
def test_a_damaged_file_of_a_finished_run_is_named(whole, tmp_path, resume, name, damage):
    output = copy(whole.out, tmp_path / "out")
    DAMAGE[damage](output / name)
    code, said = resume(output, "--resume")
    assert code == 2
    assert f"out/{name}: " in said or (name == "run.yaml" and f"{output}: " in said)
    assert "Traceback" not in said
    assert len(said.strip().splitlines()) == 1 or name == "run.yaml"


def test_a_record_of_another_run_is_refused(whole, tmp_path, resume):
    output = copy(whole.out, tmp_path / "out")
    shutil.copyfile(whole.other / RECORD, output / RECORD)
    code, said = resume(output, "--resume")
    assert code == 2
    assert "record.json: belongs to another run" in said


@pytest.mark.parametrize(
    "text", ["a: &a {b: *a}", "{" * 5000, "model: [1", "3", "\x00", "? {a: 1}\n: 2", "!!python/x 1"]
)
def test_a_run_file_of_nonsense_is_refused_by_name(whole, tmp_path, resume, text):
    output = unfinished(whole, tmp_path / "out")
    (output / "run.yaml").write_text(text)
    code, said = resume(output, "--resume")
    assert code == 2
    assert str(output) in said
    assert "Traceback" not in said


def test_a_record_that_is_gone_is_written_again(whole, tmp_path, resume):
    output = unfinished(whole, tmp_path / "out")
    assert resume(output, "--resume")[0] == 0
    assert Record.read(output, whole.run).scores == Record.read(whole.out, whole.run).scores


def test_a_copied_run_directory_is_the_same_run(whole, tmp_path, resume):
    output = unfinished(whole, tmp_path / "elsewhere")
    assert resume(output, "--resume")[0] == 0
    assert (output / "model.safetensors").read_bytes() == (whole.out / "model.safetensors").read_bytes()


def test_a_run_that_is_refused_leaves_nothing(whole, tmp_path, resume):
    code, said = resume(tmp_path / "new" / "folder" / "out", "--set", "training.batch_size=100000")
    assert (code, list(tmp_path.iterdir())) == (2, [])
    assert "fewer than training.batch_size 100000" in said


@pytest.mark.parametrize("more", [["--resume"], []])
def test_a_directory_in_which_a_run_goes_on_is_refused_at_once_and_left_alone(whole, tmp_path, resume, more):
    output = unfinished(whole, tmp_path / "out")
    with lease(output / LEASE):
        before = {path: path.stat().st_mtime_ns for path in [output, *output.rglob("*")]}
        code, said = resume(output, *more)
        assert code == 2
        assert f"{output}: in use by process {os.getpid()}" in said or f"{output}: the run directory is in use" in said
        assert len(said.splitlines()) == 1
        assert {path: path.stat().st_mtime_ns for path in [output, *output.rglob("*")]} == before


def test_a_full_disk_is_one_sentence_and_what_was_whole_stays_so(whole, tmp_path, resume):
    output = unfinished(whole, tmp_path / "out")
    shutil.rmtree(output / "checkpoint-6")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    for name in ("optimizer.pt", "model.safetensors", "best.safetensors", "trainer_state.json"):
        limit = (whole.out / "checkpoint-6" / name).stat().st_size - 1
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))  # no file may grow beyond it
        try:
            code, said = resume(output, "--resume")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        last = said.strip().splitlines()[-1]
        assert code == 2, said
        assert re.fullmatch(r"longwave: /\S+: cannot be written: .+", last)
        assert str(output) in last or name == "trainer_state.json"  # smaller than what is written before the run
        assert "Traceback" not in said
        assert [path.name for path in output.glob("checkpoint-*")] == ["checkpoint-3"]
        assert complaint(output / "checkpoint-3", whole.identity) is None
    assert resume(output, "--resume")[0] == 0
    assert (output / "model.safetensors").read_bytes() == (whole.out / "model.safetensors").read_bytes()


@pytest.mark.parametrize("damage", [damage for damage in DAMAGE if damage != "gone"])
def test_sealed_json_is_as_it_was_written_or_refused(tmp_path, damage):
    path = tmp_path / "values.json"
    write_sealed(path, {"seconds_per_token": 0.25, "files": {"a": "b"}, "n": [1, "ä"]})
    assert read_sealed(path) == {"seconds_per_token": 0.25, "files": {"a": "b"}, "n": [1, "ä"]}
    DAMAGE[damage](path)
    with pytest.raises(ValueError, match=r"values\.json: "):
        read_sealed(path)
