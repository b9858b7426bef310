"""The run file: everything checked at once, every complaint a sentence."""

from __future__ import annotations

import re

import pytest
import yaml

from longwave.model import LongwaveForCausalLM
from longwave.training import Run, load_run, preset_names

TINY = {"model": {"hidden_size": 16, "num_hidden_layers": 1, "num_heads": 2, "mixer_types": ["hale"]}}


@pytest.fixture
def complaints(tmp_path):
    """The sentences with which a run file is refused, without the file's name."""

    def of(text, overrides=()):
        path = tmp_path / "run.yaml"
        path.write_text(text if isinstance(text, str) else yaml.safe_dump(text))
        with pytest.raises(ValueError, match=r".") as error:
            load_run(str(path), overrides)
        assert type(error.value) is ValueError
        return [line.removeprefix(f"{path}: ") for line in str(error.value).splitlines()]

    return of


@pytest.fixture
def accepted(tmp_path):
    """The run that a run file describes."""

    def of(text, overrides=()):
        path = tmp_path / "run.yaml"
        path.write_text(text if isinstance(text, str) else yaml.safe_dump(text))
        return load_run(str(path), overrides)

    return of


class TestLegal:
    @pytest.mark.parametrize("name", preset_names())
    def test_every_preset_loads_and_says_what_it_is(self, name):
        assert load_run(name).description

    def test_there_are_presets(self):
        assert len(preset_names()) >= 2

    def test_an_empty_file_is_the_default_run(self, accepted):
        assert accepted("") == Run()

    def test_values_reach_their_sections(self, accepted):
        run = accepted({**TINY, "training": {"tokens": 5, "clip": None}, "tokenizer": "bpe:300"})
        assert (run.training.tokens, run.training.clip, run.tokenizer) == (5, None, "bpe:300")
        assert run.model.mixer_types == ["hale"]

    def test_a_number_in_scientific_notation_is_a_number(self, accepted):
        assert accepted("training: {learning_rate: 3e-4}").training.learning_rate == 3e-4

    def test_the_model_configuration_carries_every_field_of_the_section(self, accepted):
        run = accepted({"model": {**TINY["model"], "norm": "rms_norm", "dropout": 0.25, "positions": "learned"}})
        config = run.model_configuration(vocab_size=99, end_of_text=3)
        for name, value in run.model.model_dump(exclude_unset=True).items():
            assert getattr(config, name) == value
        assert (config.vocab_size, config.bos_token_id, config.eos_token_id, config.pad_token_id) == (99, 3, 3, 3)

    def test_what_was_validated_can_be_written_and_read_again(self, accepted):
        run = accepted({**TINY, "published": {"perplexity": 12.5}})
        assert accepted(yaml.safe_dump(run.model_dump(mode="json"))) == run


class TestOverrides:
    def test_a_value_is_replaced(self, accepted):
        assert accepted(TINY, ["training.batch_size=3"]).training.batch_size == 3

    def test_a_section_that_the_file_leaves_out_is_made(self, accepted):
        run = accepted(TINY, ["model.mixer_kwargs.hale.window=5"])
        assert run.model.mixer_kwargs == {"hale": {"window": 5}}

    def test_the_last_one_wins(self, accepted):
        assert accepted(TINY, ["training.seed=1", "training.seed=2"]).training.seed == 2

    def test_lists_and_nulls_are_written_as_in_the_file(self, accepted):
        run = accepted(TINY, ["training.betas=[0.8, 0.9]", "training.clip=null", "model.mixer_types=[softmax]"])
        assert (run.training.betas, run.training.clip, run.model.mixer_types) == ((0.8, 0.9), None, ["softmax"])

    def test_a_value_may_hold_an_equals_sign(self, accepted):
        assert accepted(TINY, ["description=a=b"]).description == "a=b"

    def test_presets_take_them_too(self):
        assert load_run(preset_names()[0], ["training.tokens=7"]).training.tokens == 7

    @pytest.mark.parametrize("override", ["training.batch_size", "=3", ""])
    def test_what_is_no_override_is_refused(self, complaints, override):
        assert complaints(TINY, [override]) == [f"--set {override!r}: expected name=value"]

    def test_a_path_through_a_value_is_refused(self, complaints):
        (sentence,) = complaints(TINY, ["model.hidden_size.wide=3"])
        assert sentence == "--set model.hidden_size.wide: 'hidden_size' is no section"

    def test_a_value_that_is_not_yaml_is_refused(self, complaints):
        assert complaints(TINY, ["training.seed=["]) == [
            "--set 'training.seed=[': not YAML: line 1, column 2: expected the node content, but found '<stream end>'"
        ]

    def test_an_unknown_key_is_refused_as_in_the_file(self, complaints):
        (sentence,) = complaints(TINY, ["training.batchsize=3"])
        assert sentence.startswith("training.batchsize: unknown key (did you mean 'batch_size'?); legal: tokens, ")


