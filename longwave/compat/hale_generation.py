"""The published sampler, and generation with it: batched, prompts of any lengths, of unlimited length."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from longwave.model import CACHE_NAME, LongwaveForCausalLM

COLDEST = 1e-6
NO_TOKEN = -1


def next_token_probabilities(
    logits: Tensor,
    history: Tensor,
    *,
    temperature: float = 1.0,
    top_k: int | None = 50,
    top_p: float | None = 0.9,
    repetition_penalty: float = 1.2,
    repetition_window: int = 50,
) -> Tensor:
    """Distribution of the next token: temperature, repetition penalty, top-k, top-p, in this order.

    Args:
        logits: `[B, V]`.
        history: `[B, T]` int64, prompt and output so far, -1 where there is no token.
        temperature: divides the logits; 0 stands for 1e-6.
        top_k: keep the k largest logits and what ties with the k-th; ``None`` or 0 keeps all.
        top_p: keep a token if those before it hold at most this probability; ``None`` or 1 keeps all.
        repetition_penalty: each token among the last ``repetition_window`` of the history has its logit
            divided by this if positive, multiplied by it otherwise; 1 for none.

    Returns:
        `[B, V]`, float32 or wider.
    """
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32)) / max(temperature, COLDEST)
    vocab_size = logits.shape[-1]
    if repetition_penalty != 1 and repetition_window > 0:
        recent = history[:, -repetition_window:]
        recent = recent.masked_fill(recent == NO_TOKEN, vocab_size)
        seen = torch.zeros(logits.shape[0], vocab_size + 1, dtype=torch.bool, device=logits.device)
        seen = seen.scatter(1, recent, True)[:, :vocab_size]
        penalised = torch.where(logits > 0, logits / repetition_penalty, logits * repetition_penalty)
        logits = torch.where(seen, penalised, logits)
    if top_k:
        smallest = logits.topk(min(top_k, vocab_size), dim=-1).values[:, -1:]
        logits = logits.masked_fill(logits < smallest, -torch.inf)
    if top_p is not None and top_p < 1:
        ordered, order = logits.sort(dim=-1, descending=True, stable=True)
        before = F.pad(ordered.softmax(dim=-1).cumsum(dim=-1)[:, :-1], (1, 0))
        logits = logits.masked_fill((before > top_p).scatter(1, order, before > top_p), -torch.inf)
    return logits.softmax(dim=-1)


@torch.no_grad()
def generate(
    model: LongwaveForCausalLM,
    prompts: Tensor | Sequence[Tensor | Sequence[int]],
    max_new_tokens: int = 100,
    *,
    stop_tokens: Sequence[int] = (),
    generator: torch.Generator | None = None,
    **sampling,
) -> Tensor | list[Tensor]:
    """Continue every prompt by up to ``max_new_tokens`` tokens; the model decodes as it was trained.

    Prompts are read in parallel, in evaluation mode; each further token costs one step.

    Args:
        prompts: `[N]` or `[B, N]` int64, or a sequence of prompts of any lengths.
        stop_tokens: a row ends with the first of these that it draws.
        generator: source of randomness; ``None`` for PyTorch's own.
        sampling: keyword arguments of :func:`next_token_probabilities`.

    Returns:
        For a tensor, `[B, N + new]`, rows that ended early filled up with their stop token; for a
        sequence, a list of 1-D tensors. Prompts included.

    Raises:
        ValueError: a prompt is empty or no row of token ids, or ``max_new_tokens`` is negative.
    """
    if max_new_tokens < 0:
        raise ValueError(f"max_new_tokens must be at least 0, got {max_new_tokens}")
    rows = _rows(prompts, model.device)
    longest = max(len(row) for row in rows)
    tokens = torch.full((len(rows), longest + max_new_tokens), NO_TOKEN, device=model.device)
    for index, row in enumerate(rows):
        tokens[index, longest - len(row) : longest] = row
    stops = torch.tensor(list(stop_tokens), dtype=torch.int64, device=model.device)
    training = model.training
    model.eval()
    try:
        lengths = _continue(model, tokens, longest, stops, generator, sampling)
    finally:
        model.train(training)
    if isinstance(prompts, Tensor):
        return tokens[:, : longest + int(lengths.max())]
    ends = (longest + lengths).tolist()
    return [tokens[i, longest - len(row) : end] for i, (row, end) in enumerate(zip(rows, ends, strict=True))]


def _continue(
    model: LongwaveForCausalLM,
    tokens: Tensor,
    begin: int,
    stops: Tensor,
    generator: torch.Generator | None,
    sampling: dict,
) -> Tensor:
    """Fill ``tokens`` from column ``begin`` on; `[B]` int64, new tokens of each row up to its stop token."""
    lengths = torch.zeros(tokens.shape[0], dtype=torch.int64, device=tokens.device)
    running = torch.ones_like(lengths, dtype=torch.bool)
    prompt, cache = tokens[:, :begin], None
    given = {"input_ids": prompt.clamp(min=0), "attention_mask": (prompt != NO_TOKEN).long()}
    for column in range(begin, tokens.shape[1]):
        out = model(**given, cache=cache, use_cache=True, logits_to_keep=1)
        probabilities = next_token_probabilities(out.logits[:, -1], tokens[:, :column], **sampling)
        drawn = torch.multinomial(probabilities, 1, generator=generator)[:, 0]
        drawn = torch.where(running, drawn, tokens[:, column - 1])
        tokens[:, column] = drawn
        lengths += running
        running = running & ~torch.isin(drawn, stops)
        if not running.any():
            break
        given, cache = {"input_ids": drawn[:, None]}, out[CACHE_NAME]
    return lengths


def _rows(prompts: Tensor | Sequence[Tensor | Sequence[int]], device: torch.device) -> list[Tensor]:
    if isinstance(prompts, Tensor) and prompts.dim() == 1:
        prompts = prompts[None]
    rows = [torch.as_tensor(prompt, device=device) for prompt in prompts]
    if not rows:
        raise ValueError("generate needs at least one prompt")
    for index, row in enumerate(rows):
        if row.dim() != 1 or not len(row):
            raise ValueError(f"prompt {index} must be a row of at least one token id, got shape {tuple(row.shape)}")
        if row.is_floating_point() or int(row.min()) < 0:
            raise ValueError(f"prompt {index} must hold token ids, integers from 0")
    return rows
