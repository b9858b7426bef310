"""Tokenizers that come in files: loaded as they are, saved as transformers' own, refused in a sentence."""

from __future__ import annotations

import json
import pickle

import pytest
from transformers import AutoTokenizer

from longwave.data import END_OF_TEXT, build_tokenizer, tokenize, vocabulary_size

TEXT = ["the quick brown fox jumps over the lazy dog, and naïve dogs run.\n" * 5] * 40


def ids_of(tokenizer, text):
    return tokenizer(text, add_special_tokens=False)["input_ids"]


@pytest.fixture(scope="module")
def pieces(tmp_path_factory):
    """Makes a sentencepiece model, given its settings: path and processor."""
    import sentencepiece

    def of(**settings):
        folder = tmp_path_factory.mktemp("pieces")
        settings = {"vocab_size": 60, "hard_vocab_limit": False, "minloglevel": 2, **settings}
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter([*TEXT[0].splitlines() * 9, "a <b> </b>"]),
            model_prefix=str(folder / "x"),
            **settings,
        )
        return folder / "x.model", sentencepiece.SentencePieceProcessor(model_file=str(folder / "x.model"))

    return of


SETTINGS = [
    {"model_type": "unigram"},
    {"model_type": "bpe"},
    {"model_type": "bpe", "byte_fallback": True, "vocab_size": 320},
    {"model_type": "unigram", "byte_fallback": True, "vocab_size": 320},
    {"model_type": "unigram", "add_dummy_prefix": False, "normalization_rule_name": "identity"},
    {"model_type": "bpe", "remove_extra_whitespaces": False, "bos_id": -1, "eos_id": -1},
]
each_model = pytest.mark.parametrize("settings", SETTINGS, ids=str)


class TestSentencepiece:
    @each_model
    def test_ids_are_those_of_sentencepiece(self, pieces, settings):
        path, processor = pieces(**settings)
        tokenizer = build_tokenizer(f"sentencepiece:{path}", [])
        for text in (TEXT[0], " the  lazy ox ", "", "quick\tfox", "zèbre 漢字", "a<s>b</s>"):
            assert ids_of(tokenizer, text) == processor.encode(text)

    @each_model
    def test_decoding_is_that_of_sentencepiece(self, pieces, settings):
        path, processor = pieces(**settings)
        ids = processor.encode("the lazy dog jumps, naïve fox")
        assert build_tokenizer(f"sentencepiece:{path}", []).decode(ids) == processor.decode(ids)

    @each_model
    def test_saving_and_loading_changes_nothing(self, pieces, settings, tmp_path):
        tokenizer = build_tokenizer(f"sentencepiece:{pieces(**settings)[0]}", [])
        tokenizer.save_pretrained(tmp_path)
        loaded = AutoTokenizer.from_pretrained(tmp_path)
        assert ids_of(loaded, TEXT[0]) == ids_of(tokenizer, TEXT[0])
        assert (loaded.bos_token_id, loaded.eos_token_id) == (tokenizer.bos_token_id, tokenizer.eos_token_id)

    def test_it_keeps_its_own_tokens(self, pieces):
        tokenizer = build_tokenizer(f"sentencepiece:{pieces()[0]}", [])
        assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.unk_token) == ("<s>", "</s>", "<unk>")

    def test_the_end_stands_for_a_missing_beginning(self, pieces):
        tokenizer = build_tokenizer(f"sentencepiece:{pieces(bos_id=-1)[0]}", [])
        assert (tokenizer.bos_token, tokenizer.eos_token) == ("</s>", "</s>")

    def test_one_without_either_gets_end_of_text_behind_its_pieces(self, pieces):
        path, processor = pieces(bos_id=-1, eos_id=-1)
        tokenizer = build_tokenizer(f"sentencepiece:{path}", [])
        assert tokenizer.bos_token == tokenizer.eos_token == END_OF_TEXT
        assert tokenizer.bos_token_id == processor.get_piece_size() == len(tokenizer) - 1

    @pytest.mark.parametrize("content", [b"", b"no model", pickle.dumps({"a": 1})], ids=["empty", "text", "pickle"])
    def test_what_is_no_model_is_refused(self, tmp_path, content):
        (tmp_path / "x.model").write_bytes(content)
        with pytest.raises(ValueError, match=r"x\.model: not a sentencepiece model"):
            build_tokenizer(f"sentencepiece:{tmp_path / 'x.model'}", [])

    def test_a_model_of_another_kind_is_refused(self, pieces):
        path, _ = pieces(model_type="char")
        with pytest.raises(ValueError, match=r"x\.model: not a sentencepiece model of kind unigram or bpe"):
            build_tokenizer(f"sentencepiece:{path}", [])

    def test_a_missing_file_is_refused_before_any_text_is_read(self):
        with pytest.raises(ValueError, match=r"^none\.model: no such file, for tokenizer 'sentencepiece:none\.model'$"):
            vocabulary_size("sentencepiece:none.model")


