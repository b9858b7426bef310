"""`longwave compare`, as a shell runs it."""

from __future__ import annotations

import json
import sys

import pytest

from longwave import cli


@pytest.fixture
def compare(monkeypatch, capsys, base, tmp_path, all_pass):
    def run(*arguments) -> tuple[int, str, str]:
        command = ["longwave", "compare", *arguments, "--base", str(base), "--output", str(tmp_path / "out")]
        monkeypatch.setattr(sys, "argv", command)
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return ended.value.code or 0, *capsys.readouterr()

    return run


def test_prints_the_ranking_and_says_before_what_it_will_take(compare):
    code, out, err = compare("softmax", "hale", "--seeds", "2")
    assert code == 0
    assert "Equal parameters, 2 seeds" in out
    assert "tokens/s" in err
    assert "4 runs to train, about " in err
    assert compare("softmax", "hale", "--seeds", "2")[1] == out, "what is done already is not done again"


def test_prints_one_json_document(compare):
    code, out, _ = compare("softmax", "hale", "--seeds", "1", "--json")
    assert code == 0
    assert {run["arm"] for run in json.loads(out)["runs"]} == {"softmax", "hale"}


def test_a_plan_trains_nothing(compare, tmp_path):
    code, out, err = compare("softmax", "hale", "--plan", "--rates", "0.01,0.02", "--parameters", "12000")
    assert (code, out) == (0, "")
    assert "softmax at equal parameters: 12,0" in err
    assert "in all 4 trials of rates" in err
    assert not (tmp_path / "out" / "comparison.json").exists()


def test_the_size_and_the_data_can_be_chosen(compare, tmp_path):
    (tmp_path / "other.txt").write_text("a rose is a rose\n" * 400)
    more = ("--data", str(tmp_path / "other.txt"), "--tokens", "256", "--seeds", "1", "--set", "hale.window=4")
    code, out, _ = compare("softmax", "hale", *more, "--json")
    report = json.loads(out)
    assert code == 0
    assert {run["record"]["tokens"] for run in report["runs"]} == {256}