class TestUnreadable:
    def test_a_missing_file_is_refused_with_the_presets(self, tmp_path):
        legal = ", ".join(preset_names())
        with pytest.raises(ValueError, match=rf"none\.yaml: no such file or preset; presets: {legal}$"):
            load_run(str(tmp_path / "none.yaml"))

    def test_bad_yaml_is_refused_with_the_place_in_one_line(self, complaints):
        (sentence,) = complaints("model:\n  hidden_size: [16\ntraining: {}\n")
        assert sentence.startswith("not YAML: ")
        assert "line 3" in sentence

    @pytest.mark.parametrize(("text", "kind"), [("- a\n- b", "list"), ("just words", "str"), ("3", "int")])
    def test_what_is_no_mapping_is_refused(self, complaints, text, kind):
        assert complaints(text) == [f"a run file is a mapping of sections, got {kind}"]

    def test_a_file_that_is_not_utf8_is_refused_by_name(self, tmp_path):
        path = tmp_path / "run.yaml"
        path.write_bytes(b"description: \xff")
        with pytest.raises(ValueError, match=r"run\.yaml"):
            load_run(str(path))


class TestComplaints:
    def test_an_unknown_key_comes_with_the_nearest_and_the_legal_ones(self, complaints):
        (sentence,) = complaints({**TINY, "training": {"lerning_rate": 0.1}})
        legal = "tokens, batch_size, accumulation, optimizer, learning_rate"
        assert sentence.startswith(
            f"training.lerning_rate: unknown key (did you mean 'learning_rate'?); legal: {legal}"
        )

    def test_an_unknown_section_comes_with_the_nearest(self, complaints):
        (sentence,) = complaints({**TINY, "trainng": {}})
        assert sentence.startswith("trainng: unknown key (did you mean 'training'?); legal: description, published")

    def test_an_unknown_key_of_the_model_comes_with_the_nearest(self, complaints):
        (sentence,) = complaints({"model": {**TINY["model"], "hiden_size": 16}})
        assert sentence.startswith("model.hiden_size: unknown key (did you mean 'hidden_size'?); legal: hidden_size, ")

    @pytest.mark.parametrize("name", ["vocab_size", "pad_token_id", "eos_token_id"])
    def test_what_the_tokenizer_sets_is_no_key(self, complaints, name):
        (sentence,) = complaints({"model": {**TINY["model"], name: 5}})
        assert sentence.startswith(f"model.{name}: unknown key")

    @pytest.mark.parametrize(
        ("section", "key", "value", "sentence"),
        [
            ("training", "batch_size", "many", "valid integer.*got 'many'"),
            ("training", "batch_size", 2.5, "valid integer.*got 2.5"),
            ("training", "schedule", "step", "'cosine', 'linear' or 'constant', got 'step'"),
            ("training", "betas", [0.9], r"got \[0.9\]"),
            ("training", "clip", "no", "valid number.*got 'no'"),
            ("data", "train", 5, r"expected a source, or a list of \{source: ..., weight: ...\}, got 5"),
            ("data", "sequence_length", None, "valid integer, got None"),
            ("model", "hidden_size", "wide", "valid integer.*got 'wide'"),
            ("model", "scale_embedding", "perhaps", "valid boolean.*got 'perhaps'"),
        ],
    )
    def test_a_value_of_another_kind_comes_with_path_and_value(self, complaints, section, key, value, sentence):
        found = complaints({section: {key: value}})
        assert all(line.startswith(f"{section}.{key}") for line in found)
        assert re.search(sentence, found[0])

    @pytest.mark.parametrize(
        ("section", "key", "value", "sentence"),
        [
            ("training", "tokens", 0, "greater than or equal to 1, got 0"),
            ("training", "learning_rate", 0, "greater than 0, got 0"),
            ("training", "weight_decay", -0.1, "greater than or equal to 0, got -0.1"),
            ("training", "seed", -1, "greater than or equal to 0, got -1"),
            ("training", "clip", 0, "greater than 0, got 0"),
            ("data", "sequence_length", 1, "greater than or equal to 2, got 1"),
            ("evaluation", "batch_size", 0, "greater than or equal to 1, got 0"),
            ("evaluation", "every_steps", -5, "greater than or equal to 0, got -5"),
        ],
    )
    def test_a_value_out_of_range_comes_with_path_bound_and_value(self, complaints, section, key, value, sentence):
        assert complaints({section: {key: value}}) == [f"{section}.{key}: input should be {sentence}"]

    def test_an_unknown_tokenizer_comes_with_the_legal_ones(self, complaints):
        (sentence,) = complaints({**TINY, "tokenizer": "bpe:12"})
        assert sentence.startswith("tokenizer: unknown tokenizer 'bpe:12'; legal: byte, ")
        assert "bpe:SIZE with SIZE at least 257" in sentence

    def test_all_complaints_come_at_once(self, complaints):
        found = complaints(
            {
                "model": {"hidden_size": "wide", "mixers": 1},
                "data": {"sequence_length": 0},
                "training": {"batch_size": 0, "sead": 1},
                "tokenizer": "wrd",
                "nonsense": 1,
            }
        )
        paths = [line.split(":")[0] for line in found]
        assert sorted(paths) == sorted(
            [
                "model.hidden_size",
                "model.mixers",
                "data.sequence_length",
                "training.batch_size",
                "training.sead",
                "tokenizer",
                "nonsense",
            ]
        )


