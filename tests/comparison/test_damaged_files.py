"""Whatever becomes of a file that a comparison keeps: nothing that is not as it was written is believed."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

from longwave.comparison.store import DIVERGED, Store
from longwave.training import load_run, train
from longwave.training.records import RECORD
from tests.damage import DAMAGE, copy
from tests.training.tiny import write_run

KEY = [{"mixer_types": "hale", "betas": [0.9, 0.95]}, {"threads": 2, "machine": None}]
PRESENT = [damage for damage in DAMAGE if damage != "gone"]


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "compared")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of a run file and of ``out``, the directory of its run."""
    folder = tmp_path_factory.mktemp("finished")
    train(load_run(str(write_run(folder))), folder / "out")
    return folder


@pytest.fixture
def run(finished):
    return load_run(str(finished / "tiny.yaml"))


@pytest.fixture
def ended(store, run, finished):
    """The file of a run that has ended."""
    path = store.run_file("hale", run)
    copy(finished / "out", path.with_suffix(""))
    return path


def test_what_is_whole_is_found(store, run, ended):
    store.note_speed(KEY, 1e-5)
    assert store.speed(KEY) == 1e-5
    assert store.speed([*KEY, 1]) is None
    outcome = store.outcome(ended, run)
    assert outcome.loss == pytest.approx(outcome.record.scores["bits_per_byte"])


@pytest.mark.parametrize("damage", PRESENT)
def test_a_damaged_speed_is_refused_by_name(store, damage):
    store.note_speed(KEY, 1e-5)
    (path,) = store.directory.rglob("*.json")
    DAMAGE[damage](path)
    with pytest.raises(ValueError, match=rf"{path.name}: .*; remove it to measure again"):
        store.speed(KEY)


def test_a_speed_of_other_models_is_refused_by_name(store):
    store.note_speed(KEY, 1e-5)
    (mine,) = store.directory.rglob("*.json")
    store.note_speed(KEY[:1], 1.0)
    (other,) = (path for path in store.directory.rglob("*.json") if path != mine)
    shutil.copyfile(other, mine)
    with pytest.raises(ValueError, match=rf"{mine.name}: is of other models"):
        store.speed(KEY)


@pytest.mark.parametrize("damage", PRESENT)
def test_a_damaged_note_of_divergence_is_refused_by_name(store, run, damage):
    path = store.run_file("hale", run)
    store.runs.mkdir(parents=True)
    store.diverged(path, run, "step 3: the gradient is not finite")
    assert store.outcome(path, run).diverged == "step 3: the gradient is not finite"
    DAMAGE[damage](path.with_suffix("") / DIVERGED)
    with pytest.raises(ValueError, match=r"diverged\.json: "):
        store.outcome(path, run)


@pytest.mark.parametrize("damage", PRESENT)
@pytest.mark.parametrize("name", [RECORD, "scored_rows.npy", "run.yaml", "model.safetensors"])
def test_a_damaged_outcome_is_refused_by_name(store, run, ended, name, damage):
    DAMAGE[damage](ended.with_suffix("") / name)
    with pytest.raises(ValueError, match=rf"{name}: "):
        store.outcome(ended, run)


def test_scores_that_were_edited_are_refused(store, run, ended):
    rows = ended.with_suffix("") / "scored_rows.npy"
    np.save(rows, np.load(rows) * 0.9)
    with pytest.raises(ValueError, match=r"scored_rows\.npy: is not as it was when the run ended"):
        store.outcome(ended, run)


@pytest.mark.parametrize("name", [RECORD, DIVERGED])
def test_the_outcome_of_another_run_is_refused(store, run, ended, finished, name):
    other = load_run(str(finished / "tiny.yaml"), ["training.seed=8"])
    if name == DIVERGED:
        store.diverged(ended, other, "step 3")
    with pytest.raises(ValueError, match=rf"{name}: belongs to another run"):
        store.outcome(ended, run if name == DIVERGED else other)


@pytest.mark.parametrize("damage", PRESENT)
def test_a_damaged_run_file_or_report_is_written_again(store, run, damage):
    path = store.run_file("hale", run)
    store.runs.mkdir(parents=True)
    path.write_text("seed: 1\n" * 20)
    report = store.write_report({"a": 1})
    for file in (path, report):
        if damage != "a folder":
            DAMAGE[damage](file)
    with store.written(path, run):
        assert load_run(str(path)) == run
    assert json.loads(store.write_report({"a": 1}).read_text()) == {"a": 1}


def test_a_comparison_that_is_refused_leaves_nothing(race, tmp_path):
    before = sorted(tmp_path.rglob("*"))
    for change in (("training.batch_size", 100_000), ("data.train", str(tmp_path / "none.txt"))):
        with pytest.raises(ValueError, match=r"batch_size|none\.txt"):
            race("softmax", "hale", overrides=[change], output="new/folder")
        assert sorted(tmp_path.rglob("*")) == before
