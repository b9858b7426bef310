"""Tokenizers lose nothing, on any text or on text of what they know."""

from __future__ import annotations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from longwave.data import END_OF_TEXT, build_tokenizer
from longwave.data.tokenizers import vocabulary_size

LOSSLESS = ["byte", "bpe:300"]
KINDS = [*LOSSLESS, "char", "word"]
LEGAL = "byte, char, word, bpe:SIZE with SIZE at least 257 and at most 1048576, sentencepiece:FILE, or the path of a"
TEXT = ("the quick brown fox jumps over the lazy dog; " * 20, "def quick(brown): return fox\n" * 20)
TOKENIZERS = {kind: build_tokenizer(kind, TEXT) for kind in KINDS}


def encode(kind, text):
    return TOKENIZERS[kind](text, add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize("kind", LOSSLESS)
@settings(max_examples=150, deadline=None, derandomize=True)
@given(text=st.text())
@example(text="")
@example(text="  leading, trailing  \r\n\t\x00")
@example(text="é漢字😀\u00a0\u200b\ufeff")
@example(text="don 't , n't . clean ' s up")
@example(text=f"a{END_OF_TEXT}b")
def test_decoding_gives_the_text_back(kind, text):
    assert TOKENIZERS[kind].decode(encode(kind, text)) == text


@settings(max_examples=100, deadline=None, derandomize=True)
@given(text=st.text().filter(lambda text: END_OF_TEXT not in text))
def test_byte_has_one_token_for_each_byte(text):
    assert len(encode("byte", text)) == len(text.encode())


def test_byte_gives_every_byte_its_own_token():
    text = "".join(map(chr, range(0x250)))
    assert len(set(encode("byte", text))) == len(set(text.encode()))


def test_bpe_needs_fewer_tokens_than_bytes_on_its_own_text():
    assert len(encode("bpe:300", TEXT[0])) < len(TEXT[0]) / 2


@pytest.mark.parametrize("kind", LOSSLESS)
def test_vocabulary_is_as_large_as_its_kind_says(kind):
    assert vocabulary_size(kind) == {"byte": 257, "bpe:300": 300}[kind]
    assert len(TOKENIZERS[kind]) <= vocabulary_size(kind)
    assert max(encode(kind, TEXT[1])) < len(TOKENIZERS[kind])


@pytest.mark.parametrize("kind", KINDS)
def test_end_of_text_is_token_zero_and_special_beside_the_unknown(kind):
    tokenizer = TOKENIZERS[kind]
    assert tokenizer.all_special_ids == ([0] if kind in LOSSLESS else [0, 1])
    assert tokenizer.bos_token_id == tokenizer.eos_token_id == tokenizer.pad_token_id == 0
    assert tokenizer.convert_ids_to_tokens(0) == END_OF_TEXT


@pytest.mark.parametrize("kind", KINDS)
def test_text_that_spells_the_special_token_ends_no_document(kind):
    assert 0 not in encode(kind, f"print('{END_OF_TEXT}')")


@pytest.mark.parametrize("kind", KINDS)
def test_batches_are_padded_on_the_left(kind):
    batch = TOKENIZERS[kind](["a", "a b c d"], padding=True, add_special_tokens=False)
    assert batch["attention_mask"][0][0] == 0
    assert batch["attention_mask"][0][-1] == 1


def test_bpe_learns_from_its_documents():
    texts = [["lambda lambda lambda "] * 50, ["import import import "] * 50]
    found = [build_tokenizer("bpe:270", text).tokenize("lambda import") for text in texts]
    assert found[0] != found[1]


@pytest.mark.parametrize("kind", KINDS)
def test_saving_and_loading_changes_nothing(tmp_path, kind):
    from transformers import AutoTokenizer

    TOKENIZERS[kind].save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    text = f"  the quick\r\n漢字 brown, n't . {END_OF_TEXT} fox "
    ids = encode(kind, text)
    assert loaded(text, add_special_tokens=False)["input_ids"] == ids
    assert loaded.decode(ids) == TOKENIZERS[kind].decode(ids)
    assert loaded.padding_side == "left"


@pytest.mark.parametrize("kind", ["char", "word"])
@settings(max_examples=100, deadline=None, derandomize=True)
@given(text=st.text(alphabet="ab ,.\n\t_é漢\u00a0"))
def test_text_of_known_tokens_is_given_back(kind, text):
    tokenizer = build_tokenizer(kind, [text])
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(ids) == text
    assert tokenizer.unk_token_id not in ids


def test_char_has_one_token_for_each_character():
    assert len(encode("char", TEXT[1])) == len(TEXT[1])
    assert len(TOKENIZERS["char"]) == len(set("".join(TEXT))) + 2


def test_word_has_one_token_for_each_word_or_mark_with_the_space_before_it():
    assert TOKENIZERS["word"].tokenize("def quick(brown): return fox\n") == [
        *("def", " quick", "(", "brown", ")", ":", " return", " fox", "\n")
    ]


@pytest.mark.parametrize("kind", ["char", "word"])
def test_what_the_text_lacks_is_unknown(kind):
    tokenizer = TOKENIZERS[kind]
    ids = tokenizer("漢", add_special_tokens=False)["input_ids"]
    assert ids == [tokenizer.unk_token_id] == [1]
    assert tokenizer.unk_token == "<|unknown|>"


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_text_gives_the_same_tokenizer(kind):
    assert build_tokenizer(kind, iter(TEXT)).get_vocab() == TOKENIZERS[kind].get_vocab()


def test_word_keeps_the_most_frequent(monkeypatch):
    monkeypatch.setattr("longwave.data.tokenizers.LARGEST_WORD", 4)
    assert set(build_tokenizer("word", ["a a a b b c"]).get_vocab()) == {END_OF_TEXT, "<|unknown|>", " a", " b"}


@pytest.mark.parametrize(
    "kind",
    [
        "",
        "bytes",
        "byte:300",
        "bpe",
        "bpe:",
        "bpe:256",
        "bpe:-1",
        "bpe:1e3",
        "word:9",
        "sentencepiece:",
        "no/folder",
        "bpe:３００",
    ],
)
def test_an_illegal_kind_is_refused_with_the_legal_ones(kind):
    with pytest.raises(ValueError, match=f"^unknown tokenizer '{kind}'; legal: {LEGAL}"):
        build_tokenizer(kind, TEXT)
