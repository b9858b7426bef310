"""The word tokenizers keep what was published, files included; byte-level BPE loses nothing."""

from __future__ import annotations

import json

import pytest

from longwave.compat.hale_bpe import ByteLevelBPE
from longwave.compat.hale_tokenizers import FieldAwareTokenizer, FieldTokenizerV2, FieldTokenizerV3

LINES = [
    "The cat was happy, and the dog was happy.",
    "The cat stopped; the dog was stopping, jumping and running.",
    "The dog wants to stop the cat, and the cat wants to run and jump again.",
    "Unhappy cats jumped, walked and walked again.",
]
CLASSES = [FieldTokenizerV2, FieldTokenizerV3, FieldAwareTokenizer]


@pytest.mark.parametrize("kind", CLASSES)
def test_a_saved_tokenizer_is_the_same(kind, tmp_path):
    tokenizer = kind.build(LINES, 90)
    tokenizer.save(tmp_path / "tokenizer.json")
    loaded = kind.load(tmp_path / "tokenizer.json")
    assert loaded.vocab == tokenizer.vocab
    assert loaded.field_size == 90
    for line in [*LINES, "the dogs restopped 7 times"]:
        ids = tokenizer.encode(line, add_special_tokens=True)
        assert loaded.encode(line, add_special_tokens=True) == ids
        assert loaded.decode(ids) == tokenizer.decode(ids)


def test_files_have_the_published_keys_and_are_not_mixed_up(tmp_path):
    keys = [
        {"field_size", "vocab", "token_type"},
        {"field_size", "vocab", "token_type", "version"},
        {"field_size", "vocab", "token_clusters"},
    ]
    for kind, expected in zip(CLASSES, keys, strict=True):
        path = tmp_path / f"{kind.__name__}.json"
        kind.build(LINES, 60).save(path)
        assert set(json.loads(path.read_text(encoding="utf-8"))) == expected
        for other in set(CLASSES) - {kind}:
            with pytest.raises(ValueError, match=f"not a file of {other.__name__}"):
                other.load(path)


@pytest.mark.parametrize("kind", [FieldTokenizerV2, FieldTokenizerV3])
def test_frequent_text_comes_back_in_lower_case(kind):
    tokenizer = kind.build(LINES, 400)
    text = "the cat wants to stop, and the dog was happy."
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.encode("") == []
    assert tokenizer.decode([]) == ""
    report = tokenizer.coverage_report([text])
    assert report["total_words"] == 12


def test_v2_spells_what_it_does_not_know_and_glues_it():
    tokenizer = FieldTokenizerV2.build(LINES, 400)
    assert tokenizer.tokenize("the zoo éa") == ["the", "z", "o", "o", "a"]
    assert tokenizer.decode(tokenizer.encode("the zoo at")) == "the zooat"
    report = tokenizer.coverage_report(["the zoo"])
    assert report == {"total_words": 2, "direct_matches": 1, "char_fallback": 1, "coverage_pct": 50.0}


def test_v3_takes_words_apart():
    vocab = ["<PAD>", "<BOS>", "<EOS>", "un-", "-ed", "-ing", "-ness", "happy", "make", "stop", "walk"]
    types = {"un-": "prefix", **dict.fromkeys(("-ed", "-ing", "-ness"), "suffix")}
    types |= dict.fromkeys(vocab[7:], "word")
    tokenizer = FieldTokenizerV3(64, {token: index for index, token in enumerate(vocab)}, types)
    assert tokenizer.decompose("walked") == ["walk", "-ed"]
    assert tokenizer.decompose("making") == ["make", "-ing"]
    assert tokenizer.decompose("stopped") == ["stop", "-ed"]
    assert tokenizer.decompose("unhappiness") == ["un-", "happy", "-ness"]
    assert tokenizer.decompose("unwalk") == ["un-", "walk"]
    assert tokenizer.decompose("zebra") is None
    assert tokenizer.decompose("ed") is None
    assert tokenizer.decode(tokenizer.encode("walk unhappiness")) == "walk unhappyness"
    report = tokenizer.coverage_report(["walk walked zebra zebra"])
    assert (report["direct_matches"], report["subword_matches"], report["char_fallback"]) == (1, 1, 2)
    assert (report["coverage_pct"], report["effective_coverage_pct"]) == (25.0, 50.0)


def test_v1_knows_groups_and_nothing_else():
    tokenizer = FieldAwareTokenizer.build(LINES, 12, min_freq=5)
    assert tokenizer.vocab_size == 12
    assert tokenizer.tokenize("zebra") == ["<UNK>"]
    assert tokenizer.decode(tokenizer.encode("zebra")) == ""
    assert tokenizer.coverage_report(["zebra"])["unknown"] == 1
    whole = FieldAwareTokenizer.build(LINES, 400)
    assert whole.decode(whole.encode(LINES[0])) == LINES[0].lower()


def test_a_vocabulary_too_small_for_the_alphabet_keeps_the_frequent_characters():
    tokenizer = FieldTokenizerV2.build(LINES, 8)
    assert tokenizer.vocab_size == 8
    assert set(tokenizer.token_type.values()) == {"char"}


def test_bpe_loses_nothing_unless_asked_to(tmp_path):
    text = "naïve Zebra 42 \t🦓"
    whole = ByteLevelBPE.train(iter(LINES), 300)
    assert whole.decode(whole.encode(text)) == text
    assert whole.vocab_size_actual == 300
    original = ByteLevelBPE.train(LINES, 60, byte_alphabet=False)
    assert original.decode(original.encode("the zap")) == "the ap"
    whole.save(tmp_path / "bpe.json")
    loaded = ByteLevelBPE.load(tmp_path / "bpe.json")
    assert loaded.encode(text) == whole.encode(text)
    assert loaded.merges == whole.merges
