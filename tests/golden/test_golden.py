"""Every golden file is met, and the checker itself cannot be fooled."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import save_file

from tests.golden import __main__ as command
from tests.golden.core import GOLDEN, check, distance, files_in, implemented_folders, read

FILES = [path for folder in implemented_folders() for path in files_in(folder)]
NOTHING = pytest.param(None, marks=pytest.mark.skip(reason=f"no golden files in {GOLDEN}"))


@pytest.mark.parametrize("path", FILES or [NOTHING], ids=lambda path: path and f"{path.parent.name}/{path.stem}")
def test_golden_file_is_met(path):
    verdict = check(path)
    assert verdict.status == "PASS", f"{verdict.error:.1e}: {verdict.detail}"


@pytest.fixture
def attention(tmp_path):
    """Write a file of one linear attention, altered by the test, and check it."""
    q, k, v, cotangent = torch.randn(4, 1, 2, 5, 4, dtype=torch.float64)
    config = {"eps": 1e-6}

    def write_and_check(out=None, **changes):
        from longwave.compat.hale import causal_linear_attention

        tensors = {"in.q": q, "in.k": k, "in.v": v, "in.cotangent": cotangent}
        tensors["out.o"] = causal_linear_attention(q, k, v)
        tensors |= out or {}
        kept = {name: tensor.contiguous() for name, tensor in tensors.items() if tensor is not None}
        metadata = {"system": "hale", "kind": "causal_linear_attention", "config": json.dumps(config), **changes}
        path = tmp_path / "hale" / "file.safetensors"
        path.parent.mkdir(exist_ok=True)
        save_file(kept, path, metadata={name: text for name, text in metadata.items() if text is not None})
        return check(path)

    return write_and_check


def test_right_numbers_pass_without_gradients(attention):
    verdict = attention()
    assert verdict.status == "PASS"
    assert verdict.error < 1e-12


def test_wrong_number_fails_and_is_named(attention):
    verdict = attention({"out.o": torch.zeros(1, 2, 5, 4, dtype=torch.float64)})
    assert verdict.status == "FAIL"
    assert verdict.error > 1e-3
    assert "out.o" in verdict.detail


@pytest.mark.parametrize("name", ["out.other", "grad.other"])
def test_tensor_that_nothing_answers_fails(attention, name):
    verdict = attention({name: torch.zeros(1)})
    assert verdict.status == "FAIL"
    assert f"{name}: none" in verdict.detail


def test_expectation_that_nothing_answers_fails(attention):
    assert attention(expected='{"text": "a"}').status == "FAIL"


def test_failing_adapter_is_a_failed_file(attention):
    verdict = attention({"in.q": None})
    assert verdict.status == "FAIL"
    assert "KeyError" in verdict.detail


@pytest.mark.parametrize("change", [{"kind": "new"}, {"system": "new"}, {"system": "core"}, {"system": "../core"}])
def test_unknown_kind_or_system_is_unsupported(attention, change):
    assert attention(**change).status == "UNSUPPORTED"


def test_file_without_metadata_fails(attention):
    verdict = attention(kind=None)
    assert verdict.status == "FAIL"
    assert "lacks kind" in verdict.detail


def test_command_prints_a_line_for_each_file_and_the_counts(attention, monkeypatch, capsys):
    path = attention(kind="new").path
    monkeypatch.setattr("sys.argv", ["golden", str(path.parents[1])])
    assert command.main() == 0
    assert capsys.readouterr().out.splitlines()[-1] == "0 passed, 0 failed, 1 unsupported"
    attention()
    assert command.main() == 0
    line, last = capsys.readouterr().out.splitlines()
    assert line.split()[0] == "PASS"
    assert line.split()[2] == str(path)
    assert last == "1 passed, 0 failed, 0 unsupported"
    attention({"out.other": torch.zeros(1)})
    assert command.main() == 1
    assert capsys.readouterr().out.splitlines()[-1] == "0 passed, 1 failed, 0 unsupported"


def test_command_refuses_a_missing_folder(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr("sys.argv", ["golden", str(tmp_path / "none")])
    with pytest.raises(SystemExit) as exit_:
        command.main()
    assert exit_.value.code == 2
    assert "no such folder" in capsys.readouterr().err


def test_expected_texts_are_read_by_their_keys(attention):
    path = attention(expected='{"30": {"vocab": {"a": 0}}, "note": "b"}').path
    assert read(path).expected == {"expected.30.vocab": {"a": 0}, "expected.note": "b"}


@pytest.mark.parametrize(
    ("answer", "reference", "error"),
    [
        (torch.tensor([1.0, torch.inf]), torch.tensor([1.0, torch.inf]), 0.0),
        (torch.tensor([torch.nan]), torch.tensor([1.0]), torch.inf),
        (torch.zeros(2), torch.zeros(1, 2), torch.inf),
        (torch.tensor([3.0]), torch.tensor([1.0]), 1.0),
        (torch.tensor([2]), torch.tensor([1]), torch.inf),
        (3, torch.tensor(3), 0.0),
        (0.1, torch.tensor(0.1, dtype=torch.float64), 0.0),
        ({"a": [1, "b"]}, {"a": [1, "b"]}, 0.0),
        ({"a": 1, "c": 2}, {"a": 1}, torch.inf),
        ([1], [1, 2], torch.inf),
        (2.0, 1.0, 0.5),
        ("a", "b", torch.inf),
    ],
)
def test_distance(answer, reference, error):
    assert distance(answer, reference) == error
