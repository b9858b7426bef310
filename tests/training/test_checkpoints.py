"""A checkpoint counts only if every file is as its manifest says."""

from __future__ import annotations

import pytest

from longwave.training.checkpoints import MANIFEST, complaint, newest_whole, rotate, seal


@pytest.fixture
def checkpoint(tmp_path):
    """A sealed checkpoint of the run ``me``."""

    def make(step):
        directory = tmp_path / f"checkpoint-{step}"
        (directory / "inner").mkdir(parents=True)
        (directory / "model.safetensors").write_bytes(bytes(range(256)) * 10)
        (directory / "inner" / "state.json").write_text(f'{{"step": {step}}}')
        seal(directory, "me")
        return directory

    return make


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


DAMAGE = {
    "was not finished": lambda d: (d / MANIFEST).unlink(),
    "has an unreadable manifest": lambda d: (d / MANIFEST).write_text("{"),
    "was altered: model.safetensors": lambda d: flip(d / "model.safetensors"),
    "was altered: inner/state.json": lambda d: (d / "inner" / "state.json").write_text('{"step": 8}'),
    "has files missing or added: model.safetensors": lambda d: (d / "model.safetensors").unlink(),
    "has files missing or added: other.bin": lambda d: (d / "other.bin").write_bytes(b""),
}


def test_a_sealed_checkpoint_is_whole(checkpoint):
    assert complaint(checkpoint(5), "me") is None


def test_a_checkpoint_of_another_run_is_refused(checkpoint):
    assert complaint(checkpoint(5), "you") == "belongs to another run"


@pytest.mark.parametrize("sentence", DAMAGE)
def test_damage_is_found_and_named(checkpoint, sentence):
    directory = checkpoint(5)
    DAMAGE[sentence](directory)
    assert complaint(directory, "me") == sentence


@pytest.mark.parametrize("sentence", DAMAGE)
def test_the_newest_whole_one_is_taken_and_what_is_not_whole_is_set_aside(checkpoint, tmp_path, sentence):
    whole, torn = checkpoint(5), checkpoint(10)
    DAMAGE[sentence](torn)
    assert newest_whole(tmp_path, "me") == (whole, [f"{torn} {sentence}; not used"])
    assert not torn.exists()
    assert (tmp_path / "checkpoint-10.broken").is_dir()


def test_a_file_of_another_checkpoint_is_found(checkpoint):
    old, new = checkpoint(5), checkpoint(10)
    (new / "inner" / "state.json").write_bytes((old / "inner" / "state.json").read_bytes())
    assert complaint(new, "me") == "was altered: inner/state.json"


def test_no_checkpoint_is_no_error(tmp_path):
    assert newest_whole(tmp_path, "me") == (None, [])


def test_steps_are_ordered_as_numbers_and_old_ones_deleted(checkpoint, tmp_path):
    for step in (2, 10, 9):
        checkpoint(step)
    rotate(tmp_path, 2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-10", "checkpoint-9"]
