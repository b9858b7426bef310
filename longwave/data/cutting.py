"""Long documents in pieces, so that a tokenizer's memory follows the piece and not the document.

A piece ends where a tokenizer cannot tell: the tokens of the pieces, one behind the other, are those of the whole.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

#: Characters after which a piece ends at the next border.
PIECE = 2**18
#: A word or a punctuation mark, with the one space before it, or other white space.
WORD = r" ?\w+| ?[^\w\s]|\s+(?!\S)|\s"
CHARACTER = r"[\s\S]"
ANYWHERE = re.compile("")
#: Splitters into words look ahead over white space only, and none joins it to what stands before.
BEFORE_SPACE = re.compile(r"(?<=\S)(?=[ \n])")


def border_of(tokenizer: PreTrainedTokenizerBase) -> re.Pattern[str] | None:
    """Where a tokenizer's texts may be cut; ``None`` if it is not known that they may be cut anywhere."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None or backend.normalizer is not None or backend.pre_tokenizer is None:
        return None
    if not all(token.special for token in tokenizer.added_tokens_decoder.values()):
        return None  # such a token is found wherever it is spelt, white space included; special ones are not
    splitter = json.loads(backend.pre_tokenizer.__getstate__())
    if splitter["type"] == "ByteLevel" and splitter["use_regex"] and not splitter["add_prefix_space"]:
        return ANYWHERE if _is_bytes_alone(tokenizer) else BEFORE_SPACE
    if splitter["type"] == "Split" and (splitter["behavior"], splitter["invert"]) == ("Isolated", False):
        return {CHARACTER: ANYWHERE, WORD: BEFORE_SPACE}.get(splitter["pattern"].get("Regex"))
    return None


def cut(text: str, border: re.Pattern[str] | None) -> Iterator[str]:
    """``text`` in pieces that end at ``border``, the first one after 2^18 characters; whole if there is none."""
    begin = 0
    while border is not None and len(text) - begin > PIECE:
        found = border.search(text, begin + PIECE)
        if found is None:
            break
        yield text[begin : found.start()]
        begin = found.start()
    yield text[begin:] if begin else text


def _is_bytes_alone(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether a byte-level tokenizer has a token for each of the 256 bytes, its special ones, and no more."""
    from tokenizers import pre_tokenizers

    alphabet = pre_tokenizers.ByteLevel.alphabet()
    if len(tokenizer) > len(alphabet) + len(tokenizer.added_tokens_decoder):
        return False
    return set(alphabet) <= tokenizer.get_vocab().keys()
