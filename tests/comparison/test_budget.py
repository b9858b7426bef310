from __future__ import annotations

import pytest
import torch

from longwave.benchmarks.counting import count_flops
from longwave.benchmarks.passes import Pass
from longwave.benchmarks.settings import Settings
from longwave.comparison import read_terms
from longwave.comparison.arms import read_arms
from longwave.comparison.budget import operations_per_token, size_of, solve_size, state_bytes, with_training
from longwave.mixers import available
from longwave.model import LongwaveForCausalLM
from longwave.training import body_parameters


@pytest.fixture
def arms(base):
    def read(*names, **values):
        return read_arms(names, str(base), list(values.items()))

    return read


class TestArms:
    def test_labels_share_all_but_the_mixers(self, arms):
        one, two = arms("softmax", "hale@narrow", **{"hale@narrow.window": 4, "training.batch_size": 2})
        assert (one.run.training, one.run.data) == (two.run.training, two.run.data)
        assert one.mixers == {"softmax": {}}
        assert two.mixers == {"hale@narrow": {"window": 4}}
        assert one.run.training.batch_size == 2

    def test_a_label_keeps_the_arguments_that_the_base_run_gives_it(self, arms):
        _, hale = arms("softmax", "hale", **{"hale.num_levels": 1})
        assert hale.mixers == {"hale": {"window": 8, "num_levels": 1}}

    def test_what_a_run_file_would_not_hear_is_refused(self, arms, tmp_path):
        (tmp_path / "own.yaml").write_text("model: {mixer_types: hale}")
        (tmp_path / "none.yaml").write_text("training: {tokens: 5}")
        with pytest.raises(ValueError, match=r"own\.yaml has a model of its own; set it there"):
            arms("softmax", str(tmp_path / "own.yaml"), **{"model.hidden_size": 32})
        with pytest.raises(ValueError, match=r"none\.yaml: has no section model"):
            arms("softmax", str(tmp_path / "none.yaml"))

    def test_a_run_file_gives_its_model_alone(self, arms, tmp_path):
        (tmp_path / "own.yaml").write_text(
            "model: {mixer_types: [hale, softmax], num_hidden_layers: 2, hidden_size: 16, num_heads: 2}\n"
            "training: {learning_rate: 0.5}"
        )
        one, two = arms("softmax", str(tmp_path / "own.yaml"))
        assert two.name == "own"
        assert list(two.mixers) == ["hale", "softmax"]
        assert two.run.training == one.run.training

    @pytest.mark.parametrize(
        ("names", "sentence"),
        [
            (("softmax",), "a comparison needs at least two arms"),
            (
                ("softmax", "softmax"),
                "'softmax' is named twice; give a variant a label of its own, such as softmax@again",
            ),
            (("softmax", "sofmax"), "unknown mixer 'sofmax'"),
            (("softmax", "nowhere.yaml"), "nowhere.yaml: no such file or preset"),
        ],
    )
    def test_bad_names_are_refused(self, arms, names, sentence):
        with pytest.raises(ValueError, match=sentence):
            arms(*names)


class TestSize:
    @pytest.mark.parametrize("name", available())
    def test_is_solved_within_one_percent(self, arms, name):
        _, arm = arms("softmax", f"{name}@solved", **{"model.hidden_size": 32})
        solved = solve_size(arm, 40_000)
        model = LongwaveForCausalLM(solved.run.model_configuration(solved.run.vocabulary_size()))
        assert body_parameters(model) == size_of(solved.run).body_parameters == pytest.approx(40_000, rel=0.01)

    def test_out_of_reach_is_refused_with_the_nearest(self, arms):
        _, arm = arms("softmax", "hale")
        with pytest.raises(ValueError, match=r"hale: 100 parameters .* out of reach: the nearest is [\d,]+"):
            solve_size(arm, 100)

    def test_without_a_feed_forward_there_is_nothing_to_solve(self, arms):
        _, arm = arms("softmax", "hale", **{"model.feed_forward": "none"})
        with pytest.raises(ValueError, match="use --budget tokens"):
            solve_size(arm, 10_000)


class TestOperations:
    @pytest.mark.parametrize("name", available())
    def test_are_those_that_a_training_step_does(self, arms, name):
        _, arm = arms("softmax", f"{name}@counted", **{"model.hidden_size": 32, "data.sequence_length": 64})
        run = arm.run
        model = LongwaveForCausalLM(run.model_configuration(run.vocabulary_size()))
        ids = torch.zeros(1, 64, dtype=torch.int64)
        step = Pass(lambda: model(input_ids=ids, labels=ids).loss, model.parameters(), "forward_backward", Settings())
        assert count_flops(step) == pytest.approx(64 * operations_per_token(run), rel=0.15)

    def test_of_states_are_those_of_all_layers(self, arms):
        softmax, _ = arms("softmax", "hale")
        assert state_bytes(softmax.run, 64) == 2 * (2 * 64 * 16 * 4 + 8)


def test_tokens_are_whole_steps(arms):
    run = arms("softmax", "hale")[0].run
    assert with_training(run, tokens=1000.0).training.tokens == 8 * 4 * 32
    assert with_training(run, tokens=1.0).training.tokens == 4 * 32


class TestTerms:
    def test_are_read_from_words(self, base):
        terms = read_terms(
            ("softmax", "hale"), base=str(base), budget="parameters,seconds", seeds=2, rates="0.01, 0.001"
        )
        assert (terms.axes, terms.seeds, terms.rates) == (("parameters", "seconds"), (7, 8), (0.01, 0.001))
        assert terms.trial_tokens == terms.tokens // 4

    @pytest.mark.parametrize(
        ("words", "sentence"),
        [
            ({"budget": "money"}, "unknown budget 'money'; legal: parameters, operations, seconds, tokens"),
            ({"rates": "fast"}, "--rates holds 'fast'; expected numbers"),
            ({"rates": "0.0"}, "--rates: 0.0 is not above 0, below training.minimum_learning_rate 1e-05, or not"),
            ({"trial_tokens": 100}, "--trial-tokens goes with at least two --rates"),
            ({"budget": "tokens", "parameters": 9}, "no --parameters beside it"),
            ({"overrides": [("evaluation.patience", 1)]}, "evaluation.patience ends runs early"),
            ({"budget": "seconds", "jobs": 2}, "--budget seconds needs --jobs 1"),
        ],
    )
    def test_bad_words_are_refused(self, base, words, sentence):
        with pytest.raises(ValueError, match=sentence):
            read_terms(("softmax", "hale"), base=str(base), **words)
