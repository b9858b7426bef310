"""A run from its file to its directory."""

from __future__ import annotations

import io
import json
import math
import string
from functools import wraps

import numpy as np
import pytest
import torch
import yaml
from rich.console import Console
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer, set_seed
from transformers.utils import logging

from longwave.data import tokenize
from longwave.evaluation import score
from longwave.model import LongwaveForCausalLM
from longwave.training import load_run, prepare_data, train
from longwave.training.records import Record, body_parameters
from tests.training.tiny import STEPS, write_run


@pytest.fixture
def out(finished):
    return finished / "out"


@pytest.fixture
def run(finished):
    return load_run(str(finished / "tiny.yaml"))


@pytest.fixture
def record(out):
    return json.loads((out / "record.json").read_text())


@pytest.fixture
def metrics(out):
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def test_the_directory_holds_model_tokenizer_and_records(out):
    names = {path.name for path in out.iterdir()}
    assert names >= {"config.json", "model.safetensors", "tokenizer.json"}
    assert names >= {"run.yaml", "record.json", "metrics.jsonl", "scored_rows.npy"}


def test_run_yaml_is_the_resolved_run(out, run):
    assert load_run(str(out / "run.yaml")) == run
    assert yaml.safe_load((out / "run.yaml").read_text())["training"]["schedule"] == "cosine"


def test_the_record_says_what_was_trained_on_what(record, run):
    assert record["tokens"] == STEPS * 4 * 32
    assert record["seed"] == 7
    assert record["data_sha256"] == prepare_data(run).sha256
    assert record["device"] == "cpu"
    assert record["seconds"] > 0
    assert set(record["versions"]) >= {"longwave", "commit", "torch", "transformers", "python"}


def test_the_record_counts_parameters(record, out):
    model = AutoModelForCausalLM.from_pretrained(out)
    weights = load_file(out / "model.safetensors")
    assert record["parameters"] == sum(tensor.numel() for tensor in weights.values())
    assert record["body_parameters"] == record["parameters"] - 257 * 16 == body_parameters(model)


def test_the_recorded_score_is_that_of_the_saved_model_on_the_validation_text(record, out, run):
    model = AutoModelForCausalLM.from_pretrained(out)
    found = score(model, prepare_data(run).valid, 32)
    assert record["scores"] == pytest.approx(found.values(), rel=1e-6)
    assert np.load(out / "scored_rows.npy") == pytest.approx(found.rows, rel=1e-6)


def test_training_learns_something(record):
    assert record["scores"]["perplexity"] < 257 / 2


def test_metrics_hold_scores_by_step(metrics):
    assert [line["step"] for line in metrics if "bits_per_byte" in line] == [5, 10]
    assert all(line["tokens"] == line["step"] * 4 * 32 for line in metrics)


def test_metrics_hold_the_loss_of_a_step_that_is_scored_too(metrics):
    assert [line["step"] for line in metrics if "loss" in line] == [STEPS]


def test_the_last_score_of_the_metrics_is_the_recorded_one(metrics, record):
    assert [line for line in metrics if "bits_per_byte" in line][-1]["bits_per_byte"] == record["scores"][
        "bits_per_byte"
    ]


def test_the_auto_class_loads_the_trained_weights(out, run):
    loaded = AutoModelForCausalLM.from_pretrained(out).eval()
    assert type(loaded) is LongwaveForCausalLM
    again = LongwaveForCausalLM(run.model_configuration(257)).eval()
    again.load_state_dict(load_file(out / "model.safetensors"), strict=False)
    ids = torch.randint(0, 257, (2, 40))
    assert torch.equal(loaded(ids).logits, again(ids).logits)


def test_the_tokenizer_comes_with_the_model(out):
    tokenizer = AutoTokenizer.from_pretrained(out)
    stream = tokenize(["the quick brown"], tokenizer)
    assert tokenizer.decode(stream.ids[1:]) == "the quick brown"


def weights_of(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


@pytest.fixture
def spied(monkeypatch):
    """The weights of every model that a run saves, and its losses in evaluation mode."""
    saved = []
    original = LongwaveForCausalLM.save_pretrained
    monkeypatch.setattr(
        LongwaveForCausalLM,
        "save_pretrained",
        lambda model, directory, **kw: (saved.append(weights_of(model)), original(model, directory, **kw)),
    )
    return saved


def test_logits_before_saving_equal_logits_after_loading(spied, tmp_path):
    run = load_run(str(write_run(tmp_path)))
    train(run, tmp_path / "out")
    before = LongwaveForCausalLM(run.model_configuration(257)).eval()
    before.load_state_dict(spied[0])
    after = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    ids = torch.randint(0, 257, (2, 40))
    assert torch.equal(before(ids).logits, after(ids).logits)


def test_the_same_seed_gives_bitwise_the_same_weights(out, run, tmp_path):
    torch.manual_seed(1234)  # what came before does not matter
    train(run, tmp_path / "again")
    first, second = (load_file(folder / "model.safetensors") for folder in (out, tmp_path / "again"))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_plain_loop_computes_the_same_weights(tmp_path):
    settings = {"learning_rate": 0.01, "minimum_learning_rate": 0.001, "warmup_steps": 3, "seed": 5}
    settings |= {"weight_decay": 0.3, "betas": "[0.5, 0.7]", "clip": 0.1, "batch_size": 4, "tokens": 8 * 4 * 32}
    path = write_run(tmp_path, **settings)
    # Four rows, all of them in every step, so that their order does not matter.
    (tmp_path / "train.txt").write_text(string.printable[:64] * 2)
    changes = ["model.mixer_types=[softmax, softmax]", "model.mixer_kwargs=null", "model.dropout=0.0"]
    changes += [f"data.train={tmp_path / 'train.txt'}", f"data.validation={tmp_path / 'text.txt'}"]
    run = load_run(str(path), changes)
    train(run, tmp_path / "out")

    rows = prepare_data(run).train
    assert len(rows) == 4
    batch = {name: torch.stack([row[name] for row in (rows[i] for i in range(4))]) for name in rows[0]}
    set_seed(5)
    model = LongwaveForCausalLM(run.model_configuration(257)).train()
    groups = [
        {"params": [p for p in model.parameters() if p.dim() > 1], "weight_decay": 0.3},
        {"params": [p for p in model.parameters() if p.dim() == 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, betas=(0.5, 0.7))
    for step in range(1, 9):
        cosine = 0.001 + 0.009 * (1 + math.cos(math.pi * (step - 3) / 5)) / 2
        for group in groups:
            group["lr"] = 0.01 * step / 3 if step <= 3 else cosine
        logits = model(input_ids=batch["input_ids"], starts=batch["starts"]).logits
        nats = nn.functional.cross_entropy(logits.flatten(0, 1), batch["labels"][:, 1:].flatten())
        optimizer.zero_grad()
        nats.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        optimizer.step()
    for name, tensor in load_file(tmp_path / "out" / "model.safetensors").items():
        # A gradient of nearly zero may take the other sign: Adam then errs by a share of the rate.
        torch.testing.assert_close(tensor, model.state_dict()[name], rtol=0, atol=1e-4, msg=name)


def test_another_seed_gives_other_weights(out, tmp_path):
    run = load_run(str(write_run(tmp_path, seed=8)))
    train(run, tmp_path / "out")
    first, second = (load_file(folder / "model.safetensors") for folder in (out, tmp_path / "out"))
    assert not torch.equal(first["embeddings.tokens.weight"], second["embeddings.tokens.weight"])


def test_prepared_data_gives_the_same_weights(out, run, tmp_path):
    train(run, tmp_path / "again", data=prepare_data(run))
    first, second = (load_file(folder / "model.safetensors") for folder in (out, tmp_path / "again"))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_the_logged_loss_is_the_mean_over_predicted_tokens(tmp_path):
    write_run(tmp_path, tokens=8, batch_size=1, learning_rate=1e-9, minimum_learning_rate=0.0, warmup_steps=0)
    # Rows of two tokens predict one: a mean over tokens read would be half the true loss.
    run = load_run(str(tmp_path / "tiny.yaml"), ["data.sequence_length=2", "tokenizer=byte", "model.dropout=0.0"])
    train(run, tmp_path / "out")
    lines = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    (loss,) = (line["train_loss"] for line in lines if "train_loss" in line)
    assert loss == pytest.approx(math.log(257), rel=0.02)


@pytest.mark.parametrize("content", ["file", "directory with a file"])
def test_a_run_directory_in_use_is_refused_and_left_alone(run, tmp_path, content):
    output = tmp_path / "out"
    if content == "file":
        output.write_text("precious")
    else:
        output.mkdir()
        (output / "notes.txt").write_text("precious")
    with pytest.raises(ValueError, match="out: the run directory is in use; choose another, remove it, or --resume"):
        train(run, output)
    kept = output if content == "file" else output / "notes.txt"
    assert kept.read_text() == "precious"
    assert content == "file" or [path.name for path in output.iterdir()] == ["notes.txt"]


def test_an_empty_directory_is_not_in_use(run, tmp_path):
    (tmp_path / "out").mkdir()
    train(run.model_copy(update={"training": run.training.model_copy(update={"tokens": 1})}), tmp_path / "out")
    assert (tmp_path / "out" / "record.json").is_file()


def test_nothing_is_written_if_the_data_cannot_be_read(run, tmp_path):
    missing = run.model_copy(update={"data": run.data.model_copy(update={"train": str(tmp_path / "no.txt")})})
    with pytest.raises(ValueError, match="no such file"):
        train(missing, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.fixture
def poisoned(monkeypatch):
    """From its third step on, the gradient of the first norm is NaN; the weights as they were then."""
    weights = {}
    original = LongwaveForCausalLM.forward

    @wraps(original)
    def forward(model, *args, **kwargs):
        if model.training and kwargs.get("num_items_in_batch") is not None:
            forward.calls += 1
            if forward.calls == 3:
                weights.update(weights_of(model), model=model)
                model.blocks[0].mixer_norms[0].weight.register_hook(lambda gradient: gradient * float("nan"))
        return original(model, *args, **kwargs)

    forward.calls = 0
    monkeypatch.setattr(LongwaveForCausalLM, "forward", forward)
    return weights


def test_a_gradient_that_is_not_finite_stops_before_the_step(poisoned, run, tmp_path):
    with pytest.raises(FloatingPointError, match="step 3: the gradient is not finite; the step is not taken"):
        train(run, tmp_path / "out")
    model = poisoned.pop("model")
    assert isinstance(model, nn.Module)
    assert all(torch.equal(tensor, poisoned[name]) for name, tensor in model.state_dict().items())


def test_a_run_that_stops_gives_the_terminal_back(poisoned, run, tmp_path):
    console = Console(file=io.StringIO(), force_terminal=True)
    with pytest.raises(FloatingPointError):
        train(run, tmp_path / "out", console=console)
    shown = console.file.getvalue()
    hide, show = "\x1b[?25l", "\x1b[?25h"
    assert hide in shown
    assert shown.rfind(show) > shown.rfind(hide)


def test_a_run_without_console_is_silent(run, tmp_path, capfd):
    logging.enable_progress_bar()
    train(run, tmp_path / "out")
    assert capfd.readouterr() == ("", "")


def test_a_run_says_what_it_will_take_and_shows_its_progress(run, tmp_path):
    console = Console(file=io.StringIO(), width=300)
    record = train(run, tmp_path / "out", console=console)
    shown = console.file.getvalue()
    assert f"{record.parameters:,} parameters ({record.body_parameters:,} outside the embedding" in shown
    assert "1,280 tokens in 10 steps" in shown
    assert f"{STEPS}/{STEPS} steps" in shown


def test_a_run_that_stops_leaves_no_model(poisoned, run, tmp_path):
    with pytest.raises(FloatingPointError):
        train(run, tmp_path / "out")
    assert not (tmp_path / "out" / "config.json").exists()


def test_a_record_of_another_version_is_refused_in_a_sentence(run, tmp_path):
    (tmp_path / "record.json").write_text('{"parameters": 3}')
    with pytest.raises(ValueError, match=r"record\.json: not a record that this version writes"):
        Record.read(tmp_path, run)
