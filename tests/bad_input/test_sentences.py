"""Bad input, all of it: one clear sentence, exit code 2, no traceback, nothing written."""

from __future__ import annotations

import errno
import importlib
import json
import os
import shutil
from pathlib import Path

import pytest

SETS = {  # --set of a run file, and what the sentence says
    "model.hidden_size=33": "hidden_size 33 is not divisible by num_heads 2",
    "model.hidden_size=0": "hidden_size must be at least 1, got 0",
    "model.hidden_size=wide": "model.hidden_size: input should be a valid integer",
    "model.num_heads=0": "num_heads must be at least 1, got 0",
    "model.num_heads=-2": "num_heads must be at least 1, got -2",
    "model.num_hidden_layers=3": "mixer_types has 2 entries for num_hidden_layers 3",
    "model.num_hidden_layers=0": "num_hidden_layers must be at least 1, got 0",
    "model.num_hidden_layers=two": "model.num_hidden_layers: input should be a valid integer",
    "model.intermediate_size=0": "intermediate_size must be at least 1, got 0",
    "model.dropout=1.0": "dropout must be below 1, got 1.0",
    "model.dropout=-0.1": "dropout must not be negative, got -0.1",
    "model.dropout=some": "model.dropout",
    "model.norm=batch_norm": "unknown norm 'batch_norm'; legal: layer_norm, rms_norm",
    "model.norm_placement=middle": "unknown norm_placement 'middle'; legal: pre, post",
    "model.norm_eps=-1.0": "norm_eps must not be negative, got -1.0",
    "model.feed_forward=relu": "unknown feed_forward 'relu'; legal: gelu, swiglu, none",
    "model.positions=rotary": "unknown positions 'rotary'; legal: none, learned, sinusoidal",
    "model.initializer_range=-0.1": "initializer_range must not be negative",
    "model.max_position_embeddings=0": "max_position_embeddings must be at least 1, got 0",
    "model.tie_word_embeddings=maybe": "model.tie_word_embeddings: input should be a valid boolean",
    "model.layers=3": "model.layers: unknown key",
    "model.hidden_sise=3": "did you mean 'hidden_size'?",
    "model.vocab_size=3": "model.vocab_size: unknown key",
    "model.mixer_types=[hale]": "mixer_types has 1 entries for num_hidden_layers 2",
    "model.mixer_types=[hale, sofmax]": "unknown mixer 'sofmax' (did you mean 'softmax'?)",
    "model.mixer_types=[hale, 'no.module:Mixer']": "cannot be imported: No module named 'no'",
    "model.mixer_types=[hale, 'json:loads']": "is not a subclass of longwave.mixers.TokenMixer",
    "model.mixer_types=[hale, 'json:Nothing']": "cannot be imported",
    "model.mixer_types=[hale, 3]": "mixer_types holds 3, expected labels",
    "model.mixer_types=5": "model.mixer_types",
    "model.mixer_kwargs.hale.window=0": "hale needs window >= 1",
    "model.mixer_kwargs.hale.window=wide": "window: input should be a valid integer",
    "model.mixer_kwargs.hale.window=1.5": "window: input should be a valid integer",
    "model.mixer_kwargs.hale.num_levels=-1": "num_levels >= 0",
    "model.mixer_kwargs.hale.chunk_size=0": "chunk_size >= 1",
    "model.mixer_kwargs.hale.gate=2.0": "gate must be 'learned' or a number in [0, 1], got 2.0",
    "model.mixer_kwargs.hale.gate=open": "mixer 'hale': gate",
    "model.mixer_kwargs.hale.gate_init=one": "mixer 'hale': gate_init",
    "model.mixer_kwargs.hale.cache=none": "mixer 'hale': cache",
    "model.mixer_kwargs.hale.windw=3": "has no argument 'windw' (did you mean 'window'?)",
    "model.mixer_kwargs.hale.hidden_size=3": "has no argument 'hidden_size'",
    "model.mixer_kwargs.hale=3": "mixer_kwargs.hale must map arguments to values, got 3",
    "model.mixer_kwargs.softmax.window=0": "softmax: window must be at least 1, got 0",
    "model.mixer_kwargs.softmax.num_kv_heads=3": "num_heads 2 is not a multiple of num_kv_heads 3",
    "model.mixer_kwargs.softmax.num_kv_heads=0": "is not a multiple of num_kv_heads 0",
    "model.mixer_kwargs.softmax.rotary_base=high": "rotary_base: input should be a valid number",
    "model.mixer_kwargs.dwarf.window=3": "mixer_kwargs names 'dwarf', which no layer uses; used: hale, softmax",
    "data.train=nowhere.txt": "nowhere.txt: ",
    "data.train=3": "data.train",
    "data.validation=nowhere.txt": "nowhere.txt: ",
    "data.sequence_length=0": "data.sequence_length: input should be greater than or equal to",
    "data.sequence_length=many": "data.sequence_length: input should be a valid integer",
    "data.sequence_lenght=3": "did you mean 'sequence_length'?",
    "data.task=mqar": "data.task: input should be",
    "data.task={name: mqar}": "data.task: a task makes its own rows: leave data.train at embedded, got ",
    "data.task={name: passkey}": "data.task.name: input should be 'mqar' or 'copy', got 'passkey'",
    "data.task={sizes: [4]}": "data.task.name: field required",
    "data.task={name: mqar, pairs: 4}": "data.task.pairs: unknown key; legal: name, sizes, vocabulary, stage_rows",
    "data.task={name: mqar, size: [4]}": "data.task.size: unknown key (did you mean 'sizes'?)",
    "data.task={name: mqar, sizes: []}": "data.task.sizes: list should have at least 1 item",
    "data.task={name: mqar, sizes: 4}": "data.task.sizes: input should be a valid list, got 4",
    "data.task={name: mqar, sizes: [0]}": "data.task.sizes.0: input should be greater than or equal to 1, got 0",
    "data.task={name: mqar, sizes: [8, 4]}": "data.task.sizes: sizes must ascend, got [8, 4]",
    "data.task={name: mqar, sizes: [4, 4]}": "data.task.sizes: sizes must ascend, got [4, 4]",
    "data.task={name: mqar, sizes: [200]}": "data.task: 200 pairs need a vocabulary of at least 402, got 256",
    "data.task={name: mqar, vocabulary: 33}": "data.task.vocabulary: input should be a multiple of 2, got 33",
    "data.task={name: mqar, vocabulary: 2}": "data.task.vocabulary: input should be greater than or equal to 4",
    "data.task={name: mqar, vocabulary: 2000000}": "data.task.vocabulary: input should be less than or equal to",
    "data.task={name: mqar, power: 0}": "data.task.power: input should be greater than 0, got 0",
    "data.task={name: mqar, power: .nan}": "data.task.power: expected a finite number, got nan",
    "data.task={name: mqar, stage_rows: -1}": "data.task.stage_rows: input should be greater than or equal to 0",
    "data.task={name: mqar, evaluation_rows: 0}": "data.task.evaluation_rows: input should be greater than or equal to",
    "tokenizer=bites": "unknown tokenizer 'bites'; legal: byte",
    "tokenizer=bpe": "'bpe'",
    "tokenizer=bpe:10": "'bpe:10'",
    "tokenizer=bpe:many": "'bpe:many'",
    "tokenizer=3": "tokenizer",
    "training.tokens=0": "training.tokens: input should be greater than or equal to 1, got 0",
    "training.tokens=all": "training.tokens: input should be a valid integer",
    "training.batch_size=0": "training.batch_size: input should be greater than or equal to 1, got 0",
    "training.batch_size=1.5": "training.batch_size: input should be a valid integer",
    "training.accumulation=0": "training.accumulation: input should be greater than or equal to 1",
    "training.accumulation=3": "training.batch_size 8 is not divisible by 1 devices times 3 parts",
    "training.optimizer=sgd": "training.optimizer: input should be 'adamw' or 'muon', got 'sgd'",
    "training.learning_rate=0": "training.learning_rate: input should be greater than 0, got 0",
    "training.learning_rate=-1": "training.learning_rate: input should be greater than 0, got -1",
    "training.learning_rate=.nan": "training.learning_rate",
    "training.learning_rate=.inf": "training.learning_rate",
    "training.learning_rate=fast": "training.learning_rate: input should be a valid number",
    "training.minimum_learning_rate=1": "minimum_learning_rate 1.0 is above learning_rate 0.001",
    "training.minimum_learning_rate=-1": "training.minimum_learning_rate: input should be greater than or equal to 0",
    "training.warmup_steps=-1": "training.warmup_steps: input should be greater than or equal to 0",
    "training.schedule=step": "training.schedule: input should be 'cosine', 'linear' or 'constant', got 'step'",
    "training.weight_decay=-1": "training.weight_decay: input should be greater than or equal to 0",
    "training.betas=[0.9]": "training.betas",
    "training.betas=[0.9, 1.0]": "training.betas.1: input should be less than 1",
    "training.betas=0.9": "training.betas",
    "training.clip=0": "training.clip: input should be greater than 0",
    "training.precision=float16": "training.precision: input should be 'float32' or 'bfloat16', got 'float16'",
    "training.device=tpu": "training.device: input should be 'auto', 'cpu' or 'cuda', got 'tpu'",
    "training.device=cuda": "cuda was asked for, but PyTorch finds no CUDA device",
    "training.carry_state=perhaps": "training.carry_state: input should be a valid boolean",
    "training.save_every_steps=-1": "training.save_every_steps: input should be greater than or equal to 0",
    "training.keep_checkpoints=0": "training.keep_checkpoints: input should be greater than or equal to 1",
    "training.seed=-1": "training.seed: input should be greater than or equal to 0",
    "training.seed=lucky": "training.seed: input should be a valid integer",
    "training.epochs=3": "training.epochs: unknown key",
    "evaluation.every_steps=-1": "evaluation.every_steps: input should be greater than or equal to 0",
    "evaluation.batch_size=0": "evaluation.batch_size: input should be greater than or equal to 1",
    "evaluation.patience=0": "evaluation.patience: input should be greater than or equal to 1",
    "evaluation.samples=Once": "evaluation.samples",
    "evaluation.metric=loss": "evaluation.metric: unknown key",
    "trainig.tokens=3": "trainig: unknown key (did you mean 'training'?)",
    "training=3": "training: input should be a valid dictionary",
    "model=[]": "model: input should be a valid dictionary",
    "description=[1]": "description: input should be a valid string",
    "published=high": "published: input should be a valid dictionary",
    "tokens": "expected name=value",
    "=3": "expected name=value",
    "training.tokens=[": "not YAML: line 1, column 2",
    "tokenizer.kind=byte": "'tokenizer' is no section",
}
TASKS = {  # --set of a run file of a task, and what the sentence says
    "data.validation=other.txt": "data.task: a task makes its own rows: leave data.validation at None, got 'other.txt'",
    "data.streaming=true": "data.task: a task makes its own rows: leave data.streaming at False, got True",
    "data.sequence_length=15": "data.task: mqar of size 4 needs a sequence_length of 16, got 15",
    "data.task={name: copy, sizes: [16]}": "data.task: copy of size 16 needs a sequence_length of 33, got 32",
    "tokenizer=bpe:300": "tokenizer: a task has a tokenizer of its own: leave tokenizer at byte, got 'bpe:300'",
    "training.carry_state=true": "training: carry_state needs rows that continue each other",
}
FILES = {  # text of a run file, and what the sentence says
    "model: [": "not YAML",
    "- model": "a run file is a mapping of sections, got list",
    "byte": "a run file is a mapping of sections, got str",
    "training: {seed: 1, seed: 2}": "key 'seed' is given twice",
    "model: {hidden_size: 16, num_heads: 3}\ntraining: {batch_size: 0}": "training.batch_size",
}
COMMANDS = {  # arguments in which {model} is a directory that `damage` has worked on
    "verify nothing": "unknown mixer 'nothing'; legal: cumulative_mean, dwarf",
    "verify softmax --backend cuda": "unknown backend 'cuda'; legal: auto, naive, torch, numba, triton",
    "verify softmax --set window": "--set 'window': expected name=value",
    "verify softmax --set window=wide": "window: input should be a valid integer",
    "train nowhere.yaml": "nowhere.yaml: no such file or preset; presets: comparison, copy, dwarf-a-13m",
    "train hale-small --resume --output {fresh}": "there is no run to resume",
    "train hale-small --output {model}": "the run directory is in use",
    "train hale-small --resume --output {model}": "in the run begun",
    "evaluate {model} --data nowhere.txt": "nowhere.txt: ",
    "evaluate {fresh} --data embedded": "holds no config.json",
    "generate {fresh}": "holds no config.json",
    "generate {model} --prompt {long}": "exceeds the 64 learned positions",
    "compare softmax": "a comparison needs at least two arms",
    "compare softmax softmax": "'softmax' is named twice",
    "compare softmax sofmax": "unknown mixer 'sofmax' (did you mean 'softmax'?)",
    "compare softmax nowhere.yaml": "nowhere.yaml: no such file or preset",
    "compare softmax hale --base nowhere.yaml": "nowhere.yaml: no such file or preset",
    "compare softmax hale --budget money": "unknown budget 'money'; legal: parameters, operations, seconds, tokens",
    "compare softmax hale --budget seconds --jobs 2": "--budget seconds needs --jobs 1",
    "compare softmax hale --parameters 10": "10 parameters outside the embedding are out of reach: the nearest is",
    "compare softmax hale --rates fast": "--rates holds 'fast'; expected numbers such as 0.001,0.002",
    "compare softmax hale --rates 0.0": "--rates: 0.0 is not above 0",
    "compare softmax hale --trial-tokens 3": "--trial-tokens goes with at least two --rates",
    "compare softmax hale --budget tokens --parameters 9": "--budget tokens takes sizes as they are",
    "compare softmax hale --set evaluation.every_steps=1 --set evaluation.patience=1": "ends runs early",
    "compare softmax hale-small --set model.hidden_size=32": "hale-small has a model of its own; set it there",
    "compare softmax hale --task knapsack": "unknown task 'knapsack'; legal: mqar, copy",
    "compare softmax hale --task mqar --data x.txt": "--task has data of its own",
    "compare softmax hale --data nowhere.txt": "nowhere.txt: ",
    "compare softmax hale --set hale.windw=3": "has no argument 'windw' (did you mean 'window'?)",
    "compare softmax hale --set data.sequence_lenght=3": "did you mean 'sequence_length'?",
    "benchmark naps": "unknown subject 'naps'; legal: mixers, ops, decode",
    "benchmark mixers --mixers sofmax": "unknown mixer 'sofmax' (did you mean 'softmax'?)",
    "benchmark mixers --passes sideways": "unknown pass 'sideways' of mixers; legal: forward, forward_backward, decode",
    "benchmark ops --passes decode": "unknown pass 'decode' of ops; legal: forward, forward_backward",
    "benchmark decode --lengths many": "--lengths holds 'many'; expected whole numbers of tokens, at least 1",
    "benchmark mixers --lengths 1024,0": "--lengths holds '0'; expected whole numbers of tokens, at least 1",
    "benchmark mixers --lengths=-8": "--lengths holds '-8'; expected whole numbers of tokens, at least 1",
    "benchmark mixers --hidden-size 33": "hidden_size 33 is not divisible by num_heads 8",
    "benchmark mixers --num-heads 0": "num_heads must be at least 1, got 0",
    "benchmark mixers --num-kv-heads 3": "num_heads 8 is not a multiple of num_kv_heads 3",
    "benchmark mixers --batch-size 0": "batch_size must be at least 1, got 0",
    "benchmark mixers --repeats 0": "repeats must be at least 1, got 0",
    "benchmark mixers --dtype float16": "unknown dtype 'float16'; legal: float32, bfloat16, float64",
    "benchmark mixers --device tpu": "unknown device 'tpu'; legal: cpu, cuda",
    "benchmark mixers --backend fortran": "unknown backend 'fortran'; legal: auto, naive, torch, numba, triton",
    "benchmark mixers --mixers hale --backend triton": "has no backend 'triton'; legal: auto, naive, torch",
    "benchmark ops --backend triton": "has no backend 'triton'; legal: auto, naive, torch",
    "benchmark ops --ops sorting": "unknown op 'sorting'; legal: block_means",
    "benchmark ops --mixers hale": "--mixers goes with mixers and decode",
    "benchmark ops --set block_means.window=3": "block_means.window: no such argument; legal: num_levels",
    "benchmark ops --set block_means.num_levels=two": "block_means.num_levels: expected int, got 'two'",
    "benchmark mixers --mixers hale --set dwarf.window=3": "label.argument=value with a label of softmax, hale",
    "benchmark mixers --set window=3": "--set window: expected label.argument=value",
    "benchmark mixers --set hale.window": "--set 'hale.window': expected name=value",
    "benchmark mixers --set hale.window=wide": "window: input should be a valid integer",
    "benchmark mixers --set hale.windw=3": "has no argument 'windw' (did you mean 'window'?)",
    "benchmark mixers --breakdown": "a breakdown takes one mixer apart",
}
DAMAGE = {  # what is done to a model directory, and what `generate` says of it
    "weights removed": "holds no weights in safetensors",
    "weights truncated": "the model cannot be loaded",
    "weights of another model": "the weights belong to another model",
    "weights of other sizes": "the weights belong to another model: blocks.0.feed_forward.",
    "configuration truncated": "cannot be loaded",
    "configuration of another kind": "cannot be loaded",
    "tokenizer removed": "the tokenizer cannot be loaded",
    "tokenizer truncated": "the tokenizer cannot be loaded",
    "tokenizer of another model": "the tokenizer has 300 tokens, the model's embedding 257 rows",
    "pickled weights": "holds no weights in safetensors; other formats are not loaded",
}