@pytest.fixture
def folder(tmp_path):
    """A saved tokenizer whose tokens for begin and end are the test's to choose."""
    build_tokenizer("bpe:300", TEXT).save_pretrained(tmp_path)

    def of(**tokens):
        path = tmp_path / "tokenizer_config.json"
        settings = json.loads(path.read_text())
        kept = {name: value for name, value in settings.items() if name not in ("bos_token", "eos_token", "pad_token")}
        path.write_text(json.dumps({**kept, **tokens}))
        return str(tmp_path)

    return of


class TestFolder:
    def test_it_is_loaded_as_it_is(self, folder):
        loaded = build_tokenizer(folder(bos_token="e", eos_token="t"), [])
        assert ids_of(loaded, TEXT[0]) == ids_of(build_tokenizer("bpe:300", TEXT), TEXT[0])
        assert (loaded.bos_token, loaded.eos_token, loaded.padding_side) == ("e", "t", "left")

    def test_its_beginning_parts_documents(self, folder):
        loaded = build_tokenizer(folder(bos_token="e", eos_token="t"), [])
        stream = tokenize(["x", "y"], loaded)
        assert (stream.ids[stream.starts] == loaded.bos_token_id).all()

    @pytest.mark.parametrize("only", ["bos_token", "eos_token"])
    def test_one_token_stands_for_the_other(self, folder, only):
        loaded = build_tokenizer(folder(**{only: "e"}), [])
        assert loaded.bos_token == loaded.eos_token == loaded.pad_token == "e"

    def test_one_without_either_is_refused(self, folder):
        with pytest.raises(ValueError, match="the tokenizer has neither bos_token nor eos_token"):
            build_tokenizer(folder(), [])

    def test_one_that_holds_no_tokenizer_is_refused(self, tmp_path):
        with pytest.raises(ValueError, match=f"{tmp_path}: holds no tokenizer that can be loaded: ") as error:
            build_tokenizer(str(tmp_path), [])
        assert "\n" not in str(error.value)


class TestFile:
    def test_it_is_loaded_as_it_is(self, folder):
        loaded = build_tokenizer(f"{folder()}/tokenizer.json", [])
        assert ids_of(loaded, TEXT[0]) == ids_of(build_tokenizer("bpe:300", TEXT), TEXT[0])
        assert loaded.bos_token_id == loaded.eos_token_id == 0

    def test_one_without_end_of_text_gets_it_behind_its_tokens(self, folder, tmp_path):
        path = tmp_path / "tokenizer.json"
        folder()
        path.write_text(path.read_text().replace(END_OF_TEXT, "<|other|>"))
        loaded = build_tokenizer(str(path), [])
        assert loaded.bos_token == loaded.eos_token == END_OF_TEXT
        assert loaded.bos_token_id == len(loaded) - 1 == 300

    def test_one_that_is_none_is_refused(self, tmp_path):
        (tmp_path / "x.json").write_text("{}")
        with pytest.raises(ValueError, match=r"x\.json: not a tokenizer: "):
            build_tokenizer(str(tmp_path / "x.json"), [])