class TestModelComplaints:
    def model(self, **changes):
        return {"model": {**TINY["model"], **changes}}

    def test_an_argument_that_the_mixer_does_not_take(self, complaints):
        (sentence,) = complaints(self.model(mixer_kwargs={"hale": {"windw": 3}}))
        assert sentence.startswith("model: mixer 'hale' has no argument 'windw' (did you mean 'window'?); legal: ")

    def test_a_value_that_the_mixer_refuses(self, complaints):
        (sentence,) = complaints(self.model(mixer_kwargs={"hale": {"window": 0}}))
        assert sentence.startswith("model: hale needs window >= 1")

    def test_an_unknown_mixer(self, complaints):
        (sentence,) = complaints(self.model(mixer_types=["hal"]))
        assert sentence.startswith("model: unknown mixer 'hal' (did you mean 'hale'?); legal: ")

    def test_a_width_that_heads_do_not_divide(self, complaints):
        assert complaints(self.model(num_heads=3)) == ["model: hidden_size 16 is not divisible by num_heads 3"]

    def test_a_layer_without_its_mixer(self, complaints):
        (sentence,) = complaints(self.model(num_hidden_layers=3))
        assert sentence == "model: mixer_types has 1 entries for num_hidden_layers 3"

    def test_arguments_for_a_mixer_that_no_layer_uses(self, complaints):
        (sentence,) = complaints(self.model(mixer_kwargs={"softmax": {}}))
        assert sentence == "model: mixer_kwargs names 'softmax', which no layer uses; used: hale"

    @pytest.mark.parametrize(
        ("key", "sentence"),
        [
            ("norm", "unknown norm 'odd'; legal: layer_norm, rms_norm"),
            ("feed_forward", "unknown feed_forward 'odd'; legal: gelu, swiglu, none"),
            ("positions", "unknown positions 'odd'; legal: none, learned, sinusoidal"),
            ("norm_placement", "unknown norm_placement 'odd'; legal: pre, post"),
        ],
    )
    def test_an_unknown_kind_comes_with_the_legal_ones(self, complaints, key, sentence):
        (found,) = complaints(self.model(**{key: "odd"}))
        assert found.startswith(f"model: {sentence}")

    def test_none_is_among_the_legal_feed_forwards(self, complaints):
        (found,) = complaints(self.model(feed_forward="odd"))
        assert "none" in found

    def test_several_complaints_about_the_model_come_at_once(self, complaints):
        found = " ".join(complaints(self.model(num_heads=3, num_hidden_layers=2, positions="odd")))
        assert "not divisible" in found
        assert "mixer_types has 1 entries" in found
        assert "unknown positions 'odd'" in found

    def test_complaints_about_the_model_come_with_those_about_other_sections(self, complaints):
        found = complaints({**self.model(mixer_kwargs={"hale": {"windw": 3}}), "training": {"batch_size": 0}})
        assert {line.split(":")[0] for line in found} == {"model", "training.batch_size"}

    @pytest.mark.parametrize(
        "changes",
        [
            {"num_heads": 0},
            {"hidden_size": 0},
            {"hidden_size": -16},
            {"num_hidden_layers": 0, "mixer_types": []},
            {"intermediate_size": -3},
            {"max_position_embeddings": 0, "positions": "learned"},
            {"norm_eps": -1.0},
            {"initializer_range": -1.0},
        ],
        ids=str,
    )
    @pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
    def test_a_number_out_of_range_is_refused_by_name(self, complaints, changes):
        assert next(iter(changes)) in complaints(self.model(**changes))[0]

    @pytest.mark.parametrize(
        "arguments",
        [{"window": 8.5}, {"num_levels": 1.5}, {"share_local": "perhaps"}, {"dropout": "half"}, {"gate": "open"}],
        ids=str,
    )
    def test_an_argument_of_another_kind_is_refused_by_name(self, complaints, arguments):
        (name,) = arguments
        assert name in complaints(self.model(mixer_kwargs={"hale": arguments}))[0]

    def test_a_number_in_scientific_notation_is_a_number_for_mixers_too(self, accepted):
        changes = {"mixer_types": ["softmax"]}
        run = accepted(self.model(**changes), ["model.mixer_kwargs.softmax.rotary_base=1e6"])
        model = LongwaveForCausalLM(run.model_configuration(vocab_size=257))
        assert model.blocks[0].mixers[0].rotary_base == 1e6

    def test_arguments_that_are_no_mapping_are_refused_by_label(self, complaints):
        assert "hale" in complaints(self.model(mixer_kwargs={"hale": 3}))[0]

    def test_a_label_that_is_no_text_is_refused_by_name(self, complaints):
        assert "mixer_types" in complaints(self.model(mixer_types=[3]))[0]


class TestTrainingComplaints:
    @pytest.mark.parametrize("betas", [[0.9, 1.5], [-0.1, 0.9], [1.0, 0.9]], ids=str)
    def test_betas_out_of_range_are_refused_before_the_run(self, complaints, betas):
        assert complaints({**TINY, "training": {"betas": betas}})[0].startswith("training.betas")

    def test_an_infinite_rate_is_refused(self, complaints):
        assert complaints("training: {learning_rate: .inf}")[0].startswith("training.learning_rate")
