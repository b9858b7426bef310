"""Texts that a model continues, one prompt at a time through ``generate`` of transformers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import LogitsProcessor

from longwave.evaluation.distributions import nucleus
from longwave.evaluation.protocol import beginning, encode_text, evaluating, longest_input

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Sampling:
    """How the next token is drawn.

    Attributes:
        temperature: 0 takes the likeliest.
        top_p: of :func:`longwave.evaluation.nucleus`, which is applied last.
        top_k: the k likeliest are kept; 0 keeps all.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0

    def __str__(self) -> str:
        if not self.temperature:
            return "greedy"
        kept = [f"top-k {self.top_k}"] * bool(self.top_k) + [f"top-p {self.top_p}"] * (self.top_p < 1)
        return ", ".join([f"T {self.temperature}", *kept])


class Continuation(NamedTuple):
    """``logits`` `[num_tokens, V]` are the model's own, before any filter, if they were asked for."""

    text: str
    num_tokens: int
    logits: Tensor | None


def continue_prompt(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    prompt: str,
    sampling: Sampling,
    *,
    max_new_tokens: int,
    seed: int = 0,
    keep_logits: bool = False,
) -> Continuation:
    """Continue ``prompt``, at the beginning of a document, until the document ends or the tokens are used up.

    The same seed says the same, whatever was generated before; PyTorch's own random numbers are left alone. A model
    with a limit of positions generates no further than that.

    Raises:
        ValueError: ``max_new_tokens`` is below 1, or the prompt fills the positions of the model.
        FloatingPointError: a token is to be drawn from logits that are not numbers.
    """
    ids = beginning(tokenizer) + encode_text(tokenizer, prompt)
    limit = longest_input(model)
    room = max_new_tokens if limit is None else min(max_new_tokens, limit - len(ids))
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens must be at least 1, got {max_new_tokens}")
    if room < 1:
        raise ValueError(
            f"a prompt of {len(ids)} tokens leaves no room in the model's {limit} positions: {prompt[:40]!r}"
        )
    choice: dict[str, Any] = {"do_sample": False}
    if sampling.temperature:
        neutral = {"temperature": 1.0, "top_k": 0, "top_p": 1.0}
        choice = {"do_sample": True, "logits_processor": [_Filter(sampling)], **neutral}
    end = tokenizer.eos_token_id
    with evaluating(model) as device, torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        prompt_ids = torch.tensor([ids], device=device)
        output = model.generate(  # type: ignore[operator]
            prompt_ids,
            attention_mask=torch.ones_like(prompt_ids),
            max_new_tokens=room,
            num_beams=1,
            repetition_penalty=1.0,
            eos_token_id=end,
            pad_token_id=next((token for token in (tokenizer.pad_token_id, end) if token is not None), 0),
            return_dict_in_generate=True,
            output_logits=keep_logits,
            **choice,
        )
    new = output.sequences[0, len(ids) :]
    logits = torch.stack([step[0] for step in output.logits]) if keep_logits else None
    return Continuation(str(tokenizer.decode(new, skip_special_tokens=True)), len(new), logits)


class _Filter(LogitsProcessor):
    """Temperature, top-k, nucleus, in this order: transformers' own nucleus keeps while cumulative - own < top_p."""

    def __init__(self, sampling: Sampling) -> None:
        self.sampling = sampling

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Log-probabilities `[B, V]`, -inf where a token is not kept."""
        if scores.isnan().any():
            raise FloatingPointError("the model's logits are not numbers; nothing can be sampled")
        scores = scores.double() / self.sampling.temperature
        if 0 < self.sampling.top_k < scores.shape[-1]:
            least = scores.topk(self.sampling.top_k, dim=-1).values[:, -1:]
            scores = scores.masked_fill(scores < least, -torch.inf)
        return nucleus(scores.softmax(dim=-1), self.sampling.top_p).log().float()
