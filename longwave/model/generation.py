"""Continuing a prompt with a loaded model, and what a directory may ask of it."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase, TextStreamer

from longwave.mixers import in_one_sentence
from longwave.model.configuration import Refused

#: Settings of a generation_config.json that are numbers: the smallest and the largest that is legal.
COUNTS = {
    "max_length": (1, 1 << 31),
    "max_new_tokens": (1, 1 << 31),
    "min_length": (0, 1 << 31),
    "min_new_tokens": (0, 1 << 31),
    "num_beams": (1, 1024),
    "num_return_sequences": (1, 1024),
    "top_k": (0, 1 << 31),
    "no_repeat_ngram_size": (0, 1 << 31),
}
SHARES = {
    "temperature": (0.0, 1e6),
    "top_p": (0.0, 1.0),
    "min_p": (0.0, 1.0),
    "typical_p": (0.0, 1.0),
    "epsilon_cutoff": (0.0, 1.0),
    "eta_cutoff": (0.0, 1.0),
    "repetition_penalty": (1e-6, 1e6),
    "length_penalty": (-1e6, 1e6),
    "guidance_scale": (-1e6, 1e6),
    "max_time": (0.0, math.inf),
}
SWITCHES = ("do_sample", "use_cache", "remove_invalid_values", "renormalize_logits", "return_dict_in_generate")
TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id", "suppress_tokens", "begin_suppress_tokens")


def check_generation(file: Path, vocab_size: int | None) -> None:
    """Hold a ``generation_config.json``, if there is one, to what ``generate`` can do.

    Args:
        vocab_size: of a longwave model; of another one ``None``, which may have settings and tokens of its own.

    Raises:
        Refused: it is no JSON object, or a setting of it is unknown, of another kind or out of range.
    """
    if not file.is_file():
        return
    with in_one_sentence(f"{file}: not a JSON object", passing=(OSError,)):
        settings = json.loads(file.read_text(encoding="utf-8"))
    if not isinstance(settings, dict):
        raise Refused(f"{file}: expected a JSON object, got {str(settings)[:60]}")
    known = vars(GenerationConfig())
    for name, value in settings.items():
        if vocab_size is not None and name not in known:
            raise Refused(f"{file}: unknown setting {name!r}")
        legal = None if value is None else _legal(name, value, vocab_size or 1 << 62)
        if legal is not None:
            raise Refused(f"{file}: {name} must be {legal}, got {str(value)[:60]}")


def _legal(name: str, value: Any, vocab_size: int) -> str | None:
    """What a setting may be, if it is not; ``None`` if it is."""
    if name in SWITCHES:
        return None if isinstance(value, bool) else "true or false"
    if name in TOKENS:
        tokens = value if isinstance(value, list) else [value]
        right = all(type(token) is int and 0 <= token < vocab_size for token in tokens)
        return None if right else f"tokens below {vocab_size}"
    for table, kinds, kind in ((COUNTS, (int,), "a whole number"), (SHARES, (int, float), "a number")):
        if name in table:
            least, most = table[name]
            right = type(value) in kinds and least <= value <= most
            return None if right else f"{kind} from {least:,} to {most:,}"
    return None


def print_continuation(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompt: str,
    *,
    max_new_tokens: int,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    seed: int = 0,
) -> None:
    """Print a prompt and its continuation, token by token as they come.

    Args:
        max_new_tokens: tokens to add at most.
        temperature: 0 takes the likeliest token.
        top_k: keep the k likeliest tokens; 0 keeps all.
        top_p: keep the likeliest tokens of this total.
        seed: of the sampling.

    Raises:
        ValueError: the prompt is not text, gives no token, or the model cannot continue it.
    """
    try:
        prompt.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"--prompt: character {error.start + 1} is not UTF-8") from None
    with in_one_sentence("--prompt: the tokenizer cannot read it"):
        begin = [tokenizer.bos_token_id] if tokenizer.bos_token_id is not None else []
        ids = torch.tensor([begin + tokenizer(prompt, add_special_tokens=False)["input_ids"]], dtype=torch.int64)
    if not ids.numel():
        raise ValueError("the prompt is empty, and the tokenizer has no token that begins a document")
    rows = model.get_input_embeddings().num_embeddings
    if int(ids.max()) >= rows:
        raise ValueError(f"--prompt: it has a token {int(ids.max())}, the model's embedding {rows} rows")
    print(prompt, end="", flush=True)
    sampling = {"do_sample": True, "temperature": temperature, "top_k": top_k, "top_p": top_p}
    with in_one_sentence("the model cannot continue the prompt", passing=(OSError,)):
        torch.manual_seed(seed)
        model.generate(
            ids,
            max_new_tokens=max_new_tokens,
            streamer=TextStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True),
            pad_token_id=tokenizer.pad_token_id,
            **(sampling if temperature else {"do_sample": False}),
        )