@pytest.mark.parametrize(("change", "sentence"), SETS.items())
def test_a_bad_value_is_refused_by_name(refused, run_file, tmp_path, change, sentence):
    error = refused("train", run_file, "--output", tmp_path / "out", "--set", change)
    assert sentence in error
    assert error.splitlines()[-1].startswith(("longwave: ", str(run_file)))


@pytest.mark.parametrize(("change", "sentence"), TASKS.items())
def test_what_does_not_go_with_a_task_is_refused(refused, run_file, tmp_path, change, sentence):
    task = ("--set", "data.train=embedded", "--set", "data.task={name: mqar, sizes: [2, 4]}", "--set", change)
    assert sentence in refused("train", run_file, "--output", tmp_path / "out", *task)


def test_a_full_disk_is_one_sentence_too(refused, run_file, tmp_path, monkeypatch):
    def full(path, text):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    monkeypatch.setattr(importlib.import_module("longwave.training.train"), "replace_text", full)
    error = refused("train", run_file, "--output", tmp_path / "out")
    assert error.splitlines()[-1].startswith("longwave: [Errno 28] No space left on device")


@pytest.mark.parametrize(("text", "sentence"), FILES.items())
def test_a_bad_file_is_refused_by_name(refused, tmp_path, text, sentence):
    (tmp_path / "bad.yaml").write_text(text)
    error = refused("train", tmp_path / "bad.yaml", "--output", tmp_path / "out")
    assert "bad.yaml: " in error
    assert sentence in error


@pytest.mark.parametrize(("command", "sentence"), COMMANDS.items())
def test_a_bad_command_is_refused(refused, model, tmp_path, command, sentence):
    words = {"model": model, "fresh": tmp_path / "fresh", "long": "x" * 100}
    assert sentence in refused(*(word.format(**words) for word in command.split()))


@pytest.mark.parametrize(("damage", "sentence"), DAMAGE.items())
def test_a_damaged_model_is_refused(refused, model, tmp_path, damage, sentence):
    directory = tmp_path / "model"
    shutil.copytree(model, directory)
    DAMAGERS[damage](directory)
    assert sentence in refused("generate", directory)


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _change(path: Path, **values) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def _other_tokenizer(directory: Path) -> None:
    from longwave.data import build_tokenizer

    build_tokenizer("bpe:300", ["abc " * 50, *(f"{i} times {i}" for i in range(900))]).save_pretrained(directory)


def _pickle_weights(directory: Path) -> None:
    (directory / "model.safetensors").rename(directory / "pytorch_model.bin")


DAMAGERS = {
    "weights removed": lambda d: (d / "model.safetensors").unlink(),
    "weights truncated": lambda d: _truncate(d / "model.safetensors"),
    "weights of another model": lambda d: _change(d / "config.json", mixer_types=["softmax", "hale"]),
    "weights of other sizes": lambda d: _change(d / "config.json", intermediate_size=48),
    "configuration truncated": lambda d: _truncate(d / "config.json"),
    "configuration of another kind": lambda d: _change(d / "config.json", model_type="unheard"),
    "tokenizer removed": lambda d: [path.unlink() for path in d.glob("tokenizer*")],
    "tokenizer truncated": lambda d: _truncate(d / "tokenizer.json"),
    "tokenizer of another model": _other_tokenizer,
    "pickled weights": _pickle_weights,
}
