"""The command line: exit codes, one clear line for bad input, JSON where a table is printed."""

from __future__ import annotations

import json
import math
import shutil
import sys
from pathlib import Path

import pytest
from transformers.utils import logging

from longwave import cli
from tests.training.tiny import write_run


@pytest.fixture
def longwave(monkeypatch, capfd):
    """Run a command in this process: exit code, standard output, standard error."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["longwave", *map(str, arguments)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as end:
            cli.main()
        return (end.value.code or 0, *capfd.readouterr())

    return run


@pytest.fixture
def refused(longwave):
    """The line on standard error with which a command is refused."""

    def run(*arguments):
        code, out, err = longwave(*arguments)
        assert code == 2
        assert out == ""
        assert "Traceback" not in err
        (line,) = err.splitlines()
        assert line.startswith("longwave: ")
        return line.removeprefix("longwave: ")

    return run


@pytest.fixture(scope="session")
def model(tmp_path_factory) -> Path:
    """The directory of a trained model."""
    from longwave.training import load_run, train

    folder = tmp_path_factory.mktemp("command_line")
    train(load_run(str(write_run(folder, tokens=128))), folder / "out")
    return folder / "out"


class TestUsage:
    def test_help_lists_the_verbs(self, longwave):
        code, out, _ = longwave("--help")
        assert code == 0
        for verb in ("demo", "train", "evaluate", "generate", "verify", "compare", "benchmark", "list"):
            assert verb in out

    @pytest.mark.parametrize(
        "arguments",
        [
            ("dance",),
            ("verify", "softmax", "--nonsense"),
            ("train",),
            ("verify", "softmax", "--longest", "long"),
            ("verify", "softmax", "--longest", "1"),
            ("generate", "x", "--max-new-tokens", "0"),
        ],
        ids=" ".join,
    )
    def test_wrong_usage_ends_with_code_2_and_no_traceback(self, longwave, arguments):
        code, out, err = longwave(*arguments)
        assert (code, out) == (2, "")
        assert err.startswith("Usage: ")
        assert "Traceback" not in err

    def test_no_verb_shows_the_help(self, longwave):
        code, out, err = longwave()
        assert code in (0, 2)
        assert "verify" in out + err


class TestErrors:
    def test_a_value_error_is_one_line_and_code_2(self, refused, monkeypatch):
        monkeypatch.setattr("longwave.training.load_run", _raiser(ValueError("what, where, what is legal")))
        assert refused("train", "x") == "what, where, what is legal"

    def test_a_run_that_fails_ends_with_code_1(self, longwave, monkeypatch):
        monkeypatch.setattr("longwave.training.load_run", _raiser(FloatingPointError("step 3: not finite")))
        assert longwave("train", "x") == (1, "", "longwave: step 3: not finite\n")

    def test_an_interruption_ends_with_code_130_and_no_traceback(self, longwave, monkeypatch):
        monkeypatch.setattr("longwave.training.load_run", _raiser(KeyboardInterrupt()))
        code, _, err = longwave("train", "x")
        assert code == 130
        assert "Traceback" not in err


def _raiser(error):
    def raises(*args, **kwargs):
        raise error

    return raises


class TestList:
    def test_json_names_every_mixer_and_preset(self, longwave):
        from longwave.mixers import available
        from longwave.training import preset_names

        code, out, _ = longwave("list", "--json")
        found = json.loads(out)
        assert code == 0
        assert [mixer["name"] for mixer in found["mixers"]] == list(available())
        assert [preset["name"] for preset in found["presets"]] == preset_names()
        assert all(mixer["title"] and mixer["state"] and mixer["cost"] for mixer in found["mixers"])

    def test_tables_name_them_too(self, longwave):
        code, out, _ = longwave("list")
        assert code == 0
        assert "softmax" in out
        assert "hale-small" in out


class TestVerify:
    def test_a_lawful_mixer_ends_with_code_0_and_its_lines_as_json(self, longwave):
        code, out, _ = longwave("verify", "softmax", "--longest", "33", "--json")
        found = json.loads(out)
        assert code == 0
        assert found["name"] == "softmax"
        assert found["passed"] is True
        assert {line["verdict"] for line in found["lines"]} == {"PASS"}
        assert {"P1", "P2", "P3", "P4", "P5"} <= {line["key"] for line in found["lines"]}

    def test_a_declared_failure_ends_with_code_0(self, longwave):
        code, out, _ = longwave("verify", "hale", "--set", "cache=published", "--longest", "33")
        verdicts = {line.split()[0]: line for line in out.splitlines() if line.startswith("P")}
        assert code == 0
        assert "DECLARED-FAIL" in verdicts["P3"]
        assert " FAIL" not in out

    def test_arguments_have_parts(self, longwave, refused):
        given = ("verify", "dwarf", "--set", "condition=K", "--set", "offsets.n_scales=3", "--longest", "9")
        assert longwave(*given)[0] == 0
        assert "a lattice has 1 to 20 scales" in refused("verify", "dwarf", "--set", "offsets.n_scales=21")

    def test_an_undeclared_failure_ends_with_code_1(self, longwave, monkeypatch):
        from longwave.mixers.hale import Hale

        monkeypatch.setattr(Hale, "step", lambda mixer, x, state: (x * 0, state))
        code, out, _ = longwave("verify", "hale", "--longest", "17")
        assert code == 1
        assert "FAIL" in out

    def test_an_unknown_mixer_is_refused_with_the_nearest(self, refused):
        line = refused("verify", "softmix")
        assert line.startswith("unknown mixer 'softmix' (did you mean 'softmax'?); legal: ")

    def test_an_unknown_argument_is_refused_with_the_nearest(self, refused):
        line = refused("verify", "softmax", "--set", "windw=3")
        assert line.startswith("mixer 'softmax' has no argument 'windw' (did you mean 'window'?); legal: ")

    def test_an_argument_out_of_range_is_refused(self, refused):
        assert refused("verify", "softmax", "--set", "window=0") == "softmax: window must be at least 1, got 0"

    def test_an_argument_without_a_value_is_refused(self, refused):
        assert refused("verify", "softmax", "--set", "window") == "--set 'window': expected name=value"

    def test_an_argument_of_another_kind_is_refused(self, refused):
        assert "window" in refused("verify", "softmax", "--set", "window=wide")

    def test_an_argument_that_is_not_yaml_is_refused(self, refused):
        assert "--set 'window=['" in refused("verify", "softmax", "--set", "window=[")

    def test_a_missing_class_is_refused(self, refused):
        assert "cannot be imported" in refused("verify", "no.such:Mixer")

    def test_a_directory_without_a_model_is_refused(self, refused, tmp_path):
        assert refused("verify", tmp_path).endswith("holds no config.json; expected the directory of a run or model")

    def test_arguments_for_a_directory_are_refused(self, refused, model):
        assert "its configuration cannot be changed by arguments" in refused("verify", model, "--set", "window=3")


class TestTrain:
    def test_a_run_ends_with_code_0_and_its_record_as_json(self, longwave, tmp_path):
        run = write_run(tmp_path, tokens=256)
        logging.enable_progress_bar()
        code, out, err = longwave("train", run, "--output", tmp_path / "out", "--json")
        record = json.loads(out)
        assert code == 0
        assert record.items() <= json.loads((tmp_path / "out" / "record.json").read_text()).items()
        assert "parameters" in err
        assert "shards" not in err, "a bar of transformers' own"

    def test_values_are_set_on_the_command_line(self, longwave, tmp_path):
        run = write_run(tmp_path, tokens=128)
        more = ("--set", "training.batch_size=2", "--set", "training.tokens=1")
        code, out, _ = longwave("train", run, "--output", tmp_path / "out", *more)
        assert code == 0
        assert "bits per byte" in out
        assert json.loads((tmp_path / "out" / "record.json").read_text())["tokens"] == 2 * 32

    def test_the_default_directory_is_named_after_the_run_file(self, longwave, tmp_path, monkeypatch):
        run = write_run(tmp_path, tokens=1)
        monkeypatch.chdir(tmp_path)
        assert longwave("train", run)[0] == 0
        assert (tmp_path / "runs" / "tiny" / "record.json").is_file()

    def test_a_missing_file_is_refused(self, refused, tmp_path):
        assert "no such file or preset; presets: " in refused("train", tmp_path / "none.yaml")

    def test_an_unknown_key_is_refused_with_the_nearest(self, refused, tmp_path):
        run = write_run(tmp_path, bach_size=3)
        line = refused("train", run, "--output", tmp_path / "out")
        assert line.startswith(f"{run}: training.bach_size: unknown key (did you mean 'batch_size'?); legal: ")
        assert not (tmp_path / "out").exists()

    def test_every_complaint_has_its_line(self, longwave, tmp_path):
        run = write_run(tmp_path, bach_size=3, seed=-1)
        code, _, err = longwave("train", run, "--output", tmp_path / "out")
        assert code == 2
        assert len(err.splitlines()) == 2
        assert "training.bach_size: unknown key" in err
        assert "training.seed: input should be" in err

    def test_a_run_directory_in_use_is_refused_and_left_alone(self, refused, tmp_path):
        run = write_run(tmp_path)
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "notes.txt").write_text("precious")
        line = refused("train", run, "--output", tmp_path / "out")
        assert line.endswith("out: the run directory is in use; choose another, remove it, or --resume")
        assert [path.name for path in (tmp_path / "out").iterdir()] == ["notes.txt"]

    def test_missing_text_is_refused_before_anything_is_written(self, refused, tmp_path):
        run = write_run(tmp_path)
        (tmp_path / "text.txt").unlink()
        assert "no such file" in refused("train", run, "--output", tmp_path / "out")
        assert not (tmp_path / "out").exists()


class TestEvaluate:
    def test_a_text_is_scored_whole(self, longwave, model):
        text = model.parent / "text.txt"
        code, out, _ = longwave("evaluate", model, "--data", text, "--sequence-length", 32, "--json")
        found = json.loads(out)
        assert code == 0
        assert found["bytes"] == text.stat().st_size == found["tokens"]
        assert found["bits_per_byte"] == pytest.approx(math.log2(found["perplexity"]))

    def test_the_batch_does_not_matter(self, longwave, model):
        text, scores = model.parent / "text.txt", []
        for size in (1, 7):
            arguments = ("--data", text, "--sequence-length", 64, "--batch-size", size, "--json")
            scores.append(json.loads(longwave("evaluate", model, *arguments)[1])["bits_per_byte"])
        assert scores[0] == pytest.approx(scores[1], rel=1e-6)

    def test_without_data_it_is_what_the_run_was_scored_on(self, longwave, model):
        code, out, _ = longwave("evaluate", model, "--json")
        found, record = json.loads(out), json.loads((model / "record.json").read_text())
        assert code == 0
        assert {name: found[name] for name in record["scores"]} == pytest.approx(record["scores"], rel=1e-6)
        assert longwave("evaluate", model, "--sequence-length", 16, "--json")[1] != out

    def test_without_data_and_run_file_it_is_refused(self, refused, model, tmp_path):
        shutil.copytree(model, tmp_path / "model")
        (tmp_path / "model" / "run.yaml").unlink()
        line = refused("evaluate", tmp_path / "model")
        assert line.endswith("model: holds no run.yaml that says what to score it on; give --data")

    def test_a_directory_without_a_model_is_refused(self, refused, tmp_path):
        assert "holds no config.json" in refused("evaluate", tmp_path, "--data", "embedded")

    def test_a_missing_text_is_refused(self, refused, model, tmp_path):
        assert "no such file; legal: embedded" in refused("evaluate", model, "--data", tmp_path / "none.txt")


class TestGenerate:
    def test_the_prompt_is_continued(self, longwave, model):
        code, out, _ = longwave("generate", model, "--prompt", "the quick", "--max-new-tokens", 12)
        assert code == 0
        assert out.startswith("the quick")

    def test_the_same_seed_says_the_same(self, longwave, model):
        arguments = ("generate", model, "--prompt", "fox ", "--max-new-tokens", 20)
        first, again, other = (longwave(*arguments, "--seed", seed)[1] for seed in (3, 3, 4))
        assert first == again != other

    def test_temperature_zero_takes_the_likeliest_token(self, longwave, model):
        arguments = ("generate", model, "--prompt", "fox ", "--max-new-tokens", 20, "--temperature", 0)
        code, out, err = longwave(*arguments, "--seed", 1)
        assert (code, err) == (0, "")
        assert longwave(*arguments, "--seed", 2)[1] == out

    def test_an_empty_prompt_begins_a_document(self, longwave, model):
        assert longwave("generate", model, "--max-new-tokens", 3)[0] == 0

    def test_all_tokens_may_be_kept(self, longwave, model):
        arguments = ("--max-new-tokens", 5, "--top-k", 0, "--top-p", 1)
        assert longwave("generate", model, "--prompt", "a", *arguments)[0] == 0

    def test_a_directory_without_a_model_is_refused(self, refused, tmp_path):
        line = refused("generate", tmp_path)
        assert line == f"{tmp_path}: holds no config.json; expected the directory of a run or model"
