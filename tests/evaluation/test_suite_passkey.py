"""Passkey asks for what was said, counts the tokens back to it, and gives nothing for a tie."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from longwave.data import build_tokenizer
from longwave.evaluation import passkey
from longwave.evaluation.passkey import (
    SEED_DISTANCES,
    SUITE_DISTANCES,
    published_pieces,
    single_token_pieces,
)
from longwave.evaluation.texts import PASSKEY_FILLER, SEED_WORDS, SUITE_WORDS

WORDS = [word for word in dict.fromkeys((*SEED_WORDS, *SUITE_WORDS)) if word not in ("eagle", "kiwi")]
SENTENCES = [f"the secret word is {word} . {PASSKEY_FILLER}" for word in WORDS]


@pytest.fixture(scope="module")
def words():
    """A token for each word but eagle and kiwi."""
    return build_tokenizer("word", SENTENCES)


@pytest.fixture(scope="module")
def byte():
    return build_tokenizer("byte", [])


class Stub(nn.Module):
    """``answer(input_ids)`` gives the logits `[B, V]` of the last token."""

    def __init__(self, size, answer):
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(1))
        self.size, self.answer, self.seen = size, answer, []

    def forward(self, input_ids, use_cache=None):
        assert not self.training
        assert not torch.is_grad_enabled()
        self.seen += input_ids.tolist()
        logits = torch.full((*input_ids.shape, self.size), -9.0)
        logits[:, -1] = self.answer(input_ids)
        return SimpleNamespace(logits=logits)


def oracle(tokenizer, pieces):
    """Says what follows the first cue."""
    place = len(pieces.begin) + len(pieces.cue)
    return Stub(len(tokenizer), lambda ids: F.one_hot(ids[:, place], len(tokenizer)).float())


@pytest.mark.parametrize("kind", ["words", "byte"])
@pytest.mark.parametrize("trials", [3, 10, 25])
def test_a_model_that_knows_is_always_right(request, kind, trials):
    tokenizer = request.getfixturevalue(kind)
    pieces = single_token_pieces(tokenizer, WORDS)
    found = passkey(oracle(tokenizer, pieces), tokenizer, max_length=300, trials=trials)
    assert found.values()["accuracy"] == 1
    assert found.values()["chance"] == pytest.approx(0.1)
    assert {record["rank"] for record in found.records} == {1}
    assert found.settings["answers"] == ("words" if kind == "words" else "characters")


def test_a_uniform_model_wins_no_tie_but_the_published_ones(words):
    uniform = Stub(len(words), lambda ids: torch.zeros(len(ids), len(words)))
    assert passkey(uniform, words, max_length=100).values()["accuracy"] == 0
    assert passkey(uniform, words, form="suite", max_length=100).values()["accuracy"] == 1
    assert passkey(uniform, words, max_length=100).values()["rank"] == 1


def test_a_model_of_one_opinion_is_at_chance(words):
    opinion = torch.randn(len(words), generator=torch.Generator().manual_seed(3))
    found = passkey(Stub(len(words), lambda ids: opinion.expand(len(ids), -1)), words, max_length=200).values()
    assert found["accuracy"] == pytest.approx(found["chance"])
    assert all(found[f"accuracy@{distance}"] == pytest.approx(0.1) for distance in (1, 2, 64, 128))


@pytest.mark.parametrize("form", ["corrected", "suite", "seed"])
@pytest.mark.parametrize("kind", ["words", "byte"])
def test_the_read_offset_leads_to_the_key(request, kind, form):
    tokenizer = request.getfixturevalue(kind)
    pieces = single_token_pieces(tokenizer, WORDS)
    if form != "corrected":
        pieces = published_pieces(tokenizer, SUITE_WORDS if form == "suite" else SEED_WORDS)
    for word in pieces.keys:
        for distance in (1, 7, 40):
            sequence = pieces.sequence(word, distance)
            assert sequence[-1 - pieces.read_offset(word, distance)] == pieces.keys[word][0]
            said = len(pieces.begin) + len(pieces.cue) + len(pieces.keys[word]) + len(pieces.stop)
            assert len(sequence) == said + distance + len(pieces.cue)


def test_the_reference_tokenisation_reads_five_tokens_beyond_the_distance(words):
    uniform = Stub(len(words), lambda ids: torch.zeros(len(ids), len(words)))
    found = passkey(uniform, words, distances=[3, 4], offsets={8, 16})
    assert found.settings["read_offset_beyond_distance"] == [5]
    assert {(record["distance"], record["read_offset"], record["on_offset"]) for record in found.records} == {
        (3, 8, True),
        (4, 9, False),
    }
    assert {"accuracy@on_offset", "accuracy@off_offset"} <= found.values().keys()


def test_sequences_are_the_text(words, byte):
    pieces = single_token_pieces(words, WORDS)
    text = words.decode(pieces.sequence("apple", 11), skip_special_tokens=True)
    assert text == "the secret word is apple .the weather was mild and the air was still . the secret word is"
    pieces = single_token_pieces(byte, WORDS)
    text = byte.decode(pieces.sequence("7", 12), skip_special_tokens=True)
    assert text == "the secret word is 7 .the weather the secret word is "


def test_words_of_several_tokens_are_dropped_and_named(words, byte):
    pieces = single_token_pieces(words, ["apple", "eagle", "tiger", "kiwi"])
    assert (list(pieces.keys), pieces.dropped, pieces.answers) == (["apple", "tiger"], ("eagle", "kiwi"), "words")
    pieces = single_token_pieces(byte, ["apple", "tiger"])
    assert list(pieces.keys) == list("0123456789")
    assert pieces.dropped[:2] == ("apple", "tiger")
    assert pieces.answers == "characters"
    assert len({*map(tuple, pieces.keys.values())}) == 10


def test_a_tokenizer_without_answers_is_refused():
    with pytest.raises(ValueError, match="less than two words or characters that are one token"):
        passkey(Stub(9, lambda ids: torch.zeros(len(ids), 9)), build_tokenizer("word", ["no such answer"]))


def test_a_sequence_that_reaches_the_length_is_skipped(words):
    model = Stub(len(words), lambda ids: torch.zeros(len(ids), len(words)))
    found = passkey(model, words, max_length=27)  # a distance of 16 gives 1 + 4 + 1 + 1 + 16 + 4 tokens
    assert found.settings["skipped_distances"] == [16, 32, 64, 128, 256, 512, 1024, 1536]
    assert max(map(len, model.seen)) == 19
    assert max(record["distance"] for record in passkey(model, words, max_length=28).records) == 16
    with pytest.raises(ValueError, match="passkey: the shortest sequence has 12 tokens and reaches the length 12"):
        passkey(model, words, max_length=12)


def test_repeated_words_are_other_trials_only_when_corrected(words):
    model = Stub(len(words), lambda ids: torch.zeros(len(ids), len(words)))
    passkey(model, words, distances=[6], trials=20)
    assert len({*map(tuple, model.seen)}) == 20
    model.seen.clear()
    passkey(model, words, form="suite", distances=[6], trials=20)
    assert len(model.seen) == 20
    assert len({*map(tuple, model.seen)}) == 10


def test_the_seed_protocol_has_its_distances_words_groups_and_baseline(byte):
    generator = torch.Generator().manual_seed(0)
    found = passkey(Stub(257, lambda ids: torch.randn(len(ids), 257, generator=generator)), byte, form="seed")
    assert len(SEED_DISTANCES) == 37
    assert len(SUITE_DISTANCES) == 12
    keyed = [record for record in found.records if record["has_key"]]
    assert len(keyed) == 37 * 20
    assert len(found.records) - len(keyed) == 20
    assert {record["distance"] for record in keyed} == {*SEED_DISTANCES}
    values = found.values()
    for group in ("labelled", "unlabelled", "close", "far", "no_key"):
        assert {f"accuracy@{group}", f"log_probability@{group}", f"rank@{group}"} <= values.keys()
    far = [record["log_probability"] for record in keyed if record["distance"] >= 500]
    assert values["log_probability@far"] == pytest.approx(sum(far) / len(far))


def test_progress_and_batches(words):
    calls, pieces = [], single_token_pieces(words, WORDS)
    asked = {"distances": [2, 5], "trials": 4}
    one = passkey(oracle(words, pieces), words, batch_size=1, **asked)
    many = passkey(oracle(words, pieces), words, batch_size=3, progress=lambda *c: calls.append(c), **asked)
    assert one == many
    assert calls == [(3, 8), (4, 8), (7, 8), (8, 8)]


@pytest.mark.parametrize(
    ("asked", "sentence"),
    [
        ({"form": "new"}, "unknown form 'new'; legal: corrected, suite, seed"),
        ({"trials": 0}, "must be at least 1, got 0"),
        ({"distances": [0, 3]}, "must be at least 1, got 10 and"),
        ({"distances": []}, "must be at least 1"),
    ],
)
def test_what_cannot_be_asked_is_refused(words, asked, sentence):
    with pytest.raises(ValueError, match=sentence):
        passkey(Stub(3, lambda ids: None), words, **asked)
