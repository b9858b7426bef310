"""Tokenizers that come in files. No file is executed or unpickled."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerBase

#: Begins every document; the prediction of it is the prediction that a document ends.
END_OF_TEXT = "<|endoftext|>"
SPACE = "▁"  # how sentencepiece writes a space
UNIGRAM, BPE = 1, 2  # sentencepiece's numbers for kinds of models
UNKNOWN_PIECE, CONTROL_PIECE, USER_PIECE = 2, 3, 4  # and for kinds of pieces


def wrap(
    tokenizer: Tokenizer, begin: str = END_OF_TEXT, end: str = END_OF_TEXT, **tokens: str
) -> PreTrainedTokenizerBase:
    """``tokenizer`` for transformers; ``begin`` and ``end`` get ids behind all others if it lacks them."""
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=begin,
        eos_token=end,
        pad_token=end,
        padding_side="left",
        clean_up_tokenization_spaces=False,
        split_special_tokens=True,
        **tokens,
    )


def load_file(path: str) -> PreTrainedTokenizerBase:
    """A ``tokenizer.json``. It does not say which tokens begin and end a document: ``<|endoftext|>`` does.

    Raises:
        ValueError: it is none.
    """
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_file(path)
    except Exception as error:  # the library raises no narrower class
        raise ValueError(f"{path}: not a tokenizer: {_first_line(error)}") from error
    return wrap(tokenizer)


def load_folder(path: str) -> PreTrainedTokenizerBase:
    """A tokenizer that was saved by transformers, with its own tokens.

    Raises:
        ValueError: there is none, it needs code of its own, or has no token that begins or ends a document.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # whatever the many tokenizer classes raise about a file
        raise ValueError(f"{path}: holds no tokenizer that can be loaded: {_first_line(error)}") from error
    begin, end = tokenizer.bos_token or tokenizer.eos_token, tokenizer.eos_token or tokenizer.bos_token
    if begin is None:
        raise ValueError(f"{path}: the tokenizer has neither bos_token nor eos_token, one of which must part documents")
    tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token = begin, end, tokenizer.pad_token or end
    tokenizer.padding_side = "left"
    largest = max(tokenizer.get_vocab().values())
    if largest >= len(tokenizer):
        raise ValueError(f"{path}: the tokenizer has {len(tokenizer)} tokens, but an id of {largest}")
    return tokenizer


def load_sentencepiece(path: str) -> PreTrainedTokenizerBase:
    """The pieces and rules of a sentencepiece ``.model``, as a tokenizer that is saved as a ``tokenizer.json``.

    The ids are those of sentencepiece, except that text behind a user-defined piece begins like a new word, and that
    unknown characters are counted singly where text spells a control piece.

    Raises:
        ValueError: it is none, or neither unigram nor BPE.
    """
    from google.protobuf.message import DecodeError
    from sentencepiece import sentencepiece_model_pb2
    from tokenizers import AddedToken, Tokenizer

    proto = sentencepiece_model_pb2.ModelProto()
    try:
        with open(path, "rb") as file:
            proto.ParseFromString(file.read())
    except (OSError, ValueError, DecodeError) as error:
        raise ValueError(f"{path}: not a sentencepiece model: {_first_line(error)}") from error
    settings, pieces = proto.trainer_spec, proto.pieces
    if not pieces or settings.model_type not in (UNIGRAM, BPE):
        raise ValueError(f"{path}: not a sentencepiece model of kind unigram or bpe")
    tokenizer = Tokenizer(_model(proto))
    tokenizer.normalizer, tokenizer.pre_tokenizer, tokenizer.decoder = _rules(proto)
    control = [piece.piece for piece in pieces if piece.type in (CONTROL_PIECE, UNKNOWN_PIECE)]
    tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in control])
    tokenizer.add_tokens([AddedToken(piece.piece, normalized=False) for piece in pieces if piece.type == USER_PIECE])
    own = [pieces[index].piece for index in (settings.bos_id, settings.eos_id) if index >= 0]
    return wrap(tokenizer, *(own[0], own[-1]) if own else (), unk_token=pieces[settings.unk_id].piece)


def _model(proto: Any) -> Any:
    """Pieces and their scores. BPE merges what gives the piece of the best score first."""
    from tokenizers import models

    settings, pieces = proto.trainer_spec, proto.pieces
    if settings.model_type == UNIGRAM:
        scores = [(piece.piece, piece.score) for piece in pieces]
        return models.Unigram(scores, unk_id=settings.unk_id, byte_fallback=settings.byte_fallback)
    ids = {piece.piece: index for index, piece in enumerate(pieces)}
    merges = []
    for piece in sorted(pieces, key=lambda piece: -piece.score):
        whole = piece.piece
        halves = [(whole[:cut], whole[cut:]) for cut in range(1, len(whole))]
        known = [pair for pair in halves if pair[0] in ids and pair[1] in ids]
        merges += sorted(known, key=lambda pair: (ids[pair[0]], ids[pair[1]]))
    unknown = pieces[settings.unk_id].piece
    return models.BPE(ids, merges, unk_token=unknown, fuse_unk=True, byte_fallback=settings.byte_fallback)


def _rules(proto: Any) -> tuple[Any, Any, Any]:
    """Normaliser, splitter and decoder."""
    from tokenizers import Regex, decoders, normalizers, pre_tokenizers

    rules, pieces = proto.normalizer_spec, proto.pieces
    steps: list[Any] = []
    if rules.precompiled_charsmap:
        steps.append(normalizers.Precompiled(rules.precompiled_charsmap))
    if rules.remove_extra_whitespaces:
        steps += [normalizers.Replace(Regex("^ +| +$"), ""), normalizers.Replace(Regex(" {2,}"), " ")]
    if rules.add_dummy_prefix:
        steps.append(normalizers.Prepend(" "))
    # Words are split for speed, where no piece goes beyond one.
    by_word = not any(SPACE in piece.piece[1:] for piece in pieces)
    splitters: list[Any] = [pre_tokenizers.Metaspace(SPACE, "never", split=by_word)]
    # Text that spells a control piece is split within, so that it does not become the piece.
    for name in (piece.piece for piece in pieces if piece.type == CONTROL_PIECE and len(piece.piece) > 1):
        spelt = Regex(f"{re.escape(name[0])}(?={re.escape(name[1:])})")
        splitters.append(pre_tokenizers.Split(spelt, "isolated"))
    spaces: list[Any] = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    if rules.add_dummy_prefix:
        spaces.append(decoders.Strip(" ", 1, 0))
    return normalizers.Sequence(steps), pre_tokenizers.Sequence(splitters), decoders.Sequence(spaces)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
