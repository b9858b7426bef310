"""Byte-level BPE of HALE's larger runs, on the ``tokenizers`` library."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

SPECIAL_TOKENS = ("<pad>", "<unk>", "<bos>", "<eos>")


class ByteLevelBPE:
    """Text to ids and back; nothing is added at either end.

    Attributes:
        tokenizer: the ``tokenizers.Tokenizer`` inside.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer

    @classmethod
    def train(
        cls,
        lines: Iterable[str],
        vocab_size: int,
        *,
        byte_alphabet: bool = True,
        min_frequency: int = 2,
        special_tokens: Sequence[str] = SPECIAL_TOKENS,
        add_prefix_space: bool = False,
    ) -> ByteLevelBPE:
        """Learn up to ``vocab_size`` tokens, special ones included and first.

        Args:
            byte_alphabet: know all 256 bytes, so that any text comes back from its ids; False is the
                original, which deletes bytes that ``lines`` do not contain.
            min_frequency: least count of a pair that is merged.
            add_prefix_space: treat a text's first word like the others.
        """
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space)
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size,
            min_frequency=min_frequency,
            special_tokens=list(special_tokens),
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()) if byte_alphabet else [],
            show_progress=False,
        )
        tokenizer.train_from_iterator(lines, trainer)
        return cls(tokenizer)

    @classmethod
    def load(cls, path: str | Path) -> ByteLevelBPE:
        """Read what :meth:`save` wrote."""
        return cls(Tokenizer.from_file(str(path)))

    def save(self, path: str | Path) -> None:
        """Write the JSON file of the ``tokenizers`` library."""
        self.tokenizer.save(str(path))

    @property
    def vocab_size_actual(self) -> int:
        """Tokens, special ones included; a short text yields fewer than asked for."""
        return self.tokenizer.get_vocab_size()

    @property
    def vocab(self) -> dict[str, int]:
        """Token to id; a byte is written as the character that byte-level BPE gives it."""
        return self.tokenizer.get_vocab()

    @property
    def merges(self) -> list[tuple[str, str]]:
        """Merged pairs, in the order in which they were learned."""
        return [tuple(pair) for pair in json.loads(self.tokenizer.to_str())["model"]["merges"]]

    def encode(self, text: str) -> list[int]:
        """Ids of ``text``."""
        return self.tokenizer.encode(text, add_special_tokens=False).ids

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ``ids``, special tokens left out."""
        return self.tokenizer.decode(list(ids), skip_special_tokens=True)
