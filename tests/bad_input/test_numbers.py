"""Numbers that are none, or that no machine holds: refused by name, all at once, before anything is allocated."""

from __future__ import annotations

import math
import typing
from typing import get_args

import pytest
from pydantic import BaseModel

from longwave.benchmarks.settings import read_settings
from longwave.comparison.terms import Terms, read_terms
from longwave.data import MixedRows, build_tokenizer, vocabulary_size
from longwave.data.mixing import shares_of
from longwave.data.streaming import StreamedRows
from longwave.training import check_memory, load_run
from longwave.training.configuration import Run, check_run

NUMBERS = {math.nan: "finite", math.inf: "finite", -math.inf: "finite", True: "expected a number", 10**30: "64 bits"}


def kinds(hint) -> set:
    return {hint} | {kind for part in get_args(hint) for kind in kinds(part)}


def number_fields(section: type[BaseModel], path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """Paths of every setting of a run file that is a number or a list of them."""
    found = []
    for name, field in section.model_fields.items():
        inner = [k for k in kinds(field.annotation) if isinstance(k, type) and issubclass(k, BaseModel)]
        if inner and name != "train":
            found += number_fields(inner[0], (*path, name))
        elif {int, float} & kinds(field.annotation) and name != "published":
            found.append((*path, name))
    return found


FIELDS = number_fields(Run)
LISTS = {"betas": 2, "sizes": 1}


SMALL = {"hidden_size": 16, "num_heads": 2, "num_hidden_layers": 1}


def complaints(values) -> list[str]:
    values = {**values, "model": {**SMALL, **values.get("model", {})}}
    with pytest.raises(ValueError, match=r"^run\.yaml: ") as refusal:
        check_run(values, "run.yaml")
    return [line.removeprefix("run.yaml: ") for line in str(refusal.value).splitlines()]


def nested(path: tuple[str, ...], value) -> dict:
    name, *rest = path
    inner = nested(tuple(rest), value) if rest else value
    return {name: {"name": "copy", **inner} if name == "task" else inner}


def test_every_section_has_numbers():
    assert {path[0] for path in FIELDS} == {"model", "data", "training", "evaluation"}
    assert len(FIELDS) > 25


@pytest.mark.parametrize("path", FIELDS, ids=".".join)
@pytest.mark.parametrize("value", NUMBERS, ids=str)
def test_what_is_no_number_is_refused_by_path(path, value):
    given = [value] * LISTS[path[-1]] if path[-1] in LISTS else value
    found = [line for line in complaints(nested(path, given)) if line.startswith(".".join(path))]
    assert found
    assert NUMBERS[value] in found[0]


@pytest.mark.parametrize("path", [path for path in FIELDS if path[-1] not in LISTS], ids=".".join)
def test_text_that_spells_no_finite_number_is_refused(path):
    for text in ("nan", "inf", "-Infinity", "1e999"):
        assert [line for line in complaints(nested(path, text)) if line.startswith(".".join(path))]


@pytest.mark.parametrize("value", [math.nan, math.inf, 10**30, -(10**23)], ids=str)
@pytest.mark.parametrize(
    "path",
    [
        ("published", "x"),
        ("model", "mixer_kwargs", "hale", "window"),
        ("model", "mixer_kwargs", "hale", "gate"),
        ("model", "mixer_kwargs", "hale", "deep", "deeper"),
    ],
    ids=".".join,
)
def test_numbers_within_mappings_are_numbers_too(path, value):
    assert ".".join(path) in " ".join(complaints(nested(path, value)))


def test_a_weight_of_a_mix_is_named_by_its_place():
    for weight in (math.nan, True, 10**30):
        mix = [{"source": "a", "weight": 1}, {"source": "b", "weight": weight}]
        assert any(line.startswith("data.train.1.weight: expected a") for line in complaints({"data": {"train": mix}}))


def test_all_complaints_come_at_once():
    values = {
        "model": {
            "dropout": math.nan,
            "norm_eps": math.inf,
            "num_heads": True,
            "mixer_kwargs": {"hale": {"window": 10**23}},
        },
        "training": {"tokens": 10**30, "betas": [0.9, math.nan], "learning_rate": -1, "batch_size": 0},
        "data": {"sequence_length": 1.5},
        "published": {"x": math.nan},
    }
    assert sorted(line.split(":")[0] for line in complaints(values)) == sorted(
        [
            *("model.dropout", "model.norm_eps", "model.num_heads", "model.mixer_kwargs.hale.window"),
            *("training.tokens", "training.betas.1", "training.learning_rate", "training.batch_size"),
            *("data.sequence_length", "published.x"),
        ]
    )


HUGE = {  # of a run file, and what the sentence says
    "model.num_hidden_layers=1000000000": "model.num_hidden_layers: input should be less than or equal to 1024",
    "model.hidden_size=1000000000": "model.hidden_size: input should be less than or equal to 1048576",
    "model.intermediate_size=1000000000000": "model.intermediate_size: input should be less than or equal to",
    "model.max_position_embeddings=1000000000000": "model.max_position_embeddings: input should be less than or equal",
    "model.num_heads=1000000000000": "model.num_heads: input should be less than or equal to",
    "training.batch_size=1000000000000": "training.batch_size: input should be less than or equal to",
    "training.tokens=1000000000000000000": "training.tokens: input should be less than or equal to 1000000000000000",
    "training.seed=4294967296": "training.seed: input should be less than or equal to 4294967295",
    "training.warmup_steps=1000000000000": "training.warmup_steps: input should be less than or equal to",
    "evaluation.patience=1000000000000": "evaluation.patience: input should be less than or equal to",
    "data.task={name: copy, evaluation_rows: 1000000000}": "data.task.evaluation_rows: input should be less than or",
    "tokenizer=bpe:99999999999": "tokenizer: unknown tokenizer 'bpe:99999999999'; legal: byte",
}
TOO_LARGE = {  # what passes, but has no room in any memory
    "model.hidden_size=1048576": "training a model of",
    "model.max_position_embeddings=16777216 model.positions=learned model.hidden_size=4096": "training a model of",
    "tokenizer=bpe:1048576 model.hidden_size=524288": "training a model of",
    "training.batch_size=1000000000": "training.batch_size: 1,000,000,000 rows of data.sequence_length 256",
    "data.sequence_length=1000000000000000": "rows of data.sequence_length 1,000,000,000,000,000 at a time",
    "evaluation.batch_size=1000000000": "evaluation.batch_size: 1,000,000,000 rows",
    "data.streaming=true data.shuffle_buffer=1000000000000": "data.shuffle_buffer: 1,000,000,000,000 rows",
}


@pytest.mark.parametrize(("change", "sentence"), HUGE.items())
def test_a_size_that_no_machine_holds_is_refused_by_path(change, sentence):
    with pytest.raises(ValueError, match=r"^hale-small: ") as refusal:
        load_run("hale-small", [change])
    assert sentence in str(refusal.value)


@pytest.mark.parametrize(("changes", "sentence"), TOO_LARGE.items())
def test_what_has_no_room_is_refused_with_both_numbers(changes, sentence):
    run = load_run("hale-small", changes.split())
    with pytest.raises(
        ValueError, match=r"at least [\d,.]+ GiB, more than the [\d,.]+ GiB of (this machine|the GPU)"
    ) as e:
        check_memory(run)
    assert sentence in str(e.value)


def test_a_small_run_has_room():
    check_memory(load_run("hale-small"))


SPECS = ["bpe:", "bpe:0", "bpe:-1", "bpe:256", "bpe:1048577", "bpe:99999999999", "bpe:1e4", "bpe:257.0", "bpe: 300"]
SPECS += [
    "bpe:" + "9" * 5000,
    "char:5",
    "byte:257",
    "word:",
    "sentencepiece:",
    "sentencepiece:nowhere",
    "",
    " ",
    "Byte",
]


@pytest.mark.parametrize("kind", SPECS, ids=lambda kind: kind[:20])
def test_a_tokenizer_that_is_none_is_refused(kind):
    for make in (vocabulary_size, lambda kind: build_tokenizer(kind, ["text"])):
        with pytest.raises(ValueError, match=r"unknown tokenizer|no such file"):
            make(kind)


BENCHMARKS = [
    ({"threads": 10**6}, r"threads must be at most \d+, got 1,000,000"),
    ({"threads": 0}, "threads must be at least 1, got 0"),
    ({"threads": -1}, "threads must be at least 1, got -1"),
    ({"repeats": 10**9}, "repeats must be at most"),
    ({"batch_size": 10**12}, "batch_size must be at most"),
    ({"batch_size": 10**9}, "batch_size 1,000,000,000 times lengths 8,192"),
    ({"hidden_size": 10**9}, "hidden_size must be at most"),
    ({"hidden_size": 2**20}, "hidden_size 1,048,576: the projections of softmax: at least"),
    ({"num_heads": 10**9}, "num_heads must be at most"),
    ({"num_kv_heads": 10**30}, "num_kv_heads must be at most"),
    ({"lengths": "0"}, "--lengths holds '0'"),
    ({"lengths": "-1"}, "--lengths holds '-1'"),
    ({"lengths": "1e3"}, "--lengths holds '1e3'"),
    ({"lengths": "nan"}, "--lengths holds 'nan'"),
    ({"lengths": ","}, "--lengths is empty"),
    ({"lengths": "10,10"}, "--lengths names '10' twice"),
    ({"lengths": "1000000000000"}, "batch_size 1 times lengths 1,000,000,000,000: rows of 512 channels: at least"),
    ({"lengths": "9" * 5000}, "no machine holds so many tokens"),
    ({"dtype": "int8"}, "unknown dtype 'int8'"),
    ({"device": "tpu"}, "unknown device 'tpu'"),
    ({"passes": "back"}, "unknown pass 'back'"),
    ({"backend": "c"}, "unknown backend 'c'"),
]


@pytest.mark.parametrize(("changes", "sentence"), BENCHMARKS, ids=lambda value: str(value)[:40])
def test_an_option_of_a_benchmark_is_refused_by_name(changes, sentence):
    with pytest.raises(ValueError, match=sentence):
        read_settings("mixers", **changes)


COMPARISONS = [
    ({"seeds": 10**9}, "--seeds must be from 1 to 1,000 runs of each arm, got 1,000,000,000"),
    ({"seeds": 0}, "--seeds must be from 1"),
    ({"seeds": 10**30}, "--seeds must be from 1"),
    ({"overrides": [("training.seed", 2**32 - 2)]}, "--seeds counts from training.seed 4294967294 beyond 4294967295"),
    ({"jobs": 10**6}, "--jobs must be from 1 to 1,024, got 1,000,000"),
    ({"jobs": 0}, "--jobs must be from 1"),
    ({"tokens": 10**30}, "training.tokens: expected a number of at most 64 bits"),
    ({"tokens": 10**18}, "training.tokens: input should be less than or equal to"),
    ({"tokens": 0}, "training.tokens: input should be greater than or equal to 1"),
    ({"parameters": 10**18}, "--parameters 1,000,000,000,000,000,000: at least"),
    ({"rates": "nan"}, "--rates: nan is not"),
    ({"rates": "inf"}, "--rates: inf is not"),
    ({"rates": "-0.1"}, "--rates: -0.1 is not"),
    ({"rates": "0.1;0.2"}, "--rates holds '0.1;0.2'"),
    ({"rates": "0.001,0.002", "trial_tokens": 10**30}, "--trial-tokens must be at most"),
    ({"budget": ""}, "unknown budget ''"),
    ({"budget": "nonsense"}, "unknown budget 'nonsense'"),
    ({"overrides": [("training.batch_size", 10**9)]}, "softmax: training.batch_size: 1,000,000,000 rows"),
    ({"overrides": [("model", 3)]}, "model: input should be a valid dictionary"),
    ({"overrides": [("model.mixer_kwargs", 3)]}, "mixer_kwargs"),
    ({"overrides": [("model.mixer_kwargs", {"softmax": 3})]}, "softmax must map arguments to values, got 3"),
]


@pytest.mark.parametrize(("changes", "sentence"), COMPARISONS, ids=lambda value: str(value)[:40])
def test_a_term_of_a_comparison_is_refused_by_name(changes, sentence):
    overrides = changes.get("overrides", [])
    with pytest.raises(ValueError, match=sentence):
        read_terms(["softmax", "hale"], overrides, **{k: v for k, v in changes.items() if k != "overrides"})


def test_seeds_of_terms_are_checked_too():
    arms = read_terms(["softmax", "hale"]).arms
    with pytest.raises(ValueError, match=r"--seeds counts from training\.seed 4294967296"):
        Terms(arms, seeds=(2**32,))


@pytest.mark.parametrize("weights", [[1.0, math.nan], [1.0, math.inf], [1.0, 0.0], [1.0, -1.0]], ids=str)
def test_a_weight_is_named_by_its_number(weights):
    with pytest.raises(ValueError, match="weight 2 of 2: weights must be positive and finite"):
        shares_of(weights)


@pytest.mark.parametrize("weights", [[1.0, 1e-9], [1e300, 1.0], [1.7e308, 5e-324], [0.123456789, 0.987654321]], ids=str)
def test_weights_whose_order_hardly_repeats_are_refused_at_once(weights):
    class Rows:
        def __len__(self):
            return 10**9

    with pytest.raises(ValueError, match="of a mix need more than 4,194,304 rows until their order repeats"):
        MixedRows([Rows(), Rows()], weights)


def test_the_seed_of_streamed_rows_is_named():
    with pytest.raises(ValueError, match="seed must not be negative, got -1"):
        StreamedRows([["a"]], [1], typing.cast("typing.Any", None), 8, shuffle_buffer=1, seed=-1)
