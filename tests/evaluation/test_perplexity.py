"""Perplexity and bits per byte are what their definitions say."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from longwave.data import TokenStream
from longwave.evaluation import LikelihoodScore, recorded_loss, score
from longwave.model import LongwaveConfig, LongwaveForCausalLM

VOCABULARY = 11


class Bigram(nn.Module):
    """Logits that depend on the last token alone."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(VOCABULARY, VOCABULARY)
        self.dropout = nn.Dropout(0.5)

    def forward(self, input_ids, starts=None, use_cache=None):
        return SimpleNamespace(logits=self.dropout(self.table(input_ids)))


@pytest.fixture
def stream():
    ids = np.random.randint(0, VOCABULARY, 50).astype(np.int32)
    starts = np.zeros(50, dtype=bool)
    starts[[0, 9, 23, 24]] = True
    return TokenStream(ids, starts, num_bytes=77)


@pytest.fixture
def model():
    config = LongwaveConfig(
        vocab_size=VOCABULARY, hidden_size=8, num_hidden_layers=1, num_heads=2, mixer_types="softmax", dropout=0.5
    )
    model = LongwaveForCausalLM(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_()
    return model


@torch.no_grad()
def direct(model, stream, sequence_length):
    """Row by row, document by document, token by token."""
    ids, nats = torch.from_numpy(stream.ids.astype(np.int64)), 0.0
    for begin in range(0, len(ids) - 1, sequence_length):
        for t in range(begin, min(begin + sequence_length, len(ids) - 1)):
            first = max(begin, int(stream.starts[: t + 1].nonzero()[0].max()))
            logits = model.eval()(input_ids=ids[None, first : t + 1]).logits[0, -1]
            nats -= float(logits.double().log_softmax(dim=-1)[ids[t + 1]])
    return nats


@pytest.mark.parametrize("sequence_length", [2, 8, 50, 64])
def test_nats_equal_a_direct_computation(model, stream, sequence_length):
    found = score(model, stream, sequence_length)
    assert found.nats == pytest.approx(direct(model, stream, sequence_length), rel=1e-5)
    assert found.num_tokens == 49
    assert found.num_bytes == 77


def test_without_context_the_rows_do_not_matter(stream):
    model = Bigram()
    table = model.table.weight.detach().double().log_softmax(dim=-1)
    expected = -sum(float(table[a, b]) for a, b in zip(stream.ids[:-1], stream.ids[1:], strict=True))
    for sequence_length in (2, 7, 50):
        assert score(model, stream, sequence_length).nats == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("batch_size", [2, 3, 100])
def test_batch_size_never_changes_the_score(model, stream, batch_size):
    one, other = (score(model, stream, 8, batch_size=size) for size in (1, batch_size))
    assert other.nats == pytest.approx(one.nats, rel=1e-6)
    assert other.num_tokens == one.num_tokens


@pytest.mark.parametrize("training", [True, False])
def test_the_model_is_left_in_the_mode_it_was_in(model, stream, training):
    model.train(training)
    score(model, stream, 8)
    assert model.training is training


def test_dropout_is_off(model, stream):
    assert score(model.train(), stream, 8).nats == score(model, stream, 8).nats


def test_progress_counts_rows_up_to_all(model, stream):
    calls = []
    score(model, stream, 8, batch_size=3, progress=lambda done, total: calls.append((done, total)))
    assert calls == [(3, 7), (6, 7), (7, 7)]


def test_float64_logits_are_not_narrowed(stream):
    model = Bigram().double()
    with torch.no_grad():
        model.table.weight.mul_(1e-9)  # invisible beside 1 in float32
    expected = -sum(
        float(model.table.weight.detach().log_softmax(dim=-1)[a, b])
        for a, b in zip(stream.ids[:-1], stream.ids[1:], strict=True)
    )
    assert score(model, stream, 8).nats == pytest.approx(expected, rel=1e-13)


def test_bits_per_byte_by_hand():
    # Eight tokens of one bit each, for a text of four bytes.
    assert LikelihoodScore(np.array([8 * math.log(2)]), 8, 4).bits_per_byte == pytest.approx(2.0)


def test_perplexity_by_hand():
    # Uniform over ten tokens.
    assert LikelihoodScore(np.array([3 * math.log(10)]), 3, 5).perplexity == pytest.approx(10.0)


def test_the_mean_of_the_rows_is_the_loss(model, stream):
    found = score(model, stream, 8)
    assert found.rows.dtype == np.float64
    assert found.rows.shape == (7,)
    assert found.rows.mean() == pytest.approx(found.loss, rel=1e-14)
    assert found.loss == found.bits_per_byte


def test_a_row_is_that_row_alone(model, stream):
    found = score(model, stream, 8)
    second = score(model, TokenStream(stream.ids[8:17], stream.starts[8:17], 77), 8)
    assert found.rows[1] == pytest.approx(7 * second.rows[0], rel=1e-6)


def test_values_are_what_the_loss_is_found_in(model, stream):
    found = score(model, stream, 8)
    assert found.values() == {"bits_per_byte": found.bits_per_byte, "perplexity": found.perplexity}
    assert recorded_loss(found.values()) == found.loss


def test_a_model_that_mixes_documents_is_refused(stream):
    class Blind(nn.Module):
        def forward(self, input_ids):
            raise AssertionError

    with pytest.raises(ValueError, match="Blind does not keep documents apart"):
        score(Blind(), stream, 8)


def test_a_uniform_model_has_the_vocabulary_as_perplexity(stream):
    model = Bigram()
    nn.init.zeros_(model.table.weight)
    found = score(model, stream, 8)
    assert found.perplexity == pytest.approx(VOCABULARY, rel=1e-6)
    assert found.bits_per_byte == pytest.approx(49 * math.log2(VOCABULARY) / 77, rel=1e-6)
