"""Tokenizers, all of them lossless on any text, all of them transformers tokenizers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

#: Begins every document; the prediction of it is the prediction that a document ends.
END_OF_TEXT = "<|endoftext|>"
SMALLEST_BPE = 257


def vocabulary_size(kind: str) -> int:
    """Tokens of a tokenizer of this kind, at most (a small text can leave BPE with fewer).

    Raises:
        ValueError: unknown kind, or SIZE below 257.
    """
    name, _, size = kind.partition(":")
    if kind == "byte":
        return SMALLEST_BPE
    if name == "bpe" and size.isdigit() and int(size) >= SMALLEST_BPE:
        return int(size)
    raise ValueError(f"unknown tokenizer {kind!r}; legal: byte, bpe:SIZE with SIZE at least {SMALLEST_BPE}")


def build_tokenizer(kind: str, documents: Sequence[str]) -> PreTrainedTokenizerFast:
    """``"byte"`` (256 bytes), or ``"bpe:SIZE"``: byte-level BPE trained on ``documents``.

    Both have the one special token ``<|endoftext|>``, id 0, counted in SIZE.

    Raises:
        ValueError: unknown kind, or SIZE below 257.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    size = vocabulary_size(kind)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(documents if size > SMALLEST_BPE else [], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=END_OF_TEXT,
        eos_token=END_OF_TEXT,
        pad_token=END_OF_TEXT,
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )
