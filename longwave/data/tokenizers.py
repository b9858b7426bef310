"""Tokenizers, all of them transformers tokenizers.

``byte``, ``bpe``, and on text that they know ``char`` and ``word``, give any text back as it was.
"""

from __future__ import annotations

import os.path
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from longwave.data.cutting import BEFORE_SPACE, CHARACTER, WORD, cut
from longwave.data.pretrained import END_OF_TEXT, load_file, load_folder, load_sentencepiece, wrap

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from tokenizers.models import Model
    from transformers import PreTrainedTokenizerBase

UNKNOWN = "<|unknown|>"
SMALLEST_BPE, LARGEST_BPE = 257, 2**20
LARGEST_WORD = 65536  # ids fit 16 bits
SENTENCEPIECE = "sentencepiece:"
LEGAL = (
    f"byte, char, word, bpe:SIZE with SIZE at least {SMALLEST_BPE} and at most {LARGEST_BPE}, {SENTENCEPIECE}FILE, "
    "or the path of a tokenizer.json file or of a tokenizer's folder"
)


def vocabulary_size(kind: str) -> int:
    """Tokens of a tokenizer of this kind, as far as its name tells.

    An upper limit for ``byte``, ``bpe:SIZE`` and ``word``; for other kinds, whose size the text or a file decides,
    a number to calculate with.

    Raises:
        ValueError: unknown kind, SIZE below 257 or above 1,048,576, or a file that is not there.
    """
    name, _, rest = kind.partition(":")
    if kind in ("byte", "char"):
        return SMALLEST_BPE
    digits = name == "bpe" and rest.isascii() and rest.isdigit() and len(rest) <= len(str(LARGEST_BPE))
    if digits and SMALLEST_BPE <= int(rest) <= LARGEST_BPE:
        return int(rest)
    if kind.startswith(SENTENCEPIECE) and rest:
        if not os.path.isfile(rest):
            raise ValueError(f"{rest}: no such file, for tokenizer {kind!r}")
        return LARGEST_WORD
    if kind == "word" or (kind.endswith(".json") and os.path.isfile(kind)) or os.path.isdir(kind):
        return LARGEST_WORD
    raise ValueError(f"unknown tokenizer {kind!r}; legal: {LEGAL}")


def build_tokenizer(kind: str, documents: Iterable[str]) -> PreTrainedTokenizerBase:
    """A tokenizer that has a token for the beginning and end of a document and pads on the left.

    - ``byte``: 256 bytes. ``bpe:SIZE``: byte-level pairs, learned from ``documents``.
    - ``char``: the characters of ``documents``. ``word``: their words and punctuation marks, each with the one space
      before it, and runs of other white space; the most frequent ones, 65,536 tokens in all. What ``documents``
      lack becomes ``<|unknown|>``, so a score in bits per byte is not that of the text where it occurs.
    - ``sentencepiece:FILE``: unigram or BPE pieces of a ``.model`` file. It may normalise text.
    - the path of a ``tokenizer.json``, or of a folder that transformers loads (remote code is not run).

    ``<|endoftext|>`` is both tokens, id 0 and counted in SIZE for the kinds built here; a sentencepiece model and
    a folder keep their own, and one stands for both where the other is missing. Text that spells such a token is
    ordinary text.

    Raises:
        ValueError: unknown kind, SIZE below 257 or above 1,048,576, or a file that cannot be loaded.
    """
    size = vocabulary_size(kind)
    if kind.startswith(SENTENCEPIECE):
        return load_sentencepiece(kind.removeprefix(SENTENCEPIECE))
    if kind == "char":
        return wrap(_characters(documents), unk_token=UNKNOWN)
    if kind == "word":
        return wrap(_words(documents), unk_token=UNKNOWN)
    if kind == "byte":
        return wrap(_byte_pairs([], SMALLEST_BPE))
    if kind.startswith("bpe:"):
        return wrap(_byte_pairs(documents, size))
    return load_folder(kind) if os.path.isdir(kind) else load_file(kind)


def number_tokenizer(size: int) -> PreTrainedTokenizerBase:
    """Token i is the word ``str(i)``; token 0 begins and ends a document, and stands for any other word."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers

    tokenizer = Tokenizer(models.WordLevel({str(index): index for index in range(size)}, unk_token="0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.decoder = decoders.Replace(Regex("^"), " ")  # before every token, so that streamed ones stay apart
    tokenizer.add_special_tokens([AddedToken("0", single_word=True, normalized=False)])  # not the 0 within 10
    return wrap(tokenizer, "0", "0", unk_token="0")


def _byte_pairs(documents: Iterable[str], size: int) -> Tokenizer:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_pieces(documents) if size > SMALLEST_BPE else [], trainer)
    return tokenizer


def _pieces(documents: Iterable[str]) -> Iterator[str]:
    """The same words in shorter texts."""
    return (piece for document in documents for piece in cut(document, BEFORE_SPACE))


def _characters(documents: Iterable[str]) -> Tokenizer:
    from tokenizers import models

    found: set[str] = set()
    for document in documents:
        found.update(document)
    tokens = [END_OF_TEXT, UNKNOWN, *sorted(found)]
    model = models.WordLevel({token: index for index, token in enumerate(tokens)}, unk_token=UNKNOWN)
    return _split_at(CHARACTER, model)


def _words(documents: Iterable[str]) -> Tokenizer:
    from tokenizers import models, trainers

    tokenizer = _split_at(WORD, models.WordLevel(unk_token=UNKNOWN))
    trainer = trainers.WordLevelTrainer(
        vocab_size=LARGEST_WORD, special_tokens=[END_OF_TEXT, UNKNOWN], show_progress=False
    )
    tokenizer.train_from_iterator(_pieces(documents), trainer)
    return tokenizer


def _split_at(pattern: str, model: Model) -> Tokenizer:
    """A tokenizer whose tokens are the matches of ``pattern``."""
    from tokenizers import Regex, Tokenizer, decoders, pre_tokenizers

    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(pattern), "isolated")
    tokenizer.decoder = decoders.Fuse()
    return tokenizer
