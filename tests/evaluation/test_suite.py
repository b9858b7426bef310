"""The suite runs on a run's directory and on any model of transformers, and says all of it in JSON."""

from __future__ import annotations

import json
import sys
from datetime import datetime

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from longwave import cli
from longwave.data import build_tokenizer, tokenize
from longwave.evaluation import protocol_names, run_suite
from longwave.evaluation.suite import PROTOCOLS, mixer_offsets
from longwave.model import LongwaveConfig, LongwaveForCausalLM
from tests.training.tiny import write_run

SIZES = ("--sequence-length", 128, "--new-tokens", 3)


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer("byte", [])


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory, tokenizer):
    """The directory of a model that is not ours."""
    folder = tmp_path_factory.mktemp("gpt2")
    torch.manual_seed(0)
    GPT2LMHeadModel(GPT2Config(vocab_size=257, n_positions=192, n_embd=8, n_layer=1, n_head=1)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The directory of a finished run."""
    from longwave.training import load_run, train

    folder = tmp_path_factory.mktemp("run")
    train(load_run(str(write_run(folder, tokens=128))), folder / "out")
    return folder / "out"


@pytest.fixture
def longwave(monkeypatch, capsys):
    """Run a command in this process: exit code, standard output, standard error."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["longwave", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return (ended.value.code or 0, *capsys.readouterr())

    return run


def test_names_are_read_once_each():
    assert protocol_names("position, passkey,position") == ("position", "passkey")
    assert protocol_names("all") == PROTOCOLS
    assert protocol_names("passkey-seed,all") == ("passkey-seed", *PROTOCOLS)
    with pytest.raises(ValueError, match="unknown protocol 'paskey'; legal: passkey, distance, position, copying,"):
        protocol_names("passkey,paskey")
    with pytest.raises(ValueError, match="unknown protocol ''"):
        protocol_names("")


def test_a_document_says_who_was_asked_what_and_when(tokenizer):
    model = LongwaveForCausalLM(LongwaveConfig(vocab_size=257, hidden_size=8, num_hidden_layers=1, num_heads=1))
    stream = tokenize(["some text to read, again and again. " * 9], tokenizer)
    found = run_suite(model, tokenizer, stream, max_length=64, max_new_tokens=2, seed=5, label="mine")
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert (found["model"], found["seed"]) == ("mine", 5)
    assert found["parameters"] == sum(p.numel() for p in model.parameters())
    assert tuple(found["protocols"]) == PROTOCOLS
    for name, part in found["protocols"].items():
        assert datetime.fromisoformat(part["timestamp"]).tzinfo is not None
        assert part["aggregates"], name
        assert part["records"], name
        assert all(isinstance(value, float | int | None) for value in part["aggregates"].values())
    assert found["protocols"]["position"]["settings"]["row_length"] == 64
    assert found["protocols"]["copying"]["settings"]["max_new_tokens"] == 2


def test_the_default_length_is_what_the_positions_allow(gpt2, tokenizer):
    model = GPT2LMHeadModel.from_pretrained(gpt2)
    found = run_suite(model, tokenizer, "a text. " * 90, protocols=["passkey", "distance"])
    assert found["protocols"]["distance"]["settings"]["row_length"] == 192
    assert found["protocols"]["passkey"]["settings"]["max_length"] == 192
    with pytest.raises(ValueError, match="a length of 300 exceeds the model's 192 positions"):
        run_suite(model, tokenizer, protocols=["passkey"], max_length=300)
    with pytest.raises(ValueError, match="distance and position need a text"):
        run_suite(model, tokenizer, protocols=["passkey", "position"])


def test_the_same_seed_finds_the_same(gpt2, tokenizer):
    model = GPT2LMHeadModel.from_pretrained(gpt2)
    asked = {"protocols": ["temperatures"], "max_new_tokens": 5}
    one, again, other = (
        run_suite(model, tokenizer, seed=seed, **asked)["protocols"]["temperatures"]["records"] for seed in (1, 1, 2)
    )
    assert one == again != other


def test_numbers_that_json_cannot_say_are_none(gpt2, tokenizer):
    model = GPT2LMHeadModel.from_pretrained(gpt2)
    torch.nn.init.constant_(model.transformer.ln_f.weight, torch.nan)
    found = run_suite(model, tokenizer, "a text. " * 90, protocols=["passkey", "distance"])
    json.dumps(found, allow_nan=False)
    assert found["protocols"]["distance"]["aggregates"]["loss"] is None
    assert found["protocols"]["passkey"]["aggregates"]["accuracy"] == 0


def test_offsets_of_mixers_are_found():
    model = LongwaveForCausalLM(LongwaveConfig(vocab_size=9, hidden_size=8, num_hidden_layers=1, num_heads=1))
    assert mixer_offsets(model) == frozenset()
    model.blocks[0].mixers[0].distances = (0, 1, 4)
    assert mixer_offsets(model) == {0, 1, 4}


class TestCommand:
    def test_all_protocols_on_a_run(self, longwave, run, tmp_path):
        target = tmp_path / "found.json"
        code, out, _ = longwave("evaluate", run, "--protocols", "all", *SIZES, "--json", "--output", target)
        found = json.loads(out)
        assert code == 0
        assert found == json.loads(target.read_text())
        assert [path.name for path in tmp_path.iterdir()] == ["found.json"]
        assert tuple(found["protocols"]) == PROTOCOLS
        assert found["model"] == str(run)

    def test_all_protocols_on_a_model_of_transformers_as_tables(self, longwave, gpt2, run):
        text = run.parent / "text.txt"
        code, out, _ = longwave("evaluate", gpt2, "--protocols", "all", "--data", text, *SIZES)
        assert code == 0
        for name in (*PROTOCOLS, "chance", "coarse@0-16", "exact@few_shot", "top5@p75", "repeated4@greedy"):
            assert name in out

    def test_a_model_without_a_run_needs_data_for_what_reads_alone(self, longwave, gpt2):
        code, out, _ = longwave("evaluate", gpt2, "--protocols", "passkey", *SIZES, "--json")
        assert (code, list(json.loads(out)["protocols"])) == (0, ["passkey"])
        code, _, err = longwave("evaluate", gpt2, "--protocols", "distance", *SIZES)
        assert code == 2
        assert err.endswith("holds no run.yaml that says what to score it on; give --data\n")

    @pytest.mark.parametrize(
        ("arguments", "sentence"),
        [
            (("--protocols", "passkey,hellaswag"), "unknown protocol 'hellaswag'; legal: passkey, distance"),
            (("--protocols", ""), "unknown protocol ''"),
            (("--protocols", "passkey", "--sequence-length", 999), "a length of 999 exceeds the model's 192 positions"),
            (("--protocols", "passkey", "--sequence-length", 20), "passkey: the shortest sequence has"),
            (("--protocols", "passkey", "--output", "nowhere/x.json"), "expected a file in a directory that exists"),
            (("--protocols", "passkey", "--output", "."), "expected a file in a directory that exists"),
            (("--data", "embedded", "--output", "x.json"), "expected a file in a directory that exists, with --proto"),
        ],
        ids=lambda value: " ".join(map(str, value)) if isinstance(value, tuple) else "",
    )
    def test_bad_input_is_one_line(self, longwave, gpt2, monkeypatch, tmp_path, arguments, sentence):
        monkeypatch.chdir(tmp_path)
        code, out, err = longwave("evaluate", gpt2, *arguments)
        assert (code, out) == (2, "")
        (line,) = err.strip().splitlines()
        assert sentence in line
        assert not list(tmp_path.iterdir())
